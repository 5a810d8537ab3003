"""The durable state: what is kept, what is set aside, and what is left alone."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from functools import reduce
from operator import xor
from pathlib import Path

import orjson
import pytest

from kodo.cache import ROOM, Cache, Owner
from kodo.checkup import APPLICATION_ID
from kodo.core.instructions import Entry, Parcel, Range, Save, Settle, Stage
from kodo.core.parts import Part
from kodo.core.peers import PeerState
from kodo.errors import CacheError, DamagedCacheError, InUseError
from kodo.models import NOTHING, Flow, Node, Version, canonical, digest
from kodo.opening import SCHEMA_VERSION
from kodo.query import compile_filter, parse, parse_order
from tests.damage import alter, misindex, overwrite

OWNER = Owner("http://self:1", "me", True)
OWN, PEER = canonical(OWNER.url), canonical("http://peer:1")
TIME = "2024-12-25T18:03:12.989989"
FORMS = pytest.mark.parametrize("name", ["c.db", "c.json"])


def entry(number: int) -> Entry:
    flows = {"/a": Flow(url="/a", name=f"flow {number}")}
    node = Node(url=f"http://n{number}:1", flows=flows, created=TIME, modified=TIME, heartbeat=TIME)
    return Entry(OWN, node.key, node, number, number, digest(flows))


def replace_flows(node: Node, flows: dict[str, Flow]) -> Node:
    return node.model_copy(update={"flows": flows})


def save(*numbers: int) -> Save:
    entries = tuple(entry(number) for number in numbers)
    part = Part(OWN, Version(1, "ab", max(numbers)), content=reduce(xor, (entry.content for entry in entries)))
    peer = PeerState(PEER, "http://peer:1", "http://peer:1", feed=True, connected=True)
    return Save(entries=entries, parts=(part,), peers=(peer,))


def written(path: Path, *numbers: int) -> None:
    cache = Cache(OWNER, path)
    with cache.catalogue.writing():
        cache.write(save(*numbers))
        cache.commit()
    cache.close()


def listed(cache: Cache) -> list[str]:
    return [item["name"] for item in cache.catalogue.page(None, parse_order(""), 0, 100).items]


@FORMS
def test_what_was_committed_is_there_again(tmp_path: Path, name: str) -> None:
    """Records, parts and peers are the same after the service is gone and back."""
    written(tmp_path / name, 1, 2)
    cache = Cache(OWNER, tmp_path / name)
    assert listed(cache) == ["flow 1", "flow 2"]
    assert cache.catalogue.parts() == list(save(1, 2).parts)
    assert cache.catalogue.peers() == list(save(1).peers)
    cache.close()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system gives files no room ahead")
def test_commits_find_room_in_the_log(tmp_path: Path) -> None:
    """A commit after another does not make SQLite's log longer, and what a kill leaves is read to its end alone."""
    cache, log = Cache(OWNER, tmp_path / "c.db"), tmp_path / "c.db-wal"
    sizes = []
    for number in range(1, 4):
        with cache.catalogue.writing():
            cache.write(save(number))
            cache.commit()
        sizes.append(log.stat().st_size)
    assert sizes == [sizes[0]] * 3
    assert sizes[0] > ROOM
    for tail in ("", "-wal"):
        shutil.copy(tmp_path / f"c.db{tail}", tmp_path / f"killed.db{tail}")
    killed = Cache(OWNER, tmp_path / "killed.db")
    assert listed(killed) == listed(cache) == ["flow 1", "flow 2", "flow 3"]
    killed.close()
    cache.close()


