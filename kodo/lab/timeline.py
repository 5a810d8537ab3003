"""The timeline: who told whom what and when, as a space-time diagram, a frame, Mermaid and ShiViz text.

Every member has a line, time goes to the right, and a message is an arrow from where it left to where it arrived. One
that did not arrive ends in a cross; one that waited at a cut has a diamond there. Its rules:

- Silence takes little room: the axis grows with the logarithm of what passes between two moments, so that messages
  which take a millisecond are told apart beside a minute in which nothing happened. The ticks say the time, and a line
  beneath that it is not to scale.
- What is left out is said. Of a crowd those have a line that ended or were paused, and then those that spoke last.
- A line is pale while its member does not run, and banded while it is paused; the time of a fault is shaded under its
  label.
- The text beside the picture is constant.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from math import log10
from typing import TYPE_CHECKING, Any

from kodo.lab.drawing import (
    BROKEN,
    CARD,
    FAINT,
    INK,
    PALE,
    QUIET,
    SLOW,
    SLOW_INK,
    Figure,
    Line2D,
    Picture,
    Rectangle,
    card,
    label_of,
    width_of,
)
from kodo.lab.history import Event, Message
from kodo.lab.naming import numbered, tally

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = (
    *("sent", "seconds", "sender", "receiver", "route", "nodes", "bytes", "outcome", "held", "way", "took", "id"),
)
COLOURS = {"/register": "#d39a3d", "/connect": "#8a5a8f", "/update/node": "#2f5d8c"}
OTHER = "#5f7284"
SHADE = {True: BROKEN, False: SLOW}
ROW, LEFT, RIGHT, FOOT = 0.42, 0.3, 0.35, 0.95
MANY = 40
"""Lines that there are at most, each with its name."""
LABEL_ROW = 0.19
WIDEST, NARROWEST = 12.5, 6.0
SHORTEST, GROWTH, GRAIN = 0.055, 0.2, 0.002
"""Inches between two moments at least, for each tenfold of time between them, and seconds where that begins."""
NOT_TO_SCALE = "time is not to scale: silence is shortened"
DASHED = (0, (3, 2))
"""How the way of a message is drawn that gets nowhere, or not yet."""
Mark = tuple[str, str, str, float]
"""A mark on a line: what it means, its shape, its colour and its size in points."""
STARTED: Mark = ("started", "o", FAINT, 4)
ENDED: Mark = ("ended", "|", INK, 7)
KILLED: Mark = ("killed", "X", BROKEN, 7)
MARKS = (STARTED, ENDED, KILLED)
TICK = 0.85
"""Inches between two times that are written at least."""


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which something was so; without an end it still is."""

    begin: float
    end: float | None
    label: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """What a timeline is about: its members, name to kind, the moment 0, and what of it is shown."""

    kinds: Mapping[str, str]
    zero: float
    until: float
    begin: float | None = None
    hidden: int = 0
    answers: bool = False


