"""The handle of one member of a lab: ask it, pause it, end it, start it again, read its log.

A handle stands for the member, not for one process: `restart` gives it a new one, at the same url and on the same
cache. It keeps its lab alive. What a handle cannot do is a `LabError` that names the member, what was expected, and
what to do; what the service refuses is the error that the client raises. One that is paused or has ended is not asked:
that is an `UnavailableError` at once, which names the verb that brings it back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from kodo.client import Counts, Status, View
from kodo.errors import KodoError, LabError, LoaderError, UnavailableError
from kodo.lab.engine import Asking, Life, Setup
from kodo.lab.flows import FlowTable, Row, all_flows
from kodo.lab.naming import checked_most, renamed
from kodo.loader import load_flows
from kodo.plan import doubled_path

if TYPE_CHECKING:
    from kodo.lab.explained import Explanation
    from kodo.lab.live import Live
    from kodo.lab.mesh import MeshLab

T = TypeVar("T")
TAIL = 12
"""Lines of a member's log that an error shows."""
WITHIN = {"answers", "await_start", "last_words", "launch", "setup"}
"""What of a member only `kodo.lab` itself asks for."""
ENDS = {None: "terminated", 0: "terminated", -15: "terminated", -9: "killed"}
"""What became of a member, by the code of its process; one that is told to end before it answers gets -15."""


