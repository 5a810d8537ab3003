"""Settling: waiting until a mesh has nothing more to say, and naming what is missing when it goes on.

A mesh has settled when, twice in a row, every registry is idle, every connection that a running member was told to
make stands, and registries that belong together list the same flows with the same times. Who belongs together follows
from what was asked and what was answered: also over a member that does not run, for that is then what is missing.
A provider takes nothing, so it is never blamed for what it lacks; what it lists, those that it connects with list too.
Of a simulated mesh it is known when nothing is on its way; then one look will do.

Who does not run is not waited for, and is named, with what for that reason no registry lists (`missing.py`): what is
owed to it keeps nobody from settling. Neither is a node that has no registry.

What it took is measured from the members' traces: how many messages since the mesh settled before, and when each
registry got its last news, counted from the last thing that was done to the mesh (a start, a fault, a heal, a resume).
Where nodes alone were started, that is when it first heard of them (`news.py`); other news is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from kodo.errors import KodoError, LabError
from kodo.lab.engine import Asking, Engine
from kodo.lab.faults import Fault as LabFault
from kodo.lab.flows import all_flows
from kodo.lab.history import Message
from kodo.lab.member import Member
from kodo.lab.missing import Missing, missing_among
from kodo.lab.naming import NONE_RUNS, Names, few, numbered, renamed
from kodo.lab.news import first_news, last_news
from kodo.lab.plain import wrapped
from kodo.lab.progress import Progress
from kodo.models import canonical

if TYPE_CHECKING:
    from pandas import DataFrame

    from kodo.lab.bars import Bars

ANSWER = 2.0
"""Seconds that a member gets for an answer; one that takes longer has not settled."""
MOST, FEW = 8, 3
"""Faults that an error names, and members that a text of one line does."""
UNSAID = {"greeting", "leaving"}
"""States of a peer to which there is something to be said beside news."""
DEEDS = {"launched", "resumed", "fault", "healed"}
"""What is done to a mesh, from which it is measured when registries know."""


@dataclass(frozen=True, eq=False)
class Settled:
    """A mesh that has settled: how many registries agree on how many flows, and what that took.

    `seconds` is how long it was waited for. `messages` were sent since the mesh settled before, beats not counted, of
    which `pushes` told other registries of nodes. `per_registry` says when each got its last news, in seconds from the
    last thing that was done to the mesh; 0 when it needed none. Providers take none, and are not counted. `missing` are
    the members that do not run, with what no registry lists because of that. `alone` are the nodes that run and have no
    registry, so that nobody lists them; `apart` the groups of registries that nothing connects, if there are several.
    """

    seconds: float
    registries: int
    flows: int
    messages: int = 0
    pushes: int = 0
    per_registry: Mapping[str, float] = field(default_factory=dict)
    missing: Sequence[Missing] = ()
    alone: Sequence[str] = ()
    apart: Sequence[Sequence[str]] = ()

    def __repr__(self) -> str:
        return f"<Settled: {'; '.join(self._said)}>"

    def __str__(self) -> str:
        agree, *wrong = self._said
        return "\n".join([f"<Settled: {agree}>", *(wrapped(f"- {text}", indent="  ") for text in wrong)])

    @property
    def _said(self) -> list[str]:
        agree = numbered(self.registries, "registry agrees", "registries agree") if self.registries else NONE_RUNS
        said = [agree, *map(str, self.missing[:FEW])]
        if len(self.missing) > FEW:
            said.append(f"and {len(self.missing) - FEW} more are missing")
        if self.alone:
            have, their = ("has", "its") if len(self.alone) == 1 else ("have", "their")
            said.append(f"{few(self.alone, FEW)} {have} no registry, so nobody lists {their} flows")
        if self.apart:
            groups = [", ".join([*group[:FEW], *["..."][: len(group) - FEW]]) for group in self.apart]
            said.append(f"nothing connects {few(groups, FEW, ' | ')}, so each lists its own alone")
        return said

    @property
    def p50(self) -> float:
        """The time within which half of the registries had their last news."""
        return median(self.per_registry.values()) if self.per_registry else 0.0

    @property
    def max(self) -> float:
        """The time within which all of them had it."""
        return max(self.per_registry.values(), default=0.0)

    @property
    def frame(self) -> DataFrame:
        """A row for each registry: `registry` and `seconds`, the first to know first."""
        from kodo.frames import frame_of  # noqa: PLC0415, pandas is imported when the first frame is asked for

        rows = sorted(self.per_registry.items(), key=lambda row: (row[1], row[0]))
        return frame_of([{"registry": name, "seconds": seconds} for name, seconds in rows], ["registry", "seconds"])

    def plot(self) -> Bars:
        """A picture of when each registry had its last news; where there was none, its title says so."""
        from kodo.lab.bars import Bars  # noqa: PLC0415, matplotlib takes its time

        known = numbered(len(self.per_registry), "registry", "registries")
        title = f"when {known} knew"
        if not any(self.per_registry.values()):
            title = f"nothing was new: {known} knew it all before" if self.per_registry else NONE_RUNS
        return Bars(title, self.per_registry)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is missing, and whose log may say why."""

    text: str
    culprit: Member | None = None
    unheard: bool = False


