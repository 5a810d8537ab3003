"""The lab, as its users hold it: real services, started, asked, broken, restarted, ended."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import networkx as nx  # type: ignore[import-untyped]
import pytest

import kodo.lab
from kodo.client import Client
from kodo.errors import InvalidMessageError, KodoError, LabError, UnavailableError
from kodo.lab import MeshLab
from kodo.lab.bars import Bars
from kodo.lab.drawing import label_of
from kodo.lab.flows import FlowTable, united
from kodo.lab.naming import Names
from kodo.lab.processes import OPTIONS
from kodo.lab.topology import MERMAID, Seen, Topology, bends_of, box_of, graph_of, place
from kodo.loader import Loader
from kodo.models import Flow
from kodo.options import Options
from tests.conftest import Start
from tests.test_guardian import alive, gone
from tests.waiting import until

MEASURED = re.compile(r"\d{4,}|127\.0\.0\.1|\d:\d\d")
"""Ports, pids, addresses and times: what no constant text has in it."""


@pytest.fixture(scope="module")
def shared() -> Iterator[MeshLab]:
    with MeshLab() as lab:
        yield lab


@pytest.fixture
def lab(shared: MeshLab) -> Iterator[MeshLab]:
    """A lab without members, for a test that adds some: the same one each time, to start fewer guardians."""
    yield shared
    for member in shared:
        member.kill()
    shared._members.clear()
    shared._positions.clear()
    for file in shared.folder.iterdir():
        file.unlink()


@pytest.fixture
def mortal() -> Iterator[MeshLab]:
    """A lab of its own, for a test that ends it."""
    with MeshLab() as lab:
        yield lab


@pytest.fixture(scope="module")
def mesh() -> Iterator[MeshLab]:
    """A settled mesh of two registries and two nodes, for tests that only look."""
    with MeshLab() as lab:
        first = lab.add_registry()
        second = lab.add_registry(connect=first)
        lab.add_node(connect=first, flows=["my test", {"name": "<i>x</i>", "tags": ["b & c", "a"], "author": "me"}])
        lab.add_node(connect=second, loader=lambda: [{"name": "my test", "description": "another"}])
        lab.settle()
        yield lab


# -- members -----------------------------------------------------------------------------------------------


def test_the_handles_and_the_lab_read_the_same_every_time(mesh: MeshLab) -> None:
    """One line without port, pid, time or address."""
    assert repr(mesh) == "<MeshLab 2 registries, 2 nodes: running>"
    assert [repr(member) for member in mesh] == [
        "<Registry registry1: running>",
        "<Registry registry2: running>",
        "<Node node1: running>",
        "<Node node2: running>",
    ]


def test_members_are_found_by_name(mesh: MeshLab) -> None:
    """`lab[name]`, iteration, `in`, `len` and completion; an unknown name is an error that knows a near one."""
    names = ["registry1", "registry2", "node1", "node2"]
    assert [member.name for member in mesh] == mesh._ipython_key_completions_() == names
    assert len(mesh) == 4
    assert "node1" in mesh
    assert mesh["node1"] in mesh
    assert "node3" not in mesh
    with pytest.raises(LabError, match="did you mean 'registry1'"):
        mesh["regitsry1"]
    with pytest.raises(LabError, match="it has registry1, registry2, node1, node2"):
        mesh["zzz"]


def test_a_member_answers_get_post_status_and_map(mesh: MeshLab) -> None:
    """The organization of a member is its name."""
    registry = mesh["registry1"]
    assert registry.get()["organization"] == registry.status()["organization"] == "registry1"
    assert registry.map()["nodes"].keys() == {mesh["node1"].url}
    assert registry.get("/counts")["total"] == 3
    with pytest.raises(InvalidMessageError):
        registry.post("/register", {})


def test_connect_takes_a_handle_a_name_a_url_and_a_list_of_these(lab: MeshLab) -> None:
    """All of them are the same three registries."""
    first, second, third = (lab.add_registry() for _ in range(3))
    node = lab.add_node(connect=[first, "registry2", third.url])
    assert node.connect == [first.url, second.url, third.url]
    assert lab.add_node(connect="registry2").connect == [second.url]
    assert lab.add_node().connect == []
    with pytest.raises(LabError, match="not 'nobody'; it has registry1"):
        lab.add_node(connect="nobody")
    with pytest.raises(LabError, match="node1 is a node; connect the node instead"):
        lab.add_registry(connect=node)
    assert len(lab) == 6


def test_a_name_is_taken_once_and_must_be_one(lab: MeshLab) -> None:
    """A double name says what to do; a name in another alphabet, with spaces, is a name."""
    lab.add_registry("größe 1")
    assert lab["größe 1"].status()["organization"] == "größe 1"
    with pytest.raises(LabError, match=r"has a member 'größe 1'; use lab\['größe 1'\].restart"):
        lab.add_node("größe 1")
    for name in ("", "a/b", "a\nb", 51 * "a"):
        with pytest.raises(LabError, match="expected a name of printable characters without a slash, at most 50 of"):
            lab.add_node(name)
    longest = 50 * "\N{SNOWMAN}"
    assert lab.add_registry(longest).status()["organization"] == longest
    assert lab[longest].logs()


def test_flows_come_from_names_dicts_callables_and_modules(lab: MeshLab, tmp_path: Path) -> None:
    """Also from a closure, a YAML file, a `Loader` and a module beside the notebook."""
    names = ["from", "a", "closure"]

    def fill(loader: Loader) -> None:
        for name in names:
            loader.add_flow(name=name)

    (tmp_path / "flows.yaml").write_text("flows: [from a file]")
    listed = [
        lab.add_node(**given).flows().frame["name"].tolist()
        for given in (
            {"flows": ["one", {"name": "two"}]},
            {"flows": "three"},
            {"loader": fill},
            {"loader": tmp_path / "flows.yaml"},
            {"loader": "tests.test_lab:module_flows"},
        )
    ]
    assert listed == [["one", "two"], ["three"], ["a", "closure", "from"], ["from a file"], ["of a module"]]


def test_a_member_that_two_threads_start_is_started_once(lab: MeshLab) -> None:
    """Whoever comes second is told so, or finds it running; every verb still reaches it."""
    registry = lab.add_registry()
    registry.kill()
    both, refused = threading.Barrier(2), []

    def start() -> None:
        both.wait(10)
        try:
            registry.start()
        except LabError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all("was started meanwhile" in said for said in refused), refused
    until(lambda: registry.answers and registry.status(), "the member to answer")
    registry.kill()
    assert not registry.running


def test_a_registry_is_given_no_flows(lab: MeshLab) -> None:
    """They would be offered by nobody: an error that says who takes them, and nothing has changed."""
    with pytest.raises(LabError, match=r"flows: expected none, for a registry offers no flows; give them to add_node"):
        lab.add_registry(flows=["a"])
    registry = lab.add_registry()
    with pytest.raises(LabError, match="loader: expected none"):
        registry.restart(loader="tests.test_lab:module_flows")
    assert [member.name for member in lab] == [registry.name]


def test_flows_without_a_name_are_told_as_such(lab: MeshLab) -> None:
    """Two flows that have neither name nor url are not said to be at one path."""
    with pytest.raises(LabError, match="name") as raised:
        lab.add_node(flows=[{"description": "a"}, {"description": "b"}])
    assert "are at" not in str(raised.value)


@pytest.mark.parametrize(
    "flows",
    [["my test", "other", "my test"], ["my test", {"name": "x", "url": "my-test/"}], [Flow(url="/a", name="a"), "a"]],
)
def test_two_flows_at_one_path_are_refused(lab: MeshLab, flows: list[Any]) -> None:
    """A registry would list the last alone, and say nothing; a name twice at two paths is fine."""
    with pytest.raises(LabError, match=r"flows: expected each flow once, but two are at /(my-test|a); give one"):
        lab.add_node(flows=flows)
    node = lab.add_node(flows=["a", {"name": "a", "url": "/b"}])
    with pytest.raises(LabError, match="expected each flow once"):
        node.restart(flows=flows)
    assert [row["url"] for row in node.flows().rows] == ["/a", "/b"]


def module_flows() -> list[str]:
    return ["of a module"]


def test_a_member_that_does_not_start_says_why_and_leaves_the_lab_as_it_was(lab: MeshLab) -> None:
    """Errors hold the end of its log: a loader that raises, a port in use, a lock in a closure."""

    def broken() -> None:
        raise ZeroDivisionError("in the cell")

    with pytest.raises(LabError, match=r"(?s)expected node1 to start, but it ended with code 1.*in the cell"):
        lab.add_node(loader=broken)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(LabError, match="choose another url"):
        lab.add_registry(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
    lock = threading.Lock()
    with pytest.raises(LabError, match="node1: expected a loader that can travel"):
        lab.add_node(loader=lambda: [lock])
    with pytest.raises(LabError, match="expected flows= or loader=, not both"):
        lab.add_node(flows=["a"], loader=broken)
    assert repr(lab) == "<MeshLab no members: running>"
    assert lab.add_node().name == "node1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lease": "soon"}, "node1: lease: expected a number; give for example lease=30"),
        ({"beacon": -1}, "node1: beacon: expected a number greater than or equal to 0.05; give for example beacon=10"),
        ({"cache": 3}, "node1: cache: expected the path of a file"),
        ({"loader": "flows"}, 'node1: loader: expected a callable, "module:function", or a path'),
        ({"flows": 3}, "flows: expected a name, a dict, or a list of these, not 3"),
        ({"flows": [{"nam": "x"}]}, "flows: flow number 1: name: expected a text; give every flow a name"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_a_process_is_started(
    lab: MeshLab, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    """Whatever the environment says, and before the member that runs is ended for it."""
    monkeypatch.setenv("KODO_RETENTION", "nonsense")
    before = len(lab.history.events)
    with pytest.raises(LabError) as caught:
        lab.add_node(**options)
    assert str(caught.value).startswith(said)
    assert len(lab.history.events) == before, "nothing was launched"
    node = lab.add_node()
    with pytest.raises(LabError):
        node.restart(**options)
    assert node.running


def test_an_error_shows_what_was_written_since_this_start_alone(lab: MeshLab) -> None:
    """Not by a member of the same name that did not start, nor by the process before; what others logged stays."""

    def broken() -> None:
        raise ZeroDivisionError("of the first")

    def other() -> None:
        raise ZeroDivisionError("of the second")

    (lab.folder / "node1.log").write_text("kept from another day\n")
    with pytest.raises(LabError, match="of the first"):
        lab.add_node(loader=broken)
    assert (lab.folder / "node1.log").read_text() == "kept from another day\n"
    with pytest.raises(LabError, match="of the second") as caught:
        lab.add_node(loader=other)
    assert "of the first" not in str(caught.value)
    node = lab.add_node(flows=["a"])
    assert "of the second" not in node.logs()
    with pytest.raises(LabError, match="of the first") as caught:
        node.restart(loader=broken)
    assert "shutdown now" not in str(caught.value)
    assert "shutdown now" in node.logs()


def test_a_member_that_takes_too_long_to_start_is_killed(lab: MeshLab) -> None:
    """The time-out is named, and no process is left."""

    def slow() -> None:
        import os  # noqa: PLC0415
        import time  # noqa: PLC0415

        print("pid", os.getpid(), flush=True)  # noqa: T201
        time.sleep(60)

    lab.add_registry()
    with pytest.raises(LabError, match=r"it did not answer within 0\.5 s; give it a longer timeout") as caught:
        lab.add_node(loader=slow, timeout=0.5)
    found = re.search(r"pid (\d+)", str(caught.value))
    assert found is not None
    gone([int(found[1])])
    assert len(lab) == 1


def test_terminate_and_kill_end_a_member_and_may_be_repeated(lab: MeshLab) -> None:
    """Who asks it then is told that nobody is there; a paused member ends too."""
    one, two = lab.add_registry(), lab.add_registry()
    pid = two.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    for _ in range(2):
        one.kill()
        two.terminate()
    assert not alive(pid)
    assert (one.pid, two.pid) == (None, None)
    assert [repr(one), repr(two)] == ["<Registry registry1: killed>", "<Registry registry2: terminated>"]
    assert repr(lab) == "<MeshLab 2 registries: 0 of 2 running>"
    with pytest.raises(
        UnavailableError, match=r"expected registry1 to answer, but it was killed; use registry1.start\(\)"
    ):
        one.status()


def test_start_brings_back_who_has_ended_as_it_was(lab: MeshLab) -> None:
    """With the same url and the same options; one that runs stays as it is."""
    registry = lab.add_registry()
    node = lab.add_node(connect=registry, flows=["mytest"])
    url = node.url
    node.kill()
    node.start()
    pid = node.pid
    node.start()
    assert (node.url, node.pid, node.state) == (url, pid, "running")
    assert [row["name"] for row in node.flows().rows] == ["mytest"]


def test_a_member_that_ended_by_itself_is_seen_to_have_ended(lab: MeshLab) -> None:
    """Nobody told the lab."""
    node = lab.add_node()
    assert node.pid is not None
    os.kill(node.pid, signal.SIGABRT)
    until(lambda: not node.running, "the end to be seen")
    assert repr(node) == "<Node node1: ended with code -6>"


def test_a_restart_keeps_url_and_cache_and_changes_what_is_given(lab: MeshLab) -> None:
    """A registry comes back with what it listed, a node with its new flows, everywhere."""
    first = lab.add_registry()
    second = lab.add_registry(connect=first)
    node = lab.add_node(connect=first, flows=["old"])
    lab.settle()
    url, created = first.url, first.flows().frame["created"].tolist()
    first.kill()
    first.restart()
    assert (first.url, first.flows().frame["created"].tolist()) == (url, created)
    node.restart(loader=lambda: ["new", "newer"])
    lab.settle()
    assert second.flows().frame["name"].tolist() == ["new", "newer"]
    node.restart(connect=second)
    assert node.flows().frame["name"].tolist() == ["new", "newer"]
    node.restart(flows=["last"])
    lab.settle()
    assert first.flows().frame["name"].tolist() == ["last"]


def test_a_restart_that_fails_can_be_repeated(lab: MeshLab) -> None:
    """The handle stays. The url and the name cannot be changed."""
    node = lab.add_node(flows=["one"])
    with pytest.raises(LabError, match="a restart keeps its url"):
        node.restart(url="http://127.0.0.1:1")
    with pytest.raises(LabError, match="expected node1 to start"):
        node.restart(loader="nowhere:at_all")
    assert not node.running
    node.restart(flows=["two"])
    assert node.flows().frame["name"].tolist() == ["two"]


def test_the_port_of_a_member_that_ended_is_nobody_elses(lab: MeshLab) -> None:
    """Neither a server nor a caller that asks for any port gets it, so that a restart finds it free."""
    node = lab.add_node()
    port = int(node.url.rpartition(":")[2])
    node.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    node.restart()
    assert node.status()["idle"]


def test_logs_are_the_members_own_lines(lab: MeshLab) -> None:
    """All of them, or the last ones; they read as lines in a notebook. (A lab that has ended: see below.)"""
    node = lab.add_node()
    assert "successfully started node" in node.logs()
    assert node.logs(tail=1) == node.logs().splitlines()[-1]
    assert node.logs(tail=0) == ""
    assert repr(node.logs()) == str(node.logs())


def test_the_environment_does_not_reach_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab's members are what the lab says, whatever `KODO_` variables a cluster has set."""
    monkeypatch.setenv("KODO_CONNECT", "http://127.0.0.1:9")
    monkeypatch.setenv("KODO_NONSENSE", "1")
    with MeshLab() as lab:
        assert lab.add_registry().status()["connection"] == {}


