"""A mesh and its faults come from two files: what they say is checked, and what becomes of them is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kodo import cli
from kodo.errors import PlanError
from kodo.lab import MeshLab
from kodo.sim.plan import FaultPlan, Prediction, predict, read_faults, read_mesh

MESH = """
members:
  r1: {}
  r2: {connect: r1}
  r3: {connect: [r1, r2]}
  p: {connect: [r1], kind: provider}
  o: {connect: [r3], simulated: {old: true}}
  n1: {kind: node, connect: [r1], flows: [a, b]}
  n2: {kind: node, connect: [r2, r3], flows: [{name: c, tags: [x]}], simulated: {at: 2500ms}}
  n3: {kind: node, connect: [p], flows: [a]}
  n4: {kind: node, connect: [o], flows: [a]}
"""
PAIR = "members: {r1: {}, r2: {connect: r1}, n1: {kind: node, connect: r1, flows: [a]}}"


def predicted(folder: Path, faults: str = "[]", seed: int = 7, mesh: str = MESH) -> Prediction:
    (folder / "mesh.yaml").write_text(mesh)
    (folder / "faults.yaml").write_text(faults)
    plan = read_mesh(folder / "mesh.yaml")
    return predict(plan, read_faults(folder / "faults.yaml", plan), seed)


def test_a_mesh_without_faults_agrees(tmp_path: Path) -> None:
    """Every registry that takes news lists every node, the provider its own, and nothing went wrong."""
    told = predicted(tmp_path)
    assert told.agree
    assert told.why is None
    assert told.converged is not None
    assert not told.lost
    assert not told.effects
    assert {belief.registry: (belief.state, belief.nodes) for belief in told.beliefs} == {
        "r1": ("up", 4),
        "r2": ("up", 4),
        "r3": ("up", 4),
        "p": ("provider", 1),
        "o": ("up", 4),
    }
    assert told.forming.count("/connect") == 5
    assert told.running.count("/update/node") > 0
    assert told.forming.bytes > 0


FAULTS = {
    "loss": "- {at: 0s, for: 5s, loss: 0.6}",
    "answer_loss": "- {at: 0s, for: 5s, answer_loss: 0.6}",
    "doubles": "- {at: 0s, for: 5s, doubles: 1}",
    "reorder": "- {at: 0s, for: 5s, reorder: 1}",
    "latency": "- {at: 0s, for: 5s, latency: [1ms, 300ms]}",
    "cut": "- {at: 0s, for: 5s, cut: [[r1, n1], [r2, r3]]}",
    "crash": "- {at: 1s, for: 3s, crash: r3}",
    "pause": "- {at: 0s, for: 5s, pause: r1}",
    "slow": "- {at: 0s, for: 5s, slow: {r2: 3s}}",
    "deadline": "- {at: 0s, for: 5s, slow: {r2: 11s}}",
    "skew": "- {at: 0s, for: 5s, clock: {r2: 1h}}",
}


@pytest.mark.parametrize("effect", FAULTS)
def test_every_fault_has_its_effect_and_is_healed(tmp_path: Path, effect: str) -> None:
    """Each fault did something to the mesh, and when it is over all agree."""
    told = predicted(tmp_path, FAULTS[effect])
    assert told.effects[effect] > 0
    assert told.agree, told
    assert told.why is None


def test_a_one_way_cut_is_a_cut(tmp_path: Path) -> None:
    """A link that is cut in one direction loses requests in that direction, and answers to those of the other."""
    told = predicted(tmp_path, "- {at: 0s, for: 5s, one_way: [r1, r2]}")
    assert told.effects["cut"] > 0
    assert told.agree


def test_a_prediction_is_the_same_every_time(tmp_path: Path) -> None:
    """One seed, one run; another seed, another."""
    faults = "- {at: 0s, for: 9s, loss: 0.4, doubles: 0.3, latency: [1ms, 200ms]}"
    assert predicted(tmp_path, faults, 7) == predicted(tmp_path, faults, 7)
    assert predicted(tmp_path, faults, 7) != predicted(tmp_path, faults, 8)


def test_a_lost_disk_is_repaired_by_beats_and_beacons(tmp_path: Path) -> None:
    """A node whose registry lost its disk registers again, and the registry is told what the others know."""
    told = predicted(tmp_path, "- {at: 3s, for: 1s, crash: r1, lose: true}")
    assert told.effects["lost disk"] == 1
    assert told.converged is not None
    assert told.agree
    assert told.lost == ()


def test_what_does_not_settle_is_told(tmp_path: Path) -> None:
    """A mesh that does not fall silent in time has not converged, and the reason names who owes what to whom."""
    (tmp_path / "mesh.yaml").write_text(PAIR)
    (tmp_path / "faults.yaml").write_text("- {at: 5ms, for: 1s, loss: 1}")
    mesh = read_mesh(tmp_path / "mesh.yaml")
    told = predict(mesh, read_faults(tmp_path / "faults.yaml", mesh), within=1)
    assert told.converged is None
    assert not told.agree
    assert "r1 owes r2 news of r1 (/update/node at" in str(told.why)
    assert "r2 does not list n1" in str(told.why)


def test_a_node_that_got_nowhere_is_named(tmp_path: Path) -> None:
    """A node whose registry is gone before it registers is listed nowhere, and that is no agreement."""
    (tmp_path / "mesh.yaml").write_text(PAIR)
    (tmp_path / "faults.yaml").write_text("- {at: 0s, for: 1s, loss: 1}")
    mesh = read_mesh(tmp_path / "mesh.yaml")
    told = predict(mesh, read_faults(tmp_path / "faults.yaml", mesh), within=1)
    assert told.lost == ("n1",)
    assert not told.agree
    assert "n1 owes r1 a handshake (/register at" in str(told.why)


@pytest.mark.parametrize(
    ("mesh", "told"),
    [
        ("members: {}", "line 1, members: expected a registry, or more"),
        ("", "line 1, members: expected a registry, or more"),
        ("members:\n  n1: {kind: node}\n", "line 1, members: expected a registry, or more"),
        ("members:\n  r1: {conect: [r2]}", "line 2, members.r1.conect: expected no such field, but one of kind,"),
        ("members:\n  r1: {connect: [r2]}", "line 2, members.r1.connect: expected the name of a member, or a url"),
        ("members:\n  r1: {connect: ['ftp://x']}", "line 2, members.r1.connect: expected an http or https url"),
        ("members:\n  r1:\n    options: {leese: 3}", "line 3, members.r1.options: there is no option 'leese'; did you"),
        ("members:\n  r1:\n    options: {lease: no}", "line 3, members.r1.options: lease: expected seconds, 0.05 or"),
        ("members:\n  r1: {}\n  n1: {kind: node, loader: 'no:thing'}", "line 3, members.n1.loader: loader module 'no'"),
        ("members:\n  r1: {}\n  n1: {kind: node, flows: ['']}", "line 3, members.n1.flows: "),
        ("- r1", "line 1, the file: expected a mapping"),
    ],
)
def test_a_faulty_mesh_names_file_line_and_field(tmp_path: Path, mesh: str, told: str) -> None:
    """What is wrong in a mesh's file is told with the file, the line and the field."""
    with pytest.raises(PlanError) as caught:
        predicted(tmp_path, mesh=mesh)
    assert f"mesh.yaml, {told}" in str(caught.value)


