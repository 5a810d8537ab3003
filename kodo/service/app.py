"""The FastAPI application: the routes, and how errors are answered; assembled from parts that are passed in."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from kodo import __version__
from kodo.cache import Cache
from kodo.errors import InvalidMessageError, KodoError, TooLargeError, TooSlowError
from kodo.runtime import Runtime
from kodo.service.endpoint import Endpoint
from kodo.service.events import add_events
from kodo.service.messages import Traced
from kodo.service.reports import add_reports
from kodo.service.routes import JSON, Limits, add_messages, add_reading
from kodo.service.stream import Streams
from kodo.trace import Trace

DRAINED, DRAIN_TIME = 64 * 2**20, 5.0
"""Bytes of a refused body, and seconds, that are read and dropped after the answer, so that its sender reads it."""


class TooLarge(JSON):
    """The answer to a body above the limit: at once, then the connection is closed.

    Closing it while the sender is still writing would reset it, and the answer would be lost with it (RFC 9112, 9.6).
    So what comes is dropped, up to a bound, before the end of the answer is sent.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIME):
                await _drop(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop(receive: Receive) -> None:
    dropped = 0
    while dropped < DRAINED:
        message = await receive()
        dropped += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


def create_app(runtime: Runtime, cache: Cache, limits: Limits, streams: Streams, trace: Trace | None = None) -> FastAPI:
    """The application over one runtime; its streams end when `streams` are closed.

    With a `trace`, what it receives is noted there.
    """
    app = FastAPI(
        title="kodo",
        version=__version__,
        description="A service of the kodo mesh: nodes offer flows, registries list and share them.",
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.router.route_class = Endpoint
    add_messages(app.router, runtime, limits)
    add_reading(app.router, runtime, cache)
    add_events(app.router, runtime, cache.catalogue, streams, trace)
    add_reports(app.router, runtime, cache)
    for route in app.routes:
        # What is read can be asked for by its headers alone; a stream would not end.
        if isinstance(route, APIRoute) and route.methods == {"GET"} and route.name != "get_events":
            route.methods = {"GET", "HEAD"}
    if trace is not None:
        app.add_middleware(Traced, trace=trace)
    app.add_exception_handler(KodoError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _broken)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, InvalidMessageError):
        return JSON({"detail": error.detail}, status_code=error.status)
    if isinstance(error, TooLargeError):
        return TooLarge({"detail": str(error)}, status_code=error.status, headers={"Connection": "close"})
    status = error.status if isinstance(error, KodoError) else 500
    # What may still come of a body is not waited for.
    headers = {"Connection": "close"} if isinstance(error, TooSlowError) else None
    return JSON({"detail": str(error)}, status_code=status, headers=headers)


async def _refuse_route(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return JSON({"detail": "error"}, status_code=500)
    return JSON({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    """The client went away before its body was whole: nobody reads this."""
    return JSON({"detail": "expected the whole body"}, status_code=400)


async def _broken(_: Request, __: Exception) -> Response:
    return JSON({"detail": "a fault of the service, which its log tells"}, status_code=500)


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI page: the routes as `shapes` describes them, with those of the bodies that are read by hand."""
    if app.openapi_schema is None:
        from kodo.service import shapes  # noqa: PLC0415, a tenth of a start, for this page alone

        routes = [
            APIRoute(
                route.path, route.endpoint, methods=(route.methods or set()) - {"HEAD"}, **shapes.ROUTES[route.name]
            )
            for route in app.routes
            if isinstance(route, APIRoute)
        ]
        page = get_openapi(title=app.title, version=app.version, description=app.description, routes=routes)
        named = page.setdefault("components", {}).setdefault("schemas", {})
        for model in shapes.BODIES:
            described = model.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, shape in described.get("$defs", {}).items():
                named.setdefault(name, shape)
        app.openapi_schema = page
    return app.openapi_schema
