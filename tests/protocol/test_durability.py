"""Beyond, "Durability": what was acknowledged survives a kill at any moment; and caches that are not what they were."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Process, Start, free_port
from tests.protocol.helpers import ago, flow_urls, record, stamped, told
from tests.waiting import until

NODE, SECOND, OTHER = "http://node1:3367", "http://node2:3367", "http://registry2:3368"
WRITERS, ROUNDS = 4, 3


class Writer(threading.Thread):
    """A client that registers node after node, each again with a newer version, until its registry is gone."""

    def __init__(self, url: str, number: int, acknowledged: dict[str, int], start: int) -> None:
        super().__init__(daemon=True)
        self.url, self.number, self.version = url, number, start
        self.acknowledged = acknowledged
        self.sent: dict[str, int] = {}

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=10, trust_env=False) as client:
            while True:
                self.version += 1
                node = f"http://writer{self.number}-{self.version % 7}:3367"
                self.sent[node] = self.version
                try:
                    if self.number % 2:
                        answer = client.post("/register", json=record(node, f"v{self.version}"))
                    else:
                        body = stamped(node, f"v{self.version}", created=ago(hours=1), modified=ago())
                        answer = client.post("/update/node", json=told(OTHER, body))
                except httpx.TransportError:
                    return
                assert answer.status_code == 200, answer.text
                self.acknowledged[node] = self.version


@pytest.mark.parametrize("form", ["json", "db"])
def test_what_was_acknowledged_survives_a_kill(spawn: Callable[..., Process], tmp_path: Path, form: str) -> None:
    """What was acknowledged survives a kill at any moment, in both forms of the cache."""
    dice = random.Random(f"kill-{form}")
    url, cache = f"http://127.0.0.1:{free_port()}", tmp_path / f"kept.{form}"
    acknowledged: dict[str, int] = {}
    sent: dict[str, int] = {}
    for number in range(ROUNDS):
        served = spawn(url=url, node=False, cache=cache)
        check(served, acknowledged, sent)
        writers = [Writer(url, each, acknowledged, number * 10**6) for each in range(WRITERS)]
        before = number * 10**6
        for writer in writers:
            writer.start()
        enough = dice.randrange(5, 200)
        until(
            lambda now=writers, least=enough, base=before: sum(each.version - base for each in now) >= least,  # type: ignore[misc]
            "registrations",
        )
        served.kill()
        for writer in writers:
            writer.join(10)
            assert not writer.is_alive()
            sent.update(writer.sent)
    check(spawn(url=url, node=False, cache=cache), acknowledged, sent)


def check(served: Process, acknowledged: dict[str, int], sent: dict[str, int]) -> None:
    """Every node is listed in the version last acknowledged, or in one sent after it."""
    listed = {row["node"]: int(row["name"][1:]) for row in served.flows()}
    for node, version in acknowledged.items():
        assert node in listed, f"{node} is lost"
        assert version <= listed[node] <= sent[node], node


@pytest.mark.parametrize("form", ["json", "db"])
def test_every_kind_of_message_survives_a_kill(spawn: Callable[..., Process], tmp_path: Path, form: str) -> None:
    """A registration, a peer with its nodes and an update survive a kill right after their answers."""
    url, cache = f"http://127.0.0.1:{free_port()}", tmp_path / f"kept.{form}"
    served = spawn(url=url, node=False, cache=cache)
    served.post("/register", record(NODE, "a"))
    served.post("/connect", told(OTHER, stamped(SECOND, "b", created=ago(hours=1)), feed=False))
    served.post("/update/node", told(OTHER, stamped("http://node3:3367", "c", created=ago(hours=1))))
    served.post("/register", record(NODE, "d"))
    before, cached = served.flows(), served.get("/_cache")
    served.kill()
    again = spawn(url=url, node=False, cache=cache)
    assert again.flows() == before
    assert again.get("/_cache") == cached
    reply = again.post("/connect", told(OTHER, feed=False))
    assert "(seen previously " in reply["message"][0]


def shape(url: str, listed: bool, nodes_listed: bool) -> dict[str, Any]:
    """A cache of the plain shape: what `/_cache` shows, with objects or lists."""
    own = stamped(NODE, "a", created="2024-12-25T18:03:12.989989", modified="2024-12-25T18:05:13.972356")
    foreign = stamped(SECOND, "b", created="2024-12-24T18:03:12.989989")
    if nodes_listed:
        own["flows"] = list(own["flows"].values())
    provider = {**told(OTHER, foreign, feed=True), "nodes": [foreign] if nodes_listed else {SECOND: foreign}}
    return {
        "url": url,
        "organization": "registry1",
        "feed": True,
        "nodes": [own] if listed else {NODE: own},
        "providers": [provider] if listed else {OTHER: provider},
    }


@pytest.mark.parametrize("nodes_listed", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_a_cache_of_the_plain_shape(serve: Start, tmp_path: Path, listed: bool, nodes_listed: bool) -> None:
    """A cache of the shape of `/_cache`, its collections as objects or as lists, is read."""
    url, cache = f"http://127.0.0.1:{free_port()}", tmp_path / "plain.json"
    cache.write_text(json.dumps(shape(url, listed, nodes_listed)))
    served = serve(url=url, node=False, organization="registry1", cache=cache)
    rows = {row["url"]: row for row in served.flows()}
    assert set(rows) == {"/a", "/b"}
    assert (rows["/a"]["created"], rows["/a"]["modified"]) == (
        "2024-12-25T18:03:12.989989",
        "2024-12-25T18:05:13.972356",
    )
    assert rows["/b"]["created"] == "2024-12-24T18:03:12.989989"
    view = served.get("/_cache")
    assert list(view["nodes"]) == [NODE]
    assert list(view["providers"][OTHER]["nodes"]) == [SECOND]


def good_cache(serve: Start, cache: Path) -> str:
    """Write a good cache; the url that it belongs to."""
    served = serve(node=False, cache=cache)
    for number in range(30):
        served.post("/register", record(f"http://node{number}:3367", "a", "b"))
    served.end()
    return served.url


FOREIGN = {
    "empty": b"",
    "nulls": b"\x00" * 5000,
    "text": b"no cache at all\n",
    "list": b"[]",
    "number": b"5",
    "object": b"{}",
    "wrong types": b'{"nodes": 5, "providers": "x"}',
    "bad nodes": b'{"url": 1, "nodes": {"http://x:1": {}}, "providers": {}}',
    "deep": b"[" * 100_000,
    "no text": b'{"nodes": {"\xff": 1}}',
    "broken database": b"SQLite format 3\x00" + b"\xff" * 5000,
    "noise": random.Random(7).randbytes(10_000),
}


@pytest.mark.parametrize(
    ("form", "name"),
    [*product(["json"], FOREIGN), *product(["db"], ["empty", "nulls", "text", "number", "broken database", "noise"])],
)
def test_a_foreign_file_as_cache(
    serve: Start, tmp_path: Path, form: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is no cache is set aside with a log line, and the service starts and keeps what it is told."""
    caplog.set_level("INFO")
    content = FOREIGN[name]
    cache = tmp_path / f"foreign.{form}"
    cache.write_bytes(content)
    served = serve(node=False, cache=cache)
    assert served.flows() == []
    served.post("/register", record(NODE, "a"))
    served.end()
    if content and content != b"{}":
        assert any(str(cache) in each.getMessage() for each in caplog.records if each.levelname in ("WARNING", "ERROR"))
        assert content in [each.read_bytes() for each in tmp_path.iterdir()]
    assert flow_urls(serve(node=False, url=served.url, cache=cache)) == ["/a"]


