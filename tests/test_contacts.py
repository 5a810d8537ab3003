"""What the log says of peers and nodes: what is news, once, and in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, get_args

import pytest

from kodo import contacts
from kodo.contacts import COUNTED, Contacts, Fate
from kodo.core.instructions import Route, Send
from kodo.errors import RejectedError, UnavailableError
from tests.conftest import Start, free_port
from tests.protocol.helpers import OldRegistry, connected, record, told
from tests.waiting import until

PEER = "http://peer:1"
GONE = UnavailableError("nothing listens there")


def send(route: Route = "/connect") -> Send:
    return Send(PEER, PEER, route, 10)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of the monotonic clock, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(contacts.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said since it was last asked, by the service itself."""
    caplog.set_level("INFO")

    def take() -> list[str]:
        lines = [f"{each.levelname} {each.getMessage()}" for each in caplog.records if each.module == "contacts"]
        caplog.clear()
        return lines

    return take


Said = Callable[[], list[str]]


def test_a_peer_that_is_away_is_said_ever_less_often(clock: list[float], said: Said) -> None:
    """A day of failing tries, one a second, is a dozen lines: the first at once, each later one twice as late."""
    known = Contacts()
    known.failed(send(), GONE)
    assert said() == [f"WARNING {PEER} is away: nothing listens there"]
    for _ in range(86_400):
        clock[0] += 1
        known.failed(send(), GONE)
    lines = said()
    assert lines[0] == f"WARNING {PEER} is away, after 61 tries in 60 s: nothing listens there"
    assert lines[1] == f"WARNING {PEER} is away, after 121 tries in 2 min: nothing listens there"
    assert len(lines) == 11
    assert known.why == {PEER: "nothing listens there"}


def test_each_reason_is_said_once(clock: list[float], said: Said) -> None:
    """Another reason is said when it comes up first, and not when reasons take turns."""
    known = Contacts()
    reasons = [GONE, UnavailableError("no answer within 10 s"), RejectedError("it answered 404", 404, foreign=True)]
    for _ in range(20):
        for error in reasons:
            known.failed(send(), error)
    assert [line.partition(":1 ")[2].partition(",")[0] for line in said()] == [
        "is away: nothing listens there",
        "is away",
        "answers",
    ]
    known.failed(send(), UnavailableError("it answered 503 to /connect", answered=503))
    assert " is not ready, after" in said()[0]
    known.failed(send("/update/node"), RejectedError("it answered 422 to /update/node", 422))
    known.failed(send(), RejectedError("its answer breaks the protocol"))
    assert [" refuses, after" in line or " answers what cannot be taken, after" in line for line in said()] == [
        True
    ] * 2


def test_who_answers_again_is_said_with_how_long_it_took(clock: list[float], said: Said) -> None:
    """The end of a failure is one line with tries and time; what goes on as it should is none."""
    known = Contacts()
    known.answered(send())
    known.answered(send())
    assert said() == [f"INFO connected with {PEER}"]
    for _ in range(3):
        known.failed(send("/update/node"), GONE)
        clock[0] += 20
    said()
    known.answered(send())
    known.answered(send("/update/node"))
    assert said() == [f"INFO {PEER} answers again, after 3 tries in 60 s"]
    assert known.why == {}
    known.failed(send(), RejectedError("it answered 403 to /connect", 403))
    assert said() == []  # the runtime says that it is not asked any more


