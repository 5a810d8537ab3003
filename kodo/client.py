"""A client for people: ask a service from a script, a shell or a notebook, and wait for the answer.

```python
with Client("http://localhost:3366") as client:
    client.flows(q='name ~ "agent"', by="name:d")["items"]
    client.explain(flow="press agent")["why"]
```

- It speaks PROTOCOL.md and knows no rule of the mesh: what a service answers is what it returns.
- What goes wrong is of the kodo family, by the same table as in the service (`kodo.errors`): a refusal comes back as
  the class that the service raised, with what it said; no connection and no answer in time are `UnavailableError`.
- A service on this machine is never asked through a proxy, whatever the environment says.
- One client may be used from several threads. It keeps connections open; `close` it, or use it in a `with` block.
- `events` waits for news in place of asking again: it is a loop without an end, which another thread may `close`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypedDict, cast
from urllib.parse import urlsplit

import httpx
import orjson

from kodo.errors import (
    InvalidMessageError,
    KodoError,
    OptionError,
    RejectedError,
    UnavailableError,
    for_status,
    reason_of,
)
from kodo.models import canonical
from kodo.reasons import unanswered

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a lost stream is asked for again: at first, and after many times in vain."""
SILENCE = 40.0
"""Seconds after which a silent stream is taken for lost; a service gives a sign of life every 15."""
NOT_MODIFIED = 304
NO_ROUTE = "Not Found"
"""What is answered to a path that leads nowhere."""
TRY_AGAIN = frozenset({429, 502, 503, 504})

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Status(TypedDict):
    """The common reply: who a service is, what it is connected with, and whether all is said."""

    url: str
    organization: str | None
    node: bool
    registry: bool
    provider: bool
    connection: dict[str, str | None]
    started_at: str
    idle: bool
    now: str
    message: list[str]


class Listing(TypedDict):
    """A page of flows; each item has the columns of `kodo.models.COLUMNS`."""

    total: int
    filtered: int
    p: int
    pp: int
    items: list[dict[str, Any]]
    by: str
    q: str | None


class Counts(TypedDict):
    """How many flows there are, in all and by node, organization and tag."""

    total: int
    node: dict[str, int]
    organization: dict[str, int]
    tags: dict[str, int]


class View(TypedDict):
    """A service's view of the mesh: its own nodes, and each peer with the nodes known through it."""

    url: str
    organization: str | None
    feed: bool
    nodes: dict[str, dict[str, Any]]
    providers: dict[str, dict[str, Any]]
    connection: dict[str, str | None]


class Explanation(TypedDict):
    """Why a node, or a flow, is listed or not; `records` is what every registry's part says, the deciding first.

    `node` is None when several nodes offer the flow, or none does. While `frozen` no node is shown offline.
    """

    registry: str
    node: str | None
    flow: str | None
    listed: bool
    why: str
    frozen: bool
    records: list[dict[str, Any]]


class Convergence(TypedDict):
    """How far every peer is behind, and how old what is known of every registry is, by their urls.

    While `frozen` no node is shown offline; `silent` are those that would be.
    """

    registry: str
    idle: bool
    frozen: bool
    silent: list[str]
    origins: dict[str, dict[str, Any]]
    peers: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream, as it came."""

    kind: str
    number: str | None
    data: Any


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a service lists: nodes with their flows, by their canonical urls, each as in `/map`.

    `anew`: it is not the first of this iterator. The service has forgotten how far it had told, so that what it said
    before is void: what is not in here is gone.
    """

    nodes: dict[str, dict[str, Any]]
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """The nodes that changed, as they are now; None for those that are listed no more."""

    nodes: dict[str, dict[str, Any] | None]


