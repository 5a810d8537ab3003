"""The table's front end alone, in a page with a stand-in for the kernel that has 10,000 rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from kodo.lab.widgets import STATIC
from tests.browser.conftest import Snap
from tests.waiting import until

KERNEL = (Path(__file__).parent / "kernel.js").read_text()


@pytest.fixture
def grid(page: Page) -> Page:
    """The table over 10,000 rows."""
    return show(page, 10_000)


def show(page: Page, many: int, colours: Any = "light") -> Page:
    page.emulate_media(color_scheme=colours)
    page.set_content("<!doctype html><meta name=color-scheme content='light dark'><body></body>")
    files = [(STATIC / name).read_text() for name in ("grid.js", "grid.css")]
    page.evaluate(KERNEL, [*files, many])
    page.wait_for_selector(".kodo-row" if many else ".kodo-empty:not(:empty)")
    return page


def names(page: Page) -> list[str]:
    """The names in the rows that are drawn, from top to bottom."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('.kodo-row')].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)"
        ".map((row) => row.querySelector('.kodo-of-name').textContent)"
    )
    return found


def shows(page: Page, name: str) -> None:
    page.wait_for_function(
        "name => [...document.querySelectorAll('.kodo-of-name')].some((cell) => cell.textContent === name)", arg=name
    )


def scroll_to(page: Page, row: int) -> None:
    page.evaluate("row => { document.querySelector('.kodo-grid').scrollTop = row * 30; }", row)


def test_only_the_rows_that_are_seen_are_in_the_page(grid: Page, snap: Snap) -> None:
    """Of 10,000 a few are drawn, and few more are fetched, wherever the view is."""
    snap(grid, "grid-light")
    for row in (0, 5000, 9990, 3, 7777):
        scroll_to(grid, row)
        shows(grid, f"flow {row:05}")
        assert len(names(grid)) < 20
    assert grid.locator(".kodo-count").text_content() == "10,000 flows"
    assert grid.locator(".kodo-grid").get_attribute("aria-rowcount") == "10001"
    assert sum(grid.evaluate("kernel.told")) < 400


def test_text_is_text(grid: Page) -> None:
    """Nothing of a flow is taken for HTML."""
    assert grid.locator(".kodo-cell b").count() == 0
    assert "<b>not bold</b>" in (grid.locator(".kodo-of-description").first.text_content() or "")


def test_who_lists_a_flow_is_seen_whole(grid: Page, snap: Snap) -> None:
    """Three registries by their usual names have room beside all other columns."""
    grid.evaluate("kernel.rows[3].cells = kernel.rows[3].cells.with(7, ['registry1', 'registry2', 'registry3'])")
    grid.evaluate("kernel.answer(kernel.last)")
    grid.wait_for_function("document.querySelectorAll('.kodo-of-registries .kodo-word').length > 20")
    grid.get_by_text("registry3").wait_for()
    snap(grid, "grid-listed-by")
    cut = "cells => cells.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent)"
    assert grid.locator(".kodo-of-registries").evaluate_all(cut) == []


def test_sorting_by_mouse(grid: Page) -> None:
    """A click sorts, another descends, one with Shift adds a column; the kernel is asked, and the heads say so."""
    title = grid.get_by_role("columnheader", name="name").get_by_role("button")
    title.click()
    title.click()
    shows(grid, "flow 09999")
    assert grid.evaluate("kernel.last.order") == [["name", True]]
    assert grid.get_by_role("columnheader", name="name").get_attribute("aria-sort") == "descending"
    grid.get_by_role("columnheader", name="organization").get_by_role("button").click()
    title.click(modifiers=["Shift"])
    grid.wait_for_function("kernel.last.order.length === 2")
    assert grid.evaluate("kernel.last.order") == [["organization", False], ["name", False]]
    grid.wait_for_function("document.querySelectorAll('[aria-sort=ascending]').length === 2")


def test_the_keyboard(grid: Page) -> None:
    """Arrows, pages, ends, and / for the search; the row that is active is told to who cannot see it."""
    grid.locator(".kodo-grid").focus()
    active = "document.getElementById(document.querySelector('.kodo-grid').getAttribute('aria-activedescendant'))"

    def at(row: int) -> None:
        grid.wait_for_function(f"{active}?.ariaRowIndex == {row + 2}")
        shows(grid, f"flow {row:05}")

    grid.keyboard.press("ArrowDown")
    grid.keyboard.press("ArrowDown")
    at(1)
    grid.keyboard.press("ArrowUp")
    at(0)
    grid.keyboard.press("PageDown")
    grid.wait_for_function(f"{active}?.ariaRowIndex > 8")
    grid.keyboard.press("PageUp")
    at(0)
    grid.keyboard.press("End")
    at(9999)
    grid.keyboard.press("Home")
    at(0)
    grid.keyboard.press("/")
    grid.keyboard.type("0123")
    grid.wait_for_function("document.querySelector('.kodo-count').textContent === '11 of 10,000 flows'")
    grid.keyboard.press("ArrowDown")
    grid.keyboard.press("ArrowDown")
    shows(grid, "flow 00123")
    grid.keyboard.press("/")
    grid.keyboard.press("Escape")
    grid.wait_for_function("document.querySelector('.kodo-count').textContent === '10,000 flows'")


