"""The language of `q` and `by`, against a plain reading of the same trees in Python."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kodo import query
from kodo.catalogue import Catalogue
from kodo.errors import InvalidMessageError
from kodo.misread import misordered
from kodo.models import COLUMNS
from kodo.query import (
    MAX_LENGTH,
    MAX_LEVELS,
    And,
    Column,
    Comparison,
    Expression,
    Literal,
    Not,
    Or,
    Tag,
    Text,
    Tree,
    compile_filter,
    matches,
    ordered,
    parse,
    parse_order,
    selection,
    shown,
)

Row = dict[str, Any]

REGISTRY = "http://Straße:1"
SEARCHED = ("organization", "name", "author", "description", "tags")
TIMES = ("created", "modified", "heartbeat")
SCHEMA = """
CREATE TABLE record (id INTEGER PRIMARY KEY, url TEXT, organization TEXT, created TEXT, modified TEXT, heartbeat TEXT,
                     listed INTEGER);
CREATE INDEX record_url ON record (url) WHERE listed;
CREATE INDEX record_organization ON record (organization);
CREATE INDEX record_created ON record (created);
CREATE TABLE flow (id INTEGER PRIMARY KEY, record INTEGER, node TEXT, url TEXT, name TEXT, author TEXT,
                   description TEXT, tag_key TEXT);
CREATE INDEX flow_record ON flow (record);
CREATE INDEX flow_name ON flow (name);
CREATE TABLE tag (flow INTEGER, tag TEXT);
CREATE INDEX tag_tag ON tag (tag, flow);
CREATE TABLE flow_text (id INTEGER PRIMARY KEY, organization TEXT, name TEXT, author TEXT, description TEXT, tags TEXT);
CREATE VIRTUAL TABLE trigram USING fts5
    (organization, name, author, description, tags, tokenize='trigram case_sensitive 1',
     content='flow_text', content_rowid='id');
