"""Rows that are kept in memory are those that SQLite would show, at every moment."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kodo import catalogue as room
from kodo.catalogue import Catalogue, Page
from kodo.changes import Kept
from kodo.core.instructions import Entry, Save
from kodo.errors import CacheError
from kodo.query import compile_filter, parse, parse_order
from kodo.rows import Rows
from tests.damage import alter
from tests.test_catalogue import TIME, URL, entry, flow, write

ORDERS = ["", "name:d", "author,url", "node:d", "organization", "created:d", "modified", "heartbeat:d,name", "tags"]
FILTERS = ["", 'author == "a1"', 'organization == "o1"', 'created > "2024-12-25T18:03:12.000020"', '@tag("t1")']


@pytest.fixture(params=["memory", "file"])
def catalogue(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("kodo.rows.SOME", 1)
    made = Catalogue(URL, tmp_path / "c.db" if request.param == "file" else None)
    yield made
    made.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What SQLite is asked for of pages: `ranked` and `shown`, in turn."""
    asked: list[str] = []

    def noted(name: str, real: Callable[..., Any], *given: Any) -> Any:
        asked.append(name)
        return real(*given)

    for name in ("ranked", "shown"):
        monkeypatch.setattr(room, name, partial(noted, name, getattr(room, name)))
    return asked


def page(catalogue: Catalogue, q: str = "", by: str = "", p: int = 0, pp: int = 10) -> Page:
    asked = parse(q)
    return catalogue.page(None if asked is None else compile_filter(asked), parse_order(by), p, pp)


def published(catalogue: Catalogue, *entries: Any, **fields: Any) -> None:
    with catalogue.writing():
        write(catalogue, *entries, **fields)


def stored(catalogue: Catalogue, *asked: Any) -> Page:
    """The same page, of which nothing is remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "_rankings", Kept(0))
        patch.setattr(catalogue, "_rows", Rows())
        return page(catalogue, *asked)


def catch_up(catalogue: Catalogue) -> None:
    while catalogue.is_behind:
        catalogue.catch_up()


def some_flows(node: int, at: int, chance: Random) -> Entry:
    names = chance.sample(range(30), chance.randrange(1, 6))
    flows = [flow(f"a{name}", author=f"a{name % 4}", tags=[f"t{name % 3}"]) for name in names]
    return entry(node, flows, at, organization=f"o{chance.randrange(3)}")


def other_times(known: Entry, at: int) -> Entry:
    times = {"modified": TIME.format(at), "heartbeat": TIME.format(at)}
    return replace(known, node=known.node.model_copy(update=times), seq=at + 1)


def test_kept_rows_are_what_is_stored(catalogue: Catalogue, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written, rolled back or under way: a page is of one moment, which is the last."""
    monkeypatch.setattr("kodo.rows.PIECE", 20)
    monkeypatch.setattr("kodo.rows.FACES", 5)
    chance, last = Random(7), dict[int, Entry]()
    from_memory = 0
    for at in range(600):
        node, kind = chance.randrange(12), chance.choice(["flows", "times", "times", "gone", "rollback", "nothing"])
        asked = (chance.choice(FILTERS), chance.choice(ORDERS), chance.randrange(2), 7)
        if kind == "rollback":
            catalogue.write(Save(entries=(some_flows(node, at, chance),)))
            catalogue.rollback()
        elif kind != "nothing":
            if kind == "gone":
                last[node] = entry(node, None, at, gone=True)
            elif kind == "flows" or node not in last or last[node].gone:
                last[node] = some_flows(node, at, chance)
            else:
                last[node] = other_times(last[node], at)
            page(catalogue, *asked)
            with catalogue.writing():
                write(catalogue, last[node])
                assert page(catalogue, *asked) == stored(catalogue, *asked)
        catch_up(catalogue)
        for _ in range(2):
            reads.clear()
            found = page(catalogue, *asked)
            from_memory += not reads
            assert found == stored(catalogue, *asked)
    assert from_memory > 500


def test_times_alone_change_no_order(catalogue: Catalogue, reads: list[str]) -> None:
    """A node that registers the same again costs a deep page nothing, but in an order by times."""
    known = [entry(number, [flow(f"a{at}") for at in range(100)], number) for number in range(15)]
    published(catalogue, *known)
    catch_up(catalogue)
    page(catalogue, "", "name", 120)
    page(catalogue, "", "modified", 120)
    published(catalogue, other_times(known[3], 20))
    reads.clear()
    shown = page(catalogue, "", "name", 120).items
    assert not reads
    assert {row["modified"] for row in shown if row["node"] == known[3].node.url} == {TIME.format(20)}
    assert page(catalogue, "", "modified", 140).items[0]["node"] == known[3].node.url
    assert reads == ["ranked", "shown"]
    # Flows that changed do.
    published(catalogue, entry(4, [flow("other")], 21))
    reads.clear()
    assert page(catalogue, "", "name", 120).total == 1401
    assert "ranked" in reads


