"""What imports kodo: each of these runs in a process of its own, from the tree that is measured.

`python -m tests.benchmarks.subjects NAME JSON` calls one of them and prints what it returns.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kodo.cache import Cache
    from kodo.catalogue import Catalogue
    from kodo.core.instructions import Entry


def fill(path: str, url: str, flows: int) -> None:
    """Write a cache of the registry `url` that holds so many flows, through the store, as a start would find it."""
    from functools import reduce  # noqa: PLC0415, each of these imports what it needs
    from operator import xor  # noqa: PLC0415

    from kodo.cache import Cache, Owner  # noqa: PLC0415
    from kodo.core.instructions import Save  # noqa: PLC0415
    from kodo.core.parts import Part  # noqa: PLC0415
    from kodo.models import Version, canonical  # noqa: PLC0415
    from tests.benchmarks.data import FLOWS_PER_NODE  # noqa: PLC0415

    contents = []
    cache = Cache(Owner(url, "registry", feed=True), Path(path))
    with cache.catalogue.writing():
        for seq in range(1, flows // FLOWS_PER_NODE + 1):
            entry = _entry(url, seq)
            contents.append(entry.content)
            cache.write(Save(entries=(entry,)))
        part = Part(canonical(url), Version(1, "00", len(contents)), content=reduce(xor, contents, 0))
        cache.write(Save(parts=(part,)))
        cache.commit()
    cache.close()


def registering_alone(record: str, replay: str, url: str, first: int, nodes: int) -> float:
    """Nodes a second that SQLite alone takes in: what kodo tells it, sixteen to a commit, told again without kodo.

    The caches `record` and `replay` are of the same registry, with as many flows, or are not there yet; the nodes are
    new there, numbered from `first`.
    """
    return nodes / _told_again(
        record, replay, url, partial(_register, url=url, numbers=range(first, first + nodes), some=16)
    )


def relay(record: str, replay: str, port: int, nodes: int, following: Sequence[str]) -> None:
    """Run a relay that does the least of what a registry promises with each registration, before it passes it on.

    It checks it, has SQLite do what kodo tells it for one new node after the other, and reads that node. `record` and
    `replay` are not there yet; it ends with an error after so many nodes.
    """
    import orjson  # noqa: PLC0415

    from kodo.models import Registration  # noqa: PLC0415
    from tests.benchmarks import floors  # noqa: PLC0415

    url, numbers = f"http://127.0.0.1:{port}", range(1, nodes + 1)
    told, cache = _tell(record, replay, url, partial(_register, url=url, numbers=numbers, some=1))
    commits, keys = told.again(cache), iter([_entry(url, seq).key for seq in numbers])

    def keep(body: bytes) -> bytes:
        Registration.model_validate_json(body)
        next(commits)
        return orjson.dumps(cache.catalogue.nodes_of([next(keys)], len(body))[0])

    floors.serve(floors.relay(*following, keep=keep), port)


def _register(catalogue: Catalogue, url: str, numbers: Sequence[int], some: int) -> None:
    """Write that the nodes of these numbers registered with the registry `url`, `some` of them to a commit."""
    from kodo.core.instructions import Save  # noqa: PLC0415
    from kodo.core.parts import Part  # noqa: PLC0415
    from kodo.models import Version, canonical  # noqa: PLC0415

    for at, seq in enumerate(numbers, 1):
        part = Part(canonical(url), Version(1, "00", seq))
        catalogue.write(Save(entries=(_entry(url, seq),), parts=(part,)))
        if at % some == 0:
            catalogue.commit()
    catalogue.commit()


def joining_alone(record: str, replay: str, url: str, flows: int) -> float:
    """Seconds that SQLite alone takes for what a registry that joins tells it to do, told again without kodo."""
    from kodo.core.instructions import Save, Settle, Stage  # noqa: PLC0415
    from kodo.core.parts import Part  # noqa: PLC0415
    from kodo.models import Version, canonical  # noqa: PLC0415
    from tests.benchmarks.data import FLOWS_PER_NODE  # noqa: PLC0415

    other = "http://127.0.0.1:1"
    stage, nodes = Stage(canonical(other), canonical(other)), flows // FLOWS_PER_NODE

    def work(catalogue: Catalogue) -> None:
        for start in range(1, nodes + 1, 200):
            page = range(start, min(start + 200, nodes + 1))
            catalogue.write(Save(staged=tuple((stage, _entry(other, seq)) for seq in page)))
            catalogue.commit()
        part = Part(stage.origin, Version(1, "00", nodes), via=stage.peer)
        catalogue.write(Save(settled=(Settle(stage, whole=True),), parts=(part,)))
        catalogue.commit()

    return _told_again(record, replay, url, work)


def _told_again(record: str, replay: str, url: str, work: Callable[[Catalogue], None]) -> float:
    """Do work on one cache, and what it told SQLite to do on another: the seconds of that."""
    import gc  # noqa: PLC0415

    told, alone = _tell(record, replay, url, work)
    began = time.perf_counter()
    for _ in told.again(alone):
        pass
    took = time.perf_counter() - began
    gc.unfreeze()
    alone.close()
    return took


def _tell(record: str, replay: str, url: str, work: Callable[[Catalogue], None]) -> tuple[Told, Cache]:
    """Do work on one cache; what it told SQLite to do, and another cache on which to do it again."""
    import gc  # noqa: PLC0415

    from kodo.cache import Cache, Owner  # noqa: PLC0415
    from kodo.catalogue import Catalogue  # noqa: PLC0415

    catalogue = Catalogue(url, Path(record))
    told = Told(catalogue._writer)
    catalogue._writer = catalogue._listing._db = told  # type: ignore[assignment]
    work(catalogue)
    catalogue.close()
    alone = Cache(Owner(url), Path(replay))
    # As in a service, which looks for garbage in what is new alone.
    gc.freeze()
    return told, alone


class Told:
    """A connection that keeps what it is told to do."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._told: list[tuple[bool, str, Any]] = []

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        """One statement."""
        self._told.append((False, sql, values))
        return self._db.execute(sql, values)

    def executemany(self, sql: str, values: Iterable[Any]) -> sqlite3.Cursor:
        """One statement for many rows."""
        rows = list(values)
        self._told.append((True, sql, rows))
        return self._db.executemany(sql, rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def again(self, cache: Cache) -> Iterator[None]:
        """Tell SQLite the same for another cache, and read what it answers: up to the next commit each time.

        Commits are as that cache makes them.
        """
        db = cache.catalogue._writer
        for many, sql, values in self._told:
            if sql == "COMMIT":
                cache.commit()
                yield
            elif many:
                db.executemany(sql, values)
            else:
                db.execute(sql, values).fetchall()


def _entry(url: str, seq: int) -> Entry:
    """What the registry `url` holds of the node of this number."""
    from kodo.core.instructions import Entry  # noqa: PLC0415
    from kodo.models import Node, canonical, digest  # noqa: PLC0415
    from tests.benchmarks import data  # noqa: PLC0415

    times = dict.fromkeys(("created", "modified", "heartbeat"), _moment(seq))
    node = Node(**data.node(seq - 1), **times)
    return Entry(canonical(url), node.key, node, seq, seq, digest(node.flows or {}))


def _moment(seq: int) -> str:
    return f"2024-12-25T{seq // 3600 % 24:02d}:{seq // 60 % 60:02d}:{seq % 60:02d}.{seq:06d}"


def held(report: str, **options: Any) -> None:
    """Run a service as `kodo serve` does, and watch its event loop; see `floors.watch`."""
    from kodo.serving import serve  # noqa: PLC0415
    from tests.benchmarks.floors import watch  # noqa: PLC0415

    serve(options, lambda: watch(report))


def lab(members: int) -> dict[str, float]:
    """A lab of a hub and its neighbours, started side by side, settled and ended: the seconds that each took."""
    import networkx as nx  # type: ignore[import-untyped]  # noqa: PLC0415

    from kodo.lab import MeshLab  # noqa: PLC0415

    graph = nx.star_graph(members - 1)
    began = time.perf_counter()
    mesh = MeshLab.from_graph(graph)
    started = time.perf_counter()
    mesh.settle()
    settled = time.perf_counter()
    mesh.terminate()
    return {"start": started - began, "settle": settled - started, "stop": time.perf_counter() - settled}


def bare(members: int) -> dict[str, float]:
    """Bare services from a fork server: the floor of `lab`. It imports nothing of kodo."""
    import asyncio  # noqa: PLC0415

    from tests.benchmarks.floors import fork_many  # noqa: PLC0415
    from tests.benchmarks.services import free_port  # noqa: PLC0415

    async def ready(port: int) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.005)
                continue
            writer.write(b"GET /flows HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200"), answer
            return

    return fork_many([free_port() for _ in range(members)], ready)


