"""Beliefs: what runs, against what each registry says of it.

A node is *known* to a registry that lists what the node itself says it offers. It is *missing* where it is not listed
and should be, *stale* where something else is listed, and a *ghost* where it is listed and runs no more. Times are left
out of the comparison. What a node offers is asked of the node, or is what was last heard of one that cannot be asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from kodo.errors import LabError
from kodo.lab.flows import CELL, Row
from kodo.lab.naming import NO_ANSWER, numbered, one_of
from kodo.lab.plain import WIDEST, Column, fits, text_table

if TYPE_CHECKING:
    from pandas import DataFrame

MANY = 20
"""Registries that have a column each, if in text a line has room for them; of more it is counted how many say what."""
CONTENT = ("url", "name", "organization", "author", "description", "tags")
COLOURS = {"known": "34,139,84", "missing": "200,60,50", "stale": "201,138,27", "ghost": "130,90,150"}
APART, SILENT = "-", NO_ANSWER
"""What stands where nothing is expected, and where nobody can be asked."""

Offer = list[tuple[Any, ...]]
"""What a node offers, in a form that can be compared."""


def offer_of(rows: Sequence[Row]) -> Offer:
    """The flows of one node, from a listing."""
    return sorted(tuple(str(row.get(column)) for column in CONTENT) for row in rows)


@dataclass(frozen=True, slots=True)
class Truth:
    """A node: whether it runs, or is paused, what it offers if anyone knows, and which registries are to list it."""

    name: str
    url: str
    runs: bool
    offer: Offer | None
    expected: frozenset[str]
    paused: bool = False

    @property
    def state(self) -> str:
        """Whether it runs, in a word."""
        return "paused" if self.paused else "runs" if self.runs else "ended"


def beliefs_of(truths: Sequence[Truth], listings: Mapping[str, Sequence[Row] | None]) -> Beliefs:
    """Compare what nodes say of themselves with the listings of registries; a listing of None was not to be had."""
    table = {}
    for truth in truths:
        table[truth.name] = {
            registry: SILENT
            if rows is None
            else _belief(truth, [row for row in rows if row["node"] == truth.url], registry)
            for registry, rows in listings.items()
        }
    states = {truth.name: truth.state for truth in truths}
    return Beliefs(table, states, list(listings))


def _belief(truth: Truth, rows: Sequence[Row], registry: str) -> str:
    if not truth.runs:
        return "ghost" if rows else APART
    if not rows and truth.offer != []:
        return "missing" if registry in truth.expected else APART
    return "known" if truth.offer is None or offer_of(rows) == truth.offer else "stale"


class Beliefs:
    """A table: nodes down, registries across."""

    def __init__(
        self, table: Mapping[str, Mapping[str, str]], states: Mapping[str, str], registries: list[str]
    ) -> None:
        """Made by `MeshLab.beliefs`."""
        self.table = table
        self.registries = registries
        self._states = states

    def __getitem__(self, place: tuple[str, str]) -> str:
        """What a registry says of a node: `beliefs["node1", "registry2"]`. Raises `LabError` for names of neither."""
        if not (isinstance(place, tuple) and len(place) == 2):
            raise LabError(f'expected a node and a registry, such as beliefs["node1", "registry1"], not {place!r}')
        node, registry = place
        if node not in self.table:
            raise LabError(f"node: {one_of(node, self.table)}")
        if registry not in self.registries:
            raise LabError(f"registry: {one_of(registry, self.registries)}")
        return self.table[node][registry]

    @cached_property
    def frame(self) -> DataFrame:
        """The same as a frame: `node`, `state`, and a column for each registry."""
        from kodo.frames import frame_of  # noqa: PLC0415, pandas is imported when the first frame is asked for

        rows = [{"node": node, "state": self._states[node], **row} for node, row in self.table.items()]
        return frame_of(rows, ["node", "state", *self.registries])

    @property
    def agree(self) -> bool:
        """Whether every registry that can be asked says what is true."""
        return all(word in ("known", APART, SILENT) for row in self.table.values() for word in row.values())

    def _cells(self, *, each: bool) -> tuple[list[str], list[list[str]]]:
        """The headings and the lines: a column for `each` registry, or for each thing that some of them say."""
        said = {word for row in self.table.values() for word in row.values()}
        columns = self.registries if each else [word for word in (*COLOURS, APART, SILENT) if word in said]
        lines = []
        for node, row in self.table.items():
            counts = Counter(row.values())
            words = [row[name] if each else str(counts[name] or "") for name in columns]
            lines.append([node, self._states[node], *words])
        return ["node", "", *columns], lines

    def _text_columns(self, *, each: bool) -> list[Column]:
        headings, lines = self._cells(each=each)
        nodes, *words = zip(*lines, strict=True)
        named = zip(headings[1:], words, strict=True)
        node = Column("node", "node", nodes, least=WIDEST, middle=True)
        return [node, *(Column(heading, heading, cells) for heading, cells in named)]

    def __repr__(self) -> str:
        if not self.table:
            return "no nodes"
        columns = self._text_columns(each=len(self.registries) <= MANY)
        return text_table(columns if fits(columns) else self._text_columns(each=False), self._count)

    def _repr_html_(self) -> str:
        if not self.table:
            return "<div><i>no nodes</i></div>"
        headings, rows = self._cells(each=len(self.registries) <= MANY)
        head = "".join(f'<th style="{CELL};font-weight:600">{escape(name)}</th>' for name in headings)
        lines = ("".join(f'<td style="{CELL}">{_cell(word)}</td>' for word in line) for line in rows)
        body = "".join(f'<tr style="background:transparent">{line}</tr>' for line in lines)
        return (
            '<div style="overflow-x:auto"><table style="border-collapse:collapse;color:inherit;margin:0">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f'<div style="padding:6px 0;opacity:0.7">{self._count}</div></div>'
        )

    @property
    def _count(self) -> str:
        return f"{numbered(len(self.table), 'node')}, {numbered(len(self.registries), 'registry', 'registries')}"


def _cell(word: str) -> str:
    if word not in COLOURS:
        return escape(word)
    style = f"background:rgba({COLOURS[word]},0.25);border-radius:8px;padding:1px 7px;white-space:nowrap"
    return f'<span style="{style}">{word}</span>'
