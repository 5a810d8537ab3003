"""What a long wait says while it lasts: one line in a notebook, in the cell that waits; nothing anywhere else.

The line is a widget, and there however long it takes: a notebook that is saved, or compared, holds the same each time,
and no figure. Who waits in the same cell again goes on in the same line.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kodo.errors import duration

EVERY = 0.25
"""Seconds between two things that a line says."""


class Progress:
    """What a wait has to say."""

    def __init__(self, doing: str, line: Any = None) -> None:
        """`doing` is what is waited for; `line` shows it, if there is one."""
        self._doing = doing
        self._line = line
        self._began = self._said = time.monotonic()

    def say(self, missing: str) -> None:
        """What is still missing, four times a second at most."""
        now = time.monotonic()
        if self._line is not None and now >= self._said + EVERY:
            self._said = now
            self._line.show(f"{self._doing}, {duration(now - self._began)}: {missing}")

    def end(self, how: str) -> None:
        """How it ended."""
        if self._line is not None:
            self._line.show(how)


@contextmanager
def progress(doing: str) -> Iterator[Progress]:
    """Around a wait, which says what is missing and how it ended. That an error ended it is said here."""
    wait = Progress(doing, _line(doing))
    try:
        yield wait
    except BaseException:
        wait.end(f"gave up {doing}")
        raise


_line_of: tuple[Any, Any] = (None, None)
"""The cell that waited last, and its line."""


def _line(doing: str) -> Any:
    """The line of the cell that runs, which is shown when a cell waits first; None where no cell runs."""
    global _line_of  # noqa: PLW0603, a notebook has one place where a cell runs
    shell = _shell()
    if shell is None:
        return None
    # Not the number of the cell: who runs cells without history counts none.
    cell = shell.get_parent().get("header", {}).get("msg_id")
    if _line_of[0] != cell:
        from IPython.display import display  # noqa: PLC0415, there where its shell is

        from kodo.lab.boxes import Line  # noqa: PLC0415, widgets take their time

        _line_of = (cell, Line(doing))
        display(_line_of[1])  # type: ignore[no-untyped-call]
    return _line_of[1]


def _shell() -> Any:
    """The shell of a notebook's kernel, on the thread that runs its cells."""
    if "ipykernel" not in sys.modules or threading.current_thread() is not threading.main_thread():
        return None
    from IPython import get_ipython  # noqa: PLC0415, loaded by then

    shell = get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None
