"""A mesh without I/O that checks itself: `kodo.sim.World` with invariants 1 and 2 of FEDERATION.md after every step.

A replica's copy of an origin is a real past state of that origin, the one at its mark, and marks never fall but by the
loss of a disk. A message never tells a service its own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kodo.core.instructions import Entry, Save
from kodo.core.parts import Part, Row
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
        # Copies in which a bit flipped, until they are whole again: by whom, and of which origin.
        self.spoiled: set[tuple[Key, Key]] = set()

    def spoil(self, name: str) -> None:
        """Change a record in what the service has on its disk of another's part, if it has any."""
        site = self.site(name)
        others = [part.origin for part in site.disk.parts() if part.origin != site.key]
        stored = [record for origin in sorted(others) for record in site.disk.records(origin) if not record.row.gone]
        if stored:
            row = stored[self.random.randrange(len(stored))].row
            node = row.body().model_copy(update={"modified": "2024-01-01T00:00:00.000000"})
            spoiled = Entry(row.origin, row.node, node, row.seq, row.flows_seq, row.digest, row.via)
            site.disk.write(Save(entries=(spoiled,)))
            site.disk.commit()
            self.spoiled.add((site.key, row.origin))
            self.effects["spoiled"] += 1

    def crash(self, name: str, *, keep_disk: bool = True) -> None:
        super().crash(name, keep_disk=keep_disk)
        if not keep_disk:
            self._forget(self.member(name).key)

    def _forget(self, key: Key) -> None:
        self.seen.pop(key, None)
        self.spoiled = {spoiled for spoiled in self.spoiled if spoiled[0] != key}

    def restart(self, name: str, *, keep_disk: bool = True, disk: Disk | None = None) -> None:
        if disk is not None:
            key = self.member(name).key
            self._forget(key)
            counted = disk.contents()
            spoiled = [part.origin for part in disk.parts() if counted.get(part.origin, 0) != part.content]
            self.spoiled |= {(key, origin) for origin in spoiled}
        super().restart(name, keep_disk=keep_disk, disk=disk)

    def stepped(self, site: Site, saves: Sequence[Save]) -> None:
        """Invariants 1 and 2."""
        if not saves:
            return
        # An origin that was given up is known no more, and may come back as it was.
        known = self.seen.get(site.key, {})
        seen = self.seen[site.key] = {origin: known[origin] for origin in known if origin in site.registry.parts}
        self.spoiled = {at for at in self.spoiled if at[0] != site.key or at[1] in site.registry.parts}
        stored = {part.origin: part for part in site.disk.parts()}
        for origin, part in site.registry.parts.items():
            assert stored[origin] == part
            assert part.version >= seen.get(origin, part.version), f"{site.key} fell back on {origin}"
            if seen.get(origin) != part.version or (site.key, origin) in self.spoiled:
                seen[origin] = part.version
                self._check_part(site, part)

    def _check_part(self, site: Site, part: Part) -> None:
        """A replica is what its origin was at that version, and its content is what the records come to."""
        state = _records(site, part.origin)
        if part.origin not in site.registry.ledger.doubted:
            counted = site.disk.contents().get(part.origin, 0)
            assert counted == part.content, f"{site.key} counts of {part.origin} what it does not hold"
        if part.origin == site.key:
            was = self.history.setdefault((part.origin, part.version), state)
            assert _without_tombstones(was, part.floor.seq) == _without_tombstones(state, part.floor.seq), (
                "two contents"
            )
        was = _without_tombstones(self.history[part.origin, part.version], part.floor.seq)
        same = _without_tombstones(state, part.floor.seq) == was
        if same:
            self.spoiled.discard((site.key, part.origin))
        assert same or (site.key, part.origin) in self.spoiled, f"{site.key} holds what {part.origin} never was"

    def leaving(self, message: Message, body: dict[str, Any]) -> None:
        """A peer is told nothing of its own part. Who leaves declares a version at which its part is empty."""
        if message.route == "/disconnect" and body["version"]:
            self.history[message.source, Version(*body["version"])] = []
        assert all(delta["origin"] != message.target for delta in body.get("deltas", ())), "a peer is told its own part"


def _records(site: Site, origin: Key) -> list[tuple[Row, str]]:
    """What a service holds of an origin, whole, but for what it counts for itself alone."""
    own = {"flows_seq": 0, "digest": "", "via": None}
    return sorted(
        ((replace(stored.row, **own), stored.flows) for stored in site.disk.records(origin)),
        key=lambda record: record[0].node,
    )


def _without_tombstones(state: list[tuple[Row, str]], floor: int) -> list[tuple[Row, str]]:
    """The records, but for the tombstones that the floor has passed: those may be gone, or not yet."""
    return [(row, flows) for row, flows in state if not row.gone or row.seq > floor]
