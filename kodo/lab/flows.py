"""The table of flows: what members list, of one of them or united over the mesh.

- What is shown is plain and the same every time: members stand by their names, rows are sorted by what is shown, and
  columns that are empty throughout, or hold times that nobody asked for, are left out.
- What is known stays one attribute away: `frame` has every column, and urls as they came.
- Flows, nodes and organizations are named by users: all of it is escaped. Styles stand inline and name no colour but
  a translucent grey, so that a saved notebook reads well in a light and in a dark theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from kodo.errors import InvalidMessageError, LabError
from kodo.lab.engine import Asking
from kodo.lab.naming import Names, numbered, one_line
from kodo.lab.plain import LEAST, WIDEST, Column, text_table, wrapped
from kodo.misread import explanation, misordered
from kodo.models import MISSING_AUTHOR, MISSING_DESCRIPTION
from kodo.query import Order, parse_order

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[str, Any]

PAGE = 1000
MOST = 200
"""Rows that are shown; `frame` has all."""
MANY = 12
"""Registries that a row names; of more it says how many they are."""
LONGEST = 40
"""Cells of plain text beyond which the registries of a row are counted there."""
EXAMPLES = {"q": 'name ~ "agent"', "by": "organization, name:d"}
SHOWN = ("node", "name", "url", "organization", "author", "description", "tags", "registries")
TIMES = ("created", "modified", "heartbeat")
ALWAYS = ("node", "name")
"""What plain text always has, and cuts for no other column's sake."""
ROOM = ("registries", "created", "heartbeat", "modified", "organization", "tags", "url", "author", "description")
"""In which order the others get room there."""
_EMPTY: tuple[Any, ...] = (None, "", [], (), MISSING_AUTHOR, MISSING_DESCRIPTION)
WHOLE, ROOMY = 160, 40
"""Characters of a cell that HTML shows, the rest when it is pointed at; and those from which it is not made narrow."""
_GREY = "rgba(128,128,128,0.28)"
CELL = f"padding:4px 14px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid {_GREY}"
_WORD = f"background:{_GREY};border-radius:8px;padding:1px 7px;margin-right:4px;white-space:nowrap;display:inline-block"


class FlowTable:
    """Rows of flows, as a table to read and as a DataFrame to go on with."""

    def __init__(
        self, rows: Sequence[Row], names: Names, *, q: str | None = None, by: str | None = None, times: bool = False
    ) -> None:
        """`q` is what was asked for: the table says when it was taken as text although it looks like an expression.

        `by` sorts, as in PROTOCOL.md, but by what is shown; `times` shows when a node came and was last heard of.
        """
        read = explanation(q or "")
        self.notes = [f"q was {read}"] if read else []
        self._shown = sorted_rows([_named(row, names) for row in rows], by)
        self.rows = [row["row"] for row in self._shown]
        self._times = times

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def frame(self) -> DataFrame:
        """All rows with all columns, urls as they are."""
        from kodo.frames import flow_frame  # noqa: PLC0415, pandas is imported when the first frame is asked for

        frame = flow_frame(self.rows)
        if not any("registries" in row for row in self.rows):
            return frame
        return frame.drop(columns="registry").assign(registries=[row["registries"] for row in self.rows])

    @property
    def columns(self) -> list[str]:
        """The columns that are shown."""
        candidates = [*SHOWN, *(TIMES if self._times else ())]
        return [name for name in candidates if any(row.get(name) not in _EMPTY for row in self._shown)]

    def __repr__(self) -> str:
        if not self.rows:
            return wrapped(self._count)
        return text_table([_column(name, self._shown[:MOST]) for name in self.columns], self._count)

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<div><i>{escape(self._count)}</i></div>"
        columns = self.columns
        head = "".join(f'<th style="{CELL};font-weight:600">{name}</th>' for name in columns)
        lines = (
            "".join(f'<td style="{_style(row.get(name))}">{_html(name, row.get(name))}</td>' for name in columns)
            for row in self._shown[:MOST]
        )
        body = "".join(f'<tr style="background:transparent">{line}</tr>' for line in lines)
        return (
            '<div style="overflow-x:auto"><table style="border-collapse:collapse;color:inherit;margin:0">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f'<div style="padding:6px 0;opacity:0.7">{escape(self._count)}</div></div>'
        )

    @property
    def _count(self) -> str:
        said = f"the first {MOST} of {len(self.rows)} flows; .frame has all"
        if len(self.rows) <= MOST:
            said = numbered(len(self.rows), "flow") if self.rows else "no flows"
        return "; ".join([said, *self.notes])


