"""What may go wrong between the services of a simulated mesh, as plain data that anybody may change at any time.

Links have two directions: what goes from `a` to `b`, requests and answers alike, is cut, slowed or dropped apart from
what goes from `b` to `a`. Whatever a fault did is counted under its name in `World.effects`, so that a test can tell
that its faults were there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import permutations

from kodo.models import Key

Link = tuple[Key, Key]
"""From whom, to whom."""


@dataclass(frozen=True, slots=True)
class Way:
    """What happens to the messages of one service to another, as `kodo.transport.Link` has it in a lab.

    At a `cut` a message, or its answer, waits until `World.mend` or its deadline; `delay` are seconds each way.
    """

    cut: bool = False
    delay: float = 0.0
    request: float = 0.0
    answer: float = 0.0


@dataclass(slots=True)
class Faults:
    """What happens to messages: by default each takes 10 ms and arrives.

    `latency` is the range, in seconds, of what each takes. `loss` and `answer_loss` are the chances that a request, or
    an answer, is lost; `doubles` that a request arrives twice; `reorder` that a message is held back by up to
    `reorder_by` seconds, so that later ones overtake it. `cuts` are links on which nothing passes, `drops` and
    `answer_drops` how many requests, or answers, are still to be lost on a link; `slow` is how many seconds longer a
    service takes to answer. `ways` is for one service that asks another: its requests, and the answers to these.
    """

    latency: tuple[float, float] = (0.01, 0.01)
    loss: float = 0.0
    answer_loss: float = 0.0
    doubles: float = 0.0
    reorder: float = 0.0
    reorder_by: float = 0.5
    cuts: set[Link] = field(default_factory=set)
    drops: dict[Link, int] = field(default_factory=dict)
    answer_drops: dict[Link, int] = field(default_factory=dict)
    slow: dict[Key, float] = field(default_factory=dict)
    ways: dict[Link, Way] = field(default_factory=dict)

    def partition(self, *groups: Iterable[Key]) -> None:
        """Cut every link between services of different groups, both ways."""
        for one, other in permutations([list(group) for group in groups], 2):
            self.cuts |= {(a, b) for a in one for b in other}

    def heal(self) -> None:
        """End every fault; the latency stays."""
        self.loss = self.answer_loss = self.doubles = self.reorder = 0.0
        self.cuts, self.drops, self.answer_drops, self.slow, self.ways = set(), {}, {}, {}, {}
