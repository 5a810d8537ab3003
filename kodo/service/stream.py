"""Server-sent events: streams that stay open, how many of them there may be, and how they end.

```
 source (async iterator of pieces) --> EventStream --> the reader's socket
                                           ^ keep-alive while the source is silent
 Streams.close() --> every stream ends, and with it its source
```

- A source is asked for its next piece when the last one was taken by the socket: a slow reader slows its own source,
  and nothing is queued for it here.
- A stream ends when its source does, when its reader leaves, or when the service ends; its source is closed then.
- Above `MOST` streams, or `EACH` of one address, a reader is answered 503: each is a connection that is held, and
  no client is to hold them all.

`event` writes one event. What a source tells, and how a reader goes on where it left, is the source's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from kodo.errors import KodoError, UnavailableError

log = logging.getLogger("kodo")

MOST = 64
"""Streams of a service at once."""
EACH = 32
"""Those of one client's address: many readers may be behind one, such as a proxy or the labs of one machine."""
KEEP_ALIVE = 15.0
"""Seconds of silence after which a comment is sent, so that both sides know that the other is there."""
LAST_PIECE = 0.5
"""Seconds that a reader gets to take the end of its stream."""

Source = AsyncGenerator[bytes, None]


def event(kind: str, data: Any, number: str | None = None) -> bytes:
    """One event as it is sent; `number` is what a reader that goes on names as `Last-Event-ID`."""
    head = b"" if number is None else b"id: " + number.encode() + b"\n"
    # JSON by orjson has no line break in it.
    return head + b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data, default=list) + b"\n\n"


def pause(milliseconds: int) -> bytes:
    """What tells a reader how long to wait before it comes back."""
    return b"retry: %d\n\n" % milliseconds


class Streams:
    """The open streams of one service."""

    def __init__(self, most: int = MOST, each: int = EACH) -> None:
        self.most = most
        self.each = each
        self._open: Counter[str] = Counter()
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams, and take no more."""
        self._closing.set()

    async def closed(self) -> None:
        """Wait until the streams are to end."""
        await self._closing.wait()

    def enter(self, address: str) -> None:
        """A stream to an address begins. Raises `UnavailableError` when there are too many, or the service ends."""
        if self._closing.is_set():
            raise UnavailableError("the service is ending; ask again later")
        if self._open.total() >= self.most:
            raise UnavailableError(f"expected at most {self.most} streams at once; close one, or ask again later")
        if self._open[address] >= self.each:
            raise UnavailableError(
                f"expected at most {self.each} streams of one client at once; close one, or ask again later"
            )
        self._open[address] += 1

    def leave(self, address: str) -> None:
        """A stream to an address has ended."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class EventStream(Response):
    """The answer that is a stream of events: what `source` yields, until one of the three ends it."""

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, source: Source) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._streams = streams
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = scope["client"][0] if scope.get("client") else ""
        try:
            self._streams.enter(address)
        except UnavailableError as error:
            detail = orjson.dumps({"detail": str(error)})
            refusal = Response(detail, error.status, {"Retry-After": "5"}, "application/json")
            await refusal(scope, receive, send)
            return
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._until_one_ends(receive, send)
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_PIECE):
                    await send(_body(b"", more=False))
        finally:
            self._streams.leave(address)
            await self._source.aclose()

    async def _until_one_ends(self, receive: Receive, send: Send) -> None:
        ends = [
            asyncio.create_task(self._relay(send)),
            asyncio.create_task(_left(receive)),
            asyncio.create_task(self._streams.closed()),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _relay(self, send: Send) -> None:
        coming = asyncio.create_task(self._next())
        try:
            while (piece := await _alive(coming, send)) is not None:
                await send(_body(piece))
                coming = asyncio.create_task(self._next())
        except KodoError as error:
            log.info("a stream of events ends, and its reader may come back: %s", error)
        except Exception:
            log.exception("a stream of events ends, for a fault of the service")
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _next(self) -> bytes | None:
        return await anext(self._source, None)


async def _alive(coming: asyncio.Task[bytes | None], send: Send) -> bytes | None:
    """The next piece; until it is there, now and then a sign of life."""
    while not (await asyncio.wait([coming], timeout=KEEP_ALIVE))[0]:
        await send(_body(b": still here\n\n"))
    return coming.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(piece: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": more}
