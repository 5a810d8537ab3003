"""What is listed: the rows of `/flows`, and what they are found by. All of it follows from the records.

```
 record that is listed --> flow (as displayed), flow_text (casefolded), tag, trigram, tally
```

- `flow` holds what is displayed (an absent author reads `missing author`), `flow_text` the same casefolded, since
  SQLite's own case rules stop at ASCII.
- Trigrams of texts are written later, many flows at once, when the writer has nothing else to do: that is faster, and
  very many nodes are listed in two thirds of the time. A search finds through `trigram` what was written there, and
  looks at the flows that are `unindexed` one by one.
- `tally` counts flows, in all and by tag.

Which record of a node is listed is told by `kodo.catalogue`, which also reads what stands here.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from kodo.errors import DamagedCacheError
from kodo.models import MISSING_AUTHOR, MISSING_DESCRIPTION
from kodo.opening import FLOW_INDEXES, MERGED, index_flows

PIECE = 100
"""Nodes that are written at once."""
SOME, UNINDEXED = 250, 1000
"""Flows whose trigrams are written when nothing else is to do, and flows that wait for it at most, but where very many
came at once: a search looks at each of them."""
AT_ONCE, LENGTH = 1000, 200_000
"""Flows whose trigrams are written at once, and characters of their texts: some 20 ms, for which others wait."""
TOTAL = "(SELECT flows FROM tally WHERE kind = 'total')"
"""How many flows are listed, in SQL."""
_STORED = "SELECT n.id, n.url, n.organization, n.flows FROM json_each(?) i CROSS JOIN record n ON n.id = i.value"
_LISTED = """
SELECT f.record, f.node, f.url, f.name, f.author, f.description, f.tags, f.tag_key,
  t.organization, t.name, t.author, t.description, t.tags
FROM json_each(?) i CROSS JOIN flow r INDEXED BY flow_record ON r.record = i.value
  CROSS JOIN flow f NOT INDEXED ON f.id = r.id AND f.record = r.record AND f.url = r.url
  CROSS JOIN flow s INDEXED BY flow_name ON s.name = f.name AND s.node = f.node AND s.url = f.url AND s.id = f.id
  LEFT JOIN flow_text t ON t.id = f.id
"""
"""What is listed of records, as `_shown` makes it, and found through both indexes of flows."""
_UNTAGGED = """
SELECT 1 FROM json_each(?) i CROSS JOIN flow f ON f.record = i.value CROSS JOIN json_each(f.tags) j
WHERE NOT EXISTS (SELECT 1 FROM tag WHERE tag = j.value AND flow = f.id) LIMIT 1
"""
_WELL_COUNTED = f"""
SELECT 1 WHERE {TOTAL} = (SELECT total(1) FROM flow NOT INDEXED) AND {TOTAL} = (SELECT count(*) FROM flow_text)
  AND {TOTAL} = (SELECT total(1) FROM flow INDEXED BY flow_record)
  AND {TOTAL} = (SELECT total(1) FROM flow INDEXED BY flow_name)
  AND (SELECT count(*) FROM tally) = 1 + (SELECT count(DISTINCT tag) FROM tag)
  AND NOT EXISTS (
    SELECT tag, count(*) FROM tag GROUP BY tag EXCEPT SELECT value, flows FROM tally WHERE kind = 'tag')
