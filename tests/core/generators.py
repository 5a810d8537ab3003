"""Meshes that lead straight to where one rule is needed: each raises when something is not as it should be.

The random runs of `tests.core.runs` meet most rules often and some of them almost never; these meet theirs every time.
A seed varies latencies and what is random in the core.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from kodo.core import events as ev
from kodo.core.registry import DEADLINE, Timing
from kodo.models import Farewell, canonical
from kodo.sim.world import key_of
from tests.core.runs import TOPOLOGIES
from tests.core.world import World

QUICK = Timing(lease=3, retention=20, beacon=2, grace=60, tombstones=10)
SLOW_BEACONS = Timing(beacon=10_000)


def mesh(
    seed: int, edges: Iterable[tuple[int, int]], timing: Timing = QUICK, **given: object
) -> tuple[World, list[str]]:
    """Registries r0, r1, ... at rest; each edge is a connection that the first opens to the second."""
    edges = list(edges)
    world = World(seed, timing=timing, bodies=False, **given)
    names = [f"r{i}" for i in range(1 + max(max(edge) for edge in edges))]
    for i, name in enumerate(names):
        world.add(name, [f"r{b}" for a, b in edges if a == i])
    world.run(5)
    world.settle()
    return world, names


def same(world: World, names: Sequence[str]) -> None:
    """All list the same."""
    listings = [world.listing(name) for name in names]
    assert all(listing == listings[0] for listing in listings), f"they differ: {world.missing()}"


def links(edges: Iterable[tuple[int, int]]) -> int:
    """The links of connections that may be opened from both sides."""
    return len({frozenset(edge) for edge in edges})


def gap(seed: int) -> None:
    """A receiver loses its disk just before a delta, whose answer it gave before (rule 4)."""
    world, names = mesh(seed, [(1, 0)], SLOW_BEACONS)
    world.register("r0", "n0")
    world.settle()
    world.faults.latency = (0.2, 0.2)
    world.register("r0", "n1")
    world.run(0.1)
    world.restart("r1", keep_disk=False)
    world.faults.cuts = {(key_of("r1"), key_of("r0"))}
    world.run(0.5)
    world.faults.heal()
    world.run(30)
    same(world, names)


def lost_disk_at_the_same_second(seed: int) -> None:
    """An origin loses its disk, and its clock is set back to when it had started first (rules 2 and 10)."""
    world, names = mesh(seed, [(1, 0), (2, 1)])
    world.register("r0", "n0", ["a"])
    world.settle()
    world.set_clock("r0", -world.clock)
    world.restart("r0", keep_disk=False)
    world.register("r0", "n1", ["b"])
    world.run(30)
    same(world, names)
    assert [row["name"] for row in world.listing("r2")] == ["b"]


def pages_show_at_once(seed: int) -> None:
    """A part that comes in pages is shown when it is whole (rules 3 and 5)."""
    world, _ = mesh(seed, [(1, 0)], page=1000)
    for at in range(30):
        world.register("r0", f"n{at:02}")
    world.settle()
    world.faults.partition([key_of("r0")], [key_of("r1")])
    world.run(1)
    for at in range(30):
        world.register("r0", f"n{at:02}", ["x", "y"])
    world.faults.heal()
    seen = set()
    for _ in range(4000):
        world.run(0.01)
        seen.add(len(world.listing("r1")))
    assert seen == {30, 60}, f"r1 showed {sorted(seen)} flows on the way"


def slept_through_tombstones(seed: int) -> None:
    """Who was away while a node left, and its tombstone was dropped, lists it no more once it is back (rules 5, 6)."""
    timing = replace(QUICK, grace=10_000, tombstones=10)
    world, names = mesh(seed, [(1, 0)], timing)
    world.register("r0", "n0")
    world.register("r0", "n1")
    world.settle()
    world.crash("r1")
    leave(world, "r0", "n0")
    world.run(60)
    world.register("r0", "n2")
    world.restart("r1")
    world.run(60)
    same(world, names)
    assert {row["node"] for row in world.listing("r1")} == {"http://n1:1", "http://n2:1"}
    tombstones = [record for record in world.site("r0").disk.records(key_of("r0")) if record.row.gone]
    assert not tombstones, "a tombstone stayed, so that nothing was tried"


def left_while_another_was_away(seed: int) -> None:
    """A node that left while a registry with an older registration was away stays gone when that is back (rule 6)."""
    timing = replace(QUICK, grace=10_000, tombstones=10)
    world, names = mesh(seed, [(1, 0), (2, 0)], timing)
    world.register("r1", "n0")
    world.run(2)
    world.register("r0", "n0")
    world.settle()
    world.crash("r1")
    leave(world, "r0", "n0")
    world.run(100)
    world.restart("r1")
    world.run(60)
    same(world, names)
    assert world.listing("r2") == [], "a node that left is back"


def message_bound(seed: int) -> None:
    """A change costs at most 2E - V + 1 pushes (rule 7)."""
    for edges in TOPOLOGIES.values():
        world, names = mesh(seed, edges, SLOW_BEACONS)
        before = world.pushes
        world.register(names[seed % len(names)], "n0")
        world.settle()
        pushes = world.pushes - before
        assert pushes <= 2 * links(edges) - len(names) + 1, f"{pushes} pushes on {edges}"
        same(world, names)


def burst(seed: int) -> None:
    """What comes in one window costs each link one push more (rule 8)."""
    edges = TOPOLOGIES["ring"]
    world, names = mesh(seed, edges, SLOW_BEACONS)
    world.faults.latency = (0.001, 0.001)
    before = world.pushes
    for at in range(30):
        world.register("r0", f"n{at}")
        world.run(0.003)
    world.settle()
    pushes = world.pushes - before
    assert pushes <= 2 * 2 * links(edges), f"{pushes} pushes for a burst"
    same(world, names)


def one_at_a_time(seed: int) -> None:
    """While a peer takes its time, nothing else is sent to it (rule 8)."""
    world, names = mesh(seed, [(1, 0)], SLOW_BEACONS)
    world.faults.slow[key_of("r1")] = 4.0
    before = world.pushes
    for at in range(10):
        world.register("r0", f"n{at}")
        world.run(0.3)
    assert world.pushes - before == 1, f"{world.pushes - before} messages to a peer that has not answered the first"
    world.settle()
    same(world, names)


def back_after_an_hour(seed: int) -> None:
    """Who is heard of after an hour is told once the last try is over, though pauses had grown long (rule 9)."""
    world, names = mesh(seed, [(1, 0)], SLOW_BEACONS)
    world.faults.partition([key_of("r0")], [key_of("r1")])
    world.register("r0", "n0")
    world.run(3600)
    world.faults.heal()
    world.register("r1", "n1")
    world.run(DEADLINE + 1)
    same(world, names)


def lost_push(seed: int) -> None:
    """A push that was lost is made again, though there is no other news (rule 7)."""
    world, names = mesh(seed, [(1, 0)], SLOW_BEACONS)
    world.faults.drops = {(key_of("r0"), key_of("r1")): 1}
    world.register("r0", "n0")
    world.run(DEADLINE + 5)
    same(world, names)


def older_disk(seed: int) -> None:
    """An origin on an older disk, with its clock set back, is heard again, and others have what it has (rule 10)."""
    world, names = mesh(seed, [(1, 0), (2, 1)])
    world.register("r0", "n0", ["a"])
    world.settle()
    copied = world.copy_disk("r0")
    world.run(60)
    world.restart("r0")
    world.register("r0", "n0", ["b"])
    world.run(5)
    world.set_clock("r0", -10_000)
    world.restart("r0", disk=copied)
    world.register("r0", "n1", ["c"])
    world.run(30)
    same(world, names)
    assert {row["name"] for row in world.listing("r2")} == {"a", "c"}


def lost_disk_in_silence(seed: int) -> None:
    """Who lost its disk, opens no connection and is owed nothing is told all again, without any news (rule 11)."""
    world, names = mesh(seed, [(1, 0), (2, 1)])
    for name in names[1:]:
        world.register(name, f"n{name[1:]}")
    world.settle()
    world.restart("r0", keep_disk=False)
    world.run(4 * QUICK.beacon)
    same(world, names)


def dead_peer(seed: int) -> None:
    """A peer that is gone is asked ever more seldom (rule 9)."""
    world, _ = mesh(seed, [(1, 0)], SLOW_BEACONS)
    world.crash("r1")
    world.register("r0", "n0")
    before = world.news
    world.run(600)
    assert world.news - before < 60, f"{world.news - before} messages to a peer that is gone"


def gone_for_good(seed: int) -> None:
    """A registry that never comes back is given up everywhere, with its nodes, though the others talk (rule 12)."""
    world, names = mesh(seed, [(1, 0), (2, 1), (0, 2), (3, 2)])
    for name in names:
        world.register(name, f"n{name[1:]}")
    world.settle()
    world.crash("r3")
    world.run(QUICK.grace * 3)
    for name in names[:3]:
        listed = {row["node"] for row in world.listing(name)}
        assert listed == {"http://n0:1", "http://n1:1", "http://n2:1"}, f"{name} lists {sorted(listed)}"


def paused_registry(seed: int) -> None:
    """A registry that was paused for longer than a lease shows no node offline that beats (rule 13)."""
    world, _ = mesh(seed, [(1, 0)])
    world.add("beats", ["r0"], registry=False, flows=["x"])
    world.run(10)
    seen = set()
    world.pause("r0")
    # What came meanwhile is not waiting when it goes on: its own clock alone says that time has passed.
    world.faults.cuts = {(key_of("beats"), key_of("r0"))}
    world.run(20)
    world.faults.heal()
    world.resume("r0")
    for _ in range(200):
        world.run(0.1)
        seen.add(_status(world, "r1", "beats"))
    assert seen == {"online"}, f"a node that beats was shown as {sorted(seen)}"


def silent_node(seed: int) -> None:
    """A node whose beats stop is offline within a lease and a sweep, and dropped after the retention (rule 13)."""
    world, _ = mesh(seed, [(1, 0)])
    world.add("beats", ["r0"], registry=False, flows=["x"])
    world.add("other", ["r0"], registry=False, flows=["y"])
    world.run(10)
    assert _status(world, "r1", "beats") == "online"
    world.crash("beats")
    world.run(QUICK.lease + 5 + 0.5)
    assert _status(world, "r0", "beats") == "offline", "a silent node is shown online"
    world.run(QUICK.retention + 6)
    assert "http://beats:1" not in {row["node"] for row in world.listing("r1")}, "a silent node is never dropped"


def cut_off_registry(seed: int) -> None:
    """A registry that hears of nobody at once shows nobody offline, for a bounded time (rule 13)."""
    # That its peers are away it knows after a few beacons, which are shorter than a lease by default as well.
    world, _ = mesh(seed, [(1, 0), (2, 0)], replace(QUICK, beacon=1))
    nodes = [f"beats{at}" for at in range(4)]
    for node in nodes:
        world.add(node, ["r0"], registry=False, flows=["x"])
    world.run(10)
    others = [key_of(name) for name in ("r1", "r2", *nodes)]
    world.faults.partition([key_of("r0")], others)
    world.register("r0", "news")
    world.run(25)
    assert {_status(world, "r0", node) for node in nodes} == {"online"}, "a registry that is cut off shows all offline"
    world.run(60)
    assert {_status(world, "r0", node) for node in nodes} == {"offline"}, "expiry stays frozen"


def two_homes(seed: int) -> None:
    """A node that is registered with two registries is listed as the newer says (rule 14)."""
    world, names = mesh(seed, [(1, 0), (2, 1)])
    for home, flow in (("r2", "old"), ("r0", "new")) if seed % 2 else (("r0", "old"), ("r2", "new")):
        world.register(home, "n", [flow])
        world.run(1)
    world.settle()
    same(world, names)
    assert [row["name"] for row in world.listing("r1")] == ["new"]


def older_service(seed: int) -> None:
    """Between two older services and two others a change goes round once, and then there is silence (rule 15)."""
    world = World(seed, timing=SLOW_BEACONS, bodies=False)
    world.add("r0")
    world.add_old("o1", ["r0"])
    world.add("r1", ["o1", "r0"])
    world.run(5)
    world.register("r0", "n0")
    world.run(20)
    before = world.news
    world.run(30)
    assert world.news == before, f"{world.news - before} messages and no end"
    same(world, ["r0", "r1"])
    rows = world.site("r1").disk.rows([key_of("n0")])[key_of("n0")]
    assert [row.origin for row in rows] == [key_of("r0")], "what was known already was adopted"


def adopted_then_registered(seed: int) -> None:
    """What was written on behalf of an older service yields to a registration with a registry (rule 15)."""
    world = World(seed, timing=QUICK, bodies=False)
    world.add("r0")
    world.add_old("o", ["r0"])
    world.run(2)
    world.register("o", "n", ["a"])
    world.run(2)
    world.add("r1", ["r0"])
    world.run(2)
    world.register("r1", "n", ["b"])
    world.run(2)
    rows = world.site("r0").disk.rows([key_of("n")])[key_of("n")]
    own = next(row for row in rows if row.origin == canonical("http://r0:1"))
    assert own.gone, "an adopted record did not yield"


def receipts(seed: int) -> None:
    """All registries of a ring with a tail confirm a registration, well before the time is over (rule 16)."""
    world, _ = mesh(seed, [(1, 0), (2, 1), (3, 2), (0, 3), (4, 3)], SLOW_BEACONS)
    asked = world.register_and_wait("r0", "n0", ["x"], 5.0)
    world.run(2)
    assert asked.reply is not None, "no answer"
    assert asked.reply.message[-1].startswith("visible at 5 of 5 registries in "), asked.reply.message[-1]


def leave(world: World, name: str, node: str) -> None:
    """A node leaves a registry; raises `UnknownServiceError` when it is not registered there."""
    site = world.site(name)
    farewell = Farewell(url=f"http://{node}:1")
    world.step(site.key, ev.Disconnect(world._instant(site), ticket=0, message=farewell))


def _status(world: World, name: str, node: str) -> str:
    found = world.site(name).disk.view().get(key_of(node))
    return "gone" if found is None else found.row.status


ALL = (
    gap,
    lost_disk_at_the_same_second,
    pages_show_at_once,
    slept_through_tombstones,
    left_while_another_was_away,
    message_bound,
    burst,
    one_at_a_time,
    back_after_an_hour,
    lost_push,
    older_disk,
    lost_disk_in_silence,
    dead_peer,
    gone_for_good,
    paused_registry,
    silent_node,
    cut_off_registry,
    two_homes,
    older_service,
    adopted_then_registered,
    receipts,
)
"""What must hold of the core as it is, for any seed."""
