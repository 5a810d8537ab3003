"""Fixed: registry → registry, `POST /connect`."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tests.conftest import Start, free_port
from tests.protocol.conftest import Old
from tests.protocol.helpers import (
    COMMON,
    FLOW,
    RECORD,
    ROW,
    ago,
    calm,
    connected,
    flow,
    flow_urls,
    record,
    seen,
    settled,
    stamped,
    swallowing,
    told,
)
from tests.waiting import until

NODE = "http://node1:3367"
OTHER = "http://registry2:3368"
AT_ONCE = 3.0


def test_the_reply_to_one_that_wants_a_feed(serve: Start) -> None:
    """`feed` true: the reply has `providers` with everything the registry lists, and `message`."""
    served = serve(node=False, organization="registry1")
    served.post("/register", record(NODE, "mytest"))
    (row,) = served.flows()
    reply = served.post("/connect", told(OTHER, feed=True))
    assert list(reply) == ["providers", "message"]
    assert list(reply["providers"]) == ["url", "organization", "feed", "nodes"]
    assert (reply["providers"]["url"], reply["providers"]["organization"]) == (served.url, "registry1")
    assert reply["providers"]["feed"] is True
    assert reply["providers"]["nodes"] == {
        NODE: {
            "url": NODE,
            "organization": "node1",
            "flows": {"/mytest": flow("mytest")},
            "created": row["created"],
            "modified": row["modified"],
            "heartbeat": row["heartbeat"],
            "status": "unknown",
        }
    }
    assert list(reply["providers"]["nodes"][NODE]) == RECORD
    assert sorted(reply["providers"]["nodes"][NODE]["flows"]["/mytest"]) == sorted(FLOW)
    assert reply["message"] == [f"registry {OTHER} connected (first visit)"]


def test_the_reply_to_one_that_wants_none(serve: Start) -> None:
    """`feed` false (a provider): the common reply; its nodes are taken all the same."""
    served = serve(node=False)
    reply = served.post("/connect", told(OTHER, stamped(NODE, "a", created=ago(hours=1)), feed=False))
    assert list(reply) == COMMON
    assert reply["message"] == [f"registry {OTHER} connected (first visit)"]
    assert flow_urls(served) == ["/a"]


def test_a_later_visit(serve: Start) -> None:
    """`registry URL connected (seen previously TIME)` from the second time on."""
    served = serve(node=False)
    for feed in (True, False):
        served.post("/connect", told(OTHER, feed=feed))
        (line,) = served.post("/connect", told(OTHER, feed=feed))["message"]
        assert re.fullmatch(
            rf"registry {OTHER} connected \(seen previously \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{6}}\)", line
        )


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("flows_listed", [False, True])
def test_nodes_as_object_and_as_list(serve: Start, listed: bool, flows_listed: bool) -> None:
    """`nodes` is an object keyed by node url, or a list; each node as in `/register`, with its times."""
    served = serve(node=False)
    created, modified = ago(hours=2), ago(hours=1)
    first = stamped(NODE, "a", "b", created=created, modified=modified)
    second = stamped("http://node2:3367", "c", created=created)
    if flows_listed:
        first["flows"] = list(first["flows"].values())
    body = told(OTHER, first, second, feed=True)
    if listed:
        body["nodes"] = list(body["nodes"].values())
    served.post("/connect", body)
    assert seen(served) == {
        (NODE, "/a", created, modified),
        (NODE, "/b", created, modified),
        ("http://node2:3367", "/c", created, created),
    }
    assert {row["heartbeat"] for row in served.flows()} == {created, modified}
    assert {row["registry"] for row in served.flows()} == {served.url}


def test_a_feed_forward_for_each_other_peer(serve: Start, old: Old) -> None:
    """For each other peer that is told, `feed forward URL to PEER`."""
    served, first, second, third = serve(node=False), old(), old(), old()
    first.connect(served)
    assert served.idle()
    second.offer(stamped(NODE, "a", created=ago(hours=1)))
    reply = second.connect(served)
    assert reply["message"] == [
        f"registry {second.url} connected (first visit)",
        f"feed forward {second.url} to {first.url}",
    ]
    third.offer(stamped("http://node2:3367", "b", created=ago(hours=1)))
    reply = third.connect(served)
    assert reply["message"][0] == f"registry {third.url} connected (first visit)"
    assert sorted(reply["message"][1:]) == sorted(f"feed forward {third.url} to {peer.url}" for peer in (first, second))
    until(lambda: first.pushes("http://node2:3367") and second.pushes("http://node2:3367"), "the news")
    calm(served)
    assert first.pushes(NODE)
    assert first.pushes(NODE)[0]["url"] == served.url
    assert not second.pushes(NODE)
    assert not third.pushes()


def test_an_unreachable_sender_gets_its_answer_at_once(serve: Start) -> None:
    """A sender that names unreachable nodes, or is itself unreachable, gets its answer at once."""
    served = serve(node=False)
    with swallowing() as silent, swallowing() as node:
        for url in (silent, f"http://127.0.0.1:{free_port()}", "http://unknown.invalid:3366"):
            started = time.monotonic()
            served.post("/connect", told(url, stamped(node, "a", created=ago(hours=1)), feed=True))
            assert time.monotonic() - started < AT_ONCE
    assert flow_urls(served) == ["/a"]


def test_it_waits_for_no_other_peer(serve: Start, old: Old) -> None:
    """`/connect` never waits for another service before it answers, however long a peer that is told takes."""
    served, slow, quick = serve(node=False), old(), old()
    slow.connect(served)
    slow.open.clear()
    quick.offer(stamped(NODE, "a", created=ago(hours=1)))
    started = time.monotonic()
    quick.connect(served)
    assert time.monotonic() - started < AT_ONCE
    until(lambda: slow.pushes(NODE), "the news to be in flight")
    started = time.monotonic()
    served.post("/register", record("http://node2:3367", "b"))
    assert time.monotonic() - started < AT_ONCE
    until(lambda: quick.pushes("http://node2:3367"), "the news to reach the quick one")
    assert len(slow.pushes()) == 1
    slow.open.set()
    until(lambda: slow.pushes("http://node2:3367"), "the news to reach the slow one")


def test_what_kodo_says_when_it_connects(serve: Start, old: Old) -> None:
    """A registry connects with `url`, `organization`, `feed` true and `nodes`, in the shape that is fixed."""
    plain = old()
    plain.offer(stamped("http://node2:3367", "b", created=ago(hours=1)))
    served = serve(organization="registry1", loader=["mytest"], connect=plain.url)
    until(lambda: connected(served, plain.url), "the connection to stand", timeout=8)
    until(lambda: served.url in plain.listed, "its nodes to be listed", timeout=8)
    calm(served)
    (heard,) = plain.requests("/connect")
    assert {"url", "organization", "feed", "nodes"} <= set(heard.body)
    assert (heard.body["url"], heard.body["organization"], heard.body["feed"]) == (served.url, "registry1", True)
    assert isinstance(heard.body["nodes"], dict)
    sent = plain.listed[served.url]
    assert sorted(sent) == sorted(RECORD)
    assert sent["flows"] == {"/mytest": flow("mytest")}
    assert sent["created"] <= sent["modified"]
    assert flow_urls(served) == ["/b", "/mytest"]


@pytest.mark.parametrize("offers", [False, True])
def test_a_plain_registry_that_starts_late(serve: Start, old: Old, offers: bool) -> None:
    """After a `/connect`, however late, both list the same flows: what was registered before it, too."""
    port = free_port()
    served = serve(node=False, connect=f"http://127.0.0.1:{port}")
    served.post("/register", record(NODE, "a"))
    offered = stamped("http://node2:3367", "b", created=ago(hours=1))
    plain = old(port=port, listed=[offered] if offers else [])
    until(lambda: connected(served, plain.url), "the connection to stand")
    until(lambda: NODE in plain.listed, "what was registered before", timeout=8)
    calm(served)
    assert flow_urls(served) == (["/a", "/b"] if offers else ["/a"])


@pytest.mark.parametrize("provider", [False, True])
def test_it_connects_with_its_nodes(serve: Start, old: Old, provider: bool) -> None:
    """After a `/connect` both list the same flows, so it carries the nodes of its sender."""
    plain = old()
    served = serve(loader=["mytest"], connect=plain.url, provider=provider)
    until(lambda: connected(served, plain.url), "the connection to stand")
    assert list(plain.requests("/connect")[0].body["nodes"]) == [served.url]


def test_both_list_the_same_after_it(serve: Start) -> None:
    """After it, both registries list the same flows, apart from the `registry` column."""
    first, second = serve(node=False), serve(node=False)
    first.post("/register", record(NODE, "a", flow("b", tags=["x"], author="me"), organization=None))
    third = serve(loader=["c"], organization="registry3", connect=[first.url, second.url])
    second.post("/register", record("http://node2:3367", "d"))
    settled(first, second, third)

    def rows(served: Any) -> list[list[Any]]:
        return [[row[column] for column in ROW[1:]] for row in served.flows()]

    assert rows(first) == rows(second) == rows(third)
    assert len(rows(first)) == 4
    for each in (first, second, third):
        assert {row["registry"] for row in each.flows()} == {each.url}


def test_both_directions_with_a_plain_registry(serve: Start, old: Old) -> None:
    """After a `/connect` in either direction both list the same flows."""
    for opened_by_kodo in (True, False):
        plain = old()
        plain.offer(stamped("http://node2:3367", "b", created=ago(hours=1)))
        served = serve(node=False, connect=plain.url if opened_by_kodo else [])
        if opened_by_kodo:
            until(lambda at=served, to=plain.url: connected(at, to), "the connection")  # type: ignore[misc]
        else:
            plain.connect(served)
        served.post("/register", record(NODE, "a"))
        until(lambda at=plain: NODE in at.listed, "the news")  # type: ignore[misc]
        assert flow_urls(served) == ["/a", "/b"]
        assert set(plain.listed) == {NODE, "http://node2:3367"}
        calm(served)
        assert not plain.pushes("http://node2:3367")


def test_a_plain_registry_hears_news_once_and_then_nothing(serve: Start, old: Old) -> None:
    """A peer hears each piece of news once, and between two pieces of news there is silence."""
    plain, served = old(), serve(node=False)
    plain.connect(served)
    calm(served)
    before = len(plain.requests())
    for number in range(3):
        url = f"http://node{number}:3367"
        served.post("/register", record(url, "a"))
        until(lambda at=url: plain.pushes(at), "the news")  # type: ignore[misc]
        calm(served)
        assert len(plain.requests()) == before + number + 1


def test_a_provider_gives_and_does_not_take(serve: Start) -> None:
    """A provider offers its nodes to other registries and integrates none of theirs."""
    registry = serve(node=False)
    registry.post("/register", record(NODE, "a"))
    provider = serve(provider=True, node=True, loader=["offered"], connect=registry.url)
    until(lambda: connected(provider, registry.url), "the connection")
    until(lambda: flow_urls(registry) == ["/a", "/offered"], "the offer to be taken", timeout=8)
    provider.post("/register", record("http://node2:3367", "late"))
    until(lambda: flow_urls(registry) == ["/a", "/late", "/offered"], "the news to be taken")
    registry.post("/register", record("http://node3:3367", "more"))
    calm(registry, provider)
    assert flow_urls(provider) == ["/late", "/offered"]


def test_what_a_provider_says(serve: Start, old: Old) -> None:
    """A provider connects with `feed` false, and is told no news."""
    plain = old()
    plain.offer(stamped("http://node2:3367", "b", created=ago(hours=1)))
    provider = serve(provider=True, node=True, loader=["offered"], connect=plain.url)
    until(lambda: connected(provider, plain.url), "the connection")
    (heard,) = plain.requests("/connect")
    assert heard.body["feed"] is False
    assert flow_urls(provider) == ["/offered"]


def test_a_service_that_is_no_registry(serve: Start) -> None:
    """A service without the role answers 404 before it looks at the body."""
    node = serve(registry=False)
    for path in ("/connect", "/update/node"):
        for body in (b"{", b""):
            answer = node.client.post(path, content=body)
            assert answer.status_code == 404, path
            assert "detail" in answer.json()
