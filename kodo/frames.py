"""Listings as tables: the HTML page, and DataFrames for people. The one importer of pandas.

pandas costs 0.4 s and 45 MB a process, so this module is imported when a table is first asked for. It never evaluates
text: pandas' `query` and `eval` run Python (PROTOCOL.md has `q` for that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kodo.models import COLUMNS

TIMES = ("created", "modified", "heartbeat")


def flow_frame(items: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of a listing as a frame, one column for each of `kodo.models.COLUMNS`, in their order."""
    return pd.DataFrame(
        [[item.get(column) for column in COLUMNS] for item in items], columns=list(COLUMNS), dtype=object
    )


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows of anything as a frame of these columns, in their order."""
    return pd.DataFrame([[row.get(column) for column in columns] for row in rows], columns=list(columns))


def html_table(items: Sequence[Mapping[str, Any]]) -> str:
    """The rows as the table that `DataFrame.to_html` makes: escaped, nothing cut, times with a space for the T."""
    frame = flow_frame(items)
    for column in TIMES:
        frame[column] = [time and time.replace("T", " ") for time in frame[column]]
    with pd.option_context("display.max_colwidth", None, "display.max_seq_items", None):
        return frame.to_html(escape=True)
