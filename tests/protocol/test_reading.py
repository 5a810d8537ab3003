"""Fixed: reading."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest

from tests.conftest import Served, Start
from tests.protocol.conftest import Old, Shared
from tests.protocol.helpers import (
    CACHE,
    ROW,
    TIME,
    TIME_WITH_SPACE,
    ago,
    connected,
    flow,
    flow_urls,
    record,
    stamped,
    told,
)
from tests.waiting import until

FIRST, SECOND, THIRD = "http://node1:3367", "http://node2:3367", "http://node3:3367"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture(scope="module")
def served(shared: Shared) -> Served:
    """A registry with three nodes, one of them without organization; no test changes it."""
    registry = shared(node=False, organization="registry1")
    registry.post(
        "/register",
        record(
            FIRST,
            flow("map", name="Agent Map", author="Ann", description="Finds a.c routes", tags=["rescue", "map"]),
            flow("b", name="agent b"),
            organization="Mediaplus",
        ),
    )
    registry.post(
        "/register",
        record(SECOND, flow("c", name="STRASSE", tags=["zoo", "air"], author="bob"), organization=None),
    )
    registry.post(
        "/register",
        record(THIRD, flow("d", name="combat", tags=["air", "map"]), flow("e", name="agent b"), organization="other"),
    )
    return registry


def urls(served: Served, **params: Any) -> list[str]:
    return [row["url"] for row in served.flows(**params)]


def test_the_page_and_its_rows(serve: Start) -> None:
    """`GET /flows` answers total, filtered, p, pp, items, by and q; absent author, description, tags read as shown."""
    served = serve(node=False)
    served.post("/register", record(FIRST, "mytest"))
    page = served.get("/flows")
    assert list(page) == ["total", "filtered", "p", "pp", "items", "by", "q"]
    (row,) = page["items"]
    assert page == {"total": 1, "filtered": 1, "p": 0, "pp": 10, "items": [row], "by": "name, node, url", "q": None}
    assert sorted(row) == sorted(ROW)
    times = {name: row[name] for name in ("created", "modified", "heartbeat")}
    assert all(TIME.fullmatch(each) for each in times.values())
    assert row == {
        "registry": served.url,
        "node": FIRST,
        "organization": "node1",
        **times,
        "url": "/mytest",
        "name": "mytest",
        "author": "missing author",
        "description": "missing description",
        "tags": [],
    }


def test_the_order_of_the_columns(serve: Start) -> None:
    """A row has its fields in the order in which the contract shows them."""
    served = serve(node=False)
    served.post("/register", record(FIRST, "mytest"))
    assert list(served.flows()[0]) == ROW


def test_pages(served: Served) -> None:
    """p is the page, from 0, and pp its size; total and filtered count all."""
    everything = urls(served)
    assert len(everything) == 5
    pages = [served.get("/flows", p=number, pp=2) for number in range(4)]
    assert [len(page["items"]) for page in pages] == [2, 2, 1, 0]
    assert [row["url"] for page in pages for row in page["items"]] == everything
    assert {(page["total"], page["filtered"], page["pp"]) for page in pages} == {(5, 5, 2)}
    assert [page["p"] for page in pages] == [0, 1, 2, 3]
    filtered = served.get("/flows", q='organization == "Mediaplus"', pp=1)
    assert (filtered["total"], filtered["filtered"], len(filtered["items"])) == (5, 2, 1)
    assert served.get("/flows", p=10**6, pp=1000)["items"] == []


def test_a_nodes_own_listing(serve: Start) -> None:
    """A node's own listing has null times and, for a pure node, its own url in `registry`."""
    node = serve(registry=False, organization="node1", loader=["mytest"])
    (row,) = node.flows()
    assert (row["registry"], row["node"], row["organization"]) == (node.url, node.url, "node1")
    assert row["created"] is row["modified"] is row["heartbeat"] is None