class Log(str):
    """Lines of a log, which a notebook shows as they are."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Member:
    """A registry, a provider or a node of a lab."""

    def __init__(self, lab: MeshLab, name: str, kind: str, setup: Setup) -> None:
        """Made by `MeshLab.add_registry` and `MeshLab.add_node`; nothing is started yet."""
        self.lab = lab
        self.name = name
        self.kind = kind
        self.setup = setup
        self.url: str = setup.options["url"]
        self._client = lab.engine.client(self.url, lab.timeout)

    def __repr__(self) -> str:
        return f"<{self.kind.title()} {self.name}: {self.state}>"

    # -- what it is doing ----------------------------------------------------------------------------------

    def __dir__(self) -> list[str]:
        """What a notebook completes: what a member is for, not what its lab asks of it."""
        return sorted(set(super().__dir__()) - WITHIN)

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.lab.engine.running(self.name)

    @property
    def paused(self) -> bool:
        """Whether its process is there and stands still, whoever stopped it."""
        return self.running and self.lab.engine.life(self.name).paused

    @property
    def answers(self) -> bool:
        """Whether there is any use in asking it."""
        return self.running and not self.paused

    @property
    def state(self) -> str:
        """`running`, `paused`, `terminated`, `killed`, or how it ended, by itself or with its lab; or `detached`."""
        if self.lab.detached:
            return "detached"
        if self.running:
            return "paused" if self.paused else "running"
        code = self.lab.engine.life(self.name).code
        if code is None and self.lab.lost:
            return "ended with its lab"
        return ENDS.get(code, f"ended with code {code}")

    @property
    def _being(self) -> str:
        """Its state in a sentence."""
        state = self.state
        return f"it was {state}" if state in ENDS.values() else f"it {state}" if "ended" in state else f"it is {state}"

    @property
    def pid(self) -> int | None:
        """The number of its process, while there is one."""
        return self.lab.engine.life(self.name).pid if self.running else None

    @property
    def connect(self) -> list[str]:
        """The urls that it was told to connect with."""
        return list(self.setup.options["connect"])

    def logs(self, tail: int | None = None) -> Log:
        """The lines of its log, of all its processes so far; only so many of the last with `tail`."""
        return Log(self.lab.engine.log(self.name, checked_most("tail", tail, 0)))

    # -- asking it -----------------------------------------------------------------------------------------

    @property
    def _word(self) -> str:
        """How a user writes it: by its name, where that can be a variable's."""
        return self.name if self.name.isidentifier() else f"lab[{self.name!r}]"

    @property
    def _asked(self) -> Asking:
        """What asks it. Raises `UnavailableError` at once when it cannot answer, `LabError` when its lab has ended."""
        self.lab.check_alive()
        if not self.answers:
            back = "resume" if self.paused else "start"
            raise UnavailableError(f"expected {self.name} to answer, but {self._being}; use {self._word}.{back}()")
        return self._client

    def _answer(self, ask: Callable[[Asking], T]) -> T:
        """What it answers. What goes wrong names it as the lab does: nobody knows its url by heart."""
        asked = self._asked
        try:
            return ask(asked)
        except KodoError as error:
            error.args = (renamed(str(error), self.lab.names), *error.args[1:])
            raise

    def get(self, path: str = "/", **params: Any) -> Any:
        """Its answer to a GET."""
        return self._answer(lambda asked: asked.get(path, **params))

    def post(self, path: str, body: Any = None) -> Any:
        """Its answer to a POST."""
        return self._answer(lambda asked: asked.post(path, body))

    def status(self) -> Status:
        """Who it is, what it is connected with, and whether all is said."""
        return self._answer(lambda asked: asked.status())

    def map(self) -> View:
        """What it knows of the mesh."""
        return self._answer(lambda asked: asked.map())

    def counts(self) -> Counts:
        """How many flows it lists, in all and by node, organization and tag."""
        return self._answer(lambda asked: asked.counts())

    def explain(self, node: Member | str, flow: str | None = None) -> Explanation:
        """Why it lists a node, or a flow of it, or does not. A node is a handle, a name or a url."""
        return self.lab.explain(node, flow, at=self)

    def flows(self, q: str | None = None, by: str | None = None, times: bool = False) -> FlowTable:
        """The flows that it lists: those that `q` selects, in the order `by`."""
        return FlowTable(self.rows(q, by), self.lab.names, q=q, by=by, times=times)

    def rows(self, q: str | None = None, by: str | None = None) -> list[Row]:
        """The same as plain rows, with urls as they are."""
        return self._answer(lambda asked: all_flows(asked, q, by))

    def live(self) -> Live:
        """The flows that it lists, in a table that moves with it."""
        from kodo.lab.live import Live  # noqa: PLC0415, widgets take their time

        self.lab.check_alive()
        self.lab.engine.need_processes("live()")
        return Live.of(self.lab, self)

    # -- its life ------------------------------------------------------------------------------------------

    def pause(self, timeout: float | None = None) -> None:
        """Let it stand still, as if it hung: connections are taken and nothing is answered, until `resume`."""
        self._stand("STOP", timeout)

    def resume(self, timeout: float | None = None) -> None:
        """Let it go on. One that is not paused goes on anyway."""
        self._stand("CONT", timeout)

    def _stand(self, word: Literal["STOP", "CONT"], timeout: float | None) -> None:
        self.lab.check_alive()
        pause, limit = word == "STOP", self.lab.patience(timeout)
        if not self.running:
            raise LabError(f"expected {self.name} to run, but {self._being}; use {self._word}.start() first")
        if pause == self.paused:
            return
        self._remember()
        self.lab.engine.signal(self.name, word)
        if not self.lab.engine.wait_for_pause(self.name, pause, limit):
            done = "stand still" if pause else "go on"
            raise LabError(f"expected {self.name} to {done} within {limit:g} s; {self._being}")

    def _remember(self) -> None:
        """Read its trace, which it takes along."""
        if self.answers and self.lab.engine.life(self.name).url is not None:
            self.lab.engine.pull([(self.name, self.url)], patience=1)

    def terminate(self, timeout: float | None = None) -> None:
        """Tell it to end, and wait until it has. One that has ended stays as it is."""
        self._end_by("TERM", timeout)

    def kill(self, timeout: float | None = None) -> None:
        """End it at once, as a crash would, and wait until it is gone."""
        self._end_by("KILL", timeout)

    def restart(self, timeout: float | None = None, **changes: Any) -> None:
        """End it if it runs, and start it again: the same url, the same cache, the options changed as given.

        `flows`, `loader` and `connect` are taken as `add_node` takes them. Should the new one not start, the handle
        stays, and can be restarted with other changes.
        """
        self.lab.check_alive()
        if fixed := {"url", "name"} & changes.keys():
            raise LabError(f"{self.name}: a restart keeps its {fixed.pop()}; add another member instead")
        setup = self.lab.changed_setup(self.setup, changes)
        self.lab.engine.check(self.name, setup)
        self.terminate(timeout)
        self.await_start(self.launch(setup), timeout)

    def start(self, timeout: float | None = None) -> None:
        """Start it again as it was, when it has ended, and wait until it is about to answer. One that runs stays.

        Raises `LabError` when it does not come to that, and for one that is paused: `resume` it.
        """
        self.lab.check_alive()
        self.lab.patience(timeout)
        if self.paused:
            raise LabError(f"expected {self.name} to have ended, but it is paused; use {self._word}.resume()")
        if self.lab.engine.life(self.name).ending:
            # Who told it to end may have been interrupted before it had.
            self._await_end(self.lab.patience(timeout))
        if not self.running:
            self.await_start(self.launch(self.setup), timeout)

    def launch(self, setup: Setup) -> Life:
        """Have its process started; `await_start` is to follow."""
        life = self.lab.engine.launch(self.name, setup, lambda: self.lab.table_of(self.name))
        self.setup = setup
        self.lab.save()
        return life

    def await_start(self, life: Life, timeout: float | None = None) -> None:
        """Wait until the process that `launch` had started is about to answer. Raises `LabError` as `start` does."""
        limit = self.lab.patience(timeout)
        try:
            self.lab.engine.wait_for_start(life, limit)
        except BaseException:
            self.lab.engine.signal(self.name, "KILL")
            raise
        if life.url is not None and self.running:
            return
        reason = life.refused or f"it did not answer within {limit:g} s; give it a longer timeout="
        if life.code is not None:
            reason = f"it ended with code {life.code} before it answered; correct what its log says"
        self.kill()
        raise LabError(f"expected {self.name} to start, but {reason}{self.last_words()}")

    def last_words(self) -> str:
        """The end of what its log says since it was started last, for errors."""
        try:
            said = self.lab.engine.words(self.name, TAIL)
        except LabError:
            return ""
        return f"\nthe log of {self.name} ends with\n{said}" if said else f"\nthe log of {self.name} is empty"

    def _end_by(self, word: str, timeout: float | None) -> None:
        limit = self.lab.patience(timeout)
        if self.lab.detached:
            self.lab.check_alive()
        self._remember()
        self.lab.engine.signal(self.name, "KILL" if word == "KILL" else "TERM")
        # A paused process does not notice that it is told to end.
        self.lab.engine.signal(self.name, "CONT")
        self._await_end(limit)

    def _await_end(self, limit: float) -> None:
        if not self.lab.engine.wait_for_end(self.name, limit):
            raise LabError(
                f"expected {self.name} to end within {limit:g} s; use kill(), or give it a longer timeout="
                f"{self.last_words()}"
            )


def flow_source(flows: Any, loader: Any) -> Any:
    """One source of flows: `flows` are names or dicts, `loader` a callable, `"module:function"`, or a YAML file.

    Raises `LabError` when both are given, for flows that are none, and for two at one path: a registry would list the
    last alone.
    """
    if flows is not None and loader is not None:
        raise LabError("expected flows= or loader=, not both; let the loader add the flows")
    if flows is None:
        return os.fspath(loader) if isinstance(loader, os.PathLike) else loader
    if not isinstance(flows, Iterable):
        raise LabError(f"flows: expected a name, a dict, or a list of these, not {flows!r}")
    several = [flows] if isinstance(flows, str | Mapping) else list(flows)
    try:
        load_flows(several)
    except LoaderError as error:
        raise LabError(f"flows: {error}") from error
    if (path := doubled_path(several)) is not None:
        raise LabError(f"flows: expected each flow once, but two are at {path}; give one another name, or a url")
    return several
