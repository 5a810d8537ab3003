"""Faults, with real processes: registries killed, paused and restarted among peers that swallow, trickle and refuse."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Process, Served, free_port
from tests.conftest import Start as Serving
from tests.protocol.conftest import Launch
from tests.protocol.helpers import connected, flow_urls, record, seen, told
from tests.waiting import until

BOUND = 15.0
"""Seconds after the last fault within which all registries list the same."""
SLOWER = 3.0
"""How many times as long a registration may take to a healthy peer when others are bad; 1 is what it should be."""
GATHERING = 0.12
"""Seconds for which a registry gathers news, and a little more."""
GROWTH = 15 * 1024
"""KiB that a registry may grow in thousands of registrations of the same nodes."""
TIMING: dict[str, Any] = {"node": False, "beacon": 0.3, "lease": 5}

HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>hi</html>"
RETRY_AFTER = 3
LATER = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: %d\r\nContent-Length: 2\r\n\r\n{}" % RETRY_AFTER
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}"
TRICKLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"
COOKIES = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=%s; Path=/\r\nContent-Length: 2\r\n\r\n{}" % (b"x" * 1000)
PACKED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"
ANSWERS = {"swallows": b"", "html": HTML, "trickles": TRICKLE, "later": LATER, "forbidden": FORBIDDEN}
ODD = {"cookies": COOKIES, "packed": PACKED}


class Bad:
    """A peer of raw sockets with one habit: `kind` is a key of `ANSWERS` or `ODD`.

    It notes when it was asked for what, and the whole heads.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.asked: list[tuple[float, str]] = []
        self.heads: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def connect(self, served: Served) -> None:
        """Become a peer that wants all news, as an older service does."""
        served.post("/connect", told(self.url, feed=True, organization=self.kind))

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self._listening)
        await self._over.wait()
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.asked.append((time.monotonic(), head.split()[1].decode()))
                self.heads.append(head)
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write((ANSWERS | ODD)[self.kind])
                while self.kind in ("swallows", "trickles") and not self._over.is_set():
                    await asyncio.sleep(0.2)
                    writer.write(b" " if self.kind == "trickles" else b"")
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


Start = Callable[[str], Bad]
Note = Callable[[str, object], None]


@pytest.fixture
def bad() -> Iterator[Start]:
    """Start bad peers; all end with the test."""
    started: list[Bad] = []

    def start(kind: str) -> Bad:
        started.append(Bad(kind))
        return started[-1]

    yield start
    for each in started:
        each.close()


def mesh(launch: Launch, shape: str, extra: list[str]) -> list[Process]:
    """Four registries in a ring, in which each connects with the next, or a clique of mutual connections."""
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(4)]
    to = {
        url: [urls[(number + 1) % 4]] if shape == "ring" else [other for other in urls if other != url]
        for number, url in enumerate(urls)
    }
    members = [launch(url=url, connect=[*to[url], *extra], **TIMING) for url in urls]
    for each in members:
        until(lambda each=each: all(connected(each, url) for url in to[each.url]), "the connections")  # type: ignore[misc]
    return members


def restarted(launch: Launch, served: Process) -> Process:
    """The same service again, on its cache."""
    configured = list(served.get()["connection"])
    served.kill()
    served.client.close()
    return launch(url=served.url, connect=configured, **TIMING)


def same(members: list[Process]) -> bool:
    return len({frozenset(seen(each)) for each in members}) == 1


class Load:
    """Registers nodes without pause, each with a flow that has a rising number, at whichever registry is there."""

    def __init__(self, urls: list[str]) -> None:
        self.last = 0
        self.acknowledged: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self._urls = urls
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join(20)

    def _work(self) -> None:
        dice, number = random.Random(5), 0
        with httpx.Client(timeout=1, trust_env=False) as client:
            while not self._over.is_set():
                number += 1
                node = f"http://node{number % 12}:1"
                self.asked[node] = number
                try:
                    body = record(node, f"f{number}")
                    answer = client.post(f"{dice.choice(self._urls)}/register", json=body)
                except httpx.TransportError:
                    continue
                if answer.status_code == 200:
                    self.last = self.acknowledged[node] = number


