"""The catalogue: what is listed follows from the records, and reading costs what it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from kodo.catalogue import INDEXED, SHALLOW, Catalogue, _selection
from kodo.core.instructions import Entry, Save, Settle, Stage
from kodo.core.parts import Part
from kodo.core.peers import PeerState
from kodo.errors import BusyError, CacheError
from kodo.models import COLUMNS, Flow, Node, Version, canonical, digest
from kodo.query import compile_filter, parse, parse_order

URL = "http://self:1"
OWN, PEER = canonical(URL), canonical("http://peer:1")
TIME = "2024-12-25T18:03:12.{:06}"


def entry(number: int, flows: list[dict[str, Any]] | None, at: int = 0, **fields: Any) -> Entry:
    by_url = None if flows is None else {flow["url"]: Flow(**flow) for flow in flows}
    url = f"http://n{number:04}:1"
    time = TIME.format(at)
    node = Node(
        url=url,
        organization=fields.pop("organization", None),
        flows=by_url,
        created=time,
        modified=None if fields.pop("lapsed", False) else time,
        heartbeat=time,
    )
    fields = {"origin": OWN, "seq": at + 1, "flows_seq": at + 1, **fields}
    return Entry(key=canonical(url), node=node, digest=digest(by_url or {}), **fields)


def flow(name: str, **fields: Any) -> dict[str, Any]:
    return {"url": f"/{name}", "name": name, **fields}


def write(catalogue: Catalogue, *entries: Entry, **fields: Any) -> None:
    catalogue.write(Save(entries=entries, **fields))
    catalogue.commit()


def names(catalogue: Catalogue, q: str = "", by: str = "") -> list[str]:
    asked = parse(q)
    select = compile_filter(asked) if asked is not None else None
    return [item["name"] for item in catalogue.page(select, parse_order(by), 0, 1000).items]


def counts(catalogue: Catalogue) -> Any:
    return orjson.loads(catalogue.counts_json())


@pytest.fixture(params=["memory", "file"])
def catalogue(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made = Catalogue(URL, tmp_path / "c.db" if request.param == "file" else None)
    yield made
    made.close()


def test_the_newer_record_is_listed_whatever_the_order_of_arrival(catalogue: Catalogue) -> None:
    """Of a node in several parts the newer `modified` is listed; the order in which they came leaves no trace."""
    old, new = entry(1, [flow("old")], 1), entry(1, [flow("new")], 2, origin=PEER)
    write(catalogue, new)
    write(catalogue, old)
    assert names(catalogue) == ["new"]
    write(catalogue, entry(1, [flow("newest")], 3))
    assert names(catalogue) == ["newest"]
    assert counts(catalogue)["total"] == 1


def test_a_tie_goes_by_the_origins_url(catalogue: Catalogue) -> None:
    """Of records with the same `modified` the same one is listed everywhere."""
    write(catalogue, entry(1, [flow("self")], 1))
    write(catalogue, entry(1, [flow("peer")], 1, origin=PEER))
    assert names(catalogue) == ["self"]


def test_a_record_that_lapsed_uncovers_what_is_below(catalogue: Catalogue) -> None:
    """When the listed record lapses, the next is listed; when none is left, nothing is, and nothing is counted."""
    write(catalogue, entry(1, [flow("own", tags=["t"])], 1), entry(1, [flow("peer")], 2, origin=PEER))
    write(catalogue, entry(1, None, 3, origin=PEER, gone=True, lapsed=True))
    assert names(catalogue) == ["own"]
    write(catalogue, entry(1, None, 4, gone=True, lapsed=True))
    assert names(catalogue) == []
    assert counts(catalogue) == {"total": 0, "node": {}, "organization": {}, "tags": {}}


def test_a_node_that_left_is_gone_whoever_lists_it(catalogue: Catalogue) -> None:
    """Once a node has left, nothing older of it is listed, come when it may; what registered after it is."""
    write(catalogue, entry(1, [flow("peer")], 2, origin=PEER))
    write(catalogue, entry(1, None, 3, gone=True))
    assert names(catalogue) == []
    write(catalogue, entry(1, [flow("late")], 1, origin=PEER))
    assert names(catalogue) == []
    write(catalogue, entry(1, [flow("again")], 4, origin=PEER))
    assert names(catalogue) == ["again"]


@pytest.mark.parametrize("forgets", ["floor", "drop"])
def test_what_a_forgotten_tombstone_hid_counts_as_a_change(catalogue: Catalogue, forgets: str) -> None:
    """When a part's tombstone goes and another part's record shows again, whoever follows the changes is told."""
    write(catalogue, entry(1, [flow("shown")], 1), entry(1, None, 2, origin=PEER, gone=True))
    with catalogue.writing():
        pass
    assert names(catalogue) == []
    before = catalogue.changes.count("nodes"), catalogue.changes.count("flows")
    floor = Version(1, "ab", 3)
    with catalogue.writing():
        write(catalogue, **({"dropped": (PEER,)} if forgets == "drop" else {"parts": (Part(PEER, floor, floor),)}))
    assert names(catalogue) == ["shown"]
    assert (catalogue.changes.count("nodes"), catalogue.changes.count("flows")) == (before[0] + 1, before[1] + 1)
    assert catalogue.changes.since(before[0]) == {canonical("http://n0001:1")}


def test_a_floor_forgets_tombstones(catalogue: Catalogue) -> None:
    """A part that is saved with a higher floor loses its tombstones up to it, and nothing else."""
    write(catalogue, entry(1, [flow("a")], 1), entry(2, None, 2, gone=True), entry(3, None, 3, gone=True))
    version = Version(1, "ab", 4)
    write(catalogue, parts=(Part(OWN, version, floor=version.at(3)),))
    rows = catalogue.rows([canonical(f"http://n{number:04}:1") for number in (1, 2, 3)])
    assert sorted(rows) == [canonical("http://n0001:1"), canonical("http://n0003:1")]


def test_a_part_that_is_dropped_goes_with_all_its_records(catalogue: Catalogue) -> None:
    """A part that is given up is listed no more, and the next of each of its nodes is."""
    write(catalogue, entry(1, [flow("own")], 1), entry(1, [flow("peer")], 2, origin=PEER))
    write(catalogue, entry(2, [flow("other")], 3, origin=PEER), parts=(Part(PEER, Version(1, "ab", 4)),))
    write(catalogue, dropped=(PEER,))
    assert names(catalogue) == ["own"]
    assert catalogue.parts() == []


def test_times_alone_leave_flows(catalogue: Catalogue) -> None:
    """A record without flows changes the times and keeps the flows."""
    write(catalogue, entry(1, [flow("a")], 1))
    write(catalogue, entry(1, None, 5))
    (item,) = catalogue.page(None, parse_order(""), 0, 10).items
    assert (item["name"], item["modified"]) == ("a", TIME.format(5))


def test_an_unchanged_node_writes_its_own_row_alone(catalogue: Catalogue) -> None:
    """A node that registers the same again costs one row of `record`, and none of its flows."""
    write(catalogue, entry(1, [flow("a", tags=["x"]), flow("b")], 1))
    statements: list[str] = []
    catalogue._writer.set_trace_callback(statements.append)
    write(catalogue, entry(1, [flow("a", tags=["x"]), flow("b")], 2))
    written = [sql for sql in statements if sql.split()[0] in {"INSERT", "DELETE", "UPDATE"}]
    assert all(sql.startswith("UPDATE record") for sql in written)
    assert names(catalogue) == ["a", "b"]


def test_changed_flows_replace(catalogue: Catalogue) -> None:
    """What a registration no longer names is gone, from the listing, the text search, the tags and the counts."""
    write(catalogue, entry(1, [flow("alpha", tags=["x"]), flow("beta")], 1))
    write(catalogue, entry(1, [flow("beta"), flow("gamma")], 2))
    assert names(catalogue) == ["beta", "gamma"]
    assert names(catalogue, "alpha") == names(catalogue, '@tag("x")') == []
    assert names(catalogue, "gamma") == ["gamma"]
    assert counts(catalogue)["tags"] == {}


def test_an_organization_that_changes(catalogue: Catalogue) -> None:
    """A node's new organization is found, also by text, and the old one no more."""
    write(catalogue, entry(1, [flow("a")], 1, organization="Mediaplus"))
    write(catalogue, entry(1, [flow("a")], 2, organization="Other"))
    assert names(catalogue, "mediaplus") == []
    assert names(catalogue, "oTHer") == names(catalogue, 'organization == "Other"') == ["a"]


