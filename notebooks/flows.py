"""The loaders of the notebooks: what a node offers is what its loader says.

A service takes a loader as a function or as a text, `"flows:school"`, which a text can be written into a file of
settings. The three below are the three forms that a loader can have.
"""

from __future__ import annotations

from kodo.loader import Loader


def library(loader: Loader) -> None:
    """Add flows, one by one, to the loader that is handed in."""
    loader.add_flow(name="book search", description="finds a book by what you remember of it", tags=["books"])
    loader.add_flow(name="reading list", description="what to read next", tags=["books", "school"])


def library_moved() -> Loader:
    """Make a loader: one flow stays, one is gone, one is new."""
    loader = Loader()
    loader.add_flow(name="book search", description="finds a book by what you remember of it", tags=["books"])
    loader.add_flow(name="opening hours", description="whether somebody is there now", tags=["visit"])
    return loader


def school() -> list[dict[str, object]]:
    """Give a list of flows, each a dictionary of what `Loader.add_flow` takes."""
    return [{"name": "homework help", "description": "explains, and leaves the answer to you", "tags": ["school"]}]
