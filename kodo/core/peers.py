"""Peers: the registries this one is connected with, and what each is owed.

FEDERATION.md, rules 7 to 9 and 11. For each peer the registry keeps what the peer has acknowledged of each origin; what
is owed to it is the difference to what is known here, never a queue. One message at a time is on its way to a peer: the
first at once, later ones gathered for a moment, failed ones after a pause that grows. With nothing to say, a beacon.

```
 configured --> greeting --answered--> standing <--> owed --> sending --Delivered--> standing
                   ^  |                   ^                      |
                   |  +--Lost: pause------+------Lost: pause-----+
                   +------------ Refused, or the peer does not know us

 any --DELETE /connect--> leaving --told--> forgotten
```

A pure node has peers too: the registries that it registers with and beats to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from kodo.core.parts import Carried
from kodo.core.receipts import Change
from kodo.models import NOTHING, Key, Receipt, Version

GATHERING = 0.1
"""Seconds for which later news to a peer is gathered into one message (rule 8: 50 to 200 ms)."""

FIRST_PAUSE, FIRST_LIMIT = 0.1, 1.5
PAUSE, PAUSE_LIMIT = 0.5, 60.0
BEAT = 1 / 3
"""The part of its lease after which a node beats again."""

_GREETINGS = ("/register", "/connect")
_FOREIGN = (200, 404, 405, 501)

Errand = Literal["greeting", "news", "beacon", "beat", "farewell"]
"""What a message to a peer is for."""


def is_foreign(route: str, status: int | None) -> bool:
    """Whether a refusal is what no registry answers to a greeting.

    A service without the role does, and other servers do; 200 is the status of a page, in place of a registry's JSON.
    """
    return route in _GREETINGS and status in _FOREIGN


@dataclass(frozen=True, slots=True)
class PeerState:
    """What is kept of a peer over a restart.

    `url` is as the peer gives it, `address` where messages to it go. `feed`: it wants our news. `deltas`: it speaks
    them (None: not known yet). `visited` is when it first connected, None if it never did. `connected`: a handshake
    with it was ever completed, in whichever direction. `farewell`: it is to be told that this registry leaves it, whose
    part is empty from that version on. `seen` is when it was last heard, by the clock of this machine.
    """

    key: Key
    url: str
    address: str
    organization: str | None = None
    feed: bool = False
    deltas: bool | None = None
    visited: str | None = None
    connected: bool = False
    farewell: Version | None = None
    acked: tuple[tuple[Key, Version], ...] = ()
    seen: str | None = None


@dataclass(slots=True)
class Peer:
    """A peer as the running registry sees it.

    `met`: a sign of life came since this service started; `silent`: how many seconds before that none had come.
    `behind` are the origins of which it is owed something. `crossed` are those of which it told news while a message to
    it was on its way, whose answer may be older. `asks` are asks for receipts to be passed on to it, `asking` those on
    their way; `confirms` the receipts that it is to get, `confirming` those on their way. `unmoved`: how many of its
    last answers had taken nothing of what they were told. `stopped` is the status (401, 403) for which it is not asked
    again. `foreign`: what answers there is no registry. `next_beacon`: when the next is due, to a peer that gets them;
    likewise `next_beat`, to a registry that wants them, for which it named a `lease`. Until `left_alone` it is not
    asked, as it said.
    """

    state: PeerState
    acked: dict[Key, Version] = field(default_factory=dict)
    pages: dict[Key, Carried] = field(default_factory=dict)
    behind: set[Key] = field(default_factory=set)
    crossed: set[Key] = field(default_factory=set)
    asks: set[Change] = field(default_factory=set)
    asking: tuple[Change, ...] = ()
    confirms: dict[Change, Receipt] = field(default_factory=dict)
    confirming: tuple[Change, ...] = ()
    configured: bool = False
    greet: bool = False
    stands: bool = False
    met: bool = False
    last: str | None = None
    heard_at: float = 0.0
    silent: float = 0.0
    sending: Errand | None = None
    answering: int = 0
    failures: int = 0
    unmoved: int = 0
    not_before: float = 0.0
    left_alone: float = 0.0
    next_beacon: float = 0.0
    next_beat: float | None = None
    lease: float | None = None
    stopped: int | None = None
    foreign: bool = False

    @classmethod
    def restored(cls, state: PeerState) -> Peer:
        """The peer as it was saved."""
        return cls(state, acked=dict(state.acked))

    @property
    def key(self) -> Key:
        return self.state.key

    @property
    def connected(self) -> bool:
        """Whether the two were ever connected, or this node registered there since it started."""
        return self.stands or self.state.connected

    @property
    def told(self) -> bool:
        """Whether news goes to this peer."""
        return self.state.feed and self.state.connected and self.state.farewell is None

    @property
    def errand(self) -> Errand | None:
        """What is to be said to it, if anything beside beacons and beats."""
        if self.state.farewell is not None:
            return "farewell"
        if self.stopped is not None:
            return None
        if self.greet:
            return "greeting"
        return "news" if self.confirms or (self.told and (self.behind or self.asks)) else None

    @property
    def busy(self) -> bool:
        """Whether a message to it is on its way: there is one at a time."""
        return self.sending is not None or self.answering > 0

    @property
    def first_contact(self) -> bool:
        """Whether this service has yet to get through to the peer for the first time since it started."""
        return self.greet and not self.stands

    @property
    def resumes(self) -> bool:
        """Whether a greeting takes up what there was; who is configured is asked anew at each start."""
        return self.stands or not self.configured

    @property
    def away(self) -> bool:
        """Whether the last that was tried with it failed."""
        return self.failures > 0

    @property
    def quiet(self) -> bool:
        """Whether all is said. News that is owed counts; beacons, beats and a first contact never answered do not."""
        if self.state.farewell is None and (self.first_contact or self.stopped is not None):
            return not (self.told and self.behind)
        return self.errand is None and self.sending in (None, "beacon", "beat")

    def due(self, clock: float) -> Errand | None:
        """What is to be said to it now, or at `next_due`."""
        if self.errand is not None:
            return self.errand if self.not_before <= clock else None
        at = self._next_sign()
        if at is None or max(at, self.not_before) > clock:
            return None
        return "beat" if self.next_beat is not None else "beacon"

    def next_due(self) -> float | None:
        """When something is to be said to it next, as far as is known."""
        at = self.not_before if self.errand is not None else self._next_sign()
        return None if at is None else max(at, self.not_before)

    def _next_sign(self) -> float | None:
        if self.stopped is not None:
            return None
        return self.next_beat if self.next_beat is not None else self.next_beacon if self.gets_beacons else None

    @property
    def gets_beacons(self) -> bool:
        """Whether the two tell each other that they are there: both are registries and speak deltas."""
        return self.told and bool(self.state.deltas)

    def durable(self) -> PeerState:
        """The state to save."""
        return replace(self.state, acked=tuple(sorted(self.acked.items())))

    def note(self, origin: Key, mark: Version) -> None:
        """`origin` is at `mark` here; the peer may have to be told. A part that was always empty is no news."""
        acked = self.acked.get(origin, NOTHING)
        if origin != self.key and mark > acked and (mark.seq or acked != NOTHING):
            self.behind.add(origin)
        else:
            self.behind.discard(origin)

    def heard(self, clock: float) -> None:
        """A sign of life ends every pause, except that of a peer which answers but takes nothing."""
        self.heard_at, self.silent = clock, 0.0
        self.met = True
        self.foreign = False
        self.stopped = None
        if not self.behind:
            self.unmoved = 0
        if self.failures:
            self.failures = 0
            if not self.unmoved:
                self.not_before = max(clock, self.left_alone)

    def go_on(self, clock: float) -> None:
        """The next page of what it was told is no other news: it is not gathered with anything."""
        self.not_before = min(self.not_before, max(clock, self.left_alone))

    def pause(self, clock: float, chance: float, *, refused: bool = False, at_least: float = 0.0) -> None:
        """Wait before the next try: growing, with jitter; a first contact at most 1.5 s, unless refused (rule 9).

        It grows also while the peer answers and takes nothing: a sign of life is no progress then.

        A beat is never put off for longer than beats are apart: the registry, back again, counts on it.
        """
        grown = 2.0 ** min(max(self.failures, self.unmoved), 10)
        self.failures += 1
        if self.configured and self.first_contact and not refused:
            delay = (0.5 + chance / 2) * min(FIRST_LIMIT, FIRST_PAUSE * grown)
        else:
            limit = PAUSE_LIMIT if self.lease is None else min(PAUSE_LIMIT, self.lease * BEAT)
            delay = chance * min(limit, PAUSE * grown)
        self.left_alone = clock + at_least
        self.not_before = clock + max(delay, at_least)
