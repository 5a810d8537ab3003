"""Whether the file of a catalogue is intact: found out on a thread, while a service is loaded and the file is opened.

SQLite reads all of the file for it, half a second for 100,000 flows, and lets the rest of Python go on. So `kodo serve`
begins with this, and loads what is heavy meanwhile: nothing heavy is imported here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from threading import Thread

MAGIC = b"SQLite format 3\0"
"""What a database begins with (https://sqlite.org/fileformat2.html)."""
APPLICATION_ID = 0x6B6F646F  # "kodo"


class Checkup:
    """The check of one file, which begins with this. It changes nothing, whoever else uses the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: Future[str | None] = Future()
        Thread(target=self._look, name="kodo-checkup", daemon=True).start()

    def fault(self) -> str | None:
        """What is wrong with the file, once it is known; None if nothing is. Raises `sqlite3.Error` if it says that."""
        return self._found.result()

    def _look(self) -> None:
        try:
            self._found.set_result(_fault_of(self.path))
        except Exception as error:  # noqa: BLE001, told to who asks
            self._found.set_exception(error)


def begin_checkup(path: Path) -> Checkup | None:
    """Begin to check the catalogue at this path, if there is one that can be read."""
    try:
        with path.open("rb") as file:
            return Checkup(path) if is_catalogue(file.read(100)) else None
    except OSError:
        return None


def begin_early(arguments: Sequence[str]) -> Checkup | None:
    """Begin with the cache that these arguments name, before they are understood: they may mean another one in the end.

    Who opens the cache compares the paths.
    """
    for flag, value in pairwise(arguments):
        if flag == "--cache":
            return begin_checkup(Path(value))
    return None


def is_catalogue(beginning: bytes) -> bool:
    """Whether a file that begins like this is a catalogue of kodo."""
    return beginning.startswith(MAGIC) and beginning[68:72] == APPLICATION_ID.to_bytes(4, "big")


def _fault_of(path: Path) -> str | None:
    # One that may write would remove the log as it closes, by its name: that of another file, should this one have been
    # set aside and replaced meanwhile.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
        (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            return str(found)
        # Inside a row SQLite does not look.
        damaged = db.execute("SELECT 1 FROM record WHERE NOT json_valid(flows) LIMIT 1").fetchone()
        return "a row is damaged" if damaged else None
