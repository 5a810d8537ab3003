"""`MeshLab`: members are added, found by name, watched together, and ended together.

Its members are real services, or simulated ones in virtual time (`engine="simulated"`): its `Engine` alone knows.
A lab of real ones owns a guardian, a folder for logs and caches, and ports. It ends with `terminate`, with its `with`
block, with the last of its handles, or with the process it lives in, whichever comes first and however that comes; then
no process of it runs and, unless the folder was given, no file of it is left. Two labs know nothing of each other.
One that is kept (`keep=True`) ends with the first two alone: `detach`, or the end of its process, leaves its members as
they are, and `attach` takes it again.

Methods wait by themselves and start no event loop, so they work in a script, in a notebook, and inside `async def`.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeGuard

from kodo.errors import LabError, UnavailableError, duration, suggestion
from kodo.lab.beliefs import Beliefs, Offer, Truth, beliefs_of, offer_of
from kodo.lab.engine import Engine, Setup, Table
from kodo.lab.faults import Effect, Fault, Faults, checked_number, checked_sides, checked_timeout, ways
from kodo.lab.flows import FlowTable, Row, all_flows, united
from kodo.lab.keeping import Kept, find_kept, kept_labs
from kodo.lab.logs import Logs
from kodo.lab.member import Member, flow_source
from kodo.lab.naming import FEW, NOBODY, Names, checked_most, checked_path, few, numbered, one_of, same_place, tally
from kodo.lab.plan import changes_of, functions_of_graph, plan_of_graph, plan_of_members, unknown_options
from kodo.lab.processes import Processes, kept_setup
from kodo.lab.progress import progress
from kodo.lab.recording import Recording
from kodo.lab.settling import Settled, Trail, expected_by, settle
from kodo.models import canonical
from kodo.plan import NAME, Plan, is_name, read_plan, write_plan

if TYPE_CHECKING:
    from networkx import DiGraph  # type: ignore[import-untyped]

    from kodo.lab.counting import CountTable, What
    from kodo.lab.dashboard import Dashboard
    from kodo.lab.explained import Convergence, Explanation
    from kodo.lab.live import Live
    from kodo.lab.replay import Replay
    from kodo.lab.timeline import Timeline
    from kodo.lab.topology import Topology

Target = Member | str
Targets = Target | Iterable[Target] | None
ROLES = {
    "registry": {"node": False, "registry": True, "provider": False},
    "provider": {"node": False, "registry": True, "provider": True},
    "node": {"node": True, "registry": False, "provider": False},
}
"""The options that make a member of a kind."""
WITHIN = {
    *("changed_setup", "check_alive", "engine", "history", "lost", "names", "patience", "places", "remember", "save"),
    *("table_of", "views"),
}
"""What of a lab only `kodo.lab` itself asks for."""
PATIENCE = 2.0
"""Seconds that a picture waits for a member before it draws it as one that does not answer."""


HERE: weakref.WeakValueDictionary[Path, MeshLab] = weakref.WeakValueDictionary()
"""Labs that are kept and used by this process, by their folders: a cell that attaches may be run again."""
LABS: weakref.WeakSet[MeshLab] = weakref.WeakSet()
"""The labs of this process, whether anybody can still reach them or not."""
GUARD = threading.Lock()
"""Held while `LABS` is changed or read."""


class MeshLab:
    """A mesh of services on this machine: real ones, or simulated."""

    def __init__(  # noqa: PLR0913, one for each thing that a lab may be given
        self,
        name: str | None = None,
        folder: Path | str | None = None,
        timeout: float = 30,
        record: Path | str | None = None,
        *,
        keep: bool = False,
        engine: Literal["processes", "simulated"] | Engine = "processes",
        seed: int = 0,
    ) -> None:
        """Start an empty lab. `folder` keeps logs and caches; `timeout` is how long anything is waited for.

        A folder that is not there is made. `record` is a file to record into from the start, as `record()` does. With
        `keep` the lab outlives this process, until `terminate`, and is found by its name: `MeshLab.attach(name)`. With
        `engine="simulated"` members are no processes, time is virtual and passes in `settle` and `run` alone, and
        `seed` decides all chance.
        """
        if name is not None and not isinstance(name, str):
            raise LabError(f"name: expected a text, not {name!r}; a lab of a file is made by from_file(path)")
        self.timeout = checked_timeout(timeout)
        self._members: dict[str, Member] = {}
        self._positions: dict[str, complex] = {}
        self._settled = 0.0
        self._offers: dict[str, Offer | None] = {}
        self.views: dict[tuple[type, str], Any] = {}
        self._detached = False
        self._placing = threading.Lock()
        self._saving = threading.Lock()
        self.engine = _kept(engine, name, folder, timeout) if keep else _engine(engine, seed, folder, record)
        self.name = name if self.engine.kept is None else self.engine.kept.name
        self.history = self.engine.history
        self.faults = Faults(self._apply, self.patience, self._note_fault, self.history.clock.moment)
        # It holds no lab, runs when nobody can reach the lab or a handle any more, and when the interpreter ends.
        self._end = weakref.finalize(self, self.engine.leave)
        self._recordings: list[Recording] = []
        with GUARD:
            LABS.add(self)
        if self.engine.kept is not None:
            HERE[self.engine.kept.folder] = self
        if keep:
            self.save()
        if record is not None:
            try:
                self.record(record)
            except BaseException:
                self.terminate()
                raise

    @classmethod
    def attach(cls, name: str | os.PathLike[str] | None = None, timeout: float | None = None) -> MeshLab:
        """A lab that was started with `keep=True`, by this process or by one that is gone, as it is now.

        `name` is its name or its folder; without one it is the only one that is kept (`MeshLab.kept()`). Its members
        are as they were left, paused ones paused, faults in force; what functions of a notebook offered they offer
        still. Attached here already, it is the same lab. Raises `LabError` when there is none, when it is gone, or
        when another process has it.
        """
        kept = find_kept(name)
        here = HERE.get(kept.folder)
        if here is not None and not here.ended:
            return here
        patience = kept.timeout if timeout is None else checked_timeout(timeout)
        lab = cls(kept.name, timeout=patience, engine=Processes.attach(kept))
        lab._resume(kept)
        return lab

    @staticmethod
    def kept() -> list[Kept]:
        """The labs of this user that are kept and run: `name`, `folder` and `members` of each."""
        return kept_labs()

    def _resume(self, kept: Kept) -> None:
        """Be as the file of a kept lab says, and have its members told so: its process may have ended in between."""
        self._members = {name: Member(self, name, member.kind, member.setup) for name, member in kept.members.items()}
        for fault in kept.faults:
            effects = {way: Effect(*effect) for way, effect in fault.effects}
            self.faults.resume(fault.label, effects, fault.began, fault.ended)
            self.history.note("fault", fault.label, at=fault.began)
            if fault.ended is not None:
                self.history.note("healed", fault.label, at=fault.ended)
        self._apply({member.name for member in self if member.running}, self.timeout)

    def save(self) -> None:
        """Write down what the lab is, if it is kept: the verbs that change it do so. Once it is let go, others do."""
        if self.engine.kept is None or self.ended:
            return
        with self._saving:
            members = {member.name: kept_setup(member.name, member.kind, member.setup) for member in self}
            faults = [
                {
                    "label": fault.label,
                    "began": fault.began,
                    "ended": fault.ended,
                    "effects": [(way, astuple(effect)) for way, effect in fault.effects.items() if fault.active],
                }
                for fault in self.faults.all
            ]
            now = {"members": members, "faults": faults, "timeout": self.timeout}
            type(self.engine.kept).model_validate({**self.engine.kept.model_dump(), **now}).write()

    @classmethod
    def from_graph(cls, graph: Any, timeout: float | None = None, **options: Any) -> Self:
        """A lab with a member for each node of a networkx graph, named like it, and a connection for each edge.

        Attributes of a node: `kind` (registry, the default, provider or node), and `flows` or `loader`, as `add_node`
        takes them; others are left alone, with a warning where one looks like one of these. The node of an
        edge calls the registry; of two registries the later calls the earlier or, in a directed graph, as the edge
        goes. All start side by side. `options` are those of `MeshLab`.
        """
        return cls._planned(plan_of_graph(graph), timeout, options, functions_of_graph(graph))

    @classmethod
    def from_file(cls, path: Path | str, timeout: float | None = None, **options: Any) -> Self:
        """A lab as a YAML file describes it (see `kodo.plan`); all members start side by side.

        Raises `PlanError`, which names the line and the field at fault, and starts nothing then. What is `simulated` in
        it is left out: a lab starts what there is now, all at once.
        """
        return cls._planned(read_plan(checked_path(path), unknown_options), timeout, options)

    @classmethod
    def _planned(
        cls, plan: Plan, timeout: float | None, options: dict[str, Any], functions: Mapping[str, Any] | None = None
    ) -> Self:
        """The lab of a plan, in which `functions` are the loaders of some."""
        lab = cls(**{"name": plan.name, **options})
        try:
            members = plan.members.items()
            prepared = [lab._prepared(member.kind, name, {}) for name, member in members]
            lab._members = {member.name: member for member in prepared}
            for member, planned in zip(prepared, plan.members.values(), strict=True):
                changes = changes_of(planned)
                if functions and member.name in functions:
                    changes["loader"] = functions[member.name]
                member.setup = lab.changed_setup(member.setup, {**ROLES[member.kind], **changes})
            lab._started(prepared, timeout)
        except BaseException:
            lab.terminate()
            raise
        return lab

    def to_file(self, path: Path | str) -> None:
        """Write what the lab consists of to a YAML file, for `from_file`.

        Raises `LabError` when a node has a loader that is a function: it cannot be written down. Raises `PlanError`
        when the file cannot be written: its folder has to be there.
        """
        write_plan(plan_of_members(self.name, self), checked_path(path))

    @staticmethod
    def replay(path: Path | str) -> Replay:
        """What `record` wrote, to be looked at again with nothing running."""
        from kodo.lab.replay import Replay  # noqa: PLC0415, matplotlib takes its time

        return Replay(path)

    @property
    def folder(self) -> Path:
        """Where logs and caches are. Raises `LabError` for a simulated lab, which has no files."""
        self.engine.need_processes("folder")
        assert isinstance(self.engine, Processes)
        return self.engine.folder

    # -- members -------------------------------------------------------------------------------------------

    def add_registry(
        self,
        name: str | None = None,
        connect: Targets = None,
        provider: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> Member:
        """Start a registry, or a provider, that connects with `connect`, and wait until it answers.

        `connect` is a handle, a name, a url, or a list of these; a member by its url at `localhost` is that member.
        `options` are those of `kodo.options`. Raises
        `LabError`, with the end of its log, when it does not start; the lab is then as before.
        """
        kind = "provider" if provider else "registry"
        return self._add(kind, name, {**ROLES[kind], "connect": connect, **options}, timeout)

    def add_node(
        self,
        name: str | None = None,
        connect: Targets = None,
        flows: Any = None,
        loader: Any = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Member:
        """Start a node that registers with `connect`, and wait until it answers.

        `flows` are names or dicts. `loader` is a callable, also one of this notebook, `"module:function"`, or a YAML
        file. Otherwise as `add_registry`.
        """
        given = {"connect": connect, "flows": flows, "loader": loader}
        return self._add("node", name, {**ROLES["node"], **given, **options}, timeout)

    def add(self, kind: str, name: str, options: dict[str, Any]) -> Member:
        """Start a member of a kind with all its options, as `add_registry` and `add_node` do.

        Raises `LabError` as they do, and for a kind that there is not.
        """
        if not isinstance(kind, str) or kind not in ROLES:
            raise LabError(f"kind: {one_of(kind, ROLES)}")
        return self._add(kind, name, {**ROLES[kind], **options}, None)

    def _add(self, kind: str, name: str | None, options: dict[str, Any], timeout: float | None) -> Member:
        return self._started([self._prepared(kind, name, options)], timeout)[0]

    def _prepared(self, kind: str, name: str | None, options: dict[str, Any]) -> Member:
        """A member with a url, which nobody has started yet."""
        self.check_alive()
        name = self._new_name(kind, name)
        defaults = {"organization": name, **self.engine.defaults(name)}
        setup = self.changed_setup(Setup({}), {**defaults, **options})
        return Member(self, name, kind, setup)

    def _started(self, members: list[Member], timeout: float | None) -> list[Member]:
        """Start members side by side; when one does not start, none of them is left."""
        self.patience(timeout)
        for member in members:
            self.engine.check(member.name, member.setup)
        if all(member in members for member in self):
            self._end_the_lost()
        self._members |= {member.name: member for member in members}
        try:
            self.save()
            self._start(members, timeout)
        except BaseException:
            for member in members:
                self.engine.signal(member.name, "KILL")
                del self._members[member.name]
            for member in members:
                self.engine.wait_for_end(member.name, self.timeout)
                self.engine.discard(member.name)
            self.save()
            raise
        return members

    def _start(self, members: Sequence[Member], timeout: float | None) -> None:
        lives = [(member, member.launch(member.setup)) for member in members]
        if len(lives) == 1:
            lives[0][0].await_start(lives[0][1], timeout)
            return
        with progress(f"starting {numbered(len(lives), 'member')}") as wait:
            for number, (member, life) in enumerate(lives):
                wait.say(f"{number} of them answered")
                member.await_start(life, timeout)
            wait.end(f"started {numbered(len(lives), 'member')}")

    def _end_the_lost(self) -> None:
        """End the labs that a cell began when it was run before: nobody can reach them, which Python would notice late.

        A lab and its handles hold each other. This takes a tenth of a second: it is done where other labs are alive, as
        the first members start and as the lab first settles, since the names of a cell hold the old ones until then.
        """
        with GUARD:
            others = any(lab is not self and not lab.ended for lab in LABS)
        if others:
            gc.collect()

    def _new_name(self, kind: str, name: str | None) -> str:
        if name is None:
            return next(free for number in count(1) if (free := f"{kind}{number}") not in self._members)
        if isinstance(name, str) and name in self._members:
            raise LabError(f"expected a new name, but this lab has a member {name!r}; use lab[{name!r}].restart()")
        if not isinstance(name, str) or not is_name(name):
            raise LabError(f"{NAME}, such as 'registry1'")
        return name

    def changed_setup(self, setup: Setup, changes: dict[str, Any]) -> Setup:
        """How a member is to be started, changed as `restart` or `add_node` were asked."""
        check_names(changes, self.engine.options)
        options = {**setup.options, **changes}
        flows, loader = options.pop("flows", None), options.pop("loader", None)
        if "connect" in changes:
            options["connect"] = self._urls(changes["connect"])
            if options.get("url") in options["connect"]:
                raise LabError("connect: expected another registry or provider, not the member itself")
        check_plain(options)
        kept = setup.loader if not {"flows", "loader"} & changes.keys() else flow_source(flows, loader)
        if kept is not None and not options.get("node", True):
            word = "loader" if flows is None else "flows"
            raise LabError(f"{word}: expected none, for a registry offers no flows; give them to add_node(connect=...)")
        return Setup(options, kept)

    def _urls(self, targets: Targets) -> list[str]:
        return [self._url(target) for target in _several(targets)]

    def _url(self, target: Target) -> str:
        if _is_url(target):
            try:
                canonical(target)
            except ValueError as error:
                raise LabError(f"connect: {error}, not {target!r}") from error
            # Another name of this machine would make another peer of a member, which no fault reaches.
            return next((member.url for member in self if same_place(member.url, target)), target)
        member = target if isinstance(target, Member) else self[target]
        if member.kind == "node":
            raise LabError(f"connect: expected a registry, but {member.name} is a node; connect the node instead")
        return member.url

    def __getitem__(self, name: str) -> Member:
        """The member of this name. Raises `LabError` when there is none."""
        if isinstance(name, str) and name in self._members:
            return self._members[name]
        there = few(list(self._members)) or "none yet; add one"
        hint = suggestion(str(name), self._members, otherwise=f"it has {there}")
        raise LabError(f"expected the name of a member of this lab, not {name!r}; {hint}")

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: object) -> bool:
        return member in self._members if isinstance(member, str) else member in self._members.values()

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._members)

    @property
    def names(self) -> Names:
        """The members' names by their urls."""
        return Names({member.name: member.url for member in self})

    # -- what is seen --------------------------------------------------------------------------------------

    def flows(self, q: str | None = None, by: str | None = None, times: bool = False) -> FlowTable:
        """The flows that the registries list, those that run and are not paused, a row each, and who lists them."""
        self.check_alive()
        registries = [member for member in self if member.kind != "node" and member.answers]
        listings = {member.name: member.rows(q, by) for member in registries}
        table = FlowTable(united(listings), self.names, q=q, by=by, times=times)
        if not registries:
            table.notes.append(NOBODY)
        return table

    def counts(self, by: What | None = None) -> CountTable:
        """How many flows each registry lists; `by` "node", "organization" or "tags", how many of each value.

        Raises `LabError` when flows are not counted `by` that.
        """
        from kodo.lab.counting import CountTable  # noqa: PLC0415, few ask

        return CountTable(self._reports(None, "/counts"), self.names, by, self._providers)

    def explain(self, node: Target, flow: str | None = None, at: Target | None = None) -> Explanation:
        """Why each registry, or the one `at`, lists a node, or a flow of it, or does not.

        `node` is a handle, a name, or a url; `flow` a name or a path. The name or path of a flow alone will do when one
        node has it. Raises `LabError` for a name that nobody has, or several flows, `InvalidMessageError` for one that
        several flows of the node have.
        """
        from kodo.lab.explained import Explanation, found_flow  # noqa: PLC0415, few ask

        self.check_alive()
        if flow is not None and not isinstance(flow, str):
            raise LabError(f"flow: expected a name or a path, not {flow!r}; lab.flows() shows what there is")
        if isinstance(node, str) and flow is None and not _is_url(node) and node not in self:
            node, flow = found_flow(node, self._offered(), self.names, self._members)
        url = node.url if isinstance(node, Member) else node if _is_url(node) else self[node].url
        return Explanation(url, flow, self._reports(at, "/explain", node=url, flow=flow), self.names, self._providers)

    @property
    def _providers(self) -> set[str]:
        return {member.name for member in self if member.kind == "provider"}

    def _offered(self) -> Iterator[Row]:
        """The flows of all nodes, as they tell them themselves and as registries do."""
        for member in self:
            yield from self._listing(member) or ()

    def convergence(self) -> Convergence:
        """How far each registry knows the others to be behind, and how old what it knows of each is."""
        from kodo.lab.explained import Convergence  # noqa: PLC0415, few ask

        return Convergence(self._reports(None, "/convergence"), self.names)

    def _reports(self, at: Target | None, path: str, **params: Any) -> dict[str, Any]:
        """The answers of registries; None of one that cannot be asked."""
        self.check_alive()
        asked = [member for member in self if member.kind != "node"]
        if at is not None:
            asked = [at if isinstance(at, Member) else self[at]]
            if asked[0].kind == "node":
                raise LabError(f"at: expected a registry, but {asked[0].name} is a node; registries know why they list")
        return {member.name: self._report(member, path, params) for member in asked}

    def _report(self, member: Member, path: str, params: dict[str, Any]) -> Any:
        if not member.answers:
            return None
        with suppress(UnavailableError), self.engine.client(member.url, PATIENCE) as client:
            return client.get(path, **params)
        return None

    def topology(self) -> Topology:
        """The mesh as the running members see it, as a graph and as a picture, with the faults between them."""
        from kodo.lab.topology import Seen, Topology, graph_of  # noqa: PLC0415, matplotlib takes its time

        self.check_alive()
        seen = []
        for member in self:
            view = None
            if member.answers:
                with suppress(UnavailableError), self.engine.client(member.url, PATIENCE) as client:
                    view = client.map()
            seen.append(Seen(member.name, member.url, member.kind, view, member.paused))
        graph = graph_of(seen)
        return Topology(graph, self.places(graph), self.faults.held)

    def live(self) -> Live:
        """The flows of the mesh in a table that moves with it: search, sort, pages, and who is up."""
        from kodo.lab.live import Live  # noqa: PLC0415, widgets take their time

        self.check_alive()
        self.engine.need_processes("live()")
        return Live.of(self)

    def dashboard(self) -> Dashboard:
        """The live table, the topology and the messages of the mesh, with buttons for faults."""
        from kodo.lab.dashboard import Dashboard  # noqa: PLC0415, widgets take their time

        self.check_alive()
        self.engine.need_processes("dashboard()")
        return Dashboard.of(self)

    def places(self, graph: DiGraph) -> dict[str, complex]:
        """A place in the picture for each of a graph; who has one keeps it."""
        from kodo.lab.topology import place  # noqa: PLC0415, matplotlib takes its time

        with self._placing:
            self._positions |= place(graph, self._positions)
            return dict(self._positions)

    def settle(self, timeout: float | None = None) -> Settled:
        """Wait until every registry is idle, every connection stands, and the registries list the same flows.

        Compared are registries that are connected, directly or through others; a provider lists only its own. Raises
        `LabError` when the time is over, naming what is missing and who is to blame.
        """
        self.check_alive()
        if not self._settled:
            self._end_the_lost()
        trail, limit = Trail(self.engine, self._settled), self.patience(timeout)
        with progress("settling the mesh") as wait:
            settled = settle(list(self), limit, trail, wait)
            wait.end(f"settled in {duration(settled.seconds)}, with {numbered(settled.messages, 'message')}")
        self._settled = self.history.clock.moment()
        return settled

    def patience(self, timeout: float | None) -> float:
        """How long something is waited for that was given this `timeout`. Raises `LabError` for what is no time."""
        return self.timeout if timeout is None else checked_timeout(timeout)

    def run(self, seconds: float) -> None:
        """Let so many seconds pass: virtual ones of a simulated lab, in which nothing happens otherwise; or wait.

        Simulated registries say to each peer every `beacon` seconds that they are there, which takes a third of a
        millisecond: an hour of 300 in a ring about a minute. With `beacon=60` it takes a fifth of that.
        """
        self.check_alive()
        self.engine.run(checked_number("seconds", seconds, 1e9, "seconds, 0 or more"))

    def timeline(
        self, since: float | Fault | None = None, last: int | None = 200, answers: bool = False, beats: bool = False
    ) -> Timeline:
        """The messages between members, and what happened to them, as a space-time diagram.

        The `last` ones, or those after a moment: `since` are seconds back from now, or a fault, for all since it began.
        `answers` draws these too, `beats` shows the messages that tell no news.
        """
        from kodo.lab.timeline import Choice, Story, timeline_of  # noqa: PLC0415, matplotlib takes its time

        checked_most("last", last, 1)
        if since is not None and not isinstance(since, Fault):
            checked_number("since", since, 1e9, "seconds back from now, or a fault")
        self.remember()
        until = self.history.clock.moment()
        begin = since.began if isinstance(since, Fault) else None if since is None else until - since
        kinds = {member.name: member.kind for member in self}
        story = Story(
            self.history.messages(self.names), list(self.history.events), self.history.missed, self.history.began
        )
        return timeline_of(story, kinds, until, Choice(begin, last, answers, beats))

    def beliefs(self) -> Beliefs:
        """What each registry says of each node, against what the nodes say: known, missing, stale or ghost."""
        self.check_alive()
        expected = expected_by(list(self))
        listings = {member.name: self._listing(member) for member in self if member.kind != "node"}
        truths = []
        for node in self:
            if node.kind == "node":
                rows = self._listing(node)
                offer = None if rows is None else offer_of(rows)
                self._offers[node.name] = offer if offer is not None else self._offers.get(node.name)
                offer, registries = self._offers[node.name], expected[node.name]
                truths.append(Truth(node.name, node.url, node.running, offer, registries, node.paused))
        return beliefs_of(truths, listings)

    def _listing(self, member: Member) -> list[dict[str, Any]] | None:
        """What a member lists; None when it cannot be asked."""
        if not member.answers:
            return None
        with suppress(UnavailableError), self.engine.client(member.url, PATIENCE) as client:
            return all_flows(client)
        return None

    def logs(self) -> Logs:
        """The lines that all members wrote into their logs: `.frame` has them as rows."""
        self.engine.need_processes("logs()")
        return Logs({member.name: member.logs() for member in self})

    def remember(self) -> None:
        """Read the traces of all members that answer. Whatever shows messages does this first."""
        self.engine.pull([(member.name, member.url) for member in self if member.answers])

    def record(self, path: Path | str) -> Recording:
        """Write what happens from now on into a file, for `MeshLab.replay`: events, messages, and what is listed.

        It ends with the lab, with this process, or with `stop()` of what is returned; who attaches a lab begins another
        record. A file that is there is replaced.
        """
        self.check_alive()
        self.engine.need_processes("record()")
        recording = Recording(self, checked_path(path))
        self._recordings.append(recording)
        return recording

    # -- faults --------------------------------------------------------------------------------------------

    def cut(self, a: Targets, b: Targets, one_way: bool = False, *, timeout: float | None = None) -> Fault:
        """Let messages between `a` and `b` meet silence, or only those that `a` sends to `b`, until it is healed.

        As a statement, or as a `with` block, at whose end it is healed. `a` and `b` are members, names, or lists of
        these. Raises `LabError` for what cannot be, and when it does not hold within `timeout`: then nothing changed.
        """
        return self._fault("cut", [a, b], Effect(cut=True), timeout, one_way=one_way)

    def partition(self, *groups: Targets, timeout: float | None = None) -> Fault:
        """Cut the mesh into groups that hear nothing of each other; of one group alone, the others are the rest.

        Members that no group names hear all and are heard by all. Otherwise as `cut`.
        """
        self.check_alive()
        sides = list(groups)
        if len(sides) == 1:
            inside = self._members_of(sides[0])
            sides.append([member for member in self if member.name not in inside])
        return self._fault("partition", sides, Effect(cut=True), timeout)

    def latency(
        self, a: Targets, b: Targets, ms: float, one_way: bool = False, *, timeout: float | None = None
    ) -> Fault:
        """Delay messages between `a` and `b`, and as long their answers, by `ms` milliseconds. Otherwise as `cut`."""
        delay = checked_number("ms", ms, 3_600_000, "milliseconds, 0 or more")
        return self._fault("latency", [a, b], Effect(ms=delay), timeout, one_way=one_way)

    def loss(  # noqa: PLR0913, one for each thing that a loss may be given
        self,
        a: Targets,
        b: Targets,
        request: float | None = None,
        answer: float | None = None,
        one_way: bool = False,
        *,
        timeout: float | None = None,
    ) -> Fault:
        """Lose messages between `a` and `b`, or their answers, with the probabilities given. Otherwise as `cut`."""
        if request is None and answer is None:
            raise LabError("expected a probability for request= or answer=, such as lab.loss(a, b, request=0.3)")
        chances = [
            checked_number(name, value or 0.0, 1, "a probability from 0 to 1")
            for name, value in (("request", request), ("answer", answer))
        ]
        return self._fault("loss", [a, b], Effect(request=chances[0], answer=chances[1]), timeout, one_way=one_way)

    def heal(self, timeout: float | None = None) -> None:
        """Heal every fault. Members that are paused stay so: `resume` them. Raises `LabError` as a fault's `heal`."""
        self.check_alive()
        self.faults.heal(timeout)

    def _fault(
        self,
        kind: str,
        sides: list[Targets],
        effect: Effect,
        timeout: float | None,
        *,
        one_way: bool = False,
    ) -> Fault:
        self.check_alive()
        named = [self._members_of(side) for side in sides]
        checked_sides(named)
        joint = " | " if kind == "partition" else " -> " if one_way else " <-> "
        sides_named = joint.join(few(side, FEW) for side in named)
        label = f"{kind} {sides_named}" if effect.cut else f"{effect.label or kind} {sides_named}"
        return self.faults.begin(label, dict.fromkeys(ways(named, one_way=one_way), effect), timeout)

    def _members_of(self, targets: Targets) -> list[str]:
        """The names of members of this lab."""
        several = [target if isinstance(target, Member) else self[target] for target in _several(targets)]
        for target in several:
            if target not in self:
                raise LabError(f"expected members of this lab, but {target.name} is one of another")
        return [target.name for target in several]

    def table_of(self, name: str) -> Table:
        """The policies that hold for the messages of a member."""
        return self._tables([name])[name] if self.faults.active else {}

    def _tables(self, names: Iterable[str]) -> dict[str, Table]:
        return self.faults.tables(names, {member.name: member.url for member in self})

    def _apply(self, names: set[str], limit: float) -> str:
        """Tell members what holds for them; who has not taken it in after so many seconds, in words."""
        try:
            self.save()
        finally:
            # It holds, or is over, even where that cannot be written down.
            late = self.engine.link(lambda: self._tables(sorted(names)), limit)
        return f"{few(late)} had not heard of it after {limit:g} s; give it a longer timeout=" if late else ""

    def _note_fault(self, what: str, fault: Fault) -> None:
        more: dict[str, Any] = {}
        if self.history.followed:
            more["effects"] = [[*way, *astuple(effect)] for way, effect in fault.effects.items()]
        # What was held back leaves as soon as a fault is over, before all members have said that it is.
        self.history.note(what, fault.label, at=fault.ended, **more)

    # -- the end -------------------------------------------------------------------------------------------

    def __dir__(self) -> list[str]:
        """What a notebook completes: what a lab is for, not what its own rooms ask of it."""
        return sorted(set(super().__dir__()) - WITHIN)

    @property
    def ended(self) -> bool:
        """Whether it was terminated, or detached, or has ended by itself: its guardian is gone."""
        return not self._end.alive or bool(self.engine.over)

    @property
    def lost(self) -> bool:
        """Whether it has ended by itself, and its members with it."""
        return self._end.alive and bool(self.engine.over)

    @property
    def detached(self) -> bool:
        """Whether it was let go with `detach`, and goes on elsewhere."""
        return self._detached

    def check_alive(self) -> None:
        """Raise `LabError` when the lab has ended, or was detached: nothing can be asked of it any more."""
        if self._detached:
            raise LabError(f"this lab was detached; MeshLab.attach({self.name!r}) takes it again")
        if not self._end.alive:
            raise LabError("this lab was terminated; start a new one with MeshLab()")
        if self.lost:
            raise LabError(self.engine.over)

    def terminate(self) -> None:
        """End all members, and the lab with them, kept or not. Doing so again does nothing.

        Who has not ended after three seconds, such as who is paused, is killed, so that this takes ten at the most.
        What happened can still be looked at: `timeline()`, `faults`, and `to_file`. Whatever asks members, or does
        something to them, is a `LabError` from now on. Raises one for a lab that was detached: it goes on elsewhere.
        """
        if self._detached:
            self.check_alive()
        for recording in self._recordings:
            recording.stop()
        # It counts as ended from now on: a live table does not take its members, as they go, for lost.
        self._end.detach()
        self.engine.end()

    def detach(self) -> None:
        """Let go of a lab that is kept: it goes on, and `MeshLab.attach` takes it again, here or elsewhere.

        Raises `LabError` when the lab is not kept: it would end.
        """
        self.check_alive()
        if self.engine.kept is None:
            raise LabError("expected a lab that is kept, for this one would end; start it with MeshLab(keep=True)")
        for recording in self._recordings:
            recording.stop()
        self._detached = True
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._detached:
            self.terminate()

    def __repr__(self) -> str:
        running, paused = [member.running for member in self], sum(member.paused for member in self)
        state = "detached" if self._detached else "ended" if self.lost else "terminated" if self.ended else "running"
        if not self.ended and not all(running):
            state = f"{sum(running)} of {len(running)} running"
        if paused:
            state += f", {paused} paused"
        if not self.ended and (active := len(self.faults.active)):
            state += f", {numbered(active, 'fault')}"
        if not self.ended and self.engine.kept is not None:
            state += ", kept"
        name = f"{self.name}, " if self.name else ""
        name += f"{self.engine.kind}, " if self.engine.kind else ""
        return f"<MeshLab {name}{tally(member.kind for member in self)}: {state}>"


