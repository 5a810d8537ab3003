"""The live table without a browser: what its views are told, and how it ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
import zipfile
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nbformat
import networkx as nx  # type: ignore[import-untyped]
import pytest
from nbconvert.exporters import HTMLExporter

from kodo.client import Client
from kodo.errors import LabError
from kodo.lab import MeshLab
from kodo.lab.copies import Copy, Line, Selection, order_of
from kodo.lab.engine import Life
from kodo.lab.faults import Effect
from kodo.lab.live import Live
from kodo.lab.naming import Names
from kodo.lab.sketch import scene_of, sketch
from kodo.lab.topology import Topology
from kodo.lab.widgets import MOST_ROWS, MOST_VIEWS, STATIC, FlowGrid
from kodo.misread import explanation
from kodo.service.stream import EACH
from tests.waiting import until

Told = dict[str, Any]


class Ear:
    """A view's end of a grid: what it was told."""

    def __init__(self, grid: FlowGrid) -> None:
        self.told: list[Told] = []
        self._grid = grid
        grid.send = self.told.append

    def say(self, kind: str = "look", view: str = "a", **looks: Any) -> None:
        self._grid._heard(self._grid, {"type": kind, "view": view, **looks}, [])

    def rows(self, view: str = "a") -> list[str]:
        """The names that the view shows now, from all that it was told."""
        known: dict[int, Any] = {}
        shown: list[int] = []
        for message in self.told:
            if message["view"] == view:
                known |= message["rows"]
                shown = message["numbers"]
        return [known[number][0] for number in shown]

    def last(self, name: str) -> Any:
        return self.told[-1][name]


def node(url: str, *flows: str, tags: list[str] | None = None) -> dict[str, Any]:
    listed = {
        f"/{flow}": {"url": f"/{flow}", "name": flow, "author": None, "description": None, "tags": tags}
        for flow in flows
    }
    return {"url": url, "organization": "o", "flows": listed}


# -- the copy ----------------------------------------------------------------------------------------------


def shown(copy: Copy, *columns: int, order: Any = ()) -> list[Any]:
    return [[line.cells[at] for at in columns or (0,)] for line in copy.lines(order, Selection())]


def test_rows_are_united_over_registries() -> None:
    """A flow that all list alike is one row; a form that only one lists is another."""
    copy = Copy()
    copy.replace("north", {"n": node("http://n:1", "a", "b")})
    copy.replace("south", {"n": node("http://n:1", "a")})
    assert shown(copy, 0, 7) == [["a", ["north", "south"]], ["b", ["north"]]]
    copy.update("south", {"n": node("http://n:1", "a", tags=["new"])})
    assert shown(copy, 0, 6, 7) == [["a", [], ["north"]], ["a", ["new"], ["south"]], ["b", [], ["north"]]]
    copy.update("north", {"n": None})
    assert shown(copy, 0, 7) == [["a", ["south"]]]
    copy.drop("south")
    assert copy.total() == 0


def test_a_row_keeps_its_number_and_its_cells_while_nothing_changes() -> None:
    """So that a view is told of a row only when it is another; a new form of the same flow is the same row."""
    copy = Copy()
    copy.replace("north", {"n": node("http://n:1", "a", "b"), "m": node("http://m:1", "c")})
    before = {line.cells[0]: line for line in copy.lines((), Selection())}
    copy.update("north", {"n": node("http://n:1", "a", "b", tags=["x"]), "m": node("http://m:1", "c")})
    after = {line.cells[0]: line for line in copy.lines((), Selection())}
    assert after["c"].cells is before["c"].cells
    assert after["a"].number == before["a"].number
    assert (before["a"].changed, after["c"].changed) == (0, 0)
    assert after["a"].changed > 0


