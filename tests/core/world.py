"""A mesh without I/O that checks itself: `kodo.sim.World` with invariants 1 and 2 of FEDERATION.md after every step.

A replica's copy of an origin is a real past state of that origin, the one at its mark, and marks never fall but by the
loss of a disk. A message never tells a service its own part.
"""

from __future__ import annotations

from typing import Any

from kodo.models import Key, Version
from kodo.sim import Disk, Message
from kodo.sim import World as Simulated
from kodo.sim.world import Site


class World(Simulated):
    """A simulated mesh in which every step and every message is checked."""

    def __init__(self, seed: int = 0, *, bodies: bool = True, **kwargs: Any) -> None:
        super().__init__(seed, bodies=bodies, **kwargs)
        self.seen: dict[Key, dict[Key, Version]] = {}
        self.history: dict[tuple[Key, Version], list[Any]] = {}

    def crash(self, name: str, *, keep_disk: bool = True) -> None:
        super().crash(name, keep_disk=keep_disk)
        if not keep_disk:
            self.seen.pop(self.member(name).key, None)

    def restart(self, name: str, *, keep_disk: bool = True, disk: Disk | None = None) -> None:
        if disk is not None:
            self.seen.pop(self.member(name).key, None)
        super().restart(name, keep_disk=keep_disk, disk=disk)

    def stepped(self, site: Site) -> None:
        """Invariants 1 and 2."""
        seen = self.seen.setdefault(site.key, {})
        stored = {part.origin: part.version for part in site.disk.parts()}
        for origin, part in site.registry.parts.items():
            assert stored[origin] == part.version
            assert part.version >= seen.get(origin, part.version), f"{site.key} fell back on {origin}"
            if seen.get(origin) != part.version:
                seen[origin] = part.version
                state = _part(site, origin)
                if origin == site.key:
                    self.history[origin, part.version] = state
                assert state == self.history[origin, part.version], f"{site.key} holds what {origin} never was"

    def leaving(self, message: Message, body: dict[str, Any]) -> None:
        """A peer is told nothing of its own part."""
        assert all(delta["origin"] != message.target for delta in body.get("deltas", ())), "a peer is told its own part"


def _part(site: Site, origin: Key) -> list[Any]:
    return sorted(
        (row.node, stored.organization, row.created, row.modified, stored.flows, row.gone, row.seq)
        for stored in site.disk.records(origin)
        for row in [stored.row]
    )
