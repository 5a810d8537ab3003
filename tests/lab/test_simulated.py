"""Simulated labs: the verbs of a lab, in virtual time; and the explanations of both kinds of lab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from kodo.client import Client
from kodo.errors import InvalidMessageError, KodoError, LabError, UnavailableError
from kodo.lab import MeshLab
from kodo.lab.explained import Convergence, Explanation
from kodo.lab.naming import Names
from kodo.lab.processes import OPTIONS
from kodo.plan import FOUND
from tests.waiting import until


@pytest.fixture
def sim() -> Iterator[MeshLab]:
    with MeshLab(engine="simulated") as lab:
        yield lab


@pytest.fixture
def pair(sim: MeshLab) -> MeshLab:
    """Two registries, and a node at the first."""
    first = sim.add_registry()
    sim.add_registry(connect=first)
    sim.add_node(connect=first, flows=["my test", {"name": "other", "tags": ["news"], "author": "me"}])
    return sim


def rows(lab: MeshLab, **asked: Any) -> list[tuple[str, list[str]]]:
    return [(row["name"], row["registries"]) for row in lab.flows(**asked).rows]


# -- building ----------------------------------------------------------------------------------------------


def test_a_simulated_mesh_settles_in_virtual_time(pair: MeshLab) -> None:
    """What it took is exact: the node's registration and one push, each 10 ms on its way, and the same every time."""
    assert repr(pair) == "<MeshLab simulated, 2 registries, 1 node: running>"
    settled = pair.settle()
    assert repr(settled) == "<Settled: 2 registries agree>"
    assert (settled.registries, settled.flows, settled.messages, settled.pushes) == (2, 2, 3, 1)
    assert settled.per_registry == {"registry1": 0.01, "registry2": 0.02} or settled.max == 0.02
    assert settled.p50 <= settled.max <= settled.seconds
    assert list(settled.frame.columns) == ["registry", "seconds"]
    assert settled.plot().png.startswith(b"\x89PNG")
    assert pair.settle().messages == 0, "nothing has happened since"


def test_the_same_seed_gives_the_same_run() -> None:
    """Also under losses, to the microsecond; another seed gives another."""

    def run(seed: int) -> list[tuple[Any, ...]]:
        with MeshLab(engine="simulated", seed=seed) as lab:
            first = lab.add_registry()
            second = lab.add_registry(connect=first)
            lab.loss(first, second, request=0.5, answer=0.3)
            lab.add_node(connect=first, flows=["a"])
            lab.run(200)
            return [(m.sender, m.receiver, m.outcome, m.sent, m.ended) for m in lab.timeline(last=None).messages]

    assert run(1) == run(1) != run(2)


def test_flows_are_found_and_sorted_as_services_do(pair: MeshLab) -> None:
    """Of the mesh and of a member, with expressions, text, and orders; a wrong order is refused."""
    pair.settle()
    both = ["registry1", "registry2"]
    assert rows(pair, by="name:d") == [("other", both), ("my test", both)]
    assert rows(pair, q='name ~ "TEST"') == [("my test", both)]
    assert rows(pair, q="@tag('news') & author == 'me'") == [("other", both)]
    assert rows(pair, q="EWS") == [("other", both)], "what is no expression is searched as text"
    member = pair["registry2"].flows(q='not @tag("news")')
    assert repr(member).splitlines()[1].split() == ["node1", "my", "test", "/my-test", "node1"]
    assert list(pair["node1"].flows().frame["name"]) == ["my test", "other"]
    with pytest.raises(InvalidMessageError, match="is no column; there are registry, node"):
        pair.flows(by="colour")


def test_a_member_is_asked_as_a_real_one(pair: MeshLab) -> None:
    """Status, map, counts and any of these by path; a node that registers by hand; and what nobody answers."""
    pair.settle()
    first, second = pair["registry1"], pair["registry2"]
    assert second.status()["connection"].keys() == {first.url}
    assert second.get()["idle"] is True
    assert second.map()["providers"][first.url]["nodes"].keys() == {pair["node1"].url}
    assert first.map()["nodes"].keys() == {pair["node1"].url}
    assert second.counts() == {
        "total": 2,
        "node": {pair["node1"].url: 2},
        "organization": {"node1": 2},
        "tags": {"news": 1},
    }
    assert second.get("/flows", pp=1)["filtered"] == 2
    said = first.post("/register", {"url": "http://hand:1", "flows": [{"url": "/x", "name": "x"}]})
    assert "http://hand:1" in said["message"][0]
    pair.settle()
    assert [row["name"] for row in second.flows(q='node == "http://hand:1"').rows] == ["x"]
    with pytest.raises(LabError, match="expected a path that simulated members answer"):
        first.get("/events")
    with pytest.raises(LabError, match="expected /register"):
        first.post("/connect", {})
    with pytest.raises(InvalidMessageError, match="url"):
        first.post("/register", {"flows": []})


