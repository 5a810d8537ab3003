"""Fixed: restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import Process, Start, free_port
from tests.protocol.helpers import ago, flow_urls, log_of, record, seen, settled, stamped, told
from tests.waiting import until

NODE = "http://node1:3367"


def test_a_node_that_restarts_registers_again(serve: Start) -> None:
    """A node that restarts registers again: `modified` moves, `created` stays, everywhere in the mesh."""
    first = serve(node=False)
    second = serve(node=False, connect=first.url)
    node = serve(registry=False, loader=["a"], connect=second.url)
    until(lambda: first.flows() and second.flows(), "the registration")
    settled(first, second)
    (before,) = first.flows()
    node.end()
    again = serve(url=node.url, registry=False, loader=["a"], connect=second.url)
    for each in (first, second):
        until(lambda at=each: at.flows()[0]["modified"] > before["modified"], "the restart")  # type: ignore[misc]
        assert each.flows()[0]["created"] == before["created"]
    assert again.url == node.url
    settled(first, second)


def test_a_node_comes_back_with_other_flows(serve: Start) -> None:
    """When a node comes back with other flows, every registry lists the new ones and only those."""
    first = serve(node=False)
    second = serve(node=False, connect=first.url)
    third = serve(node=False, connect=second.url)
    node = serve(registry=False, loader=["a", "b"], connect=third.url)
    mesh = (first, second, third)
    until(lambda: all(flow_urls(each) == ["/a", "/b"] for each in mesh), "the registration")
    node.end()
    serve(url=node.url, registry=False, loader=["b", "c"], connect=third.url)
    until(lambda: all(flow_urls(each) == ["/b", "/c"] for each in mesh), "the new flows")
    settled(*mesh)


@pytest.mark.parametrize("form", ["json", "db"])
def test_a_registry_that_restarts_on_its_cache(serve: Start, tmp_path: Path, form: str) -> None:
    """A registry that restarts on its cache has the same flows, `created` and `modified` unchanged."""
    cache = tmp_path / f"kept.{form}"
    first = serve(node=False, organization="registry1", cache=cache)
    first.post("/register", record(NODE, "a", "b"))
    first.post("/register", record(NODE, "b", "c"))
    provider = told("http://registry2:3368", stamped("http://node2:3367", "x", created=ago(hours=1)), feed=False)
    first.post("/connect", provider)
    before, kept = first.flows(), first.get("/_cache")
    first.end()
    second = serve(url=first.url, node=False, organization="registry1", cache=cache)
    assert second.flows() == before
    assert second.get("/_cache")["nodes"] == kept["nodes"]
    assert second.get("/_cache")["providers"] == kept["providers"]
    reply = second.post("/register", record(NODE, "c"))
    created = before[0]["created"].replace("T", " ")
    assert reply["message"] == [f"registered node {NODE} (seen previously {created})"]


def test_the_first_request_sees_the_cache(spawn: Callable[..., Process], tmp_path: Path) -> None:
    """It has the same flows before it answers its first request."""
    cache, url = tmp_path / "kept.db", f"http://127.0.0.1:{free_port()}"
    first = spawn(url=url, node=False, cache=cache)
    for number in range(20):
        first.post("/register", record(f"http://node{number}:3367", "a", "b"))
    before = seen(first)
    first.kill()
    starting = spawn_without_waiting(spawn, url, cache)
    assert starting == before
    assert not any("Traceback" in line for line in log_of(tmp_path / "log-1.txt"))


def spawn_without_waiting(spawn: Callable[..., Process], url: str, cache: Path) -> set[tuple[str, str, str, str]]:
    """The very first answer that a restarted service gives to `/flows`."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        deadline = time.monotonic() + 20
        while not answers and time.monotonic() < deadline:
            try:
                answers.append(httpx.get(f"{url}/flows", params={"pp": 1000}, trust_env=False))
            except httpx.TransportError:
                time.sleep(0.005)

    asking = threading.Thread(target=ask)
    asking.start()
    spawn(url=url, node=False, cache=cache)
    asking.join(20)
    (answer,) = answers
    assert answer.status_code == 200
    return {(row["node"], row["url"], row["created"], row["modified"]) for row in answer.json()["items"]}


def test_a_registry_that_restarts_is_found_again(serve: Start, tmp_path: Path) -> None:
    """A registry that restarts goes on as a peer: news reach it, and news of it reach the others."""
    first = serve(node=False)
    second = serve(node=False, connect=first.url, cache=tmp_path / "kept.db")
    until(lambda: second.get()["connection"][first.url], "the connection")
    second.post("/register", record(NODE, "a"))
    until(first.flows, "the news")
    second.end()
    first.post("/register", record("http://node2:3367", "missed"))
    again = serve(url=second.url, node=False, connect=first.url, cache=tmp_path / "kept.db")
    until(lambda: flow_urls(again) == ["/a", "/missed"], "what was missed")
    again.post("/register", record(NODE, "b"))
    until(lambda: flow_urls(first) == ["/b", "/missed"], "the news")
    settled(first, again)
