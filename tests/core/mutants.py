"""The core with one rule taken out, to see that the tests would notice (invariant 14 of FEDERATION.md).

A mutant changes one thing of the core, for as long as a `with` block lasts, in the tests alone. `seeds_needed` runs a
check seed by seed until it fails. `python -m tests.core.mutants` prints the table of mutants, seeds and what caught
them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from kodo.core import ledger, parts, peers, registry
from kodo.core.ages import Ages
from kodo.core.leases import Leases, Sweep
from kodo.core.ledger import Ledger
from kodo.core.parts import Part, Row
from kodo.core.peers import Peer
from kodo.core.receipts import Receipts
from kodo.core.registry import Registry
from kodo.errors import KodoError
from kodo.models import NOTHING, Version
from tests.core import generators, runs

MOST_SEEDS = 60
"""Seeds after which a mutant has survived."""
Check = Callable[[int], Any]


@dataclass(frozen=True)
class Mutant:
    """One rule taken out: `patches` say what of the core is replaced by what, `check` is what has to notice."""

    rule: str
    what: str
    patches: tuple[tuple[Any, str, Any], ...]
    check: Check = runs.go

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The core is the mutant, while this lasts."""
        with ExitStack() as stack:
            for target, name, value in self.patches:
                stack.enter_context(mock.patch.object(target, name, value))
            yield


def _yes(*_: Any, **__: Any) -> bool:
    return True


def _no(*_: Any, **__: Any) -> bool:
    return False


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _takes_own(self: Ledger, part: Part, delta: Any, staging: Any) -> bool:
    whole = delta.since == NOTHING or (staging is not None and staging.whole)
    return delta.to > part.version and (whole or staging is not None or ledger._applies(delta, part))


def _take_own(self: Registry, delta: Any, news: Any, change: Any) -> None:
    self.ledger.take(change, delta, news)


def _by_clock(self: Part, unix: int, nonce: str) -> Part:
    epochs = (*self.epochs, self.version) if self.version != NOTHING else ()
    return replace(self, version=Version(unix, nonce, self.version.seq), epochs=epochs)


def _without_nonce(self: Part, unix: int, nonce: str) -> Part:
    epochs = (*self.epochs, self.version) if self.version != NOTHING else ()
    return replace(self, version=Version(max(self.version.seconds + 1, unix), "", self.version.seq), epochs=epochs)


def _whole_never(self: Ledger, change: Any, delta: Any, news: Any) -> bool:
    took: bool = _TAKE(self, change, delta, news)
    change.settled = [replace(settle, whole=False) for settle in change.settled]
    return took


def _unchecked(self: Ledger, change: Any, delta: Any, news: Any) -> bool:
    """What a delta says of its content would give the gap away as well: a second fence, taken down too."""
    return _TAKE(self, change, delta.model_copy(update={"content": None}), news)


def _page_is_all(self: Ledger, change: Any, delta: Any, news: Any) -> bool:
    return _TAKE(self, change, delta.model_copy(update={"complete": True, "content": None}), news)


def _old_enough(self: Registry, clock: float) -> float:
    return clock - self.timing.tombstones


def _acked_when_lost(self: Registry, event: Any) -> Any:
    peer = self.peers.get(event.peer)
    if peer is not None:
        for origin in peer.behind:
            peer.acked[origin] = self.parts[origin].version
        self._measure(peer, event.at.clock, self.parts.keys())
    return _LOST(self, event)


def _told_back(self: Registry, peer: Peer, origin: Any, version: Version) -> None:
    return None


def _deaf(self: Peer, clock: float) -> None:
    self.heard_at = clock


def _by_origin(self: Row) -> Any:
    return (self.origin, self.modified or "")


def _young(self: Ages, origin: Any, clock: float) -> int:
    return 0


def _sweep_unawares(self: Leases, clock: float) -> float:
    return 0.0


def _never_out(self: Leases, clock: float, **_: Any) -> Sweep:
    self.sweep_at = clock + 5
    return Sweep((), ())


_TAKE = Ledger.take
_LOST = Registry._lost


def _adopts_all(self: Registry, news: Any, change: Any) -> None:
    rows = {key: tuple(replace(row, modified=None) for row in found) for key, found in news.rows.items()}
    _TAKE_PLAIN(self, replace(news, rows=rows), change)


