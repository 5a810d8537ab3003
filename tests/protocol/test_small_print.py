"""Fixed: the small print."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Process, Start, free_port
from tests.protocol.conftest import Old
from tests.protocol.helpers import (
    CACHE,
    COMMON,
    ago,
    calm,
    connected,
    flow_urls,
    logged,
    post_raw,
    record,
    settled,
    spaced,
    stamped,
    swallowing,
    told,
)
from tests.waiting import until

NODE, SECOND, OTHER = "http://node1:3367", "http://node2:3367", "http://registry2:3368"


@pytest.mark.parametrize("content_type", ["", "application/json", "application/json; charset=utf-8"])
def test_a_body_is_taken_without_a_content_type(serve: Start, content_type: str) -> None:
    """A JSON body is taken with or without a `Content-Type`; a POST that succeeds answers 200."""
    served = serve(node=False)
    bodies = {
        "/register": b'{"url": "http://node1:3367", "flows": {}}',
        "/connect": b'{"url": "http://registry2:3368", "feed": true}',
        "/update/node": b'{"url": "http://registry2:3368", "nodes": []}',
    }
    for path, raw in bodies.items():
        assert post_raw(served, path, raw, Content_Type=content_type).status_code == 200, path


def test_what_may_be_missing_in_a_connect(serve: Start) -> None:
    """In `/connect` a missing `feed` reads false, missing `nodes` empty."""
    served = serve(node=False)
    reply = served.post("/connect", {"url": OTHER})
    assert list(reply) == COMMON
    assert served.get("/map")["providers"][OTHER]["nodes"] == {}
    assert served.post("/register", record(NODE, "a"))["message"] == [f"registered node {NODE} (first visit)"]


@pytest.mark.parametrize("path", ["/connect", "/update/node"])
def test_nodes_without_times_are_stamped(serve: Start, path: str) -> None:
    """Nodes without times are stamped by the receiver."""
    served = serve(node=False)
    before = ago()
    served.post(path, told(OTHER, record(NODE, "a"), {"url": SECOND, "flows": [{"url": "/b", "name": "b"}]}))
    rows = served.flows()
    assert len(rows) == 2
    for row in rows:
        for name in ("created", "modified", "heartbeat"):
            assert before <= row[name] <= ago()


def test_times_with_a_zone(serve: Start) -> None:
    """Times with a zone are converted to UTC; out they always go with six digits."""
    served = serve(node=False)
    written = {
        "created": "2024-12-25T18:03:12+02:00",
        "modified": "2024-12-25T18:03:12.5-01:30",
        "heartbeat": "2024-12-25T19:40:00Z",
    }
    served.post("/update/node", told(OTHER, {**record(NODE, "a"), **written}))
    (row,) = served.flows()
    assert row["created"] == "2024-12-25T16:03:12.000000"
    assert row["modified"] == "2024-12-25T19:33:12.500000"
    assert row["heartbeat"] == "2024-12-25T19:40:00.000000"


def test_the_own_url_in_connect_is_ignored(serve: Start) -> None:
    """A service's own url in `connect` is ignored."""
    url = f"http://localhost:{free_port()}"
    other = serve(node=False)
    served = serve(url=url, connect=[url, url.upper().replace("HTTP", "http") + "/", other.url], loader=["a"])
    until(lambda: connected(served, other.url), "the connection")
    assert list(served.get()["connection"]) == [other.url]
    assert list(served.get("/map")["providers"]) == [other.url]


def test_a_registry_keeps_trying_to_connect(serve: Start) -> None:
    """Registries keep trying to connect, like nodes, until they get through."""
    late = f"http://127.0.0.1:{free_port()}"
    first = serve(node=False, connect=late)
    first.post("/register", record(NODE, "a"))
    assert first.get()["connection"] == {late: None}
    second = serve(url=late, node=False)
    until(lambda: connected(first, late), "the connection")
    settled(first, second)
    assert flow_urls(second) == ["/a"]


