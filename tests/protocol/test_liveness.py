"""Beyond: liveness. Who beats is online, who is silent offline, who stays away dropped; and nobody by mistake."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from tests.conftest import Start, free_port
from tests.protocol.conftest import Launch, Old
from tests.protocol.helpers import (
    COMMON,
    FLOW,
    RECORD,
    ago,
    ask,
    calm,
    connected,
    flow_urls,
    known,
    post_raw,
    record,
    seen,
    settled,
    stamped,
    status,
    told,
)
from tests.waiting import until

NODE, OTHER = "http://node1:3367", "http://registry2:3368"
QUICK: dict[str, Any] = {"lease": 0.6, "beacon": 0.2}
LOADER = "tests.protocol.loaders:one"


def test_the_reply_to_a_heartbeat(serve: Start) -> None:
    """A beat of a registered node, however its url is spelled, is answered 200 with the common reply and the lease."""
    served = serve(node=False, lease=7)
    served.post("/register", record(NODE, "a"))
    for url in (NODE, "http://NODE1:3367/"):
        reply = served.post("/heartbeat", {"url": url, "more": "ignored"})
        assert list(reply) == [*COMMON, "lease"]
        assert (reply["url"], reply["message"], reply["lease"]) == (served.url, [], 7)


def test_a_beat_of_a_node_that_is_not_registered_here(serve: Start) -> None:
    """A beat is answered 404 for a node that is unknown, known through a peer only, or has left; it changes nothing."""
    served = serve(node=False)
    served.post("/connect", told(OTHER, stamped(NODE, "a", created=ago(hours=1))))
    served.post("/register", record("http://gone:1", "a"))
    served.post("/disconnect", {"url": "http://gone:1"})
    before = seen(served)
    for url in (NODE, OTHER, "http://unknown:1", "http://gone:1"):
        answer = served.client.post("/heartbeat", json={"url": url})
        assert answer.status_code == 404, (url, answer.text)
        assert list(answer.json()) == ["detail"]
        assert url not in answer.text, "an error never echoes the input"
    assert seen(served) == before
    assert status(served, NODE) == "unknown"


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"url": 5}', b'{"url": ""}', b'{"url": "node1"}', b'{"url": nul'])
@pytest.mark.parametrize("path", ["/heartbeat", "/disconnect"])
def test_a_faulty_heartbeat_or_disconnect(serve: Start, path: str, raw: bytes) -> None:
    """What names no url is refused with 422 and changes nothing."""
    served = serve(node=False)
    served.post("/register", record(NODE, "a"))
    answer = post_raw(served, path, raw)
    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert flow_urls(served) == ["/a"]


@pytest.mark.parametrize("path", ["/heartbeat", "/disconnect"])
def test_the_body_of_a_heartbeat_or_disconnect_has_a_limit(serve: Start, path: str) -> None:
    """A body above the limit of `/register` is answered 413 and `Connection: close`, before it is read whole."""
    served = serve(node=False, body_limit=1000)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n"
    answer = ask(served.url, head.encode() + b" " * 1001)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    assert post_raw(served, path, b" " * 900 + b'{"url": "http://node1:3367"}').status_code == 404


@pytest.mark.parametrize("path", ["/heartbeat", "/disconnect"])
def test_a_pure_node_takes_no_heartbeat_and_no_disconnect(serve: Start, path: str) -> None:
    """A service that is no registry answers 404, whatever the body."""
    node = serve(registry=False, loader=["a"])
    for raw in (b"nonsense", json.dumps({"url": NODE}).encode()):
        assert post_raw(node, path, raw).status_code == 404


def test_only_who_will_beat_is_told_the_lease(serve: Start) -> None:
    """The reply to `/register` names the lease for who sends `Kodo-Beats`, with or without `wait`, and for no other."""
    served = serve(node=False, lease=7)
    plain = served.post("/register", record(NODE, "a"))
    assert list(plain) == COMMON
    for query in ("", "?wait=mesh"):
        answer = served.client.post(f"/register{query}", json=record(NODE, "a"), headers={"Kodo-Beats": "1"})
        assert answer.json()["lease"] == 7, query


def test_a_node_that_never_beats(serve: Start) -> None:
    """A node that never beat has no lease: it stays `unknown` and is never dropped, however long others are away."""
    served = serve(node=False, lease=0.05, retention=0.05, beacon=0.1)
    served.post("/register", record(NODE, "a", status="online"))
    served.post("/register", record("http://beating:1", "b"))
    served.post("/heartbeat", {"url": "http://beating:1"})
    serve(node=False, connect=served.url, beacon=0.05)
    until(lambda: status(served, "http://beating:1") is None, "the other to be dropped")
    assert status(served, NODE) == "unknown"
    assert flow_urls(served) == ["/a"]


def test_the_life_of_a_status(launch: Launch) -> None:
    """`unknown` -> `online` -> `offline` when the node is killed -> dropped: here, and at a registry behind a peer."""
    first = launch(node=False, retention=3, **QUICK)
    second = launch(node=False, connect=first.url, **QUICK)
    until(lambda: connected(second, first.url), "the connection")
    first.post("/register", record(NODE, "a"))
    assert status(first, NODE) == "unknown"
    node = launch(registry=False, connect=first.url, loader=LOADER)
    for served in (first, second):
        until(lambda served=served: status(served, node.url) == "online", "the node to be online")  # type: ignore[misc]
    killed = time.monotonic()
    node.kill()
    until(lambda: status(first, node.url) == "offline", "the node to be offline")
    assert time.monotonic() - killed < QUICK["lease"] + 3, "within the lease plus a sweep, and what a busy machine adds"
    until(lambda: status(second, node.url) == "offline", "the other registry to know it")
    assert "/by-module" in flow_urls(first)
    assert "/by-module" in flow_urls(second)
    for served in (first, second):
        until(lambda served=served: status(served, node.url) is None, "the node to be dropped")  # type: ignore[misc]
    until(lambda: seen(first) == seen(second), "both to list the same")
    assert flow_urls(second) == ["/a"]
    assert status(first, NODE) == status(second, NODE) == "unknown"


def test_a_node_that_comes_back(launch: Launch) -> None:
    """A node that was offline and beats again is online again everywhere, with the times of its registration."""
    first = launch(node=False, **QUICK)
    second = launch(node=False, connect=first.url, **QUICK)
    node = launch(registry=False, connect=first.url, loader=LOADER)
    until(lambda: status(second, node.url) == "online", "the node to be online")
    before = seen(second)
    node.signal(signal.SIGSTOP)
    until(lambda: status(second, node.url) == "offline", "the node to be offline")
    node.signal(signal.SIGCONT)
    until(lambda: status(second, node.url) == "online", "the node to be online again")
    assert seen(second) == seen(first) == before


def test_a_beat_alone_changes_nothing_that_is_listed(serve: Start, old: Old) -> None:
    """Beats of a node that is online change no body of `/flows`, `/counts`, `/map` and `/_cache`, and tell nobody."""
    plain, served = old(), serve(node=False, connect=[], lease=30)
    plain.connect(served)
    served.post("/register", record(NODE, "a"))
    served.post("/heartbeat", {"url": NODE})
    calm(served)

    def views() -> list[bytes]:
        return [served.client.get(path).content for path in ("/flows", "/counts", "/map", "/_cache")]

    before, (row,), told_before = views(), served.flows(), len(plain.requests())
    for _ in range(50):
        assert served.post("/heartbeat", {"url": NODE})["idle"] is True
    assert views() == before
    calm(served)
    assert len(plain.requests()) == told_before
    assert served.flows() == [row]


def test_a_change_of_status_moves_the_listed_heartbeat_alone(serve: Start) -> None:
    """The first beat moves the listed `heartbeat`; `modified` and `created` are those of the registration."""
    served = serve(node=False)
    served.post("/register", record(NODE, "a"))
    (before,) = served.flows()
    served.post("/heartbeat", {"url": NODE})
    (after,) = served.flows()
    assert after["heartbeat"] > before["heartbeat"]
    assert {**after, "heartbeat": None} == {**before, "heartbeat": None}


def test_an_older_registry_is_never_beaten_at(launch: Launch, old: Old) -> None:
    """An older registry, whose reply names no lease, gets exactly the fixed `/register` body, and never a beat."""
    plain, served = old(), launch(node=False, **QUICK)
    node = launch(registry=False, organization="node1", connect=[plain.url, served.url], loader=LOADER)
    until(lambda: status(served, node.url) == "online", "the node to be online at the newer registry")
    served.kill()
    again = launch(node=False, url=served.url, **QUICK)
    until(lambda: status(again, node.url) == "online", "beats for more than a lease")
    assert [(each.method, each.path) for each in plain.heard] == [("POST", "/register")]
    (heard,) = plain.heard
    assert list(heard.body) == RECORD
    assert heard.body == {
        "url": node.url,
        "organization": "node1",
        "flows": {
            "/by-module": {
                "url": "/by-module",
                "name": "by module",
                "description": "Given by name",
                "tags": ["b", "a"],
                "author": "Ann",
            }
        },
        "created": None,
        "modified": None,
        "heartbeat": None,
        "status": "unknown",
    }
    assert list(heard.body["flows"]["/by-module"]) == FLOW


def test_a_registry_that_lost_its_disk(launch: Launch) -> None:
    """A node that beats registers again with a registry that has forgotten it, within a few beats."""
    served = launch(node=False, **QUICK)
    node = launch(registry=False, connect=served.url, loader=LOADER)
    until(lambda: status(served, node.url) == "online", "the node to be online")
    (before,) = served.flows()
    served.kill()
    again = launch(node=False, url=served.url, reset=True, **QUICK)
    until(lambda: status(again, node.url) == "online", "the node to be online again", timeout=5)
    (after,) = again.flows()
    assert after["created"] > before["modified"]
    until(lambda: node.get()["connection"][served.url], "the connection")


def test_a_registry_that_was_away_for_many_beats(launch: Launch) -> None:
    """A node beats to the end of a registry's absence: back on its cache, the registry never shows it offline."""
    served = launch(node=False, **QUICK)
    node = launch(registry=False, connect=served.url, loader=LOADER)
    until(lambda: status(served, node.url) == "online", "the node to be online")
    before = seen(served)
    for away in (2.5, 1.0):
        served.kill()
        time.sleep(away)  # an absence; nothing is waited for
        served = launch(node=False, url=served.url, **QUICK)
        end = time.monotonic() + 4 * QUICK["lease"]
        while time.monotonic() < end:
            assert status(served, node.url) == "online"
    assert seen(served) == before


