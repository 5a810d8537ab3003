"""The benchmarks themselves: what they measure with is the same each time, and what they print is what was measured."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from kodo import query
from kodo.catalogue import Catalogue
from kodo.models import Registration
from tests.benchmarks import data, load, report, soak
from tests.benchmarks.__main__ import chosen, main
from tests.benchmarks.load import NUMBER, Request
from tests.benchmarks.pair import change
from tests.benchmarks.row import (
    Begin,
    Measure,
    Outcome,
    Row,
    Side,
    Target,
    absolute,
    at_least,
    at_most,
    compared,
    measure,
    plus,
)
from tests.benchmarks.rows import ROWS, any_filter, any_page, by_tag, newcomer
from tests.benchmarks.services import QUICK, Bench, Scale, Service, UnmeasuredError, free_port
from tests.benchmarks.subjects import joining_alone, registering_alone
from tests.conftest import Start


def giving(*figures: float) -> Begin:
    """A side whose rounds give these figures, one after the other."""

    @contextmanager
    def begin(_: Bench) -> Iterator[Measure]:
        rounds = iter(figures)
        yield lambda: next(rounds)

    return begin


def row(floor: Begin, kodo: Begin, target: Target) -> Row:
    return Row("a-row", "some work at {flows} flows", "ms", Side("the least", floor), Side("kodo", kodo), target)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Scale(flows=1000, rounds=3))


def outcome(bench: Bench, target: Target, floor: tuple[float, ...], kodo: tuple[float, ...]) -> Outcome:
    return measure(row(giving(*floor), giving(*kodo), target), bench)


# -- the data ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_flows() -> None:
    """A node is the same for the same seed and number, whichever others were made before, and another for another."""
    first = list(data.nodes(200, seed=3))
    assert first == list(data.nodes(200, seed=3))
    assert first[7] == data.node(7, seed=3)
    assert first[7] != data.node(7, seed=4)


def test_flows_are_as_the_targets_say() -> None:
    """Ten flows a node, each with a name, a description of 80 characters, an author and three tags; kodo takes them."""
    for node in data.nodes(500):
        flows = Registration.model_validate(node).flows
        assert isinstance(flows, dict)
        assert len(flows) == data.FLOWS_PER_NODE
        for flow in flows.values():
            assert flow.name
            assert flow.author
            assert len(flow.description or "") == data.DESCRIPTION
            assert len(set(flow.tags or ())) == data.TAGS


def test_flows_are_skewed() -> None:
    """A few organizations and tags have much, and many have little."""
    nodes = list(data.nodes(10_000))
    organizations = Counter(node["organization"] for node in nodes)
    tags = Counter(tag for node in nodes for flow in node["flows"].values() for tag in flow["tags"])
    for found in (organizations, tags):
        sizes = [size for _, size in found.most_common()]
        assert sizes[0] > 10 * sizes[-1]
        assert sum(sizes[: len(sizes) // 4]) > sum(sizes) / 2


def test_newcomers_have_a_number_in_their_url() -> None:
    """A client can make any number of different nodes of one request, each of which is a registration."""
    one, other = (newcomer().raw(number).partition(b"\r\n\r\n")[2] for number in (1, 2))
    assert Registration.model_validate_json(one).url != Registration.model_validate_json(other).url
    assert (newcomer().body or "").count(NUMBER) == 1


def test_what_sqlite_is_told_again_is_the_same(tmp_path: Path) -> None:
    """SQLite alone ends with what it has under kodo, from new nodes one by one and from another registry's at once."""
    url, paths = "http://127.0.0.1:2", [tmp_path / name for name in ("one.db", "other.db", "joined.db", "again.db")]
    assert registering_alone(str(paths[0]), str(paths[1]), url, first=1, nodes=40) > 0
    assert joining_alone(str(paths[2]), str(paths[3]), url, flows=400) > 0
    shown = []
    for path in paths:
        catalogue = Catalogue(url, path)
        page = catalogue.page(query.compile_filter(query.parse('name ~ "agent"')), query.parse_order(""), 0, 1000)
        shown.append((page.total, page.items))
        catalogue.close()
    assert shown[0] == shown[1]
    assert shown[2] == shown[3]
    assert [total for total, _ in shown] == [400] * 4
    assert all(items for _, items in shown)


# -- the rows ----------------------------------------------------------------------------------------------


def test_every_row_says_what_it_is() -> None:
    """Rows have names of their own, a work, a unit and a floor that is named; those without a target come last."""
    assert len({each.name for each in ROWS}) == len(ROWS)
    for each in ROWS:
        assert all((each.work, each.unit, each.floor.what, each.kodo.what)), each.name
        assert "{" not in Scale().fill(each.work)
    aims = [bool(each.target.text) for each in ROWS]
    assert aims == sorted(aims, reverse=True)


