"""Saves such as a core may write, at random: records that compete, lapse and leave, with ties and nulls."""

from __future__ import annotations

import random
from dataclasses import replace

from kodo.core.instructions import Entry, Save, Settle, Stage
from kodo.core.parts import Part
from kodo.core.peers import PeerState
from kodo.models import NOTHING, Key, Node, Version, digest

R = Key("http://r0:1")
ORIGINS = [R, Key("http://r1:1"), Key("http://old:1")]
TIMES = [None, "2024-12-25T18:00:00.000000", "2024-12-25T18:00:00.000001"]


def _entry(chance: random.Random, counts: dict[Key, int]) -> Entry:
    """An entry such as a core may write, at the next place of its origin's history."""
    origin, node, gone = chance.choice(ORIGINS), chance.choice("xyz"), chance.random() < 0.3
    counts[origin] += 1
    names = chance.sample("abc", chance.randrange(4))
    flows = {f"/{n}": {"url": f"/{n}", "name": n, "tags": [n, n] if n == "a" else None} for n in names}
    body = Node(
        url=chance.choice([f"http://{node}:1", f"http://{node.upper()}:1/"]),
        organization=chance.choice([None, "Straße"]),
        flows=None if gone or chance.random() < 0.3 else flows,
        created=chance.choice(TIMES),
        modified=chance.choice(TIMES),
        status=chance.choice(["unknown", "online"]),
    )
    via = chance.choice([None, ORIGINS[2]]) if origin == R else None
    return Entry(origin, body.key, body, counts[origin], counts[origin], digest(body.flows or {}), via, gone)


def random_save(chance: random.Random, counts: dict[Key, int]) -> Save:
    """A Save with something of everything."""
    written = [_entry(chance, counts) for _ in range(chance.randrange(5))]
    aside = [entry for entry in written if chance.random() < 0.4]
    stages = [Stage(origin, ORIGINS[1]) for origin in ORIGINS]
    return Save(
        entries=tuple(entry for entry in written if entry not in aside),
        unstage=tuple(stage for stage in stages if chance.random() < 0.2),
        # What is staged came in a delta: it is written on nobody's behalf.
        staged=tuple((Stage(entry.origin, ORIGINS[1]), replace(entry, via=None)) for entry in aside),
        settled=tuple(Settle(stage, chance.random() < 0.5) for stage in stages if chance.random() < 0.3),
        parts=tuple(_random_part(chance, origin, count) for origin, count in counts.items()),
        peers=(PeerState(ORIGINS[1], "http://r1:1", "http://r1:1", acked=((R, Version(1, "ab", counts[R])),)),),
        dropped=tuple(origin for origin in ORIGINS[1:] if chance.random() < 0.1),
        forgotten=tuple(origin for origin in ORIGINS[1:] if chance.random() < 0.2),
    )


def _random_part(chance: random.Random, origin: Key, count: int) -> Part:
    """A part at this count, whose floor may have passed some tombstones."""
    version = Version(1, "ab", count)
    return Part(origin, version, version.at(count // 2) if chance.random() < 0.3 else NOTHING)
