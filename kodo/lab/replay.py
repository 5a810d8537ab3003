"""Replay: a record of a lab, looked at moment by moment, with no process running.

A record that was cut off in the middle of a line is good up to there; lines that are damaged are left out, and said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kodo.errors import LabError, reason_of
from kodo.lab.faults import Effect, Held, Way
from kodo.lab.flows import FlowTable, Row, united
from kodo.lab.history import Event, Note, merged
from kodo.lab.naming import Names, checked_most, checked_path, numbered, tally
from kodo.lab.timeline import Choice, Story, Timeline, timeline_of
from kodo.lab.topology import Seen, Topology, graph_of, place
from kodo.models import COLUMNS

if TYPE_CHECKING:
    from kodo.lab.mesh import MeshLab
    from kodo.lab.player import Player

VERSION = 1


@dataclass(slots=True)
class Record:
    """What the lines of a record say."""

    began: float = 0.0
    until: float = 0.0
    name: str | None = None
    members: dict[str, tuple[str, str]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    setups: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    effects: list[tuple[float, str, str, dict[Way, Effect]]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    listings: list[tuple[float, str, list[Row]]] = field(default_factory=list)
    views: list[tuple[float, str, Any]] = field(default_factory=list)
    damaged: int = 0

    def take(self, entry: dict[str, Any]) -> None:
        """Take a line. Raises `KeyError`, `TypeError` or `ValueError` for one that is none."""
        at = float(entry["at"])
        if not isfinite(at):
            raise ValueError("a moment that is none")
        match entry:
            case {"member": str(name), "kind": str(kind), "url": str(url)}:
                self.members[name] = kind, url
            case {"event": str(what), "who": str(who), "utc": str(utc)}:
                code, setup = entry.get("code"), entry.get("setup")
                event = Event(what, who, at, utc, None if code is None else int(code))
                effects = {(caller, callee): Effect(*rest) for caller, callee, *rest in entry.get("effects", ())}
                if setup is not None:
                    self.setups.append((at, who, {"options": dict(setup["options"]), "flows": setup["flows"]}))
                if "effects" in entry:
                    self.effects.append((at, what, who, effects))
                self.events.append(event)
            case {"message": {"id": str(), "direction": "sent" | "received", "by": str(), "start": float()} as note}:
                [message] = merged([note], Names({}))
                _ = message.nodes + message.bytes, message.news, message.arrived, float(note["end"] or 0)
                self.notes.append(note)
            case {"listing": str(name), "rows": list(rows)}:
                self.listings.append((at, name, list(map(_row, rows))))
            case {"map": str(name), "view": dict(view)}:
                self.views.append((at, name, view))
            case {"end": True}:
                pass
            case _:
                raise ValueError("a line of another kind")
        self.until = max(self.until, at)


def _row(told: Mapping[str, Any]) -> Row:
    """A row of a listing. Raises `KeyError`, `TypeError` or `ValueError` for what is none."""
    row = {column: told[column] for column in COLUMNS}
    _ = Names({})[row["node"]], Names({})[row["registry"]]
    texts = {column: value for column, value in row.items() if column != "tags" and value is not None}
    if not all(isinstance(value, str) for value in [row["name"], row["url"], *texts.values(), *(row["tags"] or ())]):
        raise TypeError("a row of a listing holds texts")
    return row


def read_record(path: Path | str) -> Record:
    """Read a record. Raises `LabError` when it is none; damaged lines are counted."""
    try:
        lines = checked_path(path).read_bytes().splitlines()
    except OSError as error:
        raise LabError(
            f"expected {path} to be a record of a lab, but {reason_of(error)}; MeshLab.record(path) writes one"
        ) from error
    record = Record()
    try:
        head = json.loads(lines[0])
        record.began = record.until = float(head["at"])
        record.name = head["name"]
        known = head["kodo"] == "recording" and head["version"] == VERSION
    except (IndexError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise LabError(f"expected {path} to be a record of a lab; MeshLab.record(path) writes one")
    for line in lines[1:]:
        try:
            record.take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            record.damaged += 1
    return record


class Replay:
    """A lab as it was: `at(seconds)` for any moment from 0 to `seconds`, `show()` for a slider."""

    def __init__(self, path: Path | str) -> None:
        """Read a record. Raises `LabError` when it is none."""
        self._record = read_record(path)
        self._positions: dict[str, complex] = {}

    @property
    def seconds(self) -> float:
        """How long was recorded."""
        return self._record.until - self._record.began

    @property
    def damaged(self) -> int:
        """How many lines could not be read; the last one, when the recording was cut off."""
        return self._record.damaged

    @property
    def events(self) -> list[tuple[float, str, str]]:
        """What became of members and links: seconds, what, and who or which fault."""
        return [(event.at - self._record.began, event.what, event.who) for event in self._record.events]

    def __repr__(self) -> str:
        said = f"; {numbered(self.damaged, 'damaged line')} left out" if self.damaged else ""
        name = f"{self._record.name}, " if self._record.name else ""
        return f"<Replay {name}{tally(kind for kind, _ in self._record.members.values())}{said}>"

    def at(self, seconds: float) -> Moment:
        """The mesh after so many seconds of the record."""
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise LabError(f"expected seconds from 0 to {self.seconds:.1f}, not {seconds!r}")
        return Moment(self._record, self._record.began + seconds, self._placed)

    def simulate(self, seed: int = 0) -> MeshLab:
        """A simulated lab in which the recorded starts, ends, faults and registrations were done at their times.

        Its flows, timeline and explanations are to be set beside those of the record. Raises `LabError` when the record
        does not tell how members were started.
        """
        from kodo.lab.mesh import MeshLab  # noqa: PLC0415, which imports this module
        from kodo.lab.rerun import done_again  # noqa: PLC0415, few ask

        lab = MeshLab(self._record.name, engine="simulated", seed=seed)
        done_again(self._record, lab)
        return lab

    def _placed(self, topology: Topology) -> Topology:
        if not self._positions:
            final = Moment(self._record, self._record.until, lambda drawn: drawn).graph
            self._positions = place(final, {})
        self._positions |= place(topology.graph, self._positions)
        return Topology(topology.graph, self._positions, topology.held)

    def show(self) -> Player:
        """A slider over the time, and beneath it the mesh, its messages and its flows at that moment."""
        from kodo.lab.player import Player  # noqa: PLC0415, widgets are imported when they are asked for

        return Player(self)


def _as_known(note: Note, moment: float) -> Note | None:
    """A note as far as it could be known: of what had not ended by then, the outcome was open."""
    if note["start"] > moment:
        return None
    if note["end"] is None or note["end"] <= moment:
        return note
    return {**note, "end": None, "ended": None, "outcome": None}


class Moment:
    """The mesh at one moment of a record."""

    def __init__(self, record: Record, moment: float, placed: Callable[[Topology], Topology]) -> None:
        """Made by `Replay.at`."""
        self._record = record
        self._moment = moment
        self._placed = placed

    def __repr__(self) -> str:
        return f"<Moment: {tally(self._record.members[name][0] for name in self.states)}>"

    @cached_property
    def states(self) -> dict[str, str]:
        """What each member was doing by then: `running`, `paused` or `ended`."""
        words = {
            "launched": "running",
            "started": "running",
            "resumed": "running",
            "paused": "paused",
            "exited": "ended",
        }
        found = {}
        for event in self._record.events:
            if event.at <= self._moment and event.who in self._record.members and event.what in words:
                found[event.who] = words[event.what]
        return found

    @property
    def _names(self) -> Names:
        return Names({name: url for name, (_, url) in self._record.members.items()})

    def flows(self, by: str | None = None, times: bool = False) -> FlowTable:
        """The flows that the registries listed."""
        last = {name: rows for at, name, rows in self._record.listings if at <= self._moment}
        registries = [name for name, state in self.states.items() if self._kind(name) != "node" and state == "running"]
        return FlowTable(united({name: last.get(name, []) for name in registries}), self._names, by=by, times=times)

    @property
    def graph(self) -> Any:
        """The mesh as a networkx graph."""
        last = {name: view for at, name, view in self._record.views if at <= self._moment}
        seen = [
            Seen(
                name,
                self._record.members[name][1],
                self._kind(name),
                last.get(name, self._blank(name)) if state == "running" else None,
                state == "paused",
            )
            for name, state in self.states.items()
        ]
        return graph_of(seen)

    def topology(self) -> Topology:
        """The mesh as its members saw it, with the faults between them."""
        graph = self.graph
        return self._placed(Topology(graph, dict.fromkeys(graph, 0j), self._held()))

    def timeline(self, last: int | None = 200, answers: bool = False, beats: bool = False) -> Timeline:
        """The messages up to then, the `last` ones."""
        checked_most("last", last, 1)
        latest: dict[tuple[str, str], Note] = {}
        for note in self._record.notes:
            known = _as_known(note, self._moment)
            end = (note["id"], note["direction"])
            if known is not None and (known["outcome"] is not None or end not in latest):
                latest[end] = known
        notes = list(latest.values())
        story = Story(merged(notes, self._names), self._record.events, 0, self._record.began)
        kinds = {name: self._kind(name) for name in self.states}
        return timeline_of(story, kinds, self._moment, Choice(None, last, answers, beats))

    def _kind(self, name: str) -> str:
        return self._record.members[name][0]

    def _blank(self, name: str) -> Any:
        return {"url": self._record.members[name][1], "feed": True, "nodes": {}, "providers": {}, "connection": {}}

    def _held(self) -> list[Held]:
        active: list[Held] = []
        for at, what, label, effects in self._record.effects:
            if at <= self._moment and what == "fault":
                active.append((label, effects))
            elif at <= self._moment and (label, effects) in active:
                active.remove((label, effects))
        return active
