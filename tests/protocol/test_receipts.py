"""Beyond: receipts. `POST /register?wait=mesh&timeout=` answers once every registry has the registration."""

from __future__ import annotations

import re
import signal
import threading
import time
from typing import Any

import pytest

from tests.conftest import Process, Served, Start
from tests.protocol.conftest import Launch, Old
from tests.protocol.helpers import COMMON, connected, flow_urls, record, settled
from tests.waiting import until

NODE = "http://node1:3367"
VISIBLE = re.compile(r"visible at (\d+) of (\d+) registries in (\d+) ms")
PARTLY = re.compile(r"visible at (\d+) of (\d+) registries after (\d+) ms; missing: (.+)")
AMPLE = 10.0
"""Seconds to wait for receipts. Each hop has a tenth less, for its answer to be in time on a busy machine as well."""


def register(served: Served, node: str = NODE, *flows: str, timeout: float = AMPLE) -> dict[str, Any]:
    """Register and wait for the mesh."""
    answer = served.client.post("/register", params={"wait": "mesh", "timeout": timeout}, json=record(node, *flows))
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def ring(launch: Launch, size: int = 4, **kwargs: Any) -> list[Process]:
    """Registries that are connected in a ring."""
    registries: list[Process] = []
    for number in range(size):
        ends = [registries[0].url] if number == size - 1 else []
        to = [*(each.url for each in registries[-1:]), *ends]
        registries.append(launch(node=False, connect=to, beacon=0.3, **kwargs))
    for each in registries:
        until(lambda each=each: all(each.get()["connection"].values()), "the connections")  # type: ignore[misc]
    return registries


def test_visible_in_a_ring_of_four(launch: Launch) -> None:
    """The reply says `visible at 4 of 4 registries in X ms` when all four list it, and at that moment they do."""
    registries = ring(launch)
    for number, served in enumerate(registries):
        began = time.monotonic()
        reply = register(served, NODE, f"f{number}")
        took = (time.monotonic() - began) * 1000
        assert list(reply) == COMMON
        found = VISIBLE.fullmatch(reply["message"][-1])
        assert found, reply["message"]
        assert (found[1], found[2]) == ("4", "4")
        assert int(found[3]) <= took + 1
        assert [flow_urls(each) for each in registries] == [[f"/f{number}"]] * 4
    seen = "first visit" if number == 0 else "seen previously"
    assert seen in reply["message"][0]
    settled(*registries)


def test_many_that_wait_at_once(launch: Launch) -> None:
    """Registrations that wait at once, at all registries of a ring, are all confirmed by all, and fast."""
    registries, lines = ring(launch), []

    def work(number: int) -> None:
        served = Served(registries[number % 4].url, lambda: None)
        for turn in range(5):
            lines.append(register(served, f"http://node{number}:{turn + 1}", "a")["message"][-1])
        served.client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(lines) == 40
    assert [line for line in lines if not line.startswith("visible at 4 of 4 registries in ")] == []


def test_a_paused_registry_is_missing(launch: Launch) -> None:
    """A registry that is paused is named as missing after the timeout, the others as reached; back, it is reached."""
    registries = ring(launch)
    paused = registries[2]
    paused.signal(signal.SIGSTOP)
    began = time.monotonic()
    reply = register(registries[0], NODE, "a")
    took = time.monotonic() - began
    found = PARTLY.fullmatch(reply["message"][-1])
    assert found, reply["message"]
    assert (found[1], found[2], found[4]) == ("3", "4", paused.url)
    assert AMPLE - 1 < took < AMPLE + 5
    paused.signal(signal.SIGCONT)
    settled(*registries)
    assert register(registries[0], NODE, "b")["message"][-1].startswith("visible at 4 of 4")


def test_a_dead_registry_is_missing(launch: Launch) -> None:
    """A registry that is dead is named as missing by whoever is connected with it, until it left or is back."""
    registries = ring(launch, 3)
    dead = registries.pop()
    dead.kill()
    found = PARTLY.fullmatch(register(registries[0], NODE, "a")["message"][-1])
    assert found
    assert (found[1], found[2], found[4]) == ("2", "3", dead.url)
    for each in registries:
        each.post("/disconnect", {"url": dead.url})
    assert register(registries[0], NODE, "b")["message"][-1].startswith("visible at 2 of 2")