def test_by_default(served: Served) -> None:
    """Without `by` the order is name, node, url."""
    rows = [(row["name"], row["node"], row["url"]) for row in served.flows()]
    assert rows == sorted(rows)
    assert served.get("/flows", by="")["by"] == "name, node, url"


@pytest.mark.parametrize(
    ("by", "shown", "expected"),
    [
        ("url", "url", ["/b", "/c", "/d", "/e", "/map"]),
        ("url:d", "url:d", ["/map", "/e", "/d", "/c", "/b"]),
        ("url:a", "url:a", ["/b", "/c", "/d", "/e", "/map"]),
        ("url:desc", "url:desc", ["/map", "/e", "/d", "/c", "/b"]),
        ("url:descending", "url:descending", ["/map", "/e", "/d", "/c", "/b"]),
        ("url:asc", "url:asc", ["/b", "/c", "/d", "/e", "/map"]),
        (" node:d,url ", "node:d, url", ["/d", "/e", "/c", "/b", "/map"]),
        ("node:d,url:d", "node:d, url:d", ["/e", "/d", "/c", "/map", "/b"]),
        # nulls first ascending; ties by node, then url
        ("organization", "organization", ["/c", "/b", "/map", "/d", "/e"]),
        # every asked column descends: the exact reverse
        ("organization:d", "organization:d", ["/e", "/d", "/map", "/b", "/c"]),
        # sorted, joined words: "" (b, e), "air map" (d), "air zoo" (c), "map rescue" (map)
        ("tags", "tags", ["/b", "/e", "/d", "/c", "/map"]),
        ("tags:d", "tags:d", ["/map", "/c", "/d", "/e", "/b"]),
        # by the displayed values: Ann, bob, missing author
        ("author:a,url:d", "author:a, url:d", ["/map", "/c", "/e", "/d", "/b"]),
    ],
)
def test_by(served: Served, by: str, shown: str, expected: list[str]) -> None:
    """`by` orders by columns with `:a` or `:d`, any prefix; the reply says what was asked, joined by `, `."""
    assert served.get("/flows", by=by)["by"] == shown
    assert urls(served, by=by) == expected


@pytest.mark.parametrize("column", ROW)
def test_every_column_orders(served: Served, column: str) -> None:
    """Every column can be ordered by; descending is the exact reverse."""
    assert urls(served, by=f"{column}:d") == urls(served, by=column)[::-1]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('organization == "Mediaplus"', ["/b", "/map"]),
        ('organization == "Mediaplus" & name ~ "agent m"', ["/map"]),
        ('organization != "Mediaplus"', ["/c", "/d", "/e"]),
        ('organization < "zzz"', ["/b", "/d", "/e", "/map"]),
        ('organization >= "A"', ["/b", "/d", "/e", "/map"]),
        ('not organization == "Mediaplus"', ["/c", "/d", "/e"]),
        ('url > "/c"', ["/d", "/e", "/map"]),
        ('url >= "/c"', ["/c", "/d", "/e", "/map"]),
        ('url < "/c"', ["/b"]),
        ('url <= "/c"', ["/b", "/c"]),
        ('author == "missing author"', ["/b", "/d", "/e"]),
        ('description != "missing description"', ["/map"]),
        ('description ~ "MISSING DESC"', ["/b", "/c", "/d", "/e"]),
        ('name ~ "straße"', ["/c"]),
        ('name ~ "AGENT"', ["/b", "/e", "/map"]),
        ('name ~ ".*"', []),
        ('description ~ "a.c"', ["/map"]),
        ('@tag("rescue")', ["/map"]),
        ('@tag("map")', ["/d", "/map"]),
        ('@tag("res")', []),
        ('not @tag("map")', ["/b", "/c", "/e"]),
        ('@tag("air") | @tag("rescue")', ["/c", "/d", "/map"]),
        ('(@tag("air") | @tag("rescue")) & not (node == "http://node3:3367")', ["/c", "/map"]),
        ('created > "2000-01-01"', ["/b", "/c", "/d", "/e", "/map"]),
        ('created < "2999-01-01 00:00:00"', ["/b", "/c", "/d", "/e", "/map"]),
        ('created > "2999-01-01T00:00:00"', []),
        ("(" * 60 + 'url == "/c"' + ")" * 60, ["/c"]),
    ],
)
def test_expressions(served: Served, query: str, expected: list[str]) -> None:
    """`q` is an expression over the displayed columns."""
    page = served.get("/flows", q=query, pp=1000)
    assert page["q"] == query
    assert sorted(row["url"] for row in page["items"]) == sorted(expected)
    assert (page["filtered"], page["total"]) == (len(expected), 5)


