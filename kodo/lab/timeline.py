"""The timeline: who told whom what and when, as a space-time diagram, a frame, Mermaid and ShiViz text.

Every member has a line, time goes to the right, and a message is an arrow from where it left to where it arrived. One
that did not arrive ends in a cross; one that waited at a cut has a diamond there. Its rules:

- Silence takes little room: the axis grows with the logarithm of what passes between two moments, so that messages
  which take a millisecond are told apart beside a minute in which nothing happened. The ticks say the time, and a line
  beneath that it is not to scale.
- It is as wide as a notebook shows it at its size: where more happened, time goes on in another strip beneath, as a
  text does in its next line. Each strip has all members, and the labels of the faults that hold in it.
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
from itertools import islice, pairwise
from math import ceil, log10
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
    frame,
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
ROW, LEFT, RIGHT = 0.42, 0.3, 0.35
FOOT, TIMES, ABOVE = 0.7, 0.25, 0.35
"""Inches of the words beneath all, of the times beneath a strip, and above its first line."""
MANY = 40
"""Lines that there are at most, each with its name."""
LABEL_ROW = 0.19
WIDEST, NARROWEST = 9.0, 6.0
"""Inches of the card: a wider one is shrunk in a notebook, and its letters with it."""
TALLEST = 24.0
"""Inches of all strips, of which there is one at least."""
NEAR = 0.08
"""Inches a moment below which another strip is begun."""
OFF = 0.06
"""How far from equal parts strips are, by their width, for each to end where little happens."""
SMALL = 8.0
"""Points of the smallest letters."""
SHORTEST, GROWTH, GRAIN = 0.055, 0.2, 0.002
"""Inches between two moments at least, for each tenfold of time between them, and seconds where that begins."""
NOT_TO_SCALE = "time is not to scale: silence is shortened"
GOES_ON = "time goes on in the next row"
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

    def __init__(self, moments: Iterable[float], widest: float, least: float = 0.0, strips: int = 1) -> None:
        """At most `widest` inches a strip and, where there is anything between moments, at least the `least` in all.

        There are so many `strips` at most, and no more than it takes.
        """
        self._moments = sorted(set(moments))
        steps = [_step(later - earlier) for earlier, later in pairwise(self._moments)]
        natural = max(sum(steps), 1e-9)
        needed = ceil(min(natural, NEAR * len(steps)) / widest)
        self._strips = max(1, min(strips, needed))
        room = widest if self._strips == 1 else self._strips * widest / (1 + 2 * OFF)
        scale = min(max(1.0, least / natural), room / natural)
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

    @property
    def strips(self) -> list[tuple[float, float]]:
        """Where each strip begins and ends, in inches: near equal parts, between two moments that are far apart."""
        share = self.width / self._strips
        seams = [0.0, *(self._seam(number * share, share * OFF) for number in range(1, self._strips)), self.width]
        return list(pairwise(seams))

    def _seam(self, place: float, off: float) -> float:
        steps = [pair for pair in pairwise(self._places) if abs(sum(pair) / 2 - place) <= off]
        begin, end = max(steps, key=lambda pair: pair[1] - pair[0], default=(place, place))
        return (begin + end) / 2

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
    """The drawing of one timeline: strips of time, and the words beneath."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.names = _lines_of(timeline)
        rows = {name: number for number, name in enumerate(self.names)}
        self.messages = [message for message in timeline.messages if {message.sender, message.receiver} <= rows.keys()]
        begins = [message.began for message in self.messages]
        begins += [] if timeline.scope.begin is None else [timeline.scope.begin]
        self.begin = min(begins, default=timeline.scope.until)
        self.faults = [span for span in timeline.faults if span.end is None or span.end >= self.begin]
        self.known = [event for event in seen_to_start(timeline.events, timeline.messages) if event.who in rows]
        self.events = [event for event in self.known if event.at >= self.begin]
        self.left = LEFT + max([width_of(label_of(name), 9) for name in self.names], default=0) + 0.2
        legend = sum(width for *_, width in self._legend())
        foot = max(legend, width_of(self._said, SMALL) + width_of(f"{NOT_TO_SCALE}; {GOES_ON}", SMALL) + 0.3)
        least = max(NARROWEST - self.left, foot + LEFT - self.left)
        self.high = ROW * max(1, len(self.names))
        most = int(TALLEST / (self.high + TIMES + ABOVE))
        self.axis = Axis(self._moments(), max(WIDEST - self.left - RIGHT, least), least, max(1, most))
        self._strips = [_Strip(self, begin, end) for begin, end in self.axis.strips]
        self._inner = max(least, *(strip.width for strip in self._strips))

    def draw(self) -> Figure:
        """Draw it, the last strip above the words, and each other above its next."""
        figure, axes = card(self.left + self._inner + RIGHT, FOOT + sum(strip.height for strip in self._strips))
        low = FOOT
        for strip in reversed(self._strips):
            strip.draw(axes, low)
            low += strip.height
        self._draw_foot(axes)
        return figure

    def end_of(self, span: Span) -> float:
        """The moment when it ended, or that of the timeline."""
        return self.timeline.scope.until if span.end is None else span.end

    def _moments(self) -> Iterator[float]:
        for message in self.messages:
            yield from self.moments_of(message)
        for event in self.events:
            if event.what != "launched":
                yield event.at
        for span in self.faults:
            yield from (max(span.begin, self.begin), self.end_of(span))

    def moments_of(self, message: Message) -> list[float]:
        """Those at which something of a message is drawn."""
        answered = message.answered if self.timeline.scope.answers else None
        lost = None if message.arrived else message.ended
        waits = self.timeline.scope.until if message.ended is None and message.received is None else None
        return [at for at in (message.sent, message.received, answered, lost, waits) if at is not None]

    def waited(self, message: Message) -> bool:
        """Whether it has a diamond: it, or its answer, waited at a cut, or waits there still."""
        if message.received is None:
            return message.outcome == "cut" and message.ended is None
        return self.released(message) is not None or (message.held and not _lost(message))

    def released(self, message: Message) -> float | None:
        """When the cut ended that held a message; one that held its answer did so after it had arrived."""
        arrived = message.received
        if not message.held or arrived is None:
            return None
        ends = [span.end for span in self.faults if span.cut and span.end is not None]
        return max((end for end in ends if message.began <= end <= arrived), default=None)

    # -- the words beneath ---------------------------------------------------------------------------------

    def _legend(self) -> Iterator[tuple[str, str, str, float]]:
        routes = {message.route for message in self.messages}
        signs = [(route, "-", COLOURS.get(route, OTHER)) for route in sorted(routes)]
        if self.timeline.scope.answers and any(message.delivered for message in self.messages):
            signs.append(("answer", "-", PALE))
        if any(_refused(message) for message in self.messages):
            signs.append(("refused", "-", BROKEN))
        if any(not message.arrived and message.outcome and message.ended for message in self.messages):
            signs.append(("lost, or its answer", "x", BROKEN))
        if any(map(self.waited, self.messages)):
            signs.append(("waited at a cut", "D", INK))
        if any(event.what == "paused" for event in self.events):
            signs.append(("paused", "-", SLOW))
        shown = {_mark_of(event) for event in self.events}
        signs += [(words, sign, colour) for mark in MARKS if mark in shown for words, sign, colour, _ in [mark]]
        for words, sign, colour in signs:
            yield words, sign, colour, width_of(words, SMALL) + 0.5

    @property
    def _said(self) -> str:
        """What of the timeline is not drawn."""
        timeline = self.timeline
        if not timeline.messages:
            return "no messages"
        left = len(timeline.names) - len(self.names), len(timeline.messages) - len(self.messages)
        return "; ".join(_left_out(timeline.scope.hidden, *left))

    def _draw_foot(self, axes: Any) -> None:
        x, y = LEFT, 0.3
        for words, sign, colour, width in self._legend():
            if sign == "-":
                axes.add_line(Line2D((x - 0.08, x + 0.1), (y, y), color=colour, linewidth=2))
            else:
                axes.add_line(_sign(x, y, sign, colour, {"D": 5, "o": 4}.get(sign, 6)))
            _write(axes, (x + 0.18, y), words, QUIET)
            x += width
        _write(axes, (LEFT - 0.1, 0.55), self._said, INK)
        scale = f"{NOT_TO_SCALE}; {GOES_ON}" if len(self._strips) > 1 else NOT_TO_SCALE
        _write(axes, (self.left + self._inner, 0.55), scale, QUIET, ha="right", style="italic")


