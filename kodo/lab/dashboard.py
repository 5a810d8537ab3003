"""`lab.dashboard()`: the live table, the topology, the messages, and buttons for faults.

```
 Watcher (a thread) --/map, with tags--> graph, places --> MeshPicture
 Listener (a thread a member) --/events?kind=messages--> MessageLog
 buttons --> Hands (a thread, one after the other) --> the verbs of the lab and of its members
```

- A button does what its verb does, and nothing else. The verb works on a thread, so that a dashboard is never stuck;
  what came of it stands beside the buttons.
- Threads hold no lab, like those of the live table, and end with it.
- What a lab cannot do, or does not know, is said in words, such as a trace of messages that is off.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import TYPE_CHECKING, Any, Self

from kodo.client import Client, Stream, View
from kodo.errors import KodoError, LabError
from kodo.lab import boxes
from kodo.lab.copies import Hearing
from kodo.lab.history import CHATTER
from kodo.lab.live import Live, opened, static_table
from kodo.lab.naming import Names
from kodo.lab.sketch import scene_of, sketch
from kodo.lab.topology import Seen, Topology, graph_of
from kodo.lab.widgets import MeshPicture, MessageLog

if TYPE_CHECKING:
    from kodo.lab.member import Member
    from kodo.lab.mesh import MeshLab

log = logging.getLogger("kodo")

LOOK = 0.5
"""Seconds between two looks at who is connected with whom; an answer that is the same is not sent again."""
ANSWER = 1.0
"""Seconds that a member gets to say so, before it is drawn as it was."""
MESSAGES = 60
"""Messages that are kept."""
CHOICE = 160
"""Pixels of a choice."""

Order = Callable[["MeshLab"], str]
"""Something that a button does; it says what it did."""


class Dashboard:
    """What happens in a lab, and what can be done to it."""

    def __init__(self, lab: MeshLab) -> None:
        """Watch all members that the lab has, now and later, until it ends or this is closed."""
        self.lab = lab
        self.live = Live(lab)
        self.picture = MeshPicture()
        self.messages = MessageLog(state={"lines": [], "note": "waiting for the first message"})
        self._controls = Controls(weakref.ref(lab))
        self._watcher = Watcher(weakref.ref(lab), self.picture, self.messages, self._controls)
        half = {"flex": "1 1 420px", "min_width": "320px"}
        views = [boxes.VBox([view], layout=half) for view in (self.picture, self.messages)]
        row = boxes.Box(views, layout={"flex_flow": "row wrap", "display": "flex", "grid_gap": "8px"})
        self.box = boxes.VBox([self._controls.box, row, self.live.grid])
        # Where these are, the table says of all of it that the kernel is gone.
        self.box.add_class("kodo-dashboard")
        self._controls.box.add_class("kodo-controls")

    @classmethod
    def of(cls, lab: MeshLab) -> Self:
        """The dashboard of a lab: the one that is open, or a new one."""
        return opened(lab, cls, "", lambda: cls(lab))

    @property
    def open(self) -> bool:
        """Whether it still watches, and its widgets were not closed."""
        return self._watcher.open and self.live.open and self.box.comm is not None

    def close(self) -> None:
        """Stop watching. What is shown stays."""
        self._watcher.close()
        self._controls.close()
        self.live.close()

    def __repr__(self) -> str:
        return "<Dashboard>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        table = static_table(self.live.registries(), self.lab)
        return {"text/plain": repr(self), "text/html": sketch(self.picture.state) + table, boxes.WIDGET: view}


# -- what can be done --------------------------------------------------------------------------------------


class Controls:
    """Buttons for the verbs of a lab."""

    def __init__(self, lab: weakref.ref[MeshLab]) -> None:
        self._lab = lab
        self._hands = ThreadPoolExecutor(1, thread_name_prefix="kodo-dashboard")
        self._names: list[str] = []
        self._member = _labelled(boxes.Dropdown, "member", 60)
        self._one = _labelled(boxes.SelectMultiple, "between", 60, rows=4, tooltip="one side of a partition")
        self._other = _labelled(boxes.SelectMultiple, "and", 30, rows=4, tooltip="the other side")
        self._said = boxes.HTML(layout={"flex": "1 1 200px"})
        self._buttons: list[Any] = []
        line = {"flex_flow": "row wrap", "display": "flex", "align_items": "center"}
        verbs = [
            self._button(verb, self._ask_member, verb, style)
            for verb, style in (("kill", "danger"), ("restart", ""), ("pause", ""), ("resume", ""))
        ]
        faults = [self._button("partition", self._partition, "", ""), self._button("heal", self._heal, "", "")]
        self.box = boxes.VBox(
            [
                boxes.Box([self._member, *verbs, self._said], layout=line),
                boxes.Box([self._one, self._other, *faults], layout=line),
            ]
        )

    def offer(self, names: list[str]) -> None:
        """These are the members now."""
        if names == self._names:
            return
        self._names = names
        for choice in (self._one, self._other):
            kept = [name for name in choice.value if name in names]
            choice.options = names
            choice.value = kept
        kept_member = self._member.value
        self._member.options = names
        self._member.value = kept_member if kept_member in names else names[0] if names else None

    def close(self) -> None:
        """Do nothing any more."""
        self._hands.shutdown(wait=False, cancel_futures=True)
        for button in self._buttons:
            button.disabled = True

    def _button(self, verb: str, do: Callable[[str], Order], word: str, style: str) -> Any:
        button = boxes.Button(description=verb, button_style=style, layout={"width": "90px"})
        button.add_class(f"kodo-do-{verb}")
        button.on_click(lambda _: self._begin(do(word)))
        self._buttons.append(button)
        return button

    def _begin(self, order: Order) -> None:
        self._say("…")
        self._hands.submit(self._do, order)

    def _do(self, order: Order) -> None:
        lab = self._lab()
        try:
            if lab is None or lab.ended:
                raise LabError("the lab has ended; start a new one with MeshLab()")
            self._say(order(lab))
        except KodoError as error:
            self._say(str(error).partition("\n")[0])
        except Exception as error:
            log.exception("a button of a dashboard failed")
            self._say(f"{type(error).__name__}: {error}")

    def _say(self, words: str) -> None:
        self._said.value = f'<span role="status" class="kodo-said">{escape(words)}</span>'

    def _ask_member(self, verb: str) -> Order:
        name = self._member.value

        def order(lab: MeshLab) -> str:
            if name is None:
                raise LabError("expected a member; choose one")
            getattr(lab[name], verb)()
            return f"{verb} {name}: done"

        return order

    def _partition(self, _: str) -> Order:
        one, other = list(self._one.value), list(self._other.value)

        def order(lab: MeshLab) -> str:
            if not one or not other or set(one) & set(other):
                raise LabError("expected two groups that share no member; choose them on both sides")
            lab.partition(one, other)
            return f"{', '.join(one)} and {', '.join(other)} no longer hear each other"

        return order

    def _heal(self, _: str) -> Order:
        def order(lab: MeshLab) -> str:
            lab.heal()
            return "all faults are healed"

        return order


def _labelled(kind: Any, label: str, width: int, **more: Any) -> Any:
    """A choice with its label before it, of this many pixels, so that what stands beneath each other begins alike."""
    layout = {"width": f"{CHOICE + width}px"}
    return kind(options=[], description=label, style={"description_width": f"{width}px"}, layout=layout, **more)


# -- what is seen ------------------------------------------------------------------------------------------


class Watcher:
    """The thread that looks who is there and who is connected with whom."""

    def __init__(
        self, lab: weakref.ref[MeshLab], picture: MeshPicture, messages: MessageLog, controls: Controls
    ) -> None:
        self._lab = lab
        self._picture = picture
        self._messages = messages
        self._controls = controls
        self._maps: dict[str, Map] = {}
        self._trace = Trace()
        self._names = Names({})
        self._closed = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._run, name="kodo-dashboard", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether the thread goes on."""
        return self._thread.is_alive() and not self._closed.is_set()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join(5)

    def _run(self) -> None:
        try:
            while not self._closed.wait(LOOK) and self._look():
                pass
        except Exception:
            log.exception("a dashboard ends")
        finally:
            self._trace.close()
            for seen in self._maps.values():
                seen.close()
            self._messages.state = self._trace.state("the lab has ended", self._names)
            self._controls.close()

    def _look(self) -> bool:
        """Look once. False when the lab has ended."""
        lab = self._lab()
        if lab is None or lab.ended:
            return False
        members = list(lab)
        states = {member.name: member.state for member in members}
        self._controls.offer(list(states))
        seen = [self._seen(member, states[member.name]) for member in members]
        self._trace.follow(members)
        self._trace.note({name for name, state in states.items() if state == "running"})
        graph = graph_of(seen)
        picture = scene_of(Topology(graph, lab.places(graph), lab.faults.held), states)
        if picture != self._picture.state:
            self._picture.state = picture
        self._names = lab.names
        told = self._trace.state("", self._names)
        if told != self._messages.state:
            self._messages.state = told
        return True

    def _seen(self, member: Member, state: str) -> Seen:
        if member.name not in self._maps:
            self._maps[member.name] = Map(member.url)
        known = self._maps[member.name]
        if state == "running":
            known.look()
        elif state != "paused":
            known.view = None
        return Seen(member.name, member.url, member.kind, known.view, state == "paused")


