"""Plans: what a lab consists of, from a graph or a YAML file, and back into a file.

```yaml
name: demo                       # optional
members:
  registry1: {kind: registry}    # registry (the default), provider or node
  registry2: {connect: [registry1]}
  node1:
    kind: node
    connect: [registry2]         # names of registries and providers of this file, or urls
    flows: [press agent, {name: archive, tags: [news]}]
    options: {organization: acme}   # those of `kodo.options`
```

A plan says nothing of ports, and nothing that a lab finds by itself. `loader` is `"module:function"` or a YAML file;
what a function in a notebook offers cannot be written down. Errors name the line and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kodo.errors import LabError
from kodo.lab.naming import Names

if TYPE_CHECKING:
    from kodo.lab.member import Member

Kind = Literal["registry", "provider", "node"]
FOUND = {"url", "cache", "node", "registry", "provider", "trace", "connect"}
"""Options that a lab finds by itself, or that stand elsewhere in a plan."""


class PlannedFlow(BaseModel):
    """A flow of a node, as `Loader.add_flow` takes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    name: str
    url: str | None = None
    description: str | None = None
    author: str | None = None
    tags: list[str] | None = None


class PlannedMember(BaseModel):
    """A member: its kind, whom it connects with, what it offers, and its options."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    kind: Kind = "registry"
    connect: str | list[str] = Field(default_factory=list)
    flows: list[str | PlannedFlow] | None = None
    loader: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def targets(self) -> list[str]:
        """Whom it connects with."""
        return [self.connect] if isinstance(self.connect, str) else self.connect

    def changes(self) -> dict[str, Any]:
        """What a member's setup is to be changed by."""
        flows = (
            None if self.flows is None else [flow if isinstance(flow, str) else _dumped(flow) for flow in self.flows]
        )
        source = {"flows": flows, "loader": self.loader} if self.kind == "node" else {}
        return {**self.options, "connect": self.targets, **source}


def _or_default(value: Any) -> Any:
    """A member of which nothing is said is a registry."""
    return {} if value is None else value


