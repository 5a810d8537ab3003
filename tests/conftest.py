"""Fixtures: services in this process, and as processes of their own; both over real sockets on loopback."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest

from kodo.options import load_options
from kodo.service.node import Running, run
from tests.waiting import until

for _name in ("kodo", "uvicorn"):
    # As a service has it in the process that it runs in: pytest listens to these loggers then, from the first test on.
    logging.getLogger(_name).propagate = False

Start = Callable[..., "Served"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it runs in the background, and so all that is started from there would be deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Served:
    """A service under test: its url, and requests to it."""

    def __init__(self, url: str, end: Callable[[], None]) -> None:
        self.url = url
        self.end = end
        self.client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def get(self, path: str = "/", **params: Any) -> Any:
        answer = self.client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def flows(self, **params: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.get("/flows", **{"pp": 1000, **params})["items"]
        return items

    def idle(self) -> bool:
        return bool(self.get()["idle"])


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Start]:
    """Start services in threads of this process: `serve(organization=..., ...)`; all end with the test."""
    started: list[tuple[Served, threading.Thread]] = []

    def start(**kwargs: Any) -> Served:
        given = {"url": "http://127.0.0.1:0", "cache": tmp_path / f"cache-{len(started)}.db", **kwargs}
        ready: queue.Queue[Running | BaseException] = queue.Queue()

        def work() -> None:
            try:
                run(load_options(**given), ready.put)
            except BaseException as error:
                ready.put(error)
                raise

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        running = ready.get(timeout=30)
        if isinstance(running, BaseException):
            raise running
        served = Served(running.url, lambda: _end(running, thread))
        started.append((served, thread))
        return served

    yield start
    for served, _ in reversed(started):
        served.end()
        served.client.close()


def _end(running: Running, thread: threading.Thread) -> None:
    if thread.is_alive():
        running.end()
        thread.join(10)
        assert not thread.is_alive(), f"{running.url} did not end"


class Process(Served):
    """A service in a process of its own."""

    def __init__(self, url: str, process: BaseProcess) -> None:
        super().__init__(url, self.terminate)
        self.process = process

    def terminate(self) -> None:
        self.process.terminate()
        self.process.join(10)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP and SIGCONT, to a process that runs."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start services as processes: `spawn(url=..., ...)`, answering when it returns; none outlives the test."""
    context = multiprocessing.get_context("spawn")
    started: list[Process] = []

    def start(**kwargs: Any) -> Process:
        number = len(started)
        given = {"cache": tmp_path / f"cache-{number}.db", "log": tmp_path / f"log-{number}.txt", **kwargs}
        given.setdefault("url", f"http://127.0.0.1:{free_port()}")
        process = context.Process(target=run_service, kwargs=given)
        process.start()
        served = Process(str(given["url"]), process)
        started.append(served)
        until(lambda: answers(served), f"{served.url} to answer")
        return served

    yield start
    for served in started:
        served.process.kill()
        served.process.join()
        served.client.close()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_service(**kwargs: Any) -> None:
    """The target of a process: a service, imported there."""
    from kodo.service import node  # noqa: PLC0415

    node.run_service(**kwargs)


def answers(served: Process) -> bool:
    """Whether a process that is to run answers yet."""
    assert served.process.is_alive(), f"{served.url} ended with {served.process.exitcode}"
    try:
        return served.client.get("/").status_code == 200
    except httpx.TransportError:
        return False


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rewrite-scenarios` writes what the scenarios print into their files, to be read as a diff."""
    parser.addoption("--rewrite-scenarios", action="store_true", help="write anew what tests/scenarios/*.txt print")