def test_a_long_answer_without_a_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk takes no answer from a file, that is a refusal with the reason, and the cache goes on."""
    monkeypatch.setattr("kodo.cache.SPOOLED", 1)
    written(tmp_path / "in" / "c.json", 1)
    cache = Cache(OWNER, tmp_path / "in" / "c.json")
    (tmp_path / "in").rename(tmp_path / "out")
    with pytest.raises(CacheError, match="expected room on the disk for so long an answer, but no such file"):
        cache.spool({})
    assert listed(cache) == ["flow 1"]
    (tmp_path / "out").rename(tmp_path / "in")
    cache.spool({}).close()
    cache.close()


@FORMS
def test_what_a_snapshot_took_away_is_still_told(tmp_path: Path, name: str) -> None:
    """The remains of a record, which a service without deltas has yet to hear of, are there again."""
    stage, part = Stage(PEER, PEER), Part(PEER, Version(1, "ab", 2))
    cache = Cache(OWNER, tmp_path / name)
    for at in (1, 2):
        staged = (stage, replace(entry(at), origin=PEER))
        with cache.catalogue.writing():
            cache.write(Save(staged=(staged,), settled=(Settle(stage, whole=True),), parts=(part,)))
            cache.commit()
    cache.close()
    cache = Cache(OWNER, tmp_path / name)
    assert listed(cache) == ["flow 2"]
    told = cache.catalogue.content(Parcel("plain", (Range(PEER, NOTHING, NOTHING),)), 2**20).nodes
    assert [(url, orjson.loads(orjson.dumps(node["flows"])) == {}) for url, node in told.items()] == [
        ("http://n1:1", True),
        ("http://n2:1", False),
    ]
    cache.close()


@FORMS
def test_a_lazy_save_is_written_at_the_end(tmp_path: Path, name: str) -> None:
    """What may wait is written with the next commit, or when the cache is closed."""
    written(tmp_path / name, 1)
    cache = Cache(OWNER, tmp_path / name)
    lazy = PeerState(PEER, "http://peer:1", "http://peer:1", acked=((OWN, Version(1, "ab", 1)),))
    cache.write(Save(peers=(lazy,), lazy=True))
    cache.close()
    cache = Cache(OWNER, tmp_path / name)
    assert cache.catalogue.peers() == [lazy]
    cache.close()


@FORMS
def test_a_failed_step_leaves_nothing(tmp_path: Path, name: str) -> None:
    """What failed before its commit is not written at the end either."""
    written(tmp_path / name, 1)
    cache = Cache(OWNER, tmp_path / name)
    with cache.catalogue.writing():
        cache.write(Save(peers=(PeerState(PEER, "x", "x"),), lazy=True))
        cache.write(save(2))
        cache.rollback()
    cache.close()
    cache = Cache(OWNER, tmp_path / name)
    assert listed(cache) == ["flow 1"]
    assert cache.catalogue.peers() == list(save(1).peers)
    cache.close()


@FORMS
def test_a_cache_in_use(tmp_path: Path, name: str) -> None:
    """A cache that another service holds is an error that touches nothing."""
    cache = Cache(OWNER, tmp_path / name)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InUseError, match="in use"):
        Cache(OWNER, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    cache.close()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file/c.db", "expected a folder for the cache .*/file/c.db, but .*/file is a file; choose another"),
        ("file/x/c.db", "expected a folder for the cache .*/file/x/c.db, but .*/file is a file; choose another"),
        ("/proc/c.db", "expected to make the cache /proc/c.db, but /proc takes no files; choose another"),
    ],
)
def test_a_place_where_no_cache_can_be(tmp_path: Path, place: str, said: str) -> None:
    """A path behind a file, or where none can be made, is told as that, and not as in use."""
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=said):
        Cache(OWNER, tmp_path / place)


def test_a_locked_database_is_not_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An intact cache that cannot be opened for another reason is left where it is."""
    written(tmp_path / "c.db", 1)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0}))
    holder = connect(tmp_path / "c.db", isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN IMMEDIATE")
    holder.execute("INSERT INTO meta VALUES ('x', 'y')")
    with pytest.raises(CacheError, match="locked"):
        Cache(OWNER, tmp_path / "c.db")
    holder.close()
    assert not list(tmp_path.glob("*set-aside*"))


@pytest.mark.parametrize("removed", ["c.db", "c.db-wal"])
def test_a_cache_that_is_removed_while_running(tmp_path: Path, removed: str) -> None:
    """Nothing is acknowledged that went into a file, or its log, which is no longer there."""
    cache = Cache(OWNER, tmp_path / "c.db")
    (tmp_path / removed).unlink()
    with cache.catalogue.writing():
        cache.write(save(1))
        with pytest.raises(CacheError, match="removed"):
            cache.commit()
        cache.rollback()
    cache.close()


@pytest.mark.parametrize("notes", ["my notes", '{"repository": {"url": "http://a"}}'])
@FORMS
def test_reset_keeps_what_is_not_ours(tmp_path: Path, name: str, notes: str) -> None:
    """`reset` replaces a cache, and sets aside a file that was named by mistake."""
    (tmp_path / name).write_text(notes)
    Cache(OWNER, tmp_path / name, reset=True).close()
    (kept,) = tmp_path.glob("*set-aside*")
    assert kept.read_text() == notes
    written(tmp_path / name, 1)
    cache = Cache(OWNER, tmp_path / name, reset=True)
    assert listed(cache) == []
    cache.close()
    assert list(tmp_path.glob("*set-aside*")) == [kept]


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    """A folder as the cache, or a link to itself, is a clear error that touches nothing."""
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(CacheError, match="expected a file"):
        Cache(OWNER, tmp_path / "folder.db")
    (tmp_path / "loop.db").symlink_to(tmp_path / "loop.db")
    with pytest.raises(CacheError, match="expected to open"):
        Cache(OWNER, tmp_path / "loop.db")


def test_a_flipped_bit_in_a_flow_is_noticed(tmp_path: Path) -> None:
    """Flows that are not those of their digest are noticed at the start, and the cache set aside."""
    written(tmp_path / "c.db", 1)
    alter(tmp_path / "c.db", "UPDATE record SET flows = replace(flows, 'flow', 'glow')")
    cache = Cache(OWNER, tmp_path / "c.db")
    assert listed(cache) == []
    cache.close()
    assert list(tmp_path.glob("*set-aside*"))


def test_a_schema_that_is_no_text_is_damage(tmp_path: Path) -> None:
    """A schema with a byte that is no UTF-8 is damage like any other."""
    written(tmp_path / "c.db", 1)
    content = (tmp_path / "c.db").read_bytes()
    (tmp_path / "c.db").write_bytes(content.replace(b"CREATE TABLE tally", b"CREATE TABLE tall\xf9"))
    cache = Cache(OWNER, tmp_path / "c.db")
    assert listed(cache) == []
    cache.close()
    assert list(tmp_path.glob("*set-aside*"))


def test_a_cache_that_lost_its_log_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    """A cache and its log each say so alone: the file knows its schema, and a log without its file is set aside."""
    cache = Cache(OWNER, tmp_path / "c.db")
    with cache.catalogue.writing():
        cache.write(save(1))
        cache.commit()
    shutil.copy(tmp_path / "c.db", tmp_path / "alone.db")
    with closing(sqlite3.connect(tmp_path / "alone.db")) as db:
        assert db.execute("SELECT value FROM meta WHERE name = 'url'").fetchone() == (OWNER.url,)
    shutil.copy(tmp_path / "c.db-wal", tmp_path / "log.db-wal")
    cache.close()
    Cache(OWNER, tmp_path / "log.db").close()
    (kept,) = tmp_path.glob("log.db.set-aside-*-wal")
    assert kept.stat().st_size > 0


def test_a_database_without_a_schema_is_set_aside(tmp_path: Path) -> None:
    """A file that SQLite takes for a database without tables is not what kodo made."""
    with closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as db:
        db.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}")
    Cache(OWNER, tmp_path / "c.db").close()
    assert list(tmp_path.glob("c.db.set-aside-*"))