class Timeline(Picture):
    """Messages between services, in the order in which they left."""

    def __init__(
        self, messages: Sequence[Message], events: Sequence[Event], faults: Sequence[Span], scope: Scope
    ) -> None:
        """Made by `MeshLab.timeline`."""
        self.messages = list(messages)
        self.events = list(events)
        self.faults = list(faults)
        self.scope = scope

    def __len__(self) -> int:
        return len(self.messages)

    def __repr__(self) -> str:
        return f"<Timeline: {tally(self.scope.kinds.values())}>"

    @property
    def names(self) -> list[str]:
        """Those that have a line: the members, then whoever else sent or got a message."""
        strangers = {name for message in self.messages for name in (message.sender, message.receiver)}
        return [*self.scope.kinds, *sorted(strangers - set(self.scope.kinds))]

    @cached_property
    def frame(self) -> DataFrame:
        """A row for each message: when it left (UTC, and in seconds of the lab), who, what, and what became of it.

        `way` is the seconds until it arrived, `took` those until its sender knew; `held` is whether it waited at a cut.
        """
        from kodo.frames import frame_of  # noqa: PLC0415, pandas is imported when the first frame is asked for

        return frame_of([self._row(message) for message in self.messages], COLUMNS)

    def _row(self, message: Message) -> dict[str, Any]:
        return {
            "sent": message.utc,
            "seconds": message.began - self.scope.zero,
            "sender": message.sender,
            "receiver": message.receiver,
            "route": message.route,
            "nodes": message.nodes,
            "bytes": message.bytes,
            "outcome": message.outcome or "on its way",
            "held": message.held,
            "way": _between(message.sent, message.received),
            "took": _between(message.sent, message.ended),
            "id": message.id,
        }

    def texts(self) -> dict[str, str]:
        """The sequence diagram, and the log for ShiViz."""
        return {".mmd": self.mermaid(), ".log": self.shiviz()}

    def draw(self) -> Figure:
        """Draw the diagram."""
        return _Diagram(self).draw()

    def mermaid(self) -> str:
        """The messages as a Mermaid sequence diagram; what did not arrive ends in a cross."""
        ids = {name: f"m{number}" for number, name in enumerate(self.names)}
        lines = [f"participant {ids[name]} as {_plain(name)}" for name in self.names]
        for message in self.messages:
            arrow = "->>" if message.arrived else "-x"
            said = f"{message.route} {numbered(message.nodes, 'node')}"
            outcome = "" if message.delivered else f" ({message.outcome or 'on its way'})"
            lines.append(f"{ids[message.sender]}{arrow}{ids[message.receiver]}: {_plain(said + outcome)}")
        return "\n    ".join(["sequenceDiagram", *lines]) + "\n"

    def shiviz(self) -> str:
        """A log for ShiViz (https://bestchai.bitbucket.io/shiviz), with vector clocks.

        Its parser is `(?<host>\\S*) (?<clock>{.*})\\n(?<event>.*)`, as ShiViz proposes.
        """
        clocks: dict[str, dict[str, int]] = {}
        sent: dict[str, dict[str, int]] = {}
        lines = []
        for _, message, arrival in sorted(self._moments(), key=lambda moment: moment[0]):
            host = _host(message.receiver if arrival else message.sender)
            clock = clocks.setdefault(host, {})
            if arrival:
                clock.update({name: max(tick, clock.get(name, 0)) for name, tick in sent.get(message.id, {}).items()})
            clock[host] = clock.get(host, 0) + 1
            if not arrival:
                sent[message.id] = dict(clock)
            ticks = ", ".join(f'"{name}": {tick}' for name, tick in sorted(clock.items()))
            what = "receive" if arrival else "send"
            other = message.sender if arrival else f"{message.receiver}: {message.outcome or 'on its way'}"
            lines.append(f"{host} {{{ticks}}}\n{what} {message.route} {' '.join(other.split())}")
        return "\n".join(lines) + "\n" * bool(lines)

    def _moments(self) -> Iterator[tuple[tuple[float, bool], Message, bool]]:
        for message in self.messages:
            if message.sent is not None:
                yield (message.sent, False), message, False
            if message.received is not None:
                yield (message.received, True), message, True


@dataclass(frozen=True, slots=True)
class Choice:
    """What of it a timeline shows: from a moment on, the last ones, answers, messages that tell no news."""

    begin: float | None = None
    last: int | None = 200
    answers: bool = False
    beats: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """All that happened: messages and events, how many messages are gone, and the moment when it began."""

    messages: Sequence[Message]
    events: Sequence[Event]
    missed: int
    began: float


def timeline_of(story: Story, kinds: Mapping[str, str], until: float, choice: Choice) -> Timeline:
    """The timeline of what happened up to a moment; what of it is not shown is counted."""
    told = [message for message in story.messages if message.began <= until and (choice.beats or message.news)]
    found = [message for message in told if choice.begin is None or message.began >= choice.begin]
    shown = found if choice.last is None else found[max(0, len(found) - choice.last) :]
    hidden = story.missed + len(told) - len(shown)
    begin = choice.begin if len(shown) == len(found) else None
    scope = Scope(kinds, story.began, until, begin if hidden else story.began, hidden, choice.answers)
    events = [event for event in story.events if event.at <= until]
    return Timeline(shown, events, _faults(events), scope)


def _faults(events: Iterable[Event]) -> list[Span]:
    spans: list[Span] = []
    for event in events:
        if event.what == "fault":
            spans.append(Span(event.at, None, event.who, event.who.startswith(("cut ", "partition "))))
        elif event.what == "healed":
            found = (n for n, span in enumerate(spans) if span.label == event.who and span.end is None)
            # Of a damaged record the line may be lost that said that it began.
            for number in islice(found, 1):
                spans[number] = replace(spans[number], end=event.at)
    return spans


