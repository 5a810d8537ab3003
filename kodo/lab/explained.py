"""Explanations: why a node is listed or not, and how far registries are behind, by their own word.

What `GET /explain` and `GET /convergence` answer, of one registry or of all, with members' names in place of urls.
Measures (ages, leases, counts of changes) are shown when they are asked for, and always stand in `frame` and `answers`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kodo.errors import LabError, suggestion
from kodo.lab.flows import Row
from kodo.lab.naming import NO_ANSWER, Names, numbered, one_line, renamed
from kodo.lab.plain import LEAST
from kodo.lab.tables import Cells, html_table, plain_table

if TYPE_CHECKING:
    from pandas import DataFrame

Answers = Mapping[str, dict[str, Any] | None]
"""What registries answered, by their names; None where there was no answer."""

MANY = 20
"""Registries that have rows of their own; of more it is counted how many say the same, or shown who is behind."""
RECORD = ("origin", "state", "status", "flow", "on_behalf_of", "told_by")
RECORD_MEASURES = ("created", "modified", "seq", "version", "age", "lease")
PEER = ("peer", "state", "deltas", "behind")
PEER_MEASURES = ("changes", "heard", "next_try")
ROOM = ("told_by", "on_behalf_of", "origin", "state", "age", "lease", "status", "flow", "created", "modified")
RANKS = {name: rank for rank, name in enumerate((*ROOM, "seq", "version"), 1)}
"""In which order columns get room in plain text, after those that are always there."""
SHORTEST = {"why": 40, "behind": LEAST}
"""How many cells they have there at least, to give others room."""
EVERYTHING = "everything"
"""What is owed to a peer that was never connected."""


def found_flow(flow: str, rows: Iterable[Row], names: Names, members: Iterable[str]) -> tuple[str, str]:
    """Node and path of the flow that has a name or a path. Raises `LabError` when it is not one, or nobody's."""
    known = list(rows)
    found = {(names[row["node"]], row["url"]): row["node"] for row in known if flow in (row["name"], row["url"])}
    if len(found) > 1:
        which = ", ".join(f"explain({node!r}, {url!r})" for node, url in sorted(found))
        raise LabError(f"expected a name that one flow has, but {flow!r} is that of several; use one of {which}")
    if not found:
        there = [*members, *sorted({row["name"] for row in known})]
        hint = suggestion(flow, there, otherwise="lab.flows() shows what there is")
        raise LabError(f"expected the name of a member, or of a flow, not {flow!r}; {hint}")
    [((_, url), node)] = found.items()
    return node, url


class Explanation:
    """Why registries list a node, or a flow of it, or do not."""

    def __init__(
        self, node: str, flow: str | None, answers: Answers, names: Names, providers: Collection[str] = ()
    ) -> None:
        """Made by `MeshLab.explain`; `answers` are the raw ones, and know the path of a flow that has a name.

        `providers` list what is registered with them alone: among others they are not counted.
        """
        self.node = node
        self.flow = next((answer["flow"] for answer in answers.values() if answer and answer["listed"]), flow)
        self.answers = answers
        self._names = names
        self._providers = providers
        self._times = False

    @cached_property
    def listed(self) -> dict[str, bool | None]:
        """For each registry whether it lists what was asked for; None where there was no answer."""
        return {name: None if answer is None else bool(answer["listed"]) for name, answer in self.answers.items()}

    @cached_property
    def why(self) -> dict[str, str]:
        """For each registry the reason, in words."""
        return {
            name: NO_ANSWER if answer is None else renamed(answer["why"], self._names)
            for name, answer in self.answers.items()
        }

    def table(self, times: bool = False) -> Explanation:
        """The same; `times` shows measures too."""
        table = copy(self)
        table._times = times
        return table

    @cached_property
    def frame(self) -> DataFrame:
        """A row for each part that knows the node, at each registry; a registry that never saw it has one row."""
        from kodo.frames import frame_of  # noqa: PLC0415, pandas is imported when the first frame is asked for

        columns = ("registry", "listed", "why", *RECORD, *RECORD_MEASURES)
        return frame_of([dict.fromkeys(columns) | row for row in self._rows()], columns)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for name, answer in self.answers.items():
            told = {"registry": name, "listed": self.listed[name], "why": self.why[name]}
            records = [] if answer is None else answer["records"]
            yield from ({**told, **_named(record, self._names)} for record in records or [{}])

    def __repr__(self) -> str:
        # What was asked for is whatever somebody registered.
        what = one_line(self._names[self.node] + (f" {self.flow}" if self.flow is not None else ""))
        takers = [name for name in self.answers if name not in self._providers] or list(self.answers)
        yes = sum(bool(self.listed[name]) for name in takers)
        registries = numbered(len(takers), "registry", "registries")
        return f"<Explanation of {what}: listed by {yes} of {registries}>"

    def __str__(self) -> str:
        return plain_table(repr(self), *self._cells(), RANKS, SHORTEST)

    def _repr_html_(self) -> str:
        return html_table(repr(self)[1:-1], *self._cells())

    def _cells(self) -> Cells:
        if len(self.answers) > MANY:
            counts = Counter((self.listed[name], why) for name, why in self.why.items())
            said = [{"registries": n, "listed": listed, "why": why} for (listed, why), n in counts.most_common()]
            return ["registries", "listed", "why"], said
        columns = ["registry", "listed", "why", *RECORD, *(RECORD_MEASURES if self._times else ())]
        return columns, list(self._rows())