def test_names_that_are_no_hosts_have_urls_too(sim: MeshLab) -> None:
    """Spaces, and names that differ by their case alone."""
    one = sim.add_registry("my registry")
    two, three = sim.add_registry("R", connect=one), sim.add_registry("r", connect=[one, "R"])
    sim.add_node("n", connect=three, flows=["a"])
    assert len({member.url for member in (one, two, three)}) == 3
    assert sim.settle().registries == 3
    assert rows(sim) == [("a", ["my registry", "R", "r"])]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"colour": "red"}, "there is no option 'colour'; expected one of .*connect"),
        ({"leese": 3}, "did you mean 'lease'"),
        ({"lease": 0}, "lease: expected seconds"),
        ({"url": "nowhere"}, "expected an http or https url"),
        ({"connect": "registy1"}, "did you mean 'registry1'"),
        ({"connect": "://"}, "connect: expected an http or https url with a host.* not '://'"),
        ({"connect": "node1"}, "expected a registry, but node1 is a node"),
    ],
)
def test_what_cannot_start_is_said_and_leaves_the_lab_as_it_was(
    pair: MeshLab, options: dict[str, Any], expected: str
) -> None:
    """Options that do not exist, values that cannot be, and connections with nobody."""
    with pytest.raises(LabError, match=expected):
        pair.add_registry("new", **options)
    assert "new" not in pair
    pair.settle()


def test_loaders_are_called_and_their_errors_told(sim: MeshLab) -> None:
    """A callable is called when its node starts; one that fails is a clear error."""
    registry = sim.add_registry()

    def broken() -> None:
        raise RuntimeError("no luck")

    with pytest.raises(LabError, match=r"expected node1 to start, but .*no luck"):
        sim.add_node(connect=registry, loader=broken)
    node = sim.add_node(connect=registry, loader=lambda: [{"name": "from a cell"}])
    sim.settle()
    assert [name for name, _ in rows(sim)] == ["from a cell"]
    with pytest.raises(LabError, match="no luck"):
        node.restart(loader=broken)
    assert repr(node) == "<Node node1: terminated>"
    node.restart(loader=None, flows=["again"])
    sim.settle()
    assert [name for name, _ in rows(sim)] == ["again"]


def test_a_lab_from_a_graph_and_through_a_file(tmp_path: Path, pair: MeshLab) -> None:
    """What is written down starts again, simulated as well; a provider gives and does not take."""
    pair.to_file(tmp_path / "mesh.yaml")
    with MeshLab.from_file(tmp_path / "mesh.yaml", engine="simulated", seed=3) as again:
        again.settle()
        assert rows(again) == [("my test", ["registry1", "registry2"]), ("other", ["registry1", "registry2"])]
    graph = nx.path_graph(["a", "p", "n"])
    nx.set_node_attributes(graph, {"p": {"kind": "provider"}, "n": {"kind": "node", "flows": ["x"]}})
    with MeshLab.from_graph(graph, engine="simulated") as lab:
        lab.settle()
        assert rows(lab) == [("x", ["a", "p"])]
        assert repr(lab) == "<MeshLab simulated, 1 registry, 1 provider, 1 node: running>"


# -- what is seen ------------------------------------------------------------------------------------------


def test_views_are_drawn_from_what_members_answer(pair: MeshLab) -> None:
    """Topology, timeline and beliefs; a stranger who registered by hand shows up."""
    pair.settle()
    assert "node1 --> registry1" in pair.topology().mermaid()
    assert pair.topology().png.startswith(b"\x89PNG")
    timeline = pair.timeline()
    assert [(m.sender, m.receiver, m.route) for m in timeline.messages] == [
        ("registry2", "registry1", "/connect"),
        ("node1", "registry1", "/register"),
        ("registry1", "registry2", "/update/node"),
    ]
    assert timeline.frame["way"].round(3).tolist() == [0.01, 0.01, 0.01]
    assert "m0->>m1" in timeline.mermaid() or "->>" in timeline.mermaid()
    assert timeline.png.startswith(b"\x89PNG")
    assert pair.beliefs().agree
    assert pair.beliefs()["node1", "registry2"] == "known"


def test_time_passes_when_it_is_told_to(sim: MeshLab) -> None:
    """A node that is killed is a ghost until its lease and its retention have passed; nothing else passes time."""
    registry = sim.add_registry(lease=2, retention=5)
    node = sim.add_node(connect=registry, flows=["a"])
    # One that hears nobody at all takes itself for cut off, and drops nobody.
    sim.add_node(connect=registry, flows=["b"])
    sim.settle()
    sim.run(5)  # a node that never beat has no lease
    node.kill()
    assert repr(node) == "<Node node1: killed>"
    assert sim.beliefs()["node1", "registry1"] == "ghost"
    sim.run(3600)
    assert sim.beliefs()["node1", "registry1"] == "-"
    with pytest.raises(LabError, match="seconds: expected seconds, 0 or more, not -1"):
        sim.run(-1)


# -- faults and lives --------------------------------------------------------------------------------------