DAMAGED = ["flow", "flow_text", "flow_name", "tag", "tally", "trigram_data", "record_url", "sqlite_autoindex_record_1"]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_records_are_taken_over_from_a_damaged_cache(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where pages are damaged that hold no records, nothing is lost, and what was damaged is kept."""
    path, known = tmp_path / "c.db", range(1, 40)
    written(path, *known)
    before = Cache(OWNER, path)
    rows = [row for found in before.catalogue.rows([entry(number).key for number in known]).values() for row in found]
    state = before.catalogue.parts(), before.catalogue.peers(), before.catalogue.contents()
    before.close()
    overwrite(path, damaged)
    content = path.read_bytes()
    cache = Cache(OWNER, path)
    found = cache.catalogue.rows([entry(number).key for number in known])
    assert [row for each in found.values() for row in each] == rows
    assert (cache.catalogue.parts(), cache.catalogue.peers(), cache.catalogue.contents()) == state
    assert sorted(listed(cache)) == sorted(f"flow {number}" for number in known)
    look_over(cache)
    cache.close()
    assert any(kept.read_bytes() == content for kept in tmp_path.glob("c.db.set-aside-*"))
    assert "its records are intact" in caplog.text
    caplog.clear()
    Cache(OWNER, path).close()
    assert "set aside" not in caplog.text
    assert not (tmp_path / "c.db.rescued").exists()


def test_a_rescue_that_was_ended_halfway_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that ends when the damaged cache is set aside, and the new one not yet in its place, loses nothing."""
    path, rename = tmp_path / "c.db", Path.rename
    written(path, 1, 2)
    overwrite(path, "flow")

    def killed(self: Path, target: Path) -> Path:
        if target == path:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        Cache(OWNER, path)
    monkeypatch.undo()
    assert not path.exists()
    cache = Cache(OWNER, path)
    assert sorted(listed(cache)) == ["flow 1", "flow 2"]
    cache.close()
    assert not (tmp_path / "c.db.rescued").exists()


@FORMS
def test_no_kill_hides_that_a_cache_was_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A start that ends as soon as a damaged cache has its other name has said so: the next one finds none."""
    path, rename = tmp_path / name, Path.rename
    path.write_bytes(b"no cache")

    def killed(self: Path, target: Path) -> Path:
        rename(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        Cache(OWNER, path)
    monkeypatch.undo()
    assert not path.exists()
    (kept,) = tmp_path.glob(f"{name}.set-aside-*")
    assert f"set aside cache {path} as {kept}" in caplog.text


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "another cache there"])
def test_a_rescue_that_nobody_went_on_with_does_not_come_back(tmp_path: Path, reset: bool) -> None:
    """What a kill left of a rescue is gone once the service began on something else, whoever removes that later."""
    path = tmp_path / "c.db"
    if not reset:
        written(path, 2)
    written(tmp_path / "c.db.rescued", 1)
    Cache(OWNER, path, reset=reset).close()
    path.unlink()
    cache = Cache(OWNER, path)
    assert listed(cache) == []
    cache.close()


def test_what_is_half_made_of_a_damaged_cache_is_no_cache(tmp_path: Path) -> None:
    """What was not made to its end takes nobody's place: whoever removes the damaged cache then begins anew."""
    written(tmp_path / "c.db.rescued", 1)
    (tmp_path / "c.db.rescued-wal").write_bytes(b"half of it")
    cache = Cache(OWNER, tmp_path / "c.db")
    assert listed(cache) == []
    cache.close()


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM record WHERE id = 1",
        "UPDATE record SET url = 'http://n9:1'",
        "UPDATE meta SET value = 'http://x:1'",
    ],
)
def test_records_that_are_not_intact_are_not_taken_over(tmp_path: Path, change: str) -> None:
    """Nothing is taken over of what SQLite can read and kodo did not write."""
    written(tmp_path / "c.db", 1, 2)
    alter(tmp_path / "c.db", change)
    overwrite(tmp_path / "c.db", "flow")
    cache = Cache(OWNER, tmp_path / "c.db")
    assert listed(cache) == []
    assert cache.catalogue.parts() == []
    cache.close()
    assert list(tmp_path.glob("c.db.set-aside-*"))
    assert not (tmp_path / "c.db.rescued").exists()