def test_the_time_of_a_connection(serve: Start, old: Old) -> None:
    """`connection` holds the time of the last successful protocol message."""
    plain = old()
    served = serve(node=False, connect=plain.url)
    until(lambda: connected(served, plain.url), "the connection")
    calm(served)
    first = served.get()["connection"][plain.url]
    served.post("/register", record(NODE, "a"))
    until(lambda: plain.pushes(NODE), "the news")
    calm(served)
    second = served.get()["connection"][plain.url]
    assert second > first
    plain.failing = True
    served.post("/register", record(SECOND, "a"))
    until(lambda: plain.pushes(SECOND), "the failed push")
    assert served.get()["connection"][plain.url] == second


def test_modified_never_goes_back(serve: Start) -> None:
    """A registry stamps max(now, the `modified` it lists + 1 microsecond), so that the later registration wins."""
    served = serve(node=False)
    future = ago(hours=-20)
    served.post("/update/node", told(OTHER, stamped(NODE, "old", created=ago(hours=1), modified=future)))
    served.post("/register", record(NODE, "new"))
    (row,) = served.flows()
    assert row["url"] == "/new"
    assert row["modified"] > future
    assert row["modified"][:-6] == future[:-6]


def test_idle_while_a_message_waits_for_its_next_try(serve: Start, old: Old) -> None:
    """A message waiting for its next try counts for `idle`."""
    plain, served = old(), serve(node=False)
    plain.connect(served)
    plain.failing = True
    served.post("/register", record(NODE, "a"))
    until(lambda: len(plain.pushes()) >= 2, "two tries")
    assert not served.idle()
    assert not served.idle()


def test_idle_with_a_first_contact_never_answered(serve: Start) -> None:
    """A first contact never yet answered does not count for `idle`."""
    with swallowing() as silent:
        for kwargs in ({"node": False}, {"registry": False, "loader": ["a"]}):
            served = serve(connect=[silent, f"http://127.0.0.1:{free_port()}"], **kwargs)
            assert served.idle()


def test_a_provider_takes_nothing(serve: Start) -> None:
    """`/update/node` and offered nodes in `/connect` are answered 200 and not taken by a provider."""
    provider = serve(node=False, provider=True, registry=False)
    provider.post("/register", record(NODE, "own"))
    offered = stamped(SECOND, "foreign", created=ago(hours=1))
    assert provider.post("/connect", told(OTHER, offered, feed=False))["url"] == provider.url
    reply = provider.post("/connect", told(OTHER, offered, feed=True))
    assert list(reply["providers"]["nodes"]) == [NODE]
    assert reply["providers"]["feed"] is False
    assert list(provider.post("/update/node", told(OTHER, offered))) == COMMON
    assert flow_urls(provider) == ["/own"]
    assert provider.get("/_cache")["feed"] is False
    assert provider.get("/map")["feed"] is False
    assert all(not each["nodes"] for each in provider.get("/_cache")["providers"].values())
    assert SECOND not in provider.client.get("/_cache").text


def test_a_provider_tells_its_news(serve: Start, old: Old) -> None:
    """A provider gives: who connected with `feed` true is told the news, under the provider's url, `feed` false."""
    plain, provider = old(), serve(node=False, provider=True)
    plain.connect(provider)
    provider.post("/register", record(NODE, "own"))
    until(lambda: plain.pushes(NODE), "the news")
    assert plain.pushes()[0]["feed"] is False


def test_only_peers_that_want_a_feed_are_told(serve: Start, old: Old) -> None:
    """Only peers with `feed` true are told news; the `feed` in an `/update/node` changes no subscription."""
    served, quiet, keen = serve(node=False), old(feed=False), old(feed=True)
    quiet.connect(served)
    keen.connect(served)
    served.post("/update/node", {**quiet.message(stamped(SECOND, created=ago(hours=1))), "feed": True})
    served.post("/update/node", {**keen.message(stamped(SECOND, created=ago(hours=1))), "feed": False})
    reply = served.post("/register", record(NODE, "a"))
    assert reply["message"][1:] == [f"feed forward node to {keen.url}"]
    until(lambda: keen.pushes(NODE), "the news")
    calm(served)
    assert quiet.requests() == []
    keen.connect(served, feed=False)
    served.post("/register", record("http://node3:3367", "a"))
    calm(served)
    assert not keen.pushes("http://node3:3367")


