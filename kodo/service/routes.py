"""The routes of PROTOCOL.md: read a request, ask the runtime, write the answer. No rule of the mesh stands here.

Bodies are read by hand, under a limit, and with or without a `Content-Type`; they are checked by the models, which
alone decide what a message is. Answers are written by orjson.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import IO, Annotated, Any, Literal, TypeVar

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Message as Part
from starlette.types import Receive, Scope, Send

from kodo import query
from kodo.cache import Cache
from kodo.changes import Count, Kept
from kodo.errors import BusyError, InvalidMessageError, RoleError, TooLargeError, TooSlowError
from kodo.models import (
    AT_ONCE,
    BEATS,
    PACKED,
    Farewell,
    Flow,
    Heartbeat,
    Model,
    PeerMessage,
    PlainNode,
    Registration,
    now,
)
from kodo.runtime import Answer, Runtime
from kodo.service.endpoint import Asked
from kodo.service.faults import faults
from kodo.service.table import html_table
from kodo.service.tags import headers_of, not_modified, tag_of

log = logging.getLogger("kodo")

MAX_PAGE = 2**53 - 1
PIECE = 2**18
"""Bytes that are sent at once."""
UNPACKING = {"Accept-Encoding": PACKED}
"""Said in the answers to registries: their next messages may come packed."""
KEPT = 8 * 2**20
"""Bytes of answers that are kept as long as they are true."""
SPOOLED, PATIENCE = 8, 5.0
"""Answers from files that are under way at once, and seconds for which one more waits for its turn."""
BODY_TIME = 60.0
"""Seconds in which a body has to come: what came of it is kept meanwhile."""
STALLED = 20.0
"""Seconds in which a reader has to take some of such an answer: it is a file as long as that takes."""

M = TypeVar("M", bound=Model)


class RegistrationAsked(Asked):
    """How long a registration is to be waited for."""

    wait: Literal["mesh", ""] = Field("", description="`mesh`: answer once every registry has it")
    timeout: float = Field(5, gt=0, le=60, description="seconds to wait for them at most")


class PageAsked(Asked):
    """Which page of the flows."""

    p: int = Field(0, ge=0, le=MAX_PAGE, description="the page, from 0")
    pp: int = Field(10, ge=1, le=1000, description="rows a page")
    by: str = Field("", description="columns to sort by, each with an optional `:a` or `:d`")
    q: str = Field("", description="an expression over the columns, or text to search")
    format: Literal["json", "html", ""] = Field("", description="the page's format")


class JSON(Response):
    """An answer written by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, default=list)


class Streamed(StreamingResponse):
    """An answer in JSON that is sent from a file, which is closed then, or when nobody takes any of it for long."""

    def __init__(self, file: IO[bytes], headers: Mapping[str, str] | None, done: Callable[[], None]) -> None:
        """`done` is called when the file is closed."""
        super().__init__(_pieces(file), headers=headers, media_type=JSON.media_type)
        self.headers["content-length"] = str(file.tell())
        self._file = file
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a reader that takes nothing for long is cut off."""

        async def in_time(part: Part) -> None:
            async with asyncio.timeout(STALLED):
                await send(part)

        try:
            await super().__call__(scope, receive, in_time)
        except (TimeoutError, ClientDisconnect):  # the one becomes the other on newer servers
            log.info("gave up the answer to %s, which nobody takes", scope["path"])
        finally:
            self._file.close()
            self._done()


class Spool:
    """Answers from files, of which a few are under way at once."""

    def __init__(self, runtime: Runtime, cache: Cache) -> None:
        self._runtime = runtime
        self._cache = cache
        self._turns = asyncio.Semaphore(SPOOLED)

    async def answer(self, more: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
        """What is durable, with `more` behind it. Raises `BusyError` when no turn comes."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._turns.acquire()
        except TimeoutError as error:
            raise BusyError(f"{SPOOLED} answers as long as this are under way; ask again later") from error
        try:
            file = await self._runtime.read(partial(self._cache.spool, more))
        except BaseException:
            self._turns.release()
            raise
        return Streamed(file, headers, self._turns.release)


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE):
        yield piece


class Limits(BaseModel):
    """The bytes that a body may have: of `/register`, and of messages between registries."""

    body: int
    peer_body: int