def test_a_damaged_cache_stays_where_it_is_while_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could be taken over, if there was room for it, is not set aside."""
    written(tmp_path / "c.db", 1, 2)
    overwrite(tmp_path / "c.db", "flow")
    content = (tmp_path / "c.db").read_bytes()

    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("kodo.catalogue.copy_records", full)
        with pytest.raises(CacheError, match="disk is full"):
            Cache(OWNER, tmp_path / "c.db")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["c.db", "c.db.lock"]
    assert (tmp_path / "c.db").read_bytes() == content
    cache = Cache(OWNER, tmp_path / "c.db")
    assert listed(cache) == ["flow 1", "flow 2"]
    cache.close()


@pytest.mark.parametrize("change", ["DROP INDEX flow_name", "ALTER TABLE flow RENAME COLUMN author TO autho2"])
def test_a_cache_with_other_tables_is_set_aside(tmp_path: Path, change: str) -> None:
    """A file whose tables are not those that kodo makes would fail, or answer otherwise, with some request later."""
    written(tmp_path / "c.db", 1)
    alter(tmp_path / "c.db", change)
    Cache(OWNER, tmp_path / "c.db").close()
    assert list(tmp_path.glob("c.db.set-aside-*"))


OLDER = {
    4: "CREATE TABLE staged (a)",
    3: "CREATE INDEX flow_node ON flow (node, url); DROP INDEX record_url; DROP INDEX record_organization;"
    "CREATE INDEX record_organization ON record (organization, url) WHERE listed; UPDATE record SET size = 2;"
    "DELETE FROM trigram_config WHERE k = 'automerge'",
}
"""What a version differs in from the one after it."""


@pytest.mark.parametrize("version", OLDER)
def test_a_cache_of_an_older_version_is_taken_over(tmp_path: Path, version: int) -> None:
    """What an older kodo acknowledged is listed by this one, from a cache that is then of this one's form."""
    written(tmp_path / "c.db", 1, 2)
    with closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as db:
        for each, difference in OLDER.items():
            db.executescript(difference if each >= version else "")
        db.execute(f"PRAGMA user_version = {version}")
    for _ in range(2):
        cache = Cache(OWNER, tmp_path / "c.db")
        assert listed(cache) == ["flow 1", "flow 2"]
        assert orjson.loads(cache.catalogue.counts_json())["node"] == {"http://n1:1": 1, "http://n2:1": 1}
        cache.close()
    assert not list(tmp_path.glob("*set-aside*"))


