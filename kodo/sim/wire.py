"""The wire between simulated services: messages of JSON, and what the core makes of them.

This is the one place of the simulator that knows the shapes of the protocol. A new route is a line in `ROUTES`, a new
field a line in `message` or `answer`, a new result a line in `became`; `World` carries all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from kodo.core import events as ev
from kodo.core.instructions import Reply, Send
from kodo.core.parts import Carried
from kodo.core.registry import Profile
from kodo.models import Farewell, Heartbeat, Key, PeerMessage, PeerReply, Registration
from kodo.sim.store import Content

PUSH, BEACON, RECEIPT = "/update/node", "beacon", "receipt"
HOUSEKEEPING = frozenset({BEACON, "/heartbeat"})
"""Kinds of messages that carry no news: they go on for ever, and the mesh is quiet all the same."""


@dataclass(frozen=True, slots=True)
class Route:
    """How a request is read, and the event that it makes of its moment, its ticket and what was read."""

    model: type[BaseModel]
    event: Callable[[ev.Instant, int, Any], ev.Event]


ROUTES: Mapping[str, Route] = {
    # Over the wire a node on the core registers, which beats; what registers once is `World.register`.
    "/register": Route(Registration, lambda at, ticket, body: ev.Register(at, ticket=ticket, node=body, beats=True)),
    "/heartbeat": Route(Heartbeat, lambda at, ticket, body: ev.Heartbeat(at, ticket=ticket, url=body.url)),
    "/disconnect": Route(Farewell, lambda at, ticket, body: ev.Disconnect(at, ticket=ticket, message=body)),
    "/connect": Route(PeerMessage, lambda at, ticket, body: ev.Connect(at, ticket=ticket, message=body)),
    "/update/node": Route(PeerMessage, lambda at, ticket, body: ev.Update(at, ticket=ticket, message=body)),
}


@dataclass(frozen=True, slots=True)
class Response:
    """What a request was answered."""

    status: int
    body: bytes = b""
    retry_after: float = 0.0


def dumps(content: Any) -> bytes:
    """JSON as messages carry it."""
    return orjson.dumps(content, default=list)


def kind(route: str, written: Mapping[str, Any]) -> str:
    """What a message counts as: its route, but what is sent to `/update/node` without news is a beacon, or receipts."""
    if route != PUSH or written.get("nodes") or written.get("deltas"):
        return route
    return RECEIPT if written.get("asks") or written.get("receipts") else BEACON


def told(written: Mapping[str, Any]) -> int:
    """How many nodes a message is about."""
    nodes = written.get("nodes") or ()
    named = set(nodes if isinstance(nodes, dict) else (node["url"] for node in nodes))
    return len(named.union(*(delta["records"] for delta in written.get("deltas", ()))))


def says_nothing(send: Send, content: Content) -> bool:
    """Whether a Send turned out to have nothing to say."""
    return send.bare and not (content.nodes or content.deltas)


def message(profile: Profile, send: Send, content: Content) -> dict[str, Any]:
    """The body of a message to a registry."""
    if send.parcel is None:
        return {"url": profile.url, "version": send.version, "everywhere": True}
    written: dict[str, Any] = {
        "url": profile.url,
        "organization": None,
        "feed": _feed(profile) and send.route == "/connect",
        "nodes": content.nodes,
    }
    if send.marks is not None:
        written |= {"deltas": content.deltas, "marks": dict(send.marks)}
    if send.resumes:
        written["resumes"] = True
    if send.beacon is not None:
        written["beacon"] = send.beacon.model_dump()
    for name, said in (("asks", send.asks), ("receipts", send.receipts)):
        if said:
            written[name] = [one.model_dump() for one in said]
    return written


def answer(profile: Profile, reply: Reply, content: Content | None) -> dict[str, Any]:
    """The body of an answer, as far as services read it."""
    written: dict[str, Any] = {
        "url": profile.url,
        "registry": profile.registry,
        "provider": profile.provider,
        "message": reply.message,
    }
    if reply.marks is not None:
        written |= {"marks": dict(reply.marks), "handshake": reply.handshake}
    if reply.contents is not None:
        written["contents"] = dict(reply.contents)
    if reply.receipts:
        written["receipts"] = [receipt.model_dump() for receipt in reply.receipts]
    if reply.lease is not None:
        written["lease"] = reply.lease
    if content is not None:
        written["providers"] = {
            "url": profile.url,
            "organization": None,
            "feed": _feed(profile),
            "nodes": content.nodes,
        }
        if reply.marks is not None:
            written["deltas"] = content.deltas
    return written


def became(send: Send, carried: Mapping[Key, Carried], response: Response | None, at: ev.Instant) -> ev.Event:
    """What became of a Send, by what it was answered (None: nothing in time), as the transport reads it."""
    if response is None or response.status >= 500 or response.status == 429:
        return ev.Lost(at, peer=send.peer, retry_after=0.0 if response is None else response.retry_after)
    if response.status != 200:
        return refused(send, at, response.status)
    try:
        reply = PeerReply.model_validate_json(response.body)
    except ValidationError:
        return refused(send, at, response.status)
    return ev.Delivered(at, peer=send.peer, route=send.route, carried=carried, reply=reply)


def refused(send: Send, at: ev.Instant, status: int | None = None) -> ev.Event:
    """A Send was refused with this status, or its answer is none that the core would take."""
    return ev.Refused(at, peer=send.peer, route=send.route, status=status)


def unsaid(send: Send, carried: Mapping[Key, Carried], at: ev.Instant) -> ev.Event:
    """What became of a Send that had nothing to say."""
    return ev.Unsaid(at, peer=send.peer, carried=carried)


def _feed(profile: Profile) -> bool:
    return profile.registry and not profile.provider
