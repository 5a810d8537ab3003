"""Fixed: node → registry, `POST /register`."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.conftest import Process, Start, free_port
from tests.protocol.conftest import Old
from tests.protocol.helpers import COMMON, RECORD, TIME, ago, calm, flow, flow_urls, record, spaced
from tests.waiting import until

NODE = "http://node1:3367"


def test_first_visit(serve: Start) -> None:
    """First visit: `registered node URL (first visit)`, and created = modified = heartbeat = now."""
    served = serve(node=False, organization="registry1")
    before = ago()
    reply = served.post("/register", record(NODE, "mytest"))
    assert list(reply) == COMMON
    assert reply["message"] == [f"registered node {NODE} (first visit)"]
    (row,) = served.flows()
    assert row["created"] == row["modified"] == row["heartbeat"]
    assert before <= row["created"] <= ago()
    assert TIME.fullmatch(row["created"])
    assert (row["registry"], row["node"], row["organization"]) == (served.url, NODE, "node1")


def test_later_visit(serve: Start) -> None:
    """Later: `seen previously` with `created` as time; `created` stays, `modified` and `heartbeat` move."""
    served = serve(node=False)
    served.post("/register", record(NODE, "mytest"))
    (first,) = served.flows()
    for _ in range(3):
        before = served.flows()[0]
        reply = served.post("/register", record(NODE, "mytest"))
        assert reply["message"] == [f"registered node {NODE} (seen previously {spaced(first['created'])})"]
        (after,) = served.flows()
        assert after["created"] == first["created"]
        assert after["modified"] > before["modified"]
        assert after["heartbeat"] > before["heartbeat"]


def test_what_is_no_longer_named_is_gone(serve: Start) -> None:
    """What the registration no longer names is gone."""
    served = serve(node=False)
    served.post("/register", record(NODE, "a", "b"))
    served.post("/register", record(NODE, "b", "c", organization="renamed"))
    assert flow_urls(served) == ["/b", "/c"]
    assert {row["organization"] for row in served.flows()} == {"renamed"}
    served.post("/register", record(NODE, organization="renamed"))
    assert served.flows() == []
    assert NODE in served.get("/_cache")["nodes"]


@pytest.mark.parametrize("flows", [{}, [], {"/a": {"url": "/a", "name": "a"}}, [{"url": "/a", "name": "a"}]])
def test_only_url_and_flows_are_required(serve: Start, flows: object) -> None:
    """Only `url` and `flows` are required; flows is an object keyed by flow url, or a list of flows."""
    served = serve(node=False)
    assert served.post("/register", {"url": NODE, "flows": flows})["message"] == [
        f"registered node {NODE} (first visit)"
    ]
    assert flow_urls(served) == (["/a"] if flows else [])


def test_the_last_of_duplicates_wins(serve: Start) -> None:
    """In a list, of flows with the same url the last wins, and the reply says how many were received."""
    served = serve(node=False)
    flows = [flow("a", author="1"), flow("b"), flow("a", author="2"), flow("c"), flow("a", name="last")]
    reply = served.post("/register", {"url": NODE, "flows": flows})
    assert reply["message"] == [f"registered node {NODE} (first visit)", "received 5 flows, registered 3 flows"]
    assert {row["url"]: row["name"] for row in served.flows()} == {"/a": "last", "/b": "b", "/c": "c"}
    assert {row["author"] for row in served.flows()} == {"missing author"}


def test_without_duplicates_nothing_is_said_of_them(serve: Start) -> None:
    """`received ... flows` is only said if flows were dropped as duplicates."""
    reply = serve(node=False).post("/register", {"url": NODE, "flows": [flow("a"), flow("b")]})
    assert reply["message"] == [f"registered node {NODE} (first visit)"]


def test_a_feed_forward_for_each_peer(serve: Start, old: Old) -> None:
    """For each peer that is told, after all else, `feed forward node to PEER`; the reply has `idle` false."""
    served, peers = serve(node=False), [old(organization=f"old{number}") for number in range(3)]
    for peer in peers:
        peer.connect(served)
    reply = served.post("/register", {"url": NODE, "flows": [flow("a"), flow("a")]})
    assert reply["message"][:2] == [f"registered node {NODE} (first visit)", "received 2 flows, registered 1 flows"]
    assert sorted(reply["message"][2:]) == sorted(f"feed forward node to {peer.url}" for peer in peers)
    assert reply["idle"] is False
    for peer in peers:
        until(lambda at=peer: at.pushes(NODE), "the push")  # type: ignore[misc]
    calm(served)
    assert [len(peer.pushes(NODE)) for peer in peers] == [1, 1, 1]


def test_the_registry_sets_the_times(serve: Start) -> None:
    """The registry sets the times, and what the sender says of its status is ignored."""
    served = serve(node=False)
    before = ago()
    old_time = ago(days=400)
    served.post(
        "/register", record(NODE, "a", created=old_time, modified=old_time, heartbeat=old_time, status="online")
    )
    (row,) = served.flows()
    assert row["created"] == row["modified"] == row["heartbeat"] >= before
    assert served.get("/_cache")["nodes"][NODE]["status"] == "unknown"


def test_a_record_in_full(serve: Start) -> None:
    """A record has url, organization, flows, created, modified, heartbeat and status, each flow its five fields."""
    served = serve(node=False)
    full = {"url": "/x", "name": "x y", "description": "d", "tags": ["b", "a"], "author": "me"}
    served.post("/register", record(NODE, full, "mytest"))
    kept = served.get("/_cache")["nodes"][NODE]
    assert sorted(kept) == sorted(RECORD)
    assert kept["flows"] == {"/x": full, "/mytest": flow("mytest")}


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b'{"url":"http://node1:3367","flows":{}}'])
def test_a_service_that_is_no_registry(serve: Start, body: bytes) -> None:
    """A service that is no registry answers 404, before it looks at the body."""
    answer = serve(registry=False).client.post("/register", content=body)
    assert answer.status_code == 404
    assert "detail" in answer.json()


def test_a_node_registers_everywhere(serve: Start, old: Old) -> None:
    """A node registers at startup with every url in `connect`, in the shape that is fixed."""
    registry, plain = serve(node=False), old()
    node = serve(registry=False, organization="node1", connect=[registry.url, plain.url], loader=["mytest"])
    until(lambda: plain.requests("/register"), "the registration")
    until(registry.flows, "the registration")
    body = plain.requests("/register")[0].body
    assert body == record(node.url, "mytest")
    assert plain.requests("/register")[0].content_type == "application/json"
    assert [row["node"] for row in registry.flows()] == [node.url]
    assert node.get("/")["connection"].keys() == {registry.url, plain.url}


def test_a_node_that_got_through_registers_once(serve: Start, old: Old) -> None:
    """A node keeps trying until it gets through, and then no more."""
    plain = old()
    plain.failing = True
    node = serve(registry=False, connect=plain.url, loader=["mytest"])
    until(lambda: len(plain.requests("/register")) >= 2, "a second try")
    assert node.get()["connection"][plain.url] is None
    plain.failing = False
    until(lambda: node.get()["connection"][plain.url], "the registration")
    calm(node)
    assert len({str(each.body) for each in plain.requests("/register")}) == 1


def test_a_node_that_starts_before_its_registry(spawn: Callable[..., Process]) -> None:
    """A node keeps trying until it gets through, however late the registry starts."""
    late = f"http://127.0.0.1:{free_port()}"
    node = spawn(registry=False, loader="tests.protocol.loaders:one", connect=late)
    assert node.get()["connection"] == {late: None}
    registry = spawn(url=late, node=False)
    until(lambda: flow_urls(registry) == ["/by-module"], "the registration")
    until(lambda: node.get()["connection"][late], "the connection")


def test_a_flow_keeps_what_it_says(serve: Start) -> None:
    """Names are taken as they are, in every script."""
    served = serve(node=False)
    names = ["Żółć", "流れ", "🤖 agent", "a" * 300, "quote ' \" \\", "<b>"]
    served.post("/register", {"url": NODE, "flows": [flow(str(at), name=name) for at, name in enumerate(names)]})
    assert sorted(row["name"] for row in served.flows()) == sorted(names)


def test_nobody_else_is_asked(serve: Start) -> None:
    """The reply to a registration does not depend on any other service: unreachable nodes register at once."""
    served = serve(node=False)
    reply = served.post("/register", record(f"http://127.0.0.1:{free_port()}", "a"))
    assert re.fullmatch(r"registered node \S+ \(first visit\)", reply["message"][0])
    assert reply["idle"] is True
