"""The language of `q` and `by`: a text becomes a syntax tree, the tree becomes SQL with bound parameters.

    any_of     = all_of { "|" all_of }
    all_of     = one { "&" one }
    one        = "not" one | "(" any_of ")" | "@tag" "(" string ")" | comparison
    comparison = operand ( "==" | "!=" | "<" | "<=" | ">" | ">=" | "~" ) operand
    operand    = column | string

A string stands in single or double quotes; in it a backslash before a quote or a backslash stands for that
character, any other backslash for itself. Whatever this grammar does not read is *text*, which is searched
as it stands, whatever its case, in organization, name, author, description and tags. Text is also what is
longer than `MAX_LENGTH`, nested deeper than `MAX_LEVELS` (an open parenthesis and a `not` are a level each),
and what compares a list: `tags` may stand only to the left of `~`, where it reads as its words, a line each.

- Compared are the values displayed, by code point; `~` asks whether the left text contains the right one,
  literally, both casefolded. `@tag` is exact. To a time, a space in a string reads as T.
- Null equals nothing, not even null. A comparison with null is false, `!=` is true. Nothing is ever null in
  between, so `not` is the plain negation.
- No text of a user becomes part of the SQL: columns and operators are looked up in tables, strings are bound.
- The reader sees each token once, and trees and SQL have a few words for each. SQLite's own parser holds no
  more than 100 symbols at a time and waits with three at the parenthesis in `a AND (b`, but with one in
  `(b) AND a`; therefore the deepest operand comes first.

The SQL is for `FROM flow f JOIN record n ON n.id = f.record JOIN flow_text t ON t.id = f.id`, of which it
mentions `t.` only where it reads folded texts; the flows are those of the records that are `listed`.
Parameters are `:q0`, `:q1` and so on, and `:registry`, which is the caller's to bind. The function
`casefold(x)` is Python's.

Where rows are displayed and no database is at hand, `matches` and `ordered` read the same trees and orders in plain
Python. The tests compare the two readings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, assert_never

from kodo.errors import InvalidMessageError
from kodo.models import COLUMNS

REMEMBERED = 32
"""Questions that are understood without being read again."""
MAX_LENGTH = 4096
"""The characters of the longest expression; what is longer is text."""

MAX_LEVELS = 64
"""The levels of the deepest expression; what is deeper is text."""

DEFAULT_ORDER = "name, node, url"
"""How a listing is sorted when nothing is asked."""
DIRECTIONS = ("ascending", "descending")
"""Behind a column and a colon; any beginning of them will do."""


@dataclass(frozen=True, slots=True)
class Column:
    """The value of a column, as displayed."""

    name: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A string that stands for itself."""

    text: str


Operand = Column | Literal


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two operands under one of the seven operators."""

    left: Operand
    operator: str
    right: Operand


@dataclass(frozen=True, slots=True)
class Tag:
    """True of flows that have exactly this tag."""

    word: str


@dataclass(frozen=True, slots=True)
class Not:
    """True where its operand is false."""

    operand: Tree


@dataclass(frozen=True, slots=True)
class And:
    """True where all of its operands, two or more, are true."""

    operands: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True where any of its operands, two or more, is true."""

    operands: tuple[Tree, ...]


Tree = Comparison | Tag | Not | And | Or


@dataclass(frozen=True, slots=True)
class Expression:
    """A `q` that the grammar reads: what was asked, and its tree."""

    text: str
    tree: Tree


@dataclass(frozen=True, slots=True)
class Text:
    """A `q` that is searched as it stands."""

    text: str


Query = Expression | Text | None
"""What a `q` asks; None is everything."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A boolean SQL expression that is never null, and its parameters without `:registry`."""

    sql: str
    params: dict[str, str]


@dataclass(frozen=True, slots=True)
class Order:
    """An order of all flows without ties: what was asked, and (SQL column, descends) for each key."""

    shown: str
    keys: tuple[tuple[str, bool], ...]
    columns: tuple[tuple[str, bool], ...] = ()
    """The same by the names of the columns, as `ordered` reads it."""

    @property
    def sql(self) -> str:
        """The list for ORDER BY."""
        return ", ".join(f"{column} DESC" if descends else column for column, descends in self.keys)


def parse(text: str) -> Query:
    """What a `q` asks. Nothing is refused: what is no expression is text, and what is blank is None.

    A lone surrogate, which no database holds, reads as U+FFFD, as it does in a query string.
    """
    text = _SURROGATE.sub("\ufffd", text.strip())
    if not text:
        return None
    try:
        return Expression(text, _Reader(_tokens(text)).whole())
    except _NoExpressionError:
        return Text(text)


