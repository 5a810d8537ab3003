"""The trace of a service and its stream, and the policies on outgoing messages, without a lab."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from kodo.core.instructions import Send
from kodo.errors import UnavailableError
from kodo.models import canonical
from kodo.service.messages import messages_stream
from kodo.trace import Message, Trace, nodes_in
from kodo.transport import Link, Links, Transport
from tests.conftest import Process, Start
from tests.waiting import until

AWAY = "http://127.1:9"
"""On this machine, by a name that does not say so."""


def events(lines: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Ids and messages of a stream's lines."""
    found, last = [], ""
    for line in lines:
        word, _, value = line.partition(": ")
        if word == "id":
            last = value
        elif word == "data":
            found.append((last, json.loads(value)))
    return found


def backlog(url: str, last: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """What a service tells at once."""
    headers = {"Last-Event-ID": last} if last else {}
    lines: list[str] = []
    with httpx.stream("GET", url + "/events?kind=messages", headers=headers, trust_env=False, timeout=20) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line == ": caught up":
                return events(lines)
            lines.append(line)
    raise AssertionError("the stream ended")


def ended(url: str) -> list[dict[str, Any]]:
    """The messages whose outcome is known; one that takes long is noted before that as well."""
    return [message for _, message in backlog(url) if message["outcome"] is not None]


def test_both_ends_note_a_message_under_one_id(serve: Start) -> None:
    """With peer, route, nodes, bytes, outcome, and moments of both clocks."""
    registry = serve(node=False, trace=True)
    node = serve(registry=False, connect=registry.url, loader=["a"], trace=True)
    until(lambda: ended(node.url) and ended(registry.url), "the registration to be noted")
    sent, received = ended(node.url)[0], ended(registry.url)[0]
    assert sent["id"] == received["id"]
    assert (sent["direction"], received["direction"]) == ("sent", "received")
    assert (sent["peer"], received["peer"]) == (registry.url, node.url)
    for end in (sent, received):
        assert (end["route"], end["nodes"], end["outcome"]) == ("/register", 1, "200")
        assert end["bytes"] == sent["bytes"] > 0
        assert end["began"] <= end["ended"]
        assert end["start"] <= end["end"]
    assert sent["start"] <= received["start"] <= received["end"] <= sent["end"]


def test_what_is_refused_and_who_is_away_is_noted(serve: Start) -> None:
    """A refused request has no peer that anybody could believe; a foreign id is taken if it is one."""
    registry = serve(node=False, trace=True, connect="http://127.0.0.1:9")
    assert registry.client.post("/register", json={}, headers={"Kodo-Message": "x" * 65}).status_code == 422
    assert registry.client.post("/register", json={}, headers={"Kodo-Message": "mine"}).status_code == 422

    def noted() -> list[tuple[Any, ...]]:
        return [(note["peer"], note["route"], note["outcome"]) for _, note in backlog(registry.url)]

    until(lambda: ("http://127.0.0.1:9", "/connect", "lost: ConnectError") in noted(), "the lost message to be noted")
    assert noted().count((None, "/register", "refused 422")) == 2
    ids = [note["id"] for _, note in backlog(registry.url) if note["route"] == "/register"]
    assert ids[1] == "mine"
    assert len(ids[0]) < 65


def test_the_stream_goes_on_after_an_id_and_begins_anew_after_an_unknown_one(serve: Start) -> None:
    """Nothing is told twice, nothing is left out."""
    registry = serve(node=False, trace=True)
    for _ in range(3):
        registry.client.post("/register", json={})
    told = backlog(registry.url)
    assert len(told) == 3
    assert backlog(registry.url, told[1][0]) == told[2:]
    assert backlog(registry.url, told[2][0]) == []
    for unknown in ("nonsense", "1", "abc-1", told[0][0] + "99999", told[0][0].split("-")[0] + "-x"):
        assert backlog(registry.url, unknown) == told


def test_without_a_trace_there_is_no_stream(serve: Start) -> None:
    """The answer says what to do, and no header is sent."""
    plain = serve(node=False)
    answer = plain.client.get("/events", params={"kind": "messages"})
    assert answer.status_code == 404
    assert "start it with trace=true" in answer.json()["detail"]
    assert plain.client.get("/events", params={"kind": "nonsense"}).status_code == 422


def test_a_service_with_open_streams_ends_in_time(spawn: Callable[..., Process]) -> None:
    """And the streams end in order, not torn."""
    service = spawn(node=False, trace=True)
    with httpx.stream("GET", service.url + "/events?kind=messages", trust_env=False, timeout=20) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": caught up"
        service.process.terminate()
        assert [line for line in lines if line] == []
        service.process.join(5)  # PROTOCOL.md: SIGTERM ends a service within 5 s
    assert service.process.exitcode == 0


# -- the ring ----------------------------------------------------------------------------------------------


def note(number: int) -> Message:
    return Message(str(number), "sent", "http://a:1", "/register")


def test_a_slow_reader_costs_nothing_and_is_told_what_it_missed() -> None:
    """The ring is bounded; the stream says how many notes are gone."""

    async def read() -> list[bytes]:
        trace = Trace(limit=5)
        for number in range(3):
            trace.note(note(number))
        stream = messages_stream(trace)
        chunks = [await anext(stream)]
        for number in range(3, 23):
            trace.note(note(number))
        chunks += [await anext(stream), await anext(stream), await anext(stream)]
        return chunks

    first, missed, rest, caught_up = asyncio.run(read())
    assert first.count(b"event: message") == 3
    assert missed == b'event: missed\ndata: {"missed":15}\n\n'
    assert rest.count(b"event: message") == 5
    assert caught_up == b": caught up\n\n"


def test_a_message_that_takes_long_is_noted_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once without an end, once with; one that ends with an error has that as its outcome."""
    monkeypatch.setattr("kodo.trace.PATIENCE", 0.01)

    async def send() -> Trace:
        trace = Trace()
        with suppress(ZeroDivisionError), trace.message("sent", "http://a:1", "/register"):
            await trace.wait(0)
            raise ZeroDivisionError
        return trace

    notes = asyncio.run(send()).since(0, 10).notes
    assert [(found.outcome, found.end is None) for found in notes] == [(None, True), ("lost: ZeroDivisionError", False)]


def test_nodes_are_counted_once() -> None:
    """A record of a delta may refer to a node beside it."""
    assert nodes_in({"flows": {}}) == 1
    assert nodes_in({"nodes": {"a": 1}, "deltas": [{"records": {"a": {}, "b": {}}}]}) == 2
    assert nodes_in({}) == 0


# -- policies ----------------------------------------------------------------------------------------------


async def held(links: Links) -> str | None:
    """What holds a message to http://a:1, or None when it has gone its way at once."""
    message = note(1)
    sending = asyncio.create_task(links.send("http://A:1/", message))
    for _ in range(3):  # Turns of the loop: one begins it, one is its delay of 0 s.
        await asyncio.sleep(0)
    return message.outcome if sending.cancel() else None


def test_policies_are_by_url_and_a_cut_ends_when_it_is_replaced() -> None:
    """Whatever form a url has; who waits at a cut goes on."""

    async def tell() -> None:
        links = Links({"http://a:1": {"cut": True}})
        assert links.to("http://a:1/") == Link(cut=True)
        assert links.to("http://b:1") == Link()
        assert await held(links) == "cut"
        waiting = asyncio.create_task(links.send("http://a:1", note(1)))
        await asyncio.sleep(0)
        links.replace({})
        await waiting
        assert await held(links) is None

    asyncio.run(tell())


def test_chances_are_drawn_the_same_every_time() -> None:
    """The same seed loses the same messages, another seed others; about as many as was asked for."""

    async def lost(seed: int) -> list[bool]:
        links = Links({"http://a:1": {"request": 0.3}}, seed)
        return [await held(links) == "lost: request" for _ in range(100)]

    first, again, other = (asyncio.run(lost(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert 15 < sum(first) < 45


def test_a_transport_of_no_lab_has_no_policy() -> None:
    """Nothing stands between it and the client."""

    async def make() -> Transport:
        transport = Transport()
        await transport.close()
        return transport

    made = asyncio.run(make())
    assert made._links is None
    assert made._trace is None


def test_what_the_environment_forbids_to_send_is_sent_once_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates that cannot be loaded cost the messages meanwhile, and no later one; the transport is closed."""

    async def why(transport: Transport) -> str:
        with pytest.raises(UnavailableError) as refused:
            await transport.post(Send(canonical(AWAY), AWAY, "/heartbeat", 10), {})
        return str(refused.value)

    async def sent() -> tuple[str, str]:
        failing, mended = Transport(), Transport()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
        first = await why(failing)
        assert await why(mended) == first
        monkeypatch.delenv("SSL_CERT_FILE")
        second = await why(mended)
        await failing.close()
        await mended.close()
        return first, second

    first, second = asyncio.run(sent())
    assert first.endswith("see to proxies and certificates of the environment")
    assert second == "nothing listens there"


def test_this_machine_is_reached_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that cannot be used, and certificates that are not there, are for others."""
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/at/all")

    async def why(url: str) -> str:
        transport = Transport()
        with pytest.raises(UnavailableError) as refused:
            await transport.post(Send(canonical(url), url, "/heartbeat", 10), {})
        await transport.close()
        return str(refused.value)

    assert asyncio.run(why("http://127.0.0.1:9")) == "nothing listens there"
    assert "environment" in asyncio.run(why(AWAY))