@pytest.mark.parametrize("tagged", ["!!int ''", "!!bool maybe", "!!timestamp zzz"])
def test_a_tag_before_something_else_is_told(tmp_path: Path, tagged: str) -> None:
    """YAML may say of what kind a value is, and be wrong."""
    with pytest.raises(PlanError, match=r"mesh\.yaml: expected YAML \(a tag such as !!int"):
        predicted(tmp_path, mesh=f"members:\n  r1:\n    options: {{lease: {tagged}}}")


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ("- {at: 1s, loss: 0.1}", "line 1, 1.for: expected this field"),
        ("- {at: 1s, for: 1s, lost: 1}", "line 1, 1.lost: expected no such field, but one of at, for, loss, "),
        ("- {at: 1s, for: 1s, loss: 1}\n- {at: 1s, for: 1s}", "line 2, 2: expected a fault, one of answer_loss, "),
        ("- {at: 1s, for: 1s, loss: 2}", "line 1, 1.loss: expected a number less than or equal to 1"),
        ("- {at: 1, for: .inf, loss: 0.1}", "line 1, 1.for: expected a finite number"),
        ("- {at: 1, for: -1s, loss: 0.1}", "line 1, 1.for: expected a number greater than or equal to 0"),
        ("- {at: 1s, for: 1s, crash: n1}", "line 1, 1.crash: expected one of r1, r2, r3, p, o, not 'n1'"),
        (
            "- {at: 1s, for: 1s, cut: [[r1], [x]]}",
            "line 1, 1.cut: expected one of r1, r2, r3, p, o, n1, n2, n3, n4, not",
        ),
        ("- {at: 1s, for: 1s, cut: [[r1]]}", "line 1, 1.cut: expected two or more groups of members, such as [[north]"),
        ("- {at: 1s, for: 1s, cut: r1}", "line 1, 1.cut: expected two or more groups of members, such as [[north]"),
        ("-\n  at: 1s\n  for: 1s\n  cut: [r1, r2]", "line 4, 1.cut: expected two or more groups of members"),
        ("- {at: 1s, for: 1s, cut: [[r1], []]}", "line 1, 1.cut: expected two or more groups of members"),
        ("- {at: 1s, for: 1s, cut: [[r1], [[r2]]]}", "line 1, 1.cut.2.1: expected a text"),
        ("- {at: 1s, for: 1s, one_way: [[r1], [r2]]}", "line 1, 1.one_way.1: expected a text"),
        ("- {at: 1s, for: 1s, one_way: r1}", "line 1, 1.one_way: expected who sends and to whom, such as [north, sou"),
        ("- {at: 1s, for: 1s, latency: 200ms}", "line 1, 1.latency: expected the least and the most, such as [1ms, "),
        ("- {at: 1s, for: 1s, latency: [50ms, 5ms]}", "line 1, 1.latency: expected the least and the most, such as "),
        ("- {at: 1s, for: 1s, latency: [200, slow]}", "line 1, 1.latency.2: expected a time with its unit"),
        ("- {at: 1s, for: 1s, crash: [r1]}", "line 1, 1.crash: expected a text"),
        ("- {at: 1s, for: 1s, loss: 1, loss: 0}", "line 1, 1.loss: expected once, but it stands here twice"),
        ("- {at: 1s\n- ]", "line 2: expected YAML"),
        ("at: 1s", "line 1, the file: expected a list"),
    ],
)
def test_faulty_faults_name_file_line_and_field(tmp_path: Path, faults: str, told: str) -> None:
    """What is wrong in a file of faults is told with the file, the line and the field."""
    with pytest.raises(PlanError) as caught:
        predicted(tmp_path, faults)
    assert f"faults.yaml, {told}" in str(caught.value)