Listing = dict[tuple[str, str], dict[str, Any]]
"""The flows of a registry by node and url."""


@dataclass(slots=True)
class Look:
    """What the members answered at one moment."""

    connections: dict[str, dict[str, str | None]] = field(default_factory=dict)
    busy: list[Member] = field(default_factory=list)
    """The registries that are not idle."""
    listings: dict[str, Listing] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    """For each registry, the name that stands for all that belong together with it."""


@dataclass(frozen=True, slots=True)
class Trail:
    """What carries the mesh and notes what happens, and from when on messages count."""

    engine: Engine
    since: float

    @property
    def now(self) -> float:
        """This moment, as messages have it."""
        return self.engine.history.clock.moment()

    def messages(self, members: Iterable[Member]) -> list[Message]:
        """All messages up to now."""
        known = list(members)
        self.engine.pull([(member.name, member.url) for member in known if member.answers])
        return self.engine.history.messages(Names({member.name: member.url for member in known}))


def settle(members: Sequence[Member], timeout: float, trail: Trail, wait: Progress) -> Settled:
    """Wait until the mesh has settled, and say what it waits for. Raises `LabError` after `timeout` seconds."""
    began = trail.now
    before: dict[str, Listing] | None = None
    with ExitStack() as stack:
        limit = max(0.1, min(ANSWER, timeout))
        clients = {member.name: stack.enter_context(trail.engine.client(member.url, limit)) for member in members}
        while True:
            left = timeout - (trail.now - began)
            late = left <= 0
            look = take_look(members, clients, thorough=late)
            if not look.faults and (trail.engine.at_rest or look.listings == before):
                missing = missing_among(members, look.listings, clients)
                return _measured(members, look, began, trail, missing)
            before = None if look.faults else look.listings
            missed = [fault.text for fault in look.faults]
            wait.say("; ".join(missed[:FEW] + ["..."] * (len(missed) > FEW)) or "the registries still learn")
            if late:
                raise _failure(members, look, timeout, trail, missing_among(members, look.listings, clients))
            trail.engine.wait(left)


def _measured(members: Sequence[Member], look: Look, began: float, trail: Trail, missing: Sequence[Missing]) -> Settled:
    seconds = round(trail.now - began, 6)
    sent = [message for message in trail.messages(members) if message.began >= trail.since and message.news]
    done = [event for event in trail.engine.history.events if event.what in DEEDS and event.at >= trail.since]
    deed = max([event.at for event in done], default=began)
    takers = [member.name for member in members if member.kind == "registry" and member.name in look.listings]
    nodes = {member.name for member in members if member.kind == "node"}
    only_nodes = bool(done) and all(event.what == "launched" and event.who in nodes for event in done)
    told = first_news({event.who: event.at for event in done}, sent) if only_nodes else last_news(sent)
    flows = {key for listing in look.listings.values() for key in listing}
    return Settled(
        seconds=seconds,
        registries=len(takers),
        flows=len(flows),
        messages=len(sent),
        pushes=sum(message.route == "/update/node" and message.nodes > 0 for message in sent),
        per_registry={name: max(0.0, round(told.get(name, deed) - deed, 6)) for name in takers},
        missing=missing,
        alone=_alone(members, look),
        apart=_apart(look.groups),
    )


def _apart(leaders: Mapping[str, str]) -> list[list[str]]:
    """The groups of registries that nothing connects, if there are several."""
    groups: dict[str, list[str]] = {}
    for name, lead in leaders.items():
        groups.setdefault(lead, []).append(name)
    return list(groups.values()) if len(groups) > 1 else []


def _alone(members: Sequence[Member], look: Look) -> list[str]:
    """The nodes that register with nobody, and that no registry lists because somebody else registered them."""
    listed = {canonical(node) for listing in look.listings.values() for node, _ in listing}
    nodes = [member for member in members if member.kind == "node" and not member.setup.options.get("registry")]
    told = [node for node in nodes if node.name in look.connections and not look.connections[node.name]]
    return [node.name for node in told if canonical(node.url) not in listed]


