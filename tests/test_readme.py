"""The README tells what there is: every option, every route, and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

from kodo.lab import MeshLab
from kodo.options import Options
from tests.conftest import Start

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_option_is_told() -> None:
    """The table of options has a row for every option, and no other."""
    table = README.partition("### Options")[2].partition("### Endpoints")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    told = {name.strip(" `") for row in rows for name in row.split(",")}
    assert told == set(Options.model_fields)


def test_every_route_is_told(serve: Start) -> None:
    """The table of endpoints has a row for every route of the service."""
    table = README.partition("### Endpoints")[2].partition("## What it promises")[0]
    paths = serve().get("/openapi.json")["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    told = {line.split("`")[1].partition("?")[0] for line in table.splitlines() if line.startswith("| `")}
    assert told == routes


def test_what_a_notebook_completes_is_told() -> None:
    """Each name that a lab or a member offers stands in the README, in the docs or in a notebook."""
    places = (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb"))
    told = "".join(path.read_text() for path in places)
    with MeshLab(engine="simulated") as lab:
        offered = {name for one in (lab, lab.add_registry()) for name in dir(one) if not name.startswith("_")}
    assert {"settle", "kill"} <= offered
    assert [name for name in sorted(offered) if not re.search(rf"\b{name}\b", told)] == []