# -- the file of a lab -------------------------------------------------------------------------------------


def test_the_file_of_a_lab_is_simulated(tmp_path: Path) -> None:
    """What a lab writes is predicted as the lab itself goes on: the same members, under their names, list the same."""
    with MeshLab(engine="simulated") as lab:
        first = lab.add_registry("Harbour registry", organization="Harbour", lease=5)
        second = lab.add_registry("harbour", connect=first)
        third = lab.add_registry("Harbour", connect=second)
        lab.add_node("größe", connect=third, flows=["a", {"name": "b", "tags": ["x"]}])
        lab.add_node("none", connect=third)
        lab.settle()
        lab.to_file(tmp_path / "mesh.yaml")
        lists = {member.name: len(member.flows()) for member in lab if member.kind == "registry"}
    mesh = read_mesh(tmp_path / "mesh.yaml")
    assert mesh["Harbour registry"].profile.timing.lease == 5
    told = predict(mesh)
    assert told.agree, told
    assert {belief.registry: belief.flows for belief in told.beliefs} == lists
    cut = "- {at: 0s, for: 1h, cut: [[Harbour registry], [Harbour, harbour]]}"
    (tmp_path / "faults.yaml").write_text(cut)
    told = predict(mesh, read_faults(tmp_path / "faults.yaml", mesh)[:1], within=1)
    assert told.effects["cut"] > 0


