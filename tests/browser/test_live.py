"""The live table and the dashboard as people have them: in JupyterLab, over a mesh that runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import Snap
from tests.browser.jupyter import Lab, code_of, jupyterlab, run_notebook, write_notebook
from tests.waiting import until

NOTEBOOK = Path(__file__).parent.parent.parent / "notebooks" / "live.ipynb"
TELL = """
import json
from pathlib import Path

Path("urls.json").write_text(json.dumps({member.name: member.url for member in lab}))
"""
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", params=["light", "dark"])
def jupyter(
    request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A JupyterLab in each theme."""
    with jupyterlab(tmp_path_factory.mktemp(f"jupyter-{request.param}"), dark=request.param == "dark") as lab:
        yield lab


@pytest.fixture
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["jupyter"])


def opened(page: Page, jupyter: Lab, cells: list[str]) -> dict[str, str]:
    """Run these cells in JupyterLab; the urls of the members."""
    write_notebook(jupyter.folder / "live.ipynb", [*cells, TELL])
    run_notebook(page, jupyter, "live.ipynb")
    urls: dict[str, str] = json.loads((jupyter.folder / "urls.json").read_text())
    return urls


def register(urls: dict[str, str], at: str, number: int, *flows: str) -> None:
    body = {
        "url": f"http://visitor{number}:1",
        "organization": "visitor",
        "flows": [{"url": f"/{flow.replace(' ', '-')}", "name": flow} for flow in flows],
    }
    httpx.post(f"{urls[at]}/register", json=body, trust_env=False).raise_for_status()


def names(table: Locator) -> list[str]:
    """The names in the rows of a table, from top to bottom, read at one moment."""
    found: list[str] = table.evaluate(
        "table => [...table.querySelectorAll('.kodo-row')].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)"
        ".map((row) => row.querySelector('.kodo-of-name').textContent)"
    )
    return found


def test_the_notebooks_table_is_alive(page: Page, jupyter: Lab, theme: str, snap: Snap) -> None:
    """It fills, follows a registration, sorts, searches and pages, by mouse and by keyboard; its end is said."""
    cells = [
        cell for cell in code_of(NOTEBOOK) if "kill" not in cell and "again" not in cell and "terminate" not in cell
    ]
    urls = opened(page, jupyter, cells)
    table = page.locator(".kodo-live").first
    table.scroll_into_view_if_needed()
    expect(table.locator(".kodo-count")).to_have_text("4 flows")
    until(lambda: names(table) == ["book search", "homework help", "reading list", "timetable"], "the table to fill")
    register(urls, "south", 1, "news of <b>today</b>")
    until(lambda: "news of <b>today</b>" in names(table), "the news")
    expect(table.locator(".kodo-fresh").filter(has_text="news of")).to_have_count(1)
    snap(page, f"live-{theme}")

    title = table.get_by_role("columnheader", name="name").get_by_role("button")
    title.click()
    title.click()
    until(lambda: names(table)[0] == "timetable", "the table to be sorted")
    expect(table.get_by_role("columnheader", name="name")).to_have_attribute("aria-sort", "descending")
    table.locator(".kodo-grid").focus()
    page.keyboard.press("/")
    page.keyboard.type('@tag("books") & name ~ "LIST"')
    until(lambda: names(table) == ["reading list"], "the search")
    expect(table.locator(".kodo-count")).to_have_text("1 of 5 flows")
    page.keyboard.press("Escape")
    page.keyboard.type('nam ~ "x"')
    expect(table.locator(".kodo-note")).to_contain_text("searched as text: there is no column nam")
    snap(page, f"live-mistake-{theme}")
    page.keyboard.press("Escape")
    expect(table.locator(".kodo-count")).to_have_text("5 flows")

    register(urls, "north", 2, *(f"flow {number:04}" for number in range(3000)))
    expect(table.locator(".kodo-count")).to_have_text("3,005 flows")
    table.locator(".kodo-grid").focus()
    for key, name in (("End", "book search"), ("Home", "timetable")):
        page.keyboard.press(key)
        until(lambda name=name: name in names(table), f"{key} to show {name}")  # type: ignore[misc]
    page.keyboard.press("PageDown")
    until(lambda: "flow 2990" in names(table), "the next page")
    assert len(names(table)) < 30
    only = page.locator(".kodo-live").nth(1)
    expect(only.locator(".kodo-count")).to_have_text("3,005 flows")
    expect(only.locator(".kodo-chip")).to_have_count(1)

    register(urls, "north", 2)
    expect(table.locator(".kodo-count")).to_have_text("5 flows")
    until(lambda: len(names(table)) == 5, "the rows that are left")
    page.evaluate("jupyterapp.commands.execute('notebook:insert-cell-below')")
    page.keyboard.press("Enter")
    page.keyboard.type("lab.terminate()")
    page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
    table.scroll_into_view_if_needed()
    expect(table.locator(".kodo-note")).to_have_text(re.compile("the lab has ended"), timeout=20_000)
    assert names(table)
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0


