"""Counts: how many flows each registry lists, in all and by node, organization or tag, as `GET /counts` has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from kodo.client import Counts
from kodo.errors import LabError
from kodo.lab.naming import NO_ANSWER, NOBODY, NONE_RUNS, Names, numbered, one_of
from kodo.lab.plain import LEAST
from kodo.lab.tables import Cells, html_table, plain_table

if TYPE_CHECKING:
    from pandas import DataFrame

What = Literal["node", "organization", "tags"]
"""What flows can be counted by."""


class CountTable:
    """A row for each registry or, `by` something, for each value of that and a column for each registry."""

    def __init__(
        self,
        answers: Mapping[str, Counts | None],
        names: Names,
        by: What | None = None,
        providers: Collection[str] = (),
    ) -> None:
        """Made by `MeshLab.counts`; an answer is None of a registry that gave none.

        `providers` give and do not take: nobody expects that they count what the others do.
        Raises `LabError` when flows are not counted `by` that.
        """
        if by is not None and by not in get_args(What):
            raise LabError(f"by: {one_of(by, get_args(What))}")
        self.answers = answers
        self.by = by
        self._names = names
        self._providers = providers

    def __getitem__(self, registry: str) -> Counts | None:
        """What one registry answered, as `member.counts()` has it: `counts["registry1"]["tags"]`.

        Raises `LabError` when there is none of this name.
        """
        if not isinstance(registry, str) or registry not in self.answers:
            raise LabError(f"registry: {one_of(registry, self.answers)}")
        return self.answers[registry]

    @property
    def agree(self) -> bool:
        """Whether all registries that answer count the same, but for providers, which take nothing."""
        return all(answer == self._told[0] for answer in self._told)

    @property
    def _told(self) -> list[Counts]:
        return [answer for name, answer in self.answers.items() if answer is not None and name not in self._providers]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each registry (`registry`, `flows`, and how many there are of each) or for each value of `by`."""
        return self._by_value(self.by) if self.by else [self._of(name) for name in self.answers]

    def _of(self, name: str) -> dict[str, Any]:
        answer = self.answers[name]
        if answer is None:
            return {"registry": name, "state": NO_ANSWER}
        found = {"nodes": answer["node"], "organizations": answer["organization"], "tags": answer["tags"]}
        return {"registry": name, "flows": answer["total"]} | {word: len(each) for word, each in found.items()}

    def _by_value(self, by: What) -> list[dict[str, Any]]:
        told = {name: answer[by] if answer else {} for name, answer in self.answers.items()}
        values = {value for each in told.values() for value in each}
        rows = [
            {by: self._names[value] if by == "node" else value}
            | {name: each.get(value, 0) for name, each in told.items() if self.answers[name]}
            for value in values
        ]
        return sorted(rows, key=lambda row: (-max([n for name, n in row.items() if name != by], default=0), row[by]))

    @property
    def columns(self) -> list[str]:
        """The columns of `rows`, in their order."""
        if self.by:
            return [self.by, *self.answers]
        return ["registry", "state", "flows", "nodes", "organizations", "tags"]

    @cached_property
    def frame(self) -> DataFrame:
        """The same as a frame."""
        from kodo.frames import frame_of  # noqa: PLC0415, pandas is imported when the first frame is asked for

        return frame_of(self.rows, self.columns)

    def __repr__(self) -> str:
        return plain_table(self._said, *self._cells, self._ranks, dict.fromkeys(self.columns, LEAST))

    def _repr_html_(self) -> str:
        return html_table(self._said, *self._cells)

    @property
    def _cells(self) -> Cells:
        return self.columns, self.rows

    @property
    def _ranks(self) -> dict[str, int] | None:
        """Of counts by something: the first registry's have room first, and then those that are not the same."""
        if not self.by:
            return None
        told = {name: answer[self.by] for name, answer in self.answers.items() if answer}
        first, *others = told or [""]
        others.sort(key=lambda name: told[name] == told[first])
        return {name: rank for rank, name in enumerate([self.by, first, *others])}

    @property
    def _said(self) -> str:
        silent = sum(answer is None for answer in self.answers.values())
        if silent == len(self.answers):
            return NOBODY
        answered = len(self._told)
        agree = numbered(answered, "registry agrees", "registries agree") if answered else NONE_RUNS
        said = agree if self.agree else f"{answered} registries do not agree"
        return said + (f", {silent} without an answer" if silent else "")
