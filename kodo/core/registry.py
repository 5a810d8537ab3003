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

The rooms beside this one: `ledger` (the parts), `peers` (what each is owed), `leases` (which nodes beat), `ages` (which
origins are there), `receipts` (who has a change).

A pure node is the same machine with two things to do: to register with every service in `connect`, and to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from kodo.core import events as ev
from kodo.core.ages import STALE, Ages
from kodo.core.instructions import Form, Instruction, Parcel, Range, Reply, Save, Send, Stage, Standing, Told, Wake
from kodo.core.leases import Leases
from kodo.core.ledger import Change, Ledger, News, check_delta, row_of
from kodo.core.parts import A_MICROSECOND, Carried, Claim, Part, Row, listed, on_history
from kodo.core.peers import BEAT, GATHERING, Errand, Peer, PeerState, is_foreign
from kodo.core.receipts import Open, Receipts, receipt
from kodo.digests import fingerprint
from kodo.errors import InvalidMessageError, UnknownServiceError
from kodo.models import (
    NOTHING,
    Ask,
    Beacon,
    Delta,
    Key,
    Node,
    PeerMessage,
    PeerReply,
    Receipt,
    Registration,
    Version,
    canonical,
    flows_by_url,
    later,
    nodes_by_key,
)

DEADLINE = 10.0
"""Seconds that a message may take, from the first connection attempt to the end of the answer."""
FAREWELL_DEADLINE = 3.0
BEACONS = 6
"""Beacons after which what was written is taken to have reached whoever was there all the time."""
MOST_TOLD = 1000
"""Origins, asks and receipts in one message; the rest goes with the next."""
MISSED = 2.5
"""Beacons' time without a sign of life after which a peer is taken to be away."""
A_DAY = timedelta(days=1)
CHORES = 16
"""How often, within the times that they are about, old tombstones, origins and peers are looked for."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things last, in seconds.

    `lease`: a node that beats may be silent; `retention`: it stays offline before it is dropped; `beacon`: between two
    beacons to a peer; `grace`: an origin, or a peer, of which nothing is heard is kept; `tombstones`: what is gone is
    remembered, which decides how often a long-absent peer pays for a snapshot, and nothing else.
    """

    lease: float = 30.0
    retention: float = 86_400.0
    beacon: float = 10.0
    grace: float = 14 * 86_400.0
    tombstones: float = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Who this service is: its own url, its roles, and the services it is to connect or register with."""

    url: str
    registry: bool = True
    provider: bool = False
    connect: tuple[str, ...] = ()
    timing: Timing = field(default_factory=Timing)


@dataclass(slots=True)
class Leaving:
    """A `DELETE /connect` under way: the request that waits, until when, and the peers that have not been told yet."""

    ticket: int
    until: float
    waiting: set[Key]


class Registry:
    """One service's state of the mesh.

    Starts from what was saved: `parts`, `peers`, of the own part the `rows` of nodes with a lease, of nodes on behalf
    of older services, and of tombstones; and `contents`, what the records of each part come to now. A part whose
    records come to something else than it should have was spoiled, and is not to be trusted (rule 11).
    """

    def __init__(
        self,
        profile: Profile,
        parts: Iterable[Part] = (),
        peers: Iterable[PeerState] = (),
        rows: Iterable[Row] = (),
        contents: Mapping[Key, int] | None = None,
    ) -> None:
        self.profile = profile
        self.timing = profile.timing
        self.key = canonical(profile.url)
        self.ledger = Ledger(self.key, parts)
        self.peers = {state.key: Peer.restored(state) for state in peers}
        self.leases = Leases(self.timing.lease, self.timing.retention)
        self.ages = Ages(self.timing.grace)
        self.receipts = Receipts(self.key)
        # Which peer answers at an address in `connect`: known once it has told its own url.
        self.configured: dict[str, Key] = {}
        self.leaving: list[Leaving] = []
        # Registrations whose answer waits for receipts: what it will say.
        self.visible: dict[int, Reply] = {}
        self._rows = tuple(rows)
        self._contents = contents
        self._clock = 0.0
        self._stale: tuple[Key, ...] = ()
        self._chores_at = 0.0
        self._last_heard = 0.0
        self._rules: dict[type[ev.Event], Callable[[Any], list[Instruction]]] = {
            ev.Start: self._start,
            ev.Register: self._register,
            ev.Heartbeat: self._heartbeat,
            ev.Connect: self._connect,
            ev.Update: self._update,
            ev.Disconnect: self._disconnect,
            ev.Leave: self._leave,
            ev.Delivered: self._delivered,
            ev.Answered: self._answered,
            ev.Unsaid: self._unsaid,
            ev.Refused: self._refused,
            ev.Lost: self._lost,
            ev.Tick: self._tick,
        }

    @property
    def own(self) -> Part:
        """The part that this registry writes."""
        return self.ledger.own

    @property
    def parts(self) -> dict[Key, Part]:
        """How far every origin is known here."""
        return self.ledger.parts

    def concerns(self, event: ev.Event) -> Iterable[Key]:
        """The nodes of which the event is to carry what the store holds. Changes nothing."""
        keys: Iterable[Key] = ()
        match event:
            case ev.Start():
                adopted = (row.node for row in self._rows if row.via is not None and not row.gone)
                keys = (self.key, *(adopted if self.profile.provider else ()))
            case ev.Register():
                keys = (canonical(event.node.url),)
            case ev.Heartbeat():
                keys = (canonical(event.url),)
            case ev.Disconnect():
                leaver = canonical(event.message.url)
                keys = (leaver, *self._adopted({leaver}))
            case ev.Update():
                keys = ev.concerned(event.message.nodes, event.message.deltas) | self._claimed(event.message)
            case ev.Connect():
                keys = ev.concerned(event.message.nodes, event.message.deltas)
            case ev.Delivered():
                offered = event.reply.providers.nodes if event.reply.providers else {}
                keys = ev.concerned(offered, event.reply.deltas)
            case ev.Leave():
                keys = self._adopted(set(self.peers))
            case ev.Tick():
                lapsing = self._lapsing(event.at) | self._strangers(event.at)
                keys = (*self.leases.due(event.at.clock), *self._adopted(lapsing))
        return keys

    def step(self, event: ev.Event) -> list[Instruction]:
        """Take in one event and say what is to be done. Raises `KodoError`, unchanged, for what it refuses."""
        done = self._rules[type(event)](event)
        self._clock = event.at.clock
        return done + self._due(event.at)

    def standing(self) -> Standing:
        """What the common reply tells: connections as configured, and whether all is said."""
        connection = []
        for address, key in self.configured.items():
            peer = self.peers.get(key)
            connection.append((address, peer.last if peer is not None and peer.stands else None))
        return Standing(
            tuple(connection),
            all(peer.quiet for peer in self.peers.values()),
            self._stale,
            self.leases.frozen(self._clock),
            tuple((peer.state.url, peer.stopped) for _, peer in sorted(self.peers.items()) if peer.stopped),
            self.ledger.surpassed,
        )

    # -- start ---------------------------------------------------------------------------------------------

    def _start(self, event: ev.Start) -> list[Instruction]:
        change = Change()
        clock = event.at.clock
        self._resume(event.at)
        self.ledger.begin(change, event.unix, event.nonce)
        if self._contents is not None:
            self.ledger.compare(change, self._contents)
            self._contents = None
        row = row_of(event.rows, self.key, self.key)
        if self.profile.provider:
            self._give_back(change, event)
        if event.own is not None:
            self.ledger.write(change, self._own_node(event.own, row, event.at), row)
        elif row is not None and not row.gone and row.via is None:
            self._bury_left(change, row, event, everywhere=False)
        for address in self.profile.connect:
            self._configure(address)
        for peer in self.peers.values():
            # Who was away may have paused for long: a registry that is back says so to those it knew.
            peer.greet = peer.greet or bool(self.profile.registry and peer.state.deltas and not peer.state.farewell)
            peer.heard_at, peer.silent = clock, _seconds_between(peer.state.seen, event.at.utc)
            self._measure(peer, clock, self.parts.keys())
        # What was not heard of for long by the clock of this machine gets some beacons' time to be heard of again.
        self._chores_at = clock + BEACONS * self.timing.beacon
        self._last_heard = clock
        return change.saves()

    def _give_back(self, change: Change, event: ev.Start) -> None:
        """What others told while this was a registry that takes: a provider lists its own alone."""
        for origin in sorted(self.parts.keys() - {self.key}):
            self._give_up(change, origin)
        for node in self._adopted(set(self.ledger.adopted.values())):
            row = row_of(event.rows, self.key, node)
            if row is not None:
                self.ledger.bury(change, row, event.at.clock, None)

    def _resume(self, at: ev.Instant) -> None:
        """Take up what was saved: ages, leases, and what the own part holds for others."""
        for origin, part in self.parts.items():
            if origin != self.key:
                self.ages.heard(origin, at.clock, _seconds_between(part.seen, at.utc))
        for row in sorted(self._rows, key=lambda row: row.seq):
            if row.gone:
                # What lapsed says when its node was heard of last: that was a retention before at the least.
                told = 0.0 if row.modified else self.timing.retention
                since = max(0.0, _seconds_between(row.heartbeat, at.utc) - told)
                self.ledger.graves.append((at.clock - since, row.seq))
                continue
            self.leases.resume(row.node, row.status, at.clock, _seconds_between(row.heartbeat, at.utc))
            if row.via is not None:
                self.ledger.adopted[row.node] = row.via
        self._rows = ()

    def _own_node(self, own: Node, row: Row | None, at: ev.Instant) -> Node:
        """The flows of this service: `created` is kept by the cache, `modified` is its start; a node has no times."""
        if not self.profile.registry:
            return own
        created = row.created if row and not row.gone and row.created else at.utc
        return own.model_copy(update={"created": created, "modified": at.utc, "heartbeat": at.utc})

    def _configure(self, address: str) -> None:
        known = next((peer for peer in self.peers.values() if peer.state.address == address), None)
        peer = known or self.peers.setdefault(canonical(address), Peer(PeerState(canonical(address), address, address)))
        peer.state = replace(peer.state, farewell=None)
        peer.configured = peer.greet = True
        self.configured[address] = peer.key

    # -- nodes ---------------------------------------------------------------------------------------------

    def _register(self, event: ev.Register) -> list[Instruction]:
        key = canonical(event.node.url)
        self._refuse_own(key)
        _refuse_ahead(event.node, event.at)
        self._last_heard = event.at.clock
        rows = event.rows.get(key, ())
        seen = listed(rows)
        flows = flows_by_url(event.node.flows)
        modified = _after_all(rows, event.at)
        if self.leases.status(key) != "unknown":
            self.leases.beat(key, event.at.clock)
        # All of it was checked, as a registration.
        node = Node.model_construct(
            url=event.node.url,
            organization=event.node.organization,
            flows=flows,
            created=(seen and seen.created) or event.at.utc,
            modified=modified,
            heartbeat=modified,
            status=self.leases.status(key),
        )
        change = Change()
        self.ledger.write(change, node, row_of(event.rows, self.key, key))
        told = self._raised(change.raised, source=None)
        seen_since = f"seen previously {_spaced(seen.created)}" if seen and seen.created else "first visit"
        message = [f"registered node {node.url} ({seen_since})"]
        if len(event.node.flows) != len(flows):
            message.append(f"received {len(event.node.flows)} flows, registered {len(flows)} flows")
        message += [f"feed forward node to {peer.state.url}" for peer in told]
        lease = self.timing.lease if event.beats else None
        reply = Reply(event.ticket, tuple(message), self.standing(), lease=lease)
        if event.wait is not None:
            self._wait_for_receipts(reply, event.wait, event.at)
            return change.saves()
        return [*change.saves(), reply]

    def _heartbeat(self, event: ev.Heartbeat) -> list[Instruction]:
        key = canonical(event.url)
        self._refuse_own(key)
        row = row_of(event.rows, self.key, key)
        if row is None or row.gone or row.via is not None:
            raise UnknownServiceError("expected the url of a node that is registered here; register it first")
        self._last_heard = event.at.clock
        change = Change()
        if self.leases.beat(key, event.at.clock):
            self._write_status(change, row, event.at)
        self._raised(change.raised, source=None)
        return [*change.saves(), Reply(event.ticket, (), self.standing(), lease=self.timing.lease)]

    def _write_status(self, change: Change, row: Row, at: ev.Instant) -> None:
        update = {"status": self.leases.status(row.node), "heartbeat": max(at.utc, row.heartbeat or "")}
        self.ledger.write(change, row.body().model_copy(update=update), row)

    def _bury_left(self, change: Change, row: Row, event: ev.Concerning, *, everywhere: bool) -> None:
        """The node has left: nothing that was written of it before is listed any more, whoever wrote it.

        Before it left, if it left `everywhere`; else before it was registered here, for it may have moved.
        """
        self.leases.end(row.node)
        modified = _after_all(event.rows[row.node], event.at) if everywhere else _later_than((row,))
        self.ledger.bury(change, row, event.at.clock, modified)

    # -- registries ----------------------------------------------------------------------------------------

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
            # Who takes up what it had does not know yet that this service has left; who connects anew does not mind.
            farewell=peer.state.farewell if message.resumes else None,
        )
        if peer.state.farewell is None:
            self._was_told(sender)
        if peer.left_alone > event.at.clock:
            # Who connects is ready, whatever it asked for before.
            peer.left_alone, peer.not_before = 0.0, event.at.clock
        self._heard(peer, event.at)
        self._schedule_beacon(peer, event.at)
        change = Change(peers={sender: peer.state})
        self._take(message, event.rows, event.at, change)
        told = _marks(message.marks)
        self.ledger.surpass(change, told.get(self.key, NOTHING))
        peer.acked = told
        peer.pages.clear()
        self._measure(peer, event.at.clock, self.parts.keys())
        lines = [f"feed forward {message.url} to {other.state.url}" for other in self._raised(change.raised, peer)]
        change.peers[sender] = peer.durable()
        seen = f"seen previously {_spaced(visited)}" if visited else "first visit"
        lines.insert(0, f"registry {message.url} connected ({seen})")
        offer = None
        if message.feed and peer.state.farewell is None:
            peer.answering += 1
            offer = self._parcel(peer, "both" if peer.state.deltas else "plain", event.at.clock, greeting=True)
            # Of what it names itself it is to hear that it is gone.
            offer = replace(offer, first=visited is None and not message.nodes)
            peer.behind -= {told.origin for told in offer.ranges}
        marks = None if message.marks is None else self.ledger.marks()
        return [*change.saves(), Reply(event.ticket, tuple(lines), self.standing(), sender, offer, marks)]

    def _update(self, event: ev.Update) -> list[Instruction]:
        message = event.message
        sender = canonical(message.url)
        self._check(message, event.at)
        peer = self.peers.get(sender)
        lines: list[str] = []
        change = Change()
        if not self.profile.provider:
            known = {key for key, rows in event.rows.items() if listed(rows)}
            lines = [f"{'updated' if key in known else 'created'} node {message.url}" for key in _named(message)]
            self._take(message, event.rows, event.at, change)
        if peer is not None and peer.state.connected:
            self.ledger.surpass(change, _marks(message.marks).get(self.key, NOTHING))
        self._raised(change.raised, source=peer)
        if peer is not None:
            self._heard(peer, event.at, sign=message.beacon is not None)
        reply = Reply(event.ticket, tuple(lines), self.standing(), sender)
        if message.marks is not None:
            reply = self._told_back(reply, message, peer, event.at)
        return [*change.saves(), reply]

    def _told_back(self, reply: Reply, message: PeerMessage, peer: Peer | None, at: ev.Instant) -> Reply:
        """What a registry that speaks deltas reads in the answer: marks, receipts, and how its beacon fits."""
        if peer is None or not peer.state.connected:
            return replace(reply, marks=self._marks_about(message), handshake=True)
        for confirmed in message.receipts:
            self.receipts.confirmed(peer.key, confirmed)
        receipts = tuple(found for ask in message.asks if (found := self._asked(ask, peer, at)))
        origins = self._comparable(peer, at.clock)
        if message.beacon is None or self._fits(message.beacon, origins, at):
            return replace(reply, marks=self._marks_about(message), receipts=receipts)
        return replace(reply, marks=self.ledger.marks(), contents=self.ledger.contents(origins), receipts=receipts)

    def _marks_about(self, message: PeerMessage) -> Told:
        """What is known here of the origins that a message is about."""
        about = {delta.origin for delta in message.deltas} | {ask.origin for ask in message.asks}
        return self.ledger.marks(map(canonical, about))

    def _disconnect(self, event: ev.Disconnect) -> list[Instruction]:
        farewell = event.message
        key = canonical(farewell.url)
        self._refuse_own(key)
        row = row_of(event.rows, self.key, key)
        registered = row is not None and not row.gone and row.via is None
        peer = self.peers.get(key)
        news = key in self.parts and self.parts[key].version < (farewell.version or NOTHING)
        if not registered and peer is None and not news:
            raise UnknownServiceError(
                "expected the url of a node that is registered here, or of a registry that is connected"
            )
        change = Change()
        own_node = row_of(event.rows, key, key)
        # A farewell that was long on its way is none of who is back: its part has gone on from where it was left.
        back = farewell.version is not None and self.ledger.version(key) > farewell.version
        if row is not None and registered:
            self._bury_left(change, row, event, everywhere=farewell.everywhere)
        elif own_node is not None and not own_node.gone and not back and not self.profile.provider:
            # What it wrote goes with its part; that it left is to be known when an old record of it turns up late.
            self._bury_left(change, own_node, event, everywhere=farewell.everywhere)
        if peer is not None and not back:
            self._forget(change, peer, event.rows, event.at.clock)
        if not self.profile.provider and self.ledger.take_farewell(change, farewell, event.at):
            self.ages.heard(key, event.at.clock)
        self._raised(change.raised, source=None)
        return [*change.saves(), Reply(event.ticket, (f"disconnected {farewell.url}",), self.standing())]

    def _leave(self, event: ev.Leave) -> list[Instruction]:
        change = Change()
        version = NOTHING
        for peer in self.peers.values():
            self._lapse(change, peer, event.rows, event.at.clock)
        if self.profile.registry and self.own.version.seq:
            version = self.ledger.leave(change)
        for peer in list(self.peers.values()):
            peer.greet, peer.configured = False, False
            if not (peer.state.connected or peer.stands or peer.busy):
                self._drop_peer(change, peer)
                continue
            peer.state = replace(peer.state, farewell=version)
            peer.not_before = event.at.clock
            change.peers[peer.key] = peer.durable()
        self.leaving.append(Leaving(event.ticket, event.at.clock + DEADLINE, set(self.peers)))
        return change.saves()

    def _forget(self, change: Change, peer: Peer, rows: ev.Rows, clock: float) -> None:
        """The peer is none any more."""
        self._drop_peer(change, peer)
        self._lapse(change, peer, rows, clock)

    def _lapse(self, change: Change, peer: Peer, rows: ev.Rows, clock: float) -> None:
        """What was written on behalf of a peer lapses when that peer does (rule 15)."""
        for node in self._adopted({peer.key}):
            row = row_of(rows, self.key, node)
            if row is not None and node not in change.written:
                self.ledger.bury(change, row, clock, None)

    def _drop_peer(self, change: Change, peer: Peer) -> None:
        del self.peers[peer.key]
        change.forgotten.append(peer.key)
        self.receipts.gone(peer.key)
        self._was_told(peer.key)

    def _was_told(self, key: Key) -> None:
        for leaving in self.leaving:
            leaving.waiting.discard(key)

    def _adopted(self, peers: set[Key]) -> list[Key]:
        return sorted(node for node, via in self.ledger.adopted.items() if via in peers)

    # -- what became of what was sent ----------------------------------------------------------------------

    def _delivered(self, event: ev.Delivered) -> list[Instruction]:
        peer = self.peers.get(event.peer)
        if peer is None:
            return []
        reply = event.reply
        offer = reply.providers
        url = (offer.url if offer else reply.url) or peer.state.url
        news = PeerMessage(url=url, nodes=offer.nodes if offer else {}, deltas=reply.deltas, marks=reply.marks)
        self._check(news, event.at)
        sign = peer.sending in ("beacon", "beat")
        peer.sending = None
        for confirmed in peer.confirming:
            peer.confirms.pop(confirmed, None)
        peer.confirming = ()
        if event.route == "/disconnect":
            return self._taken_leave(peer)
        peer.stands = True
        self._heard(peer, event.at, sign=sign)
        if not self.profile.registry:
            self._taken_in(peer, event)
            return []
        return self._answer_of(peer, event, news)

    def _taken_in(self, peer: Peer, event: ev.Delivered) -> None:
        """A registry has taken a node's registration or beat; if it names a lease, the node beats thrice in it."""
        if event.route == "/register":
            peer.greet = False
        peer.lease = event.reply.lease
        peer.next_beat = None if peer.lease is None else event.at.clock + peer.lease * BEAT * _spread(event.at)

    def _answer_of(self, peer: Peer, event: ev.Delivered, news: PeerMessage) -> list[Instruction]:
        reply = event.reply
        greeted = event.route == "/connect"
        change = Change()
        if greeted:
            greeted_as, peer = peer.key, self._greeted(peer, news.url, reply, event.at)
            if peer.key != greeted_as:
                change.forgotten.append(greeted_as)
            self._take(news, event.rows, event.at, change)
        elif reply.handshake or (reply.marks is None) == bool(peer.state.deltas):
            peer.greet = True
        self.ledger.surpass(change, _marks(reply.marks).get(self.key, NOTHING))
        self._read_receipts(peer, reply)
        stuck = peer.told and reply.marks is not None and _stuck(peer, event.carried, _marks(reply.marks))
        self._acknowledged(
            peer, event.carried, reply.marks, event.at.clock, whole=greeted or reply.contents is not None
        )
        self._compare(peer, reply, event.at.clock)
        self._raised(change.raised, source=peer)
        if stuck:
            # Answered, and not taken: the two disagree, and asking again at once would go on for ever.
            peer.greet = True
            peer.pause(event.at.clock, event.at.chance, refused=True)
            peer.unmoved += 1
        elif event.carried:
            peer.unmoved = 0
        if not greeted and not event.carried and not change.raised:
            return []
        saves = change.saves()
        saves.append(Save(peers=(peer.durable(),), lazy=not greeted))
        return saves

    def _greeted(self, peer: Peer, url: str, reply: PeerReply, at: ev.Instant) -> Peer:
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
        self._schedule_beacon(peer, at)
        return peer

    def _renamed(self, peer: Peer, url: str) -> Peer:
        """A peer that was configured by another name than its own is kept under its own from now on."""
        key = canonical(url)
        if key in (peer.key, self.key):
            return peer
        known = self.peers.get(key)
        del self.peers[peer.key]
        for leaving in self.leaving:
            leaving.waiting = {key if k == peer.key else k for k in leaving.waiting}
        self.configured = {address: key if k == peer.key else k for address, k in self.configured.items()}
        if known is not None:
            known.state = replace(known.state, address=peer.state.address)
            known.configured, known.stands, known.last = True, True, peer.last
            known.met, known.heard_at, known.silent = True, peer.heard_at, 0.0
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
        self._acknowledged(peer, event.carried, None, event.at.clock)
        return [Save(peers=(peer.durable(),), lazy=True)]

    def _unsaid(self, event: ev.Unsaid) -> list[Instruction]:
        peer = self.peers.get(event.peer)
        if peer is None:
            return []
        peer.sending = None
        self._acknowledged(peer, event.carried, None, event.at.clock)
        return [Save(peers=(peer.durable(),), lazy=True)]

    def _acknowledged(
        self,
        peer: Peer,
        carried: Mapping[Key, Carried],
        marks: dict[str, Version] | None,
        clock: float,
        *,
        whole: bool = False,
    ) -> None:
        """Note what the peer has: by its own word where it gives one, else by what the message carried.

        `whole`: it told all that it has. What is not told it has not, or no more, unless it told us meanwhile.
        """
        told = _marks(marks)
        if whole and marks is not None:
            peer.acked = {origin: mark for origin, mark in peer.acked.items() if origin in peer.crossed}
        for origin, part in carried.items():
            if not part.complete and not self._up_to_date(origin, told):
                peer.pages[origin] = part
                peer.go_on(clock)
                continue
            peer.pages.pop(origin, None)
            has = part.to if marks is None else told.get(origin, NOTHING)
            # Less than was carried: the peer could not take it, and says from where it can.
            less = has < part.to and origin not in peer.crossed
            peer.acked[origin] = has if less else max(has, peer.acked.get(origin, NOTHING))
        for origin, mark in told.items():
            if origin not in carried:
                peer.acked[origin] = max(mark, peer.acked.get(origin, NOTHING))
        peer.crossed.clear()
        self._measure(peer, clock, self.parts.keys() if whole else carried.keys() | told.keys())

    def _up_to_date(self, origin: Key, told: dict[Key, Version]) -> bool:
        """Whether the peer has, by another way, all that pages would bring it."""
        return told.get(origin, NOTHING) >= self.ledger.version(origin)

    def _refused(self, event: ev.Refused) -> list[Instruction]:
        peer = self.peers.get(event.peer)
        if peer is None:
            return []
        errand = self._failed(peer)
        if errand == "farewell":
            return self._taken_leave(peer)
        if event.status in (401, 403):
            peer.stopped = event.status
        peer.foreign = is_foreign(event.route, event.status)
        # A refusal means that the two disagree about each other: they start again with a handshake.
        peer.greet = peer.greet or peer.state.farewell is None
        if errand == "beat" and event.status == UnknownServiceError.status:
            peer.next_beat = None
            return []
        # What is no registry yet may become one: who waits for its start is to get through as soon as it is.
        peer.pause(event.at.clock, event.at.chance, refused=not peer.foreign)
        return []

    def _taken_leave(self, peer: Peer) -> list[Instruction]:
        """A farewell has been told, or nobody is there to be told."""
        change = Change()
        if peer.state.farewell is not None:
            self._drop_peer(change, peer)
        else:
            # It connected while the farewell was on its way, and may have forgotten that since.
            peer.greet = True
        return change.saves()

    def _lost(self, event: ev.Lost) -> list[Instruction]:
        peer = self.peers.get(event.peer)
        if peer is not None:
            errand = self._failed(peer)
            peer.foreign = False
            if errand == "farewell":
                self._was_told(peer.key)
            peer.pause(event.at.clock, event.at.chance, at_least=event.retry_after)
            if errand != "farewell" and peer.state.farewell is not None:
                # What was under way when this registry left; the farewell itself has its first try.
                peer.not_before = event.at.clock + event.retry_after
        return []

    def _failed(self, peer: Peer) -> Errand | None:
        errand, peer.sending = peer.sending, None
        peer.confirming = peer.asking = ()
        # Nobody waits for a receipt any more whose time has long been over.
        peer.confirms = {change: said for change, said in peer.confirms.items() if self.receipts.known(change)}
        if peer.state.deltas:
            # An older service has taken each page by itself; others put them together, and may have lost them.
            peer.pages.clear()
        peer.crossed.clear()
        return errand

    # -- taking in the news of others ----------------------------------------------------------------------

    def _check(self, message: PeerMessage, at: ev.Instant) -> None:
        """Refuse what must not be taken, before anything changes."""
        self._refuse_own(canonical(message.url))
        bodies = nodes_by_key(message.nodes)
        if message.marks is None:
            for node in bodies.values():
                _refuse_ahead(node, at, "nodes")
        for index, delta in enumerate(message.deltas):
            check_delta(index, delta, bodies)

    def _refuse_own(self, sender: Key) -> None:
        if sender == self.key:
            raise InvalidMessageError.at("url", expected="expected the url of another service; this is my own")

    def _take(self, message: PeerMessage, rows: ev.Rows, at: ev.Instant, change: Change) -> None:
        """Take in what a message carries; a provider takes nothing."""
        if self.profile.provider:
            return
        news = News(canonical(message.url), nodes_by_key(message.nodes), rows, at)
        if message.marks is None:
            self._take_plain(news, change)
        for delta in message.deltas if message.marks is not None else ():
            self._take_delta(delta, news, change)

    def _take_delta(self, delta: Delta, news: News, change: Change) -> None:
        origin, clock = canonical(delta.origin), news.at.clock
        if not delta.complete and news.sender not in self.peers:
            # Pages are kept for whom one is connected with: of a stranger nobody knows whether there will be a last.
            return
        if origin == self.key:
            self.ledger.surpass(change, delta.to if news.sender in self.peers else NOTHING)
        elif delta.age <= self.timing.grace and (pages := self.ledger.take(change, delta, news)):
            if origin in self.parts:
                self.ages.heard(origin, clock, delta.age)
            if delta.complete:
                self._make_way(origin, pages.claims, news, change)
        peer = self.peers.get(news.sender)
        if peer is not None and delta.complete:
            # What came from a peer need not be told to it (rule 7).
            self._has(peer, origin, delta.to)

    def _has(self, peer: Peer, origin: Key, version: Version) -> None:
        if origin not in self.parts:
            return
        peer.acked[origin] = max(version, peer.acked.get(origin, NOTHING))
        if peer.sending is not None:
            peer.crossed.add(origin)
        peer.note(origin, self.parts[origin].version)
        for asked in [asked for asked in peer.asks if asked[0] == origin and asked[1] <= version]:
            peer.asks.discard(asked)
            self.receipts.has(peer.key, asked)

    def _claimed(self, message: PeerMessage) -> set[Key]:
        """The nodes of earlier pages that are decided about with the last ones, if these are in the message."""
        last = (canonical(delta.origin) for delta in message.deltas if delta.complete)
        return {key for origin in last for key in self.ledger.claimed(Stage(origin, canonical(message.url)))}

    def _make_way(self, origin: Key, claims: Mapping[Key, Claim], news: News, change: Change) -> None:
        """Own records yield: to a node's leaving that is newer, and, on behalf of older services, to any (rule 15).

        That a registry left, and its own node with it, yields to its return, though the node has not changed meanwhile.
        Nobody else has a say in whether this service offers its own flows.
        """
        for key, claim in sorted(claims.items()):
            row = row_of(news.rows, self.key, key)
            if row is None or key in change.written or key == self.key:
                continue
            if row.gone:
                if row.left and not claim.gone and key == origin:
                    self.ledger.bury(change, row, news.at.clock, None)
            elif claim.gone and (claim.modified or "") > (row.modified or ""):
                self.leases.end(key)
                self.ledger.bury(change, row, news.at.clock, claim.modified)
            elif row.via is not None and not claim.gone and not claim.adopted:
                self.ledger.bury(change, row, news.at.clock, None)

    def _take_plain(self, news: News, change: Change) -> None:
        """What an older service tells is written into the own part, if it is news (rule 15)."""
        for key, node in news.bodies.items():
            known = news.rows.get(key, ())
            modified = node.modified or news.at.utc
            if key == self.key or any(row.modified and modified <= row.modified for row in known):
                continue
            seen = listed(known)
            if not node.flows and seen is not None and seen.via is None:
                # It may be the echo of what it was told when the record was away; who wrote it knows better.
                continue
            created = node.created or (seen and seen.created) or modified
            times = {"created": created, "modified": modified, "heartbeat": node.heartbeat or modified}
            body = Node(url=node.url, organization=node.organization, flows=flows_by_url(node.flows), **times)
            self.leases.end(key)
            self.ledger.write(change, body, row_of(news.rows, self.key, key), news.sender)

    # -- beacons -------------------------------------------------------------------------------------------

    def _living(self, clock: float) -> Iterable[Key]:
        """The origins of which there is something to tell; those given up are left out already before they go."""
        return (origin for origin in self.ledger.told if not self.ages.dead(origin, clock))

    def _comparable(self, peer: Peer, clock: float) -> tuple[Key, ...]:
        """The origins of which the peer's beacon tells: of a provider its own alone."""
        return tuple(origin for origin in self._living(clock) if peer.state.feed or origin == peer.key)

    def _beacon(self, at: ev.Instant) -> Beacon:
        told = tuple(origin for origin in self._living(at.clock) if origin == self.key or not self.profile.provider)
        ages = tuple(self.ages.told(origin, at.clock) for origin in told)
        return Beacon(vector=self.ledger.vector(told), origins=_names(told), ages=ages)

    def _fits(self, beacon: Beacon, origins: tuple[Key, ...], at: ev.Instant) -> bool:
        """Whether a peer has what is here; of the same origins its ages are of use even when it has not."""
        if beacon.origins == _names(origins) and len(beacon.ages) == len(origins):
            for origin, age in zip(origins, beacon.ages, strict=True):
                if origin != self.key:
                    self.ages.heard(origin, at.clock, age)
        return beacon.vector == self.ledger.vector(origins)

    def _compare(self, peer: Peer, reply: PeerReply, clock: float) -> None:
        """The peer holds other content at the same version: what came from there, or is its own, is doubted here.

        So is what came from who is away, and cannot tell.
        """
        told = _marks(reply.marks)
        others = {key for key, other in self.peers.items() if other is not peer and not self._away(other, clock)}
        for url, content in (reply.contents or {}).items():
            origin = canonical(url)
            part = self.parts.get(origin)
            if part is None or origin == self.key or told.get(origin) != part.version:
                continue
            if content != f"{part.content:016x}" and (peer.key == origin or part.via not in others):
                self.ledger.doubted.add(origin)
                peer.greet = True

    def _schedule_beacon(self, peer: Peer, at: ev.Instant) -> None:
        peer.next_beacon = at.clock + self.timing.beacon * _spread(at)

    # -- receipts ------------------------------------------------------------------------------------------

    def _wait_for_receipts(self, reply: Reply, within: float, at: ev.Instant) -> None:
        self.visible[reply.ticket] = reply
        self._pass_on((self.key, self.own.version), None, reply.ticket, at, within)

    def _asked(self, ask: Ask, peer: Peer, at: ev.Instant) -> Receipt | None:
        """A peer asks: the receipt, if it can be given at once. What has not been taken in yet is asked again."""
        change = (canonical(ask.origin), ask.version)
        part = self.parts.get(change[0])
        if part is None or not on_history(ask.version, part.version, part.epochs):
            return None
        known = self.receipts.known(change)
        if known is not None and known.asked_by == peer.key:
            # Its answer was lost: what is still open is confirmed later, what is closed is said again.
            return None if change in self.receipts.open else receipt(change, known)
        if known is not None:
            return receipt(change)
        asked = self._pass_on(change, peer.key, None, at, ask.within)
        if asked.waiting:
            return None
        self.receipts.end(change, at.clock)
        return receipt(change, asked)

    def _pass_on(
        self, change: tuple[Key, Version], asked_by: Key | None, ticket: int | None, at: ev.Instant, within: float
    ) -> Open:
        """Ask all others that are told of it, also those that have it: news may travel faster than the ask."""
        peers = [
            peer for key, peer in sorted(self.peers.items()) if key not in (asked_by, change[0]) and peer.gets_beacons
        ]
        for peer in peers:
            peer.asks.add(change)
        by = asked_by if asked_by is not None else ticket or 0
        return self.receipts.begin(change, (peer.key for peer in peers), at.clock, within, by)

    def _read_receipts(self, peer: Peer, reply: PeerReply) -> None:
        told = _marks(reply.marks)
        peer.asks -= {asked for asked in peer.asking if told.get(asked[0], NOTHING) >= asked[1]}
        peer.asking = ()
        for confirmed in reply.receipts:
            self.receipts.confirmed(peer.key, confirmed)

    def _close_receipts(self, at: ev.Instant) -> list[Instruction]:
        done: list[Instruction] = []
        for change, asked in self.receipts.close(at.clock):
            for peer in self.peers.values():
                peer.asks.discard(change)
            if asked.ticket is not None:
                reply = self.visible.pop(asked.ticket)
                line = _visibility(asked, at.clock)
                done.append(replace(reply, message=(*reply.message, line), standing=self.standing()))
            elif asked.asked_by in self.peers:
                self.peers[asked.asked_by].confirms[change] = receipt(change, asked)
        return done

    # -- time ----------------------------------------------------------------------------------------------

    def _tick(self, event: ev.Tick) -> list[Instruction]:
        change = Change()
        at = event.at
        away = [self._away(peer, at.clock) for peer in self.peers.values() if peer.state.connected]
        cut_off = 2 * sum(away) > len(away)
        swept = self.leases.sweep(at.clock, cut_off=cut_off, alone=self._alone(at.clock))
        for node in swept.offline:
            row = row_of(event.rows, self.key, node)
            if row is not None:
                self._write_status(change, row, at)
        for node in swept.dropped:
            row = row_of(event.rows, self.key, node)
            if row is not None:
                self.ledger.bury(change, row, at.clock, None)
        if at.clock >= self._chores_at:
            self._do_chores(change, event.rows, at)
        self._stale = tuple(self.ages.stale(self.ages.alive, at.clock))
        self._raised(change.raised, source=None)
        return change.saves()

    def _away(self, peer: Peer, clock: float) -> bool:
        """Whether the last that was tried with it failed, or beacons that were due from it did not come."""
        return peer.away or (peer.gets_beacons and clock - peer.heard_at > MISSED * self.timing.beacon)

    def _alone(self, clock: float) -> bool:
        """Whether nobody at all was heard for a lease: a registry that is cut off does not empty itself."""
        return clock - self._last_heard > self.timing.lease

    @property
    def _chores_every(self) -> float:
        return min(self.timing.grace, self.timing.tombstones) / CHORES

    def _do_chores(self, change: Change, rows: ev.Rows, at: ev.Instant) -> None:
        """Give up what nothing was heard of for too long, unless nothing is heard at all (rules 6 and 12)."""
        lapsing = sorted(self._lapsing(at))
        strangers = self._strangers(at)
        self._chores_at = at.clock + self._chores_every
        self.ledger.clean_up(change, self._forgettable(at.clock))
        self.ledger.abandon(change, self.peers.keys())
        for key in lapsing:
            self._forget(change, self.peers[key], rows, at.clock)
        for key, peer in sorted(self.peers.items()):
            silent = timedelta(seconds=at.clock - peer.heard_at + peer.silent)
            peer.state = replace(peer.state, seen=later(at.utc, -silent))
            change.peers[key] = peer.durable()
        for node in self._adopted(strangers):
            row = row_of(rows, self.key, node)
            if row is not None and _seconds_between(row.heartbeat, at.utc) > self.timing.grace:
                self.ledger.bury(change, row, at.clock, None)
        lately = at.clock - min(STALE, self.timing.grace)
        linked = any(not peer.away and (peer.stands or peer.heard_at >= lately) for peer in self.peers.values())
        for origin in sorted(self.parts.keys() - {self.key}):
            if linked and (self.ages.dead(origin, at.clock) or self._beyond_repair(origin)):
                self._give_up(change, origin)
            elif origin in self.ages.alive:
                seen = later(at.utc, timedelta(seconds=-self.ages.of(origin, at.clock)))
                self.parts[origin] = change.parts[origin] = replace(self.parts[origin], seen=seen)

    def _beyond_repair(self, origin: Key) -> bool:
        """Whether a copy is in doubt and no peer has another; should the origin still be there, it tells it anew."""
        others = (peer.acked.get(origin, NOTHING) for peer in self.peers.values() if peer.gets_beacons)
        return origin in self.ledger.doubted and not any(mark.seq for mark in others)

    def _forgettable(self, clock: float) -> float:
        """Tombstones that are older than that may go: every origin was there after them, to bury what it has itself."""
        others = (self.ages.alive.get(origin, clock) for origin in self.ledger.told if origin != self.key)
        return min((clock - self.timing.tombstones, *(alive - BEACONS * self.timing.beacon for alive in others)))

    def _give_up(self, change: Change, origin: Key) -> None:
        self.ledger.drop(change, origin)
        self.ages.forget(origin)
        for peer in self.peers.values():
            peer.acked.pop(origin, None)
            peer.behind.discard(origin)

    def _lapsing(self, at: ev.Instant) -> set[Key]:
        """The peers that nobody configured and nothing was heard of for too long."""
        if at.clock < self._chores_at or self._alone(at.clock):
            return set()
        limit = at.clock - self.timing.grace
        return {key for key, peer in self.peers.items() if not peer.configured and peer.heard_at - peer.silent < limit}

    def _strangers(self, at: ev.Instant) -> set[Key]:
        """Who told of nodes and never connected; nobody hears whether they are still there."""
        if at.clock < self._chores_at or self._alone(at.clock):
            return set()
        return set(self.ledger.adopted.values()) - self.peers.keys()

    # -- what is owed --------------------------------------------------------------------------------------

    def _raised(self, origins: set[Key], source: Peer | None) -> list[Peer]:
        """Note for every peer what it is owed now; the peers that are told, by url. The source has its news already."""
        told = []
        for key in sorted(self.peers) if origins else ():
            peer = self.peers[key]
            for origin in origins & self.parts.keys():
                # What is still owed of the own part is not what an older service just told.
                if peer is source and not peer.state.deltas and origin not in peer.behind:
                    peer.acked[origin] = self.parts[origin].version
                peer.note(origin, self.parts[origin].version)
            if peer.unmoved and peer.failures <= 1 and peer.behind & origins:
                # What it answers and does not take is no reason to keep from it what is new; that it is away, is.
                peer.go_on(self._clock)
            if peer is not source and peer.told and peer.behind & origins:
                told.append(peer)
        return told

    def _measure(self, peer: Peer, clock: float, origins: Set[Key]) -> None:
        """What the peer is owed of these origins; a provider offers its own part alone, nobody what is given up."""
        for origin in origins & self.parts.keys():
            if (origin == self.key or not self.profile.provider) and self._tells(origin, clock):
                peer.note(origin, self.parts[origin].version)
            else:
                peer.behind.discard(origin)

    def _tells(self, origin: Key, clock: float) -> bool:
        return origin not in self.ledger.doubted and not self.ages.dead(origin, clock)

    def _due(self, at: ev.Instant) -> list[Instruction]:
        """The messages whose time has come, one for each peer, and when the next is due."""
        done = self._close_receipts(at)
        waiting = [self.receipts.due(), self.leases.sweep_at, self._chores_due()]
        for key in sorted(self.peers):
            peer = self.peers[key]
            if peer.busy:
                continue
            errand = peer.due(at.clock)
            if errand is None:
                waiting.append(peer.next_due())
                continue
            peer.sending = errand
            peer.not_before = at.clock + GATHERING
            done.append(self._send(peer, errand, at))
        for leaving in [leaving for leaving in self.leaving if not leaving.waiting or leaving.until <= at.clock]:
            self.leaving.remove(leaving)
            done.append(Reply(leaving.ticket, (), self.standing()))
        waiting += [leaving.until for leaving in self.leaving]
        if moments := [moment for moment in waiting if moment is not None]:
            done.append(Wake(min(moments)))
        return done

    def _chores_due(self) -> float | None:
        """A registry that knows of nobody else, and remembers nothing that is gone, has no chores."""
        some = len(self.parts) > 1 or self.peers or self.ledger.graves or self.ledger.adopted
        return self._chores_at if some else None

    def _send(self, peer: Peer, errand: Errand, at: ev.Instant) -> Send:
        to = (peer.key, peer.state.address)
        match errand:
            case "farewell":
                version = peer.state.farewell if peer.state.farewell != NOTHING else None
                return Send(*to, "/disconnect", FAREWELL_DEADLINE, version=version)
            case "beat":
                return Send(*to, "/heartbeat", DEADLINE)
            case "beacon":
                self._schedule_beacon(peer, at)
                return Send(*to, "/update/node", DEADLINE, Parcel("delta", ()), (), self._beacon(at))
            case "greeting" if not self.profile.registry:
                return Send(*to, "/register", DEADLINE)
            case "greeting":
                parcel = self._parcel(peer, "both", at.clock, greeting=True)
                return Send(*to, "/connect", DEADLINE, parcel, self.ledger.marks(), resumes=peer.resumes)
        peer.confirming = tuple(sorted(peer.confirms))[:MOST_TOLD]
        confirms = tuple(peer.confirms[change] for change in peer.confirming)
        peer.asking = tuple(change for change in sorted(peer.asks) if change in self.receipts.open)[:MOST_TOLD]
        asks = tuple(self.receipts.ask(change, at.clock) for change in peer.asking)
        parcel = self._parcel(peer, "delta" if peer.state.deltas else "plain", at.clock)
        marks = () if peer.state.deltas else None
        return Send(*to, "/update/node", DEADLINE, parcel, marks, asks=asks, receipts=confirms)

    def _parcel(self, peer: Peer, form: Form, clock: float, *, greeting: bool = False) -> Parcel:
        """What a message to this peer carries; outside a handshake, no records are told to whom they came from."""
        peer.behind = {origin for origin in peer.behind if self._tells(origin, clock)}
        unsaid = None if greeting else peer.key
        told = sorted(peer.behind)[:MOST_TOLD] if peer.told or greeting else ()
        return Parcel(form, tuple(self._range(peer, origin, clock) for origin in told), unsaid)

    def _range(self, peer: Peer, origin: Key, clock: float) -> Range:
        base = peer.acked.get(origin, NOTHING)
        if not self.parts[origin].follows(base):
            base = NOTHING
        age = self.ages.told(origin, clock)
        page = peer.pages.get(origin)
        if page is not None and page.base == base and self.parts[origin].goes_on(base, page.to, page.floor):
            return Range(origin, base, page.to, page.floor, age)
        return Range(origin, base, base, self.parts[origin].floor, age)

    # -- peers ---------------------------------------------------------------------------------------------

    def _met(self, message: PeerMessage) -> Peer:
        key = canonical(message.url)
        return self.peers.setdefault(key, Peer(PeerState(key, message.url, message.url, message.organization)))

    def _heard(self, peer: Peer, at: ev.Instant, *, sign: bool = False) -> None:
        """A sign of life; `sign`: it was nothing else, which the time of the last message does not count."""
        peer.heard(at.clock)
        self._last_heard = at.clock
        if peer.key in self.parts:
            self.ages.heard(peer.key, at.clock)
        if peer.stands and not sign:
            peer.last = at.utc


