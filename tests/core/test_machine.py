"""A mesh as a state machine: Hypothesis chooses what happens, and reduces what goes wrong to its shortest story.

It has the happenings of the random runs; `tests.core.world` checks every step, and the end of each story what must
hold. The stories are the same in every run of the tests; `python -m tests.core.runs` goes further.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.core import runs

HAPPENINGS = st.sampled_from(sorted(runs.WHAT_HAPPENS, key=lambda what: what.__name__))


class Mesh(RuleBasedStateMachine):
    """Registries and nodes, and what may happen to them."""

    run: runs.Run | None = None

    @initialize(seed=st.integers(0, 2**16), loss=st.sampled_from([0.0, 0.1, 0.3]))
    def begin(self, seed: int, loss: float) -> None:
        """A mesh at rest, on links that lose some of what goes over them."""
        self.run = runs.begin(seed)
        self.run.world.faults.loss = self.run.world.faults.answer_loss = loss

    @rule(what=HAPPENINGS, at=st.integers(0, 5))
    def happen(self, what: Any, at: int) -> None:
        """Something happens to one of the registries."""
        if self.run is not None:
            what(self.run, self.run.registries[at % len(self.run.registries)])

    @rule(seconds=st.sampled_from([0.01, 0.2, 1.0, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        if self.run is not None:
            self.run.world.run(seconds)

    def teardown(self) -> None:
        """Once all faults are healed, what must hold does."""
        if self.run is not None:
            runs.heal(self.run)
            runs.agree(self.run)
            runs.check_quiet(self.run)
            runs.check_parts(self.run)
            runs.check_beating(self.run)


TestMesh = Mesh.TestCase
TestMesh.settings = settings(
    max_examples=8,
    derandomize=True,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