def test_rows_are_kept_as_long_as_all_find_room(
    catalogue: Catalogue, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more flows than find room none is kept; what is gone makes room."""
    monkeypatch.setattr("kodo.rows.ROOM", 100 * 180)

    def kept() -> bool:
        catch_up(catalogue)
        return catalogue._rows.texts([catalogue._listing.last]) is not None

    def flows(number: int, at: int) -> Entry:
        return entry(number, [flow(f"a{at:03}-{name:02}") for name in range(20)], at)

    published(catalogue, *(flows(number, 0) for number in range(4)))
    assert kept()
    # The same nodes with other flows, again and again, each of which is listed under a new id.
    for at in range(1, 40):
        published(catalogue, flows(at % 4, at))
        assert kept()
    assert catalogue._rows._size <= 100 * 180
    published(catalogue, *(flows(number, 100) for number in range(10)))
    assert not kept()
    assert catalogue._rows._size == 0
    published(catalogue, *(entry(number, None, 200, gone=True) for number in range(8)))
    for at in range(300, 320):
        published(catalogue, flows(8, at))
    assert kept()
    # And so are those of nodes that said nothing since.
    assert len(page(catalogue, 'author != ""', "", 0, 100).items) == 40
    reads.clear()
    assert len(page(catalogue, 'author != ""', "", 0, 100).items) == 40
    assert not reads


def test_long_texts_are_read_a_few_at_once(catalogue: Catalogue, reads: list[str]) -> None:
    """Others wait meanwhile, and memory holds what is read several times over."""
    long = [flow(f"a{at:02}", description="é" * 200_000) for at in range(40)]
    published(catalogue, entry(1, long, 1))
    pieces = 0
    while catalogue.is_behind:
        before = catalogue._rows._size
        catalogue.catch_up()
        assert before < catalogue._rows._size < before + 16 * 401_000
        pieces += 1
    assert pieces == 3
    page(catalogue, "", "author", 3)
    reads.clear()
    found = page(catalogue, "", "author", 3)
    assert not reads
    assert found == stored(catalogue, "", "author", 3)


def test_long_faces_are_not_kept(catalogue: Catalogue) -> None:
    """An organization may have any length, and is shown with each row: its page is read from SQLite."""
    published(catalogue, *(entry(number, [flow("a")], number, organization="é" * 20_000) for number in range(3)))
    published(catalogue, entry(3, [flow("b")], 3))
    catch_up(catalogue)
    for _ in range(2):
        found = page(catalogue, "", "author")
        assert found == stored(catalogue, "", "author")
    page(catalogue, "", "author:d", 0, 1)
    page(catalogue, "", "author:d", 0, 1)
    (count,) = catalogue.changes.counts("flows")
    assert 0 < sum(map(len, catalogue._rows.faces(count).values())) < 1000


def test_rows_that_leave_little_room_are_not_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is gone some is kept; for each flow that comes some are read anew, and not nearly all."""
    monkeypatch.setattr("kodo.rows.SOME", 1)
    monkeypatch.setattr("kodo.rows.PIECE", 20)
    with closing(Catalogue(URL)) as catalogue:

        def changed(number: int, at: int) -> None:
            published(catalogue, entry(number, [flow(f"a{at:05}-{number:03}-{name:02}") for name in range(20)], at))

        def pieces() -> int:
            counted = 0
            while catalogue.is_behind:
                counted += not catalogue._listing.is_behind
                catalogue.catch_up()
            return counted

        for number in range(50):
            changed(number, 0)
        pieces()
        for room in (1.02, 1.1):
            monkeypatch.setattr("kodo.rows.ROOM", int(catalogue._rows._size * room))
            read = 0
            for at in range(1, 80):
                changed(at % 50, at)
                read += pieces()
            assert read < 10 * 80
            monkeypatch.setattr("kodo.rows.ROOM", 2**40)
            catalogue._rows = Rows()
            pieces()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE flow SET tags = '[' WHERE name = 'b'",
        "UPDATE flow SET record = 'x' || char(10) || 'y' WHERE name = 'b'",
        "DELETE FROM tally WHERE kind = 'total'",
        "UPDATE tally SET flows = 'x' WHERE kind = 'total'",
    ],
)
def test_rows_that_cannot_be_read_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """To keep them is not worth the service, whatever stands in their place."""
    monkeypatch.setattr("kodo.rows.SOME", 1)
    catalogue = Catalogue(URL, tmp_path / "c.db")
    published(catalogue, entry(1, [flow("a"), flow("b")], 1))
    alter(tmp_path / "c.db", damage)
    catch_up(catalogue)
    assert catalogue._rows.texts([2]) is None
    catalogue.close()


def test_who_asks_for_a_row_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """By an error of the family."""
    with closing(Catalogue(URL, tmp_path / "c.db")) as catalogue:
        published(catalogue, entry(1, [flow("a"), flow("b")], 1))
        alter(tmp_path / "c.db", "UPDATE flow SET tags = '[' WHERE name = 'b'")
        with pytest.raises(CacheError):
            page(catalogue)