def check_nothing_lost(load: Load, listed: list[dict[str, Any]]) -> None:
    """Of each node the last registration that was acknowledged is listed, or one after it; and just that one."""
    numbers = {row["node"]: int(row["url"].removeprefix("/f")) for row in listed}
    assert len(listed) == len(numbers)
    for node, number in load.acknowledged.items():
        assert number <= numbers[node] <= load.asked[node], node


@pytest.mark.parametrize("shape", ["ring", "clique"])
def test_all_agree_after_any_fault(launch: Launch, bad: Start, shape: str, record_property: Note) -> None:
    """Killed, paused and restarted at random among bad peers, under registrations, all list the same in the end."""
    dice = random.Random(f"faults-{shape}")
    peers = {kind: bad(kind) for kind in ANSWERS}
    members = mesh(launch, shape, [peers["swallows"].url, peers["html"].url])
    for each in peers.values():
        each.connect(dice.choice(members))
    load = Load([each.url for each in members])
    try:
        for turn in range(5):
            victim = dice.randrange(4)
            if turn % 2:
                members[victim].signal(signal.SIGSTOP)
                other = (victim + dice.randrange(1, 4)) % 4
                members[other] = restarted(launch, members[other])
                members[victim].signal(signal.SIGCONT)
            else:
                members[victim] = restarted(launch, members[victim])
            before = load.last
            until(lambda before=before: load.last > before + 12, "registrations to go on")  # type: ignore[misc]
        until(lambda: len(load.acknowledged) == 12, "every node to be registered")
    finally:
        load.end()
    began = time.monotonic()
    until(lambda: same(members), "all to list the same", timeout=BOUND)
    record_property("seconds to agree", round(time.monotonic() - began, 2))
    listings = [{(row["node"], row["url"], row["heartbeat"]) for row in each.flows()} for each in members]
    assert all(each == listings[0] for each in listings)
    check_nothing_lost(load, members[0].flows())


def median_to_be_visible(here: Served, there: Served, name: str, count: int = 15) -> float:
    """The median of the seconds from a registration at one registry until another lists it."""
    times = []
    for number in range(count):
        began = time.monotonic()
        here.post("/register", record(f"http://{name}:{number + 1}", f"{name}{number}"))
        while there.get("/flows", q=f'url == "/{name}{number}"')["filtered"] == 0:
            assert time.monotonic() - began < 10
        times.append(time.monotonic() - began)
        time.sleep(GATHERING)  # so that each is the first of a burst, and leaves at once
    return statistics.median(times)


def test_bad_peers_delay_nobody(launch: Launch, bad: Start, record_property: Note) -> None:
    """Peers that swallow, trickle, refuse or talk nonsense do not slow down the way to a healthy peer."""
    here = launch(**TIMING)
    there = launch(connect=here.url, **TIMING)
    until(lambda: connected(there, here.url), "the connection")
    alone = median_to_be_visible(here, there, "alone")
    peers = [bad(kind) for kind in [*ANSWERS, "swallows", "swallows", "trickles"]]
    for each in peers:
        each.connect(here)
    here.post("/register", record("http://first:1", "first"))
    until(lambda: all(each.asked for each in peers), "the bad peers to be asked")
    among = median_to_be_visible(here, there, "among")
    record_property("milliseconds alone, and among bad peers", f"{alone * 1000:.0f}, {among * 1000:.0f}")
    record_property("times as long", f"{among / alone:.2f}")
    assert among < SLOWER * alone + 0.02


@pytest.mark.parametrize("configured", [True, False], ids=["configured", "connected"])
def test_who_says_later_is_left_alone_for_that_long(launch: Launch, bad: Start, configured: bool) -> None:
    """A peer that answers 429 with `Retry-After` is asked again, but no sooner than it said, whatever news there is."""
    busy = bad("later")
    served = launch(connect=[busy.url] if configured else [], **TIMING)
    if not configured:
        busy.connect(served)
    served.post("/register", record("http://node1:1", "a"))
    until(lambda: busy.asked, "the first question")
    served.post("/register", record("http://node1:1", "b"))
    until(lambda: len(busy.asked) > 1, "the second", timeout=RETRY_AFTER + 8)
    first, second = (moment for moment, _ in busy.asked[:2])
    assert second - first >= RETRY_AFTER - 0.05


