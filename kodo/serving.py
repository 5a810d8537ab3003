"""The short way into `kodo serve`, which loads a service and nothing of the command.

The command (`kodo.cli`) takes a tenth of a start to load. So flags about which there is no doubt are read here, and
anything else, help and mistakes among them, is left to the command, which then comes to `serve` too.
"""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from kodo.options import Options, load_options

TURN = 0.001
"""Seconds for which a thread goes on while others wait for the interpreter. The event loop waits for a turn of each
that is busy, the writer's, a reader's, a parser's: of 5 ms each, Python's default, that was up to 28 ms."""
GARBAGE = (5000, 20, 20)
"""How many new objects are looked through for garbage at once, and how often those that stayed; see `gc`. Of 700, the
default, all that is not frozen was looked through thirty times while a registry joined, 7 to 15 ms each time."""


def plain_flags(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The options that these flags give, each once; None when the command has to tell."""
    flags = {f"--{name.replace('_', '-')}": name for name in Options.model_fields}
    given: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        name = flags.get(flag) or flags.get(flag.replace("--no-", "--", 1))
        if name is None or name in given:
            return None
        if Options.model_fields[name].annotation is bool:
            given[name] = flag in flags
            doubtful = bool(equals)
        else:
            given[name] = value = value if equals else next(words, "-")
            doubtful = value.startswith("-") or flag not in flags
        if doubtful:
            return None
    return given


def serve(given: dict[str, Any], ready: Callable[[], object] = lambda: None) -> None:
    """Run a service with these options, as `run_service` does, in a process that does nothing else.

    `ready` is called on its event loop, when it answers.
    """
    options = load_options(**given)
    from kodo.service import node  # noqa: PLC0415, the service is heavy, and options may be wrong

    be_interruptible()

    def begun(_: object) -> None:
        # Garbage is looked for from now on, but not in what is there: it stays, and looking through it holds the loop.
        gc.freeze()
        gc.set_threshold(*GARBAGE)
        gc.enable()
        sys.setswitchinterval(TURN)
        ready()

    _open_many_files()
    with node.told_once(options), _temporary_files_beside(options.cache_path):
        node.begin(options, begun)


def be_interruptible() -> None:
    """From here on Ctrl-C raises `KeyboardInterrupt`; until then, while this process loaded, it ended it at once."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _temporary_files_beside(path: Path) -> Iterator[None]:
    """Let SQLite keep its temporary files in the folder of the cache, which has the room: /tmp may be memory.

    That is a setting of the whole process (https://sqlite.org/pragma.html#pragma_temp_store_directory), made before
    there are threads that use it. Its own, SQLITE_TMPDIR, SQLite reads when it is loaded.
    """
    if "SQLITE_TMPDIR" in os.environ:
        yield
        return
    # Its own folder is made when it is opened.
    folder = next(each for each in path.absolute().parents if each.is_dir())
    with closing(sqlite3.connect(":memory:")) as db:
        with suppress(sqlite3.OperationalError):  # nothing can be written there, which who opens it will tell
            db.execute("PRAGMA temp_store_directory = '{}'".format(str(folder).replace("'", "''")))
        try:
            yield
        finally:
            db.execute("PRAGMA temp_store_directory = ''")


def _open_many_files() -> None:
    """As many as the system allows: a connection is a file, and 1,024, the usual bound, are soon gone."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415, not everywhere

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