def test_rows_that_changed_are_marked_for_a_while(grid: Page, snap: Snap) -> None:
    """A change sends what changed alone, marks it, keeps the other rows as they are, and the mark goes."""
    grid.evaluate("""() => {
      window.kept = document.querySelector('.kodo-row');
      kernel.rows[2] = {number: 3, cells: ["flow 00002 changed", ...kernel.rows[2].cells.slice(1)]};
      kernel.answer(kernel.last, {fresh: {3: 1500}});
    }""")
    shows(grid, "flow 00002 changed")
    assert grid.evaluate("kernel.told.at(-1)") == 1
    assert grid.evaluate("window.kept.isConnected")
    assert grid.locator(".kodo-fresh").count() == 1
    snap(grid, "grid-changed")
    grid.wait_for_function("document.querySelectorAll('.kodo-fresh').length === 0")


def test_fifty_changes_in_ten_thousand_take_less_than_a_frame_or_two(grid: Page) -> None:
    """Drawing a message is quick (11 ms were measured once); the bound leaves room for a busy machine."""
    took = grid.evaluate("""() => {
      for (let n = 0; n < 350; n += 7)
        kernel.rows[n] = {number: n + 1, cells: [`new ${n}`, ...kernel.rows[n].cells.slice(1)]};
      const began = performance.now();
      kernel.answer(kernel.last);
      document.body.offsetHeight;
      return performance.now() - began;
    }""")
    assert took < 200


def test_no_title_is_cut_off_when_its_column_is_sorted(grid: Page, snap: Snap) -> None:
    """With the sign of its order beside it, the longest too."""
    for title in grid.locator(".kodo-title button").all():
        title.click()
        until(lambda title=title: title.locator(".kodo-sign").text_content(), "the sign")  # type: ignore[misc]
        assert title.evaluate("one => one.scrollWidth <= one.clientWidth"), title.text_content()
    snap(grid, "grid-sorted")


def test_members_and_the_end(grid: Page, snap: Snap) -> None:
    """A chip for each member with its state in words; a note; a lab that ended, whose last rows can still be read."""
    chips = [chip.get_attribute("title") for chip in grid.locator(".kodo-chip").all()]
    assert chips == [
        "registry north: running",
        "registry south: paused",
        "node library: running",
        "node school: killed",
    ]
    grid.evaluate("() => { kernel.note = 'searched as text: a quote is not closed'; kernel.answer(kernel.last); }")
    assert grid.locator(".kodo-note").text_content() == "searched as text: a quote is not closed"
    grid.evaluate("() => { kernel.ended = true; kernel.answer(kernel.last); }")
    assert "the lab has ended" in (grid.locator(".kodo-note").text_content() or "")
    scroll_to(grid, 5000)
    shows(grid, "flow 05000")
    assert grid.locator(".kodo-search").is_disabled()
    snap(grid, "grid-ended")


def test_a_kernel_that_is_gone_is_said_to_be(grid: Page) -> None:
    """Sending fails in silence, but for a note."""
    grid.evaluate("() => { kernel.grid.send = () => { throw new Error('closed'); }; }")
    scroll_to(grid, 5000)
    grid.wait_for_function("document.querySelector('.kodo-note').textContent.startsWith('the kernel is gone')")


def test_dark_and_empty(page: Page, snap: Snap) -> None:
    """In a dark page it is dark; without flows it says so."""
    show(page, 10_000, "dark")
    snap(page, "grid-dark")
    background = page.evaluate("getComputedStyle(document.querySelector('.kodo-grid')).backgroundColor")
    assert background == "rgb(22, 25, 29)"
    show(page, 0, "dark")
    assert page.locator(".kodo-empty").text_content() == "no flows are listed"
    assert Path(STATIC / "grid.js").exists()


def test_what_became_of_a_message_is_seen_whole(page: Page) -> None:
    """At half the width of a notebook, also of one that was lost between members with long names."""
    line = ["13:56:23.728", "registry-of-the-capital → registry-of-the-town", "/update/node", "1", "1477"]
    page.set_content("<!doctype html><body style='width: 546px'></body>")
    page.add_style_tag(path=STATIC / "messages.css")
    page.evaluate(
        """async ([script, lines]) => {
          const url = URL.createObjectURL(new Blob([script], {type: "text/javascript"}));
          const {default: messages} = await import(url);
          messages.render({model: {get: () => ({lines}), on() {}, off() {}}, el: document.body});
        }""",
        [(STATIC / "messages.js").read_text(), [[*line, "lost: ConnectError"]]],
    )
    page.get_by_text("lost: ConnectError").wait_for()
    assert page.locator(".kodo-messages-frame").evaluate("one => one.scrollWidth <= one.clientWidth")
