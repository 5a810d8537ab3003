"""What happened: the timeline, beliefs, logs, and what settling took or lacked."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import combinations
from pathlib import Path

import httpx
import pytest

from kodo.errors import LabError
from kodo.lab import MeshLab
from kodo.lab.beliefs import Truth, beliefs_of
from kodo.lab.history import Event, History, Message, Note, merged
from kodo.lab.naming import Names
from kodo.lab.timeline import Axis, Choice, Story, Timeline, seen_to_start, timeline_of
from kodo.models import COLUMNS
from tests.test_lab import MEASURED
from tests.waiting import until


def message(number: int, outcome: str | None = "200", **changes: object) -> Message:
    """Message `number` of two registries, which begins in that second and takes half of one."""
    begin, there = float(number), outcome == "200"
    fields = {
        "id": str(number),
        "sender": "registry1",
        "receiver": "registry2",
        "route": "/update/node",
        "nodes": 1,
        "bytes": 100,
        "outcome": outcome,
        "utc": "2024-12-25T18:03:12.989989",
        "sent": begin,
        "received": begin + 0.2 if there else None,
        "answered": begin + 0.3 if there else None,
        "ended": None if outcome is None else begin + 0.5,
    }
    return Message(**{**fields, **changes})  # type: ignore[arg-type]


def told(messages: list[Message], events: list[Event] | None = None, **choice: object) -> Timeline:
    kinds = {"registry1": "registry", "registry2": "registry"}
    story = Story(messages, events or [], 0, 0.0)
    return timeline_of(story, kinds, 100.0, Choice(**choice))  # type: ignore[arg-type]


# -- the timeline ------------------------------------------------------------------------------------------


def test_the_timeline_has_the_real_messages_of_both_ends(lab: MeshLab) -> None:
    """One row a message, with its way, and a text without a measure."""
    first = lab.add_registry()
    lab.add_registry(connect=first)
    lab.settle()  # a registry that connects after the node is told of it in the answer, and by no message
    lab.add_node(connect=first, flows=["a"])
    lab.settle()
    timeline = lab.timeline()
    assert repr(timeline) == "<Timeline: 2 registries, 1 node>"
    rows = timeline.frame[["sender", "receiver", "route", "outcome"]].values.tolist()
    assert ["registry2", "registry1", "/connect", "200"] in rows
    assert ["node1", "registry1", "/register", "200"] in rows
    assert ["registry1", "registry2", "/update/node", "200"] in rows
    assert (timeline.frame["way"] > 0).all()
    assert (timeline.frame["took"] >= timeline.frame["way"]).all()
    data, _ = timeline._repr_mimebundle_()
    assert data.keys() == {"text/plain", "image/png"}
    assert not MEASURED.search(data["text/plain"])


def test_what_a_member_did_before_it_was_killed_is_kept(lab: MeshLab) -> None:
    """Its trace goes with it, so it is read before."""
    first = lab.add_registry()
    node = lab.add_node(connect=first, flows=["a"])
    lab.settle()
    first.kill()
    node.kill()
    found = [(row.sender, row.receiver, row.outcome) for row in lab.timeline().messages]
    assert ("node1", "registry1", "200") in found
    ids = [row.id for row in lab.timeline().messages]
    assert len(set(ids)) == len(ids)


def test_a_restarted_member_is_read_anew(lab: MeshLab) -> None:
    """Its trace begins again, under another name for its places."""
    first = lab.add_registry()
    node = lab.add_node(connect=first, flows=["a"])
    lab.settle()
    before = len(lab.timeline())
    node.restart(flows=["b"])
    lab.settle()
    assert len(lab.timeline()) == before + 1
    assert len(lab.timeline()) == before + 1


def test_what_a_stranger_asks_for_does_not_end_the_reading_of_a_trace(lab: MeshLab) -> None:
    """A path with what other readers take for the end of a line is noted, and what follows it too."""
    registry = lab.add_registry()
    with httpx.Client(trust_env=False) as stranger:
        stranger.post(f"{registry.url}/a%E2%80%A8b")
    lab.add_node(connect=registry, flows=["a"])
    lab.settle()
    assert {"/a\u2028b", "/register"} <= {message.route for message in lab.timeline().messages}


def test_the_last_messages_are_shown_and_what_is_left_out_is_said() -> None:
    """In the picture; a moment or a number chooses."""
    timeline = told([message(number) for number in range(5)], last=2)
    assert [row.id for row in timeline.messages] == ["3", "4"]
    texts = [text.get_text() for text in timeline._figure.axes[0].texts]
    assert "3 earlier messages are not shown" in texts
    assert [row.id for row in told([message(number) for number in range(5)], begin=3.0).messages] == ["3", "4"]
    assert "no messages" in [text.get_text() for text in told([])._figure.axes[0].texts]


def test_since_takes_seconds_and_faults(lab: MeshLab) -> None:
    """And nothing else."""
    first = lab.add_registry()
    node = lab.add_node(connect=first, flows=["a"])
    lab.settle()
    with lab.latency(first, node, ms=1) as fault:
        node.restart(flows=["b"])
        lab.settle()
    assert [row.sender for row in lab.timeline(since=fault).messages] == ["node1"]
    assert len(lab.timeline(since=1000)) == 2
    with pytest.raises(LabError, match="since: expected seconds back from now, or a fault"):
        lab.timeline(since=-1)


def test_messages_that_tell_no_news_are_shown_when_asked_for() -> None:
    """A beat a second would bury the rest."""
    beat = message(2, route="/heartbeat")
    assert len(told([message(1), beat])) == 1
    assert len(told([message(1), beat], beats=True)) == 2


def test_a_timeline_is_drawn_whatever_became_of_its_messages() -> None:
    """Lost, cut, refused, on their way, from strangers, with answers; faults and states of members."""
    outcomes = ["200", "lost: ConnectError", "cut", "refused 422", None, "lost: answer"]
    messages = [message(number, outcome) for number, outcome in enumerate(outcomes)]
    messages.append(message(9, sender="http://127.0.0.1:1/$x$"))
    events = [
        Event("launched", "registry1", 0.0),
        Event("fault", "cut registry1 <-> registry2", 1.0),
        Event("fault", "5 ms registry1 <-> registry2", 1.5),
        Event("healed", "cut registry1 <-> registry2", 3.0),
        Event("paused", "registry1", 3.5),
        Event("resumed", "registry1", 4.0),
        Event("exited", "registry1", 5.0, code=-9),
    ]
    timeline = told(messages, events, answers=True)
    assert timeline.png.startswith(b"\x89PNG")
    assert [(span.label, span.begin, span.end, span.cut) for span in timeline.faults] == [
        ("cut registry1 <-> registry2", 1.0, 3.0, True),
        ("5 ms registry1 <-> registry2", 1.5, None, False),
    ]
    assert ET.fromstring(timeline.svg).tag.endswith("svg")


def test_labels_of_a_timeline_do_not_overlap() -> None:
    """Names, times and labels of faults, with many members and faults at once."""
    kinds = {f"registry{number}": "registry" for number in range(24)}
    messages = [message(n, sender=f"registry{n % 24}", receiver=f"registry{(n + 7) % 24}") for n in range(200)]
    events = [Event("fault", f"cut registry{n} <-> registry{n + 1}", 10.0 + n / 10) for n in range(8)]
    timeline = timeline_of(Story(messages, events, 312, 0.0), kinds, 300.0, Choice())
    figure = timeline._figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert "312 earlier messages are not shown" in [text.get_text() for text in figure.axes[0].texts]
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)


def test_a_long_story_goes_on_in_the_next_row_at_letters_that_can_be_read() -> None:
    """No wider than a notebook shows it; each row names all members, and each message arrives in one of them."""
    kinds = {f"registry{number}": "registry" for number in range(12)}
    messages = [message(n, sender=f"registry{n % 12}", receiver=f"registry{(n + 5) % 12}") for n in range(90)]
    events = [Event("fault", "cut registry1 <-> registry2", 20.0), Event("healed", "cut registry1 <-> registry2", 70.0)]
    figure = timeline_of(Story(messages, events, 0, 0.0), kinds, 90.0, Choice())._figure
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = [text for text in axes.texts if text.get_text()]
    said = Counter(text.get_text() for text in texts)
    rows = said["registry0"]
    assert rows > 1
    assert {said[name] for name in kinds} == {rows}
    assert said["cut registry1 <-> registry2"] == rows, "a fault that goes on is named again"
    assert said["time is not to scale: silence is shortened; time goes on in the next row"] == 1
    assert min(text.get_fontsize() for text in texts) >= 8
    assert figure.get_size_inches()[0] <= 9
    assert not [
        pair for pair in combinations([text.get_window_extent() for text in texts], 2) if pair[0].overlaps(pair[1])
    ]
    arrows = [(text.arrow_patch, axes.transData.transform(text.xy)) for text in axes.texts if hasattr(text, "xy")]
    assert sum(arrow.get_clip_box().contains(*head) for arrow, head in arrows) == len(messages)


def test_no_line_of_a_fault_crosses_the_label_of_another() -> None:
    """The line at which a fault begins rises to its own label, below those that reach over it."""
    events = [Event("fault", f"cut {n} of a long name <-> registry{n}", 10.0 + n * n / 10) for n in range(9)]
    events += [Event("fault", "cut again", 10.0)]
    timeline = timeline_of(
        Story([message(n) for n in range(20)], events, 0, 0.0), {"registry1": "registry"}, 30.0, Choice()
    )
    figure = timeline._figure
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [text.get_window_extent() for text in axes.texts if text.get_text().startswith("cut ")]
    rises = [line.get_window_extent() for line in axes.lines if line.get_alpha() == 0.7]
    assert (len(labels), len(rises)) == (10, 10)
    for label in labels:
        assert not [rise for rise in rises if label.x0 < rise.x0 < label.x1 and rise.y1 > label.y0]


def test_a_message_that_waited_at_a_cut_has_a_mark_where_the_cut_ended() -> None:
    """So has one that waits there still; one that the cut outlived is lost. The legend says what the mark is."""
    events = [
        Event("fault", "cut a <-> b", 0.5),
        Event("healed", "cut a <-> b", 5.0),
        Event("fault", "cut a <-> b", 6.0),
    ]
    waited = message(1, held=True, received=5.1, answered=5.2, ended=5.3)
    waits = message(7, "cut", held=True, ended=None)
    given_up = message(8, "cut", held=True, ended=18.0)
    answer = message(2, held=True)

    def marks(*messages: Message) -> list[str]:
        axes = told(list(messages), events)._figure.axes[0]
        assert "time is not to scale: silence is shortened" in [text.get_text() for text in axes.texts]
        foot = [line.get_marker() for line in axes.lines if line.get_marker() in ("D", "x")]
        return sorted(foot)

    assert marks(waited) == marks(waits) == marks(answer) == ["D", "D"]  # one stands in the legend
    assert marks(given_up) == ["x", "x"]
    assert told([waited, waits], events).frame["held"].tolist() == [True, True]


def test_the_axis_gives_silence_little_room_and_never_turns_back() -> None:
    """A minute of nothing is no wider than a few messages, and what is later stands further right."""
    axis = Axis([0.0, 0.001, 0.002, 60.0, 60.001], widest=10)
    places = [axis(moment) for moment in (-1, 0, 0.0005, 0.001, 0.002, 30, 60, 60.001, 99)]
    assert places == sorted(places)
    assert axis(60.0) - axis(0.002) < 12 * (axis(0.002) - axis(0.001))
    assert Axis([0.0, *range(1, 1000)], widest=10).width <= 10.001
    assert Axis([0.0, 0.001], widest=10, least=5).width == pytest.approx(5)
    assert Axis([], widest=10, least=5).ticks(1) == []


def test_mermaid_and_shiviz_take_names_for_nothing_but_names(tmp_path: Path) -> None:
    """Arrows for what arrived, crosses for what did not; vector clocks that grow."""
    messages = [message(1, sender='a"; b', receiver="end"), message(2, "cut"), message(3, None)]
    timeline = told(messages)
    assert timeline.mermaid().split("\n    ") == [
        "sequenceDiagram",
        "participant m0 as registry1",
        "participant m1 as registry2",
        "participant m2 as a#34;#59; b",
        "participant m3 as #101;nd",
        "m2->>m3: /update/node 1 node",
        "m0-xm1: /update/node 1 node (cut)",
        "m0-xm1: /update/node 1 node (on its way)\n",
    ]
    parsed = re.findall(r"(?P<host>\S*) (?P<clock>{.*})\n(?P<event>.*)", timeline.shiviz())
    assert [(host, clock) for host, clock, _ in parsed[:2]] == [
        ("a_;_b", '{"a_;_b": 1}'),
        ("end", '{"a_;_b": 1, "end": 1}'),
    ]
    for suffix, magic in {"png": b"\x89PNG", "svg": b"<?xml", "mmd": b"sequenceDiagram", "log": b"a_;_b"}.items():
        timeline.save(tmp_path / f"timeline.{suffix}")
        assert (tmp_path / f"timeline.{suffix}").read_bytes().startswith(magic)
    with pytest.raises(LabError, match=r"such as timeline\.png"):
        timeline.save(tmp_path / "timeline.gif")


# -- the history -------------------------------------------------------------------------------------------


def note(direction: str, **changes: object) -> Note:
    fields: Note = {
        "id": "1",
        "direction": direction,
        "by": "a",
        "peer": "http://b:1",
        "route": "/register",
        "nodes": 1,
    }
    fields |= {"bytes": 9, "outcome": "200", "began": "t", "start": 1.0, "ended": "t", "end": 2.0}
    return {**fields, **changes}


def test_the_two_notes_of_a_message_are_one() -> None:
    """What the sender saw counts; one note alone is enough; urls become names."""
    names = Names({"a": "http://a:1", "b": "http://b:1"})
    received = note("received", by="b", peer="http://a:1", start=1.2, end=1.3)
    both = merged([received, note("sent", outcome="lost: answer")], names)
    assert [(m.sender, m.receiver, m.outcome, m.received) for m in both] == [("a", "b", "lost: answer", 1.2)]
    assert [(m.sender, m.receiver, m.received) for m in merged([note("sent")], names)] == [("a", "b", None)]
    assert [(m.sender, m.receiver, m.sent) for m in merged([received], names)] == [("a", "b", None)]
    assert merged([note("received", peer=None)], names)[0].sender == "unknown"


def test_the_history_is_bounded_and_counts_what_is_gone() -> None:
    """A later note of a message replaces the earlier."""
    history = History(kept=3)
    history.take("a", note("sent", end=None, outcome=None))
    history.take("a", note("sent"))
    assert [m.outcome for m in history.messages(Names({}))] == ["200"]
    for number in range(5):
        history.take("a", note("sent", id=str(number + 2)))
    assert (len(history.messages(Names({}))), history.missed) == (3, 3)


# -- beliefs and logs --------------------------------------------------------------------------------------


def test_beliefs_tell_known_missing_stale_and_ghost(lab: MeshLab) -> None:
    """And stand apart where nothing connects, or nobody answers."""
    first = lab.add_registry()
    second = lab.add_registry(connect=first)
    lab.add_registry("island")
    node, gone = lab.add_node(connect=first, flows=["old"]), lab.add_node("gone", connect=second, flows=["x"])
    lab.settle()
    assert lab.beliefs().agree
    with lab.cut(first, second):
        node.restart(flows=["new"])
        late = lab.add_node("late", connect=first, flows=["y"])
        until(lambda: {row["name"] for row in first.flows().rows} == {"new", "x", "y"}, "the first to know")
        gone.kill()
        found = lab.beliefs()
        assert repr(found).splitlines() == [
            "node          registry1  registry2  island",
            "node1  runs   known      stale      -",
            "gone   ended  ghost      ghost      -",
            "late   runs   known      missing    -",
            "3 nodes, 3 registries",
        ]
        assert found["late", "registry2"] == "missing"
        assert not found.agree
    second.pause()
    late.pause()
    assert lab.beliefs()["node1", "registry2"] == "no answer"
    assert lab.beliefs()["late", "registry1"] == "known"
    assert list(lab.beliefs().frame.columns) == ["node", "state", "registry1", "registry2", "island"]


def test_a_provider_is_expected_to_list_its_own_alone(lab: MeshLab) -> None:
    """And the registries that it is connected with list its nodes."""
    registry = lab.add_registry()
    provider = lab.add_registry(provider=True, connect=registry)
    lab.add_node("mine", connect=provider, flows=["a"])
    lab.add_node("other", connect=registry, flows=["b"])
    lab.settle()
    found = lab.beliefs()
    assert [found["mine", name] for name in ("registry1", "provider1")] == ["known", "known"]
    assert [found["other", name] for name in ("registry1", "provider1")] == ["known", "-"]


def test_beliefs_escape_names_and_say_when_there_are_none() -> None:
    """No tag of a user, and no colour that hides the text of a theme."""
    truth = Truth("<i>x</i>", "http://n:1", True, [], frozenset())
    html = beliefs_of([truth], {"<b>r</b>": []})._repr_html_()
    assert "<i>" not in html.replace("<i>no", "")
    assert "<b>" not in html
    assert repr(beliefs_of([], {})) == "no nodes"
    row = dict.fromkeys(COLUMNS, "x") | {"node": "http://n:1"}
    assert beliefs_of([truth], {"r": [row]})["<i>x</i>", "r"] == "stale"


def test_logs_are_rows_of_all_members(lab: MeshLab) -> None:
    """A traceback belongs to its line; the text is constant."""
    lab.add_node(connect=lab.add_registry(), flows=["a"])
    with (lab.folder / "node1.log").open("a") as log:
        log.write("Traceback: something\n")
    logs = lab.logs()
    assert repr(logs) == "<Logs of 2 members>"
    assert list(logs.frame.columns) == ["time", "member", "level", "module", "text"]
    assert set(logs.frame["member"]) == {"registry1", "node1"}
    assert logs.frame[logs.frame["member"] == "node1"]["text"].iloc[-1].endswith("\nTraceback: something")
    assert logs.frame["time"].is_monotonic_increasing
    assert "successfully started registry" in str(logs)


# -- settling ----------------------------------------------------------------------------------------------


def test_settle_measures_messages_and_when_each_registry_knew(lab: MeshLab) -> None:
    """One change in a chain of three: one registration and two pushes."""
    first = lab.add_registry()
    second = lab.add_registry(connect=first)
    lab.add_registry(connect=second)
    node = lab.add_node(connect=first, flows=["a"])
    lab.settle()
    node.restart(flows=["b"])
    settled = lab.settle()
    assert repr(settled) == "<Settled: 3 registries agree>"
    assert (settled.messages, settled.pushes) == (3, 2)
    seconds = settled.per_registry
    assert 0 < seconds["registry1"] < seconds["registry2"] < seconds["registry3"] == settled.max
    assert settled.p50 == seconds["registry2"]
    assert settled.frame["registry"].tolist() == ["registry1", "registry2", "registry3"]
    assert settled.plot().png.startswith(b"\x89PNG")
    assert repr(settled.plot()) == "<Bars: when 3 registries knew>"
    assert lab.settle().messages == 0


def test_settle_names_the_push_that_failed_and_the_state_of_who_did_not_hear(lab: MeshLab) -> None:
    """The cause stands beside what is missing."""
    first = lab.add_registry()
    second = lab.add_registry(connect=first)
    node = lab.add_node(connect=first, flows=["old"])
    lab.settle()
    with lab.cut(first, second):
        node.restart(flows=["mytest"])
        with pytest.raises(LabError) as caught:
            lab.settle(timeout=3)
    assert re.search(
        r"- registry2 never learned /mytest of node1: last push registry1 -> registry2 cut \d\.\d s ago",
        str(caught.value),
    )
    lab.settle()
    second.pause()
    node.restart(flows=["another"])
    with pytest.raises(LabError) as caught:
        lab.settle(timeout=3)
    text = str(caught.value)
    assert "- registry2 is paused" in text
    assert re.search(
        r"- registry2 never learned /another of node1: last push registry1 -> registry2 on its way for \d\.\d s; "
        "registry2 is paused",
        text,
    )
    assert "the log of registry2 ends with" in text
    assert "the log of registry1" not in text


def test_what_a_node_offers_no_more_is_not_missed(lab: MeshLab) -> None:
    """Who has the latest registration is not blamed for lacking what an older one had."""
    first = lab.add_registry()
    second = lab.add_registry(connect=first)
    node = lab.add_node(connect=first, flows=["a", "b"])
    lab.settle()
    with lab.cut(first, second):
        node.restart(flows=["a"])
        with pytest.raises(LabError) as caught:
            lab.settle(timeout=3)
    assert "registry1 never" not in str(caught.value)
    assert "registry2 has an older /a of node1" in str(caught.value)


def test_a_message_leaves_no_earlier_than_its_sender_starts() -> None:
    """A node registers before its lab hears that it has started: it has by then, and of one that started again too."""
    events = [
        Event("launched", "node1", 9.0),
        Event("started", "node1", 10.5),
        Event("exited", "node1", 20.0, code=0),
        Event("launched", "node1", 30.0),
        Event("started", "node1", 40.0),
    ]
    sent = [message(10, sender="node1"), message(35, sender="node1")]
    assert [event.at for event in seen_to_start(events, sent) if event.what == "started"] == [10.0, 35.0]


def test_the_legend_names_every_mark() -> None:
    """Starts, ends and refusals too."""
    events = [
        Event("launched", "registry1", 9.0),
        Event("started", "registry1", 11.0),
        Event("exited", "registry1", 12.0, code=0),
    ]
    timeline = told([message(10, "refused 422", received=10.1), message(11)], events, answers=True)
    texts = {text.get_text() for text in timeline.draw().axes[0].texts}
    assert {"started", "ended", "refused", "answer"} <= texts
    waits = message(20, "cut", ended=None)
    assert "waited at a cut" in {text.get_text() for text in told([waits]).draw().axes[0].texts}


def test_few_messages_take_the_room_there_is() -> None:
    """Arrows that a millisecond of virtual time parts are told apart; where nothing happened there is no time."""
    moments = [message(number, sent=number / 1000, received=(number + 1) / 1000) for number in range(3)]
    figure = told(moments).draw()
    ends = [arrow.xy[0] for arrow in figure.axes[0].texts if getattr(arrow, "arrow_patch", None)]
    assert max(ends) > figure.get_figwidth() * 0.85
    assert not [text for text in told([]).draw().axes[0].texts if text.get_text().endswith(" s")]
