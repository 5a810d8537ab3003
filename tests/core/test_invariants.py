"""What is promised of any mesh and any order of messages (invariants 5, 8 and 9 of FEDERATION.md)."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kodo.core.registry import Timing
from kodo.errors import UnknownServiceError
from kodo.sim import World as Simulated
from kodo.sim.world import key_of
from tests.core.generators import QUICK, leave, mesh, same
from tests.core.steps import FAR, Desk, delta, record, url_of, v
from tests.core.world import World

WINDOW, LATENCY = 0.1, 0.01
SILENT = Timing(beacon=10_000)


def random_graph(seed: int, size: int, extra: int) -> list[tuple[int, int]]:
    """The links of a connected graph: a random tree, and some more."""
    chance = random.Random(seed)
    tree = [(node, chance.randrange(node)) for node in range(1, size)]
    others = [pair for pair in combinations(range(size), 2) if pair not in tree and pair[::-1] not in tree]
    return tree + [(b, a) for a, b in chance.sample(others, min(extra, len(others)))]


def diameter(size: int, edges: list[tuple[int, int]]) -> int:
    """The longest of the shortest ways between two."""
    near = {node: {b for a, b in (*edges, *((b, a) for a, b in edges)) if a == node} for node in range(size)}

    def farthest(start: int) -> int:
        seen, front, steps = {start}, {start}, 0
        while front := set().union(*(near[node] for node in front)) - seen:
            seen |= front
            steps += 1
        return steps

    return max(map(farthest, range(size)))


def _swallows(world: Simulated) -> None:
    world.faults.cuts = {(key_of("r0"), key_of("r5")), (key_of("r5"), key_of("r0"))}


def _answers_late(world: Simulated) -> None:
    world.faults.slow[key_of("r5")] = 9.9


def _is_gone(world: Simulated) -> None:
    world.crash("r5")


def _arrivals(harm: Callable[[Simulated], None] | None) -> list[list[float]]:
    """For each of many registrations at the middle of a star, the moments at which the sound peers heard of it."""
    world = Simulated(timing=SILENT)
    world.add("r0")
    for at in range(1, 6):
        world.add(f"r{at}", ["r0"])
    world.settle()
    if harm is not None:
        harm(world)
    heard = []
    for number in range(100):
        world.messages.clear()
        world.register("r0", f"n{number}")
        world.run(0.5)
        told = [message for message in world.messages if message.target != key_of("r5") and message.nodes]
        heard.append([(message.arrived or inf) - message.at for message in told])
    return heard


@pytest.mark.parametrize("harm", [_swallows, _answers_late, _is_gone])
def test_a_bad_peer_delays_no_other(harm: Callable[[Simulated], None]) -> None:
    """Invariant 12: with a peer that swallows, answers late or is gone, the others hear of all as soon as without."""
    among = _arrivals(harm)
    assert among == _arrivals(None)
    assert all(len(heard) == 4 and max(heard) < WINDOW for heard in among)


@pytest.mark.parametrize("seed", range(8))
def test_messages_and_time_stay_within_their_bounds(seed: int) -> None:
    """On random graphs with cycles a change costs at most 2E - V + 1 pushes and D hops, and a burst 2E pushes more."""
    size = 3 + seed * 2
    edges = random_graph(seed, size, extra=seed)
    world, names = mesh(seed, edges, SILENT)
    world.run(1)
    before = world.pushes
    world.register(names[0], "n0")
    world.run(diameter(size, edges) * LATENCY + 0.001)
    same(world, names)
    world.settle()
    assert world.pushes - before <= 2 * len(edges) - size + 1
    world.run(1)
    before = world.pushes
    for at in range(20):
        world.register(names[-1], f"n{at}")
        world.run(WINDOW / 25)
    world.settle()
    assert world.pushes - before <= 2 * 2 * len(edges) - size + 1
    same(world, names)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_order_of_deltas_gives_the_same(data: st.DataObject) -> None:
    """Deltas that come in any order, doubled and split as they may, end in what the origin wrote."""
    length = data.draw(st.integers(2, 8))
    nodes = [data.draw(st.sampled_from("abc")) for _ in range(length)]
    gone = [data.draw(st.booleans()) for _ in range(length)]

    def between(since: int, to: int) -> dict[str, Any]:
        """What changed after one count up to another, each node as it was at the other."""
        last = {nodes[at]: at for at in range(since, to)}
        records = [record(at + 1, node, gone=gone[at]) for node, at in sorted(last.items())]
        return delta("far", v(since) if since else v(0, 0, ""), v(to), *records)

    spans = data.draw(st.lists(st.tuples(st.integers(0, length - 1), st.integers(1, length)), max_size=12))
    cuts = sorted({0, length, *data.draw(st.sets(st.integers(1, length), max_size=4))})
    made = Desk()
    made.connect("peer")
    for since, to in [span for span in spans if span[0] < span[1]]:
        made.update("peer", between(since, to))
    for since, to in pairwise(cuts):
        made.update("peer", between(since, to))
        made.update("peer", between(since, to))
    assert list(made.registry.parts[FAR].version) == v(length)
    alive = {node for node, at in {nodes[at]: at for at in range(length)}.items() if not gone[at]}
    held = {row.url for (origin, _), row in made.store.records.items() if origin == FAR and not row.gone}
    assert held == {url_of(node) for node in alive}


@pytest.mark.parametrize("seed", range(6))
def test_runs_with_and_without_clean_up_end_alike(seed: int) -> None:
    """Whether tombstones are dropped early or never makes no difference to what is listed in the end."""
    assert _listed(seed, QUICK.tombstones) == _listed(seed, 1e9)


def _listed(seed: int, tombstones: float) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    world, names = mesh(seed, [(1, 0), (2, 1), (3, 0), (3, 2)], replace(QUICK, grace=100_000, tombstones=tombstones))
    for name in names:
        world.register(name, f"of-{name}")
        world.run(1)
    world.settle()
    for _ in range(30):
        _happen(world, chance, chance.choice(names))
        world.run(chance.uniform(1, 8))
    for name in names:
        world.resume(name)
    world.run(150)
    same(world, names)
    return [(row["node"], row["url"]) for row in world.listing(names[0])]


def _happen(world: World, chance: random.Random, name: str) -> None:
    node, what, flows = f"n{chance.randrange(5)}", chance.random(), chance.sample("abc", 2)
    if world.member(name).paused:
        world.resume(name)
    elif what < 0.15:
        world.pause(name)
    elif what < 0.45:
        with suppress(UnknownServiceError):
            leave(world, name, node)
    else:
        world.register(name, node, flows)
