"""The members' logs as rows: when, who, how grave, where in the code, and what.

A line that is not in the form of a log, such as one of a traceback, belongs to the line before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kodo.lab.naming import numbered

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("time", "member", "level", "module", "text")
_LINE = re.compile(r"(?P<level>[A-Z]+) - (?P<time>\S+ \S+) - \S+ - (?P<module>\S+) - \S+: (?P<text>.*)")


def rows_of(member: str, text: str) -> list[dict[str, Any]]:
    """The lines of one member's log."""
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is not None:
            rows.append({"member": member, **found.groupdict()})
        elif rows:
            rows[-1]["text"] += f"\n{line}"
        else:
            rows.append({"time": None, "member": member, "level": None, "module": None, "text": line})
    return rows


class Logs:
    """The logs of several members, in the order of time."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """`texts` are the logs by member."""
        self._members = len(texts)
        rows = [row for member, text in texts.items() for row in rows_of(member, text)]
        self.rows = sorted(rows, key=lambda row: row["time"] or "")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Logs of {numbered(self._members, 'member')}>"

    def __str__(self) -> str:
        width = max((len(row["member"]) for row in self.rows), default=0)
        return "\n".join(f"{row['time'] or '':23}  {row['member']:{width}}  {row['text']}" for row in self.rows)

    @cached_property
    def frame(self) -> DataFrame:
        """All lines: time, member, level, module and text."""
        from kodo.frames import frame_of  # noqa: PLC0415, pandas is imported when the first frame is asked for

        return frame_of(self.rows, COLUMNS)