def take_look(members: Sequence[Member], clients: Mapping[str, Asking], *, thorough: bool) -> Look:
    """Ask who is there, and compare listings once everything else is in order, or at once when it is `thorough`."""
    look = Look()
    names = Names({member.name: member.url for member in members})
    running = [member for member in members if member.running]
    for member in running:
        _ask(look, member, clients[member.name], names)
    gone = {member.name for member in members if not member.running}
    for member in look.busy:
        owing = _owing(clients[member.name], names) if gone or thorough else {}
        look.faults += _unsaid(member, owing, gone)
    registries = [member for member in running if member.kind != "node" and member.answers]
    if thorough or not look.faults:
        look.groups = groups_of(members, look.connections, names)
        _read_listings(look, registries, clients)
        look.faults += _disagreements(look, registries, names)
    return look


def expected_by(members: Sequence[Member]) -> dict[str, frozenset[str]]:
    """For each node the registries that are to list it: those it registers with, and all that these tell."""
    names = Names({member.name: member.url for member in members})
    groups = groups_of(members, {}, names)
    providers = {member.name: member for member in members if member.kind == "provider"}
    expected = {}
    for node in members:
        sources = {names[url] for url in node.connect} if node.kind == "node" else set()
        leaders = {groups[name] for name in sources if name in groups}
        for name in sources & set(providers):
            leaders |= _told_by(providers[name], members, groups, names)
        expected[node.name] = frozenset(sources & set(providers) | {name for name in groups if groups[name] in leaders})
    return expected


def _told_by(provider: Member, members: Sequence[Member], groups: Mapping[str, str], names: Names) -> set[str]:
    called = {names[url] for url in provider.connect}
    callers = {member.name for member in members if provider.name in {names[url] for url in member.connect}}
    return {groups[name] for name in called | callers if name in groups}


def _ask(look: Look, member: Member, client: Asking, names: Names) -> None:
    if member.paused:
        look.faults.append(Fault(f"{member.name} is paused", member))
        return
    try:
        status = client.status()
    except KodoError as error:
        if member.running:
            look.faults.append(Fault(f"{member.name} does not answer: {renamed(str(error), names)}", member))
        return
    look.connections[member.name] = status["connection"]
    if member.kind != "node" and not status["idle"]:
        look.busy.append(member)
    for url, since in status["connection"].items():
        if since is None:
            # An answer comes back on the way of what it answers: what holds on the way back holds up others.
            holding = member.lab.faults.on((member.name, names[url]))
            text = f"the connection {member.name} -> {names[url]} does not stand"
            look.faults.append(Fault(text + _while(holding), _blamed(member, names[url])))


def _blamed(member: Member, other: str) -> Member:
    """Whose fault it is that a member does not reach another: the other's, if there is no use in asking it."""
    called = next((each for each in member.lab if each.name == other), member)
    return member if called.answers else called


def _owing(client: Asking, names: Names) -> dict[str, bool]:
    """For each peer of a registry, by its own word, whether it has something to tell it, as far as it says so."""
    try:
        peers = client.get("/convergence")["peers"]
    except KodoError:
        return {}
    return {names[url]: bool(peer["behind"]) or peer["state"] in UNSAID for url, peer in peers.items()}


def _unsaid(member: Member, owing: Mapping[str, bool], gone: Set[str]) -> list[Fault]:
    """What is wrong with a registry that is not idle: nothing, if it is so for the sake of who does not run alone."""
    owed = [name for name, owes in owing.items() if owes and name not in gone]
    if not owed and gone & owing.keys():
        return []
    holding = [fault for name in owed for fault in member.lab.faults.on((member.name, name))]
    whom = f" {few(owed, FEW)}" if owed else ""
    return [Fault(f"{member.name} is not idle: it still has something to tell{whom}{_while(holding)}", member)]


def _while(faults: Iterable[LabFault]) -> str:
    """What the lab itself does to messages, for who forgot."""
    holding = list(dict.fromkeys(fault.label for fault in faults))
    return f", while {' and '.join(holding)} {'holds' if len(holding) == 1 else 'hold'}" if holding else ""


def _read_listings(look: Look, registries: Iterable[Member], clients: Mapping[str, Asking]) -> None:
    for member in registries:
        try:
            rows = all_flows(clients[member.name])
        except KodoError:
            continue  # it was found not to answer, or ended a moment ago: the next look tells
        look.listings[member.name] = {
            (row["node"], row["url"]): {column: value for column, value in row.items() if column != "registry"}
            for row in rows
        }


def groups_of(members: Sequence[Member], connections: Mapping[str, Iterable[str]], names: Names) -> dict[str, str]:
    """For each registry, the name that stands for all that belong together with it, by what each was told and says."""
    leader = {member.name: member.name for member in members if member.kind == "registry"}
    for member in members:
        for url in {*member.connect, *connections.get(member.name, ())}:
            one, other = leader.get(member.name), leader.get(names[url])
            if one is not None and other is not None and one != other:
                leader = {name: one if lead == other else lead for name, lead in leader.items()}
    return leader


