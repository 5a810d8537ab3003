"""Plans: what a mesh consists of, as one YAML file says it, for a lab and for the simulator alike.

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
    simulated: {at: 2s}          # for `kodo sim` alone: when a node starts; a registry may be `old`
```

A plan says nothing of ports, and nothing that a lab finds by itself. `loader` is `"module:function"` or a YAML file;
what a function in a notebook offers cannot be written down. `read_yaml` reads any file of this family: what is wrong in
it is an error with the line and the field, all of it at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import starmap
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kodo.errors import PlanError, in_words, reason_of, unwritten
from kodo.models import flow_path

Kind = Literal["registry", "provider", "node"]
FOUND = {"url", "cache", "node", "registry", "provider", "trace", "connect"}
"""Options that a lab finds by itself, or that stand elsewhere in a plan."""
LONGEST_NAME = 50
"""Characters of a member's name: the files of a lab are named by it."""
NAME = f"expected a name of printable characters without a slash, at most {LONGEST_NAME} of them"
MOST_FAULTS = 20
"""Faults of a file that are told at once."""
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
EXPECTED = {
    "missing": "expected this field",
    "model_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "list_type": "expected a list",
    "string_type": "expected a text",
}
"""What was expected, by pydantic's type of fault."""
_TIME = re.compile(rf"([+-]?\d+(?:\.\d+)?)({'|'.join(UNITS)})")

T = TypeVar("T")


def seconds(text: str) -> float:
    """A time such as `2s`, `150ms`, `-1h`. Raises `PlanError`."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise PlanError("expected a time with its unit, such as 2s, 150ms, 5min or 1h")
    return float(match[1]) * UNITS[match[2]]


def _seconds(value: Any) -> Any:
    try:
        return seconds(value) if isinstance(value, str) else value
    except PlanError as error:
        raise ValueError(str(error)) from None


Time = Annotated[float, BeforeValidator(_seconds)]
"""Seconds, as a number or as a text with its unit."""
Moment = Annotated[Time, Field(ge=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """Something that a file describes: unknown fields are errors, and numbers may be names."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class PlannedFlow(Strict):
    """A flow of a node, as `Loader.add_flow` takes it."""

    name: str
    url: str | None = None
    description: str | None = None
    author: str | None = None
    tags: list[str] | None = None


class SimulatedAs(Strict):
    """What the simulator alone can do with a member, and a lab leaves out."""

    at: Moment = 0.0
    old: bool = False


class PlannedMember(Strict):
    """A member: its kind, whom it connects with, what it offers, and its options."""

    kind: Kind = "registry"
    connect: str | list[str] = Field(default_factory=list)
    flows: list[str | PlannedFlow] | None = None
    loader: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    simulated: SimulatedAs = SimulatedAs()

    @property
    def targets(self) -> list[str]:
        """Whom it connects with."""
        return [self.connect] if isinstance(self.connect, str) else self.connect

    @property
    def source(self) -> str | list[str | dict[str, Any]] | None:
        """Where its flows come from, as `kodo.loader.load_flows` takes it."""
        return self.loader if self.flows is None else [_plain(flow) for flow in self.flows]


def _plain(flow: str | PlannedFlow) -> str | dict[str, Any]:
    return flow if isinstance(flow, str) else flow.model_dump(exclude_none=True)


def _or_default(value: Any) -> Any:
    """A member of which nothing is said is a registry."""
    return {} if value is None else value


class Plan(Strict):
    """A mesh: its name, and its members by name."""

    name: str | None = None
    members: dict[str, Annotated[PlannedMember, BeforeValidator(_or_default)]] = Field(default_factory=dict)


Place = tuple[str | int, ...]
"""The keys that lead to a field."""
Fault = tuple[Place, str]
"""A field, and what was expected there."""
Fields = Callable[[Place], Iterable[str]]
"""Which fields there may be beside the one at a place."""


def is_name(name: str) -> bool:
    """Whether a member may have this name."""
    return bool(name.strip()) and name.isprintable() and "/" not in name and len(name) <= LONGEST_NAME


def doubled_path(flows: Iterable[Any]) -> str | None:
    """The path that two of these flows have, names or what has `name` and `url`: of them one alone would be listed."""
    paths = Counter(path for path in map(_path_of, flows) if isinstance(path, str))
    return next((path for path, number in paths.items() if number > 1), None)


def _path_of(flow: Any) -> object:
    if isinstance(flow, str):
        return flow_path(flow)
    fields = flow.__dict__ if isinstance(flow, BaseModel) else flow if isinstance(flow, Mapping) else {}
    name, url = fields.get("name"), fields.get("url")
    return flow_path(name, url) if isinstance(name, str) or url is not None else None


def faults_of(plan: Plan) -> list[Fault]:
    """What cannot be, and where: names that nobody has, nodes that are connected with, flows of a registry."""
    return [
        ((*("members", name), *at), text) for name, member in plan.members.items() for at, text in _faults(name, plan)
    ]