def test_the_dashboard_breaks_and_mends(page: Page, jupyter: Lab, theme: str, snap: Snap) -> None:
    """Its buttons kill, pause and cut, and mend that, as picture and chips show; a kernel restart spills nothing."""
    cells = code_of(NOTEBOOK)
    opened(
        page, jupyter, [cell for cell in cells if any(word in cell for word in ("MeshLab()", "school =", "dashboard"))]
    )
    mesh = page.locator(".kodo-mesh")
    page.locator(".kodo-do-heal").scroll_into_view_if_needed()
    page.locator(".jp-WindowedPanel-outer").evaluate("one => one.scrollBy(0, 600)")
    expect(mesh.locator(".kodo-member")).to_have_count(4)
    expect(mesh.locator(".kodo-link")).to_have_count(3)
    choices = [page.get_by_label(label, exact=True).bounding_box() for label in ("member", "between")]
    assert len({choice["x"] for choice in choices if choice is not None}) == 1, "choices begin beneath each other"
    places = {name: place(mesh, name) for name in ("north", "south", "library", "school")}
    snap(page, f"dashboard-{theme}")
    page.get_by_label("member", exact=True).select_option("north")
    page.locator(".kodo-do-kill").click()
    north = mesh.locator('[data-member="north"]')
    expect(north).to_have_attribute("data-state", "killed")
    expect(page.locator('.kodo-chip[data-member="north"]').last).to_have_attribute("data-state", "killed")
    expect(page.locator(".kodo-said")).to_have_text("kill north: done")
    snap(page, f"dashboard-killed-{theme}")
    assert {name: place(mesh, name) for name in places} == places
    page.locator(".kodo-do-restart").click()
    expect(north).to_have_attribute("data-state", "running", timeout=20_000)
    expect(page.locator(".kodo-said")).to_have_text("restart north: done", timeout=20_000)
    page.locator(".kodo-do-pause").click()
    expect(north).to_have_attribute("data-state", "paused")
    page.locator(".kodo-do-resume").click()
    expect(north).to_have_attribute("data-state", "running")
    page.locator(".kodo-do-partition").click()
    expect(page.locator(".kodo-said")).to_have_text(re.compile("expected two groups"))
    for side, name in enumerate(("north", "south")):
        page.locator(".widget-select-multiple select").nth(side).select_option([name])
    page.locator(".kodo-do-partition").click()
    expect(mesh.locator('.kodo-link[data-fault="cut"]')).to_have_count(1)
    expect(page.locator(".kodo-messages tbody tr").first).to_be_visible()
    snap(page, f"dashboard-cut-{theme}")
    page.locator(".kodo-do-heal").click()
    expect(mesh.locator('.kodo-link[data-fault=""]')).to_have_count(3)

    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    gone = re.compile("the kernel is (busy or )?gone")
    expect(page.locator(".kodo-note")).to_have_text(gone, timeout=30_000)
    expect(page.locator(".kodo-dashboard")).to_have_attribute("data-silent", gone)
    for part in (".kodo-chips", ".kodo-mesh", ".kodo-messages", ".kodo-controls"):
        expect(page.locator(part)).to_have_css("filter", "grayscale(1)")
    snap(page, f"dashboard-silent-{theme}")
    page.locator(".kodo-do-kill").click(force=True)  # it would be an error of the page: nobody is there to be told
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")


def test_the_notebook_is_read_without_its_kernel(page: Page, jupyter: Lab, theme: str, snap: Snap) -> None:
    """As it comes, run by somebody else, it shows the picture of the dashboard, whose names are read on any ground."""
    shutil.copy(NOTEBOOK, jupyter.folder / "read.ipynb")
    page.goto(f"{jupyter.url}/lab/workspaces/read/tree/read.ipynb?reset")
    picture = page.locator(".jp-RenderedHTMLCommon img[src^='data:image/svg']")
    page.locator(".jp-Cell").nth(10).scroll_into_view_if_needed(timeout=60_000)
    picture.scroll_into_view_if_needed()
    assert picture.evaluate("async (one) => { await one.decode(); return one.naturalWidth; }") > 100
    snap(page, f"read-{theme}")


def place(mesh: Locator, name: str) -> str:
    return str(mesh.locator(f'[data-member="{name}"]').evaluate("one => one.style.transform"))
