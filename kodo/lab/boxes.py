"""Controls that notebooks have anyway, for the lab's views to put around theirs: the one importer of ipywidgets."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets  # type: ignore[import-untyped]

Box = ipywidgets.Box
Button = ipywidgets.Button
Dropdown = ipywidgets.Dropdown
FloatSlider = ipywidgets.FloatSlider
HTML = ipywidgets.HTML
Image = ipywidgets.Image
SelectMultiple = ipywidgets.SelectMultiple
VBox = ipywidgets.VBox
WIDGET = "application/vnd.jupyter.widget-view+json"
"""The kind of what shows a widget, beside what is read without a kernel."""


class Line(ipywidgets.HTML):  # type: ignore[misc]
    """A line of text that changes; where a notebook is read without its kernel, it is what it was at first."""

    def __init__(self, text: str) -> None:
        """Shows this text."""
        super().__init__(value=_line(text))
        self._first = text

    def show(self, text: str) -> None:
        """Show this text in its place."""
        self.value = _line(text)

    def __repr__(self) -> str:
        return self._first

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {"text/plain": self._first, "text/html": _line(self._first), WIDGET: view}


def _line(text: str) -> str:
    return f'<span style="opacity:.75;font-size:90%">{escape(text)}</span>'
