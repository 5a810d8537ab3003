"""`GET /events`: which stream a reader gets.

`changes` is told by `kodo.service.listing`; `messages` by `kodo.service.messages`, where a service keeps a trace.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from kodo.catalogue import Catalogue
from kodo.errors import RoleError
from kodo.runtime import Runtime
from kodo.service.endpoint import Asked
from kodo.service.listing import ListingEvents
from kodo.service.messages import messages_stream
from kodo.service.stream import EventStream, Streams
from kodo.trace import Trace


class EventsAsked(Asked):
    """Which stream."""

    kind: Literal["changes", "messages"] = Field("changes", description="what is told")


def add_events(
    router: APIRouter, runtime: Runtime, catalogue: Catalogue, streams: Streams, trace: Trace | None
) -> None:
    """Add the route of streams; they end when `streams` are closed. Without a `trace` there are none of messages."""
    listing = ListingEvents(catalogue, runtime.read_aside)

    @router.get("/events")
    async def get_events(request: Request, asked: Annotated[EventsAsked, Query()]) -> Response:
        """A stream of server-sent events: a snapshot of the listing, then each change of it; or protocol messages."""
        last = request.headers.get("last-event-id")
        if asked.kind == "changes":
            return EventStream(streams, listing.follow(last))
        if trace is None:
            raise RoleError("this service keeps no trace of messages; start it with trace=true, as a lab does")
        return EventStream(streams, messages_stream(trace, last))
