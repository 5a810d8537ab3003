"""What can happen to a registry: the only input of `Registry.step`.

An event carries everything that the step needs and the core must not fetch: the moment, a random number, and
the rows that the store holds of the nodes it is about. Events are plain data; the service makes them from
requests, timers and results of sends, the simulator from its own list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kodo.core.instructions import Route
from kodo.core.parts import Carried, Row
from kodo.models import (
    Delta,
    Farewell,
    Key,
    Node,
    PeerMessage,
    PeerReply,
    PlainNode,
    Registration,
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
    """An event about nodes: `rows` are what the store holds of those that `Registry.concerns` names."""

    rows: Rows = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True, slots=True)
class Start(Concerning):
    """The service starts; `nonce` makes its epoch unique, `own` is itself as a node, if it is one."""

    own: Node | None
    unix: int
    nonce: str


@dataclass(frozen=True, slots=True)
class Register(Concerning):
    """`POST /register`; `ticket` names the request that waits for the Reply.

    With `wait` the Reply comes once every connected registry has the registration, or after so many seconds (rule 16).
    `beats`: the node will beat, and is to be told how long its lease is.
    """

    ticket: int
    node: Registration
    wait: float | None = None
    beats: bool = False


@dataclass(frozen=True, slots=True)
class Connect(Concerning):
    """`POST /connect`."""

    ticket: int
    message: PeerMessage


@dataclass(frozen=True, slots=True)
class Update(Connect):
    """`POST /update/node`."""


@dataclass(frozen=True, slots=True)
class Heartbeat(Concerning):
    """`POST /heartbeat` of the node `url`."""

    ticket: int
    url: str


@dataclass(frozen=True, slots=True)
class Disconnect(Concerning):
    """`POST /disconnect`: a node or a registry leaves."""

    ticket: int
    message: Farewell


@dataclass(frozen=True, slots=True)
class Leave(Concerning):
    """`DELETE /connect`: this service is to leave; the Reply comes once all it was connected with were told."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Tick(Concerning):
    """The time that a Wake asked for has come."""


@dataclass(frozen=True, slots=True)
class Delivered(Concerning):
    """What was sent to `peer` at `route` was answered with success, and carried this."""

    peer: Key
    route: Route
    carried: Mapping[Key, Carried]
    reply: PeerReply


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
    """A Send did not happen and will not: `peer` answered with a `status` of 4xx or 501, or with nonsense.

    Of that `status` is 200; it is None where the answer breaks the protocol.
    """

    peer: Key
    route: Route = "/update/node"
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Lost(Event):
    """A Send to `peer` may or may not have happened: no connection, no answer in time, or a 5xx.

    `retry_after`: the seconds that the peer asked to be left alone for (RFC 9110, 10.2.3).
    """

    peer: Key
    retry_after: float = 0.0


def concerned(nodes: dict[str, PlainNode] | list[PlainNode], deltas: Iterable[Delta]) -> set[Key]:
    """The nodes that a message between registries is about."""
    keys = set(nodes_by_key(nodes))
    for delta in deltas:
        keys.update(canonical(url) for url in delta.records)
    return keys