def test_a_foreign_database_as_cache(serve: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A database of somebody else is set aside with a log line, with all that is in it."""
    cache = tmp_path / "foreign.db"
    with sqlite3.connect(cache) as connection:
        connection.execute("create table nodes (x)")
        connection.execute("insert into nodes values ('y')")
    connection.close()
    served = serve(node=False, cache=cache)
    assert served.flows() == []
    served.post("/register", record(NODE, "a"))
    served.end()
    assert any(str(cache) in each.getMessage() for each in caplog.records if each.levelname in ("WARNING", "ERROR"))
    (aside,) = [each for each in tmp_path.glob("foreign.db*aside*") if not each.name.endswith(("-wal", "-shm"))]
    with sqlite3.connect(aside) as connection:
        assert connection.execute("select x from nodes").fetchall() == [("y",)]
    connection.close()


@pytest.mark.parametrize("harm", ["truncated", "flipped"])
@pytest.mark.parametrize("form", ["json", "db"])
def test_harmed_caches(serve: Start, tmp_path: Path, form: str, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    """A cache that was cut or has flipped bits is read, or set aside with a log line: the service starts."""
    caplog.set_level("INFO")
    dice = random.Random(f"{form}-{harm}")
    cache = tmp_path / f"good.{form}"
    url = good_cache(serve, cache)
    for wal in tmp_path.glob("good.db-*"):
        wal.unlink()
    good = cache.read_bytes()
    for number in range(6):
        folder = tmp_path / f"round{number}"
        folder.mkdir()
        harmed = folder / f"cache.{form}"
        if harm == "truncated":
            content = good[: dice.randrange(len(good))]
        else:
            flipped = bytearray(good)
            for _ in range(dice.choice([1, 8, 64])):
                flipped[dice.randrange(len(good))] ^= 1 << dice.randrange(8)
            content = bytes(flipped)
        harmed.write_bytes(content)
        caplog.clear()
        served = serve(node=False, url=url, cache=harmed)
        rows = served.get("/flows", pp=1000)["items"]
        for path in ("/", "/counts", "/map", "/_cache"):
            served.get(path)
        if len(rows) != 60 and content:
            assert any(each.levelname in ("WARNING", "ERROR") for each in caplog.records), (number, len(rows))
            assert str(harmed) in caplog.text
            assert len(list(folder.iterdir())) > 1, "the harmed file is kept"
        served.post("/register", record(NODE, "after"))
        served.end()
        if number < 2:
            again = serve(node=False, url=url, cache=harmed)
            assert "/after" in flow_urls(again, NODE)
            again.end()
