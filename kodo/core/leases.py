"""Leases: which of the nodes that registered here are to be believed to be there (FEDERATION.md, rule 13).

A node that beats has a lease from its first beat on. It is `online` while its beats come, `offline` once none came for
`lease` seconds, and dropped after `retention` more. A node that never beat has no lease, and nothing of this happens.
Only changes of status leave this room; a beat alone is nobody else's business.

```
 unknown --beat--> online --no beat for `lease`--> offline --`retention`--> dropped
                     ^---------------beat-------------+
```

The sweep makes up for its own pauses: it cannot tell silence from not having listened. When most leases run out at once
and most peers are away too, it is more likely this registry that was cut off: expiry is frozen, for a bounded time.
"""

from __future__ import annotations

from dataclasses import dataclass

from kodo.models import Key

SWEEP = 5.0
"""Seconds between two looks at all leases; of a short lease there are six looks in it."""
AT_ONCE = 256
"""Leases that one step ends at most, so that no step takes long."""
FREEZE = 10
"""For how many leases expiry may be frozen."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a look at all leases came to: who is offline now, and who was away for too long."""

    offline: tuple[Key, ...]
    dropped: tuple[Key, ...]


class Leases:
    """The leases of one registry. Times are seconds of the monotonic clock."""

    def __init__(self, lease: float, retention: float) -> None:
        """No leases yet; `lease` and `retention` in seconds."""
        self.lease = lease
        self.retention = retention
        self.sweep_every = min(SWEEP, lease / 6)
        self.online: dict[Key, float] = {}
        self.away: dict[Key, float] = {}
        self.sweep_at: float | None = None
        self.frozen_until: float | None = None

    def resume(self, node: Key, status: str, clock: float, since: float) -> None:
        """Take up a lease from before this start, whose status is `since` seconds old.

        An online node gets a whole lease; an offline one stays away as long, but has at least a lease before it is
        dropped.
        """
        if status == "online":
            self.online[node] = clock + self.lease
        elif status == "offline":
            self.away[node] = clock - min(since, max(0.0, self.retention - self.lease))
        self._schedule(clock)

    def beat(self, node: Key, clock: float) -> bool:
        """The node gave a sign of life; whether that changes its status."""
        changes = node not in self.online
        self.away.pop(node, None)
        self.online[node] = clock + self.lease
        self._schedule(clock)
        return changes

    def end(self, node: Key) -> None:
        """The node has left."""
        self.online.pop(node, None)
        self.away.pop(node, None)

    def status(self, node: Key) -> str:
        """`online`, `offline`, or `unknown` for a node that never beat."""
        return "online" if node in self.online else "offline" if node in self.away else "unknown"

    def due(self, clock: float) -> list[Key]:
        """The nodes whose status the next sweep may change."""
        if self.sweep_at is None or clock < self.sweep_at:
            return []
        paused = self._paused(clock)
        return self._out(clock, paused) + self._overdue(clock, paused)

    def sweep(self, clock: float, *, cut_off: bool, alone: bool) -> Sweep:
        """Look at all leases. `cut_off`: most peers are away; `alone`: nobody at all was heard for a lease."""
        if self.sweep_at is None or clock < self.sweep_at:
            return Sweep((), ())
        paused = self._paused(clock)
        if paused:
            # Who beat after the pause, and before this sweep, has its lease from then on.
            self.online = {node: min(until + paused, clock + self.lease) for node, until in self.online.items()}
            self.away = {node: since + paused for node, since in self.away.items()}
        if alone:
            # Whoever is heard first is not to be the end of the others: they have a lease to be heard as well.
            earliest = clock - self.retention + self.lease
            self.away = {node: max(since, earliest) for node, since in self.away.items()}
        offline = [] if self._freezes(clock, cut_off=cut_off) else self._out(clock)
        dropped = [] if alone else self._overdue(clock)
        for node in offline:
            del self.online[node]
            self.away[node] = clock
        for node in dropped:
            del self.away[node]
        self.sweep_at = None
        self._schedule(clock, 0 if len(offline) + len(dropped) >= AT_ONCE else self.sweep_every)
        return Sweep(tuple(offline), tuple(dropped))

    def frozen(self, clock: float) -> bool:
        """Whether expiry is frozen now."""
        return self.frozen_until is not None and clock < self.frozen_until

    def silent(self, clock: float) -> list[Key]:
        """The nodes that are `online` although their lease is over, since expiry is frozen."""
        return sorted(node for node, until in self.online.items() if until <= clock) if self.frozen(clock) else []

    def _freezes(self, clock: float, *, cut_off: bool) -> bool:
        # Beats are spread over a third of a lease; who missed one is on the way to running out.
        silent = sum(until - clock < self.lease / 2 for until in self.online.values())
        if not cut_off or 2 * silent <= len(self.online):
            if self.frozen(clock):
                # The links are back before the nodes are: those have a lease to be heard.
                self.online = {node: max(until, clock + self.lease) for node, until in self.online.items()}
            self.frozen_until = None
            return False
        if self.frozen_until is None and self._out(clock):
            self.frozen_until = clock + FREEZE * self.lease
        return self.frozen(clock)

    def _paused(self, clock: float) -> float:
        late = clock - self.sweep_at if self.sweep_at is not None else 0.0
        return late if late > min(SWEEP, self.lease / 4) else 0.0

    def _out(self, clock: float, paused: float = 0.0) -> list[Key]:
        return sorted(node for node, until in self.online.items() if until + paused <= clock)[:AT_ONCE]

    def _overdue(self, clock: float, paused: float = 0.0) -> list[Key]:
        return sorted(node for node, since in self.away.items() if since + paused + self.retention <= clock)[:AT_ONCE]

    def _schedule(self, clock: float, after: float | None = None) -> None:
        if self.sweep_at is None and (self.online or self.away):
            self.sweep_at = clock + (self.sweep_every if after is None else after)
