"""The simulator's store means by a Save, and tells of its records, exactly what the catalogue in SQLite does."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kodo.core.instructions import Entry, Parcel, Range, Save
from kodo.core.parts import Part
from kodo.models import NOTHING, Key, Node, Version, digest
from kodo.sim import Store
from tests.core.world import World
from tests.sim.saves import ORIGINS, R, random_save
from tests.sim.twin import Twin


@pytest.mark.parametrize("seed", range(16))
def test_a_mesh_on_both_stores_sees_no_difference(seed: int) -> None:
    """Whatever happens to a mesh, with faults and older services, both stores answer alike at every step."""
    chance = random.Random(seed)
    twins: list[Twin] = []

    def disk(url: str) -> Twin:
        twins.append(Twin(url))
        return twins[-1]

    world = World(seed, disk=disk, page=chance.choice([700, 2**23]))
    world.add("r0", flows=["self"] if seed % 2 else None)
    world.add("r1", ["r0"])
    world.add_old("old", ["r1"])
    world.add("r2", ["r1", "old"])
    world.add("p", ["r2"], provider=True)
    names = ["r0", "r1", "r2", "p", "old"]
    world.run(3)
    world.faults.loss = world.faults.answer_loss = world.faults.doubles = 0.15
    world.faults.latency = (0.001, 0.3)
    for _ in range(40):
        _happen(world, chance, names)
        world.run(chance.uniform(0, 1))
        for site in world.sites.values():
            site.disk.listing()
            site.disk.peers()
    world.faults.heal()
    world.run(200)
    world.settle()
    assert sum(twin.asked for twin in twins) > 500
    assert all(world.effects[name] for name in ("loss", "answer_loss", "doubles", "latency"))


def _happen(world: World, chance: random.Random, names: list[str]) -> None:
    name = chance.choice(names)
    match chance.randrange(12):
        case 0:
            world.restart(name, keep_disk=chance.random() < 0.7)
        case 1 if name != "old":
            world.restart(name, disk=world.copy_disk(name))
        case _:
            world.register(name, f"n{chance.randrange(6)}", chance.sample("abcdef", chance.randrange(4)))


@pytest.mark.parametrize("seed", range(60))
def test_any_saves_come_to_the_same(seed: int) -> None:
    """Any Saves, committed or rolled back, leave the same rows, parts, pages and listing in both stores."""
    chance = random.Random(seed)
    counts = dict.fromkeys(ORIGINS, 0)
    twin = Twin(R)
    for _ in range(12):
        twin.write(random_save(chance, counts))
        match chance.randrange(3):
            case 0:
                twin.commit()
            case 1:
                twin.rollback()
        _compare(twin, chance.choice([1, 400, 2**20]))
    twin.rollback()
    _compare(twin, 2**20)


def _compare(twin: Twin, limit: int) -> None:
    twin.rows([Key("http://x:1"), Key("http://y:1"), Key("http://z:1"), Key("http://unknown:1")])
    twin.peers(), twin.listing()
    twin.contents(), twin.own_rows()
    for part in twin.parts():
        twin.records(part.origin)
    known = {part.origin: part.version for part in twin.store.parts()}
    for form in ("plain", "delta", "both"):
        for seq in (0, 2):
            ranges = tuple(
                Range(origin, base, base, age=3)
                for origin, version in sorted(known.items())
                for base in [version.at(min(seq, version.seq)) if seq else NOTHING]
            )
            twin.content(Parcel(form, ranges, unsaid=ORIGINS[2] if seq else None), limit)


def test_a_crash_takes_what_was_lazy() -> None:
    """What was written and not committed is gone after a crash, and nothing else; a copy has what is durable."""
    store = Store(R)
    store.write(_save(1, "a"))
    store.commit()
    before = _all(store)
    store.write(_save(2, "b"))
    assert _all(store) != before
    assert _all(store.copy()) == before
    assert store.rollback() > 0
    assert _all(store) == before
    assert store.rollback() == 0


def test_a_copy_is_another_disk() -> None:
    """What is written to a disk does not show on its copy, nor the other way round."""
    store = Store(R)
    store.write(_save(1, "a"))
    store.commit()
    copy = store.copy()
    before = _all(copy)
    store.write(_save(2, "b"))
    store.commit()
    assert _all(copy) == before
    copy.write(_save(2, "c"))
    copy.commit()
    assert [row["url"] for row in store.listing()] == ["/b"]


def test_an_index_does_not_grow_with_changes() -> None:
    """A node that registers for ever costs no more memory than one that did so a few times."""
    store = Store(R)
    for seq in range(1, 2000):
        store.write(_save(seq, "a"))
        store.commit()
    assert len(store._order[R]) < 50
    assert [stored.row.seq for stored in store.records(R)] == [1999]


def _save(seq: int, flow: str) -> Save:
    node = Node(url="http://x:1", flows={f"/{flow}": {"url": f"/{flow}", "name": flow}})
    entry = Entry(R, node.key, node, seq, seq, digest(node.flows or {}))
    return Save((entry,), parts=(Part(R, Version(1, "ab", seq)),))


def _all(store: Store) -> Any:
    return store.parts(), store.peers(), store.records(R), store.listing()
