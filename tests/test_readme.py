"""The README tells what there is: every option, every route, and commands that exist."""

from __future__ import annotations

from pathlib import Path

from kodo.options import Options
from tests.conftest import Start

README = (Path(__file__).parent.parent / "README.md").read_text()


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