# -- the picture -------------------------------------------------------------------------------------------


class Axis:
    """From moments to inches: every moment has its place, and silence takes little room."""

    def __init__(self, moments: Iterable[float], widest: float, least: float = 0.0) -> None:
        """At most `widest` inches and, where there is anything between moments, at least the `least` that there are."""
        self._moments = sorted(set(moments))
        steps = [_step(later - earlier) for earlier, later in zip(self._moments, self._moments[1:], strict=False)]
        natural = max(sum(steps), 1e-9)
        scale = min(max(1.0, least / natural), widest / natural)
        self._places = [0.0]
        for step in steps:
            self._places.append(self._places[-1] + step * scale)

    @property
    def width(self) -> float:
        """Inches from the first moment to the last."""
        return self._places[-1]

    def __call__(self, moment: float) -> float:
        after = bisect_right(self._moments, moment)
        if after == 0:
            return 0.0
        if after == len(self._moments):
            return self.width
        begin, end = self._moments[after - 1 : after + 1]
        share = (moment - begin) / (end - begin)
        return self._places[after - 1] + share * (self._places[after] - self._places[after - 1])

    def ticks(self, apart: float) -> list[float]:
        """Moments whose places are so far apart that their times can be written."""
        kept: list[float] = []
        for moment in self._moments:
            if not kept or self(moment) - self(kept[-1]) >= apart:
                kept.append(moment)
        return kept


def _step(seconds: float) -> float:
    return SHORTEST + GROWTH * log10(1 + seconds / GRAIN)