def test_every_filter_is_one() -> None:
    """What is asked is read as expressions, with every operator among them, and no request is made twice."""
    paths = [path for kind in any_filter(1000) for path in kind]
    for each in (paths, any_page(1000), by_tag(1000)):
        assert len(set(each)) == len(each)
    asked = [parse_qs(urlsplit(path).query)["q"][0] for path in paths]
    assert not [q for q in asked if (query.shown(query.parse(q)) or "").startswith("fulltext:")]
    for operator in ("== ", "!= ", "< ", "> ", ">= ", "~ ", "@tag(", "& ", "| ", "not "):
        assert any(operator in q for q in asked)


def test_rows_are_chosen_by_name_and_pattern() -> None:
    """A subset is named as rows, or by patterns, in the order of the table; a name that fits none is refused."""
    assert [each.name for each in chosen(["start", "register*"])] == [
        each.name for each in ROWS if each.name == "start" or each.name.startswith("register")
    ]
    assert chosen([]) == list(ROWS)
    with pytest.raises(ValueError, match="first-page"):
        chosen(["fist-page"])


@pytest.mark.parametrize(
    ("target", "floor", "kodo", "verdict"),
    [
        (at_most(1.3), 10, 13, "met"),
        (at_most(1.3), 10, 13.1, "missed"),
        (at_least(0.75), 100, 75, "met"),
        (at_least(0.75), 100, 74, "missed"),
        (plus(3, "ms"), 10, 13, "met"),
        (plus(3, "ms"), 10, 14, "missed"),
        (absolute(20, "ms"), 1, 20, "met"),
        (absolute(20, "ms"), 1, 21, "missed"),
        (compared(), 1, 1000, "compared"),
        (compared(more=True), 1000, 1, "compared"),
    ],
)
def test_a_verdict_is_what_the_target_says(
    bench: Bench, target: Target, floor: float, kodo: float, verdict: str
) -> None:
    """Targets are times the floor, at least so many times it, the floor and so much, a figure, or none."""
    assert outcome(bench, target, (floor,) * 3, (kodo,) * 3).verdict == verdict


def test_rounds_are_compared_with_their_own_floor(bench: Bench) -> None:
    """A round in which the machine was slow for both sides says what the others say."""
    measured = outcome(bench, at_most(1.3), (1, 10, 1), (1.2, 12, 1.2))
    assert measured.ratio == pytest.approx(1.2)
    assert measured.verdict == "met"


def test_a_row_that_fails_does_not_end_the_run(bench: Bench) -> None:
    """What cannot be measured here is told apart from what went wrong, each with its reason."""

    @contextmanager
    def absent(_: Bench) -> Iterator[Measure]:
        raise UnmeasuredError("it is not installed")
        yield lambda: 0.0

    @contextmanager
    def broken(_: Bench) -> Iterator[Measure]:
        yield lambda: 1 / 0

    unmeasured = measure(row(absent, giving(), at_most(1)), bench)
    assert (unmeasured.verdict, unmeasured.reason, unmeasured.failed) == ("not measured", "it is not installed", False)
    failed = measure(row(giving(1), broken, at_most(1)), bench)
    assert (failed.verdict, failed.failed) == ("failed", True)
    assert "ZeroDivisionError" in (failed.reason or "")


def test_the_table(bench: Bench) -> None:
    """A line a row, in Markdown: work, median and range of each side, ratio, target, verdict; or why there is none."""
    outcomes = [
        outcome(bench, at_most(1.3), (0.5, 0.4, 0.6), (1, 1, 1)),
        replace(outcome(bench, at_most(1.3), (1,) * 3, (1234,) * 3), reason="no [bold]reason|[/bold]"),
        outcome(bench, compared(), (1,) * 3, (2,) * 3),
    ]
    text = io.StringIO()
    report.console(text).print(report.table(outcomes), report.summary(outcomes), sep="\n", markup=False, soft_wrap=True)
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    assert lines[0] == "| row | work | unit | floor | kodo | ratio | target | verdict |"
    assert set(lines[1]) <= set("|-: ")
    assert lines[2] == (
        "| `a-row` | some work at 1,000 flows | ms | 0.50 (0.40 to 0.60) | 1.00 | 2.00 | 1.3 x floor | missed |"
    )
    assert lines[3] == (
        r"| `a-row` | some work at 1,000 flows | ms | | | | 1.3 x floor | not measured: no [bold]reason\|[/bold] |"
    )
    assert lines[4] == "| `a-row` | some work at 1,000 flows | ms | 1.00 | 2.00 | 2.00 | | compared |"
    assert lines[5] == "0 of 2 targets met; missed: a-row (1.54 x what is allowed)"