def test_rows_are_sorted_by_what_is_shown() -> None:
    """By any column, several, each in its direction; ties as in a listing."""
    copy = Copy()
    copy.rename(Names({"zoo": "http://a:1", "ape": "http://b:1"}))
    copy.replace("north", {"a": node("http://a:1", "x", "y"), "b": node("http://b:1", "x")})
    assert shown(copy, 0, 1) == [["x", "ape"], ["x", "zoo"], ["y", "zoo"]]
    order = order_of([["node", True], ["name", True], ["nonsense", False], 3])
    assert shown(copy, 0, 1, order=order) == [["y", "zoo"], ["x", "zoo"], ["x", "ape"]]
    assert order_of("nonsense") == ()


@pytest.mark.parametrize(
    ("q", "said"),
    [
        ("", ""),
        ("plain words", ""),
        ('name ~ "x"', ""),
        ('nam ~ "x"', "there is no column nam"),
        ('name = "x"', "compared with =="),
        ("name == x", 'in quotes: "x"'),
        ('name == "x', "a quote is not closed"),
        ('(name == "x"', "a parenthesis is not closed"),
        ("a & b", "an expression is like"),
        ("press and news", 'and is written &, as in name ~ "agent" & @tag("news")'),
        ('name ~ "a" OR name ~ "b"', "OR is written |, as in"),
        ('name ~ "a" && name ~ "b"', "and is written &, or is written |, each once"),
        ('name ~ "a" & NOT name ~ "b"', "NOT is written not, in small letters"),
        ("@tag(news)", 'a tag stands in quotes: @tag("news")'),
        ('@tags("news")', 'a tag is asked for with @tag("news"), not @tags'),
        ('tags == "news"', 'a tag is asked for with @tag("news"), and a part of one with tags ~ "news"'),
        ('tag == "news"', 'there is no column tag; a tag is asked for with @tag("news")'),
        ('organisation == "a"', "there is no column organisation; did you mean 'organization'?"),
        ("rock and", ""),
        ("android or", ""),
        ("a" * 5000 + "=", ""),
    ],
)
def test_a_mistake_in_a_search_is_said_in_words(q: str, said: str) -> None:
    """Why something was searched as text although it looks like an expression."""
    assert said in explanation(q)
    assert bool(said) == bool(explanation(q)) or len(q) > 4096


# -- what a view is told -----------------------------------------------------------------------------------


@pytest.fixture
def large() -> tuple[Copy, FlowGrid, Ear]:
    """A grid over 10,000 flows."""
    copy = Copy()
    copy.replace("north", {f"n{n}": node(f"http://n{n}:1", *(f"{n:04}-{m}" for m in range(10))) for n in range(1000)})
    grid = FlowGrid(copy, lambda: None)
    return copy, grid, Ear(grid)


def test_a_view_gets_the_rows_that_it_looks_at(large: tuple[Copy, FlowGrid, Ear]) -> None:
    """Never all, each once, and what changes of them alone."""
    copy, grid, ear = large
    ear.say("hello", first=0, count=20)
    assert (len(ear.last("rows")), ear.last("total"), ear.last("filtered")) == (20, 10_000, 10_000)
    ear.say(first=10, count=20)
    assert (len(ear.last("rows")), ear.rows()[0]) == (10, "0001-0")
    told = len(ear.told)
    grid.show_all()
    assert len(ear.told) == told
    copy.update("north", {"n900": node("http://n900:1", "far away")})
    grid.show_all()
    assert (ear.last("rows"), ear.last("total")) == ({}, 9991)
    copy.update("north", {"n1": node("http://n1:1", *(f"0001-{m}" for m in range(10)), tags=["new"])})
    grid.show_all()
    assert len(ear.last("rows")) == len(ear.last("fresh")) == 10


