"""Labs from graphs and files, and back."""

from __future__ import annotations

from pathlib import Path

import networkx as nx  # type: ignore[import-untyped]
import pytest

from kodo.errors import LabError, PlanError
from kodo.lab import MeshLab
from kodo.lab.history import History
from kodo.lab.plan import changes_of, plan_of_graph
from kodo.plan import Plan, PlannedMember, read_plan, write_plan

MESH = """
name: demo
members:
  registry1: {kind: registry}
  registry2: {connect: [registry1, http://127.0.0.1:9], options: {organization: acme}}
  shop: {kind: provider, connect: registry2}
  node1:
    kind: node
    connect: [registry2]
    flows: [press agent, {name: archive, tags: [news], author: me}]
  node2: {kind: node, connect: [shop], loader: "tests.test_lab:module_flows"}
"""


def graph() -> nx.Graph:
    """A ring of three, and a node at one of them."""
    ring = nx.cycle_graph(3)
    ring.add_node("samples", kind="node", flows=["a", {"name": "b", "tags": ["x"]}])
    ring.add_edge(0, "samples")
    return ring


# -- graphs ------------------------------------------------------------------------------------------------


def test_a_graph_is_a_lab_whose_members_start_side_by_side() -> None:
    """Names are those of the graph's nodes; a node calls the registry, the later registry the earlier."""
    with MeshLab.from_graph(graph(), name="ring") as lab:
        assert repr(lab) == "<MeshLab ring, 3 registries, 1 node: running>"
        assert lab["samples"].connect == [lab["0"].url]
        assert lab["2"].connect == [lab["1"].url, lab["0"].url] or lab["2"].connect == [lab["0"].url, lab["1"].url]
        assert lab["0"].connect == []
        lab.settle()
        assert [row["name"] for row in lab["2"].flows().rows] == ["a", "b"]
        assert set(map(frozenset, lab.topology().graph.edges)) == {
            frozenset(edge) for edge in (("0", "1"), ("1", "2"), ("0", "2"), ("samples", "0"))
        }
        assert launched_before_any_started(lab.history)


def launched_before_any_started(history: History) -> bool:
    """Whether every process was asked for before the first answered."""
    what = [event.what for event in history.events if event.what in ("launched", "started")]
    return what[:4] == ["launched"] * 4


def test_the_edges_of_a_directed_graph_say_who_calls() -> None:
    """But a registry never calls a node."""
    directed = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("b", "n")])
    directed.nodes["n"]["kind"] = "node"
    plan = plan_of_graph(directed)
    assert {name: member.targets for name, member in plan.members.items()} == {
        "a": ["b"],
        "b": ["c"],
        "c": ["a"],
        "n": ["b"],
    }


def bad_graph(**data: object) -> nx.Graph:
    found = nx.path_graph(2)
    found.nodes[1].update(data)
    return found


def double() -> nx.Graph:
    found = nx.Graph()
    found.add_nodes_from([1, "1"])
    return found


def nodes_only() -> nx.Graph:
    found = nx.path_graph(2)
    nx.set_node_attributes(found, "node", "kind")
    return found


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (bad_graph(kind="regstry"), r"members\.1\.kind: expected 'registry', 'provider' or 'node'"),
        (bad_graph(flows=["a"]), r"members\.1\.flows: expected none, for it is no node"),
        (nx.Graph([("a", "a")]), "expected edges between a registry and another member, not 'a' - 'a'"),
        (nodes_only(), "expected edges between a registry and another member"),
        (double(), "two of them read the same as text"),
        (nx.Graph([("a/b", "c")]), "expected a name of printable characters"),
    ],
)
def test_a_graph_that_is_no_lab_says_why(graph: nx.Graph, text: str) -> None:
    """And starts nothing."""
    with pytest.raises(LabError, match=text):
        MeshLab.from_graph(graph)


