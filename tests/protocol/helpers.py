"""Bodies, times and doubles for the protocol tests: what a plain service of the mesh says, and what it hears."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import Served
from tests.waiting import until

Json = dict[str, Any]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")
TIME_WITH_SPACE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")
LOG_LINE = re.compile(r"[A-Z]+ - \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - \S+ - \S+ - (\S+): .*")

COMMON = ["url", "organization", "node", "registry", "provider", "connection", "started_at", "idle", "now", "message"]
RECORD = ["url", "organization", "flows", "created", "modified", "heartbeat", "status"]
FLOW = ["url", "name", "description", "tags", "author"]
ROW = [
    "registry",
    "node",
    "organization",
    "created",
    "modified",
    "heartbeat",
    "url",
    "name",
    "author",
    "description",
    "tags",
]
CACHE = ["url", "organization", "feed", "nodes", "providers"]
ROOT = Path(__file__).parents[2]


def iso(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds")


def ago(**span: float) -> str:
    """The time that long ago, as the protocol writes it."""
    return iso(datetime.now(UTC) - timedelta(**span))


def ahead(**span: float) -> str:
    return iso(datetime.now(UTC) + timedelta(**span))


def spaced(time: str) -> str:
    return time.replace("T", " ")


def flow(name: str, /, **more: Any) -> Json:
    """A flow as the Fixed part shows it."""
    return {"url": f"/{name}", "name": name, "description": None, "tags": None, "author": None, **more}


def record(url: str, /, *flows: str | Json, organization: str | None = "node1", **more: Any) -> Json:
    """A node's registration, or its record in a `/connect`, as the Fixed part shows it."""
    listed = [flow(each) if isinstance(each, str) else each for each in flows]
    return {
        "url": url,
        "organization": organization,
        "flows": {each["url"]: each for each in listed},
        "created": None,
        "modified": None,
        "heartbeat": None,
        "status": "unknown",
        **more,
    }


def stamped(url: str, *flows: str | Json, created: str, modified: str | None = None, **more: Any) -> Json:
    """A record with times."""
    return record(url, *flows, created=created, modified=modified or created, heartbeat=modified or created, **more)


def told(url: str, *records: Json, organization: str | None = "old", feed: bool = False) -> Json:
    """A `/connect` or `/update/node` body."""
    return {
        "url": url,
        "organization": organization,
        "feed": feed,
        "nodes": {each["url"]: each for each in records},
    }


def seen(served: Served) -> set[tuple[str, str, str, str]]:
    """What a registry lists, apart from the `registry` column: node, flow and times."""
    return {(row["node"], row["url"], row["created"], row["modified"]) for row in served.flows()}


def flow_urls(served: Served, node: str | None = None) -> list[str]:
    return sorted(row["url"] for row in served.flows() if node in (None, row["node"]))


def connected(served: Served, url: str) -> bool:
    """Whether the connection of `served` with `url` stands."""
    return bool(served.get()["connection"].get(url))


def calm(*services: Served) -> None:
    """Wait until nothing is queued or in flight anywhere, seen twice in a row."""
    for _ in range(2):
        until(lambda: all(each.idle() for each in services), "every service to be idle")


def settled(*services: Served) -> None:
    """Wait until all list the same and nothing is under way."""
    until(lambda: len({frozenset(seen(each)) for each in services}) == 1, "all to list the same")
    calm(*services)


@dataclass(frozen=True)
class Heard:
    """A request that a double received."""

    method: str
    path: str
    body: Json
    content_type: str | None


