"""The client for people, against real services and against what is none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kodo.client import Change, Client, Snapshot
from kodo.errors import InvalidMessageError, KodoError, OptionError, RejectedError, RoleError, UnavailableError
from tests.conftest import Served, Start, free_port
from tests.waiting import until


@pytest.fixture
def registry(serve: Start) -> Served:
    return serve(organization="registry1", node=False)


@pytest.fixture
def foreigner() -> Iterator[str]:
    """The url of a web server that is no kodo service: HTML at `/`, broken JSON at `/map`, 500 elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = {"/": ("text/html", b"<p>hi"), "/map": ("application/json", b"{")}.get(self.path, ("", b""))
            self.send_response(200 if kind else 500)
            self.send_header("Content-Type", kind or "text/plain")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_question_has_its_answer(serve: Start, registry: Served) -> None:
    """status, flows, counts, map, explain and convergence are what the service answers."""
    node = serve(organization="node1", registry=False, connect=registry.url, loader=["one", "two"])
    with Client(registry.url) as client:
        until(lambda: client.counts()["total"] == 2, "two flows to be counted")
        assert client.status()["organization"] == "registry1"
        assert client.map()["nodes"].keys() == {node.url}
        assert client.counts()["organization"] == {"node1": 2}
        assert [row["name"] for row in client.flows(by="name:d")["items"]] == ["two", "one"]
        page = client.flows(q='name ~ "o"', p=1, pp=1)
        assert (page["total"], page["filtered"], page["p"], page["pp"]) == (2, 2, 1, 1)
        assert page["items"][0]["name"] == "two"
        for told in (client.explain(node.url), client.explain(flow="one"), client.explain(node.url, "/one")):
            assert (told["listed"], told["node"], told["records"][0]["origin"]) == (True, node.url, registry.url)
        assert client.convergence()["origins"].keys() == {registry.url}
        with pytest.raises(InvalidMessageError, match="expected a node, a flow"):
            client.explain()


def test_get_and_post_reach_any_route(registry: Served) -> None:
    """get and post take a path; a parameter of None is left out; text that is no JSON comes as it is."""
    with Client(registry.url) as client:
        assert client.get()["url"] == registry.url
        assert client.get("/flows", q=None)["q"] is None
        assert client.get("/flows", format="html").startswith("<table")
        told = client.post("/register", {"url": "http://127.0.0.1:9", "flows": []})
        assert told["message"] == ["registered node http://127.0.0.1:9 (first visit)"]


def test_a_refusal_comes_back_as_the_class_that_the_service_raised(serve: Start, registry: Served) -> None:
    """422 carries its faults, 404 says what the service said."""
    node = serve(organization="node1", registry=False)
    with Client(registry.url) as client, Client(node.url) as other:
        with pytest.raises(InvalidMessageError) as caught:
            client.flows(by="nonsense")
        assert caught.value.detail[0]["loc"] == ["query", "by"]
        with pytest.raises(InvalidMessageError, match="flows"):
            client.post("/register", {"url": "http://127.0.0.1:9"})
        with pytest.raises(RoleError, match="this service is no registry"):
            other.post("/register", {})


def test_no_connection_names_the_url_and_what_to_do() -> None:
    """Where nobody listens, the error says where, and to check that a service runs there."""
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(UnavailableError, match=f"{url} .*nothing listens there; check that a"):
        client.status()


def test_https_where_http_is_spoken_is_told_as_that(registry: Served) -> None:
    """A url with https where no TLS is spoken is named as the reason, in words and not in those of OpenSSL."""
    url = registry.url.replace("http:", "https:")
    with Client(url) as client, pytest.raises(UnavailableError, match=f"{url} .* http there, not https") as caught:
        client.status()
    assert "SSL" not in str(caught.value)


def test_a_path_that_leads_nowhere_is_doubted(registry: Served) -> None:
    """Where a url with a path is answered 404, the error asks about the path."""
    with Client(f"{registry.url}/flows") as client, pytest.raises(RoleError, match="check whether /flows belongs to"):
        client.flows()


