"""Loaders that the tests name as `module:function`."""

from __future__ import annotations

from kodo.loader import Loader


def one() -> Loader:
    """A loader of its own."""
    loader = Loader()
    loader.add_flow(name="by module", description="Given by name", author="Ann", tags=["b", "a"])
    return loader


def filled(loader: Loader) -> None:
    """Fills the loader that it was given, and returns nothing."""
    loader.add_flow(name="filled one", url="given/")
    loader.add_flow(name="filled two")


def listed() -> list[dict[str, str]]:
    """A list of flows."""
    return [{"name": "listed", "url": "/listed"}]
