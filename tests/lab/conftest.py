"""A lab for the tests of the lab: one guardian for each module, and no member left by the test before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kodo.lab import MeshLab
from kodo.lab.processes import GUARDIAN_LOG


@pytest.fixture(scope="module")
def shared() -> Iterator[MeshLab]:
    with MeshLab() as lab:
        yield lab


@pytest.fixture
def lab(shared: MeshLab) -> Iterator[MeshLab]:
    """A lab without members, faults and history."""
    yield shared
    shared.heal()
    for member in shared:
        member.kill()
    shared._members.clear()
    shared._positions.clear()
    shared._offers.clear()
    shared.faults.all.clear()
    shared.history._notes.clear()
    shared.history._places.clear()
    shared.history.events.clear()
    for file in shared.folder.iterdir():
        if file.name != GUARDIAN_LOG:
            file.unlink()
