"""The durable state of a simulated registry, as dictionaries: what `kodo.catalogue.Catalogue` is to a real one.

It owns what the core's instructions mean without SQLite: a Save makes the same changes, a Parcel comes to the same
JSON, the listing is the same (FEDERATION.md, rule 14). Its rules:

- `write` changes, `commit` makes durable, `rollback` is what a crash does: everything since the last commit is gone.
  A Save that is `lazy` is therefore lost by a crash that comes before the next Save that is not.
- What stands in the tables is never changed in place, only replaced. A copy of the disk is a copy of four dictionaries,
  whatever it holds, and what a rollback must undo is remembered once for each place that changed.
- Flows are kept as JSON, one text for equal flows in all stores that share `texts`.

`_order` is no state but an index: for each origin its records by `seq`, with entries that are out of date, which are
passed over.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import xor
from typing import Any, NamedTuple, Protocol

import orjson

from kodo.core.instructions import BELOW_ALL, Entry, Parcel, Range, Save, Settle, Stage
from kodo.core.parts import Carried, Part, Row, listed, remains
from kodo.core.peers import PeerState
from kodo.models import MISSING_AUTHOR, MISSING_DESCRIPTION, NOTHING, Key, canonical, flows_json

OVERHEAD = 300
"""Bytes of a node beside its flows, as the catalogue reckons them when it cuts pages."""
SLACK = 16
"""Entries of an index that may be out of date, beside as many as there are good ones, before it is made anew."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What one part says of one node, whole: its `row`, and its `flows` as JSON, of `size` flows."""

    row: Row
    flows: str = "{}"
    size: int = 0

    def body(self) -> dict[str, Any]:
        """The node as messages carry it."""
        row = self.row
        return {
            "url": row.url,
            "organization": row.organization,
            "flows": orjson.Fragment(self.flows),
            "created": row.created,
            "modified": row.modified,
            "heartbeat": row.heartbeat,
            "status": row.status,
        }


@dataclass(frozen=True, slots=True)
class Content:
    """What a parcel came to: the JSON of `nodes` and `deltas`, and what it carries of each origin."""

    nodes: dict[str, Any]
    deltas: list[dict[str, Any]]
    carried: dict[Key, Carried]


class Disk(Protocol):
    """What the simulator needs of a store; `kodo.catalogue.Catalogue` offers the same."""

    def rows(self, keys: Iterable[Key]) -> dict[Key, tuple[Row, ...]]: ...
    def parts(self) -> list[Part]: ...
    def contents(self) -> dict[Key, int]: ...
    def own_rows(self) -> list[Row]: ...
    def peers(self) -> list[PeerState]: ...
    def content(self, parcel: Parcel, limit: int) -> Content: ...
    def own_node(self) -> dict[str, Any]: ...
    def listing(self) -> list[dict[str, Any]]: ...
    def records(self, origin: Key) -> list[Stored]: ...
    def view(self) -> dict[str, Stored]: ...
    def write(self, save: Save) -> None: ...
    def commit(self) -> None: ...
    def rollback(self) -> int: ...
    def copy(self) -> Disk: ...


class _Writing(NamedTuple):
    """An entry on its way into the records; without `flows` those that are there stay."""

    entry: Entry
    flows_seq: int
    digest: str | None
    flows: str | None
    size: int


