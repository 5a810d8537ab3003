"""Pictures: a white card, its colours, and how it is shown and saved. The one importer of matplotlib.

- A picture stands on a white card, so that it reads in a dark theme too, and is drawn at twice its size, so that its
  text is sharp. Sizes are inches; the text beside it, `text/plain`, is constant and holds no measure.
- matplotlib's objects alone are used: pyplot keeps figures, and belongs to the notebook.
- It is shown as PNG, which no test of notebooks compares; SVG is for files.
"""

from __future__ import annotations

import warnings
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D, Bbox, TransformedBbox

from kodo.errors import LabError, unwritten
from kodo.lab.naming import checked_path
from kodo.lab.plain import cut

__all__ = ["Affine2D", "Figure", "Line2D", "Picture", "Rectangle", "card", "frame", "label_of", "width_of"]

DPI = 200
LONGEST = 26
"""Columns of a label."""
SCREEN = 100
"""Pixels an inch at which a picture is shown; it is drawn at `DPI`."""
INK, QUIET, FAINT, PALE, CARD, FRAME = "#26323d", "#5f6b76", "#8d99a5", "#c9d0d6", "#ffffff", "#dfe4e8"
BROKEN, SLOW, SLOW_INK = "#b5503c", "#c98a1b", "#8a5d0e"
"""Of these INK, QUIET, BROKEN and SLOW_INK are dark enough for words, the others are for lines and shapes."""
FORMS = (".png", ".svg", ".pdf")
SCRIPTS = {"Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Arabic"}
"""Fonts that know what matplotlib's own does not, where they are installed."""


class Picture:
    """Something that is drawn when it is first looked at."""

    def draw(self) -> Figure:
        """Draw it."""
        raise NotImplementedError

    def texts(self) -> dict[str, str]:
        """Its texts, by the ending of the file that each is saved to."""
        return {}

    @cached_property
    def _figure(self) -> Figure:
        with _any_script():
            return self.draw()

    @cached_property
    def png(self) -> bytes:
        """The picture."""
        return self._drawn("png")

    @cached_property
    def svg(self) -> str:
        """The same as SVG."""
        return self._drawn("svg").decode()

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        width, height = self._figure.get_size_inches()
        size = {"width": round(width * SCREEN), "height": round(height * SCREEN)}
        return {"text/plain": repr(self), "image/png": b64encode(self.png).decode()}, {"image/png": size}

    def save(self, path: Path | str) -> None:
        """Write the picture, or one of its texts, to a file; the ending of its name says which.

        Raises `LabError` for another ending, and when the file cannot be written.
        """
        target = checked_path(path)
        content = self._content(target.suffix)
        try:
            target.write_bytes(content)
        except OSError as error:
            raise LabError(unwritten(path, error)) from error

    def _content(self, suffix: str) -> bytes:
        texts = self.texts()
        if suffix in texts:
            return texts[suffix].encode()
        if suffix in FORMS:
            return self._drawn(suffix[1:])
        known = ", ".join([*FORMS, *texts])
        raise LabError(f"expected a file that ends in one of {known}, such as {type(self).__name__.lower()}.png")

    def _drawn(self, form: str) -> bytes:
        drawn = BytesIO()
        with _any_script():
            self._figure.savefig(drawn, format=form, dpi=DPI)
        return drawn.getvalue()


@contextmanager
def _any_script() -> Iterator[None]:
    """Write names of any script, in the fonts that are there; what none of them has is an empty box, and no warning."""
    family = ["sans-serif", *sorted(SCRIPTS & set(fontManager.get_font_names()))]
    with rc_context({"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield


def card(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of this size, and its axes, in inches from the lower left corner."""
    figure = Figure(figsize=(width, height), facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    edge, style = 0.02, "round,pad=0,rounding_size=0.12"
    inside = (width - 2 * edge, height - 2 * edge)
    look: dict[str, Any] = {"boxstyle": style, "facecolor": CARD, "edgecolor": FRAME, "linewidth": 1, "zorder": 0}
    axes.add_patch(FancyBboxPatch((edge, edge), *inside, **look))
    return figure, axes


def frame(axes: Any, left: float, low: float, right: float, high: float) -> TransformedBbox:
    """What something is cut off at, as its `set_clip_box` takes it."""
    return TransformedBbox(Bbox.from_extents(left, low, right, high), axes.transData)


def label_of(name: str) -> str:
    """A name as it is drawn: a url without its scheme, and of a long one both ends, which tell it from others."""
    return cut(name.partition("://")[2] or name, LONGEST, middle=True)


def width_of(text: str, size: float) -> float:
    """How wide a text is, in inches, at a size in points."""
    if not text:
        return 0.0
    return float(TextPath((0, 0), text.replace("$", r"\$"), size=size, prop=FontProperties()).get_extents().width) / 72