def test_a_paused_registry_shows_no_beating_node_offline(launch: Launch) -> None:
    """Nobody who beats is offline after a pause of the registry that is longer than the lease, here or at a peer."""
    first = launch(node=False, **QUICK)
    second = launch(node=False, connect=first.url, **QUICK)
    nodes = [launch(registry=False, connect=first.url, loader=LOADER) for _ in range(2)]
    for node in nodes:
        until(lambda node=node: status(second, node.url) == "online", "the node to be online")  # type: ignore[misc]
    for pause in (0.7, 1.5, 3.0):
        first.signal(signal.SIGSTOP)
        time.sleep(pause)  # a pause, longer than the lease; nothing is waited for
        first.signal(signal.SIGCONT)
        end = time.monotonic() + 3 * QUICK["lease"]
        while time.monotonic() < end:
            for served in (first, second):
                assert {status(served, node.url) for node in nodes} == {"online"}
    settled(first, second)


def test_a_killed_node_is_offline_after_a_pause_all_the_same(launch: Launch) -> None:
    """A pause of the registry saves only those who beat: a node that died meanwhile is shown offline after it."""
    served = launch(node=False, **QUICK)
    node = launch(registry=False, connect=served.url, loader=LOADER)
    until(lambda: status(served, node.url) == "online", "the node to be online")
    served.signal(signal.SIGSTOP)
    node.kill()
    served.signal(signal.SIGCONT)
    until(lambda: status(served, node.url) == "offline", "the node to be offline", timeout=5)