def killed(folder: Path, *numbers: int) -> tuple[Path, list[int]]:
    """A cache as a kill leaves it after these commits, and where in its log each of them ends."""
    cache, ends = Cache(OWNER, folder / "c.db"), []
    for number in numbers:
        with cache.catalogue.writing():
            cache.write(save(number))
            cache.commit()
        ends.append(len((folder / "c.db-wal").read_bytes().rstrip(b"\0")))
    for tail in ("", "-wal"):
        shutil.copy(folder / f"c.db{tail}", folder / f"killed.db{tail}")
    cache.close()
    return folder / "killed.db", ends


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(("place", "left"), [("second commit", ["flow 1"]), ("salt of the log", [])])
def test_what_is_behind_damage_in_the_log_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, left: list[str]
) -> None:
    """SQLite leaves out all that stands behind damage in its log: that is said, and the log can be looked at."""
    path, ends = killed(tmp_path, 1, 2, 3, 4)
    flip(path.with_name("killed.db-wal"), 16 if place == "salt of the log" else ends[1] - 1)
    damaged = path.with_name("killed.db-wal").read_bytes()
    cache = Cache(OWNER, path)
    assert listed(cache) == left
    with cache.catalogue.writing():
        cache.write(save(5))
        cache.commit()
    cache.close()
    (kept,) = tmp_path.glob("killed.db-wal.set-aside-*")
    assert kept.read_bytes() == damaged
    assert "commits in the log" in caplog.text
    caplog.clear()
    cache = Cache(OWNER, path)
    assert listed(cache) == [*left, "flow 5"]
    assert "commits in the log" not in caplog.text
    cache.close()


def test_a_whole_log_leaves_nothing_behind(tmp_path: Path) -> None:
    """What a kill leaves is taken up, and no second file of it stays."""
    path, _ = killed(tmp_path, 1, 2)
    cache = Cache(OWNER, path)
    assert listed(cache) == ["flow 1", "flow 2"]
    cache.close()
    assert not list(tmp_path.glob("*set-aside*"))


