"""The plan of a lab (`kodo.plan`): from a graph, and from its members as they were set up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from kodo.errors import LabError, PlanError, suggestion
from kodo.lab.naming import Names
from kodo.lab.processes import OPTIONS
from kodo.plan import FOUND, Fault, Plan, PlannedFlow, PlannedMember, checked_plan

if TYPE_CHECKING:
    from kodo.lab.member import Member


ATTRIBUTES = ("kind", "flows", "loader")
"""What a node of a graph may say of its member; other attributes are the graph's own business."""


def changes_of(member: PlannedMember) -> dict[str, Any]:
    """What a member's setup is to be changed by."""
    flows, loader = (None, member.source) if member.loader is not None else (member.source, None)
    source = {"flows": flows, "loader": loader} if member.kind == "node" else {}
    return {**member.options, "connect": member.targets, **source}


def unknown_options(plan: Plan) -> Iterator[Fault]:
    """The options in a plan that no member has."""
    for name, member in plan.members.items():
        for option in member.options:
            if option not in OPTIONS:
                known = sorted(OPTIONS - FOUND)
                hint = suggestion(option, known, otherwise=f"but one of {', '.join(known)}")
                yield ("members", name, "options", option), f"expected no such option; {hint}"


def plan_of_graph(graph: Any) -> Plan:
    """The plan of a networkx graph: a member for each node, a connection for each edge."""
    if not hasattr(graph, "edges"):
        raise LabError(f"expected a networkx graph, such as networkx.cycle_graph(6), not a {type(graph).__name__}")
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
    try:
        return checked_plan(
            {"members": {name: {**_given(members[name]), "connect": connect[name]} for name in members}}
        )
    except PlanError as error:
        raise LabError(f"the graph is no lab:\n{error}") from error


def functions_of_graph(graph: Any) -> dict[str, Callable[..., Any]]:
    """The loaders in a graph that are functions, by the names of their nodes: a plan has only their names."""
    return {str(node): data["loader"] for node, data in graph.nodes(data=True) if callable(data.get("loader"))}


def _given(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the attributes of a graph's node say of a member; one flow may stand for itself."""
    for key in data:
        if key not in ATTRIBUTES and (hint := suggestion(str(key), ATTRIBUTES, otherwise="")):
            warnings.warn(f"the attribute {key!r} of a node of the graph is left alone; {hint}", stacklevel=2)
    given = {key: data[key] for key in ATTRIBUTES if data.get(key) is not None}
    if isinstance(given.get("flows"), str | Mapping):
        given["flows"] = [given["flows"]]
    if callable(given.get("loader")):
        given["loader"] = getattr(given["loader"], "__name__", "a function")
    return given


def _direction(one: str, other: str, members: Mapping[str, Mapping[str, Any]], *, later: bool) -> tuple[str, str]:
    """Who of an edge calls whom."""
    is_node = [members[name].get("kind") == "node" for name in (one, other)]
    if one == other or all(is_node):
        raise LabError(f"expected edges between a registry and another member, not {one!r} - {other!r}")
    return (one, other) if is_node[0] or (later and not is_node[1]) else (other, one)


def plan_of_members(name: str | None, members: Iterable[Member]) -> Plan:
    """The plan of members as they were set up. Raises `LabError` for what cannot be written down."""
    known = list(members)
    names = Names({member.name: member.url for member in known})
    return Plan(name=name, members={member.name: _planned(member, names) for member in known})


def _planned(member: Member, names: Names) -> PlannedMember:
    options = {key: value for key, value in member.setup.options.items() if key not in FOUND and value is not None}
    # One without an organization is not one of which nothing is said: that would have its own name for it.
    organization = member.setup.options.get("organization")
    if organization == member.name:
        del options["organization"]
    elif organization is None:
        options["organization"] = None
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
