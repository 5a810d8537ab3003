"""The guardian, spoken to over its pipes, and what becomes of members when anything around them dies.

A parent stands in for the kernel where it must die: `PARENT` starts a lab, tells the processes, and waits.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import httpx
import pytest

from kodo.errors import LabError
from kodo.lab import MeshLab
from tests.waiting import until

PARENT = """
    import json, sys
    from kodo.lab import MeshLab
    lab = MeshLab()
    registry = lab.add_registry()
    node = lab.add_node(connect=registry, flows=["mytest"])
    told = {"pids": [registry.pid, node.pid], "guardian": lab.engine._process.pid, "folder": str(lab.folder)}
    print(json.dumps(told), flush=True)
"""
WAIT = "sys.stdin.read()"
THREAD = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
HOLDER = (
    "import socket, threading; pair = socket.socketpair();"
    "threading.Thread(target=pair[0].recv, args=(1,), daemon=True).start()"
)
FORKLESS = "import os; del os.fork"


class Spoken:
    """A guardian under test."""

    def __init__(self, folder: Path, prelude: str = "") -> None:
        """Start it, with a `prelude` that its interpreter runs before anything else, as monitors have theirs run."""
        self.folder = folder
        self.threads = int(prelude == THREAD)
        self.names: set[str] = set()
        self.pauses = False
        order = [sys.executable, "-m", "kodo.guardian", str(os.getpid()), str(folder / "scratch")]
        (folder / "scratch").mkdir()
        (folder / "prelude").mkdir()
        (folder / "prelude/sitecustomize.py").write_text(prelude)
        environment = {**os.environ, "PYTHONPATH": str(folder / "prelude")}
        # Unbuffered: a report that was read ahead would be waited for in vain.
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        with (folder / "guardian.log").open("wb") as log:
            self.process = subprocess.Popen(order, stderr=log, start_new_session=True, env=environment, **pipes)

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()

    def start(self, name: str, loader: Any = None, **options: Any) -> None:
        pickled = None if loader is None else base64.b64encode(cloudpickle.dumps(loader)).decode()
        given = {"url": "http://127.0.0.1:0", "registry": False, **options}
        log = str(self.folder / f"{name}.log")
        self.names.add(name)
        self.tell(start=name, options=given, loader=pickled, log=log, folder=str(self.folder), path=sys.path)

    def clear(self) -> None:
        """Kill the members that a test left, and forget what they said."""
        for name in self.names:
            self.tell(signal="KILL", name=name)
        for _ in self.names:
            assert {"exited", "missing"} & self.hear().keys()
        for name in self.names:
            (self.folder / f"{name}.log").unlink()
        self.names.clear()

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(10)
        assert (self.folder / "guardian.log").read_text() == ""

    def hear(self, seconds: float = 20) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], seconds)[0], "the guardian says nothing"
        report: dict[str, Any] = json.loads(self.process.stdout.readline())
        # That somebody was paused or went on is of interest to one test alone, which looks at all there is.
        return self.hear(seconds) if {"paused", "resumed"} & report.keys() and not self.pauses else report

    def answering(self) -> int:
        """The pid of the member that starts now, when it has answered: from then on it ends in order when told to."""
        report = self.hear()
        assert httpx.get(report["url"], trust_env=False).status_code == 200
        return int(report["pid"])

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture(scope="module", params=["", FORKLESS], ids=["forks", "has no fork"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    spoken = Spoken(tmp_path_factory.mktemp("guardian"), request.param)
    yield spoken
    spoken.close()


@pytest.fixture
def guardian(shared: Spoken) -> Iterator[Spoken]:
    """A guardian without members, for tests that leave it alive."""
    yield shared
    shared.clear()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Spoken]:
    """A guardian of its own, for tests that end it."""
    spoken = Spoken(tmp_path)
    yield spoken
    spoken.close()


@pytest.fixture
def spawning(tmp_path: Path) -> Iterator[Spoken]:
    """The same, one that a fork would tear."""
    spoken = Spoken(tmp_path, THREAD)
    yield spoken
    spoken.close()


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def held_by(pid: int) -> dict[str, str]:
    """What the file descriptors of a process are; those that it closes meanwhile are left out."""
    held = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            held[entry.name] = str(entry.readlink())
    return held


def gone(pids: list[int], within: float = 5) -> None:
    until(lambda: not any(map(alive, pids)), f"{pids} to be gone", timeout=within)


# -- orders and reports ------------------------------------------------------------------------------------


def test_a_member_is_reported_with_its_url_when_it_is_about_to_answer(guardian: Spoken) -> None:
    """The url has the real port, and a question right after the report is answered."""
    guardian.start("one", loader=lambda: ["my flow"])
    report = guardian.hear()
    assert report["started"] == "one"
    answer = httpx.get(report["url"] + "/flows", trust_env=False).json()
    assert [row["name"] for row in answer["items"]] == ["my flow"]
    assert "successfully started node" in guardian.log("one")


def test_a_member_that_ends_is_reaped_and_reported_with_its_code(guardian: Spoken) -> None:
    """Told to end: 0. Killed: minus the signal. Neither leaves a zombie."""
    for name, word, code in (("one", "TERM", 0), ("two", "KILL", -9)):
        guardian.start(name)
        pid = guardian.answering()
        guardian.tell(signal=word, name=name)
        assert guardian.hear() == {"exited": name, "pid": pid, "code": code}
        assert not Path(f"/proc/{pid}").exists()


def test_a_member_that_does_not_start_is_reported_with_its_code(guardian: Spoken) -> None:
    """Its log says why: an option that is none, a loader that raises (with its traceback)."""
    guardian.start("one", nonsense=1)
    assert guardian.hear()["code"] == 1
    assert "OptionError: unknown option 'nonsense'" in guardian.log("one")
    guardian.start("two", loader=lambda: 1 / 0)
    assert guardian.hear()["code"] == 1
    assert "ZeroDivisionError" in guardian.log("two")
    assert "Traceback" in guardian.log("two")
    guardian.start("three", reload=True)
    assert guardian.hear()["exited"] == "three"
    assert "reload: expected false in a lab" in guardian.log("three")


def test_what_a_loader_writes_on_the_pipe_of_its_member_is_no_report(guardian: Spoken) -> None:
    """Whatever it is, the guardian and the member go on."""
    written = b'no report\n{}\n[1]\n7\n"url"\n'
    guardian.start("one", loader=lambda: [f"{os.write(3, written)}"])
    assert guardian.hear()["started"] == "one"


def test_a_paused_member_goes_on_when_it_is_continued(guardian: Spoken) -> None:
    """STOP and CONT reach the member."""
    guardian.start("one")
    report = guardian.hear()
    state = Path(f"/proc/{report['pid']}/stat")
    for word, letters in (("STOP", "T"), ("CONT", "SR")):
        guardian.tell(signal=word, name="one")
        until(lambda: state.read_text().rpartition(")")[2].split()[0] in letters, word)  # noqa: B023
    assert httpx.get(report["url"], trust_env=False).status_code == 200


def test_what_cannot_be_done_is_refused_with_its_reason(guardian: Spoken) -> None:
    """A start by a name that runs already is refused; a signal to who is not there is another matter."""
    guardian.tell(signal="TERM", name="nobody")
    assert guardian.hear() == {"missing": "nobody"}
    guardian.start("one")
    guardian.hear()
    guardian.start("one")
    assert guardian.hear() == {"refused": "one", "reason": "a member of this name is running; terminate it first"}


def test_a_member_holds_nothing_of_the_guardian(guardian: Spoken) -> None:
    """A session of its own, stdin from nowhere, output to its log, and no pipe of the guardian or of a sibling."""
    guardian.start("one")
    guardian.hear()
    guardian.start("two")
    pid = guardian.answering()
    assert os.getsid(pid) == pid
    held = held_by(pid)
    assert (held["0"], held["1"], held["2"]) == ("/dev/null", *[str(guardian.folder / "two.log")] * 2)
    # Pipes 3 and 4 are its own: it reports on the one, and is told its policies on the other.
    foreign = {name for number, name in held.items() if number not in "34"}
    mine = set(held_by(guardian.process.pid).values())
    assert not {name for name in foreign if name in mine and name.startswith(("pipe:", "anon_inode:[pidfd]"))}


def test_the_guardian_has_one_thread_and_no_event_loop(guardian: Spoken) -> None:
    """What would be torn by a fork is not there; and neither numpy nor pandas is loaded, here or in a member."""
    guardian.start("one")
    member = guardian.hear()["pid"]
    assert len(list(Path(f"/proc/{guardian.process.pid}/task").iterdir())) == 1 + guardian.threads
    held = held_by(guardian.process.pid).values()
    assert not [name for name in held if "eventpoll" in name or "socket" in name]
    for pid in (guardian.process.pid, member):
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert "numpy" not in loaded
        assert "pandas" not in loaded


def test_who_is_paused_and_goes_on_is_reported_whoever_did_it(guardian: Spoken) -> None:
    """By an order, and by a signal from elsewhere."""
    guardian.start("one")
    pid = guardian.answering()
    guardian.pauses = True
    guardian.tell(signal="STOP", name="one")
    assert guardian.hear() == {"paused": "one"}
    guardian.tell(signal="CONT", name="one")
    assert guardian.hear() == {"resumed": "one"}
    os.kill(pid, signal.SIGSTOP)
    assert guardian.hear() == {"paused": "one"}
    guardian.pauses = False


def test_policies_are_taken_and_said_to_hold_and_a_paused_member_takes_the_newest(guardian: Spoken) -> None:
    """However many there were meanwhile: more than a pipe holds."""
    guardian.start("one")
    pid = guardian.answering()
    table = {f"http://127.0.0.1:{port}": {"cut": True} for port in range(1, 100)}
    guardian.tell(links=table, name="one", number=1)
    assert guardian.hear() == {"linked": "one", "number": 1}
    os.kill(pid, signal.SIGSTOP)
    for number in range(2, 100):
        guardian.tell(links=table, name="one", number=number)
    guardian.tell(signal="CONT", name="one")
    heard = 0
    while heard < 99:
        heard = guardian.hear()["number"]
    guardian.tell(links=table, name="nobody", number=1)
    assert guardian.hear() == {"missing": "nobody"}


@pytest.mark.parametrize("how", ["end", "SIGTERM"])
def test_the_end_takes_all_members_and_the_scratch_folder(mortal: Spoken, how: str) -> None:
    """Told to, or by SIGTERM; a paused member as well, and no member is killed that can end."""
    mortal.start("one")
    one = mortal.answering()
    mortal.start("two")
    two = mortal.answering()
    os.kill(two, signal.SIGSTOP)
    if how == "end":
        mortal.tell(end=True)
    else:
        mortal.process.terminate()
    assert {(report["pid"], report["code"]) for report in (mortal.hear(), mortal.hear())} == {(one, 0), (two, 0)}
    assert mortal.process.wait(5) == 0
    assert not (mortal.folder / "scratch").exists()


def test_a_member_that_does_not_end_is_killed(mortal: Spoken) -> None:
    """Three seconds after stdin was closed, whatever it does with signals."""

    def stubborn() -> list[str]:
        import signal  # noqa: PLC0415
        import time  # noqa: PLC0415

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf", flush=True)  # noqa: T201
        time.sleep(60)
        return []

    mortal.start("one", loader=stubborn)
    until(lambda: (mortal.folder / "one.log").exists() and "deaf" in mortal.log("one"), "the member to be deaf")
    assert mortal.process.stdin is not None
    mortal.process.stdin.close()
    assert mortal.hear()["code"] == -9
    assert mortal.process.wait(5) == 0


def test_an_interrupt_is_ignored(guardian: Spoken) -> None:
    """SIGINT to the guardian ends neither it nor a member."""
    guardian.start("zero")
    guardian.hear()
    guardian.process.send_signal(signal.SIGINT)
    guardian.start("one")
    assert guardian.hear()["started"] == "one"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the children of a process that was killed")
def test_a_guardian_that_is_killed_takes_its_members(mortal: Spoken) -> None:
    """There is nobody left who could end them."""
    mortal.start("one")
    pid = mortal.hear()["pid"]
    mortal.process.kill()
    mortal.process.wait()
    gone([pid])


def test_a_guardian_that_cannot_fork_takes_its_members_with_it_too(spawning: Spoken) -> None:
    """Members of their own interpreters, one of them paused, are gone when it is told to end."""
    spawning.start("one")
    flows = [f"flow {number}" for number in range(10_000)]  # more than a pipe takes
    spawning.start("two", loader=lambda: flows)
    pids = [spawning.hear()["pid"] for _ in range(2)]
    spawning.tell(signal="STOP", name="one")
    spawning.tell(end=True)
    gone([spawning.process.pid, *pids])


def test_an_interpreter_of_its_own_keeps_what_it_opened(tmp_path: Path) -> None:
    """What a monitor opens as a member's interpreter starts stays open, and is no place for the guardian's pipes."""
    spoken = Spoken(tmp_path, HOLDER)

    def loader() -> list[str]:
        pair = sys.modules["sitecustomize"].pair
        pair[0].send(b"x")
        return [pair[1].recv(1).decode()]

    spoken.start("one", loader=loader)
    report = spoken.hear()
    assert httpx.get(report["url"] + "/flows", trust_env=False).json()["items"][0]["name"] == "x"
    held = held_by(report["pid"])
    mine = {name for number, name in held_by(spoken.process.pid).items() if number not in "012"}
    assert not {name for number, name in held.items() if number not in "34" and name in mine and "pipe:" in name}
    spoken.tell(end=True)
    spoken.close()


def test_where_no_lab_can_be_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is no half support."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(LabError, match=r"expected a POSIX system.*Linux, macOS or in WSL"):
        MeshLab(folder=tmp_path).add_registry()


def test_wrong_arguments_are_an_error_that_says_how_it_is_used() -> None:
    """It is not for people to start."""
    ended = subprocess.run([sys.executable, "-m", "kodo.guardian"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "usage: python -m kodo.guardian PARENT" in ended.stderr


# -- the parent dies ---------------------------------------------------------------------------------------

Begin = Callable[..., tuple[subprocess.Popen[bytes], dict[str, Any]]]


@contextmanager
def parents(first: str, otherwise: str) -> Iterator[Begin]:
    """Start parents that do what stands in `first`, then what they are given: each process, and what it told."""
    started: list[subprocess.Popen[bytes]] = []

    def start(then: str = otherwise) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        code = textwrap.dedent(first) + then
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes)
        started.append(parent)
        assert parent.stdout is not None
        return parent, json.loads(parent.stdout.readline())

    yield start
    for parent in started:
        parent.kill()
        parent.communicate()


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a parent with a lab of two members: the process, in a session of its own, and what it told."""
    with parents(PARENT, WAIT) as start:
        yield start


