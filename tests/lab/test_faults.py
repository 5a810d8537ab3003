"""Faults between members: each verb, what it does to messages, how it ends, and what cannot be."""

from __future__ import annotations

import base64
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from itertools import combinations
from operator import mul
from typing import Any

import networkx as nx  # type: ignore[import-untyped]
import pytest

from kodo.errors import LabError, UnavailableError
from kodo.lab import MeshLab
from kodo.lab.drawing import BROKEN, INK, QUIET, SLOW_INK
from kodo.lab.faults import Effect, Fault, ways
from kodo.lab.history import Message
from kodo.lab.member import Member
from kodo.lab.topology import Topology, box_of, place, wrong_with
from tests.waiting import until


def pair(lab: MeshLab, **loader: Any) -> tuple[Member, Member, Member]:
    """Two registries that are connected, and a node at the first; settled."""
    first = lab.add_registry()
    second = lab.add_registry(connect=first)
    node = lab.add_node(connect=first, flows=["old"])
    lab.settle()
    return first, second, node


def listed(member: Member) -> list[str]:
    return [row["name"] for row in member.flows().rows]


def news_reaches(registry: Member, lab: MeshLab, node: Member) -> None:
    """Nothing is in force any more: what the node offers from now on is listed there."""
    node.restart(flows=["new"])
    lab.settle()
    assert listed(registry) == ["new"]


def messages(lab: MeshLab, sender: Member, receiver: Member) -> list[Message]:
    lab.remember()
    found = lab.history.messages(lab.names)
    return [message for message in found if (message.sender, message.receiver) == (sender.name, receiver.name)]


def last(lab: MeshLab, sender: Member, receiver: Member) -> str | None:
    """What became of the last message, if there was one and anything is known of it."""
    found = messages(lab, sender, receiver)
    return found[-1].outcome if found else None


# -- cut and partition -------------------------------------------------------------------------------------


def test_a_cut_is_silence_on_connections_that_are_open_and_its_end_lets_messages_through(lab: MeshLab) -> None:
    """Nothing is refused: the message hangs, is seen to hang, and goes on its way when the cut is healed."""
    first, second, node = pair(lab)
    fault = lab.cut(first, second)
    assert repr(fault) == "<Fault cut registry1 <-> registry2: active>"
    assert repr(lab) == "<MeshLab 2 registries, 1 node: running, 1 fault>"
    node.restart(flows=["new"])
    until(lambda: last(lab, first, second) == "cut", "the push to hang")
    assert (listed(first), listed(second)) == (["new"], ["old"])
    fault.heal()
    lab.settle()
    assert listed(second) == ["new"]
    assert repr(fault) == "<Fault cut registry1 <-> registry2: healed>"
    assert last(lab, first, second) == "200"


def test_the_labs_own_questions_pass_by_every_fault(lab: MeshLab) -> None:
    """Who is cut off from everybody answers the lab as before."""
    first, second, _ = pair(lab)
    with lab.partition(first, second):
        assert second.status()["registry"]
        assert len(lab.flows()) == 1


def test_a_cut_of_one_way_lets_the_other_pass(lab: MeshLab) -> None:
    """Only what the one sends to the other is silent."""
    first, second, node = pair(lab)
    fault = lab.cut(first, second, one_way=True)
    assert repr(fault) == "<Fault cut registry1 -> registry2: active>"
    other = lab.add_node(connect=second, flows=["of the second"])
    until(lambda: "of the second" in listed(first), "what is sent the other way to arrive")
    node.restart(flows=["new"])
    until(lambda: last(lab, first, second) == "cut", "the push to hang")
    assert listed(second) == ["of the second", "old"]
    fault.heal()
    lab.settle()
    assert listed(other) == ["of the second"]
    assert listed(second) == ["new", "of the second"]


def test_a_partition_ends_with_its_block_even_when_that_fails(lab: MeshLab) -> None:
    """What was said on each side is everywhere afterwards."""
    first, second, node = pair(lab)
    far = lab.add_node(connect=second, flows=["far"])
    lab.settle()

    def fail() -> None:
        with lab.partition([first, node], ["registry2", far]) as fault:
            assert repr(fault) == "<Fault partition registry1, node1 | registry2, node2: active>"
            node.restart(flows=["near and new"])
            far.restart(flows=["far and new"])
            until(lambda: listed(second) == ["far and new", "old"], "the one side to know its own alone")
            until(lambda: listed(first) == ["far", "near and new"], "the other side too")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert lab.faults.active == []
    lab.settle()
    assert listed(first) == listed(second) == ["far and new", "near and new"]


