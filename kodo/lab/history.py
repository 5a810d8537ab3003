"""What happened in a lab: messages as the members noted them, and what became of members and links.

Members keep a trace (`GET /events?kind=messages`). It is read when somebody wants to see it, and before a member is
ended or paused, since its trace goes with it. Both ends of a message note it; here the two notes are one again.

- Moments are those of the monotonic clock, which the lab and its members share; `utc` is for people.
- What is kept is bounded; what is gone is counted, and said where it would be shown.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import httpx

from kodo.client import lines_of
from kodo.lab.naming import Names
from kodo.models import later, now

KEPT = 100_000
"""Notes of messages that a lab keeps."""
PATIENCE = 2.0
"""Seconds that a member gets to tell its trace."""
AT_ONCE = 8
CHATTER = {"/heartbeat"}
"""Routes of messages that tell no news."""

Note = dict[str, Any]
"""`kodo.trace.Message` as JSON, with `by`, the name of who noted it."""
Entry = dict[str, Any]
"""A line of a record: an event or a note, with `at`, its moment."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message between two services: when it left, arrived, was answered, and when its sender knew.

    `outcome` is what its sender saw, or else its receiver: `200`, `refused 422`, `lost: ConnectError`, `cut`; None
    while it is on its way. `held` says that it, or its answer, waited at a cut.
    """

    id: str
    sender: str
    receiver: str
    route: str
    nodes: int
    bytes: int
    outcome: str | None
    utc: str
    sent: float | None
    received: float | None
    answered: float | None
    ended: float | None
    held: bool = False

    @property
    def began(self) -> float:
        """When it was first seen."""
        return self.sent if self.sent is not None else self.received or 0.0

    @property
    def arrived(self) -> bool:
        """Whether its receiver got it, as far as anyone knows."""
        return self.received is not None or self.outcome == "200" or (self.outcome or "").startswith("refused")

    @property
    def delivered(self) -> bool:
        """Whether it arrived and its sender knows."""
        return self.outcome == "200"

    @property
    def news(self) -> bool:
        """Whether it tells anything; a beat and a beacon only say that somebody is there."""
        return self.route not in CHATTER and (self.nodes > 0 or self.route != "/update/node")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that became of a member or a link.

    `what` is `launched`, `started`, `exited`, `paused` or `resumed`, of the member `who`; `fault` or `healed`, with the
    fault's label. `code` is that of the process that exited; minus the signal's number when one ended it.
    """

    what: str
    who: str
    at: float = field(default_factory=time.monotonic)
    utc: str = field(default_factory=now)
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """What time it is: `moment` in seconds, as messages and events have it, and `utc` for people."""

    moment: Callable[[], float] = time.monotonic
    utc: Callable[[], str] = now


