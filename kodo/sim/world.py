"""A mesh without I/O: services on the real core, messages in flight, one clock, one seed.

`World` owns what happens around `Registry.step` in a simulation: the disks, the wire, the clocks and the faults. Its
rules:

- Time is a whole number of microseconds that jumps to the next thing to happen; the core is given seconds. What happens
  at the same moment happens in the order in which it was arranged. Every random number comes from one seed: the same
  calls give the same run, to the byte.
- A step's Saves are on the disk before any of its Replies and Sends leaves. A crash takes what was lazy with it.
- Messages are real JSON, written by one core and read by the other; equal bytes are parsed once.
- A request is answered once, or lost when its deadline has passed. A double is answered twice; the first answer counts.
- Faults are plain data (`faults`), and what they did is counted (`effects`).

Services are named by a word, `r1`, which stands for `http://r1:1`, or by a url.
"""

from __future__ import annotations

import gc
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from math import ceil
from typing import Any, Literal, TypeAlias

import orjson
from pydantic import BaseModel, ValidationError

from kodo.core import events as ev
from kodo.core.instructions import Instruction, Reply, Save, Send, Wake
from kodo.core.peers import Peer
from kodo.core.registry import Profile, Registry, Timing
from kodo.errors import KodoError, SimulationError
from kodo.models import Key, Node, Registration, canonical, format_time
from kodo.sim import wire
from kodo.sim.faults import Faults, Link, Way
from kodo.sim.old import OldService, Outgoing
from kodo.sim.store import Content, Disk, Store, Stored
from kodo.sim.wire import Response

EPOCH = datetime(2024, 12, 25, 18, tzinfo=UTC)
"""The moment at which every world begins."""
SECOND = 1_000_000
LIMIT = 2**23
"""Bytes of nodes that a message carries at most."""
RARELY = (500_000, 20, 100)
"""Thresholds of Python's garbage collector while a world runs."""
IN_FLIGHT = "in flight"
OLD_DEADLINE = 10.0
"""Seconds after which an older service takes a message of its own for lost."""
PARSED = 1024
"""Bodies that are remembered, parsed, for those to whom the same is sent."""

Act = Callable[..., None]
Body: TypeAlias = bytes


@dataclass(slots=True)
class Message:
    """A message in the log: `kind` is its route, or `beacon`; `outcome` is what became of it so far.

    `at` is when it left, `ended` when its sender knew; what has not happened is None.
    """

    at: float
    source: Key
    target: Key
    route: str
    kind: str
    bytes: int
    nodes: int
    outcome: str = IN_FLIGHT
    body: Body | None = None
    arrived: float | None = None
    answered: float | None = None
    ended: float | None = None


@dataclass(slots=True)
class Member:
    """A service of the mesh. `life` counts its starts, `held` is what waits while it is paused, `skew` is in µs."""

    key: Key
    url: str
    skew: int = 0
    up: bool = False
    paused: bool = False
    life: int = 0
    held: deque[tuple[Act, tuple[Any, ...]]] = field(default_factory=deque)


@dataclass(slots=True)
class Site(Member):
    """A service on the core, with its disk; `own` is what it offers itself, if it is a node."""

    profile: Profile = field(kw_only=True)
    registry: Registry = field(kw_only=True)
    disk: Disk = field(kw_only=True)
    own: Node | None = field(default=None, kw_only=True)
    wake: int | None = None


@dataclass(slots=True)
class OldSite(Member):
    """An older service."""

    service: OldService = field(kw_only=True)


@dataclass(slots=True)
class Asked:
    """Something that was asked of a service, and the Reply, once there is one."""

    reply: Reply | None = None

    def take(self, reply: Reply) -> None:
        """The Reply is there."""
        self.reply = reply


@dataclass(slots=True)
class _Exchange:
    """A request on its way: who asked in which life, by when the answer must be there, and who reads it."""

    source: Member
    target: Key
    life: int
    deadline: int
    body: bytes
    message: Message
    read: Callable[[Response | None], None]
    flies: bool = False
    done: bool = False
    doomed: bool = False