def test_an_update_from_an_unknown_sender(serve: Start, old: Old) -> None:
    """`/update/node` from an unknown sender is taken and makes no peer; its reply has no feed-forward lines."""
    served, keen, stranger = serve(node=False), old(), old()
    keen.connect(served)
    reply = stranger.update(served, stamped(NODE, "a", created=ago(hours=1)))
    assert reply["message"] == [f"created node {stranger.url}"]
    assert flow_urls(served) == ["/a"]
    until(lambda: keen.pushes(NODE), "the news")
    served.post("/register", record(SECOND, "b"))
    until(lambda: keen.pushes(SECOND), "the news")
    calm(served)
    assert stranger.requests() == []
    assert stranger.update(served, stamped(NODE, "a", created=ago(hours=1)))["message"] == [
        f"updated node {stranger.url}"
    ]


def test_a_node_known_through_a_peer_registers_here(serve: Start) -> None:
    """A node so far known through a peer only that now registers here: `created` stays, `seen previously`."""
    served = serve(node=False)
    created = ago(hours=5)
    served.post("/connect", told(OTHER, stamped(NODE, "a", created=created)))
    reply = served.post("/register", record(NODE, "b"))
    assert reply["message"] == [f"registered node {NODE} (seen previously {spaced(created)})"]
    (row,) = served.flows()
    assert (row["url"], row["created"]) == ("/b", created)
    assert list(served.get("/_cache")["nodes"]) == [NODE]
    assert served.get("/_cache")["providers"][OTHER]["nodes"] == {}


@pytest.mark.parametrize("path", ["/register", "/connect", "/update/node"])
def test_what_the_sender_says_of_the_status(serve: Start, path: str) -> None:
    """A node's `status` is `unknown` until its first beat; what the sender says of it is ignored."""
    served = serve(node=False)
    served.post("/connect", told(OTHER))
    node = stamped(NODE, "a", created=ago(hours=1))
    node["status"] = "offline"
    served.post(path, node if path == "/register" else told(OTHER, node))
    cache = served.get("/_cache")
    kept = {**cache["nodes"], **cache["providers"][OTHER]["nodes"]}
    assert kept[NODE]["status"] == "unknown"


def test_where_nodes_stand(serve: Start) -> None:
    """`nodes` holds own registrations only; a foreign node stands under the peer whose news last raised it."""
    served = serve(node=False)
    third = "http://registry3:3368"
    served.post("/register", record(NODE, "own"))
    created = ago(hours=5)
    served.post("/connect", told(OTHER, stamped(SECOND, "a", created=created)))
    served.post("/connect", told(third))
    for path in ("/map", "/_cache"):
        view = served.get(path)
        assert set(view["nodes"]) == {NODE}
        assert {url: set(each["nodes"]) for url, each in view["providers"].items()} == {OTHER: {SECOND}, third: set()}
    served.post("/update/node", told(third, stamped(SECOND, "b", created=created, modified=ago(hours=1))))
    served.post("/update/node", told(OTHER, stamped(SECOND, "a", created=created)))
    for path in ("/map", "/_cache"):
        view = served.get(path)
        assert {url: set(each["nodes"]) for url, each in view["providers"].items()} == {OTHER: set(), third: {SECOND}}
    assert list(served.get("/_cache")) == CACHE
    provider = served.get("/_cache")["providers"][third]
    assert {"url", "organization", "feed", "nodes"} <= set(provider)
    assert provider["url"] == third


def test_a_connect_reply_is_everything(serve: Start) -> None:
    """The `nodes` of a `/connect` reply are everything the registry lists."""
    served = serve(node=True, loader=["dev"])
    served.post("/register", record(NODE, "own"))
    served.post("/update/node", told("http://registry3:3368", stamped(SECOND, "a", created=ago(hours=1))))
    reply = served.post("/connect", told(OTHER, feed=True))
    assert set(reply["providers"]["nodes"]) == {served.url, NODE, SECOND}


