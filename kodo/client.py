"""A client for people: ask a service from a script, a shell or a notebook, and wait for the answer.

```python
with Client("http://localhost:3366") as client:
    client.flows(q='name ~ "agent"', by="name:d")["items"]
```

- It speaks PROTOCOL.md and knows no rule of the mesh: what a service answers is what it returns.
- What goes wrong is of the kodo family, by the same table as in the service (`kodo.errors`): a refusal comes back as
  the class that the service raised, with what it said; no connection and no answer in time are `UnavailableError`.
- A service on this machine is never asked through a proxy, whatever the environment says.
- One client may be used from several threads. It keeps connections open; `close` it, or use it in a `with` block.
"""

from __future__ import annotations

from typing import Any, Self, TypedDict, cast
from urllib.parse import urlsplit

import httpx

from kodo.errors import InvalidMessageError, KodoError, OptionError, RejectedError, UnavailableError, for_status
from kodo.models import canonical

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


class Client:
    """Asks the service at `url`, and waits at most `timeout` seconds for each answer."""

    def __init__(self, url: str, timeout: float = 30) -> None:
        """Nothing is asked yet. Raises `OptionError` for what is not an http or https url."""
        try:
            canonical(url)
        except ValueError as error:
            raise OptionError(f"url: {error}") from error
        self.url = url
        self.timeout = timeout
        local = urlsplit(url).hostname in _LOOPBACK
        # Plain HTTP without a proxy meets no certificate; to load those of the system takes longer than many answers.
        plain = local and urlsplit(url).scheme == "http"
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=not local, verify=not plain)

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

    def get(self, path: str = "/", **params: Any) -> Any:
        """The answer to a GET: parsed JSON, or the text of another kind of text. A parameter of None is left out."""
        given = {name: value for name, value in params.items() if value is not None}
        return self._ask("GET", path, params=given)

    def post(self, path: str, body: Any = None) -> Any:
        """The answer to a POST of `body` as JSON."""
        return self._ask("POST", path, json=body)

    def _object(self, path: str, **params: Any) -> dict[str, Any]:
        answer = self.get(path, **params)
        if not isinstance(answer, dict):
            raise self._foreign(path)
        return answer

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        try:
            response = self._http.request(method, path, **content)
        except httpx.TimeoutException as error:
            raise UnavailableError(
                f"{self.url} did not answer {method} {path} within {self.timeout:g} s; "
                "check that it is not paused or overloaded, or give the client a longer timeout"
            ) from error
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"{self.url} did not answer {method} {path} ({error}); check that a service runs at this url"
            ) from error
        if not response.is_success:
            raise self._refusal(f"{method} {path}", response)
        return self._content(path, response)

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
        return family(f"{self.url} answered {asked} with {response.status_code}: {said}")


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
