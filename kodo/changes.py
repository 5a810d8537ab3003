"""What changed in a listing, and how often: counts for tags, and which nodes changed lately.

```
 Catalogue, while it writes: touch(node), raise counts --> publish, once it is durable --> who listens
                                                              |
                                       tags of /flows, /counts, /map; `since` for streams that go on
```

- A count moves when, and only when, what is shown moves: `nodes` with anything of a listed node, `flows` with a row
  of the listing, `counts` with a row in more than its node's times, `map` with what is shown of peers as well.
- A count means something only together with its `epoch`, which is new whenever a service starts.
- Nothing of a change is kept but the key of its node, and of those only the last: what a reader missed is read from
  the catalogue when it asks, in the form that it has by then. Without a reader a change costs an entry in a queue.

The catalogue's one writer touches and publishes; the rest may be called from any thread.

`Kept` holds what was made of a listing, such as a page, under a name that says of which count it is.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sized
from typing import Generic, Literal, TypeVar

from kodo.models import Key

KEPT_KEYS, KEPT_CHANGES = 20_000, 4096
"""Nodes, and changes, that are remembered; who was away for longer than these reads everything anew."""

ENTRY = 500
"""Bytes that it takes to keep anything, however short."""

Count = Literal["nodes", "flows", "counts", "map"]
T = TypeVar("T", bound=Sized)


class Changes:
    """The counts of one listing since its service started."""

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._counts: dict[Count, int] = {"nodes": 0, "flows": 0, "counts": 0, "map": 0}
        self._touched: set[Key] = set()
        self._raised: set[Count] = set()
        self._log: deque[tuple[int, frozenset[Key]]] = deque()
        self._kept = 0
        self._oldest = 0
        self._listener: Callable[[], object] | None = None

    def touch(self, key: Key, *raised: Count) -> None:
        """Something shown of this node is about to change, and with it these counts, the map's always."""
        self._touched.add(key)
        self._raised.update(("nodes", "map"), raised)

    def touch_map(self) -> None:
        """Something is about to change that only the map shows."""
        self._raised.add("map")

    def forget(self) -> None:
        """What was touched did not change after all."""
        self._touched.clear()
        self._raised.clear()

    def publish(self) -> None:
        """What was touched has changed, and can be read."""
        if not self._raised:
            return
        with self._lock:
            for name in self._raised:
                self._counts[name] += 1
            if self._touched:
                self._remember(frozenset(self._touched))
            listener = self._listener if self._touched else None
        self.forget()
        if listener is not None:
            listener()

    def _remember(self, keys: frozenset[Key]) -> None:
        self._log.append((self._counts["nodes"], keys))
        self._kept += len(keys)
        while self._kept > KEPT_KEYS or len(self._log) > KEPT_CHANGES:
            self._oldest, dropped = self._log.popleft()
            self._kept -= len(dropped)

    def count(self, name: Count = "nodes") -> int:
        """How often this has changed."""
        return self._counts[name]

    def counts(self, *names: Count) -> tuple[int, ...]:
        """How often each of these has changed, at one moment."""
        with self._lock:
            return tuple(self._counts[name] for name in names)

    def stands(self, name: Count, count: int) -> bool:
        """Whether what is readable is exactly that of this count: no change of it is under way, nor was since then.

        A reader that took the count before its read began, and asks once it has begun, knows which state it sees.
        """
        # In this order: a change is under way until after its count has moved.
        return name not in self._raised and self._counts[name] == count

    def since(self, count: int) -> set[Key] | None:
        """The nodes that changed after the count `nodes` stood there; None when that is not known (any more)."""
        with self._lock:
            if not self._oldest <= count <= self._counts["nodes"]:
                return None
            return {key for number, keys in self._log if number > count for key in keys}

    def listen(self, listener: Callable[[], object] | None) -> None:
        """Call this after each change of a node, on the writer's thread; None for nobody."""
        with self._lock:
            self._listener = listener


class Kept(Generic[T]):
    """What may be wanted again, each under a name that says all it depends on: those used last, `most` bytes.

    What is put here takes its length, that of its name, and `ENTRY`: of what is empty no end would find room.
    """

    def __init__(self, most: int) -> None:
        """Nothing is kept yet."""
        self._most = most
        self._used = 0
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: Hashable) -> T | None:
        """What is kept under this name, if it is there."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def put(self, name: Hashable, made: T) -> None:
        """Keep this; what was not used for the longest time makes room for it."""
        with self._lock:
            if name in self._kept:
                self._used -= _size(name, self._kept.pop(name))
            self._kept[name] = made
            self._used += _size(name, made)
            while self._used > self._most:
                self._used -= _size(*self._kept.popitem(last=False))


def _size(name: Hashable, made: Sized) -> int:
    return len(made) + len(str(name)) + ENTRY
