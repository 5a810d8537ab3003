"""The loop around the core: nothing that was asked waits for something else to happen."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kodo.cache import Cache, Owner
from kodo.core.instructions import Send
from kodo.core.registry import Profile, Registry
from kodo.errors import CacheError, DamagedCacheError
from kodo.models import PeerMessage, PeerReply, Registration, Version
from kodo.query import compile_filter, parse, parse_order
from kodo.runtime import READERS, Answer, Identity, Runtime
from tests.damage import misindex
from tests.waiting import until

URL = "http://127.0.0.1:3366"


class Nobody:
    """A carrier that is never asked."""

    async def post(self, send: Send, message: dict[str, Any]) -> PeerReply:
        raise NotImplementedError

    async def close(self) -> None:
        pass


def running(cache: Cache, work: Callable[[Runtime], Awaitable[None]]) -> None:
    """Run a runtime over this cache, as long as `work` takes."""

    async def run() -> None:
        kept = cache.catalogue
        registry = Registry(Profile(URL), kept.parts(), kept.peers(), kept.own_rows(), kept.contents())
        runtime = Runtime(Identity(URL), registry, cache, Nobody())
        await runtime.start(None)
        try:
            async with asyncio.timeout(10):
                await work(runtime)
        finally:
            await runtime.stop()

    asyncio.run(run())


def registration(number: int, flows: Sequence[Mapping[str, Any]] = ()) -> Registration:
    return Registration.model_validate({"url": f"http://n{number}:1", "flows": flows})


def hold_commits(cache: Cache, inside: threading.Event, go: threading.Event) -> None:
    """From now on a commit says that it is `inside`, and waits until it may `go` on."""
    commit = cache.commit

    def held() -> None:
        inside.set()
        go.wait(10)
        commit()

    cache.commit = held  # type: ignore[method-assign]


def test_what_comes_while_the_writer_works_is_done_next() -> None:
    """A registration that comes during a commit is answered without another event."""
    cache = Cache(Owner(URL))
    inside, go = threading.Event(), threading.Event()

    async def work(runtime: Runtime) -> None:
        hold_commits(cache, inside, go)
        first = asyncio.create_task(runtime.register(registration(1)))
        await asyncio.to_thread(inside.wait, 10)
        second = asyncio.create_task(runtime.register(registration(2)))
        await asyncio.sleep(0)
        go.set()
        answers: list[Answer] = await asyncio.gather(first, second)
        assert [answer.reply.ticket for answer in answers] == [1, 2]

    running(cache, work)


@pytest.mark.parametrize("gone", [False, True], ids=["waiting", "gone"])
def test_what_is_brief_does_not_wait_for_hard_questions(gone: bool) -> None:
    """While the writer works and all reading threads are busy, a brief read is answered at once.

    They are also busy with the questions of those who have gone.
    """
    cache = Cache(Owner(URL))
    inside, go = threading.Event(), threading.Event()
    begun = threading.Semaphore(0)

    def hard() -> None:
        begun.release()
        go.wait(10)

    async def work(runtime: Runtime) -> None:
        hold_commits(cache, inside, go)
        registering = asyncio.create_task(runtime.register(registration(1)))
        await asyncio.to_thread(inside.wait, 10)
        questions = [asyncio.create_task(runtime.read_aside(hard)) for _ in range(READERS)]
        for _ in questions:
            await asyncio.to_thread(begun.acquire, timeout=10)
        if gone:
            for question in questions:
                question.cancel()
            await asyncio.wait(questions)
        try:
            assert await runtime.read(lambda brief=False: brief)
            assert not go.is_set()
        finally:
            go.set()
            await asyncio.gather(registering, *questions, return_exceptions=True)

    running(cache, work)


def test_a_look_at_the_core_comes_between_what_is_asked() -> None:
    """Whoever looks at the core gets a turn while registrations come without end."""

    async def work(runtime: Runtime) -> None:
        ended = asyncio.Event()

        async def register() -> None:
            number = 0
            while not ended.is_set():
                number += 1
                await runtime.register(registration(number % 7))

        asking = [asyncio.create_task(register()) for _ in range(3)]
        assert await runtime.inspect(lambda registry, _: registry.key) == URL
        ended.set()
        await asyncio.gather(*asking)

    running(Cache(Owner(URL)), work)


def test_a_damaged_listing_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A service that lists other than its records say, since a bit has changed there, finds that out and mends it."""

    async def register(runtime: Runtime) -> None:
        await runtime.register(registration(1, flows=[{"url": "/a", "name": "a flow"}]))

    async def mended(runtime: Runtime) -> None:
        async with asyncio.timeout(20):
            while b"a flow" not in (page := cache.catalogue.page(None, parse_order(""), 0, 9).rows):
                assert b"b flow" in page
                await asyncio.sleep(0.01)

    running(Cache(Owner(URL), tmp_path / "c.db"), register)
    with closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as db:
        db.execute("UPDATE flow SET name = 'b flow'")
    cache = Cache(Owner(URL), tmp_path / "c.db")
    running(cache, mended)
    assert "listed anew" in caplog.text


