"""What `kodo serve` sets in its process, which does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from kodo.serving import GARBAGE, TURN

TUNED = """
import gc, json, sys
from kodo.serving import serve
from kodo.service import node

def end():
    print(json.dumps([sys.getswitchinterval(), gc.get_threshold(), gc.isenabled(), gc.get_freeze_count() > 10_000]))
    running[0].end()

def ready(options, begun):
    node.run(options, lambda given: (running.append(given), begun(given)))

running = []
node.begin = ready
gc.disable()
serve({"url": "http://127.0.0.1:0", "cache": sys.argv[1]}, end)
"""


def test_a_service_of_its_own_has_short_turns_and_looks_for_garbage_seldom(tmp_path: Path) -> None:
    """From its first answer on, threads take turns of a millisecond, and garbage is looked for in what is new alone."""
    script = [sys.executable, "-c", TUNED, str(tmp_path / "cache.db")]
    told = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == [TURN, list(GARBAGE), True, True]


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
