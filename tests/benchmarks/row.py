"""Rows of the table: what is measured against what, and whether that is good enough."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Any

from tests.benchmarks.services import Bench, UnmeasuredError

Measure = Callable[[], float]
"""One round: it does the work, and returns the figure."""
Begin = Callable[[Bench], AbstractContextManager[Measure]]
"""Makes everything ready for the rounds, and cleans up after them."""


@dataclass(frozen=True)
class Side:
    """One of the two that are measured: what it is, and how its rounds begin."""

    what: str
    begin: Begin


@dataclass(frozen=True)
class Target:
    """What kodo may cost at most or, where `more` is better, has to reach: `bound` makes it from the floor's figure."""

    text: str
    bound: Callable[[float], float]
    more: bool = False

    def strain(self, floor: float, kodo: float) -> float:
        """How much of what is allowed is used up: above 1 the target is missed."""
        bound = self.bound(floor)
        return bound / kodo if self.more else kodo / bound


def at_most(factor: float, of: str = "floor") -> Target:
    """At most so many times the floor."""
    return Target(f"{factor:g} x {of}", lambda floor: factor * floor)


def at_least(factor: float, of: str = "floor") -> Target:
    """At least so many times the floor: the figure is a rate."""
    return Target(f"at least {factor:g} x {of}", lambda floor: factor * floor, more=True)


def plus(figure: float, unit: str) -> Target:
    """At most the floor and so much."""
    return Target(f"floor + {figure:g} {unit}", lambda floor: floor + figure)


def absolute(figure: float, unit: str) -> Target:
    """At most so much, whatever the floor takes."""
    return Target(f"{figure:g} {unit}", lambda _: figure)


def compared(*, more: bool = False) -> Target:
    """None: nothing is missed."""
    return Target("", lambda _: 0.0 if more else inf, more)


@dataclass(frozen=True)
class Row:
    """A line of the table. `{flows}` in `work` is how many flows are held; `grows`: it is worth a curve over them.

    One that is only compared tells how far kodo could go: by a floor that does more of what kodo promises, or by two
    such floors.
    """

    name: str
    work: str
    unit: str
    floor: Side
    kodo: Side
    target: Target
    grows: bool = False


@dataclass
class Outcome:
    """What was measured of a row: a figure a round of each side, in the same order. `reason`: why there are none."""

    row: Row
    work: str
    floor: list[float] = field(default_factory=list)
    kodo: list[float] = field(default_factory=list)
    seconds: float = 0.0
    reason: str | None = None
    failed: bool = False

    @property
    def ratio(self) -> float:
        """kodo to floor: the median of what the rounds say, each of which had both in the same minute."""
        return median(kodo / floor for floor, kodo in zip(self.floor, self.kodo, strict=True))

    @property
    def strain(self) -> float:
        """How much of the target is used up, likewise."""
        return median(self.row.target.strain(*pair) for pair in zip(self.floor, self.kodo, strict=True))

    @property
    def verdict(self) -> str:
        """`met`, `missed`, `failed` or `not measured`; `compared` where there is no target."""
        if self.reason is not None:
            return "failed" if self.failed else "not measured"
        if not self.row.target.text:
            return "compared"
        return "met" if self.strain <= 1 else "missed"

    def plain(self) -> dict[str, Any]:
        """As it is written into JSON."""
        row = self.row
        said = {"name": row.name, "work": self.work, "unit": row.unit, "target": row.target.text}
        sides = {"floor_is": row.floor.what, "kodo_is": row.kodo.what, "floor": self.floor, "kodo": self.kodo}
        outcome: dict[str, Any] = {"verdict": self.verdict, "seconds": round(self.seconds, 1)}
        if self.reason is None:
            medians = {"floor_median": median(self.floor), "kodo_median": median(self.kodo)}
            outcome |= {**medians, "ratio": self.ratio, "of_target": self.strain}
        return {**said, **sides, **outcome, "reason": self.reason}


def measure(row: Row, bench: Bench) -> Outcome:
    """The rounds of a row, of floor and kodo in turns."""
    return measure_sides(row, (row.floor.begin, bench), (row.kodo.begin, bench))


def measure_sides(row: Row, one: tuple[Begin, Bench], other: tuple[Begin, Bench]) -> Outcome:
    """The rounds of a row, of two sides in turns. What goes wrong is in the outcome: other rows go on."""
    bench = one[1]
    outcome = Outcome(row, bench.scale.fill(row.work))
    began = time.perf_counter()
    try:
        with one[0](one[1]) as floor, other[0](other[1]) as kodo:
            for number in range(bench.scale.rounds):
                # Who comes first changes, so that neither always finds what the other left.
                sides = [(floor, outcome.floor), (kodo, outcome.kodo)]
                for side, figures in sides if number % 2 == 0 else reversed(sides):
                    # Else who makes little durable waits for the disk until what others wrote is there as well.
                    os.sync()
                    figures.append(side())
    except UnmeasuredError as error:
        outcome.reason = str(error)
    except Exception as error:  # noqa: BLE001, whatever it was, it is told in the table
        outcome.reason, outcome.failed = f"{type(error).__name__}: {error}", True
    outcome.seconds = time.perf_counter() - began
    return outcome