def test_of_members_that_start_together_one_that_fails_takes_all_along(tmp_path: Path) -> None:
    """The error has its log; no lab is left half built."""
    (tmp_path / "mesh.yaml").write_text("members:\n  a: {}\n  n: {kind: node, connect: a, loader: 'nowhere:at_all'}\n")
    with pytest.raises(LabError, match=r"(?s)expected n to start, but it ended with code 1.*nowhere"):
        MeshLab.from_file(tmp_path / "mesh.yaml")


# -- files -------------------------------------------------------------------------------------------------


def test_a_file_is_a_lab_and_a_lab_is_a_file(tmp_path: Path) -> None:
    """The round trip ends where it began."""
    (tmp_path / "mesh.yaml").write_text(MESH)
    with MeshLab.from_file(tmp_path / "mesh.yaml") as lab:
        assert repr(lab) == "<MeshLab demo, 2 registries, 1 provider, 2 nodes: running>"
        assert lab["registry2"].status()["organization"] == "acme"
        assert len(lab["node1"].flows()) == 2
        lab.to_file(tmp_path / "again.yaml")
    assert told(read_plan(tmp_path / "again.yaml")) == told(read_plan(tmp_path / "mesh.yaml"))


def test_every_text_comes_back_from_a_file(tmp_path: Path) -> None:
    """What YAML takes for the end of a line is written as no such, and what needs no quotes has none."""
    plan = Plan(members={"node1": PlannedMember(kind="node", options={"organization": "a\x85b\u2028c\u2029 größe"})})
    write_plan(plan, tmp_path / "mesh.yaml")
    assert read_plan(tmp_path / "mesh.yaml") == plan


def told(plan: Plan) -> dict[str, object]:
    """A plan in the one form that all spellings of it have."""
    return {name: (member.kind, changes_of(member)) for name, member in plan.members.items()}


def test_a_lab_that_was_built_by_hand_is_written_with_names(tmp_path: Path) -> None:
    """Ports, paths and what goes without saying stay out."""
    with MeshLab() as lab:
        registry = lab.add_registry()
        lab.add_node(connect=registry, flows=["a", {"name": "größe", "tags": ["x"]}])
        lab.to_file(tmp_path / "mesh.yaml")
        text = (tmp_path / "mesh.yaml").read_text()
        assert text == (
            "members:\n  registry1: {}\n  node1:\n    kind: node\n    connect:\n    - registry1\n    flows:\n"
            "    - a\n    - name: größe\n      tags:\n      - x\n"
        )
        lab.add_node("other", loader=lambda: ["a"])
        with pytest.raises(
            LabError, match="other: expected flows or a loader that can be written down, not a function"
        ):
            lab.to_file(tmp_path / "mesh.yaml")
        assert (tmp_path / "mesh.yaml").read_text() == text


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("members:\n  a: {}\n  a: {}\n", ["line 3, members.a: expected once, but it stands here twice"]),
        ("members:\n  a: {kind: regstry}\n", ["line 2, members.a.kind: expected 'registry', 'provider' or 'node'"]),
        (
            "members:\n  a: {}\n  b:\n    conect: a\n",
            [
                "line 4, members.b.conect: expected no such field, but one of kind, connect, flows, loader, options, ",
            ],
        ),
        (
            "members:\n  a: {connect: [c]}\n  b:\n    connect: b\n",
            [
                "line 2, members.a.connect: expected the name of a member, or a url, not 'c'",
                "line 4, members.b.connect: expected another registry or provider, not 'b'",
            ],
        ),
        (
            "members:\n  n:\n    kind: node\n    flows:\n    - a\n    - {nme: b}\n",
            [
                "line 6, members.n.flows.2.name: expected this field",
                "line 6, members.n.flows.2.nme: expected no such field, but one of name, url, description, author,",
            ],
        ),
        ("members:\n  n: {kind: node, flows: [[a]]}\n", ["line 2, members.n.flows.1: expected a text or a mapping"]),
        ("members:\n  a:\n    connect: {}\n", ["line 3, members.a.connect: expected a text or a list of texts"]),
        ("members:\n  n: {kind: node, flows: [a], loader: 'a:b'}\n", ["members.n.loader: expected flows or a loader"]),
        ("members:\n  a: {options: {url: x}}\n", ["line 2, members.a.options.url: expected none"]),
        (
            "members:\n  n:\n    kind: node\n    flows: [press agent, a, {name: other, url: press-agent/}]\n",
            ["line 4, members.n.flows: expected each flow once, but two are at /press-agent"],
        ),
        (f"members:\n  {'n' * 51}: {{}}\n", ["expected a name of printable characters without a slash, at most 50"]),
        ("members: [a]\n", ["line 1, members: expected a mapping"]),
        ("member:\n  a: {}\n", ["line 1, member: expected no such field, but one of name, members"]),
        (
            "members:\n  a: {simulated: {at: 1s}}\n",
            ["line 2, members.a.simulated.at: expected none, for it is no node"],
        ),
        ("members:\n  n: {kind: node, simulated: {old: true}}\n", ["members.n.simulated.old: expected none: an older"]),
        (
            "members:\n  n:\n    kind: node\n    simulated: {at: soon, when: 1}\n",
            [
                "line 4, members.n.simulated.at: expected a time with its unit",
                "line 4, members.n.simulated.when: expected no such field, but one of at, old",
            ],
        ),
        ("5", ["line 1, the file: expected a mapping"]),
        ("a: [\n", ["line 2: expected YAML ("]),
        ("a: !!python/object/apply:os.system [x]\n", ["line 1: expected YAML (could not determine a constructor"]),
        ("a: " + "[" * 5000, ["expected YAML ("]),
        ("\x00", ["expected YAML ("]),
    ],
)
def test_a_file_that_is_no_lab_says_where_and_why(tmp_path: Path, text: str, lines: list[str]) -> None:
    """Every fault has its line and its field."""
    path = tmp_path / "mesh.yaml"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        MeshLab.from_file(path)
    for line in lines:
        assert line in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_said_not_to_be(tmp_path: Path) -> None:
    """And so is one that is no text."""
    with pytest.raises(PlanError, match=r"none\.yaml: expected a file to read, but no such file or directory; check"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="expected a text in UTF-8"):
        read_plan(tmp_path / "bytes.yaml")


