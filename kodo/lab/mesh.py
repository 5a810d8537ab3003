"""`MeshLab`: members are added, found by name, watched together, and ended together.

The lab owns a guardian, a folder for logs and caches, and ports. It ends with `terminate`, with its `with` block, with
the last of its handles, or with the process it lives in, whichever comes first and however that comes; then no process
of it runs and, unless the folder was given, no file of it is left. Two labs know nothing of each other.

Methods wait by themselves and start no event loop, so they work in a script, in a notebook, and inside `async def`.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kodo.client import Client
from kodo.errors import LabError, UnavailableError
from kodo.lab.flows import FlowTable, all_flows, united
from kodo.lab.member import Member, Setup, flow_source
from kodo.lab.naming import Names, tally
from kodo.lab.processes import Ports, Processes
from kodo.lab.settling import Settled, settle

if TYPE_CHECKING:
    from networkx import DiGraph  # type: ignore[import-untyped]

    from kodo.lab.dashboard import Dashboard
    from kodo.lab.live import Live
    from kodo.lab.topology import Topology

Target = Member | str
Targets = Target | Iterable[Target] | None
PATIENCE = 2.0
"""Seconds that a picture waits for a member before it draws it as one that does not answer."""


class MeshLab:
    """A mesh of real services on this machine."""

    def __init__(self, name: str | None = None, folder: Path | str | None = None, timeout: float = 30) -> None:
        """Start an empty lab. `folder` keeps logs and caches; `timeout` is how long anything is waited for."""
        self.name = name
        self.timeout = timeout
        self._members: dict[str, Member] = {}
        self._positions: dict[str, complex] = {}
        self._placing = threading.Lock()
        self.folder = Path(tempfile.mkdtemp(prefix="kodo-lab-")) if folder is None else Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes = Processes(self.folder, scratch=folder is None)
        self._ports = Ports()
        # It holds no lab, runs when nobody can reach the lab or a handle any more, and when the interpreter ends.
        self._end = weakref.finalize(self, _end, self.processes, self._ports)

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

        `connect` is a handle, a name, a url, or a list of these; `options` are those of `kodo.options`. Raises
        `LabError`, with the end of its log, when it does not start; the lab is then as before.
        """
        kind = "provider" if provider else "registry"
        roles = {"node": False, "registry": True, "provider": provider}
        return self._add(kind, name, {**roles, "connect": connect, **options}, timeout)

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
        roles = {"node": True, "registry": False, "provider": False}
        given = {"connect": connect, "flows": flows, "loader": loader}
        return self._add("node", name, {**roles, **given, **options}, timeout)

    def _add(self, kind: str, name: str | None, options: dict[str, Any], timeout: float | None) -> Member:
        self._check_alive()
        name = self._new_name(kind, name)
        defaults = {"organization": name, "cache": self.folder / f"{name}.json"}
        if "url" not in options:
            defaults["url"] = f"http://127.0.0.1:{self._ports.take()}"
        setup = self.changed_setup(Setup({}), {**defaults, **options})
        member = Member(self, name, kind, setup)
        self._members[name] = member
        try:
            member.start(setup, timeout)
        except BaseException:
            del self._members[name]
            raise
        return member

    def _new_name(self, kind: str, name: str | None) -> str:
        if name is None:
            return next(free for number in count(1) if (free := f"{kind}{number}") not in self._members)
        if name in self._members:
            raise LabError(f"expected a new name, but this lab has a member {name!r}; use lab[{name!r}].restart()")
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or "/" in name:
            raise LabError("expected a name of printable characters without a slash, such as 'registry1'")
        return name

    def changed_setup(self, setup: Setup, changes: dict[str, Any]) -> Setup:
        """How a member is to be started, changed as `restart` or `add_node` were asked."""
        options = {**setup.options, **changes}
        flows, loader = options.pop("flows", None), options.pop("loader", None)
        if "connect" in changes:
            options["connect"] = self._urls(changes["connect"])
        kept = setup.loader if not {"flows", "loader"} & changes.keys() else flow_source(flows, loader)
        return Setup(options, kept)

    def _urls(self, targets: Targets) -> list[str]:
        if targets is None:
            return []
        several = [targets] if isinstance(targets, Member | str) else targets
        return [self._url(target) for target in several]

    def _url(self, target: Target) -> str:
        if isinstance(target, str) and "://" in target:
            return target
        member = target if isinstance(target, Member) else self[target]
        if member.kind == "node":
            raise LabError(f"connect: expected a registry, but {member.name} is a node; connect the node instead")
        return member.url

    def __getitem__(self, name: str) -> Member:
        """The member of this name. Raises `LabError` when there is none."""
        if name in self._members:
            return self._members[name]
        near = get_close_matches(str(name), self._members, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self._members) or 'none yet; add one'}"
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
        """The flows that the running registries list, a row each, and who lists them."""
        registries = [member for member in self if member.kind != "node" and member.running]
        listings = {}
        for member in registries:
            with Client(member.url, self.timeout) as client:
                listings[member.name] = all_flows(client, q, by)
        return FlowTable(united(listings), self.names, by=by, times=times)

    def topology(self) -> Topology:
        """The mesh as the running members see it, as a graph and as a picture."""
        from kodo.lab.topology import Seen, Topology, graph_of  # noqa: PLC0415, matplotlib takes its time

        seen = []
        for member in self:
            view = None
            if member.running:
                with suppress(UnavailableError), Client(member.url, PATIENCE) as client:
                    view = client.map()
            seen.append(Seen(member.name, member.url, member.kind, view))
        graph = graph_of(seen)
        return Topology(graph, self.places(graph))

    def live(self) -> Live:
        """The flows of the mesh in a table that moves with it: search, sort, pages, and who is up."""
        from kodo.lab.live import Live  # noqa: PLC0415, widgets take their time

        self._check_alive()
        return Live(self)

    def dashboard(self) -> Dashboard:
        """The live table, the topology and the messages of the mesh, with buttons for faults."""
        from kodo.lab.dashboard import Dashboard  # noqa: PLC0415, widgets take their time

        self._check_alive()
        return Dashboard(self)

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
        self._check_alive()
        return settle(list(self), self.timeout if timeout is None else timeout)

    # -- the end -------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether it was terminated."""
        return not self._end.alive

    def _check_alive(self) -> None:
        if not self._end.alive:
            raise LabError("this lab was terminated; start a new one with MeshLab()")

    def terminate(self) -> None:
        """End all members, and the lab with them. Doing so again does nothing."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def __repr__(self) -> str:
        running = [member.running for member in self]
        state = "running" if self._end.alive else "terminated"
        if self._end.alive and not all(running):
            state = f"{sum(running)} of {len(running)} running"
        name = f"{self.name}, " if self.name else ""
        return f"<MeshLab {name}{tally(member.kind for member in self)}: {state}>"


def _end(processes: Processes, ports: Ports) -> None:
    processes.end()
    ports.release()
