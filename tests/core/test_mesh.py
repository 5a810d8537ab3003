"""Meshes without I/O: registries agree on every topology, within the bounds of FEDERATION.md, and fall silent."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest

from kodo.core.peers import GATHERING
from kodo.core.registry import Profile
from kodo.models import Key
from kodo.sim import Message
from tests.core.generators import links
from tests.core.runs import TOPOLOGIES
from tests.core.world import World


def mesh(edges: list[tuple[int, int]], seed: int = 0, page: int = 2**23) -> tuple[World, list[Key]]:
    """Registries r0, r1, ...; each edge is a connection that the first opens to the second."""
    world = World(seed, page=page)
    size = 1 + max(max(edge) for edge in edges)
    keys = [world.add(f"r{i}", [f"r{b}" for a, b in edges if a == i]) for i in range(size)]
    world.run(5)
    world.settle()
    return world, keys


def told(world: World) -> list[Message]:
    """The messages that were no beacons."""
    return [message for message in world.messages if message.kind != "beacon"]


def body(message: Message) -> Any:
    return orjson.loads(message.body or b"")


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_change_is_listed_everywhere_within_the_bound_of_pushes(name: str) -> None:
    """One registration costs at most 2E - V + 1 pushes, then there is silence, and all list the same."""
    world, keys = mesh(TOPOLOGIES[name])
    for at, key in enumerate(keys):
        world.sent.clear()
        world.register(key, f"n{at}", ["x", "y"])
        world.settle()
        bound = 2 * links(TOPOLOGIES[name]) - len(keys) + 1
        assert 0 < world.sent["/update/node"] <= bound
        assert world.sent["/connect"] == 0
        assert all(listing == world.listing(keys[0]) for listing in world.listings())
        assert len(world.listing(keys[0])) == 2 * (at + 1)
    sent = world.news
    world.run(3600)
    assert world.news == sent


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_burst_is_gathered(name: str) -> None:
    """A burst inside one gathering window costs at most 2E pushes beside those of its first change."""
    world, keys = mesh(TOPOLOGIES[name])
    world.sent.clear()
    for at in range(20):
        world.register(keys[0], f"n{at}")
        world.run(0.002)
    world.settle()
    assert world.sent["/update/node"] <= 2 * 2 * links(TOPOLOGIES[name])
    assert all(len(listing) == 20 for listing in world.listings())


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_time_to_agree(name: str) -> None:
    """The first news of a burst crosses the mesh without waiting: each hop costs its latency alone."""
    world, keys = mesh(TOPOLOGIES[name])
    world.run(1)
    world.register(keys[0], "n0")
    world.run(0.01 * len(keys) + 0.001)
    assert all(len(listing) == 1 for listing in world.listings())


@pytest.mark.parametrize("seed", range(12))
def test_registries_agree_after_faults(seed: int) -> None:
    """After losses, doubles, reordering, cuts, restarts, lost disks and wrong clocks all list the same again."""
    chance = random.Random(seed)
    edges = TOPOLOGIES[chance.choice(list(TOPOLOGIES))]
    world, keys = mesh(edges, seed, page=chance.choice([600, 2**23]))
    for key in keys:
        world.set_clock(key, chance.choice([0.0, 0.0, 3600.0, -7200.0]))
    world.faults.loss = world.faults.answer_loss = world.faults.doubles = 0.2
    world.faults.latency = (0.001, 0.5)
    for _ in range(60):
        key = chance.choice(keys)
        match chance.randrange(10):
            case 0:
                world.restart(key)
            case 1:
                one, other = chance.sample(keys, 2)
                world.faults.cuts ^= {(one, other), (other, one)}
            case _:
                world.register(key, f"n{chance.randrange(12)}", chance.sample("abcdef", chance.randrange(4)))
        world.run(chance.uniform(0, 2))
    world.faults.heal()
    # Beacons repair what nobody speaks of any more; until they are there, a last change at each does.
    world.run(130)
    for at, key in enumerate(keys):
        world.register(key, f"last{at}")
        world.run(5)
    world.run(130)
    world.settle()
    for key, listing in zip(keys, world.listings(), strict=True):
        assert listing == world.listing(keys[0]), key
    assert len(world.listing(keys[0])) >= len(keys)


def test_a_registry_that_lost_its_disk_is_told_everything_again() -> None:
    """A registry that starts without its cache asks anew, and lists what the others list."""
    world, keys = mesh(TOPOLOGIES["chain"])
    for at, key in enumerate(keys):
        world.register(key, f"n{at}")
    world.settle()
    before = [row for row in world.listing(keys[1]) if row["node"] != "http://n2:1"]
    world.restart(keys[2], keep_disk=False)
    world.run(5)
    world.settle()
    assert [row for row in world.listing(keys[2]) if row["node"] != "http://n2:1"][:2] == before[:2]
    world.register(keys[4], "again")
    world.run(130)
    world.settle()
    assert all(listing == world.listing(keys[0]) for listing in world.listings())


def test_a_lost_disk_is_noticed_by_a_peer_with_news() -> None:
    """Who lost its disk and connects with nobody is known again, and told all, by the next news that it is sent."""
    world, keys = mesh([(1, 0), (2, 1)])
    for at, key in enumerate(keys):
        world.register(key, f"n{at}")
    world.settle()
    world.restart(keys[0], keep_disk=False)
    assert world.listing(keys[0]) == []
    world.register(keys[1], "news")
    world.run(5)
    assert [row["node"] for row in world.listing(keys[0])] == ["http://n1:1", "http://n2:1", "http://news:1"]
    assert world.listings() == [world.listing(keys[0])] * 3


def test_an_unchanged_registration_is_told_as_times_alone() -> None:
    """A node that registers the same again costs its peers its times, and not its flows."""
    world, keys = mesh(TOPOLOGIES["pair"])
    world.register(keys[0], "n0", ["x"])
    world.settle()
    world.run(1)
    world.register(keys[0], "n0", ["x"])
    world.settle()
    (record,) = body(told(world)[-1])["deltas"][0]["records"].values()
    assert "flows" not in record["node"]
    assert world.listing(keys[0]) == world.listing(keys[1])
    assert len(world.listing(keys[1])) == 1


def test_a_large_part_comes_in_pages_and_shows_whole() -> None:
    """A part too large for one message comes in pages; nothing of it is listed before the last."""
    world = World(page=2000)
    first = world.add("r0")
    for at in range(40):
        world.register(first, f"n{at:02}", ["x"])
    second = world.add("r1", ["r0"])
    world.run(1)
    world.faults.partition([first], [second])
    for at in range(40):
        world.register(first, f"n{at:02}", ["x", "y"])
    world.run(100)
    world.faults.heal()
    seen = set()
    for _ in range(40_000):
        world.run(0.005)
        seen.add(len(world.listing(second)))
        if len(world.listing(second)) == 80:
            break
    assert seen == {40, 80}
    assert sum(message.kind == "/update/node" for message in world.messages) > 5


def test_whoever_connects_with_a_provider_falls_silent() -> None:
    """A provider takes nothing of what a registry brings along, and neither asks the other for ever."""
    world = World()
    world.add("p", provider=True)
    registry = world.add("r0", ["p"])
    world.run(5)
    world.register(registry, "n0")
    world.restart(registry)
    world.run(60)
    sent = world.news
    assert world.settle() < 1
    world.run(600)
    assert world.news == sent


def test_news_of_a_provider_reaches_whom_it_connected_with() -> None:
    """A provider offers its nodes when it connects and tells their changes; it integrates none of the others'."""
    world = World()
    registry = world.add("r0")
    world.register(registry, "n0")
    provider = world.add("p", ["r0"], provider=True)
    world.run(1)
    world.register(provider, "n1")
    world.run(1)
    world.settle()
    assert [row["node"] for row in world.listing(registry)] == ["http://n0:1", "http://n1:1"]
    assert [row["node"] for row in world.listing(provider)] == ["http://n1:1"]