class _Diagram:
    """The drawing of one timeline."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._names = _lines_of(timeline)
        self._rows = {name: number for number, name in enumerate(self._names)}
        self._messages = [
            message for message in timeline.messages if {message.sender, message.receiver} <= self._rows.keys()
        ]
        known = seen_to_start(timeline.events, timeline.messages)
        begins = [message.began for message in self._messages]
        begins += [] if timeline.scope.begin is None else [timeline.scope.begin]
        self._begin = min(begins, default=timeline.scope.until)
        self._faults = [span for span in timeline.faults if span.end is None or span.end >= self._begin]
        self._known = [event for event in known if event.who in self._rows]
        self._events = [event for event in self._known if event.at >= self._begin]
        self._left = LEFT + max([width_of(label_of(name), 9) for name in self._names], default=0) + 0.2
        legend = sum(width for *_, width in self._legend())
        foot = max(legend, width_of(self._said, 8) + width_of(NOT_TO_SCALE, 7) + 0.3)
        self._least = max(NARROWEST - self._left, foot + LEFT - self._left)
        self._axis = Axis(self._moments(), WIDEST, self._least)
        self._labels = _rows([(self._x(span.begin), self._width_of_label(span)) for span in self._faults])

    def draw(self) -> Figure:
        """Draw it: what is behind first."""
        rows = max(1, len(self._names))
        above = 0.35 + LABEL_ROW * (max(self._labels, default=-1) + 1)
        self._top = FOOT + rows * ROW
        self._inner = max(self._axis.width, self._least, self._labels_end())
        figure, self._axes = card(self._left + self._inner + RIGHT, self._top + above)
        for span, row in zip(self._faults, self._labels, strict=True):
            self._draw_fault(span, row)
        self._draw_ticks()
        for name in self._names:
            self._draw_line(name)
        for message in self._messages:
            self._draw_message(message)
        self._draw_foot()
        return figure

    # -- places --------------------------------------------------------------------------------------------

    def _moments(self) -> Iterator[float]:
        until = self._timeline.scope.until
        for message in self._messages:
            arrived = message.received if message.received is not None else None
            answered = message.answered if self._timeline.scope.answers else None
            lost = None if message.arrived else message.ended
            yield from (at for at in (message.sent, arrived, answered, lost) if at is not None)
            if message.ended is None and message.received is None:
                yield until
        for event in self._events:
            if event.what != "launched":
                yield event.at
        for span in self._faults:
            yield from (max(span.begin, self._begin), until if span.end is None else span.end)

    def _x(self, moment: float) -> float:
        return self._axis(moment)

    def _at(self, moment: float) -> float:
        return self._left + self._axis(moment)

    def _y(self, name: str) -> float:
        return self._top - ROW * (self._rows[name] + 0.5)

    def _width_of_label(self, span: Span) -> float:
        return width_of(_cut(span.label), 7.5) + 0.15

    def _labels_end(self) -> float:
        return max([self._x(span.begin) + self._width_of_label(span) for span in self._faults], default=0.0)

    # -- what is drawn -------------------------------------------------------------------------------------

    def _line(self, xs: tuple[float, float], ys: tuple[float, float], **look: Any) -> None:
        self._axes.add_line(Line2D(xs, ys, **look))

    def _mark(self, x: float, y: float, marker: str, colour: str, size: float = 6) -> None:
        look: dict[str, Any] = {
            "marker": marker,
            "color": colour,
            "markersize": size,
            "markerfacecolor": CARD if marker == "D" else colour,
            "markeredgewidth": 1.6,
            "zorder": 6,
        }
        self._axes.add_line(Line2D((x,), (y,), linestyle="none", **look))

    def _write(self, x: float, y: float, text: str, size: float, colour: str, **look: Any) -> None:
        self._axes.text(x, y, text, fontsize=size, color=colour, parse_math=False, **{"va": "center", **look})

    def _draw_fault(self, span: Span, row: int) -> None:
        begin, end = self._at(span.begin), self._at(self._timeline.scope.until if span.end is None else span.end)
        label, colour = self._top + 0.14 + LABEL_ROW * row, SHADE[span.cut]
        size = (max(end - begin, 0.03), label + 0.08 - FOOT)
        self._axes.add_patch(Rectangle((begin, FOOT), *size, facecolor=colour, alpha=0.1, linewidth=0, zorder=0.5))
        self._line((begin, begin), (FOOT, label + 0.08), color=colour, linewidth=0.8, alpha=0.7, zorder=0.6)
        self._write(begin + 0.06, label, _cut(span.label), 7.5, BROKEN if span.cut else SLOW_INK, zorder=7)

    def _draw_ticks(self) -> None:
        zero = self._timeline.scope.zero
        for moment in self._axis.ticks(TICK):
            x = self._at(moment)
            self._line((x, x), (FOOT - 0.06, self._top), color=PALE, linewidth=0.5, zorder=0.7)
            self._write(x, FOOT - 0.15, _seconds(moment - zero), 7, QUIET, ha="center")

    def _draw_line(self, name: str) -> None:
        y = self._y(name)
        self._write(self._left - 0.15, y, label_of(name), 9, INK, ha="right")
        end = self._left + max(self._axis.width, 0.1)
        dotted: dict[str, Any] = {"color": PALE, "linewidth": 1.2, "linestyle": (0, (1, 3)), "zorder": 1}
        self._line((self._left, end), (y, y), **dotted)
        stranger = name not in self._timeline.scope.kinds
        for span in [Span(self._begin, None)] if stranger else _states(self._known, name, "started", "exited"):
            self._band(span, y, {"color": FAINT, "linewidth": 1.4, "zorder": 1.1})
        for span in _states(self._known, name, "paused", "resumed"):
            self._band(span, y, {"color": SLOW, "linewidth": 5, "alpha": 0.45, "zorder": 1.2, "solid_capstyle": "butt"})
        for event in self._events:
            if event.who == name and (mark := _mark_of(event)) is not None:
                _, sign, colour, size = mark
                self._mark(self._at(event.at), y, sign, colour, size)

    def _band(self, span: Span, y: float, look: dict[str, Any]) -> None:
        end = self._timeline.scope.until if span.end is None else span.end
        if end >= self._begin:
            self._line((self._at(max(span.begin, self._begin)), self._at(end)), (y, y), **look)

    def _draw_message(self, message: Message) -> None:
        colour = BROKEN if _refused(message) else COLOURS.get(message.route, OTHER)
        begin = (self._at(message.began), self._y(message.sender))
        released = self._released(message)
        if message.received is not None and released is not None:
            begin = self._draw_wait(begin, self._y(message.receiver), released, colour)
        if message.received is not None:
            self._arrow(begin, (self._at(message.received), self._y(message.receiver)), colour)
            if _lost(message):
                self._mark(self._at(message.received) + 0.05, self._y(message.receiver), "x", BROKEN, 4.5)
            elif released is None and self._waited(message):  # its answer did
                self._mark(self._at(message.received) + 0.05, self._y(message.receiver), "D", INK, 5)
        elif message.arrived:
            self._arrow(begin, (self._at(message.ended or message.began), self._y(message.receiver)), colour)
        else:
            self._draw_lost(message, begin, colour)
        if self._timeline.scope.answers and message.delivered and message.answered and message.ended:
            back = (self._at(message.answered), self._y(message.receiver))
            self._arrow(back, (self._at(message.ended), self._y(message.sender)), PALE)

    def _waited(self, message: Message) -> bool:
        """Whether it has a diamond: it, or its answer, waited at a cut, or waits there still."""
        if message.received is None:
            return message.outcome == "cut" and message.ended is None
        return self._released(message) is not None or (message.held and not _lost(message))

    def _released(self, message: Message) -> float | None:
        """When the cut ended that held a message; one that held its answer did so after it had arrived."""
        arrived = message.received
        if not message.held or arrived is None:
            return None
        ends = [span.end for span in self._faults if span.cut and span.end is not None]
        return max((end for end in ends if message.began <= end <= arrived), default=None)

    def _draw_wait(self, begin: tuple[float, float], end: float, released: float, colour: str) -> tuple[float, float]:
        """Half the way, and there a diamond, where it waited until the cut was over."""
        x, y = self._at(released), (begin[1] + end) / 2
        self._line((begin[0], x), (begin[1], y), color=colour, linewidth=1, linestyle=DASHED, zorder=3)
        self._mark(x, y, "D", INK, 5)
        return x, y

    def _draw_lost(self, message: Message, begin: tuple[float, float], colour: str) -> None:
        """Half the way, and there a cross; what is still on its way has none, or a diamond if it waits at a cut."""
        end = self._at(self._timeline.scope.until if message.ended is None else message.ended)
        x, y = (begin[0] + end) / 2, begin[1] + (self._y(message.receiver) - begin[1]) * 0.55
        self._line((begin[0], x), (begin[1], y), color=colour, linewidth=1, linestyle=DASHED, zorder=3)
        if message.outcome is not None:
            waits = self._waited(message)
            self._mark(x, y, "D" if waits else "x", INK if waits else BROKEN, 5 if waits else 6)

    def _arrow(self, begin: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        look = {"arrowstyle": "-|>,head_width=0.16,head_length=0.34", "color": colour, "linewidth": 1, "shrinkA": 0}
        self._axes.annotate("", end, begin, arrowprops={**look, "shrinkB": 0}, zorder=4)

    def _legend(self) -> Iterator[tuple[str, str, str, float]]:
        routes = {message.route for message in self._messages}
        signs = [(route, "-", COLOURS.get(route, OTHER)) for route in sorted(routes)]
        if self._timeline.scope.answers and any(message.delivered for message in self._messages):
            signs.append(("answer", "-", PALE))
        if any(_refused(message) for message in self._messages):
            signs.append(("refused", "-", BROKEN))
        if any(not message.arrived and message.outcome and message.ended for message in self._messages):
            signs.append(("lost, or its answer", "x", BROKEN))
        if any(map(self._waited, self._messages)):
            signs.append(("waited at a cut", "D", INK))
        if any(event.what == "paused" for event in self._events):
            signs.append(("paused", "-", SLOW))
        shown = {_mark_of(event) for event in self._events}
        signs += [(words, sign, colour) for mark in MARKS if mark in shown for words, sign, colour, _ in [mark]]
        for words, sign, colour in signs:
            yield words, sign, colour, width_of(words, 8) + 0.5

    @property
    def _said(self) -> str:
        """What of the timeline is not drawn."""
        timeline = self._timeline
        if not timeline.messages:
            return "no messages"
        left = len(timeline.names) - len(self._names), len(timeline.messages) - len(self._messages)
        return "; ".join(_left_out(timeline.scope.hidden, *left))

    def _draw_foot(self) -> None:
        x, y = LEFT, 0.3
        for words, sign, colour, width in self._legend():
            if sign == "-":
                self._line((x - 0.08, x + 0.1), (y, y), color=colour, linewidth=2)
            else:
                self._mark(x, y, sign, colour, {"D": 5, "o": 4}.get(sign, 6))
            self._write(x + 0.18, y, words, 8, QUIET)
            x += width
        self._write(LEFT - 0.1, 0.55, self._said, 8, INK)
        self._write(self._left + self._inner, 0.55, NOT_TO_SCALE, 7, QUIET, ha="right", style="italic")


def _left_out(hidden: int, members: int, theirs: int) -> Iterator[str]:
    if hidden:
        yield f"{numbered(hidden, 'earlier message is', 'earlier messages are')} not shown"
    if members:
        also = f", nor {numbered(theirs, 'message')} with them" if theirs else ""
        yield f"{numbered(members, 'more member has', 'more members have')} no line here{also}; .frame has them"


def _lines_of(timeline: Timeline) -> list[str]:
    """Who has a line: all or, of a crowd, those that ended or were paused, and then those that spoke last."""
    names = timeline.names
    if len(names) <= MANY:
        return names
    since = min((message.began for message in timeline.messages), default=timeline.scope.until)
    events = [event for event in timeline.events if event.at >= since and event.what in ("exited", "paused", "resumed")]
    lines = dict.fromkeys([event.who for event in reversed(events)][:MANY])
    for message in reversed(timeline.messages):
        ends = lines | dict.fromkeys((message.sender, message.receiver))
        lines = ends if len(ends) <= MANY else lines
    return [name for name in names if name in lines]


def seen_to_start(events: Iterable[Event], messages: Iterable[Message]) -> list[Event]:
    """The events, in which a member has started as soon as it spoke: that is heard of before it says that it has."""
    first: dict[str, list[float]] = {}
    for message in messages:
        if message.sent is not None:
            first.setdefault(message.sender, []).append(message.sent)
    launched: dict[str, float] = {}
    known = []
    for event in events:
        if event.what == "launched":
            launched[event.who] = event.at
        spoke = [at for at in first.get(event.who, ()) if launched.get(event.who, event.at) <= at < event.at]
        known.append(replace(event, at=min(spoke)) if event.what == "started" and spoke else event)
    return known


def _mark_of(event: Event) -> Mark | None:
    """How it is marked on its member's line."""
    if event.what == "exited":
        return ENDED if event.code in (0, -15) else KILLED
    return STARTED if event.what == "started" else None


