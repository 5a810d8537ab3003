"""Ages: how long ago each origin was last known to be there (FEDERATION.md, rule 12).

No clocks are compared. An origin is of age 0 at itself; everybody else adds up what beacons and deltas tell, hop by
hop, and the time that passes here. Whatever is told is rounded up and a second is added for the way, so that an origin
that is gone grows old everywhere, and no two registries keep each other believing in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from kodo.models import Key

STALE = 300.0
"""Seconds after which an origin of which nothing was heard is shown as stale."""
HOP = 1
"""Seconds that a message between two registries is taken to be on its way."""


class Ages:
    """What one registry knows of when each other origin was there. Times are seconds of the monotonic clock."""

    def __init__(self, grace: float) -> None:
        """Nothing is known yet; after `grace` seconds an origin is given up."""
        self.grace = grace
        self.alive: dict[Key, float] = {}

    def heard(self, origin: Key, clock: float, age: float = 0.0) -> None:
        """The origin was there `age` seconds before now; what is known already may be younger."""
        self.alive[origin] = max(clock - age, self.alive.get(origin, clock - age))

    def told(self, origin: Key, clock: float) -> int:
        """The age that is told of the origin, in seconds; 0 for one of which there is none, this registry itself."""
        return ceil(clock - self.alive[origin]) + HOP if origin in self.alive else 0

    def of(self, origin: Key, clock: float) -> float:
        """The age of the origin, in seconds."""
        return clock - self.alive[origin] if origin in self.alive else 0.0

    def dead(self, origin: Key, clock: float) -> bool:
        """Whether the origin is given up: nothing of it is told, and nothing of it is taken in."""
        return self.of(origin, clock) > self.grace

    def stale(self, origins: Iterable[Key], clock: float) -> list[Key]:
        """Those of the origins of which nothing was heard for long."""
        return [origin for origin in sorted(origins) if self.of(origin, clock) > min(STALE, self.grace)]

    def forget(self, origin: Key) -> None:
        """The origin was dropped."""
        self.alive.pop(origin, None)
