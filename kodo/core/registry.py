"""The registry as a state machine: events in, instructions out, nothing else.

`Registry` holds how far each origin's part is known, what each peer has acknowledged, and what waits to be sent; it
holds no records, opens nothing, knows no clock. The rules of DESIGN.md ("Rules of the core"):

- `step(event)` is the only way to change it, and the same state and event give the same list.
- A message that is refused raises `KodoError` before anything has changed.
- A Save comes before the Replies and Sends that rest on it.

How news travels (FEDERATION.md, rules 1 to 4, 7, 8, 14): what registers here raises the version of the own part.
Every part whose version was raised is *owed* to every peer that acknowledged less, but never to its own origin.
What is owed leaves as a delta for peers that speak deltas, and as plain nodes for the services that do not. What an
older service sends becomes part of the own part, on that service's behalf (rule 15), and is not told back to it.

A pure node is the same machine with one thing to do: to register with every service in `connect`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from kodo.core import events as ev
from kodo.core.instructions import (
    Entry,
    Form,
    Instruction,
    Parcel,
    Range,
    Reply,
    Save,
    Send,
    Settle,
    Stage,
    Standing,
    Wake,
)
from kodo.core.parts import Part, Row, Staging, listed, on_history
from kodo.core.peers import GATHERING, Peer, PeerState
from kodo.errors import InvalidMessageError
from kodo.models import (
    NOTHING,
    Delta,
    Key,
    Node,
    PeerMessage,
    PeerReply,
    PlainNode,
    Record,
    Registration,
    Version,
    canonical,
    digest,
    flows_by_url,
    later,
    nodes_by_key,
)

DEADLINE = 10.0
"""Seconds that a message may take, from the first connection attempt to the end of the answer."""
A_DAY = timedelta(days=1)
A_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Profile:
    """Who this service is: its own url, its roles, and the services it is to connect or register with."""

    url: str
    registry: bool = True
    provider: bool = False
    connect: tuple[str, ...] = ()


@dataclass(slots=True)
class _Change:
    """What a step changes; turned into one Save."""

    entries: list[Entry] = field(default_factory=list)
    unstage: list[Stage] = field(default_factory=list)
    staged: list[tuple[Stage, Entry]] = field(default_factory=list)
    settled: list[Settle] = field(default_factory=list)
    parts: dict[Key, Part] = field(default_factory=dict)
    peers: dict[Key, PeerState] = field(default_factory=dict)

    def saves(self) -> list[Instruction]:
        save = Save(
            tuple(self.entries),
            tuple(self.unstage),
            tuple(self.staged),
            tuple(self.settled),
            tuple(self.parts.values()),
            tuple(self.peers.values()),
        )
        return [] if save == Save() else [save]


class Registry:
    """One service's state of the mesh. Starts from what was saved: `parts` and `peers`."""

    def __init__(self, profile: Profile, parts: Iterable[Part] = (), peers: Iterable[PeerState] = ()) -> None:
        self.profile = profile
        self.key = canonical(profile.url)
        self.parts = {part.origin: part for part in parts}
        self.peers = {state.key: Peer.restored(state) for state in peers}
        self.staging: dict[Stage, Staging] = {}
        # Which peer answers at an address in `connect`: known once it has told its own url.
        self.configured: dict[str, Key] = {}

    @property
    def own(self) -> Part:
        """The part that this registry writes."""
        return self.parts[self.key]

    def step(self, event: ev.Event) -> list[Instruction]:
        """Take in one event and say what is to be done. Raises `KodoError`, unchanged, for what it refuses."""
        match event:
            case ev.Start():
                done = self._start(event)
            case ev.Register():
                done = self._register(event)
            case ev.Update():
                done = self._update(event)
            case ev.Connect():
                done = self._connect(event)
            case ev.Delivered():
                done = self._delivered(event)
            case ev.Answered():
                done = self._answered(event)
            case ev.Unsaid():
                done = self._unsaid(event)
            case ev.Refused():
                done = self._failed(event.peer, event.at, refused=True)
            case ev.Lost():
                done = self._failed(event.peer, event.at, refused=False)
            case ev.Tick():
                done = []
            case _:
                raise TypeError(f"no rule for {type(event).__name__}")
        return done + self._due(event.at)

    def standing(self) -> Standing:
        """What the common reply tells: connections as configured, and whether all is said."""
        connection = []
        for address, key in self.configured.items():
            peer = self.peers[key]
            connection.append((address, peer.last if peer.stands else None))
        return Standing(tuple(connection), all(peer.quiet for peer in self.peers.values()))

    # -- start ---------------------------------------------------------------------------------------------

    def _start(self, event: ev.Start) -> list[Instruction]:
        change = _Change()
        part = self.parts.get(self.key, Part(self.key)).new_epoch(event.unix, event.nonce)
        self.parts[self.key] = part
        row = _row_of(event.rows, self.key, self.key)
        if event.own is not None:
            change.entries.append(self._own_node(event.own, row, event.at))
        elif row is not None and not row.gone and row.via is None:
            gone = Node(url=self.profile.url, created=row.created, modified=row.modified)
            change.entries.append(self._entry(gone, row, None, gone=True))
        change.parts[self.key] = self.own
        for address in self.profile.connect:
            self._configure(address)
        for peer in self.peers.values():
            # Who was away may have paused for long: a registry that is back says so to those it knew.
            peer.greet = peer.greet or bool(self.profile.registry and peer.state.deltas)
            self._measure(peer)
        return change.saves()

    def _own_node(self, own: Node, row: Row | None, at: ev.Instant) -> Entry:
        """The flows of this service: `created` is kept by the cache, `modified` is its start; a node has no times."""
        if self.profile.registry:
            created = row.created if row and not row.gone and row.created else at.utc
            own = own.model_copy(update={"created": created, "modified": at.utc, "heartbeat": at.utc})
        return self._entry(own, row, None)

    def _configure(self, address: str) -> None:
        known = next((peer for peer in self.peers.values() if peer.state.address == address), None)
        peer = known or self.peers.setdefault(canonical(address), Peer(PeerState(canonical(address), address, address)))
        peer.configured = peer.greet = True
        self.configured[address] = peer.key

    # -- what comes in -------------------------------------------------------------------------------------

    def _register(self, event: ev.Register) -> list[Instruction]:
        key = canonical(event.node.url)
        self._refuse_own(key)
        _refuse_ahead(event.node, event.at)
        rows = event.rows.get(key, ())
        seen = listed(rows)
        flows = flows_by_url(event.node.flows)
        newest = max((row.modified for row in rows if row.modified), default="")
        modified = max(event.at.utc, later(newest, A_MICROSECOND)) if newest else event.at.utc
        node = Node(
            url=event.node.url,
            organization=event.node.organization,
            flows=flows,
            created=(seen and seen.created) or event.at.utc,
            modified=modified,
            heartbeat=modified,
        )
        entry = self._entry(node, _row_of(event.rows, self.key, key), None)
        told = self._raised({self.key}, source=None)
        seen_since = f"seen previously {_spaced(seen.created)}" if seen and seen.created else "first visit"
        message = [f"registered node {node.url} ({seen_since})"]
        if len(event.node.flows) != len(flows):
            message.append(f"received {len(event.node.flows)} flows, registered {len(flows)} flows")
        message += [f"feed forward node to {peer.state.url}" for peer in told]
        save = Save(entries=(entry,), parts=(self.own,))
        return [save, Reply(event.ticket, tuple(message), self.standing())]

    def _connect(self, event: ev.Connect) -> list[Instruction]:
        message = event.message
        sender = canonical(message.url)
        self._check(message, event.at)
        peer = self._met(message)
        visited = peer.state.visited
        peer.state = replace(
            peer.state,
            url=message.url,
            organization=message.organization,
            feed=message.feed,
            deltas=message.marks is not None,
            visited=visited or event.at.utc,
            connected=True,
        )
        self._heard(peer, event.at)
        change = _Change(peers={sender: peer.state})
        raised = set() if self.profile.provider else self._take(message, event.rows, event.at, change)
        peer.acked = _marks(message.marks)
        peer.pages.clear()
        self._measure(peer)
        told = self._raised(raised, source=peer)
        change.peers[sender] = peer.durable()
        seen = f"seen previously {_spaced(visited)}" if visited else "first visit"
        lines = [f"registry {message.url} connected ({seen})"]
        lines += [f"feed forward {message.url} to {other.state.url}" for other in told]
        offer = None
        if message.feed:
            peer.answering += 1
            offer = self._parcel(peer, "both" if peer.state.deltas else "plain", greeting=True)
            peer.behind.clear()
        marks = None if message.marks is None else self._marks(self.parts)
        return [*change.saves(), Reply(event.ticket, tuple(lines), self.standing(), sender, offer, marks)]

    def _update(self, event: ev.Update) -> list[Instruction]:
        message = event.message
        sender = canonical(message.url)
        self._check(message, event.at)
        peer = self.peers.get(sender)
        lines: list[str] = []
        change = _Change()
        if not self.profile.provider:
            known = {key for key, rows in event.rows.items() if listed(rows)}
            lines = [f"{'updated' if key in known else 'created'} node {message.url}" for key in _named(message)]
            raised = self._take(message, event.rows, event.at, change)
            self._raised(raised, source=peer)
        if peer is not None:
            self._heard(peer, event.at)
        unknown = message.marks is not None and (peer is None or not peer.state.connected)
        marks = None if message.marks is None else self._marks(canonical(delta.origin) for delta in message.deltas)
        return [
            *change.saves(),
            Reply(event.ticket, tuple(lines), self.standing(), sender, marks=marks, handshake=unknown),
        ]

    # -- what became of what was sent ----------------------------------------------------------------------

    def _delivered(self, event: ev.Delivered) -> list[Instruction]:
        peer = self.peers[event.peer]
        reply = event.reply
        offer = reply.providers
        url = (offer.url if offer else reply.url) or peer.state.url
        news = PeerMessage(url=url, nodes=offer.nodes if offer else {}, deltas=reply.deltas, marks=reply.marks)
        self._check(news, event.at)
        greeted = event.greeting
        peer.sending = False
        peer.stands = True
        peer.last = event.at.utc
        if not self.profile.registry:
            peer.greet, peer.failures = False, 0
            return []
        change = _Change()
        if greeted:
            peer = self._greeted(peer, url, event.reply)
            raised = set() if self.profile.provider else self._take(news, event.rows, event.at, change)
            self._raised(raised, source=peer)
        elif reply.handshake or (reply.marks is None) == bool(peer.state.deltas):
            peer.greet = True
        self._acknowledged(peer, event.carried, reply.marks, greeted=greeted)
        if peer.told and _stuck(event.carried, reply.marks):
            # Answered, and not taken: the two disagree, and asking again at once would go on for ever.
            peer.greet = True
            peer.pause(event.at.clock, event.at.chance, refused=True)
        else:
            peer.failures = 0
        saves = change.saves()
        saves.append(Save(peers=(peer.durable(),), lazy=not greeted))
        return saves

    def _greeted(self, peer: Peer, url: str, reply: PeerReply) -> Peer:
        """A handshake that this service opened has been answered, by the service `url`."""
        offer = reply.providers
        peer = self._renamed(peer, url)
        peer.greet = False
        peer.state = replace(
            peer.state,
            url=url,
            organization=offer.organization if offer else peer.state.organization,
            feed=offer.feed if offer else reply.feed,
            deltas=reply.marks is not None,
            connected=True,
        )
        return peer

    def _renamed(self, peer: Peer, url: str) -> Peer:
        """A peer that was configured by another name than its own is kept under its own from now on."""
        key = canonical(url)
        if key in (peer.key, self.key):
            return peer
        known = self.peers.get(key)
        del self.peers[peer.key]
        self.configured = {address: key if k == peer.key else k for address, k in self.configured.items()}
        if known is not None:
            known.state = replace(known.state, address=peer.state.address)
            known.configured, known.stands, known.last = True, True, peer.last
            known.not_before = peer.not_before
            return known
        peer.state = replace(peer.state, key=key, url=url)
        self.peers[key] = peer
        return peer

    def _answered(self, event: ev.Answered) -> list[Instruction]:
        peer = self.peers.get(event.peer)
        if peer is None:
            return []
        peer.answering = max(0, peer.answering - 1)
        self._acknowledged(peer, event.carried, None)
        return [Save(peers=(peer.durable(),), lazy=True)]

    def _unsaid(self, event: ev.Unsaid) -> list[Instruction]:
        peer = self.peers[event.peer]
        peer.sending = False
        self._acknowledged(peer, event.carried, None)
        return [Save(peers=(peer.durable(),), lazy=True)]

    def _acknowledged(
        self,
        peer: Peer,
        carried: Mapping[Key, ev.Carried],
        marks: dict[str, Version] | None,
        *,
        greeted: bool = False,
    ) -> None:
        """Note what the peer has: by its own word where it gives one, else by what the message carried.

        A handshake tells everything the peer has: what is not told it has not, or no more.
        """
        told = _marks(marks)
        if greeted and marks is not None:
            peer.acked = {}
        for origin, part in carried.items():
            if not part.complete and peer.state.deltas and not self._up_to_date(origin, told):
                peer.pages[origin] = (part.base, part.to)
                continue
            peer.pages.pop(origin, None)
            has = part.to if marks is None else told.get(origin, NOTHING)
            # Less than was carried: the peer could not take it, and says from where it can.
            peer.acked[origin] = has if has < part.to else max(has, peer.acked.get(origin, NOTHING))
        for origin, mark in told.items():
            if origin not in carried:
                peer.acked[origin] = max(mark, peer.acked.get(origin, NOTHING))
        self._measure(peer)

    def _up_to_date(self, origin: Key, told: dict[Key, Version]) -> bool:
        """Whether the peer has, by another way, all that pages would bring it."""
        return told.get(origin, NOTHING) >= self.parts[origin].version

    def _failed(self, key: Key, at: ev.Instant, *, refused: bool) -> list[Instruction]:
        peer = self.peers[key]
        peer.sending = False
        peer.pages.clear()
        # A refusal means that the two disagree about each other: they start again with a handshake.
        peer.greet = peer.greet or refused
        peer.pause(at.clock, at.chance, refused=refused)
        return []

    # -- taking in the news of others ----------------------------------------------------------------------

    def _check(self, message: PeerMessage, at: ev.Instant) -> None:
        """Refuse what must not be taken, before anything changes."""
        self._refuse_own(canonical(message.url))
        bodies = nodes_by_key(message.nodes)
        if message.marks is None:
            for node in bodies.values():
                _refuse_ahead(node, at, "nodes")
        for index, delta in enumerate(message.deltas):
            _check_delta(index, delta, bodies)

    def _refuse_own(self, sender: Key) -> None:
        if sender == self.key:
            raise InvalidMessageError.at("url", expected="expected the url of another service; this is my own")

    def _take(self, message: PeerMessage, rows: ev.Rows, at: ev.Instant, change: _Change) -> set[Key]:
        """Take in what a message carries; the origins whose version it raised."""
        if message.marks is None:
            return self._take_plain(message, rows, at, change)
        sender = canonical(message.url)
        bodies = nodes_by_key(message.nodes)
        raised = set()
        for delta in message.deltas:
            origin = canonical(delta.origin)
            if self._take_delta(sender, delta, bodies, change):
                raised.add(origin)
            if sender in self.peers and delta.complete:
                self._has(self.peers[sender], origin, delta.to)
        return raised

    def _has(self, peer: Peer, origin: Key, version: Version) -> None:
        """What came from a peer need not be told to it (rule 7)."""
        peer.acked[origin] = max(version, peer.acked.get(origin, NOTHING))
        if origin in self.parts:
            peer.note(origin, self.parts[origin].version)

    def _take_plain(self, message: PeerMessage, rows: ev.Rows, at: ev.Instant, change: _Change) -> set[Key]:
        """What an older service tells is written into the own part, if it is news (rule 15)."""
        for key, node in nodes_by_key(message.nodes).items():
            known = rows.get(key, ())
            modified = node.modified or at.utc
            if key == self.key or any(row.modified and modified <= row.modified for row in known):
                continue
            seen = listed(known)
            created = node.created or (seen and seen.created) or modified
            times = {"created": created, "modified": modified, "heartbeat": node.heartbeat or modified}
            body = Node(url=node.url, organization=node.organization, flows=flows_by_url(node.flows), **times)
            change.entries.append(self._entry(body, _row_of(rows, self.key, key), canonical(message.url)))
        if not change.entries:
            return set()
        change.parts[self.key] = self.own
        return {self.key}

    def _take_delta(self, sender: Key, delta: Delta, bodies: dict[Key, PlainNode], change: _Change) -> bool:
        """Take in a delta, or a page of one; whether it raised the version of its origin (rule 4)."""
        origin = canonical(delta.origin)
        if origin == self.key:
            return False
        part = self.parts.get(origin, Part(origin))
        if delta.to <= part.version:
            return False
        stage = Stage(origin, sender)
        staging = self._staging(stage, delta)
        if staging is None and not _applies(delta, part):
            return False
        entries = [_replica(origin, canonical(url), record, bodies) for url, record in sorted(delta.records.items())]
        if staging is None and delta.complete:
            change.entries += entries
        else:
            if staging is None or delta.since == NOTHING:
                change.unstage.append(stage)
            change.staged += [(stage, entry) for entry in entries]
            whole = delta.since == NOTHING or (staging is not None and staging.whole)
            if not delta.complete:
                self.staging[stage] = Staging(delta.to, whole)
                return False
            change.settled.append(Settle(stage, whole))
            self.staging = {other: pages for other, pages in self.staging.items() if other.origin != origin}
        self.parts[origin] = change.parts[origin] = Part(origin, delta.to, delta.floor, delta.epochs, sender)
        return True

    def _staging(self, stage: Stage, delta: Delta) -> Staging | None:
        """The pages that this delta continues, or opens when it is a snapshot."""
        if delta.since == NOTHING:
            return Staging(NOTHING, whole=True)
        staging = self.staging.get(stage)
        return staging if staging is not None and staging.reached == delta.since else None

    # -- writing the own part, and what is owed ------------------------------------------------------------

    def _entry(self, node: Node, row: Row | None, via: Key | None, *, gone: bool = False) -> Entry:
        """Write a node into the own part: one change more."""
        part = self.own.advanced()
        self.parts[self.key] = part
        seq = part.version.seq
        flows = digest(node.flows or {})
        kept = row is not None and not row.gone and row.digest == flows
        return Entry(self.key, node.key, node, seq, row.flows_seq if row and kept else seq, flows, via, gone)

    def _raised(self, origins: set[Key], source: Peer | None) -> list[Peer]:
        """Note for every peer what it is owed now; the peers that are told, by url. The source has its news already."""
        told = []
        for key in sorted(self.peers):
            peer = self.peers[key]
            for origin in origins:
                # What is still owed of the own part is not what an older service just told.
                if peer is source and (origin != self.key or origin not in peer.behind):
                    peer.acked[origin] = self.parts[origin].version
                peer.note(origin, self.parts[origin].version)
            if origins and peer is not source and peer.told and peer.behind & origins:
                told.append(peer)
        return told

    def _measure(self, peer: Peer) -> None:
        """What the peer is owed; a provider offers its own part alone."""
        peer.behind.clear()
        for origin, part in self.parts.items():
            if origin == self.key or not self.profile.provider:
                peer.note(origin, part.version)

    def _due(self, at: ev.Instant) -> list[Instruction]:
        """The messages whose time has come, one for each peer, and when the next is due."""
        done: list[Instruction] = []
        waiting = []
        for key in sorted(self.peers):
            peer = self.peers[key]
            if peer.busy or not peer.wants:
                continue
            if peer.not_before > at.clock:
                waiting.append(peer.not_before)
                continue
            peer.sending = True
            peer.not_before = at.clock + GATHERING
            done.append(self._send(peer))
        if waiting:
            done.append(Wake(min(waiting)))
        return done

    def _send(self, peer: Peer) -> Send:
        address = peer.state.address
        if not self.profile.registry:
            return Send(peer.key, address, "/register", DEADLINE)
        if not peer.greet:
            parcel = self._parcel(peer, "delta" if peer.state.deltas else "plain")
            return Send(peer.key, address, "/update/node", DEADLINE, parcel, () if peer.state.deltas else None)
        parcel = self._parcel(peer, "both", greeting=True)
        return Send(peer.key, address, "/connect", DEADLINE, parcel, self._marks(self.parts))

    def _parcel(self, peer: Peer, form: Form, *, greeting: bool = False) -> Parcel:
        """What a message to this peer carries; outside a handshake, no records are told to whom they came from."""
        unsaid = None if greeting else peer.key
        return Parcel(form, tuple(self._range(peer, origin) for origin in sorted(peer.behind)), unsaid)

    def _range(self, peer: Peer, origin: Key) -> Range:
        base = peer.acked.get(origin, NOTHING)
        if not self.parts[origin].follows(base):
            base = NOTHING
        started, since = peer.pages.get(origin, (base, base))
        continues = started == base and self.parts[origin].follows(since)
        return Range(origin, base, since if continues else base)

    # -- peers ---------------------------------------------------------------------------------------------

    def _met(self, message: PeerMessage) -> Peer:
        key = canonical(message.url)
        return self.peers.setdefault(key, Peer(PeerState(key, message.url, message.url, message.organization)))

    def _heard(self, peer: Peer, at: ev.Instant) -> None:
        peer.heard(at.clock)
        if peer.stands:
            peer.last = at.utc

    def _marks(self, origins: Iterable[Key]) -> tuple[tuple[Key, Version], ...]:
        """The versions known here of these origins."""
        return tuple((origin, self.parts[origin].version) for origin in sorted(set(origins) & set(self.parts)))


