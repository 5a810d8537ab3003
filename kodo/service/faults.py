"""Faults in a request, in words: which field, and what was expected. Never what came.

pydantic names the place of a fault by the keys that lead to it. Keys that are the sender's own, such as the urls of
nodes, are shown as `*`, since an answer must not carry foreign text.
"""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from kodo import models

_FIELDS = frozenset(
    name
    for model in vars(models).values()
    if isinstance(model, type) and issubclass(model, models.Model)
    for name in model.model_fields
)
_PARAMETERS = frozenset({"query", "p", "pp", "by", "q", "format"})
_WRONG_BRANCH = {"dict_type", "list_type"}


def faults(error: ValueError) -> list[dict[str, Any]]:
    """The faults that pydantic found in a body, as the `detail` of a 422."""
    if not isinstance(error, ValidationError):
        return [{"loc": ["body"], "msg": "expected JSON", "type": "json_invalid"}]
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {"loc": ["body", *_place(fault["loc"])], "msg": _words(fault["msg"]), "type": fault["type"]}
        for fault in _relevant(found)
    ]


def parameter_faults(error: RequestValidationError) -> list[dict[str, Any]]:
    """The faults in the parameters of a request."""
    return [
        {
            "loc": [part if part in _PARAMETERS else "*" for part in fault["loc"]],
            "msg": _words(fault["msg"]),
            "type": fault["type"],
        }
        for fault in error.errors()
    ]


def _relevant(found: list[Any]) -> list[Any]:
    """Where an object or a list may stand, only the faults of the form that came are of interest."""
    inside = {tuple(fault["loc"][:depth]) for fault in found for depth in range(len(fault["loc"]))}

    def other_branch(fault: Any) -> bool:
        place = tuple(fault["loc"])
        if fault["type"] not in _WRONG_BRANCH or not place or not _is_branch(place[-1]):
            return False
        beside = any(len(other) > len(place) - 1 and other[: len(place) - 1] == place[:-1] for other in inside)
        # Of the two faults 'no object' and 'no list' at one place, the first stands for both.
        return beside or place[-1].startswith("list[")

    return [fault for fault in found if not other_branch(fault)]


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith(("dict[", "list["))


def _place(loc: tuple[int | str, ...]) -> list[int | str]:
    shown = (part for part in loc if not _is_branch(part))
    return [part if isinstance(part, int) or part in _FIELDS else "*" for part in shown]


def _words(message: str) -> str:
    return message.removeprefix("Value error, ")