class _Strip:
    """A stretch of time, with a line for each that has one; what goes on beyond it is cut off at its ends."""

    def __init__(self, diagram: _Diagram, begin: float, end: float) -> None:
        self._of = diagram
        self._begin, self._end = begin, end
        within = [
            span for span in diagram.faults if self._x(diagram.end_of(span)) >= begin and self._x(span.begin) <= end
        ]
        self._labels = [(max(self._x(span.begin) - begin, 0.0), _width_of_label(span)) for span in within]
        self._faults = list(zip(within, self._labels, _rows(self._labels), strict=True))
        above = max([row + 1 for *_, row in self._faults], default=0)
        self.height = TIMES + diagram.high + ABOVE + LABEL_ROW * above
        self._high = diagram.high
        self._rows = {name: number for number, name in enumerate(diagram.names)}

    @property
    def width(self) -> float:
        """Inches of its time, and of the labels that reach over its end."""
        return max([self._end - self._begin, *(x + width for x, width in self._labels)])

    def draw(self, axes: Any, low: float) -> None:
        """Draw it from this height on upwards: what is behind first."""
        self._axes = axes
        self._low = low + TIMES
        self._top = self._low + self._high
        left, right = self._of.left, self._of.left + self._end - self._begin
        self._inside = frame(axes, left - 0.001, low, right + 0.001, low + self.height)
        for span, (x, _), row in self._faults:
            self._draw_fault(span, self._of.left + x, row)
        self._draw_ticks()
        for name in self._of.names:
            self._draw_line(name)
        for message in self._of.messages:
            moments = [message.began, *self._of.moments_of(message)]
            if self._x(max(moments)) >= self._begin and self._x(min(moments)) <= self._end:
                self._draw_message(message)

    # -- places --------------------------------------------------------------------------------------------

    def _x(self, moment: float) -> float:
        return self._of.axis(moment)

    def _at(self, moment: float) -> float:
        return self._of.left + self._x(moment) - self._begin

    def _y(self, name: str) -> float:
        return self._top - ROW * (self._rows[name] + 0.5)

    # -- what is drawn -------------------------------------------------------------------------------------

    def _line(self, xs: tuple[float, float], ys: tuple[float, float], **look: Any) -> None:
        self._axes.add_line(Line2D(xs, ys, **look)).set_clip_box(self._inside)

    def _mark(self, x: float, y: float, marker: str, colour: str, size: float = 6) -> None:
        if 0 <= x - self._of.left <= self._end - self._begin:
            self._axes.add_line(_sign(x, y, marker, colour, size))

    def _draw_fault(self, span: Span, label: float, row: int) -> None:
        begin, end = self._at(span.begin), self._at(self._of.end_of(span))
        height, colour = self._top + 0.14 + LABEL_ROW * row, SHADE[span.cut]
        size = (max(end - begin, 0.03), height + 0.08 - self._low)
        shade = Rectangle((begin, self._low), *size, facecolor=colour, alpha=0.1, linewidth=0, zorder=0.5)
        self._axes.add_patch(shade).set_clip_box(self._inside)
        self._line((begin, begin), (self._low, height + 0.08), color=colour, linewidth=0.8, alpha=0.7, zorder=0.6)
        words = BROKEN if span.cut else SLOW_INK
        _write(self._axes, (label + 0.06, height), _cut(span.label), words, zorder=7)

    def _draw_ticks(self) -> None:
        zero = self._of.timeline.scope.zero
        for moment in self._of.axis.ticks(TICK):
            if self._begin <= self._x(moment) <= self._end:
                x = self._at(moment)
                self._line((x, x), (self._low - 0.06, self._top), color=PALE, linewidth=0.5, zorder=0.7)
                _write(self._axes, (x, self._low - 0.15), _seconds(moment - zero), QUIET, ha="center")

    def _draw_line(self, name: str) -> None:
        y, left = self._y(name), self._of.left
        _write(self._axes, (left - 0.15, y), label_of(name), INK, ha="right", fontsize=9)
        end = left + max(self._end - self._begin, 0.1)
        dotted: dict[str, Any] = {"color": PALE, "linewidth": 1.2, "linestyle": (0, (1, 3)), "zorder": 1}
        self._line((left, end), (y, y), **dotted)
        stranger, known = name not in self._of.timeline.scope.kinds, self._of.known
        for span in [Span(self._of.begin, None)] if stranger else _states(known, name, "started", "exited"):
            self._band(span, y, {"color": FAINT, "linewidth": 1.4, "zorder": 1.1})
        for span in _states(known, name, "paused", "resumed"):
            self._band(span, y, {"color": SLOW, "linewidth": 5, "alpha": 0.45, "zorder": 1.2, "solid_capstyle": "butt"})
        for event in self._of.events:
            if event.who == name and (mark := _mark_of(event)) is not None:
                _, sign, colour, size = mark
                self._mark(self._at(event.at), y, sign, colour, size)

    def _band(self, span: Span, y: float, look: dict[str, Any]) -> None:
        end = self._of.end_of(span)
        if end >= self._of.begin:
            self._line((self._at(max(span.begin, self._of.begin)), self._at(end)), (y, y), **look)

    def _draw_message(self, message: Message) -> None:
        colour = BROKEN if _refused(message) else COLOURS.get(message.route, OTHER)
        begin = (self._at(message.began), self._y(message.sender))
        released = self._of.released(message)
        if message.received is not None and released is not None:
            begin = self._draw_wait(begin, self._y(message.receiver), released, colour)
        if message.received is not None:
            self._arrow(begin, (self._at(message.received), self._y(message.receiver)), colour)
            if _lost(message):
                self._mark(self._at(message.received) + 0.05, self._y(message.receiver), "x", BROKEN, 4.5)
            elif released is None and self._of.waited(message):  # its answer did
                self._mark(self._at(message.received) + 0.05, self._y(message.receiver), "D", INK, 5)
        elif message.arrived:
            self._arrow(begin, (self._at(message.ended or message.began), self._y(message.receiver)), colour)
        else:
            self._draw_lost(message, begin, colour)
        if self._of.timeline.scope.answers and message.delivered and message.answered and message.ended:
            back = (self._at(message.answered), self._y(message.receiver))
            self._arrow(back, (self._at(message.ended), self._y(message.sender)), PALE)

    def _draw_wait(self, begin: tuple[float, float], end: float, released: float, colour: str) -> tuple[float, float]:
        """Half the way, and there a diamond, where it waited until the cut was over."""
        x, y = self._at(released), (begin[1] + end) / 2
        self._line((begin[0], x), (begin[1], y), color=colour, linewidth=1, linestyle=DASHED, zorder=3)
        self._mark(x, y, "D", INK, 5)
        return x, y

    def _draw_lost(self, message: Message, begin: tuple[float, float], colour: str) -> None:
        """Half the way, and there a cross; what is still on its way has none, or a diamond if it waits at a cut."""
        end = self._at(self._of.timeline.scope.until if message.ended is None else message.ended)
        x, y = (begin[0] + end) / 2, begin[1] + (self._y(message.receiver) - begin[1]) * 0.55
        self._line((begin[0], x), (begin[1], y), color=colour, linewidth=1, linestyle=DASHED, zorder=3)
        if message.outcome is not None:
            waits = self._of.waited(message)
            self._mark(x, y, "D" if waits else "x", INK if waits else BROKEN, 5 if waits else 6)

    def _arrow(self, begin: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        look = {"arrowstyle": "-|>,head_width=0.16,head_length=0.34", "color": colour, "linewidth": 1, "shrinkA": 0}
        # Drawn also where it ends in another strip, up to the end of this one.
        drawn = self._axes.annotate("", end, begin, arrowprops={**look, "shrinkB": 0}, zorder=4, annotation_clip=False)
        drawn.arrow_patch.set_clip_box(self._inside)


def _write(axes: Any, at: tuple[float, float], text: str, colour: str, **look: Any) -> None:
    axes.text(*at, text, color=colour, parse_math=False, **{"va": "center", "fontsize": SMALL, **look})


def _sign(x: float, y: float, marker: str, colour: str, size: float) -> Line2D:
    look: dict[str, Any] = {
        "marker": marker,
        "color": colour,
        "markersize": size,
        "markerfacecolor": CARD if marker == "D" else colour,
        "markeredgewidth": 1.6,
        "zorder": 6,
    }
    return Line2D((x,), (y,), linestyle="none", **look)


def _width_of_label(span: Span) -> float:
    return width_of(_cut(span.label), SMALL) + 0.15


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
