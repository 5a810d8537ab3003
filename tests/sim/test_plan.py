"""A mesh and its faults come from two files: what they say is checked, and what becomes of them is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kodo import cli
from kodo.errors import SimulationError
from kodo.sim.plan import Prediction, predict, read_faults, read_mesh

MESH = """
registries:
  r1: {}
  r2: {connect: [r1]}
  r3: {connect: [r1, r2]}
  p: {connect: [r1], provider: true}
  o: {connect: [r3], old: true}
nodes:
  n1: {register: [r1], flows: [a, b]}
  n2: {register: [r2, r3], flows: [c], at: 2500ms}
  n3: {register: [p]}
  n4: {register: [o]}
"""


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
    "cut": "- {at: 0s, for: 5s, cut: [[r1], [r2, r3]]}",
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
    (tmp_path / "mesh.yaml").write_text("{registries: {r1: {}, r2: {connect: [r1]}}, nodes: {n1: {register: [r1]}}}")
    (tmp_path / "faults.yaml").write_text("- {at: 5ms, for: 1s, loss: 1}")
    mesh = read_mesh(tmp_path / "mesh.yaml")
    told = predict(mesh, read_faults(tmp_path / "faults.yaml", mesh), within=1)
    assert told.converged is None
    assert not told.agree
    assert "r1 owes r2 news of r1 (/update/node at" in str(told.why)
    assert "r2 does not list n1" in str(told.why)


def test_a_node_that_got_nowhere_is_named(tmp_path: Path) -> None:
    """A node whose registry is gone before it registers is listed nowhere, and that is no agreement."""
    (tmp_path / "mesh.yaml").write_text("{registries: {r1: {}, r2: {connect: [r1]}}, nodes: {n1: {register: [r1]}}}")
    (tmp_path / "faults.yaml").write_text("- {at: 0s, for: 1s, loss: 1}")
    mesh = read_mesh(tmp_path / "mesh.yaml")
    told = predict(mesh, read_faults(tmp_path / "faults.yaml", mesh), within=1)
    assert told.lost == ("n1",)
    assert not told.agree
    assert "n1 owes r1 a handshake (/register at" in str(told.why)


@pytest.mark.parametrize(
    ("mesh", "told"),
    [
        ("registries: {}", "registries: Dictionary should have at least 1 item"),
        ("registries: {r1: {conect: [r2]}}", "registries.r1.conect: Extra inputs"),
        ("registries: {r1: {connect: [r2]}}", "registries.r1.connect.0: expected one of the registries: r1"),
        ("registries: {r1: {}}\nnodes: {n1: {register: [r2]}}", "nodes.n1.register.0: expected one of"),
        ("registries: {r1: {}}\nnodes: {n1: {register: []}}", "nodes.n1.register: Tuple should have"),
        ("registries: {r1: {}}\nnodes: {n1: {register: [r1], at: soon}}", "nodes.n1.at: expected a time"),
        ("registries: {'r 1': {}}", "registries.r 1.[key]: expected a name"),
        ("- r1", "the whole: Input should be"),
        ("", "the whole: Input should be"),
    ],
)
def test_a_faulty_mesh_names_file_and_field(tmp_path: Path, mesh: str, told: str) -> None:
    """What is wrong in a mesh's file is told with the file and the field."""
    with pytest.raises(SimulationError, match=r"mesh\.yaml") as caught:
        predicted(tmp_path, mesh=mesh)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ("- {at: 1s, loss: 0.1}", "faults.yaml: 0.for: Field required"),
        ("- {at: 1s, for: 1s}", "faults.yaml: 0: expected a fault, one of answer_loss, "),
        ("- {at: 1s, for: 1s, loss: 2}", "faults.yaml: 0.loss: Input should be less than or equal to 1"),
        ("- {at: 1, for: -1s, loss: 0.1}", "faults.yaml: 0.for: Input should be greater than or equal to 0"),
        ("- {at: 1s, for: 1s, crash: r9}", "faults.yaml: 0.crash: expected one of the registries: r1, "),
        ("- {at: 1s, for: 1s, cut: [[r1], [x]]}", "faults.yaml: 0.cut.1: expected one of the registries"),
        ("- {at: 1s, for: 1s, cut: [[r1]]}", "faults.yaml: 0.cut: Tuple should have at least 2"),
        ("- {at: 1s\n- ]", "faults.yaml:2: expected YAML"),
    ],
)
def test_faulty_faults_name_file_and_field(tmp_path: Path, faults: str, told: str) -> None:
    """What is wrong in a file of faults is told with the file and the field."""
    with pytest.raises(SimulationError) as caught:
        predicted(tmp_path, faults)
    assert told in str(caught.value)


# -- the command -------------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["sim", *map(str, words)], prog_name="kodo")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "mesh.yaml").write_text(MESH)
    (tmp_path / "faults.yaml").write_text(FAULTS["cut"])
    (tmp_path / "alone.txt").write_text("add r1\n\nlist\n")
    return tmp_path


def test_kodo_sim_predicts(files: Path) -> None:
    """`kodo sim` tells what each phase costs, what the faults did, what each registry believes, and the verdict."""
    done = run(files / "mesh.yaml", "--faults", files / "faults.yaml", "--seed", 7)
    assert done.exit_code == 0, done.output
    for words in ("forming", "settling", "faults: cut", "its own: it is a provider", "all registries that run agree"):
        assert words in done.output


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
        (["alone.txt", "--faults", "faults.yaml"], 2, "kodo: faults: expected a mesh"),
        (["alone.txt", "--json"], 2, "kodo: json: expected a mesh"),
        (["mesh.yaml", "--rewrite"], 2, "kodo: rewrite: expected a scenario"),
        (["none.txt"], 1, "none.txt"),
        (["mesh.yaml", "--faults", "alone.txt"], 1, "alone.txt"),
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