# -- settling ----------------------------------------------------------------------------------------------


def test_settle_waits_until_the_registries_agree(mesh: MeshLab) -> None:
    """What it found are attributes; its text is constant."""
    settled = mesh.settle()
    assert repr(settled) == "<Settled: 2 registries agree>"
    assert (settled.registries, settled.flows) == (2, 3)
    assert 0 < settled.seconds < 30


def test_settle_names_the_connection_that_does_not_stand_and_who_is_not_running(lab: MeshLab) -> None:
    """And shows the log of the culprit alone."""
    registry = lab.add_registry()
    registry.kill()
    lab.add_node(connect=registry)
    with pytest.raises(LabError) as caught:
        lab.settle(timeout=0.3)
    text = str(caught.value)
    assert "expected the mesh to settle within 0.3 s" in text
    assert "- the connection node1 -> registry1 does not stand" in text
    assert "- registry1 is not running (killed)" in text
    assert "the log of registry1 ends with" in text
    assert "the log of node1" not in text


def test_settle_names_the_fault_that_keeps_a_connection_down(lab: MeshLab) -> None:
    """Who waits may have forgotten it."""
    first, second = lab.add_registry(), lab.add_registry()
    fault = lab.cut(first, second)
    second.restart(connect=first)
    with pytest.raises(LabError) as caught:
        lab.settle(timeout=1)
    said = "the connection registry2 -> registry1 does not stand, while cut registry1 <-> registry2 holds"
    assert f"- {said}\n" in str(caught.value)
    assert f"{lab.faults!r}" == f"<Faults: {len(lab.faults.active)} active of {len(lab.faults)}>"
    assert str(lab.faults).splitlines()[-1] == "<Fault cut registry1 <-> registry2: active>"
    fault.heal()
    lab.settle()


