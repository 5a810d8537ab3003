"""Settling: waiting until a mesh has nothing more to say, and naming what is missing when it goes on.

A mesh has settled when, twice in a row, every registry is idle, every connection that a running member was told to
make stands, and registries that belong together list the same flows with the same times. Who belongs together follows
from what was asked and what was answered: also over a member that does not run, for that is then what is missing.
A provider takes nothing, so it is never blamed for what it lacks; what it lists, those that it connects with list too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from kodo.client import Client
from kodo.errors import KodoError, LabError
from kodo.lab.flows import all_flows
from kodo.lab.member import Member
from kodo.lab.naming import Names, numbered
from kodo.models import canonical

PAUSE = 0.05
"""Seconds between two looks."""
ANSWER = 2.0
"""Seconds that a member gets for an answer; one that takes longer has not settled."""
MOST = 8
"""Faults that an error names."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A mesh that has settled: after how long, how many registries agree, and on how many flows."""

    seconds: float
    registries: int
    flows: int

    def __repr__(self) -> str:
        return f"<Settled: {numbered(self.registries, 'registry agrees', 'registries agree')}>"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is missing, and whose log may say why."""

    text: str
    culprit: Member | None = None


Listing = dict[tuple[str, str], dict[str, Any]]
"""The flows of a registry by node and url."""


@dataclass(slots=True)
class Look:
    """What the members answered at one moment."""

    connections: dict[str, dict[str, str | None]] = field(default_factory=dict)
    listings: dict[str, Listing] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def settle(members: Sequence[Member], timeout: float) -> Settled:
    """Wait until the mesh has settled. Raises `LabError` after `timeout` seconds."""
    began = time.monotonic()
    before: dict[str, Listing] | None = None
    with ExitStack() as stack:
        limit = max(0.1, min(ANSWER, timeout))
        clients = {member.name: stack.enter_context(Client(member.url, limit)) for member in members}
        while True:
            late = time.monotonic() - began > timeout
            look = take_look(members, clients, thorough=late)
            if not look.faults and look.listings == before:
                flows = {key for listing in look.listings.values() for key in listing}
                return Settled(time.monotonic() - began, len(look.listings), len(flows))
            before = None if look.faults else look.listings
            if late:
                raise _failure(members, look.faults, timeout)
            time.sleep(PAUSE)


def take_look(members: Sequence[Member], clients: dict[str, Client], *, thorough: bool) -> Look:
    """Ask who is there, and compare listings once everything else is in order, or at once when it is `thorough`."""
    look = Look()
    names = Names({member.name: member.url for member in members})
    running = [member for member in members if member.running]
    for member in running:
        _ask(look, member, clients[member.name], names)
    registries = [member for member in running if member.kind != "node" and member.answers]
    if thorough or not look.faults:
        _read_listings(look, registries, clients)
        look.faults += _disagreements(look, _groups(members, look, names), registries, names)
    return look


def _ask(look: Look, member: Member, client: Client, names: Names) -> None:
    if member.paused:
        look.faults.append(Fault(f"{member.name} is paused", member))
        return
    try:
        status = client.status()
    except KodoError as error:
        if member.running:
            look.faults.append(Fault(f"{member.name} does not answer: {error}", member))
        return
    look.connections[member.name] = status["connection"]
    if member.kind != "node" and not status["idle"]:
        look.faults.append(Fault(f"{member.name} is not idle: it still has something to tell", member))
    for url, since in status["connection"].items():
        if since is None:
            look.faults.append(Fault(f"the connection {member.name} -> {names[url]} does not stand", member))


def _read_listings(look: Look, registries: Iterable[Member], clients: dict[str, Client]) -> None:
    for member in registries:
        try:
            rows = all_flows(clients[member.name])
        except KodoError:
            continue  # it was found not to answer, or ended a moment ago: the next look tells
        look.listings[member.name] = {
            (row["node"], row["url"]): {column: value for column, value in row.items() if column != "registry"}
            for row in rows
        }


def _groups(members: Sequence[Member], look: Look, names: Names) -> dict[str, str]:
    """For each registry, the name that stands for all that belong together with it."""
    takers = {member.name for member in members if member.kind == "registry"}
    leader = {name: name for name in takers}
    for member in members:
        for url in {*member.connect, *look.connections.get(member.name, {})}:
            one, other = leader.get(member.name), leader.get(names[url])
            if one is not None and other is not None:
                leader = {name: one if lead == other else lead for name, lead in leader.items()}
    return leader


def _disagreements(look: Look, groups: dict[str, str], registries: Sequence[Member], names: Names) -> list[Fault]:
    faults = []
    for group in sorted(set(groups.values())):
        there = [member for member in registries if groups.get(member.name) == group and member.name in look.listings]
        known = _latest([look.listings[member.name] for member in [*there, *_providers(look, registries, there)]])
        for member in there:
            faults += _lacks(member, look.listings[member.name], known, names)
    return faults


def _providers(look: Look, registries: Sequence[Member], there: Sequence[Member]) -> list[Member]:
    """The providers that a group is told by: connected with one of it, in whichever direction."""
    urls = {canonical(member.url) for member in there}
    called = {canonical(url) for member in there for url in member.connect}
    return [
        member
        for member in registries
        if member.kind == "provider"
        and member.name in look.listings
        and (canonical(member.url) in called or urls & {canonical(url) for url in member.connect})
    ]


def _latest(listings: Iterable[Listing]) -> Listing:
    latest: Listing = {}
    for listing in listings:
        for key, row in listing.items():
            if key not in latest or (row["modified"] or "") > (latest[key]["modified"] or ""):
                latest[key] = row
    return latest


def _lacks(member: Member, listing: Listing, known: Listing, names: Names) -> list[Fault]:
    faults = []
    for (node, url), row in sorted(known.items()):
        if (node, url) not in listing:
            faults.append(Fault(f"{member.name} does not list {url} of {names[node]}", member))
        elif listing[node, url] != row:
            faults.append(Fault(f"{member.name} lists an older {url} of {names[node]}", member))
    return faults


def _failure(members: Sequence[Member], faults: Sequence[Fault], timeout: float) -> LabError:
    down = [Fault(f"{member.name} is not running ({member.state})", member) for member in members if not member.running]
    missing = [*faults, *down] or [Fault("what the registries list still changes")]
    lines = [f"- {fault.text}" for fault in missing[:MOST]]
    if len(missing) > MOST:
        lines.append(f"- and {len(missing) - MOST} more")
    culprit = next((fault.culprit for fault in (*down, *missing) if fault.culprit), None)
    words = culprit.last_words() if culprit else ""
    said = "\n".join(lines)
    return LabError(
        f"expected the mesh to settle within {timeout:g} s, but\n{said}\n"
        f"restart what is not running, or give settle() a longer timeout={words}"
    )