def test_who_forbids_is_not_asked_again(launch: Launch, bad: Start) -> None:
    """A peer that answers 403 is never asked again, and shown as refused, until it connects."""
    closed = bad("forbidden")
    served = launch(connect=closed.url, **TIMING)
    until(lambda: closed.asked, "the first question")
    until(lambda: served.get("/convergence")["peers"][closed.url]["state"] == "refused 403", "the refusal to be shown")
    for number in range(3):
        served.post("/register", record("http://node1:1", f"f{number}"))
    time.sleep(1.5)  # many beacons and first pauses; nothing is waited for
    assert len(closed.asked) == 1
    assert served.idle()
    closed.connect(served)
    until(lambda: len(closed.asked) > 1, "a question after it connected")
    until(lambda: served.get("/convergence")["peers"][closed.url]["state"] == "refused 403", "the refusal to be shown")
    time.sleep(1)
    assert len(closed.asked) == 2


def rss(served: Process) -> int:
    """The resident memory of a process, in KiB."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(launch: Launch, bad: Start, record_property: Note) -> None:
    """3,000 registrations of the same 50 nodes, with a peer that takes them and two that do not, grow no memory."""
    silent, slow = bad("swallows"), bad("trickles")
    here = launch(**TIMING)
    there = launch(connect=here.url, **TIMING)
    until(lambda: connected(there, here.url), "the connection")
    for each in (silent, slow):
        each.connect(here)

    def register(numbers: range) -> None:
        with closing(HTTPConnection(here.url.removeprefix("http://"), timeout=30)) as client:
            for number in numbers:
                body = record(f"http://node{number % 50}:1", "a", f"f{number}")
                client.request("POST", "/register", json.dumps(body))
                answer = client.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()

    def all_of(first: int, last: int) -> None:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(register, [range(first + part, last, 8) for part in range(8)]))

    all_of(0, 500)
    before = rss(here), rss(there)
    all_of(500, 3500)
    until(lambda: seen(here) == seen(there), "both to list the same")
    grown = rss(here) - before[0], rss(there) - before[1]
    record_property("KiB grown", grown)
    assert max(grown) < GROWTH
    assert len(flow_urls(here)) == 100


@contextmanager
def listening(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Hear what services of this process log."""
    logging.getLogger("kodo").addHandler(caplog.handler)
    try:
        yield
    finally:
        logging.getLogger("kodo").removeHandler(caplog.handler)


def test_no_cookie_is_taken(serve: Serving, bad: Start) -> None:
    """What a peer wants remembered is sent to nobody: not to it, and not to others on its host."""
    registry, setting, other = serve(node=False), bad("cookies"), bad("cookies")
    setting.connect(registry)
    other.connect(registry)
    for number in range(3):
        registry.post("/register", record(f"http://n{number}:1"))
        until(lambda least=number + 1: min(len(setting.heads), len(other.heads)) >= least, "the peers to be told")
    assert not [head for head in setting.heads + other.heads if b"cookie" in head.lower()]


def test_a_packed_answer_is_not_unpacked(serve: Serving, bad: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Answers are wanted as they are, since a packed one may become a thousand times as long; another is refused."""
    registry, packing = serve(node=False), bad("packed")
    packing.connect(registry)
    with listening(caplog):
        registry.post("/register", record("http://n:1"))
        until(lambda: "is packed" in caplog.text, "the answer to be refused")
    assert all(b"accept-encoding: identity" in head.lower() for head in packing.heads)


def test_a_name_that_no_host_can_have(serve: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """A peer whose name cannot be is away like any other, and floods no log."""
    registry = serve(node=False)
    with listening(caplog):
        registry.post("/connect", told("http://xn--:80", feed=True))
        registry.post("/register", record("http://n:1"))
        until(lambda: "no host can have its name" in caplog.text, "it to be said")
    assert "Traceback" not in caplog.text