class Client:
    """Asks the service at `url`, and gives up an answer of which nothing comes for `timeout` seconds."""

    def __init__(self, url: str, timeout: float = 30) -> None:
        """Nothing is asked yet. Raises `OptionError` for what is not an http or https url.

        Raises `UnavailableError` for proxies and certificates of the environment that cannot be used.
        """
        try:
            canonical(url)
        except ValueError as error:
            raise OptionError(f"url: {error}") from error
        self.url = url
        self.timeout = timeout
        self._http = self._connections(timeout)

    def _connections(self, timeout: float | httpx.Timeout) -> httpx.Client:
        local = urlsplit(self.url).hostname in _LOOPBACK
        # Plain HTTP without a proxy meets no certificate; to load those of the system takes longer than many answers.
        plain = local and urlsplit(self.url).scheme == "http"
        try:
            return httpx.Client(base_url=self.url, timeout=timeout, trust_env=not local, verify=not plain)
        except (ImportError, OSError, ValueError) as error:  # a proxy that httpx does not speak with; no certificates
            said = f"expected to ask {self.url}, but {reason_of(error)}"
            raise UnavailableError(f"{said}; see to proxies and certificates of the environment") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.url}>"

    def close(self) -> None:
        """Close the connections. A closed client answers nothing any more."""
        self._http.close()

    def status(self) -> Status:
        """Who the service is, what it is connected with, and whether all is said."""
        return cast(Status, self._object("/"))

    def flows(self, q: str | None = None, by: str | None = None, p: int = 0, pp: int = 10) -> Listing:
        """Page `p`, of `pp` flows, of the listing: those that `q` selects, in the order `by`."""
        return cast(Listing, self._object("/flows", q=q, by=by, p=p, pp=pp))

    def counts(self) -> Counts:
        """How many flows the service lists."""
        return cast(Counts, self._object("/counts"))

    def map(self) -> View:
        """What the service knows of the mesh."""
        return cast(View, self._object("/map"))

    def explain(self, node: str | None = None, flow: str | None = None) -> Explanation:
        """Why a node, a flow of it by path or name, or a flow of any node is listed there or not.

        Raises `InvalidMessageError` when neither is given, and for a name that several flows of the node have.
        """
        return cast(Explanation, self._object("/explain", node=node, flow=flow))

    def convergence(self) -> Convergence:
        """How far the peers of the service are behind, and why they do not answer."""
        return cast(Convergence, self._object("/convergence"))

    def events(self) -> Events:
        """What the service lists, and then each change, for as long as it is wanted; see `Events`."""
        return Events(self.stream("/events", kind="changes"))

    def stream(self, path: str, **params: Any) -> Stream:
        """The events of any stream of the service, as they come; see `Stream`."""

        def refuse(response: httpx.Response) -> KodoError:
            return self._refusal(f"GET {path}", response)

        given = {name: str(value) for name, value in params.items() if value is not None}
        return Stream(self._connections(httpx.Timeout(self.timeout, read=SILENCE)), path, given, refuse)

    def get(self, path: str = "/", **params: Any) -> Any:
        """The answer to a GET: parsed JSON, or the text of another kind of text. A parameter of None is left out."""
        given = {name: value for name, value in params.items() if value is not None}
        return self._ask("GET", path, params=given)

    def get_if_changed(self, path: str, tag: str | None, **params: Any) -> tuple[str | None, Any]:
        """The tag of the answer and the answer to a GET; the answer is None while it is the one with this tag."""
        given = {name: value for name, value in params.items() if value is not None}
        response = self._response("GET", path, params=given, headers={} if tag is None else {"If-None-Match": tag})
        if response.status_code == NOT_MODIFIED:
            return tag, None
        return response.headers.get("etag"), self._content(path, response)

    def post(self, path: str, body: Any = None) -> Any:
        """The answer to a POST of `body` as JSON."""
        return self._ask("POST", path, json=body)

    def leave(self) -> None:
        """Let the service leave the mesh: it answers once all it is connected with were told, or gave no answer."""
        self._ask("DELETE", "/connect")

    def _object(self, path: str, **params: Any) -> dict[str, Any]:
        answer = self.get(path, **params)
        if not isinstance(answer, dict):
            raise self._foreign(path)
        return answer

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        return self._content(path, self._response(method, path, **content))

    def _response(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **content)
        except httpx.TimeoutException as error:
            raise UnavailableError(
                f"{self.url} did not answer {method} {path} within {self.timeout:g} s; "
                "check that it is not paused or overloaded, or give the client a longer timeout"
            ) from error
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"{self.url} did not answer {method} {path}: {unanswered(error)}; check that a service runs at this url"
            ) from error
        if not response.is_success and response.status_code != NOT_MODIFIED:
            raise self._refusal(f"{method} {path}", response)
        return response

    def _content(self, path: str, response: httpx.Response) -> Any:
        kind = response.headers.get("content-type", "")
        if kind.startswith("text/"):
            return response.text
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise self._foreign(path) from error

    def _foreign(self, path: str) -> RejectedError:
        return RejectedError(f"expected the JSON of a kodo service from {self.url}{path}; check the url")

    def _refusal(self, asked: str, response: httpx.Response) -> KodoError:
        detail = _detail(response)
        if response.status_code == InvalidMessageError.status and _lists_faults(detail):
            return InvalidMessageError(detail)
        family = for_status(response.status_code)
        said = detail if isinstance(detail, str) else response.reason_phrase
        below = urlsplit(self.url).path.rstrip("/")
        hint = f"; check whether {below} belongs to its url" if below and said == NO_ROUTE else ""
        if detail is None:  # every refusal of a kodo service has one
            hint = "; check that a kodo service runs at this url"
        return family(f"{self.url} answered {asked} with {response.status_code}: {said}{hint}")


