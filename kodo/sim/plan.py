"""A mesh and its faults from two YAML files, played once, and what came of it: a prediction.

```yaml
# mesh.yaml
registries:
  r1: {}
  r2: {connect: [r1]}
  p: {connect: [r1], provider: true}
nodes:
  n1: {register: [r1], flows: [a, b], at: 1s}
```

```yaml
# faults.yaml
- {at: 2s, for: 5s, loss: 0.3}
- {at: 3s, for: 4s, cut: [[r1], [r2]]}
- {at: 4s, for: 1s, crash: r1, lose: true}
```

First the registries start and settle, without faults: the mesh *forms*. Then the time of both files begins, at 0 s:
nodes start, register and beat, faults come and go. When the last of that is over, it settles once more, until all is
silent and agrees. What a file says that this room does not read is an error with file and field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from kodo.errors import SimulationError
from kodo.sim import wire
from kodo.sim.faults import Faults
from kodo.sim.scenario import seconds
from kodo.sim.world import Member, Site, World, key_of, name_of

MOST_FAULTS = 20
"""Faults of a file that are told at once."""


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return seconds(value)
    except SimulationError as error:
        raise ValueError(str(error)) from None


def _name(value: Any) -> Any:
    try:
        key_of(value)
    except (ValueError, TypeError):
        raise ValueError("expected a name that can stand in a url, such as r1") from None
    return value


Time = Annotated[float, BeforeValidator(_seconds)]
Moment = Annotated[Time, Field(ge=0)]
Chance = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, BeforeValidator(_name)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RegistryPlan(_Strict):
    """A registry: with whom it connects; a provider takes nothing, an old one knows the fixed protocol alone."""

    connect: tuple[Name, ...] = ()
    provider: bool = False
    old: bool = False


class NodePlan(_Strict):
    """A node: where it registers, with which flows, and when."""

    register_with: tuple[Name, ...] = Field(alias="register", min_length=1)
    flows: tuple[Annotated[str, Field(min_length=1)], ...] = ("a",)
    at: Moment = 0.0


class MeshPlan(_Strict):
    """A mesh: its registries and its nodes, by name."""

    registries: dict[Name, RegistryPlan] = Field(min_length=1)
    nodes: dict[Name, NodePlan] = Field(default_factory=dict)


class FaultPlan(_Strict):
    """One fault, or several that come and go together: from `at`, `for` so long."""

    at: Moment
    lasts: Moment = Field(alias="for")
    loss: Chance | None = None
    answer_loss: Chance | None = None
    doubles: Chance | None = None
    reorder: Chance | None = None
    latency: tuple[Moment, Moment] | None = None
    cut: tuple[tuple[Name, ...], ...] | None = Field(None, min_length=2)
    one_way: tuple[Name, Name] | None = None
    slow: dict[Name, Moment] = Field(default_factory=dict)
    crash: Name | None = None
    lose: bool = False
    pause: Name | None = None
    clock: dict[Name, Time] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_a_fault(self) -> FaultPlan:
        if not self.model_fields_set - {"at", "lasts", "lose"}:
            kinds = ", ".join(sorted(set(type(self).model_fields) - {"at", "lasts", "lose"}))
            raise ValueError(f"expected a fault, one of {kinds}")
        return self

    @property
    def until(self) -> float:
        """When it is over."""
        return self.at + self.lasts

    def names(self) -> Iterable[tuple[str, str]]:
        """The services that it names, each with its field."""
        yield from ((f"cut.{at}", name) for at, group in enumerate(self.cut or ()) for name in group)
        yield from (("one_way", name) for name in self.one_way or ())
        yield from ((place, name) for place in ("slow", "clock") for name in getattr(self, place))
        yield from ((place, getattr(self, place)) for place in ("crash", "pause") if getattr(self, place))


@dataclass(frozen=True, slots=True)
class Phase:
    """What a phase cost: virtual seconds, and messages and bytes by kind."""

    seconds: float
    messages: dict[str, int]
    bytes: int

    def count(self, kind: str | None = None) -> int:
        """How many messages of this kind, or of the housekeeping (None), were sent."""
        kinds = wire.HOUSEKEEPING if kind is None else {kind}
        return sum(number for told, number in self.messages.items() if told in kinds)


@dataclass(frozen=True, slots=True)
class Belief:
    """What a registry lists in the end, and how that differs from the newest that any registry lists.

    `state` is up, down, paused or provider (which lists its own alone).
    """

    registry: str
    state: str
    nodes: int
    flows: int
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What became of a mesh.

    `converged` is how long it took in the end until all was silent and agreed (None: it was not, and `why`). `lost` are
    nodes that are listed nowhere.
    """

    forming: Phase
    running: Phase
    settling: Phase
    converged: float | None
    why: str | None
    agree: bool
    lost: tuple[str, ...]
    effects: dict[str, int]
    beliefs: tuple[Belief, ...]