def test_settle_names_who_lacks_which_flow(lab: MeshLab) -> None:
    """Registries that are connected over one that is gone still belong together."""
    first = lab.add_registry()
    middle = lab.add_registry(connect=first)
    lab.add_registry(connect=middle)
    lab.settle()
    middle.kill()
    lab.add_node(connect=first, flows=["late"])
    with pytest.raises(
        LabError, match=r"- registry3 never learned /late of node1: last push registry1 -> registry2 ConnectError"
    ):
        lab.settle(timeout=3)
    middle.restart()
    assert repr(lab.settle()) == "<Settled: 3 registries agree>"


def test_a_member_by_another_name_of_this_machine_is_that_member(lab: MeshLab) -> None:
    """It is drawn once, and a cut holds for it."""
    first = lab.add_registry()
    second = lab.add_registry(connect=first.url.replace("127.0.0.1", "LOCALHOST") + "/")
    assert second.connect == [first.url]
    assert sorted(lab.topology().graph) == ["registry1", "registry2"]


def test_settle_names_who_is_missing_and_what_nobody_lists_for_that(lab: MeshLab) -> None:
    """A registry and a node that were killed are not waited for; they are named, and what only they knew."""
    first = lab.add_registry()
    second = lab.add_registry(connect=first)
    lab.add_node("here", connect=first, flows=["kept"])
    ghost = lab.add_node("ghost", connect=first, flows=["one", "two"])
    lab.settle()
    second.kill()
    ghost.kill()
    # Who registers at a registry that is down is heard by nobody.
    lost = lab.add_node("lost", connect=second, flows=["a", "b", "c", "d"])
    with pytest.raises(LabError) as caught:
        lab.settle(timeout=0.3)
    said = "registry2 is not running (killed) and cannot be asked, so nobody lists /a of lost, /b of lost, /c of lost"
    assert f"- {said} and 1 more\n" in str(caught.value)
    lost.terminate()
    settled = lab.settle()
    assert [(missing.name, missing.state, missing.listed) for missing in settled.missing] == [
        ("registry2", "killed", 0),
        ("ghost", "killed", 2),
        ("lost", "terminated", 0),
    ]
    assert repr(settled) == (
        "<Settled: 1 registry agrees; registry2 is not running (killed) and cannot be asked; "
        "ghost is not running (killed), and 2 flows of it still listed; lost is not running (terminated)>"
    )


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_mesh_settles_whatever_is_owed_to_who_does_not_run(lab: MeshLab, end: str) -> None:
    """Those that run agree on the news; who is gone hears it once it is back, and who is paused is still waited for."""
    first = lab.add_registry()
    gone, other = lab.add_registry("gone", connect=first), lab.add_registry(connect=first)
    node = lab.add_node(connect=first, flows=["old"])
    lab.settle()
    getattr(gone, end)()
    node.restart(flows=["new"])
    settled = lab.settle(timeout=10)
    assert not first.status()["idle"], "it is owed to the one that is gone"
    assert repr(settled) == f"<Settled: 2 registries agree; gone is not running ({gone.state}) and cannot be asked>"
    other.pause()
    with pytest.raises(LabError, match="registry2 is paused") as caught:
        lab.settle(timeout=0.5)
    assert "gone never learned" not in str(caught.value)
    other.resume()
    gone.start()
    assert repr(lab.settle()) == "<Settled: 3 registries agree>"
    assert [row["name"] for row in gone.flows().rows] == ["new"]


