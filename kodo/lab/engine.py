"""What carries a lab's members: real processes (`processes.py`), or the simulator (`simulated.py`).

`MeshLab`, its handles and its views speak to an `Engine` and to what it returns as client, and know neither which one
it is nor how it works. A third one, such as a cluster elsewhere, is a class with these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

from kodo.client import Counts, Listing, Status, View
from kodo.lab.history import History

if TYPE_CHECKING:
    from kodo.lab.keeping import Kept

Word = Literal["TERM", "KILL", "STOP", "CONT"]
Table = dict[str, dict[str, Any]]
"""Policies on the messages to services, by url: the fields of `kodo.transport.Link`."""


@dataclass(slots=True)
class Setup:
    """How a member is to be started: options of `kodo.options`, and where a node's flows come from."""

    options: dict[str, Any]
    loader: Any = None


@dataclass(slots=True)
class Life:
    """What is known of a member from its start on; of one that is no process `pid` is None."""

    pid: int | None = None
    url: str | None = None
    code: int | None = None
    refused: str | None = None
    paused: bool = False
    ending: bool = False
    """Whether it was told to end."""
    linked: int = 0
    written: int = 0
    """Bytes that there were of its log when it was launched."""

    @property
    def over(self) -> bool:
        """Whether the member runs no more, or never did."""
        return self.code is not None or self.refused is not None


class Asking(Protocol):
    """How a member is asked, as `kodo.client.Client` does it. Raises `UnavailableError` when there is no answer."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def status(self) -> Status: ...
    def flows(self, q: str | None = None, by: str | None = None, p: int = 0, pp: int = 10) -> Listing: ...
    def counts(self) -> Counts: ...
    def map(self) -> View: ...
    def get(self, path: str = "/", **params: Any) -> Any: ...
    def post(self, path: str, body: Any = None) -> Any: ...


@runtime_checkable
class Engine(Protocol):
    """Starts members, breaks and ends them, lets them be asked, and notes what happens in `history`.

    `kind` is a word for the lab's text, or nothing; `kept` is there when the lab is to outlive its process;
    `options` are the names of those that a member may be given; `over` says that it has ended, once it has.
    """

    kind: str
    over: str
    history: History
    kept: Kept | None
    options: frozenset[str]

    def need_processes(self, verb: str) -> None:
        """Raise `LabError` when there are no processes, without which the verb makes no sense."""

    def defaults(self, name: str) -> dict[str, Any]:
        """The options that the lab finds for a member; what is given beats them. Called once for a name."""
        ...

    def check(self, name: str, setup: Setup) -> None:
        """Raise `LabError` for a setup that no member can be given: before the one that runs is ended for it."""

    def launch(self, name: str, setup: Setup, links: Callable[[], Table]) -> Life:
        """Have a member started, with the policies that hold when it is, and wait for nothing."""
        ...

    def wait_for_start(self, life: Life, timeout: float) -> None:
        """Wait until a member is about to answer, has ended, was refused, or the time is over."""

    def link(self, tables: Callable[[], Mapping[str, Table]], timeout: float) -> list[str]:
        """Let these policies hold for the messages of these members, and wait until they do. For whom they do not.

        `tables` says what holds when members are told: of two threads, who tells last tells what is true.
        """
        ...

    def signal(self, name: str, word: Word) -> None:
        """Tell a running member to end, or to stand still, or to go on."""

    def wait_for_pause(self, name: str, paused: bool, timeout: float) -> bool:
        """Wait until a member is paused, or is not. Whether that came to be."""
        ...

    def wait_for_end(self, name: str, timeout: float) -> bool:
        """Wait until a member has ended. Whether it has."""
        ...

    def running(self, name: str) -> bool:
        """Whether a member was started and has not ended."""
        ...

    def life(self, name: str) -> Life:
        """What is known of a member; of an unknown one nothing."""
        ...

    def client(self, url: str, timeout: float) -> Asking:
        """A way to ask the member at this url."""
        ...

    def pull(self, members: Iterable[tuple[str, str]], patience: float | None = None) -> None:
        """Bring `history` up to date with what these members, name and url, have noted."""

    def log(self, name: str, tail: int | None = None) -> str:
        """The last lines of a member's log, or all. Raises `LabError` when there is none."""
        ...

    def words(self, name: str, tail: int) -> str:
        """The last lines of a member's log since it was launched. Raises `LabError` when there is no log."""
        ...

    def discard(self, name: str) -> None:
        """A member that has ended, or never began, is one that never was: its log is as it was before."""

    @property
    def at_rest(self) -> bool:
        """Whether nothing at all can change by itself; False when nobody can know."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time pass until it is worth looking again, at most so long."""

    def run(self, seconds: float) -> None:
        """Let so much time pass."""

    def end(self) -> None:
        """End every member. Doing so again does nothing."""

    def leave(self) -> None:
        """Nobody uses it any more: end every member, unless the lab is kept. Doing so again does nothing."""
