"""Whether a cache is intact is found out while a service loads."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from typing import IO, Any

import pytest

from kodo import checkup, opening
from kodo.cache import Cache, Owner
from kodo.checkup import Checkup, Found, begin_early, checkup_of
from kodo.core.instructions import Save
from kodo.core.peers import PeerState
from kodo.models import canonical
from tests.waiting import until

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
    assert Checkup(cache_at(tmp_path / "c.db")).found().fault is None


@pytest.mark.parametrize(("sql", "told"), [(BAD_INDEX, "page"), (BAD_ROW, "flows of a record")], ids=["index", "row"])
def test_a_fault_is_told_and_the_cache_set_aside(tmp_path: Path, sql: str, told: str) -> None:
    """A cache is set aside that has a wrong index or a wrong row, as its early checkup tells."""
    path = broken(cache_at(tmp_path / "c.db"), sql)
    begin_early(["--cache", str(path)])
    assert told in (checkup._early[0].found().fault or "")
    Cache(OWNER, path).close()
    assert list(tmp_path.glob("c.db.set-aside-*"))
    assert Checkup(path).found().fault is None


def test_what_is_no_database_is_an_error_of_sqlite(tmp_path: Path) -> None:
    """A checkup of a file that SQLite cannot read raises what SQLite said, to who asks."""
    path = cache_at(tmp_path / "c.db")
    path.write_bytes(path.read_bytes()[:100] + os.urandom(4096))
    with pytest.raises(sqlite3.DatabaseError):
        Checkup(path).found()


def test_the_early_checkup_of_a_cache_is_taken(tmp_path: Path, early: list[Checkup]) -> None:
    """Whatever its path looks like, a cache that has not changed since is checked once."""
    path = cache_at(tmp_path / "c.db")
    begin_early(["--url", "http://127.0.0.1:1", "--cache", os.path.relpath(path), "--no-node"])
    (begun,) = early
    assert begun.found().fault is None
    assert checkup_of(path) is begun


@pytest.mark.parametrize("change", ["written", "replaced"])
def test_an_early_checkup_vouches_for_nothing_else(tmp_path: Path, early: list[Checkup], change: str) -> None:
    """A cache that was written to, or replaced, since its checkup began is checked again, and set aside if damaged."""
    path, other = cache_at(tmp_path / "c.db"), broken(cache_at(tmp_path / "other.db"), BAD_INDEX)
    begin_early(["--cache", str(path)])
    assert early[0].found().fault is None
    if change == "written":
        broken(path, BAD_INDEX)
    else:
        other.replace(path)
    Cache(OWNER, path).close()
    assert list(tmp_path.glob("c.db.set-aside-*"))


def test_a_checkup_under_way_leaves_sqlite_its_locks(
    tmp_path: Path, early: list[Checkup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that is opened beside its early checkup is locked: another process that looks at it takes no log away."""
    path, reading, opened, find = cache_at(tmp_path / "c.db"), Event(), Event(), checkup._look
    check = opening.check_rows

    def held(path: Path) -> Found:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            db.execute("SELECT * FROM meta").fetchall()
            reading.set()
            opened.wait(10)
            return find(path)

    def checked(*given: Any) -> None:
        check(*given)
        opened.set()

    monkeypatch.setattr(checkup, "_look", held)
    monkeypatch.setattr(opening, "check_rows", checked)
    early.append(Checkup(path))
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


CHILD = """
import os, sys, time
from kodo import checkup

def looked(path, is_over=None):
    here = os.getpid() == parent
    print("here" if here else os.getpid(), flush=True)
    while sys.argv[2] == "long" and not here and not is_over():
        time.sleep(0.01)
    return look(path)

look, checkup._look, parent = checkup._look, looked, os.getpid()
checkup.begin_early(["--cache", sys.argv[1]])
(begun,) = checkup._early
print(begun.found().fault)
begun.wait()
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("alone")
"""
"""A process with one thread begins a checkup early, as `kodo serve` does, and says who looks at the file."""


@contextmanager
def begun_early(path: Path, how: str) -> Iterator[tuple[subprocess.Popen[str], int, IO[str]]]:
    """Such a process, with the pid of the child that looks, and what else it says."""
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path), how], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline()), process.stdout
        finally:
            process.kill()


def test_an_early_checkup_is_done_in_a_child(tmp_path: Path) -> None:
    """What `kodo serve` checks early another process looks at, which leaves nothing behind."""
    with begun_early(cache_at(tmp_path / "c.db"), "once") as (process, child, said):
        assert child != process.pid
        assert said.read().split() == ["None", "alone"]


def test_what_a_child_cannot_tell_is_found_out_here(tmp_path: Path) -> None:
    """Where the child was killed, the process that waits for it looks itself."""
    with begun_early(cache_at(tmp_path / "c.db"), "long") as (_, child, said):
        os.kill(child, signal.SIGKILL)
        assert said.read().split() == ["here", "None", "alone"]


def test_a_child_may_be_forgotten_by_the_system(tmp_path: Path) -> None:
    """Where children leave no word when they end, as a supervisor may have it, what one found is taken all the same."""
    forgetting = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)" + CHILD
    path = cache_at(tmp_path / "c.db")
    said = subprocess.check_output([sys.executable, "-c", forgetting, str(path), "once"], text=True)
    assert said.split()[1:] == ["None", "alone"]


def test_where_there_can_be_no_child_the_check_is_done_here(
    tmp_path: Path, early: list[Checkup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that gives no process, and no more than that, is no reason to check later."""

    def refuse() -> int:
        raise BlockingIOError

    monkeypatch.setattr(checkup, "can_fork", lambda: True)
    monkeypatch.setattr(os, "fork", refuse)
    begin_early(["--cache", str(cache_at(tmp_path / "c.db"))])
    assert early[0].found().fault is None


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """A checkup for which nobody waits any more ends."""
    with begun_early(cache_at(tmp_path / "c.db"), "long") as (process, child, _):
        assert running(child)
        process.kill()
        until(lambda: not running(child), "the child to end")


def running(pid: int) -> bool:
    """Whether there is such a process, which has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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
