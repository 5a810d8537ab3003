"""A copy of what registries list, kept up to date by their events, and seen as rows: sorted, selected, by ranges.

```
 registry --/events--> Follower (a thread each) --> Copy: of each registry its nodes --> rows, united over registries
```

- A row is a flow of a node in one form, with the registries that list it so. A registry that is behind lists another
  form, which is another row. A row keeps its number for as long as there is such a row.
- What `q` selects a registry answers, for the language is the service's; the copy keeps which rows that are.
- Every change moves `moves`, so that who looks knows whether to look again. Any thread may ask.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from kodo.client import Client, Snapshot
from kodo.errors import KodoError
from kodo.lab.flows import all_flows
from kodo.lab.naming import Names, few
from kodo.misread import explanation
from kodo.models import MISSING_AUTHOR, MISSING_DESCRIPTION, canonical

log = logging.getLogger("kodo")

CELLS = ("name", "node", "url", "organization", "author", "description", "tags", "registries")
"""What a row shows, in this order."""
DEFAULT = (("name", False), ("node", False), ("url", False))
"""How rows are sorted when nothing else is asked, and where what was asked leaves a choice."""
ANSWER = 10.0
"""Seconds that a registry gets to say what `q` selects."""

PATIENCE = 2.0
"""Seconds after which it is said that somebody is not heard."""

Place = tuple[str, str]
"""A flow of a node: the node's key and the flow's url."""
Order = tuple[tuple[str, bool], ...]
"""Columns to sort by, and whether each descends."""


@dataclass(slots=True)
class Line:
    """A row: its number, its cells, and when it last changed (monotonic clock; 0: it was there from the start)."""

    number: int
    place: Place
    cells: list[Any]
    changed: float = 0.0


@dataclass(slots=True)
class Selection:
    """Which flows `q` selects, None for all of them; what is to be said about it, and when that was asked."""

    places: set[Place] | None = None
    note: str = ""
    moves: int = -1
    q: str = ""
    at: float = 0.0


@dataclass(slots=True)
class _Told:
    """What one registry has told: its nodes, and whether it has told all of them."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    whole: bool = False


