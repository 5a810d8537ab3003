"""What the OpenAPI page says of each route: the shapes that it takes and answers, its errors, and an example.

The shapes describe; they do not check. Bodies are checked by `kodo.models`, answers are written as they are.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from kodo.models import Farewell, Flow, Heartbeat, Node, PeerMessage, Registration


class CommonReply(BaseModel):
    """The common reply: who the service is, and what it has to say."""

    url: str
    organization: str | None
    node: bool
    registry: bool
    provider: bool
    connection: dict[str, str | None] = Field(description="for each url in `connect`, when it was last heard of (UTC)")
    started_at: str
    idle: bool = Field(description="false while anything is queued or in flight to another service")
    now: str
    message: list[str]


class Offered(BaseModel):
    """What a registry offers to a registry that connects."""

    url: str
    organization: str | None
    feed: bool
    nodes: dict[str, Node]


class ConnectReply(BaseModel):
    """The reply to a `/connect` that asks to be fed."""

    providers: Offered
    message: list[str]


class Row(BaseModel):
    """A flow as it is listed."""

    registry: str
    node: str
    organization: str | None
    created: str | None
    modified: str | None
    heartbeat: str | None
    url: str
    name: str
    author: str
    description: str
    tags: list[str]


class FlowsReply(BaseModel):
    """A page of flows."""

    total: int
    filtered: int = Field(description="how many flows `q` selects")
    p: int
    pp: int
    items: list[Row]
    by: str
    q: str | None = Field(description="the expression as asked, or `fulltext: ` and the text that was searched")


class CountsReply(BaseModel):
    """How many flows there are."""

    total: int
    node: dict[str, int]
    organization: dict[str, int]
    tags: dict[str, int]


class CacheReply(BaseModel):
    """A registry's durable state."""

    url: str
    organization: str | None
    feed: bool
    nodes: dict[str, Node] = Field(description="the nodes that registered here")
    providers: dict[str, Offered] = Field(description="each peer, with the nodes that are known through it")


class MapReply(CacheReply):
    """A service's view of the mesh."""

    connection: dict[str, str | None]


class Fault(BaseModel):
    """One fault in a request."""

    loc: list[str | int] = Field(description="where: `body` or `query`, and the field")
    msg: str = Field(description="what was expected")
    type: str


class Faults(BaseModel):
    """Why a request was refused; nothing was changed."""

    detail: list[Fault]


class Refusal(BaseModel):
    """Why a request was refused; nothing was changed."""

    detail: str


_FROZEN = "whether no node is shown offline for now, since most nodes and most peers fell silent at once"


class Opinion(BaseModel):
    """What one part says of a node."""

    node: str
    origin: str
    state: str = Field(description="`listed`, `older` (another registration is newer), `left` or `lapsed`")
    status: str
    created: str | None
    modified: str | None
    seq: int
    version: tuple[int, str, int]
    on_behalf_of: str | None = Field(description="the older service that told of it, if one did")
    told_by: str | None = Field(description="the peer whose news last raised what is known of the origin")
    age: float = Field(description="seconds since the origin was last known to be there")
    lease: float | None = Field(description="seconds that are left of its lease, of a node that registered here")
    flow: bool | None = Field(description="whether it names the flow that is asked about")


class ExplainReply(BaseModel):
    """Why a node, or a flow of it, is listed or not; the deciding record first."""

    registry: str
    node: str | None = Field(description="null when a flow is asked for that several nodes offer, or none")
    flow: str | None = Field(description="its path, whether it was asked for by path or by name")
    listed: bool
    why: str
    frozen: bool = Field(description=_FROZEN)
    records: list[Opinion]


class Followed(BaseModel):
    """An origin as it is known here."""

    version: tuple[int, str, int]
    age: float
    stale: bool
    told_by: str | None


class Behind(BaseModel):
    """What a peer has not acknowledged of an origin."""

    known: tuple[int, str, int]
    acknowledged: tuple[int, str, int]
    changes: int


