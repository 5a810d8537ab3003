"""Tables as plain text, for `print`: as wide as a terminal, where that can be.

Columns get room in the order of their rank. Cells that may be cut are cut as far as it takes; a column that finds no
room even so is left out, and named beneath the table. A name is cut only when it is longer than anyone reads. What is
said in sentences is not cut: it goes on in the next line.

How wide a text is, is told by rich: signs of Chinese and pictures take two cells of a line, marks on letters none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from rich.cells import cell_len

LINE = 80
"""Cells of a line."""
GAP = "  "
WIDEST = 48
"""Cells of a text that may be cut: most."""
LEAST = 24
"""To how many a text is cut that gives way to others: what would have less room is left out."""
FEW = 5
"""Columns without room that are named."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column: one of rank 0 is always there; one with `least` may be cut down to so much, to give others room.

    It is cut down further only where nothing else is left to be done. `middle` cuts in the middle, for what matters at
    its end too; `wraps` cuts nothing, and goes on in the next line. `name` is what the column is called where it is to
    be had when it is left out.
    """

    name: str
    heading: str
    cells: Sequence[str]
    rank: int = 0
    least: int | None = None
    middle: bool = False
    wraps: bool = False
    is_number: bool = False

    @cached_property
    def longest(self) -> int:
        """How wide it is when nothing is cut."""
        return max(map(cell_len, (self.heading, *self.cells)))

    def width(self, limit: int, *, least: bool = True) -> int:
        """How wide it is when nothing that may be cut is longer than `limit`, or than its `least`."""
        if self.least is None:
            return self.longest
        return min(self.longest, max(limit, self.least) if least else limit)

    def lines(self, width: int) -> list[list[str]]:
        """The lines of the heading and of each cell, all of one width."""
        return [self._shown(text, width) for text in (self.heading, *self.cells)]

    def _shown(self, text: str, width: int) -> list[str]:
        lines = _broken(text, width) if self.wraps else [cut(text, width, middle=self.middle)]
        return [self._padded(line, width) for line in lines]

    def _padded(self, text: str, width: int) -> str:
        space = " " * (width - cell_len(text))
        return space + text if self.is_number else text + space


def text_table(columns: Sequence[Column], said: str) -> str:
    """A table, with what it says beneath."""
    shown = _with_room(columns)
    widths = _widths(shown)
    cells = (column.lines(width) for column, width in zip(shown, widths, strict=True))
    lines = [line for row in zip(*cells, strict=True) for line in _row(row, widths)]
    return "\n".join([*lines, _with_more(wrapped(said), [column.name for column in columns if column not in shown])])


def _row(cells: Iterable[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """The lines of a row: as many as its longest cell has."""
    blank = [" " * width for width in widths]
    lines = ([text or space for text, space in zip(line, blank, strict=True)] for line in zip_longest(*cells))
    return [GAP.join(line).rstrip() for line in lines]


def fits(columns: Sequence[Column]) -> bool:
    """Whether a line has room for all of them."""
    return _line(column.width(0) for column in columns) <= LINE


def wrapped(text: str, indent: str = "") -> str:
    """A text in lines, the first of which is not indented; no word is broken."""
    return "\n".join(_filled(text.split(), LINE, indent))


def _filled(words: Iterable[str], width: int, indent: str = "") -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word if lines else word)
    return lines


def _with_room(columns: Sequence[Column]) -> list[Column]:
    shown: list[Column] = []
    for column in sorted(columns, key=lambda column: column.rank):
        if not column.rank or fits([*shown, column]):
            shown.append(column)
    return [column for column in columns if column in shown]


def _widths(columns: Sequence[Column]) -> list[int]:
    """The most that a line has room for; less than the least only where columns that are always there need it."""
    tries = (
        [column.width(limit, least=least) for column in columns]
        for least in (True, False)
        for limit in range(WIDEST, 0, -1)
    )
    return next((widths for widths in tries if _line(widths) <= LINE), [column.width(0) for column in columns])


def _line(widths: Iterable[int]) -> int:
    return sum(width + len(GAP) for width in widths) - len(GAP)


def _with_more(said: str, left_out: Sequence[str]) -> str:
    if not left_out:
        return said
    more = (
        f".frame has {', '.join(left_out)} too" if len(left_out) <= FEW else f".frame has {len(left_out)} more columns"
    )
    return f"{said}; {more}" if cell_len(f"{said}; {more}") <= LINE else f"{said}\n{wrapped(more)}"


def _broken(text: str, width: int) -> list[str]:
    """A text in lines of so many cells; only a word that is longer is broken."""
    return _filled((piece for word in text.split() for piece in _pieces(word, width)), width) or [""]


def _pieces(word: str, width: int) -> Iterator[str]:
    while cell_len(word) > width and (piece := _beginning(word, width)):
        yield piece
        word = word[len(piece) :]
    yield cut(word, width, middle=False)


def cut(text: str, room: int, *, middle: bool) -> str:
    """A text as long as there is room."""
    if cell_len(text) <= room:
        return text
    if not middle:
        return _beginning(text, room - 1) + "…"
    beginning = _beginning(text, room // 3)
    return f"{beginning}…{_end(text, room - 1 - cell_len(beginning))}"


def _beginning(text: str, room: int) -> str:
    sizes = range(len(text) + 1)
    return text[: bisect_right(sizes, room, key=lambda size: cell_len(text[:size])) - 1]


def _end(text: str, room: int) -> str:
    """The longest end that there is room for, without marks whose letter is cut off."""
    starts = range(len(text) + 1)
    start = len(text) + 1 - bisect_right(starts, room, key=lambda size: cell_len(text[len(text) - size :]))
    while start < len(text) and not cell_len(text[start]):
        start += 1
    return text[start:]
