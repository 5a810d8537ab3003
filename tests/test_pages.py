"""Pages at any depth, in any order and of any selection, whatever is written between them."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kodo.catalogue import RANKINGS, Catalogue
from kodo.changes import Kept
from kodo.models import COLUMNS
from kodo.query import compile_filter, matches, ordered, parse, parse_order
from kodo.rows import Ranking, Rows
from kodo.sim import Store
from tests.sim.saves import ORIGINS, R, random_save

QUERIES = (
    *("", "", "b", "STRASSE", '@tag("a")', 'not @tag("a")', 'organization == "Straße"', 'organization != "Straße"'),
    *('name ~ "A"', 'created < "2025"', "not modified == modified", 'url > "/a" & node ~ "x"'),
    *('node == "http://x:1"', '"http://x:1" != node', 'node > "http://x:1"'),
)


def same_page(catalogue: Catalogue, listing: list[dict[str, Any]], chance: random.Random) -> None:
    """A page at random, as SQLite finds it, and as it is cut from the whole listing."""
    columns = [chance.choice(COLUMNS) for _ in range(chance.randrange(3))]
    order = parse_order(",".join(f"{column}:{chance.choice('ad')}" for column in columns))
    asked, p, pp = parse(chance.choice(QUERIES)), chance.randrange(6), chance.randrange(1, 5)
    page = catalogue.page(None if asked is None else compile_filter(asked), order, p, pp)
    wanted = ordered([row for row in listing if matches(asked, row)], order)
    assert (page.total, page.filtered, page.items) == (len(listing), len(wanted), wanted[p * pp : (p + 1) * pp])
    assert json.loads(catalogue.counts_json()) == {
        "total": len(listing),
        "node": Counter(row["node"] for row in listing),
        "organization": Counter(row["organization"] for row in listing if row["organization"] is not None),
        "tags": Counter(tag for row in listing for tag in set(row["tags"])),
    }


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "file"])
@settings(max_examples=60, deadline=None)
@given(chance=st.randoms(use_true_random=False))
def test_pages_are_right_at_every_moment(durable: bool, chance: random.Random) -> None:
    """Before, while and after something is written, a page shows what is committed then, and in its order."""
    store, counts = Store(R), dict.fromkeys(ORIGINS, 0)
    with (
        pytest.MonkeyPatch.context() as patch,
        TemporaryDirectory() as folder,
        closing(Catalogue(R, Path(folder, "c.db") if durable else None)) as catalogue,
    ):
        patch.setattr("kodo.catalogue.SHALLOW", 2)
        for name, value in {"IDS": 3, "SOME": 1, "PIECE": 20, "FACES": 1}.items():
            patch.setattr(f"kodo.rows.{name}", value)
        catalogue._rows = Rows()
        for _ in range(5):
            save, listing = random_save(chance, counts), store.listing()
            with catalogue.writing():
                catalogue.write(save)
                if durable:  # in memory nobody reads while something is written
                    same_page(catalogue, listing, chance)
                catalogue.commit()
                store.write(save)
                listing = store.listing()
                same_page(catalogue, listing, chance)
            while chance.randrange(3) and catalogue.is_behind:
                catalogue.catch_up()
            for _ in range(4):
                same_page(catalogue, listing, chance)


@pytest.mark.parametrize("kept", [False, True], ids=["order kept", "rows kept"])
@pytest.mark.parametrize("looks", [1, 2])
def test_a_page_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int, kept: bool) -> None:
    """What is committed while a page is being read is in all of it or in none, though its order was kept before."""
    monkeypatch.setattr("kodo.rows.SOME", 1)
    store, counts, chance = Store(R), dict.fromkeys(ORIGINS, 0), random.Random(1)
    with closing(Catalogue(R, tmp_path / "c.db")) as catalogue:

        def write() -> None:
            save = random_save(chance, counts)
            with catalogue.writing():
                catalogue.write(save)
                catalogue.commit()
            store.write(save)

        select, order, stands = compile_filter(parse('node ~ ""')), parse_order(""), catalogue.changes.stands
        while len(store.listing()) < 3:
            write()
        while kept and catalogue.is_behind:
            catalogue.catch_up()
        before = catalogue.page(select, order, 0, 1000)
        looked = []

        def overtaken(name: Any, count: int) -> bool:
            stood = stands(name, count)
            looked.append(name)
            while len(looked) == looks and store.listing() == listed:
                write()
            return stood

        listed = store.listing()
        monkeypatch.setattr(catalogue.changes, "stands", overtaken)
        read = catalogue.page(select, order, 0, 1000)
        assert len(looked) >= looks
        assert store.listing() != listed
        assert len(read.items) == read.filtered
        assert read in (before, catalogue.page(select, order, 0, 1000))


def test_a_page_beyond_the_last_is_empty() -> None:
    """A page that is not there has no rows, however far away it is."""
    with closing(Catalogue(R)) as catalogue:
        for p in (0, 2000, 2**53 - 1):
            assert catalogue.page(None, parse_order(""), p, 1000).items == []
            assert catalogue.page(compile_filter(parse('name == "a"')), parse_order(""), p, 1000).items == []


def test_what_is_kept_is_what_was_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are kept up to so many bytes; those that were not used for the longest time go first."""
    monkeypatch.setattr("kodo.changes.ENTRY", 0)
    kept: Kept[bytes] = Kept(13)
    for name in ("a", "b"):
        kept.put(name, b"1234")
    assert kept.get("a") == b"1234"
    kept.put("c", b"1234")
    assert [kept.get(name) for name in "abc"] == [b"1234", None, b"1234"]
    kept.put("a", b"12")
    kept.put("d", b"1234")
    assert [kept.get(name) for name in "acd"] == [b"12", b"1234", b"1234"]
    kept.put("large", b"1" * 11)
    assert [kept.get(name) for name in ("a", "c", "d", "large")] == [None] * 4


def test_what_is_empty_takes_room_as_well() -> None:
    """Whoever asks for what is not there, each time in other words, fills no memory."""
    kept: Kept[bytes] = Kept(100_000)
    names = [("asked", number, "nothing " * 100) for number in range(1000)]
    for name in names:
        kept.put(name, b"")
    assert kept.get(names[-1]) == b""
    assert sum(kept.get(name) is not None for name in names) < 100


def test_three_orders_of_a_million_flows_are_kept() -> None:
    """Who turns pages in three orders by turns waits for each of them once."""
    million = Ranking(10**7, 10**6, [bytes(9 * 10**6)])
    assert million.flows == 10**6
    kept: Kept[Ranking] = Kept(RANKINGS)
    for order in ("name", "author", "tags"):
        kept.put(order, million)
    assert all(kept.get(order) is million for order in ("name", "author", "tags"))
