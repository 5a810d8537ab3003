"""Recording: what happens in a lab, line by line into a file of JSON, for `MeshLab.replay`.

```
{"kodo": "recording", "version": 1, "name": NAME, "at": MOMENT, "utc": TIME}     the first line
{"member": NAME, "kind": KIND, "url": URL, "at": MOMENT}
{"event": WHAT, "who": NAME, "at": MOMENT, ...}                                   as `History.note` tells it;
                                          `setup` of a launch: options, and flows if they are not a function's
{"message": {...}, "at": MOMENT}                                                  one end's note of a message
{"listing": NAME, "rows": [...], "at": MOMENT}                                    when it has changed
{"map": NAME, "view": {...}, "at": MOMENT}                                        when it has changed
{"end": true, "at": MOMENT}
```

One thread reads the members' traces a few times a second, and asks those that something was told to for what they list.
It holds no lab, so that one that nobody uses any more can be collected. Every line is written out at once, so that a
record is whole but for its last line, whatever becomes of the process. When the disk is full the record is broken off,
and says so (`failed`); the lab goes on.
"""

from __future__ import annotations

import atexit
import json
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kodo.client import Client
from kodo.errors import KodoError, LabError, reason_of, unwritten
from kodo.lab.flows import all_flows
from kodo.lab.history import Entry
from kodo.lab.processes import recorded
from kodo.models import now

if TYPE_CHECKING:
    from kodo.lab.member import Member
    from kodo.lab.mesh import MeshLab

VERSION = 1
PAUSE = 0.25
"""Seconds between two looks."""
AGAIN = 8
"""Looks after which everybody is asked, also those that nothing was told to."""
PATIENCE = 2.0


class Recording:
    """A record that is being written; `stop` ends it, and so does the end of the lab, or of this process."""

    def __init__(self, lab: MeshLab, path: Path) -> None:
        """Begin: what the lab has by now is written at once."""
        self.path = path
        self.failed: str | None = None
        try:
            self._file: TextIO = path.open("w", encoding="utf-8")
        except OSError as error:
            raise LabError(unwritten(path, error)) from error
        self._lab = weakref.ref(lab)
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._known: dict[tuple[str, str], Any] = {}
        self._over = threading.Event()
        self._looks = 0
        self._write({"kodo": "recording", "version": VERSION, "name": lab.name, "at": time.monotonic(), "utc": now()})
        if self.failed is not None:
            raise LabError(f"{path}: expected a file to write, but {self.failed}; choose another path")
        self._unfollow = lab.history.follow(self._take)
        for member in lab:
            self._introduce(member)
            self._take(_event("launched", member) | {"setup": recorded(member.setup)})
            if member.running:
                self._take(_event("started", member))
                if member.paused:
                    self._take(_event("paused", member))
        self._look()
        self._thread = threading.Thread(target=self._run, name="kodo-lab-recording", daemon=True)
        self._thread.start()
        # A lab that is kept goes on then.
        atexit.register(self.stop)

    def __repr__(self) -> str:
        state = "ended" if self._over.is_set() else "running"
        return f"<Recording to {self.path.name}: {state if self.failed is None else f'broken off, {self.failed}'}>"

    def stop(self) -> None:
        """Write what has happened by now, and close the file. Doing so again does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._looks = 0
        self._look()
        self._close()

    def _close(self) -> None:
        atexit.unregister(self.stop)
        self._unfollow()
        self._write({"end": True, "at": time.monotonic()})
        with self._lock:
            self._file.close()

    def _run(self) -> None:
        while not self._over.wait(PAUSE):
            if self._lab() is None:
                self._over.set()
                self._close()
                return
            self._look()

    # -- what is written -----------------------------------------------------------------------------------

    def _take(self, entry: Entry) -> None:
        who = entry["message"]["by"] if "message" in entry else entry.get("who")
        if who is not None:
            self._changed.add(who)
        self._write(entry)

    def _write(self, entry: Entry) -> None:
        line = json.dumps(entry, separators=(",", ":"))
        with self._lock:
            if not self._file.closed:
                self._append(line)

    def _append(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            # What is told comes from the verbs of the lab, and from what it hears of its members: they go on.
            self.failed = reason_of(error)
            with suppress(OSError):
                self._file.close()

    def _look(self) -> None:
        lab = self._lab()
        if lab is None:
            return
        # Whoever is ended meanwhile answers no more; the next look, if there is one, finds the others.
        with suppress(KodoError):
            lab.remember()
        asked, self._changed = self._changed, set()
        for member in lab:
            self._introduce(member)
            if member.answers and (member.name in asked or self._looks % AGAIN == 0):
                self._ask(member)
        self._looks += 1

    def _introduce(self, member: Member) -> None:
        if self._is_new("member", member.name, (member.kind, member.url)):
            self._write({"member": member.name, "kind": member.kind, "url": member.url, "at": time.monotonic()})

    def _ask(self, member: Member) -> None:
        with suppress(KodoError), Client(member.url, PATIENCE) as client:
            rows, view = all_flows(client), client.map()
            slim = {key: view[key] for key in ("url", "feed", "nodes", "providers", "connection")}
            if self._is_new("listing", member.name, rows):
                self._write({"listing": member.name, "rows": rows, "at": time.monotonic()})
            if self._is_new("map", member.name, slim):
                self._write({"map": member.name, "view": slim, "at": time.monotonic()})

    def _is_new(self, what: str, name: str, value: Any) -> bool:
        before = self._known.get((what, name))
        self._known[what, name] = value
        return bool(before != value)


def _event(what: str, member: Member) -> Entry:
    return {"event": what, "who": member.name, "at": time.monotonic(), "utc": now(), "code": None}