def test_settle_blames_nobody_who_is_innocent(lab: MeshLab) -> None:
    """Named are whom something is owed, the faults on the way there, and the log of who did not take it."""
    first = lab.add_registry()
    second = lab.add_registry(connect=first)
    third = lab.add_registry(connect=second)
    node, bystander = lab.add_node(connect=first, flows=["a"]), lab.add_node(connect=first, flows=["b"])
    lab.settle()
    bystander.kill()
    with lab.latency(first, bystander, ms=1):
        second.pause()
        node.restart(flows=["c"])
        with pytest.raises(LabError) as caught:
            lab.settle(timeout=1)
        assert "- registry1 is not idle: it still has something to tell registry2\n" in str(caught.value)
        assert "holds" not in str(caught.value)
        assert "the log of registry2 ends with" in str(caught.value)
        second.kill()
        node.restart(flows=["d"])
        with pytest.raises(LabError, match=f"{third.name} never learned /d") as caught:
            lab.settle(timeout=1)
        assert "the log of registry2 ends with" in str(caught.value)


def test_settle_names_nodes_that_have_no_registry(lab: MeshLab) -> None:
    """Unless somebody else registered them: what is listed is not lost."""
    registry = lab.add_registry()
    node = lab.add_node("lost", flows=["a"])
    said = "1 registry agrees; lost has no registry, so nobody lists its flows"
    settled = lab.settle()
    assert (repr(settled), settled.alone) == (f"<Settled: {said}>", ["lost"])
    lab.add_node("other")
    assert repr(lab.settle()).endswith("lost, other have no registry, so nobody lists their flows>")
    registry.post("/register", {"url": node.url, "flows": [{"url": "/a", "name": "a"}]})
    assert lab.settle().alone == ["other"]


def test_settle_names_who_is_paused(lab: MeshLab) -> None:
    """Whoever paused it."""
    registry = lab.add_registry()
    assert registry.pid is not None
    os.kill(registry.pid, signal.SIGSTOP)
    with pytest.raises(LabError, match="- registry1 is paused"):
        lab.settle(timeout=0.3)


def test_registries_that_nothing_connects_need_not_agree(lab: MeshLab) -> None:
    """Two islands settle each by itself, which is said, and so does a lab without members."""
    assert repr(lab.settle()) == "<Settled: no registry runs>"
    lab.add_node(connect=lab.add_registry(), flows=["here"])
    assert lab.settle().apart == []
    lab.add_registry()
    settled = lab.settle()
    assert (settled.flows, settled.apart) == (1, [["registry1"], ["registry2"]])
    assert "nothing connects registry1 | registry2, so each lists its own alone" in repr(settled)
    with pytest.raises(LabError, match="q: expected a text"):
        lab.flows(q=5)  # type: ignore[arg-type]


def test_a_provider_is_not_blamed_for_what_it_does_not_take(lab: MeshLab) -> None:
    """It gives, so the registry lists what it lists; it takes nothing."""
    registry = lab.add_registry()
    lab.add_node(connect=registry, flows=["not for the provider"])
    provider = lab.add_registry(provider=True, connect=registry)
    settled = lab.settle()
    assert repr(settled) == "<Settled: 1 registry agrees>"
    assert set(settled.per_registry) == {"registry1"}
    assert len(provider.flows()) == 0
    assert lab.counts().agree
    assert repr(lab.counts()).endswith("\n1 registry agrees")
    assert repr(lab.explain("node1")) == "<Explanation of node1: listed by 1 of 1 registry>"
    assert repr(provider.explain("node1")) == "<Explanation of node1: listed by 0 of 1 registry>"
    registry.kill()
    assert repr(lab.counts()).endswith("\nno registry runs, 1 without an answer")
    assert repr(provider) == "<Provider provider1: running>"


# -- flows -------------------------------------------------------------------------------------------------


def test_the_flows_of_the_mesh_are_one_table(mesh: MeshLab) -> None:
    """A row a flow, who lists it, members by name; columns that are empty throughout and times are left out."""
    assert repr(mesh.flows()).splitlines() == [
        "node   name      url        organization  author  tags      registries",
        "node1  <i>x</i>  /<i>x</i>  node1         me      b & c, a  registry1, registry2",
        "node1  my test   /my-test   node1                           registry1, registry2",
        "node2  my test   /my-test   node2                           registry1, registry2",
        "3 flows; .frame has description too",
    ]
    assert not MEASURED.search(repr(mesh.flows()))


def test_q_and_by_select_and_sort_as_everywhere(mesh: MeshLab) -> None:
    """Sorted is what is shown, so that ports decide nothing."""
    table = mesh.flows(q='name ~ "test"', by="node:d")
    assert [mesh.names[row["node"]] for row in table.rows] == ["node2", "node1"]
    assert len(mesh["registry1"].flows(q="another")) == 1
    assert repr(mesh.flows(q="zebra")) == "no flows"
    with pytest.raises(InvalidMessageError, match="is no column; there are registry, node"):
        mesh.flows(by="nonsense")


def test_a_members_own_listing_has_the_same_form(mesh: MeshLab) -> None:
    """Without the column of registries, for it is that member's."""
    assert repr(mesh["node2"].flows()).splitlines() == [
        "node   name     url       organization  description",
        "node2  my test  /my-test  node2         another",
        "1 flow",
    ]


def test_times_are_shown_when_they_are_asked_for(mesh: MeshLab) -> None:
    """And only then."""
    shown = mesh.flows(times=True)
    assert shown.columns[-3:] == ["created", "modified", "heartbeat"]
    assert "created" not in mesh.flows().columns


def test_the_frame_has_everything(mesh: MeshLab) -> None:
    """All columns, urls as they are, and who lists a flow."""
    frame = mesh.flows().frame
    assert list(frame.columns)[:2] == ["node", "organization"]
    assert frame["registries"].tolist() == [["registry1", "registry2"]] * 3
    assert set(frame["node"]) == {mesh["node1"].url, mesh["node2"].url}
    assert mesh["registry1"].flows().frame.columns[0] == "registry"


def test_the_html_is_escaped_and_constant(mesh: MeshLab) -> None:
    """No tag of a user, no url of a member, no colour that hides the text of a theme."""
    html = mesh.flows()._repr_html_()
    assert "<i>x</i>" not in html
    assert "&lt;i&gt;x&lt;/i&gt;" in html
    assert "b &amp; c</span>" in html
    assert "127.0.0.1" not in html
    assert html == mesh.flows()._repr_html_()
    assert not re.search(r"[^-]color:(?!inherit)|#[0-9a-f]{3}|<style|class=", html)
    assert mesh.flows(q="zebra")._repr_html_() == "<div><i>no flows</i></div>"


def test_a_long_table_says_what_it_leaves_out() -> None:
    """Nobody reads a thousand rows, and a line break of a user breaks no line."""
    rows = [{"node": "http://n:1", "registry": "http://r:1", "url": f"/{i}", "name": "a\nb" * 50} for i in range(300)]
    lines = repr(FlowTable(rows, Names({}))).splitlines()
    assert len(lines) == 202
    assert lines[-1] == "the first 200 of 300 flows; .frame has all"
    assert max(map(len, lines)) < 100


