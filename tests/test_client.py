"""The client for people, against real services and against what is none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kodo.client import Client
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
    """status, flows, counts and map are what the service answers."""
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
    with Client(url) as client, pytest.raises(UnavailableError, match=f"{url} .*check that a service runs"):
        client.status()


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
        with pytest.raises(KodoError, match="answered GET /counts with 500"):
            client.counts()


def test_a_loopback_service_is_never_asked_through_a_proxy(registry: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is for others."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Client(registry.url) as client:
        assert client.status()["url"] == registry.url


def test_what_is_no_url_is_refused_at_once() -> None:
    """Nothing is asked then."""
    with pytest.raises(OptionError, match="url: expected an http or https url"):
        Client("localhost:3366")
