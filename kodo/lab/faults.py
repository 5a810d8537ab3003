"""Faults between members: what is asked for, what holds, and how it ends.

A fault names ways, from one member that sends to one that is sent to, and what happens there. The members' own outgoing
transport carries it out (`kodo.transport.Links`); the lab tells each member, through the guardian, all that holds for
it, and waits until it does. What the lab itself asks passes by all of this.

- A fault holds until `heal`, which may be called twice, and ends with its `with` block however that ends. Faults on
  one way add up. A member that starts again gets what holds for it before it says a word.
- Killed is refused, cut is silent: a message waits at a cut until it is healed or its deadline (10 s) is over. A lost
  one, or a lost answer, keeps its sender waiting that long.
- What cannot be is a `LabError`, and nothing has changed then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from kodo.errors import LabError
from kodo.lab.engine import Table

Way = tuple[str, str]
"""Names: who sends, and to whom."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What happens on a way: silence, milliseconds of delay each way, chances that a message or its answer is lost."""

    cut: bool = False
    ms: float = 0.0
    request: float = 0.0
    answer: float = 0.0

    def __add__(self, other: Effect) -> Effect:
        return Effect(
            self.cut or other.cut,
            self.ms + other.ms,
            1 - (1 - self.request) * (1 - other.request),
            1 - (1 - self.answer) * (1 - other.answer),
        )

    @property
    def label(self) -> str:
        """In a few words: `cut`, or what there is of `200 ms, loss 30%, answer loss 10%`."""
        parts = [
            f"{self.ms:g} ms" * bool(self.ms),
            f"loss {self.request:.0%}" * bool(self.request),
            f"answer loss {self.answer:.0%}" * bool(self.answer),
        ]
        return "cut" if self.cut else ", ".join(filter(None, parts))

    @property
    def link(self) -> dict[str, Any]:
        """As `kodo.transport.Link` takes it."""
        return {"cut": self.cut, "delay": self.ms / 1000, "request": self.request, "answer": self.answer}


Held = tuple[str, Mapping[Way, Effect]]
"""A fault that holds: its label, and what it does to which ways."""


def summed(held: Iterable[Held]) -> dict[Way, Effect]:
    """What several faults do together, on each way."""
    sums: dict[Way, Effect] = {}
    for _, effects in held:
        for way, effect in effects.items():
            sums[way] = sums[way] + effect if way in sums else effect
    return sums