def _is_url(target: object) -> TypeGuard[str]:
    return isinstance(target, str) and "://" in target


def _kept(kind: str | Engine, name: str | None, folder: Path | str | None, timeout: float) -> Engine:
    if kind != "processes":
        raise LabError("keep: expected a lab of real processes, which outlive their lab; leave it out, or the engine=")
    return Processes.keep(name, folder, timeout)


def _engine(kind: str | Engine, seed: int, folder: Path | str | None, record: Path | str | None) -> Engine:
    if isinstance(kind, Engine):
        return kind
    if kind == "processes":
        return Processes(folder)
    if kind != "simulated":
        raise LabError(f"engine: {one_of(kind, ['processes', 'simulated'])}")
    if folder is not None or record is not None:
        word = "record" if folder is None else "folder"
        raise LabError(f"{word}: expected none, for a simulated lab writes no files; leave it out, or the engine=")
    from kodo.lab.simulated import Simulated  # noqa: PLC0415, the simulator is loaded when it is asked for

    return Simulated(seed)


def check_names(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise `LabError` for an option that does not exist, naming the one that was probably meant."""
    names = sorted({*known, "connect", "flows", "loader", "timeout"})
    for name in sorted(set(options) - set(names)):
        hint = suggestion(name, names, otherwise=f"expected one of {', '.join(names)}")
        raise LabError(f"there is no option {name!r}; {hint}")


def check_plain(options: Mapping[str, Any]) -> None:
    """Raise `LabError` for the value of an option that cannot be told to another process."""
    for name, value in options.items():
        # No deeper: what a file nests by its aliases would be endless to write out.
        for item in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(item, str | int | float | os.PathLike | None):
                there = type(item).__name__ if item is value else f"{type(item).__name__} in a list"
                raise LabError(f"{name}: expected a number, a text or a list of these, not a {there}")


def _several(targets: Targets) -> list[Target]:
    if targets is None or isinstance(targets, Member | str):
        return [] if targets is None else [targets]
    if not isinstance(targets, Iterable):
        raise LabError(f"expected members, their names, or a list of these, not {targets!r}")
    return list(targets)
