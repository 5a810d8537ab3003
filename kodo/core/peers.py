"""Peers: the registries this one is connected with, and what each is owed.

FEDERATION.md, rules 7 to 9. For each peer the registry keeps what the peer has acknowledged of each origin; what is
owed to it is the difference to what is known here, never a queue. One message at a time is on its way to a peer: the
first at once, later ones gathered for a moment, failed ones after a pause that grows.

```
 configured --> greeting --answered--> standing <--> owed --> sending --Delivered--> standing
                   ^  |                   ^                      |
                   |  +--Lost: pause------+------Lost: pause-----+
                   +------------ Refused, or the peer does not know us
```
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kodo.models import NOTHING, Key, Version

GATHERING = 0.1
"""Seconds for which later news to a peer is gathered into one message (rule 8: 50 to 200 ms)."""

FIRST_PAUSE, FIRST_LIMIT = 0.1, 1.5
PAUSE, PAUSE_LIMIT = 0.5, 60.0


@dataclass(frozen=True, slots=True)
class PeerState:
    """What is kept of a peer over a restart.

    `url` is as the peer gives it, `address` where messages to it go. `feed`: it wants our news. `deltas`: it speaks
    them (None: not known yet). `visited` is when it first connected, None if it never did. `connected`: a handshake
    with it was ever completed, in whichever direction.
    """

    key: Key
    url: str
    address: str
    organization: str | None = None
    feed: bool = False
    deltas: bool | None = None
    visited: str | None = None
    connected: bool = False
    acked: tuple[tuple[Key, Version], ...] = ()


@dataclass(slots=True)
class Peer:
    """A peer as the running registry sees it."""

    state: PeerState
    acked: dict[Key, Version] = field(default_factory=dict)
    pages: dict[Key, tuple[Version, Version]] = field(default_factory=dict)
    behind: set[Key] = field(default_factory=set)
    configured: bool = False
    greet: bool = False
    stands: bool = False
    last: str | None = None
    sending: bool = False
    answering: int = 0
    failures: int = 0
    not_before: float = 0.0

    @classmethod
    def restored(cls, state: PeerState) -> Peer:
        """The peer as it was saved."""
        return cls(state, acked=dict(state.acked))

    @property
    def key(self) -> Key:
        return self.state.key

    @property
    def told(self) -> bool:
        """Whether news goes to this peer."""
        return self.state.feed and self.state.connected

    @property
    def wants(self) -> bool:
        """Whether there is something to send."""
        return self.greet or (self.told and bool(self.behind))

    @property
    def busy(self) -> bool:
        """Whether a message to it is on its way: there is one at a time."""
        return self.sending or self.answering > 0

    @property
    def first_contact(self) -> bool:
        """Whether this service has yet to get through to the peer for the first time since it started."""
        return self.greet and not self.stands

    @property
    def quiet(self) -> bool:
        """Whether all is said. News that is owed counts; a first contact that was never answered does not."""
        if self.first_contact:
            return not (self.told and self.behind)
        return not (self.wants or self.sending)

    def durable(self) -> PeerState:
        """The state to save."""
        return replace(self.state, acked=tuple(sorted(self.acked.items())))

    def note(self, origin: Key, mark: Version) -> None:
        """`origin` is at `mark` here; the peer may have to be told."""
        if origin != self.key and mark > self.acked.get(origin, NOTHING):
            self.behind.add(origin)
        else:
            self.behind.discard(origin)

    def heard(self, clock: float) -> None:
        """A sign of life ends every pause."""
        if self.failures:
            self.failures = 0
            self.not_before = clock

    def pause(self, clock: float, chance: float, *, refused: bool = False) -> None:
        """Wait before the next try: growing, with jitter; a first contact at most 1.5 s, unless refused (rule 9)."""
        grown = 2.0 ** min(self.failures, 10)
        self.failures += 1
        if self.configured and self.first_contact and not refused:
            delay = (0.5 + chance / 2) * min(FIRST_LIMIT, FIRST_PAUSE * grown)
        else:
            delay = chance * min(PAUSE_LIMIT, PAUSE * grown)
        self.not_before = clock + delay
