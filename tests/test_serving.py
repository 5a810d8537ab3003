"""What `kodo serve` sets in its process, which does nothing else."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kodo.__main__ import main
from kodo.errors import DamagedCacheError
from kodo.service.node import _is_no_last_word
from kodo.serving import GARBAGE, TURN

TUNED = """
import gc, json, sqlite3, sys
from contextlib import closing
from kodo.serving import serve
from kodo.service import node

def end():
    print(json.dumps([sys.getswitchinterval(), gc.get_threshold(), gc.isenabled(), gc.get_freeze_count() > 10_000]))
    with closing(sqlite3.connect(":memory:")) as db:
        print(db.execute("PRAGMA temp_store_directory").fetchone()[0])
    running[0].end()

def ready(options, begun):
    node.run(options, lambda given: (running.append(given), begun(given)))

running = []
node.begin = ready
gc.disable()
serve({"url": "http://127.0.0.1:0", "cache": sys.argv[1]}, end)
"""


def test_a_service_of_its_own_has_short_turns_and_looks_for_garbage_seldom(tmp_path: Path) -> None:
    """Threads take turns of a millisecond, garbage is looked for in what is new, temporary files are by the cache."""
    script = [sys.executable, "-c", TUNED, str(tmp_path / "cache.db")]
    unset = {name: value for name, value in os.environ.items() if name != "SQLITE_TMPDIR"}
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=unset)
    tuned, temporary = done.stdout.splitlines()
    assert json.loads(tuned) == [TURN, list(GARBAGE), True, True]
    assert Path(temporary) == tmp_path


def test_a_service_within_a_process_leaves_it_as_it_is() -> None:
    """`run_service`, whose process belongs to somebody else, changes neither turns nor thresholds."""
    script = """
import gc, sys
from kodo.options import load_options
from kodo.service.node import run
before = sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()
during = []
def ready(running):
    during.append((sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()))
    running.end()
run(load_options(url="http://127.0.0.1:0", registry=False, loader=["a"]), ready)
assert during == [before], (before, during)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(("level", "kept"), [(logging.ERROR, True), (logging.CRITICAL, False)])
def test_only_last_words_are_left_to_the_command(level: int, kept: bool) -> None:
    """A line that names an error is kept, but the one by which a service ends, which the command says itself."""
    record = logging.LogRecord("kodo", level, "", 1, "%s", (DamagedCacheError("a bit"),), None)
    assert _is_no_last_word(record) == kept


@pytest.mark.parametrize("arguments", [["flows"], ["serve"]])
def test_an_interrupt_is_not_lost_while_the_command_loads(arguments: list[str]) -> None:
    """Ctrl-C ends a command that still loads, whatever a library makes of the exception that it else would be."""
    script = """
import os, signal, sys
class Loses:
    def find_spec(self, name, path, target=None):
        if name in {"kodo.cli", "kodo.serving"}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                pass
sys.meta_path.insert(0, Loses())
from kodo.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_a_command_without_its_streams_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stdout and stderr were closed, a service starts all the same."""
    served: list[list[str]] = []
    for name, value in (("stdout", None), ("stderr", None), ("argv", ["kodo", "serve", "--no-node"])):
        monkeypatch.setattr(sys, name, value)
    monkeypatch.setattr("kodo.__main__._serve", served.append)
    main()
    assert served == [["--no-node"]]