def test_what_is_printed_fits_a_terminal() -> None:
    """80 columns, with names as people have them: none of a member or flow is cut, columns without room are named."""
    with MeshLab(engine="simulated") as lab:
        first = lab.add_registry("old town registry", organization="Rheinische Zeitungsgruppe")
        for place in ("harbour", "university", "valley"):
            lab.add_registry(f"{place} registry", connect=first)
        flow = {"name": "evacuation routes", "description": "ways out " * 9, "author": "Fire Brigade", "tags": ["map"]}
        lab.add_node("town hall", connect=first, flows=[flow], organization="Mediaplus International")
        lab.add_node("forgotten", flows=["alone"])
        lab.settle()
        lab["valley registry"].kill()
        settled, flows = lab.settle(), lab.flows()
        tables = [flows, first.flows(), lab.beliefs(), lab.counts(), lab.counts("node"), lab.convergence()]
        for shown in (lab, settled, *tables, lab.explain("town hall"), lab.topology()):
            assert max(map(len, str(shown).splitlines())) <= 80
        assert str(settled).splitlines() == [
            "<Settled: 3 registries agree>",
            "- valley registry is not running (killed) and cannot be asked",
            "- forgotten has no registry, so nobody lists its flows",
        ]
        assert repr(flows).splitlines() == [
            "node       name               organization             tags  registries",
            "town hall  evacuation routes  Mediaplus International  map   3 registries",
            "1 flow; .frame has url, author, description too",
        ]
        times = [line.split()[-2:] for line in repr(lab.flows(times=True)).splitlines()[1:-1]]
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", " ".join(time)) for time in times)


def test_a_table_of_long_cells_stays_readable() -> None:
    """A line fits a terminal, the end of a url stays; HTML breaks what is long, and nothing else."""
    long = "/" + "v/" * 60 + "final-name"
    row = {
        "node": "http://n:1",
        "registry": "http://r:1",
        "name": "word " * 30,
        "author": "a" * 80,
        "description": "d " * 90,
    }
    table = FlowTable(
        [{**row, "url": long, "organization": "o" * 90, "tags": ["tag"] * 30}, {**row, "url": "/b"}], Names({})
    )
    lines = repr(table).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "2 flows; .frame has url, organization, author, description, tags too"
    brief = FlowTable([{**row, "url": long, "name": "a"}, {**row, "url": "/b", "name": "b"}], Names({}))
    assert "final-name" in repr(brief)
    html = table._repr_html_()
    assert html.count("overflow-wrap:anywhere") == 4
    assert long in html
    description = "d " * 90
    assert f'<span title="{description.strip()}">{description[:159]}…</span>' in html, "the rest when it is pointed at"
    assert html.count("display:inline-block") == 30, "tags go on in the next line"
    when = FlowTable([{**row, "created": "2024-12-25T18:03:12.989989"}], Names({}), times=True)
    assert ">2024-12-25 18:03:12<" in when._repr_html_()


@pytest.mark.parametrize(
    ("q", "said"),
    [
        ("nam ~ 'x'", "there is no column nam"),
        ("name = 'x'", "two are compared with =="),
        ("name ~ <b>", "a text stands in quotes"),
    ],
)
def test_a_q_that_was_taken_for_text_is_said(mesh: MeshLab, q: str, said: str) -> None:
    """Of the mesh and of a member, escaped in HTML; what is plain text, or an expression, says nothing."""
    for table in (mesh.flows(q=q), mesh["registry1"].flows(q=q)):
        assert " ".join(repr(table).split()).startswith(f"no flows; q was searched as text: {said}")
        assert "<b>" not in table._repr_html_()
        assert said in table._repr_html_()
    for fine in ("zebra", "name ~ 'x'", None):
        assert "q was" not in repr(mesh.flows(q=fine))


def test_an_option_that_does_not_exist_is_an_error_with_a_suggestion(lab: MeshLab) -> None:
    """Nothing is started, and nothing ended; a handle as its value is no matter."""
    registry = lab.add_registry()
    pid = registry.pid
    with pytest.raises(LabError, match="there is no option 'conect'; did you mean 'connect'"):
        lab.add_registry(conect=registry)
    with pytest.raises(LabError, match="there is no option 'flow'; did you mean 'flows'"):
        lab.add_node(connect=registry, flow=["a"])
    with pytest.raises(LabError, match="there is no option 'x1'; expected one of beacon, body_limit"):
        registry.restart(x1=1)
    with pytest.raises(LabError, match="lease: expected a number, a text or a list of these, not a Member"):
        registry.restart(lease=registry)
    assert (len(lab), registry.pid) == (1, pid)


def test_the_options_of_a_member_are_those_of_a_service() -> None:
    """The lab does not import the service, and has their names."""
    assert set(OPTIONS) == set(Options.model_fields)


def test_counts_are_one_table_over_the_registries(mesh: MeshLab) -> None:
    """A row for each registry, or for each value of what is counted by, the most frequent first."""
    counts = mesh.counts()
    assert counts.agree
    assert counts["registry1"] == mesh["registry1"].counts()
    assert counts.rows[1] == {"registry": "registry2", "flows": 3, "nodes": 2, "organizations": 2, "tags": 2}
    assert repr(counts).splitlines()[0].split() == ["registry", "flows", "nodes", "organizations", "tags"]
    assert repr(counts).endswith("\n2 registries agree")
    nodes = mesh.counts("node")
    assert nodes.frame.to_numpy().tolist() == [["node1", 2, 2], ["node2", 1, 1]]
    assert "<td" in nodes._repr_html_()
    assert "b &amp; c" in mesh.counts("tags")._repr_html_()
    assert not MEASURED.search(repr(nodes) + nodes._repr_html_())


