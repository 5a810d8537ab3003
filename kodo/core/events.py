"""What can happen to a registry: the only input of `Registry.step`.

An event carries everything that the step needs and the core must not fetch: the moment, a random number, and
the rows that the store holds of the nodes it is about. Events are plain data; the service makes them from
requests, timers and results of sends, the simulator from its own list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kodo.core.parts import Row
from kodo.models import (
    Delta,
    Key,
    Node,
    PeerMessage,
    PeerReply,
    PlainNode,
    Registration,
    Version,
    canonical,
    nodes_by_key,
)

Rows = Mapping[Key, tuple[Row, ...]]
"""For each node that an event is about, what each part says of it; a node nobody knows has no entry."""


@dataclass(frozen=True, slots=True)
class Instant:
    """The moment of an event, on two clocks: `utc` stamps records, `clock` (monotonic, s) times retries.

    `chance` is a random number in [0, 1), the only one the step may use.
    """

    utc: str
    clock: float
    chance: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened `at` a moment."""

    at: Instant


@dataclass(frozen=True, slots=True)
class Concerning(Event):
    """An event about nodes: `rows` are what the store holds of those that `concerns` names."""

    rows: Rows = field(default_factory=dict, kw_only=True)

    def concerns(self) -> Iterable[Key]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Start(Concerning):
    """The service starts; `nonce` makes its epoch unique, `own` is itself as a node, if it is one."""

    own: Node | None
    self_key: Key
    unix: int
    nonce: str

    def concerns(self) -> Iterable[Key]:
        return (self.self_key,)


@dataclass(frozen=True, slots=True)
class Register(Concerning):
    """`POST /register`; `ticket` names the request that waits for the Reply."""

    ticket: int
    node: Registration

    def concerns(self) -> Iterable[Key]:
        return (canonical(self.node.url),)


@dataclass(frozen=True, slots=True)
class Connect(Concerning):
    """`POST /connect`."""

    ticket: int
    message: PeerMessage

    def concerns(self) -> Iterable[Key]:
        return concerned(self.message.nodes, self.message.deltas)


@dataclass(frozen=True, slots=True)
class Update(Connect):
    """`POST /update/node`."""


@dataclass(frozen=True, slots=True)
class Tick(Event):
    """The time that a Wake asked for has come."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What a message carried of one origin, on top of `base`: up to `to`; not `complete` when more pages follow."""

    base: Version
    to: Version
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Delivered(Concerning):
    """A Send was answered with success by `peer`; `greeting`: it was a handshake."""

    peer: Key
    greeting: bool
    carried: Mapping[Key, Carried]
    reply: PeerReply

    def concerns(self) -> Iterable[Key]:
        offered = self.reply.providers.nodes if self.reply.providers else {}
        return concerned(offered, self.reply.deltas)


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """The Reply to a `/connect` of `peer` was written, carrying this. Should it be lost, the peer asks again."""

    peer: Key
    carried: Mapping[Key, Carried]


@dataclass(frozen=True, slots=True)
class Unsaid(Event):
    """A Send turned out to have nothing to say to `peer`: all of it came from there. Nothing left."""

    peer: Key
    carried: Mapping[Key, Carried]


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """A Send did not happen and will not: `peer` answered 4xx, or something that is no answer."""

    peer: Key


@dataclass(frozen=True, slots=True)
class Lost(Event):
    """A Send to `peer` may or may not have happened: no connection, no answer in time, or a 5xx."""

    peer: Key


def concerned(nodes: dict[str, PlainNode] | list[PlainNode], deltas: Iterable[Delta]) -> set[Key]:
    """The nodes that a message between registries is about."""
    keys = set(nodes_by_key(nodes))
    for delta in deltas:
        keys.update(canonical(url) for url in delta.records)
    return keys
