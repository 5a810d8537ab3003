"""Listings as DataFrames, for people. The one importer of pandas.

pandas costs 0.4 s and 45 MB a process, so this module is imported when a table is first asked for. It never evaluates
text: pandas' `query` and `eval` run Python (PROTOCOL.md has `q` for that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kodo.models import COLUMNS


def flow_frame(items: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of a listing as a frame, one column for each of `kodo.models.COLUMNS`, in their order."""
    return pd.DataFrame(
        [[item.get(column) for column in COLUMNS] for item in items], columns=list(COLUMNS), dtype=object
    )


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows of anything as a frame of these columns, in their order."""
    return pd.DataFrame([[row.get(column) for column in columns] for row in rows], columns=list(columns))
