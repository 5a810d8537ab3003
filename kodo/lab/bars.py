"""Bars: seconds by name, as a picture. Its text is constant, the measures stand in the picture alone.

More names than anyone reads are a curve in place of bars: how many of them there are at each moment.
"""

from __future__ import annotations

from collections.abc import Mapping

from kodo.lab.drawing import INK, PALE, QUIET, Figure, Line2D, Picture, Rectangle, card, label_of, width_of

ROW, EDGE, LONGEST = 0.3, 0.3, 4.5
COLOUR = "#2f5d8c"
MANY = 60
WIDTH, HEIGHT = 7.0, 3.2


def said(seconds: float) -> str:
    """A measure as it is written: in seconds, as everywhere in a lab."""
    return f"{seconds:.3f} s" if seconds < 10 else f"{seconds:.1f} s"


class Bars(Picture):
    """A bar for each name, the shortest first."""

    def __init__(self, title: str, seconds: Mapping[str, float]) -> None:
        """`title` says what is measured."""
        self.title = title
        self.seconds = dict(sorted(seconds.items(), key=lambda item: (item[1], item[0])))

    def __repr__(self) -> str:
        return f"<Bars: {self.title}>"

    def draw(self) -> Figure:
        """Draw them."""
        if len(self.seconds) > MANY:
            return self._curve()
        left = EDGE + max([width_of(label_of(name), 9) for name in self.seconds], default=0) + 0.15
        longest = max(self.seconds.values(), default=0) or 1
        height = 2 * EDGE + 0.3 + ROW * max(1, len(self.seconds))
        figure, axes = card(left + LONGEST + 1.0, height)
        axes.text(EDGE, height - 0.3, self.title, fontsize=9, color=QUIET, va="center", parse_math=False)
        for number, (name, seconds) in enumerate(self.seconds.items()):
            y = height - 0.3 - EDGE - ROW * (number + 0.5)
            length = LONGEST * seconds / longest
            axes.add_patch(Rectangle((left, y - 0.08), length, 0.16, facecolor=COLOUR, linewidth=0))
            text = {"fontsize": 9, "va": "center", "parse_math": False}
            axes.text(left - 0.12, y, label_of(name), ha="right", color=INK, **text)
            axes.text(left + length + 0.08, y, said(seconds), color=QUIET, **text)
        axes.add_line(Line2D((left, left), (EDGE, height - 0.3 - EDGE), color=PALE, linewidth=1))
        return figure

    def _curve(self) -> Figure:
        figure, axes = card(WIDTH, HEIGHT)
        left, low, wide, high = 0.9, 0.7, WIDTH - 1.5, HEIGHT - 1.5
        longest, number = max(self.seconds.values()) or 1, len(self.seconds)
        text = {"fontsize": 9, "color": QUIET, "va": "center", "parse_math": False}
        axes.text(EDGE, HEIGHT - 0.3, self.title, **text)
        xs, ys = [left], [low]
        for place, seconds in enumerate(self.seconds.values(), 1):
            xs += [left + wide * seconds / longest] * 2
            ys += [ys[-1], low + high * place / number]
        for share in (0, 0.5, 1):
            y = low + high * share
            axes.add_line(Line2D((left, left + wide), (y, y), color=PALE, linewidth=0.8))
            axes.text(left - 0.1, y, f"{round(number * share)}", ha="right", **text)
            x = left + wide * share
            axes.add_line(Line2D((x, x), (low - 0.06, low), color=PALE, linewidth=1))
            axes.text(x, low - 0.2, said(longest * share), ha="center", **text)
        axes.add_line(Line2D(xs, ys, color=COLOUR, linewidth=2))
        return figure
