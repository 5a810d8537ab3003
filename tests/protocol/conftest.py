"""Fixtures of the protocol tests: registries of the plain protocol, services that a whole module shares, processes."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kodo.options import load_options
from kodo.service.node import Running, run
from tests.conftest import Process, Served, answers, free_port, run_service
from tests.protocol.helpers import OldRegistry
from tests.waiting import until

Old = Callable[..., OldRegistry]
Shared = Callable[..., Served]
Launch = Callable[..., Process]


@pytest.fixture
def old() -> Iterator[Old]:
    """Start plain-protocol registries: `old(feed=..., organization=...)`; all end with the test."""
    started: list[OldRegistry] = []

    def start(**kwargs: Any) -> OldRegistry:
        registry = OldRegistry(**kwargs)
        started.append(registry)
        return registry

    yield start
    for registry in started:
        registry.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Start services that all tests of a module read, as `serve` does; they end with the module."""
    ends: list[Callable[[], None]] = []
    folder = tmp_path_factory.mktemp("shared")

    def start(**kwargs: Any) -> Served:
        given = {"url": "http://127.0.0.1:0", "cache": folder / f"cache-{len(ends)}.db", **kwargs}
        ready: queue.Queue[Running] = queue.Queue()
        thread = threading.Thread(target=run, args=(load_options(**given), ready.put), daemon=True)
        thread.start()
        running = ready.get(timeout=30)

        def end() -> None:
            running.end()
            thread.join(10)
            assert not thread.is_alive(), f"{running.url} did not end"

        ends.append(end)
        return Served(running.url, end)

    yield start
    for end in reversed(ends):
        end()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start services as processes, as `spawn` does, but forked from one that has imported everything: in 0.1 s each.

    Started with the `url` of one that was launched before, a service has the cache of that one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kodo.service.node", "kodo.service.app", "tests.conftest"])
    started: list[Process] = []

    def start(**kwargs: Any) -> Process:
        url = kwargs.get("url") or f"http://127.0.0.1:{free_port()}"
        name = url.rpartition(":")[2]
        given = {"url": url, "cache": tmp_path / f"{name}.db", "log": tmp_path / f"{name}.log", **kwargs}
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
