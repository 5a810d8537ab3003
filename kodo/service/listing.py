"""What `GET /events` tells of the listing: a snapshot first, then what changes, from wherever the reader is.

```
 commit --> Changes --> (once, after a moment) ListingEvents --> every reader: what changed since where *it* is
```

- A reader is a count: how far it has read. What changed since then is read from the catalogue when the reader can take
  it, once for all that stand at the same count. So a slow reader costs nothing meanwhile: it gets what became of the
  changes, not each of them, and a new snapshot when it is too far behind.
- The snapshot comes in pieces, in the order of the nodes' keys, each a short read of its own on a thread. The
  count was taken before the first; what changed while it was read is told by the changes that follow it.
- What is told is the state of a node, never a difference: telling it twice does no harm.
- While nobody reads, nobody listens, and a registration costs nothing here.

An event's `nodes` holds nodes by their keys (`kodo.models.canonical` of the url), each as in `/map`, null when it is
listed no more. An event that others complete has no id: who loses the connection there goes on from the last id.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from kodo.catalogue import Catalogue
from kodo.models import Key
from kodo.service.stream import Source, event, pause

GATHER = 0.02
"""Seconds in which changes gather before they are told: many nodes that register together are one event."""
PIECE = 2**18
"""Bytes of nodes in one piece."""
LARGEST = 2**23
"""Bytes of changes that are told as such; what is more is a snapshot."""
KEPT = 4
"""Encoded changes that are kept, for readers that come by a moment later."""
BACK_AFTER = 1000
"""Milliseconds after which a reader that lost its connection may come back."""


class ListingEvents:
    """The changes of one catalogue, for any number of readers."""

    def __init__(self, catalogue: Catalogue, read: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        """`read` does a read of the catalogue on a thread."""
        self._catalogue = catalogue
        self._changes = catalogue.changes
        self._read = read
        self._readers = 0
        self._count = 0
        self._moved = asyncio.Event()
        self._gathering: asyncio.TimerHandle | None = None
        self._encoded: OrderedDict[tuple[int, int], asyncio.Task[list[bytes] | None]] = OrderedDict()

    async def follow(self, last: str | None) -> Source:
        """The events for a reader whose last event was `last`."""
        self._join()
        try:
            yield pause(BACK_AFTER)
            seen = self._seen(last)
            while True:
                # Counts are taken before what is read: what changes while a piece waits for its reader is told next.
                now = self._count
                told = None if seen is None else await self._told(seen, now)
                if told is None:
                    seen = self._changes.count()
                    async for piece in self._snapshot(seen):
                        yield piece
                else:
                    for piece in told:
                        yield piece
                    seen = max(seen or 0, now)
                await self._news(seen)
        finally:
            self._leave()

    async def _snapshot(self, count: int) -> Source:
        after: str | None = ""
        first = True
        while after is not None:
            piece, after = await self._read(partial(self._snapshot_piece, after, first, count))
            first = False
            yield piece

    # -- who reads -----------------------------------------------------------------------------------------

    def _join(self) -> None:
        self._readers += 1
        if self._readers == 1:
            loop = asyncio.get_running_loop()
            # The writer commits on a thread of its own.
            self._changes.listen(partial(loop.call_soon_threadsafe, self._gather))
            self._count = self._changes.count()

    def _leave(self) -> None:
        self._readers -= 1
        if not self._readers:
            self._changes.listen(None)
            self._encoded.clear()
            if self._gathering is not None:
                self._gathering.cancel()
                self._gathering = None

    def _gather(self) -> None:
        if self._gathering is None and self._readers:
            self._gathering = asyncio.get_running_loop().call_later(GATHER, self._announce)

    def _announce(self) -> None:
        self._gathering = None
        self._count = self._changes.count()
        self._moved.set()
        self._moved = asyncio.Event()

    async def _news(self, seen: int) -> None:
        while self._count <= seen:
            await self._moved.wait()

    def _seen(self, last: str | None) -> int | None:
        """How far a reader says it is; None when that says nothing here."""
        epoch, _, count = (last or "").rpartition("-")
        return int(count) if epoch == self._changes.epoch and count.isdecimal() and len(count) < 20 else None

    # -- what is told --------------------------------------------------------------------------------------

    async def _told(self, seen: int, now: int) -> list[bytes] | None:
        """What changed between two counts, encoded once for all who ask; None when it takes a snapshot."""
        task = self._encoded.get((seen, now))
        if task is None:
            task = self._encoded[seen, now] = asyncio.create_task(self._encode(seen, now))
            while len(self._encoded) > KEPT:
                self._encoded.popitem(last=False)
        # Its other readers wait for it as well: that one of them leaves does not end it.
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception() is not None):
                # Who asks again is not to be told the same failure.
                self._encoded.pop((seen, now), None)

    async def _encode(self, seen: int, now: int) -> list[bytes] | None:
        keys = self._changes.since(seen)
        if not keys:
            return None if keys is None else []
        told: list[bytes] | None = await self._read(partial(self._change, sorted(keys), now))
        return told

    def _change(self, keys: Sequence[Key], now: int) -> list[bytes] | None:
        """On a thread: these nodes as they are now."""
        pieces: list[bytes] = []
        used = 0
        while keys:
            nodes, keys = self._catalogue.nodes_of(keys, PIECE)
            pieces.append(event("change", {"nodes": nodes, "complete": not keys}, None if keys else self._id(now)))
            used += len(pieces[-1])
            if used > LARGEST and keys:
                return None
        return pieces

    def _snapshot_piece(self, after: str, first: bool, count: int) -> tuple[bytes, str | None]:
        """On a thread: the next piece of a snapshot, and after which key the one after it begins, if any."""
        nodes, complete = self._catalogue.nodes_after(after, PIECE)
        data = {"nodes": nodes, "first": first, "complete": complete}
        return event("snapshot", data, self._id(count) if complete else None), None if complete else next(
            reversed(nodes)
        )

    def _id(self, count: int) -> str:
        return f"{self._changes.epoch}-{count}"