class PeerStanding(BaseModel):
    """How it stands with a peer."""

    state: str = Field(
        description="`standing`, `greeting`, `away`, `no registry` (something else answers there), `leaving`,"
        " or `refused` with the status"
    )
    deltas: bool
    connected: bool = Field(description="whether the two were ever connected, or this node registered there")
    heard: float | None = Field(description="seconds since it was last heard of; null if never since this started")
    next_try: float | None = Field(description="seconds until it is tried again, where it does not answer")
    behind: dict[str, Behind]
    why: str | None = Field(description="why it does not answer as it should, if it does not")


class ConvergenceReply(BaseModel):
    """How far the mesh is, as this service sees it."""

    registry: str
    idle: bool
    frozen: bool = Field(description=_FROZEN)
    silent: list[str] = Field(description="the nodes here that would be shown offline, were this not frozen")
    origins: dict[str, Followed]
    peers: dict[str, PeerStanding]


_TIME = "2024-12-25T18:03:12.989989"
_FLOW = Flow(url="/mytest", name="mytest").model_dump()
_NODE = Node(
    url="http://localhost:3367",
    organization="node1",
    flows={"/mytest": Flow(url="/mytest", name="mytest")},
    created=_TIME,
    modified=_TIME,
    heartbeat=_TIME,
).model_dump()
_COMMON = {
    "url": "http://localhost:3366",
    "organization": "registry1",
    "node": False,
    "registry": True,
    "provider": False,
    "connection": {"http://localhost:3368": _TIME},
    "started_at": _TIME,
    "idle": True,
    "now": _TIME,
    "message": [],
}
_REGISTERED = _COMMON | {"message": ["registered node http://localhost:3367 (first visit)"]}
_MESSAGE = {"url": "http://localhost:3368", "organization": "registry2", "feed": True, "nodes": {}}
_NODES = {_NODE["url"]: _NODE}
_OFFER = {"url": "http://localhost:3366", "organization": "registry1", "feed": True, "nodes": _NODES}
_CONNECTED = {"providers": _OFFER, "message": ["registry http://localhost:3368 connected (first visit)"]}
_UPDATED = _COMMON | {"message": ["created node http://localhost:3368"]}
_ROW = {
    "registry": "http://localhost:3366",
    "node": "http://localhost:3367",
    "organization": "node1",
    "created": _TIME,
    "modified": _TIME,
    "heartbeat": _TIME,
    "url": "/mytest",
    "name": "mytest",
    "author": "missing author",
    "description": "missing description",
    "tags": [],
}
_PAGE = {"total": 1, "filtered": 1, "p": 0, "pp": 10, "items": [_ROW], "by": "name, node, url", "q": None}
_COUNTS = {"total": 1, "node": {"http://localhost:3367": 1}, "organization": {"node1": 1}, "tags": {}}
_CACHED = _OFFER | {"providers": {}}
_EVENTS = (
    'id: 5f0c3a91-12\nevent: snapshot\ndata: {"nodes":{},"first":true,"complete":true}\n\n'
    'id: 5f0c3a91-13\nevent: change\ndata: {"nodes":{"http://localhost:3367":null},"complete":true}\n\n'
)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    words = {
        404: (Refusal, "the service does not have the role for this, or knows nothing of the sender"),
        413: (Refusal, "the body is above the limit"),
        422: (Faults, "the request is not of the form that the route takes"),
        503: (Refusal, "the change could not be made durable, the answer takes too long, or the service is ending"),
    }
    return {status: {"model": words[status][0], "description": words[status][1]} for status in statuses}