CREATE VIEW unindexed AS SELECT * FROM flow_text WHERE id % 2;
"""
SOURCE = "FROM flow f JOIN record n ON n.id = f.record"
WITH_TEXT = f"{SOURCE} JOIN flow_text t ON t.id = f.id"


def row(**given: object) -> Row:
    """A displayed row with plain values where none are given."""
    plain: Row = {
        "registry": REGISTRY,
        "node": "http://Node:2",
        "organization": "Mediaplus",
        "created": "2024-12-25T18:03:12.989989",
        "modified": "2024-12-26T18:03:12.989989",
        "heartbeat": None,
        "url": "/mytest",
        "name": "Agent M",
        "author": "missing author",
        "description": "missing description",
        "tags": [],
    }
    return plain | given


def add(mesh: sqlite3.Connection, number: int, flow: Row) -> None:
    """Write one row the way the catalogue does: each flow with a record of its own."""
    values = [flow[name] for name in ("node", "organization", *TIMES)]
    mesh.execute("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, 1)", (number, *values))
    values = [flow[name] for name in ("node", "url", "name", "author", "description")]
    mesh.execute(
        "INSERT INTO flow VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (number, number, *values, " ".join(sorted(flow["tags"])))
    )
    mesh.executemany("INSERT INTO tag VALUES (?, ?)", [(number, tag) for tag in flow["tags"]])
    texts = [flow["organization"] or "", flow["name"], flow["author"], flow["description"], "\n".join(flow["tags"])]
    folded = (number, *(text.casefold() for text in texts))
    mesh.execute("INSERT INTO flow_text VALUES (?, ?, ?, ?, ?, ?)", folded)
    if number % 2 == 0:  # the others are not indexed yet
        columns = "rowid, organization, name, author, description, tags"
        mesh.execute(f"INSERT INTO trigram ({columns}) VALUES (?, ?, ?, ?, ?, ?)", folded)


def mesh_of(rows: list[Row]) -> sqlite3.Connection:
    """A small catalogue in memory; the flows have the numbers of the rows."""
    mesh = sqlite3.connect(":memory:")
    mesh.create_function("casefold", 1, str.casefold, deterministic=True)
    mesh.executescript(SCHEMA)
    for number, flow in enumerate(rows):
        add(mesh, number, flow)
    return mesh


def select(mesh: sqlite3.Connection, q: str) -> list[int]:
    """The numbers of the rows that a `q` finds, joined as the catalogue joins."""
    found = compile_filter(parse(q))
    tables = WITH_TEXT if "t." in found.sql else SOURCE
    values = mesh.execute(
        f"SELECT f.id, {found.sql} {tables} ORDER BY f.id", {**found.params, "registry": REGISTRY}
    ).fetchall()
    assert {truth for _, truth in values} <= {0, 1}, "a filter is never null"
    chosen = mesh.execute(
        f"SELECT f.id {tables} WHERE f.id >= 0 AND ({found.sql}) ORDER BY f.id",
        {**found.params, "registry": REGISTRY},
    )
    numbers = [number for (number,) in chosen]
    assert numbers == [number for number, truth in values if truth], "WHERE and SELECT agree"
    return numbers


def find(q: str, *rows: Row) -> list[int]:
    with closing(mesh_of(list(rows))) as mesh:
        return select(mesh, q)


def plan(q: str) -> str:
    """How SQLite means to look for the rows of a `q`."""
    found = compile_filter(parse(q))
    with closing(mesh_of([row()])) as mesh:
        tables = WITH_TEXT if "t." in found.sql else SOURCE
        steps = mesh.execute(
            f"EXPLAIN QUERY PLAN SELECT f.id {tables} WHERE {found.sql}", {**found.params, "registry": REGISTRY}
        )
        return "\n".join(step[3] for step in steps)


def tree_of(q: str) -> Tree:
    asked = parse(q)
    assert isinstance(asked, Expression), f"expected an expression: {q[:60]}"
    return asked.tree


def is_text(q: str) -> bool:
    return isinstance(parse(q), Text)


A, B, C = (Comparison(Column("name"), "==", Literal(word)) for word in "abc")
LETTERS = {"A": 'name=="a"', "B": 'name=="b"', "C": 'name=="c"'}


def spell(short: str) -> str:
    """`A & B` with the letters as comparisons."""
    return re.sub("[ABC]", lambda letter: LETTERS[letter[0]], short)


# The grammar


@pytest.mark.parametrize(
    ("short", "tree"),
    [
        ("A", A),
        ("A & B", And((A, B))),
        ("A & B & C", And((A, B, C))),
        ("A | B | C", Or((A, B, C))),
        ("A | B & C", Or((A, And((B, C))))),
        ("A & B | C", Or((And((A, B)), C))),
        ("A & (B | C)", And((A, Or((B, C))))),
        ("not A & B", And((Not(A), B))),
        ("not A | B", Or((Not(A), B))),
        ("not (A & B)", Not(And((A, B)))),
        ("not not A", Not(Not(A))),
        ("not(A)", Not(A)),
        ("((A))", A),
        ("A&B|not\n(C)", Or((And((A, B)), Not(C)))),
    ],
)
def test_precedence(short: str, tree: Tree) -> None:
    """`not` binds tighter than `&`, `&` tighter than `|`, parentheses tightest, and chains are flat."""
    assert tree_of(spell(short)) == tree


@pytest.mark.parametrize("operator", ["==", "!=", "<", "<=", ">", ">=", "~"])
def test_operators(operator: str) -> None:
    """Each of the seven operators takes a column or a string on either side, with or without spaces."""
    name, word = Column("name"), Literal("x")
    assert tree_of(f'name {operator} "x"') == Comparison(name, operator, word)
    assert tree_of(f"'x'{operator}name") == Comparison(word, operator, name)
    assert tree_of(f"author{operator}name") == Comparison(Column("author"), operator, name)
    assert tree_of(f"'x' {operator} 'x'") == Comparison(word, operator, word)


@pytest.mark.parametrize("column", COLUMNS)
def test_columns(column: str) -> None:
    """Every column of a listing is a name of the language."""
    assert tree_of(f'{column} ~ "x"') == Comparison(Column(column), "~", Literal("x"))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r'"a b"', "a b"),
        (r"'a b'", "a b"),
        (r'""', ""),
        (r""" "it's" """, "it's"),
        (r""" 'say "x"' """, 'say "x"'),
        (r'"say \"x\""', 'say "x"'),
        (r"'it\'s'", "it's"),
        (r""" "it\'s" """, "it's"),
        (r'"a\\"', "a\\"),
        (r'"\\\""', '\\"'),
        (r'"C:\new\table"', r"C:\new\table"),
        (r'"\x41\u0041\1"', r"\x41\u0041\1"),
        ('"a\nb"', "a\nb"),
        ('"a\\\nb"', "a\\\nb"),
        ('"a\0b"', "a\0b"),
        ('"& | not ( ) == @tag"', "& | not ( ) == @tag"),
        ('"😀 ß"', "😀 ß"),
    ],
)
def test_strings(written: str, meant: str) -> None:
    """A backslash before a quote or a backslash stands for that character, and any other for itself."""
    assert tree_of(f"name == {written}") == Comparison(Column("name"), "==", Literal(meant))


def test_tag() -> None:
    """`@tag` takes one string, in either quotes, with or without spaces."""
    assert tree_of('@tag("a b")') == Tag("a b")
    assert tree_of("@tag ( 'a' )") == Tag("a")


@pytest.mark.parametrize(
    "q",
    [
        "combat",
        "agent m",
        '"quoted"',
        "name",
        'name = "x"',
        'name === "x"',
        'name =< "x"',
        'name <> "x"',
        'name ~~ "x"',
        'name ! "x"',
        'name in "x"',
        'title == "x"',
        'Name == "x"',
        'name == "x',
        "name == 'x\"",
        r'name == "x\"',
        "name == x",
        "name == 1",
        "name == None",
        'name == "x" and author == "y"',
        'name == "x" or author == "y"',
        'name == "x" && author == "y"',
        'name == "x" || author == "y"',
        'NOT name == "x"',
        '!(name == "x")',
        'name == "x" &',
        '& name == "x"',
        'name == "x" author == "y"',
        '(name == "x"',
        'name == "x")',
        "()",
        "not",
        'not "x"',
        '"a" < name < "b"',
        '(name) == "x"',
        'not name "x"',
        '@tag("a", "b")',
        "@tag()",
        "@tag(name)",
        '@tag "a"',
        '@ tag("a")',
        '@Tag("a")',
        '@tags("a")',
        '@tag("a") == "x"',
        'tag("a")',
        'name.upper() == "x"',
        'name == "x";',
        'name == "x" # y',
        'name == f"x"',
        'name == "x" "y"',
        'name + "x" == "y"',
        'name == ["x"]',
        'name == ("x")',
        'name == \0"x"',
        '\uff4eame == "x"',
    ],
)
def test_no_expression(q: str) -> None:
    """What the grammar does not read, whole and to the letter, is text as it stands."""
    assert parse(f" {q}\n") == Text(q)


@pytest.mark.parametrize("operator", ["==", "!=", "<", "<=", ">", ">="])
def test_lists_are_not_compared(operator: str) -> None:
    """A comparison with `tags` or with a list literal is text."""
    assert is_text(f'tags {operator} "x"')
    assert is_text(f'"x" {operator} tags')
    assert is_text(f"tags {operator} name")
    assert is_text(f'tags {operator} ["x"]')
    assert is_text(f'name == "x" | not tags {operator} "x"')


def test_list_on_the_right_of_contains() -> None:
    """`tags ~` asks whether a word contains something; nothing can contain a list."""
    assert not is_text('tags ~ "x"')
    assert not is_text("tags ~ name")
    assert is_text('"x" ~ tags')
    assert is_text("tags ~ tags")


@pytest.mark.parametrize("blank", ["", " ", "\n\t \u3000"])
def test_blank(blank: str) -> None:
    """A blank `q` is no filter, and the reply's `q` is null."""
    assert parse(blank) is None
    assert shown(parse(blank)) is None
    assert find(blank, row(), row(url="/b")) == [0, 1]