class Map:
    """What one member knows of the mesh, asked for by its tag: told again only when it has changed."""

    def __init__(self, url: str) -> None:
        self.view: View | None = None
        self._tag: str | None = None
        self._client = Client(url, ANSWER)

    def look(self) -> None:
        """Ask. Who does not answer is known as before."""
        try:
            self._tag, view = self._client.get_if_changed("/map", self._tag if self.view is not None else None)
        except KodoError:
            return
        self.view = view if view is not None else self.view

    def close(self) -> None:
        """Ask no more."""
        self._client.close()


class Trace:
    """The last messages, as the members' own traces tell them; each once, though both ends tell it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._clients: list[Client] = []
        self._told: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._refused: set[str] = set()
        self._hearing = Hearing("their messages may be missing here")
        self._unheard = ""

    def note(self, running: Set[str]) -> None:
        """Look who of those that run is heard."""
        asked = {name: stream.connected for name, stream in self._streams.items() if name in running - self._refused}
        self._unheard = self._hearing.note(asked)

    def follow(self, members: Iterable[Member]) -> None:
        """Listen to these members as well."""
        for member in members:
            if member.name not in self._streams:
                client = Client(member.url, ANSWER)
                self._clients.append(client)
                self._streams[member.name] = client.stream("/events", kind="messages")
                thread = threading.Thread(
                    target=self._listen, args=(member.name, self._streams[member.name]), name="kodo-trace", daemon=True
                )
                thread.start()

    def _listen(self, name: str, stream: Stream) -> None:
        try:
            for event in stream:
                if event.kind == "message" and _is_news(event.data):
                    self._take(name, event.data)
        except KodoError:
            self._refused.add(name)

    def _take(self, name: str, data: dict[str, Any]) -> None:
        with self._lock:
            number = str(data.get("id"))
            # What its sender notes counts: whether it was answered, and when it began.
            if data.get("direction") != "received" or self._told.get(number, data).get("direction") == "received":
                self._told[number] = {**data, "told by": name}
            while len(self._told) > MESSAGES:
                self._told.popitem(last=False)

    def state(self, note: str, names: Any = None) -> dict[str, Any]:
        """What the log shows."""
        with self._lock:
            told = sorted(self._told.values(), key=lambda data: str(data.get("began")), reverse=True)
        lines = [_line(data, names) for data in told]
        empty = "the members keep no trace of their messages" if self._refused else "waiting for the first message"
        return {"lines": lines, "note": note or self._unheard or ("" if lines else empty)}

    def close(self) -> None:
        """Listen no more."""
        for stream in self._streams.values():
            stream.close()
        for client in self._clients:
            client.close()


def _is_news(data: dict[str, Any]) -> bool:
    """Whether a message tells anything: a beat and a beacon only say that somebody is there."""
    return data["route"] not in CHATTER and (data["nodes"] > 0 or data["route"] != "/update/node")


def _line(data: dict[str, Any], names: Any) -> Sequence[str]:
    peer = data.get("peer")
    other = str(names[peer] if names is not None and isinstance(peer, str) and "://" in peer else peer or "?")
    sent = str(data.get("direction", "sent")).startswith("sent")
    ends = (data["told by"], other) if sent else (other, data["told by"])
    time = str(data.get("began") or "")
    shown = [data.get(name, "") for name in ("route", "nodes", "bytes", "outcome")]
    shown[-1] = shown[-1] or "on its way"
    return [
        time.partition("T")[2][:12] or time,
        f"{ends[0]} → {ends[1]}",
        *("" if v is None else str(v) for v in shown),
    ]
