"""The scenarios of tests/scenarios print what stands in them; `pytest --rewrite-scenarios` writes it anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from kodo.errors import SimulationError
from kodo.sim.scenario import COMMANDS, parse, run_scenario, seconds
from tests.core.world import World

FOLDER = Path(__file__).parent.parent / "scenarios"
SCENARIOS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_prints_what_stands_in_it(path: Path, request: pytest.FixtureRequest) -> None:
    """Each command prints what it printed when the scenario was reviewed; every step is checked meanwhile."""
    text = path.read_text()
    played = run_scenario(text, path.name, World())
    if request.config.getoption("--rewrite-scenarios"):
        path.write_text(played.text)
    else:
        assert played.text == text, f"{path.name}:{played.differs}: run pytest --rewrite-scenarios, and read the diff"
        assert played.differs is None


def test_a_scenario_without_output_is_completed() -> None:
    """What was not printed yet is added, remarks stay, and the result is its own scenario."""
    played = run_scenario("# Alone.\n\nadd r1\n\n\nlist")
    assert played.text == "# Alone.\n\nadd r1\n----\nr1 started\n\nlist\n----\nr1: nothing\n"
    assert run_scenario(played.text).text == played.text


def test_the_first_difference_is_told_by_its_line() -> None:
    """A command that printed something else is named by its line."""
    assert run_scenario("add r1\n----\nr1 started\n\nlist\n----\nr1: n1/a\n").differs == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("add r1\n\njump r1", "mesh.txt:3: expected one of the commands add, "),
        ("add r1\nadd r2", "mesh.txt:2: expected ---- and what is printed"),
        ("\nadd", "mesh.txt:2: add: expected names"),
        ("add r1 r1", "mesh.txt:1: add: expected a name that is not taken"),
        ("add r1\n\nadd r2 to=r1", "mesh.txt:3: add: expected connect=NAME"),
        ("add r1\n\nlist r2", "mesh.txt:3: list: expected the name of a service of this mesh: r1"),
        ("add r1\n\ncut r1", "mesh.txt:3: cut: expected a link such as r1->r2"),
        ("latency 50ms 5ms", "mesh.txt:1: latency: expected the least first, not 50ms before 5ms"),
        ("loss 2", "mesh.txt:1: loss: expected a chance between 0 and 1"),
        ("run 5", "mesh.txt:1: run: expected a time with its unit"),
        ("add r1 r2\n\ndrop r1->r2 x", "mesh.txt:3: drop: expected a whole number"),
        ("add r1\n\nrestart r1 copy", "mesh.txt:3: restart: expected a service, and maybe copy"),
        ("partition r1", "mesh.txt:1: partition: expected two groups or more"),
        ("add r1\n\ncrash r1\n\nregister r1 n1", "mesh.txt:5: register: expected a service that runs"),
    ],
)
def test_an_error_names_file_and_line(text: str, told: str) -> None:
    """What a scenario does not understand is told with its file, its line, and what was expected."""
    with pytest.raises(SimulationError) as caught:
        run_scenario(text, "mesh.txt")
    assert str(caught.value).startswith(told)


def test_every_command_is_in_a_scenario_or_told() -> None:
    """Each command has a word of its own on what it does."""
    assert all((command.__doc__ or "").startswith("`") for command in COMMANDS.values())


def test_times_have_units() -> None:
    """A time is a number and a unit, ahead or behind."""
    assert [seconds(text) for text in ("2s", "150ms", "-1h", "1.5min")] == [2, 0.15, -3600, 90]


def test_lines_are_counted_from_one() -> None:
    """A paragraph knows its line and its words."""
    assert [(part.line, part.words) for part in parse("# x\n\nadd r1\n")] == [(1, ()), (3, ("add", "r1"))]