def test_what_people_add_to_a_cache_stays(tmp_path: Path) -> None:
    """Statistics for SQLite, or an index for a question of one's own, are no damage."""
    written(tmp_path / "c.db", 1)
    with closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as db:
        db.executescript("CREATE INDEX mine ON flow (author); ANALYZE")
    cache = Cache(OWNER, tmp_path / "c.db")
    assert listed(cache) == ["flow 1"]
    cache.close()


def test_a_log_whose_last_commit_is_incomplete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A power cut may leave a part of the last commit, which nobody was told of: all before it is there."""
    path, ends = killed(tmp_path, 1, 2, 3)
    flip(path.with_name("killed.db-wal"), ends[2] - 1)
    cache = Cache(OWNER, path)
    assert listed(cache) == ["flow 1", "flow 2"]
    assert "the last commit in the log" in caplog.text
    assert list(tmp_path.glob("killed.db-wal.set-aside-*"))
    cache.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE flow SET author = 'somebody'",
        "UPDATE flow SET tags = '[\"a'",
        "UPDATE flow_text SET name = 'another'",
        "DELETE FROM flow WHERE name = 'flow 2'",
        "DELETE FROM flow_text",
        "INSERT INTO tag VALUES ('news', 1)",
        "UPDATE tally SET flows = 7",
    ],
)
def test_what_is_listed_is_written_anew_from_the_records(tmp_path: Path, damage: str) -> None:
    """What was damaged where SQLite does not look is found by looking it over, and is as it was when written anew."""
    written(tmp_path / "c.db", 1, 2)
    alter(tmp_path / "c.db", damage)
    cache = found_and_mended(tmp_path / "c.db")
    assert listed(cache) == ["flow 1", "flow 2"]
    found = cache.catalogue.page(compile_filter(parse('name ~ "flow 2"')), parse_order(""), 0, 9)
    assert (found.total, found.filtered) == (2, 1)
    cache.close()


@pytest.mark.parametrize(("index", "columns"), [("flow_name", "name, node, url"), ("flow_record", "record, url")])
def test_a_wrong_index_of_flows_is_written_anew(tmp_path: Path, index: str, columns: str) -> None:
    """An index of flows that holds something else than they do is found by looking it over, and made anew."""
    path, other = tmp_path / "c.db", columns.replace("url", "author")
    written(path, 1, 2)
    misindex(path, index, columns, other)
    found_and_mended(path).close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_damage_that_a_write_meets_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was written before a commit that meets damage is written again, once all is listed anew."""
    path, other = tmp_path / "c.db", "http://other:1"
    written(path, 1, 2)
    misindex(path, "flow_name", "(name, node, url)", "(author, node, url)")
    cache, joined = Cache(OWNER, path), PeerState(canonical(other), other, other, connected=True)
    with cache.catalogue.writing():
        cache.write(Save(peers=(joined,)))
        cache.write(save(3))
        moved = entry(1)
        flows = {"/a": Flow(url="/a", name="moved")}
        cache.write(Save(entries=(replace(moved, node=replace_flows(moved.node, flows), digest=digest(flows)),)))
        cache.commit()
    assert "listed anew" in caplog.text
    look_over(cache)
    cache.close()
    cache = Cache(OWNER, path)
    assert listed(cache) == ["flow 2", "flow 3", "moved"]
    assert {peer.url for peer in cache.catalogue.peers()} == {"http://peer:1", other}
    cache.close()


