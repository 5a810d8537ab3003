"""What became of a `q`: an expression, or a text that is searched for, and what was probably meant.

No `q` is refused, so that a slip of the pen would go unnoticed: what people look at says when it was taken as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from kodo.models import COLUMNS
from kodo.query import MAX_LENGTH, Text, parse

_WORD = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|([A-Za-z_]\w*)|(==|!=|<=|>=|[~<>&|()@=])|(["'])""")
_OPERATORS = {"==", "!=", "<=", ">=", "<", ">", "~", "="}


def explanation(q: str) -> str:
    """Why `q` is searched as text although it looks like an expression; nothing if it is one, or is plain text."""
    if not isinstance(parse(q), Text):
        return ""
    tokens = [found.groups() for found in _WORD.finditer(q[:MAX_LENGTH])]
    signs = [sign for _, _, sign, _ in tokens if sign]
    if not signs and not any(open_ for *_, open_ in tokens):
        return ""
    return f"searched as text: {_mistake(tokens, signs)}"


def _mistake(tokens: Sequence[Sequence[str | None]], signs: Sequence[str]) -> str:
    if any(open_ for *_, open_ in tokens):
        return "a quote is not closed"
    for before, this in pairwise(tokens):
        if this[2] in _OPERATORS and before[1] and before[1] not in COLUMNS:
            return f"there is no column {before[1]}; there are {', '.join(COLUMNS)}"
        if before[2] in _OPERATORS and this[1] and this[1] not in COLUMNS:
            return f'a text stands in quotes: "{this[1]}"'
    if "=" in signs:
        return "two are compared with =="
    if signs.count("(") != signs.count(")"):
        return "a parenthesis is not closed"
    return 'an expression is like name ~ "agent" & @tag("news")'