def all_flows(client: Asking, q: str | None = None, by: str | None = None) -> list[Row]:
    """Every row of a service's listing, page by page. Raises `LabError` for a question that is no text."""
    for name, text in (("q", q), ("by", by)):
        if not isinstance(text, str | None):
            raise LabError(f"{name}: expected a text, such as {EXAMPLES[name]!r}, not {text!r}")
    checked_order(by)
    rows: list[Row] = []
    while True:
        page = client.flows(q=q, by=by, p=len(rows) // PAGE, pp=PAGE)
        rows += page["items"]
        if len(page["items"]) < PAGE:
            return rows


def checked_order(by: str | None) -> Order:
    """The order that `by` asks for. Raises `InvalidMessageError` as a service does, with what was probably meant."""
    if wrong := misordered(by or ""):
        raise InvalidMessageError([{"loc": ["query", "by"], "msg": wrong, "type": "value_error"}])
    return parse_order(by or "")


def united(listings: Mapping[str, Iterable[Row]]) -> list[Row]:
    """The listings of several registries as one: a row a flow, with the registries that list it in this form.

    Times are left out of the comparison, and shown as the latest: a registry that is a beat behind lists the same.
    """
    rows: dict[str, Row] = {}
    for registry, listing in listings.items():
        for row in listing:
            same = repr([row[column] for column in SHOWN if column in row])
            known = rows.setdefault(same, {**row, "registries": []})
            known["registries"].append(registry)
            known.update({time: max(known[time] or "", row[time] or "") or None for time in TIMES})
    return list(rows.values())


def sorted_rows(rows: list[Row], by: str | None) -> list[Row]:
    """Rows in the order that `by` asks for, ties by node and url. Raises `InvalidMessageError` as a service does."""
    asked = [item.partition(":") for item in checked_order(by).shown.split(", ")]
    keys = [(column, direction.startswith("d")) for column, _, direction in asked]
    reverse = all(descends for _, descends in keys)
    for column, descends in reversed([*keys, ("node", reverse), ("url", reverse)]):
        rows = sorted(rows, key=lambda row: _rank(row.get(column)), reverse=descends)
    return rows


def _named(row: Row, names: Names) -> Row:
    """A row as it is shown, and in it the row as it came."""
    named = {**row, "node": names[row["node"]], "registry": names[row["registry"]], "row": row}
    if len(row.get("registries", ())) > MANY:
        named["registries"] = _number_of(row["registries"])
    return named


def _rank(value: Any) -> tuple[bool, str]:
    return value is not None, ", ".join(sorted(value)) if isinstance(value, list) else value or ""


def _text(value: Any) -> str:
    if value in _EMPTY:
        return ""
    return one_line(", ".join(value) if isinstance(value, list) else str(value))


def _column(name: str, rows: Sequence[Row]) -> Column:
    """A column of plain text: times to the second, and registries by their number where their names are long."""
    if name in ALWAYS:
        return Column(name, name, [_text(row.get(name)) for row in rows], least=WIDEST, middle=True)
    rank = ROOM.index(name) + 1
    if name == "registries":
        return Column(name, name, [_registries(row[name]) for row in rows], rank)
    cells = [_text(row.get(name)) for row in rows]
    if name in TIMES:
        return Column(name, name, [_to_the_second(cell) for cell in cells], rank)
    return Column(name, name, cells, rank, LEAST, middle=name == "url")


def _to_the_second(time: str) -> str:
    return time.partition(".")[0].replace("T", " ")


def _registries(registries: list[str] | str) -> str:
    named = _text(registries)
    return named if cell_len(named) <= LONGEST else _number_of(registries)


def _number_of(registries: list[str] | str) -> str:
    return registries if isinstance(registries, str) else numbered(len(registries), "registry", "registries")


def _style(value: Any) -> str:
    """What has no space in which a line could end is broken wherever it has to be, such as a long url."""
    text = _text(value)
    roomy = ";min-width:15em" if len(text) > ROOMY else ""
    is_long = any(len(word) > WIDEST for word in text.split())
    return f"{CELL}{roomy};max-width:26em;overflow-wrap:anywhere" if is_long else CELL + roomy


def _html(column: str, value: Any) -> str:
    if column == "tags" and value:
        return "".join(f'<span style="{_WORD}">{escape(word)}</span>' for word in value)
    text = _to_the_second(_text(value)) if column in TIMES else _text(value)
    if len(text) <= WHOLE:
        return escape(text)
    return f'<span title="{escape(text)}">{escape(text[: WHOLE - 1])}…</span>'