class Copy:
    """What several registries list."""

    def __init__(self) -> None:
        self.moves = 0
        self._woken = False
        self._lock = threading.RLock()
        self._moved = threading.Condition(self._lock)
        self._told: dict[str, _Told] = {}
        self._names = Names({})
        self._lines: dict[str, dict[tuple[str, str], Line]] = {}
        self._numbers = count(1)
        self._sorted: dict[Order, tuple[int, list[Line]]] = {}

    # -- what is told --------------------------------------------------------------------------------------

    def replace(self, registry: str, nodes: dict[str, dict[str, Any]]) -> None:
        """This is all that the registry lists."""
        with self._moved:
            told = self._told.setdefault(registry, _Told())
            touched = {key for key in told.nodes.keys() | nodes.keys() if told.nodes.get(key) != nodes.get(key)}
            fresh, told.whole, told.nodes = told.whole, True, nodes
            self._unite(touched, mark=fresh)

    def update(self, registry: str, nodes: dict[str, dict[str, Any] | None]) -> None:
        """These nodes of what the registry lists have changed; None: are gone."""
        with self._moved:
            told = self._told.setdefault(registry, _Told())
            for key, node in nodes.items():
                if node is None:
                    told.nodes.pop(key, None)
                else:
                    told.nodes[key] = node
            self._unite(nodes, mark=True)

    def drop(self, registry: str) -> None:
        """The registry lists nothing any more, for it does not run."""
        with self._moved:
            if (told := self._told.pop(registry, None)) is not None:
                self._unite(told.nodes, mark=False)

    def rename(self, names: Names) -> None:
        """Nodes are shown by these names."""
        with self._moved:
            self._names = names
            self._unite({key for told in self._told.values() for key in told.nodes}, mark=False)

    def wake(self) -> None:
        """Wake who waits for a move."""
        with self._moved:
            self._woken = True
            self._moved.notify_all()

    def wait(self, moves: int, timeout: float) -> None:
        """Wait until something has moved since `moves`, or somebody wakes."""
        with self._moved:
            if self.moves == moves and not self._woken:
                self._moved.wait(timeout)
            self._woken = False

    def _unite(self, keys: Iterable[str], *, mark: bool) -> None:
        now = time.monotonic() if mark else 0.0
        for key in keys:
            old = self._lines.pop(key, {})
            if lines := self._united(key, old, now):
                self._lines[key] = lines
        self.moves += 1
        self._moved.notify_all()

    def _united(self, key: str, old: dict[tuple[str, str], Line], now: float) -> dict[tuple[str, str], Line]:
        found: dict[tuple[str, str], list[Any]] = {}
        for registry, told in sorted(self._told.items()):
            node = told.nodes.get(key)
            for flow in node["flows"].values() if node is not None else ():
                cells = self._cells(node or {}, flow)
                found.setdefault((flow["url"], repr(cells)), [*cells, []])[-1].append(registry)
        lines = {}
        spare = {form[0]: line for form, line in old.items() if form not in found}
        for form, cells in found.items():
            # A flow that changes its form stays the same row, if its last form is gone.
            line = old.get(form) or spare.pop(form[0], None)
            if line is None:
                line = Line(next(self._numbers), (key, form[0]), cells, now)
            elif line.cells != cells:
                line = Line(line.number, line.place, cells, now or line.changed)
            lines[form] = line
        return lines

    def _cells(self, node: dict[str, Any], flow: dict[str, Any]) -> list[Any]:
        author, description = flow["author"], flow["description"]
        return [
            flow["name"],
            self._names[node["url"]],
            flow["url"],
            node["organization"] or "",
            "" if author in (None, MISSING_AUTHOR) else author,
            "" if description in (None, MISSING_DESCRIPTION) else description,
            list(flow["tags"] or ()),
        ]

    # -- what is seen --------------------------------------------------------------------------------------

    def lines(self, order: Order, selection: Selection) -> list[Line]:
        """The rows that are selected, sorted."""
        with self._lock:
            lines = self._in_order(order)
        if (places := selection.places) is None:
            return lines
        return [line for line in lines if line.place in places]

    def _in_order(self, order: Order) -> list[Line]:
        moves, lines = self._sorted.get(order, (-1, []))
        if moves != self.moves:
            lines = [line for lines in self._lines.values() for line in lines.values()]
            for column, descends in reversed((*order, *DEFAULT)):
                at = CELLS.index(column)
                lines.sort(key=lambda line, at=at: _rank(line.cells[at]), reverse=descends)  # type: ignore[misc]
            if len(self._sorted) > 8:
                self._sorted.clear()
            self._sorted[order] = self.moves, lines
        return lines

    def total(self) -> int:
        """How many rows there are."""
        with self._lock:
            return sum(map(len, self._lines.values()))

    def select(self, q: str, registries: Sequence[tuple[str, str]]) -> Selection:
        """What `q` selects, as these registries (names and urls) say: one, or more when not all list the same."""
        if not q.strip():
            return Selection()
        moves, places, note = self.moves, set[Place](), explanation(q)
        open_rows = {line.number: line.cells[-1] for line in self.lines((), Selection())}
        for name, url in registries:
            if places and not open_rows:
                break
            try:
                with Client(url, ANSWER) as client:
                    found = all_flows(client, q)
            except KodoError as error:
                note = f"{name} could not be asked: {error}"
                continue
            places |= {(canonical(row["node"]), row["url"]) for row in found}
            open_rows = {number: listing for number, listing in open_rows.items() if name not in listing}
        return Selection(places, note, moves, q, time.monotonic())


class Follower:
    """Feeds a copy with what one registry tells, on a thread of its own, until it is closed."""

    def __init__(self, copy: Copy, name: str, url: str) -> None:
        self._copy = copy
        self.url = url
        self._name = name
        self._client = Client(url, ANSWER)
        self._events = self._client.events()
        self._thread = threading.Thread(target=self._follow, name=f"kodo-live-{name}", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the registry is heard now."""
        return self._events.connected

    def close(self) -> None:
        """Stop following."""
        self._events.close()
        self._client.close()

    def _follow(self) -> None:
        try:
            for event in self._events:
                if isinstance(event, Snapshot):
                    self._copy.replace(self._name, event.nodes)
                else:
                    self._copy.update(self._name, event.nodes)
        except KodoError:
            log.warning("%s tells nobody what it lists", self._name, exc_info=True)


class Hearing:
    """Who is not heard of those that run: said when it lasts, for no connection stands at once."""

    def __init__(self, lack: str) -> None:
        """`lack` says what may be missing then."""
        self._lack = lack
        self._last: dict[str, float] = {}

    def note(self, heard: Mapping[str, bool]) -> str:
        """Who has not been heard for a while, in words; nothing where all are."""
        now = time.monotonic()
        self._last = {name: now if is_heard else self._last.get(name, now) for name, is_heard in heard.items()}
        silent = [name for name, last in self._last.items() if now - last >= PATIENCE]
        if not silent:
            return ""
        return f"nothing is heard of {few(silent)}, perhaps for too many readers; {self._lack}"


def _rank(value: Any) -> str:
    return ", ".join(sorted(value)) if isinstance(value, list) else str(value)


def order_of(asked: Any) -> Order:
    """The order that a view asks for, as `[[column, descends], ...]`; what is no column is left out."""
    pairs = [pair for pair in asked if isinstance(pair, list) and len(pair) == 2] if isinstance(asked, list) else []
    return tuple((column, bool(descends)) for column, descends in pairs if column in CELLS)[: len(CELLS)]
