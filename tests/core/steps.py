"""Events in, instructions out: builders for tests that drive one registry by its steps. No I/O, no sleeping.

`Desk` is a registry with its store, as dictionaries, and a clock that only tests move. After every step it holds the
core to what no rule may break: the content of each part is that of its records counted anew, and no mark falls.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from kodo.core import events as ev
from kodo.core.instructions import Entry, Instruction, Reply, Save, Send, Stage, Wake
from kodo.core.parts import Carried, Part, Row, listed
from kodo.core.peers import PeerState
from kodo.core.registry import Profile, Registry, Timing
from kodo.errors import KodoError
from kodo.models import (
    NOTHING,
    Farewell,
    Key,
    Node,
    PeerMessage,
    PeerReply,
    Registration,
    Version,
    canonical,
    digest,
    format_time,
)

SELF = canonical("http://self:1")
PEER = canonical("http://peer:1")
OTHER = canonical("http://other:1")
FAR = canonical("http://far:1")
NODE = canonical("http://node:1")
NOW = "2024-12-25T18:03:12.989989"
LATER = "2024-12-25T18:05:13.972356"
FLOWS = [{"url": "/a", "name": "a"}]
PROFILE = Profile("http://self:1")


def at(clock: float = 0.0, utc: str = NOW, chance: float = 0.5) -> ev.Instant:
    return ev.Instant(utc, clock, chance)


def url_of(name: str) -> str:
    return f"http://{name}:1"


def started(profile: Profile = PROFILE, own: Node | None = None) -> tuple[Registry, list[Instruction]]:
    registry = Registry(profile)
    return registry, registry.step(ev.Start(at(), own=own, unix=100, nonce="ab"))


def register(registry: Registry, rows: tuple[Row, ...] = (), utc: str = NOW, **fields: Any) -> list[Instruction]:
    node = Registration.model_validate({"url": "http://node:1", "flows": FLOWS, **fields})
    return registry.step(ev.Register(at(1, utc), ticket=7, node=node, rows={NODE: rows} if rows else {}))


def connect(registry: Registry, url: str = "http://peer:1", clock: float = 0.0, **fields: Any) -> list[Instruction]:
    message = PeerMessage.model_validate({"url": url, "feed": True, **fields})
    return registry.step(ev.Connect(at(clock), ticket=8, message=message))


def update(registry: Registry, rows: ev.Rows | None = None, **fields: Any) -> list[Instruction]:
    message = PeerMessage.model_validate({"url": "http://peer:1", **fields})
    return registry.step(ev.Update(at(), ticket=9, message=message, rows=rows or {}))


def answered(registry: Registry, peer: Key = PEER) -> list[Instruction]:
    return registry.step(ev.Answered(at(), peer=peer, carried={SELF: Carried(Version(), registry.own.version)}))


def reply(done: list[Instruction]) -> Reply:
    return next(instruction for instruction in done if isinstance(instruction, Reply))


def replies(done: list[Instruction]) -> list[Reply]:
    return [instruction for instruction in done if isinstance(instruction, Reply)]


def saved(done: list[Instruction]) -> Save:
    return next(instruction for instruction in done if isinstance(instruction, Save))


def saves(done: list[Instruction]) -> list[Save]:
    return [instruction for instruction in done if isinstance(instruction, Save)]


def written(done: list[Instruction]) -> list[Entry]:
    """The records that are written, of whatever part."""
    return [entry for save in saves(done) for entry in save.entries]


def sends(done: list[Instruction]) -> list[Send]:
    return [instruction for instruction in done if isinstance(instruction, Send)]


def news(done: list[Instruction]) -> list[Send]:
    """The messages that carry something: no beacons, no greetings."""
    return [send for send in sends(done) if send.route == "/update/node" and send.beacon is None]


def row(modified: str | None = NOW, origin: Key = SELF, **fields: Any) -> Row:
    flows = Registration.model_validate({"url": "http://node:1", "flows": FLOWS}).flows
    return Row(origin, NODE, "http://node:1", fields.pop("created", NOW), modified, 1, 1, digest(flows), **fields)


def v(seq: int, seconds: int = 5, nonce: str = "cd") -> list[Any]:
    """A version, as it stands in a message."""
    return [seconds, nonce, seq]


ZERO = v(0, 0, "")


def record(seq: int, name: str = "node", modified: str = NOW, **fields: Any) -> dict[str, Any]:
    """A record of a delta; `gone`, `adopted` and parts of the node by name."""
    said = {name: fields.pop(name) for name in ("gone", "adopted") if name in fields}
    times = {"created": NOW, "modified": modified, "heartbeat": modified}
    return {"seq": seq, **said, "node": {"url": url_of(name), "flows": FLOWS, **times, **fields}}


def delta(origin: str, since: list[Any], to: list[Any], *records: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "origin": url_of(origin),
        "since": since,
        "to": to,
        "records": {said["node"]["url"]: said for said in records},
        **fields,
    }


class Store:
    """What a registry has saved, as dictionaries: records by origin and node, parts, peers, and pages kept aside."""

    def __init__(self) -> None:
        self.records: dict[tuple[Key, Key], Row] = {}
        self.parts: dict[Key, Part] = {}
        self.peers: dict[Key, PeerState] = {}
        self.staged: dict[Stage, dict[Key, Entry]] = {}

    def write(self, save: Save) -> None:
        for stage in save.unstage:
            self.staged.pop(stage, None)
        for stage, entry in save.staged:
            self.staged.setdefault(stage, {})[entry.key] = entry
        for settle in save.settled:
            origin = settle.stage.origin
            entries = self.staged.get(settle.stage, {})
            if settle.whole:
                self.records = {at: row for at, row in self.records.items() if at[0] != origin or at[1] in entries}
            for entry in entries.values():
                self._store(entry)
            self.staged = {stage: kept for stage, kept in self.staged.items() if stage.origin != origin}
        for entry in save.entries:
            self._store(entry)
        for part in save.parts:
            self.parts[part.origin] = part
            self.records = {
                at: row
                for at, row in self.records.items()
                if at[0] != part.origin or not row.gone or row.seq > part.floor.seq
            }
        self.peers |= {peer.key: peer for peer in save.peers}
        for origin in save.dropped:
            del self.parts[origin]
            self.records = {at: row for at, row in self.records.items() if at[0] != origin}
        for key in save.forgotten:
            self.peers.pop(key, None)

    def _store(self, entry: Entry) -> None:
        node, old = entry.node, self.records.get((entry.origin, entry.key))
        kept = old if node.flows is None and old is not None else None
        self.records[entry.origin, entry.key] = Row(
            origin=entry.origin,
            node=entry.key,
            url=node.url,
            created=node.created,
            modified=node.modified,
            seq=entry.seq,
            flows_seq=kept.flows_seq if kept else entry.flows_seq,
            digest=kept.digest if kept else entry.digest,
            organization=node.organization,
            heartbeat=node.heartbeat,
            status=node.status,
            via=entry.via,
            gone=entry.gone,
        )

    def rows(self, node: Key) -> tuple[Row, ...]:
        return tuple(row for (_, key), row in sorted(self.records.items()) if key == node)

    def own_rows(self, origin: Key) -> list[Row]:
        """As `Catalogue.own_rows`."""
        own = [row for (written_by, _), row in self.records.items() if written_by == origin]
        return [row for row in own if row.gone or row.via is not None or row.status != "unknown"]

    def content(self, origin: Key) -> int:
        """The content of a part, counted anew from its records."""
        content = 0
        for (written_by, _), row in self.records.items():
            content ^= row.content if written_by == origin else 0
        return content


class Desk:
    """A registry, what it has saved, and a clock.

    `here` are peers that answer every message at once and take all of it, `away` those to which every message is lost;
    what others are sent stays without an answer until the test gives one.
    """

    def __init__(self, profile: Profile = PROFILE, **timing: float) -> None:
        self.profile = replace(profile, timing=Timing(**timing))
        self.store = Store()
        self.registry = Registry(self.profile)
        self.clock = 0.0
        self.wake: float | None = None
        self.here: set[str] = set()
        self.away: set[str] = set()
        self.start()

    # -- what happens --------------------------------------------------------------------------------------

    def start(self, unix: int = 100, nonce: str = "ab") -> list[Instruction]:
        return self.step(ev.Start(self.at(), own=None, unix=unix, nonce=nonce))

    def restart(self, pause: float = 0.0, unix: int = 200, nonce: str = "ef") -> list[Instruction]:
        """The registry stops, and starts again on what it saved; the monotonic clock begins anew."""
        contents = {origin: self.store.content(origin) for origin in self.store.parts}
        rows = self.store.own_rows(self.registry.key)
        parts, peers = self.store.parts.values(), self.store.peers.values()
        self.registry = Registry(self.profile, parts, peers, rows, contents)
        self.clock += pause
        self.wake = None
        return self.start(unix, nonce)

    def register(self, name: str = "node", wait: float | None = None, **fields: Any) -> list[Instruction]:
        node = Registration.model_validate({"url": url_of(name), "flows": FLOWS, **fields})
        return self.step(ev.Register(self.at(), ticket=7, node=node, wait=wait))

    def beat(self, name: str = "node") -> list[Instruction]:
        return self.step(ev.Heartbeat(self.at(), ticket=6, url=url_of(name)))

    def connect(self, name: str = "peer", **fields: Any) -> list[Instruction]:
        """A registry connects, by default one that speaks deltas and has nothing yet, and reads the whole answer."""
        message = PeerMessage.model_validate({"url": url_of(name), "feed": True, "marks": {}, **fields})
        done = self.step(ev.Connect(self.at(), ticket=8, message=message))
        offer = reply(done).offer
        if offer is not None:
            done += self.step(ev.Answered(self.at(), peer=canonical(message.url), carried=self.carried(offer.ranges)))
        return done

    def connect_older(self, name: str = "old", **fields: Any) -> list[Instruction]:
        """A service connects that speaks no deltas."""
        return self.connect(name, marks=None, **fields)

    def update(self, name: str = "peer", *deltas: dict[str, Any], **fields: Any) -> list[Instruction]:
        """News of a registry: deltas, or whatever the fields say."""
        said = {"url": url_of(name), "marks": {}, "deltas": deltas, **fields}
        return self.step(ev.Update(self.at(), ticket=9, message=PeerMessage.model_validate(said)))

    def older(self, name: str = "old", *nodes: dict[str, Any]) -> list[Instruction]:
        """News of a service that speaks no deltas."""
        said = {"url": url_of(name), "nodes": list(nodes)}
        return self.step(ev.Update(self.at(), ticket=9, message=PeerMessage.model_validate(said)))

    def farewell(self, name: str = "peer", version: list[Any] | None = None, **fields: Any) -> list[Instruction]:
        message = Farewell.model_validate({"url": url_of(name), "version": version, **fields})
        return self.step(ev.Disconnect(self.at(), ticket=5, message=message))

    def leave(self, ticket: int = 4) -> list[Instruction]:
        return self.step(ev.Leave(self.at(), ticket=ticket))

    def tick(self) -> list[Instruction]:
        return self.step(ev.Tick(self.at()))

    def delivered(self, send: Send, **answer: Any) -> list[Instruction]:
        """The peer answers a message: by default it has taken all of it."""
        carried = self.carried(send.parcel.ranges) if send.parcel else {}
        marks = None if send.marks is None else {origin: part.to for origin, part in carried.items()}
        said = PeerReply.model_validate({"url": send.address, "registry": True, "marks": marks, **answer})
        event = ev.Delivered(self.at(), peer=send.peer, route=send.route, carried=carried, reply=said)
        return self.step(event)

    def lost(self, name: str = "peer", retry_after: float = 0.0, chance: float = 0.5) -> list[Instruction]:
        return self.step(ev.Lost(self.at(chance), peer=canonical(url_of(name)), retry_after=retry_after))

    def refused(self, name: str = "peer", status: int | None = None) -> list[Instruction]:
        return self.step(ev.Refused(self.at(), peer=canonical(url_of(name)), status=status))

    def run(self, seconds: float) -> list[Instruction]:
        """Let time pass, with a tick whenever one is wanted; all that was done in it."""
        end, done = self.clock + seconds, list[Instruction]()
        while self.wake is not None and self.wake <= end:
            self.clock = max(self.clock, self.wake)
            done += self.follow(self.tick())
        self.clock = end
        return done

    def follow(self, done: list[Instruction]) -> list[Instruction]:
        """What became of the messages, for the peers that are `here` and `away`; and so on, until all is said."""
        for send in sends(done):
            if send.peer in {canonical(url_of(name)) for name in self.here}:
                done = done + self.follow(self.delivered(send))
            elif send.peer in {canonical(url_of(name)) for name in self.away}:
                done = done + self.follow(self.step(ev.Lost(self.at(), peer=send.peer)))
        return done

    # -- steps ---------------------------------------------------------------------------------------------

    def step(self, event: ev.Event) -> list[Instruction]:
        if isinstance(event, ev.Concerning):
            keys = dict.fromkeys(self.registry.concerns(event))
            event = replace(event, rows={key: rows for key in keys if (rows := self.store.rows(key))})
        marks = {origin: part.version for origin, part in self.registry.parts.items()}
        done = self.registry.step(event)
        wakes = [instruction.at for instruction in done if isinstance(instruction, Wake)]
        self.wake = wakes[-1] if wakes else None
        for save in saves(done):
            self.store.write(save)
        self._check(marks)
        return done

    def state(self) -> dict[str, Any]:
        """All that the registry knows, to be compared."""
        said = {name: value for name, value in vars(self.registry).items() if name not in ("_rules", "ledger")}
        rooms = {name: vars(value) if hasattr(value, "__dict__") else value for name, value in said.items()}
        return deepcopy(rooms | {"ledger": vars(self.registry.ledger)})

    def _check(self, before: dict[Key, Version]) -> None:
        for origin, part in self.registry.parts.items():
            assert part.version >= before.get(origin, NOTHING), f"the mark of {origin} fell"
            if origin in self.registry.ledger.doubted:
                continue
            assert part.content == self.store.content(origin), f"the content of {origin} is not that of its records"

    # -- seeing --------------------------------------------------------------------------------------------

    def at(self, chance: float = 0.5) -> ev.Instant:
        moment = datetime.fromisoformat(NOW) + timedelta(seconds=self.clock)
        return ev.Instant(format_time(moment), self.clock, chance)

    def utc(self) -> str:
        return self.at().utc

    def carried(self, ranges: Any) -> dict[Key, Carried]:
        """What a message with these ranges carries, when nothing of it needs a second page."""
        parts = self.registry.parts
        return {owed.origin: Carried(owed.base, parts[owed.origin].version, True, owed.floor) for owed in ranges}

    def row(self, name: str = "node", origin: Key | None = None) -> Row | None:
        """What the part of an origin, by default the own one, says of a node."""
        return self.store.records.get((origin or self.registry.key, canonical(url_of(name))))

    def status(self, name: str = "node") -> str | None:
        """The status that is listed of a node; None if it is not listed."""
        shown = listed(self.store.rows(canonical(url_of(name))))
        return None if shown is None else shown.status

    def listed(self) -> list[str]:
        """The names of the nodes that are listed."""
        nodes = sorted({key for _, key in self.store.records})
        return [node.split("/")[2].split(":")[0] for node in nodes if listed(self.store.rows(node))]

    def version(self, name: str) -> Version:
        return self.registry.ledger.version(canonical(url_of(name)))


def refuses(desk: Desk, event: ev.Event, error: type[KodoError], match: str | None = None) -> None:
    """The event is refused, and has changed nothing (DESIGN.md, rules of the core, 5)."""
    before = desk.state()
    with pytest.raises(error, match=match):
        desk.step(event)
    assert desk.state() == before
