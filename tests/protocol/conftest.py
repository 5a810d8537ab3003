"""Fixtures of the protocol tests: registries of the plain protocol, and services that a whole module shares."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kodo.options import load_options
from kodo.service.node import Running, run
from tests.conftest import Served
from tests.protocol.helpers import OldRegistry

Old = Callable[..., OldRegistry]
Shared = Callable[..., Served]


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