def test_a_status_survives_a_restart(launch: Launch) -> None:
    """A registry that is killed and starts on its cache knows who was offline, and drops who stays so."""
    served = launch(node=False, retention=2, **QUICK)
    node = launch(registry=False, connect=served.url, loader=LOADER)
    until(lambda: status(served, node.url) == "online", "the node to be online")
    node.kill()
    until(lambda: status(served, node.url) == "offline", "the node to be offline")
    before = known(served, node.url)
    served.kill()
    again = launch(node=False, url=served.url, retention=2, **QUICK)
    assert known(again, node.url) == before
    launch(node=False, connect=served.url, **QUICK)
    until(lambda: status(again, node.url) is None, "the node to be dropped")


def test_a_registry_that_hears_from_nobody(serve: Start) -> None:
    """A registry that hears from nobody at all shows who is silent as offline, and does not empty itself."""
    served = serve(node=False, lease=0.1, retention=0.1, beacon=0.1)
    served.post("/register", record(NODE, "a"))
    served.post("/heartbeat", {"url": NODE})
    until(lambda: status(served, NODE) == "offline", "the node to be offline")
    time.sleep(1)  # ten retentions; nothing is waited for
    assert status(served, NODE) == "offline"
    assert flow_urls(served) == ["/a"]


def test_a_node_without_a_registry_for_its_beats(serve: Start) -> None:
    """A node beats at a port that was never open without harm: it answers, is idle, and registers once it opens."""
    url = f"http://127.0.0.1:{free_port()}"
    node = serve(registry=False, connect=url, loader=["a"])
    assert node.idle()
    served = serve(url=url, node=False, **QUICK)
    until(lambda: status(served, node.url) == "online", "the node to be online")
