"""A mesh and its faults from two YAML files, played once, and what came of it: a prediction.

The mesh is a plan as a lab reads and writes it (`kodo.plan`); what happens to it stands in a file of its own:

```yaml
# faults.yaml: times begin when the mesh has formed
- {at: 2s, for: 5s, loss: 0.3}                 # also answer_loss, doubles, reorder: chances
- {at: 3s, for: 4s, cut: [[r1, n1], [r2]]}     # or one_way: [r1, r2]
- {at: 3s, for: 4s, latency: [1ms, 300ms], slow: {r2: 3s}}
- {at: 4s, for: 1s, crash: r1, lose: true}     # lose: its disk; or pause: r1
- {at: 5s, for: 9s, clock: {r2: 1h}}
```

First the registries start and settle, without faults: the mesh *forms*. Then the time of both files begins, at 0 s:
nodes start (`simulated: {at: 1s}` in the plan), register and beat, faults come and go. When the last of that is over,
it settles once more, until all is silent and agrees. Errors name file, line and field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator, model_validator

from kodo.core.registry import Profile
from kodo.errors import InvalidMessageError, LoaderError, SimulationError
from kodo.models import Node, canonical
from kodo.plan import Fault, Moment, Plan, PlannedMember, Strict, Time, read_plan, read_yaml
from kodo.sim import wire
from kodo.sim.faults import Faults
from kodo.sim.members import own_node, profile_of, urls_of
from kodo.sim.world import Member, Site, World, key_of

Chance = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class Service:
    """A member as it is played: what it is and offers, when a node starts, and whether it knows the fixed protocol."""

    url: str
    profile: Profile
    own: Node | None
    at: float
    old: bool


Mesh = Mapping[str, Service]
"""What a plan comes to in a world: its services by their names."""

FORMS = {
    "cut": "two or more groups of members, such as [[north], [south, east]]",
    "one_way": "who sends and to whom, such as [north, south]",
    "latency": "the least and the most, such as [1ms, 300ms]",
}
"""Fields that are lists, and what stands in them."""


class FaultPlan(Strict):
    """One fault, or several that come and go together: from `at`, `for` so long."""

    at: Moment
    lasts: Moment = Field(alias="for")
    loss: Chance | None = None
    answer_loss: Chance | None = None
    doubles: Chance | None = None
    reorder: Chance | None = None
    latency: tuple[Moment, Moment] | None = None
    cut: tuple[tuple[str, ...], ...] | None = None
    one_way: tuple[str, str] | None = None
    slow: dict[str, Moment] = Field(default_factory=dict)
    crash: str | None = None
    lose: bool = False
    pause: str | None = None
    clock: dict[str, Time] = Field(default_factory=dict)

    @field_validator("latency")
    @classmethod
    def _rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        """Refuse two times in the wrong order."""
        if value and value[0] > value[1]:
            raise ValueError(f"expected {FORMS['latency']}, the least first")
        return value

    @field_validator(*FORMS, mode="before")
    @classmethod
    def _has_its_form(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse another number of items, and members where groups belong: what is in them is checked as all else."""
        if value is None:
            return value
        field = str(info.field_name)
        several = isinstance(value, list) and (len(value) == 2 or (field == "cut" and len(value) > 2))
        if not several or (field == "cut" and not all(isinstance(group, list) and group for group in value)):
            raise ValueError(f"expected {FORMS[field]}")
        return value

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

    def links(self) -> Iterable[tuple[str, str]]:
        """The services between which something is cut, each with its field."""
        yield from (("cut", name) for group in self.cut or () for name in group)
        yield from (("one_way", name) for name in self.one_way or ())

    def services(self) -> Iterable[tuple[str, str]]:
        """The services to which something happens, each with its field."""
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


_FAULTS = TypeAdapter(list[FaultPlan])


def read_mesh(path: Path) -> Mesh:
    """The mesh that a file describes. Raises `PlanError` with file, line and field."""
    services: dict[str, Service] = {}

    def unfit(plan: Plan) -> Iterable[Fault]:
        if all(member.kind == "node" for member in plan.members.values()):
            yield ("members",), "expected a registry, or more"
        urls = urls_of(plan.members)
        for name, member in plan.members.items():
            try:
                services[name] = _service(name, member, urls)
            except SimulationError as error:
                yield ("members", name, "options"), str(error)
            except (LoaderError, InvalidMessageError) as error:
                yield ("members", name, "flows" if member.loader is None else "loader"), str(error)
            except ValueError as error:
                yield ("members", name, "connect"), str(error)

    read_plan(path, unfit)
    return services