def test_of_one_group_the_others_are_the_rest(lab: MeshLab) -> None:
    """`lab.partition(member)` isolates it."""
    first, _, _ = pair(lab)
    assert repr(lab.partition(first)) == "<Fault partition registry1 | registry2, node1: active>"
    with pytest.raises(LabError, match="at least one member on each side"):
        lab.partition(list(lab))


def test_a_member_that_starts_again_gets_what_holds_before_it_says_a_word(lab: MeshLab) -> None:
    """A node that is cut off from its registry registers nowhere, however often it is restarted."""
    registry = lab.add_registry()
    node = lab.add_node(connect=registry, flows=["old"])
    lab.settle()
    with lab.cut(node, registry):
        node.restart(flows=["new"])
        until(lambda: last(lab, node, registry) == "cut", "the registration to hang")
        assert listed(registry) == ["old"]
        node.kill()
        node.restart()
        until(lambda: last(lab, node, registry) == "cut", "the registration to hang again")
        assert listed(registry) == ["old"]
    lab.settle()
    assert listed(registry) == ["new"]


def test_killed_is_refused_and_cut_is_silent(lab: MeshLab) -> None:
    """The trace tells the one from the other."""
    first, second, node = pair(lab)
    second.kill()
    node.restart(flows=["new"])
    until(lambda: last(lab, first, second) == "lost: ConnectError", "the push to be refused")


# -- latency and loss --------------------------------------------------------------------------------------


def test_latency_delays_the_message_and_its_answer(lab: MeshLab) -> None:
    """As long each way, in both directions; afterwards nothing is late."""
    first, second, node = pair(lab)
    with lab.latency("registry1", "registry2", ms=150) as fault:
        assert repr(fault) == "<Fault 150 ms registry1 <-> registry2: active>"
        node.restart(flows=["slow"])
        lab.settle()
        slow = messages(lab, first, second)[-1]
        assert slow.sent is not None
        assert slow.received is not None
        assert slow.answered is not None
        assert slow.ended is not None
        # The timers of an event loop tick in milliseconds.
        assert slow.received - slow.sent >= 0.149
        assert slow.ended - slow.answered >= 0.149
    node.restart(flows=["fast"])
    lab.settle()
    fast = messages(lab, first, second)[-1]
    assert fast.sent is not None
    assert fast.received is not None
    assert fast.received - fast.sent < 0.15


@pytest.mark.parametrize(("which", "reached"), [("request", False), ("answer", True)])
def test_a_lost_message_and_a_lost_answer_leave_the_sender_waiting(lab: MeshLab, which: str, reached: bool) -> None:
    """With an answer lost the news is there; with a request lost it is not."""
    first, second, node = pair(lab)
    label = "loss 100%" if which == "request" else "answer loss 100%"
    fault = lab.loss(first, second, request=float(which == "request"), answer=float(which == "answer"))
    assert repr(fault) == f"<Fault {label} registry1 <-> registry2: active>"
    node.restart(flows=["new"])
    until(lambda: last(lab, first, second) == f"lost: {which}", f"the {which} to be lost")
    assert listed(second) == (["new"] if reached else ["old"])


def test_faults_on_one_way_add_up() -> None:
    """A cut wins, delays are added, chances are those of two dice."""
    one, other = Effect(ms=100, request=0.5), Effect(ms=50, request=0.5, answer=0.1)
    assert (one + other).request == 0.75
    assert (one + Effect(cut=True)).label == "cut"
    assert (one + other).label == "150 ms, loss 75%, answer loss 10%"


# -- pause and resume --------------------------------------------------------------------------------------


def test_a_paused_member_takes_connections_and_answers_nothing_until_it_goes_on(lab: MeshLab) -> None:
    """It shows in the texts, and both verbs may be repeated."""
    first, second, node = pair(lab)
    for _ in range(2):
        second.pause()
    assert repr(second) == "<Registry registry2: paused>"
    assert repr(lab) == "<MeshLab 2 registries, 1 node: running, 1 paused>"
    node.restart(flows=["new"])
    until(lambda: any(push.ended is None for push in messages(lab, first, second)[-1:]), "the push to wait")
    for _ in range(2):
        second.resume()
    assert repr(second) == "<Registry registry2: running>"
    lab.settle()
    assert listed(second) == ["new"]