"""
"""Of `count(*)` SQLite takes whichever index is the smallest."""


class Listing:
    """The rows of the listing, over the connection that writes; all that is done here ends with its transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        # What the tally is to be changed by with the next commit.
        self._counted: Counter[tuple[str, str]] = Counter()
        # Up to which flow the trigrams are written; how many segments of them are merged into one, if it was said.
        self._indexed, self._merged = self._last_indexed(), -1
        self.last: int = max(self._indexed, *db.execute("SELECT coalesce(max(id), 0) FROM flow").fetchone())
        """The id of the last flow that was listed."""

    @property
    def is_behind(self) -> bool:
        """Whether the trigrams of some flows wait to be written; see `index_some`."""
        return self.last - self._indexed >= SOME

    def add(self, records: Iterable[Sequence[Any]]) -> None:
        """List records: of each its id, its url, its organization and the JSON of its flows."""
        self._add(records)
        if self.last - self._indexed >= UNINDEXED:
            self.index_some()

    def _add(self, records: Iterable[Sequence[Any]]) -> None:
        db = self._db
        flows, texts, tags = [], [], []
        added = self.last
        for record in records:
            for shown, folded, words in _shown(*record):
                added += 1
                flows.append((added, *shown))
                texts.append((added, *folded))
                tags += [(word, added) for word in words]
        db.executemany(
            "INSERT INTO flow (id, record, node, url, name, author, description, tags, tag_key)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            flows,
        )
        db.executemany(
            "INSERT INTO flow_text (id, organization, name, author, description, tags) VALUES (?, ?, ?, ?, ?, ?)",
            texts,
        )
        self.last = added
        db.executemany("INSERT INTO tag VALUES (?, ?)", tags)
        self._counted["total", ""] += len(flows)
        self._counted.update([("tag", word) for word, _ in tags])

    def add_stored(self, records: Sequence[int], go_on: Callable[[], None] = lambda: None) -> None:
        """List these records, whose ids these are, as they are stored; `go_on` may raise between pieces of them.

        Trigrams of many are left to `index_some`.
        """
        if len(records) <= PIECE:
            self.add(self._stored(records))
            return
        with self._indexed_at_last():
            for start in range(0, len(records), PIECE):
                go_on()
                self._add(self._stored(records[start : start + PIECE]))

    def _stored(self, records: Sequence[int]) -> Iterable[Sequence[Any]]:
        return self._db.execute(_STORED, (json_text(records),))

    def remove(self, record: int) -> None:
        """List nothing more of a record."""
        db = self._db
        flows = db.execute("SELECT id, tags FROM flow WHERE record = ?", (record,)).fetchall()
        tags = [(word, flow) for flow, words in flows for word in set(_loaded(words))]
        db.executemany("DELETE FROM tag WHERE tag = ? AND flow = ?", tags)
        # The trigrams first, which are those of the texts that stand there.
        db.executemany("DELETE FROM trigram WHERE rowid = ?", [(flow,) for flow, _ in flows if flow <= self._indexed])
        db.executemany("DELETE FROM flow_text WHERE id = ?", [(flow,) for flow, _ in flows])
        db.execute("DELETE FROM flow WHERE record = ?", (record,))
        self._counted["total", ""] -= len(flows)
        self._counted.subtract([("tag", word) for word, _ in tags])

    def clear(self) -> None:
        """List nothing more at all. What the rows say is not looked at, but SQLite walks their pages to free them."""
        for table in ("flow", "flow_text", "tag", "tally"):
            self._db.execute(f"DELETE FROM {table}")
        self._db.execute("INSERT INTO trigram (trigram) VALUES ('delete-all')")
        self._db.execute("INSERT INTO tally VALUES ('total', '', 0)")
        # Ids go on, so that nobody who holds one of before finds another flow there.
        self._indexed = self.last
        self._counted.clear()

    def write_tally(self) -> None:
        """Write what the tally is to be changed by, before a commit."""
        counted = [(kind, value, flows) for (kind, value), flows in self._counted.items() if flows]
        self._counted.clear()
        self._db.executemany(
            "INSERT INTO tally VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET flows = flows + excluded.flows", counted
        )
        less = [(value,) for kind, value, flows in counted if kind == "tag" and flows < 0]
        self._db.executemany("DELETE FROM tally WHERE kind = 'tag' AND value = ? AND flows = 0", less)

    def forget(self) -> None:
        """What was written since the last commit was rolled back."""
        self._counted.clear()
        self._indexed, self._merged = self._last_indexed(), -1

    @contextmanager
    def _indexed_at_last(self) -> Iterator[None]:
        """Around the listing of many nodes where there is none: the indexes of flows are made at its end.

        Should that not come, all of it is rolled back.
        """
        first = self._db.execute("SELECT 1 FROM flow LIMIT 1").fetchone() is None
        for name in FLOW_INDEXES if first else ():
            self._db.execute(f"DROP INDEX {name}")
        yield
        if first:
            index_flows(self._db)

    def index_some(self) -> None:
        """Write the trigrams of the next flows that wait for it, in the order of their ids."""
        columns, last = "organization, name, author, description, tags", self._next_piece()
        # While many wait, what is merged now would be merged again.
        self._merge_text(0 if self.last - last >= UNINDEXED else MERGED)
        self._db.execute(
            f"INSERT INTO trigram (rowid, {columns}) SELECT id, {columns} FROM flow_text WHERE id > ? AND id <= ?",
            (self._indexed, last),
        )
        self._indexed = last
        self._db.execute("UPDATE meta SET value = ? WHERE name = 'indexed'", (last,))

    def _next_piece(self) -> int:
        """The last of the flows whose trigrams are written next."""
        size, used = "length(organization || name || author || description || tags)", 0
        waiting = f"SELECT id, {size} FROM flow_text WHERE id > ? ORDER BY id LIMIT ?"
        found = self._db.execute(waiting, (self._indexed, AT_ONCE)).fetchall()
        for flow, length in found:
            used += length
            if used >= LENGTH:
                return int(flow)
        return int(found[-1][0]) if len(found) == AT_ONCE else self.last

    def _merge_text(self, segments: int) -> None:
        """How many segments of the trigrams are merged into one as they come; 0: none (FTS5's `automerge`)."""
        if segments != self._merged:
            self._db.execute("INSERT INTO trigram (trigram, rank) VALUES ('automerge', ?)", (segments,))
            self._merged = segments

    def _last_indexed(self) -> int:
        return int(self._db.execute("SELECT value FROM meta WHERE name = 'indexed'").fetchone()[0])


