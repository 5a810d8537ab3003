"""Small tables of anything, as HTML and as text: columns that are empty throughout are left out, text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kodo.lab.flows import CELL, MOST
from kodo.lab.naming import one_line
from kodo.lab.plain import WIDEST, Column, text_table, wrapped

Cells = tuple[Sequence[str], Sequence[Mapping[str, Any]]]
"""The columns of a table, and its rows."""
SENTENCES = ("why",)
"""Columns that go on in the next line; names and urls are cut in the middle, for it is at the end that they differ."""


def html_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as HTML, with what they are beneath."""
    used = _used(columns, rows)
    if not rows:
        return f"<div><i>{escape(title)}</i></div>"
    styles = [f"{CELL};text-align:right" if _is_number(name, rows) else CELL for name in used]
    named = zip(styles, used, strict=True)
    head = "".join(f'<th style="{style};font-weight:600">{escape(_heading(name))}</th>' for style, name in named)
    lines = (zip(styles, line, strict=True) for line in _lines(used, rows))
    cells = ("".join(f'<td style="{style}">{escape(text)}</td>' for style, text in line) for line in lines)
    body = "".join(f'<tr style="background:transparent">{line}</tr>' for line in cells)
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;color:inherit;margin:0">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<div style="padding:6px 0;opacity:0.7">{escape(_said(title, rows))}</div></div>'
    )


def plain_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    ranks: Mapping[str, int] | None = None,
    least: Mapping[str, int] | None = None,
) -> str:
    """The same as text, for `print`; columns get room by their ranks, from left to right if there are none.

    `least` has those that give way to others, down to so many cells.
    """
    used = _used(columns, rows)
    if not rows:
        return wrapped(title)
    ranks = {name: rank for rank, name in enumerate(columns)} if ranks is None else ranks
    shown = [
        Column(
            name,
            _heading(name),
            list(map(one_line, texts)),
            ranks.get(name, 0),
            (least or {}).get(name, WIDEST),
            middle=name not in SENTENCES,
            wraps=name in SENTENCES,
            is_number=_is_number(name, rows),
        )
        for name, texts in zip(used, zip(*_lines(used, rows), strict=True), strict=True)
    ]
    return text_table(shown, _said(title, rows))


def _used(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in columns if any(row.get(name) not in (None, "", []) for row in rows)]


def _heading(column: str) -> str:
    return column.replace("_", " ")


def _said(title: str, rows: Sequence[Any]) -> str:
    return title if len(rows) <= MOST else f"{title}; the first {MOST} of {len(rows)} rows, .frame has all"


def _is_number(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [row.get(column) for row in rows[:MOST]]
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)


def _lines(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[_text(row.get(name)) for name in columns] for row in rows[:MOST]]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
