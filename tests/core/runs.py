"""Random runs: a mesh, some dozens of things that happen to it, all faults healed, and then what must hold.

A run is its seed: topology, faults and what happens follow from it. While it runs, `tests.core.world` checks every
step (invariants 1, 2 and 10 of FEDERATION.md; 6 and 7 follow from them). At its end a run checks that all agree within
the bound (3), that there is quiet and nothing is owed (4), and that nodes that beat are listed as online (11).

`python -m tests.core.runs 10000` runs so many seeds on all cores, and says what was violated and how often what
happened.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from time import monotonic
from typing import Any

from kodo.core import events as ev
from kodo.core.registry import Timing
from kodo.errors import KodoError
from kodo.models import Farewell
from kodo.sim.store import Stored
from kodo.sim.world import key_of
from tests.core.world import World

TIMING = Timing(lease=3, retention=20, beacon=2, grace=600, tombstones=15)
TOPOLOGIES: dict[str, list[tuple[int, int]]] = {
    "pair": [(1, 0)],
    "mutual": [(1, 0), (0, 1)],
    "chain": [(i, i - 1) for i in range(1, 6)],
    "star": [(i, 0) for i in range(1, 6)],
    "ring": [(i, (i + 1) % 5) for i in range(5)],
    "clique": [(j, i) for i, j in combinations(range(5), 2)],
}
OLDER = 5
"""One in so many runs has an older service in its mesh."""
HAPPENINGS = 60
"""What happens in a run."""
LONGEST_PAUSE, DEADLINE = 60.0, 10.0
CALM = 30.0
"""Seconds after which nothing is left of what happened before: leases are out, who is away is dropped, all is swept."""


@dataclass
class Run:
    """A mesh and the chances that drive it. `departed`: a registry has left, and was forgotten by its peers.

    `older`: an older service is connected with one of the registries. It goes by `modified` alone: the clocks of such a
    mesh are right.
    """

    seed: int
    chance: random.Random
    edges: list[tuple[int, int]]
    world: World
    registries: list[str]
    nodes: dict[str, str]
    copies: dict[str, object] = field(default_factory=dict)
    departed: bool = False
    older: bool = False
    happened: Counter[str] = field(default_factory=Counter)

    @property
    def bound(self) -> float:
        """How long it may take to agree again: a pause, and for each hop a beacon and a window (rules 8, 9 and 11)."""
        hops = len(self.registries)
        return LONGEST_PAUSE + DEADLINE + CALM + hops * (2 * 1.2 * TIMING.beacon + 0.2)


def begin(seed: int) -> Run:
    """A mesh at rest: registries in one of the topologies, and nodes that register and beat with one or two of them."""
    chance = random.Random(seed)
    edges = TOPOLOGIES[chance.choice(list(TOPOLOGIES))]
    older = seed % OLDER == OLDER - 1
    world = World(seed, timing=TIMING, page=chance.choice([600, 2**23]), bodies=False, log=200)
    size = 1 + max(max(edge) for edge in edges)
    names = [f"r{i}" for i in range(size)]
    for i, name in enumerate(names):
        skew = 0.0 if older else chance.choice([0.0, 0.0, 3600.0, -7200.0])
        world.add(name, [f"r{b}" for a, b in edges if a == i], skew=skew)
    if older:
        world.add_old("old", [chance.choice(names)])
    world.run(5)
    world.settle()
    nodes = {}
    for number in range(3):
        homes = chance.sample(names, chance.choice([1, 1, 2]))
        world.add(f"beats{number}", homes, registry=False, flows=["x"])
        nodes[f"beats{number}"] = homes[0]
    return Run(seed, chance, edges, world, names, nodes, older=older)


# -- what happens ------------------------------------------------------------------------------------------


def _register(run: Run, name: str) -> None:
    if run.world.member(name).paused:
        return
    at = "old" if run.older and run.chance.random() < 0.2 else name
    run.world.register(at, f"n{run.chance.randrange(12)}", run.chance.sample("abcdef", run.chance.randrange(4)))


def _restart(run: Run, name: str) -> None:
    run.world.restart(name)


def _lose_disk(run: Run, name: str) -> None:
    run.world.restart(name, keep_disk=False)


def _copy_disk(run: Run, name: str) -> None:
    run.copies[name] = run.world.copy_disk(name)


def _take_older_disk(run: Run, name: str) -> None:
    copied = run.copies.pop(name, None)
    if copied is not None:
        run.world.set_clock(name, 0 if run.older else run.chance.choice([0, -10_000, 10_000]))
        run.world.restart(name, disk=copied)  # type: ignore[arg-type]


def _set_clock(run: Run, name: str) -> None:
    run.world.set_clock(name, 0 if run.older else run.chance.choice([-100_000, 0, 100_000]))


def _cut(run: Run, _: str) -> None:
    one, other = (key_of(name) for name in run.chance.sample(run.registries, 2))
    both = {(one, other), (other, one)} if run.chance.random() < 0.7 else {(one, other)}
    run.world.faults.cuts ^= both


def _pause(run: Run, name: str) -> None:
    run.world.pause(name)
    run.world.later(run.chance.uniform(1, 12), lambda: run.world.resume(name))


def _slow(run: Run, name: str) -> None:
    run.world.faults.slow[key_of(name)] = run.chance.choice([0.0, 0.5, 12.0])


def _ask(run: Run, name: str, event: Callable[..., ev.Event]) -> None:
    """Something that the registry may refuse."""
    site = run.world.site(name)
    if site.paused:
        return
    try:
        run.world.step(site.key, event(run.world._instant(site), ticket=0))
    except KodoError:
        run.happened["refused"] += 1


def _part(run: Run, name: str) -> None:
    node = f"n{run.chance.randrange(12)}"
    _ask(run, name, lambda at, ticket: ev.Disconnect(at, ticket=ticket, message=Farewell(url=f"http://{node}:1")))


def _beat(run: Run, name: str) -> None:
    """A single beat: a lease that will run out."""
    node = f"n{run.chance.randrange(12)}"
    _ask(run, name, lambda at, ticket: ev.Heartbeat(at, ticket=ticket, url=f"http://{node}:1"))


def _leave(run: Run, name: str) -> None:
    if not run.world.member(name).paused:
        run.departed = True
        run.world.leave(name)


def _wait_for_receipts(run: Run, name: str) -> None:
    if not run.world.member(name).paused:
        run.world.register_and_wait(name, f"n{run.chance.randrange(12)}", ["w"], 3.0)


def _spoil(run: Run, name: str) -> None:
    """A bit flips on the disk of a registry, in its copy of another's part, while it is down."""
    run.world.crash(name)
    run.world.spoil(name)
    run.world.restart(name)


