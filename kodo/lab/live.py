"""`lab.live()`: the flows of the mesh in a table that moves with it.

```
 Follower threads --> Copy --> pump (a thread, at most four times a second, only on change) --> FlowGrid --> views
```

- The threads hold no lab: a lab that nobody can reach ends as it would without a table, and the table says so.
- A lab has one such table, and each member, however often it is asked for: another would be further streams, of which
  a registry has few for one client. As many views show it as there are.
- Who is up the pump asks the lab, which knows its processes; nobody is polled for what it lists.
- An error on a thread would appear in whatever cell runs: it goes to the log, and the table ends.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from kodo.client import Client
from kodo.errors import UnavailableError
from kodo.lab.boxes import WIDGET
from kodo.lab.copies import Copy, Follower, Hearing, Selection
from kodo.lab.flows import FlowTable, all_flows, united
from kodo.lab.widgets import FlowGrid

if TYPE_CHECKING:
    from kodo.lab.member import Member
    from kodo.lab.mesh import MeshLab

log = logging.getLogger("kodo")

BEAT = 0.25
"""Seconds between two messages to the views, at least."""
SEARCH = 1.0
"""Seconds between two questions for the same search, while what is listed moves."""


class Opened(Protocol):
    """What a lab shows until it is closed."""

    @property
    def open(self) -> bool:
        """Whether it still follows the lab."""

    def close(self) -> None:
        """Follow it no more."""


Shown = TypeVar("Shown", bound=Opened)


def opened(lab: MeshLab, kind: type[Shown], name: str, make: Callable[[], Shown]) -> Shown:
    """What a lab shows of a kind under a name, or of the lab itself under none: the one that is open, or a new one."""
    view: Shown | None = lab.views.get((kind, name))
    if view is not None and not view.open:
        view.close()  # what is left of one that failed, or whose widget is gone
        view = None
    if view is None:
        view = lab.views[kind, name] = make()
    return view


class Live:
    """A table of flows that follows its registries until its lab ends, or until it is closed."""

    def __init__(self, lab: MeshLab, member: Member | None = None) -> None:
        """Follow this member; without one, all registries that the lab has, now and later."""
        self.lab = lab
        chosen = None if member is None else member.name
        self.copy = Copy()
        self.grid = FlowGrid(self.copy, self.copy.wake, label=chosen or "flows of the mesh")
        self._pump = Pump(weakref.ref(lab), self.copy, self.grid, chosen)

    @classmethod
    def of(cls, lab: MeshLab, member: Member | None = None) -> Self:
        """The table of a lab, or of a member: the one that is open, or a new one."""
        return opened(lab, cls, "" if member is None else member.name, lambda: cls(lab, member))

    @property
    def open(self) -> bool:
        """Whether it still follows, and its widget was not closed."""
        return self._pump.open and self.grid.comm is not None

    def registries(self) -> list[tuple[str, str]]:
        """Names and urls of the members that are followed and run."""
        return self._pump.registries()

    def close(self) -> None:
        """Stop following. What is shown stays, and says that it has ended."""
        self._pump.close()

    def __repr__(self) -> str:
        return "<Live flows>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.grid.model_id}
        return {"text/plain": repr(self), "text/html": self._static(), WIDGET: view}

    def _static(self) -> str:
        """What is listed now, for who reads the notebook without its kernel."""
        return static_table(self._pump.registries(), self.lab)


def static_table(registries: Sequence[tuple[str, str]], lab: MeshLab) -> str:
    """What these registries list, as HTML without anything that was measured."""
    listings = {}
    for name, url in registries:
        try:
            with Client(url, 5) as client:
                listings[name] = all_flows(client)
        except UnavailableError:
            continue
    return FlowTable(united(listings), lab.names)._repr_html_()


class Pump:
    """The thread that keeps a grid up to date."""

    def __init__(self, lab: weakref.ref[MeshLab], copy: Copy, grid: FlowGrid, chosen: str | None) -> None:
        """Follow the member that is `chosen`, or every registry."""
        self._lab = lab
        self._copy = copy
        self._grid = grid
        self._chosen = chosen
        self._followers: dict[str, Follower] = {}
        self._states: list[tuple[str, str, str]] = []
        self._urls: dict[str, str] = {}
        self._hearing = Hearing("what they list may be missing here")
        self._closed = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._run, name="kodo-live", daemon=True)
        self._thread.start()

    def registries(self) -> list[tuple[str, str]]:
        """Names and urls of those that are followed and run."""
        running = {name for name, _, state in self._states if state == "running"}
        urls = self._urls
        return [(name, urls[name]) for name in list(self._followers) if name in running and name in urls]

    @property
    def open(self) -> bool:
        """Whether the thread goes on."""
        return self._thread.is_alive() and not self._closed.is_set()

    def close(self) -> None:
        """End the thread, and the followers."""
        self._closed.set()
        self._copy.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    def _run(self) -> None:
        try:
            seen = -1
            while not self._closed.is_set() and self._look():
                seen = self._copy.moves
                self._select(seen)
                heard = {name: self._followers[name].connected for name, _ in self.registries()}
                self._grid.note = self._hearing.note(heard)
                self._grid.show_all()
                self._closed.wait(BEAT)
                self._copy.wait(seen, BEAT)
        except Exception:
            log.exception("a live table ends")
        finally:
            for follower in self._followers.values():
                follower.close()
            self._grid.ended = True
            try:
                self._grid.show_all()
            except Exception:
                log.debug("a live table has nobody to tell that it ended", exc_info=True)

    def _look(self) -> bool:
        """Who is there, and how they are. False when the lab has ended."""
        lab = self._lab()
        if lab is None or lab.ended:
            return False
        members = [member for member in lab if self._chosen in (None, member.name)]
        states = [(member.name, member.kind, member.state) for member in members]
        urls = {member.name: member.url for member in lab}
        if (states, urls) == (self._states, self._urls):
            return True
        # One that did not start is no member any more, and another of its name answers elsewhere.
        for name in [name for name, follower in self._followers.items() if urls.get(name) != follower.url]:
            self._followers.pop(name).close()
            self._copy.drop(name)
        for member in members:
            follows = self._chosen is not None or member.kind != "node"
            if follows and member.name not in self._followers:
                self._followers[member.name] = Follower(self._copy, member.name, member.url)
        gone = {name for name, _, state in states if state not in {"running", "paused"}}
        for name in gone & self._followers.keys():
            self._copy.drop(name)
        if urls != self._urls:
            self._urls = urls
            self._copy.rename(lab.names)
        self._states = states
        self._grid.members = [{"name": name, "kind": kind, "state": state} for name, kind, state in states]
        return True

    def _select(self, moves: int) -> None:
        """Ask what is searched for, where something moved since it was last asked, once for all views."""
        found: dict[str, Selection] = {}
        for view in self._grid.views():
            known, q = view.selection, view.q
            stale = known.moves != moves and time.monotonic() - known.at > SEARCH
            if q.strip() and (stale or known.q != q):
                if q not in found:
                    found[q] = self._copy.select(q, self.registries())
                view.selection = found[q]