def _after_all(rows: Iterable[Row], at: ev.Instant) -> str:
    """Now, and yet later than all that is known of a node (PROTOCOL.md, "The small print")."""
    return max(at.utc, _later_than(rows) or "")


def _later_than(rows: Iterable[Row]) -> str | None:
    """A time that is later than all that is known of a node, if anything has one."""
    newest = max((row.modified for row in rows if row.modified), default="")
    return later(newest, A_MICROSECOND) if newest else None


def _refuse_ahead(node: Node | Registration, at: ev.Instant, *place: str) -> None:
    limit = later(at.utc, A_DAY)
    for name in ("created", "modified", "heartbeat"):
        if (getattr(node, name) or "") > limit:
            expected = "expected a time that is not more than a day ahead of now"
            raise InvalidMessageError.at(*place, name, expected=expected)


def _named(message: PeerMessage) -> Iterable[Key]:
    """The nodes that a message names, each once, in its order."""
    told = (canonical(url) for delta in message.deltas for url, record in delta.records.items() if not record.gone)
    return dict.fromkeys((*nodes_by_key(message.nodes), *told))


def _spaced(time: str) -> str:
    """A time as messages show it, with a space for the T."""
    return time.replace("T", " ")


def _seconds_between(then: str | None, now: str) -> float:
    """The seconds from `then` to `now`; none when the clock went back meanwhile, or nothing is known."""
    if then is None or then >= now:
        return 0.0
    return (datetime.fromisoformat(now) - datetime.fromisoformat(then)).total_seconds()