WHAT_HAPPENS: dict[Callable[[Run, str], None], int] = {
    _register: 16,
    _restart: 2,
    _lose_disk: 2,
    _copy_disk: 2,
    _take_older_disk: 2,
    _set_clock: 1,
    _cut: 3,
    _pause: 1,
    _slow: 1,
    _part: 2,
    _beat: 2,
    _leave: 1,
    _wait_for_receipts: 1,
    _spoil: 1,
}


def disturb(run: Run) -> None:
    """Let happen what happens."""
    faults, chance = run.world.faults, run.chance
    faults.loss, faults.answer_loss = chance.choice([(0.0, 0.0), (0.1, 0.1), (0.3, 0.2)])
    faults.doubles, faults.reorder = chance.choice([0.0, 0.2]), chance.choice([0.0, 0.2])
    faults.latency = (0.001, 0.3)
    for _ in range(HAPPENINGS):
        (what,) = chance.choices(list(WHAT_HAPPENS), list(WHAT_HAPPENS.values()))
        what(run, chance.choice(run.registries))
        run.happened[what.__name__] += 1
        run.world.run(chance.uniform(0, 2))


def heal(run: Run) -> None:
    """End every fault, and bring everybody back."""
    run.world.faults.heal()
    run.world.faults.latency = (0.01, 0.01)
    for name in run.registries:
        run.world.resume(name)
        if run.departed:
            # Who was told that another left does not call it again until it starts anew.
            run.world.restart(name)
    if run.older:
        # A registry that lost its disk has forgotten it, which it learns as it starts anew.
        run.world.restart("old")


# -- what must hold ----------------------------------------------------------------------------------------


def agree(run: Run) -> float:
    """Invariant 3: the seconds until all registries list the same, owe nothing, and it lasts; within the bound."""
    world, began = run.world, run.world.clock
    since: float | None = None
    while world.clock - began < run.bound:
        world.run(1)
        settled = idle(run) and same(run) and not apart(run)
        since = None if not settled else since if since is not None else world.clock - began
        if since is not None and world.clock - began >= since + CALM:
            break
    assert since is not None, f"no agreement within {run.bound:.0f} s: {apart(run) or world.missing() or owed(run)}"
    return since