class History:
    """Collects what happened. It may be used from any thread."""

    def __init__(self, kept: int = KEPT, clock: Clock | None = None) -> None:
        """Nothing has happened yet."""
        self.clock = clock or Clock()
        self.began = self.clock.moment()
        self.events: list[Event] = []
        self.missed = 0
        self._kept = kept
        self._notes: dict[tuple[str, str], Note] = {}
        self._places: dict[str, str] = {}
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._sinks: list[Callable[[Entry], None]] = []

    # -- what is told --------------------------------------------------------------------------------------

    def note(self, what: str, who: str, code: int | None = None, at: float | None = None, **more: Any) -> None:
        """Note an event, now or `at` a moment that is gone; `more` is for records alone."""
        moment = self.clock.moment()
        at = moment if at is None else at
        event = Event(what, who, at, later(self.clock.utc(), timedelta(seconds=at - moment)), code)
        with self._lock:
            self.events.append(event)
        self._tell({"event": what, "who": who, "code": code, "at": event.at, "utc": event.utc, **more})

    def take(self, by: str, note: Note) -> None:
        """Take a note of a member; a later one of the same message replaces it."""
        known = {**note, "by": by}
        with self._lock:
            self._notes.pop((note["id"], note["direction"]), None)
            self._notes[note["id"], note["direction"]] = known
            while len(self._notes) > self._kept:
                del self._notes[next(iter(self._notes))]
                self.missed += 1
        self._tell({"message": known, "at": note["start"] if note["end"] is None else note["end"]})

    @property
    def followed(self) -> bool:
        """Whether anybody wants to be told."""
        return bool(self._sinks)

    def follow(self, sink: Callable[[Entry], None]) -> Callable[[], None]:
        """Tell `sink` of everything from now on; what is returned ends that."""
        self._sinks.append(sink)
        return lambda: self._sinks.remove(sink)

    def _tell(self, entry: Entry) -> None:
        for sink in list(self._sinks):
            sink(entry)

    # -- reading the members' traces -----------------------------------------------------------------------

    def pull(self, members: Iterable[tuple[str, str]], patience: float = PATIENCE) -> None:
        """Read what these members, name and url, have noted since the last time; who does not answer is left out."""
        asked, pull = list(members), partial(self._pull_one, patience=patience)
        with self._reading:
            if len(asked) > 1:
                with ThreadPoolExecutor(min(AT_ONCE, len(asked)), thread_name_prefix="kodo-lab-trace") as threads:
                    try:
                        doing = [threads.submit(pull, *each) for each in asked]
                    except RuntimeError:  # as the interpreter ends, no thread begins anything
                        doing = []
                    asked = asked[len(doing) :]
                    for done in doing:
                        done.result()
            for each in asked:
                pull(*each)

    def _pull_one(self, name: str, url: str, patience: float) -> None:
        headers = {"Last-Event-ID": self._places[name]} if name in self._places else {}
        with suppress(httpx.HTTPError), httpx.Client(timeout=patience, trust_env=False, verify=False) as client:
            address = url.rstrip("/") + "/events?kind=messages"
            with client.stream("GET", address, headers=headers) as answer:
                if answer.status_code == 200:
                    self._read(name, lines_of(answer.iter_bytes()))

    def _read(self, name: str, lines: Iterable[bytes]) -> None:
        for word, value in _fields(lines):
            if word == "id":
                self._places[name] = value
            elif word == "data":
                content = json.loads(value)
                if "missed" in content:
                    self.missed += content["missed"]
                else:
                    self.take(name, content)

    # -- what is known -------------------------------------------------------------------------------------

    def messages(self, names: Names) -> list[Message]:
        """All messages, in the order in which they left."""
        with self._lock:
            notes = list(self._notes.values())
        return merged(notes, names)


def _fields(lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The fields of server-sent events, up to the comment that says that all is told."""
    for line in map(bytes.decode, lines):
        if line == ": caught up":
            return
        word, _, value = line.partition(": ")
        if word:
            yield word, value


def merged(notes: Sequence[Note], names: Names) -> list[Message]:
    """Notes of the two ends as messages, in the order in which they left."""
    ends: dict[str, dict[str, Note]] = {}
    for note in notes:
        ends.setdefault(note["id"], {})[note["direction"]] = note
    return sorted((_message(pair, names) for pair in ends.values()), key=lambda message: (message.began, message.id))


def _message(pair: dict[str, Note], names: Names) -> Message:
    sent, received = pair.get("sent"), pair.get("received")
    first = sent or received
    assert first is not None
    return Message(
        id=first["id"],
        sender=sent["by"] if sent else _name(names, first["peer"]),
        receiver=received["by"] if received else _name(names, first["peer"]),
        route=first["route"],
        nodes=first["nodes"],
        bytes=first["bytes"],
        outcome=first["outcome"],
        utc=first["began"],
        sent=_moment(sent, "start"),
        received=_moment(received, "start"),
        answered=_moment(received, "end"),
        ended=_moment(sent, "end"),
        held=bool(sent and sent.get("held")),
    )


def _moment(note: Note | None, which: str) -> float | None:
    return None if note is None else note[which]


def _name(names: Names, url: str | None) -> str:
    if url is None:
        return "unknown"
    try:
        return names[url]
    except ValueError:
        return url