def test_an_empty_file_and_numbers_as_names_are_plans(tmp_path: Path) -> None:
    """What YAML reads as a number is a name here, and a member of which nothing is said is a registry."""
    (tmp_path / "mesh.yaml").write_text("")
    assert read_plan(tmp_path / "mesh.yaml") == Plan()
    (tmp_path / "mesh.yaml").write_text("members:\n  0:\n  1: {connect: [0]}\n")
    plan = read_plan(tmp_path / "mesh.yaml")
    assert {name: member.targets for name, member in plan.members.items()} == {"0": [], "1": ["0"]}
    write_plan(plan, tmp_path / "again.yaml")
    assert read_plan(tmp_path / "again.yaml") == plan


def test_an_option_that_is_none_is_named_with_its_line(tmp_path: Path) -> None:
    """The line, the field, and what was probably meant; nothing is started."""
    path = tmp_path / "mesh.yaml"
    path.write_text("members:\n  one:\n    options:\n      leese: 1\n")
    said = r"line 4, members\.one\.options\.leese: expected no such option; did you mean 'lease'"
    with pytest.raises(PlanError, match=said):
        MeshLab.from_file(path)
    with pytest.raises(LabError, match="expected a networkx graph"):
        MeshLab.from_graph({"one": ["two"]})


def test_a_graph_takes_flows_and_loaders_as_add_node_does() -> None:
    """A function, one name; a registry has none."""
    graph = nx.Graph([("r", "a"), ("r", "b")])
    graph.add_node("a", kind="node", loader=lambda: ["from a function"])
    graph.add_node("b", kind="node", flows="alone")
    with MeshLab.from_graph(graph) as lab:
        lab.settle()
        assert [row["name"] for row in lab.flows().rows] == ["alone", "from a function"]
    graph.add_node("r", loader=list)
    with pytest.raises(LabError, match="expected none, for it is no node"):
        MeshLab.from_graph(graph)
