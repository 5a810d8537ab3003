"""Outgoing messages between services: kept connections, a deadline for each message.

A peer that is away, slow, endless or talks nonsense costs its own message and nothing else. What became of a message is
told by what `post` does: it returns the answer, or raises `RejectedError` (answered, but not with success) or
`UnavailableError` (it may or may not have happened).

A large message is packed when it goes to another machine, to a service whose last answer said that it takes it so:
5 ms of work for half a megabyte, which is a quarter of that then. To this machine it would only cost.

A lab may put a policy on the way to a service: `Links`, a table of `Link` by url. It stands above the client, so that
a connection that is kept alive is hit like a new one. A service that no lab started has none, and no route leads here.

- What is cut is silent, never refused: a message that meets a cut waits until it is healed or its deadline is over, as
  it would on a network that drops packets. So does an answer that comes back while the link is cut.
- What is lost is lost: the sender hears nothing until its deadline. Chances are drawn from a seeded generator.
- A policy is about the messages that one service sends and the answers to them; those of the other way are the other's.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson
from pydantic import ValidationError

from kodo.core.instructions import Send
from kodo.core.peers import is_foreign
from kodo.errors import RejectedError, UnavailableError, reason_of
from kodo.models import AT_ONCE, BEATS, PACKED, Key, PeerReply, canonical
from kodo.trace import HEADER, Message, Trace, nodes_in

if TYPE_CHECKING:
    import httpx

OFFER_LIMIT, ANSWER_LIMIT = 64 * 2**20, 2**22
"""Bytes that the answer to a handshake may have (an older registry puts all it has into it), and any other."""
LONGEST_PAUSE = 3600.0
"""Seconds that a service may ask to be left alone."""
_HERE = ("localhost", "127.0.0.1", "::1")
_LOOPBACK = ("all://localhost", "all://127.0.0.1", "all://[::1]")
_GZIP = 16 + zlib.MAX_WBITS


@dataclass(frozen=True, slots=True)
class Link:
    """What happens on the way to one service: silence, seconds of delay each way, chances of losing a message."""

    cut: bool = False
    delay: float = 0.0
    request: float = 0.0
    answer: float = 0.0


PASSING = Link()


class Links:
    """The policies of a service by the url of whom it sends to; who is not named is passed to. Of one event loop."""

    def __init__(self, table: Mapping[str, Mapping[str, Any]] | None = None, seed: int = 0) -> None:
        self._table: dict[Key, Link] = {}
        self._chance = Random(seed)
        self._changed = asyncio.Event()
        self.replace(table or {})

    def replace(self, table: Mapping[str, Mapping[str, Any]]) -> None:
        """Let another table hold: the fields of `Link` by url. Messages that wait at a cut look again."""
        self._table = {canonical(url): Link(**fields) for url, fields in table.items()}
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def to(self, url: str) -> Link:
        """The policy on the way to a service."""
        return self._table.get(canonical(url), PASSING)

    async def send(self, url: str, message: Message) -> None:
        """Let a request go its way, or hold it; what holds it stands in the message's outcome."""
        await self._go(url, message, self.to(url).request, "lost: request")

    async def answer(self, url: str, message: Message) -> None:
        """Let the answer come back, likewise."""
        await self._go(url, message, self.to(url).answer, "lost: answer")

    async def _go(self, url: str, message: Message, chance: float, lost: str) -> None:
        await asyncio.sleep(self.to(url).delay)
        while self.to(url).cut:
            message.outcome, message.held = "cut", True
            await self._changed.wait()
        message.outcome = None
        if chance and self._chance.random() < chance:
            message.outcome = lost
            await asyncio.get_running_loop().create_future()