def test_shown() -> None:
    """The reply shows an expression as asked, and a text behind `fulltext: `, both trimmed."""
    assert shown(parse('  name=="x"  &@tag( "y" ) \n')) == 'name=="x"  &@tag( "y" )'
    assert shown(parse("  Combat  Zone ")) == "fulltext: Combat  Zone"


def test_length() -> None:
    """An expression has at most 4,096 characters, blanks around it not counted."""
    longest = f'name == "{"x" * (MAX_LENGTH - 10)}"'
    assert len(longest) == MAX_LENGTH == 4096
    assert not is_text(longest)
    assert not is_text(f"  {longest}  ")
    assert is_text(longest.replace("==", " =="))


@pytest.mark.parametrize(
    "nest",
    [
        lambda n: "(" * n + 'name == "x"' + ")" * n,
        lambda n: "not " * n + 'name == "x"',
        lambda n: "not (" * (n // 2) + "not " * (n % 2) + 'name == "x"' + ")" * (n // 2),
        lambda n: '@tag("x") & (' * n + 'name == "x"' + ")" * n,
        lambda n: "(" * n + '@tag("x")' + ")" * n,
    ],
)
def test_nesting(nest: Callable[[int], str]) -> None:
    """Exactly 64 levels of parentheses and `not` are an expression, 65 are text."""
    assert not is_text(nest(MAX_LEVELS))
    assert is_text(nest(MAX_LEVELS + 1))
    assert not is_text(f"{nest(MAX_LEVELS)} | {nest(MAX_LEVELS)}"), "levels side by side do not add up"


def test_deep_text() -> None:
    """Nesting far beyond the levels recurses no further than they do."""
    limit = sys.getrecursionlimit()
    depth = len(list(_frames()))
    sys.setrecursionlimit(depth + 4 * MAX_LEVELS + 20)
    try:
        assert is_text("(" * 4096)
        assert is_text("not " * 1024)
        assert not is_text("(" * MAX_LEVELS + 'name == "x"' + ")" * MAX_LEVELS)
    finally:
        sys.setrecursionlimit(limit)


def _frames() -> Iterator[Any]:
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


# What expressions mean


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ('organization == "Mediaplus"', [0]),
        ('"Mediaplus" == organization', [0]),
        ('organization == "mediaplus"', []),
        ('organization != "Mediaplus"', [1, 2]),
        ('not organization == "Mediaplus"', [1, 2]),
        ('organization == ""', [2]),
        ('organization ~ ""', [0, 2]),
        ('not organization ~ ""', [1]),
        ('organization >= ""', [0, 2]),
        ('organization < "a"', [0, 2]),
        ('not organization < "a"', [1]),
        ("organization == organization", [0, 2]),
        ("organization != organization", [1]),
        ("heartbeat == heartbeat", []),
        ("heartbeat != heartbeat", [0, 1, 2]),
        ("heartbeat <= heartbeat", []),
        ("heartbeat ~ heartbeat", []),
        ("not heartbeat ~ heartbeat", [0, 1, 2]),
        ("heartbeat < organization | organization > heartbeat", []),
        ('"x" ~ organization', [2]),
        ('heartbeat ~ ""', []),
        ('"" ~ heartbeat', []),
        ("name ~ organization", [2]),
        ('tags ~ ""', [0, 1, 2]),
    ],
)
def test_null(q: str, found: list[int]) -> None:
    """Null equals nothing, `!=` is true of it, all else is false, and null is not the empty text."""
    assert find(q, row(), row(organization=None, url="/b"), row(organization="", url="/c")) == found


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ('name == "b"', [2]),
        ('name < "b"', [0, 1]),
        ('name <= "b"', [0, 1, 2]),
        ('name > "b"', [3, 4]),
        ('"b" < name', [3, 4]),
        ('name >= "b"', [2, 3, 4]),
        ('name > "\uffff"', [4]),
        ('"a" == "a"', [0, 1, 2, 3, 4]),
        ('"a" == "A"', []),
        ('"aß" ~ "ASS"', [0, 1, 2, 3, 4]),
        ('name == author | name == "B"', [0, 2]),
    ],
)
def test_code_points(q: str, found: list[int]) -> None:
    """Texts compare by code point, case and all."""
    rows = [row(name=name, author="b", url=name) for name in ("B", "a", "b", "ä", "😀")]
    assert find(q, *rows) == found


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ('created == "2024-12-25 18:03:12.989989"', [0]),
        ('created == "2024-12-25T18:03:12.989989"', [0]),
        ('"2024-12-25 18:03:12.989989" == created', [0]),
        ('created > "2024-12-25 18"', [0, 1]),
        ('created > "2024-12-25 19"', [1]),
        ('modified < "2024-12-26 19"', [0, 1]),
        ('created ~ "25 18:0"', [0]),
        ('created ~ "25t18:0"', [0]),
        ('created ~ "1225"', []),
        ('"at 2024-12-25 18:03:12.989989 sharp" ~ created', [0]),
        ("created < modified", [0]),
        ('name == "a b"', [0]),
        ('name == "aTb"', [1]),
        ('name ~ "a b"', [0]),
    ],
)
def test_times(q: str, found: list[int]) -> None:
    """A space reads as T in a string beside a time, and nowhere else."""
    assert find(q, row(name="a b"), row(name="aTb", url="/b", created="2024-12-27T00:00:00.000000")) == found


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ('author == "missing author"', [0]),
        ('author ~ "MISSING"', [0]),
        ('description == "missing description"', [0, 1]),
        ('registry == "http://Straße:1"', [0, 1]),
        ('registry ~ "STRASSE"', [0, 1]),
        ('node ~ "NODE:2"', [0, 1]),
        ('url ~ "MY"', [0, 1]),
        ('url ~ "my_est"', []),
        ('name ~ "m%d"', []),
        ('name ~ "a.*"', []),
        ('name ~ "GROSSE"', [1]),
        ('name ~ "große"', [1]),
        ('name ~ "ss"', [1]),
        ('name ~ "agent"', [0]),
        ('name ~ "agent.m"', []),
        ("url ~ name", []),
        ("registry ~ author", []),
        ('author ~ "ΣΟΦΟΣ"', [1]),
        ('"my straße" ~ author', []),
    ],
)
def test_contains(q: str, found: list[int]) -> None:
    """`~` is literal containment of the casefolded values as displayed, and knows no wildcards."""
    assert find(q, row(), row(name="Große Liebe", author="σοφος", url="/MYtest2")) == found


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ('@tag("Rescue")', [0]),
        ('@tag("rescue")', []),
        ('@tag("Resc")', []),
        ('@tag("fire dept")', [0, 1]),
        ('@tag("")', []),
        ('not @tag("Rescue")', [1, 2]),
        ('tags ~ "rescue"', [0]),
        ('tags ~ "E DEP"', [0, 1]),
        ('tags ~ "dept\nres"', [0]),
        ('tags ~ "dept res"', []),
        ("tags ~ name", [0]),
    ],
)
def test_tags(q: str, found: list[int]) -> None:
    """`@tag` is exact equality with one tag; `tags ~` is containment in all of them, a line each."""
    rows = [
        row(name="scue", tags=["Rescue", "fire dept", "Rescue"]),
        row(tags=["fire dept"], url="/b"),
        row(url="/c"),
    ]
    assert find(q, *rows) == found