def test_own_flows_of_a_node_that_is_registry(serve: Start, tmp_path: Path) -> None:
    """Own flows of a service that is node and registry: `created` kept by the cache, `modified` its start."""
    cache = tmp_path / "kept.db"
    first = serve(loader=["a"], cache=cache)
    (before,) = first.flows()
    assert before["registry"] == before["node"] == first.url
    assert before["created"] <= first.get()["now"]
    first.end()
    second = serve(url=first.url, loader=["a", "b"], cache=cache)
    rows = second.flows()
    assert [row["url"] for row in rows] == ["/a", "/b"]
    assert {row["created"] for row in rows} == {before["created"]}
    started = second.get()["started_at"]
    assert all(row["modified"] > before["modified"] for row in rows)
    assert abs(_seconds(rows[0]["modified"]) - _seconds(started)) < 2


def _seconds(time_of_day: str) -> float:
    hours, minutes, seconds = time_of_day.partition("T")[2].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def test_a_reply_that_announces_a_feed_forward(serve: Start, old: Old) -> None:
    """A reply that announces a feed forward has `idle` false."""
    plain, served = old(), serve(node=False)
    plain.connect(served)
    for _ in range(5):
        reply = served.post("/register", record(NODE, "a"))
        assert f"feed forward node to {plain.url}" in reply["message"]
        assert reply["idle"] is False
    reply = served.post("/connect", told(OTHER, stamped(SECOND, created=ago(hours=1)), feed=False))
    assert f"feed forward {OTHER} to {plain.url}" in reply["message"]
    assert reply["idle"] is False


def test_unknown_fields_are_ignored(serve: Start) -> None:
    """Unknown fields in a message are ignored."""
    served = serve(node=False)
    node: dict[str, Any] = record(NODE, {"url": "/a", "name": "a", "later": [1]}, later={"x": 1})
    assert served.post("/register", node)["message"] == [f"registered node {NODE} (first visit)"]
    served.post("/connect", {**told(OTHER, {**node, "url": SECOND}), "later": None})
    assert len(served.flows()) == 2


def test_sigterm_ends_a_service_whatever_is_in_flight(spawn: Callable[..., Process], old: Old, tmp_path: Path) -> None:
    """SIGTERM ends a service within 5 s, with requests that hang and peers that swallow what they are told."""
    with swallowing() as silent, swallowing() as keen:
        held = old()
        served = spawn(node=False, connect=silent)
        served.post("/connect", told(keen, feed=True))
        held.connect(served)
        held.open.clear()
        served.post("/register", record(NODE, "a"))
        until(lambda: held.pushes(NODE), "the push to hang")
        assert not served.idle()
        host, _, port = served.url.removeprefix("http://").rpartition(":")
        with (
            socket.create_connection((host, int(port)), 10) as hanging,
            socket.create_connection((host, int(port)), 10) as half,
            socket.create_connection((host, int(port)), 10),
        ):
            hanging.sendall(b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            half.sendall(b"POST /register HT")
            assert served.get("/")["url"] == served.url
            started = time.monotonic()
            served.process.terminate()
            served.process.join(10)
            assert not served.process.is_alive()
            assert time.monotonic() - started < 5
    assert logged(tmp_path / "log-0.txt", "shutdown now")()


def test_an_unfinished_body_is_refused_when_the_service_ends(spawn: Callable[..., Process], tmp_path: Path) -> None:
    """Whoever has not sent the whole of a body by then is answered 503, and the log tells of no fault."""
    served = spawn(node=False)
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), 10) as half:
        half.sendall(b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert served.get("/")["url"] == served.url
        served.process.terminate()
        answer = half.makefile("rb").read()
    served.process.join(10)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"before the service ends" in answer
    assert "Traceback" not in (tmp_path / "log-0.txt").read_text()


def test_a_node_ends_while_it_tries_to_register(spawn: Callable[..., Process]) -> None:
    """SIGTERM ends a node within 5 s while its registry swallows its registration."""
    with swallowing() as silent:
        node = spawn(registry=False, loader="tests.protocol.loaders:one", connect=silent)
        started = time.monotonic()
        node.process.terminate()
        node.process.join(10)
        assert not node.process.is_alive()
        assert time.monotonic() - started < 5
