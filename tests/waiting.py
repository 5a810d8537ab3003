"""Waiting for a condition, never for time."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(holds: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    """Wait until `holds()` is true. Fails with `what` was waited for after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout:g} s in vain for {what}"
        time.sleep(0.02)
