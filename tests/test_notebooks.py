"""The notebooks are for people: each says what it is about, how to run it, what was seen, and where to go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


def cells_of(name: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((NOTEBOOKS / name).read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_begins_with_its_question_and_ends_with_what_was_seen(name: str) -> None:
    """A title, a question, what one learns, and how to run it; what we saw, what to try, and what is next."""
    first, *_, last = (cell["source"] for cell in cells_of(name) if cell["cell_type"] == "markdown")
    begin = [r"\A# ", r"^\*\*[^*]+\?\*\*$", r"^You learn ", r"pip install '\.\[lab\]'`, then `kodo lab`"]
    assert [words for words in begin if not re.search(words, first, re.M)] == []
    assert [words for words in ("## What we saw", "## Try this", "\nNext") if words not in last] == []
    assert cells_of(name)[-1]["source"] == last


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_leads_to_files_that_are_there_and_holds_nothing_of_a_machine(name: str) -> None:
    """Links are to notebooks and their files; no address, no path and no version stands in what is stored."""
    texts = [cell["source"] for cell in cells_of(name) if cell["cell_type"] == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (NOTEBOOKS / link).is_file()] == []
    stored = json.loads((NOTEBOOKS / name).read_text())
    assert "version" not in stored["metadata"]["language_info"]
    told = [
        "".join(output.get("text", []))
        + "".join("".join(data) for kind, data in output.get("data", {}).items() if "text" in kind)
        for cell in stored["cells"]
        for output in cell.get("outputs", [])
    ]
    assert [text for text in told if re.search(r"/tmp/|/home/|/root/|127\.0\.0\.1|localhost", text)] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_is_told_in_the_first_one_and_in_the_readme(name: str) -> None:
    """So that nobody has to look into the folder."""
    assert f"`{name}`" in (NOTEBOOKS.parent / "README.md").read_text()
    assert name == "quickstart.ipynb" or f"({name})" in cells_of("quickstart.ipynb")[-1]["source"]