def test_each_view_has_its_own_window(large: tuple[Copy, FlowGrid, Ear]) -> None:
    """Order and rows are a view's own; one that comes anew is told all that it looks at, one that left nothing."""
    copy, grid, ear = large
    ear.say("hello", view="a", first=0, count=5)
    ear.say("hello", view="b", first=0, count=5, order=[["name", True]])
    assert (ear.rows("a")[0], ear.rows("b")[0]) == ("0000-0", "0999-9")
    ear.say("hello", view="a", first=0, count=5)
    assert len(ear.last("rows")) == 5
    ear.say("bye", view="a")
    told = len(ear.told)
    copy.update("north", {"n0": None})
    grid.show_all()
    assert {message["view"] for message in ear.told[told:]} == {"b"}


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {"type": "look"},
        {"view": 3},
        {"view": "a", "first": -5, "count": 10**9, "order": [["name"]], "q": 3, "asked": "x"},
        {"view": "a", "first": 10**400, "count": None},
    ],
)
def test_nonsense_from_a_view_does_no_harm(large: tuple[Copy, FlowGrid, Ear], said: Any) -> None:
    """A view is foreign text: what it says is bounded."""
    _, grid, ear = large
    grid._heard(grid, said, [])
    assert all(len(message["rows"]) <= MOST_ROWS for message in ear.told)


def test_views_that_never_leave_are_forgotten(large: tuple[Copy, FlowGrid, Ear]) -> None:
    """A page that is reloaded says no bye."""
    _, grid, ear = large
    for number in range(100):
        ear.say("hello", view=str(number), count=1)
    assert len(grid.views()) == MOST_VIEWS


# -- a lab -------------------------------------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[MeshLab]:
    with MeshLab() as lab:
        north = lab.add_registry("north")
        lab.add_registry("south", connect=north)
        lab.add_node("library", connect=north, flows=[{"name": "book search", "tags": ["books"]}, "reading list"])
        lab.settle()
        yield lab


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kodo-")]


def test_a_live_table_follows_its_lab(lab: MeshLab) -> None:
    """Registrations, searches, members that come, are killed and come back, and the end."""
    live = lab.live()
    ear = Ear(live.grid)
    ear.say("hello", count=20)
    until(lambda: ear.rows() == ["book search", "reading list"], "the rows")
    ear.say(count=20, q='@tag("books")')
    until(lambda: ear.rows() == ["book search"], "the search")
    ear.say(count=20, q='nam ~ "x"')
    until(lambda: "no column nam" in ear.last("note"), "the mistake to be said")
    ear.say(count=20, q="")
    lab.add_node("school", connect="south", flows=["homework"])
    until(lambda: "homework" in ear.rows(), "the new flow")
    until(lambda: [one["name"] for one in ear.last("members")] == ["north", "south", "library", "school"], "the member")
    lab["north"].kill()
    until(lambda: {one["state"] for one in ear.last("members")} == {"running", "killed"}, "the chip")
    until(lambda: {tuple(cells[7]) for cells in live_cells(live)} == {("south",)}, "north to list nothing")
    lab["north"].restart()
    until(lambda: {tuple(cells[7]) for cells in live_cells(live)} == {("north", "south")}, "north to list again")
    lab.terminate()
    until(lambda: ear.last("ended"), "the end to be said")
    assert ear.rows()
    until(lambda: not [name for name in threads() if name.startswith("kodo-live")], "the threads to end")


def live_cells(live: Live) -> list[Any]:
    lines: list[Line] = live.copy.lines((), Selection())
    return [line.cells for line in lines]


def test_a_search_is_whole_although_registries_differ(lab: MeshLab) -> None:
    """What one registry alone lists is found there."""
    lone = lab.add_registry("lone")
    lab.add_node("hermit", connect=lone, flows=["book of silence"])
    live = lab.live()
    ear = Ear(live.grid)
    ear.say("hello", count=20, q='name ~ "book"')
    until(lambda: ear.rows() == ["book of silence", "book search"], "both to be found")
    live.close()
    assert ear.last("ended")


def test_a_member_has_a_table_of_its_own(lab: MeshLab) -> None:
    """Also a node; each widget goes its own way."""
    tables = [lab["south"].live(), lab["library"].live(), lab.live()]
    for live in tables:
        until(lambda live=live: len(live_cells(live)) == 2, "the rows")  # type: ignore[misc]
    assert [one["name"] for one in tables[0].grid.members] == ["south"]
    tables[0].close()
    assert tables[0].grid.ended
    assert not tables[2].grid.ended


