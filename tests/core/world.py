"""A mesh without I/O: registries, messages in flight, one clock, one seed.

Time is a number that jumps to the next thing to happen. Messages are real JSON between cores, so that what one writes
the other must be able to read. Faults are what a test does to `links`.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import orjson

from kodo.catalogue import Catalogue
from kodo.core import events as ev
from kodo.core.instructions import Instruction, Reply, Save, Send, Wake
from kodo.core.registry import Profile, Registry
from kodo.errors import KodoError
from kodo.models import Farewell, Key, PeerMessage, PeerReply, Registration, Version, canonical, format_time
from kodo.query import parse_order

EPOCH = datetime(2024, 12, 25, 18, tzinfo=UTC)
LIMIT = 2**23
ALL = parse_order("node, url")


@dataclass
class Site:
    """One registry with its store."""

    profile: Profile
    registry: Registry
    store: Catalogue
    skew: float = 0.0
    up: bool = True
    wake: float = 0.0
    seen: dict[Key, Version] = field(default_factory=dict)


@dataclass
class Links:
    """What happens to messages: by default each takes 10 ms and arrives."""

    latency: tuple[float, float] = (0.01, 0.01)
    loss: float = 0.0
    doubles: float = 0.0
    cut: set[frozenset[Key]] = field(default_factory=set)


class World:
    """Registries that speak with each other over `links`."""

    def __init__(self, seed: int = 0, page: int = LIMIT) -> None:
        self.random = random.Random(seed)
        self.clock = 0.0
        self.page = page
        self.links = Links()
        self.sites: dict[Key, Site] = {}
        self.sent: Counter[str] = Counter()
        self.history: dict[tuple[Key, Version], list[Any]] = {}
        self.pushed: list[tuple[Key, Key, str, dict[str, Any]]] = []
        self._future: list[tuple[float, int, Any]] = []
        self._order = count()
        self._tickets = count(1)

    # -- building ------------------------------------------------------------------------------------------

    def add(self, name: str, connect: Iterable[str] = (), *, provider: bool = False, skew: float = 0.0) -> Key:
        """Start a registry at `http://NAME:1`."""
        url = f"http://{name}:1"
        profile = Profile(url, True, provider, tuple(f"http://{other}:1" for other in connect))
        self.sites[canonical(url)] = Site(profile, Registry(profile), Catalogue(url), skew)
        self._start(canonical(url))
        return canonical(url)

    def restart(self, key: Key, *, keep_disk: bool = True) -> None:
        """The registry stops and starts again, on its disk or without it."""
        site = self.sites[key]
        if not keep_disk:
            site.store.close()
            site.store = Catalogue(site.profile.url)
            site.seen = {}
        site.registry = Registry(site.profile, site.store.parts(), site.store.peers(), site.store.own_rows())
        site.up = True
        self._start(key)

    def _start(self, key: Key) -> None:
        at = self._instant(key)
        unix = int(datetime.fromisoformat(at.utc).replace(tzinfo=UTC).timestamp())
        nonce = f"{self.random.getrandbits(64):016x}"
        self.step(key, ev.Start(at, own=None, self_key=key, unix=unix, nonce=nonce))

    # -- doing ---------------------------------------------------------------------------------------------

    def register(self, key: Key, node: str, flows: Iterable[str] = ("a",)) -> Reply:
        """A node registers; the answer."""
        body = Registration(url=f"http://{node}:1", flows=[{"url": f"/{name}", "name": name} for name in flows])
        done = self.step(key, ev.Register(self._instant(key), ticket=next(self._tickets), node=body))
        return next(reply for reply in done if isinstance(reply, Reply))

    def step(self, key: Key, event: ev.Event) -> list[Instruction]:
        """Step one registry and carry out what it wants."""
        site = self.sites[key]
        if isinstance(event, ev.Concerning):
            event = replace(event, rows=site.store.rows(site.registry.concerns(event)))
        done = site.registry.step(event)
        for instruction in done:
            if isinstance(instruction, Save):
                site.store.write(instruction)
        site.store.commit()
        if any(isinstance(instruction, Save) for instruction in done):
            self._check(key)
        for instruction in done:
            match instruction:
                case Send():
                    self._send(key, instruction)
                case Wake():
                    site.wake = instruction.at
                    self._later(instruction.at - self.clock, ("tick", key, site.registry, instruction.at))
        return done

    def _check(self, key: Key) -> None:
        """Invariants 1 and 2 of FEDERATION.md: a replica is a past state of its origin, and its marks never fall."""
        site = self.sites[key]
        site.seen = {origin: mark for origin, mark in site.seen.items() if origin in site.registry.parts}
        stored = {part.origin: part for part in site.store.states()}
        for origin, part in site.registry.parts.items():
            assert stored[origin] == part
            assert part.version >= site.seen.get(origin, part.version), f"{key} fell back on {origin}"
            if site.seen.get(origin) != part.version:
                site.seen[origin] = part.version
                state = self._part(site, origin)
                if origin not in site.registry.ledger.doubted:
                    assert {found.origin: found.content for found in site.store.parts()}[origin] == part.content
                if origin == key:
                    self.history[origin, part.version] = state
                was = self._without_tombstones(self.history[origin, part.version], part.floor.seq)
                assert self._without_tombstones(state, part.floor.seq) == was, f"{key} holds what {origin} never was"

    def _without_tombstones(self, state: list[Any], floor: int) -> list[Any]:
        """The records, but for the tombstones that the floor has passed: those may be gone, or not yet."""
        return [record for record in state if not record[5] or record[6] > floor]

    def _part(self, site: Site, origin: Key) -> list[Any]:
        with site.store.reading() as db:
            said = "SELECT key, organization, created, modified, flows, gone, seq, status FROM record WHERE origin = ?"
            return sorted(db.execute(said, (origin,)))

    def run(self, seconds: float) -> None:
        """Let everything happen that happens within so many seconds."""
        end = self.clock + seconds
        while self._future and self._future[0][0] <= end:
            self.clock, _, (what, *rest) = heapq.heappop(self._future)
            getattr(self, f"_{what}")(*rest)
        self.clock = end

    def settle(self, within: float = 60.0) -> float:
        """Run until nothing is in flight or owed; how long it took. Fails when it takes longer."""
        began = self.clock
        while not all(site.registry.standing().idle for site in self.sites.values() if site.up):
            assert self.clock - began < within, "the mesh does not fall silent"
            self.run(0.01)
        return self.clock - began

    # -- seeing --------------------------------------------------------------------------------------------

    def listing(self, key: Key) -> list[dict[str, Any]]:
        """What a registry lists, without the column that names itself."""
        page = self.sites[key].store.page(None, ALL, 0, 1000)
        return [{name: value for name, value in row.items() if name != "registry"} for row in page.items]

    def listings(self) -> list[list[dict[str, Any]]]:
        return [self.listing(key) for key in self.sites]

    # -- messages ------------------------------------------------------------------------------------------

    def _send(self, source: Key, send: Send) -> None:
        target = canonical(send.address)
        site = self.sites[source]
        if send.parcel is None:
            if send.version is not None:
                # Who leaves declares its part to be empty at that version.
                self.history[source, send.version] = []
            body = orjson.dumps({"url": site.profile.url, "version": send.version}, default=list)
            self._post(source, send, {}, body)
            return
        limit = LIMIT if send.route == "/connect" else self.page
        content = site.store.content(send.parcel, limit)
        if send.bare and not (content.nodes or content.deltas):
            self._later(0, ("unsaid", source, site.registry, send, content.carried))
            return
        message = {
            "url": site.profile.url,
            "feed": not site.profile.provider and send.route == "/connect",
            "nodes": content.nodes,
        }
        if send.marks is not None:
            message |= {"deltas": content.deltas, "marks": dict(send.marks)}
            assert all(delta["origin"] != target for delta in content.deltas), "a peer is told its own part"
        if send.beacon is not None:
            message["beacon"] = send.beacon.model_dump()
        message["asks"] = [ask.model_dump() for ask in send.asks]
        message["receipts"] = [receipt.model_dump() for receipt in send.receipts]
        body = orjson.dumps(message, default=list)
        if send.beacon is None:
            self.pushed.append((source, target, send.route, orjson.loads(body)))
        self._post(source, send, content.carried, body)

    def _post(self, source: Key, send: Send, carried: Any, body: bytes) -> None:
        site, target = self.sites[source], canonical(send.address)
        if send.beacon is None:
            self.sent[send.route] += 1
        if self._lost(source, target):
            self._later(send.deadline, ("fail", source, site.registry, send, ev.Lost))
            return
        for _ in range(1 + (self.random.random() < self.links.doubles)):
            self._later(self._latency(), ("arrive", source, site.registry, send, carried, body))

    def _arrive(self, source: Key, sender: Registry, send: Send, carried: Any, body: bytes) -> None:
        target = canonical(send.address)
        site = self.sites.get(target)
        if site is None or not site.up:
            self._later(self._latency(), ("fail", source, sender, send, ev.Lost))
            return
        at, ticket = self._instant(target), next(self._tickets)
        event: ev.Event
        match send.route:
            case "/connect":
                event = ev.Connect(at, ticket=ticket, message=PeerMessage.model_validate_json(body))
            case "/update/node":
                event = ev.Update(at, ticket=ticket, message=PeerMessage.model_validate_json(body))
            case "/disconnect":
                event = ev.Disconnect(at, ticket=ticket, message=Farewell.model_validate_json(body))
            case _:
                event = ev.Heartbeat(at, ticket=ticket, url=Farewell.model_validate_json(body).url)
        try:
            done = self.step(target, event)
        except KodoError:
            self._later(self._latency(), ("fail", source, sender, send, ev.Refused))
            return
        answer = self.answer(target, next(reply for reply in done if isinstance(reply, Reply)))
        if self._lost(target, source):
            self._later(send.deadline, ("fail", source, sender, send, ev.Lost))
            return
        self._later(self._latency(), ("delivered", source, sender, send, carried, answer))

    def answer(self, key: Key, reply: Reply) -> bytes:
        """The JSON of an answer, as far as registries read it."""
        site = self.sites[key]
        answer: dict[str, Any] = {
            "url": site.profile.url,
            "registry": True,
            "provider": site.profile.provider,
            "message": reply.message,
        }
        if reply.marks is not None:
            answer |= {"marks": dict(reply.marks), "handshake": reply.handshake}
        if reply.contents is not None:
            answer["contents"] = dict(reply.contents)
        answer["receipts"] = [receipt.model_dump() for receipt in reply.receipts]
        if reply.offer is not None and reply.to is not None:
            content = site.store.content(reply.offer, LIMIT)
            answer["providers"] = {"url": site.profile.url, "feed": not site.profile.provider, "nodes": content.nodes}
            if reply.marks is not None:
                answer["deltas"] = content.deltas
            self.step(key, ev.Answered(self._instant(key), peer=reply.to, carried=content.carried))
        return orjson.dumps(answer, default=list)

    def _delivered(self, source: Key, sender: Registry, send: Send, carried: Any, answer: bytes) -> None:
        # A double was answered twice; the sender reads the first answer alone.
        if self.sites[source].registry is sender and self._waits(sender, send):
            reply = PeerReply.model_validate_json(answer)
            at = self._instant(source)
            self.step(source, ev.Delivered(at, peer=send.peer, route=send.route, carried=carried, reply=reply))

    def _waits(self, sender: Registry, send: Send) -> bool:
        return send.peer in sender.peers and sender.peers[send.peer].sending is not None

    def _unsaid(self, source: Key, sender: Registry, send: Send, carried: Any) -> None:
        if self.sites[source].registry is sender:
            self.step(source, ev.Unsaid(self._instant(source), peer=send.peer, carried=carried))

    def _fail(self, source: Key, sender: Registry, send: Send, kind: type[ev.Lost | ev.Refused]) -> None:
        if self.sites[source].registry is sender and self.sites[source].up and self._waits(sender, send):
            self.step(source, kind(self._instant(source), peer=send.peer))

    def _tick(self, key: Key, registry: Registry, wake: float) -> None:
        site = self.sites[key]
        if site.registry is registry and site.up and site.wake == wake:
            self.step(key, ev.Tick(self._instant(key)))

    def _later(self, delay: float, what: tuple[Any, ...]) -> None:
        heapq.heappush(self._future, (self.clock + delay, next(self._order), what))

    def _latency(self) -> float:
        return self.random.uniform(*self.links.latency)

    def _lost(self, source: Key, target: Key) -> bool:
        return frozenset((source, target)) in self.links.cut or self.random.random() < self.links.loss

    def _instant(self, key: Key) -> ev.Instant:
        moment = EPOCH + timedelta(seconds=self.clock + self.sites[key].skew)
        return ev.Instant(format_time(moment), self.clock, self.random.random())