def test_a_word_that_is_none_is_told_from_those_there_are(mesh: MeshLab) -> None:
    """And which was probably meant: what to count by, an engine, a kind, a registry, a node."""
    with pytest.raises(LabError, match="by: expected one of node, organization, tags, not 'tag'; did you mean 'tags'"):
        mesh.counts(by="tag")  # type: ignore[arg-type]
    with pytest.raises(LabError, match="engine: expected one of processes, simulated, not 'docker'"):
        MeshLab(engine="docker")  # type: ignore[arg-type]
    with pytest.raises(LabError, match="kind: expected one of registry, provider, node, not 'registri'; did you mean"):
        mesh.add("registri", "x", {})
    with pytest.raises(LabError, match="registry: expected one of registry1, registry2, not 'registry9'; did you mean"):
        mesh.counts()["registry9"]
    with pytest.raises(LabError, match="node: expected one of node1, node2, not 'registry1'"):
        mesh.beliefs()["registry1", "node1"]
    with pytest.raises(LabError, match="registry: expected one of registry1, registry2, not 'node2'"):
        mesh.beliefs()["node1", "node2"]
    with pytest.raises(LabError, match=r'expected a node and a registry, such as beliefs\["node1", "registry1"\]'):
        mesh.beliefs()["node1"]  # type: ignore[index]
    with pytest.raises(LabError, match=r"registry: expected one of registry1, registry2, not \['registry1'\]"):
        mesh.counts()[["registry1"]]  # type: ignore[index]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda lab: lab.explain(3), "expected the name of a member of this lab, not 3; it has "),
        (lambda lab: lab.explain("node1", 3), "flow: expected a name or a path, not 3"),
        (lambda lab: lab.timeline(last=0), "last: expected a whole number, 1 or more, or None for all, not 0"),
        (lambda lab: lab.timeline(last=-5), "last: expected a whole number, 1 or more, or None for all, not -5"),
        (lambda lab: lab["node1"].logs(tail=-1), "tail: expected a whole number, 0 or more, or None for all, not -1"),
        (lambda _: MeshLab(3), "name: expected a text, not 3; "),  # type: ignore[arg-type]
        (lambda _: MeshLab(engine=3), "engine: expected one of processes, simulated, not 3"),  # type: ignore[arg-type]
        (lambda _: MeshLab.from_file(3), "expected the path of a file, not 3"),  # type: ignore[arg-type]
        (lambda _: MeshLab.replay(3), "expected the path of a file, not 3"),  # type: ignore[arg-type]
        (lambda _: MeshLab.attach(3), "expected the name or the folder of a kept lab, not 3"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_meant_is_said_to_be_no_such_thing(
    mesh: MeshLab, ask: Callable[[MeshLab], object], said: str
) -> None:
    """With what was expected, and neither as an error of Python nor in silence."""
    with pytest.raises(LabError) as caught:
        ask(mesh)
    assert str(caught.value).startswith(said)


def test_an_error_of_a_member_names_it(mesh: MeshLab) -> None:
    """Not by its url, which nobody knows by heart."""
    with pytest.raises(KodoError, match=r"^node1 answered POST /register with 404"):
        mesh["node1"].post("/register", {"url": "http://localhost:1", "flows": []})


def test_where_no_registry_can_be_asked_tables_say_so(lab: MeshLab) -> None:
    """Nothing listed and nobody to ask are two things."""
    registry = lab.add_registry()
    other = lab.add_registry()
    assert repr(lab.flows()) == "no flows"
    other.kill()
    assert repr(lab.counts()).endswith("1 registry agrees, 1 without an answer")
    registry.kill()
    assert repr(lab.flows()) == "no flows; no registry is there to be asked"
    assert repr(lab.counts()).endswith("no registry is there to be asked")
    assert lab.counts("tags").rows == []


def test_what_registries_list_differently_stands_in_rows_of_its_own() -> None:
    """A disagreement is seen; times alone are none, and the latest is shown."""
    row = {"node": "http://n:1", "url": "/a", "name": "a", "created": "1", "modified": "1", "heartbeat": None}
    newer = {**row, "modified": "2"}
    merged = united({"r1": [row], "r2": [newer], "r3": [{**row, "name": "b"}]})
    assert [(found["registries"], found["modified"]) for found in merged] == [(["r1", "r2"], "2"), (["r3"], "1")]


# -- topology ----------------------------------------------------------------------------------------------


def test_the_topology_is_what_members_answer(mesh: MeshLab) -> None:
    """Kinds on members and links, and a constant text."""
    topology = mesh.topology()
    assert repr(topology) == "<Topology: 2 registries, 2 nodes, 3 links>"
    assert dict(topology.graph.nodes(data="kind")) == {
        "registry1": "registry",
        "registry2": "registry",
        "node1": "node",
        "node2": "node",
    }
    assert sorted(topology.graph.edges(data="kind")) == [
        ("node1", "registry1", "register"),
        ("node2", "registry2", "register"),
        ("registry2", "registry1", "connect"),
    ]


def test_the_topology_shows_as_a_picture_beside_its_text(mesh: MeshLab) -> None:
    """PNG with the size to show it in, the one line, and Mermaid that is the same every time."""
    data, metadata = mesh.topology()._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"]["width"] > 200
    assert data["text/plain"] == "<Topology: 2 registries, 2 nodes, 3 links>"
    assert data[MERMAID].split("\n") == [
        "graph LR",
        '    node1(["node1"])',
        '    node2(["node2"])',
        '    registry1["registry1"]',
        '    registry2["registry2"]',
        "    node1 --> registry1",
        "    node2 --> registry2",
        "    registry1 --- registry2",
        "",
    ]


def test_a_topology_is_saved_as_what_its_name_says(mesh: MeshLab, tmp_path: Path) -> None:
    """PNG, SVG, PDF and Mermaid; another ending is an error that names these."""
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "mmd": b"graph LR"}
    for suffix, magic in begins.items():
        mesh.topology().save(tmp_path / f"mesh.{suffix}")
        assert (tmp_path / f"mesh.{suffix}").read_bytes().startswith(magic)
    with pytest.raises(LabError, match=r"one of \.png, \.svg, \.pdf, \.mmd"):
        mesh.topology().save(tmp_path / "mesh.gif")


@pytest.mark.parametrize(
    ("save", "name"),
    [
        (lambda lab, path: lab.topology().save(path), "mesh.png"),
        (lambda lab, path: lab.topology().save(path), "mesh.mmd"),
        (lambda lab, path: lab.timeline().save(path), "timeline.svg"),
        (lambda lab, path: lab.settle().plot().save(path), "bars.pdf"),
        (lambda _, path: MeshLab(engine="simulated").to_file(path), "mesh.yaml"),
        (lambda lab, path: lab.record(path), "mesh.jsonl"),
    ],
)
def test_what_cannot_be_written_is_told_alike(
    mesh: MeshLab, tmp_path: Path, save: Callable[[MeshLab, Path], Any], name: str
) -> None:
    """Whatever is saved: a folder that is not there, or a file that is a folder, is an error with its cause."""
    (tmp_path / name).mkdir()
    wrong = {"its folder is not there; make the folder": tmp_path / "no" / name, "is a directory": tmp_path / name}
    for said, path in wrong.items():
        with pytest.raises(KodoError, match=re.escape(f"{path}: expected a file to write, but {said}")) as caught:
            save(mesh, path)
        assert isinstance(caught.value.__cause__, OSError)
    assert not (tmp_path / "no").exists()


def test_what_someone_connected_behind_the_labs_back_shows_up(lab: MeshLab, serve: Start) -> None:
    """A registry and a node from elsewhere, under their urls."""
    mine = lab.add_registry()
    other = serve(organization="other", node=False, connect=mine.url)
    node = serve(organization="node", registry=False, connect=other.url, loader=["its"])
    until(lambda: len(mine.flows()) == 1, "the stranger's flow to be listed")
    graph = lab.topology().graph
    assert dict(graph.nodes(data="kind")) == {"registry1": "registry", other.url: "registry", node.url: "node"}
    assert sorted(graph.edges) == sorted([(other.url, "registry1"), (node.url, other.url)])


def test_who_does_not_answer_and_what_does_not_stand_is_marked(lab: MeshLab) -> None:
    """Stopped members stay in the picture, and so does a connection that was never made."""
    first, second = lab.add_registry(), lab.add_registry()
    first.kill()
    lab.add_node(connect=[first, second])
    until(lambda: lab["node1"].status()["connection"][second.url], "the node to be registered")
    graph = lab.topology().graph
    assert dict(graph.nodes(data="answers")) == {"registry1": False, "registry2": True, "node1": True}
    assert sorted(graph.edges(data="stands")) == [("node1", "registry1", False), ("node1", "registry2", True)]
    text = lab.topology().mermaid()
    assert '    registry1["registry1"]:::gone\n' in text
    assert "    node1 -.-> registry1\n" in text


