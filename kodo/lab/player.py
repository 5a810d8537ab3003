"""The player: a record with a slider, in a notebook. Its text is constant.

Who reads the notebook without its kernel, or as HTML, sees the mesh and its flows at the moment that is chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kodo.lab import boxes as widgets
from kodo.lab.sketch import scene_of, sketch

if TYPE_CHECKING:
    from kodo.lab.replay import Replay

STEPS = 100


class Player:
    """A slider over the seconds of a record, and the mesh, its messages and its flows at that moment."""

    def __init__(self, replay: Replay) -> None:
        """Made by `Replay.show`. It begins at the end."""
        self._replay = replay
        self._topology, self._timeline = widgets.Image(format="png"), widgets.Image(format="png")
        self._flows = widgets.HTML()
        whole = max(replay.seconds, 0.001)
        self.slider = widgets.FloatSlider(
            value=whole, min=0, max=whole, step=whole / STEPS, description="seconds", continuous_update=False
        )
        self.slider.layout.width = "60%"
        self.slider.observe(self._move, names="value")
        self.box = widgets.VBox([self.slider, self._topology, self._timeline, self._flows])
        self._move()

    def __repr__(self) -> str:
        return f"<Player of {self._replay!r}>"

    def _repr_mimebundle_(self, **keywords: Any) -> Any:
        bundle = self.box._repr_mimebundle_(**keywords)
        data, *more = bundle if isinstance(bundle, tuple) else (bundle,)
        data = {**data, "text/plain": repr(self), "text/html": self._static()}
        return (data, *more) if more else data

    def _static(self) -> str:
        moment = self._replay.at(self.slider.value)
        topology = moment.topology()
        scene = scene_of(topology, moment.states)
        return sketch(scene) + moment.flows()._repr_html_()

    def _move(self, _: object = None) -> None:
        moment = self._replay.at(self.slider.value)
        for image, picture in ((self._topology, moment.topology()), (self._timeline, moment.timeline())):
            _, metadata = picture._repr_mimebundle_()
            image.value = picture.png
            image.layout.width = f"{metadata['image/png']['width']}px"
            image.layout.max_width = "100%"
        self._flows.value = moment.flows()._repr_html_()