@pytest.mark.parametrize("column", SEARCHED)
def test_text_search(column: str) -> None:
    """Text is found in each of the five columns, whatever its case, and in no other."""
    hit = row(**{column: ["x", "The COMBAT zone"] if column == "tags" else "The COMBAT zone"})
    elsewhere = row(node="http://combat:1", url="/combat")
    assert find("Combat", elsewhere, hit) == [1]
    assert find("bat", elsewhere, hit) == [1]
    assert find("CO", elsewhere | {"url": "/", "organization": None}, hit) == [1]


NASTY = [
    "😀😁😂",
    "𐐀𐐀𐐀𐐀",
    "e\u0301a\u0308",
    "\u0301\u0308\u0301",
    "...",
    "***",
    '"""',
    "'''",
    'a"b"c',
    "} : {",
    "-x-",
    "^abc",
    "a AND b",
    "NEAR(a b)",
    "x\ty\nz",
    "\u200d\u200d\u200d",
    "\ufffea\uffff",
    "%_%",
    "\\\\\\",
    "İİİ",
    "ŉŉ",
]


@pytest.mark.parametrize("needle", NASTY)
def test_needles(needle: str) -> None:
    """Whatever a needle is made of, the index finds it as text and by `~`, and finds nothing else."""
    rows = [row(name=f"<{needle}>"), row(url="/b"), row(url="/c", tags=["\ufffda\ufffd", "???", "a b c"])]
    quoted = needle.replace("\\", "\\\\").replace('"', '\\"')
    assert "MATCH" in compile_filter(Text(needle)).sql
    assert find(needle, *rows) == [0]
    assert find(f'name ~ "{quoted}"', *rows) == [0]
    assert find(f'author ~ "{quoted}"', *rows) == []


