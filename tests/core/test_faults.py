"""Meshes under faults: random runs hold what the mesh promises, and a core without one of its rules is found out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.core import generators, runs
from tests.core.mutants import MUTANTS, Mutant, seeds_needed

SEEDS = range(16)
"""The quick set; `python -m tests.core.runs 10000` runs more."""


@pytest.mark.parametrize("seed", SEEDS)
def test_registries_agree_after_faults(seed: int) -> None:
    """After any faults all list the same within the bound, then there is silence; meanwhile no copy was ever wrong."""
    runs.go(seed)


def test_every_fault_has_an_effect() -> None:
    """Whatever can happen in a run happens in the quick set, and every knob that can be turned did something."""
    happened = sum((runs.violation(seed)[3] for seed in SEEDS), start=type(runs.violation(0)[3])())
    wanted = {what.__name__ for what in runs.WHAT_HAPPENS}
    wanted |= {"loss", "answer_loss", "doubles", "reorder", "latency", "cut", "crash", "lost disk", "copied disk"}
    wanted |= {"pause", "skew", "slow", "spoiled", "unsaved"}
    assert wanted <= happened.keys()


@pytest.mark.parametrize("generator", generators.ALL, ids=lambda generator: generator.__name__)
def test_where_a_rule_is_needed_it_holds(generator: Callable[[int], None]) -> None:
    """In a mesh that leads straight to where a rule is needed, what the rule promises holds."""
    generator(1)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.rule}: {mutant.what}")
def test_a_core_without_a_rule_is_found_out(mutant: Mutant) -> None:
    """A core from which one rule was taken is noticed by the check that is named for it."""
    seeds, by = seeds_needed(mutant)
    assert seeds is not None, by
