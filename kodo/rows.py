"""Rows of the listing as displayed: how SQLite writes them, in which order, and those that are kept in memory.

```
 Ranking: ids of flows --> text of each flow (never changes under its id) --+--> row
                                  record of its node --> face (times!) -----+
```

SQLite reads ten rows of many on some twenty pages of its file. As long as the texts of all flows fit in `ROOM`, they
are kept, in blocks of neighbouring ids; a page whose ranking is known is put together without SQLite then. Texts are
read when the writer has nothing else to do. A page that lacks one is read from SQLite as a whole.

Ids of flows are never used twice in the life of a service (`kodo.listing`), so that a text is true as long as anybody
asks for its id; what a face shows moves with the count `flows` (`kodo.changes`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from kodo.listing import TOTAL, json_text

ROOM = 2**25
"""Bytes of texts that are kept: of some 130,000 flows."""
FACES, LONGEST = 2**14, 1000
"""Faces that are kept, of some 300 bytes each, and bytes that one has at most: organizations may be of any length."""
SOME, PIECE, LENGTH = 250, 512, 500_000
"""Flows that wait for their texts to be read at most; those that are read at once, and the characters after which it is
enough: some 4 ms, for which others wait."""
BLOCK = 16
"""Ids in a block: a bytes object for each flow would take half as much again."""
OVERHEAD = 150
"""Bytes that a block takes beside its texts."""
IDS = 4096
"""Ids in a piece of a ranking. A whole one of 100,000 flows, at once, took up to 50 ms of the interpreter's time: so
long does the system take for so much new memory, in the worst case."""

_FACE = """'registry', ?2, 'node', n.url, 'organization', n.organization, 'created', n.created,
  'modified', n.modified, 'heartbeat', n.heartbeat"""
_TEXT = "'url', f.url, 'name', f.name, 'author', f.author, 'description', f.description, 'tags', json(f.tags)"
_SHOWN = f"""
SELECT json_group_array(json_object({_FACE}, {_TEXT}))
FROM json_each(?1) i CROSS JOIN flow f ON f.id = i.value CROSS JOIN record n ON n.id = f.record
"""
_FACES = f"SELECT n.id, json_object({_FACE}) FROM json_each(?1) i CROSS JOIN record n ON n.id = i.value"
_LINES = f"""
SELECT max(id), count(*), group_concat(id || ',' || record || ',' || text, char(10))
FROM (SELECT id, record, substr(json_object({_TEXT}), 2) AS text FROM flow f WHERE id > ? ORDER BY id LIMIT {BLOCK})
"""
"""Some lines in one go: for each row that SQLite hands out the event loop may take the interpreter for a turn."""


class Ranking:
    """The ids of a selection in its order, as text in pieces of `IDS`; its length is that of the text.

    They are counted from `start`, a power of ten above all of them, so that each takes equally many characters. `total`
    flows were listed in all.
    """

    def __init__(self, start: int, total: int, pieces: Sequence[bytes]) -> None:
        self.total = total
        self._start = start
        self._pieces = pieces
        self._length = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._length

    @property
    def flows(self) -> int:
        """How many ids it holds."""
        return -(-self._length // _width(self._start))

    def ids(self, begin: int, most: int) -> list[int]:
        """These ids, `most` of them from the one at `begin` on."""
        first, size = begin // IDS, _width(self._start)
        text = b"".join(self._pieces[first : (begin + most - 1) // IDS + 1])
        at = (begin - first * IDS) * size
        return [int(number) - self._start for number in text[at : at + most * size].split(b",") if number]


def ranked(db: sqlite3.Connection, selected: str, params: Mapping[str, Any], last: int, total: int) -> Ranking:
    """The ids of a selection in its order, none of which is above `last`.

    As one text SQLite makes it in one go, without a turn of Python for each row, and then hands it out in pieces:
    the text depends on no piece, so it is made once (a scalar subquery, https://sqlite.org/lang_expr.html), and the
    recursion hands out one row at a time and ends when nobody asks for more.
    """
    start = 10 ** len(str(last))
    size, pieces = IDS * _width(start), []
    # The selection stands at the beginning: of what surrounds it, less stands on the stack of SQLite's parser.
    made = db.execute(
        f"WITH RECURSIVE found(id) AS (SELECT f.id FROM {selected}),"
        " piece(number) AS (SELECT 0 UNION ALL SELECT number + 1 FROM piece)"
        f" SELECT substr((SELECT CAST(group_concat({start} + id) AS BLOB) FROM found), number * {size} + 1, {size})"
        " FROM piece",
        params,
    )
    for (piece,) in made:
        pieces.append(piece or b"")
        if len(pieces[-1]) < size:
            break
    made.close()
    return Ranking(start, total, pieces)


def _width(start: int) -> int:
    """The characters of an id that is counted from there, with the comma behind it."""
    return len(str(start)) + 1


def shown(db: sqlite3.Connection, url: str, ids: Sequence[int]) -> bytes:
    """The rows of these flows as displayed by the service `url`, in this order, as a JSON array.

    SQLite makes them in one go, in the order in which a CROSS JOIN walks: for each row that it hands out instead, a
    busy thread may take the interpreter for a turn.
    """
    text: str = db.execute(_SHOWN, (json_text(ids), url)).fetchone()[0]
    return text.encode()


def faces(db: sqlite3.Connection, url: str, records: Iterable[bytes]) -> dict[bytes, bytes]:
    """What the rows of these records have in common, by the records: a row without the text of its flow.

    Those that are too long to be kept are left out.
    """
    found = db.execute(_FACES, (f"[{b','.join(records).decode()}]", url))
    made = {b"%d" % record: face[:-1].encode() + b"," for record, face in found}
    return {record: face for record, face in made.items() if len(face) <= LONGEST}


class Rows:
    """What is kept of the rows: read by one thread at a time, found by any."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytes] = {}
        self._held = self._size = 0
        # The last flow whose text was read, and the one from which on it is worth while to go on. What was read is kept
        # until that finds no room, also of flows that are gone by now.
        self._last, self._due = 0, SOME
        self._faces: tuple[int, dict[bytes, bytes]] = (-1, {})

    def is_behind(self, last: int) -> bool:
        """Whether the texts of some flows, the last of which this is, wait to be read; see `read_some`."""
        return last >= self._due

    def read_some(self, db: sqlite3.Connection, last: int) -> None:
        """Read the texts of the next flows that wait for it, in the order of their ids, the last of which is `last`.

        They are those that are committed, or become so.
        """
        (total,) = db.execute(f"SELECT {TOTAL}").fetchone()
        lines, to = self._next_lines(db)
        before = len(self._blocks)
        for number, block in groupby(lines, _block_of):
            self._blocks[number] = self._blocks.get(number, b"\n") + b"".join(block)
        self._held += len(lines)
        self._size += sum(map(len, lines)) + OVERHEAD * (len(self._blocks) - before)
        self._last = last if to is None else to
        self._due = self._last + (SOME if to is None else 1)
        listed = self._size / self._held * total if self._held else 0
        if max(self._size, listed) > ROOM:
            # Where what is listed leaves little room for what comes, it would be read anew again and again.
            self._clear(0 if listed < ROOM - ROOM // 8 else last + total)

    def _next_lines(self, db: sqlite3.Connection) -> tuple[list[bytes], int | None]:
        """The lines of the next flows, and which is the last of them; None when no more wait."""
        lines: list[bytes] = []
        to, length = self._last, 0
        while len(lines) < PIECE and length < LENGTH:
            last, count, text = db.execute(_LINES, (to,)).fetchone()
            if count:
                lines += [b"%b\n" % line for line in text.encode().split(b"\n")]
            if count < BLOCK:
                return lines, None
            to, length = last, length + len(text)
        return lines, to

    def give_up(self, last: int) -> None:
        """Keep nothing until twice as many flows were ever listed as up to this one."""
        self._clear(2 * last)

    def _clear(self, due: int) -> None:
        """Begin again, once this flow was listed."""
        self._blocks = {}
        self._held = self._size = self._last = 0
        self._due = due

    def texts(self, ids: Iterable[int]) -> list[tuple[bytes, bytes]] | None:
        """The record of each of these flows and its text; None when one of them is not kept."""
        blocks, found = self._blocks, []
        for number in ids:
            block, mark = blocks.get(number // BLOCK, b""), b"\n%d," % number
            begin = block.find(mark)
            line = block[begin + len(mark) : block.find(b"\n", begin + 1)] if begin >= 0 else b""
            record, _, text = line.partition(b",")
            if not text:
                return None
            found.append((record, text))
        return found

    def faces(self, count: int) -> dict[bytes, bytes]:
        """The faces that are kept, at this count of `flows`, by their records; whoever reads another puts it there."""
        of, kept = self._faces
        if of != count or len(kept) > FACES:
            kept = {}
            self._faces = count, kept
        return kept


def _block_of(line: bytes) -> int:
    return int(line[: line.index(b",")]) // BLOCK
