"""What was recorded of a real lab, done again in a simulated one: the same deeds at the same times, in virtual time.

Done again are starts, ends, pauses, faults, and registrations by hand; what the services make of it, the simulator
finds out anew, so that its timeline and its flows can be set beside the recorded ones. A member starts at the moment at
which it was about to answer. What its loader offered is known from its flows, or else from what it was seen to list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kodo.errors import LabError
from kodo.lab.faults import Effect, Way
from kodo.lab.flows import Row
from kodo.lab.history import Event, Note
from kodo.models import canonical

if TYPE_CHECKING:
    from kodo.lab.mesh import MeshLab
    from kodo.lab.replay import Record

FLOW = ("name", "url", "description", "author", "tags")
KILLED = -9


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that was done to the mesh, and when."""

    at: float
    do: Callable[[], Any]


def done_again(record: Record, lab: MeshLab) -> None:
    """Do all that is in a record, in a simulated lab without members. Raises `LabError` for a record that lacks it."""
    for deed in sorted(_deeds(record, lab), key=lambda deed: deed.at):
        lab.run(max(0.0, deed.at - record.began - lab.history.clock.moment()))
        deed.do()
    lab.run(max(0.0, record.until - record.began - lab.history.clock.moment()))


def _deeds(record: Record, lab: MeshLab) -> Iterator[Deed]:
    for event in record.events:
        match event.what:
            case "started":
                yield Deed(event.at, partial(_start, record, lab, event))
            case "exited" | "paused" | "resumed":
                yield Deed(event.at, partial(_change, lab, event))
    for at, what, label, effects in record.effects:
        yield Deed(at, partial(_fault if what == "fault" else _heal, lab, label, effects))
    urls = {canonical(url) for _, url in record.members.values()}
    for note in record.notes:
        by_hand = note["peer"] is not None and canonical(note["peer"]) not in urls
        if note["direction"] == "received" and note["route"] == "/register" and note["outcome"] == "200" and by_hand:
            yield Deed(note["start"], partial(_register, record, lab, note))


def _start(record: Record, lab: MeshLab, event: Event) -> None:
    name = event.who
    kind, url = record.members[name]
    told = [setup for at, who, setup in record.setups if who == name and at <= event.at]
    if not told:
        raise LabError(f"expected the record to say how {name} was started; record the lab again, with this version")
    flows = told[-1]["flows"]
    if flows is None:
        flows = _offered(record, name, event.at)
    options = {**told[-1]["options"], "url": url, "flows": flows if kind == "node" else None}
    if name not in lab:
        lab.add(kind, name, options)
        return
    member = lab[name]
    member.await_start(member.launch(lab.changed_setup(member.setup, options)))


def _offered(record: Record, name: str, since: float) -> list[Row]:
    """What a node listed of itself after it had started, or what others listed of it then."""
    url = record.members[name][1]
    again = [event.at for event in record.events if (event.what, event.who) == ("launched", name) and event.at > since]
    until = min(again, default=record.until)
    seen = [(who, rows) for at, who, rows in record.listings if since <= at <= until]
    own = [rows for who, rows in seen if who == name]
    others = [rows for _, rows in seen if any(row["node"] == url for row in rows)]
    if not own and not others:
        raise LabError(
            f"expected the record to tell what {name} offered, whose loader is a function; "
            "let it run for some seconds while it is recorded, or give the node flows="
        )
    return _flows_of((own or others)[0], url)


def _flows_of(rows: Iterable[Row], node: str) -> list[Row]:
    return [{key: row[key] for key in FLOW} for row in rows if row["node"] == node]


def _change(lab: MeshLab, event: Event) -> None:
    if event.who not in lab or not lab[event.who].running:
        return
    member = lab[event.who]
    if event.what == "exited":
        (member.kill if event.code == KILLED else member.terminate)()
    else:
        (member.pause if event.what == "paused" else member.resume)()


def _fault(lab: MeshLab, label: str, effects: dict[Way, Effect]) -> None:
    lab.faults.begin(label, {way: effect for way, effect in effects.items() if way[0] in lab and way[1] in lab})


def _heal(lab: MeshLab, label: str, effects: dict[Way, Effect]) -> None:
    found = next((fault for fault in lab.faults.active if fault.label == label), None)
    if found is not None:
        found.heal()


def _register(record: Record, lab: MeshLab, note: Note) -> None:
    node, registry = note["peer"], note["by"]
    later = [rows for at, who, rows in record.listings if who == registry and at >= note["start"]]
    rows = next((found for found in ([row for row in rows if row["node"] == node] for rows in later) if found), [])
    flows = _flows_of(rows, node)
    organization = rows[0]["organization"] if rows else None
    lab[registry].post("/register", {"url": node, "organization": organization, "flows": flows})