def test_times_compare_with_a_space(served: Served) -> None:
    """Times compare as in JSON; a space is read as T."""
    time = served.flows(by="created")[0]["created"]
    for written in (time, time.replace("T", " ")):
        assert urls(served, q=f'created == "{written}"')
        assert not urls(served, q=f'created < "{written}"')
        assert served.get("/flows", q=f'created <= "{written}"')["filtered"] >= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("combat", ["/d"]),
        ("COMBAT", ["/d"]),
        ("strasse", ["/c"]),
        ("mediaplus", ["/b", "/map"]),
        ("ann", ["/map"]),
        ("ROUTES", ["/map"]),
        ("zoo", ["/c"]),
        ("a.c", ["/map"]),
        (".*", []),
        ("[", []),
        ("agent b", ["/b", "/e"]),
        ("missing author", ["/b", "/d", "/e"]),
        ("node3", []),
        ('name = "combat"', []),
        ('nowhere == "x"', []),
        ('tags == "rescue"', []),
        ('name == "combat" &', []),
        ('name == "combat', []),
        ("(" * 70 + 'url == "/c"' + ")" * 70, []),
        ('name == "combat" | ' * 300 + 'name == "combat"', []),
    ],
)
def test_text(served: Served, text: str, expected: list[str]) -> None:
    """What is no expression is searched as text, and the reply's `q` is exactly `fulltext: ` and the text."""
    page = served.get("/flows", q=text)
    assert page["q"] == f"fulltext: {text}"
    assert sorted(row["url"] for row in page["items"]) == sorted(expected)


def test_counts(served: Served) -> None:
    """`/counts` counts flows in total, by node, organization and tag; a null organization is left out."""
    counts = served.get("/counts")
    assert list(counts) == ["total", "node", "organization", "tags"]
    assert counts == {
        "total": 5,
        "node": {FIRST: 2, SECOND: 1, THIRD: 2},
        "organization": {"Mediaplus": 2, "other": 2},
        "tags": {"air": 2, "map": 2, "rescue": 1, "zoo": 1},
    }


def test_counts_of_one(serve: Start) -> None:
    """`/counts` of a registry with one flow, and of an empty one."""
    served = serve(node=False)
    assert served.get("/counts") == {"total": 0, "node": {}, "organization": {}, "tags": {}}
    served.post("/register", record(FIRST, "mytest"))
    assert served.get("/counts") == {"total": 1, "node": {FIRST: 1}, "organization": {"node1": 1}, "tags": {}}


def test_the_map(serve: Start, old: Old) -> None:
    """`/map` gives url, organization, feed, own nodes, providers with their nodes, and connection."""
    plain = old()
    plain.offer(stamped(SECOND, "x", created=ago(hours=1)))
    served = serve(node=False, organization="registry1", connect=plain.url)
    until(lambda: connected(served, plain.url), "the connection")
    served.post("/register", record(FIRST, "mytest"))
    view = served.get("/map")
    assert {"url", "organization", "feed", "nodes", "providers", "connection"} <= set(view)
    assert (view["url"], view["organization"], view["feed"]) == (served.url, "registry1", True)
    assert list(view["nodes"]) == [FIRST]
    assert view["nodes"][FIRST]["flows"] == {"/mytest": flow("mytest")}
    assert list(view["providers"]) == [plain.url]
    assert (view["providers"][plain.url]["organization"], view["providers"][plain.url]["feed"]) == ("old", True)
    assert list(view["providers"][plain.url]["nodes"]) == [SECOND]
    assert list(view["connection"]) == [plain.url]


