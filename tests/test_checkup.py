"""Whether a cache is intact is found out while a service loads."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest

from kodo import checkup
from kodo.cache import Cache, Owner
from kodo.catalogue import Catalogue
from kodo.checkup import Checkup, begin_early, checkup_of
from kodo.core.instructions import Save
from kodo.core.peers import PeerState
from kodo.models import canonical

OWNER = Owner("http://127.0.0.1:3366")
LOOK = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM peer').fetchall(); db.close()"


@pytest.fixture(autouse=True)
def early() -> Iterator[list[Checkup]]:
    """The checkups that began early, none before and none after a test."""
    yield checkup._early
    for begun in checkup._early:
        begun.wait()
    checkup._early.clear()


def cache_at(path: Path) -> Path:
    Cache(OWNER, path).close()
    return path


def broken(path: Path, sql: str) -> Path:
    """Change the stored schema or a row behind SQLite's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(sql)
    return path


BAD_INDEX = "UPDATE sqlite_master SET rootpage = 1 WHERE name = 'flow_name'"
BAD_ROW = (
    "INSERT INTO record (origin, key, url, status, seq, flows_seq, digest, flows, size, gone)"
    " VALUES ('o', 'k', 'u', 'unknown', 1, 1, '', '{', 0, 0)"
)


def test_an_intact_cache_has_no_fault(tmp_path: Path) -> None:
    """Of a cache that is as it was left, nothing is wrong."""
    assert Checkup(cache_at(tmp_path / "c.db")).fault() is None


@pytest.mark.parametrize(("sql", "told"), [(BAD_INDEX, True), (BAD_ROW, False)], ids=["index", "row"])
def test_a_fault_is_told_and_the_cache_set_aside(tmp_path: Path, sql: str, told: bool) -> None:
    """A cache is set aside that has a wrong index, which its early checkup tells, or a wrong row, found beside it."""
    path = broken(cache_at(tmp_path / "c.db"), sql)
    begin_early(["--cache", str(path)])
    fault = checkup._early[0].fault()
    assert (fault is not None) == told
    assert fault is None or "row" in fault or "page" in fault
    Cache(OWNER, path).close()
    assert list(tmp_path.glob("c.db.set-aside-*"))
    assert Checkup(path).fault() is None


def test_what_is_no_database_is_an_error_of_sqlite(tmp_path: Path) -> None:
    """A checkup of a file that SQLite cannot read raises what SQLite said, to who asks."""
    path = cache_at(tmp_path / "c.db")
    path.write_bytes(path.read_bytes()[:100] + os.urandom(4096))
    with pytest.raises(sqlite3.DatabaseError):
        Checkup(path).fault()


def test_the_early_checkup_of_a_cache_is_taken(tmp_path: Path, early: list[Checkup]) -> None:
    """Whatever its path looks like, a cache that has not changed since is checked once."""
    path = cache_at(tmp_path / "c.db")
    begin_early(["--url", "http://127.0.0.1:1", "--cache", os.path.relpath(path), "--no-node"])
    (begun,) = early
    assert begun.fault() is None
    assert checkup_of(path) is begun


@pytest.mark.parametrize("change", ["written", "replaced"])
def test_an_early_checkup_vouches_for_nothing_else(tmp_path: Path, early: list[Checkup], change: str) -> None:
    """A cache that was written to, or replaced, since its checkup began is checked again, and set aside if damaged."""
    path, other = cache_at(tmp_path / "c.db"), broken(cache_at(tmp_path / "other.db"), BAD_INDEX)
    begin_early(["--cache", str(path)])
    assert early[0].fault() is None
    if change == "written":
        broken(path, BAD_INDEX)
    else:
        other.replace(path)
    Cache(OWNER, path).close()
    assert list(tmp_path.glob("c.db.set-aside-*"))


def test_a_checkup_under_way_leaves_sqlite_its_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is opened beside its early checkup is locked: another process that looks at it takes no log away."""
    path, reading, opened, find = cache_at(tmp_path / "c.db"), Event(), Event(), checkup._fault_of
    check = Catalogue._check_content

    def held(path: Path) -> str | None:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            db.execute("SELECT * FROM meta").fetchall()
            reading.set()
            opened.wait(10)
            return find(path)

    def checked(catalogue: Catalogue) -> None:
        check(catalogue)
        opened.set()

    monkeypatch.setattr(checkup, "_fault_of", held)
    monkeypatch.setattr(Catalogue, "_check_content", checked)
    begin_early(["--cache", str(path)])
    reading.wait(10)
    cache = Cache(OWNER, path)
    peer = PeerState(canonical("http://p:1"), "http://p:1", "http://p:1")
    with cache.catalogue.writing():
        cache.write(Save(peers=(peer,)))
        cache.commit()
    log = (tmp_path / "c.db-wal").stat().st_ino
    subprocess.run([sys.executable, "-c", LOOK, str(path)], check=True)
    assert (tmp_path / "c.db-wal").stat().st_ino == log
    cache.close()


def test_only_a_catalogue_is_checked_early(tmp_path: Path, early: list[Checkup]) -> None:
    """Where there is no file, one of somebody else, or one that is not to be read, no checkup begins."""
    (tmp_path / "notes").write_text("notes")
    os.mkfifo(tmp_path / "pipe")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE a (b)")
    for name in ("none", "notes", "pipe", "other.db", "."):
        begin_early(["--cache", str(tmp_path / name)])
    path = str(cache_at(tmp_path / "c.db"))
    for words in (["--cache"], ["--url", path], ["--cache", path, "--reset"], ["--no-registry", "--cache", path]):
        begin_early(words)
    assert early == []