def test_a_cut_holds_until_it_is_healed(pair: MeshLab) -> None:
    """As a block: what was said meanwhile waits, is drawn, and arrives when it ends."""
    pair.settle()
    first, second, node = pair["registry1"], pair["registry2"], pair["node1"]
    with pair.cut(first, second) as fault:
        assert repr(fault) == "<Fault cut registry1 <-> registry2: active>"
        assert repr(pair) == "<MeshLab simulated, 2 registries, 1 node: running, 1 fault>"
        node.restart(flows=["new"])
        pair.run(1)
        assert rows(pair, q='name == "new"') == [("new", ["registry1"])]
        assert pair.beliefs()["node1", "registry2"] == "stale"
        assert pair.timeline().messages[-1].outcome == "cut"
        assert "cut" in pair.topology().mermaid()
        assert pair.convergence().behind == [("registry1", "registry2")]
    pair.settle()
    assert rows(pair) == [("new", ["registry1", "registry2"])]
    assert pair.convergence().converged
    assert fault.began < (fault.ended or 0) == pair.timeline().faults[-1].end


def test_a_cut_in_one_direction_lets_the_other_speak(sim: MeshLab) -> None:
    """Who is cut off from speaking can still be told."""
    first = sim.add_registry()
    second = sim.add_registry(connect=first)
    sim.settle()
    fault = sim.cut(first, second, one_way=True)
    sim.add_node("there", connect=first, flows=["there"])
    sim.add_node("back", connect=second, flows=["back"])
    sim.run(5)
    assert rows(sim, by="name") == [("back", ["registry1", "registry2"]), ("there", ["registry1"])]
    fault.heal()
    fault.heal()
    sim.settle()
    assert rows(sim, q='name == "there"') == [("there", ["registry1", "registry2"])]


def test_latency_and_loss_are_those_of_the_way(pair: MeshLab) -> None:
    """200 ms each way are 200 ms more until the news is there; what is lost for sure never comes."""
    pair.settle()
    first, second, node = pair["registry1"], pair["registry2"], pair["node1"]
    with pair.latency(first, second, ms=200):
        node.restart(flows=["slow"])
        assert 0.22 <= pair.settle().max < 0.4, "the way, and what the registry gathers before it tells"
    with pair.loss(first, second, request=1):
        node.restart(flows=["lost"])
        pair.run(60)
        outcomes = {m.outcome for m in pair.timeline().messages if m.receiver == "registry2" and m.began > 0.5}
        assert "lost: request" in outcomes
        assert pair.beliefs()["node1", "registry2"] == "stale"
    with pair.loss(first, second, answer=1):
        node.restart(flows=["heard"])
        pair.run(30)
        assert pair.beliefs()["node1", "registry2"] == "known"
        assert pair.timeline().messages[-1].outcome == "lost: answer"
    pair.settle(timeout=300)
    with pytest.raises(LabError, match="request: expected a probability"):
        pair.loss(first, second, request=2)


def test_a_partition_that_nobody_heals_keeps_a_mesh_from_settling(pair: MeshLab) -> None:
    """The error names what is missing and why, after the time that was given, all of it virtual; `heal` ends it."""
    pair.settle()
    pair.partition(["registry2"])
    pair["node1"].restart(flows=["new"])
    with pytest.raises(LabError, match=r"registry2 never learned /new of node1: last push registry1 -> registry2 cut"):
        pair.settle(timeout=2)
    pair.heal()
    pair.settle()
    assert pair.beliefs().agree
    with pytest.raises(LabError, match="expected members of this lab"):
        pair.cut(MeshLab(engine="simulated").add_registry(), "registry1")


def test_members_are_paused_resumed_ended_and_started_again(pair: MeshLab) -> None:
    """What a member does is in its text and in the lab's; one that does not run is refused what only a running can."""
    pair.settle()
    second, node = pair["registry2"], pair["node1"]
    second.pause()
    second.pause()
    assert (repr(second), second.pid) == ("<Registry registry2: paused>", None)
    with pytest.raises(UnavailableError, match=r"registry2 to answer, but it is paused; use registry2.resume\(\)"):
        second.status()
    with pytest.raises(LabError, match="registry2 is paused"):
        pair.settle(timeout=1)
    node.restart(flows=["new"])
    second.resume()
    pair.settle()
    assert [row["name"] for row in second.flows().rows] == ["new"]
    second.terminate()
    second.terminate()
    assert repr(pair) == "<MeshLab simulated, 2 registries, 1 node: 2 of 3 running>"
    assert not pair.topology().graph.nodes["registry2"]["answers"]
    with pytest.raises(LabError, match="expected registry2 to run, but it was terminated"):
        second.pause()
    node.restart(flows=["newest"])
    second.restart()
    pair.settle()
    assert [row["name"] for row in second.flows().rows] == ["newest"], "what it had was durable, the rest it was told"
    with pytest.raises(LabError, match="a restart keeps its url"):
        second.restart(url="http://other:1")
    assert [event.what for event in pair.history.events if event.who == "registry2"][2:5] == [
        "paused",
        "resumed",
        "exited",
    ]