def _spread(at: ev.Instant) -> float:
    """A factor around 1, so that what is done again and again does not fall together: +- 20 % (rule 11)."""
    return 0.8 + 0.4 * at.chance


def _names(origins: tuple[Key, ...]) -> str:
    return f"{fingerprint(origins):016x}"


def _visibility(asked: Open, clock: float) -> str:
    """The line of a registration that waited for receipts."""
    count, of = len(asked.reached), len(asked.reached | asked.missing)
    took = f"{(clock - asked.began) * 1000:.0f} ms"
    if not asked.missing:
        return f"visible at {count} of {of} registries in {took}"
    return f"visible at {count} of {of} registries after {took}; missing: {', '.join(sorted(asked.missing))}"


def _marks(marks: dict[str, Version] | None) -> dict[Key, Version]:
    return {canonical(origin): version for origin, version in (marks or {}).items()}


def _stuck(peer: Peer, carried: Mapping[Key, Carried], told: dict[Key, Version]) -> bool:
    """Whether a peer that speaks deltas is no further than before, for anything that the message completed."""
    return any(
        part.complete
        and told.get(origin, NOTHING) < part.to
        and told.get(origin, NOTHING) <= peer.acked.get(origin, NOTHING)
        for origin, part in carried.items()
        if origin not in peer.crossed
    )
