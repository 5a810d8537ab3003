"""Clients that are not what limits a figure.

`wrk` where it is installed; else a process of its own for each connection, with a bare socket. `Connection` is that
bare socket, for what has to be asked in turns. `burst` opens many connections at once.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from math import ceil
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

NUMBER = "00000000"
"""What stands in a request where each is to have another number, of eight digits; the same wherever it stands."""
STALE = 20.0
"""Seconds after which an idle connection is opened anew: the service may have closed it."""
LUA = """
local formats, at, number = {}, 0, %(first)d
local function add(method, path, body, tag)
  if body then
    local numbered = body:find("%(number)s", 1, true)
    formats[#formats + 1] = function()
      if not numbered then return wrk.format(method, path, nil, body) end
      number = number + 1
      return wrk.format(method, path, nil, (body:gsub("%(number)s", string.format("%%08d", number))))
    end
  else
    local formatted = nil
    formats[#formats + 1] = function()
      formatted = formatted or wrk.format(method, path, tag and {["If-None-Match"] = tag})
      return formatted
    end
  end
end
init = function()
%(adds)s
end
request = function()
  at = at %% #formats + 1
  return formats[at]()
end
done = function(summary, latency, requests)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  print(string.format('RESULT {"requests": %%d, "seconds": %%f, "p50": %%f, "failed": %%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, failed))
end
"""


@dataclass(frozen=True)
class Request:
    """A request; a `NUMBER` in its body is another one each time. `tag`: of the answer that the client has already."""

    path: str
    body: str | None = None
    tag: str | None = None

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def raw(self, number: int = 0) -> bytes:
        """The bytes of the request."""
        body = "" if self.body is None else self.body.replace(NUMBER, f"{number:08d}")
        content = body.encode()
        condition = "" if self.tag is None else f"If-None-Match: {self.tag}\r\n"
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: x\r\n{condition}Content-Length: {len(content)}\r\n\r\n"
        return head.encode() + content


@dataclass(frozen=True)
class Load:
    """What came of asking for a while: answers a second, and the median of their latency, in ms."""

    rate: float
    p50: float


class LoadError(Exception):
    """An answer that was none, or no 200: then a figure would be about something else."""


class NotReadyError(LoadError):
    """A 503: the service is there, and cannot answer yet."""


class Connection:
    """A kept connection, asked in turns. One that was idle for long is opened anew."""

    def __init__(self, url: str, timeout: float = 60) -> None:
        self._url = url
        self._timeout = timeout
        self._open()

    def _open(self) -> None:
        parts = urlsplit(self._url)
        self._socket = socket.create_connection((parts.hostname, parts.port), self._timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._used = time.monotonic()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; a `lines` that another thread reads ends."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def send(self, request: Request) -> None:
        """Ask for an answer that has no end, to be read by `lines`."""
        self._socket.sendall(request.raw())

    def lines(self) -> Iterator[bytes]:
        """The lines of an answer that has no end, until the connection is closed."""
        with suppress(OSError), self._socket.makefile("rb") as file:
            yield from file

    def ask(self, raw: bytes) -> bytes:
        """The body of the answer. Raises `LoadError` when it is no 200, `OSError` when there is none."""
        if time.monotonic() > self._used + STALE:
            self._socket.close()
            self._open()
        self._socket.sendall(raw)
        answer = self._socket.recv(262144)
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._more()
        head = answer[:end].lower()
        if head.startswith(b"http/1.1 304"):  # only who names a tag is answered so
            self._used = time.monotonic()
            return b""
        if not head.startswith(b"http/1.1 200"):
            kind = NotReadyError if head.startswith(b"http/1.1 503") else LoadError
            raise kind(f"expected a 200, got {answer[:400].decode(errors='replace')}")
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        pieces = [answer[end + 4 :]]
        missing = length - len(pieces[0])
        while missing > 0:
            pieces.append(self._more())
            missing -= len(pieces[-1])
        self._used = time.monotonic()
        return b"".join(pieces)

    def _more(self) -> bytes:
        piece = self._socket.recv(1048576)
        if not piece:
            raise ConnectionError("the service closed the connection")
        return piece

    def p50(self, requests: Sequence[Request], seconds: float) -> float:
        """The median latency in ms of these requests in turns, each at least once."""
        raws = [request.raw() for request in requests]
        spans: list[float] = []
        end = time.perf_counter() + seconds
        while len(spans) < len(raws) or time.perf_counter() < end:
            began = time.perf_counter()
            self.ask(raws[len(spans) % len(raws)])
            spans.append(time.perf_counter() - began)
        return 1000 * median(spans)


@cache
def client() -> str:
    """Which client makes the load."""
    if shutil.which("wrk") is None:
        return "bare sockets, a process for each connection (wrk is not installed)"
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return f"wrk {said.split()[1].removeprefix('debian/').partition('-')[0]}"


def load(url: str, requests: Sequence[Request], connections: int, seconds: float, first: int = 0) -> Load:
    """Ask these requests in turns over so many connections; numbers go up from `first`.

    Raises `LoadError` if anything but a 200 came.
    """
    with_wrk = client().startswith("wrk ")
    return (_wrk if with_wrk else _processes)(url, requests, connections, seconds, first)


def _wrk(url: str, requests: Sequence[Request], connections: int, seconds: float, first: int) -> Load:
    adds = "\n".join(
        f"  add('{request.method}', [==[{request.path}]==], {_lua(request.body)}, {_lua(request.tag)})"
        for request in requests
    )
    with TemporaryDirectory() as folder:
        script = Path(folder) / "load.lua"
        script.write_text(LUA % {"first": first, "number": NUMBER, "adds": adds})
        command = ["wrk", "-t1", f"-c{connections}", f"-d{ceil(seconds) + 1}s", "--timeout", "60s", "-s", str(script)]
        with subprocess.Popen([*command, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as wrk:
            try:
                said, failed = wrk.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                wrk.send_signal(signal.SIGINT)  # it counts whole seconds only, but tells what it has when interrupted
                said, failed = wrk.communicate()
    _, found, result = said.partition("RESULT ")
    if not found:
        raise LoadError(f"wrk: {said[-400:]}{failed[-400:]}")
    return _load(json.loads(result))


def _lua(text: str | None) -> str:
    return "nil" if text is None else f"[==[{text}]==]"


def _load(result: dict[str, Any]) -> Load:
    if result["failed"] or not result["requests"]:
        raise LoadError(f"{result['failed']} of {result['requests']} requests failed")
    return Load(result["requests"] / result["seconds"], result["p50"])


def _processes(url: str, requests: Sequence[Request], connections: int, seconds: float, first: int) -> Load:
    begin = time.monotonic() + 0.2 + 0.05 * connections
    plan = {"url": url, "requests": [asdict(request) for request in requests], "step": connections}
    command = [sys.executable, "-m", "tests.benchmarks.load"]
    clients = []
    for number in range(connections):
        one = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert one.stdin is not None
        one.stdin.write(json.dumps({**plan, "first": first + number, "begin": begin, "seconds": seconds}).encode())
        one.stdin.close()
        clients.append(one)
    spans: list[float] = []
    for one in clients:
        assert one.stdout is not None
        said = one.stdout.read()
        if one.wait():
            raise LoadError("a client ended early")
        spans += json.loads(said)
    return Load(len(spans) / seconds, 1000 * median(spans))


def _work() -> None:
    """One of the processes: ask in turns from the moment that was agreed, and tell how long each answer took."""
    plan = json.load(sys.stdin)
    requests = [Request(**request) for request in plan["requests"]]
    spans, number = [], plan["first"]
    with Connection(plan["url"]) as connection:
        time.sleep(max(0.0, plan["begin"] - time.monotonic()))
        while not spans or time.monotonic() < plan["begin"] + plan["seconds"]:  # however late it began, once
            raw = requests[number % len(requests)].raw(number)
            number += plan["step"]
            began = time.perf_counter()
            connection.ask(raw)
            spans.append(time.perf_counter() - began)
    json.dump(spans, sys.stdout)


def burst(url: str, raws: Sequence[bytes]) -> None:
    """Ask each of these at once, over a connection of its own. Raises `LoadError` if one gets no 200."""
    parts = urlsplit(url)

    async def one(raw: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        writer.close()
        return head[9:12]

    async def every() -> list[bytes]:
        return await asyncio.gather(*map(one, raws))

    failed = [status for status in asyncio.run(every()) if status != b"200"]
    if failed:
        raise LoadError(f"{len(failed)} of {len(raws)} got no 200, but {sorted(set(failed))}")


if __name__ == "__main__":
    _work()