def _refuse_ahead(node: Node | Registration, at: ev.Instant, *place: str) -> None:
    limit = later(at.utc, A_DAY)
    for name in ("created", "modified", "heartbeat"):
        if (getattr(node, name) or "") > limit:
            expected = "expected a time that is not more than a day ahead of now"
            raise InvalidMessageError.at(*place, name, expected=expected)


def _row_of(rows: ev.Rows, origin: Key, node: Key) -> Row | None:
    return next((row for row in rows.get(node, ()) if row.origin == origin), None)


def _named(message: PeerMessage) -> Iterable[Key]:
    """The nodes that a message names, each once, in its order."""
    told = (canonical(url) for delta in message.deltas for url, record in delta.records.items() if not record.gone)
    return dict.fromkeys((*nodes_by_key(message.nodes), *told))


def _spaced(time: str) -> str:
    """A time as messages show it, with a space for the T."""
    return time.replace("T", " ")


def _marks(marks: dict[str, Version] | None) -> dict[Key, Version]:
    return {canonical(origin): version for origin, version in (marks or {}).items()}


def _stuck(carried: Mapping[Key, ev.Carried], marks: dict[str, Version] | None) -> bool:
    """Whether a peer that speaks deltas is no further than before, for anything that the message completed."""
    told = _marks(marks)
    return marks is not None and any(
        part.complete and told.get(origin, NOTHING) <= part.base < part.to for origin, part in carried.items()
    )


def _check_delta(index: int, delta: Delta, bodies: dict[Key, PlainNode]) -> None:
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


def _applies(delta: Delta, part: Part) -> bool:
    """Rule 4: the replica has all that the delta builds on, on the origin's own history."""
    mark = part.version
    return mark >= delta.since and mark >= delta.floor and on_history(mark, delta.to, delta.epochs)


def _replica(origin: Key, key: Key, record: Record, bodies: dict[Key, PlainNode]) -> Entry:
    node: Node = record.node or bodies[key]
    flows = "" if node.flows is None else digest(node.flows)
    return Entry(origin, key, node, record.seq, record.seq, flows, None, record.gone)
