"""Large messages between registries on different machines are packed, where the receiver has said that it takes it."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import httpx
import orjson
import pytest

from kodo.core.instructions import Send
from kodo.errors import RejectedError
from kodo.models import AT_ONCE, canonical
from kodo.transport import Transport
from tests.conftest import Served, Start

LARGE = {"url": "http://far:1", "nodes": {}, "padding": "x" * AT_ONCE}
FAR = "127.1"
"""This machine by a name that does not say so."""
TAKES = b"Accept-Encoding: gzip\r\n"


class Peer:
    """A service of raw answers, which notes how each message came; `status` and `head` are what it answers with."""

    def __init__(self) -> None:
        self.heard: list[tuple[bool, Any]] = []
        self.status, self.head = 200, b""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the messages of one connection."""
        while (head := (await reader.readuntil(b"\r\n\r\n")).lower()) and not reader.at_eof():
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
            body = await reader.readexactly(int(length.partition(b":")[2]))
            packed = b"content-encoding: gzip" in head
            self.heard.append((packed, orjson.loads(gzip.decompress(body) if packed else body)))
            writer.write(b"HTTP/1.1 %d OK\r\n%sContent-Length: 2\r\n\r\n{}" % (self.status, self.head))


async def posted(peer: Peer, host: str, *answers: tuple[int, bytes], message: dict[str, Any] = LARGE) -> list[bool]:
    """Which of the messages to it came packed, when it answers them like that; all come with what was said."""
    server = await asyncio.start_server(peer.answer, "127.0.0.1", 0)
    url = f"http://{host}:{server.sockets[0].getsockname()[1]}"
    transport = Transport()
    for peer.status, peer.head in answers:
        try:
            await transport.post(Send(canonical(url), url, "/update/node", 10), message)
        except RejectedError:
            assert peer.status != 200
    await transport.close()
    server.close()
    assert all(said == message for _, said in peer.heard)
    return [packed for packed, _ in peer.heard]


def packed(*answers: tuple[int, bytes], host: str = FAR, message: dict[str, Any] = LARGE) -> list[bool]:
    return asyncio.run(posted(Peer(), host, *answers, message=message))


def send(registry: Served, body: bytes, coding: str = "gzip") -> httpx.Response:
    return registry.client.post("/update/node", content=body, headers={"Content-Encoding": coding})


def test_who_says_so_is_told_packed() -> None:
    """From the answer on that says so messages are packed; after one that does not, no more."""
    answers = [(200, b""), (200, TAKES), (200, TAKES), (422, b""), (200, b"")]
    assert packed(*answers) == [False, False, True, True, False]


def test_who_knows_nothing_of_it_is_told_plainly() -> None:
    """A service that never says so gets every message as the protocol has it."""
    assert packed(*[(200, b"")] * 3) == [False] * 3


def test_what_would_not_pay_is_not_packed() -> None:
    """A small message, and one to this machine, are not packed."""
    assert packed(*[(200, TAKES)] * 2, message={"url": "http://far:1"}) == [False] * 2
    assert packed(*[(200, TAKES)] * 2, host="127.0.0.1") == [False] * 2


def test_a_registry_takes_a_packed_message(serve: Start) -> None:
    """A packed message does what it would do plainly, and the answer says that more may come so."""
    registry = serve(node=False)
    body = {
        "url": "http://far:1",
        "nodes": {"http://n:1": {"url": "http://n:1", "flows": [{"url": "/a", "name": "a"}]}},
    }
    answer = send(registry, gzip.compress(orjson.dumps(body)))
    assert (answer.status_code, answer.headers["accept-encoding"]) == (200, "gzip")
    assert registry.get("/flows")["total"] == 1


@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        (b"{}", "gzip", 422),
        (gzip.compress(b"{}")[:-1], "gzip", 422),
        (gzip.compress(b"{}") + b"more", "gzip", 422),
        (gzip.compress(b" " * 2**21), "gzip", 413),
        (b"{}", "br", 422),
    ],
    ids=["not packed", "cut short", "goes on", "too large", "otherwise packed"],
)
def test_what_cannot_be_unpacked_is_refused(serve: Start, body: bytes, coding: str, status: int) -> None:
    """What is not whole, above the limit once unpacked, or packed in another way is refused, and names the header."""
    answer = send(serve(node=False, peer_body_limit=2**20), body, coding)
    assert answer.status_code == status
    assert "content-encoding" in answer.text or status == 413