class Stream:
    """An iterator over the events of a stream, which comes back when the connection is lost.

    - It goes on after the last event that had an id, with pauses that grow while nobody answers; `connected` says
      whether there is a connection now.
    - A refusal that asking again will not change is raised, as the class of the family that the client raises.
    - `close`, from any thread, ends it: the loop over it ends as if there were no more. So does the end of a `with`.
    """

    def __init__(
        self, http: httpx.Client, path: str, params: dict[str, str], refuse: Callable[[httpx.Response], KodoError]
    ) -> None:
        """Made by `Client.stream`; nothing is asked yet."""
        self.connected = False
        self._http = http
        self._path = path
        self._params = params
        self._refuse = refuse
        self._last: str | None = None
        self._closed = threading.Event()
        self._socket: socket.socket | None = None
        self._events = self._read()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the loop over the events, in whichever thread it runs."""
        self._closed.set()
        self._hang_up()

    def _hang_up(self) -> None:
        # Only this wakes a thread that waits for the socket; to close it would not.
        if (connection := self._socket) is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> Iterator[Event]:
        pause = FIRST_PAUSE
        with self._http:
            while not self._closed.is_set():
                with suppress(httpx.HTTPError):
                    for event in self._listen():
                        pause = FIRST_PAUSE
                        yield event
                        if self._closed.is_set():
                            return
                self._closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _listen(self) -> Iterator[Event]:
        headers = {} if self._last is None else {"Last-Event-ID": self._last}
        request = self._http.build_request("GET", self._path, params=self._params, headers=headers)
        request.extensions["trace"] = self._note
        try:
            response = self._http.send(request, stream=True)
            try:
                if response.is_success:
                    self.connected = True
                    yield from self._parsed(response.iter_bytes())
                elif response.status_code not in TRY_AGAIN:
                    response.read()
                    raise self._refuse(response)
            finally:
                response.close()
        finally:
            self.connected = False
            self._socket = None

    def _note(self, name: str, info: dict[str, Any]) -> None:
        """Keep the socket of a connection as soon as there is one: `close` needs it."""
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._closed.is_set():
                self._hang_up()

    def _parsed(self, chunks: Iterable[bytes]) -> Iterator[Event]:
        fields: dict[bytes, bytes] = {}
        for line in lines_of(chunks):
            if line:
                name, _, value = line.partition(b":")
                fields[name] = value.removeprefix(b" ")
            elif b"data" in fields:
                number = fields[b"id"].decode() if b"id" in fields else None
                self._last = number or self._last
                yield Event(fields.get(b"event", b"message").decode(), number, orjson.loads(fields[b"data"]))
                fields = {}
            else:
                fields = {}


class Events:
    """An iterator over what a service lists: a `Snapshot` first, then each `Change`.

    When the connection is lost it comes back by itself, and gets the changes that it missed, or, when the service does
    not remember them, a `Snapshot` that says `anew`. `close`, from any thread, ends the loop over it.
    """

    def __init__(self, stream: Stream) -> None:
        """Made by `Client.events`; nothing is asked yet."""
        self._stream = stream
        self._told = self._read()

    def __iter__(self) -> Iterator[Snapshot | Change]:
        return self

    def __next__(self) -> Snapshot | Change:
        return next(self._told)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._stream.connected

    def close(self) -> None:
        """End the loop over the events, in whichever thread it runs."""
        self._stream.close()

    def _read(self) -> Iterator[Snapshot | Change]:
        nodes: dict[str, dict[str, Any]] = {}
        anew = False
        for event in self._stream:
            if event.kind == "change":
                yield Change(event.data["nodes"])
            elif event.kind == "snapshot":
                nodes = event.data["nodes"] if event.data["first"] else nodes | event.data["nodes"]
                if event.data["complete"]:
                    yield Snapshot(nodes, anew)
                    nodes, anew = {}, True


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream. Only line feeds end one: in JSON other separators stand as they are."""
    begun = bytearray()
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield bytes(begun + line).removesuffix(b"\r")
            begun.clear()
        begun += rest


def _detail(response: httpx.Response) -> Any:
    try:
        content = response.json()
    except ValueError:
        return None
    return content.get("detail") if isinstance(content, dict) else None


def _lists_faults(detail: Any) -> bool:
    return isinstance(detail, list) and all(
        isinstance(fault, dict) and isinstance(fault.get("loc"), list) and "msg" in fault for fault in detail
    )
