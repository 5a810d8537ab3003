"""The service, end to end over real sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kodo.service import routes
from tests.conftest import Start, free_port
from tests.waiting import until


def test_a_nodes_flows_are_listed_at_every_registry(serve: Start) -> None:
    """What a node registers at one registry is listed at all that are connected with it."""
    first = serve(organization="registry1", node=False)
    second = serve(organization="registry2", node=False, connect=first.url)
    node = serve(organization="node1", registry=False, connect=second.url, loader=["my test"])
    for registry in (first, second):
        until(lambda at=registry: at.flows(), "the flow to be listed")  # type: ignore[misc]
        assert [(row["node"], row["url"]) for row in registry.flows()] == [(node.url, "/my-test")]


def test_a_bad_key_in_a_delta_is_refused(serve: Start) -> None:
    """A record under a key that is no url is refused like any other bad input, and the service goes on."""
    registry = serve(node=False)
    delta = {"origin": "http://x:1", "since": [0, "", 0], "to": [1, "", 1], "records": {"bad": {"seq": 1}}}
    body = {"url": "http://x:1", "marks": {}, "deltas": [delta]}
    for route in ("/connect", "/update/node"):
        assert registry.client.post(route, json=body).status_code == 422
    assert registry.get()["idle"]


def test_a_million_faults_are_told_as_a_few(serve: Start) -> None:
    """However many faults a body has, the answer names the first of them."""
    registry = serve(node=False)
    nodes = [{"url": f"http://n{number}:1", "flows": 1} for number in range(5000)]
    answer = registry.client.post("/connect", json={"url": "http://x:1", "nodes": nodes})
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert 1 <= len(detail) <= 20
    assert detail[0]["loc"] == ["body", "nodes", 0, "flows"]


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html", True),
        ("text/*", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("text/html;q=0.1, */*", False),
        ("application/*;q=0.9,text/html;q=0.3", False),
        ("application/json, text/html", False),
    ],
)
def test_accept(serve: Start, accept: str, html: bool) -> None:
    """HTML is answered when, and only when, the header weighs it above JSON."""
    answer = serve().client.get("/flows", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("text/html" if html else "application/json")


def test_a_service_ends_and_its_caller_goes_on(tmp_path: Path) -> None:
    """`run_service` returns to its caller when it is told to end, and does nothing to it afterwards."""
    script = (
        "import os, signal, sys, threading, time\n"
        "from kodo.service import node\n"
        "node.LAST_WORD = 0.5\n"
        "options = node.load_options(url='http://127.0.0.1:0', cache=sys.argv[1])\n"
        "node.run(options, lambda running: os.kill(os.getpid(), signal.SIGTERM))\n"
        "threading.Event().wait(1)\n"
        "print('still here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c.db")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "still here\n")


@contextmanager
def reloading(folder: Path) -> Iterator[tuple[str, Path]]:
    """A node that reloads its flows from mine.py in this folder: its url and its log, until it has ended."""
    url, path = f"http://127.0.0.1:{free_port()}", folder / "log"
    flags = ["--reload", "--no-registry", "--url", url, "--loader", "mine:load"]
    with (
        path.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "kodo", "serve", *flags], cwd=folder, stdout=log, stderr=log
        ) as service,
    ):
        try:
            yield url, path
        finally:
            service.terminate()
    until(lambda: names(url) is None, "the service to end with its parent")


def test_reload(tmp_path: Path) -> None:
    """With `reload` the service starts anew, at the same port, when a file below the working directory changes."""
    (tmp_path / "mine.py").write_text("def load(loader):\n    loader.add_flow(name='before')\n")
    with reloading(tmp_path) as (url, _):
        until(lambda: names(url) == ["before"], "the service to answer")
        (tmp_path / "mine.py").write_text("def load(loader):\n    loader.add_flow(name='after the change')\n")
        until(lambda: names(url) == ["after the change"], "the service to start anew", timeout=40)


def test_a_slip_while_reloading_is_one_line(tmp_path: Path) -> None:
    """A loader that fails is told once, without a traceback, and the service is there when it is mended."""
    (tmp_path / "mine.py").write_text("def load(loader):\n    loader.add_flw(name='a')\n")
    with reloading(tmp_path) as (url, log):
        until(lambda: "starts anew when a file changes" in log.read_text(), "the error")
        (tmp_path / "mine.py").write_text("def load(loader):\n    loader.add_flow(name='mended')\n")
        until(lambda: names(url) == ["mended"], "the service", timeout=40)
    assert log.read_text().count("add_flw") == 1
    assert "Traceback" not in log.read_text()


def names(url: str) -> list[str] | None:
    """The flows that a service lists, None when it does not answer."""
    try:
        items = httpx.get(f"{url}/flows", trust_env=False).json()["items"]
    except httpx.TransportError:
        return None
    return [item["name"] for item in items]


def test_a_reader_that_takes_nothing_is_cut_off(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers from files are few at once, and one that nobody takes makes room for others."""
    monkeypatch.setattr(routes, "SPOOLED", 1)
    monkeypatch.setattr(routes, "PATIENCE", 0.05)
    monkeypatch.setattr(routes, "STALLED", 1.0)
    service = serve(node=False)
    flow = {"url": "/a", "name": "a", "description": "d" * 12_000_000}
    service.post("/register", {"url": "http://n:1", "flows": [flow]})
    with socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
        idle.sendall(b"GET /_cache HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: service.client.get("/map").status_code == 503, "the first answer to be under way")
        until(lambda: service.client.get("/map").status_code == 200, "the idle reader to be cut off")