def test_the_json_has_every_round(bench: Bench) -> None:
    """A program gets the rounds of both sides beside medians, ratio and verdict."""
    plain = outcome(bench, at_most(1.3), (1, 2, 3), (2, 4, 6)).plain()
    assert (plain["floor"], plain["kodo"], plain["floor_median"], plain["ratio"]) == ([1, 2, 3], [2, 4, 6], 2, 2)
    assert (plain["name"], plain["verdict"], plain["target"]) == ("a-row", "missed", "1.3 x floor")


def test_the_plot(bench: Bench, tmp_path: Path) -> None:
    """Rows are drawn over the number of flows, one panel for each row; what could not be measured is left out."""
    measured = outcome(bench, at_most(2), (1,) * 3, (2,) * 3)
    gone = replace(measured, reason="gone")
    curves = [(measured.row, [(1000, measured), (10_000, gone)]), (replace(measured.row, unit="s"), [(1000, measured)])]
    report.plot(curves, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("target", "second", "said"),
    [
        (at_most(1), (2.0, 2.1, 1.9), "worse"),
        (at_most(1), (0.5, 0.6, 0.4), "better"),
        (at_least(1), (2.0, 2.1, 1.9), "better"),
        (at_most(1), (1.01, 1.01, 1.01), "same"),
        (at_most(1), (0.5, 1.5, 1.6), "same"),
    ],
)
def test_a_pair(bench: Bench, target: Target, second: tuple[float, ...], said: str) -> None:
    """Of two commits the second is better or worse only if the middle half of the rounds agrees on it."""
    assert change(outcome(bench, target, (1.0, 1.0, 1.0), second)) == said


def test_a_quick_run_says_what_it_leaves_out() -> None:
    """What is smaller in a quick run than in a full one is said above its table."""
    assert Scale().reduced() == ""
    assert "flows 5,000 of 100,000" in QUICK.reduced()
    assert "rounds 2 of 5" in QUICK.reduced()


def test_the_soak(tmp_path: Path) -> None:
    """Nodes register again and again until all registrations were answered; the curve is sampled, and drawn."""
    with Bench(tmp_path, Scale()) as bench:
        samples = list(soak.soak(bench, registrations=101, nodes=7, clients=3, every=0.1))
    assert samples[-1].registrations == 101
    assert all(one.memory > 1 and one.file > 0 for one in samples)
    soak.plot(samples, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_curve_of_a_soak() -> None:
    """The table ends with the last sample, and drift is from the second quarter to the last."""
    samples = [soak.Sample(number, number / 10, 50 + number / 100, 20) for number in range(100, 900, 100)]
    lines = soak.curve(samples).splitlines()
    assert lines[2:10][-1] == "| 800 | 80 | 10 | 58.0 | 20.0 |"
    assert soak.drift(samples, "memory") == pytest.approx(57.5 / 53.5 - 1)
    assert lines[-1].endswith("the file by +0.0%; memory was 58.0 MiB at most.")
    assert "Too few samples" in soak.curve(samples[:5])
    assert soak.curve([]) == "nothing was measured"


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "nowhere/x.json"],
        ["--plot", "x.png", "--sizes", "1000,many"],
        ["--plot", "x.png", "lab-8"],
        ["pair", "main", ".", "--plot", "x.png"],
        ["soak", "--registrations", "0"],
    ],
)
def test_what_cannot_come_to_anything_is_refused_before_it_is_measured(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there, what is no number or cannot be drawn, and nothing to be done, are errors at once."""
    with pytest.raises(SystemExit):
        main(words)
    assert "expected" in capsys.readouterr().err


def test_a_service_that_answers_something_else_is_ended(tmp_path: Path) -> None:
    """Who does not come up as expected does not go on running beside what is measured next."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    service = Service(command, f"http://127.0.0.1:{port}", tmp_path / "log")
    with pytest.raises(load.LoadError, match="404"), service:
        pytest.fail("it answers 404")
    with pytest.raises(ConnectionRefusedError):
        load.Connection(service.url)


# -- the clients -------------------------------------------------------------------------------------------


def test_the_client_without_wrk(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no `wrk`, processes ask, each its own requests, and count what was answered."""
    registry = serve(node=False)
    monkeypatch.setattr(load, "client", lambda: "bare sockets")
    loaded = load.load(registry.url, [newcomer()], connections=2, seconds=0.2)
    assert registry.get("/flows")["total"] == registry.get("/counts")["total"] > 0
    assert loaded.rate > 0
    assert loaded.p50 > 0


def test_a_refusal_is_no_figure(serve: Start) -> None:
    """An answer other than 200 is an error, for a figure would be about something else."""
    registry = serve(node=False)
    with load.Connection(registry.url) as connection, pytest.raises(load.LoadError, match="404"):
        connection.ask(Request("/nowhere").raw())
    with pytest.raises(load.LoadError, match="1 of 1"):
        load.burst(registry.url, [Request("/nowhere").raw()])
