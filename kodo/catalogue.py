"""What a registry lists, in SQLite: the durable state and the catalogue in one.

```
 part ---- record (one for each origin and node; flows as JSON) ---- of each node the one that is listed:
                                                                      what is displayed (kodo.listing)
```

- One connection writes, from one thread at a time; `write` changes, `commit` makes it durable. Reads go through
  connections of their own (a file, WAL) and see what is committed, or through the writer's under a lock (in memory).
- Times stand in `record`, once: a node that registers the same again writes its row and touches nothing of its flows.
- Which record of a node is listed follows from the records alone (FEDERATION.md, rule 14).
- A page is found by its ids first, then its rows by these. Beginnings of the whole listing come from an index where
  there is one; else all ids are ranked once, and kept as long as no row changes in what they are ranked by: any page is
  a slice. Rows are kept as well, as long as all find room (kodo.rows).

A read on the event loop is `brief`: it gives up (`BusyError`) rather than hold the loop, and is done again on a thread.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import clear_frames
from typing import Any

import orjson

from kodo.changes import Changes, Count, Kept
from kodo.checkup import contents_of
from kodo.core.instructions import Entry, Parcel, Range, Save, Settle
from kodo.core.parts import Carried, Part, Row, listed, remains
from kodo.core.peers import PeerState
from kodo.errors import BusyError, CacheError, DamagedCacheError, reason_of
from kodo.listing import TOTAL, Listing, is_listed, is_well_counted, json_text
from kodo.models import (
    NOTHING,
    Key,
    canonical,
    flows_by_url,
    flows_json,
)
from kodo.opening import (
    attach,
    check_rows,
    connect,
    copy_records,
    is_damage,
    new_database,
    read_part,
    read_peer,
    stored_database,
)
from kodo.query import Filter, Order
from kodo.rows import Ranking, Rows, faces, ranked, shown

log = logging.getLogger("kodo")

BRIEF, LONGEST = 0.002, 5.0
"""Seconds that a brief read may take, and any read."""
STEPS = 500
"""Steps of SQLite's machine between looks at the clock."""
PIECE = 100
"""Nodes that are read at once."""
LOOKED_OVER = 200
"""Flows that are looked over at once, but for a node that has more: in milliseconds, for which others wait."""
INDEXED = {"f.name", "f.node", "n.organization", "n.created", "n.modified", "n.heartbeat"}
"""Columns that the listing has an index of; one of each of the others would halve the registrations in a second."""
SHALLOW = 1000
"""Rows that are skipped along an index rather than ranked."""
RANKINGS = 28 * 2**20
"""Bytes of rankings that are kept: some thirty-five of 100,000 flows, or three of a million."""
TIMES = ("n.created", "n.modified", "n.heartbeat")
"""What changes of a row when its node registers the same again."""

_READ, _NAMED = re.compile(r"\b[fnt]\.\w+"), {"f.id", "f.name", "f.node", "f.url"}
"""What a filter reads of a flow, and what of that stands in the index of names."""
_STAGED = "FROM staged s WHERE origin = ? AND peer = ?"
_KNOWN = "EXISTS (SELECT 1 FROM record r WHERE r.key = s.key)"
_BODY = "url, organization, flows, created, modified, heartbeat, status"
_ROW = "origin, key, url, created, modified, seq, flows_seq, digest, organization, heartbeat, status, via, gone"
_STORED = "origin, key, url, organization, created, modified, heartbeat, status, seq, flows_seq, via, gone"
_COUNTS = f"""
SELECT json_object(
  'total', {TOTAL},
  'node', (SELECT json_group_object(node, flows) FROM
    (SELECT url AS node, size AS flows FROM record WHERE listed AND size ORDER BY url)),
  'organization', (SELECT json_group_object(organization, flows) FROM
    (SELECT organization, sum(size) AS flows FROM record
     WHERE listed AND size AND organization IS NOT NULL GROUP BY organization ORDER BY organization)),
  'tags', (SELECT json_group_object(value, flows) FROM
    (SELECT value, flows FROM tally WHERE kind = 'tag' ORDER BY value)))
"""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the listing: `total` flows, `filtered` of them selected, and the rows as displayed, as a JSON array."""

    total: int
    filtered: int
    rows: bytes

    @property
    def items(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of the columns."""
        found: list[dict[str, Any]] = orjson.loads(self.rows)
        return found


@dataclass(frozen=True, slots=True)
class Content:
    """What a parcel came to: the JSON of `nodes` and `deltas`, and what it carries of each origin."""

    nodes: dict[str, Any]
    deltas: list[dict[str, Any]]
    carried: dict[Key, Carried]


