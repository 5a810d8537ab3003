"""Tables as plain text: what `print` shows of tables, from data alone."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from kodo.client import Counts
from kodo.lab.beliefs import Truth, beliefs_of
from kodo.lab.counting import CountTable, What
from kodo.lab.explained import Convergence, Explanation
from kodo.lab.flows import FlowTable
from kodo.lab.naming import Names
from kodo.lab.plain import Column, text_table, wrapped

NODE, FIRST, SECOND, OLD = "http://n:1", "http://r:1", "http://r:2", "http://old.example.org:1"
NAMES = Names({"node1": NODE, "registry1": FIRST, "registry2": SECOND, "a registry with a long name": OLD})


def counts_of(by: What, *told: dict[str, int]) -> CountTable:
    """Of registries that each count so much."""
    answers = [{"total": 1, "node": {}, "organization": {}, "tags": {}} | {by: each} for each in told]
    return CountTable({f"registry{n}": cast(Counts, answer) for n, answer in enumerate(answers, 1)}, NAMES, by)


def flow(**told: Any) -> dict[str, Any]:
    """A row as `lab.flows()` has it."""
    given = {"node": NODE, "registry": FIRST, "name": "my test", "url": "/my-test", "tags": []}
    return {**given, "registries": ["registry1", "registry2"], **told}


def lines_of(table: object) -> list[str]:
    """What is printed, none of which is wider than a terminal."""
    lines = str(table).splitlines()
    assert max(map(cell_len, lines)) <= 80
    return lines


def why(text: str, **record: Any) -> Explanation:
    """Of two registries that say the same."""
    told = {"origin": FIRST, "state": "listed", "status": "online", "told_by": FIRST, **record}
    answer = {"flow": None, "listed": False, "why": text, "records": [told]}
    return Explanation(NODE, "nix", {"registry1": answer, "registry2": answer}, NAMES)


@pytest.mark.parametrize("by", ["node", "organization", "tags"])
@pytest.mark.parametrize("length", [60, 72, 300])
def test_a_long_value_leaves_room_for_counts(by: What, length: int) -> None:
    """It is cut in the middle, so that what differs at its end stays apart, and each registry has its column."""
    values = [f"http://{'x' * (length - 12)}:336{n}" for n in range(2)]
    heading, *rows, said = lines_of(counts_of(by, *[dict.fromkeys(values, 7)] * 3))
    assert heading.split() == [by, "registry1", "registry2", "registry3"]
    assert [row.split()[1:] for row in rows] == [["7"] * 3] * 2
    assert [row.split()[0][-5:] for row in rows] == [":3360", ":3361"]
    assert said == "3 registries agree"


def test_the_registry_that_disagrees_is_seen() -> None:
    """Of many, the counts that are not those of the first one are shown beside these, wherever they stand."""
    lines = lines_of(counts_of("tags", *[{"news": 3}] * 10, {"news": 2}, {"news": 3}))
    assert lines[0].split() == ["tags", *(f"registry{n}" for n in (1, 2, 3, 4, 5, 11))]
    assert lines[1].split() == ["news", "3", "3", "3", "3", "3", "2"]
    assert lines[2] == "12 registries do not agree; .frame has 6 more columns"


def test_counts_without_an_answer_are_printed() -> None:
    """A registry that gave none has no column, and when none did there is no table."""
    table = counts_of("tags", {"news": 3}, {"news": 3})
    some = CountTable({"silent": None, **table.answers}, NAMES, "tags")
    assert lines_of(some)[0].split() == ["tags", "registry1", "registry2"]
    assert str(CountTable({"silent": None}, NAMES, "tags")) == "no registry is there to be asked"


def test_names_are_left_whole_for_no_other_column() -> None:
    """Nodes and flows that differ at their ends alone are told apart; others have the room that is left."""
    rows = [
        flow(node=f"http://registry.example.org:{port}", name=f"evacuation routes of district {port}", tags=["map"] * 9)
        for port in (3366, 3367)
    ]
    lines = lines_of(FlowTable(rows, NAMES))
    assert lines[1].startswith("http://registry.example.org:3366  evacuation routes of district 3366  ")
    assert lines[2].startswith("http://registry.example.org:3367  evacuation routes of district 3367  ")
    assert lines[3] == "2 flows; .frame has tags, registries too"


def test_names_without_room_differ_at_their_ends() -> None:
    """Where a line has no room for node and name alone, both are cut in the middle."""
    rows = [flow(node=f"http://{'n' * 60}:{end}", name=f"{'name ' * 20}{end}") for end in (1, 2)]
    _, first, second, _ = lines_of(FlowTable(rows, NAMES))
    assert [cell[-1] for cell in first.split("  ")] == ["1", "1"]
    assert [cell[-1] for cell in second.split("  ")] == ["2", "2"]


def test_times_leave_room_for_registries() -> None:
    """Times that were asked for have room next, and the ones without are named."""
    rows = [
        flow(organization="Mediaplus", **dict.fromkeys(("created", "modified", "heartbeat"), "2024-12-25T18:00:00"))
    ]
    lines = lines_of(FlowTable(rows, NAMES, times=True))
    assert lines[0].split() == ["node", "name", "registries", "created", "heartbeat"]
    assert lines[-1] == "1 flow; .frame has url, organization, modified too"


def test_only_long_lists_of_registries_are_counted() -> None:
    """A flow that few registries list names them, whatever the other rows have."""
    many = [f"registry{n}" for n in range(1, 10)]
    _, long, short, _ = lines_of(FlowTable([flow(name="a", registries=many), flow(name="b")], NAMES))
    assert long.endswith("  9 registries")
    assert short.endswith("  registry1, registry2")


def test_a_long_reason_leaves_room_for_others() -> None:
    """It goes on in the next line, and the columns left out go by the names that they have in the frame."""
    text = "the node is registered at registry1, without this flow: it has the paths /my-test, /other"
    lines = lines_of(why(text))
    assert lines[0].split() == ["registry", "listed", "why", "state", "told", "by"]
    rows = [number for number, line in enumerate(lines) if line.startswith("registry")]
    first = slice(lines[0].index("why"), lines[0].index("state"))
    assert " ".join(line[first].strip() for line in lines[rows[1] : rows[2]]) == text
    assert lines[rows[1] + 1] == " " * first.start + lines[rows[1] + 1].strip(), "beside it there is nothing more"
    assert lines[-1] == ".frame has origin, status too"
    crowded = lines_of(why(text, told_by=OLD))
    assert crowded[-1].endswith("told_by too")
    assert set(crowded[-1].removeprefix(".frame has ").removesuffix(" too").split(", ")) <= set(why(text).frame.columns)


def test_measures_of_explanations_fit_a_terminal() -> None:
    """Who asks for measures has those that a line has room for."""
    time = "2024-12-25T18:00:00.010000"
    measures = {"created": time, "modified": time, "seq": 1, "version": [1735149600, "e3e70682", 1], "age": 0.5}
    heading, *_, more = lines_of(why("registered at registry1", **measures).table(times=True))
    assert heading.split()[-1] == "age"
    assert more == ".frame has status, created, modified, seq, version too"


def test_whom_a_peer_is_behind_is_cut_before_it_is_left_out() -> None:
    """It is what the table is asked for."""
    owed = {f"http://registry.example.org:{port}": {"changes": 1} for port in range(3366, 3370)}
    peer = {"state": "standing", "deltas": True, "behind": owed}
    heading, *_ = lines_of(Convergence({"registry1": {"peers": {SECOND: peer}}}, NAMES))
    assert heading.split()[-1] == "behind"


def test_a_peer_that_was_never_connected_is_owed_everything() -> None:
    """A mesh in which a connection never stood has not converged, though nobody counts what is owed there."""
    peer = {"state": "away", "deltas": False, "connected": False, "behind": {}}
    told = Convergence({"registry1": {"peers": {SECOND: peer}}}, NAMES)
    assert not told.converged
    assert told.behind == [("registry1", "registry2")]
    assert "everything" in str(told)


def test_beliefs_of_a_node_with_a_long_url_fit_a_terminal() -> None:
    """It is cut in the middle, of many registries beside their counts."""
    truth = Truth(f"http://{'n' * 70}:3366", "http://n:1", True, [], frozenset())
    for registries in (2, 12):
        row = lines_of(beliefs_of([truth], {f"registry{n}": [] for n in range(registries)}))[1]
        assert row.split()[0].endswith(":3366")


@pytest.mark.parametrize(
    "name", ["緊急避難経路の案内図", "🚒 Feuerwehr 👍🏽", "cafe\u0301 re\u0301sume\u0301", "한국어", "นำทาง"]
)
def test_signs_of_any_width_line_up(name: str) -> None:
    """Columns begin in the same cell of each line, however many signs a name has, and lines keep to a terminal."""
    rows = [flow(name=name * times, organization=name, tags=[name], author=name) for times in (1, 2, 30)]
    lines = lines_of(FlowTable(rows, NAMES))[:-1]
    starts = {cell_len(line.rstrip()[: -len(line.rstrip().rpartition("  ")[2])]) for line in lines}
    assert len(starts) == 1, lines


def test_what_is_cut_leaves_no_mark_without_its_letter() -> None:
    """A mark goes with the letter that it stands on."""
    rows = [flow(name="e\u0301" * length) for length in range(60, 90)]
    for line in lines_of(FlowTable(rows, NAMES)):
        assert "…\u0301" not in line


def test_what_stands_beneath_is_wrapped_by_its_width() -> None:
    """No word is broken, and the lines that follow are indented."""
    lines = wrapped("- " + "緊急避難 " * 20, indent="  ").splitlines()
    assert [cell_len(line) for line in lines] == [73, 73, 37]
    assert all(line.startswith("  緊") for line in lines[1:])


texts = st.text(st.sampled_from("ab /:é́語한🚒👍🏽️ำ…"), max_size=120)


@given(st.lists(st.tuples(*[texts] * 5), min_size=1, max_size=4))
def test_whatever_is_cut_fits_a_terminal(rows: list[tuple[str, ...]]) -> None:
    """Whatever texts stand in cells, each line keeps to a terminal."""
    cells = list(zip(*rows, strict=True))
    least = [48, 48, 24, 40, 24]
    columns = [
        Column(f"column_{n}", f"column {n}", cells[n], max(0, n - 1), least[n], middle=n % 2 == 0, wraps=n == 3)
        for n in range(5)
    ]
    lines_of(text_table(columns, "said"))


def test_what_steers_a_terminal_is_spelled_out_in_a_title() -> None:
    """The flow that an explanation is of may be whatever somebody has registered."""
    shown = str(Explanation(NODE, "\x1b[31m\u202ered", {"registry1": None}, NAMES))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"\x1b[31m\u202ered" in shown


def test_a_paused_node_is_not_said_to_run() -> None:
    """It may be listed, and answers nobody."""
    truths = [Truth(name, f"http://{name}:1", True, [], frozenset(), name == "b") for name in "ab"]
    assert [line.split()[:2] for line in repr(beliefs_of(truths, {})).splitlines()[1:3]] == [
        ["a", "runs"],
        ["b", "paused"],
    ]