def test_who_is_paused_from_elsewhere_is_seen_to_be(lab: MeshLab) -> None:
    """By a signal that nobody told the lab of."""
    registry = lab.add_registry()
    assert registry.pid is not None
    os.kill(registry.pid, signal.SIGSTOP)
    until(lambda: registry.state == "paused", "the pause to be seen")
    registry.kill()
    assert registry.state == "killed"


def test_a_fault_is_set_and_healed_beside_a_paused_member(lab: MeshLab) -> None:
    """Nobody waits for it; it takes what holds when it goes on."""
    first, second, _ = pair(lab)
    second.pause()
    began = time.monotonic()
    with lab.cut(second, first):
        assert time.monotonic() - began < 5
    fault = lab.cut(second, first, one_way=True)
    second.resume()
    lab.add_node(connect=second, flows=["of the second"])
    until(lambda: last(lab, second, first) == "cut", "the cut to hold")
    fault.heal()
    lab.settle()


def test_who_does_not_run_is_not_paused(lab: MeshLab) -> None:
    """The error says what to do."""
    registry = lab.add_registry()
    registry.kill()
    for verb in (registry.pause, registry.resume):
        with pytest.raises(LabError, match=r"expected registry1 to run, but it was killed; use registry1.start\(\)"):
            verb()


