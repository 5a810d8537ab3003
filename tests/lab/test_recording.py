"""Records of labs, and looking at them later."""

from __future__ import annotations

import gc
import json
import weakref
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from kodo.errors import LabError
from kodo.lab import MeshLab
from kodo.lab.replay import Replay
from tests.waiting import until


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mesh of two registries that was cut, in which a node changed its flows, and a registry was killed."""
    path = tmp_path_factory.mktemp("record") / "mesh.jsonl"
    with MeshLab("demo", record=path) as lab:
        first = lab.add_registry()
        second = lab.add_registry(connect=first)
        node = lab.add_node(connect=first, flows=["old"])
        lab.settle()
        listed(path, "registry2", "old")
        with lab.cut(first, second):
            node.restart(flows=["new"])
            listed(path, "registry1", "new")
            until(lambda: lab.timeline().messages[-1].outcome == "cut", "the push to be seen to hang")
        lab.settle()
        listed(path, "registry2", "new")
        second.kill()
    return path


def listed(path: Path, registry: str, name: str) -> None:
    """Wait until the record says that a registry lists a flow."""

    def told() -> bool:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        listings = [line["rows"] for line in lines if line.get("listing") == registry]
        return bool(listings) and [row["name"] for row in listings[-1]] == [name]

    until(told, f"{name} to be recorded of {registry}")


def moment(replay: Replay, what: str, who: str) -> float:
    """When something happened for the last time."""
    return [seconds for seconds, happened, whom in replay.events if (happened, whom) == (what, who)][-1]


def test_a_record_is_looked_at_moment_by_moment(record: Path) -> None:
    """What was listed where, who was there, what was cut, and which messages had been sent."""
    replay = MeshLab.replay(record)
    assert repr(replay) == "<Replay demo, 2 registries, 1 node>"
    assert replay.damaged == 0
    healed = moment(replay, "healed", "cut registry1 <-> registry2")
    during, end = replay.at(healed - 0.001), replay.at(replay.seconds)
    assert repr(during) == "<Moment: 2 registries, 1 node>"
    assert during.states == {"registry1": "running", "registry2": "running", "node1": "running"}
    assert end.states["registry2"] == "ended"
    assert [(row["name"], row["registries"]) for row in during.flows(by="name").rows] == [
        ("new", ["registry1"]),
        ("old", ["registry2"]),
    ]
    assert [(row["name"], row["registries"]) for row in end.flows().rows] == [("new", ["registry1"])]
    assert "cut" in during.topology().mermaid()
    assert "cut" not in end.topology().mermaid()
    assert not end.topology().graph.nodes["registry2"]["answers"]
    assert len(replay.at(0).timeline()) == 0
    assert "cut" in during.timeline().frame["outcome"].tolist()
    assert set(end.timeline().frame["outcome"]) == {"200"}
    assert len(end.timeline().faults) == 1
    assert during.topology().png.startswith(b"\x89PNG")
    assert during.topology().places["registry1"] == end.topology().places["registry1"]
    with pytest.raises(LabError, match="expected seconds from 0 to"):
        replay.at(-1)


def test_a_slider_shows_any_moment(record: Path) -> None:
    """Its text is constant, and it begins at the end."""
    replay = MeshLab.replay(record)
    player = replay.show()
    data = player._repr_mimebundle_()
    assert data["text/plain"] == repr(player) == "<Player of <Replay demo, 2 registries, 1 node>>"
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "new" in player.box.children[3].value
    assert data["text/html"].endswith(player.box.children[3].value)
    image = data["text/html"].partition("base64,")[2].partition('"')[0]
    assert b64decode(image).count(b"<g>") == 3
    player.slider.value = 0
    assert player.box.children[3].value == "<div><i>no flows</i></div>"
    assert bytes(player.box.children[1].value).startswith(b"\x89PNG")


def test_a_record_that_was_cut_off_is_good_up_to_there_and_says_so(record: Path, tmp_path: Path) -> None:
    """Also with a line in the middle that is something else."""
    whole = record.read_bytes()
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(whole.rstrip()[:-1])
    replay = MeshLab.replay(cut)
    assert repr(replay) == "<Replay demo, 2 registries, 1 node; 1 damaged line left out>"
    assert len(replay.at(replay.seconds).timeline()) > 0
    lines = whole.splitlines()
    broken = [
        b"\xff",
        b"[]",
        b'{"at": "x"}',
        b'{"at": 1, "message": {}}',
        b'{"at": 1, "message": {"id": 1}}',
        b"{" * 9999,
    ]
    cut.write_bytes(b"\n".join([lines[0], *broken, *lines[1:]]))
    assert MeshLab.replay(cut).damaged == len(broken)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}\n", b'{"kodo": "recording", "version": 99, "at": 0, "name": null}']
)
def test_what_is_no_record_is_said_not_to_be(tmp_path: Path, content: bytes) -> None:
    """Another file is not taken for an empty one."""
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(LabError, match="to be a record of a lab"):
        MeshLab.replay(tmp_path / "x.jsonl")
    with pytest.raises(LabError, match="but no such file or directory; MeshLab"):
        MeshLab.replay(tmp_path / "none.jsonl")


def test_recording_begins_and_ends_at_any_time(tmp_path: Path) -> None:
    """Who is there by then is in it; stopping twice does nothing; a lab that is recorded can be forgotten."""
    lab = MeshLab()
    node = lab.add_node(connect=lab.add_registry(), flows=["a"])
    lab.settle()
    recording = lab.record(tmp_path / "later.jsonl")
    assert repr(recording) == "<Recording to later.jsonl: running>"
    recording.stop()
    recording.stop()
    assert repr(recording) == "<Recording to later.jsonl: ended>"
    replay = MeshLab.replay(tmp_path / "later.jsonl")
    assert [row["name"] for row in replay.at(replay.seconds).flows().rows] == ["a"]
    other = lab.record(tmp_path / "other.jsonl")
    gone = weakref.ref(lab)
    del lab, node
    until(lambda: gc.collect() >= 0 and gone() is None, "the lab to be collected")
    until(lambda: "ended" in repr(other), "the recording to end")
    until(lambda: '{"end":true' in (tmp_path / "other.jsonl").read_text(), "its last line")


def test_a_disk_that_is_full_breaks_off_the_record_and_not_the_lab(lab: MeshLab, tmp_path: Path) -> None:
    """A file that cannot be written is refused; one that can be no longer is said to be broken off, and all goes on."""
    with pytest.raises(
        LabError, match="/dev/full: expected a file to write, but no space left on device; choose another"
    ):
        lab.record("/dev/full")
    with pytest.raises(LabError, match=r"nowhere/record\.jsonl: expected a file to write, but its folder is not there"):
        lab.record(tmp_path / "nowhere/record.jsonl")
    recording = lab.record(tmp_path / "record.jsonl")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        recording._file.close()
        recording._file = full
        registry = lab.add_registry()
        registry.kill()
    assert registry.state == "killed"
    assert repr(recording) == "<Recording to record.jsonl: broken off, no space left on device>"
    recording.stop()


def test_lines_that_say_impossible_things_are_left_out(tmp_path: Path) -> None:
    """A fault that never began, rows without a node, a moment that is none: the rest of the record is shown."""
    url, utc = "http://127.0.0.1:1", "2026-01-01T00:00:00.000000Z"
    note = {"id": "a", "direction": "sent", "by": "registry1", "start": 1.0, "end": 2.0, "peer": url}
    note |= {"route": "/connect", "nodes": None, "bytes": 1, "outcome": "200", "began": utc}
    entries: list[dict[str, Any]] = [
        {"kodo": "recording", "version": 1, "name": None, "at": 0.0},
        {"member": "registry1", "kind": "registry", "url": url, "at": 0.0},
        {"event": "started", "who": "registry1", "utc": utc, "at": 0.0},
        {"event": "healed", "who": "cut a <-> b", "utc": utc, "at": 1.0},
        {"listing": "registry1", "rows": [{"name": "test"}], "at": 1.0},
        {"message": note, "at": 1.0},
        {"event": "exited", "who": "registry1", "utc": utc, "at": 1.0, "effects": [["a"]]},
        {"event": "exited", "who": "registry1", "utc": utc, "at": 1.0, "setup": {}},
        {"end": True, "at": float("inf")},
    ]
    (tmp_path / "record.jsonl").write_text("\n".join(map(json.dumps, entries)))
    replay = MeshLab.replay(tmp_path / "record.jsonl")
    assert repr(replay) == "<Replay 1 registry; 5 damaged lines left out>"
    moment = replay.at(replay.seconds)
    assert (len(moment.timeline()), repr(moment.flows())) == (0, "no flows")
    assert moment.states == {"registry1": "running"}