def test_the_map_of_a_pure_node(serve: Start) -> None:
    """`/map` of a pure node has one entry in `nodes`, itself."""
    node = serve(registry=False, loader=["mytest"])
    view = node.get("/map")
    assert list(view["nodes"]) == [node.url]
    assert view["providers"] == {}


def test_the_cache(serve: Start) -> None:
    """`/_cache` is url, organization, feed, nodes and providers, both empty at first; a pure node answers 404."""
    served = serve(node=False, organization="registry1")
    expected = {"url": served.url, "organization": "registry1", "feed": True, "nodes": {}, "providers": {}}
    assert served.get("/_cache") == expected
    assert list(served.get("/_cache")) == CACHE
    served.post("/register", record(FIRST, "mytest"))
    served.post("/connect", told("http://registry2:3368", stamped(SECOND, "x", created=ago(hours=1)), feed=True))
    cache = served.get("/_cache")
    assert list(cache["nodes"]) == [FIRST]
    (provider,) = cache["providers"].values()
    assert list(provider["nodes"]) == [SECOND]
    answer = serve(registry=False).client.get("/_cache")
    assert answer.status_code == 404
    assert "detail" in answer.json()


class Table(HTMLParser):
    """The cells of the tables of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tables = 0
        self.scripts = 0
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tables += tag == "table"
        self.scripts += tag in ("script", "b")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def test_the_html_table(serve: Start) -> None:
    """`format=html` is the table of `DataFrame.to_html`: index column, all columns in order, escaped, untruncated."""
    served = serve(node=False)
    long = "long " * 60 + "end"
    served.post(
        "/register",
        record(
            FIRST,
            flow("a", name="<script>alert(1)</script>", description=long, tags=["x", "<b>y</b>"], author="A & B"),
            flow("b", name="second"),
        ),
    )
    answer = served.client.get("/flows", params={"format": "html"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<script>alert" not in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
    assert '<table border="1" class="dataframe">' in answer.text
    table = Table(answer.text)
    assert table.tables == 1
    assert table.scripts == 0
    assert table.rows[0] == ["", *ROW]
    items = served.flows()
    assert [row[0] for row in table.rows[1:]] == ["0", "1"]
    for cells, item in zip(table.rows[1:], items, strict=True):
        shown = dict(zip(ROW, cells[1:], strict=True))
        for column in ("registry", "node", "organization", "url", "name", "author", "description"):
            assert shown[column] == item[column]
        for column in ("created", "modified", "heartbeat"):
            assert TIME_WITH_SPACE.fullmatch(shown[column])
            assert shown[column] == item[column].replace("T", " ")
    assert long in answer.text
    with pd.option_context("display.max_colwidth", None):
        expected = Table(pd.DataFrame(items, columns=ROW).to_html())
    assert [row[-1] for row in table.rows] == [row[-1] for row in expected.rows]


def test_long_lists_of_tags_are_shown_in_full(serve: Start) -> None:
    """The html table truncates nothing, lists included."""
    served = serve(node=False)
    tags = [f"tag-number-{number:03}" for number in range(150)]
    served.post("/register", record(FIRST, flow("a", tags=tags)))
    page = served.client.get("/flows", params={"format": "html"}).text
    assert [tag for tag in tags if tag not in page] == []


def test_many_rows_are_shown_in_full(serve: Start) -> None:
    """The html table truncates nothing, rows included."""
    served = serve(node=False)
    served.post("/register", record(FIRST, *[f"flow{number}" for number in range(200)]))
    table = Table(served.client.get("/flows", params={"format": "html", "pp": 1000}).text)
    assert len(table.rows) == 201


@pytest.mark.parametrize(
    ("accept", "params", "html"),
    [
        ("text/html", {}, True),
        (BROWSER, {}, True),
        ("application/json;q=0.1, text/html", {}, True),
        ("text/html", {"format": "json"}, False),
        (BROWSER, {"format": "json"}, False),
        ("application/json", {"format": "html"}, True),
        ("application/json", {}, False),
        ("*/*", {}, False),
        ("application/json, text/html;q=0.5", {}, False),
    ],
)
def test_what_gives_the_page(serve: Start, accept: str, params: dict[str, str], html: bool) -> None:
    """`format=html`, or an `Accept` that prefers `text/html` with no `format=json`, gives the page."""
    answer = serve(node=False).client.get("/flows", params=params, headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html" if html else "application/json")


def test_html_of_an_empty_listing_and_of_a_node(serve: Start) -> None:
    """The page has its columns with no flow at all, and a pure node gives it too."""
    empty = Table(serve(node=False).client.get("/flows", params={"format": "html"}).text)
    assert empty.rows[0] == ["", *ROW]
    node = Table(serve(registry=False, loader=["mytest"]).client.get("/flows", params={"format": "html"}).text)
    assert len(node.rows) == 2


def test_displayed_tags_keep_their_order(served: Served) -> None:
    """Displayed tags keep their order."""
    assert {row["url"]: row["tags"] for row in served.flows()}["/map"] == ["rescue", "map"]


def test_the_documentation(serve: Start) -> None:
    """`/openapi.json` lists every route with the shape of success, the error answers and an example."""
    document = serve(node=False).get("/openapi.json")
    routes = {
        ("/", "get"): [],
        ("/register", "post"): ["404", "413", "422"],
        ("/connect", "post"): ["404", "413", "422"],
        ("/update/node", "post"): ["404", "413", "422"],
        ("/flows", "get"): ["422"],
        ("/counts", "get"): [],
        ("/map", "get"): [],
        ("/_cache", "get"): ["404"],
    }
    for (path, method), errors in routes.items():
        operation = document["paths"][path][method]
        success = operation["responses"]["200"]["content"]["application/json"]
        assert success["schema"], path
        assert set(errors) <= set(operation["responses"]), path
        for error in errors:
            assert operation["responses"][error]["content"]["application/json"], (path, error)
        assert "example" in str(operation) or "example" in str(_referred(document, operation)), path
        if method == "post":
            assert operation["requestBody"]["content"]["application/json"]["schema"], path
        assert operation.get("summary") or operation.get("description"), path
    named = {each["name"] for each in document["paths"]["/flows"]["get"]["parameters"]}
    assert {"p", "pp", "by", "q", "format"} <= named


def test_the_page_is_documented(serve: Start) -> None:
    """`/openapi.json` has the shape of every success of `/flows`: JSON, and the page as html."""
    document = serve(node=False).get("/openapi.json")
    assert "text/html" in document["paths"]["/flows"]["get"]["responses"]["200"]["content"]


def _referred(document: dict[str, Any], operation: dict[str, Any]) -> list[Any]:
    names = [part.split("'")[0] for part in str(operation).split("#/components/schemas/")[1:]]
    return [document["components"]["schemas"][name] for name in names]


def test_every_route_is_documented(serve: Start) -> None:
    """Documented routes answer, none of them with a 500."""
    served = serve(node=False)
    for path, methods in served.get("/openapi.json")["paths"].items():
        if "get" in methods and "{" not in path and path != "/events":
            assert served.client.get(path).status_code < 500, path
    assert flow_urls(served) == []


@pytest.mark.parametrize("path", ["/", "/flows", "/flows?format=html", "/counts", "/map", "/_cache", "/convergence"])
def test_what_is_read_can_be_asked_for_by_its_headers(serve: Start, path: str) -> None:
    """HEAD is answered as GET is, without the body; a stream, which would not end, is not."""
    served = serve(loader=["a"])
    got, headed = served.client.get(path), served.client.head(path)
    assert (headed.status_code, headed.content) == (200, b"")
    for name in ("content-type", "etag", "content-length"):
        assert headed.headers.get(name) == got.headers.get(name)
    assert served.client.head("/events").status_code == 405
    assert "head" not in served.get("/openapi.json")["paths"]["/flows"]
