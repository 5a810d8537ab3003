"""Controls that notebooks have anyway, for the lab's views to put around theirs: the one importer of ipywidgets."""

from __future__ import annotations

import ipywidgets  # type: ignore[import-untyped]

Box = ipywidgets.Box
Button = ipywidgets.Button
Dropdown = ipywidgets.Dropdown
FloatSlider = ipywidgets.FloatSlider
HTML = ipywidgets.HTML
Image = ipywidgets.Image
SelectMultiple = ipywidgets.SelectMultiple
VBox = ipywidgets.VBox
