"""The trace of a service: each protocol message that it sent or received, in a ring that readers follow.

It is there only where the option `trace` is on (a lab turns it on for its members); a service without it notes
nothing and pays nothing. Its rules:

- A message is noted when it ends, with its outcome. One that is still on its way after `PATIENCE` is noted then
  already, without an end, and again when it ends: who reads takes the later note of the same id and direction.
- The ring keeps the last `limit` notes. A reader holds a place in it, never a queue of its own, so that a slow one
  costs nothing; what it was too slow for is counted (`missed`).
- Moments are both UTC, for people, and of the monotonic clock, which the services of one machine share.
- What a message carried is counted, never kept.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from kodo.models import now

HEADER = "Kodo-Message"
"""The header of a request that carries the message's id, so that both ends note the same message."""
LIMIT = 10_000
PATIENCE = 0.25
"""Seconds after which a message that is still on its way is noted."""
LONGEST_ID = 64

Direction = Literal["sent", "received"]


@dataclass(slots=True)
class Message:
    """A protocol message as one of its two ends saw it.

    `outcome` is `200`, `refused 422`, `cut`, `lost: ` and why, or None as long as nobody knows; `ended` and `end` are
    None while it is on its way. `peer` is the url of the other end; of a message that was refused unread nobody's.
    `held` says that it, or its answer, met a cut and waited there.
    """

    id: str
    direction: Direction
    peer: str | None
    route: str
    nodes: int = 0
    bytes: int = 0
    outcome: str | None = None
    began: str = ""
    start: float = 0.0
    ended: str | None = None
    end: float | None = None
    held: bool = False

    def plain(self) -> dict[str, Any]:
        """As it is written into JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Slice:
    """What a reader gets: notes, the place after them, and how many are gone that it never got."""

    notes: list[Message]
    place: int
    missed: int


class Trace:
    """The ring of a service. It belongs to the service's event loop."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.nonce = secrets.token_hex(4)
        self._ring: deque[Message] = deque(maxlen=limit)
        self._noted = 0
        self._news = asyncio.Event()
        self._ids = 0

    @contextmanager
    def message(
        self, direction: Direction, peer: str | None, route: str, given: str | None = None
    ) -> Iterator[Message]:
        """Note a message that happens in this block, which fills in what it finds; an error is its outcome.

        `given` is the id that came with it, taken if it is one.
        """
        message = Message(self._id(given), direction, peer, route, began=now(), start=time.monotonic())
        timer = asyncio.get_running_loop().call_later(PATIENCE, self._note_on_its_way, message)
        try:
            yield message
        except BaseException as error:
            if message.outcome is None:
                message.outcome = f"lost: {type(error).__name__}"
            raise
        finally:
            timer.cancel()
            message.outcome = message.outcome or "lost: no answer"
            message.ended, message.end = now(), time.monotonic()
            self.note(message)

    def note(self, message: Message) -> None:
        """Add a note to the ring, and wake who waits for one."""
        self._ring.append(message)
        self._noted += 1
        news, self._news = self._news, asyncio.Event()
        news.set()

    def since(self, place: int, most: int) -> Slice:
        """At most `most` notes from a place on; place 0 is before the first."""
        first = self._noted - len(self._ring)
        begin = max(place, first)
        notes = [self._ring[number - first] for number in range(begin, min(begin + most, self._noted))]
        return Slice(notes, begin + len(notes), begin - place)

    def place_after(self, event_id: str | None) -> int:
        """The place after the event of this id (`nonce-number`); before the first for an unknown one."""
        nonce, _, number = (event_id or "").partition("-")
        if nonce != self.nonce or not (number.isascii() and number.isdecimal()) or len(number) > len(str(self._noted)):
            return 0
        return int(number) if int(number) <= self._noted else 0

    async def wait(self, place: int) -> None:
        """Wait until there is something after a place."""
        while place >= self._noted:
            await self._news.wait()

    def _id(self, given: str | None) -> str:
        if given is not None and 0 < len(given) <= LONGEST_ID and given.isascii() and given.isprintable():
            return given
        self._ids += 1
        return f"{self.nonce}-{self._ids}"

    def _note_on_its_way(self, message: Message) -> None:
        self.note(replace(message))


def nodes_in(message: Mapping[str, Any]) -> int:
    """How many nodes a protocol message speaks of; a registration speaks of one."""
    if "flows" in message:
        return 1
    deltas = message.get("deltas") or ()
    named = {key for delta in deltas for key in (delta["records"] if isinstance(delta, dict) else delta.records)}
    return max(len(message.get("nodes") or ()), len(named))
