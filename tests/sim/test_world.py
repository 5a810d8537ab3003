"""The simulator does what it says: one seed one run, faults that show, clocks, pauses, crashes, and older services."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import networkx as nx
import pytest

from kodo.core import events as ev
from kodo.core.instructions import Entry, Save
from kodo.core.registry import Timing
from kodo.errors import SimulationError
from kodo.models import Farewell
from kodo.sim import Message, Store
from kodo.sim.world import key_of
from tests.core.world import World

PLACES = {
    "chain": [(1, 0), (2, 1), (3, 2)],
    "star": [(1, 0), (2, 0), (3, 0)],
    "ring": [(1, 0), (2, 1), (3, 2), (3, 0)],
}


def noisy(seed: int) -> World:
    """A ring under every fault of the links, with a few registrations."""
    world = World.from_graph(nx.cycle_graph(4), seed)
    world.run(5)
    faults = world.faults
    faults.loss = faults.answer_loss = faults.doubles = faults.reorder = 0.3
    faults.latency = (0.001, 0.2)
    for at in range(20):
        world.register(f"r{at % 4}", f"n{at % 6}", ["a", "b"][: at % 3])
        world.run(1)
    return world


def test_one_seed_is_one_run() -> None:
    """The same seed gives the same messages to the byte; another seed gives others."""
    one, same, other = noisy(1), noisy(1), noisy(2)
    assert list(one.messages) == list(same.messages)
    assert list(one.messages) != list(other.messages)


def test_every_fault_of_the_links_had_an_effect() -> None:
    """Each knob is counted by what it did, and the mesh agrees once all are turned back."""
    world = noisy(3)
    assert all(world.effects[name] for name in ("loss", "answer_loss", "doubles", "reorder", "latency"))
    world.faults.heal()
    world.run(200)
    world.settle()
    assert world.missing() == []
    assert {message.outcome for message in world.messages} >= {"delivered", "lost", "answer lost"}


def test_a_graph_becomes_a_mesh_within_its_bound() -> None:
    """Each edge is a connection that one end opens, and a change costs at most 2E - V + 1 pushes."""
    graph = nx.random_regular_graph(4, 30, seed=5)
    world = World.from_graph(graph)
    world.settle()
    assert world.sent["/connect"] == graph.number_of_edges()
    before = world.pushes
    world.register("r0", "n0")
    assert world.settle() < 1
    assert world.pushes - before <= 2 * graph.number_of_edges() - graph.number_of_nodes() + 1
    assert world.missing() == []
    assert world.news == world.pushes + graph.number_of_edges()


def test_anything_with_nodes_and_edges_is_a_graph() -> None:
    """A graph needs no networkx; names that are no numbers are kept."""

    class Graph:
        nodes = ("b", "a")
        edges = (("a", "b"),)

    world = World.from_graph(Graph())
    assert [site.profile.connect for site in world.sites.values()] == [(), ("http://b:1",)]


def test_a_cut_has_a_direction() -> None:
    """What is cut from one to the other still passes the other way; its answers do not."""
    world = World()
    one, other = world.add("r1"), world.add("r2", ["r1"])
    world.settle()
    world.faults.cuts = {(one, other)}
    world.register("r2", "n2")
    world.run(1)
    assert world.messages[-1].outcome == "answer lost"
    assert [row["node"] for row in world.listing("r1")] == ["http://n2:1"]
    world.register("r1", "n1")
    world.run(1)
    assert world.messages[-1].outcome == "lost"
    assert len(world.listing("r2")) == 1
    with pytest.raises(SimulationError, match=r"r1 owes r2 news of r1 .*cut r1->r2"):
        world.settle(5)


def test_a_slow_peer_is_given_up_at_the_deadline() -> None:
    """A peer that answers after the deadline has taken the message all the same; the sender tells it again."""
    world = World()
    world.add("r1")
    slow = world.add("r2", ["r1"])
    world.settle()
    world.faults.slow = {slow: 11.0}
    world.register("r1", "n1")
    world.run(1)
    assert len(world.listing("r2")) == 1
    world.run(10)
    assert world.effects["slow"] > 0
    assert world.effects["deadline"] == 1
    world.faults.heal()
    world.run(30)
    world.settle()


def test_a_paused_registry_gets_everything_when_it_goes_on() -> None:
    """While it is paused nothing reaches it, and its timers wait; afterwards it has all, in order."""
    world = World()
    world.add("r1")
    world.add("r2", ["r1"])
    world.settle()
    world.pause("r2")
    steps = world.steps
    world.register("r1", "n1")
    world.run(5)
    assert world.steps == steps + 1
    assert world.listing("r2") == []
    with pytest.raises(SimulationError, match="r2 is paused"):
        world.settle(1)
    with pytest.raises(SimulationError, match="resume r2 first"):
        world.register("r2", "n2")
    world.resume("r2")
    world.run(1)
    assert len(world.listing("r2")) == 1
    assert world.effects["pause"] == 1
    world.settle()


def test_a_crash_loses_what_was_lazy_and_nothing_else() -> None:
    """What a registry acknowledged is there after a crash; what it had noted of its peers it asks again."""
    world = World()
    world.add("r1")
    world.add("r2", ["r1"])
    world.settle()
    world.register("r1", "n1")
    world.settle()
    listed = world.listing("r1")
    world.crash("r1")
    assert world.effects["unsaved"] > 0
    world.run(5)
    world.restart("r1")
    world.settle()
    assert world.listing("r1") == listed
    assert world.missing() == []


def test_a_copied_disk_writes_no_history_twice() -> None:
    """A registry on an older copy of its disk takes a new epoch, and what it writes then reaches all."""
    world = World()
    world.add("r1")
    world.add("r2", ["r1"])
    world.settle()
    copy = world.copy_disk("r1")
    world.register("r1", "n1")
    world.settle()
    world.restart("r1", disk=copy)
    world.register("r1", "n2")
    world.run(5)
    world.settle()
    assert world.effects["copied disk"] == 1
    assert world.missing() == []
    assert [row["node"] for row in world.listing("r2")] == ["http://n2:1"]


def test_a_wrong_clock_stamps_and_times_nothing_else() -> None:
    """A clock that is an hour ahead shows in what is stamped, not in when things happen."""
    world = World()
    world.add("r1", skew=3600.0)
    world.add("r2", ["r1"])
    assert world.settle() < 0.1
    world.register("r1", "n1")
    world.settle()
    assert str(world.listing("r2")[0]["modified"]).startswith("2024-12-25T19:00:00")
    assert world.effects["skew"] > 0


def test_a_node_on_the_core_registers_by_itself() -> None:
    """A pure node is a member like any other: it registers where it is to, as soon as that is there."""
    world = World()
    world.add("n1", ["r1"], registry=False, flows=["a"])
    world.run(1)
    registry = world.add("r1")
    world.settle()
    assert [row["url"] for row in world.listing(registry)] == ["/a"]
    assert world.sent["/register"] > 1


@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("name", PLACES)
def test_an_older_service_stands_anywhere(name: str, where: int) -> None:
    """With an older service in any place of a chain, star or ring all list the same, and then there is silence."""
    world = World(where)
    for at in range(4):
        connect = [f"r{other}" for one, other in PLACES[name] if one == at]
        world.add_old(f"r{at}", connect) if at == where else world.add(f"r{at}", connect)
    world.settle()
    for at in range(4):
        world.register(f"r{at}", f"n{at}", ["x"])
        world.settle()
        assert world.missing() == []
    world.run(1)
    world.register("r0", "n3", ["y", "z"])
    world.settle()
    assert world.missing() == []
    listings = [[(row["node"], row["url"], row["modified"]) for row in world.listing(f"r{at}")] for at in range(4)]
    assert all(listing == listings[0] for listing in listings)
    assert len(listings[0]) == 5
    sent = world.news
    world.run(3600)
    assert world.news == sent


@pytest.mark.parametrize("pair", list(combinations(range(4), 2)))
def test_two_older_services_do_not_tell_each_other_for_ever(pair: tuple[int, int]) -> None:
    """Two older services in one ring, next to each other or not, leave a silent mesh."""
    world = World()
    for at in range(4):
        connect = [f"r{other}" for one, other in PLACES["ring"] if one == at]
        world.add_old(f"r{at}", connect) if at in pair else world.add(f"r{at}", connect)
    world.settle()
    for at in range(4):
        world.register(f"r{at}", "n", [f"x{at}"])
        world.run(3)
    world.settle()
    assert world.missing() == []
    sent = world.news
    world.run(3600)
    assert world.news == sent


def test_an_older_service_that_was_away_is_told_in_pages() -> None:
    """A part of many pages whose old tombstones were forgotten meanwhile is told once, page by page, to its end."""
    world = World(timing=Timing(beacon=2, tombstones=4), page=600)
    world.add("r0")
    world.add("r1", ["r0"])
    world.add_old("old", ["r0"])
    world.run(5)
    world.faults.cuts = {(key_of("r0"), key_of("old")), (key_of("old"), key_of("r0"))}
    for at in range(12):
        world.register("r0", f"n{at}", ["a"])
    registry = world.site("r0")
    goodbye = Farewell(url="http://n11:1")
    world.step(registry.key, ev.Disconnect(world._instant(registry), ticket=0, message=goodbye))
    world.register("r0", "n0", ["a"])
    world.run(80)
    assert registry.registry.own.floor.seq > 12
    before = world.pushes
    world.faults.cuts = set()
    world.run(120)
    assert world.missing() == []
    assert 3 < world.pushes - before < 10


@pytest.mark.parametrize("how", ["it leaves", "it begins anew"])
def test_an_older_service_hears_what_a_snapshot_takes_away(how: str) -> None:
    """What a registry that left, or lost its disk, had is listed by an older service no more; what others have is."""
    world = World(page=600)
    world.add("r0")
    world.add("r1", ["r0"])
    world.add_old("old", ["r1"])
    world.run(1)
    for at in range(12):
        world.register("r0", f"n{at}", ["a"])
    world.settle()
    world.register("r1", "n0", ["b"])
    world.settle()
    assert len(world.listing("old")) == 12
    if how == "it leaves":
        world.leave("r0")
    else:
        world.restart("r0", keep_disk=False)
        world.settle()
        world.register("r0", "n1", ["c"])
    world.settle()
    assert world.listing("old")
    assert [(row["node"], row["url"]) for row in world.listing("old")] == [
        (row["node"], row["url"]) for row in world.listing("r1")
    ]


def test_messages_are_plain_records() -> None:
    """The log tells of each message when, from whom, to whom, by which route, what became of it, bytes and nodes."""
    world = World()
    one, other = world.add("r1"), world.add("r2", ["r1"])
    world.settle()
    world.register("r1", "n1")
    world.settle()
    told = world.messages[-1]
    assert isinstance(told, Message)
    assert (told.source, told.target, told.route, told.kind) == (one, other, "/update/node", "/update/node")
    assert (told.outcome, told.nodes, told.bytes) == ("delivered", 1, len(told.body or b""))
    assert world.bytes.total() == sum(message.bytes for message in world.messages)


def test_a_long_log_may_be_cut() -> None:
    """A world may keep the last messages alone; what is counted is counted all the same."""
    world = World(log=2)
    world.add("r1")
    world.add("r2", ["r1"])
    for at in range(9):
        world.register("r1", f"n{at}")
        world.settle()
    assert len(world.messages) == 2
    assert world.sent.total() > 2


def test_names_are_told_when_one_is_wrong() -> None:
    """A service that is not there is an error that names those that are."""
    world = World()
    world.add("r1")
    world.add_old("o")
    with pytest.raises(SimulationError, match="expected the name of a service of this mesh: r1, o"):
        world.listing("r2")
    with pytest.raises(SimulationError, match="o is an older service"):
        world.copy_disk("o")
    with pytest.raises(SimulationError, match="r1 is a service already"):
        world.add("r1")


class Forgetful(Store):
    """A disk that forgets every record it is told of."""

    def write(self, save: Save) -> None:
        super().write(replace(save, entries=(), staged=()))


class Garbling(Store):
    """A disk that keeps other flows than it is told."""

    def _writing(self, entry: Entry) -> Any:
        return super()._writing(entry)._replace(flows="{}", size=0)


@pytest.mark.parametrize(
    ("disk", "told"),
    [
        (Forgetful, "counts of http://r1:1 what it does not hold"),
        (Garbling, "holds what http://r1:1 never was"),
    ],
)
def test_the_checks_bite(disk: type[Store], told: str) -> None:
    """A disk that holds something else than it was told is found out, by what it counts or by what its origin was."""
    world = World()
    world.add("r1")
    world.add("r2", ["r1"])
    world.settle()
    site = world.site("r2")
    site.disk = disk(site.url)
    site.disk.write(Save(parts=tuple(site.registry.parts.values())))
    world.register("r1", "n1")
    with pytest.raises(AssertionError, match=told):
        world.settle()


def test_marks_never_fall() -> None:
    """A disk that is exchanged for an older one behind the world's back is found out by marks that fall."""
    world = World()
    world.add("r1")
    world.add("r2", ["r1"])
    world.register("r1", "n1")
    world.settle()
    old = world.copy_disk("r2")
    world.register("r1", "n1", ["b"])
    world.settle()
    world.crash("r2")
    world.site("r2").disk = old
    with pytest.raises(AssertionError, match="r2:1 fell back on http://r1:1"):
        world.restart("r2")