def test_a_floor_that_fell_forgets_tombstones(catalogue: Catalogue) -> None:
    """An origin that lost its disk counts anew: tombstones up to its lower floor go, too, after its snapshot."""
    version, stage = Version(1, "n", 9), Stage(PEER, PEER)
    write(catalogue, parts=(Part(PEER, version, floor=version.at(8)),))
    again = Version(2, "m", 1)
    write(catalogue, staged=((stage, entry(1, [flow("a")], 0, origin=PEER)),))
    write(catalogue, settled=(Settle(stage, whole=True),), parts=(Part(PEER, again, floor=again.at(0)),))
    write(catalogue, entry(1, [], 1, origin=PEER, gone=True), parts=(Part(PEER, again.at(3), floor=again.at(2)),))
    assert catalogue.rows([entry(1, [], 1).key]) == {}


def test_pages_and_staging(catalogue: Catalogue) -> None:
    """Staged records are not listed before their origin is settled; a whole settles to exactly them."""
    write(catalogue, entry(1, [flow("kept")], 1, origin=PEER), entry(2, [flow("dropped")], 1, origin=PEER))
    stage, other = Stage(PEER, canonical("http://a:1")), Stage(PEER, canonical("http://b:1"))
    write(catalogue, staged=((stage, entry(1, None, 5, origin=PEER)), (other, entry(2, None, 5, origin=PEER))))
    write(catalogue, staged=((stage, entry(3, [flow("new")], 6, origin=PEER)),))
    assert names(catalogue) == ["dropped", "kept"]
    write(catalogue, settled=(Settle(stage, whole=True),))
    assert names(catalogue) == ["kept", "new"]


