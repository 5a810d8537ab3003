"""Fixed and rule 15: older services in every position of a mesh: all list the same, and nothing goes round for ever."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Served, Start
from tests.protocol.helpers import Json, OldRegistry, ago, calm, connected, flow_urls, record, seen, stamped
from tests.waiting import until

Row = tuple[str, str, str, str]
QUIET = 1.0
"""Seconds of silence that are listened to."""


class OldMember(OldRegistry):
    """An older registry that passes on what it hears to its other peers, under its own url.

    `stubborn`: also what it knew already, as some do, over and over if it is told over and over.
    """

    def __init__(self, stubborn: bool = False, **kwargs: Any) -> None:
        self.stubborn = stubborn
        self.said: list[tuple[str, Json]] = []
        self._orders: queue.Queue[tuple[str, Json] | None] = queue.Queue()
        self._client = httpx.Client(timeout=10, trust_env=False)
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()
        super().__init__(**kwargs)

    def close(self) -> None:
        self._orders.put(None)
        self._worker.join(10)
        self._client.close()
        super().close()

    def rows(self) -> set[Row]:
        """What it lists, as `seen` tells it of others."""
        with self._lock:
            return {
                (url, path, each["created"], each["modified"])
                for url, each in self.listed.items()
                for path in each["flows"]
            }

    def meet(self, served: Served) -> None:
        """Connect with a registry, and take in what it offers."""
        reply = self.connect(served)
        self.peers.add(served.url)
        with self._lock:
            self._take(reply["providers"])

    def tell(self, *records: Json) -> None:
        """News of its own nodes, to all its peers."""
        self.offer(*records)
        self._pass_on({each["url"]: each for each in records}, but=None)

    def _take(self, body: Json) -> None:
        before = dict(self.listed)
        super()._take(body)
        news = {
            url: each for url, each in body["nodes"].items() if self.stubborn or self.listed[url] is not before.get(url)
        }
        self._pass_on(news, but=body["url"])

    def _pass_on(self, nodes: Json, but: str | None) -> None:
        for peer in sorted(self.peers - {but}) if nodes else ():
            self._orders.put((peer, self.message(*nodes.values(), feed=False)))

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            peer, message = order
            self.said.append((peer, message))
            self._client.post(f"{peer}/update/node", json=message).raise_for_status()


Place = tuple[list[tuple[int, int]], int]
PLACES: dict[str, Place] = {
    # edges, of whom the first opens the connection; and which of them all is the older one
    "end of a chain": ([(1, 0), (2, 1), (3, 2)], 3),
    "middle of a chain": ([(0, 1), (2, 1), (3, 2)], 1),
    "middle of a chain, opening": ([(1, 0), (1, 2), (3, 2)], 1),
    "centre of a star": ([(1, 0), (2, 0), (3, 0)], 0),
    "ray of a star": ([(1, 0), (2, 0), (3, 0)], 3),
    "in a ring": ([(1, 0), (2, 1), (3, 2), (0, 3)], 2),
    "in a ring with a chord": ([(1, 0), (2, 1), (3, 2), (0, 3), (3, 1)], 1),
}


class World:
    """A mesh of real registries with an older one in it."""

    def __init__(self, serve: Start, old: OldMember, place: Place) -> None:
        edges, at = place
        self.old = old
        self.real: dict[int, Served] = {}
        for number in sorted({each for edge in edges for each in edge} - {at}):
            to = [far for near, far in edges if near == number and (far in self.real or far == at)]
            urls = [self.old.url if far == at else self.real[far].url for far in to]
            served = serve(node=False, organization=f"registry{number}", connect=urls, beacon=0.2)
            self.real[number] = served
            for url in urls:
                until(lambda served=served, url=url: connected(served, url), "the connection")  # type: ignore[misc]
        for near, far in edges:
            if near == at:
                old.meet(self.real[far])
            elif far != at and far > near and far in self.real:
                greet(self.real[near], self.real[far])
        self.neighbours = [self.real[n if f == at else f] for n, f in edges if at in (n, f)]

    def agree(self, nodes: dict[str, list[str]], timeout: float = 10) -> None:
        """Wait until all list these nodes with these flows and nothing more, at the same times."""
        wanted = {(node, flow) for node, flows in nodes.items() for flow in flows}

        def listed() -> list[set[Row]]:
            return [*(seen(served) for served in self.real.values()), self.old.rows()]

        def same() -> bool:
            first, *others = listed()
            return {row[:2] for row in first} == wanted and all(other == first for other in others)

        try:
            until(same, "all to list the same", timeout)
        except AssertionError:
            names = [*(f"registry{number}" for number in self.real), "older"]
            found = {name: sorted(row[:2] for row in rows) for name, rows in zip(names, listed(), strict=True)}
            raise AssertionError(f"wanted {sorted(wanted)}, found {found}") from None
        calm(*self.real.values())

    def heard_in_a_quiet_second(self) -> list[str]:
        """The paths of all that the older one is told when nothing happens."""
        before = len(self.old.heard)
        time.sleep(QUIET)  # silence cannot be waited for in another way
        return [each.path for each in self.old.heard[before:]]


def greet(one: Served, other: Served) -> None:
    """A ring is closed by a `/connect` in the name of one of the two, since the other was not there when it started."""
    until(lambda: bool(one.get("/convergence")), "an answer")
    message = {"url": one.url, "organization": None, "feed": True, "nodes": {}, "marks": {}}
    other.post("/connect", message)
    one.post("/connect", {**message, "url": other.url})


@pytest.fixture(params=[False, True], ids=["modest", "stubborn"])
def member(request: pytest.FixtureRequest) -> Iterator[OldMember]:
    """An older registry that takes part; the second kind passes on whatever comes."""
    started = OldMember(stubborn=request.param)
    yield started
    started.close()


@pytest.mark.parametrize("place", PLACES)
def test_an_older_registry_anywhere(serve: Start, member: OldMember, place: str) -> None:
    """With an older registry anywhere all list the same, changes and removals included, and then there is silence."""
    world = World(serve, member, PLACES[place])
    own = "http://oldnode:1"
    nodes: dict[str, list[str]] = {}
    for number, served in world.real.items():
        nodes[f"http://node{number}:1"] = [f"/f{number}"]
        served.post("/register", record(f"http://node{number}:1", f"f{number}"))
    nodes[own] = ["/theirs"]
    created = ago(hours=1)
    member.tell(stamped(own, "theirs", created=created))
    world.agree(nodes)

    first, last = min(world.real), max(world.real)
    for number in (first, last):
        nodes[f"http://node{number}:1"] = ["/changed"]
        world.real[number].post("/register", record(f"http://node{number}:1", "changed"))
    nodes[own] = ["/another", "/theirs"]
    member.tell(stamped(own, "theirs", "another", created=created, modified=ago(minutes=30)))
    world.agree(nodes)
    assert world.heard_in_a_quiet_second() == []

    for number in (first, last):
        del nodes[f"http://node{number}:1"]
        world.real[number].post("/disconnect", {"url": f"http://node{number}:1"})
    nodes[own] = []
    member.tell(stamped(own, created=created, modified=ago(minutes=10)))
    world.agree(nodes)
    assert world.heard_in_a_quiet_second() == []
    # In a ring, what it says to one neighbour may reach another through the mesh before it says so there itself.
    may_cross = 3 * (len(world.neighbours) - 1) if "ring" in place else 0
    assert len(member.pushes(own)) <= may_cross, "its own node was passed back to it"
    changes = 2 * len(world.real) + 4
    assert len(member.requests("/update/node")) <= changes * len(world.neighbours)
    assert all(set(body) == {"url", "organization", "feed", "nodes"} for body in member.pushes())


def test_what_came_from_an_older_registry_goes_with_it(serve: Start, member: OldMember) -> None:
    """An older registry that disconnects is gone with its nodes, everywhere; what others registered stays."""
    world = World(serve, member, PLACES["ray of a star"])
    member.tell(stamped("http://oldnode:1", "theirs", created=ago(hours=1)))
    world.real[1].post("/register", record("http://node1:1", "a"))
    world.agree({"http://oldnode:1": ["/theirs"], "http://node1:1": ["/a"]})
    world.neighbours[0].post("/disconnect", {"url": member.url})
    for served in world.real.values():
        until(lambda served=served: flow_urls(served) == ["/a"], "its nodes to be gone")  # type: ignore[misc]


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(True, id="registry leaves"),
        pytest.param(False, id="node leaves"),
    ],
)
def test_a_leaving_far_away_reaches_an_older_registry(serve: Start, member: OldMember, leave: bool) -> None:
    """What leaves a registry two hops away is told to an older one as a node with empty `flows`."""
    world = World(serve, member, PLACES["end of a chain"])
    far, near = world.real[0], world.real[2]
    far.post("/register", record("http://node0:1", "a"))
    near.post("/register", record("http://node2:1", "b"))
    world.agree({"http://node0:1": ["/a"], "http://node2:1": ["/b"]})
    if leave:
        assert far.client.delete("/connect").status_code == 204
        del world.real[0]
    else:
        far.post("/disconnect", {"url": "http://node0:1"})
    world.agree({"http://node2:1": ["/b"]}, timeout=3)


def test_two_older_registries(serve: Start, member: OldMember) -> None:
    """Two older registries with a newer one between them hear of each other's nodes, and of their ends."""
    other = OldMember(stubborn=member.stubborn)
    try:
        served = serve(node=False)
        for each in (member, other):
            each.meet(served)
        created = ago(hours=1)
        member.tell(stamped("http://one:1", "a", created=created))
        other.tell(stamped("http://two:1", "b", created=created))
        until(lambda: len(seen(served)) == 2 and member.rows() == other.rows() == seen(served), "all to agree")
        member.tell(stamped("http://one:1", created=created, modified=ago(minutes=1)))
        until(lambda: len(seen(served)) == 1 and member.rows() == other.rows() == seen(served), "the removal")
        calm(served)
        assert member.pushes("http://one:1") == []
        assert other.pushes("http://two:1") == []
    finally:
        other.close()


def test_an_older_registry_that_was_away(serve: Start, member: OldMember) -> None:
    """An older registry that failed for a while is told what it missed, once, in the end."""
    world = World(serve, member, PLACES["ray of a star"])
    member.failing = True
    served = world.real[1]
    for number in range(10):
        served.post("/register", record("http://node1:1", f"f{number}"))
    until(lambda: member.pushes("http://node1:1"), "a try")
    member.failing = False
    world.agree({"http://node1:1": ["/f9"]})
    assert world.heard_in_a_quiet_second() == []