def is_listed(db: sqlite3.Connection, records: Sequence[Sequence[Any]]) -> bool:
    """Whether just what these records say is listed of them: of each its id, url, organization and the JSON of flows.

    Raises `ValueError`, `LookupError`, `TypeError` or `AttributeError` when that cannot be read.
    """
    expected = Counter((*shown, *folded) for record in records for shown, folded, _ in _shown(*record))
    ids = json_text([record[0] for record in records])
    return Counter(db.execute(_LISTED, (ids,))) == expected and db.execute(_UNTAGGED, (ids,)).fetchone() is None


def is_well_counted(db: sqlite3.Connection) -> bool:
    """Whether there are as many flows everywhere as the tally says."""
    return db.execute(_WELL_COUNTED).fetchone() is not None


def json_text(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON as SQLite takes it."""
    return orjson.dumps(value).decode()


def _loaded(tags: str) -> list[str]:
    """The tags of a flow as they are stored. Raises `DamagedCacheError` when they are not."""
    try:
        loaded: list[str] = orjson.loads(tags)
    except ValueError as error:
        raise DamagedCacheError(f"expected the tags of a flow as they were written, but {error}") from error
    return loaded


def _shown(
    record: int, node: str, organization: str | None, flows: str
) -> Iterator[tuple[tuple[Any, ...], tuple[str, ...], set[str]]]:
    """What is listed of a record, by flow: as displayed (`flow`), casefolded to be searched (`flow_text`), its tags."""
    folded = (organization or "").casefold()
    for flow in orjson.loads(flows).values():
        tags = flow["tags"] or []
        author = MISSING_AUTHOR if flow["author"] is None else flow["author"]
        description = MISSING_DESCRIPTION if flow["description"] is None else flow["description"]
        texts = (flow["name"], author, description)
        yield (
            (record, node, flow["url"], *texts, json_text(tags), " ".join(sorted(tags))),
            (folded, *(text.casefold() for text in (*texts, "\n".join(tags)))),
            set(tags),
        )
