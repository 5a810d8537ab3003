"""What an operator is to know of those that a service writes to, and of who comes: who is there, who is not, and why.

All of it is said once, when it becomes news. A peer that is away is tried a thousand times an hour: that is said when
it begins, when there is another reason, at intervals that double, and when it is over. Of nodes that fare alike the
first is named, those that follow it soon are counted. Of one event loop, but for `fates`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from kodo.core import events as ev
from kodo.core.instructions import Entry, Instruction, Save, Send
from kodo.core.ledger import row_of
from kodo.errors import KodoError, RejectedError, UnavailableError, duration
from kodo.models import Key, canonical

log = logging.getLogger("kodo")

AGAIN = 60.0
"""Seconds after which it is said again that a peer is away; each time after is twice as late."""
COUNTED = 60.0
"""Seconds for which nodes that fare like one that was named are counted, before their number is said."""
Fate = Literal["registered", "left", "went offline", "came back", "dropped"]
"""What becomes of a node that is registered here."""
BUSY = (429, 503)
"""Answers of a peer that is there, and wants to be asked later."""
CLOSED = (401, 403)
"""Answers after which a peer is not asked any more, which `Runtime` says."""


@dataclass(slots=True)
class _Trouble:
    """A peer that does not answer as it should: since when, how often it was tried, why, and when to say so next."""

    since: float
    say_at: float
    why: str = ""
    tries: int = 0
    reasons: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        tries = "1 try" if self.tries == 1 else f"{self.tries} tries"
        return f"after {tries} in {duration(time.monotonic() - self.since)}"


@dataclass(slots=True)
class _Count:
    """The nodes that fared alike since one was named, until the timer ends."""

    timer: asyncio.TimerHandle
    nodes: set[str] = field(default_factory=set)


class Contacts:
    """Who answers, who does not, and who comes. Peers are known by the address that they are written to."""

    def __init__(self) -> None:
        self._met: set[str] = set()
        self._came: set[Key] = set()
        self._troubles: dict[str, _Trouble] = {}
        self._counting: dict[Fate, _Count] = {}

    @property
    def why(self) -> dict[str, str]:
        """Why those do not answer that do not, by their addresses."""
        return {address: trouble.why for address, trouble in self._troubles.copy().items()}

    def answered(self, send: Send) -> None:
        """A peer has answered, as it should."""
        trouble = self._troubles.pop(send.address, None)
        if send.route == "/disconnect":
            self.parted(send)
        elif send.route in _MEETING and send.address not in self._met:
            self._met.add(send.address)
            log.info("%s %s%s", _MEETING[send.route], send.address, f", {trouble}" if trouble else "")
        elif trouble is not None:
            log.info("%s answers again, %s", send.address, trouble)

    def failed(self, send: Send, error: KodoError) -> None:
        """A peer did not answer as it should: `RejectedError`, or `UnavailableError` if it is to be tried again."""
        now = time.monotonic()
        begins = send.address not in self._troubles
        trouble = self._troubles.setdefault(send.address, _Trouble(now, now + AGAIN))
        trouble.why = str(error)
        trouble.tries += 1
        if now < trouble.say_at and trouble.why in trouble.reasons:
            return
        if now >= trouble.say_at:
            trouble.say_at = trouble.since + 2 * (now - trouble.since)
        trouble.reasons.add(trouble.why)
        if not (isinstance(error, RejectedError) and error.answered in CLOSED):
            log.warning("%s %s%s: %s", send.address, _state(error), "" if begins else f", {trouble}", error)

    def unknown(self, send: Send) -> None:
        """A registry does not know this node, or not any more."""
        log.info("%s does not know this node any more, which registers again", send.address)
        self._met.discard(send.address)

    def parted(self, send: Send) -> None:
        """A peer was told that this service leaves, or knew nothing of it."""
        self._troubles.pop(send.address, None)
        self._met.discard(send.address)
        log.info("left %s", send.address)

    def connected(self, url: str) -> None:
        """A registry has connected by itself."""
        if (key := canonical(url)) not in self._came:
            self._came.add(key)
            log.info("%s connected to this registry", url)

    def became(self, fate: Fate, url: str) -> None:
        """Something has become of a node that is registered here."""
        if fate in self._counting:
            self._counting[fate].nodes.add(url)
        else:
            log.info("node %s %s", url, fate)
            self._count(fate)

    def disconnected(self, url: str) -> None:
        """A node or a registry has left; what is to be said of a node, `became` is told."""
        key = canonical(url)
        met = {address for address in self._met if canonical(address) == key}
        if met or key in self._came:
            log.info("%s has left", url)
        self._came.discard(key)
        self._met -= met
        for address in {url, *met}:
            self._troubles.pop(address, None)

    def close(self) -> None:
        """Say what was counted, and count nobody any more."""
        for fate, count in self._counting.items():
            count.timer.cancel()
            _say(fate, count.nodes)
        self._counting.clear()

    def _count(self, fate: Fate) -> None:
        self._counting[fate] = _Count(asyncio.get_running_loop().call_later(COUNTED, partial(self._sum_up, fate)))

    def _sum_up(self, fate: Fate) -> None:
        if nodes := self._counting.pop(fate).nodes:
            _say(fate, nodes)
            self._count(fate)


def _say(fate: Fate, nodes: Collection[str]) -> None:
    """Say how nodes fared that were counted; what else became of them meanwhile may have been said before."""
    if nodes:
        who = f"node {next(iter(nodes))}" if len(nodes) == 1 else f"{len(nodes)} more"
        log.info("%s %s within the last %s", who, fate, duration(COUNTED))


def fates(event: ev.Event, instructions: Iterable[Instruction], registry: Key) -> Iterator[tuple[Fate, str]]:
    """What an event and what is done about it come to for the nodes that are registered at `registry`, by their urls.

    A first beat is nothing of it, nor is what a node does that is registered elsewhere.
    """
    if isinstance(event, ev.Concerning) and not isinstance(event, ev.Start):
        for done in instructions:
            for entry in done.entries if isinstance(done, Save) else ():
                if entry.origin == registry and entry.via is None and (fate := _fate(event, entry)):
                    yield fate, entry.node.url


def _fate(event: ev.Concerning, entry: Entry) -> Fate | None:
    before = row_of(event.rows, entry.origin, entry.key)
    if before is None or before.gone or before.via is not None:
        return None if entry.gone else "registered"
    if entry.gone:
        return "left" if entry.node.modified else "dropped"
    return _TURNS.get((before.status, entry.node.status))


_TURNS: dict[tuple[str, str], Fate] = {("online", "offline"): "went offline", ("offline", "online"): "came back"}
_MEETING = {"/register": "registered at", "/connect": "connected with"}


def _state(error: KodoError) -> str:
    if isinstance(error, UnavailableError):
        return "is away" if error.answered is None else "is not ready" if error.answered in BUSY else "fails"
    if isinstance(error, RejectedError) and error.foreign:
        return "answers, but is no kodo registry"
    return "refuses" if isinstance(error, RejectedError) and error.answered else "answers what cannot be taken"
