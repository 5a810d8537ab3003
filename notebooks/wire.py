"""What stands under the notebook about the protocol: services as processes, names for urls, and waiting.

A service is one function that blocks, `run_service`, and its options are plain values; so it is started as
`Process(target=run_service, kwargs=...)`. All that is done to it after that goes over HTTP.

- Processes come from the *fork* start method: a forked service takes over what is already imported, so it starts in a
  moment, and it can be given a function from a cell, which the other start methods cannot find. That is on Linux, where
  the notebook is tested, and on macOS.
- Each service logs to a file: what a forked process prints would turn up in whatever cell is running.
- Each is a daemon, which ends with the notebook at the latest; only a kernel that is killed outright would leave it
  behind, a case that `kodo.lab` takes care of.
- Ports are others each time, and so are times. What the notebook shows has names in place of urls, and `(time)`.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx

from kodo.service.node import run_service

NAMES = ("registry1", "registry2", "registry9", "node1", "node2", "node8", "node9")

http = httpx.Client(timeout=30, trust_env=False)  # these services are on this machine: no proxy
folder = Path(tempfile.mkdtemp(prefix="kodo-protocol-"))  # for caches and logs, until the end
process: dict[str, BaseProcess] = {}  # the running services, by name
held: dict[str, socket.socket] = {}  # their ports


def free_url(name: str) -> str:
    """The url of a free port, which stays ours: bound, and open for one of our services to listen at."""
    holder = held[name] = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    if sys.platform != "linux":  # elsewhere two sockets cannot share a port
        holder.close()
    return f"http://127.0.0.1:{port}"


url = {name: free_url(name) for name in NAMES}


def named(answer: Any) -> Any:
    """The same answer with names in place of urls, and `(time)` in place of times."""
    names = {address: name for name, address in url.items()}
    text = re.sub(r"http://127\.0\.0\.1:\d+", lambda found: names[found[0]], json.dumps(answer))
    return json.loads(re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.\d{6}", "(time)", text))


def get(name: str, path: str = "/") -> dict[str, Any]:
    """What a service answers to a GET."""
    answer: dict[str, Any] = http.get(url[name] + path).raise_for_status().json()
    return answer


def wait_until(what: str, holds: Callable[[], bool], seconds: float = 30) -> None:
    """Look again and again until it holds; if it never does, say what was waited for."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.02)


def answers(name: str) -> bool:
    """Whether a service answers. One that has ended never will."""
    assert process[name].is_alive(), (folder / f"{name}.log").read_text()
    try:
        return http.get(url[name]).is_success
    except httpx.TransportError:
        return False


def start(name: str, **options: object) -> None:
    """Start a service as a process, and wait until it answers."""
    files = {"cache": folder / f"{name}.db", "log": folder / f"{name}.log"}
    kwargs = {"url": url[name], **files, **options}
    process[name] = multiprocessing.get_context("fork").Process(target=run_service, kwargs=kwargs, daemon=True)
    process[name].start()
    wait_until(f"{name} answers", lambda: answers(name))


def stop(name: str) -> None:
    """Tell a service to end, as a service manager would, and wait until it has."""
    process[name].terminate()
    process[name].join(10)
    assert process[name].exitcode == 0


def end() -> None:
    """End all services, each properly, and take away what they left."""
    for service in process.values():
        service.terminate()
    for name, service in process.items():
        service.join(10)
        assert service.exitcode == 0
        assert "shutdown now" in (folder / f"{name}.log").read_text()
    http.close()
    for holder in held.values():
        holder.close()
    shutil.rmtree(folder)
    assert multiprocessing.active_children() == []
