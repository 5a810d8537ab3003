"""`GET /events`: which stream a reader gets.

`changes` is told by `kodo.service.listing`. A trace of messages is told where a service keeps one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from kodo.catalogue import Catalogue
from kodo.errors import RoleError
from kodo.runtime import Runtime
from kodo.service import shapes
from kodo.service.listing import ListingEvents
from kodo.service.stream import EventStream, Streams


def create_events(runtime: Runtime, catalogue: Catalogue, streams: Streams) -> APIRouter:
    """The route of streams; they end when `streams` are closed."""
    router = APIRouter()
    listing = ListingEvents(catalogue, runtime.read_aside)

    @router.get("/events", **shapes.EVENTS)
    async def get_events(
        request: Request,
        kind: Annotated[Literal["changes", "messages"], Query(description="what is told")] = "changes",
    ) -> Response:
        """A stream of server-sent events: a snapshot of the listing, then each change of it."""
        if kind == "messages":
            raise RoleError("this service keeps no trace of its messages; ask for kind=changes")
        return EventStream(streams, listing.follow(request.headers.get("last-event-id")))

    return router