def test_leaving_is_answered_when_all_were_told() -> None:
    """A service that leaves is answered once its peers know, and is gone everywhere."""
    world = World()
    world.add("r1")
    world.add("r2", ["r1"])
    world.add("r3", ["r2"])
    world.settle()
    world.register("r3", "n3")
    world.settle()
    asked = world.leave("r3")
    assert asked.reply is None
    world.settle()
    assert asked.reply is not None
    assert world.listing("r1") == world.listing("r2") == []


def test_a_registration_may_wait_for_the_mesh() -> None:
    """The answer to a registration that waits comes once every registry has it, or names who is missing."""
    world = World.from_graph(nx.path_graph(4))
    world.settle()
    asked = world.register_and_wait("r0", "n0", ["a"], wait=5)
    assert asked.reply is None
    world.run(1)
    assert asked.reply is not None
    assert all(len(listing) == 1 for listing in world.listings())
    assert world.sent["receipt"] + world.pushes > 0


def test_beacons_are_counted_apart() -> None:
    """Beacons are bounded by two a connection and interval, and are no news; they repair a lost disk."""
    world = World.from_graph(nx.cycle_graph(4))
    world.settle()
    world.register("r0", "n0")
    world.settle()
    news = world.news
    world.run(100)
    assert world.news == news
    assert 0 < world.sent["beacon"] <= 2 * 4 * 100 / (10 * 0.8)
    world.restart("r2", keep_disk=False)
    world.run(30)
    assert world.missing() == []