_TAKE_PLAIN = Registry._take_plain

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "1 single writer",
        "a registry takes in deltas of its own part",
        ((Ledger, "_takes", _takes_own), (Registry, "_take_delta", _take_own)),
    ),
    Mutant("2 version", "an epoch is the clock, not above the stored one", ((Part, "new_epoch", _by_clock),)),
    Mutant(
        "2 version",
        "an epoch has no nonce",
        ((Part, "new_epoch", _without_nonce),),
        generators.lost_disk_at_the_same_second,
    ),
    Mutant("3 watermark", "a page moves the mark", ((Ledger, "take", _page_is_all),), generators.pages_show_at_once),
    Mutant(
        "4 delta",
        "a delta is applied over a gap",
        ((ledger, "_applies", _yes), (Ledger, "take", _unchecked)),
        generators.gap,
    ),
    Mutant(
        "4 delta", "the history of epochs is not looked at", ((ledger, "on_history", _yes), (parts, "on_history", _yes))
    ),
    Mutant("5 reset", "a snapshot does not replace what was there", ((Ledger, "take", _whole_never),)),
    Mutant(
        "5 reset",
        "who is below the floor gets a difference",
        ((Part, "follows", lambda self, mark: parts.on_history(mark, self.version, self.epochs)),),
        generators.slept_through_tombstones,
    ),
    Mutant(
        "6 tombstones",
        "tombstones go whoever was away since",
        ((Registry, "_forgettable", _old_enough),),
        generators.left_while_another_was_away,
    ),
    Mutant(
        "7 flood",
        "what was lost counts as acknowledged",
        ((Registry, "_lost", _acked_when_lost), (Peer, "gets_beacons", False)),
        generators.lost_push,
    ),
    Mutant(
        "7 flood", "news is told back to whom it came from", ((Registry, "_has", _told_back),), generators.message_bound
    ),
    Mutant("8 sending", "nothing is gathered", ((registry, "GATHERING", 0.0),), generators.burst),
    Mutant("8 sending", "several messages to a peer at once", ((Peer, "busy", False),), generators.one_at_a_time),
    Mutant("9 backoff", "a sign of life ends no pause", ((Peer, "heard", _deaf),), generators.back_after_an_hour),
    Mutant("9 backoff", "pauses never grow", ((peers, "PAUSE_LIMIT", 0.0),), generators.dead_peer),
    Mutant(
        "10 handshake",
        "nobody takes an epoch above a higher mark",
        ((Ledger, "surpass", _nothing),),
        generators.older_disk,
    ),
    Mutant("11 beacon", "there are no beacons", ((Peer, "gets_beacons", False),), generators.lost_disk_in_silence),
    Mutant("11 beacon", "contents are not compared", ((Ledger, "compare", _nothing), (Registry, "_compare", _nothing))),
    Mutant("12 ages", "ages are not told", ((Ages, "told", _young),), generators.gone_for_good),
    Mutant("12 ages", "nobody is given up", ((Ages, "dead", _no),), generators.gone_for_good),
    Mutant(
        "13 leases",
        "a sweep does not make up for its pause",
        ((Leases, "_paused", _sweep_unawares), (Leases, "_freezes", _no)),
        generators.paused_registry,
    ),
    Mutant("13 leases", "no lease runs out", ((Leases, "sweep", _never_out),), generators.silent_node),
    Mutant("13 leases", "expiry is never frozen", ((Leases, "_freezes", _no),), generators.cut_off_registry),
    Mutant(
        "14 view", "the origin decides before the time", ((Row, "rank", property(_by_origin)),), generators.two_homes
    ),
    Mutant(
        "15 older services",
        "what is equal or older is adopted too",
        ((Registry, "_take_plain", _adopts_all),),
        generators.older_service,
    ),
    Mutant(
        "15 older services",
        "adopted records never yield",
        ((Registry, "_make_way", _nothing),),
        generators.adopted_then_registered,
    ),
    Mutant(
        "16 receipts", "a second copy is passed on like a first", ((Receipts, "known", _nothing),), generators.receipts
    ),
    Mutant(
        "16 receipts", "nobody confirms what it passed on", ((Receipts, "confirmed", _nothing),), generators.receipts
    ),
)


def seeds_needed(mutant: Mutant, seeds: Iterable[int] = range(MOST_SEEDS)) -> tuple[int | None, str]:
    """How many seeds it took to notice the mutant, and what noticed it; None when it survived."""
    with mutant.in_place():
        for number, seed in enumerate(seeds, start=1):
            try:
                mutant.check(seed)
            except (AssertionError, KodoError, KeyError, StopIteration) as error:
                return number, f"{type(error).__name__}: {error}".splitlines()[0][:100]
    return None, "survived"


def main() -> None:
    """Print the table."""
    survived = 0
    print("| rule | mutant | seeds | caught by |\n| --- | --- | --- | --- |")  # noqa: T201, a command
    for mutant in MUTANTS:
        seeds, by = seeds_needed(mutant)
        survived += seeds is None
        print(f"| {mutant.rule} | {mutant.what} | {seeds or '-'} | {by} |", flush=True)  # noqa: T201, a command
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