def test_what_searches_go_by_is_written_when_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trigrams that many flows wait for, also since a life before, are written by a service that has nothing to do."""
    flows = [{"url": f"/{at}", "name": f"flow {at}"} for at in range(1500)]

    async def caught_up(runtime: Runtime) -> None:
        async with asyncio.timeout(20):
            while cache.catalogue.is_behind:
                assert not runtime.failure.done()
                await asyncio.sleep(0.01)

    async def register(runtime: Runtime) -> None:
        await runtime.register(registration(1, flows))
        await caught_up(runtime)

    monkeypatch.setattr("kodo.listing.AT_ONCE", 100)
    cache = Cache(Owner(URL), tmp_path / "c.db")
    running(cache, register)
    with closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as db:
        db.execute("INSERT INTO trigram (trigram) VALUES ('delete-all')")
        db.execute("UPDATE meta SET value = 0 WHERE name = 'indexed'")
    cache = Cache(Owner(URL), tmp_path / "c.db")
    assert cache.catalogue.is_behind
    running(cache, caught_up)


def test_a_failure_to_write_what_searches_go_by_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes no more is noticed where nobody waits for an answer, as where somebody does."""
    cache = Cache(Owner(URL))

    def fail() -> None:
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise full

    async def work(runtime: Runtime) -> None:
        monkeypatch.setattr("kodo.listing.SOME", 0)
        monkeypatch.setattr(cache.catalogue, "catch_up", fail)
        await runtime.register(registration(1))
        assert isinstance(await runtime.failure, CacheError)

    running(cache, work)


def test_damage_in_what_searches_go_by_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trigrams that cannot be added to are made anew from the records, and the service goes on."""
    flows = [{"url": f"/{at}", "name": f"flow {at}"} for at in range(1200)]

    async def register(runtime: Runtime) -> None:
        await runtime.register(registration(1, flows))

    async def mended(runtime: Runtime) -> None:
        await runtime.register(registration(2, flows[:300]))
        async with asyncio.timeout(20):
            while found() != 1500:
                assert not runtime.failure.done()
                await asyncio.sleep(0.01)
        assert "listed anew" in caplog.text

    def found() -> int:
        return cache.catalogue.page(compile_filter(parse('name ~ "flow"')), parse_order(""), 0, 1).filtered

    running(Cache(Owner(URL), tmp_path / "c.db"), register)
    with closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as db:
        # The row of the structure, whose id FTS5 gives it.
        assert db.execute("UPDATE trigram_data SET block = zeroblob(length(block)) WHERE id = 10").rowcount == 1
    cache = Cache(Owner(URL), tmp_path / "c.db")
    running(cache, mended)
    assert "listed anew" in caplog.text


def test_a_wrong_index_of_flows_ends_no_service(tmp_path: Path) -> None:
    """A node changes its flows before they were looked over, and an index does not hold them as they are."""

    async def register(runtime: Runtime) -> None:
        await runtime.register(registration(1, [{"url": "/a", "name": "a"}]))

    async def change(runtime: Runtime) -> None:
        await runtime.register(registration(1, [{"url": "/b", "name": "b"}]))
        assert [row["name"] for row in cache.catalogue.page(None, parse_order(""), 0, 9).items] == ["b"]

    running(Cache(Owner(URL), tmp_path / "c.db"), register)
    misindex(tmp_path / "c.db", "flow_name", "(name, node, url)", "(author, node, url)")
    cache = Cache(Owner(URL), tmp_path / "c.db")
    running(cache, change)


def test_a_fault_behind_the_commit_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked is refused, and the service ends, when its answer cannot be carried out."""

    def fail(self: Runtime, instruction: object) -> None:
        raise ZeroDivisionError

    async def work(runtime: Runtime) -> None:
        monkeypatch.setattr(Runtime, "_carry_out", fail)
        with pytest.raises(CacheError):
            await runtime.register(registration(1))
        assert isinstance(await runtime.failure, ZeroDivisionError)

    running(Cache(Owner(URL)), work)


def test_a_url_that_others_use_as_well_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """That others know more of a registry than it does is no news once; again and again, it is somebody else."""

    async def work(runtime: Runtime) -> None:
        log = logging.getLogger("kodo")
        log.addHandler(caplog.handler)
        for seconds in range(1, 9):
            assert ("url" in caplog.text) == (seconds > 4)
            marks = {URL: Version(2**33 + 10 * seconds, "ab", 1)}
            await runtime.connect(PeerMessage(url="http://127.0.0.1:1", marks=marks))
        log.removeHandler(caplog.handler)
        assert caplog.text.count("has its url") == 2

    running(Cache(Owner(URL)), work)


def damaged() -> None:
    broken = sqlite3.DatabaseError("database disk image is malformed")
    broken.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise broken


def test_damage_that_stays_ends_no_service(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where what searches go by cannot be written, after all was listed anew too, searches look at each flow."""
    cache = Cache(Owner(URL))

    async def work(runtime: Runtime) -> None:
        monkeypatch.setattr("kodo.listing.SOME", 0)
        monkeypatch.setattr(cache.catalogue, "catch_up", damaged)
        for number in range(3):
            await runtime.register(registration(number, [{"url": "/a", "name": "a"}]))
        await asyncio.to_thread(until, lambda: "listed anew" in caplog.text, "the damage to be met")
        await runtime.register(registration(3))
        assert await runtime.inspect(lambda *_: runtime.failure.done()) is False
        found = cache.catalogue.page(compile_filter(parse('name ~ "a"')), parse_order(""), 0, 9)
        assert found.filtered == 3

    running(cache, work)
    assert caplog.text.count("listed anew") == 1


def test_damage_that_stays_is_written_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a read meets damage, all is listed anew once, and nothing is written for the others."""
    cache, mended = Cache(Owner(URL)), list[object]()

    def read(*, brief: bool = False) -> None:
        raise DamagedCacheError("a bit")

    async def work(runtime: Runtime) -> None:
        mend = cache.mend
        monkeypatch.setattr(cache, "mend", lambda damage: (mended.append(damage), mend(damage)))
        for _ in range(20):
            with pytest.raises(DamagedCacheError):
                await runtime.read(read)
            await runtime.register(registration(1))

    running(cache, work)
    assert len(mended) < 5  # more than one where the first is still at work
