"""The trace at the service's door: what is received is noted, and `GET /events?kind=messages` tells it.

The stream is server-sent events: `id` is a place in the trace to go on from (`Last-Event-ID`), `data` a message as
`kodo.trace.Message` has it. Told at once is all that the trace still holds; the comment `: caught up` follows, then
what happens. `event: missed` says how many notes a reader was too slow for, or
came too late for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Part

from kodo.models import PeerMessage, Registration
from kodo.trace import HEADER, Message, Trace, nodes_in
from kodo.transport import outcome_of

CHUNK = 200
"""Notes that are written at once."""


async def messages_stream(trace: Trace, last_event_id: str | None = None) -> AsyncGenerator[bytes, None]:
    """The events of a trace, from the one after `last_event_id` on, for as long as somebody reads."""
    place, caught_up = trace.place_after(last_event_id), False
    while True:
        found = trace.since(place, CHUNK)
        place = found.place
        if found.missed:
            yield b'event: missed\ndata: {"missed":%d}\n\n' % found.missed
        if found.notes:
            first = place - len(found.notes) + 1
            yield b"".join(_event(trace, first + index, note) for index, note in enumerate(found.notes))
        elif not caught_up:
            caught_up = True
            yield b": caught up\n\n"
        if len(found.notes) < CHUNK and caught_up:
            await trace.wait(place)


def _event(trace: Trace, number: int, message: Message) -> bytes:
    return b"id: %s-%d\nevent: message\ndata: %s\n\n" % (trace.nonce.encode(), number, orjson.dumps(message.plain()))


class Traced:
    """Around the application: notes every request that is a protocol message."""

    def __init__(self, app: ASGIApp, trace: Trace) -> None:
        """`app` is what answers."""
        self._app = app
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; note it, if it is a message."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        with self._trace.message("received", None, scope["path"], Headers(scope=scope).get(HEADER)) as noted:

            async def counted() -> Part:
                part = await receive()
                noted.bytes += len(part.get("body", b""))
                return part

            async def answered(part: Part) -> None:
                if part["type"] == "http.response.start":
                    _read(noted, state.get("message"))
                    noted.outcome = outcome_of(part["status"])
                await send(part)

            await self._app(scope, counted, answered)


def _read(noted: Message, message: Any) -> None:
    """Note what the route found the message to be."""
    if message is not None:
        noted.peer = message.url
    if isinstance(message, PeerMessage):
        noted.nodes = nodes_in({"nodes": message.nodes, "deltas": message.deltas})
    elif isinstance(message, Registration):
        noted.nodes = 1