def test_the_end_is_the_end(pair: MeshLab) -> None:
    """A lab that was terminated says so, twice as well; what happened can still be looked at."""
    pair.settle()
    pair.terminate()
    pair.terminate()
    assert repr(pair) == "<MeshLab simulated, 2 registries, 1 node: terminated>"
    assert len(pair.timeline()) == 3
    pair["node1"].kill()
    assert repr(pair["node1"]) == "<Node node1: terminated>", "who has ended stays as it is"


VERBS: dict[str, Callable[[MeshLab], object]] = {
    **{
        name: lambda lab, name=name: getattr(lab, name)()
        for name in (
            *("add_node", "add_registry", "beliefs", "convergence", "counts", "dashboard", "detach", "flows", "heal"),
            *("live", "settle", "topology"),
        )
    },
    **{
        f"member.{name}": lambda lab, name=name: getattr(lab["registry1"], name)()
        for name in (*("counts", "flows", "get", "live", "map", "pause", "restart", "resume", "start", "status"),)
    },
    "add": lambda lab: lab.add("node", "n", {}),
    "cut": lambda lab: lab.cut("registry1", "registry2"),
    "explain": lambda lab: lab.explain("node1"),
    "explain a flow": lambda lab: lab.explain("any flow"),
    "latency": lambda lab: lab.latency("registry1", "registry2", ms=1),
    "loss": lambda lab: lab.loss("registry1", "registry2", request=0.5),
    "partition": lambda lab: lab.partition("registry1"),
    "record": lambda lab: lab.record("record.jsonl"),
    "run": lambda lab: lab.run(1),
    "member.explain": lambda lab: lab["registry1"].explain("node1"),
    "member.post": lambda lab: lab["registry1"].post("/register"),
}
"""Every verb that asks members, or does something to them."""


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_can_be_asked_of_a_lab_that_has_ended(pair: MeshLab, verb: str) -> None:
    """Whichever verb it is, the error says so, and what to do."""
    pair.terminate()
    with pytest.raises(LabError, match=r"this lab was terminated; start a new one with MeshLab\(\)"):
        VERBS[verb](pair)


@pytest.mark.parametrize("verb", ["live", "dashboard", "logs"])
def test_what_makes_no_sense_says_what_to_do_instead(pair: MeshLab, verb: str) -> None:
    """What needs processes is a clear error, of the lab and of a member."""
    with pytest.raises(LabError, match=rf"{verb}\(\): expected a lab of real services; in a simulated one, \w+"):
        getattr(pair, verb)()


def test_what_needs_files_or_processes_is_refused(pair: MeshLab, tmp_path: Path) -> None:
    """Records, folders, logs of a member, and engines that nobody built."""
    with pytest.raises(LabError, match=r"record\(\): expected a lab of real services"):
        pair.record(tmp_path / "x.jsonl")
    with pytest.raises(LabError, match="writes no log, timeline"):
        pair["node1"].logs()
    with pytest.raises(LabError, match=r"live\(\): expected"):
        pair["registry1"].live()
    with pytest.raises(LabError, match="writes no files"):
        _ = pair.folder
    for given in ({"folder": tmp_path}, {"record": tmp_path / "x"}):
        with pytest.raises(LabError, match=f"{next(iter(given))}: expected none"):
            MeshLab(engine="simulated", **given)  # type: ignore[arg-type]
    with pytest.raises(LabError, match="seed: expected a whole number"):
        MeshLab(engine="simulated", seed="x")  # type: ignore[arg-type]
    with pytest.raises(LabError, match="engine: expected one of processes, simulated, not"):
        MeshLab(engine="quantum")  # type: ignore[arg-type]


