"""Reading without polling: the stream of the listing, and tags."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from kodo.catalogue import Catalogue
from kodo.changes import Changes
from kodo.errors import UnavailableError
from kodo.models import Key
from kodo.service import listing, stream
from kodo.service.tags import names
from tests.conftest import Process, Served, Start, free_port
from tests.waiting import until

Event = dict[str, Any]


class Reader:
    """A reader of `/events` in a thread: what it got, one event after the other."""

    def __init__(self, url: str, last: str | None = None) -> None:
        self.got: queue.Queue[Event | None] = queue.Queue()
        self._client = httpx.Client(trust_env=False, timeout=30)
        headers = {} if last is None else {"Last-Event-ID": last}
        self._answer = self._client.send(
            self._client.build_request("GET", f"{url}/events", headers=headers), stream=True
        )
        assert self._answer.status_code == 200, self._answer.read()
        self.headers = self._answer.headers
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            for line in self._answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    self.got.put({"id": fields.get("id"), "kind": fields["event"], **json.loads(fields["data"])})
                    fields = {}
        except httpx.HTTPError:
            pass
        self.got.put(None)

    def next(self, timeout: float = 20) -> Event:
        event = self.got.get(timeout=timeout)
        assert event is not None, "the stream ended"
        return event

    def ended(self) -> bool:
        return self.got.get(timeout=20) is None

    def close(self) -> None:
        with suppress(OSError):  # the stream has ended
            self._answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._client.close()


@contextmanager
def reading(url: str, last: str | None = None) -> Iterator[Reader]:
    reader = Reader(url, last)
    try:
        yield reader
    finally:
        reader.close()


def register(registry: Served, number: int, *flows: str) -> None:
    body = {
        "url": f"http://n{number}:1",
        "organization": f"n{number}",
        "flows": [{"url": f"/{flow}", "name": flow} for flow in flows],
    }
    registry.post("/register", body)


@pytest.fixture(params=["cache.db", "cache.json"])
def registry(request: pytest.FixtureRequest, serve: Start, tmp_path: Path) -> Served:
    """A registry on each form of cache."""
    return serve(node=False, cache=tmp_path / request.param)


# -- the stream --------------------------------------------------------------------------------------------


def test_a_snapshot_then_changes(registry: Served) -> None:
    """First all that is listed, then each node that changed with its flows, and null for one that is gone."""
    register(registry, 1, "one", "two")
    with reading(registry.url) as reader:
        first = reader.next()
        assert (first["kind"], first["first"], first["complete"]) == ("snapshot", True, True)
        assert first["nodes"] == registry.get("/map")["nodes"]
        register(registry, 2, "three")
        change = reader.next()
        assert (change["kind"], list(change["nodes"])) == ("change", ["http://n2:1"])
        assert change["nodes"]["http://n2:1"]["flows"].keys() == {"/three"}
        register(registry, 1)
        assert reader.next()["nodes"]["http://n1:1"]["flows"] == {}
        assert reader.headers["content-type"].startswith("text/event-stream")
        assert reader.headers["cache-control"] == "no-store"


def test_what_peers_tell_is_told(serve: Start) -> None:
    """A change that comes from another registry reaches the readers of this one."""
    first = serve(node=False)
    second = serve(node=False, connect=first.url)
    with reading(second.url) as reader:
        assert reader.next()["nodes"] == {}
        register(first, 1, "far")
        assert list(reader.next()["nodes"]) == ["http://n1:1"]


def test_a_node_tells_its_own_listing(serve: Start) -> None:
    """A service that is no registry lists its own flows, and streams them."""
    node = serve(registry=False, loader=["mine"])
    with reading(node.url) as reader:
        (told,) = reader.next()["nodes"].values()
        assert told["flows"].keys() == {"/mine"}


def test_who_comes_back_gets_what_it_missed(registry: Served) -> None:
    """With the last id: only what changed since, as it is now; nothing if nothing did."""
    register(registry, 1, "one")
    with reading(registry.url) as reader:
        last = reader.next()["id"]
    for flow in ("two", "three"):
        register(registry, 2, flow)
    with reading(registry.url, last) as reader:
        missed = reader.next()
        assert missed["kind"] == "change"
        assert {key: list(node["flows"]) for key, node in missed["nodes"].items()} == {"http://n2:1": ["/three"]}
    with reading(registry.url, missed["id"]) as reader:
        register(registry, 3, "four")
        assert list(reader.next()["nodes"]) == ["http://n3:1"]


@pytest.mark.parametrize(
    "last", ["", "nonsense", "00000000-1", "{epoch}-999999", "{epoch}-" + "9" * 5000, "{epoch}--1"]
)
def test_an_unknown_id_gets_a_snapshot(serve: Start, last: str) -> None:
    """An id of another start, of the future, or none of ours."""
    registry = serve(node=False)
    register(registry, 1, "one")
    with reading(registry.url) as reader:
        epoch = reader.next()["id"].partition("-")[0]
    with reading(registry.url, last.format(epoch=epoch)) as reader:
        assert reader.next()["kind"] == "snapshot"


def test_an_id_that_is_too_old_gets_a_snapshot() -> None:
    """What is remembered is bounded, by nodes and by changes."""
    changes = Changes()
    for number in range(5000):
        changes.touch(Key(f"http://n{number % 7}:1"))
        changes.publish()
    assert changes.since(0) is None
    assert len(changes.since(4990) or ()) == 7
    for number in range(50_000):
        changes.touch(Key(f"http://n{number}:1"))
    changes.publish()
    assert changes.since(5000) is None
    assert changes.since(5001) == set()


def test_a_large_snapshot_comes_in_pieces(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of bounded size, in the order of the keys; together they are the listing, and only the last has an id."""
    monkeypatch.setattr(listing, "PIECE", 1000)
    registry = serve(node=False)
    for number in range(20):
        register(registry, number, "one", "two")
    with reading(registry.url) as reader:
        pieces = [reader.next()]
        while not pieces[-1]["complete"]:
            pieces.append(reader.next())
        assert len(pieces) > 5
        assert [piece["first"] for piece in pieces] == [True] + [False] * (len(pieces) - 1)
        assert [piece["id"] is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
        told = [key for piece in pieces for key in piece["nodes"]]
        assert told == sorted(registry.get("/counts")["node"])


def test_what_changes_under_a_snapshot_is_told_after_it(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that changes, comes or goes while the snapshot is read ends as it is."""
    monkeypatch.setattr(listing, "PIECE", 1)
    registry = serve(node=False)
    for number in range(10, 30):
        register(registry, number, "one")
    shown = stopped_snapshot(monkeypatch, after="http://n20:1")
    with reading(registry.url) as reader:
        assert shown.paused.wait(10)
        register(registry, 10, "changed")
        register(registry, 25, "changed too")
        register(registry, 5, "new")
        shown.go_on.set()
        nodes: dict[str, Any] = {}
        until(lambda: nodes.update(reader.next()["nodes"]) or nodes == listed(registry), "the reader to know it all")


class stopped_snapshot:  # noqa: N801, it reads like a function
    """Hold snapshots up after a key, until they are told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
        self.paused, self.go_on = threading.Event(), threading.Event()
        real: Callable[..., Any] = Catalogue.nodes_after

        def nodes_after(catalogue: Catalogue, key: str, size: int) -> Any:
            if key == after:
                self.paused.set()
                assert self.go_on.wait(10)
            return real(catalogue, key, size)

        monkeypatch.setattr(Catalogue, "nodes_after", nodes_after)


def listed(registry: Served) -> dict[str, Any]:
    nodes: dict[str, Any] = registry.get("/map")["nodes"]
    return nodes


def test_changes_are_encoded_once_for_all_readers(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten readers, one registration: the catalogue is asked once."""
    asked: list[list[Key]] = []
    real: Callable[..., Any] = Catalogue.nodes_of
    monkeypatch.setattr(Catalogue, "nodes_of", lambda self, keys, size: asked.append(keys) or real(self, keys, size))
    registry = serve(node=False)
    readers = [Reader(registry.url) for _ in range(10)]
    for reader in readers:
        reader.next()
    register(registry, 1, "one")
    assert len({json.dumps(reader.next()) for reader in readers}) == 1
    assert asked == [["http://n1:1"]]
    for reader in readers:
        reader.close()
    register(registry, 2, "two")
    assert len(asked) == 1


def test_a_change_that_is_too_large_is_told_as_a_snapshot(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes have a bound; above it a reader starts anew."""
    monkeypatch.setattr(listing, "LARGEST", 1000)
    monkeypatch.setattr(listing, "PIECE", 500)
    registry = serve(node=False)
    with reading(registry.url) as reader:
        last = reader.next()["id"]
        for number in range(3):
            register(registry, number, "one")
            assert reader.next()["kind"] == "change"
    for number in range(30):
        register(registry, number, "two")
    with reading(registry.url, last) as reader:
        assert reader.next()["kind"] == "snapshot"


def test_a_slow_reader_is_not_buffered_for(serve: Start) -> None:
    """One that reads nothing holds up nobody, and afterwards gets each node's last state, not every state it had."""
    registry = serve(node=False)
    address = registry.url.removeprefix("http://").split(":")
    with socket.socket() as slow, reading(registry.url) as quick:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)
        slow.connect((address[0], int(address[1])))
        slow.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        quick.next()
        for round_ in range(200):
            flows = [{"url": f"/{n}", "name": f"{round_}-" + "x" * 1000} for n in range(50)]
            registry.post("/register", {"url": "http://n1:1", "flows": flows})
        seen = 0
        while seen < 199:
            flows = quick.next()["nodes"]["http://n1:1"]["flows"]
            seen = int(flows["/0"]["name"].partition("-")[0])
        slow.settimeout(20)
        taken = b""
        while b'"199-xxx' not in taken[-80_000:]:
            piece = slow.recv(65536)
            assert piece
            taken += piece
        assert len(taken) < 150 * 50_000


@pytest.mark.parametrize("kind", ["changes", "messages"])
def test_silence_is_broken_by_a_sign_of_life(serve: Start, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A comment now and then, which is no event."""
    monkeypatch.setattr(stream, "KEEP_ALIVE", 0.05)
    registry = serve(node=False, trace=True)
    with httpx.stream("GET", f"{registry.url}/events?kind={kind}", trust_env=False) as answer:
        lines = answer.iter_lines()
        until(lambda: next(lines) == ": still here", "a comment")


def test_too_many_streams_are_refused(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 that says what to do; as one ends, another is taken."""
    monkeypatch.setattr(stream.Streams.__init__, "__defaults__", (2, 2))
    registry = serve(node=False)
    with reading(registry.url) as first, reading(registry.url) as second:
        first.next(), second.next()
        answer = registry.client.get("/events")
        assert answer.status_code == 503
        assert answer.json()["detail"] == "expected at most 2 streams at once; close one, or ask again later"
        assert answer.headers["retry-after"]
    until(lambda: registry.client.stream("GET", "/events").__enter__().status_code == 200, "a place to be free")


def test_no_client_takes_all_streams(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One address has its share of the streams, and the others stay for others."""
    monkeypatch.setattr(stream.Streams.__init__, "__defaults__", (3, 1))
    registry = serve(node=False)
    with reading(registry.url) as first:
        first.next()
        answer = registry.client.get("/events")
        assert answer.status_code == 503
        assert answer.json()["detail"] == (
            "expected at most 1 streams of one client at once; close one, or ask again later"
        )
        assert answer.headers["retry-after"]
    until(lambda: registry.client.stream("GET", "/events").__enter__().status_code == 200, "a place to be free")


def test_streams_are_counted_by_address() -> None:
    """What one address holds is no matter to another, until there is no room at all; a stream that ends makes room."""
    streams = stream.Streams(most=3, each=2)
    for address in ("a", "a", "b"):
        streams.enter(address)
    for address in ("a", "b", "c"):
        with pytest.raises(UnavailableError):
            streams.enter(address)
    streams.leave("b")
    with pytest.raises(UnavailableError, match="at most 2 streams of one client"):
        streams.enter("a")
    streams.enter("c")


def test_messages_are_traced_elsewhere(serve: Start) -> None:
    """Without a trace there are no messages: 404 that says so; another kind is a 422 that names the parameter."""
    registry = serve(node=False)
    answer = registry.client.get("/events?kind=messages")
    assert (answer.status_code, "trace=true" in answer.json()["detail"]) == (404, True)
    answer = registry.client.get("/events?kind=nonsense")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "kind"]


def test_a_service_ends_although_streams_are_open(spawn: Callable[..., Process]) -> None:
    """SIGTERM ends the streams at once, and the service within its five seconds, whoever reads nothing."""
    port = free_port()
    service = spawn(url=f"http://127.0.0.1:{port}", node=False)
    with socket.create_connection(("127.0.0.1", port)) as slow, reading(service.url) as reader:
        slow.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        reader.next()
        began = time.monotonic()
        service.terminate()
        assert reader.ended()
        assert service.process.exitcode == 0
        assert time.monotonic() - began < 5


# -- tags --------------------------------------------------------------------------------------------------

PATHS = ["/flows", "/counts", "/map"]


def tags(service: Served) -> list[str]:
    return [service.client.get(path).headers["etag"] for path in PATHS]


@pytest.mark.parametrize("path", [*PATHS, "/flows?format=html&q=x&by=name:d"])
def test_who_has_the_answer_gets_304(registry: Served, path: str) -> None:
    """With the tag and no body; weakly compared, in a list as well, and for `*`."""
    register(registry, 1, "one")
    answer = registry.client.get(path)
    tag = answer.headers["etag"]
    for asked in (tag, tag.removeprefix("W/"), f'"x", {tag} , W/"y,"', "*"):
        again = registry.client.get(path, headers={"If-None-Match": asked})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["cache-control"] == answer.headers["cache-control"] == "no-cache"
        assert again.headers.get("vary") == answer.headers.get("vary")
    for asked in ('"x"', tag.strip('W/"'), "", f"{tag[:-1]}"):
        again = registry.client.get(path, headers={"If-None-Match": asked})
        assert (again.status_code, again.content) == (200, answer.content)


def test_a_faulty_question_is_refused_whatever_the_tag(registry: Served) -> None:
    """A condition is looked at after the question (RFC 9110, 13.2.1)."""
    assert registry.client.get("/flows?by=nonsense", headers={"If-None-Match": "*"}).status_code == 422


def test_tags_change_when_the_answer_does_and_only_then(registry: Served) -> None:
    """What moves which: a node without flows, flows, the same again, other flows, another organization."""

    def moved() -> list[bool]:
        nonlocal before
        now = tags(registry)
        found = [one != other for one, other in zip(before, now, strict=True)]
        before = now
        return found

    before = tags(registry)
    assert moved() == [False, False, False]
    register(registry, 1)
    assert moved() == [False, False, True]
    register(registry, 1, "one")
    assert moved() == [True, True, True]
    register(registry, 1, "one")
    assert moved() == [True, False, True]
    register(registry, 1, "two")
    assert moved() == [True, True, True]
    registry.post("/connect", {"url": "http://127.0.0.1:9", "organization": "peer"})
    assert moved()[:2] == [False, False]
    assert "http://127.0.0.1:9" in registry.get("/map")["providers"]


def test_a_beat_alone_changes_no_tag(registry: Served) -> None:
    """The first shows the node online, which is news; those after it are none, to tags and to streams alike."""
    register(registry, 1, "one")
    with reading(registry.url) as reader:
        reader.next()
        registry.post("/heartbeat", {"url": "http://n1:1"})
        assert reader.next()["nodes"]["http://n1:1"]["status"] == "online"
        before = tags(registry)
        for _ in range(3):
            registry.post("/heartbeat", {"url": "http://n1:1"})
        assert tags(registry) == before
        register(registry, 2, "two")
        assert list(reader.next()["nodes"]) == ["http://n2:1"]


def test_a_tag_is_of_one_question(registry: Served) -> None:
    """Another page, order, query or form of the same listing has another tag."""
    asked = ["", "?p=1", "?pp=5", "?by=name:d", "?q=x", "?format=html"]
    assert len({registry.client.get(f"/flows{what}").headers["etag"] for what in asked}) == len(asked)


def test_tags_do_not_outlive_the_service(serve: Start, tmp_path: Path) -> None:
    """After a start on the same cache every tag is new."""
    first = serve(url=f"http://127.0.0.1:{free_port()}", node=False, cache=tmp_path / "same.db")
    register(first, 1, "one")
    before = tags(first)
    first.end()
    again = serve(url=first.url, node=False, cache=tmp_path / "same.db")
    assert not set(before) & set(tags(again))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ('"a"', True),
        ('W/"a"', True),
        ('"b","a"', True),
        (', "b" ,, W/"a"', True),
        ('"b, a"', False),
        ("a", False),
        ('w/"a"', False),
        ('"b" "a"', False),
        ("", False),
        ('"a', False),
    ],
)
def test_lists_of_tags(asked: str, named: bool) -> None:
    """As RFC 9110 writes them; a comma may stand inside a tag."""
    assert names(asked, 'W/"a"') is named
