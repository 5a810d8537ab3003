"""Labs that are kept: they outlive their process, are attached again with all verbs, and end when they are told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kodo.errors import LabError
from kodo.lab import MeshLab, keeping
from kodo.lab.keeping import labs_folder, start_of
from kodo.lab.processes import Processes
from tests.test_guardian import Begin, alive, gone, parents
from tests.waiting import until

PARENT = """
    import json, os, sys, time
    from kodo.lab import MeshLab
    lab = MeshLab("demo", keep=True)
    r1 = lab.add_registry()
    r2 = lab.add_registry(connect=r1)
    node = lab.add_node(connect=r1, loader=lambda: ["mytest"])
    lab.settle()
    told = {"pids": [member.pid for member in lab], "guardian": lab.engine._process.pid, "folder": str(lab.folder)}
"""
TELL = "print(json.dumps(told), flush=True)\n"
WAIT = "sys.stdin.read()\n"


@pytest.fixture(autouse=True)
def labs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of temporary files of its own, in which nothing of a lab is left; its path is short, for sockets."""
    tmp_path_factory.getbasetemp()  # it is made in the folder of temporary files that all tests share
    with tempfile.TemporaryDirectory(prefix="kodo-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        for links in Path(folder).glob("kodo-labs-*"):
            links.chmod(0o700)
        for lab in MeshLab.kept():
            os.kill(lab.pid, signal.SIGKILL)
            gone([lab.pid])
            pytest.fail(f"{lab!r} was left")


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a process with a kept lab of two registries and a node: the process, and what it told."""
    with parents(PARENT, TELL + WAIT) as start:
        yield start


def killed(parent: subprocess.Popen[bytes]) -> None:
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


def nothing_left(told: dict[str, Any], labs: Path) -> None:
    gone([*told["pids"], told["guardian"]])
    assert [path.name for path in labs.rglob("*")] == [f"kodo-labs-{os.getuid()}"]


# -- it outlives its process -------------------------------------------------------------------------------


def test_of_two_labs_that_begin_at_once_one_gets_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other is refused as one that comes later, and no guardian is left without a lab."""
    chosen, refused, real = threading.Event(), threading.Event(), keeping.free_name

    def chooses(name: str | None) -> str:
        free = real(name)
        if not chosen.is_set():
            chosen.set()
            refused.wait(0.5)  # it is not, unless the other could choose as well
        return free

    def other() -> None:
        chosen.wait(20)
        with suppress(LabError):
            MeshLab("same", keep=True).terminate()
        refused.set()

    monkeypatch.setattr(keeping, "free_name", chooses)
    thread = threading.Thread(target=other)
    thread.start()
    with MeshLab("same", keep=True) as lab:
        thread.join()
        assert [kept.folder for kept in MeshLab.kept()] == [lab.folder]


def test_a_kept_lab_that_ended_leaves_no_connection_open() -> None:
    """The connection to its guardian is closed with it, however long its handle is held."""
    lab = MeshLab(keep=True)
    guardian = lab.engine._process  # type: ignore[attr-defined]
    lab.terminate()
    until(lambda: guardian._socket.fileno() == -1, "the connection to be closed")


def test_a_kept_lab_is_attached_after_its_process_was_killed(begin: Begin, labs: Path) -> None:
    """The same processes, a paused one paused, faults in force, every verb at work; its end takes all of it."""
    faults = "lab.latency(r1, node, ms=1); lab.cut(r1, r2).heal(); lab.cut(r1, r2); r2.pause()\n"
    parent, told = begin(faults + TELL + WAIT)
    killed(parent)
    lab = MeshLab.attach("demo")
    assert repr(lab) == "<MeshLab demo, 2 registries, 1 node: running, 1 paused, 2 faults, kept>"
    assert [member.pid for member in lab] == told["pids"]
    assert [fault.label for fault in lab.faults.active] == ["1 ms registry1 <-> node1", "cut registry1 <-> registry2"]
    r1, r2, node = lab
    assert r2.paused
    r2.resume()
    node.restart(loader=lambda: ["news"])
    with pytest.raises(LabError, match="registry2 never learned /news of node1"):
        lab.settle(timeout=1)
    lab.heal()
    lab.settle()
    assert [row["name"] for row in r2.flows().rows] == ["news"]
    with lab.partition([r1, node], [r2]):
        r2.kill()
        r2.restart()
    third = lab.add_registry(connect=r2)
    lab.settle()
    assert "successfully started" in third.logs()
    assert {registry for row in lab.flows().rows for registry in row["registries"]} == {r1.name, r2.name, third.name}
    told["pids"] += [member.pid for member in lab]
    lab.terminate()
    lab.terminate()
    nothing_left(told, labs)


def test_what_a_function_offered_is_offered_after_a_restart_by_another_process(begin: Begin) -> None:
    """The function went with its process; the member opens what was pickled of it."""
    parent, _ = begin()
    killed(parent)
    with MeshLab.attach() as lab:
        lab["node1"].restart()
        lab.settle()
        assert [row["name"] for row in lab.flows().rows] == ["mytest"]


def test_what_happened_before_is_in_the_timeline(begin: Begin) -> None:
    """Starts, messages and faults, also what happened while nobody was attached."""
    parent, told = begin("lab.cut(r1, r2).heal()\n" + TELL + WAIT)
    killed(parent)
    os.kill(told["pids"][2], signal.SIGKILL)
    gone(told["pids"][2:])
    with MeshLab.attach() as lab:
        happened = [(event.what, event.who) for event in sorted(lab.history.events, key=lambda event: event.at)]
        starts = [(what, name) for name in ("registry1", "registry2", "node1") for what in ("launched", "started")]
        assert happened == [
            *starts,
            *((word, "cut registry1 <-> registry2") for word in ("fault", "healed")),
            ("exited", "node1"),
        ]
        assert all(event.at >= lab.history.began for event in lab.history.events)
        assert lab["node1"].state == "killed"
        routes = {(message.sender, message.receiver, message.route) for message in lab.timeline().messages}
        assert ("node1", "registry1", "/register") in routes


def test_a_kept_lab_survives_the_end_of_the_interpreter(begin: Begin, labs: Path) -> None:
    """Its own end, an error in the middle and an interrupt leave it as it is; so does a forked process."""
    parent, told = begin(TELL + "if os.fork(): os.wait(); 1 / 0\n")
    parent.wait(20)
    assert all(map(alive, told["pids"]))
    MeshLab.attach().terminate()
    nothing_left(told, labs)


def test_a_process_that_was_forked_from_the_killed_one_does_not_hold_the_lab(begin: Begin) -> None:
    """It has the connection too, which would never end."""
    parent, _ = begin("if not os.fork(): time.sleep(60)\n" + TELL + WAIT)
    parent.kill()
    parent.wait()
    with MeshLab.attach() as lab:
        lab.settle()
    os.killpg(parent.pid, signal.SIGKILL)


def test_a_lab_whose_process_died_while_a_member_started_is_whole(begin: Begin) -> None:
    """The member is known, whatever became of it, and can be restarted and ended."""
    slow = "lab.add_node('slow', connect=r1, loader=lambda: time.sleep(1) or ['late'])\n"
    parent, _ = begin(TELL + slow)
    state = labs_folder() / "demo" / "lab.state"
    until(lambda: "slow" in state.read_text(), "the member to be written down")
    killed(parent)
    with MeshLab.attach() as lab:
        lab["slow"].restart()
        lab.settle()
        assert {row["name"] for row in lab.flows().rows} == {"mytest", "late"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets two sockets share a port")
def test_the_port_of_a_member_that_is_down_stays_its_own(begin: Begin) -> None:
    """Also while nobody is attached; it is restarted there."""
    parent, _ = begin("r2.kill(); told['url'] = r2.url\n" + TELL + WAIT)
    killed(parent)
    lab = MeshLab.attach()
    port = int(lab["registry2"].url.rpartition(":")[2])
    lab.detach()
    with socket.socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", port))
    with MeshLab.attach() as again:
        again["registry2"].restart()
        assert again.settle().registries == 2


# -- letting go, and taking again --------------------------------------------------------------------------


def test_detach_leaves_all_as_it_is_and_attach_takes_it_again() -> None:
    """The old lab and its handles say so; in one process attaching twice gives the same lab."""
    lab = MeshLab("mine", keep=True)
    registry = lab.add_registry()
    pid = registry.pid
    assert pid is not None
    assert MeshLab.attach("mine") is lab
    assert repr(MeshLab.kept()) == "[<Kept lab mine: 1 registry>]"
    lab.detach()
    assert alive(pid)
    assert repr(lab) == "<MeshLab mine, 1 registry: detached>"
    with pytest.raises(LabError, match=r"this lab was detached; MeshLab.attach\('mine'\) takes it again"):
        lab.add_node()
    assert repr(registry) == "<Registry registry1: detached>"
    for verb in (
        registry.status,
        registry.kill,
        registry.terminate,
        registry.start,
        lab.flows,
        lab.heal,
        lab.terminate,
    ):
        with pytest.raises(LabError, match="this lab was detached"):
            verb()
    assert alive(pid)
    again = MeshLab.attach(registry.lab.folder)
    assert again is not lab
    assert [member.pid for member in again] == [pid]
    again.terminate()
    gone([pid])
    assert MeshLab.kept() == []


def test_who_comes_second_is_told_who_was_first(begin: Begin) -> None:
    """The process that has it is named; it notices nothing."""
    parent, told = begin("told['me'] = os.getpid()\n" + TELL + WAIT + "lab.settle(); print('settled', flush=True)\n")
    with pytest.raises(LabError, match=rf"process {told['me']} has it; detach\(\) it there, or end that process"):
        MeshLab.attach("demo")
    out, _ = parent.communicate(timeout=20)
    assert out == b"settled\n"
    MeshLab.attach("demo").terminate()


def test_a_block_may_outlive_its_lab() -> None:
    """A fault whose lab was let go in its block ends without a word, and changes nothing of what others have."""
    with MeshLab("mine", keep=True) as lab:
        lab.add_registry("a")
        lab.add_registry("b", connect="a")
        with lab.cut("a", "b"):
            lab.detach()
            with MeshLab.attach("mine") as again:
                again.add_registry("c")
                written = (again.folder / "lab.state").read_text()
                (fault,) = lab.faults
                fault.heal()
                assert (again.folder / "lab.state").read_text() == written
                assert again.faults.active


def test_only_what_is_kept_can_be_detached() -> None:
    """Any other lab would end."""
    with MeshLab() as lab, pytest.raises(LabError, match=r"expected a lab that is kept, for this one would end"):
        lab.detach()
    with pytest.raises(LabError, match="keep: expected a lab of real processes"):
        MeshLab(keep=True, engine="simulated")


def test_a_given_folder_keeps_its_logs_and_nothing_else(tmp_path: Path) -> None:
    """However long its path is: more than a socket takes."""
    folder = tmp_path / ("long" * 30)
    lab = MeshLab(keep=True, folder=folder)
    assert lab.name == "lab1"
    lab.add_registry()
    with pytest.raises(LabError, match="expected a folder of its own for the lab, but"):
        MeshLab("other", keep=True, folder=folder)
    lab.terminate()
    assert {path.name for path in folder.iterdir()} == {
        "guardian.words",
        "registry1.json",
        "registry1.json.lock",
        "registry1.log",
    }
    with pytest.raises(LabError, match=r"lab.state is not there: it was terminated, or never kept"):
        MeshLab.attach(folder)


# -- what is not to be attached ----------------------------------------------------------------------------


def test_a_lab_that_is_gone_says_what_was_expected_and_its_name_is_free() -> None:
    """Its guardian was killed, and with it the members."""
    lab = MeshLab("lost", keep=True)
    pid, kept = lab.add_registry().pid, lab.engine.kept
    assert pid is not None
    assert kept is not None
    lab.detach()
    os.kill(kept.pid, signal.SIGKILL)
    gone([kept.pid, pid])
    assert MeshLab.kept() == []
    with pytest.raises(LabError) as error:
        MeshLab.attach("lost")
    assert f"expected the kept lab 'lost' to run, but its guardian (process {kept.pid}) has ended" in str(error.value)
    assert f"logs are in {kept.folder}; start anew with MeshLab('lost', keep=True)" in str(error.value)
    with MeshLab("lost", keep=True) as anew:
        assert len(anew) == 0
    kept.remove()


def test_last_words_of_who_hung_up_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab is attached again although its guardian has not yet heard all that was said before it was left."""
    lab = MeshLab("left", keep=True)
    guardian = json.loads((lab.folder / "lab.state").read_text())["pid"]
    os.kill(guardian, signal.SIGSTOP)
    assert isinstance(lab.engine, Processes)
    lab.engine._tell(owner=os.getpid())
    lab.detach()
    wait = Processes._wait

    def go_on(engine: Processes, *given: Any) -> bool:
        os.kill(guardian, signal.SIGCONT)
        return wait(engine, *given)

    monkeypatch.setattr(Processes, "_wait", go_on)
    MeshLab.attach("left").terminate()


def test_a_number_that_belongs_to_another_process_by_now_is_left_alone() -> None:
    """A process is known by its number and by when it started."""
    with subprocess.Popen(["sleep", "60"]) as other:
        lab = MeshLab("lost", keep=True)
        state = lab.folder / "lab.state"
        kept = json.loads(state.read_text())
        assert kept["started"] == start_of(kept["pid"])
        lab.detach()
        state.write_text(json.dumps({**kept, "pid": other.pid}))
        with pytest.raises(LabError, match=rf"its guardian \(process {other.pid}\) has ended"):
            MeshLab.attach("lost")
        state.write_text(json.dumps(kept))
        MeshLab.attach("lost").terminate()
        assert other.poll() is None
        other.kill()


def test_what_others_could_have_written_is_refused() -> None:
    """It would be run. A file of another form is refused as well; nothing happens to the lab."""
    lab = MeshLab("mine", keep=True)
    folder = lab.folder
    state = folder / "lab.state"
    assert state.stat().st_mode & 0o777 == 0o600
    good = state.read_text()
    lab.detach()
    state.chmod(0o666)
    with pytest.raises(LabError, match="to be a file that nobody but you can write to"):
        MeshLab.attach("mine")
    state.chmod(0o600)
    for bad, words in (
        ("{", "the file: Invalid JSON"),
        (good.replace('"members": {}', '"members": 7'), "members: Input"),
    ):
        state.write_text(bad)
        with pytest.raises(LabError, match=f"expected the state of a lab, but {words}"):
            MeshLab.attach("mine")
    state.write_text(good)
    labs = labs_folder()
    labs.chmod(0o777)
    with pytest.raises(LabError, match="to be a folder that nobody but you can write to"):
        MeshLab.attach("mine")
    labs.chmod(0o700)
    MeshLab.attach("mine").terminate()


@pytest.mark.parametrize(
    ("name", "words"),
    [("dmo", "did you mean 'demo'"), ("zzz", "kept are 'demo', 'other'"), (None, "kept are 'demo', 'other'")],
)
def test_a_name_that_no_kept_lab_has_is_an_error_that_names_those_there_are(name: str | None, words: str) -> None:
    """Nothing is attached, nothing is started."""
    with pytest.raises(LabError, match="none is kept"):
        MeshLab.attach(name)
    with MeshLab("demo", keep=True), MeshLab("other", keep=True):
        assert [lab.name for lab in MeshLab.kept()] == ["demo", "other"]
        with pytest.raises(LabError, match=words):
            MeshLab.attach(name)
        with pytest.raises(LabError, match="expected a new name, but a lab 'demo' is kept and runs"):
            MeshLab("demo", keep=True)


@pytest.mark.parametrize("name", ["", "..", "a/b", "new\nline", "x" * 41])
def test_a_name_that_cannot_be_a_file_is_refused(name: str) -> None:
    """Nothing was started."""
    with pytest.raises(LabError, match="expected a short name of printable characters without a slash"):
        MeshLab(name, keep=True)


def test_a_member_may_have_any_name() -> None:
    """Files of members and those of the lab itself never meet, whatever a member is called."""
    with MeshLab("demo", keep=True) as lab:
        for name in ("lab", "door", "guardian", "lab.state"):
            node = {"url": "http://127.0.0.1:1", "flows": [{"name": name, "url": "/x"}]}
            lab.add_registry(name).post("/register", node)
        assert repr(MeshLab.kept()) == "[<Kept lab demo: 4 registries>]"
        assert "registry startup" in lab["guardian"].logs()
        lab.detach()
        with MeshLab.attach("demo") as again:
            again["lab"].restart()
            assert [row["name"] for row in again["lab"].flows().rows] == ["lab"]


def test_a_recording_has_all_up_to_the_end_of_its_process(labs: Path) -> None:
    """A lab that is kept goes on when its script ends, and what was recorded until then is whole."""
    script = 'import sys\nlab = MeshLab("demo", keep=True, record=sys.argv[1])\nr1 = lab.add_registry()\n'
    script += 'r2 = lab.add_registry(connect=r1)\nlab.add_node(connect=r1, flows=["mytest"])\nlab.settle()\n'
    path = labs / "mesh.jsonl"
    order = [sys.executable, "-c", f"from kodo.lab import MeshLab\n{script}", str(path)]
    subprocess.run(order, check=True, timeout=60)
    lab = MeshLab.attach("demo")
    try:
        assert json.loads(path.read_text().splitlines()[-1])["end"]
        replay = MeshLab.replay(path)
        (row,) = replay.at(replay.seconds).flows().rows
        assert row["registries"] == ["registry1", "registry2"]
    finally:
        lab.terminate()
        path.unlink()