def test_a_simulated_lab_starts_no_process_and_no_thread() -> None:
    """It needs neither the guardian nor a port."""
    code = (
        "import threading, os; from kodo.lab import MeshLab; lab = MeshLab(engine='simulated');"
        "lab.add_node(connect=lab.add_registry(), flows=['a']); lab.settle(); print(threading.active_count());"
        "print(os.path.exists('/proc') and open(f'/proc/self/task/{os.getpid()}/children').read().split() or [])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["1", "[]"]


# -- crowds ------------------------------------------------------------------------------------------------


def test_a_large_mesh_is_summarised() -> None:
    """300 registries: pushes as many as the bound says, a picture without labels, tables that count."""
    graph = nx.random_regular_graph(4, 300, seed=1)
    with MeshLab.from_graph(graph, engine="simulated") as lab:
        lab.settle()
        lab.add_node("n", connect="0", flows=["a"])
        settled = lab.settle()
        assert len(graph) - 1 <= settled.pushes <= 2 * graph.number_of_edges() - len(graph) + 1
        assert repr(lab.flows()).splitlines()[1].split()[-2:] == ["300", "registries"]
        assert repr(lab.beliefs()).splitlines() == [
            "node        known",
            "n     runs  300",
            "1 node, 300 registries",
        ]
        assert ">300<" in lab.beliefs()._repr_html_()
        assert ">300<" in lab.explain("n")._repr_html_()
        assert lab.convergence()._repr_html_() == "<div><i>Convergence: 300 registries, nothing owed</i></div>"
        topology = lab.topology()
        assert "text/x-mermaid" not in topology._repr_mimebundle_()[0]
        assert len(set(topology.places.values())) == 301
        before = dict(topology.places)
        lab.add_node("late", connect="7", flows=["b"])
        with lab.partition([str(number) for number in range(40)]) as fault:
            assert repr(fault).endswith("0, 1, 2, 3 and 36 more | 40, 41, 42, 43 and 258 more: active>")
            later = lab.topology()
        assert {name: later.places[name] for name in before} == before, "who has a place keeps it"
        assert later.png != topology.png
        assert settled.plot().png.startswith(b"\x89PNG")
        assert lab.timeline().png.startswith(b"\x89PNG")


def test_a_settled_mesh_without_news_says_so_in_its_picture(pair: MeshLab) -> None:
    """Bars without a length say nothing by themselves."""
    pair.settle()
    pair["node1"].restart(flows=["new"])
    assert repr(pair.settle().plot()) == "<Bars: when 2 registries knew>"
    assert repr(pair.settle().plot()) == "<Bars: nothing was new: 2 registries knew it all before>"
    for member in pair:
        member.kill()
    nobody = pair.settle().plot()
    assert repr(nobody) == "<Bars: no registry runs>"
    assert nobody.png.startswith(b"\x89PNG")


def test_what_is_owed_to_who_does_not_run_keeps_no_simulated_mesh_from_settling(pair: MeshLab) -> None:
    """Within seconds of virtual time, not after all that settle() would wait."""
    pair.settle()
    pair["registry2"].kill()
    pair["node1"].restart(flows=["new"])
    settled = pair.settle(timeout=300)
    assert repr(settled).startswith("<Settled: 1 registry agrees; registry2 is not running (killed)")
    assert settled.seconds < 5
    pair["registry2"].start()
    assert repr(pair.settle(timeout=300)) == "<Settled: 2 registries agree>"


def test_a_cut_of_one_way_is_named_where_it_holds_something_up(pair: MeshLab) -> None:
    """Beside the member that cannot speak and the news that does not arrive, and not for the way that is free."""
    pair.settle()
    with pair.cut("registry1", "registry2", one_way=True):
        pair["node1"].restart(flows=["new"])
        with pytest.raises(LabError) as caught:
            pair.settle(timeout=3)
        cut = "while cut registry1 -> registry2 holds"
        assert f"- registry1 is not idle: it still has something to tell registry2, {cut}\n" in str(caught.value)
        assert f"s ago, {cut}\n" in str(caught.value)
        assert f"registry2 -> registry1 does not stand, {cut}" not in str(caught.value)


def test_a_member_does_not_connect_with_itself(pair: MeshLab) -> None:
    """By no spelling, as the file of a lab refuses it; it runs on as it was."""
    first = pair["registry1"]
    for itself in (first, "registry1", [first.url.upper().replace("HTTP", "http") + "/"]):
        with pytest.raises(LabError, match="connect: expected another registry or provider, not the member itself"):
            first.restart(connect=itself)
    assert (first.state, first.connect) == ("running", [])


def test_a_stranger_is_one_however_its_url_is_spelled() -> None:
    """By the protocol's comparison of urls it is one peer."""
    with MeshLab(engine="simulated") as lab:
        for url in ("http://elsewhere:3366", "http://ELSEWHERE:3366/"):
            lab.add_registry(connect=url)
        assert sorted(lab.topology().graph) == ["http://elsewhere:3366", "registry1", "registry2"]


def test_a_wrong_column_is_told_with_the_one_that_was_meant(pair: MeshLab) -> None:
    """Of the lab and of a member alike; what resembles none is told all that there are."""
    for asked in (pair, pair["registry1"]):
        with pytest.raises(InvalidMessageError, match=r"did you mean 'name'\?"):
            asked.flows(by="organization, nam:d")
    with pytest.raises(InvalidMessageError, match="is no column; there are registry, node"):
        pair.flows(by="xyzzy")


def test_an_attribute_that_is_misspelt_is_told_and_others_are_left_alone() -> None:
    """Graphs carry what they like, and flows that nobody sees are no use."""
    graph = nx.path_graph(2)
    graph.nodes[0]["pos"] = (0, 0)
    with MeshLab.from_graph(graph, engine="simulated") as lab:
        assert len(lab) == 2
    graph.nodes[1].update(kind="node", flws=["a"])
    with pytest.warns(UserWarning, match="attribute 'flws' of a node of the graph is left alone; did you mean 'flows'"):
        MeshLab.from_graph(graph, engine="simulated").terminate()


def test_no_organization_comes_back_from_a_file_as_none(tmp_path: Path) -> None:
    """And the member's own name, which goes without saying, as itself."""
    with MeshLab(engine="simulated") as lab:
        lab.add_registry("registry1", organization=None)
        lab.add_registry("registry2", connect="registry1")
        lab.to_file(tmp_path / "mesh.yaml")
    with MeshLab.from_file(tmp_path / "mesh.yaml", engine="simulated") as again:
        assert [member.setup.options["organization"] for member in again] == [None, "registry2"]


def test_a_file_that_nests_by_aliases_is_refused_at_once(tmp_path: Path) -> None:
    """Written out it would have some ten billion texts."""
    names = sorted(OPTIONS - FOUND - {"loader"})
    nested = [f"      {names[0]}: &a0 [{', '.join('x' * 10)}]"]
    nested += [f"      {name}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n, name in enumerate(names[1:12], 1)]
    path = tmp_path / "mesh.yaml"
    path.write_text("\n".join(["members:", "  registry1:", "    options:", *nested]))
    with pytest.raises(LabError, match="expected a number, a text or a list of these, not a list in a list"):
        MeshLab.from_file(path, engine="simulated")


PATHS: dict[str, Callable[[MeshLab, str], object]] = {
    "save": lambda lab, path: lab.topology().save(f"{path}.png"),
    "to_file": lambda lab, path: lab.to_file(path),
    "from_file": lambda _, path: MeshLab.from_file(path),
    "replay": lambda _, path: MeshLab.replay(path),
    "folder": lambda _, path: MeshLab(folder=path),
    "record": lambda _, path: MeshLab(record=path),
}


@pytest.mark.parametrize("verb", PATHS)
def test_a_path_with_a_nul_is_an_error_of_the_family(pair: MeshLab, tmp_path: Path, verb: str) -> None:
    """Wherever a path is given."""
    with pytest.raises(LabError, match="expected a path without a NUL"):
        PATHS[verb](pair, f"{tmp_path}/a\0b")


@pytest.mark.parametrize("verb", ["save", "to_file", "record"])
def test_a_folder_that_is_missing_is_named_and_never_made(pair: MeshLab, tmp_path: Path, verb: str) -> None:
    """As by what else writes files from a notebook."""
    with pytest.raises(KodoError, match="its folder is not there; make the folder"):
        PATHS[verb](pair, f"{tmp_path}/missing/a")
    assert not list(tmp_path.iterdir())


def test_a_wrong_name_is_told_from_the_first_of_many() -> None:
    """A lab of hundreds does not name them all, and says which one was probably meant."""
    with MeshLab(engine="simulated") as lab:
        members = [lab.add_registry() for _ in range(30)]
        with pytest.raises(LabError, match=r"not '2x'; it has registry1, .*registry12 and 18 more$"):
            lab.cut(members[0], "2x")
        with pytest.raises(LabError, match=r"not 'regitry1'; did you mean 'registry1'\?$"):
            lab["regitry1"]


def extents(figure: Any) -> dict[str, Any]:
    """Where each text of a picture stands in it."""
    figure.draw_without_rendering()
    return {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}


def test_the_timeline_of_a_crowd_has_lines_for_those_with_something_to_tell() -> None:
    """At most forty, each with its name; what has none is counted, and all messages are in the frame."""
    with MeshLab.from_graph(nx.cycle_graph(100), engine="simulated") as lab:
        lab.add_node("n", connect="0", flows=["a"])
        lab.settle()
        lab["99"].kill()
        timeline = lab.timeline()
        texts = extents(timeline._figure)
        assert len([name for name in texts if name in lab]) == 40
        assert {"99", "50"} <= texts.keys(), "who was killed, and who heard last"
        [said] = [text for text in texts if "more members have no line here" in text]
        assert not texts[said].overlaps(texts["time is not to scale: silence is shortened"])
        assert len(timeline.frame) == len(timeline) > 100


def test_a_cut_is_seen_in_a_crowd() -> None:
    """Each cut link has its cross, and links are seen between the members."""
    with MeshLab.from_graph(nx.cycle_graph(100), engine="simulated") as lab:
        lab.settle()
        with lab.partition([str(number) for number in range(50)]):
            axes = lab.topology()._figure.axes[0]
        crosses = [line for line in axes.lines if line.get_marker() == "x" and line.get_markersize() == 8]
        assert len(crosses) == 2


def test_the_picture_of_a_crowd_names_who_stands_out_and_says_where_all_names_are() -> None:
    """The few of a kind or a state, each on the card and none over another."""
    with MeshLab.from_graph(nx.path_graph(100), engine="simulated") as lab:
        lab.add_node("alone at one end of it", connect="0", flows=["a"])
        for number in range(4):
            lab.add_node(f"close to each other {number}", connect="50", flows=["a"])
        lab.settle()
        lab["99"].kill()
        topology = lab.topology()
    figure = topology._figure
    texts = extents(figure)
    assert "105 members are too many to name each: .graph has all names and links" in texts
    named = [name for name in texts if name in topology.graph]
    assert {"alone at one end of it", "close to each other 0", "99"} <= set(named)
    assert not set(named) & set(map(str, range(99))), "one registry is like another"
    assert not [pair for pair in combinations(named, 2) if texts[pair[0]].overlaps(texts[pair[1]])]
    assert all(texts[name].x0 >= 0 and texts[name].x1 <= figure.bbox.x1 for name in named)


def test_a_picture_of_sixty_names_each_and_stays_as_wide_as_a_notebook_shows() -> None:
    """Nothing is said of names then; two dozen are shown at their size."""
    for graph in (nx.random_regular_graph(3, 60, seed=1), nx.full_rary_tree(2, 31)):
        with MeshLab.from_graph(graph, engine="simulated") as lab:
            figure = lab.topology()._figure
            texts = {text.get_text() for text in figure.axes[0].texts}
            assert {member.name for member in lab} <= texts
            assert not [text for text in texts if "too many" in text]
    assert figure.get_size_inches()[0] < 9.2


def test_groups_that_nothing_links_are_drawn_apart() -> None:
    """A crowd of two meshes has a place for each of its members."""
    graph = nx.disjoint_union(nx.path_graph(40), nx.star_graph(40))
    with MeshLab.from_graph(graph, engine="simulated") as lab:
        lab.settle()
        places = lab.topology().places
    assert len(places) == 81
    centres = [sum(places[str(n)] for n in group) / len(group) for group in (range(40), range(40, 81))]
    assert abs(centres[0] - centres[1]) > 1


# -- explanations ------------------------------------------------------------------------------------------


def check_explanations(lab: MeshLab) -> None:
    """Of a settled pair, of either kind of lab."""
    explanation = lab.explain("node1", "my test")
    assert repr(explanation) == "<Explanation of node1 /my-test: listed by 2 of 2 registries>"
    assert explanation.why == dict.fromkeys(["registry1", "registry2"], "registered at registry1")
    heading, *rows, said, more = str(explanation).splitlines()
    assert heading.split()[:3] == ["registry", "listed", "why"]
    assert more == ".frame has status too"
    assert [row.split()[:2] for row in rows] == [["registry1", "yes"], ["registry2", "yes"]]
    assert said == repr(explanation)
    assert str(lab.convergence()).endswith(repr(lab.convergence()))
    assert lab["node1"].url in str(explanation.answers["registry1"]), "raw answers are as they came"
    html = explanation._repr_html_()
    assert "http://" not in html
    assert "created" not in html
    assert "created" in explanation.table(times=True)._repr_html_()
    assert explanation.frame["origin"].tolist() == ["registry1", "registry1"]
    other = lab["registry2"].explain(lab["node1"], "/nothing")
    assert other.listed == {"registry2": False}
    assert other.why["registry2"].endswith("without this flow: it has the paths /my-test, /other")
    never = lab.explain("http://127.0.0.9:9", at="registry1")
    assert never.frame["why"].tolist() == ["never seen: no registry that is known here has told of this node"]
    with pytest.raises(LabError, match="did you mean 'node1'"):
        lab.explain("nod1")
    with pytest.raises(LabError, match="did you mean 'registry"):
        lab.explain("node1", at="registry")
    with pytest.raises(LabError, match="expected a registry, but node1 is a node"):
        lab["node1"].explain("node1")
    convergence = lab.convergence()
    assert repr(convergence) == "<Convergence: 2 registries, nothing owed>"
    assert convergence.converged
    assert convergence.frame[["registry", "peer", "state"]].to_numpy().tolist() == [
        ["registry1", "registry2", "standing"],
        ["registry2", "registry1", "standing"],
    ]
    assert "heard" not in convergence._repr_html_()
    assert "heard" in convergence.table(times=True)._repr_html_()
    assert set(convergence.ages["origin"]) >= {"registry1"}
    lab["registry2"].pause()
    assert repr(lab.explain("node1")) == "<Explanation of node1: listed by 1 of 2 registries>"
    assert repr(lab.convergence()) == "<Convergence: 2 registries, nothing owed, 1 without an answer>"
    assert "no answer" in lab.convergence()._repr_html_()
    lab["registry2"].resume()


def test_a_simulated_lab_explains(pair: MeshLab) -> None:
    """Why a node is listed or not, and who is behind, by the simulator's registries."""
    pair.settle()
    check_explanations(pair)


def test_settling_measures_hop_by_hop_when_each_registry_first_heard() -> None:
    """On a ring of ten the farthest hears after a registration and five hops, whatever else it hears later."""
    ring = nx.relabel_nodes(nx.cycle_graph(10), {number: f"r{number}" for number in range(10)})
    lab = MeshLab.from_graph(ring, engine="simulated")
    lab.settle()
    lab.run(1)
    lab.add_node(connect="r0", flows=["a"])
    knew = lab.settle().per_registry
    assert {name: round(seconds * 100) for name, seconds in knew.items()} == {
        name: 1 + hops for name, hops in nx.single_source_shortest_path_length(ring, "r0").items()
    }


def test_a_flow_is_explained_by_its_name_or_path_alone_where_one_node_has_it() -> None:
    """Also where its path is not what its name suggests; of several it is said which there are."""
    lab = MeshLab(engine="simulated")
    registry = lab.add_registry()
    lab.add_node(connect=registry, flows=["press agent", {"name": "odd one", "url": "/elsewhere"}])
    lab.add_node(connect=registry, flows=["press agent"])
    lab.settle()
    for asked in (("odd one",), ("/elsewhere",), ("node1", "odd one"), (lab["node1"], "/elsewhere")):
        assert repr(lab.explain(*asked)) == "<Explanation of node1 /elsewhere: listed by 1 of 1 registry>"
    with pytest.raises(LabError, match=r"use one of explain\('node1', '/press-agent'\), explain\('node2', '/press-"):
        lab.explain("press agent")
    with pytest.raises(LabError, match="the name of a member, or of a flow, not 'od one'; did you mean 'odd one'"):
        lab.explain("od one")


def test_a_real_lab_explains_in_the_same_words(lab: MeshLab) -> None:
    """The same questions to real services have the same answers."""
    first = lab.add_registry()
    lab.add_registry(connect=first)
    lab.add_node(connect=first, flows=["my test", {"name": "other"}])
    lab.settle()
    until(lambda: lab.convergence().converged, "nothing to be owed")
    lab.run(0.01)
    check_explanations(lab)


def test_explanations_escape_what_users_write() -> None:
    """Names of members and flows become text."""
    answers = {
        "<b>": {"flow": None, "listed": True, "why": "<i>", "records": [{"origin": "http://x:1", "state": "listed"}]}
    }
    shown = Explanation("http://x:1", None, answers, Names({"<u>": "http://x:1"}))._repr_html_()
    assert not {"<b>", "<i>", "<u>"} & {part + ">" for part in shown.split(">")}
    assert "&lt;u&gt;" in shown
    assert "no answer" in Convergence({"a": None}, Names({}))._repr_html_()


# -- records -----------------------------------------------------------------------------------------------


def test_a_recorded_lab_is_done_again_in_the_simulator(tmp_path: Path) -> None:
    """Starts, a function's flows, a cut, a registration by hand and a kill: the same states, flows and faults."""
    path = tmp_path / "mesh.jsonl"
    with MeshLab("demo") as lab:
        first = lab.add_registry()
        second = lab.add_registry(connect=first)
        recording = lab.record(path)
        node = lab.add_node(connect=first, loader=lambda: [{"name": "from a function", "tags": ["x"]}])
        lab.settle()
        until(lambda: "from a function" in path.read_text(), "the flows to be recorded")
        with lab.cut(first, second):
            node.restart(loader=None, flows=["new"])
            until(lambda: '"cut"' in path.read_text(), "the push to be seen to hang")
        lab.settle()
        with Client(first.url) as client:
            client.post("/register", {"url": "http://hand:1", "flows": [{"url": "/hand", "name": "hand"}]})
        lab.settle()
        until(lambda: '"hand"' in path.read_text(), "the registration to be recorded")
        second.kill()
        recording.stop()
    replay = MeshLab.replay(path)
    again = replay.simulate(seed=4)
    assert repr(again) == "<MeshLab demo, simulated, 2 registries, 1 node: 2 of 3 running>"
    end = replay.at(replay.seconds)
    assert {m.name: "ended" if m.state == "killed" else m.state for m in again} == end.states
    columns = ["node", "name", "tags", "registries"]
    assert again.flows().frame[columns].to_dict() == end.flows().frame[columns].to_dict()
    assert [span.label for span in again.timeline().faults] == [span.label for span in end.timeline().faults]
    assert again.history.clock.moment() == pytest.approx(replay.seconds, abs=0.01)
    told = {(m.sender, m.receiver, m.route) for m in end.timeline().messages if m.sender in again}
    assert told <= {(m.sender, m.receiver, m.route) for m in again.timeline().messages}
    again.settle()


def test_a_record_of_before_says_what_it_lacks(tmp_path: Path) -> None:
    """One that does not tell how members were started cannot be done again."""
    path = tmp_path / "old.jsonl"
    lines = [
        '{"kodo": "recording", "version": 1, "name": null, "at": 0, "utc": ""}',
        '{"member": "r", "kind": "registry", "url": "http://127.0.0.1:1", "at": 0}',
        '{"event": "started", "who": "r", "at": 1, "utc": "", "code": null}',
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(LabError, match="expected the record to say how r was started; record the lab again"):
        MeshLab.replay(path).simulate()
    unknown = (
        '{"event": "launched", "who": "n", "at": 1, "utc": "", "setup": {"options": {"connect": []}, "flows": null}}'
    )
    path.write_text(
        "\n".join(
            [
                lines[0],
                lines[1].replace('"r"', '"n"').replace("registry", "node"),
                unknown,
                lines[2].replace('"r"', '"n"'),
            ]
        )
    )
    with pytest.raises(LabError, match="expected the record to tell what n offered"):
        MeshLab.replay(path).simulate()