@pytest.mark.parametrize("fate", get_args(Fate))
def test_nodes_that_fare_alike_are_counted(fate: Fate, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand nodes that fare alike one is named, and the others are a number; one alone is named later."""

    async def arrive() -> None:
        waiting: list[tuple[float, Callable[[], Any]]] = []
        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patched:
            patched.setattr(
                loop, "call_later", lambda delay, call: waiting.append((delay, call)) or loop.call_soon(int)
            )
            known = Contacts()
            for number in range(1000):
                known.became(fate, f"http://node{number}:1")
            assert said() == [f"INFO node http://node0:1 {fate}"]
            [(delay, sum_up)] = waiting
            assert delay == COUNTED
            sum_up()
            assert said() == [f"INFO 999 more {fate} within the last 60 s"]
            for _ in range(3):
                known.became(fate, "http://restless:1")
            waiting.pop()[1]()
            assert said() == [f"INFO node http://restless:1 {fate} within the last 60 s"]
            waiting.pop()[1]()
            assert said() == []
            known.became(fate, "http://late:1")
            assert said() == [f"INFO node http://late:1 {fate}"]
            known.became(fate, "http://last:1")
            known.close()
            assert said() == [f"INFO node http://last:1 {fate} within the last 60 s"]

    asyncio.run(arrive())


def test_a_node_and_its_registry_say_what_worked(serve: Start, said: Said) -> None:
    """Registered, known there, registered anew after the registry lost it, and left: a line each, none for a beat."""
    port = free_port()
    lines: list[str] = []

    def says(text: str) -> Callable[[], bool]:
        return lambda: lines.extend(said()) or any(text in line for line in lines)

    registry = serve(node=False, url=f"http://127.0.0.1:{port}", lease=0.3)
    node = serve(registry=False, connect=registry.url, loader=["a"])
    until(says(f"registered at {registry.url}"), "the registration to be said")
    until(says(f"node {node.url} registered"), "the registry to say so")
    until(lambda: registry.flows() and registry.get("/map")["nodes"][node.url]["status"] == "online", "a beat")
    assert says("")()
    assert len(lines) == 2
    registry.end()
    until(says(f"{registry.url} is away: nothing listens there"), "the end of the registry to be said")
    again = serve(node=False, url=registry.url, lease=0.3)
    until(says("does not know this node any more, which registers again"), "the loss to be said")
    until(again.flows, "the node to be back")
    until(says(f"registered at {registry.url}, after"), "the way back to be said")
    assert node.client.delete("/connect").status_code == 204
    until(says(f"left {registry.url}"), "the leaving to be said")


def test_a_registry_says_what_becomes_of_its_nodes(serve: Start, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that falls silent, comes back, is dropped, comes anew and leaves is named each time; a beat is no news."""
    monkeypatch.setattr(contacts, "COUNTED", 0.0)
    registry = serve(node=False, lease=0.3, retention=1.5)
    registry.post("/register", record("http://node1:1", "a"))
    registry.post("/register", record("http://node1:1", "b"))
    lines: list[str] = []

    def says(text: str) -> Callable[[], bool]:
        def heard() -> bool:
            # A registry that hears nobody drops nobody.
            assert registry.client.post("/heartbeat", json={"url": "http://node2:1"}).is_success
            lines.extend(said())
            return f"INFO node http://node1:1 {text}" in lines

        return heard

    registry.post("/register", record("http://node2:1"))
    registry.post("/heartbeat", {"url": "http://node1:1"})
    until(says("went offline"), "the silence to be said")
    registry.post("/heartbeat", {"url": "http://node1:1"})
    until(says("came back"), "the return to be said")
    until(says("dropped"), "the end to be said")
    lines.append("anew")
    registry.post("/register", record("http://node1:1", "a"))
    registry.post("/disconnect", {"url": "http://node1:1"})
    assert says("left")()
    told = [line.rpartition(":1 ")[2] for line in lines if "node2" not in line]
    expected = ["registered", "went offline", "came back", "went offline", "dropped", "anew", "registered", "left"]
    assert told == expected


def test_registries_say_who_connected(serve: Start, said: Said) -> None:
    """Both sides of a connection say so, once, and say that the other has left."""
    here = serve(node=False)
    there = serve(node=False, connect=here.url)
    until(lambda: connected(there, here.url), "the connection")
    here.post("/connect", told(there.url, feed=True))
    here.post("/register", record("http://node1:1", "a"))
    here.post("/register", record("http://node1:1", "b"))
    assert there.client.delete("/connect").status_code == 204
    lines = said()
    assert sorted(lines) == sorted(
        [
            f"INFO {there.url} connected to this registry",
            f"INFO connected with {here.url}",
            "INFO node http://node1:1 registered",
            f"INFO {there.url} has left",
            f"INFO left {here.url}",
        ]
    )


def test_an_answer_that_breaks_the_protocol_is_said_once(serve: Start, said: Said) -> None:
    """A peer whose answers cannot be taken is a line for each route, however often it is asked; its reason is shown."""
    served = serve(node=False)

    class Echo(OldRegistry):
        def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            return 200, {"providers": {"url": served.url, "organization": None, "feed": True, "nodes": {}}}

    peer = Echo()
    try:
        peer.connect(served)
        served.post("/register", record("http://node1:1", "a"))
        until(lambda: len(peer.requests()) > 3, "some tries")
        reason = served.get("/convergence")["peers"][peer.url]["why"]
    finally:
        peer.close()
    assert "breaks the protocol: body.url: expected the url of another service" in reason
    assert sum("/connect breaks the protocol" in line for line in said()) == 1