def simulate(registries: int) -> float:
    """Seconds that one registration takes through a random graph of degree 4; its messages are within the bound."""
    import networkx as nx  # noqa: PLC0415

    from kodo.lab import MeshLab  # noqa: PLC0415
    from tests.benchmarks import data  # noqa: PLC0415

    graph = nx.random_regular_graph(4, registries, seed=1)
    with MeshLab.from_graph(graph, engine="simulated", seed=0) as mesh:
        mesh.settle()
        began = time.perf_counter()
        mesh.add_node("node", connect="0", flows=list(data.node(0)["flows"].values()))
        settled = mesh.settle(timeout=60)
        took = time.perf_counter() - began
    bound = 2 * graph.number_of_edges() - registries + 1
    assert settled.pushes <= bound, f"{settled.pushes} pushes, and the bound is {bound}"
    return took


def flood(registries: int) -> float:
    """Seconds that the same flood takes where a registry is a set and a message is JSON: the floor of `simulate`."""
    from collections import deque  # noqa: PLC0415

    import networkx as nx  # noqa: PLC0415
    import orjson  # noqa: PLC0415

    from tests.benchmarks import data  # noqa: PLC0415

    graph = nx.random_regular_graph(4, registries, seed=1)
    began = time.perf_counter()
    known: dict[int, set[str]] = {registry: set() for registry in graph}
    flying = deque([(-1, 0, orjson.dumps(data.node(0)))])
    while flying:
        source, target, message = flying.popleft()
        url = orjson.loads(message)["url"]
        if url not in known[target]:
            known[target].add(url)
            told = orjson.dumps(orjson.loads(message))
            flying.extend((target, other, told) for other in graph[target] if other != source)
    return time.perf_counter() - began


SUBJECTS: dict[str, Callable[..., Any]] = {
    "fill": fill,
    "registering_alone": registering_alone,
    "relay": relay,
    "joining_alone": joining_alone,
    "held": held,
    "lab": lab,
    "bare": bare,
    "simulate": simulate,
    "flood": flood,
}


if __name__ == "__main__":
    json.dump(SUBJECTS[sys.argv[1]](**json.loads(sys.argv[2])), sys.stdout)
