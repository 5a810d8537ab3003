"""The lifetime contract in real kernels: however one ends, nothing of a lab is left, and no neighbour is touched."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from kodo.lab import MeshLab
from tests.test_guardian import alive, gone

LAB = """
import json, time
from kodo.lab import MeshLab
lab = MeshLab()
first, second = lab.add_registry(), lab.add_registry()
if {paused}:
    second.pause()
pids = [*(member.pid for member in lab), lab.engine._process.pid]
print(json.dumps({{"pids": pids, "folder": str(lab.folder)}}), flush=True)
"""


class Kernel:
    """A kernel, as a notebook or nbval has one."""

    def __init__(self) -> None:
        self.manager = KernelManager()
        assert self.manager.kernel_spec is not None
        self.manager.kernel_spec.argv[0] = sys.executable
        self.manager.start_kernel()
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, heard: Callable[[str], object] = str) -> dict[str, Any]:
        """Run a cell, and hear each text that it prints as it comes: the last message of its answer."""

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                heard(message["content"]["text"])

        answer: dict[str, Any] = self.client.execute_interactive(code, output_hook=hear, timeout=60)["content"]
        return answer

    def lab(self, *, paused: bool) -> tuple[list[int], Path]:
        """Start a lab of two registries: the pids of all that belongs to it, and its folder."""
        said: list[str] = []
        answer = self.run(LAB.format(paused=paused), said.append)
        assert answer["status"] == "ok", answer
        told = json.loads("".join(said))
        return told["pids"], Path(told["folder"])

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)  # type: ignore[union-attr, attr-defined]

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    started = Kernel()
    yield started
    started.close()


@pytest.fixture
def neighbour(lab: MeshLab) -> Iterator[MeshLab]:
    """Another lab on this machine, which is there before and after."""
    lab.add_registry()
    before = repr(lab)
    yield lab
    assert repr(lab) == before
    assert lab["registry1"].status()["idle"]


ENDS: dict[str, Callable[[Kernel], object]] = {
    "a restart": lambda kernel: kernel.manager.restart_kernel(now=True),
    "a request to end": lambda kernel: kernel.manager.shutdown_kernel(now=False),
    "the end of nbval": lambda kernel: kernel.manager.shutdown_kernel(now=True),
    "SIGKILL": lambda kernel: os.kill(kernel.pid, signal.SIGKILL),
    "an error": lambda kernel: kernel.run("with lab:\n    1 / 0"),
}


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
@pytest.mark.parametrize("end", ENDS)
def test_nothing_of_a_lab_is_left(kernel: Kernel, neighbour: MeshLab, end: str, paused: bool) -> None:
    """After a restart, any end of the kernel, or an error in a with block, also when a member is paused."""
    pids, folder = kernel.lab(paused=paused)
    ENDS[end](kernel)
    gone(pids)
    assert not folder.exists()


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_an_interrupt_leaves_the_lab_as_it_is(kernel: Kernel, neighbour: MeshLab, paused: bool) -> None:
    """The interrupt ends the cell and no member; the end of the kernel is still that of the lab."""
    pids, _ = kernel.lab(paused=paused)
    answer = kernel.run("print('now', flush=True); time.sleep(60)", lambda _: kernel.manager.interrupt_kernel())
    assert answer["ename"] == "KeyboardInterrupt"
    assert all(map(alive, pids))
    said: list[str] = []
    kernel.run("print(lab, flush=True)", said.append)
    assert "".join(said) == "<MeshLab 2 registries: running>\n" if not paused else "paused" in "".join(said)
    kernel.close()
    gone(pids)


WAITS = """
from kodo.errors import LabError
lab = MeshLab()
first = lab.add_registry()
second = lab.add_registry(connect=first)
lab.settle()
second.pause()
try:
    lab.settle(timeout=1)
except LabError:
    pass
"""


def test_a_wait_says_what_it_waits_for(kernel: Kernel) -> None:
    """A cell that waits has one line, the same when saved however long that takes, and live it says what is missing."""
    shown: list[dict[str, Any]] = []
    said: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "display_data":
            shown.append(content["data"])
        elif message["msg_type"] == "comm_msg" and "value" in content["data"].get("state", {}):
            said.append(content["data"]["state"]["value"])

    kernel.run("from kodo.lab import MeshLab")
    kernel.client.execute_interactive(WAITS, output_hook=hear, timeout=60)
    (line,) = shown
    assert line["text/plain"] == "settling the mesh"
    assert line["text/html"].count("settling the mesh") == 1
    assert "application/vnd.jupyter.widget-view+json" in line
    assert any("settled in" in text for text in said)
    assert any("registry2 is paused" in text for text in said)
    assert "gave up" in said[-1]