def _lost(message: Message) -> bool:
    return (message.outcome or "").startswith(("lost", "cut"))


def _refused(message: Message) -> bool:
    return (message.outcome or "").startswith("refused")


def _states(events: Iterable[Event], name: str, begin: str, end: str) -> list[Span]:
    """The times between an event and the one that ends it."""
    spans: list[Span] = []
    for event in events:
        if event.who != name:
            continue
        is_open = bool(spans) and spans[-1].end is None
        if event.what == begin and not is_open:
            spans.append(Span(event.at, None))
        elif is_open and event.what in (end, "exited"):
            spans[-1] = Span(spans[-1].begin, event.at)
    return spans


def _rows(labels: Sequence[tuple[float, float]]) -> list[int]:
    """For labels, each with its left end and width, the row where it covers no other, from below.

    The line at the left end of what is labelled rises to its label. So whatever begins beneath a label has a lower row.
    """
    rows = [0] * len(labels)
    for number in sorted(range(len(labels)), key=lambda number: (labels[number][0], number), reverse=True):
        left, width = labels[number]
        beneath = [
            rows[other]
            for other, (begin, _) in enumerate(labels)
            if (left, number) < (begin, other) and begin < left + width
        ]
        rows[number] = max(beneath, default=-1) + 1
    return rows


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if abs(seconds) < 1 else f"{seconds:.2f} s" if abs(seconds) < 100 else f"{seconds:.0f} s"


def _cut(label: str) -> str:
    return label if len(label) <= 72 else label[:71] + "…"


def _plain(text: str) -> str:
    """A text that Mermaid takes for nothing but text: what it would read as its own goes as a number."""
    known = re.sub(r"[^\w .:/()-]", lambda found: f"#{ord(found[0])};", " ".join(text.split()))
    return re.sub(r"\bend\b", "#101;nd", known)


def _host(name: str) -> str:
    return re.sub(r'[\s{}"\\]', "_", name)
