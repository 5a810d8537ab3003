"""Two commits on the same work: kodo of the one in place of the floor, kodo of the other in place of kodo.

Each commit is checked out as a git worktree in a temporary folder, and is measured by the benchmarks of *this* tree,
which are copied into it. `.` stands for the tree as it is.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from rich import box
from rich.table import Table
from rich.text import Text

from tests.benchmarks.report import STYLES, figure, short, spread
from tests.benchmarks.row import Outcome, Row, measure_sides
from tests.benchmarks.services import ROOT, Bench, Scale

HERE = "."
LEAST = 0.03
"""A difference below this is not worth a word."""


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The tree of a commit, with the benchmarks of this one. Raises `ValueError` for what is no commit."""
    if commit == HERE:
        yield ROOT
        return
    command = ["git", "worktree", "add", "--detach", "--quiet", str(folder), commit]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"expected a commit of this repository, or . for the tree as it is: {done.stderr.strip()}")
    try:
        ours = Path(__file__).parent
        shutil.rmtree(folder / "tests" / "benchmarks", ignore_errors=True)
        shutil.copytree(ours, folder / "tests" / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
        yield folder
    finally:
        command = ["git", "worktree", "remove", "--force", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)


def pair(commits: tuple[str, str], rows: Sequence[Row], scale: Scale) -> Iterator[Outcome]:
    """The rows, each with the first commit as the floor and the second as kodo."""
    with TemporaryDirectory(prefix="kodo-pair-") as name, ExitStack() as stack:
        folder = Path(name)
        benches = []
        for at, commit in zip("ab", commits, strict=True):
            tree = stack.enter_context(checked_out(commit, folder / f"tree-{at}"))
            (folder / at).mkdir()
            benches.append(stack.enter_context(Bench(folder / at, scale, tree)))
        first, second = benches
        for row in rows:
            yield measure_sides(row, (row.kodo.begin, first), (row.kodo.begin, second))


def change(outcome: Outcome) -> str:
    """`faster`, `slower` (of the second), or `same`: whether the middle half of the rounds is on one side."""
    ratios = [other / one for one, other in zip(outcome.floor, outcome.kodo, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    if abs(median(ratios) - 1) < LEAST or low <= 1 <= high:
        return "same"
    return "better" if (median(ratios) > 1) == outcome.row.target.more else "worse"


def pair_brief(outcome: Outcome) -> str:
    """A pair in a line."""
    if outcome.reason is not None:
        return f"{outcome.verdict}: {short(outcome.reason)}"
    return f"{spread(outcome.floor)} and {spread(outcome.kodo)} {outcome.row.unit}, the second is {change(outcome)}"


def pair_table(commits: tuple[str, str], outcomes: Sequence[Outcome]) -> Table:
    """The table: the work, what each commit took, and what the second one changed."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("work", "unit"):
        shown.add_column(name)
    for name in (*commits, "ratio"):
        shown.add_column(name, justify="right")
    shown.add_column(f"{commits[1]} is")
    styles = {"better": STYLES["met"], "worse": STYLES["missed"], "same": "dim"}
    for outcome in outcomes:
        work = Text(f"{outcome.work} [{outcome.row.name}]")
        if outcome.reason is not None:
            shown.add_row(work, outcome.row.unit, "", "", "", Text(f"{outcome.verdict}: {short(outcome.reason)}"))
            continue
        word = change(outcome)
        cells = (spread(outcome.floor), spread(outcome.kodo), figure(outcome.ratio))
        shown.add_row(work, outcome.row.unit, *cells, Text(word, styles[word]))
    return shown