def test_settling_many_is_writing_each(catalogue: Catalogue, tmp_path: Path) -> None:
    """Pages that settle come to what their records would, written one by one: new nodes, known ones, and tombstones."""
    before = [entry(number, [flow("own", tags=["x"])], number, organization="Own") for number in (0, 3)]
    pages = [entry(number, [flow("a", tags=["x", "y"]), flow(f"b{number}")], 2, origin=PEER) for number in range(250)]
    pages += [
        entry(250, None, 2, origin=PEER),
        entry(251, [], 2, origin=PEER),
        entry(252, [], 2, origin=PEER, gone=True),
    ]
    settled, stage = catalogue, Stage(PEER, PEER)
    written = Catalogue(URL, tmp_path / "other.db")
    write(settled, *before, staged=tuple((stage, page) for page in pages))
    write(settled, settled=(Settle(stage, whole=True),))
    write(written, *before)
    write(written, *pages)
    for shown in (names, lambda of: names(of, "ow"), lambda of: names(of, "b24"), counts):
        assert shown(settled) == shown(written)
    keys = [page.key for page in pages]
    assert settled.rows(keys) == written.rows(keys)
    assert settled.contents() == written.contents()
    settled.changes.publish()
    assert settled.changes.since(0) == {*keys[:252]}
    written.close()


def test_settling_many_is_all_or_nothing(catalogue: Catalogue) -> None:
    """A service that ends while pages settle keeps none of them, and may settle them later."""
    stage, plan = Stage(PEER, PEER), "SELECT sql FROM sqlite_master ORDER BY name"
    write(catalogue, staged=tuple((stage, entry(number, [flow("a")], origin=PEER)) for number in range(250)))
    made = catalogue._writer.execute(plan).fetchall()
    catalogue.interrupt()
    with pytest.raises(CacheError):
        write(catalogue, settled=(Settle(stage, whole=True),))
    catalogue.rollback()
    assert names(catalogue) == []
    catalogue.resume()
    write(catalogue, settled=(Settle(stage, whole=True),))
    assert len(names(catalogue, "a")) == 250
    assert catalogue._writer.execute(plan).fetchall() == made


