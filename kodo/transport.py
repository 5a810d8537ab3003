"""Outgoing messages between services: one client, kept alive, a deadline for each message.

A peer that is away, slow, endless or talks nonsense costs its own message and nothing else. What became of a message is
told by what `post` does: it returns the answer, or raises `RejectedError` (answered, but not with success) or
`UnavailableError` (it may or may not have happened).
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
from pydantic import ValidationError

from kodo.core.instructions import Send
from kodo.errors import RejectedError, UnavailableError
from kodo.models import AT_ONCE, BEATS, PeerReply

OFFER_LIMIT, ANSWER_LIMIT = 64 * 2**20, 2**22
"""Bytes that the answer to a handshake may have (an older registry puts all it has into it), and any other."""
LONGEST_PAUSE = 3600.0
"""Seconds that a service may ask to be left alone."""
_LOOPBACK = ("all://localhost", "all://127.0.0.1", "all://[::1]")


class Transport:
    """Carries messages to other services over HTTP."""

    def __init__(self) -> None:
        # Proxies of the environment are for the services of other organizations, never for those on this machine.
        self._client = httpx.AsyncClient(
            timeout=None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=1000, keepalive_expiry=60),
            mounts=dict.fromkeys(_LOOPBACK),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
        )

    async def post(self, send: Send, message: dict[str, Any]) -> PeerReply:
        """Send one message and read its answer, all within `send.deadline` seconds."""
        body = orjson.dumps(message, default=list)
        try:
            async with asyncio.timeout(send.deadline):
                response, answer = await self._exchange(send, body)
        except TimeoutError as error:
            raise UnavailableError(f"no answer within {send.deadline:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(f"{type(error).__name__}: {error}") from error
        _check(response)
        return _read(answer) if len(answer) <= AT_ONCE else await asyncio.to_thread(_read, answer)

    async def _exchange(self, send: Send, body: bytes) -> tuple[httpx.Response, bytes]:
        url = send.address.rstrip("/") + send.route
        limit = OFFER_LIMIT if send.route == "/connect" else ANSWER_LIMIT
        headers = {BEATS: "1"} if send.route == "/register" else None
        async with self._client.stream("POST", url, content=body, headers=headers) as response:
            answer = bytearray()
            async for chunk in response.aiter_bytes():
                answer += chunk
                if len(answer) > limit:
                    raise RejectedError(f"expected an answer of at most {limit} bytes")
            return response, bytes(answer)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def _check(response: httpx.Response) -> None:
    status = response.status_code
    if status >= 500 or status == 429:
        raise UnavailableError(f"answered {status}", _retry_after(response.headers.get("retry-after", "")))
    if status != 200:
        raise RejectedError(f"expected the answer 200, got {status}", status)


def _retry_after(value: str) -> float:
    """The seconds of a `Retry-After`, at most an hour; a date in it is not waited for (RFC 9110, 10.2.3)."""
    return min(float(value), LONGEST_PAUSE) if value.isascii() and value.isdigit() else 0.0


def _read(answer: bytes) -> PeerReply:
    try:
        return PeerReply.model_validate_json(answer)
    except ValidationError as error:
        raise RejectedError("expected the JSON of a registry's answer") from error
