"""What an operator is to know of those that a service writes to, and of who comes: who is there, who is not, and why.

All of it is said once, when it becomes news. A peer that is away is tried a thousand times an hour: that is said when
it begins, when there is another reason, at intervals that double, and when it is over. Of nodes that register the first
is named, those that follow it soon are counted. Of one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from kodo.core.instructions import Send
from kodo.errors import KodoError, RejectedError, UnavailableError, duration
from kodo.models import Key, canonical

log = logging.getLogger("kodo")

AGAIN = 60.0
"""Seconds after which it is said again that a peer is away; each time after is twice as late."""
ARRIVALS = 60.0
"""Seconds for which nodes that register for the first time are counted, before their number is said."""
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


class Contacts:
    """Who answers, who does not, and who comes. Peers are known by the address that they are written to."""

    def __init__(self) -> None:
        self._met: set[str] = set()
        self._came: set[Key] = set()
        self._troubles: dict[str, _Trouble] = {}
        self._counting: asyncio.TimerHandle | None = None
        self._arrived = 0

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
            log.info("%s connected from there", url)

    def registered(self, url: str) -> None:
        """A node has registered that was not registered before."""
        if self._counting is None:
            log.info("node %s registered", url)
            self._count()
        else:
            self._arrived += 1

    def disconnected(self, url: str) -> None:
        """A node or a registry has left; one line for a registry alone, of which there are few."""
        if (key := canonical(url)) in self._came:
            self._came.remove(key)
            log.info("%s has left", url)
        self._troubles.pop(url, None)

    def close(self) -> None:
        """Count nobody any more."""
        if self._counting is not None:
            self._counting.cancel()

    def _count(self) -> None:
        self._counting = asyncio.get_running_loop().call_later(ARRIVALS, self._sum_up)

    def _sum_up(self) -> None:
        self._counting = None
        if self._arrived:
            log.info("%d more registered within %s", self._arrived, duration(ARRIVALS))
            self._arrived = 0
            self._count()


_MEETING = {"/register": "registered at", "/connect": "connected with"}


def _state(error: KodoError) -> str:
    if isinstance(error, UnavailableError):
        return "is away" if error.answered is None else "is not ready"
    if isinstance(error, RejectedError) and error.foreign:
        return "answers, but is no kodo registry"
    return "refuses" if isinstance(error, RejectedError) and error.answered else "answers what cannot be taken"