class World:
    """Services that speak with each other under `faults`.

    `timing` says how long things last, `page` are the bytes of nodes in a message that is no handshake, `disk` makes
    the store of a service from its url, `log` is how many messages are kept (None: all), with their bodies if `bodies`.
    """

    def __init__(  # noqa: PLR0913, one for each thing that a world may be given
        self,
        seed: int = 0,
        *,
        timing: Timing | None = None,
        page: int = LIMIT,
        disk: Callable[[str], Disk] | None = None,
        log: int | None = None,
        bodies: bool = False,
    ) -> None:
        texts: dict[str, str] = {}
        self.random = random.Random(seed)
        self.now = 0
        self.timing = timing or Timing()
        self.page = page
        self.bodies = bodies
        self.faults = Faults()
        self.members: dict[Key, Member] = {}
        self.messages: deque[Message] = deque(maxlen=log)
        self.sent: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()
        self.steps = 0
        self._disk: Callable[[str], Disk] = disk or (lambda url: Store(url, texts))
        self.names: dict[Key, str] = {}
        self._names: dict[Key, Key] = {}
        self._busy: set[Key] = set()
        self._flying = 0
        self._future: list[tuple[int, int, Act, tuple[Any, ...]]] = []
        self._order = count()
        self._tickets = count(1)
        self._waiting: dict[int, Callable[[Reply], None]] = {}
        self._parsed: dict[tuple[str, bytes], BaseModel] = {}
        self._stopped: list[tuple[_Exchange, Act, tuple[Any, ...]]] = []

    # -- building ------------------------------------------------------------------------------------------

    @classmethod
    def from_graph(cls, graph: Any, seed: int = 0, **kwargs: Any) -> World:
        """A registry for each of `graph.nodes`, a connection for each of `graph.edges`, opened by its later end.

        A registry is called as its node, with an `r` before a number. Anything with `nodes` and `edges` will do.
        """
        world = cls(seed, **kwargs)
        place = {node: at for at, node in enumerate(graph.nodes)}
        opens: dict[Any, list[Any]] = {node: [] for node in place}
        for one, other in (edge[:2] for edge in graph.edges):
            later, earlier = sorted((one, other), key=lambda node: place[node], reverse=True)
            opens[later].append(earlier)
        for node in place:
            world.add(_named(node), [_named(other) for other in opens[node]])
        return world

    def add(  # noqa: PLR0913, one for each thing that a service can be
        self,
        name: str,
        connect: Iterable[str] = (),
        *,
        provider: bool = False,
        registry: bool = True,
        flows: Iterable[str] | Node | None = None,
        skew: float = 0.0,
        timing: Timing | None = None,
    ) -> Key:
        """Start a registry, a provider, or (with `flows`) a node or a registry that is one; it is at `http://NAME:1`.

        `flows` are names, or the whole node; `timing` is that of the world unless it is given.
        """
        url = _url(name)
        profile = Profile(url, registry, provider, tuple(map(_url, connect)), timing or self.timing)
        own = flows if flows is None or isinstance(flows, Node) else Node(url=url, flows=_flows(flows))
        site = Site(canonical(url), url, profile=profile, registry=Registry(profile), disk=self._disk(url), own=own)
        self._join(site)
        if skew:
            self.set_clock(name, skew)
        self._start(site)
        return site.key

    def add_old(self, name: str, connect: Iterable[str] = ()) -> Key:
        """Start an older service at `http://NAME:1`, which knows the fixed part of the protocol alone."""
        url = _url(name)
        member = OldSite(canonical(url), url, service=OldService(url, tuple(map(_url, connect))))
        self._join(member)
        self._start(member)
        return member.key

    def alias(self, name: str, of: str) -> None:
        """Let a service be reached under another name too."""
        self._names[key_of(name)] = self.member(of).key

    def called(self, url: str) -> str:
        """What the service or node at this url is called in words: by its name in `names`, else as its url says."""
        return self.names.get(Key(url)) or name_of(url)

    def _join(self, member: Member) -> None:
        if member.key in self.members:
            raise SimulationError(f"expected a name that is not taken; {self.called(member.key)} is a service already")
        self.members[member.key] = member

    @property
    def sites(self) -> dict[Key, Site]:
        """The services on the core."""
        return {key: member for key, member in self.members.items() if isinstance(member, Site)}

    def member(self, name: str) -> Member:
        """The service of this name or url."""
        key = key_of(name)
        member = self.members.get(self._names.get(key, key))
        if member is None:
            known = ", ".join(map(self.called, self.members)) or "there is none yet"
            raise SimulationError(f"expected the name of a service of this mesh: {known}")
        return member

    def site(self, name: str) -> Site:
        """The service of this name or url, which must be one on the core."""
        member = self.member(name)
        if not isinstance(member, Site):
            raise SimulationError(f"expected a service on the core; {self.called(member.key)} is an older service")
        return member

    # -- lives ---------------------------------------------------------------------------------------------

    def crash(self, name: str, *, keep_disk: bool = True) -> None:
        """The service stops at once; what it had not made durable is gone, and all of its disk if told so."""
        member = self.member(name)
        member.up = member.paused = False
        member.held.clear()
        self._busy.discard(member.key)
        self.effects["crash"] += 1
        if isinstance(member, Site):
            self.effects["unsaved"] += member.disk.rollback()
            if not keep_disk:
                member.disk = self._disk(member.url)
                self.effects["lost disk"] += 1
        elif isinstance(member, OldSite) and not keep_disk:
            member.service.nodes.clear()

    def restart(self, name: str, *, keep_disk: bool = True, disk: Disk | None = None) -> None:
        """The service starts again (it crashes first if it is up): on its disk, without it, or on a copy of it."""
        member = self.member(name)
        if member.up or not keep_disk:
            self.crash(name, keep_disk=keep_disk)
        if isinstance(member, Site):
            if disk is not None:
                member.disk = disk.copy()
                self.effects["copied disk"] += 1
            disk = member.disk
            member.registry = Registry(member.profile, disk.parts(), disk.peers(), disk.own_rows(), disk.contents())
        self._start(member)

    def connect(self, name: str, *others: str) -> None:
        """The service starts again, on its disk, with these services in its `connect` beside those that are there."""
        member = self.member(name)
        urls = tuple(self.member(other).url for other in others)
        if isinstance(member, OldSite):
            member.service.connect = tuple(dict.fromkeys((*member.service.connect, *urls)))
        elif isinstance(member, Site):
            connect = tuple(dict.fromkeys((*member.profile.connect, *urls)))
            member.profile = replace(member.profile, connect=connect)
        self.restart(name)

    def change(self, name: str, profile: Profile, own: Node | None) -> None:
        """What the service is, and offers itself, from its next start on."""
        site = self.site(name)
        site.profile, site.own = profile, own

    def mend(self, ways: dict[Link, Way]) -> None:
        """Let other `Faults.ways` hold. What waits at a cut, and is still waited for, looks again."""
        self.faults.ways = ways
        stopped, self._stopped = self._stopped, []
        for exchange, act, given in stopped:
            if not exchange.done:
                exchange.message.outcome = IN_FLIGHT
                self._at(self.now, act, *given)

    def copy_disk(self, name: str) -> Disk:
        """A copy of what the service has on its disk now."""
        return self.site(name).disk.copy()

    def pause(self, name: str) -> None:
        """The service stands still: it neither gets nor sends anything, and its timers wait, until it is resumed."""
        self.member(name).paused = True
        self._note(self.member(name))

    def resume(self, name: str) -> None:
        """The service goes on, with all that came in the meantime, in its order."""
        member = self.member(name)
        member.paused = False
        for act, given in member.held:
            self._at(self.now, act, *given)
        member.held.clear()
        self._note(member)

    def set_clock(self, name: str, skew: float) -> None:
        """Set the clock of a service so many seconds ahead, or behind; how fast time passes stays as it is."""
        self.member(name).skew = round(skew * SECOND)

    def _start(self, member: Member) -> None:
        member.up = True
        member.life += 1
        if isinstance(member, Site):
            member.wake = None
            at = self._instant(member)
            unix = int((EPOCH + timedelta(microseconds=self.now + member.skew)).timestamp())
            nonce = f"{self.random.getrandbits(64):016x}"
            self.step(member.key, ev.Start(at, own=member.own, unix=unix, nonce=nonce))
        elif isinstance(member, OldSite):
            member.service.start()
            self._empty(member)

    # -- doing ---------------------------------------------------------------------------------------------

    def register(self, name: str, node: str, flows: Iterable[str] = ("a",)) -> Sequence[str]:
        """A node registers, once; what the service says to it."""
        member = self.member(name)
        if not member.up or member.paused:
            raise SimulationError(f"expected a service that runs; start or resume {self.called(member.key)} first")
        body = {"url": _url(node), "flows": _flows(flows)}
        if isinstance(member, OldSite):
            said = member.service.receive("/register", body, self._utc(member))
            self._empty(member)
            lines: list[str] = said["message"]
            return lines
        return self.tell(name, Registration(**body))

    def tell(self, name: str, registration: Registration) -> Sequence[str]:
        """A node registers, once, with all that it is; what the service on the core says to it."""
        asked = self._ask(self.site(name), partial(ev.Register, node=registration))
        return () if asked.reply is None else asked.reply.message

    def register_and_wait(self, name: str, node: str, flows: Iterable[str], wait: float) -> Asked:
        """A node registers, to be answered once every connected registry has it, or after `wait` seconds."""
        body = Registration(url=_url(node), flows=_flows(flows))
        return self._ask(self.site(name), partial(ev.Register, node=body, wait=wait))

    def leave(self, name: str) -> Asked:
        """The service leaves the mesh; it is answered once all that it was connected with were told."""
        return self._ask(self.site(name), ev.Leave)

    def _ask(self, site: Site, event: Callable[..., ev.Event]) -> Asked:
        """Step an event that will be answered, now or later."""
        asked, ticket = Asked(), next(self._tickets)
        self._waiting[ticket] = asked.take
        try:
            self.step(site.key, event(self._instant(site), ticket=ticket))
        except KodoError:
            self._waiting.pop(ticket)
            raise
        return asked

    def step(self, key: Key, event: ev.Event) -> list[Instruction]:
        """Step one service and carry out what it wants; the Reply is for whoever asks."""
        site = self.site(key)
        if isinstance(event, ev.Concerning):
            event = replace(event, rows=site.disk.rows(site.registry.concerns(event)))
        done = site.registry.step(event)
        self.steps += 1
        saves = [instruction for instruction in done if isinstance(instruction, Save)]
        self._save(site, saves)
        self.stepped(site, saves)
        self._note(site)
        for instruction in done:
            match instruction:
                case Send():
                    self._send(site, instruction)
                case Wake():
                    self._wake(site, instruction.at)
                case Reply():
                    self._waiting.pop(instruction.ticket, _ignore)(instruction)
        return done

    def stepped(self, site: Site, saves: Sequence[Save]) -> None:
        """Called after every step, when its Saves are written and nothing has left yet: the place for checks."""

    def leaving(self, message: Message, body: dict[str, Any]) -> None:
        """Called for every message that a service on the core sends, before anything happens to it."""

    def run(self, seconds: float) -> None:
        """Let everything happen that happens within so many seconds."""
        end = self.now + round(seconds * SECOND)
        with _undisturbed():
            while self._future and self._future[0][0] <= end:
                self._next()
        self.now = end

    def settle(self, within: float = 60.0) -> float:
        """Run until nothing is on its way or owed between services that run; how many seconds it took.

        Raises `SimulationError`, which says what is missing, when it takes longer than `within` seconds.
        """
        began, end = self.now, self.now + round(within * SECOND)
        if self.quiet:
            return 0.0
        with _undisturbed():
            while self._busy or self._flying:
                if not self._future or self._future[0][0] > end:
                    self.now = end
                    raise SimulationError(f"expected the mesh to settle within {within:g} s, but {self._why()}")
                self._next()
        return (self.now - began) / SECOND

    def later(self, delay: float, act: Callable[[], None]) -> None:
        """Do something in so many seconds, such as changing the faults."""
        self._at(self.now + round(delay * SECOND), act)

    def _next(self) -> None:
        self.now, _, act, given = heapq.heappop(self._future)
        act(*given)

    def _at(self, at: int, act: Act, *given: Any) -> None:
        heapq.heappush(self._future, (at, next(self._order), act, given))

    # -- seeing --------------------------------------------------------------------------------------------

    @property
    def clock(self) -> float:
        """The seconds since the world began."""
        return self.now / SECOND

    @property
    def quiet(self) -> bool:
        """Whether nothing is on its way or owed between services that run."""
        for member in self.members.values():
            self._note(member)
        return not (self._busy or self._flying)

    @property
    def pushes(self) -> int:
        """How many messages with news were sent, handshakes and housekeeping apart."""
        return self.sent[wire.PUSH]

    @property
    def news(self) -> int:
        """How many messages were sent, housekeeping apart."""
        return sum(number for kind, number in self.sent.items() if kind not in wire.HOUSEKEEPING)

    def listing(self, name: str) -> list[dict[str, Any]]:
        """What a service lists, by node, then flow, without the column that names itself."""
        member = self.member(name)
        rows = member.service.listing() if isinstance(member, OldSite) else self.site(name).disk.listing()
        return [{column: value for column, value in row.items() if column != "registry"} for row in rows]

    def listings(self) -> list[list[dict[str, Any]]]:
        """What each service on the core lists."""
        return [self.listing(key) for key in self.sites]

    def listed(self) -> dict[Key, dict[str, tuple[Any, ...]]]:
        """For each service that takes news, the nodes that it lists with flows, and what tells their states apart."""
        return {key: _view(member) for key, member in self.members.items() if member.up and _takes(member)}

    def newest(self) -> dict[str, tuple[Any, ...]]:
        """The newest state of each node that any service that takes news lists."""
        newest: dict[str, tuple[Any, ...]] = {}
        for view in self.listed().values():
            for node, state in view.items():
                newest[node] = max(newest.get(node, state), state)
        return newest

    def missing(self) -> list[str]:
        """What keeps the services that run from listing the same, in words; nothing when they agree."""
        newest = self.newest()
        told = []
        for key, view in self.listed().items():
            lacks = [self.called(node) for node in sorted(newest) if node not in view]
            stale = [self.called(node) for node, state in view.items() if state != newest[node]]
            told += [f"{self.called(key)} does not list {_few(lacks)}"] if lacks else []
            told += [f"{self.called(key)} lists an old state of {_few(stale)}"] if stale else []
        return told

    def _why(self) -> str:
        reasons = [f"{self.called(key)} is paused" for key, member in self.members.items() if member.paused]
        for key in sorted(self._busy):
            reasons += self._owed(self.members[key])
        reasons += self.missing()
        return f"{_few(reasons, '; ')}. Heal what is broken ({self._broken()}), or wait longer"

    def _owed(self, member: Member) -> list[str]:
        name = self.called(member.key)
        if not isinstance(member, Site):
            return [f"{name} waits for answers"]
        owed = []
        for key, peer in sorted(member.registry.peers.items()):
            if not peer.quiet or self._unmet(peer):
                news = _few([self.called(key) for key in sorted(peer.behind)])
                what = "a handshake" if peer.greet else f"news of {news}"
                owed.append(f"{name} owes {self.called(key)} {what} ({self._last(member.key, key)})")
        return owed

    def _last(self, source: Key, target: Key) -> str:
        for message in reversed(self.messages):
            if (message.source, message.target) == (source, target):
                return f"{message.route} at {message.at:g} s: {message.outcome}"
        return "nothing sent yet"

    def _broken(self) -> str:
        cuts = [f"{self.called(a)}->{self.called(b)}" for a, b in sorted(self.faults.cuts)]
        down = [self.called(key) for key, member in self.members.items() if not member.up]
        chances = [name for name in ("loss", "answer_loss", "doubles") if getattr(self.faults, name)]
        told = [f"cut {_few(cuts)}"] * bool(cuts) + [f"down {_few(down)}"] * bool(down) + chances
        return ", ".join(told) or "no fault is set"

    # -- saving, waking, idling ----------------------------------------------------------------------------

    def _save(self, site: Site, saves: list[Save]) -> None:
        for save in saves:
            site.disk.write(save)
        if not all(save.lazy for save in saves):
            site.disk.commit()

    def _note(self, member: Member) -> None:
        """Note whether a service still has something to say; one that stands still is not waited for."""
        idle = self._idle(member) if isinstance(member, Site) else isinstance(member, OldSite) and member.service.idle
        if idle or member.paused or not member.up:
            self._busy.discard(member.key)
        else:
            self._busy.add(member.key)

    def _idle(self, site: Site) -> bool:
        return not any(not peer.quiet or self._unmet(peer) for peer in site.registry.peers.values())

    def _unmet(self, peer: Peer) -> bool:
        """Whether a first contact is still to come, with a service that runs: the core waits for none, a world does."""
        if not peer.first_contact:
            return False
        key = canonical(peer.state.address)
        other = self.members.get(self._names.get(key, key))
        return other is not None and other.up

    def _wake(self, site: Site, at: float) -> None:
        """Arrange a Tick; it replaces the one that was arranged before."""
        moment = max(ceil(at * SECOND), self.now + 1)
        if site.wake != moment:
            site.wake = moment
            self._at(moment, self._tick, site, site.life, moment)

    def _tick(self, site: Site, life: int, moment: int) -> None:
        stands = site.life == life and site.up and site.wake == moment
        if stands and not self._held(site, self._tick, site, life, moment):
            site.wake = None
            self.step(site.key, ev.Tick(self._instant(site)))

    def _held(self, member: Member, act: Act, *given: Any) -> bool:
        """Whether a service is paused; then this waits until it is resumed."""
        if member.paused:
            member.held.append((act, given))
            self.effects["pause"] += 1
        return member.paused

    # -- requests ------------------------------------------------------------------------------------------

    def _send(self, site: Site, send: Send) -> None:
        """Write the message of a Send from what is on the disk now, and let it go."""
        content = Content({}, [], {})
        if send.parcel is not None:
            content = site.disk.content(send.parcel, LIMIT if send.route == "/connect" else self.page)
            if wire.says_nothing(send, content):
                self._at(self.now, self._unsaid, site, site.life, send, content)
                return
        own = send.route == "/register"
        body = site.disk.own_node() if own else wire.message(site.profile, send, content)
        message, written = self._message(site, canonical(send.address), send.route, body)
        self.leaving(message, body)
        self._post(site, message, written, send.deadline, lambda response: self._told(site, send, content, response))

    def _unsaid(self, site: Site, life: int, send: Send, content: Content) -> None:
        if site.life == life and site.up and not self._held(site, self._unsaid, site, life, send, content):
            self.step(site.key, wire.unsaid(send, content.carried, self._instant(site)))

    def _told(self, site: Site, send: Send, content: Content, response: Response | None) -> None:
        at = self._instant(site)
        try:
            self.step(site.key, wire.became(send, content.carried, response, at))
        except KodoError:
            self.step(site.key, wire.refused(send, at))

    def _message(self, source: Member, target: Key, route: str, body: dict[str, Any]) -> tuple[Message, bytes]:
        """Note a message in the log; the message, and its bytes."""
        written, kind = wire.dumps(body), wire.kind(route, body)
        target = self._names.get(target, target)
        message = Message(self.clock, source.key, target, route, kind, len(written), wire.told(body))
        message.body = written if self.bodies else None
        self.messages.append(message)
        self.sent[kind] += 1
        self.bytes[kind] += len(written)
        return message, written

    def _post(
        self,
        source: Member,
        message: Message,
        body: bytes,
        deadline: float,
        read: Callable[[Response | None], None],
    ) -> None:
        end = self.now + round(deadline * SECOND)
        exchange = _Exchange(source, message.target, source.life, end, body, message, read)
        if self._lost((source.key, message.target), self.faults.loss, "loss", self.faults.drops):
            message.outcome = "lost"
            self._doom(exchange)
            return
        exchange.flies = message.kind not in wire.HOUSEKEEPING
        self._flying += exchange.flies
        copies = 1 + self._happens(self.faults.doubles, "doubles")
        for _ in range(copies):
            self._at(self.now + self._delay() + self._detour(exchange), self._arrive, exchange)

    def _arrive(self, exchange: _Exchange) -> None:
        if self._stops(exchange, "request", self._arrive, exchange):
            return
        member = self.members.get(exchange.target)
        if member is None or not member.up:
            exchange.message.outcome = "no connection"
            self._at(self.now + self._delay(), self._end, exchange, None)
            return
        if self._held(member, self._arrive, exchange):
            self._doom(exchange)
            return
        exchange.message.arrived = self.clock
        if isinstance(member, OldSite):
            self._respond(member, exchange, self._old_answer(member, exchange))
        elif isinstance(member, Site):
            self._put(member, exchange)

    def _respond(self, member: Member, exchange: _Exchange, response: Response) -> None:
        """Let an answer go back to who asked."""
        way = (member.key, exchange.source.key)
        exchange.message.answered = self.clock
        if self._lost(way, self.faults.answer_loss, "answer_loss", self.faults.answer_drops):
            exchange.message.outcome = "answer lost"
            self._doom(exchange)
            return
        at = self.now + self._delay() + self._slowness(member.key) + self._detour(exchange)
        if at > exchange.deadline:
            self._doom(exchange)
        self._at(at, self._return, exchange, response)

    def _return(self, exchange: _Exchange, response: Response) -> None:
        """An answer has come all the way, if the way is what it was."""
        if not self._stops(exchange, "answer", self._return, exchange, response):
            self._end(exchange, response)

    def _detour(self, exchange: _Exchange) -> int:
        way = self.faults.ways.get((exchange.source.key, exchange.target))
        return 0 if way is None else round(way.delay * SECOND)

    def _stops(self, exchange: _Exchange, what: Literal["request", "answer"], act: Act, *given: Any) -> bool:
        """Whether a request or an answer goes no further on its way: it waits at a cut, or is lost."""
        way = self.faults.ways.get((exchange.source.key, exchange.target))
        if way is None or exchange.done:
            return False
        if way.cut:
            exchange.message.outcome = "cut"
            self.effects["cut"] += 1
            self._stopped.append((exchange, act, given))
        elif self._happens(getattr(way, what), "loss" if what == "request" else "answer_loss"):
            exchange.message.outcome = "lost" if what == "request" else "answer lost"
        else:
            return False
        self._doom(exchange)
        return True

    def _doom(self, exchange: _Exchange) -> None:
        """The answer may not be there in time: then the message is lost when its deadline has passed."""
        self._lands(exchange)
        if not exchange.doomed:
            exchange.doomed = True
            self._at(max(exchange.deadline, self.now), self._end, exchange, None)

    def _end(self, exchange: _Exchange, response: Response | None) -> None:
        """An answer is there, or there will be none."""
        self._lands(exchange)
        source = exchange.source
        if exchange.done or source.life != exchange.life or not source.up:
            return
        if self._held(source, self._end, exchange, response):
            return
        exchange.done = True
        exchange.message.ended = self.clock
        if response is not None:
            exchange.message.outcome = "delivered" if response.status == 200 else f"refused ({response.status})"
        elif exchange.message.outcome == IN_FLIGHT:
            exchange.message.outcome = "no answer in time"
            self.effects["deadline"] += 1
        exchange.read(response)

    def _lands(self, exchange: _Exchange) -> None:
        """Nothing more is to be expected of a message, until its deadline at most."""
        self._flying -= exchange.flies
        exchange.flies = False

    # -- answers -------------------------------------------------------------------------------------------

    def _put(self, site: Site, exchange: _Exchange) -> None:
        """Put a request to a service on the core, which answers now or in a later step."""
        route = wire.ROUTES.get(exchange.message.route)
        if route is None or not site.profile.registry:
            self._respond(site, exchange, Response(404))
            return
        ticket = next(self._tickets)
        self._waiting[ticket] = partial(self._reply, site, exchange)
        try:
            read = self._read(exchange.message.route, exchange.body)
            self.step(site.key, route.event(self._instant(site), ticket, read))
        except (ValidationError, KodoError) as error:
            self._waiting.pop(ticket, None)
            self._respond(site, exchange, Response(error.status if isinstance(error, KodoError) else 422))

    def _reply(self, site: Site, exchange: _Exchange, reply: Reply) -> None:
        """Write the answer of a Reply; what it offers is read now, and the core told that it is on its way."""
        content = None if reply.offer is None else site.disk.content(reply.offer, LIMIT)
        self._respond(site, exchange, Response(200, wire.dumps(wire.answer(site.profile, reply, content))))
        if content is not None and reply.to is not None:
            self.step(site.key, ev.Answered(self._instant(site), peer=reply.to, carried=content.carried))

    def _read(self, route: str, body: bytes) -> BaseModel:
        """The body as the core reads it; what is sent to several is parsed once."""
        known = self._parsed.get((route, body))
        if known is None:
            if len(self._parsed) >= PARSED:
                self._parsed.clear()
            known = self._parsed[route, body] = wire.ROUTES[route].model.model_validate_json(body)
        return known

    # -- older services ------------------------------------------------------------------------------------

    def _old_answer(self, member: OldSite, exchange: _Exchange) -> Response:
        try:
            answer = member.service.receive(exchange.message.route, orjson.loads(exchange.body), self._utc(member))
        except KodoError as error:
            return Response(error.status)
        body = wire.dumps(answer)
        self._empty(member)
        return Response(200, body)

    def _empty(self, member: OldSite) -> None:
        """Take what an older service wants sent."""
        for outgoing in member.service.outbox():
            self._at(self.now + round(outgoing.after * SECOND), self._old_send, member, member.life, outgoing)
        self._note(member)

    def _old_send(self, member: OldSite, life: int, outgoing: Outgoing) -> None:
        if member.life != life or not member.up or self._held(member, self._old_send, member, life, outgoing):
            return
        message, body = self._message(member, canonical(outgoing.address), outgoing.route, outgoing.body)
        self._post(member, message, body, OLD_DEADLINE, lambda response: self._old_told(member, outgoing, response))

    def _old_told(self, member: OldSite, outgoing: Outgoing, response: Response | None) -> None:
        if response is None or response.status >= 500 or response.status == 429:
            member.service.answered(outgoing, None, self._utc(member))
        elif response.status != 200:
            member.service.refused()
        else:
            member.service.answered(outgoing, orjson.loads(response.body), self._utc(member))
        self._empty(member)

    # -- chance --------------------------------------------------------------------------------------------

    def _happens(self, chance: float, name: str) -> bool:
        happens = chance > 0 and self.random.random() < chance
        self.effects[name] += happens
        return happens

    def _lost(self, link: Link, chance: float, name: str, drops: dict[Link, int]) -> bool:
        if link in self.faults.cuts:
            self.effects["cut"] += 1
            return True
        if drops.get(link, 0) > 0:
            drops[link] -= 1
            self.effects["drop"] += 1
            return True
        return self._happens(chance, name)

    def _delay(self) -> int:
        shortest, longest = self.faults.latency
        delay = shortest
        if longest > shortest:
            delay = self.random.uniform(shortest, longest)
            self.effects["latency"] += 1
        if self._happens(self.faults.reorder, "reorder"):
            delay += self.random.uniform(0, self.faults.reorder_by)
        return round(delay * SECOND)

    def _slowness(self, key: Key) -> int:
        slow = self.faults.slow.get(key, 0.0)
        self.effects["slow"] += slow > 0
        return round(slow * SECOND)

    # -- moments -------------------------------------------------------------------------------------------

    def _instant(self, member: Member) -> ev.Instant:
        self.effects["skew"] += member.skew != 0
        return ev.Instant(self._utc(member), self.clock, self.random.random())

    def _utc(self, member: Member) -> str:
        return format_time(EPOCH + timedelta(microseconds=self.now + member.skew))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Look for garbage less often: a large world has millions of objects, which live on, and hardly a cycle.

    At 400 registries that halves the time of a run.
    """
    before = gc.get_threshold()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def key_of(name: str) -> Key:
    """The key of the service of this name or url."""
    return canonical(_url(name))


def name_of(url: str) -> str:
    """The name of the service or node at this url, as short as a world's names are."""
    return url.removeprefix("http://").removesuffix(":1")