def test_a_cell_that_runs_again_shows_the_same(lab: MeshLab) -> None:
    """Asked for again, a table or dashboard is the one that is open, and takes nothing more; once closed, a new one."""
    ask = (lab.live, lab["south"].live, lab.dashboard)
    first = [once() for once in ask]
    before = len(threads())
    for _ in range(20):
        assert [again() for again in ask] == first
    assert len(threads()) == before
    for shown in first:
        shown.close()  # type: ignore[attr-defined]
    assert not {id(once()) for once in ask} & {id(shown) for shown in first}
    until(lambda: len(threads()) <= before, "what is closed to be gone")
    table = lab.live()
    table.grid.close()
    assert lab.live() is not table, "of a widget that was closed nothing would be shown"
    until(lambda: len(threads()) <= before, "what has no widget to be gone")


def test_who_is_not_heard_is_named(lab: MeshLab) -> None:
    """A registry that takes no more readers runs, and the views say that what it lists may be missing."""
    with ExitStack() as stack:
        for _ in range(EACH):
            next(stack.enter_context(stack.enter_context(Client(lab["north"].url)).events()))
        live, dashboard = lab.live(), lab.dashboard()
        ear = Ear(live.grid)
        ear.say("hello")
        until(lambda: "nothing is heard of north" in ear.last("note"), "the note")
        assert "what they list may be missing" in ear.last("note")
        until(lambda: "nothing is heard of north" in dashboard.messages.state["note"], "the note of the messages")
    until(lambda: ear.last("note") == "", "north to be heard", timeout=30)
    assert ear.rows() == ["book search", "reading list"]


def test_what_is_saved_is_constant(lab: MeshLab) -> None:
    """A line of text, and the table as HTML, that of a dashboard with a picture; without anything measured."""
    live, dashboard = lab.live(), lab.dashboard()
    bundles = [shown._repr_mimebundle_() for shown in (live, dashboard)]
    assert [bundle["text/plain"] for bundle in bundles] == ["<Live flows>", "<Dashboard>"]
    table = lab.flows()._repr_html_()
    assert bundles[0]["text/html"] == table
    picture = bundles[1]["text/html"].removesuffix(table)
    assert drawn(picture).count("<g>") == len(lab)
    assert picture == dashboard._repr_mimebundle_()["text/html"].removesuffix(table)
    dashboard.close()
    live.close()


def test_a_saved_notebook_becomes_html_that_needs_no_widget(lab: MeshLab) -> None:
    """A converted notebook without widget state shows table and picture where the widgets were."""
    live, dashboard = lab.live(), lab.dashboard()
    shown = [nbformat.v4.new_output("display_data", view._repr_mimebundle_()) for view in (live, dashboard)]
    cell = nbformat.v4.new_code_cell("", outputs=shown)
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "widget-view" not in page
    assert page.count("reading list") == 2
    assert "<title>registry north: running</title>" in drawn(page)
    dashboard.close()
    live.close()


def drawn(html: str) -> str:
    """The SVG of the last image."""
    return b64decode(html.rpartition("data:image/svg+xml;base64,")[2].partition('"')[0]).decode()


