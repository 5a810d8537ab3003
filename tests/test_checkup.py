"""Whether a cache is intact is found out while a service loads."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kodo.cache import Cache, Owner
from kodo.checkup import Checkup, begin_checkup, begin_early

OWNER = Owner("http://127.0.0.1:3366")


def cache_at(path: Path) -> Path:
    Cache(OWNER, path).close()
    return path


def broken(path: Path, sql: str) -> Path:
    """Change the stored schema or a row behind SQLite's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(sql)
    return path


def test_an_intact_cache_has_no_fault(tmp_path: Path) -> None:
    """Of a cache that is as it was left, nothing is wrong."""
    assert Checkup(cache_at(tmp_path / "c.db")).fault() is None


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE sqlite_master SET rootpage = 1 WHERE name = 'flow_name'",
        "INSERT INTO record (origin, key, url, status, seq, flows_seq, digest, flows, size, gone)"
        " VALUES ('o', 'k', 'u', 'unknown', 1, 1, '', '{', 0, 0)",
    ],
    ids=["index", "row"],
)
def test_a_fault_is_named_and_the_cache_set_aside(tmp_path: Path, sql: str) -> None:
    """What is wrong with an index or a row is told, and a cache that is opened with such a checkup is set aside."""
    path = broken(cache_at(tmp_path / "c.db"), sql)
    checkup = Checkup(path)
    Cache(OWNER, path, checkup=checkup).close()
    assert list(tmp_path.glob("c.db.set-aside-*"))
    assert Checkup(path).fault() is None


def test_what_is_no_database_is_an_error_of_sqlite(tmp_path: Path) -> None:
    """A checkup of a file that SQLite cannot read raises what SQLite said, to who asks."""
    path = cache_at(tmp_path / "c.db")
    path.write_bytes(path.read_bytes()[:100] + os.urandom(4096))
    with pytest.raises(sqlite3.DatabaseError):
        Checkup(path).fault()


def test_a_checkup_leaves_the_log_of_others_alone(tmp_path: Path) -> None:
    """The log of the database that stands at the path when a checkup ends stays, also if it is another one by then."""
    path = cache_at(tmp_path / "c.db")
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as old:
        old.execute("PRAGMA integrity_check").fetchone()  # as a checkup does, that is overtaken by what follows
        for name in ("c.db", "c.db-wal", "c.db-shm"):
            (tmp_path / name).rename(tmp_path / f"aside-{name}")
        new = Cache(OWNER, path)
        before = (tmp_path / "c.db-wal").stat().st_ino
    assert (tmp_path / "c.db-wal").stat().st_ino == before
    new.close()


def test_only_a_catalogue_is_checked(tmp_path: Path) -> None:
    """Where there is no file, or one of somebody else, no checkup begins."""
    (tmp_path / "notes").write_text("notes")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE a (b)")
    for name in ("none", "notes", "other.db", "."):
        assert begin_checkup(tmp_path / name) is None


def test_the_cache_that_is_named_is_checked_early(tmp_path: Path) -> None:
    """Before the arguments are understood, the one behind `--cache` is taken."""
    path = cache_at(tmp_path / "c.db")
    checkup = begin_early(["--url", "http://127.0.0.1:1", "--cache", str(path), "--no-node"])
    assert checkup is not None
    assert (checkup.path, checkup.fault()) == (path, None)
    assert begin_early(["--cache"]) is None
    assert begin_early(["--url", str(path)]) is None