def _route(
    model: Any, example: dict[str, Any], *statuses: int, body: tuple[type[BaseModel], Any] | None = None
) -> dict[str, Any]:
    success: dict[str, Any] = {"model": model, "content": {"application/json": {"example": example}}}
    route: dict[str, Any] = {"response_model": None, "responses": {200: success, **_errors(*statuses)}}
    if body is not None:
        schema = body[0].model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        content = {"application/json": {"schema": schema, "example": body[1]}}
        route["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return route


BODIES: tuple[type[BaseModel], ...] = (Registration, PeerMessage, Heartbeat, Farewell)
"""The models that bodies are checked with, for the page's list of shapes."""

_TO_REGISTER = {"url": _NODE["url"], "organization": "node1", "flows": {"/mytest": _FLOW}}
COMMON = _route(CommonReply, _COMMON)
REGISTER = _route(CommonReply, _REGISTERED, 404, 413, 422, 503, body=(Registration, _TO_REGISTER))
CONNECT = _route(ConnectReply | CommonReply, _CONNECTED, 404, 413, 422, 503, body=(PeerMessage, _MESSAGE))
UPDATE = _route(CommonReply, _UPDATED, 404, 413, 422, 503, body=(PeerMessage, _MESSAGE | {"nodes": _NODES}))
_VERSION = (1735149792, "5f2a0c9b7d3e1846", 12)
_OPINION = Opinion(
    node="http://localhost:3367",
    origin="http://localhost:3366",
    state="listed",
    status="online",
    created=_TIME,
    modified=_TIME,
    seq=12,
    version=_VERSION,
    on_behalf_of=None,
    told_by=None,
    age=0,
    lease=21.5,
    flow=True,
).model_dump()
_EXPLAINED = {
    "registry": "http://localhost:3366",
    "node": _NODE["url"],
    "flow": "/mytest",
    "listed": True,
    "why": "registered at http://localhost:3366",
    "frozen": False,
    "records": [_OPINION],
}
EXPLAIN = _route(ExplainReply, _EXPLAINED, 422, 503)
_FOLLOWED = Followed(version=_VERSION, age=0, stale=False, told_by=None).model_dump()
_STANDING = PeerStanding(
    state="standing", deltas=True, connected=True, heard=1.5, next_try=None, behind={}, why=None
).model_dump()
_CONVERGED = {
    "registry": "http://localhost:3366",
    "idle": True,
    "frozen": False,
    "silent": [],
    "origins": {"http://localhost:3366": _FOLLOWED},
    "peers": {"http://localhost:3368": _STANDING},
}
CONVERGENCE = _route(ConvergenceReply, _CONVERGED, 503)
HEARTBEAT = _route(CommonReply, _COMMON | {"lease": 30.0}, 404, 413, 422, 503, body=(Heartbeat, {"url": _NODE["url"]}))
_LEFT = _COMMON | {"message": [f"disconnected {_NODE['url']}"]}
DISCONNECT = _route(CommonReply, _LEFT, 404, 413, 422, 503, body=(Farewell, {"url": _NODE["url"]}))
LEAVE: dict[str, Any] = {"status_code": 204, "responses": _errors(503)}
FLOWS = _route(FlowsReply, _PAGE, 422, 503)
FLOWS["responses"][200]["content"]["text/html"] = {"schema": {"type": "string"}, "example": "<table>...</table>"}
COUNTS = _route(CountsReply, _COUNTS, 503)
MAP = _route(MapReply, _CACHED | {"connection": {}}, 503)
for _tagged in (FLOWS, COUNTS, MAP):
    _tagged["responses"][304] = {"description": "`If-None-Match` names the tag that the answer has"}
EVENTS: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {
            "description": "server-sent events: `snapshot`, in one or more pieces, then `change`; `nodes` by their"
            " urls, null when they are gone; the last piece of each has an id to go on from (`Last-Event-ID`). With"
            " `kind=messages` a `message` for each, and `missed` with how many notes a slow reader lost",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EVENTS}},
        },
        **_errors(404, 422, 503),
    },
}
CACHE = _route(CacheReply, _CACHED, 404, 503)

ROUTES: dict[str, dict[str, Any]] = {
    "get_status": COMMON,
    "post_register": REGISTER,
    "post_heartbeat": HEARTBEAT,
    "post_disconnect": DISCONNECT,
    "delete_connect": LEAVE,
    "post_connect": CONNECT,
    "post_update": UPDATE,
    "get_flows": FLOWS,
    "get_counts": COUNTS,
    "get_map": MAP,
    "get_cache": CACHE,
    "get_events": EVENTS,
    "get_explain": EXPLAIN,
    "get_convergence": CONVERGENCE,
}
"""What is said of each route, by the name of its function."""
