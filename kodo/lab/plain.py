"""Tables as plain text, for `print`: as wide as a terminal, where that can be.

Columns get room in the order of their rank. Cells that may be cut are cut as far as it takes; a column that finds no
room even so is left out, and named beneath the table. A name is cut only when it is longer than anyone reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

LINE = 80
"""Characters of a line."""
GAP = "  "
WIDEST = 48
"""Characters of a cell that may be cut: most."""
FEW = 5
"""Columns without room that are named."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column: one of rank 0 is always there; one with `least` has cells that may be cut down to so many characters.

    `middle` cuts in the middle, for what matters at its end too.
    """

    heading: str
    cells: Sequence[str]
    rank: int = 0
    least: int | None = None
    middle: bool = False
    is_number: bool = False

    def width(self, limit: int) -> int:
        """How wide it is when nothing that may be cut is longer than `limit`."""
        longest = max(map(len, (self.heading, *self.cells)))
        return longest if self.least is None else min(longest, max(limit, self.least))

    def lines(self, limit: int) -> list[str]:
        """Heading and cells, all of one width."""
        width = self.width(limit)
        pad = str.rjust if self.is_number else str.ljust
        return [pad(_cut(text, width, middle=self.middle), width) for text in (self.heading, *self.cells)]


def text_table(columns: Sequence[Column], said: str) -> str:
    """A table, with what it says beneath."""
    shown = _with_room(columns)
    limit = next((limit for limit in range(WIDEST, 0, -1) if _width(shown, limit) <= LINE), 0)
    lines = zip(*(column.lines(limit) for column in shown), strict=True)
    beneath = _with_more(wrapped(said), [column.heading for column in columns if column not in shown])
    return "\n".join([*(GAP.join(line).rstrip() for line in lines), beneath])


def fits(columns: Sequence[Column]) -> bool:
    """Whether a line has room for all of them, uncut."""
    return _width(columns, WIDEST) <= LINE


def wrapped(text: str, indent: str = "") -> str:
    """A text in lines, the first of which is not indented; no word is broken."""
    return fill(text, LINE, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _with_room(columns: Sequence[Column]) -> list[Column]:
    shown: list[Column] = []
    for column in sorted(columns, key=lambda column: column.rank):
        if not column.rank or _width([*shown, column], 0) <= LINE:
            shown.append(column)
    return [column for column in columns if column in shown]


def _width(columns: Sequence[Column], limit: int) -> int:
    return sum(column.width(limit) + len(GAP) for column in columns) - len(GAP)


def _with_more(said: str, left_out: Sequence[str]) -> str:
    if not left_out:
        return said
    more = (
        f".frame has {', '.join(left_out)} too" if len(left_out) <= FEW else f".frame has {len(left_out)} more columns"
    )
    return f"{said}; {more}" if len(said) + len(more) + 2 <= LINE else f"{said}\n{more}"


def _cut(text: str, limit: int, *, middle: bool) -> str:
    """A text as long as there is room."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 3]}…{text[limit // 3 + 1 - limit :]}" if middle else text[: limit - 1] + "…"