class OldRegistry:
    """A registry of the plain protocol: it knows the Fixed part, `/connect` and `/update/node`, and nothing more."""

    def __init__(
        self, organization: str = "old", feed: bool = True, port: int = 0, listed: Iterable[Json] = ()
    ) -> None:
        self.organization = organization
        self.feed = feed
        self.listed: dict[str, Json] = {each["url"]: each for each in listed}
        self.peers: set[str] = set()
        self.heard: list[Heard] = []
        self.open = threading.Event()  # cleared: requests hang until it is set
        self.open.set()
        self.failing = False
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    # what it hears

    def requests(self, path: str | None = None) -> list[Heard]:
        """All requests, or those to one path; without beats, which are no news."""
        with self._lock:
            return [each for each in self.heard if path in (None, each.path) and each.path != "/heartbeat"]

    def pushes(self, node: str | None = None) -> list[Json]:
        """The `/update/node` bodies, or those that name `node`."""
        bodies = [each.body for each in self.requests("/update/node")]
        return [body for body in bodies if node is None or node in body["nodes"]]

    # what it says

    def offer(self, *records: Json) -> None:
        for each in records:
            self.listed[each["url"]] = each

    def message(self, *records: Json, feed: bool | None = None) -> Json:
        return told(self.url, *records, organization=self.organization, feed=self.feed if feed is None else feed)

    def connect(self, served: Served, feed: bool | None = None) -> Any:
        """Send `/connect` with everything it lists."""
        return served.post("/connect", self.message(*self.listed.values(), feed=feed))

    def update(self, served: Served, *records: Json) -> Any:
        self.offer(*records)
        return served.post("/update/node", self.message(*records, feed=False))

    # as a server

    def answer(self, path: str, body: Json) -> tuple[int, Json]:
        if path == "/connect":
            first = body["url"] not in self.peers
            self.peers.add(body["url"])
            self._take(body)
            text = (
                f"registry {body['url']} connected ({'first visit' if first else 'seen previously ' + spaced(ago())})"
            )
            if body["feed"]:
                return 200, {"providers": self.message(*self.listed.values()), "message": [text]}
            return 200, self._common([text])
        if path == "/update/node":
            known = [url in self.listed for url in body["nodes"]]
            self._take(body)
            lines = [f"{'updated' if each else 'created'} node {body['url']}" for each in known]
            return 200, self._common(lines)
        if path == "/register":
            return 200, self._common([f"registered node {body['url']} (first visit)"])
        return 404, {"detail": "Not Found"}

    def _take(self, body: Json) -> None:
        for url, each in body["nodes"].items():
            self.listed.setdefault(url, each)
            if each["modified"] > self.listed[url]["modified"]:
                self.listed[url] = each

    def _common(self, message: list[str]) -> Json:
        return {
            "url": self.url,
            "organization": self.organization,
            "node": False,
            "registry": True,
            "provider": False,
            "connection": {},
            "started_at": ago(minutes=1),
            "idle": True,
            "now": ago(),
            "message": message,
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"] or 0)
                raw = self.rfile.read(length)
                body = json.loads(raw) if raw else {}
                with registry._lock:
                    registry.heard.append(Heard("POST", self.path, body, self.headers["Content-Type"]))
                registry.open.wait(30)
                if registry.failing:
                    self._reply(503, {"detail": "Service Unavailable"})
                    return
                with registry._lock:
                    status, reply = registry.answer(self.path, body)
                self._reply(status, reply)

            def do_GET(self) -> None:
                with registry._lock:
                    registry.heard.append(Heard("GET", self.path, {}, None))
                if self.path == "/":
                    self._reply(200, registry._common([]))
                else:
                    self._reply(404, {"detail": "Not Found"})

            def do_DELETE(self) -> None:
                self._reply(404, {"detail": "Not Found"})

            def _reply(self, status: int, reply: Json) -> None:
                raw = json.dumps(reply).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:  # whoever asked has gone
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def swallowing() -> Iterator[str]:
    """The url of a service that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def ask(url: str, raw: bytes, timeout: float = 10) -> bytes:
    """Send bytes to a service and read its answer until it closes."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout) as connection:
        connection.sendall(raw)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def post_raw(served: Served, path: str, raw: bytes, **headers: str) -> httpx.Response:
    """A POST of bytes, `Content-Type: application/json` unless told; an empty one leaves the header out."""
    given = {"Content-Type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
    return served.client.post(
        path, content=raw, headers={key: value for key, value in given.items() if value}, timeout=10
    )


class Ended:
    """A `run_service` in a process of its own that is expected to end by itself."""

    def __init__(self, environment: dict[str, str] | None = None, **kwargs: Any) -> None:
        code = f"from kodo.service.node import run_service; run_service(**{kwargs!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self, timeout: float = 30) -> tuple[int, str]:
        """Its exit code and what it wrote."""
        try:
            out, err = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        return self._process.returncode, out + err


def log_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def logged(path: Path, text: str) -> Callable[[], bool]:
    """Whether a log has `text` in one of its lines."""
    return lambda: any(text in line for line in log_of(path))


def known(served: Served, node: str) -> Json | None:
    """The record of a node in the map of a service: among its own, or under the peer that told of it."""
    tree = served.get("/map")
    groups = [tree["nodes"], *(peer["nodes"] for peer in tree["providers"].values())]
    return next((group[node] for group in groups if node in group), None)


def status(served: Served, node: str) -> str | None:
    """The status of a node as a service knows it; None for a node that it does not list."""
    found = known(served, node)
    return None if found is None else str(found["status"])