def _disagreements(look: Look, registries: Sequence[Member], names: Names) -> list[Fault]:
    groups, faults = look.groups, []
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
    """Of each node the flows of its latest registration that is listed anywhere."""
    latest: dict[str, tuple[str, Listing]] = {}
    for listing in listings:
        by_node: dict[str, Listing] = {}
        for (node, url), row in listing.items():
            by_node.setdefault(node, {})[node, url] = row
        for node, rows in by_node.items():
            modified = max(row["modified"] or "" for row in rows.values())
            if node not in latest or modified > latest[node][0]:
                latest[node] = modified, rows
    return {key: row for _, rows in latest.values() for key, row in rows.items()}


def _lacks(member: Member, listing: Listing, known: Listing, names: Names) -> list[Fault]:
    faults = []
    behind = {key[0] for key, row in known.items() if listing.get(key) != row}
    for (node, url), row in sorted(known.items()):
        if (node, url) not in listing:
            faults.append(Fault(f"{member.name} never learned {url} of {names[node]}", member, unheard=True))
        elif listing[node, url] != row:
            faults.append(Fault(f"{member.name} has an older {url} of {names[node]}", member, unheard=True))
    nodes = {node for node, _ in known} - behind
    for node, url in sorted(set(listing) - set(known)):
        if node in nodes:
            faults.append(Fault(f"{member.name} still lists {url} of {names[node]}", member, unheard=True))
    return faults


def _failure(members: Sequence[Member], look: Look, timeout: float, trail: Trail, gone: Sequence[Missing]) -> LabError:
    messages = trail.messages(members)
    handles = {member.name: member for member in members}
    down = [Fault(str(missing), handles[missing.name]) for missing in gone]
    found = [*look.faults, *_unheard_by_the_paused(members, look, messages), *down]
    missing = found or [Fault("what the registries list still changes")]
    lines = [f"- {fault.text}{_cause(fault, messages, trail.now)}" for fault in missing[:MOST]]
    if len(missing) > MOST:
        lines.append(f"- and {len(missing) - MOST} more")
    culprits = [culprit for fault in missing if (culprit := _culprit(fault, messages, handles))]
    culprits.sort(key=lambda culprit: not culprit.paused)
    words = culprits[0].last_words() if culprits else ""
    said = "\n".join(lines)
    return LabError(
        f"expected the mesh to settle within {timeout:g} s, but\n{said}\n"
        "restart what is not running, resume what is paused, heal() what is cut, or give settle() a longer timeout="
        f"{words}"
    )


def _unheard_by_the_paused(members: Sequence[Member], look: Look, messages: Sequence[Message]) -> list[Fault]:
    """What registries that are paused have not been told: all that is newer than the last message they took."""
    names = Names({member.name: member.url for member in members})
    groups, faults = look.groups, []
    for member in members:
        if not member.paused or member.kind != "registry":
            continue
        told = [message.utc for message in messages if message.receiver == member.name and message.delivered]
        there = [look.listings[name] for name in look.listings if groups.get(name) == groups[member.name]]
        own = {canonical(node.url) for node in members if member.url in node.connect}
        for (node, url), row in sorted(_latest(there).items()):
            if canonical(node) not in own and (row["modified"] or "") > max(told, default=""):
                text = f"{member.name} never learned {url} of {names[node]}"
                faults.append(Fault(text, member, unheard=True))
    return faults


def _cause(fault: Fault, messages: Sequence[Message], now: float) -> str:
    """Why news did not arrive: the last push that failed; and who cannot hear."""
    if fault.culprit is None or not fault.unheard:
        return ""
    name, state = fault.culprit.name, fault.culprit.state
    last, said = _last_push(name, messages), ""
    if last is not None:
        holding = fault.culprit.lab.faults.on((last.sender, last.receiver))
        said = f": last push {last.sender} -> {last.receiver} {_fate(last, now)}{_while(holding)}"
    return said if state == "running" else f"{said or ':'}{'; ' if said else ' '}{name} is {state}"


def _culprit(fault: Fault, messages: Sequence[Message], handles: Mapping[str, Member]) -> Member | None:
    """Whose log may say why: of news that did not arrive, that of who did not take it."""
    last = _last_push(fault.culprit.name, messages) if fault.culprit and fault.unheard else None
    return handles.get(last.receiver, fault.culprit) if last and fault.culprit else fault.culprit


def _last_push(name: str, messages: Sequence[Message]) -> Message | None:
    """The last push to a member that failed, or else the last that failed anywhere."""
    failed = [message for message in messages if message.news and message.nodes and not message.delivered]
    return next((message for message in reversed(failed) if message.receiver == name), failed[-1] if failed else None)


def _fate(message: Message, now: float) -> str:
    if message.ended is None and message.outcome != "cut":
        return f"on its way for {now - message.began:.1f} s"
    end = message.began if message.ended is None else message.ended
    return f"{(message.outcome or '').removeprefix('lost: ')} {now - end:.1f} s ago"