def seen(registries: int, nodes: int) -> list[Seen]:
    """Members as they would answer: registries in a chain, nodes spread over them."""
    names = [f"registry{i}" for i in range(registries)] + [f"a rather long name {i}" for i in range(nodes)]
    urls = {name: f"http://127.0.0.1:{1000 + i}" for i, name in enumerate(names)}
    found = []
    for i, name in enumerate(names):
        to = names[i - 1] if 0 < i < registries else names[i % registries]
        connection: Any = {urls[to]: "now"} if i else {}
        view: Any = {"url": urls[name], "feed": True, "nodes": {}, "providers": {}, "connection": connection}
        found.append(Seen(name, urls[name], "registry" if i < registries else "node", view))
    return found


def readable(graph: Any) -> None:
    """No label or marker covers another."""
    places = place(graph, {})
    boxes = {name: box_of(name, kind) for name, kind in graph.nodes(data="kind")}
    for one, other in combinations(sorted(places), 2):
        assert min(boxes[one].overlap(places[one], boxes[other], places[other])) < 1e-6, (one, other)


@pytest.mark.parametrize(("registries", "nodes"), [(2, 2), (3, 5), (6, 14), (1, 19)])
def test_labels_do_not_overlap(registries: int, nodes: int) -> None:
    """Whatever the shape, up to twenty members, each can be read."""
    readable(graph_of(seen(registries, nodes)))


def test_a_clique_of_24_settles_and_can_be_read() -> None:
    """Two dozen registries, each connected with each other, agree on a flow, and their picture can be read."""
    with MeshLab.from_graph(nx.complete_graph(24)) as clique:
        clique.add_node(connect=next(iter(clique)), flows=["known to all"])
        assert len(clique.settle().per_registry) == 24
        readable(clique.topology().graph)


def test_who_comes_moves_nobody_much_and_the_same_mesh_has_the_same_places() -> None:
    """Places are kept; a new one is put where there is room."""
    before = place(graph_of(seen(3, 5)), {})
    assert place(graph_of(seen(3, 5)), {}) == before
    after = place(graph_of(seen(3, 9)), before)
    assert max(abs(after[name] - before[name]) for name in before) < 0.3
    assert len(after) == 12


def test_links_run_through_no_member() -> None:
    """One that would bends, no more than it has to; who is linked is seen."""
    graph = nx.DiGraph()
    graph.add_nodes_from("abc", kind="registry", answers=True, paused=False)
    graph.add_edges_from([("a", "b"), ("b", "c"), ("a", "c")], kind="connect", stands=True)
    places = {"a": 0j, "b": 1.35 + 0j, "c": 2.7 + 0.1j}
    bends = bends_of(graph, places)
    assert (bends["a", "b"], bends["b", "c"]) == (0, 0)
    assert 0.2 < abs(bends["a", "c"]) < 0.5
    [drawn] = [line for line in Topology(graph, places).draw().axes[0].lines if len(line.get_xdata()) > 2]
    assert max(drawn.get_ydata()) - min(drawn.get_ydata()) > 0.2


def test_labels_that_begin_alike_are_told_apart() -> None:
    """A long name is cut in its middle, as in tables."""
    names = [f"registry-of-the-town-number-{number}" for number in range(9)]
    assert len({label_of(name) for name in names}) == 9
    assert {len(label_of(name)) for name in names} == {26}
    assert label_of("http://a:1") == "a:1"