def add_messages(router: APIRouter, runtime: Runtime, limits: Limits) -> None:
    """Add the routes of the protocol's messages, over one runtime."""
    identity = runtime.identity

    def common(answer: Answer | None = None) -> dict[str, Any]:
        standing = answer.reply.standing if answer else runtime.standing
        reply: dict[str, Any] = {
            "url": identity.url,
            "organization": identity.organization,
            "node": identity.node,
            "registry": identity.registry,
            "provider": identity.provider,
            "connection": dict(standing.connection),
            "started_at": identity.started_at,
            "idle": standing.idle,
            "now": now(),
            "message": list(answer.reply.message) if answer else [],
        }
        return reply if answer is None else reply | _extras(answer)

    def offered(answer: Answer) -> dict[str, Any]:
        if answer.content is None:
            return common(answer)
        offer = {
            "url": identity.url,
            "organization": identity.organization,
            "feed": identity.feed,
            "nodes": answer.content.nodes,
        }
        return {"providers": offer, "message": list(answer.reply.message)} | _extras(answer)

    async def exchange(request: Request, model: type[M], limit: int, ask: Callable[[M], Awaitable[Answer]]) -> Answer:
        if not identity.registry:
            raise RoleError("this service is no registry")
        return await ask(await _message(request, model, limit, runtime))

    @router.get("/")
    async def get_status(_: Request) -> Response:
        """Who this service is, what it is connected with, and whether all is said."""
        return JSON(common())

    @router.post("/register")
    async def post_register(request: Request, asked: Annotated[RegistrationAsked, Query()]) -> Response:
        """A node registers its flows; what it registered before and names no more is gone."""
        wait = asked.timeout if asked.wait else None
        register = partial(runtime.register, wait=wait, beats=BEATS in request.headers)
        return JSON(common(await exchange(request, Registration, limits.body, register)))

    @router.post("/heartbeat")
    async def post_heartbeat(request: Request) -> Response:
        """A node is there; 404 if it is not registered here, then it is to register."""
        return JSON(common(await exchange(request, Heartbeat, limits.body, runtime.heartbeat)))

    @router.post("/disconnect")
    async def post_disconnect(request: Request) -> Response:
        """A node or a registry leaves: what it brought is gone; 404 if nothing is known of it."""
        return JSON(common(await exchange(request, Farewell, limits.body, runtime.disconnect)))

    @router.delete("/connect")
    async def delete_connect(_: Request) -> Response:
        """Leave every service that this one is connected with; it goes on serving its own flows."""
        await runtime.leave()
        return Response(status_code=204)

    @router.post("/connect")
    async def post_connect(request: Request) -> Response:
        """A registry connects: it brings its nodes and, with `feed`, gets those of this one, now and as they change."""
        answer = await exchange(request, PeerMessage, limits.peer_body, runtime.connect)
        return JSON(offered(answer), headers=UNPACKING)

    @router.post("/update/node")
    async def post_update(request: Request) -> Response:
        """A registry passes on news of nodes, under its own url."""
        answer = await exchange(request, PeerMessage, limits.peer_body, runtime.update)
        return JSON(common(answer), headers=UNPACKING)


def add_reading(router: APIRouter, runtime: Runtime, cache: Cache) -> None:
    """Add the routes that people read: their answers carry tags."""
    identity = runtime.identity
    catalogue = cache.catalogue
    changes = catalogue.changes
    # By their tags, which say all that an answer depends on.
    answers: Kept[bytes] = Kept(KEPT)

    def kept(tagged: dict[str, str], body: bytes, name: Count, count: int) -> dict[str, str]:
        """The headers of an answer, which is kept; without a tag if it may already show more than the tag says."""
        if not changes.stands(name, count):
            return {name: value for name, value in tagged.items() if name != "ETag"}
        # A copy: what orjson writes stands in memory with the room that it was given, kilobytes for a short answer.
        answers.put(tagged["ETag"], bytes(memoryview(body)))
        return tagged

    spool = Spool(runtime, cache)

    @router.get("/flows")
    async def get_flows(request: Request, asked: Annotated[PageAsked, Query()]) -> Response:
        """A page of the flows of the mesh, as JSON or as an HTML table."""
        order = query.parse_order(asked.by)
        sought, select = query.selection(asked.q)
        html = asked.format == "html" or (not asked.format and _prefers_html(request.headers.get("accept", "")))
        count = changes.count("flows")
        depends = (asked.p, asked.pp, asked.by, asked.q, html)
        tagged = headers_of(tag_of(changes.epoch, count, *depends), vary="Accept")
        if (same := not_modified(request, tagged)) is not None:
            return same
        body = answers.get(tagged["ETag"])
        if body is None:
            page = await runtime.read(partial(catalogue.page, select, order, asked.p, asked.pp))
            if html:
                # Reading the rows is the larger part of it, so that they are read there too.
                body = await runtime.aside(lambda: html_table(page.items))
            else:
                body = orjson.dumps(
                    {
                        "total": page.total,
                        "filtered": page.filtered,
                        "p": asked.p,
                        "pp": asked.pp,
                        "items": orjson.Fragment(page.rows),
                        "by": order.shown,
                        "q": query.shown(sought),
                    }
                )
            tagged = kept(tagged, body, "flows", count)
        return Response(body, media_type="text/html" if html else JSON.media_type, headers=tagged)

    @router.get("/counts")
    async def get_counts(request: Request) -> Response:
        """How many flows there are, in all and by node, organization and tag."""
        count = changes.count("counts")
        tagged = headers_of(tag_of(changes.epoch, count))
        if (same := not_modified(request, tagged)) is not None:
            return same
        body = answers.get(tagged["ETag"])
        if body is None:
            body = (await runtime.read(catalogue.counts_json)).encode()
            tagged = kept(tagged, body, "counts", count)
        return Response(body, media_type=JSON.media_type, headers=tagged)

    @router.get("/map")
    async def get_map(request: Request) -> Response:
        """This service's view of the mesh: its own nodes, and each peer with the nodes known through it."""
        standing = runtime.standing
        tagged = headers_of(tag_of(changes.epoch, changes.count("map"), standing.connection, standing.stale))
        if (same := not_modified(request, tagged)) is not None:
            return same
        stale = {"stale": list(standing.stale)} if standing.stale else {}
        return await spool.answer({"connection": dict(standing.connection)} | stale, tagged)

    @router.get("/_cache")
    async def get_cache(_: Request) -> Response:
        """A registry's durable state."""
        if not identity.registry:
            raise RoleError("this service is no registry")
        return await spool.answer({})