@dataclass(eq=False, slots=True)
class Fault:
    """Something that is wrong on purpose, until it is healed: `fault.heal()`, or `with lab.cut(a, b):`."""

    label: str
    effects: dict[Way, Effect]
    end: Callable[..., None] = field(repr=False)
    began: float = 0.0
    ended: float | None = None
    timeout: float | None = None

    @property
    def active(self) -> bool:
        """Whether it holds."""
        return self.ended is None

    def heal(self, timeout: float | None = None) -> None:
        """End it, and wait until that holds, as long as it had to begin with. Doing so again does nothing.

        Raises `LabError` when the time is over and a member has not taken it in: it ends there as soon as it has.
        """
        if self.active:
            self.end(self, timeout=self.timeout if timeout is None else timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.heal()
        except LabError as late:
            if error is None:
                raise
            # What went wrong in the block is what its writer has to see.
            error.add_note(str(late))

    def __repr__(self) -> str:
        return f"<Fault {self.label}: {'active' if self.active else 'healed'}>"


class Faults:
    """All faults of a lab, in the order in which they came."""

    def __init__(
        self,
        apply: Callable[[set[str], float], str],
        patience: Callable[[float | None], float],
        note: Callable[[str, Fault], None],
        clock: Callable[[], float],
    ) -> None:
        """`apply` tells members what holds for them, and who has not taken it in after so many seconds, if anyone.

        `patience` makes these seconds of a timeout; `note` is told of each fault that begins or ends.
        """
        self.all: list[Fault] = []
        self._clock = clock
        self._apply = apply
        self._patience = patience
        self._note = note
        self._ending = threading.Lock()

    @property
    def active(self) -> list[Fault]:
        """Those that hold."""
        return [fault for fault in self.all if fault.active]

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def __repr__(self) -> str:
        return f"<Faults: {len(self.active)} active of {len(self.all)}>"

    def __str__(self) -> str:
        return "\n".join(map(repr, self.all)) or "no faults"

    def on(self, way: Way) -> list[Fault]:
        """Those that hold on a way."""
        return [fault for fault in self.active if way in fault.effects]

    def begin(self, label: str, effects: dict[Way, Effect], timeout: float | None = None) -> Fault:
        """Let a fault hold, and wait until it does. Raises `LabError` when the time is over; it does not hold then."""
        limit = self._patience(timeout)
        fault = Fault(label, effects, self._end, self._clock(), timeout=timeout)
        self.all.append(fault)
        try:
            if late := self._apply({caller for caller, _ in effects}, limit):
                raise LabError(f"expected {label} to hold, but {late}; it was taken back")
        except BaseException:
            # It is one that never was, but for members that were told of it already.
            self.all.remove(fault)
            self._tell_again({caller for caller, _ in effects})
            raise
        self._note("fault", fault)
        return fault

    def resume(self, label: str, effects: dict[Way, Effect], began: float, ended: float | None) -> None:
        """Take over a fault that another process has begun, and perhaps ended; members are told nothing."""
        self.all.append(Fault(label, effects, self._end, began, ended))

    def heal(self, timeout: float | None = None) -> None:
        """End all of them, together. Raises `LabError` as `Fault.heal` does."""
        self._end(*self.active, timeout=timeout)

    def _end(self, *faults: Fault, timeout: float | None = None) -> None:
        limit, late = self._patience(timeout), ""
        with self._ending:  # two threads may heal the same, such as a block at its end and a button
            ended = [fault for fault in faults if fault.active]
            for fault in ended:
                fault.ended = self._clock()
        callers = {caller for fault in ended for caller, _ in fault.effects}
        try:
            # With the lab its faults are over as well.
            with suppress(LabError):
                late = self._apply(callers, limit)
        except BaseException:
            # Who was not told yet is told now: nobody could end it any more.
            self._tell_again(callers)
            raise
        finally:
            for fault in ended:
                self._note("healed", fault)
        if late:
            labels = ", ".join(fault.label for fault in ended)
            raise LabError(f"expected {labels} to be healed, but {late}; it is as soon as that is done")

    def _tell_again(self, callers: set[str]) -> None:
        """Tell members what holds, in the middle of an error, which is the one that its reader has to see."""
        with suppress(LabError, OSError):
            self._apply(callers, 0.0)

    @property
    def held(self) -> list[Held]:
        """Those that hold, by their labels."""
        return [(fault.label, fault.effects) for fault in self.active]

    def tables(self, callers: Iterable[str], urls: Mapping[str, str]) -> dict[str, Table]:
        """What holds for the messages of each of these members, by the urls of those that it sends to."""
        tables: dict[str, Table] = {caller: {} for caller in callers}
        for (caller, callee), effect in summed(self.held).items():
            if caller in tables and callee in urls:
                tables[caller][urls[callee]] = effect.link
        return tables


def ways(groups: Iterable[Iterable[str]], *, one_way: bool = False) -> list[Way]:
    """From each member of a group to each of the groups after it and, unless it is `one_way`, back."""
    sides = [list(group) for group in groups]
    there = [
        (one, other)
        for number, side in enumerate(sides)
        for later in sides[number + 1 :]
        for one in side
        for other in later
    ]
    return there if one_way else [*there, *((other, one) for one, other in there)]


def checked_number(name: str, value: Any, most: float, expected: str) -> float:
    """A number from 0 to `most`. Raises `LabError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise LabError(f"{name}: expected {expected}, not {value!r}")
    return float(value)


def checked_timeout(timeout: Any) -> float:
    """A time that anything may be waited for. Raises `LabError` for anything else."""
    return checked_number("timeout", timeout, 1e9, "seconds, 0 or more")


def checked_sides(sides: list[list[str]]) -> None:
    """Refuse fewer than two groups, groups that are empty, and a member that stands in two places."""
    if len(sides) < 2:
        raise LabError("expected at least one group, such as lab.partition(['registry1'], ['registry2'])")
    if not all(sides):
        raise LabError("expected at least one member on each side, such as lab.partition(['registry1'], ['registry2'])")
    named = [name for side in sides for name in side]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise LabError(f"expected different members, but {twice[0]} is named twice; name each once, on one side")