class Transport:
    """Carries messages to other services over HTTP."""

    def __init__(self, links: Links | None = None, trace: Trace | None = None) -> None:
        """`links` are the policies of a lab, `trace` is where messages are noted."""
        self._links = links
        self._trace = trace
        # By whether it is for this machine alone.
        self._clients: dict[bool, asyncio.Task[httpx.AsyncClient]] = {}
        # Whose last answer said that they take packed messages.
        self._unpacking: set[Key] = set()

    async def post(self, send: Send, message: dict[str, Any]) -> PeerReply:
        """Send one message and read its answer, all within `send.deadline` seconds."""
        body = orjson.dumps(message, default=list)
        packed = len(body) > AT_ONCE and self._packs_for(send)
        if packed:
            body = await asyncio.to_thread(zlib.compress, body, 1, _GZIP)
        with self._noting(send) as noted:
            noted.nodes, noted.bytes = nodes_in(message), len(body)
            try:
                async with asyncio.timeout(send.deadline):
                    response, answer = await self._carry(send, body, noted, packed=packed)
            except TimeoutError as error:
                noted.outcome = noted.outcome or "lost: timeout"
                raise UnavailableError(f"no answer within {send.deadline:g} s") from error
            noted.outcome = outcome_of(response.status_code)
        self._learn(send, response)
        _check(response, send)
        return _read(answer) if len(answer) <= AT_ONCE else await asyncio.to_thread(_read, answer)

    def _packs_for(self, send: Send) -> bool:
        return send.peer in self._unpacking and urlsplit(send.address).hostname not in _HERE

    def _learn(self, send: Send, response: httpx.Response) -> None:
        """Whether the service takes packed messages: it may be another one by now, that knows nothing of it."""
        if PACKED in response.headers.get("accept-encoding", ""):
            self._unpacking.add(send.peer)
        else:
            self._unpacking.discard(send.peer)

    def _noting(self, send: Send) -> AbstractContextManager[Message]:
        if self._trace is None:
            return nullcontext(Message("", "sent", send.address, send.route))
        return self._trace.message("sent", send.address, send.route)

    async def _carry(self, send: Send, body: bytes, noted: Message, *, packed: bool) -> tuple[httpx.Response, bytes]:
        if self._links is None:
            return await self._exchange(send, body, noted, packed=packed)
        await self._links.send(send.address, noted)
        got = await self._exchange(send, body, noted, packed=packed)
        await self._links.answer(send.address, noted)
        return got

    async def _exchange(self, send: Send, body: bytes, noted: Message, *, packed: bool) -> tuple[httpx.Response, bytes]:
        url = send.address.rstrip("/") + send.route
        limit = OFFER_LIMIT if send.route == "/connect" else ANSWER_LIMIT
        headers = {BEATS: "1"} if send.route == "/register" else {}
        if packed:
            headers["Content-Encoding"] = PACKED
        if self._trace is not None:
            headers[HEADER] = noted.id
        parts = urlsplit(url)
        client = await self._made(parts.scheme == "http" and parts.hostname in _HERE)
        import httpx  # noqa: PLC0415, loaded with the client

        try:
            async with client.stream("POST", url, content=body, headers=headers) as response:
                answer = bytearray()
                if response.status_code == 200 and response.headers.get("content-encoding", "identity") != "identity":
                    # Unpacked it might be a thousand times as long as it is allowed to be.
                    noted.outcome = "refused: a packed answer"
                    raise RejectedError(f"its answer to {send.route} is packed, which was not asked for")
                async for chunk in response.aiter_raw():
                    answer += chunk
                    if len(answer) > limit:
                        noted.outcome = "refused: too long an answer"
                        raise RejectedError(f"its answer to {send.route} is longer than {limit} bytes")
                return response, bytes(answer)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # of a name that no host can have
            noted.outcome = f"lost: {type(error).__name__}"
            from kodo.reasons import unanswered  # noqa: PLC0415, where something is wrong

            raise UnavailableError(unanswered(error)) from error

    async def _made(self, here: bool) -> httpx.AsyncClient:
        """The client for `here`, or for others. What it needs takes long to load: at the first message, on a thread."""
        if here not in self._clients:
            self._clients[here] = asyncio.create_task(asyncio.to_thread(_client, here))
        making = self._clients[here]
        try:
            # A message whose time is over leaves it to the others.
            return await asyncio.shield(making)
        except Exception as error:
            # A proxy that httpx does not speak with, or certificates that are not there: the next message looks again.
            if self._clients.get(here) is making:
                del self._clients[here]
            raise UnavailableError(
                f"expected to send messages, but {reason_of(error)}; see to proxies and certificates of the environment"
            ) from error

    async def close(self) -> None:
        """Close every connection."""
        for making in list(self._clients.values()):
            await asyncio.wait([making])
            if making.exception() is None:
                await making.result().aclose()


def _client(here: bool = False) -> httpx.AsyncClient:
    from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415, loaded with it

    import httpx  # noqa: PLC0415, a tenth of the start

    with suppress(ImportError):  # another release may have it elsewhere
        import_module("anyio._backends._asyncio")  # else the first message does, and holds the event loop for 10 ms
    return httpx.AsyncClient(
        timeout=None,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=1000, keepalive_expiry=60),
        # Proxies of the environment are for the services of other organizations, never for those on this machine, which
        # are reached whatever the environment says. Plain HTTP meets no certificate.
        trust_env=not here,
        verify=not here,
        mounts=dict.fromkeys(_LOOPBACK),
        headers={"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"},
        # What one service wants remembered is not for all others on its host, and may grow for ever.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


def outcome_of(status: int) -> str:
    """What the trace says of a message that was answered."""
    return str(status) if status == 200 else f"refused {status}"


def _check(response: httpx.Response, send: Send) -> None:
    status = response.status_code
    said = f"it answered {status} to {send.route}"
    foreign = is_foreign(send.route, status)
    if (status >= 500 or status == 429) and not foreign:
        raise UnavailableError(said, _retry_after(response.headers.get("retry-after", "")), status)
    if status != 200:
        raise RejectedError(said, status, foreign=foreign)


def _retry_after(value: str) -> float:
    """The seconds of a `Retry-After`, at most an hour; a date in it is not waited for (RFC 9110, 10.2.3)."""
    return min(float(value), LONGEST_PAUSE) if value.isascii() and value.isdigit() else 0.0


def _read(answer: bytes) -> PeerReply:
    try:
        return PeerReply.model_validate_json(answer)
    except ValidationError as error:
        raise RejectedError("its answer is not the JSON of a registry", 200, foreign=True) from error
