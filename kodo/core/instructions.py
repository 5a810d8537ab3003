"""What a registry wants done: the only output of `Registry.step`.

The runtime carries them out in this order: every Save of a step is durable before any Reply or Send of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kodo.core.parts import Part
from kodo.core.peers import PeerState
from kodo.digests import fingerprint
from kodo.models import NOTHING, Ask, Beacon, Key, Node, Receipt, Version

Route = Literal["/register", "/connect", "/update/node", "/heartbeat", "/disconnect"]
BELOW_ALL = -(2**63)
Form = Literal["plain", "delta", "both"]


@dataclass(frozen=True, slots=True)
class Instruction:
    """Something to be done outside the core."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record to write; a `node` without flows leaves the stored flows as they are, and `digest` stands for those."""

    origin: Key
    key: Key
    node: Node
    seq: int
    flows_seq: int
    digest: str
    via: Key | None = None
    gone: bool = False

    @property
    def content(self) -> int:
        """What the record adds to the content of its part: as `Row.content`."""
        if self.gone:
            return 0
        node = self.node
        times = (node.created, node.modified, node.heartbeat)
        return fingerprint(self.key, self.seq, node.url, node.organization, *times, node.status, self.digest)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where pages of an origin's part are kept aside: for each peer that sends them, since none continues another's."""

    origin: Key
    peer: Key


@dataclass(frozen=True, slots=True)
class Settle:
    """The entries staged there become the origin's records; if `whole`, of its others only the remains are left."""

    stage: Stage
    whole: bool


@dataclass(frozen=True, slots=True)
class Save(Instruction):
    """Changes to the durable state, to be written together.

    `staged` entries are kept aside, until a `settled` names where. `unstage` drops what is kept aside there first. A
    part that is saved loses its tombstones up to its floor. `dropped` parts go with all their records, `forgotten`
    peers too. A `lazy` Save of peers may wait for the next one that is not: losing it costs a repeated message.
    """

    entries: tuple[Entry, ...] = ()
    unstage: tuple[Stage, ...] = ()
    staged: tuple[tuple[Stage, Entry], ...] = ()
    settled: tuple[Settle, ...] = ()
    parts: tuple[Part, ...] = ()
    peers: tuple[PeerState, ...] = ()
    dropped: tuple[Key, ...] = ()
    forgotten: tuple[Key, ...] = ()
    lazy: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """What is owed of one origin: its changes after `base`, all of it when that is nothing.

    `since` is where the next page begins. Flows that have not changed after `base` need not be told again, but after
    `since` is not enough: a node that changed meanwhile was on no page yet. `floor` is that of the part when the first
    page was written. `age`: how many seconds ago the origin was known to be there.
    """

    origin: Key
    base: Version
    since: Version
    floor: Version = NOTHING
    age: int = 0


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a message is to carry; its content is read when it leaves.

    `plain` fills `nodes`, for services that know no deltas; `delta` fills `deltas`; `both` lets the deltas refer to
    the nodes. `unsaid` is the peer whose own records a plain parcel leaves out. `first`: the receiver was never told
    anything, so that a plain parcel leaves out what is gone.
    """

    form: Form
    ranges: tuple[Range, ...]
    unsaid: Key | None = None
    first: bool = False

    def after(self, owed: Range) -> int:
        """The count after which the records of a page begin; all of a part, told plainly, begins with the remains."""
        return BELOW_ALL if self.form == "plain" and owed.since == NOTHING else owed.since.seq


@dataclass(frozen=True, slots=True)
class Standing:
    """What a reply tells of the mesh: `connection` by url as configured, and whether all is said.

    `stale` are the origins of which nothing was heard for long. `frozen`: no node is shown offline for now, since it is
    more likely this registry that is cut off (rule 13). `refused`: peers that are not asked any more, and their answer.
    `surpassed`: how often somebody knew more of this registry than it did, since its start.
    """

    connection: tuple[tuple[str, str | None], ...]
    idle: bool
    stale: tuple[Key, ...] = ()
    frozen: bool = False
    refused: tuple[tuple[str, int], ...] = ()
    surpassed: int = 0


Told = tuple[tuple[Key, Version], ...]
"""Marks, as they are told: by origin, in its order."""


@dataclass(frozen=True, slots=True)
class Reply(Instruction):
    """The answer to the request `ticket`.

    With an `offer` it is that of a `/connect` that asked to be fed; without, the common reply. `marks` are told to
    peers that speak them, with `contents` after a beacon that did not fit. `handshake` asks the sender for a
    `/connect`, since it is no peer here. `lease` tells a node for how long it may be silent.
    """

    ticket: int
    message: tuple[str, ...]
    standing: Standing
    to: Key | None = None
    offer: Parcel | None = None
    marks: Told | None = None
    contents: tuple[tuple[Key, str], ...] | None = None
    receipts: tuple[Receipt, ...] = ()
    handshake: bool = False
    lease: float | None = None


@dataclass(frozen=True, slots=True)
class Send(Instruction):
    """A message to one peer, one at a time for each; its result comes back as an event within `deadline` seconds.

    `marks` speak deltas; a `parcel` is what it carries, beside a `beacon`, `asks` for receipts, and `receipts`.
    `version` is that of a farewell. `resumes`: a greeting takes up a connection that there was.
    """

    peer: Key
    address: str
    route: Route
    deadline: float
    parcel: Parcel | None = None
    marks: Told | None = None
    beacon: Beacon | None = None
    asks: tuple[Ask, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    version: Version | None = None
    resumes: bool = False

    @property
    def bare(self) -> bool:
        """Whether it says nothing beside its parcel: one that turns out to be empty need not leave."""
        return self.route == "/update/node" and not (self.beacon or self.asks or self.receipts)


@dataclass(frozen=True, slots=True)
class Wake(Instruction):
    """A Tick is wanted at this moment of the monotonic clock; it replaces any Wake before it."""

    at: float