class Store:
    """The records, parts and peers of the service `url`; stores that share `texts` hold equal flows once."""

    def __init__(self, url: str, texts: dict[str, str] | None = None) -> None:
        self.url = url
        self.key = canonical(url)
        self._texts = {} if texts is None else texts
        self._nodes: dict[Key, dict[Key, Stored]] = {}
        self._staged: dict[Stage, dict[Key, _Writing]] = {}
        self._parts: dict[Key, Part] = {}
        self._peers: dict[Key, PeerState] = {}
        self._undo: dict[tuple[int, Any], tuple[dict[Any, Any], Any]] = {}
        self._order: dict[Key, list[tuple[int, Key]]] = {}
        # Up to where tombstones were cleaned up, since this started.
        self._floors: dict[Key, int] = {}

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, save: Save) -> None:
        """Make the changes of a Save, durable with the next `commit`."""
        for stage in save.unstage:
            self._put(self._staged, stage, None)
        if save.staged:
            self._stage(save.staged)
        for settle in save.settled:
            self._settle(settle)
        for entry in save.entries:
            self._store(self._writing(entry))
        for part in save.parts:
            self._put(self._parts, part.origin, part)
            self._clean_up(part.origin, part.floor.seq)
        for peer in save.peers:
            self._put(self._peers, peer.key, peer)
        for origin in save.dropped:
            self._drop(origin)
        for key in save.forgotten:
            self._put(self._peers, key, None)

    def _clean_up(self, origin: Key, floor: int) -> None:
        """Forget the tombstones up to the floor, when it has risen."""
        if floor <= self._floors.get(origin, 0):
            return
        self._floors[origin] = floor
        for stored in self.records(origin):
            if stored.row.gone and stored.row.seq <= floor:
                self._remove(stored)

    def _drop(self, origin: Key) -> None:
        """Forget a part with all its records, and what is kept aside for it."""
        for stored in list(self._changed(origin, BELOW_ALL)):
            self._remove(stored)
        self._unstage(origin)
        self._put(self._parts, origin, None)
        self._order.pop(origin, None)
        self._floors.pop(origin, None)

    def commit(self) -> None:
        """Make what was written durable."""
        self._undo.clear()

    def rollback(self) -> int:
        """Forget what was written since the last commit; in how many places that was something."""
        undone = list(self._undo.items())
        self._undo.clear()
        self._floors.clear()
        for (_, key), (table, value) in undone:
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
        if undone:
            self._index()
        return len(undone)

    def copy(self) -> Store:
        """A copy of what is durable: another disk."""
        other = Store(self.url, self._texts)
        mine, others = self._tables(), other._tables()
        for name, table in mine.items():
            others[name].update(table)
        same = {id(table): others[name] for name, table in mine.items()}
        other._undo = {(id(same[at]), key): (same[at], value) for (at, key), (_, value) in self._undo.items()}
        other.rollback()
        other._index()
        return other

    def _tables(self) -> dict[str, dict[Any, Any]]:
        return {"nodes": self._nodes, "staged": self._staged, "parts": self._parts, "peers": self._peers}

    def _put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Replace what a table says under a key (None: nothing), and remember what it was at the last commit."""
        self._undo.setdefault((id(table), key), (table, table.get(key)))
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value

    def _writing(self, entry: Entry) -> _Writing:
        flows = entry.node.flows
        if flows is None:
            return _Writing(entry, entry.flows_seq, None, None, 0)
        text = self._texts.get(entry.digest)
        if text is None:
            text = self._texts[entry.digest] = flows_json(flows).decode()
        return _Writing(entry, entry.flows_seq, entry.digest, text, len(flows))

    def _stage(self, staged: Iterable[tuple[Stage, Entry]]) -> None:
        """Keep pages aside; a node that comes again without flows keeps those of its earlier page."""
        pages: dict[Stage, dict[Key, _Writing]] = {}
        for stage, entry in staged:
            page = pages.setdefault(stage, dict(self._staged.get(stage, {})))
            writing, before = self._writing(entry), page.get(entry.key)
            page[entry.key] = before._replace(entry=entry) if before and writing.flows is None else writing
        for stage, page in pages.items():
            self._put(self._staged, stage, page)

    def _settle(self, settle: Settle) -> None:
        """The pages kept aside become the records of their origin."""
        origin = settle.stage.origin
        page = self._staged.get(settle.stage, {})
        if settle.whole:
            self._take_away(origin, page)
            self._floors.pop(origin, None)
        for writing in page.values():
            self._store(writing)
        self._unstage(origin)

    def _take_away(self, origin: Key, page: Mapping[Key, _Writing]) -> None:
        """Leave the remains alone of every record that is not on the page."""
        seq = min((stored.row.seq for stored in self._changed(origin, BELOW_ALL)), default=0)
        seq = min(0, seq)
        for stored in self.records(origin):
            if stored.row.node not in page:
                seq -= 1
                known = self._nodes[stored.row.node]
                self._put(self._nodes, stored.row.node, {**known, origin: Stored(remains(stored.row, seq))})
                self._enter(origin, seq, stored.row.node, known_before=True)

    def _unstage(self, origin: Key) -> None:
        for stage in [stage for stage in self._staged if stage.origin == origin]:
            self._put(self._staged, stage, None)

    def _remove(self, stored: Stored) -> None:
        known = self._nodes[stored.row.node]
        left = {origin: other for origin, other in known.items() if origin != stored.row.origin}
        self._put(self._nodes, stored.row.node, left or None)

    def _store(self, writing: _Writing) -> None:
        """Write one record; a tombstone over a record takes its flows away."""
        entry = writing.entry
        known = self._nodes.get(entry.key, {})
        before = known.get(entry.origin)
        stored = self._stored(writing, before)
        self._put(self._nodes, entry.key, {**known, entry.origin: stored})
        self._enter(entry.origin, entry.seq, entry.key, known_before=before is not None)

    def _stored(self, writing: _Writing, before: Stored | None) -> Stored:
        entry, node = writing.entry, writing.entry.node
        flows_seq, digest, flows, size = writing.flows_seq, writing.digest or "", writing.flows or "{}", writing.size
        if before is not None and entry.gone:
            digest, flows, size = "", "{}", 0
        elif before is not None and writing.flows is None:
            flows_seq, digest, flows, size = before.row.flows_seq, before.row.digest, before.flows, before.size
        row = Row(
            *(entry.origin, entry.key, node.url, node.created, node.modified, entry.seq, flows_seq, digest),
            *(node.organization, node.heartbeat, node.status, entry.via, entry.gone),
        )
        return Stored(row, flows, size)

    # -- the index -----------------------------------------------------------------------------------------

    def _enter(self, origin: Key, seq: int, node: Key, *, known_before: bool) -> None:
        order = self._order.setdefault(origin, [])
        insort(order, (seq, node))
        if known_before and len(order) > SLACK:
            good = [(seq, node) for seq, node in order if self._stands(origin, seq, node)]
            if len(order) > 2 * len(good) + SLACK:
                self._order[origin] = good

    def _index(self) -> None:
        """Make the index anew."""
        self._order.clear()
        for node, records in self._nodes.items():
            for origin, stored in records.items():
                self._order.setdefault(origin, []).append((stored.row.seq, node))
        for order in self._order.values():
            order.sort()

    def _stands(self, origin: Key, seq: int, node: Key) -> bool:
        stored = self._nodes.get(node, {}).get(origin)
        return stored is not None and stored.row.seq == seq

    def _changed(self, origin: Key, since: int) -> Iterator[Stored]:
        """The records of an origin that changed after `since`, in the order of their changes."""
        order = self._order.get(origin, [])
        last = None
        for at in range(bisect_right(order, since, key=lambda entry: entry[0]), len(order)):
            entry = order[at]
            if entry != last and self._stands(origin, *entry):
                last = entry
                yield self._nodes[entry[1]][origin]

    # -- what the core asks for ----------------------------------------------------------------------------

    def parts(self) -> list[Part]:
        """How far each origin was known when the service stopped."""
        return list(self._parts.values())

    def contents(self) -> dict[Key, int]:
        """What the records of each part come to, counted anew."""
        return {origin: self._content_of(origin) for origin in self._parts}

    def own_rows(self) -> list[Row]:
        """What the core is to know of the own part: nodes with a lease, or on behalf of others, and tombstones."""
        rows = (stored.row for stored in self.records(self.key))
        return [row for row in rows if row.gone or row.via is not None or row.status != "unknown"]

    def _content_of(self, origin: Key) -> int:
        return reduce(xor, (stored.row.content for stored in self.records(origin) if not stored.row.gone), 0)

    def peers(self) -> list[PeerState]:
        """The peers there are."""
        return list(self._peers.values())

    def rows(self, keys: Iterable[Key]) -> dict[Key, tuple[Row, ...]]:
        """What every part says of these nodes, by origin; a node nobody knows has no entry."""
        found = {}
        for key in keys:
            known = self._nodes.get(key)
            if known:
                found[key] = tuple(known[origin].row for origin in sorted(known))
        return found

    # -- reading -------------------------------------------------------------------------------------------

    def records(self, origin: Key) -> list[Stored]:
        """What an origin's part says, as far as it is known here, in the order of its changes; no remains."""
        return list(self._changed(origin, -1))

    def view(self) -> dict[str, Stored]:
        """Of each node what is listed of it (rule 14), by its url, in their order."""
        shown = (self._listed(key) for key in self._nodes)
        return {stored.row.url: stored for stored in sorted(filter(None, shown), key=lambda stored: stored.row.url)}

    def listing(self) -> list[dict[str, Any]]:
        """Every flow as the listing shows it, by node, then url."""
        return [self._displayed(stored, flow) for stored in self.view().values() for flow in _flows(stored.flows)]

    def _listed(self, node: Key) -> Stored | None:
        known = self._nodes.get(node, {})
        first = listed(stored.row for stored in known.values())
        return None if first is None else known[first.origin]

    def _displayed(self, stored: Stored, flow: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "registry": self.url,
            "node": stored.row.url,
            "organization": stored.row.organization,
            "created": stored.row.created,
            "modified": stored.row.modified,
            "heartbeat": stored.row.heartbeat,
            "url": flow["url"],
            "name": flow["name"],
            "author": MISSING_AUTHOR if flow["author"] is None else flow["author"],
            "description": MISSING_DESCRIPTION if flow["description"] is None else flow["description"],
            "tags": flow["tags"] or [],
        }

    def own_node(self) -> dict[str, Any]:
        """This service as a node, with its flows, as it registers elsewhere."""
        return self._nodes[self.key][self.key].body()

    # -- messages ------------------------------------------------------------------------------------------

    def content(self, parcel: Parcel, limit: int) -> Content:
        """What a parcel is to carry: at most `limit` bytes of nodes, and at least one."""
        content = Content({}, [], {})
        for owed in parcel.ranges:
            if limit <= 0:
                break
            limit -= self._pack(parcel, owed, limit, content)
        return content

    def _pack(self, parcel: Parcel, owed: Range, limit: int, content: Content) -> int:
        """Pack the next page of what changed in one origin's part; the bytes it takes."""
        part = self._parts[owed.origin]
        if not part.goes_on(owed.base, owed.since, owed.floor):
            # The origin began anew after this was owed: what is there now cannot be told as a difference.
            owed = Range(owed.origin, NOTHING, NOTHING, part.floor, owed.age)
        to, complete, used = part.version, True, 0
        packed: dict[str, Any] = {}
        for stored in self._changed(owed.origin, parcel.after(owed)):
            if used >= limit:
                complete = False
                break
            to = part.version.at(stored.row.seq)
            used += len(stored.flows) + OVERHEAD
            if parcel.form != "delta":
                self._pack_plain(parcel, stored, content.nodes)
            if parcel.form != "plain":
                referred = parcel.form == "both" and self._listed(stored.row.node) is stored
                packed[stored.row.url] = _record(stored, owed, referred=referred)
        to = part.version if complete else to
        content.carried[owed.origin] = Carried(owed.base, to, complete, owed.floor)
        if parcel.form != "plain":
            content.deltas.append(_delta(part, owed, to, complete, packed))
        return used

    def _pack_plain(self, parcel: Parcel, stored: Stored, nodes: dict[str, Any]) -> None:
        """A node as it is listed, whoever's record that is; one that is listed no more has no flows."""
        listed_now = self._listed(stored.row.node)
        if listed_now is None and parcel.first:
            return
        shown, unsaid = listed_now or _unlisted(stored), parcel.unsaid
        own = self._nodes[stored.row.node].get(self.key)
        if unsaid is None or own is None or own.row.via != unsaid or not _as_late(own.row, shown.row):
            nodes[shown.row.url] = shown.body()


