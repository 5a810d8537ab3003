"""What was measured, for people and for programs: the printed table, the JSON, the plot."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

from rich.console import Console

from tests.benchmarks.load import client
from tests.benchmarks.row import Outcome, Row
from tests.benchmarks.services import Scale

STYLES = {"met": "green", "missed": "bold red", "failed": "bold red", "not measured": "dim", "compared": ""}
Curve = tuple[Row, list[tuple[int, Outcome]]]
"""A row, measured at several numbers of flows."""


def circumstances(tree: Path, scale: Scale) -> dict[str, Any]:
    """Where and how it was measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=tree, capture_output=True, text=True, check=False
    )
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "client": client(),
        "scale": asdict(scale),
    }


def figure(number: float) -> str:
    """A number as people read it: three digits that count."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def spread(figures: Sequence[float]) -> str:
    """The median, and from where to where the rounds went."""
    if len(set(figures)) <= 1:
        return "".join(map(figure, figures[:1]))
    return f"{figure(median(figures))} ({figure(min(figures))} to {figure(max(figures))})"


def short(reason: str) -> str:
    """A reason in a line; the whole of it is in the JSON."""
    return shorten(reason, 160, placeholder=" ...")


def brief(outcome: Outcome) -> str:
    """An outcome in a line."""
    if outcome.reason is not None:
        return f"{outcome.verdict}: {short(outcome.reason)}"
    unit, aim = outcome.row.unit, outcome.row.target.text
    said = f"{spread(outcome.floor)} and {spread(outcome.kodo)} {unit}, {outcome.verdict}"
    return f"{said} ({aim})" if aim else said


def headline(where: dict[str, Any]) -> str:
    """When, what and where was measured, by which client, and what was left out to be quick."""
    lines = [
        f"{where['at']}, commit {where['commit']}; {where['machine']}, load {where['load'][0]};",
        f"Python {where['python']}, SQLite {where['sqlite']}; client: {where['client']}",
        Scale(**where["scale"]).reduced(),
    ]
    return "\n".join(filter(None, lines))


def table(outcomes: Sequence[Outcome]) -> str:
    """The table in Markdown, for a README: the work, what floor and kodo took, their ratio, the target, the verdict."""
    head = ("row", "work", "unit", "floor", "kodo", "ratio", "target", "verdict")
    lines = [head, *map(_cells, outcomes)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [
        "-" * (width - 1) + (":" if name in {"floor", "kodo", "ratio"} else "-")
        for name, width in zip(head, widths, strict=True)
    ]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def _cells(outcome: Outcome) -> tuple[str, ...]:
    row, verdict = outcome.row, outcome.verdict
    measured = ("", "", "")
    if outcome.reason is None:
        measured = (spread(outcome.floor), spread(outcome.kodo), figure(outcome.ratio))
    said = verdict if outcome.reason is None else f"{verdict}: {short(outcome.reason)}"
    cells = (f"`{row.name}`", outcome.work, row.unit, *measured, row.target.text, said)
    return tuple(cell.replace("|", "\\|") for cell in cells)


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many targets are met, and the names of those that are missed, farthest first."""
    aimed = [one for one in outcomes if one.row.target.text]
    missed = sorted((one for one in aimed if one.verdict == "missed"), key=lambda one: -one.strain)
    met = sum(one.verdict == "met" for one in aimed)
    names = ", ".join(f"{one.row.name} ({one.strain:.2f} x what is allowed)" for one in missed)
    return f"{met} of {len(aimed)} targets met" + (f"; missed: {names}" if missed else "")


def console(file: Any = None) -> Console:
    """Where tables are printed: nothing is cut off where there is no terminal."""
    made = Console(file=file, highlight=False)
    if not made.is_terminal:
        made.width = 200
    return made


def plot(curves: Iterable[Curve], path: Path) -> None:
    """Draw what rows cost at several numbers of flows, a panel for each: kodo as a line, its floor dotted."""
    drawn = list(curves)
    title = "kodo (lines) and floors (dotted), by the number of flows held"
    with drawing(path, len(drawn), title, columns=min(4, len(drawn))) as panels:
        for panel, curve in zip(panels, drawn, strict=True):
            _draw(panel, *curve)


@contextmanager
def drawing(path: Path, number: int, title: str, columns: int = 2) -> Iterator[list[Any]]:
    """So many panels to draw on, in so many columns, which are written into the file in the end."""
    import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415, few draw

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    lines, width = ceil(number / columns), max(3.2, 11 / columns)
    size = (width * columns, 0.76 * width * lines)
    sheet, panels = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    yield list(panels.flat[:number])
    for empty in panels.flat[number:]:
        empty.set_visible(False)
    sheet.suptitle(title)
    sheet.savefig(path, dpi=110)
    plt.close(sheet)


def _draw(panel: Any, row: Row, points: Iterable[tuple[int, Outcome]]) -> None:
    """One panel: from zero, or by powers of ten where what is drawn differs by more than that."""
    measured = [(flows, outcome) for flows, outcome in points if outcome.reason is None]
    sizes = [flows for flows, _ in measured]
    ours, floors = ([median(getattr(one, side)) for _, one in measured] for side in ("kodo", "floor"))
    (line,) = panel.plot(sizes, ours, "o-", lw=1.4, ms=4)
    panel.plot(sizes, floors, ":", color=line.get_color(), lw=1.4)
    panel.set(xscale="log", xticks=sizes)
    panel.set_title(f"{row.name}, {row.unit}", fontsize=10)
    panel.minorticks_off()
    drawn = [*ours, *floors]
    if drawn and max(drawn) > 10 * min(drawn):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    else:
        panel.set_ylim(0, 1.08 * max(drawn, default=1))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
