"""Two stores in one: every question is answered by the simulator's and by SQLite's, and the answers must be equal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from kodo.catalogue import Catalogue
from kodo.core.instructions import Parcel, Save
from kodo.core.parts import Part, Row
from kodo.core.peers import PeerState
from kodo.models import Key
from kodo.query import parse_order
from kodo.sim.store import Content, Store, Stored

ALL = parse_order("node, url")


class Twin:
    """A `Store` and a `Catalogue` that are told the same. `asked` counts the answers that were compared."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = Store(url)
        self.catalogue = Catalogue(url)
        self.asked = 0
        self.durable: list[Save] = []
        self.open: list[Save] = []

    def write(self, save: Save) -> None:
        """A catalogue in memory can be read between its commits alone; what is not durable is remembered here."""
        self.open.append(save)
        self.store.write(save)
        self.catalogue.write(save)
        self.catalogue.commit()

    def commit(self) -> None:
        self.store.commit()
        self.durable += self.open
        self.open.clear()

    def rollback(self) -> int:
        if self.open:
            self.catalogue = self._replayed()
            self.open.clear()
        return self.store.rollback()

    def _replayed(self) -> Catalogue:
        """A catalogue that holds what is durable."""
        catalogue = Catalogue(self.url)
        for save in self.durable:
            catalogue.write(save)
        catalogue.commit()
        catalogue._floors.clear()  # as after a start
        return catalogue

    def copy(self) -> Twin:
        """What is durable in each, in new ones."""
        other = Twin(self.url)
        other.store, other.catalogue, other.durable = self.store.copy(), self._replayed(), list(self.durable)
        for part in other.parts():
            other.records(part.origin)
        other.peers(), other.listing()
        return other

    def same(self, mine: Any, other: Any) -> None:
        self.asked += 1
        assert mine == other

    def rows(self, keys: Iterable[Key]) -> dict[Key, tuple[Row, ...]]:
        keys = list(keys)
        mine, other = self.store.rows(keys), self.catalogue.rows(keys)
        self.same(mine, {key: tuple(sorted(rows, key=lambda row: row.origin)) for key, rows in other.items()})
        return mine

    def parts(self) -> list[Part]:
        mine = self.store.parts()
        self.same(sorted(mine, key=lambda part: part.origin), self.catalogue.parts())
        return mine

    def contents(self) -> dict[Key, int]:
        mine = self.store.contents()
        self.same({origin: content for origin, content in mine.items() if content}, self.catalogue.contents())
        return mine

    def own_rows(self) -> list[Row]:
        mine = self.store.own_rows()
        self.same(mine, sorted(self.catalogue.own_rows(), key=lambda row: row.seq))
        return mine

    def peers(self) -> list[PeerState]:
        mine = self.store.peers()
        self.same(sorted(mine, key=lambda peer: peer.key), self.catalogue.peers())
        return mine

    def content(self, parcel: Parcel, limit: int) -> Content:
        mine, other = self.store.content(parcel, limit), self.catalogue.content(parcel, limit)
        for name in ("nodes", "deltas"):
            self.same(*(orjson.dumps(getattr(content, name), default=list) for content in (mine, other)))
        self.same(mine.carried, other.carried)
        return mine

    def own_node(self) -> dict[str, Any]:
        mine = self.store.own_node()
        self.same(orjson.dumps(mine), orjson.dumps(self.catalogue.own_node()))
        return mine

    def listing(self) -> list[dict[str, Any]]:
        mine = self.store.listing()
        self.same(mine, self.catalogue.page(None, ALL, 0, 1000).items)
        return mine

    def records(self, origin: Key) -> list[Stored]:
        """What the store holds of an origin, all of it as the catalogue does."""
        mine = self.store.records(origin)
        told = (
            "SELECT key, url, organization, created, modified, heartbeat, status, seq, flows_seq, digest, flows, size,"
            " via, gone FROM record WHERE origin = ? AND seq >= 0 ORDER BY seq"
        )
        with self.catalogue.reading() as db:
            rows = db.execute(told, (origin,)).fetchall()
        self.same([_columns(stored) for stored in mine], rows)
        return mine

    def view(self) -> dict[str, Stored]:
        return self.store.view()


def _columns(stored: Stored) -> tuple[Any, ...]:
    row = stored.row
    return (
        *(row.node, row.url, row.organization, row.created, row.modified, row.heartbeat, row.status),
        *(row.seq, row.flows_seq, row.digest, stored.flows, stored.size, row.via, int(row.gone)),
    )
