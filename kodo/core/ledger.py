"""The ledger: all parts as one registry knows them, the own one written, the others followed.

FEDERATION.md, rules 1 to 6, 10 and 11. Every method that changes something notes it in a `Change`, which becomes the
Save of the step. `content` of each part is kept up with its records, so that two registries can find out that they hold
different things at the same version.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import timedelta

from kodo.core.events import Instant, Rows
from kodo.core.instructions import Entry, Instruction, Save, Settle, Stage, Told
from kodo.core.parts import A_MICROSECOND, Claim, Part, Row, Staging, on_history
from kodo.core.peers import PeerState
from kodo.digests import fingerprint
from kodo.errors import InvalidMessageError
from kodo.models import (
    NOTHING,
    Delta,
    Farewell,
    Key,
    Node,
    PlainNode,
    Record,
    Version,
    canonical,
    digest,
    later,
)

MOST_ORIGINS = 2**14
"""Origins of which a registry takes in news: what is told of all of them has to fit into one message."""
LAST_EPOCH = 2**40 - 2**20
"""The highest epoch above which another is taken: a million starts on, it is still one that can be told."""


@dataclass(slots=True)
class Change:
    """What a step changes; turned into one Save."""

    entries: list[Entry] = field(default_factory=list)
    unstage: list[Stage] = field(default_factory=list)
    staged: list[tuple[Stage, Entry]] = field(default_factory=list)
    settled: list[Settle] = field(default_factory=list)
    parts: dict[Key, Part] = field(default_factory=dict)
    peers: dict[Key, PeerState] = field(default_factory=dict)
    dropped: list[Key] = field(default_factory=list)
    forgotten: list[Key] = field(default_factory=list)
    raised: set[Key] = field(default_factory=set)
    written: set[Key] = field(default_factory=set)

    def saves(self) -> list[Instruction]:
        """The Save of all that has changed, if anything has."""
        save = Save(
            tuple(self.entries),
            tuple(self.unstage),
            tuple(self.staged),
            tuple(self.settled),
            tuple(self.parts.values()),
            tuple(self.peers.values()),
            tuple(self.dropped),
            tuple(self.forgotten),
        )
        return [] if save == Save() else [save]


@dataclass(frozen=True, slots=True)
class News:
    """Where deltas come from: `sender`, the bodies that they refer to, what is known of their nodes, and when."""

    sender: Key
    bodies: Mapping[Key, PlainNode]
    rows: Rows
    at: Instant


class Ledger:
    """The parts that the registry `key` knows; starts from what was saved."""

    def __init__(self, key: Key, parts: Iterable[Part]) -> None:
        self.key = key
        self.parts = {part.origin: part for part in parts}
        # The pages that came so far: by origin, then by the peer that sends them.
        self.staging: dict[Key, dict[Key, Staging]] = {}
        # Own tombstones, oldest first: when they were written, and their count.
        self.graves: deque[tuple[float, int]] = deque()
        # Nodes in the own part on behalf of older services, and of which.
        self.adopted: dict[Key, Key] = {}
        # Parts whose content is not what it should be at their version: only a snapshot is taken of them.
        self.doubted: set[Key] = set()
        self.surpassed = 0
        self._nonce = ""
        self._vector: dict[tuple[Key, ...], str] = {}

    @property
    def own(self) -> Part:
        """The part that this registry writes."""
        return self.parts[self.key]

    def version(self, origin: Key) -> Version:
        """How far an origin is known here."""
        part = self.parts.get(origin)
        return NOTHING if part is None else part.version

    # -- the own part --------------------------------------------------------------------------------------

    def begin(self, change: Change, unix: int, nonce: str) -> None:
        """Take a new epoch at the start (rule 2)."""
        self._nonce = nonce
        self._put(change, self.parts.get(self.key, Part(self.key)).new_epoch(unix, nonce))

    def compare(self, change: Change, contents: Mapping[Key, int]) -> None:
        """Find the parts that were spoiled while nobody looked: replicas are doubted, the own part begins anew."""
        for origin, part in list(self.parts.items()):
            counted = contents.get(origin, 0)
            if not part.content:
                # Saved before contents were kept, or of no records: there is nothing to compare with.
                self.parts[origin] = change.parts[origin] = replace(part, content=counted)
            elif counted != part.content and origin != self.key:
                self.doubted.add(origin)
        counted = contents.get(self.key, 0)
        if counted != self.own.content:
            self._put(change, replace(self.own.above(NOTHING, self._nonce), content=counted))

    def surpass(self, change: Change, mark: Version) -> None:
        """Somebody knows more of the own part than this registry does: take an epoch above it (rule 10)."""
        if self.own.version < mark and mark.seconds <= LAST_EPOCH:
            self.surpassed += 1
            self._put(change, self.own.above(mark, self._nonce))

    def leave(self, change: Change) -> Version:
        """The version at which the others are to take the own part as empty; the own part goes on above it."""
        empty = self.own.above(NOTHING, self._nonce)
        self._put(change, empty.above(NOTHING, self._nonce))
        return empty.version

    def write(self, change: Change, node: Node, row: Row | None, via: Key | None = None) -> None:
        """Write a node into the own part. Without flows it keeps those of its `row`."""
        seq = self.own.version.seq + 1
        kept = row if row is not None and not row.gone else None
        flows = kept.digest if node.flows is None and kept is not None else digest(node.flows or {})
        flows_seq = kept.flows_seq if kept is not None and kept.digest == flows else seq
        self._enter(change, Entry(self.key, node.key, node, seq, flows_seq, flows, via), row)
        self._adopt(node.key, via)

    def bury(self, change: Change, row: Row, clock: float, modified: str | None) -> None:
        """Write a tombstone into the own part: with `modified` the node has left, without the record has lapsed.

        `row` may be another part's, of a node that left by itself with that part.
        """
        seq = self.own.version.seq + 1
        # What lapsed has no time, and yet older services are told of it as of something newer.
        newer = later(max(row.modified or "", row.heartbeat or ""), A_MICROSECOND) if row.modified else None
        times = {"modified": modified, "heartbeat": modified or newer}
        node = row.body().model_copy(update={"flows": {}, "status": "unknown", **times})
        entry = Entry(self.key, row.node, node, seq, seq, digest({}), None, gone=True)
        self._enter(change, entry, row)
        self._adopt(row.node, None)
        self.graves.append((clock, seq))

    def _enter(self, change: Change, entry: Entry, row: Row | None) -> None:
        before = row.content if row is not None and row.origin == self.key else 0
        self._put(change, self.own.advanced(before ^ entry.content))
        change.entries.append(entry)
        change.written.add(entry.key)

    def _adopt(self, node: Key, via: Key | None) -> None:
        if via is None:
            self.adopted.pop(node, None)
        else:
            self.adopted[node] = via

    def clean_up(self, change: Change, before: float) -> None:
        """Drop own tombstones that were written before that moment, and raise the floor over them (rule 6)."""
        last = 0
        while self.graves and self.graves[0][0] < before:
            last = max(last, self.graves.popleft()[1])
        if last:
            self.parts[self.key] = change.parts[self.key] = self.own.raised(last)

    # -- the parts of others -------------------------------------------------------------------------------

    def take(self, change: Change, delta: Delta, news: News) -> Staging | None:
        """Take in a delta, or a page of one (rule 4); the pages that there are then, None if nothing was taken."""
        origin = canonical(delta.origin)
        part = self.parts.get(origin, Part(origin))
        stage = Stage(origin, news.sender)
        staging = self._staging(stage, delta)
        if self._full(origin) or origin in change.parts or not self._takes(part, delta, staging):
            # Of several in one message the first counts: what is known of their nodes is from before it.
            return None
        known = {key: row_of(news.rows, origin, key) for key in map(canonical, delta.records)}
        entries = [
            _replica(origin, canonical(url), record, news.bodies, known[canonical(url)])
            for url, record in sorted(delta.records.items())
        ]
        pages = staging or Staging(delta.since, whole=delta.since == NOTHING)
        pages.reached = delta.to
        _count(pages, entries, known)
        pages.claims |= {entry.key: _claim(entry) for entry in entries if row_of(news.rows, self.key, entry.key)}
        content = self._content(part, pages)
        if delta.complete and delta.content not in (None, f"{content:016x}"):
            self._distrust(part, stage, pages)
            return None
        if staging is None and delta.complete and not pages.whole:
            change.entries += entries
            self._follow(change, delta, content, news)
            return pages
        if staging is None:
            change.unstage.append(stage)
        change.staged += [(stage, entry) for entry in entries]
        if not delta.complete:
            self.staging.setdefault(origin, {})[stage.peer] = pages
            return pages
        change.settled.append(Settle(stage, pages.whole))
        self._follow(change, delta, content, news)
        return pages

    def claimed(self, stage: Stage) -> Iterable[Key]:
        """The nodes of which the pages that came so far say something that the own part says, too."""
        pages = self.staging.get(stage.origin, {}).get(stage.peer)
        return pages.claims if pages is not None else ()

    def take_farewell(self, change: Change, farewell: Farewell, at: Instant) -> bool:
        """A registry has left: its part is empty from that version on; whether that is news."""
        if farewell.version is None:
            return False
        empty = Delta(origin=farewell.url, since=NOTHING, to=farewell.version, floor=farewell.version)
        return self.take(change, empty, News(canonical(farewell.url), {}, {}, at)) is not None

    def abandon(self, change: Change, peers: Set[Key]) -> None:
        """Drop the pages of whoever is not among these peers any more."""
        for origin, pages in list(self.staging.items()):
            for peer in pages.keys() - peers:
                del pages[peer]
                change.unstage.append(Stage(origin, peer))
            if not pages:
                del self.staging[origin]

    def _full(self, origin: Key) -> bool:
        """Whether there is no room for one more origin."""
        return origin not in self.parts and max(len(self.parts), len(self.staging)) >= MOST_ORIGINS

    def _takes(self, part: Part, delta: Delta, staging: Staging | None) -> bool:
        if part.origin == self.key:
            return False
        whole = delta.since == NOTHING or (staging is not None and staging.whole)
        if whole and not delta.complete:
            # The first pages of a snapshot may end before what is here already.
            return True
        if part.origin in self.doubted:
            return whole and delta.to >= part.version
        return delta.to > part.version and (whole or staging is not None or _applies(delta, part))

    def _staging(self, stage: Stage, delta: Delta) -> Staging | None:
        """The pages that this delta continues; a snapshot continues nothing."""
        staging = self.staging.get(stage.origin, {}).get(stage.peer)
        return staging if staging is not None and NOTHING != delta.since == staging.reached else None

    def _content(self, part: Part, pages: Staging) -> int:
        """What the records of the part come to with these pages."""
        content = 0 if pages.whole else part.content
        for added, taken in pages.contents.values():
            content ^= added if pages.whole else added ^ taken
        return content

    def _distrust(self, part: Part, stage: Stage, pages: Staging) -> None:
        """What would come out is not what the origin has: either the news is spoiled, or what is here."""
        self.staging.get(stage.origin, {}).pop(stage.peer, None)
        if not pages.whole:
            self.doubted.add(part.origin)

    def _follow(self, change: Change, delta: Delta, content: int, news: News) -> None:
        """A complete delta has been applied: the mark moves."""
        origin = canonical(delta.origin)
        self.staging.pop(origin, None)
        self.doubted.discard(origin)
        seen = later(news.at.utc, timedelta(seconds=-delta.age))
        self._put(change, Part(origin, delta.to, delta.floor, delta.epochs, news.sender, content, seen))

    def drop(self, change: Change, origin: Key) -> None:
        """Give up an origin with all its records (rule 12)."""
        del self.parts[origin]
        self.doubted.discard(origin)
        self.staging.pop(origin, None)
        change.dropped.append(origin)
        self._vector.clear()

    def _put(self, change: Change, part: Part) -> None:
        self.parts[part.origin] = change.parts[part.origin] = part
        change.raised.add(part.origin)
        self._vector.clear()

    # -- what is told of them ------------------------------------------------------------------------------

    @property
    def told(self) -> tuple[Key, ...]:
        """The origins of which there is something to tell, in order."""
        return tuple(sorted(origin for origin, part in self.parts.items() if part.version.seq))

    def marks(self, origins: Iterable[Key] | None = None) -> Told:
        """The versions known here, of these origins or of all.

        Of what is doubted the epoch is told without its nonce: a version that nobody can build on, but an origin that
        has fallen behind it learns that it has (rule 10).
        """
        wanted = self.parts.keys() if origins is None else self.parts.keys() & set(origins)
        return tuple((origin, self._mark(origin)) for origin in sorted(wanted))

    def _mark(self, origin: Key) -> Version:
        version = self.parts[origin].version
        return Version(version.seconds, "", version.seq) if origin in self.doubted else version

    def contents(self, origins: Iterable[Key]) -> tuple[tuple[Key, str], ...]:
        """What stands for the content of each of these parts."""
        return tuple((origin, f"{self.parts[origin].content:016x}") for origin in origins)

    def vector(self, origins: tuple[Key, ...]) -> str:
        """What stands for the versions and contents of these parts (rule 11)."""
        if origins not in self._vector:
            told = [(origin, self.parts[origin].version, self.parts[origin].content) for origin in origins]
            self._vector[origins] = f"{fingerprint(told):016x}"
        return self._vector[origins]


def check_delta(index: int, delta: Delta, bodies: Mapping[Key, PlainNode]) -> None:
    """Refuse a delta that contradicts itself. Raises `InvalidMessageError`."""
    for url, record in delta.records.items():
        try:
            key = canonical(url)
        except ValueError:
            key = None
        body = record.node or (bodies.get(key) if key else None)
        if body is None or body.key != key:
            raise InvalidMessageError.at(
                "deltas", index, "records", expected="expected each record under its node's url, with its node"
            )
        if not delta.since.seq < record.seq <= delta.to.seq:
            raise InvalidMessageError.at(
                "deltas", index, "records", "seq", expected="expected the count of a change within the delta"
            )


def row_of(rows: Rows, origin: Key, node: Key) -> Row | None:
    """What the part of `origin` says of a node."""
    return next((row for row in rows.get(node, ()) if row.origin == origin), None)


def _applies(delta: Delta, part: Part) -> bool:
    """Rule 4: the replica has all that the delta builds on, on the origin's own history."""
    mark = part.version
    return mark >= delta.since and mark >= delta.floor and on_history(mark, delta.to, delta.epochs)


def _count(pages: Staging, entries: Iterable[Entry], known: Mapping[Key, Row | None]) -> None:
    """Note what the entries of a page add to the content of the part, and what they replace."""
    for entry in entries:
        row = known[entry.key]
        before = row.content if row is not None else 0
        pages.contents[entry.key] = (entry.content, pages.contents.get(entry.key, (0, before))[1])


def _claim(entry: Entry) -> Claim:
    return Claim(entry.node.modified, entry.gone, entry.via is not None)


def _replica(origin: Key, key: Key, record: Record, bodies: Mapping[Key, PlainNode], row: Row | None) -> Entry:
    node: Node = record.node or bodies[key]
    flows = digest(node.flows) if node.flows is not None else row.digest if row is not None else ""
    via = origin if record.adopted else None
    return Entry(origin, key, node, record.seq, record.seq, flows, via, record.gone)