def shown(query: Query) -> str | None:
    """What the reply says that `q` was."""
    match query:
        case None:
            return None
        case Text(text):
            return f"fulltext: {text}"
        case Expression(text, _):
            return text


def compile_filter(query: Query) -> Filter:
    """The SQL that is true of the flows that `query` asks for."""
    writer = _Writer()
    match query:
        case None:
            return Filter("1", {})
        case Text(text):
            return Filter(writer.search(text).sql, writer.params)
        case Expression(_, tree):
            return Filter(writer.piece(tree).sql, writer.params)


@lru_cache(maxsize=REMEMBERED)
def selection(text: str) -> tuple[Query, Filter | None]:
    """What a `q` asks, and the SQL for it, None for all flows.

    It is remembered: people ask for one page of a selection after another.
    """
    query = parse(text)
    return query, None if query is None else compile_filter(query)


def parse_order(by: str) -> Order:
    """The order that `by` asks for, with node and url behind it; blank asks for the default.

    Refuses unknown columns, empty items and directions that are no prefix of ascending or descending, with an
    `InvalidMessageError` that names the columns. A column named again sorts nothing any more.
    """
    items = [item.strip() for item in (by.strip() or DEFAULT_ORDER).split(",")]
    asked = [_order_item(item) for item in items]
    reverse = all(descends for _, descends in asked)
    columns: dict[str, bool] = {}
    for column, descends in [*asked, ("node", reverse), ("url", reverse)]:
        columns.setdefault(column, descends)
    # The registry is the same in all rows.
    keys = [(_SOURCES[column].value, descends) for column, descends in columns.items() if column != "registry"]
    return Order(", ".join(items), tuple(keys), tuple(columns.items()))


def _order_item(item: str) -> tuple[str, bool]:
    """The column of one item of a `by`, and whether it descends."""
    column, colon, direction = item.partition(":")
    known = any(word.startswith(direction) for word in DIRECTIONS)
    if column not in _SOURCES or not known or (colon and not direction):
        expected = f"expected columns ({', '.join(COLUMNS)}), comma-separated, each with an optional :a or :d"
        raise InvalidMessageError([{"loc": ["query", "by"], "msg": expected, "type": "value_error"}])
    return column, direction.startswith("d")


# Reading: text -> tokens -> tree

