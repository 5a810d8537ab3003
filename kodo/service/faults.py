"""Faults in a request, in words: which field, and what was expected. Never what came.

pydantic names the place of a fault by the keys that lead to it. Keys that are the sender's own, such as the urls of
nodes, are shown as `*`, since an answer must not carry foreign text.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from pydantic import ValidationError

from kodo import models
from kodo.errors import in_words

_FIELDS = frozenset(
    name
    for model in vars(models).values()
    if isinstance(model, type) and issubclass(model, models.Model)
    for name in model.model_fields
)
_WRONG_BRANCH = {"dict_type", "list_type"}
MOST = 20
"""Faults that an answer names; a body may have a million."""


def faults(error: ValueError, *place: str | int) -> list[dict[str, Any]]:
    """The faults that pydantic found in a body, or at a `place` in it, as the `detail` of a 422."""
    if not isinstance(error, ValidationError):
        return [{"loc": ["body"], "msg": "expected JSON", "type": "json_invalid"}]
    return [
        {"loc": ["body", *_place((*place, *fault["loc"]))], "msg": in_words(fault["msg"]), "type": fault["type"]}
        for fault in islice(_relevant(_found(error)), MOST)
    ]


def parameter_faults(error: ValidationError) -> list[dict[str, Any]]:
    """The faults that pydantic found in the parameters of a request; their places are the route's own names."""
    return [
        {"loc": ["query", *fault["loc"]], "msg": in_words(fault["msg"]), "type": fault["type"]}
        for fault in _found(error)
    ]


def _found(error: ValidationError) -> list[Any]:
    return error.errors(include_url=False, include_context=False, include_input=False)


def _relevant(found: list[Any]) -> Iterator[Any]:
    """Where an object or a list may stand, only the faults of the form that came are of interest."""
    got_further = {
        fault["loc"][:depth] for fault in found for depth, part in enumerate(fault["loc"][:-1]) if _is_branch(part)
    }
    for fault in found:
        place = fault["loc"]
        at_branch = fault["type"] in _WRONG_BRANCH and bool(place) and _is_branch(place[-1])
        # Of the two faults 'no object' and 'no list' at one place, the first stands for both.
        if not at_branch or (place[:-1] not in got_further and not place[-1].startswith("list[")):
            yield fault


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith(("dict[", "list["))


def _place(loc: tuple[int | str, ...]) -> list[int | str]:
    shown = (part for part in loc if not _is_branch(part))
    return [part if isinstance(part, int) or part in _FIELDS else "*" for part in shown]