def test_a_damaged_row_that_a_write_meets_is_listed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A node whose listed tags are no JSON any more can change its flows."""
    path, moved = tmp_path / "c.db", entry(1)
    written(path, 1, 2)
    assert alter(path, "UPDATE flow SET tags = '[' WHERE name = 'flow 1'")
    cache, flows = Cache(OWNER, path), {"/a": Flow(url="/a", name="moved")}
    with cache.catalogue.writing():
        cache.write(Save(entries=(replace(moved, node=replace_flows(moved.node, flows), digest=digest(flows)),)))
        cache.commit()
    assert "listed anew" in caplog.text
    assert listed(cache) == ["flow 2", "moved"]
    look_over(cache)
    cache.close()


@pytest.mark.parametrize(("table", "key"), [("part", "origin"), ("peer", "key")])
def test_a_row_under_another_key_is_noticed(tmp_path: Path, table: str, key: str) -> None:
    """A part or a peer whose key is not its own would be there twice after its next change: the cache is set aside."""
    written(tmp_path / "c.db", 1)
    changed = alter(tmp_path / "c.db", f"UPDATE {table} SET {key} = replace({key}, 'http', 'httq')")
    assert changed
    Cache(OWNER, tmp_path / "c.db").close()
    assert list(tmp_path.glob("c.db.set-aside-*"))


def test_trigrams_that_are_damaged_cost_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What searches go by follows from the records: it is written anew where it cannot be read at all."""
    monkeypatch.setattr("kodo.listing.SOME", 1)
    written(tmp_path / "c.db", 1, 2)
    cache = Cache(OWNER, tmp_path / "c.db")
    cache.catch_up()
    cache.close()
    assert alter(tmp_path / "c.db", "UPDATE trigram_data SET block = substr(block, 1, 5) WHERE id > 10")
    cache = Cache(OWNER, tmp_path / "c.db")
    assert "written anew" in caplog.text
    cache.catch_up()
    found = cache.catalogue.page(compile_filter(parse('name ~ "flow"')), parse_order(""), 0, 9)
    assert (found.total, found.filtered) == (2, 2)
    cache.close()
    assert not list(tmp_path.glob("*set-aside*"))


def test_a_start_that_was_killed_leaves_no_log_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a start keeps of the log, until it is known to be whole, is taken over by the next one."""
    path, _ = killed(tmp_path, 1, 2)

    def kill(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("kodo.opening._check_log", kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            Cache(OWNER, path)
    assert len(list(tmp_path.glob("killed.db-wal*"))) == 2
    cache = Cache(OWNER, path)
    assert listed(cache) == ["flow 1", "flow 2"]
    cache.close()
    assert not list(tmp_path.glob("killed.db-wal*"))


def test_a_listing_that_could_not_be_written_anew_is_as_before(tmp_path: Path) -> None:
    """After a failure that SQLite rolls back by itself, what follows is counted and searched as if it had not been."""
    cache = Cache(OWNER, tmp_path / "c.db")
    with cache.catalogue.writing():
        cache.write(save(1, 2))
        cache.commit()
    with cache.catalogue.writing():
        cache.catalogue.list_anew()
        cache.catalogue._writer.execute("ROLLBACK")
        cache.catalogue.rollback()
    with cache.catalogue.writing():
        cache.write(save(3))
        cache.commit()
    look_over(cache)
    found = cache.catalogue.page(compile_filter(parse('name ~ "flow"')), parse_order(""), 0, 9)
    assert (found.total, found.filtered) == (3, 3)
    cache.close()


def found_and_mended(path: Path) -> Cache:
    """The cache, whose damage was found by looking it over, and is mended by listing all anew."""
    cache = Cache(OWNER, path)
    with pytest.raises(DamagedCacheError):
        look_over(cache)
    with cache.catalogue.writing():
        cache.catalogue.list_anew()
        cache.commit()
    look_over(cache)
    return cache


def look_over(cache: Cache) -> None:
    last: int | None = 0
    while last is not None:
        last = cache.catalogue.look_over(last)


def test_a_cache_that_somebody_holds_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be written to is an error of the family."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0}))
    cache = Cache(OWNER, tmp_path / "c.db")
    with closing(connect(tmp_path / "c.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with cache.catalogue.writing(), pytest.raises(CacheError, match="locked"):
            cache.write(save(1))
    cache.close()


@pytest.mark.parametrize("table", ["part", "peer"])
def test_a_damaged_row_is_noticed(tmp_path: Path, table: str) -> None:
    """A row that is damaged where SQLite does not look is noticed at the start, and the cache set aside."""
    written(tmp_path / "c.db", 1)
    db = sqlite3.connect(tmp_path / "c.db")
    db.execute(f"UPDATE {table} SET state = replace(state, '\"', '#')")
    db.commit()
    db.close()
    cache = Cache(OWNER, tmp_path / "c.db")
    assert listed(cache) == []
    cache.close()
    assert list(tmp_path.glob("*set-aside*"))
