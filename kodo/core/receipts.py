"""Receipts: who has a change, told back along the way it came (FEDERATION.md, rule 16).

An echo algorithm (E. Chang, "Echo Algorithms", IEEE TSE 1982): whoever takes in a change with an ask passes both on to
its other peers, and confirms once all of them have, naming the registries that were reached. A second copy is confirmed
at once with nothing; whoever repeats its own ask, since the answer was lost, is told the same again. What is not
confirmed in time is named as missing; each hop has a little less time than the one before, so that partial answers
still arrive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile

from kodo.models import Ask, Key, Receipt, Version, canonical

SHARE = 0.9
"""How much of its own time a registry gives to those it asks."""
MOST_NAMED = 2**14
"""Registries that a receipt names."""
KEPT = 60.0
"""Seconds for which an ask is remembered after it is closed, so that a late copy is known as one."""

Change = tuple[Key, Version]
"""An origin, and the version that is asked about."""


@dataclass(slots=True)
class Open:
    """An ask that is not confirmed yet: who asked (`ticket`: a request here), who was asked and has not answered."""

    asked_by: Key | None
    ticket: int | None
    began: float
    until: float
    waiting: set[Key]
    reached: set[Key] = field(default_factory=set)
    missing: set[Key] = field(default_factory=set)


class Receipts:
    """The asks that one registry, `key`, knows of. Times are seconds of the monotonic clock."""

    def __init__(self, key: Key) -> None:
        """Nobody has asked yet."""
        self.key = key
        self.open: dict[Change, Open] = {}
        self.closed: dict[Change, tuple[float, Open]] = {}

    def known(self, change: Change) -> Open | None:
        """The ask like this that was heard before, open or closed, if any: another is a second copy."""
        return self.open.get(change) or self.closed.get(change, (0.0, None))[1]

    def begin(self, change: Change, peers: Iterable[Key], clock: float, within: float, asked_by: Key | int) -> Open:
        """Somebody asks: a peer by its key, or a request here by its ticket."""
        by, ticket = (None, asked_by) if isinstance(asked_by, int) else (asked_by, None)
        self.open[change] = Open(by, ticket, clock, clock + within, set(peers), {self.key})
        return self.open[change]

    def ask(self, change: Change, clock: float) -> Ask:
        """What the peers are asked: in a little less time than there is."""
        within = max(0.01, (self.open[change].until - clock) * SHARE)
        return Ask(origin=change[0], version=change[1], within=within)

    def confirmed(self, peer: Key, receipt: Receipt) -> None:
        """A peer has answered."""
        asked = self.open.get((canonical(receipt.origin), receipt.version))
        if asked is not None and peer in asked.waiting:
            asked.waiting.discard(peer)
            for known, told in ((asked.reached, receipt.reached), (asked.missing, receipt.missing)):
                known.update(map(canonical, told[: max(0, MOST_NAMED - len(known))]))

    def has(self, peer: Key, change: Change) -> None:
        """A peer has the change by another way: whoever told it asks it, too."""
        asked = self.open.get(change)
        if asked is not None and peer in asked.waiting:
            asked.waiting.discard(peer)
            if len(asked.reached) < MOST_NAMED:
                asked.reached.add(peer)

    def gone(self, peer: Key) -> None:
        """A peer has left; nobody waits for it."""
        for asked in self.open.values():
            asked.waiting.discard(peer)

    def end(self, change: Change, clock: float) -> None:
        """Take out one ask, whose answer is on its way."""
        self.closed[change] = (clock + KEPT, self.open.pop(change))

    def close(self, clock: float) -> list[tuple[Change, Open]]:
        """Take out the asks that are answered, or whose time is over."""
        done = [(change, asked) for change, asked in self.open.items() if not asked.waiting or asked.until <= clock]
        for change, asked in done:
            self.end(change, clock)
            asked.missing = (asked.missing | asked.waiting) - asked.reached
        # All are kept equally long: the first that is to be kept has only such behind it.
        for change in list(takewhile(lambda change: self.closed[change][0] <= clock, self.closed)):
            del self.closed[change]
        return done

    def due(self) -> float | None:
        """When the next ask runs out."""
        return min((asked.until for asked in self.open.values()), default=None)


def receipt(change: Change, asked: Open | None = None) -> Receipt:
    """The confirmation of an ask; of a second copy with nothing in it."""
    reached, missing = (asked.reached, asked.missing) if asked else ((), ())
    return Receipt(origin=change[0], version=change[1], reached=tuple(sorted(reached)), missing=tuple(sorted(missing)))
