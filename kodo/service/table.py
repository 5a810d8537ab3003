"""A page of the listing as the HTML table that pandas' `DataFrame.to_html` makes of it, without loading pandas.

Markup is escaped, line breaks and tabs are shown as such, nothing is cut, and times have a space for the T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kodo.models import COLUMNS

TIMES = ("created", "modified", "heartbeat")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\t": r"\t", "\r": r"\r", "\n": r"\n"})


def html_table(items: Sequence[Mapping[str, Any]]) -> bytes:
    """These rows, a column for each of `kodo.models.COLUMNS`."""
    head = "".join(f"      <th>{column}</th>\n" for column in ("", *COLUMNS))
    body = "".join(_row(number, item) for number, item in enumerate(items))
    return (
        '<table border="1" class="dataframe">\n  <thead>\n    <tr style="text-align: right;">\n'
        f"{head}    </tr>\n  </thead>\n  <tbody>\n{body}  </tbody>\n</table>"
    ).encode()


def _row(number: int, item: Mapping[str, Any]) -> str:
    cells = "".join(f"      <td>{_cell(column, item[column])}</td>\n" for column in COLUMNS)
    return f"    <tr>\n      <th>{number}</th>\n{cells}    </tr>\n"


def _cell(column: str, value: str | list[str] | None) -> str:
    text = f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
    if column in TIMES:
        text = text.replace("T", " ")
    return text.translate(_ESCAPES).strip().replace("  ", "&nbsp;&nbsp;")