def test_space_needles() -> None:
    """A needle of spaces is a needle like any other."""
    assert find('name ~ "   "', row(name="a   b"), row(name="a  b", url="/b")) == [0]


@pytest.mark.parametrize("needle", ["\0", "Agent\0", "\0Agent", "Ag\0ent", "Agent M\0\0\0"])
def test_nul(needle: str) -> None:
    """A NUL in a needle is found nowhere and breaks nothing."""
    assert find(f"x{needle}", row()) == []
    assert find(f'name ~ "{needle}"', row()) == []
    assert find(f'not name == "{needle}"', row()) == [0]


def test_lone_surrogates() -> None:
    """A lone surrogate reads as U+FFFD, so that SQLite and JSON can hold it."""
    assert parse("\ud800\udc00") == Text("\ufffd\ufffd")
    assert find('name == "a\udfff"', row(), row(name="a\ufffd", url="/b")) == [1]


def test_long_needles() -> None:
    """Needles too long for the index are found by their beginning and confirmed to their end."""
    long = "long needle " * 50
    rows = [row(name=f"a {long}b"), row(name=f"a {long}c", url="/b"), row(name=long, url="/c")]
    assert find(f'name ~ "{long}C"', *rows) == [1]
    assert find(f"{long}b", *rows) == [0]
    phrases = [text for text in compile_filter(Text("x" * 100_000)).params.values() if text.startswith('"')]
    assert [len(text) < 200 for text in phrases] == [True]


# How SQLite is asked


def test_equality_uses_indexes() -> None:
    """Equality, order and `@tag` with a string use the index of their column."""
    assert "USING INDEX record_organization (organization=?)" in plan('organization == "x"').replace("COVERING ", "")
    assert "flow_name (name=?)" in plan('name == "x"')
    assert "record_url (url=?)" in plan('node == "x"')
    assert "record_url (url=?)" in plan('"x" == node')
    assert "flow_record (record=?)" in plan('node == "x"')
    assert "record_created (created>?" in plan('created > "x"').replace(" AND created<?", "")
    assert "tag_tag (tag=?)" in plan('@tag("x")')
    assert "SEARCH f USING INTEGER PRIMARY KEY" in plan('@tag("x")')


@pytest.mark.parametrize("column", SEARCHED)
def test_contains_uses_the_trigram_index(column: str) -> None:
    """`~` with a string of three characters or more, once casefolded, goes through the index, and shorter ones scan."""
    assert "SEARCH f USING INTEGER PRIMARY KEY" in plan(f'{column} ~ "abc"')
    assert "MATCH" in compile_filter(parse(f'{column} ~ "ßa"')).sql
    assert "MATCH" not in compile_filter(parse(f'{column} ~ "ab"')).sql
    assert "SEARCH f USING INTEGER PRIMARY KEY" in plan("combat")


def test_texts_are_joined_where_read() -> None:
    """The SQL mentions the table of folded texts only where it reads one."""
    without = 'name == "t." & organization != "x" & created ~ "12" & node ~ "n" & not @tag("x") & url ~ "u"'
    assert "t." not in compile_filter(parse(without)).sql
    assert "t." not in compile_filter(None).sql
    assert "t." not in parse_order(", ".join(COLUMNS)).sql
    assert "t." not in compile_filter(parse('name ~ "abc"')).sql, "the trigrams know"
    assert "t." in compile_filter(parse('name ~ "ab"')).sql


# Orders


@pytest.mark.parametrize(
    ("by", "reads", "sql"),
    [
        ("", "name, node, url", "f.name, f.node, f.url"),
        ("  ", "name, node, url", "f.name, f.node, f.url"),
        ("name", "name", "f.name, f.node, f.url"),
        (" author:d ,name ", "author:d, name", "f.author DESC, f.name, f.node, f.url"),
        ("author:d,name:desc", "author:d, name:desc", "f.author DESC, f.name DESC, f.node DESC, f.url DESC"),
        ("url", "url", "f.url, f.node"),
        ("node:d", "node:d", "f.node DESC, f.url DESC"),
        ("url:d,name", "url:d, name", "f.url DESC, f.name, f.node"),
        ("tags:descending", "tags:descending", "f.tag_key DESC, f.node DESC, f.url DESC"),
        ("organization:a", "organization:a", "n.organization, f.node, f.url"),
        ("created:ascending", "created:ascending", "n.created, f.node, f.url"),
        ("registry", "registry", "f.node, f.url"),
        ("registry:d", "registry:d", "f.node DESC, f.url DESC"),
        ("name,name:d", "name, name:d", "f.name, f.node, f.url"),
    ],
)
def test_order(by: str, reads: str, sql: str) -> None:
    """An order shows what was asked, and ends with node and url, which descend when all that is asked does."""
    order = parse_order(by)
    assert (order.shown, order.sql) == (reads, sql)
    assert misordered(by) == ""


@pytest.mark.parametrize("q", ["", "  ", "a text", 'name == "a" & @tag("b")', "name ~ "])
def test_what_is_remembered_of_a_question_is_what_it_says(q: str) -> None:
    """Also when it is asked again, whatever was done with the parameters meanwhile."""
    for _ in range(2):
        asked, select = selection(q)
        assert asked == parse(q)
        assert select == (None if asked is None else compile_filter(asked))