_FAULTS = TypeAdapter(tuple[FaultPlan, ...])


def read_mesh(path: Path) -> MeshPlan:
    """The mesh that a file describes. Raises `SimulationError` with file and field."""
    mesh: MeshPlan = _read(path, MeshPlan.model_validate)
    known = mesh.registries
    for name, registry in known.items():
        for at, other in enumerate(registry.connect):
            _known(path, f"registries.{name}.connect.{at}", other, known)
    for name, node in mesh.nodes.items():
        for at, other in enumerate(node.register_with):
            _known(path, f"nodes.{name}.register.{at}", other, known)
    return mesh


def read_faults(path: Path, mesh: MeshPlan) -> tuple[FaultPlan, ...]:
    """The faults that a file describes for that mesh. Raises `SimulationError` with file and field."""
    faults: tuple[FaultPlan, ...] = _read(path, _FAULTS.validate_python)
    for at, fault in enumerate(faults):
        for place, name in fault.names():
            _known(path, f"{at}.{place}", name, mesh.registries)
    return faults


def _read(path: Path, check: Callable[[Any], Any]) -> Any:
    try:
        content = yaml.safe_load(path.read_text())
    except UnicodeDecodeError:
        raise SimulationError(f"{path}: expected a text in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        raise SimulationError(f"{path}{line}: expected YAML, but {getattr(error, 'problem', error)}") from None
    try:
        return check(content)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)[:MOST_FAULTS]
        raise SimulationError("\n".join(_told(path, fault) for fault in faults)) from None


def _told(path: Path, fault: Any) -> str:
    place = ".".join(map(str, fault["loc"])) or "the whole"
    return f"{path}: {place}: {fault['msg'].removeprefix('Value error, ')}"


def _known(path: Path, place: str, name: str, known: Mapping[str, RegistryPlan]) -> None:
    if name not in known:
        raise SimulationError(f"{path}: {place}: expected one of the registries: {', '.join(known)}")


def predict(mesh: MeshPlan, faults: Iterable[FaultPlan] = (), seed: int = 0, within: float = 120.0) -> Prediction:
    """Play a mesh under its faults once, and tell what came of it."""
    faults = tuple(faults)
    world = World(seed)
    mark = _Mark(world)
    _build(world, mesh)
    world.settle(within)
    forming, mark, began = mark.phase(), _Mark(world), world.clock
    for at, act in _happenings(world, mesh, faults):
        world.run(began + at - world.clock)
        act()
    running, mark = mark.phase(), _Mark(world)
    converged, why = _settled(world, mesh, within)
    effects = {name: number for name, number in sorted(world.effects.items()) if number}
    lost = _lost(world, mesh)
    beliefs = tuple(_beliefs(world, world.newest()))
    return Prediction(
        forming, running, mark.phase(), converged, why, not (world.missing() or lost), lost, effects, beliefs
    )


def _settled(world: World, mesh: MeshPlan, within: float) -> tuple[float | None, str | None]:
    """How long it takes until the mesh is silent and agrees: what silence does not repair, beats and beacons do."""
    began = world.clock
    try:
        world.settle(within)
        while (world.missing() or _lost(world, mesh)) and world.clock - began < within:
            world.run(1)
            world.settle(max(1.0, began + within - world.clock))
    except SimulationError as error:
        return None, str(error)
    wrong = [*world.missing(), *(f"nobody lists {name}" for name in _lost(world, mesh))]
    return (None, f"after {within:g} s {'; '.join(wrong)}") if wrong else (world.clock - began, None)


