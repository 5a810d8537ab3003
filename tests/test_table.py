"""The page of a listing as HTML: to the letter the table of pandas."""

from __future__ import annotations

from typing import Any

import pandas as pd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kodo.frames import flow_frame
from kodo.models import COLUMNS
from kodo.service.table import TIMES, html_table

texts = st.text(st.sampled_from("aT &<>\"'\\\t\r\n\f\u00a0\u3000ß😀[],;#"), max_size=12) | st.text(max_size=12)
values = {
    **dict.fromkeys(COLUMNS, texts),
    **dict.fromkeys(TIMES, st.none() | st.just("2024-12-25T18:03:12.989989")),
    "organization": st.none() | texts,
    "tags": st.lists(texts, max_size=4),
}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fixed_dictionaries(values), max_size=4))
@example([dict.fromkeys(COLUMNS, "long " * 100) | dict.fromkeys(TIMES) | {"tags": ["tag"] * 200}])
def test_the_page_is_the_table_of_pandas(items: list[dict[str, Any]]) -> None:
    """Whatever stands in a cell, the page is what `DataFrame.to_html` makes of it, with a space for the T in times."""
    shown = [{**item, **{column: (item[column] or "None").replace("T", " ") for column in TIMES}} for item in items]
    with pd.option_context("display.max_colwidth", None, "display.max_seq_items", None):
        expected = flow_frame(shown).to_html()
    assert html_table(items) == expected.encode()
