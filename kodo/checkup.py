"""Whether the file of a catalogue is intact: found out while a service is loaded, and the file is opened.

```
 kodo serve --> child process: look --------------> Found --+
       |                                                    +--> Catalogue, under the lock of the cache
       +------> all that a service loads -------------------+    (if nothing has changed there since)
```

SQLite reads all of the file for it, a third of a second for 100,000 flows. Inside of rows it does not look: what each
record holds is compared with what stands for it, in Python, a fifth of that. So `kodo serve` begins with this, in a
process of its own, and loads what is heavy meanwhile: nothing heavy is imported here. Elsewhere, in a process with
threads, which cannot be forked, and where a child found no answer, it is done on a thread.

SQLite does not tell how much of its log it leaves out, which is all from the first damaged place: `commits_in_log` is
to be compared with what it took.

A process that closes a file loses all its locks on it, SQLite's too, whoever of its threads holds them
(https://sqlite.org/howtocorrupt.html, 2.2). So a file that SQLite may have open in this process is read past SQLite by
`beginning_of` alone, which waits for the check.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count, pairwise
from pathlib import Path

from kodo.digests import digest_of, fingerprint
from kodo.forks import can_fork

MAGIC = b"SQLite format 3\0"
"""What a database begins with (https://sqlite.org/fileformat2.html)."""
APPLICATION_ID = 0x6B6F646F  # "kodo"
CACHE = 8_000
"""KiB of pages that SQLite keeps meanwhile, four times what it would: entries of indexes are looked up all over."""
_HEADER = 100
_LOG_HEADER, _FRAME_HEADER = 32, 24
_CHECKS = ("quick_check(1)", "integrity_check(record)")
"""All pages, and whether the indexes of records agree with them. To compare those of flows takes as long as both, and
what is listed is written anew from the records where the running service finds it wrong (`Catalogue.look_over`)."""
_STEPS = 100_000
"""Steps of SQLite's machine between looks whether there is still somebody who waits."""
_CONTENT = "key, seq, url, organization, created, modified, heartbeat, status, digest"
"""What `kodo.core.parts.Row.content` stands for, in its order."""
_early: list[Checkup] = []


@dataclass(frozen=True, slots=True)
class Found:
    """What is wrong with a file, if anything is; if nothing, what the records of each part in it come to."""

    fault: str | None
    contents: dict[str, int]


class Checkup:
    """The check of one database, which begins with this. It changes nothing, whoever else uses the file."""

    def __init__(self, path: Path, *, early: bool = False) -> None:
        """`early`: nothing of this process is needed there yet, so that a child may do it."""
        self._path = path
        self._state = _state(path)
        self._found: Future[Found] = Future()
        child = _Child.begun(path) if early else None
        self._thread = threading.Thread(target=self._look, args=[child], name="kodo-checkup", daemon=True)
        self._thread.start()

    def is_about(self, path: Path) -> bool:
        """Whether that is the file which was checked, as it was then."""
        return self._state == _state(path)

    def wait(self) -> None:
        """Wait until it has let go of the file."""
        self._thread.join()

    def found(self) -> Found:
        """What was found, once it is known. Raises `sqlite3.Error` if SQLite cannot read the file."""
        return self._found.result()

    def _look(self, child: _Child | None) -> None:
        try:
            told = None if child is None else child.found()
            self._found.set_result(told or _look(self._path))
        except Exception as error:  # noqa: BLE001, told to who asks
            self._found.set_exception(error)


class _Child:
    """A process that looks at a database, and ends with its parent."""

    def __init__(self, pid: int, pipe: int) -> None:
        self._pid = pid
        self._pipe = pipe

    @classmethod
    def begun(cls, path: Path) -> _Child | None:
        """None where there can be none: one of a process with threads would have their locks, and not them."""
        if not can_fork():
            return None
        parent = os.getpid()
        pipe, told = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(pipe)
            os.close(told)
            return None
        if pid:
            os.close(told)
            return cls(pid, pipe)
        try:
            os.close(pipe)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            found = _look(path, lambda: os.getppid() != parent)
            with open(told, "w") as file:  # noqa: PTH123, a pipe
                json.dump(asdict(found), file)
        finally:
            # Whatever happened is found out by the parent again, and told by it.
            os._exit(0)

    def found(self) -> Found | None:
        """What it found, once it has ended; None if it could not tell."""
        with open(self._pipe) as file:  # noqa: PTH123, a pipe
            told = file.read()
        with suppress(ChildProcessError):  # where the system is told to forget children
            os.waitpid(self._pid, 0)
        with suppress(ValueError):
            return Found(**json.loads(told))
        return None


def begin_early(arguments: Sequence[str]) -> None:
    """Begin with the cache that these arguments name, before they are understood, if it is a catalogue."""
    if {"--reset", "--no-registry"} & set(arguments):
        return
    for flag, value in pairwise(arguments):
        if flag == "--cache":
            path = Path(value)
            with suppress(OSError):  # told by who opens it
                if path.is_file() and is_catalogue(beginning_of(path)):
                    _early.append(Checkup(path, early=True))
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


def has_log(path: Path) -> bool:
    """Whether there is something in SQLite's log of this database."""
    log_file = log_of(path)
    return log_file.exists() and log_file.stat().st_size > 0


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
            log.seek(size, os.SEEK_CUR)
    return found


def _state(path: Path) -> list[tuple[int, ...]]:
    """Which file stands there, and what would be another with anything that is written to it or its log."""
    found = path.stat()
    log = log_of(path)
    logged = log.stat() if log.exists() else None
    state: list[tuple[int, ...]] = [(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)]
    # A log without content may come and go with who reads.
    return [*state, (logged.st_ino, logged.st_size, logged.st_mtime_ns)] if logged and logged.st_size else state


def _look(path: Path, is_over: Callable[[], bool] = lambda: False) -> Found:
    """Look at a database, until it `is_over`, which is an error."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
        db.set_progress_handler(is_over, _STEPS)
        db.execute(f"PRAGMA cache_size = -{CACHE}")
        for check in _CHECKS:
            (said, *_) = db.execute(f"PRAGMA {check}").fetchone()
            if said != "ok":
                return Found(str(said), {})
        try:
            return Found(None, contents_of(db))
        except ValueError as error:
            return Found(str(error), {})


def contents_of(db: sqlite3.Connection) -> dict[str, int]:
    """What the records of each part come to.

    Raises `ValueError` when the flows of a record are not those that it had when it was written.
    """
    contents: dict[str, int] = {}
    for flows, origin, gone, *said in db.execute(f"SELECT CAST(flows AS BLOB), origin, gone, {_CONTENT} FROM record"):
        if not _as_written(flows, said[-1]):
            raise ValueError("the flows of a record are not as they were written")
        if not gone:
            contents[origin] = contents.get(origin, 0) ^ fingerprint(*said)
    return contents


def _as_written(flows: bytes | None, digest: str) -> bool:
    """Whether stored flows are those that their digest was made of; who has none may have no digest either."""
    if flows is None:
        return False
    return digest_of(flows) == digest if digest else flows == b"{}"