class Convergence:
    """How far registries know their peers to be behind, and how old what they know of each origin is."""

    def __init__(self, answers: Answers, names: Names, *, times: bool = False) -> None:
        """Made by `MeshLab.convergence`; `answers` are the raw ones."""
        self.answers = answers
        self._names = names
        self._times = times

    @property
    def behind(self) -> list[tuple[str, str]]:
        """The connections, from whom to whom, over which something is owed, or that never stood."""
        return [(row["registry"], row["peer"]) for row in self._rows() if row.get("behind")]

    @property
    def converged(self) -> bool:
        """Whether every registry answers, and owes nobody anything."""
        return not self.behind and None not in self.answers.values()

    def table(self, times: bool = False) -> Convergence:
        """The same; `times` shows measures too."""
        return Convergence(self.answers, self._names, times=times)

    @cached_property
    def frame(self) -> DataFrame:
        """A row for each registry and peer."""
        from kodo.frames import frame_of  # noqa: PLC0415, pandas is imported when the first frame is asked for

        columns = ("registry", *PEER, *PEER_MEASURES)
        return frame_of([dict.fromkeys(columns) | row for row in self._rows()], columns)

    @cached_property
    def ages(self) -> DataFrame:
        """A row for each registry and origin: the seconds since the origin was known to be there."""
        from kodo.frames import frame_of  # noqa: PLC0415, pandas is imported when the first frame is asked for

        rows = [
            {"registry": name, "origin": self._names[origin], **_named(known, self._names)}
            for name, answer in self.answers.items()
            for origin, known in (answer or {"origins": {}})["origins"].items()
        ]
        return frame_of(rows, ("registry", "origin", "age", "stale", "told_by", "version"))

    def _rows(self) -> Iterator[dict[str, Any]]:
        for name, answer in self.answers.items():
            if answer is None:
                yield {"registry": name, "state": NO_ANSWER}
                continue
            for url, peer in answer["peers"].items():
                origins = sorted(self._names[origin] for origin in peer["behind"])
                # A member of a lab that an older kodo keeps does not tell whether it was ever connected.
                origins = origins if peer.get("connected", True) else [EVERYTHING]
                changes = sum(max(0, owed["changes"]) for owed in peer["behind"].values())
                yield {"registry": name, "peer": self._names[url], **peer, "behind": origins, "changes": changes}

    def __repr__(self) -> str:
        owed = len(self.behind)
        silent = sum(answer is None for answer in self.answers.values())
        state = f"{numbered(owed, 'connection')} behind" if owed else "nothing owed"
        state += f", {silent} without an answer" if silent else ""
        return f"<Convergence: {numbered(len(self.answers), 'registry', 'registries')}, {state}>"

    def __str__(self) -> str:
        return plain_table(repr(self), *self._cells(), least=SHORTEST)

    def _repr_html_(self) -> str:
        return html_table(repr(self)[1:-1], *self._cells())

    def _cells(self) -> Cells:
        rows = list(self._rows())
        if len(self.answers) > MANY:
            rows = [row for row in rows if row.get("behind") or row["state"] == NO_ANSWER]
        return ["registry", *PEER, *(PEER_MEASURES if self._times else ())], rows


def _named(record: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """A record with names in place of urls."""
    urls = {"origin", "on_behalf_of", "told_by"}
    return {key: names[value] if key in urls and value is not None else value for key, value in record.items()}