def _as_late(row: Row, other: Row) -> bool:
    """Whether a row is known to be no older than another."""
    return row.modified is not None and other.modified is not None and row.modified >= other.modified


def _unlisted(stored: Stored) -> Stored:
    """A node that is listed no more; one that lapsed has no time of its own, what is newer elsewhere is not hidden."""
    return Stored(replace(stored.row, modified=stored.row.modified or stored.row.heartbeat))


def _delta(part: Part, owed: Range, to: Any, complete: bool, packed: dict[str, Any]) -> dict[str, Any]:
    return {
        "origin": owed.origin,
        "since": owed.since,
        "to": to,
        "floor": part.floor,
        "epochs": part.epochs,
        "complete": complete,
        "content": f"{part.content:016x}",
        "age": owed.age,
        "records": packed,
    }


def _record(stored: Stored, owed: Range, *, referred: bool) -> dict[str, Any]:
    """A record in a delta: by reference, as times alone when the receiver has its flows, or whole."""
    record: dict[str, Any] = {"seq": stored.row.seq}
    if stored.row.gone:
        record["gone"] = True
    if stored.row.via is not None:
        record["adopted"] = True
    if referred:
        return record
    body = stored.body()
    if stored.row.flows_seq <= owed.base.seq:
        del body["flows"]
    return {**record, "node": body}


def _flows(text: str) -> list[dict[str, Any]]:
    flows: dict[str, dict[str, Any]] = orjson.loads(text)
    return [flows[url] for url in sorted(flows)]
