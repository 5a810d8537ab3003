"""Parts: what one registry, the origin, has written, and how far a replica has followed it.

FEDERATION.md, rules 1 to 4 and 14. The mesh's state is a set of parts, one for each origin. Only the origin
writes its part, so that no two writers can conflict; everybody else holds a replica that equals the part as it
was at the replica's `version`. `seq` runs through all epochs of an origin, therefore `(since, to]` is a range of
`seq` whenever `since` lies on the origin's own history, which `epochs` and the current version describe.

The core holds no records. What it needs of one, the store hands in as a `Row`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kodo.models import NOTHING, Key, Version

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
    created: str | None
    modified: str | None
    seq: int
    flows_seq: int
    digest: str
    via: Key | None = None
    gone: bool = False

    @property
    def rank(self) -> tuple[str, Key]:
        """The order of rule 14: of the rows of a node, the one with the highest rank is listed."""
        return (self.modified or "", self.origin)


def listed(rows: Iterable[Row]) -> Row | None:
    """The row that is listed of those of one node: the newer `modified`, then the origin's url (rule 14)."""
    return max((row for row in rows if not row.gone), key=lambda row: row.rank, default=None)


@dataclass(frozen=True, slots=True)
class Part:
    """How far an origin's part is known here.

    `epochs` are the last versions of its earlier epochs, oldest first; `via` is the peer whose news last raised
    `version` (None for the own part).
    """

    origin: Key
    version: Version = NOTHING
    floor: Version = NOTHING
    epochs: tuple[Version, ...] = ()
    via: Key | None = None

    def follows(self, mark: Version) -> bool:
        """Whether a replica at `mark` can follow by a delta, or needs a snapshot (rules 4 and 5)."""
        return mark >= self.floor and on_history(mark, self.version, self.epochs)

    def new_epoch(self, unix: int, nonce: str) -> Part:
        """The own part at a new start: an epoch above every earlier one, the same content (rule 2)."""
        epochs = (*self.epochs, self.version)[-KEPT_EPOCHS:] if self.version != NOTHING else ()
        version = Version(max(self.version.seconds + 1, unix), nonce, self.version.seq)
        return replace(self, version=version, epochs=epochs)

    def advanced(self) -> Part:
        """The part after one more change."""
        return replace(self, version=self.version.at(self.version.seq + 1))


def on_history(mark: Version, version: Version, epochs: Iterable[Version]) -> bool:
    """Whether `mark` is a state that the origin at `version` went through."""
    return any(mark.same_epoch(end) and mark.seq <= end.seq for end in (version, *epochs))


@dataclass(frozen=True, slots=True)
class Staging:
    """The pages of a delta that have come so far, up to `reached`; `whole` if a snapshot."""

    reached: Version
    whole: bool