@pytest.mark.parametrize("kwargs", [{"node": False}, {}, {"provider": True, "node": False}])
def test_a_single_registry(serve: Start, kwargs: dict[str, Any]) -> None:
    """A registry that is connected with nobody answers at once: `visible at 1 of 1 registries`."""
    served = serve(**kwargs)
    reply = register(served, NODE, "a")
    assert reply["message"][0] == f"registered node {NODE} (first visit)"
    assert re.fullmatch(r"visible at 1 of 1 registries in \d+ ms", reply["message"][1])


def test_an_older_service_is_not_counted(serve: Start, old: Old) -> None:
    """An older service in the mesh gives no receipts: it is told, it is not counted, and nobody waits for it."""
    plain = old()
    first = serve(node=False)
    second = serve(node=False, connect=[first.url, plain.url])
    until(lambda: connected(second, first.url) and connected(second, plain.url), "the connections")
    plain.connect(first)
    plain.open.clear()
    reply = register(first, NODE, "a", timeout=20)
    assert f"feed forward node to {plain.url}" in reply["message"]
    assert re.fullmatch(r"visible at 2 of 2 registries in \d+ ms", reply["message"][-1])
    plain.open.set()
    until(lambda: plain.pushes(NODE), "the news at the older one")
    assert all("asks" not in body and "receipts" not in body for body in plain.pushes())


def test_only_older_services(serve: Start, old: Old) -> None:
    """A registry whose only peers are older, or take no feed, is the only one that counts."""
    plain, quiet, served = old(), old(feed=False), serve(node=False)
    plain.connect(served)
    quiet.connect(served)
    assert re.fullmatch(r"visible at 1 of 1 registries in \d+ ms", register(served, NODE, "a")["message"][-1])


@pytest.mark.parametrize(
    "query",
    [
        "wait=everybody",
        "wait=MESH",
        "wait=1",
        "wait=mesh&timeout=0",
        "wait=mesh&timeout=-1",
        "wait=mesh&timeout=61",
        "wait=mesh&timeout=nan",
        "wait=mesh&timeout=inf",
        "wait=mesh&timeout=soon",
        "wait=mesh&timeout=",
        "timeout=1e400",
    ],
)
def test_bad_questions(serve: Start, query: str) -> None:
    """A bad `wait` or `timeout` is refused with 422, names the field, and registers nothing."""
    served = serve(node=False)
    answer = served.client.post(f"/register?{query}", json=record(NODE, "a"))
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == ["query", "timeout" if "timeout" in query else "wait"]
    assert served.flows() == []


@pytest.mark.parametrize("query", ["", "wait=", "timeout=1", "wait=mesh&timeout=60", "wait=mesh&timeout=0.001"])
def test_good_questions(serve: Start, query: str) -> None:
    """Without `wait` the reply is as ever; the `timeout` is above 0, at most 60, and may be short."""
    served = serve(node=False)
    message = served.post(f"/register?{query}", record(NODE, "a"))["message"]
    assert message[0] == f"registered node {NODE} (first visit)"
    assert len(message) == (2 if "mesh" in query else 1)


def test_a_node_that_waits_holds_up_nobody(launch: Launch) -> None:
    """While a registration waits in vain, the registry answers others as fast as ever, and the end of it is clean."""
    registries = ring(launch, 3)
    registries[1].signal(signal.SIGSTOP)
    replies: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: replies.append(register(registries[0], NODE, "a", timeout=2)))
    waiting.start()
    until(lambda: flow_urls(Served(registries[2].url, lambda: None)) == ["/a"], "the news at the healthy one")
    served = Served(registries[0].url, lambda: None)
    slowest = 0.0
    for number in range(20):
        began = time.monotonic()
        served.post("/register", record(f"http://other:{number + 1}", "b"))
        slowest = max(slowest, time.monotonic() - began)
    waiting.join(10)
    assert PARTLY.fullmatch(replies[0]["message"][-1])
    assert slowest < 1
    registries[1].signal(signal.SIGCONT)
    settled(*registries)
