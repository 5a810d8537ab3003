"""Beyond: leaving. `DELETE /connect` and `POST /disconnect`: gone everywhere, for good, and nobody is held up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Served, Start, free_port
from tests.protocol.conftest import Launch, Old
from tests.protocol.helpers import (
    COMMON,
    ago,
    calm,
    connected,
    flow_urls,
    known,
    record,
    seen,
    settled,
    stamped,
    status,
    swallowing,
    told,
)
from tests.waiting import until

NODE, SECOND, OTHER = "http://node1:3367", "http://node2:3367", "http://registry2:3368"
DEADLINE = 10.0
"""Seconds that a peer gets to hear a farewell in, with what is on its way to it already."""
SLACK = 2.0
"""What a busy machine may add to it."""


def leave(served: Served) -> float:
    """`DELETE /connect`: 204 with no body; the seconds it took."""
    began = time.monotonic()
    answer = served.client.delete("/connect")
    assert (answer.status_code, answer.content) == (204, b"")
    return time.monotonic() - began


def chain(serve: Start, **kwargs: Any) -> tuple[Served, Served, Served]:
    """Three registries, each connected with the one before."""
    first = serve(node=False, **kwargs)
    second = serve(node=False, connect=first.url, **kwargs)
    third = serve(node=False, connect=second.url, **kwargs)
    until(lambda: connected(second, first.url) and connected(third, second.url), "the connections")
    return first, second, third


# DELETE /connect


@pytest.mark.parametrize(
    "kwargs",
    [
        {"node": False},
        {"registry": False, "loader": ["a"]},
        {"loader": ["a"]},
        {"provider": True, "loader": ["a"]},
        {"node": False, "connect": "http://127.0.0.1:9"},
        {"registry": False, "loader": ["a"], "connect": "http://127.0.0.1:9"},
    ],
)
def test_leaving_with_nothing_connected(serve: Start, kwargs: dict[str, Any]) -> None:
    """Leaving when there is nobody to leave is answered 204 at once, again and again; what is served stays."""
    served = serve(**kwargs)
    before = flow_urls(served)
    for _ in range(3):
        assert leave(served) < SLACK
    assert flow_urls(served) == before
    assert served.idle()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_node_leaves_a_chain_of_three(serve: Start, at: int) -> None:
    """A node that leaves is gone at every registry of a chain, wherever it was registered, and serves its own flows."""
    registries = chain(serve)
    node = serve(registry=False, connect=registries[at].url, loader=["a"])
    for served in registries:
        until(lambda served=served: flow_urls(served) == ["/a"], "the node everywhere")  # type: ignore[misc]
    leave(node)
    assert flow_urls(registries[at]) == []
    for served in registries:
        until(lambda served=served: flow_urls(served) == [], "the node to be gone")  # type: ignore[misc]
        assert served.get("/counts")["total"] == 0
    settled(*registries)
    assert flow_urls(node) == ["/a"]
    assert node.get()["connection"] == {registries[at].url: None}
    assert node.idle()
    leave(node)


def test_a_node_that_left_stays_away(launch: Launch) -> None:
    """A node that left beats no more and registers no more: it is gone for longer than its lease."""
    served = launch(node=False, lease=0.3)
    node = launch(registry=False, connect=served.url, loader="tests.protocol.loaders:one")
    until(lambda: status(served, node.url) == "online", "the node to be online")
    leave(node)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert served.flows() == []
    assert flow_urls(node) == ["/by-module"]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_registry_leaves_a_chain_of_three(serve: Start, at: int) -> None:
    """A registry that leaves is gone at all others with the nodes that are registered there, and keeps those itself."""
    registries = list(chain(serve))
    for number, served in enumerate(registries):
        served.post("/register", record(f"http://node{number}:1", f"f{number}"))
    settled(*registries)
    leaver = registries.pop(at)
    leave(leaver)
    for served in registries:
        until(lambda served=served: f"/f{at}" not in flow_urls(served), "its nodes to be gone")  # type: ignore[misc]
        told_of = served.get("/map")["providers"].get(leaver.url, {"nodes": {}})["nodes"]
        assert f"http://node{at}:1" not in told_of
    assert f"/f{at}" in flow_urls(leaver)
    calm(leaver, *registries)
    leaver.post("/register", record("http://late:1", "late"))
    registries[0].post("/register", record(SECOND, "after"))
    calm(leaver, *registries)
    assert "/late" in flow_urls(leaver)
    assert "/after" not in flow_urls(leaver)
    assert all("/late" not in flow_urls(served) for served in registries)


def test_a_service_that_is_both_leaves(serve: Start) -> None:
    """A node that is a registry too is gone everywhere with its own flows, and goes on serving them."""
    first, second, third = chain(serve)
    both = serve(connect=first.url, loader=["own"])
    both.post("/register", record(NODE, "guest"))
    for served in (first, second, third):
        until(lambda served=served: flow_urls(served) == ["/guest", "/own"], "its flows everywhere")  # type: ignore[misc]
    leave(both)
    for served in (first, second, third):
        until(lambda served=served: flow_urls(served) == [], "its flows to be gone")  # type: ignore[misc]
    assert flow_urls(both) == ["/guest", "/own"]
    leave(both)
    assert flow_urls(both) == ["/guest", "/own"]


def test_who_left_may_come_back(serve: Start, tmp_path: Path) -> None:
    """A registry that left and connects again is listed again, with what was registered there meanwhile."""
    first, second, third = chain(serve)
    url, cache = f"http://127.0.0.1:{free_port()}", tmp_path / "both.db"
    both = serve(url=url, connect=third.url, loader=["own"], cache=cache)
    both.post("/register", record(NODE, "guest"))
    until(lambda: flow_urls(first) == ["/guest", "/own"], "its flows")
    leave(both)
    until(lambda: flow_urls(first) == [], "its flows to be gone")
    third.post("/register", record(SECOND, "other"))
    both.post("/register", record("http://late:1", "late"))
    both.end()
    again = serve(url=url, connect=first.url, loader=["own"], cache=cache)
    until(lambda: connected(again, first.url), "the connection")
    settled(first, second, third, again)
    assert flow_urls(first) == ["/guest", "/late", "/other", "/own"]


def test_a_node_leaves_all_that_it_is_registered_with(serve: Start, old: Old) -> None:
    """Every service that it is connected with is told, an older one too, in the shape that is fixed; each once."""
    plain, first, second = old(), serve(node=False), serve(node=False)
    node = serve(registry=False, connect=[first.url, plain.url, second.url], loader=["a"])
    until(lambda: flow_urls(first) and flow_urls(second) and plain.requests("/register"), "the registrations")
    calm(node)
    until(lambda: all(node.get()["connection"].values()), "the connections")
    leave(node)
    assert flow_urls(first) == flow_urls(second) == []
    (heard,) = plain.requests("/disconnect")
    assert heard.body["url"] == node.url
    assert list(node.get()["connection"].values()) == [None, None, None]


def test_a_registry_tells_an_older_one(serve: Start, old: Old) -> None:
    """A registry that leaves says so to an older one as well, forgets it, and tells it nothing after that."""
    plain, served = old(), serve(node=False)
    plain.connect(served)
    plain.update(served, stamped(SECOND, "theirs", created=ago(hours=1)))
    leave(served)
    (heard,) = plain.requests("/disconnect")
    assert heard.body["url"] == served.url
    count = len(plain.requests())
    served.post("/register", record(NODE, "a"))
    calm(served)
    assert len(plain.requests()) == count
    assert served.get("/map")["providers"] == {}


# a dead peer


def test_leaving_a_peer_that_is_dead(serve: Start) -> None:
    """Leaving answers within its deadline when a peer is gone, and the others are told."""
    first, dead = serve(node=False), serve(node=False)
    leaver = serve(node=False, connect=[dead.url, first.url])
    until(lambda: connected(leaver, dead.url) and connected(leaver, first.url), "the connections")
    leaver.post("/register", record(NODE, "a"))
    settled(leaver, first, dead)
    dead.end()
    assert leave(leaver) < DEADLINE + SLACK
    assert flow_urls(first) == []
    assert leave(leaver) < DEADLINE + SLACK


def test_leaving_a_peer_that_swallows(launch: Launch, old: Old) -> None:
    """Leaving answers within its deadline when a peer takes connections and is silent, with a message on its way."""
    plain, first = old(), launch(node=False, beacon=0.2)
    leaver = launch(node=False, connect=first.url, beacon=0.2)
    until(lambda: connected(leaver, first.url), "the connection")
    plain.connect(leaver)
    plain.open.clear()
    leaver.post("/register", record(NODE, "a"))
    until(lambda: plain.pushes(NODE), "the news on its way")
    until(lambda: flow_urls(first) == ["/a"], "the news at the other")
    assert leave(leaver) < DEADLINE + SLACK
    assert flow_urls(first) == []


def test_leaving_a_peer_that_was_away_for_long(launch: Launch) -> None:
    """Leaving does not wait for the next try with a peer that failed often."""
    first, dead = launch(node=False), launch(node=False)
    leaver = launch(node=False, connect=[dead.url, first.url])
    until(lambda: connected(leaver, dead.url) and connected(leaver, first.url), "the connections")
    dead.kill()
    leaver.post("/register", record(NODE, "a"))
    until(lambda: (leaver.get("/convergence")["peers"][dead.url]["next_try"] or 0) > 4, "a long pause", 60)
    assert leave(leaver) < 4
    assert flow_urls(first) == []


def test_leaving_with_a_first_contact_under_way(launch: Launch) -> None:
    """Leaving answers within its deadline while somebody who was never reached swallows a first contact."""
    with swallowing() as silent:
        leaver = launch(node=False, connect=silent)
        assert leave(leaver) < DEADLINE + SLACK


def test_a_peer_that_was_dead_is_told_once_it_is_back(launch: Launch) -> None:
    """A registry that was away when another left hears of it when it is back, and lists nothing of it."""
    first = launch(node=False, beacon=0.3)
    leaver = launch(node=False, connect=first.url, beacon=0.3)
    until(lambda: connected(leaver, first.url), "the connection")
    leaver.post("/register", record(NODE, "a"))
    settled(first, leaver)
    first.kill()
    leave(leaver)
    again = launch(node=False, url=first.url, beacon=0.3)
    until(lambda: flow_urls(again) == [], "the news that it left", timeout=5)
    assert again.get("/map")["providers"] == {}


# late records


@pytest.mark.parametrize("at", [0, 2])
def test_an_old_record_of_a_node_that_left(serve: Start, old: Old, at: int) -> None:
    """A node that left stays gone everywhere when an older service tells an old record of it, at any registry."""
    registries, plain = chain(serve), old()
    node = serve(registry=False, connect=registries[1].url, loader=["a"])
    for served in registries:
        until(lambda served=served: flow_urls(served) == ["/a"], "the node everywhere")  # type: ignore[misc]
    late = known(registries[0], node.url)
    assert late is not None
    leave(node)
    for served in registries:
        until(lambda served=served: flow_urls(served) == [], "the node to be gone")  # type: ignore[misc]
    plain.offer(late)
    plain.update(registries[at], late)
    plain.connect(registries[at])
    calm(*registries)
    assert all(flow_urls(served) == [] for served in registries)
    registries[2].post("/register", {**late, "flows": [{"url": "/new", "name": "new"}]})
    for served in registries:
        until(lambda served=served: flow_urls(served) == ["/new"], "what it registers after that")  # type: ignore[misc]


@pytest.mark.parametrize("at", [0, 2])
def test_an_old_record_of_a_registry_that_left(serve: Start, old: Old, at: int) -> None:
    """The own flows of a service that left stay gone everywhere when an old record of it turns up late."""
    registries, plain = chain(serve), old()
    both = serve(connect=registries[1].url, loader=["own"])
    for served in registries:
        until(lambda served=served: flow_urls(served) == ["/own"], "its flows everywhere")  # type: ignore[misc]
    late = known(registries[0], both.url)
    assert late is not None
    leave(both)
    for served in registries:
        until(lambda served=served: flow_urls(served) == [], "its flows to be gone")  # type: ignore[misc]
    plain.update(registries[at], late)
    calm(*registries)
    assert all(flow_urls(served) == [] for served in registries)


def test_a_registry_that_left_is_connected_again_by_others(serve: Start) -> None:
    """A service that left and runs on is listed again, with its own flows as they were, once another connects to it."""
    first, second, third = chain(serve)
    both = serve(connect=first.url, loader=["own"])
    until(lambda: flow_urls(third) == ["/own"], "its flows")
    before = seen(third)
    leave(both)
    until(lambda: flow_urls(third) == [], "its flows to be gone")
    calm(first, second, third, both)
    late = serve(node=False, connect=[both.url, third.url])
    until(lambda: connected(late, both.url) and connected(late, third.url), "the connections")
    for served in (first, second, third, late):
        until(lambda served=served: seen(served) == before, "its flows to be back")  # type: ignore[misc]
    settled(first, second, third, late, both)


# POST /disconnect


def test_the_reply_to_a_disconnect(serve: Start) -> None:
    """A node that is registered here, a registry that is connected: 200 with the common reply; a second time 404."""
    served = serve(node=False)
    served.post("/register", record(NODE, "a"))
    served.post("/connect", told(OTHER, stamped(SECOND, "b", created=ago(hours=1)), feed=False))
    assert flow_urls(served) == ["/a", "/b"]
    for url, left in ((NODE, ["/b"]), (OTHER, [])):
        reply = served.post("/disconnect", {"url": url.upper().replace("HTTP", "http") + "/"})
        assert list(reply) == COMMON
        assert len(reply["message"]) == 1
        assert flow_urls(served) == left
        answer = served.client.post("/disconnect", json={"url": url})
        assert answer.status_code == 404
        assert list(answer.json()) == ["detail"]
        assert url not in answer.text, "an error never echoes the input"
    assert served.get("/map")["providers"] == {}


def test_who_is_unknown_cannot_disconnect(serve: Start) -> None:
    """404 for who is unknown, or known through a peer only; 422 for the service itself; nothing changes."""
    served = serve(loader=["own"])
    served.post("/connect", told(OTHER, stamped(NODE, "a", created=ago(hours=1)), feed=False))
    before = served.get("/_cache")
    for url, code in ((NODE, 404), ("http://unknown:1", 404), (served.url, 422)):
        assert served.client.post("/disconnect", json={"url": url}).status_code == code, url
    assert served.get("/_cache") == before


# moving


@contextmanager
def watched(*registries: Served, flow: str) -> Any:
    """Ask the registries without pause while the block runs, each from a thread; the flow is always listed."""
    over, counts, missing = threading.Event(), [0] * len(registries), []

    def watch(number: int, served: Served) -> None:
        client = Served(served.url, served.end)
        while not over.is_set():
            if flow not in flow_urls(client):
                missing.append((served.url, time.monotonic()))
            counts[number] += 1
        client.client.close()

    threads = [threading.Thread(target=watch, args=(number, each)) for number, each in enumerate(registries)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(10)
    assert not missing
    assert min(counts) > 5, "hardly anybody looked"


def move_by_hand(launch: Launch, here: Served, there: Served, url: str) -> None:
    """Register there, wait until all have it, and only then leave here."""
    answer = there.client.post("/register", params={"wait": "mesh"}, json=record(url, "a", organization="moved"))
    assert "visible at 3 of 3" in answer.json()["message"][-1]
    here.post("/disconnect", {"url": url})


def move_at_once(launch: Launch, here: Served, there: Served, url: str) -> None:
    """Register there, and be silent here from then on: the lease here runs out, and the record is dropped."""
    there.post("/register", record(url, "a", organization="moved"))
    until(lambda: here.get("/explain", node=url)["records"][-1]["state"] == "lapsed", "the old record to lapse")


@pytest.mark.parametrize("move", [move_by_hand, move_at_once])
def test_a_node_moves(launch: Launch, old: Old, move: Callable[..., None]) -> None:
    """A node that moves from one registry to another is listed at every moment, everywhere, also at an older one."""
    timing = {"lease": 0.3, "retention": 0.3, "beacon": 0.1}
    here = launch(node=False, **timing)
    middle = launch(node=False, connect=here.url, **timing)
    there = launch(node=False, connect=middle.url, **timing)
    until(lambda: connected(middle, here.url) and connected(there, middle.url), "the connections")
    plain = old()
    plain.connect(here)
    here.post("/register", record(NODE, "a"))
    if move is move_at_once:
        here.post("/heartbeat", {"url": NODE})
    settled(here, middle, there)
    until(lambda: plain.pushes(NODE), "the news at the older one")
    with watched(here, middle, there, flow="/a"):
        move(launch, here, there, NODE)
        settled(here, middle, there)
    assert {row["organization"] for row in here.flows()} == {"moved"}
    assert seen(here) == seen(there)
    assert all(body["nodes"][NODE]["flows"] for body in plain.pushes(NODE)), "no moment without it"
    assert plain.listed[NODE]["organization"] == "moved"


def test_a_node_that_restarts_elsewhere(launch: Launch) -> None:
    """A node that ends and starts again with another registry is listed at every moment, and `modified` moves."""
    timing = {"lease": 2, "beacon": 0.2}
    here = launch(node=False, **timing)
    there = launch(node=False, connect=here.url, **timing)
    until(lambda: connected(there, here.url), "the connection")
    node = launch(registry=False, connect=here.url, loader="tests.protocol.loaders:one")
    until(lambda: status(there, node.url) == "online", "the node to be online")
    (before,) = there.flows()
    with watched(here, there, flow="/by-module"):
        node.terminate()
        launch(registry=False, url=node.url, connect=there.url, loader="tests.protocol.loaders:one")
        until(lambda: here.flows()[0]["modified"] > before["modified"], "the news of its move")
        settled(here, there)
    (after,) = here.flows()
    assert after["created"] == before["created"]
    assert here.get("/explain", node=node.url)["records"][0]["origin"] == there.url
