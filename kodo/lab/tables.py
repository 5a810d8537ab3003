"""Small tables of anything, as HTML and as text: columns that are empty throughout are left out, text is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from kodo.lab.flows import CELL, MOST

Cells = tuple[Sequence[str], Sequence[Mapping[str, Any]]]
"""The columns of a table, and its rows."""


def html_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as HTML, with what they are beneath."""
    used = _used(columns, rows)
    if not rows:
        return f"<div><i>{escape(title)}</i></div>"
    head = "".join(f'<th style="{CELL};font-weight:600">{escape(_heading(name))}</th>' for name in used)
    lines = _cells(used, rows[:MOST], lambda text: f'<td style="{CELL}">{escape(text)}</td>')
    body = "".join(f'<tr style="background:transparent">{"".join(line)}</tr>' for line in lines)
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;color:inherit;margin:0">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<div style="padding:6px 0;opacity:0.7">{escape(_said(title, rows))}</div></div>'
    )


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as text, for `print`."""
    used = _used(columns, rows)
    if not rows:
        return title
    # On one line, whatever is in it.
    lines = [list(map(_heading, used)), *_cells(used, rows[:MOST], lambda text: " ".join(text.split()))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join([*("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines), _said(title, rows)])


def _used(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in columns if any(row.get(name) not in (None, "", []) for row in rows)]


def _heading(column: str) -> str:
    return column.replace("_", " ")


def _said(title: str, rows: Sequence[Any]) -> str:
    return title if len(rows) <= MOST else f"{title}; the first {MOST} of {len(rows)} rows, .frame has all"


def _cells(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], cell: Callable[[str], str]
) -> Iterator[list[str]]:
    for row in rows:
        yield [cell(_text(row.get(name))) for name in columns]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