def _service(name: str, member: PlannedMember, urls: Mapping[str, str]) -> Service:
    roles = {"node": member.kind == "node", "registry": member.kind != "node", "provider": member.kind == "provider"}
    connect = [urls.get(target, target) for target in member.targets]
    for url in connect:
        canonical(url)
    options = {"organization": name, **member.options, **roles, "url": urls[name], "connect": connect}
    own = own_node(options, member.source)
    return Service(urls[name], profile_of(options), own, member.simulated.at, member.simulated.old)


def read_faults(path: Path, mesh: Mesh) -> tuple[FaultPlan, ...]:
    """The faults that a file describes for that mesh. Raises `PlanError` with file, line and field."""

    def read(content: Any) -> tuple[list[FaultPlan], list[Fault]]:
        faults = _FAULTS.validate_python(content or [])
        return faults, [unknown for at, fault in enumerate(faults) for unknown in _unknown(at, fault, mesh)]

    return tuple(read_yaml(path, read, _fields))


def _unknown(at: int, fault: FaultPlan, mesh: Mesh) -> Iterable[Fault]:
    """The services that a fault names and that there are not."""
    registries = [name for name, service in mesh.items() if service.profile.registry]
    for places, known in ((fault.links(), list(mesh)), (fault.services(), registries)):
        wrong = ((place, name) for place, name in places if name not in known)
        yield from (((at, place), f"expected one of {', '.join(known)}, not {name!r}") for place, name in wrong)


def _fields(_: Any) -> Iterable[str]:
    return [field.alias or name for name, field in FaultPlan.model_fields.items()]


def predict(mesh: Mesh, faults: Iterable[FaultPlan] = (), seed: int = 0, within: float = 120.0) -> Prediction:
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


def _settled(world: World, mesh: Mesh, within: float) -> tuple[float | None, str | None]:
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


def _lost(world: World, mesh: Mesh) -> tuple[str, ...]:
    """The nodes with flows that are listed nowhere."""
    newest = world.newest()
    return tuple(name for name, node in mesh.items() if node.own and node.own.flows and node.url not in newest)


def _build(world: World, mesh: Mesh) -> None:
    for name, service in mesh.items():
        world.names[canonical(service.url)] = name
        if service.old:
            world.add_old(service.url, service.profile.connect)
        elif service.profile.registry:
            _add(world, service)


def _add(world: World, service: Service) -> None:
    roles = {"provider": service.profile.provider, "registry": service.profile.registry}
    world.add(service.url, service.profile.connect, flows=service.own, timing=service.profile.timing, **roles)


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


def _happenings(world: World, mesh: Mesh, faults: tuple[FaultPlan, ...]) -> list[tuple[float, Callable[[], object]]]:
    """What is to be done, in its order: at the same moment faults end, then others begin, then nodes register."""
    urls = {name: service.url for name, service in mesh.items()}
    faults = tuple(_addressed(fault, urls) for fault in faults)
    links = partial(_set_links, world, faults, world.faults.latency)
    done: list[tuple[float, int, Callable[[], object]]] = []
    for fault in faults:
        done += [(fault.until, 0, partial(_end, world, fault)), (fault.until, 1, partial(links, fault.until))]
        done += [(fault.at, 1, partial(links, fault.at)), (fault.at, 2, partial(_begin, world, fault))]
    done += [(service.at, 3, partial(_add, world, service)) for service in mesh.values() if service.own is not None]
    return [(at, act) for at, _, act in sorted(done, key=lambda happening: happening[:2])]


def _addressed(fault: FaultPlan, urls: Mapping[str, str]) -> FaultPlan:
    """The same fault, with urls in place of names."""
    return fault.model_copy(
        update={
            "cut": fault.cut and tuple(tuple(urls[name] for name in group) for group in fault.cut),
            "one_way": fault.one_way and tuple(urls[name] for name in fault.one_way),
            "slow": {urls[name]: time for name, time in fault.slow.items()},
            "clock": {urls[name]: skew for name, skew in fault.clock.items()},
            "crash": fault.crash and urls[fault.crash],
            "pause": fault.pause and urls[fault.pause],
        }
    )


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
        missing = tuple(world.called(node) for node in sorted(newest) if node not in view)
        stale = tuple(world.called(node) for node in sorted(view) if view[node] != newest[node])
        yield Belief(world.called(key), _state(member, takes=key in listed), nodes, len(rows), missing, stale)


def _state(member: Member, *, takes: bool) -> str:
    if not member.up:
        return "down"
    if member.paused:
        return "paused"
    return "up" if takes else "provider"