def test_a_sketch_shows_states_and_faults_and_escapes_names() -> None:
    """Paused ones with bars, those that are gone in grey, wrong links dashed, with their words."""
    graph = nx.DiGraph()
    graph.add_node("<b>", kind="registry", answers=True)
    graph.add_node("shop", kind="provider", answers=True)
    graph.add_node("lost", kind="node", answers=False)
    graph.add_edge("shop", "<b>", kind="connect", stands=True)
    graph.add_edge("lost", "<b>", kind="register", stands=False)
    places = {"<b>": 0j, "shop": 1 + 1j, "lost": -1 + 0j}
    cut = {("shop", "<b>"): Effect(cut=True), ("<b>", "shop"): Effect(cut=True)}
    far = {("shop", "lost"): Effect(ms=5)}
    held = [("cut shop <-> <b>", cut), ("5 ms shop -> lost", far)]
    html = sketch(scene_of(Topology(graph, places, held), {"shop": "paused"}))
    picture = drawn(html)
    assert "<b>" not in html + picture
    assert "<title>registry &lt;b&gt;: running</title>" in picture
    assert picture.count("stroke-dasharray") == 2
    assert ">cut</text>" in picture
    assert "<div>5 ms shop -&gt; lost (no link)</div>" in html
    assert picture.count("v10M") == 1
    for words in ("1 registry", "1 provider", "1 node", "grey: does not answer", "dashed: broken"):
        assert words in html
    ET.fromstring(picture)
    assert sketch({"members": [], "links": [], "title": ""}) == ""


def test_a_member_that_did_not_start_is_not_followed_in_place_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is added by its name afterwards answers at another url, and its flows are shown."""
    with MeshLab() as lab:
        live, wait_for_start = lab.live(), lab.engine.wait_for_start

        def seen(life: Life, timeout: float) -> None:
            until(lambda: any(member["name"] == "late" for member in live.grid.members), "the table to see it")
            wait_for_start(life, timeout)

        monkeypatch.setattr(lab.engine, "wait_for_start", seen)
        with pytest.raises(LabError):
            lab.add_registry("late", cache=os.devnull)
        monkeypatch.undo()
        late = lab.add_registry("late")
        lab.add_node(connect=late, flows=["new"])
        until(lambda: live.copy.total() == 1, "the flow of its node")


def test_a_table_keeps_no_lab_alive() -> None:
    """A lab that nobody can reach ends, and its table with it."""
    lab = MeshLab()
    lab.add_registry()
    grid = lab.live().grid
    del lab
    gc.collect()
    until(lambda: grid.ended, "the table to end")


def test_the_end_of_a_process_spills_nothing(tmp_path: Path) -> None:
    """A script that ends while tables are live says nothing, whether it terminates its lab or not."""
    script = (
        "from kodo.lab import MeshLab\n"
        "lab = MeshLab(); lab.add_node(connect=lab.add_registry(), flows=['a'])\n"
        "lab.live(); lab.dashboard()\n"
    )
    for last in ("", "lab.terminate()\n"):
        done = subprocess.run([sys.executable, "-c", script + last], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_dashboard_draws_what_the_members_answer(lab: MeshLab) -> None:
    """Members with stable places, links, and who is gone; its buttons say what cannot be done."""
    dashboard = lab.dashboard()

    def states() -> dict[str, str]:
        return {one["name"]: one["state"] for one in dashboard.picture.state["members"]}

    def places() -> dict[str, tuple[int, int]]:
        return {one["name"]: (one["x"], one["y"]) for one in dashboard.picture.state["members"]}

    before = places()
    assert states() == {"north": "running", "south": "running", "library": "running"}
    assert {(one["one"], one["other"]) for one in dashboard.picture.state["links"]} == {
        ("library", "north"),
        ("south", "north"),
    }
    lab["north"].kill()
    until(lambda: states()["north"] == "killed", "the picture to turn grey")
    lab.add_node("school", connect="south")
    until(lambda: "school" in states(), "the new member to be drawn")
    assert {name: places()[name] for name in before} == before
    lab.terminate()
    until(lambda: dashboard.messages.state["note"] == "the lab has ended", "the end to be said")
    until(lambda: not [name for name in threads() if name != "kodo-lab"], "the threads to end")


def test_the_front_ends_ship_in_the_wheel(tmp_path: Path) -> None:
    """Plain files, which load without a network."""
    root = Path(__file__).parent.parent
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    done = subprocess.run([*build, str(root)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("expected an index, to build a wheel with hatchling")
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for file in STATIC.iterdir():
        assert f"kodo/lab/static/{file.name}" in names
        assert "://" not in file.read_text().replace("http://www.w3.org/2000/svg", "")