@pytest.mark.parametrize("word", ["ascending", "descending"])
def test_directions(word: str) -> None:
    """Any prefix of a direction but the empty one is a direction."""
    for end in range(1, len(word) + 1):
        assert ("DESC" in parse_order(f"name:{word[:end]}").sql) == (word == "descending")


@pytest.mark.parametrize(
    "by",
    [
        "evil",
        "Name",
        "name,",
        ",",
        "name,,url",
        "name:",
        "name:x",
        "name:descendings",
        "name:D",
        "name:a:d",
        ":d",
        "name d",
        "f.name",
        "name; DROP TABLE flow",
        "name\0",
        "name--",
        "1",
        "x" * 100_000,
        "name," * 100_000,
    ],
)
def test_order_refused(by: str) -> None:
    """What is no order is refused at query.by with the names of the columns, without an echo; people are told more."""
    with pytest.raises(InvalidMessageError) as caught:
        parse_order(by)
    (fault,) = caught.value.detail
    assert fault["loc"] == ["query", "by"]
    assert all(column in fault["msg"] for column in COLUMNS)
    assert misordered(by)
    with pytest.raises(InvalidMessageError) as other:
        parse_order("another")
    assert other.value.detail == caught.value.detail


# Hostile input

EVIL = [
    "__import__('os').system('touch /tmp/kodo_was_here')",
    "name.__class__.__mro__",
    'name == "".__class__',
    "@__import__('os')",
    "@pd.eval('1')",
    "[].append(1)",
    "lambda: 0",
    "name == `x`",
    "exec('1')",
    '{"a": 1}',
    "f'{name}'",
    "'; DROP TABLE flow; --",
    "name == 'x'; DROP TABLE flow; --",
    "name == '\\'; DROP TABLE flow; --'",
    "' OR 1=1 --",
    ":q0",
    "?1",
    "name ~ ':q0 :registry ?1 @q0 $q0'",
    '@tag("x\' OR 1=1 --")',
    "name ~ '{name} : \"x\" OR *'",
    "(a+)+$",
    "name ~ '(a+)+$'",
    '"\'"\'"',
    '"',
    "'",
    "\\",
    '\\"',
    "\0",
    "%",
    "%s%n{0}",
]
BOMBS = [
    lambda n: "(" * n,
    lambda n: ")" * n,
    lambda n: "not " * (n // 4),
    lambda n: '"' * n,
    lambda n: '"' + "\\" * (n - 1),
    lambda n: '"' + '\\"' * (n // 2 - 1),
    lambda n: "name" + " " * (n - 5) + "=",
    lambda n: "a" * n,
    lambda n: "a " * (n // 2),
    lambda n: "@" * n,
    lambda n: "=" * n,
    lambda n: "<" * n,
    lambda n: "name==" + "name==" * (n // 6 - 1),
    lambda n: "''<''" + "|''<''" * (n // 6 - 1),
    lambda n: "url<''" + "&url<''" * (n // 7 - 1),
    lambda n: 'name~"abc"' + '|name~"abc"' * (n // 11 - 1),
    lambda n: 'organization!=""' + '&organization!=""' * (n // 17 - 1),
    lambda n: "not(''<'')" + "|not(''<'')" * (n // 11 - 1),
    lambda n: '@tag("")' + '|@tag("")' * (n // 9 - 1),
    lambda n: 'name ~ "' + "ab" * ((n - 9) // 2) + '"',
]


def words(sql: str) -> set[str]:
    """The words of an SQL text, its own parameters left out."""
    return set(re.findall(r"\w+", re.sub(r":q\d+\b", "", sql)))


VOCABULARY = words("""
    AND OR NOT NULL IS IN SELECT FROM WHERE MATCH UNION ALL rowid id flow record trigram unindexed tag f n t 0 1
    instr casefold lower
    registry node organization created modified heartbeat url name author description tags listed
""")


_alarms: list[str] | None = None


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if _alarms is not None and event in ("compile", "exec", "open", "os.system", "subprocess.Popen", "os.posix_spawn"):
        _alarms.append(event)


@pytest.fixture
def alarms() -> Iterator[list[str]]:
    """What Python compiles, executes, opens or starts during a test."""
    global _alarms  # noqa: PLW0603  # an audit hook stays for the life of the process; this switches it
    sys.addaudithook(_audit)
    _alarms = []
    yield _alarms
    _alarms = None


def test_alarms_ring(alarms: list[str]) -> None:
    """The fixture that listens for executions hears one."""
    exec("pass")
    assert alarms


def test_nothing_is_executed(alarms: list[str]) -> None:
    """Hostile text is neither compiled nor executed by Python, nor does a word of it get into the SQL."""
    with closing(mesh_of([row()])) as mesh:
        before = list(mesh.iterdump())
        alarms.clear()  # the dump imports a module
        for q in EVIL:
            select(mesh, q)
            found = compile_filter(parse(q))
            assert words(found.sql) <= VOCABULARY
            assert not re.search("['\"`;?$@#-]", found.sql)
        assert not alarms
        assert list(mesh.iterdump()) == before


def calls_of(function: Callable[[], Any]) -> int:
    """How many functions, of Python or C, are called by one."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def size(tree: Tree) -> int:
    """The nodes of a tree."""
    match tree:
        case And(operands) | Or(operands):
            return 1 + sum(map(size, operands))
        case Not(operand):
            return 1 + size(operand)
        case Comparison():
            return 3
        case _:
            return 1


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("length", [64, 512, 4096, 100_000])
def test_work_is_bounded(bomb: Callable[[int], str], length: int) -> None:
    """Calls, tokens, nodes, SQL and parameters grow no faster than the text, and it ends within a second."""
    q = bomb(length)
    started = time.process_time()
    asked = parse(q)
    found = compile_filter(asked)
    with closing(mesh_of([row()])) as mesh:
        select(mesh, q)
    assert time.process_time() - started < 1
    assert calls_of(lambda: compile_filter(parse(q))) <= 16 * min(len(q), MAX_LENGTH) + 64
    if isinstance(asked, Expression):
        tokens = query._tokens(asked.text)
        assert len(tokens) <= len(q)
        assert size(asked.tree) <= len(tokens)
        assert len(found.params) <= len(tokens)
        assert len(found.sql) <= 16 * len(q) + 64
    else:
        assert len(found.params) <= 2
        assert len(found.sql) < 400


def doubled(levels: int, leaf: str) -> str:
    """A tree that is deep on both sides of its last levels."""
    q = "not " * (MAX_LEVELS - levels) + leaf
    for level in range(levels):
        q = f"({q}){'&|'[level % 2]}({q})"
    return q


@pytest.mark.parametrize("leaf", ["organization~'abc'", "organization!='abc'", "@tag('x')", "''<''"])
@pytest.mark.parametrize(
    "shape",
    [
        lambda leaf: "(" * 64 + leaf + ")" * 64,
        lambda leaf: "not " * 64 + leaf,
        lambda leaf: "not (" * 32 + leaf + ")" * 32,
        lambda leaf: "''<''&(''<''|(" * 32 + leaf + "))" * 32,
        lambda leaf: "''<''&not(''<''|not(" * 16 + leaf + "))" * 16,
        lambda leaf: "(" * 64 + leaf + ")&''<'')|''<''" * 32,
        lambda leaf: f"{leaf}&(" * 63 + leaf + ")" * 63,
        lambda leaf: "not(''<''&''<''|" * 32 + leaf + ")" * 32,
        lambda leaf: "(" * 64 + leaf + "&''<''|''<'')" * 64,
        lambda leaf: doubled(1, leaf),
        lambda leaf: doubled(2, leaf),
        lambda leaf: doubled(3, leaf),
        lambda leaf: "&(".join(["|".join(["''<''"] * 600), "(" * 60 + leaf + ")" * 60]) + ")",
    ],
)
def test_deepest_expressions_run(shape: Callable[[str], str], leaf: str) -> None:
    """Whatever is an expression, SQLite runs, inside a larger statement too, though its parser's stack is small."""
    q = shape(leaf)
    assert not is_text(q)
    with closing(mesh_of([row()])) as mesh, closing(Catalogue("http://r:1")) as catalogue:
        select(mesh, q)
        catalogue.page(compile_filter(parse(q)), parse_order("author"), 0, 10)


# Against a plain reading in Python

SHARDS = [
    "a",
    "A",
    "b",
    "ab",
    "abc",
    "ß",
    "ss",
    "SS",
    "İ",
    "i\u0307",
    "I",
    "\u0131",
    "Σ",
    "ς",
    "\u03c3",
    "e\u0301",
    "é",
    "\u0301",
]
SHARDS += [
    "😀",
    "𐐀",
    "𐐨",
    "ﬁ",
    "\ufffe",
    "\ufffd",
    "%",
    "_",
    "*",
    "'",
    '"',
    "\\",
    " ",
    "\n",
    "T",
    "not",
    "?",
    ".",
    "-",
    "0",
]
some_text = st.lists(st.sampled_from(SHARDS), max_size=6).map("".join)
storable = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.one_of(some_text, some_text, st.text(storable, max_size=5))
times = st.sampled_from(["2024-12-25T18:03:12.989989", "2024-12-25T18:03:12.000000", "2025-01-01T00:00:00.000000"])
rows_of_a_mesh = st.lists(
    st.fixed_dictionaries(
        {
            "registry": st.just(REGISTRY),
            "node": st.sampled_from(["http://a:1", "http://B:1", "http://b:1", "http://ß:1"]),
            "organization": st.none() | texts,
            "created": st.none() | times,
            "modified": st.none() | times,
            "heartbeat": st.none() | times,
            "url": texts.map(lambda text: f"/{text}"),
            "name": texts,
            "author": st.just("missing author") | texts,
            "description": st.just("missing description") | texts,
            "tags": st.lists(texts, max_size=3),
        }
    ),
    max_size=6,
    unique_by=lambda flow: (flow["node"], flow["url"]),
)


def displayed(flow: Row, column: str) -> str | None:
    """A value as one text, its tags a line each."""
    value = flow[column]
    return "\n".join(value) if isinstance(value, list) else value


@st.composite
def needles(draw: st.DrawFn, rows: list[Row]) -> str:
    """Any text, or a piece of a value that is listed, in some case."""
    values = [value for flow in rows for column in COLUMNS if (value := displayed(flow, column))]
    if not values or draw(st.integers(0, 3)) == 0:
        return draw(st.one_of(texts, st.just("a\0b"), st.just("2024-12-25 18")))
    value = draw(st.sampled_from(values))
    start = draw(st.integers(0, len(value) - 1))
    piece = value[start : draw(st.integers(start, len(value)))] if draw(st.booleans()) else value
    return draw(st.sampled_from([str, str.upper, str.lower, str.casefold, str.swapcase]))(piece)


@st.composite
def leaves(draw: st.DrawFn, rows: list[Row]) -> Tree:
    """A comparison that the language allows, or a tag."""
    words = [tag for flow in rows for tag in flow["tags"]]
    if draw(st.integers(0, 5)) == 0:
        return Tag(draw(st.sampled_from(words) if words and draw(st.booleans()) else texts))
    operator = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "~", "~", "~", "~"]))
    columns = st.sampled_from(COLUMNS if operator == "~" else COLUMNS[:-1]).map(Column)
    left = draw(st.one_of(columns, columns, needles(rows).map(Literal)))
    right = draw(st.one_of(st.sampled_from(COLUMNS[:-1]).map(Column), *[needles(rows).map(Literal)] * 3))
    return Comparison(left, operator, right)


def trees(rows: list[Row]) -> st.SearchStrategy[Tree]:
    several = lambda parts: st.lists(parts, min_size=2, max_size=3).map(tuple)  # noqa: E731  # read once, in place
    return st.recursive(
        leaves(rows),
        lambda parts: st.one_of(parts.map(Not), several(parts).map(And), several(parts).map(Or)),
        max_leaves=8,
    )


def render_operand(operand: Column | Literal) -> str:
    if isinstance(operand, Column):
        return operand.name
    quote = "'" if operand.text.count('"') > operand.text.count("'") else '"'
    return quote + re.sub(rf"[\\{quote}]", r"\\\g<0>", operand.text) + quote


def render(tree: Tree) -> str:
    """A text that reads as the tree."""
    match tree:
        case Comparison(left, operator, right):
            return f"{render_operand(left)} {operator} {render_operand(right)}"
        case Tag(word):
            return f"@tag({render_operand(Literal(word))})"
        case Not(operand):
            return f"not {nested(operand)}"
        case And(operands):
            return " & ".join(map(nested, operands))
        case Or(operands):
            return " | ".join(render(part) if isinstance(part, And) else nested(part) for part in operands)


def nested(tree: Tree) -> str:
    return f"({render(tree)})" if isinstance(tree, And | Or) else render(tree)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_expressions_agree(data: st.DataObject) -> None:
    """For any rows and any tree, the text reads as the tree, and SQL finds what a plain reading finds."""
    rows = data.draw(rows_of_a_mesh)
    with closing(mesh_of(rows)) as mesh:
        for tree in data.draw(st.lists(trees(rows), min_size=1, max_size=3)):
            q = render(tree)
            assert tree_of(q) == tree
            assert words(compile_filter(parse(q)).sql) <= VOCABULARY
            assert select(mesh, q) == [number for number, flow in enumerate(rows) if matches(parse(q), flow)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_text_search_agrees(data: st.DataObject) -> None:
    """For any rows and any needle, text search finds the rows that have it in one of the five columns."""
    rows = data.draw(rows_of_a_mesh)
    with closing(mesh_of(rows)) as mesh:
        for needle in data.draw(st.lists(needles(rows), min_size=1, max_size=4)):
            text = needle.strip()
            if not text or not is_text(text):
                continue
            asked = parse(needle)
            assert select(mesh, needle) == [number for number, flow in enumerate(rows) if matches(asked, flow)]


def sort_by(mesh: sqlite3.Connection, by: str) -> list[int]:
    return [number for (number,) in mesh.execute(f"SELECT f.id {SOURCE} ORDER BY {parse_order(by).sql}")]


@settings(max_examples=150, deadline=None)
@given(rows_of_a_mesh, st.lists(st.tuples(st.sampled_from(COLUMNS), st.booleans()), min_size=1, max_size=4))
def test_orders_agree(rows: list[Row], asked: list[tuple[str, bool]]) -> None:
    """For any rows and any order, SQL sorts by code point with nulls first, and all descending is the exact reverse."""
    columns = [column for column, _ in asked]
    with closing(mesh_of(rows)) as mesh:
        by = ",".join(f"{column}:{'d' if descends else 'a'}" for column, descends in asked)
        numbered = [{**flow, "number": number} for number, flow in enumerate(rows)]
        assert sort_by(mesh, by) == [flow["number"] for flow in ordered(numbered, parse_order(by))]
        descending = ",".join(f"{column}:d" for column in columns)
        assert sort_by(mesh, ",".join(columns)) == sort_by(mesh, descending)[::-1]


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.lists(st.sampled_from([*LETTERS.values(), *SHARDS, *"()&|~@=<>", "not", "tags"])).map("".join),
    )
)
def test_any_text_is_a_query(q: str) -> None:
    """Any text at all, lone surrogates included, becomes a filter that SQLite runs."""
    with closing(mesh_of([row()])) as mesh:
        select(mesh, q)
    (shown(parse(q)) or "").encode()