def _lost(world: World, mesh: MeshPlan) -> tuple[str, ...]:
    """The nodes with flows that are listed nowhere."""
    newest = world.newest()
    return tuple(name for name, node in mesh.nodes.items() if node.flows and f"http://{name}:1" not in newest)


def _build(world: World, mesh: MeshPlan) -> None:
    for name, registry in mesh.registries.items():
        if registry.old:
            world.add_old(name, registry.connect)
        else:
            world.add(name, registry.connect, provider=registry.provider)


class _Mark:
    """A moment of a world, to count from."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now, self.sent, self.bytes = world.now, world.sent.copy(), world.bytes.total()

    def phase(self) -> Phase:
        sent: Counter[str] = self.world.sent - self.sent
        return Phase(
            (self.world.now - self.now) / 1e6, dict(sorted(sent.items())), self.world.bytes.total() - self.bytes
        )


# -- what happens, and when --------------------------------------------------------------------------------


def _happenings(
    world: World, mesh: MeshPlan, faults: tuple[FaultPlan, ...]
) -> list[tuple[float, Callable[[], object]]]:
    """What is to be done, in its order: at the same moment faults end, then others begin, then nodes register."""
    links = partial(_set_links, world, faults, world.faults.latency)
    done: list[tuple[float, int, Callable[[], object]]] = []
    for fault in faults:
        done += [(fault.until, 0, partial(_end, world, fault)), (fault.until, 1, partial(links, fault.until))]
        done += [(fault.at, 1, partial(links, fault.at)), (fault.at, 2, partial(_begin, world, fault))]
    for name, node in mesh.nodes.items():
        starts = partial(world.add, name, node.register_with, registry=False, flows=node.flows)
        done.append((node.at, 3, starts))
    return [(at, act) for at, _, act in sorted(done, key=lambda happening: happening[:2])]


def _set_links(world: World, faults: tuple[FaultPlan, ...], latency: tuple[float, float], at: float) -> None:
    """Let the faults of the links be those that are there at this moment; of several chances the highest counts."""
    now = world.faults = Faults(latency=latency)
    for fault in faults:
        if not fault.at <= at < fault.until:
            continue
        for name in ("loss", "answer_loss", "doubles", "reorder"):
            setattr(now, name, max(getattr(now, name), getattr(fault, name) or 0.0))
        now.latency = fault.latency or now.latency
        now.partition(*([key_of(name) for name in group] for group in fault.cut or ()))
        if fault.one_way:
            now.cuts.add((key_of(fault.one_way[0]), key_of(fault.one_way[1])))
        now.slow.update({key_of(name): time for name, time in fault.slow.items()})


def _begin(world: World, fault: FaultPlan) -> None:
    if fault.crash:
        world.crash(fault.crash, keep_disk=not fault.lose)
    if fault.pause and world.member(fault.pause).up:
        world.pause(fault.pause)
    for name, skew in fault.clock.items():
        world.set_clock(name, skew)


def _end(world: World, fault: FaultPlan) -> None:
    if fault.crash and not world.member(fault.crash).up:
        world.restart(fault.crash)
    if fault.pause:
        world.resume(fault.pause)
    for name in fault.clock:
        world.set_clock(name, 0.0)


# -- what came of it ---------------------------------------------------------------------------------------


def _beliefs(world: World, newest: Mapping[str, tuple[Any, ...]]) -> Iterable[Belief]:
    listed = world.listed()
    for key, member in world.members.items():
        rows = world.listing(key)
        nodes = len({row["node"] for row in rows})
        if isinstance(member, Site) and not member.profile.registry:
            continue
        view = listed.get(key, newest)
        missing = tuple(name_of(node) for node in sorted(newest) if node not in view)
        stale = tuple(name_of(node) for node in sorted(view) if view[node] != newest[node])
        yield Belief(name_of(key), _state(member, takes=key in listed), nodes, len(rows), missing, stale)


def _state(member: Member, *, takes: bool) -> str:
    if not member.up:
        return "down"
    if member.paused:
        return "paused"
    return "up" if takes else "provider"