def test_a_picture_holds_whatever_a_name_is() -> None:
    """Dollar signs, quotes, words of Mermaid, and a mesh of nobody."""
    names = ["$x$", 'a"b', "end", "a b", "a_b"]
    graph = nx.DiGraph()
    for name in names:
        graph.add_node(name, kind="node", answers=True, paused=False)
    topology = Topology(graph, place(graph, {}))
    assert topology.png.startswith(b"\x89PNG")
    assert topology.mermaid().split("\n    ")[1:] == [
        '_x_(["#36;x#36;"])',
        'a_b(["a b"])',
        'a_b_(["a#34;b"])',
        'a_b__(["a_b"])',
        'end_(["end"])\n',
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Bars("节点", {"节点一": 1.0, "ज्ञान": 2.0}).png.startswith(b"\x89PNG")
        graph.add_node("节点", kind="node", answers=True, paused=False)
        assert Topology(graph, place(graph, {})).png.startswith(b"\x89PNG")
    empty = Topology(nx.DiGraph(), {})
    assert empty.png.startswith(b"\x89PNG")
    assert repr(empty) == "<Topology: no members, 0 links>"


def test_the_lab_offers_what_is_for_notebooks() -> None:
    """What a notebook completes after `kodo.lab.` are the two names that are public."""
    assert dir(kodo.lab) == ["Member", "MeshLab"]


# -- lifetime ----------------------------------------------------------------------------------------------


def ends(lab: MeshLab) -> tuple[list[int], Path]:
    """What must be gone when the lab is."""
    pids = [member.pid for member in lab if member.pid is not None]
    return [*pids, lab.engine._process.pid], lab.folder


def test_terminate_ends_everything_and_may_be_repeated() -> None:
    """Members, guardian and folder are gone; what is asked then says so."""
    lab = MeshLab("demo")
    node = lab.add_node(connect=lab.add_registry())
    pids, folder = ends(lab)
    lab.terminate()
    lab.terminate()
    assert not any(map(alive, pids))
    assert not folder.exists()
    assert repr(lab) == "<MeshLab demo, 1 registry, 1 node: terminated>"
    assert repr(node) == "<Node node1: terminated>"
    for ask in (lab.add_registry, lab.settle):
        with pytest.raises(LabError, match="this lab was terminated; start a new one"):
            ask()
    with pytest.raises(LabError, match="this lab was terminated"):
        node.restart()
    with pytest.raises(LabError, match="give the lab a folder= to keep logs"):
        node.logs()


def test_an_exception_in_the_middle_ends_everything_and_no_neighbour(mesh: MeshLab) -> None:
    """The exception comes through as it was."""
    left = []

    def fail() -> None:
        with MeshLab() as lab:
            lab.add_registry()
            left.append(ends(lab))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    pids, folder = left[0]
    assert not any(map(alive, pids))
    assert not folder.exists()
    assert repr(mesh) == "<MeshLab 2 registries, 2 nodes: running>"
    assert mesh["registry1"].status()["idle"]


def test_a_cell_that_is_run_again_ends_the_lab_that_it_began_before() -> None:
    """When the new one settles, whose members have taken the last names; Python would find the old one much later."""
    cell = "lab = MeshLab(); r = lab.add_registry(); n = lab.add_node(connect=r, flows=['a']); lab.settle()"
    notebook: dict[str, Any] = {"MeshLab": MeshLab}
    gc.disable()
    try:
        exec(cell, notebook)
        old, (pids, folder) = weakref.ref(notebook["lab"]), ends(notebook["lab"])
        exec(cell, notebook)
        assert old() is None
        assert not any(map(alive, pids))
        assert not folder.exists()
        kept = notebook.pop("r")
        del notebook["lab"], notebook["n"]
        with MeshLab() as other:
            other.add_registry()
            assert kept.running, "who has a handle has the lab"
            kept.lab.terminate()
    finally:
        gc.enable()


def test_a_handle_keeps_its_lab_and_the_last_one_takes_it_along() -> None:
    """`MeshLab().add_registry()` in one line works, and leaves nothing when it is forgotten."""
    registry = MeshLab().add_registry()
    pids, folder = ends(registry.lab)
    gc.collect()
    assert registry.status()["registry"]
    del registry
    gc.collect()
    assert not any(map(alive, pids))
    assert not folder.exists()


def test_a_given_folder_is_kept(tmp_path: Path) -> None:
    """With the members' logs and caches in it."""
    with MeshLab(folder=tmp_path / "kept") as lab:
        registry = lab.add_registry()
        lab.add_node(connect=registry, flows=["a"])
        lab.settle()
    assert "shutdown now" in registry.logs()
    assert (tmp_path / "kept" / "registry1.json").exists()


def test_a_guardian_that_is_gone_is_said_to_be_gone(mortal: MeshLab) -> None:
    """What it last said is shown, no member is taken for running, and the lab still ends."""
    registry = mortal.add_registry()
    mortal.engine._process.kill()
    until(lambda: not registry.running, "the guardian's end to be seen")
    for ask in (mortal.add_registry, mortal.flows, mortal.settle, registry.status, registry.start):
        with pytest.raises(LabError, match=r"(?s)the lab has ended.*; start a new one with MeshLab\(\)"):
            ask()
    assert repr(mortal) == "<MeshLab 1 registry: ended>"
    assert repr(registry) == "<Registry registry1: ended with its lab>"


def test_plain_methods_work_inside_a_running_event_loop(lab: MeshLab) -> None:
    """As in a notebook, whose cells run inside one."""

    async def cell() -> str:
        lab.add_node(connect=lab.add_registry(), flows=["a"])
        lab.settle()
        return repr(lab.flows()).splitlines()[-1]

    assert asyncio.run(cell()) == "1 flow"


def test_an_interrupt_while_a_member_starts_leaves_the_lab_without_it(lab: MeshLab) -> None:
    """The process that was starting is killed."""
    lab.add_registry()
    main = threading.main_thread().ident
    assert main is not None
    log = lab.folder / "node1.log"

    def interrupt() -> None:
        until(lambda: log.exists() and "node startup" in log.read_text(), "the node to be starting")
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        lab.add_node(loader=lambda: __import__("time").sleep(60))
    thread.join()
    assert [member.name for member in lab] == ["registry1"]
    until(lambda: not lab.engine.running("node1"), "the node to be gone")
    assert lab.add_node().name == "node1"


def test_a_start_after_an_interrupted_restart_waits_for_the_end(lab: MeshLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was told to end runs still when the restart is interrupted, and is started again once it has ended."""
    registry = lab.add_registry()
    before, waits = registry.pid, lab.engine.wait_for_end

    def interrupted(name: str, timeout: float) -> bool:
        monkeypatch.setattr(lab.engine, "wait_for_end", waits)
        raise KeyboardInterrupt

    monkeypatch.setattr(lab.engine, "wait_for_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        registry.restart()
    registry.start()
    assert registry.pid not in {before, None}
    assert registry.get()["url"] == registry.url


def test_without_the_extra_the_import_says_what_to_install() -> None:
    """Before anything else fails."""
    code = (
        "import sys, importlib.util as u; f = u.find_spec\nu.find_spec = lambda n: n != 'networkx' and f(n) or None\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code + "import kodo.lab"], capture_output=True, text=True, check=False
    )
    assert "kodo.lab needs networkx, which is not installed: pip install 'kodo[lab]'" in ended.stderr


def test_a_client_reaches_a_member_like_any_service(mesh: MeshLab) -> None:
    """A member is a service: its url is all that anyone needs."""
    with Client(mesh["registry1"].url) as client:
        assert client.counts()["total"] == 3


def test_a_mesh_with_a_provider_settles(lab: MeshLab) -> None:
    """The mesh pictured in the README settles: registries agree with each other, and the provider gives its nodes."""
    provider = lab.add_registry("shop", provider=True)
    one = lab.add_registry("one", connect=provider)
    two = lab.add_registry("two", connect=[one, provider])
    lab.add_node("samples", connect=provider, flows=["sample"])
    lab.add_node("press", connect=two, flows=["reader"])
    lab.settle()
    assert (
        [row["name"] for row in one.flows().rows] == [row["name"] for row in two.flows().rows] == ["reader", "sample"]
    )
    assert [row["name"] for row in provider.flows().rows] == ["sample"]


@pytest.mark.parametrize("wrong", ["5", -1, float("nan"), float("inf"), [], True])
def test_a_timeout_that_is_no_time_is_refused(lab: MeshLab, wrong: Any) -> None:
    """Such a wait would never end, or end in the middle; nothing is started, paused or ended for it."""
    registry = lab.add_registry()
    waits: list[Callable[..., Any]] = [lab.settle, lab.add_node, registry.pause, registry.restart, registry.kill]
    for wait in (*waits, registry.start, MeshLab):
        with pytest.raises(LabError, match="timeout: expected seconds, 0 or more, not"):
            wait(timeout=wrong)
    assert (repr(registry), len(lab)) == ("<Registry registry1: running>", 1)


def test_a_member_goes_on_when_its_new_loader_cannot_travel(lab: MeshLab) -> None:
    """A loader that cannot be taken to another process is refused before the member is ended for it."""
    node, lock = lab.add_node(flows=["test"]), threading.Lock()
    pid = node.pid
    with pytest.raises(LabError, match="expected a loader that can travel to another process"):
        node.restart(loader=lambda: lock)
    assert node.pid == pid


def test_a_folder_or_a_record_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """The error names what was asked for, and nothing is left running."""
    before = threading.active_count()
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match=r"folder: expected one that can be written to, but \S+/file/lab: not a dir"):
        MeshLab(folder=tmp_path / "file/lab")
    with pytest.raises(LabError, match="expected a file to write, but its folder is not there"):
        MeshLab(folder=tmp_path, record=tmp_path / "nowhere/record.jsonl")
    until(lambda: threading.active_count() <= before, "the guardian to have hung up")


def test_what_steers_a_terminal_is_spelled_out(lab: MeshLab) -> None:
    """Nobody's name colours, moves or reverses what stands around it."""
    registry = lab.add_registry()
    lab.add_node(connect=registry, flows=[{"name": "\x1b[31mred", "tags": ["\u202etag"]}])
    lab.settle()
    for shown in (repr(lab.flows()), repr(lab.counts("tags"))):
        assert shown.replace("\n", "").isprintable()
    assert r"\x1b[31mred" in repr(lab.flows())


def test_a_loader_may_bring_much_along(lab: MeshLab) -> None:
    """What a loader carries is looked through once, so that sixteen megabytes are no work."""
    much = os.urandom(2**24)
    node = lab.add_node(loader=lambda: [str(len(much))])
    assert [row["name"] for row in node.flows().rows] == ["16777216"]


def test_a_start_that_meets_the_end_of_its_lab_says_so() -> None:
    """Whoever waits for a member when the guardian ends is told at once that the lab has ended."""
    with MeshLab() as lab:

        def ending() -> list[str]:
            os.kill(os.getppid(), signal.SIGKILL)
            threading.Event().wait()
            return []

        with pytest.raises(LabError, match="the lab has ended; start a new one"):
            lab.add_node(loader=ending)