def same(run: Run) -> bool:
    """Whether all registries list the same records; that those have the same contents is checked in the end."""
    views = (run.world.site(name).disk.view() for name in run.registries)
    listings = [[(stored.row.origin, stored.row.node, stored.row.seq) for stored in view.values()] for view in views]
    return all(listing == listings[0] for listing in listings)


def apart(run: Run) -> list[str]:
    """The nodes of which the older service has something else than the registries list.

    It goes by `modified` alone: what it heard last it keeps when an earlier registration elsewhere is listed again.
    """
    if not run.older:
        return []
    shown = {key_of(url): stored for url, stored in run.world.site(run.registries[0]).disk.view().items()}
    known = run.world.members[key_of("old")].service.nodes  # type: ignore[attr-defined]
    ghosts = [f"old lists {key}" for key, node in known.items() if node["flows"] and key not in shown]
    return ghosts + [f"old lacks {key}" for key, stored in shown.items() if _newer(stored, known.get(key))]


def _newer(stored: Stored, known: dict[str, Any] | None) -> bool:
    """Whether what is listed of a node is news to a service that knows this of it."""
    if known is None:
        return bool(stored.size)
    modified = stored.row.modified or ""
    return modified > known["modified"] or (modified == known["modified"] and stored.size != len(known["flows"]))


def idle(run: Run) -> bool:
    return all(run.world.site(name).registry.standing().idle for name in run.registries)


def owed(run: Run) -> list[str]:
    return [f"{name} owes" for name in run.registries if not run.world.site(name).registry.standing().idle]


def check_quiet(run: Run) -> None:
    """Invariant 4: no push in a quiet minute."""
    before = run.world.news
    run.world.run(60)
    assert run.world.news == before, f"{run.world.news - before} messages in a quiet minute"


def check_parts(run: Run) -> None:
    """All hold the same parts, at the same versions, with the same contents, and list the same; nothing is doubted."""
    held = [
        {
            origin: (part.version, part.content)
            for origin, part in run.world.site(name).registry.parts.items()
            if part.version.seq
        }
        for name in run.registries
    ]
    assert all(parts == held[0] for parts in held), "the parts differ"
    listings = [run.world.listing(name) for name in run.registries]
    assert all(listing == listings[0] for listing in listings), "the listings differ"
    assert not any(run.world.site(name).registry.ledger.doubted for name in run.registries)
    assert not run.world.spoiled, f"spoiled and not found: {run.world.spoiled}"


def check_beating(run: Run) -> None:
    """Invariant 11, its first half: nodes that beat are listed as online."""
    for name in run.registries:
        for node in run.nodes:
            row = run.world.site(name).disk.view().get(key_of(node))
            assert row is not None, f"{name} does not list {node}, which beats"
            # An older service may remember a registration that its registry lost, and knows nothing of beats.
            assert row.row.status == "online" or (run.older and row.row.via), (
                f"{name} lists {node}, which beats, as {row.row.status}"
            )


def go(seed: int) -> tuple[float, Counter[str]]:
    """One run: the seconds that agreement took, and what happened in it and by its faults."""
    run = begin(seed)
    disturb(run)
    heal(run)
    took = agree(run)
    check_quiet(run)
    check_parts(run)
    check_beating(run)
    return took, run.happened + run.world.effects


def violation(seed: int) -> tuple[int, str | None, float, Counter[str]]:
    """A run, and what it violated, if anything."""
    try:
        took, effects = go(seed)
    except (AssertionError, KodoError, KeyError) as error:
        return seed, f"{type(error).__name__}: {error}".splitlines()[0][:200], 0.0, Counter()
    return seed, None, took, effects


def main() -> None:
    """Run as many seeds as the command line says, from the second number on."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    began, longest, violations, effects = monotonic(), 0.0, 0, Counter[str]()
    with ProcessPoolExecutor() as pool:
        for seed, violated, took, happened in pool.map(violation, range(first, first + count), chunksize=4):
            longest, effects = max(longest, took), effects + happened
            if violated is not None:
                violations += 1
                print(f"seed {seed}: {violated}", flush=True)  # noqa: T201, a command
    spent = monotonic() - began
    print(f"{count} seeds, {violations} violations, {spent:.0f} s; agreement took {longest:.0f} s at most")  # noqa: T201
    print(", ".join(f"{name.strip('_')} {number}" for name, number in sorted(effects.items())))  # noqa: T201
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