class Catalogue:
    """The listing of the service `url`, in the SQLite file `path`, or in memory.

    Raises `DamagedCacheError` when the file is no intact catalogue of this service, `sqlite3.Error` when it cannot be
    opened for another reason.
    """

    def __init__(self, url: str, path: Path | None = None) -> None:
        self.url = url
        self.key = canonical(url)
        self.path = path
        self.changes = Changes()
        self._rankings: Kept[Ranking] = Kept(RANKINGS)
        self._rows = Rows()
        self._lock = threading.RLock()
        self._local = threading.local()
        self._ending = False
        self._readers: list[sqlite3.Connection] = []
        # What the records of each part come to, if that was counted and nothing was written since.
        self._contents: dict[Key, int] | None = None
        if path is not None and path.exists():
            self._writer, self._contents = stored_database(url, path)
        else:
            self._writer = new_database(url, path)
        try:
            self._listing = Listing(self._writer)
            self._recall()
        except BaseException:
            self.close()
            raise

    def interrupt(self) -> None:
        """End the reads that are under way, and the writing of records, with an error each."""
        self._ending = True
        for db in self._readers if self.path is not None else [self._writer]:
            db.interrupt()

    def resume(self) -> None:
        """After an `interrupt`: what waited may be written."""
        self._ending = False

    def close(self) -> None:
        """Close every connection; what was not committed is not there."""
        with self._lock:
            for db in (*self._readers, self._writer):
                db.close()
            self._readers.clear()

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, save: Save) -> None:
        """Make the changes of a Save, durable with the next `commit`."""
        db = self._writer
        self._contents = None
        self._begin()
        for stage in save.unstage:
            db.execute("DELETE FROM staged WHERE origin = ? AND peer = ?", (stage.origin, stage.peer))
        for stage, entry in save.staged:
            self._go_on()
            self._stage(stage.peer, entry)
        for settle in save.settled:
            self._settle(settle)
        for entry in save.entries:
            self._go_on()
            self._store((*_columns(entry), *_flows(entry)))
        for part in save.parts:
            db.execute("INSERT OR REPLACE INTO part VALUES (?, ?)", (part.origin, _dump(part)))
            self._clean_up(part.origin, part.floor.seq)
        for peer in save.peers:
            db.execute("INSERT OR REPLACE INTO peer VALUES (?, ?)", (peer.key, _dump(peer)))
        for origin in save.dropped:
            self._drop(origin)
        for key in save.forgotten:
            db.execute("DELETE FROM peer WHERE key = ?", (key,))
        self._note_mesh(save)

    def _begin(self) -> None:
        if not self._writer.in_transaction:
            self._writer.execute("BEGIN IMMEDIATE")

    def _clean_up(self, origin: Key, floor: int) -> None:
        """Forget the tombstones up to the floor, when it has risen."""
        if floor <= self._floors.get(origin, 0):
            return
        self._floors[origin] = floor
        gone = "SELECT id, key FROM record WHERE origin = ? AND seq BETWEEN 0 AND ? AND gone"
        for number, key in self._writer.execute(gone, (origin, floor)).fetchall():
            self._remove(number, key)

    def _drop(self, origin: Key) -> None:
        """Forget a part with all its records, and what is kept aside for it."""
        found = self._writer.execute("SELECT id, key FROM record WHERE origin = ?", (origin,)).fetchall()
        for number, key in found:
            self._remove(number, key)
        self._writer.execute("DELETE FROM staged WHERE origin = ?", (origin,))
        self._writer.execute("DELETE FROM part WHERE origin = ?", (origin,))
        self._floors.pop(origin, None)

    def _remove(self, number: int, key: Key) -> None:
        was_listed, size = self._writer.execute("SELECT listed, size FROM record WHERE id = ?", (number,)).fetchone()
        self._unlist(number)
        self._writer.execute("DELETE FROM record WHERE id = ?", (number,))
        # A tombstone may have hidden what another part says.
        if self._relist(key) or was_listed:
            self._note_moved(key, size)

    def _note_mesh(self, save: Save) -> None:
        """Whether the map shows another mesh than before: a peer, or through whom an origin is known."""
        vias = {part.origin: part.via for part in save.parts}
        faces = {peer.key: _face(peer) for peer in save.peers}
        known = vias.items() <= self._vias.items() and faces.items() <= self._faces.items()
        if not known or self._faces.keys() & save.forgotten:
            self.changes.touch_map()
        self._vias |= vias
        self._faces |= faces
        for key in save.forgotten:
            self._faces.pop(key, None)
        for origin in save.dropped:
            self._vias.pop(origin, None)

    def _go_on(self) -> None:
        """A large message is given up when the service ends: nothing of it was acknowledged."""
        if self._ending:
            raise CacheError("the service is ending")

    @property
    def is_behind(self) -> bool:
        """Whether reading is slower than it need be, until `catch_up` was called enough."""
        return self._listing.is_behind or self._rows.is_behind(self._listing.last)

    def catch_up(self) -> None:
        """Write what searches go by of some flows that were listed lately, or keep some rows; between other commits."""
        if self._listing.is_behind:
            self._index_some()
        else:
            self._keep_some()

    def _keep_some(self) -> None:
        """Rows that cannot be read are not kept: whoever asks for them is told why."""
        try:
            self._rows.read_some(self._writer, self._listing.last)
        except Exception as error:  # noqa: BLE001, whatever damage leads to, such as a count that is gone
            self._rows.give_up(self._listing.last)
            log.debug("rows of the listing are not kept: %s", error)

    def _index_some(self) -> None:
        self._begin()
        try:
            self._listing.index_some()
            self.commit()
        except BaseException:
            self.rollback()
            raise

    def commit(self) -> None:
        """Make what was written durable."""
        if self._writer.in_transaction:
            self._listing.write_tally()
            self._writer.execute("COMMIT")

    def rollback(self) -> None:
        """Forget what was written since the last commit."""
        self.changes.forget()
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")
        # SQLite has rolled back by itself where the disk failed.
        self._listing.forget()

    def _recall(self) -> None:
        """Know of the mesh what is committed."""
        # Up to where tombstones are known to be cleaned up.
        self._floors: dict[Key, int] = {}
        self._vias = {part.origin: part.via for part in self.parts()}
        self._faces = {peer.key: _face(peer) for peer in self.peers()}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The right to write. In memory it keeps readers out, so that none sees what is not yet durable.

        At its end, what was committed is told to who follows the changes.
        """
        if self.path is not None:
            yield
        else:
            with self._lock:
                yield
        self.changes.publish()

    def _stage(self, peer: Key, entry: Entry) -> None:
        keep = (
            f"INSERT INTO staged ({_STORED}, digest, flows, size, peer) VALUES ({_placeholders(16)})"
            " ON CONFLICT DO UPDATE SET"
            " url = excluded.url, organization = excluded.organization, created = excluded.created,"
            " modified = excluded.modified, heartbeat = excluded.heartbeat, status = excluded.status,"
            " seq = excluded.seq, gone = excluded.gone,"
            " flows_seq = iif(excluded.flows IS NULL, flows_seq, excluded.flows_seq),"
            " digest = iif(excluded.flows IS NULL, digest, excluded.digest),"
            " flows = coalesce(excluded.flows, flows), size = coalesce(excluded.size, size)"
        )
        try:
            self._writer.execute(keep, (*_columns(entry), *_flows(entry), peer))
        except sqlite3.OperationalError as error:
            raise CacheError(
                f"expected room for the pages of a registry where SQLite keeps temporary files, but {reason_of(error)};"
                " name a folder with room in SQLITE_TMPDIR"
            ) from error

    def _settle(self, settle: Settle) -> None:
        db, stage = self._writer, (settle.stage.origin, settle.stage.peer)
        if settle.whole:
            self._take_away(*stage)
            # An origin that lost its disk counts from the start again, its floor too.
            self._floors.pop(settle.stage.origin, None)
        # Records of nodes that were known before compete with others, or keep their flows: those go one by one.
        known = db.execute(f"SELECT {_STORED}, digest, flows, size {_STAGED} AND {_KNOWN}", stage).fetchall()
        self._add(stage)
        for row in known:
            self._go_on()
            self._store(row)
        db.execute("DELETE FROM staged WHERE origin = ?", (settle.stage.origin,))

    def _add(self, stage: tuple[Key, Key]) -> None:
        """Write and list the staged records of nodes that no part knows, many at once."""
        db = self._writer
        (last,) = db.execute("SELECT coalesce(max(id), 0) FROM record").fetchone()
        db.execute(
            f"INSERT INTO record ({_STORED}, digest, flows, size, listed)"
            f" SELECT {_STORED}, coalesce(digest, ''), coalesce(flows, '{{}}'), coalesce(size, 0), NOT gone"
            f" {_STAGED} AND NOT {_KNOWN} ORDER BY seq",
            stage,
        )
        self._list_many(db.execute("SELECT id, key, size FROM record WHERE id > ? AND listed", (last,)).fetchall())

    def _list_many(self, records: Sequence[tuple[int, Key, int]]) -> None:
        """List records of which nothing is listed: of each its id, the key of its node, and how many flows it has."""
        self._listing.add_stored([number for number, _, _ in records], self._go_on)
        for _, key, size in records:
            self.changes.touch(key, *(("flows", "counts") if size else ()))

    def _list_all(self) -> None:
        """List what is to be listed, where nothing is."""
        self._list_many(self._writer.execute("SELECT id, key, size FROM record WHERE listed").fetchall())

    def _take_away(self, origin: Key, peer: Key) -> None:
        """Leave the remains alone of every record that is on none of the pages kept aside."""
        db = self._writer
        (lowest,) = db.execute("SELECT min(seq) FROM record WHERE origin = ?", (origin,)).fetchone()
        taken = db.execute(
            f"SELECT {_ROW} FROM record WHERE origin = ?1 AND seq >= 0 AND key NOT IN"
            " (SELECT key FROM staged WHERE origin = ?1 AND peer = ?2) ORDER BY seq",
            (origin, peer),
        ).fetchall()
        for below, columns in enumerate(taken, 1):
            left = remains(_row(columns), min(0, lowest) - below)
            said = (left.origin, left.node, left.url, left.organization, left.created, left.modified, left.heartbeat)
            self._store((*said, left.status, left.seq, left.flows_seq, left.via, left.gone, left.digest, "{}", 0))

    def _store(self, row: Sequence[Any]) -> None:
        """Write one record, and list what follows from it."""
        db = self._writer
        origin, key, url, organization = row[:4]
        flows_seq, (fingerprint, flows, size) = row[9], row[12:]
        known = db.execute(
            "SELECT id, digest, url, organization, gone, created, modified, heartbeat, status, via, size, listed,"
            " origin FROM record WHERE key = ?",
            (key,),
        ).fetchall()
        old = next((record for record in known if record[12] == origin), None)
        gone = bool(row[11])
        if old is None:
            kept = (fingerprint or "", flows or "{}", size or 0)
            # Of a node that nobody else knows there is nothing to choose from.
            first = not (known or gone)
            inserted = db.execute(
                f"INSERT INTO record ({_STORED}, digest, flows, size, listed) VALUES ({_placeholders(16)})",
                (*row[:12], *kept, first),
            )
            if first:
                self._listing.add([(inserted.lastrowid, url, organization, kept[1])])
            if first or self._relist(key):
                self._note_moved(key, size or 0)
            return
        same = (fingerprint in (None, old[1]) and not gone) and (url, organization) == old[2:4]
        db.execute(
            "UPDATE record SET url = ?, organization = ?, created = ?, modified = ?, heartbeat = ?, status = ?,"
            " seq = ?, via = ?, gone = ? WHERE id = ?",
            (*row[2:9], *row[10:12], old[0]),
        )
        if flows is not None or gone:
            db.execute("UPDATE record SET flows_seq = ? WHERE id = ?", (flows_seq, old[0]))
            if gone or fingerprint != old[1]:
                kept = ("", "{}", 0) if gone else (fingerprint, flows, size)
                db.execute("UPDATE record SET digest = ?, flows = ?, size = ? WHERE id = ?", (*kept, old[0]))
        if self._relist(key, rewritten=None if same else old[0]):
            self._note_moved(key, old[10])
        elif old[11]:
            self._note_listed(key, old, row, same=same)

    def _note_moved(self, key: Key, size: int) -> None:
        """Another record of the node is listed, or none: no row of the listing changes if there was no flow in any."""
        flows = size or self._writer.execute("SELECT max(size) FROM record WHERE key = ?", (key,)).fetchone()[0]
        self.changes.touch(key, *(("flows", "counts") if flows else ()))

    def _note_listed(self, key: Key, old: Sequence[Any], row: Sequence[Any], *, same: bool) -> None:
        """What changed of a record that was listed and still is: nothing of its rows if it has and had none."""
        has_rows = bool(old[10] or row[14])
        if not same:
            self.changes.touch(key, *(("flows", "counts") if has_rows else ()))
        elif old[5:9] != tuple(row[4:8]):
            self.changes.touch(key, *(("flows",) if has_rows else ()))
        elif old[9] != row[10]:
            self.changes.touch_map()

    def _relist(self, key: Key, *, rewritten: int | None = None) -> bool:
        """List the record of a node that rule 14 says; `rewritten`: the one that changed in more than its times.

        Whether it is another record than before.
        """
        rows = self._writer.execute(
            "SELECT id, origin, modified, gone, listed FROM record WHERE key = ?", (key,)
        ).fetchall()
        shown = [row[0] for row in rows if row[4]]
        ranked = {row[1]: row[0] for row in rows}
        first = listed(Row(row[1], key, "", None, row[2], 0, 0, "", gone=bool(row[3])) for row in rows)
        wanted = [] if first is None else [ranked[first.origin]]
        if shown == wanted and rewritten not in shown:
            return False
        for number in shown:
            self._unlist(number)
        for number in wanted:
            self._writer.execute("UPDATE record SET listed = 1 WHERE id = ?", (number,))
            self._listing.add_stored([number])
        return shown != wanted

    def list_anew(self) -> None:
        """Write anew all that follows from the records, as durable as a `write`, whatever its rows and indexes say.

        Where pages of it are no pages any more that fails, and a start sets the cache aside.
        That takes as long as it took to list all of them, and `/flows` goes on with what there was meanwhile.
        """
        db = self._writer
        self._recall()
        db.execute("BEGIN IMMEDIATE")
        self._listing.clear()
        self._list_all()

    def _unlist(self, number: int) -> None:
        self._listing.remove(number)
        self._writer.execute("UPDATE record SET listed = 0 WHERE id = ?", (number,))

    # -- what the core asks for ----------------------------------------------------------------------------

    def contents(self) -> dict[Key, int]:
        """What the records of each part come to, counted anew if anything was written.

        Raises `ValueError` when the flows of a record are not those that it had when it was written.
        """
        if self._contents is not None:
            return self._contents
        return {Key(origin): content for origin, content in contents_of(self._writer).items()}

    def parts(self) -> list[Part]:
        """How far each origin was known when the service stopped."""
        return [read_part(state) for (state,) in self._writer.execute("SELECT state FROM part")]

    def own_rows(self) -> list[Row]:
        """What the core is to know of the own part: nodes with a lease, or on behalf of others, and tombstones."""
        wanted = f"SELECT {_ROW} FROM record WHERE origin = ? AND seq >= 0"
        wanted += " AND (gone OR via IS NOT NULL OR status != 'unknown')"
        return [_row(columns) for columns in self._writer.execute(wanted, (self.key,))]

    def peers(self) -> list[PeerState]:
        """The peers there were when the service stopped."""
        return [read_peer(state) for (state,) in self._writer.execute("SELECT state FROM peer")]

    def rows(self, keys: Iterable[Key]) -> dict[Key, tuple[Row, ...]]:
        """What every part says of these nodes, changes not yet committed included."""
        found = {}
        try:
            for key in keys:
                rows = self._writer.execute(f"SELECT {_ROW} FROM record WHERE key = ?", (key,)).fetchall()
                if rows:
                    found[key] = tuple(_row(row) for row in rows)
        except sqlite3.Error as error:
            raise CacheError(f"expected the records of nodes, but {error}; see to the disk") from error
        return found

    # -- looking after -------------------------------------------------------------------------------------

    def take_over(self, damaged: Path) -> None:
        """Take over what a damaged catalogue of this service holds, if its records are intact, and list it; durable.

        Nothing was written here before, and nothing is changed there. Raises `DamagedCacheError` or `sqlite3.Error`
        when there is nothing to take over.
        """
        db = self._writer
        attach(db, damaged)
        try:
            self._begin()
            copy_records(db)
            check_rows(db, self.url, damaged)
            # Whatever SQLite did not notice, and what no row can tell: that others are not there.
            if self.contents() != {part.origin: part.content for part in self.parts() if part.content}:
                raise ValueError("some are not there")
            self._recall()
            self._list_all()
            self.commit()
        except ValueError as error:
            raise DamagedCacheError(f"expected intact records in {damaged}, but {error}") from error
        finally:
            self.rollback()
            db.execute("DETACH damaged")

    def look_over(self, after: int) -> int | None:
        """Look whether what is listed of the next records, whose ids come after this one, is what they say.

        The last of them; None when there are no more, and where nothing is kept in a file. Raises `DamagedCacheError`
        when something else is listed: SQLite does not notice when a text inside a row changes. Raises `CacheError`
        when a record cannot be read, and `BusyError` when there is no time for it.
        """
        if self.path is None:
            return None
        with self.reading() as db:
            records = _some_records(db, after)
            try:
                right = is_listed(db, records)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise CacheError(f"expected flows in a record in {self.path}, but they cannot be read") from error
            if not right or not (records or is_well_counted(db)):
                raise DamagedCacheError(f"expected to find listed what the records in {self.path} say")
        return records[-1][0] if records else None

    # -- reading -------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self, *, brief: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction of its own: all that is read through it is of one moment.

        Raises `BusyError` when `brief` and it would take longer than an event loop can be held, or have to wait.
        """
        if self.path is not None:
            with self._snapshot(self._reader(), brief=brief) as db:
                yield db
            return
        if not self._lock.acquire(blocking=not brief):
            raise BusyError
        try:
            with self._snapshot(self._writer, brief=brief) as db:
                yield db
        finally:
            self._lock.release()

    @contextmanager
    def _snapshot(self, db: sqlite3.Connection, *, brief: bool) -> Iterator[sqlite3.Connection]:
        end = time.monotonic() + (BRIEF if brief else LONGEST)
        db.execute("BEGIN")
        db.set_progress_handler(lambda: self._ending or time.monotonic() > end, STEPS)
        try:
            yield db
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise BusyError(f"this takes longer than {LONGEST:g} s to answer; ask for less") from error
            # A statement that failed would stay at its moment for as long as anybody keeps the error.
            clear_frames(error.__traceback__)
            kind = DamagedCacheError if is_damage(error) else CacheError
            raise kind(f"what is listed could not be read: {error}") from error
        finally:
            db.set_progress_handler(None, 0)
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _reader(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            try:
                db = self._local.db = connect(self.path, create=False)
            except sqlite3.Error as error:
                raise CacheError(f"what is listed could not be read: {error}") from error
            self._readers.append(db)
        return db

    def page(self, select: Filter | None, order: Order, p: int, pp: int, *, brief: bool = False) -> Page:
        """Page `p` (from 0) of `pp` rows of what `select` selects, in this order."""
        selected = _selection(select, order)
        begin, of = p * pp, _moves_with(selected)
        params: dict[str, Any] = {"registry": self.url} | (select.params if select is not None else {})
        flows, count = self.changes.counts("flows", of)
        name = (count, selected, *params.values())
        ranking = self._rankings.get(name)
        # While a change is under way others may have seen it already: then nothing that is kept is shown.
        if ranking is not None and self.changes.stands("flows", flows):
            rows = self._kept_rows(ranking.ids(begin, pp), flows, brief=brief)
            if rows is not None:
                return Page(ranking.total, ranking.flows, rows)
        with self.reading(brief=brief) as db:
            # The moment is that of the first read, not of BEGIN: whether the count stands is to be asked after it.
            (total,) = db.execute(f"SELECT {TOTAL}").fetchone()
            # Changes that are under way may show in this read or not: then nothing is known of it, and nothing kept.
            stands = self.changes.stands(of, count)
            if ranking is None or not stands:
                if select is None and begin <= SHALLOW and (not stands or order.keys[0][0] in INDEXED):
                    slice_of = f"{selected} LIMIT :pp OFFSET :begin"
                    some = ranked(db, slice_of, params | {"pp": pp, "begin": begin}, self._listing.last, total)
                    return Page(total, total, shown(db, self.url, some.ids(0, pp)))
                ranking = ranked(db, selected, params, self._listing.last, total)
                if stands:
                    self._rankings.put(name, ranking)
            return Page(total, ranking.flows, shown(db, self.url, ranking.ids(begin, pp)))

    def _kept_rows(self, ids: Sequence[int], count: int, *, brief: bool) -> bytes | None:
        """These rows as they were at this count of `flows`, as a JSON array; None when they have to be read."""
        texts = self._rows.texts(ids)
        if texts is None:
            return None
        kept = self._rows.faces(count)
        missing = {record for record, _ in texts if record not in kept}
        if missing:
            with self.reading(brief=brief) as db:
                read = faces(db, self.url, missing)
                if read.keys() != missing or not self.changes.stands("flows", count):
                    return None
            kept |= read
        return b"[%b]" % b",".join([kept[record] + text for record, text in texts])

    def counts_json(self, *, brief: bool = False) -> str:
        """How many flows there are in all, and by node, organization and tag: as a JSON object, made in one go."""
        with self.reading(brief=brief) as db:
            counted: str = db.execute(_COUNTS).fetchone()[0]
        return counted

    def nodes_after(self, key: str, size: int) -> tuple[dict[Key, dict[str, Any]], bool]:
        """The listed nodes with their flows whose keys come after this one: about `size` bytes, and whether it is all.

        All of it but the last piece holds at least one node.
        """
        found: dict[Key, dict[str, Any]] = {}
        with self.reading() as db:
            for row in db.execute(f"SELECT {_BODY}, key FROM record WHERE listed AND key > ? ORDER BY key", (key,)):
                if size <= 0:
                    return found, False
                found[row[7]] = _body(row)
                size -= len(row[2]) + 300
        return found, True

    def nodes_of(self, keys: Sequence[Key], size: int) -> tuple[dict[Key, dict[str, Any] | None], Sequence[Key]]:
        """These nodes as they are listed, with their flows, None for those that are not: about `size` bytes.

        And those that are left.
        """
        found: dict[Key, dict[str, Any] | None] = {}
        with self.reading() as db:
            for number, key in enumerate(keys):
                if size <= 0:
                    return found, keys[number:]
                row = db.execute(f"SELECT {_BODY} FROM record WHERE key = ? AND listed", (key,)).fetchone()
                found[key] = None if row is None else _body(row)
                size -= 100 if row is None else len(row[2]) + 300
        return found, []

    def own_node(self, *, brief: bool = False) -> dict[str, Any]:
        """This service as a node, with its flows, as it registers elsewhere."""
        with self.reading(brief=brief) as db:
            row = db.execute(
                f"SELECT {_BODY} FROM record WHERE key = ? AND origin = ?", (self.key, self.key)
            ).fetchone()
        return _body(row)

    def offering(self, flow: str, most: int) -> list[str]:
        """The urls of the nodes that are listed with a flow of this path or name, `most` of them at most."""
        with self.reading() as db:
            found = db.execute(
                "SELECT DISTINCT node FROM flow WHERE url = ? OR name = ? ORDER BY node LIMIT ?", (flow, flow, most)
            )
            return [node for (node,) in found]

    def offered(self, key: Key) -> dict[Key, dict[str, str]]:
        """Of each part that knows the node, the flows that it names: their names by their paths."""
        with self.reading() as db:
            found = db.execute("SELECT origin, flows FROM record WHERE key = ?", (key,)).fetchall()
        return {origin: _names(flows) for origin, flows in found}

    def tree(self) -> dict[str, Any]:
        """`nodes`: what registered here; `providers`: each peer with the nodes that are known through it."""
        with self.reading() as db:
            own, providers = self._shelves(db)
            told = {url: {**face, "nodes": dict(_bodies(db, ids))} for url, (face, ids) in providers.items()}
            return {"nodes": dict(_bodies(db, own)), "providers": told}

    def tree_json(self, *, brief: bool = False) -> Iterator[bytes]:
        """The members of `tree` as JSON, without the braces around them: in pieces, read as they are asked for."""
        with self.reading(brief=brief) as db:
            own, providers = self._shelves(db)
            yield b'"nodes":{'
            yield from _members(db, own)
            yield b'},"providers":{'
            for number, (url, (face, ids)) in enumerate(providers.items()):
                yield b"," * bool(number) + orjson.dumps(url) + b":" + orjson.dumps(face)[:-1] + b',"nodes":{'
                yield from _members(db, ids)
                yield b"}}"
            yield b"}"

    def _shelves(self, db: sqlite3.Connection) -> tuple[list[int], dict[str, tuple[dict[str, Any], list[int]]]]:
        """Where what is listed stands: the ids of own records, and by their urls the peers with the ids of theirs."""
        own: list[int] = []
        parts = {part.origin: part for part in map(read_part, _column(db, "SELECT state FROM part"))}
        peers = map(read_peer, _column(db, "SELECT state FROM peer"))
        providers: dict[str, tuple[dict[str, Any], list[int]]] = {
            peer.key: ({"url": peer.url, "organization": peer.organization, "feed": peer.feed}, [])
            for peer in peers
            if peer.connected
        }
        for number, origin, on_behalf in db.execute("SELECT id, origin, via FROM record WHERE listed ORDER BY url"):
            via = on_behalf if origin == self.key else parts[origin].via
            if via is None:
                own.append(number)
            else:
                blank = {"url": via, "organization": None, "feed": False}
                providers.setdefault(via, (blank, []))[1].append(number)
        return own, {face["url"]: (face, ids) for face, ids in providers.values()}

    def document(self) -> dict[str, Any]:
        """The whole state: `tree`, and of each part its version and what it says of each node.

        A record whose body stands in the tree has none here.
        """
        tree = self.tree()
        with self.reading() as db:
            parts = {part["origin"]: part for part in map(orjson.loads, _column(db, "SELECT state FROM part"))}
            for part in parts.values():
                part["records"] = {}
            stored = f"SELECT {_BODY}, origin, seq, flows_seq, via, gone, listed FROM record ORDER BY origin, seq"
            for row in db.execute(stored):
                seq, flows_seq, via, gone, is_listed = row[8:]
                record = {"seq": seq, "flows_seq": flows_seq, "via": via, "gone": bool(gone)}
                parts[row[7]]["records"][row[0]] = record if is_listed else {**record, "node": _body(row)}
            peers = [orjson.Fragment(state) for state in _column(db, "SELECT state FROM peer ORDER BY key")]
        return {**tree, "parts": list(parts.values()), "peers": peers}

    def content(self, parcel: Parcel, limit: int, *, brief: bool = False) -> Content:
        """What a parcel is to carry, read in one transaction: at most `limit` bytes of nodes, and at least one."""
        content = Content({}, [], {})
        with self.reading(brief=brief) as db:
            for owed in parcel.ranges:
                if limit <= 0:
                    break
                limit -= self._pack(db, parcel, owed, limit, content)
        return content

    def _pack(self, db: sqlite3.Connection, parcel: Parcel, owed: Range, limit: int, content: Content) -> int:
        """Pack the next page of what changed in one origin's part; the bytes it takes."""
        part = read_part(db.execute("SELECT state FROM part WHERE origin = ?", (owed.origin,)).fetchone()[0])
        if not part.goes_on(owed.base, owed.since, owed.floor):
            # The origin began anew after this was owed: what is there now cannot be told as a difference.
            owed = Range(owed.origin, NOTHING, NOTHING, part.floor, owed.age)
        to, complete, packed, used = part.version, True, {}, 0
        changed = db.execute(
            f"SELECT {_BODY}, key, seq, flows_seq, gone, listed, via FROM record"
            " WHERE origin = ? AND seq > ? ORDER BY seq",
            (owed.origin, parcel.after(owed)),
        )
        for row in changed:
            if used >= limit:
                complete = False
                break
            to = part.version.at(row[8])
            used += len(row[2]) + 300
            if parcel.form != "delta":
                self._pack_plain(db, parcel, row, content.nodes)
            if parcel.form != "plain":
                referred = parcel.form == "both" and row[11]
                packed[row[0]] = _record(row, owed, referred=bool(referred))
        to = part.version if complete else to
        content.carried[owed.origin] = Carried(owed.base, to, complete, owed.floor)
        if parcel.form != "plain":
            content.deltas.append(
                {
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
            )
        return used

    def _pack_plain(self, db: sqlite3.Connection, parcel: Parcel, row: Sequence[Any], nodes: dict[str, Any]) -> None:
        """A node as it is listed, whoever's record that is; one that is listed no more has no flows."""
        key, is_listed = row[7], row[11]
        shown = (
            row if is_listed else db.execute(f"SELECT {_BODY} FROM record WHERE key = ? AND listed", (key,)).fetchone()
        )
        if shown is None and parcel.first:
            return
        # One that lapsed has no time of its own: what is newer elsewhere is not to be hidden by it.
        shown = shown or (*row[:2], "{}", row[3], row[4] or row[5], *row[5:7])
        if parcel.unsaid is not None:
            told = db.execute(
                "SELECT 1 FROM record WHERE key = ? AND origin = ? AND via = ? AND modified >= ?",
                (key, self.key, parcel.unsaid, shown[4]),
            ).fetchone()
            if told is not None:
                return
        nodes[shown[0]] = _body(shown)


def _moves_with(selected: str) -> Count:
    """With which count the ranking of a selection moves: times of nodes alone change more often than all the rest."""
    return "flows" if any(time in selected for time in TIMES) else "counts"


def _selection(select: Filter | None, order: Order) -> str:
    """What stands after FROM: the flows that are selected, in this order, joined with no table that nobody mentions."""
    if select is None and order.keys[0][0].startswith(("n.", "f.node")):
        # By itself SQLite would sort all flows; this way it walks the index of that column, node by node.
        sorting = order.sql.replace("f.node", "n.url")
        return f"record n CROSS JOIN flow f ON f.record = n.id WHERE n.listed ORDER BY {sorting}"
    where = "1" if select is None else select.sql
    # By itself SQLite would walk the index of names to spare itself the sorting, and for a filter that reads more than
    # stands there look up every flow: several times as long as all flows in the order in which they are stored.
    sorting = order.sql if set(_READ.findall(where)) <= _NAMED else f"+{order.sql}"
    source = "flow f"
    if "n." in where + order.sql:
        source, where = f"{source} JOIN record n ON n.id = f.record", f"n.listed AND ({where})"
    if "t." in where:
        source = f"{source} JOIN flow_text t ON t.id = f.id"
    return f"{source} WHERE {where} ORDER BY {sorting}"


def _some_records(db: sqlite3.Connection, after: int) -> list[Sequence[Any]]:
    """The listed records that come after this id, until they have `LOOKED_OVER` flows: id, url, organization, flows."""
    found: list[Sequence[Any]] = []
    flows = 0
    stored = "SELECT id, url, organization, flows, size FROM record WHERE listed AND id > ? ORDER BY id LIMIT ?"
    for *record, size in db.execute(stored, (after, LOOKED_OVER)):
        found.append(record)
        flows += size
        if flows >= LOOKED_OVER:
            break
    return found


def _bodies(db: sqlite3.Connection, ids: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The nodes of these records with their urls, in this order."""
    wanted = f"SELECT {_BODY} FROM json_each(?) i CROSS JOIN record n ON n.id = i.value ORDER BY i.key"
    for start in range(0, len(ids), PIECE):
        for row in db.execute(wanted, (json_text(ids[start : start + PIECE]),)):
            yield row[0], _body(row)


def _members(db: sqlite3.Connection, ids: Sequence[int]) -> Iterator[bytes]:
    """The nodes of these records as the members of a JSON object, in pieces."""
    for start in range(0, len(ids), PIECE):
        piece = dict(_bodies(db, ids[start : start + PIECE]))
        yield b"," * bool(start) + orjson.dumps(piece)[1:-1]


def _columns(entry: Entry) -> tuple[Any, ...]:
    node = entry.node
    return (
        *(entry.origin, entry.key, node.url, node.organization, node.created, node.modified, node.heartbeat),
        *(node.status, entry.seq, entry.flows_seq, entry.via, entry.gone),
    )


def _flows(entry: Entry) -> tuple[str | None, str | None, int | None]:
    """Digest, JSON and number of an entry's flows; nothing where the stored ones stay."""
    flows = entry.node.flows
    return (None, None, None) if flows is None else (entry.digest, flows_json(flows).decode(), len(flows_by_url(flows)))


def _body(row: Sequence[Any]) -> dict[str, Any]:
    url, organization, flows, created, modified, heartbeat, status = row[:7]
    return {
        "url": url,
        "organization": organization,
        "flows": orjson.Fragment(flows),
        "created": created,
        "modified": modified,
        "heartbeat": heartbeat,
        "status": status,
    }


def _record(row: Sequence[Any], owed: Range, *, referred: bool) -> dict[str, Any]:
    """A record in a delta: by reference, as times alone when the receiver has its flows, or whole."""
    record: dict[str, Any] = {"seq": row[8]}
    if row[10]:
        record["gone"] = True
    if row[12] is not None:
        record["adopted"] = True
    if referred:
        return record
    body = _body(row)
    if row[9] <= owed.base.seq:
        del body["flows"]
    return {**record, "node": body}


def _row(columns: Sequence[Any]) -> Row:
    *said, gone = columns
    said.append(bool(gone))
    return Row(*said)


def _face(peer: PeerState) -> tuple[Any, ...]:
    """What the map shows of a peer."""
    return peer.url, peer.organization, peer.feed, peer.connected


def _names(flows: str) -> dict[str, str]:
    """The names of flows by their paths."""
    return {path: flow["name"] for path, flow in orjson.loads(flows).items()}


def _column(db: sqlite3.Connection, sql: str) -> Iterator[str]:
    return (value for (value,) in db.execute(sql))


def _placeholders(count: int) -> str:
    return ", ".join("?" * count)


def _dump(state: Part | PeerState) -> str:
    return orjson.dumps(state, default=list).decode()
