"""Whether the file of a catalogue is intact: found out on a thread, while a service is loaded and the file is opened.

SQLite reads all of the file for it, a third of a second for 100,000 flows, and lets the rest of Python go on. So
`kodo serve` begins with this, and loads what is heavy meanwhile: nothing heavy is imported here. Whoever opens the
cache then, under its lock, takes the check that has begun, if nothing has changed there since. Inside of rows SQLite
does not look: that is for who reads them. Nor does it tell how much of its log it leaves out, which is all from the
first damaged place: `commits_in_log` is to be compared with what it took.

A process that closes a file loses all its locks on it, SQLite's too, whoever of its threads holds them
(https://sqlite.org/howtocorrupt.html, 2.2). So a file that SQLite may have open in this process is read past SQLite by
`beginning_of` alone, which waits for the check.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from datetime import UTC, datetime
from itertools import count, pairwise
from os import SEEK_CUR
from pathlib import Path
from threading import Thread

MAGIC = b"SQLite format 3\0"
"""What a database begins with (https://sqlite.org/fileformat2.html)."""
APPLICATION_ID = 0x6B6F646F  # "kodo"
CACHE = 8_000
"""KiB of pages that SQLite keeps meanwhile, four times what it would: entries of indexes are looked up all over."""
_HEADER = 100
_LOG_HEADER, _FRAME_HEADER = 32, 24
_early: list[Checkup] = []


class Checkup:
    """The check of one database, which begins with this. It changes nothing, whoever else uses the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = _state(path)
        self._found: Future[str | None] = Future()
        self._thread = Thread(target=self._look, name="kodo-checkup", daemon=True)
        self._thread.start()

    def is_about(self, path: Path) -> bool:
        """Whether that is the file which was checked, as it was then."""
        return self._state == _state(path)

    def wait(self) -> None:
        """Wait until it has let go of the file."""
        self._thread.join()

    def fault(self) -> str | None:
        """What is wrong with the file, once it is known; None if nothing is. Raises `sqlite3.Error` if it says that."""
        return self._found.result()

    def _look(self) -> None:
        try:
            self._found.set_result(_fault_of(self._path))
        except Exception as error:  # noqa: BLE001, told to who asks
            self._found.set_exception(error)


def begin_early(arguments: Sequence[str]) -> None:
    """Begin with the cache that these arguments name, before they are understood, if it is a catalogue."""
    if {"--reset", "--no-registry"} & set(arguments):
        return
    for flag, value in pairwise(arguments):
        if flag == "--cache":
            path = Path(value)
            with suppress(OSError):  # told by who opens it
                if path.is_file() and is_catalogue(beginning_of(path)):
                    _early.append(Checkup(path))
            return


def checkup_of(path: Path) -> Checkup | None:
    """The check of the database at this path: the one that began early, or else a new one. None if it is no database.

    To be asked by who has the cache's lock, before SQLite opens the file.
    """
    for checkup in _early:
        if checkup.is_about(path):
            return checkup
    # SQLite would take a short or empty file for a new database, and overwrite it.
    return Checkup(path) if beginning_of(path).startswith(MAGIC) else None


def beginning_of(path: Path) -> bytes:
    """What a file begins with."""
    for checkup in _early:
        checkup.wait()
    with path.open("rb") as file:
        return file.read(_HEADER)


def is_catalogue(beginning: bytes) -> bool:
    """Whether a file that begins like this is a catalogue of kodo."""
    return beginning.startswith(MAGIC) and beginning[68:72] == APPLICATION_ID.to_bytes(4, "big")


def aside(path: Path) -> Path:
    """Under which name beside it a damaged file is kept."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    return path.with_name(f"{path.name}.set-aside-{stamp}")


def log_of(path: Path) -> Path:
    """Where SQLite keeps the log of this database."""
    return path.with_name(f"{path.name}-wal")


def commits_in_log(path: Path, size: int) -> list[int]:
    """Which frames in the log of SQLite at this path, counted from 1, end a commit of the log's present life.

    A frame holds a page of `size` bytes.

    Whether or not they are intact: a frame and the log's header name that life by two salts, and damage in one leaves
    the other (https://sqlite.org/fileformat2.html, 4.1: the first is counted up and the second made anew in each life).
    """
    found: list[int] = []
    with path.open("rb") as log:
        life = log.read(_LOG_HEADER)[16:24]
        for number in count(1):
            frame = log.read(_FRAME_HEADER)
            if len(frame) < _FRAME_HEADER:
                break
            of_this_life = frame[8:12] == life[:4] or frame[12:16] == life[4:]
            if of_this_life and any(frame[4:8]):
                found.append(number)
            log.seek(size, SEEK_CUR)
    return found


def _state(path: Path) -> list[tuple[int, ...]]:
    """Which file stands there, and what would be another with anything that is written to it or its log."""
    found = path.stat()
    log = log_of(path)
    logged = log.stat() if log.exists() else None
    state: list[tuple[int, ...]] = [(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)]
    # A log without content may come and go with who reads.
    return [*state, (logged.st_ino, logged.st_size, logged.st_mtime_ns)] if logged and logged.st_size else state


def _fault_of(path: Path) -> str | None:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
        db.execute(f"PRAGMA cache_size = -{CACHE}")
        (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        return None if found == "ok" else str(found)