def test_who_is_paused_is_not_started_and_told_to_be_resumed(lab: MeshLab) -> None:
    """To start what stands still would do nothing: the error names the verb that does."""
    registry = lab.add_registry()
    registry.pause()
    with pytest.raises(LabError, match=r"registry1 to have ended, but it is paused; use registry1.resume\(\)"):
        registry.start()
    registry.resume()
    registry.start()
    assert registry.state == "running"


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("pause", r"it is paused; use registry1.resume\(\)"),
        ("terminate", r"it was terminated; use registry1.start\(\)"),
        ("kill", r"it was killed; use registry1.start\(\)"),
    ],
)
def test_who_cannot_answer_is_not_asked(lab: MeshLab, verb: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent: the error names the member, its state, and the verb that brings it back; it is drawn still."""
    registry = lab.add_registry()
    getattr(registry, verb)()
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_client", None)
        for ask in (
            registry.flows,
            registry.counts,
            registry.map,
            registry.status,
            registry.get,
            lambda: registry.post("/"),
        ):
            with pytest.raises(UnavailableError, match=f"expected registry1 to answer, but {said}"):
                ask()
    assert not lab.topology().graph.nodes["registry1"]["answers"]


# -- what cannot be, and the end ---------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[MeshLab], Fault], str]] = {
    "an unknown name": (lambda lab: lab.cut("registry1", "regitsry2"), "did you mean 'registry2'"),
    "the same on both sides": (lambda lab: lab.cut("registry1", "registry1"), "registry1 is named twice"),
    "in two groups": (lambda lab: lab.partition(["registry1"], ["registry2", "registry1"]), "registry1 is named twice"),
    "nobody": (lambda lab: lab.cut([], "registry1"), "at least one member on each side"),
    "no groups": (lambda lab: lab.partition(), "at least one group"),
    "negative": (lambda lab: lab.latency("registry1", "registry2", ms=-1), "ms: expected milliseconds, 0 or more"),
    "no number": (lambda lab: lab.latency("registry1", "registry2", ms="5"), "ms: expected milliseconds"),  # type: ignore[arg-type]
    "not a number": (lambda lab: lab.latency("registry1", "registry2", ms=float("nan")), "ms: expected"),
    "none": (lambda lab: lab.loss("registry1", "registry2"), "expected a probability for request= or answer="),
    "above one": (lambda lab: lab.loss("registry1", "registry2", request=1.5), "request: expected a probability"),
    "below zero": (lambda lab: lab.loss("registry1", "registry2", answer=-0.1), "answer: expected a probability"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_an_error_that_changes_nothing(lab: MeshLab, what: str) -> None:
    """Names, sides and numbers are checked before anybody is told."""
    lab.add_registry()
    lab.add_registry()
    do, text = WRONG[what]
    with pytest.raises(LabError, match=re.escape(text)):
        do(lab)
    assert lab.faults.all == []
    assert lab.engine.life("registry1").linked == 0


def test_members_of_another_lab_are_strangers(lab: MeshLab) -> None:
    """A handle of another lab is not taken for one of this."""
    lab.add_registry()
    with MeshLab() as other, pytest.raises(LabError, match="registry1 is one of another"):
        lab.cut("registry1", other.add_registry())


def test_heal_heals_all_and_may_be_repeated(lab: MeshLab) -> None:
    """Also those that a block would heal later."""
    first, second, node = pair(lab)
    lab.latency(first, node, ms=1)
    with lab.cut(first, second) as fault:
        lab.heal()
        lab.heal()
        assert not fault.active
    assert repr(lab) == "<MeshLab 2 registries, 1 node: running>"
    assert lab.table_of("registry1") == {}


def test_the_end_of_the_lab_is_the_end_of_its_faults() -> None:
    """A block around it ends in peace."""
    with MeshLab() as lab:
        lab.add_registry()
        lab.add_registry()
        with lab.cut("registry1", "registry2") as fault:
            lab.terminate()
        assert not fault.active
        with pytest.raises(LabError, match="this lab was terminated"):
            lab.cut("registry1", "registry2")


# -- the picture -------------------------------------------------------------------------------------------


def test_faults_and_paused_members_are_drawn(lab: MeshLab) -> None:
    """In the picture and in its text."""
    first, second, node = pair(lab)
    before = lab.topology().png
    lab.cut(first, second)
    lab.latency(node, first, ms=200)
    node.pause()
    topology = lab.topology()
    assert topology.png != before
    assert topology.mermaid().split("\n    ")[1:] == [
        'node1(["node1"]):::paused',
        'registry1["registry1"]',
        'registry2["registry2"]',
        'node1 -- "200 ms" --> registry1',
        'registry1 -. "cut" .- registry2',
        "classDef paused stroke:#c98a1b,stroke-dasharray:4\n",
    ]
    data, _ = topology._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == topology.png


def test_what_is_wrong_one_way_says_which() -> None:
    """The same both ways is said once."""
    faults = {
        ("a", "b"): Effect(ms=5),
        ("b", "a"): Effect(cut=True),
        ("a", "c"): Effect(ms=5),
        ("c", "a"): Effect(ms=5),
    }
    wrong = wrong_with("a", "b", faults)
    assert wrong is not None
    assert (wrong.label, wrong.cut) == ("5 ms to b; cut to a", True)
    wrong = wrong_with("a", "c", faults)
    assert wrong is not None
    assert (wrong.label, wrong.cut) == ("5 ms", False)
    assert wrong_with("b", "c", faults) is None
    assert wrong_with("a", "b", {("a", "b"): Effect()}) is None


def test_labels_of_faults_cover_nothing_in_a_clique_of_24() -> None:
    """What finds no room has its colour alone."""
    names = [f"registry{number}" for number in range(24)]
    graph = nx.DiGraph()
    for name in names:
        graph.add_node(name, kind="registry", answers=True, paused=False)
    for one, other in combinations(names, 2):
        graph.add_edge(one, other, kind="connect", stands=True)
    faults = dict.fromkeys(ways([names[:12], names[12:]]), Effect(cut=True))
    faults |= dict.fromkeys(ways([names[:6], names[6:12]]), Effect(ms=200, request=0.3))
    topology = Topology(graph, place(graph, {}), [("some", faults)])
    axes = topology._figure.axes[0]
    topology._figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) > 24
    for one_box, other_box in combinations(boxes, 2):
        assert not one_box.overlaps(other_box)
    assert box_of("registry1", "registry").half > 0


def test_what_is_said_of_a_link_stands_on_the_card() -> None:
    """Above and below a flat mesh, and beside an upright one, there is room for all its lines."""
    faults = {("a", "b"): Effect(ms=200, request=0.3, answer=0.1), ("b", "a"): Effect(ms=200)}
    graph = nx.DiGraph()
    graph.add_nodes_from("ab", kind="registry", answers=True, paused=False)
    graph.add_edge("a", "b", kind="connect", stands=True)
    for other in (1.35 + 0j, 1.35j):
        figure = Topology(graph, {"a": 0j, "b": other}, [("some", faults)])._figure
        figure.draw_without_rendering()
        [box] = [text.get_window_extent() for text in figure.axes[0].texts if "loss 30%" in text.get_text()]
        card = figure.bbox
        assert card.x0 < box.x0 < box.x1 < card.x1
        assert card.y0 < box.y0 < box.y1 < card.y1


def test_a_fault_on_no_link_is_told_in_words() -> None:
    """In the text, beneath the picture, and as a comment in the Mermaid text; of many the first few."""
    graph = nx.DiGraph()
    graph.add_nodes_from("abc", kind="registry", answers=True, paused=False)
    graph.add_edge("a", "b", kind="connect", stands=True)
    far = dict.fromkeys(ways(["a", "c"]), Effect(cut=True))
    near = dict.fromkeys(ways(["ac", "b"]), Effect(ms=50))
    places = {"a": 0j, "b": 1.35 + 0j, "c": 0.6 + 1j}
    topology = Topology(graph, places, [("cut a <-> c", far), ("50 ms a, c <-> b", near)])
    assert repr(topology) == "<Topology: 3 registries, 1 link, 2 faults>"
    assert "    %% cut a <-> c (no link)\n" in topology.mermaid()
    assert "50 ms a" not in topology.mermaid()
    figure = topology._figure
    figure.draw_without_rendering()
    [box] = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text() == "cut a <-> c (no link)"]
    assert figure.bbox.x0 < box.x0 < box.x1 < figure.bbox.x1
    assert figure.bbox.y0 < box.y0
    many = Topology(graph, places, [(f"cut {number}", far) for number in range(9)])
    assert many.beside[-2:] == ["cut 3 (no link)", "and 5 more (no link)"]


def test_a_cut_between_members_with_long_names_has_its_cross() -> None:
    """Where labels leave little of a link, there is room for it still."""
    one, other = "Rheinische Zeitungsgruppe", "Mediaplus International"
    graph = nx.DiGraph()
    graph.add_nodes_from([one, other], kind="registry", answers=True, paused=False)
    graph.add_edge(one, other, kind="connect", stands=True)
    faults = dict.fromkeys(ways([[one], [other]]), Effect(cut=True))
    drawn = Topology(graph, {one: 0j, other: -1.43 + 0.75j}, [("some", faults)]).draw()
    crosses = [line for line in drawn.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 2, "one on the link, one in the legend"


@pytest.mark.parametrize("colour", [INK, QUIET, BROKEN, SLOW_INK])
def test_words_in_pictures_can_be_read(colour: str) -> None:
    """On the white of a card with a contrast of 4.5, as WCAG 2.1 asks of small text."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    assert 1.05 / (sum(map(mul, (0.2126, 0.7152, 0.0722), linear)) + 0.05) >= 4.5


def test_a_fault_that_could_not_be_told_never_was(lab: MeshLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while its members are told, a fault is gone with all its traces, and the timeline can be drawn."""
    first, second, _ = pair(lab)
    link = lab.engine.link

    def interrupted(*told: Any) -> None:
        monkeypatch.setattr(lab.engine, "link", link)
        raise KeyboardInterrupt

    monkeypatch.setattr(lab.engine, "link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.cut(first, second)
    assert (len(lab.faults), lab.table_of(first.name), lab.timeline().faults) == (0, {}, [])
    lab.settle()


def test_a_fault_that_does_not_hold_in_time_is_told_with_who_is_late(
    lab: MeshLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every verb of faults takes a timeout: what began is taken back, what is healed is over as soon as it is heard."""
    first, second, _ = pair(lab)
    began = lab.latency(first, second, ms=1)
    take = lab.engine._take  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(lab.engine, "_take", lambda report: None if report.get("linked") == "registry2" else take(report))
        # The other may be late as well, on a busy machine.
        late = r"but (registry1, )?registry2 had not heard of it after 0\.1 s; give it a longer timeout="
        for begin in (
            lambda: lab.cut(first, second, timeout=0.1),
            lambda: lab.partition([first], timeout=0.1),
            lambda: lab.latency(first, second, ms=5, timeout=0.1),
            lambda: lab.loss(first, second, request=1, timeout=0.1),
        ):
            with pytest.raises(LabError, match=f"to hold, {late}; it was taken back"):
                begin()
        assert lab.faults.all == [began]
        with pytest.raises(LabError, match="timeout: expected seconds"):
            began.heal(timeout=-1)
        with pytest.raises(LabError, match=f"expected 1 ms registry1 <-> registry2 to be healed, {late}"):
            lab.heal(timeout=0.1)
    assert lab.faults.active == []
    lab.settle()


def test_the_end_of_a_block_does_not_hide_what_went_wrong_in_it(lab: MeshLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that is late to heal is a note on the block's own error, and an error where there is no other."""
    first, second, _ = pair(lab)
    take = lab.engine._take  # type: ignore[attr-defined]
    for error in (ZeroDivisionError("wrong in the block"), None):
        fault = lab.latency(first, second, ms=1)
        with monkeypatch.context() as patch:
            patch.setattr(lab, "timeout", 0.1)
            patch.setattr(lab.engine, "_take", lambda report: None if "linked" in report else take(report))
            with pytest.raises(type(error) if error else LabError) as raised:
                end(fault, error)
        assert "to be healed, but" in "".join([*getattr(raised.value, "__notes__", ()), str(raised.value)])
        assert not fault.active


def test_the_end_of_a_block_waits_as_long_as_its_beginning(lab: MeshLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that was given a time of its own has it at the end of its block too, and not the lab's."""
    first, second, _ = pair(lab)
    apply, limits = lab._apply, []
    monkeypatch.setattr(lab.faults, "_apply", lambda callers, limit: limits.append(limit) or apply(callers, limit))
    with lab.latency(first, second, ms=1, timeout=7):
        pass
    lab.latency(first, second, ms=1, timeout=8).heal(timeout=9)
    assert limits == [7, 7, 8, 9]


def end(fault: Fault, error: Exception | None) -> None:
    """A block of this fault that ends, with an error or none."""
    with fault:
        if error is not None:
            raise error


def test_what_interrupts_the_end_of_a_block_leaves_nothing_in_force(
    lab: MeshLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while members are told that a cut is over: they are told again."""
    first, second, node = pair(lab)
    link, calls = lab.engine.link, iter([KeyboardInterrupt])

    def interrupted(*args: Any) -> list[str]:
        for error in calls:
            raise error
        return link(*args)

    with monkeypatch.context() as patch:
        fault = lab.cut(first, second)
        patch.setattr(lab.engine, "link", interrupted)
        with pytest.raises(KeyboardInterrupt):
            end(fault, None)
    news_reaches(second, lab, node)


def test_faults_of_two_threads_are_told_as_they_are(lab: MeshLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tells members last tells them what holds then, however long it was held up before."""
    first, second, node = pair(lab)
    fault = lab.cut(first, second)
    tables, stopped, healed = lab._tables, threading.Event(), threading.Event()

    def held_up(names: Any) -> Any:
        made = tables(names)
        stopped.set()
        healed.wait(0.3)
        return made

    monkeypatch.setattr(lab, "_tables", held_up)
    other = threading.Thread(target=lambda: lab.latency(first, node, ms=1))
    other.start()
    stopped.wait(10)
    monkeypatch.setattr(lab, "_tables", tables)
    fault.heal()
    healed.set()
    other.join(10)
    news_reaches(second, lab, node)


def test_a_fault_is_over_even_if_that_cannot_be_written_down(lab: MeshLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk under a kept lab's file is an error of heal, and members hear each other nevertheless."""
    first, second, node = pair(lab)
    fault = lab.cut(first, second)

    def save() -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lab, "save", save)
        with pytest.raises(OSError, match="No space"):
            fault.heal()
    assert [event.what for event in lab.history.events if event.who == fault.label] == ["fault", "healed"]
    news_reaches(second, lab, node)


def test_a_fault_that_two_heal_is_healed_once(lab: MeshLab) -> None:
    """What a button and the end of a block heal at once is over, once."""
    first, second, _ = pair(lab)
    fault = lab.cut(first, second)
    both = threading.Barrier(2)

    def heal() -> None:
        both.wait(10)
        lab.faults._end(fault)

    threads = [threading.Thread(target=heal) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.what for event in lab.history.events if event.who == fault.label] == ["fault", "healed"]


@pytest.mark.parametrize("wrong", [5, [5], [None]])
def test_sides_that_are_no_members_are_refused(lab: MeshLab, wrong: Any) -> None:
    """Whatever stands for a member and is none gets an error that says so."""
    registry = lab.add_registry()
    for verb in (lab.cut, lab.partition):
        with pytest.raises(LabError, match="expected"):
            verb(registry, wrong)
    with pytest.raises(LabError, match="expected"):
        lab.add_registry(connect=wrong)
    assert (len(lab), len(lab.faults)) == (1, 0)