def test_a_registry_brings_its_nodes_when_it_connects() -> None:
    """The first `/connect` carries what the registry has, readable for services that know no deltas."""
    world = World()
    first = world.add("r0")
    second = world.add("r1")
    world.register(second, "n1")
    world.sites[second].profile = Profile("http://r1:1", connect=("http://r0:1",))
    world.restart(second)
    (message,) = [message for message in world.messages if message.route == "/connect"]
    assert list(body(message)["nodes"]) == ["http://n1:1"]
    world.run(0.011)
    assert len(world.listing(first)) == 1


def test_a_peer_that_does_not_take_is_not_asked_in_a_hurry() -> None:
    """A peer that answers and takes nothing, since it became a provider, is greeted, believed, and told no more."""
    world, keys = mesh(TOPOLOGIES["pair"])
    world.sites[keys[1]].profile = Profile("http://r1:1", provider=True)
    world.restart(keys[1])
    world.run(5)
    world.sent.clear()
    world.register(keys[0], "n0")
    world.run(120)
    assert world.news <= 4
    world.settle()


def test_pages_wait_for_nothing() -> None:
    """What follows soon after other news is gathered with more; the next page of the same news leaves at once."""
    world = World(page=600)
    world.faults.latency = (0.001, 0.001)
    first, second = world.add("r0"), world.add("r1", ["r0"])
    world.run(1)
    for at in range(40):
        world.register(first, f"n{at:02}", ["x"])
    world.run(5 * GATHERING)
    assert len(world.listing(second)) == 40
    assert sum(message.kind == "/update/node" for message in world.messages) > 10


def test_two_neighbours_page_the_same_part_without_harm() -> None:
    """Two peers that send pages of the same origin at once do not undo each other's."""
    world = World(3, page=2000)
    world.faults.latency = (0.01, 0.3)
    first = world.add("r0")
    for at in range(60):
        world.register(first, f"n{at:02}", ["x"] * 3)
    second = world.add("r1", ["r0"])
    world.run(60)
    third = world.add("r2", ["r0", "r1"])
    world.run(60)
    assert len(world.listing(third)) == len(world.listing(second)) == 60
    assert world.settle() < 1


def test_one_peer_under_two_names_is_told_once_and_all() -> None:
    """A peer that is configured under two names is one peer, and nothing of what it says is lost."""
    world = World()
    other = world.add("r0")
    world.register(other, "early")
    world.alias("alias", of="r0")
    one = world.add("r1", ["r0", "alias"])
    world.register(other, "late")
    world.run(5)
    world.settle()
    assert [row["node"] for row in world.listing(one)] == ["http://early:1", "http://late:1"]


def test_a_registry_that_is_back_is_told_at_once() -> None:
    """A registry that was away for long greets those it knew, and need not wait for their pauses to end."""
    world = World()
    taker = world.add("r0")
    provider = world.add("p", ["r0"], provider=True)
    world.run(1)
    world.crash(taker)
    world.register(provider, "n1")
    world.run(600)
    world.restart(taker)
    world.run(2)
    assert [row["node"] for row in world.listing(taker)] == ["http://n1:1"]
