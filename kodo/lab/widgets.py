"""The widgets whose front ends are ours, plain files in `static`: the one importer of anywidget.

- `FlowGrid` shows a window of many rows. Each of its views says what it looks at, and gets that, and what changes of
  it. Nothing else is sent, and nothing is kept in the widget's state: a view that comes says hello.
- `MeshPicture` and `MessageLog` are small: their state is what they show, sent when it changes.

What a view sends is checked like any foreign text.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from kodo.lab.copies import CELLS, Copy, Order, Selection, order_of

STATIC = Path(__file__).parent / "static"
MARK = 4.0
"""Seconds for which a row that changed is marked."""
MOST_ROWS, MOST_VIEWS = 400, 32
"""Rows that a view may look at, and views that are remembered: of more, those last heard of."""


@dataclass(slots=True)
class View:
    """What one view looks at, and what it has."""

    name: str
    first: int = 0
    rows: int = 40
    order: Order = ()
    q: str = ""
    asked: int = 0
    selection: Selection = field(default_factory=Selection)
    has: dict[int, Any] = field(default_factory=dict)
    last: Any = None


class FlowGrid(anywidget.AnyWidget):
    """The table of flows, of which each view shows a window."""

    _esm = STATIC / "grid.js"
    _css = STATIC / "grid.css"
    label = traitlets.Unicode("flows").tag(sync=True)

    def __init__(self, copy: Copy, wake: Callable[[], None], **traits: Any) -> None:
        """`wake` is called when a view searches: what it finds takes a question, which is not asked here."""
        super().__init__(**traits)
        self.ended = False
        self.members: list[dict[str, str]] = []
        self.note = ""
        self._copy = copy
        self._wake = wake
        self._guard = threading.RLock()
        self._views: OrderedDict[str, View] = OrderedDict()
        self.on_msg(self._heard)

    def views(self) -> list[View]:
        """The views there are."""
        with self._guard:
            return list(self._views.values())

    def _heard(self, _: Any, content: Any, __: Any) -> None:
        """A view says what it looks at. Answered at once, but for a search."""
        if not isinstance(content, dict) or not isinstance(name := content.get("view"), str):
            return
        with self._guard:
            if content.get("type") == "bye":
                self._views.pop(name, None)
                return
            if content.get("type") == "hello":
                self._views.pop(name, None)
            view = self._views.setdefault(name, View(name))
            self._views.move_to_end(name)
            while len(self._views) > MOST_VIEWS:
                self._views.popitem(last=False)
            searches = _look(view, content)
            if searches:
                self._wake()
            else:
                self.show(view, answer=True)

    def show_all(self) -> None:
        """Tell each view what is new in what it looks at."""
        for view in self.views():
            self.show(view)

    def show(self, view: View, *, answer: bool = False) -> None:
        """Tell a view what it looks at, if that is new to it; an `answer` is told in any case."""
        with self._guard:
            told, bodies, fresh = self._window(view)
            if answer or bodies or told != view.last:
                view.last = told
                self.send({"type": "rows", "view": view.name, **told, "rows": bodies, "fresh": fresh})

    def _window(self, view: View) -> tuple[dict[str, Any], dict[int, Any], dict[int, int]]:
        lines = self._copy.lines(view.order, view.selection)
        shown = lines[view.first : view.first + view.rows]
        bodies = {line.number: line.cells for line in shown if view.has.get(line.number) is not line.cells}
        view.has = {line.number: line.cells for line in shown}
        since = time.monotonic() - MARK
        fresh = {line.number: int((line.changed - since) * 1000) for line in shown if line.changed > since}
        told = {
            "asked": view.asked,
            "first": view.first,
            "numbers": [line.number for line in shown],
            "filtered": len(lines),
            "total": self._copy.total(),
            "columns": CELLS,
            "note": "; ".join(filter(None, (self.note, view.selection.note))),
            "members": self.members,
            "ended": self.ended,
        }
        return told, bodies, {number: left for number, left in fresh.items() if number in bodies}


def _look(view: View, content: dict[str, Any]) -> bool:
    """Take what a view says that it looks at. Whether it searches for something else than before."""
    view.first = max(0, _whole(content.get("first"), view.first))
    view.rows = min(MOST_ROWS, max(1, _whole(content.get("count"), view.rows)))
    view.order = order_of(content.get("order"))
    view.asked = _whole(content.get("asked"), view.asked)
    q = content.get("q")
    if not isinstance(q, str) or q == view.q:
        return False
    view.q = q
    if not q.strip():
        view.selection = Selection()
    return bool(q.strip())


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and abs(value) < 2**53 else otherwise


class MeshPicture(anywidget.AnyWidget):
    """The topology: members with their places, links, and faults."""

    _esm = STATIC / "mesh.js"
    _css = STATIC / "mesh.css"
    state = traitlets.Dict().tag(sync=True)


class MessageLog(anywidget.AnyWidget):
    """The last messages between members, or why there are none."""

    _esm = STATIC / "messages.js"
    _css = STATIC / "messages.css"
    state = traitlets.Dict().tag(sync=True)