class Plan(BaseModel):
    """A lab: its name, and its members by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    name: str | None = None
    members: dict[str, Annotated[PlannedMember, BeforeValidator(_or_default)]] = Field(default_factory=dict)


Place = tuple[str | int, ...]
"""The keys that lead to a field."""


def faults_of(plan: Plan) -> list[tuple[Place, str]]:
    """What cannot be, and where: names that nobody has, nodes that are connected with, flows of a registry."""
    faults: list[tuple[Place, str]] = []
    for name, member in plan.members.items():
        at: Place = ("members", name)
        if not name.strip() or not name.isprintable() or "/" in name:
            faults.append((at, "expected a name of printable characters without a slash"))
        for target in member.targets:
            if "://" in target:
                continue
            known = plan.members.get(target)
            if known is None:
                faults.append(((*at, "connect"), f"expected the name of a member, or a url, not {target!r}"))
            elif known.kind == "node" or target == name:
                faults.append(((*at, "connect"), f"expected another registry or provider, not {target!r}"))
        if member.kind != "node" and (member.flows is not None or member.loader is not None):
            faults.append(((*at, "flows" if member.loader is None else "loader"), "expected none, for it is no node"))
        if member.flows is not None and member.loader is not None:
            faults.append(((*at, "loader"), "expected flows or a loader, not both"))
        if found := sorted(FOUND & member.options.keys()):
            faults.append(((*at, "options", found[0]), "expected none: the lab finds it, or it stands beside options"))
    return faults


# -- from a graph ------------------------------------------------------------------------------------------


def plan_of_graph(graph: Any) -> Plan:
    """The plan of a networkx graph: a member for each node, a connection for each edge."""
    names = {node: str(node) for node in graph.nodes}
    if len(set(names.values())) < len(names):
        raise LabError("expected nodes of the graph with different names; two of them read the same as text")
    members = {names[node]: dict(data) for node, data in graph.nodes(data=True)}
    places = {name: number for number, name in enumerate(members)}
    connect: dict[str, list[str]] = {name: [] for name in members}
    for one, other in ((names[edge[0]], names[edge[1]]) for edge in graph.edges):
        caller, called = _direction(one, other, members, later=places[one] > places[other] or graph.is_directed())
        if called not in connect[caller]:
            connect[caller].append(called)
    taken = ("kind", "flows", "loader")
    try:
        plan = Plan.model_validate(
            {
                "members": {
                    name: {**{key: data[key] for key in taken if data.get(key) is not None}, "connect": connect[name]}
                    for name, data in members.items()
                }
            }
        )
    except ValidationError as error:
        lines = starmap(lambda at, text: f"{_path(at)}: {text}", _told(error))
        raise LabError("the graph is no lab:\n" + "\n".join(lines)) from error
    if faults := faults_of(plan):
        raise LabError("the graph is no lab:\n" + "\n".join(f"{_path(at)}: {text}" for at, text in faults))
    return plan


def _direction(one: str, other: str, members: Mapping[str, Mapping[str, Any]], *, later: bool) -> tuple[str, str]:
    """Who of an edge calls whom."""
    is_node = [members[name].get("kind") == "node" for name in (one, other)]
    if one == other or all(is_node):
        raise LabError(f"expected edges between a registry and another member, not {one!r} - {other!r}")
    return (one, other) if is_node[0] or (later and not is_node[1]) else (other, one)


# -- from and to a file ------------------------------------------------------------------------------------


def read_plan(path: Path | str) -> Plan:
    """The plan in a YAML file. Raises `LabError` with the line and the field of everything that is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LabError(f"expected {path} to be a YAML file of a lab, but {reason}") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise LabError(f"{path}{line}: expected YAML, but {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise LabError(f"{path}: expected YAML, but {error}") from error
    faults = list(_doubles(tree))
    plan = Plan()
    try:
        plan = Plan.model_validate({} if content is None else content)
    except ValidationError as error:
        faults += _told(error)
    faults += faults_of(plan)
    if faults:
        raise LabError(
            "\n".join(starmap(lambda at, text: f"{path}, line {_line(tree, at)}, {_path(at)}: {text}", faults))
        )
    return plan


def plan_of_members(name: str | None, members: Iterable[Member]) -> Plan:
    """The plan of members as they were set up. Raises `LabError` for what cannot be written down."""
    known = list(members)
    names = Names({member.name: member.url for member in known})
    return Plan(name=name, members={member.name: _planned(member, names) for member in known})


def _planned(member: Member, names: Names) -> PlannedMember:
    options = {key: value for key, value in member.setup.options.items() if key not in FOUND and value is not None}
    if options.get("organization") == member.name:
        del options["organization"]
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    loader = member.setup.loader
    flows = [_plain_flow(member, flow) for flow in loader] if isinstance(loader, list | tuple) else None
    if loader is not None and flows is None and not isinstance(loader, str):
        raise LabError(
            f"{member.name}: expected flows or a loader that can be written down, not a function; "
            'give the node flows=, "module:function" or a YAML file'
        )
    return PlannedMember(
        kind=member.kind,
        connect=[names[url] for url in member.connect],
        flows=flows,
        loader=loader if isinstance(loader, str) else None,
        options=plain,
    )


def _plain_flow(member: Member, flow: Any) -> str | PlannedFlow:
    fields = flow.model_dump() if isinstance(flow, BaseModel) else flow
    if isinstance(fields, str):
        return fields
    try:
        return PlannedFlow.model_validate(fields)
    except ValidationError as error:
        raise LabError(
            f"{member.name}: expected flows that can be written down: names, or name and what it has"
        ) from error


def write_plan(plan: Plan, path: Path | str) -> None:
    """Write a plan as YAML, without what goes without saying."""
    content = plan.model_dump(exclude_defaults=True)
    try:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise LabError(
            "expected options that can be written down: numbers, texts, lists; leave the others out"
        ) from error
    Path(path).write_text(text, encoding="utf-8")


# -- errors ------------------------------------------------------------------------------------------------


def _doubles(tree: yaml.Node | None, at: Place = ()) -> Iterable[tuple[Place, str]]:
    """Keys that stand twice in one mapping: YAML would take the last and say nothing."""
    if not isinstance(tree, yaml.MappingNode) or len(at) > 4:
        return
    seen = set()
    for key, value in tree.value:
        here = (*at, str(key.value))
        if key.value in seen:
            yield here, "expected once, but it stands here twice"
        seen.add(key.value)
        yield from _doubles(value, here)


def _line(tree: yaml.Node | None, at: Place) -> int:
    """The line of a field: of its key, or as near as there is one."""
    line = 1
    for step in at:
        if isinstance(tree, yaml.MappingNode):
            found = next(((key, value) for key, value in reversed(tree.value) if str(key.value) == str(step)), None)
        elif isinstance(tree, yaml.SequenceNode) and isinstance(step, int) and step < len(tree.value):
            found = (tree.value[step], tree.value[step])
        else:
            found = None
        if found is None:
            break
        line, tree = found[0].start_mark.line + 1, found[1]
    return line


def _path(at: Place) -> str:
    # Pydantic names the alternatives of a union too; they are no fields.
    steps = [str(step + 1) if isinstance(step, int) else step for step in at if step not in ("str", "PlannedFlow")]
    return ".".join(step for step in steps if not step.startswith("list[")) or "the file"


def _told(error: ValidationError) -> list[tuple[Place, str]]:
    """What pydantic found; of the alternatives that a field has, the one that was meant."""
    found = error.errors(include_url=False)
    meant = {fault["loc"][:-2] for fault in found if "PlannedFlow" in fault["loc"] and fault["type"] != "model_type"}
    told: dict[Place, str] = {}
    for fault in found:
        at, kind = fault["loc"], fault["type"]
        if kind == "model_type" and at[-1:] == ("PlannedFlow",):
            continue
        if at[-1:] == ("str",) and kind == "string_type":
            if at[:-1] in meant:
                continue
            several = "a text or a list of texts" if at[-2] == "connect" else "a text or a mapping with a name"
            told[at[:-1]] = f"expected {several}"
        elif "list[str]" not in at or at[: at.index("list[str]")] not in told:
            told[at] = _expectation(fault)
    return list(told.items())


def _expectation(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        where = PlannedMember if len(fault["loc"]) == 3 else PlannedFlow if len(fault["loc"]) > 3 else Plan
        return f"expected no such field, but one of {', '.join(where.model_fields)}"
    if fault["type"] == "missing":
        return "expected this field"
    if fault["type"] in ("model_type", "dict_type"):
        return "expected a mapping"
    return str(fault["msg"]).replace("Input should be", "expected")


def _dumped(flow: PlannedFlow) -> dict[str, Any]:
    return flow.model_dump(exclude_none=True)