def test_the_mesh_of_the_notebook_is_simulated() -> None:
    """`kodo sim notebooks/river.yaml` reads what `MeshLab.from_file` reads."""
    told = predict(read_mesh(Path(__file__).parents[2] / "notebooks" / "river.yaml"))
    assert told.agree, told
    assert [(belief.registry, belief.nodes, belief.flows) for belief in told.beliefs] == [
        ("north", 4, 50),
        ("south", 4, 50),
    ]


# -- the command -------------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["sim", *map(str, words)], prog_name="kodo")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "mesh.yaml").write_text(MESH)
    (tmp_path / "faults.yaml").write_text(FAULTS["cut"])
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "alone.txt").write_text("add r1\n\nlist\n")
    return tmp_path


def test_kodo_sim_predicts(files: Path) -> None:
    """`kodo sim` tells what each phase costs, what the faults did, how far each listing is, and the verdict."""
    done = run(files / "mesh.yaml", "--faults", files / "faults.yaml", "--seed", 7)
    assert done.exit_code == 0, done.output
    assert re.search(r"^cut +\d+ +a message did not get through$", done.output, re.MULTILINE)
    for words in ("forming", "settling", "up to date", "it is a provider", "all registries that run agree"):
        assert words in done.output


def test_the_help_names_all_faults() -> None:
    """Whoever writes a file of faults finds in `kodo sim --help` what may stand in it."""
    shown = run("--help").output
    named = [field.alias or name for name, field in FaultPlan.model_fields.items()]
    assert [name for name in named if not re.search(rf"\b{name}\b", shown)] == []


def test_kodo_sim_gives_json(files: Path) -> None:
    """`--json` prints the prediction as data."""
    told = json.loads(run(files / "mesh.yaml", "--json").output)
    assert told["agree"] is True
    assert [belief["registry"] for belief in told["beliefs"]] == ["r1", "r2", "r3", "p", "o"]


def test_kodo_sim_plays_a_scenario(files: Path) -> None:
    """A scenario is printed with its output, rewritten on request, and compared otherwise."""
    scenario = files / "alone.txt"
    assert run(scenario).output == "add r1\n----\nr1 started\n\nlist\n----\nr1: nothing\n"
    assert run(scenario, "--rewrite").exit_code == 0
    assert scenario.read_text() == run(scenario).output
    scenario.write_text(scenario.read_text().replace("nothing", "n1/a"))
    done = run(scenario)
    assert done.exit_code == 1
    assert "alone.txt:5: expected what stands in the file" in done.output


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["alone.txt", "--faults", "faults.yaml"], 2, "kodo: --faults: expected a mesh"),
        (["alone.txt", "--json"], 2, "kodo: --json: expected a mesh"),
        (["mesh.yaml", "--rewrite"], 2, "kodo: --rewrite: expected a scenario"),
        (["none.txt"], 1, "kodo: none.txt: expected a file to read, but no such file or directory; check the path\n"),
        (["none.yaml"], 1, "kodo: none.yaml: expected a file to read, but no such file or directory; check the path\n"),
        (["mesh.yaml", "--faults", "none"], 1, "kodo: none: expected a file to read, but no such file or directory; "),
        (["mesh.yaml", "--faults", "."], 1, "kodo: .: expected a file to read, but is a directory; check the path\n"),
        (["mesh.yaml", "--faults", "alone.txt"], 1, "alone.txt"),
        (["bytes.txt"], 1, "kodo: bytes.txt: expected a text in UTF-8"),
    ],
)
def test_kodo_sim_refuses_in_a_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, told: str
) -> None:
    """What is not to be simulated is told in a line, with the option or the file to blame."""
    monkeypatch.chdir(files)
    done = run(*words)
    assert done.exit_code == code
    assert told in done.output
    assert "Traceback" not in done.output
