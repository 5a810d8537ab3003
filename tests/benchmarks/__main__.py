"""The command: `python -m tests.benchmarks [ROW ...]`, `pair A B [ROW ...]` in front of them, or `soak`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from rich.console import Console

from tests.benchmarks import report, soak
from tests.benchmarks.pair import pair, pair_brief, pair_table
from tests.benchmarks.row import Outcome, Row, measure
from tests.benchmarks.rows import ROWS
from tests.benchmarks.services import QUICK, ROOT, Bench, Scale

SIZES = "1000,10000,100000"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help="names of rows, or patterns such as 'register*'; all of them"
    )
    parser.add_argument("--list", action="store_true", help="name the rows, and measure nothing")
    parser.add_argument(
        "--quick", action="store_true", help="less of everything, in three minutes: whether all works, not what holds"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each side (default: 5)")
    parser.add_argument("--flows", type=int, help="flows that a large registry holds (default: 100,000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw there what rows cost as flows grow")
    parser.add_argument("--sizes", type=_sizes, default=SIZES, help=f"numbers of flows for the plot (default: {SIZES})")
    return parser


def _sizes(text: str) -> list[int]:
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected numbers of flows, such as {SIZES}, not {text!r}")
    return list(map(int, sizes))


def chosen(names: Iterable[str]) -> list[Row]:
    """The rows of these names or patterns, all if there are none. Raises `ValueError` for one that fits no row."""
    patterns = list(names) or ["*"]
    for pattern in patterns:
        if not any(fnmatch(row.name, pattern) for row in ROWS):
            raise ValueError(
                f"expected the name of a row, not {pattern!r}; there are {', '.join(row.name for row in ROWS)}"
            )
    return [row for row in ROWS if any(fnmatch(row.name, pattern) for pattern in patterns)]


def main(arguments: Sequence[str]) -> int:
    """Measure and print. 1 when something failed; a missed target is a result, and no failure."""
    if arguments[:1] == ["soak"]:
        return soak.main(arguments[1:])
    pairing = arguments[:1] == ["pair"]
    parser = _parser()
    given = parser.parse_args(arguments[1:] if pairing else arguments)
    scale = QUICK if given.quick else Scale()
    scale = replace(scale, flows=given.flows or scale.flows, rounds=given.rounds or scale.rounds)
    console = report.console()
    try:
        for path in (given.json, given.plot):
            if path is not None and not path.resolve().parent.is_dir():
                raise ValueError(f"expected a file in a folder that is there, not {path}")
        if pairing and len(given.rows) < 2:
            raise ValueError("expected two commits after pair, such as: pair main . 'register*'")
        rows = chosen(given.rows[2:] if pairing else given.rows)
        if given.plot and (pairing or not any(row.grows for row in rows)):
            raise ValueError("expected rows to plot that are worth a curve over the flows, and no pair")
        if given.list:
            for row in rows:
                console.print(f"{row.name}: {Scale().fill(row.work)}")
            return 0
        outcomes = _pair(console, given, rows, scale) if pairing else _measure(console, given, rows, scale)
    except ValueError as error:
        parser.error(str(error))
    return int(any(outcome.failed for outcome in outcomes))


def _measure(console: Console, given: argparse.Namespace, rows: Sequence[Row], scale: Scale) -> list[Outcome]:
    where = report.circumstances(ROOT, scale)
    outcomes, curves = [], []
    with TemporaryDirectory(prefix="kodo-bench-") as folder, Bench(Path(folder), scale) as bench:
        for row in rows:
            outcomes.append(_told(measure(row, bench), report.brief))
        sizes = given.sizes if given.plot else []
        for done in [outcome for outcome in outcomes if outcome.row.grows and sizes]:
            at_sizes = [done if flows == scale.flows else measure(done.row, bench.at(flows)) for flows in sizes]
            curves.append((done.row, list(zip(sizes, at_sizes, strict=True))))
            bench.end_shared()
    _print(console, where, report.table(outcomes), report.summary(outcomes))
    if given.json:
        told = {"circumstances": where, "rows": [outcome.plain() for outcome in outcomes]}
        curve = [{"name": row.name, "flows": flows, **one.plain()} for row, points in curves for flows, one in points]
        given.json.write_bytes(orjson.dumps({**told, "curves": curve}, option=orjson.OPT_INDENT_2))
    if given.plot:
        report.plot(curves, given.plot)
    return outcomes


def _pair(console: Console, given: argparse.Namespace, rows: Sequence[Row], scale: Scale) -> list[Outcome]:
    commits = given.rows[0], given.rows[1]
    where = report.circumstances(ROOT, scale)
    outcomes = [_told(outcome, pair_brief) for outcome in pair(commits, rows, scale)]
    _print(console, where, pair_table(commits, outcomes), "")
    if given.json:
        told = {"circumstances": where, "commits": commits, "rows": [outcome.plain() for outcome in outcomes]}
        given.json.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    return outcomes


def _told(outcome: Outcome, brief: Callable[[Outcome], str]) -> Outcome:
    """Say that a row is done, for who waits."""
    line = f"{outcome.row.name}: {brief(outcome)}; took {outcome.seconds:.0f} s"
    print(line, file=sys.stderr, flush=True)  # noqa: T201, beside the table
    return outcome


def _print(console: Console, where: dict[str, Any], *said: Any) -> None:
    console.print(f"{report.headline(where)}\n", markup=False)
    for one in said:
        # Lines of a table in Markdown are as long as they are.
        console.print(one, "", sep="\n", markup=False, soft_wrap=isinstance(one, str))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
