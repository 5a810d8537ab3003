"""Places for a crowd: a mesh too large for labels, laid out at once. The one importer of numpy.

Distances are counted in links, the picture is the plane in which they are kept best: first by the two directions in
which the distances differ most (classical scaling), then by stress, step by step. Nothing is random, and a thousand
members take about two seconds. Who has a place keeps it; one that comes later stands beside those it is linked with.
"""

from __future__ import annotations

from cmath import rect
from collections.abc import Mapping, Sequence
from math import pi

import numpy as np

STEPS, TURNS = 20, 60
APART = 0.7
"""How far groups that nothing links stand from each other, by the largest distance within one."""
GOLDEN = pi * (3 - 5**0.5)

Links = Mapping[str, Sequence[str]]
"""With whom each is linked."""


def crowd_places(links: Links, known: Mapping[str, complex], side: float) -> dict[str, complex]:
    """A place for each; those that are known stay. The first of all fit a square of this side, in inches."""
    here = {name: at for name, at in known.items() if name in links}
    if not here:
        return _laid_out(links, side)
    for number, name in enumerate(name for name in links if name not in known):
        near = [here[other] for other in links[name] if other in here] or list(here.values())
        here[name] = sum(near) / len(near) + side / 60 * rect(1, GOLDEN * number)
    return here


def _laid_out(links: Links, side: float) -> dict[str, complex]:
    names = sorted(links)
    wanted = _distances(names, links)
    places = _scaled(wanted)
    weights = wanted.copy()
    np.fill_diagonal(weights, 1.0)
    weights = weights**-2.0
    np.fill_diagonal(weights, 0.0)
    for _ in range(STEPS):
        places = _less_stress(places, wanted, weights)
    places -= (places.max(axis=0) + places.min(axis=0)) / 2
    places *= side / max(float(np.ptp(places, axis=0).max()), 1e-9)
    return {name: complex(float(x), float(y)) for name, (x, y) in zip(names, places, strict=True)}


def _distances(names: Sequence[str], links: Links) -> np.ndarray:
    """How many links lie between any two; between those that nothing links some way more than within most."""
    numbers = {name: number for number, name in enumerate(names)}
    near = [sorted({numbers[other] for other in links[name]}) for name in names]
    table = np.array([_steps_from(number, near) for number in range(len(names))], dtype=float)
    table[table < 0] = max(float(table.max()), 1.0) * APART
    return table


def _steps_from(start: int, near: Sequence[Sequence[int]]) -> list[int]:
    steps = [-1] * len(near)
    steps[start], edge = 0, [start]
    while edge:
        found = []
        for one in edge:
            for other in near[one]:
                if steps[other] < 0:
                    steps[other] = steps[one] + 1
                    found.append(other)
        edge = found
    return steps


def _scaled(wanted: np.ndarray) -> np.ndarray:
    """Places in the two directions in which the distances differ most, by iteration from fixed ones."""
    squares = wanted**2
    centred = (squares.mean(axis=0) + squares.mean(axis=1)[:, None] - squares - squares.mean()) / 2
    turns = np.arange(1, len(wanted) + 1)[:, None] * np.array([1.0, 2.0, GOLDEN, 2 * GOLDEN]) * 2 * pi / len(wanted)
    vectors = np.linalg.qr(np.sin(turns) + np.cos(turns / 2))[0]
    for _ in range(TURNS):
        vectors, sizes = np.linalg.qr(centred @ vectors)
    places: np.ndarray = vectors[:, :2] * np.sqrt(np.maximum(np.abs(np.diag(sizes)[:2]), 1e-9))
    # Twins, such as the leaves of one branch, stand apart.
    turns = GOLDEN * np.arange(len(places))
    return places + 0.05 * np.column_stack((np.cos(turns), np.sin(turns)))


def _less_stress(places: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each where it wants to be: at its distance from every other, the near ones counting most."""
    across = places[:, 0][:, None] - places[:, 0]
    along = places[:, 1][:, None] - places[:, 1]
    length = np.maximum(np.sqrt(across**2 + along**2), 1e-9)
    pull = weights * wanted / length
    total = np.maximum(weights.sum(axis=1), 1e-9)
    moved: np.ndarray = (weights @ places + pull.sum(axis=1)[:, None] * places - pull @ places) / total[:, None]
    return moved