def test_duplicate_tags_count_once(catalogue: Catalogue) -> None:
    """A flow that names a tag twice shows it twice and counts once."""
    write(catalogue, entry(1, [flow("a", tags=["x", "x"])]))
    assert catalogue.page(None, parse_order(""), 0, 1).items[0]["tags"] == ["x", "x"]
    assert counts(catalogue)["tags"] == {"x": 1}
    write(catalogue, entry(1, [], 2))
    assert counts(catalogue)["tags"] == {}


class Clock:
    """Counts how often the catalogue looks at the time while it reads: once in so many steps of SQLite's machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        monkeypatch.setattr("kodo.catalogue.time", self)
        monkeypatch.setattr("kodo.catalogue.STEPS", 20)

    def monotonic(self) -> float:
        self.looks += 1
        return 0.0

    def steps(self, read: Callable[[], object]) -> int:
        """The steps that a read takes."""
        self.looks = 0
        read()
        return self.looks * 20


def publish(catalogue: Catalogue, *entries: Entry) -> None:
    """Write the way a service does, so that the catalogue knows what it holds."""
    with catalogue.writing():
        write(catalogue, *entries)


@pytest.mark.parametrize("column", sorted(set(COLUMNS) - {"registry"}))
@pytest.mark.parametrize("direction", ["a", "d"])
def test_a_page_costs_what_it_shows(
    catalogue: Catalogue, column: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted by a column with an index, the first page walks it: it takes no more steps at 20 times the flows.

    Any page, sorted by any column, takes no more than that once a deep one was asked for.
    """
    order, clock = parse_order(f"{column}:{direction}"), Clock(monkeypatch)
    first = []
    for size in (100, 2000):
        publish(
            catalogue,
            *(
                entry(number, [flow(f"f{number * 7 % 1000}{at}", author=f"a{number}") for at in range(2)], number)
                for number in range(size // 20, size)
            ),
        )
        first.append(clock.steps(lambda: catalogue.page(None, order, 0, 10)))
    if order.keys[0][0] in INDEXED:
        assert first[1] < first[0] * 2 + 200
    catalogue.page(None, order, SHALLOW // 10 + 1, 10)
    for p in (1, 150, 250, 379):
        assert clock.steps(lambda at=p: catalogue.page(None, order, at, 10)) < 1000  # type: ignore[misc]


@pytest.mark.parametrize("q", ['organization == "even"', '@tag("odd")', 'name ~ "f1"', "a1", 'not name == "f1"'])
def test_a_page_of_a_selection_costs_what_it_shows(
    catalogue: Catalogue, q: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a page of a selection was asked for, every other takes as few steps, as long as no row changes."""
    publish(
        catalogue,
        *(
            entry(number, [flow(f"f{number}", author=f"a{number}", tags=[kind])], number, organization=kind)
            for number, kind in enumerate(["even", "odd"] * 1000)
        ),
    )
    select, clock = compile_filter(parse(q)), Clock(monkeypatch)
    evaluated = clock.steps(lambda: catalogue.page(select, parse_order(""), 0, 10))
    for p in (0, 5, 50, 99):
        assert clock.steps(lambda at=p: catalogue.page(select, parse_order(""), at, 10)) < 1000  # type: ignore[misc]
    publish(catalogue, entry(1, None, 3000))
    assert clock.steps(lambda: catalogue.page(select, parse_order(""), 0, 10)) > evaluated / 2


@pytest.mark.parametrize(
    ("q", "walked"),
    [
        ('name < "k"', True),
        ('node ~ "n" & url != "/a"', True),
        ('not @tag("odd")', True),
        ('author < "k"', False),
        ('not (name < "k" | description < "d")', False),
        ('organization != "even"', False),
        ('author ~ "x"', False),
    ],
)
def test_names_are_walked_along_where_they_tell_all_that_is_asked(catalogue: Catalogue, q: str, walked: bool) -> None:
    """A filter that reads more of each flow than the index of names has looks at the flows as they are stored."""
    selected = _selection(compile_filter(parse(q)), parse_order(""))
    params = compile_filter(parse(q)).params | {"registry": URL}
    with catalogue.reading() as db:
        plan = [step[3] for step in db.execute(f"EXPLAIN QUERY PLAN SELECT f.id FROM {selected}", params)]
    assert any("flow_name" in step for step in plan) == walked


def test_an_older_record_leaves_what_is_listed(catalogue: Catalogue) -> None:
    """What another part says of a node, and is not listed, touches no flow that is."""
    write(catalogue, entry(1, [flow("a"), flow("b")], 5))
    statements: list[str] = []
    catalogue._writer.set_trace_callback(statements.append)
    write(catalogue, entry(1, [flow("c")], 1, origin=PEER))
    write(catalogue, entry(1, [flow("d")], 2, origin=PEER))
    assert not [sql for sql in statements if sql.startswith(("INSERT INTO flow", "DELETE FROM flow"))]
    assert names(catalogue) == ["a", "b"]


def test_the_tree_in_pieces(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree as JSON, in however many pieces, is to the letter the one that is built as a whole."""
    monkeypatch.setattr("kodo.catalogue.PIECE", 2)
    parts = tuple(Part(origin, Version(1, "ab", 9), via=via) for origin, via in ((OWN, None), (PEER, PEER)))
    peers = tuple(PeerState(url, f"{url}/", url, connected=True) for url in (PEER, canonical("http://idle:1")))
    for number in range(6):
        assert b"{%s}" % b"".join(catalogue.tree_json()) == orjson.dumps(catalogue.tree())
        more = [entry(number, [flow("ß\n")], number), entry(number + 10, [flow("b")], number, origin=PEER)]
        behalf = entry(number + 20, [], number, via=canonical("http://old:1"))
        write(catalogue, *more, behalf, parts=parts, peers=peers)
    tree = orjson.loads(b"{%s}" % b"".join(catalogue.tree_json()))
    assert {url: len(peer["nodes"]) for url, peer in tree["providers"].items()} == {
        f"{PEER}/": 6,
        "http://idle:1/": 0,
        "http://old:1": 6,
    }
    assert len(tree["nodes"]) == 6


def test_a_read_that_was_held_up_before_it_began_gives_up_too(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read whose time is over before SQLite has done anything is refused as one that takes too long."""
    write(catalogue, entry(1, [flow("a")]))
    monkeypatch.setattr("kodo.catalogue.BRIEF", -1.0)
    monkeypatch.setattr("kodo.catalogue.STEPS", 1)
    with pytest.raises(BusyError):
        catalogue.page(None, parse_order(""), 0, 10, brief=True)


def test_a_brief_read_gives_up(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A brief read that would hold the event loop is refused; the same read without `brief` answers."""
    monkeypatch.setattr("kodo.catalogue.BRIEF", 0.0)
    write(catalogue, *(entry(number, [flow(f"f{at}") for at in range(20)], number) for number in range(300)))
    select = compile_filter(parse('not name ~ "q"'))
    with pytest.raises(BusyError):
        catalogue.page(select, parse_order(""), 0, 10, brief=True)
    assert catalogue.page(select, parse_order(""), 0, 10).filtered == 6000


def test_a_file_is_durable(tmp_path: Path) -> None:
    """The database runs in WAL mode and syncs every commit."""
    catalogue = Catalogue(URL, tmp_path / "c.db")
    modes = [catalogue._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    catalogue.close()
    assert modes == ["wal", 2]


def test_a_search_finds_what_is_indexed_and_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after each commit a search finds what is listed and nothing else, through changes and restarts."""
    monkeypatch.setattr("kodo.listing.UNINDEXED", 5)
    listed: dict[int, str] = {}
    waited: set[int] = set()
    chance = Random(1)
    catalogue = Catalogue(URL, tmp_path / "c.db")
    for at in range(150):
        number = chance.randrange(12)
        listed[number] = chance.choice(["", f"agent{at}", f"robot{at}"])
        write(catalogue, entry(number, [flow(listed[number])] if listed[number] else [], at))
        for word in ("agent", "robot"):
            wanted = sorted(name for name in listed.values() if word in name)
            assert sorted(names(catalogue, f'name ~ "{word}"')) == sorted(names(catalogue, word)) == wanted
        if at % 20 == 0:
            catalogue.close()
            catalogue = Catalogue(URL, tmp_path / "c.db")
        waited.add(unindexed(catalogue))
    assert waited == set(range(5))
    monkeypatch.setattr("kodo.listing.UNINDEXED", 0)
    write(catalogue, entry(1, [flow("last")], 200))
    assert unindexed(catalogue) == 0
    # Raises when the trigrams are not those of the texts.
    catalogue._writer.execute("INSERT INTO trigram (trigram, rank) VALUES ('integrity-check', 1)")
    catalogue.close()


def test_trigrams_of_many_nodes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What many nodes brought is found at once; what searches go by is written piece by piece, also after a restart."""
    monkeypatch.setattr("kodo.listing.AT_ONCE", 400)
    monkeypatch.setattr("kodo.listing.SOME", 500)
    monkeypatch.setattr("kodo.rows.SOME", 10_000)
    catalogue, stage = Catalogue(URL, tmp_path / "c.db"), Stage(PEER, PEER)
    flows = [flow(f"agent {at}") for at in range(10)]
    write(catalogue, staged=tuple((stage, entry(number, flows, origin=PEER)) for number in range(150)))
    write(catalogue, settled=(Settle(stage, whole=True),))
    waits = [1500, 1100, 700, 300]
    for waiting in waits:
        assert (unindexed(catalogue), catalogue.is_behind) == (waiting, waiting > 500)
        assert [total(catalogue, wanted) for wanted in ('name ~ "agent 7"', "agent 7", "nothing")] == [150, 150, 0]
        if catalogue.is_behind:
            catalogue.catch_up()
        catalogue.close()
        catalogue = Catalogue(URL, tmp_path / "c.db")
    write(catalogue, entry(1000, flows, 2))
    assert unindexed(catalogue) == 310
    write(catalogue, *(entry(1001 + number, flows, 3) for number in range(80)))
    assert unindexed(catalogue) < 1000
    monkeypatch.setattr("kodo.listing.SOME", 1)
    while catalogue.is_behind:
        catalogue.catch_up()
    assert unindexed(catalogue) == 0
    catalogue._writer.execute("INSERT INTO trigram (trigram, rank) VALUES ('integrity-check', 1)")
    assert catalogue._writer.execute("SELECT v FROM trigram_config WHERE k = 'automerge'").fetchone() == (8,)
    catalogue.close()


def total(catalogue: Catalogue, q: str) -> int:
    return catalogue.page(compile_filter(parse(q)), parse_order(""), 0, 1).filtered


def unindexed(catalogue: Catalogue) -> int:
    count: int = catalogue._writer.execute("SELECT count(*) FROM unindexed").fetchone()[0]
    return count


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A file that is no catalogue, or another service's, is refused and left as it is."""
    path = tmp_path / "c.db"
    Catalogue("http://other:1", path).close()
    before = path.read_bytes()
    with pytest.raises(CacheError, match="it is that of http"):
        Catalogue(URL, path)
    assert path.read_bytes() == before
    (tmp_path / "text.db").write_text("no database at all, but a text of some length" * 50)
    with pytest.raises(CacheError, match="expected a catalogue"):
        Catalogue(URL, tmp_path / "text.db")


def test_a_registration_costs_what_it_brings(catalogue: Catalogue) -> None:
    """Writing a node takes no more steps of SQLite's machine at 20 times the flows."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 10
        return 0

    costs = []
    for number in (100, 2000):
        write(catalogue, *(entry(at, [flow(f"f{at}", tags=[f"t{at % 9}"])], at) for at in range(number // 20, number)))
        taken = 0
        catalogue._writer.set_progress_handler(count, 10)
        write(catalogue, entry(5000 + number, [flow("new", tags=["t1", "new"])], number))
        catalogue._writer.set_progress_handler(None, 0)
        costs.append(taken)
    assert costs[1] < costs[0] * 2 + 200
