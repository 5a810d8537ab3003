"""What became of a `q`: an expression, or a text that is searched for, and what was probably meant; also of a `by`.

No `q` is refused, so that a slip of the pen would go unnoticed: what people look at says when it was taken as text. A
service refuses a `by` that is none, but never says what it was, since its errors echo nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from kodo.errors import suggestion
from kodo.models import COLUMNS
from kodo.query import DIRECTIONS, MAX_LENGTH, Text, parse

_WORD = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|([A-Za-z_]\w*)|(==|!=|<=|>=|[~<>&|()@=])|(["'])""")
_SIGNS = {"and": "&", "or": "|", "not": "not, in small letters"}
_EXAMPLE = 'as in name ~ "agent" & @tag("news")'
_OPERATORS = {"==", "!=", "<=", ">=", "<", ">", "~", "="}


def explanation(q: str) -> str:
    """Why `q` is searched as text although it looks like an expression; nothing if it is one, or is plain text."""
    if not isinstance(parse(q), Text):
        return ""
    tokens = [found.groups() for found in _WORD.finditer(q[:MAX_LENGTH])]
    signs = [sign for _, _, sign, _ in tokens if sign]
    if not signs and not _joining(tokens) and not any(open_ for *_, open_ in tokens):
        return ""
    return f"searched as text: {next(_mistakes(tokens, signs))}"


def misordered(by: str) -> str:
    """What in a `by` is no order, and what was probably meant; nothing if it is one."""
    for item in map(str.strip, by.split(",")) if by.strip() else ():
        column, colon, direction = item.partition(":")
        if not item:
            return f"expected a column beside each comma, not {by!r}"
        if column not in COLUMNS:
            meant = suggestion(column, COLUMNS, otherwise=f"there are {', '.join(COLUMNS)}")
            return f"{column!r} is no column; {meant}"
        if colon and not (direction and any(word.startswith(direction) for word in DIRECTIONS)):
            return f"expected :a or :d behind {column}, not {colon + direction!r}"
    return ""


def _mistakes(tokens: Sequence[Sequence[str | None]], signs: Sequence[str]) -> Iterator[str]:
    """What is wrong with an expression, the most telling first."""
    if any(open_ for *_, open_ in tokens):
        yield "a quote is not closed"
    for before, this in pairwise(tokens):
        if this[2] in _OPERATORS and before[1] and before[1] not in COLUMNS:
            yield _no_column(before[1])
        if before[2] in _OPERATORS and this[1] and this[1] not in COLUMNS:
            yield f'a text stands in quotes: "{this[1]}"'
        if before[1] == "tags" and this[2] in _OPERATORS - {"~"}:
            yield 'a tag is asked for with @tag("news"), and a part of one with tags ~ "news"'
        if before[2] == this[2] and this[2] in {"&", "|"}:
            yield f"and is written &, or is written |, each once, {_EXAMPLE}"
    for at, tag, _, word in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False):
        if (at[2], tag[1]) == ("@", "tag") and word[1]:
            yield f'a tag stands in quotes: @tag("{word[1]}")'
        if at[2] == "@" and tag[1] and tag[1] != "tag":
            yield f'a tag is asked for with @tag("news"), not @{tag[1]}'
    yield from (f"{word} is written {_SIGNS[word.lower()]}, {_EXAMPLE}" for word in _joining(tokens))
    if "=" in signs:
        yield "two are compared with =="
    if signs.count("(") != signs.count(")"):
        yield "a parenthesis is not closed"
    yield 'an expression is like name ~ "agent" & @tag("news")'


def _joining(tokens: Sequence[Sequence[str | None]]) -> list[str]:
    """The words that join what is on both sides of them, and are none of the language."""
    return [word for _, word, *_ in tokens[1:-1] if word and word.lower() in _SIGNS and word != "not"]


def _no_column(name: str) -> str:
    """What to write in place of a column that there is not."""
    if name.lower() == "tag":
        return 'there is no column tag; a tag is asked for with @tag("news")'
    meant = suggestion(name.lower(), COLUMNS, otherwise=f"there are {', '.join(COLUMNS)}")
    return f"there is no column {name}; {meant}"