def test_no_answer_in_time_names_the_url_and_what_to_do() -> None:
    """A service that is silent is given up after `timeout` seconds."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout=0.2) as client, pytest.raises(UnavailableError, match=r"within 0\.2 s; check"):
            client.status()


def test_what_is_no_kodo_service_is_said_to_be_none(foreigner: str) -> None:
    """HTML where JSON was expected, broken JSON, and an error without detail are of the family."""
    with Client(foreigner) as client:
        with pytest.raises(RejectedError, match="expected the JSON of a kodo service"):
            client.status()
        with pytest.raises(RejectedError, match="expected the JSON of a kodo service"):
            client.map()
        with pytest.raises(KodoError, match=r"GET /counts with 500: .*; check that a kodo service runs at"):
            client.counts()


def test_a_loopback_service_is_never_asked_through_a_proxy(registry: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is for others."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Client(registry.url) as client:
        assert client.status()["url"] == registry.url


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "gopher://127.0.0.1:1"), ("SSL_CERT_FILE", "/nowhere/at/all")],
    ids=["proxy", "tls"],
)
def test_an_environment_that_cannot_be_used_is_told_as_that(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for a fault of the service, and is of the family."""
    monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match="see to proxies and certificates of the environment"):
        Client("http://kodo.invalid:1")


def test_what_is_no_url_is_refused_at_once() -> None:
    """Nothing is asked then."""
    with pytest.raises(OptionError, match="url: expected an http or https url"):
        Client("localhost:3366")


# -- news --------------------------------------------------------------------------------------------------


def register(registry: Served, number: int, name: str) -> None:
    registry.post("/register", {"url": f"http://n{number}:1", "flows": [{"url": "/x", "name": name}]})


def told(event: Snapshot | Change) -> dict[str, str | None]:
    """The name of each node's flow."""
    return {key: node and node["flows"]["/x"]["name"] for key, node in event.nodes.items()}


def test_events_are_a_snapshot_and_changes(registry: Served) -> None:
    """Each typed; a text with every kind of line break comes as it is."""
    register(registry, 1, "one")
    with Client(registry.url) as client, client.events() as events:
        assert not events.connected
        first = next(events)
        assert (first, events.connected) == (Snapshot(registry.get("/map")["nodes"]), True)
        name = "a\u2028b\x85c\x0bd\r\ne"
        register(registry, 2, name)
        change = next(events)
        assert isinstance(change, Change)
        assert told(change) == {"http://n2:1": name}


def test_events_go_on_where_they_were(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is lost costs nothing: what was missed comes as changes."""
    registry = serve(node=False)
    register(registry, 1, "one")
    with Client(registry.url) as client, client.events() as events:
        next(events)
        register(registry, 2, "two")
        assert told(next(events)) == {"http://n2:1": "two"}
        events._stream._hang_up()
        register(registry, 3, "three")
        register(registry, 2, "changed")
        missed: dict[str, str | None] = {}
        while len(missed) < 2 or missed["http://n2:1"] != "changed":
            event = next(events)
            assert isinstance(event, Change)
            missed |= told(event)
        assert missed == {"http://n2:1": "changed", "http://n3:1": "three"}


def test_events_say_when_they_start_anew(serve: Start, tmp_path: Path) -> None:
    """After a restart of the service, however late, comes a snapshot that says so."""
    first = serve(url=f"http://127.0.0.1:{free_port()}", node=False, cache=tmp_path / "same.db")
    with Client(first.url) as client, client.events() as events:
        assert next(events) == Snapshot({}, anew=False)
        first.end()
        again = serve(url=first.url, node=False, cache=tmp_path / "same.db")
        register(again, 1, "one")
        event = next(events)
        if not event.nodes:  # it was quicker than the registration
            event = Snapshot(next(events).nodes, anew=getattr(event, "anew", False))  # type: ignore[arg-type]
        assert isinstance(event, Snapshot)
        assert event.anew
        assert told(event) == {"http://n1:1": "one"}


@pytest.mark.parametrize("there", ["answers", "is not there", "is silent"])
def test_events_end_when_closed_from_another_thread(registry: Served, there: str) -> None:
    """At once, while they wait for news, for a connection, or for an answer."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        urls = {
            "answers": registry.url,
            "is not there": f"http://127.0.0.1:{free_port()}",
            "is silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        with Client(urls[there]) as client:
            events = client.events()
            got: list[object] = []
            thread = threading.Thread(target=lambda: got.extend(events))
            thread.start()
            if there == "answers":
                until(lambda: got, "a snapshot")
            if there == "is silent":
                until(lambda: events._stream._socket, "a connection")
            events.close()
            thread.join(5)
            assert not thread.is_alive()
            assert list(events) == []


def test_events_that_cannot_be_are_refused(registry: Served, foreigner: str) -> None:
    """A stream that the service does not have is an error of the family; asking again would not help."""
    with Client(registry.url) as client, pytest.raises(RoleError, match="start it with trace=true"):
        next(client.stream("/events", kind="messages"))
    with Client(foreigner) as client, pytest.raises(KodoError, match="answered GET /events with 500"):
        next(client.events())
