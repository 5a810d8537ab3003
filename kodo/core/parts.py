"""Parts: what one registry, the origin, has written, and how far a replica has followed it.

FEDERATION.md, rules 1 to 6 and 14. The mesh's state is a set of parts, one for each origin. Only the origin
writes its part, so that no two writers can conflict; everybody else holds a replica that equals the part as it
was at the replica's `version`. `seq` runs through all epochs of an origin, therefore `(since, to]` is a range of
`seq` whenever `since` lies on the origin's own history, which `epochs` and the current version describe.

The core holds no records. What it needs of one, the store hands in as a `Row`. A record that is gone is a tombstone, of
one of two kinds: with `modified` the node *left*, and nothing older of it is listed, whoever wrote it; without, the
record alone *lapsed*, and says nothing of what others know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from kodo.digests import fingerprint
from kodo.models import NOTHING, Key, Node, Version, later

A_MICROSECOND = timedelta(microseconds=1)
KEPT_EPOCHS = 32
"""Earlier epochs an origin remembers; a peer that slept through more restarts gets a snapshot."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one part says of one node, without its flows.

    `seq` is the count of its last change, `flows_seq` that of the last change of its flows, `digest` stands for
    the flows. `via` is the older service on whose behalf it was written (rule 15). `gone` is a tombstone.
    """

    origin: Key
    node: Key
    url: str
    created: str | None
    modified: str | None
    seq: int
    flows_seq: int
    digest: str
    organization: str | None = None
    heartbeat: str | None = None
    status: str = "unknown"
    via: Key | None = None
    gone: bool = False

    @property
    def rank(self) -> tuple[str, bool, Key]:
        """The order of rule 14: of the rows of a node, the one with the highest rank says whether it is listed."""
        return (self.modified or "", not self.gone, self.origin)

    @property
    def left(self) -> bool:
        """Whether the node itself has left, not this record alone."""
        return self.gone and self.modified is not None

    @property
    def content(self) -> int:
        """What the record adds to the content of its part."""
        if self.gone:
            return 0
        times = (self.created, self.modified, self.heartbeat)
        return fingerprint(self.node, self.seq, self.url, self.organization, *times, self.status, self.digest)

    def body(self) -> Node:
        """The node without its flows, to be written again."""
        return Node(
            url=self.url,
            organization=self.organization,
            created=self.created,
            modified=self.modified,
            heartbeat=self.heartbeat,
            status=self.status,
        )


def remains(row: Row, seq: int) -> Row:
    """What stays of a record that a snapshot takes away, so that services without deltas can be told that it is gone.

    It is told to nobody else, and is no part of what the origin wrote: `seq` is negative.
    """
    time = max(row.modified or "", row.heartbeat or "")
    newer = later(time, A_MICROSECOND) if time else None
    left = replace(row, seq=seq, flows_seq=0, digest="", gone=True, via=None)
    return replace(left, modified=None, heartbeat=newer, status="unknown")


def listed(rows: Iterable[Row]) -> Row | None:
    """The row that is listed of those of one node: the newest, unless the node left after it (rule 14)."""
    newest = max(rows, key=lambda row: row.rank, default=None)
    return None if newest is None or newest.gone else newest


@dataclass(frozen=True, slots=True)
class Part:
    """How far an origin's part is known here.

    `epochs` are the last versions of its earlier epochs, oldest first; `via` is the peer whose news last raised
    `version` (None for the own part). `content` stands for the records, gone ones left out, whatever their order.
    `seen` is when the origin was last known to be there, by the clock of this machine.
    """

    origin: Key
    version: Version = NOTHING
    floor: Version = NOTHING
    epochs: tuple[Version, ...] = ()
    via: Key | None = None
    content: int = 0
    seen: str | None = None

    def follows(self, mark: Version) -> bool:
        """Whether a replica at `mark` can follow by a delta, or needs a snapshot (rules 4 and 5)."""
        return mark >= self.floor and on_history(mark, self.version, self.epochs)

    def goes_on(self, base: Version, since: Version, floor: Version) -> bool:
        """Whether a delta on `base`, begun over `floor`, can go on at `since`.

        A snapshot cannot once tombstones were dropped: they may be of nodes that are on its first pages.
        """
        if base == NOTHING:
            return since == NOTHING or (self.floor == floor and on_history(since, self.version, self.epochs))
        return self.follows(base) and self.follows(since)

    def new_epoch(self, unix: int, nonce: str) -> Part:
        """The own part at a new start: an epoch above every earlier one, the same content (rule 2)."""
        epochs = (*self.epochs, self.version)[-KEPT_EPOCHS:] if self.version != NOTHING else ()
        version = Version(max(self.version.seconds + 1, unix), nonce, self.version.seq)
        return replace(self, version=version, epochs=epochs)

    def above(self, mark: Version, nonce: str) -> Part:
        """The own part in an epoch above `mark`, which everybody follows by a snapshot alone (rule 10)."""
        version = Version(max(mark, self.version).seconds + 1, nonce, self.version.seq)
        return replace(self, version=version, floor=version, epochs=())

    def advanced(self, content: int = 0) -> Part:
        """The part after one more change, which adds this to its content, or takes it away."""
        return replace(self, version=self.version.at(self.version.seq + 1), content=self.content ^ content)

    def raised(self, seq: int) -> Part:
        """The part without its tombstones up to `seq`: whoever has not seen them gets a snapshot (rules 5 and 6)."""
        end = next(end for end in (*self.epochs, self.version) if end.seq >= seq)
        return replace(self, floor=max(self.floor, end.at(seq)))


def on_history(mark: Version, version: Version, epochs: Iterable[Version]) -> bool:
    """Whether `mark` is a state that the origin at `version` went through."""
    return any(mark.same_epoch(end) and mark.seq <= end.seq for end in (version, *epochs))


@dataclass(frozen=True, slots=True)
class Carried:
    """What a message carried of one origin, on top of `base`: up to `to`; not `complete` when more pages follow.

    `floor` is that of the part when the first page was written.
    """

    base: Version
    to: Version
    complete: bool = True
    floor: Version = NOTHING


@dataclass(frozen=True, slots=True)
class Claim:
    """What another part says of a node that the own part has a record of, too."""

    modified: str | None
    gone: bool
    adopted: bool


@dataclass(slots=True)
class Staging:
    """The pages of a delta that have come so far, up to `reached`; `whole` if a snapshot.

    `contents` is what each record on them adds to the content of the part, and takes from it. `claims` are made with
    the last page.
    """

    reached: Version
    whole: bool
    contents: dict[Key, tuple[int, int]] = field(default_factory=dict)
    claims: dict[Key, Claim] = field(default_factory=dict)