_COMPARISONS = {"==": "=", "!=": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "~": "~"}
_TOKEN = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[=!<>]=|[<>~&|()]|@?\w+)""", re.DOTALL)
_ESCAPE = re.compile(r"""\\(["'\\])""")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _NoExpressionError(Exception):
    """The grammar does not read this."""


def _tokens(text: str) -> list[str]:
    """The tokens of a text. The alternatives of the pattern exclude each other: one pass, no backtracking."""
    if len(text) > MAX_LENGTH:
        raise _NoExpressionError
    tokens, end = [], 0
    while end < len(text):
        found = _TOKEN.match(text, end)
        if found is None:
            raise _NoExpressionError
        tokens.append(found[1])
        end = found.end()
    return tokens


def _deeper(level: int) -> int:
    if level == MAX_LEVELS:
        raise _NoExpressionError
    return level + 1


class _Reader:
    """Reads tokens from left to right, sees one ahead ("" at the end), and never goes back."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = iter(tokens)
        self._ahead = next(self._tokens, "")

    def whole(self) -> Tree:
        tree = self.any_of(0)
        self.expect("")
        return tree

    def any_of(self, level: int) -> Tree:
        operands = [self.all_of(level)]
        while self.follows("|"):
            operands.append(self.all_of(level))
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def all_of(self, level: int) -> Tree:
        operands = [self.one(level)]
        while self.follows("&"):
            operands.append(self.one(level))
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def one(self, level: int) -> Tree:
        if self.follows("not"):
            return Not(self.one(_deeper(level)))
        if self.follows("@tag"):
            return self.tag()
        if not self.follows("("):
            return self.comparison()
        tree = self.any_of(_deeper(level))
        self.expect(")")
        return tree

    def tag(self) -> Tag:
        self.expect("(")
        word = self.operand()
        self.expect(")")
        if not isinstance(word, Literal):
            raise _NoExpressionError
        return Tag(word.text)

    def comparison(self) -> Comparison:
        tree = Comparison(self.operand(), self.take(), self.operand())
        list_compared = tree.right == _TAGS or (tree.left == _TAGS and tree.operator != "~")
        if tree.operator not in _COMPARISONS or list_compared:
            raise _NoExpressionError
        return tree

    def operand(self) -> Operand:
        token = self.take()
        if token.startswith(("'", '"')):
            return Literal(_ESCAPE.sub(r"\1", token[1:-1]))
        if token not in _SOURCES:
            raise _NoExpressionError
        return Column(token)

    def follows(self, token: str) -> bool:
        """Whether `token` comes next; then it is taken."""
        return self._ahead == token and bool(self.take())

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise _NoExpressionError

    def take(self) -> str:
        token, self._ahead = self._ahead, next(self._tokens, "")
        return token


# Writing: tree -> SQL


class _Source(NamedTuple):
    """Where a column stands: its value, its casefolded text, and whether it may be null."""

    value: str
    folded: str
    nullable: bool = False


_SOURCES = {
    "registry": _Source(":registry", "casefold(:registry)"),
    "node": _Source("f.node", "casefold(f.node)"),
    "organization": _Source("n.organization", "t.organization", nullable=True),
    # The only letter of a time is T, for which SQLite's lower will do.
    "created": _Source("n.created", "lower(n.created)", nullable=True),
    "modified": _Source("n.modified", "lower(n.modified)", nullable=True),
    "heartbeat": _Source("n.heartbeat", "lower(n.heartbeat)", nullable=True),
    "url": _Source("f.url", "casefold(f.url)"),
    "name": _Source("f.name", "t.name"),
    "author": _Source("f.author", "t.author"),
    "description": _Source("f.description", "t.description"),
    "tags": _Source("f.tag_key", "t.tags"),
}
_NODE, _TAGS = Column("node"), Column("tags")
_TIMES = (Column("created"), Column("modified"), Column("heartbeat"))
_SEARCHED = ("organization", "name", "author", "description", "tags")

_SHORTEST, _LONGEST = 3, 32
"""Characters of a needle in the trigram index: it finds none shorter, and is slow and large beyond measure for long
ones (a phrase of 1,000 characters takes seconds). Longer needles ask for their beginning; `instr` asks for the rest."""
_VAGUE = set("\ufffd\ufffe\uffff")
"""Characters that SQLite takes for one when it reads UTF-8 into trigrams."""


_OR, _AND = " OR ", " AND "


class _Piece(NamedTuple):
    """A part of the SQL, its levels of parentheses and NOTs, and the loosest sign in it that is in none of them."""

    sql: str
    levels: int = 0
    sign: str | None = None


def _join(sign: str, pieces: list[_Piece]) -> _Piece:
    """Several pieces, the deepest first: SQLite's parser has a stack of 100, and what comes later would stand on it.

    So there are no parentheses but where they are needed: AND binds more tightly than OR.
    """
    if len(pieces) == 1:
        return pieces[0]
    closed = [_closed(piece) if (piece.sign, sign) == (_OR, _AND) else piece for piece in pieces]
    deepest_first = sorted(closed, key=lambda piece: -piece.levels)
    return _Piece(sign.join(piece.sql for piece in deepest_first), deepest_first[0].levels, sign)


def _not(piece: _Piece) -> _Piece:
    closed = piece if piece.sign is None else _closed(piece)
    return _Piece(f"NOT {closed.sql}", closed.levels + 1)


def _closed(piece: _Piece) -> _Piece:
    return _Piece(f"({piece.sql})", piece.levels + 1)


def _timed(operand: Operand, other: Operand) -> Operand:
    """A string as it reads beside `other`: beside a time, a space is T."""
    if isinstance(operand, Literal) and other in _TIMES:
        return Literal(operand.text.replace(" ", "T"))
    return operand


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the SQL of a tree and collects its parameters."""

    params: dict[str, str] = field(default_factory=dict)

    def piece(self, tree: Tree) -> _Piece:
        match tree:
            case And(operands):
                return _join(_AND, [self.piece(operand) for operand in operands])
            case Or(operands):
                return _join(_OR, [self.piece(operand) for operand in operands])
            case Not(operand):
                return _not(self.piece(operand))
            case Tag(word):
                return _Piece(f"f.id IN (SELECT flow FROM tag WHERE tag = {self.bind(word)})")
            case Comparison():
                return self.comparison(tree)
            case _:
                assert_never(tree)

    def comparison(self, tree: Comparison) -> _Piece:
        left, right = _timed(tree.left, tree.right), _timed(tree.right, tree.left)
        urls = [side for side in (left, right) if isinstance(side, Literal)]
        if tree.operator == "~":
            tests = self.contains(left, right)
        elif tree.operator in {"==", "!="} and _NODE in (left, right) and urls:
            # A node has one record for all its flows: the index is on those.
            tests = [f"f.record IN (SELECT id FROM record WHERE listed AND url = {self.value(urls[0])})"]
        else:
            tests = [f"{self.value(left)} {_COMPARISONS[tree.operator]} {self.value(right)}"]
        # Beside these, a test that is null is false, and the index of the column still serves.
        sources = [_SOURCES[side.name] for side in (left, right) if isinstance(side, Column)]
        tests += [f"{source.value} IS NOT NULL" for source in sources if source.nullable]
        piece = _join(_AND, [_Piece(test) for test in tests])
        return _not(piece) if tree.operator == "!=" else piece

    def contains(self, left: Operand, right: Operand) -> list[str]:
        """The tests that the left text has the right one in it."""
        if isinstance(left, Column) and left.name in _SEARCHED and isinstance(right, Literal):
            return self.found((left.name,), right.text.casefold())
        literally = f"instr({self.folded(left)}, {self.folded(right)}) > 0"
        return [literally]

    def search(self, text: str) -> _Piece:
        """The test that any of the searched columns has the text in it."""
        return _join(_AND, [_Piece(test) for test in self.found(_SEARCHED, text.casefold())])

    def found(self, columns: tuple[str, ...], folded: str) -> list[str]:
        """The tests that any of these columns has a text in it, by the trigrams where they help: not for NUL or short.

        What they find is exact, a phrase of trigrams being a text without a gap, but for long and for vague needles.
        """
        needle = self.bind(folded)
        literally = [f"instr(t.{column}, {needle}) > 0" for column in columns]
        whole = f"({' OR '.join(literally)})" if len(literally) > 1 else literally[0]
        if len(folded) < _SHORTEST or "\0" in folded:
            return [whole]
        quoted = folded[:_LONGEST].replace('"', '""')
        # All of its columns are not named: the index would compare the place of each hit with them.
        within = "" if columns == _SEARCHED else f"{{{' '.join(columns)}}} : "
        phrase = self.bind(f'{within}"{quoted}"')
        indexed = f"SELECT rowid FROM trigram WHERE trigram MATCH {phrase}"
        waiting = f"SELECT id FROM unindexed WHERE {whole.replace('t.', '')}"
        return [
            f"f.id IN ({indexed} UNION ALL {waiting})",
            *([whole] if len(folded) > _LONGEST or _VAGUE & set(folded) else []),
        ]

    def value(self, operand: Operand) -> str:
        return self.bind(operand.text) if isinstance(operand, Literal) else _SOURCES[operand.name].value

    def folded(self, operand: Operand) -> str:
        return self.bind(operand.text.casefold()) if isinstance(operand, Literal) else _SOURCES[operand.name].folded

    def bind(self, text: str) -> str:
        name = f"q{len(self.params)}"
        self.params[name] = text
        return f":{name}"


# Reading in plain Python: tree, row -> bool

Row = Mapping[str, Any]
"""A flow as it is displayed: a value for each of `COLUMNS`."""

_ORDERINGS: dict[str, Callable[[str, str], bool]] = {
    "==": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "~": lambda a, b: b.casefold() in a.casefold(),
}


def matches(query: Query, row: Row) -> bool:
    """Whether `query` asks for this row: what `compile_filter` says, without a database."""
    match query:
        case None:
            return True
        case Text(text):
            return any(text.casefold() in (_displayed(row, column) or "").casefold() for column in _SEARCHED)
        case Expression(_, tree):
            return _holds(tree, row)


def ordered(rows: Iterable[Row], order: Order) -> list[Row]:
    """The rows in an order, nulls first: what `Order.sql` says, without a database."""
    found = list(rows)
    for column, descends in reversed(order.columns):
        found.sort(key=lambda row, column=column: _rank(row, column), reverse=descends)  # type: ignore[misc]
    return found


def _holds(tree: Tree, row: Row) -> bool:
    match tree:
        case And(operands):
            return all(_holds(operand, row) for operand in operands)
        case Or(operands):
            return any(_holds(operand, row) for operand in operands)
        case Not(operand):
            return not _holds(operand, row)
        case Tag(word):
            return word in row["tags"]
        case Comparison(left, operator, right):
            a, b = _read(_timed(left, right), row), _read(_timed(right, left), row)
            if operator == "!=":
                return a is None or b is None or a != b
            return a is not None and b is not None and _ORDERINGS[operator](a, b)
        case _:
            assert_never(tree)


def _read(operand: Operand, row: Row) -> str | None:
    return operand.text if isinstance(operand, Literal) else _displayed(row, operand.name)


def _displayed(row: Row, column: str) -> str | None:
    """A value as one text, its tags a line each."""
    value: str | list[str] | None = row[column]
    return "\n".join(value) if isinstance(value, list) else value


def _rank(row: Row, column: str) -> tuple[bool, str]:
    value = " ".join(sorted(row["tags"])) if column == "tags" else row[column]
    return value is not None, value or ""