def _extras(answer: Answer) -> dict[str, Any]:
    """What only nodes that beat are told, and registries that speak deltas."""
    reply = answer.reply
    extras: dict[str, Any] = {} if reply.lease is None else {"lease": reply.lease}
    if reply.marks is None:
        return extras
    extras["marks"] = dict(reply.marks)
    if reply.contents is not None:
        extras["contents"] = dict(reply.contents)
    if reply.receipts:
        extras["receipts"] = [receipt.model_dump() for receipt in reply.receipts]
    if reply.handshake:
        extras["handshake"] = True
    if answer.content is not None:
        extras["deltas"] = answer.content.deltas
    return extras


async def _message(request: Request, model: type[M], limit: int, runtime: Runtime) -> M:
    body = await _body(request, limit)
    if _coding(request) == PACKED:
        body = await runtime.aside(partial(_unpacked, body, limit))
    parse = partial(_parse, model, body)
    message = parse() if len(body) <= AT_ONCE else await runtime.aside(parse)
    request.state.message = message  # for the trace
    return message


async def _body(request: Request, limit: int) -> bytes:
    """The body, read only as far as its limit allows."""
    if _coding(request) not in ("identity", PACKED):
        raise _misencoded(f"expected {PACKED}, or a body without one")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise TooLargeError(f"expected a body of at most {limit} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIME):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise TooLargeError(f"expected a body of at most {limit} bytes")
    except TimeoutError as error:
        raise TooSlowError(f"expected the whole body within {BODY_TIME:g} s") from error
    return bytes(body)


def _coding(request: Request) -> str:
    return request.headers.get("content-encoding", "identity").lower()


def _unpacked(body: bytes, limit: int) -> bytes:
    """What was packed into a body, unpacked only as far as its limit allows."""
    unpacking = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = unpacking.decompress(body, limit + 1)
    except zlib.error as error:
        raise _misencoded(f"expected a whole body in {PACKED}") from error
    if len(plain) > limit:
        raise TooLargeError(f"expected a body of at most {limit} bytes")
    if not unpacking.eof or unpacking.unused_data:
        raise _misencoded(f"expected a whole body in {PACKED}")
    return plain


def _misencoded(expected: str) -> InvalidMessageError:
    return InvalidMessageError([{"loc": ["header", "content-encoding"], "msg": expected, "type": "value_error"}])


def _parse(model: type[M], body: bytes) -> M:
    try:
        if len(body) <= AT_ONCE:
            return model.model_validate_json(body)
        raw = orjson.loads(body)
        _check_one_by_one(raw)
        return model.model_validate(raw)
    except ValueError as error:
        raise InvalidMessageError(faults(error)) from error


def _check_one_by_one(raw: Any) -> None:
    """Refuse a large body at its first faulty node or flow: checked as a whole it would hold up everybody meanwhile."""
    named: tuple[tuple[str, type[Model]], ...] = (("nodes", PlainNode), ("flows", Flow))
    for name, model in named:
        found = raw.get(name) if isinstance(raw, dict) else None
        items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
        for key, item in items:
            try:
                model.model_validate(item)
            except ValidationError as error:
                raise InvalidMessageError(faults(error, name, key)) from error


def _prefers_html(accept: str) -> bool:
    """Whether an `Accept` header weighs text/html above JSON; the most specific range counts (RFC 9110, 12.5.1)."""
    ranges = dict(_weighted(item) for item in accept.lower().split(","))

    def weight(*names: str) -> float:
        return next((ranges[name] for name in names if name in ranges), 0.0)

    return weight("text/html", "text/*", "*/*") > weight("application/json", "application/*", "*/*")


def _weighted(item: str) -> tuple[str, float]:
    media, *parameters = (part.strip() for part in item.split(";"))
    weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    return media, float(weight) if weight.replace(".", "", 1).isdecimal() else 0.0