def _faults(name: str, plan: Plan) -> Iterable[Fault]:
    """What cannot be of a member, by its own fields."""
    member = plan.members[name]
    if not is_name(name):
        yield (), NAME
    for target in member.targets:
        known = plan.members.get(target)
        if known is None and "://" not in target:
            yield ("connect",), f"expected the name of a member, or a url, not {target!r}"
        elif known is not None and (known.kind == "node" or target == name):
            yield ("connect",), f"expected another registry or provider, not {target!r}"
    if member.kind != "node" and (member.flows is not None or member.loader is not None):
        yield ("flows" if member.loader is None else "loader",), "expected none, for it is no node"
    if (path := doubled_path(member.flows or ())) is not None:
        yield ("flows",), f"expected each flow once, but two are at {path}"
    if member.flows is not None and member.loader is not None:
        yield ("loader",), "expected flows or a loader, not both"
    if found := sorted(FOUND & member.options.keys()):
        yield ("options", found[0]), "expected none: the lab finds it, or it stands beside options"
    if member.simulated.at and member.kind != "node":
        yield ("simulated", "at"), "expected none, for it is no node: registries start first"
    if member.simulated.old and member.kind != "registry":
        yield ("simulated", "old"), "expected none: an older service is a registry"


def _fields(at: Place) -> Iterable[str]:
    if len(at) <= 1:
        return Plan.model_fields
    below: dict[str | int, type[BaseModel]] = {"flows": PlannedFlow, "simulated": SimulatedAs}
    return below.get(at[2], PlannedMember).model_fields if len(at) > 3 else PlannedMember.model_fields


# -- from and to a file ------------------------------------------------------------------------------------


def read_plan(path: Path | str, unfit: Callable[[Plan], Iterable[Fault]] = lambda plan: ()) -> Plan:
    """The plan in a YAML file. Raises `PlanError` with the line and the field of everything that is wrong.

    `unfit` says what else cannot be of a plan that is right as such.
    """

    def read(content: Any) -> tuple[Plan, list[Fault]]:
        plan = Plan.model_validate({} if content is None else content)
        return plan, faults_of(plan) or list(unfit(plan))

    return read_yaml(path, read, _fields)


def checked_plan(content: Mapping[str, Any]) -> Plan:
    """The plan that plain data describe. Raises `PlanError` with the field of everything that is wrong."""
    try:
        plan = Plan.model_validate(content)
        faults = faults_of(plan)
    except ValidationError as error:
        faults = _told(error, _fields)
    if faults:
        raise PlanError("\n".join(f"{_path(at)}: {text}" for at, text in faults))
    return plan


class _Dumper(yaml.SafeDumper):
    """Escapes what YAML takes for the end of a line where JSON does not (YAML 1.1, 4.2)."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if set(text) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def write_plan(plan: Plan, path: Path | str) -> None:
    """Write a plan as YAML, without what goes without saying. Raises `PlanError` where that cannot be."""
    content = plan.model_dump(exclude_defaults=True)
    try:
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise PlanError(
            "expected options that can be written down: numbers, texts, lists; leave the others out"
        ) from error
    write_text(path, text)


def read_text(path: Path | str) -> str:
    """The text in a file. Raises `PlanError` when there is none, and says why."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: expected a text in UTF-8; write it as one") from error
    except OSError as error:
        raise PlanError(f"{path}: expected a file to read, but {reason_of(error)}; check the path") from error


def write_text(path: Path | str, text: str) -> None:
    """Write a text into a file. Raises `PlanError` when that cannot be, and says why."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise PlanError(unwritten(path, error)) from error


def read_yaml(path: Path | str, read: Callable[[Any], tuple[T, list[Fault]]], fields: Fields) -> T:
    """What `read` makes of the content of a YAML file. Raises `PlanError` with line and field.

    `read` says what is wrong with what it made, or raises pydantic's `ValidationError`; `fields` are those there may
    be.
    """
    text = read_text(path)
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise PlanError(f"{path}{line}: expected YAML ({error.problem or error.context}); correct it there") from error
    except (LookupError, AttributeError) as error:
        # So PyYAML's own constructors fail.
        raise PlanError(
            f"{path}: expected YAML (a tag such as !!int before no such thing); correct it there"
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise PlanError(f"{path}: expected YAML ({error}); correct it there") from error
    faults = list(_doubles(tree))
    try:
        made, wrong = read(content)
        faults += wrong
    except ValidationError as error:
        faults += _told(error, fields)
    if faults:
        told = starmap(lambda at, text: f"{path}, line {_line(tree, at)}, {_path(at)}: {text}", faults[:MOST_FAULTS])
        raise PlanError("\n".join(told))
    return made


# -- errors ------------------------------------------------------------------------------------------------


def _doubles(tree: yaml.Node | None, at: Place = ()) -> Iterable[Fault]:
    """Keys that stand twice in one mapping: YAML would take the last and say nothing."""
    if len(at) > 4:
        return
    if isinstance(tree, yaml.SequenceNode):
        for index, item in enumerate(tree.value):
            yield from _doubles(item, (*at, index))
    if not isinstance(tree, yaml.MappingNode):
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


def _told(error: ValidationError, fields: Fields) -> list[Fault]:
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
            told[at] = _expectation(fault, fields)
    return list(told.items())


def _expectation(fault: Any, fields: Fields) -> str:
    if fault["type"] == "extra_forbidden":
        return f"expected no such field, but one of {', '.join(fields(fault['loc']))}"
    if fault["type"] in EXPECTED:
        return EXPECTED[fault["type"]]
    if fault["type"] == "too_short":
        return f"expected {fault['ctx']['min_length']} or more"
    return in_words(fault["msg"])