def all_gone(told: dict[str, Any]) -> None:
    gone([*told["pids"], told["guardian"]])
    assert not Path(told["folder"]).exists()


def test_nothing_is_left_when_the_parent_is_killed(begin: Begin, guardian: Spoken) -> None:
    """SIGKILL to the parent's whole group, as nbval does it, with one member paused; a neighbour goes on."""
    parent, told = begin()
    guardian.start("neighbour")
    neighbour = guardian.answering()
    os.kill(told["pids"][0], signal.SIGSTOP)
    os.killpg(parent.pid, signal.SIGKILL)
    all_gone(told)
    assert alive(neighbour)
    assert alive(guardian.process.pid)


def test_nothing_is_left_when_a_child_of_the_parent_still_holds_the_pipe(begin: Begin) -> None:
    """The pipe alone would never end: a process forked from the parent has its other side."""
    parent, told = begin("import os, time\nif not os.fork(): print('forked', flush=True); time.sleep(30)\n" + WAIT)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"forked\n"
    parent.kill()
    parent.wait()
    all_gone(told)
    os.killpg(parent.pid, signal.SIGKILL)


def test_an_interrupt_of_the_parents_group_ends_no_member(begin: Begin) -> None:
    """The interrupt button signals the group of the kernel; members are in none of its groups."""
    code = "try:\n    print('waiting', flush=True)\n    sys.stdin.read()\nexcept KeyboardInterrupt:\n"
    code += "    print(lab, flush=True)\n" + WAIT
    parent, told = begin(code)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"waiting\n"
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.stdout.readline() == b"<MeshLab 1 registry, 1 node: running>\n"
    assert all(map(alive, told["pids"]))


def test_nothing_is_left_when_the_parent_ends_by_itself(begin: Begin) -> None:
    """The end of the interpreter is the end of its labs, but not that of a process that was forked from it."""
    parent, told = begin("import os\nif os.fork(): os.wait(); print(lab, flush=True); sys.stdin.read()")
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"<MeshLab 1 registry, 1 node: running>\n"
    assert all(map(alive, told["pids"]))
    parent.communicate(timeout=10)
    assert not any(map(alive, [*told["pids"], told["guardian"]]))
    assert not Path(told["folder"]).exists()