def _url(name: str) -> str:
    return name if "://" in name else f"http://{name}:1"


def _named(node: Any) -> str:
    return f"r{node}" if isinstance(node, int) else str(node)


def _flows(names: Iterable[str]) -> dict[str, Any]:
    return {f"/{name}": {"url": f"/{name}", "name": name} for name in names}


def _ignore(reply: Reply) -> None:
    """Who asked is gone."""


def _takes(member: Member) -> bool:
    return isinstance(member, OldSite) or (isinstance(member, Site) and _is_taker(member.profile))


def _is_taker(profile: Profile) -> bool:
    return profile.registry and not profile.provider


def _view(member: Member) -> dict[str, tuple[Any, ...]]:
    if isinstance(member, Site):
        return {url: _state(stored) for url, stored in member.disk.view().items() if stored.size}
    service = member.service if isinstance(member, OldSite) else OldService(member.url)
    nodes = (node for node in service.nodes.values() if node["flows"])
    return {node["url"]: (node["modified"], tuple(sorted(node["flows"]))) for node in nodes}


def _state(stored: Stored) -> tuple[Any, ...]:
    return (stored.row.modified or "", tuple(sorted(orjson.loads(stored.flows))))


def _few(words: Sequence[str], between: str = ", ") -> str:
    """The first few of many words."""
    most = 8
    more = [f"{len(words) - most} more"] if len(words) > most else []
    return between.join([*words[:most], *more])
