"""The ledger by steps (FEDERATION.md, rules 2 to 6 and 10): versions, deltas, pages, snapshots, floors, contents.

`Desk` counts the content of every part anew after every step, and sees that no mark falls.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from kodo.core.instructions import Send
from kodo.core.ledger import LAST_EPOCH
from kodo.core.parts import KEPT_EPOCHS, Part
from kodo.core.registry import CHORES
from kodo.errors import InvalidMessageError
from kodo.models import NOTHING, Version
from tests.core.steps import (
    FAR,
    LATER,
    OTHER,
    PEER,
    ZERO,
    Desk,
    delta,
    news,
    record,
    reply,
    saves,
    sends,
    url_of,
    v,
    written,
)


def linked(*names: str, **timing: float) -> Desk:
    """A registry that is connected with others, which have what it has."""
    made = Desk(**{"beacon": 1e6, **timing})
    made.here = set(names or ("peer",))
    for name in names or ("peer",):
        made.follow(made.connect(name))
    made.run(1)
    return made


def owed(send: Send) -> dict[str, tuple[Version, Version]]:
    """Of each origin that a message carries: on what it builds, and where it begins."""
    assert send.parcel is not None
    return {said.origin: (said.base, said.since) for said in send.parcel.ranges}


class TestVersions:
    def test_every_change_counts_one(self) -> None:
        """Each change of the own part raises its count by one; a beat alone does not."""
        made = Desk()
        counts = []
        for _ in range(3):
            made.register()
            made.beat()
            made.beat()
            counts.append(made.registry.own.version.seq)
        assert counts == [2, 3, 4]

    def test_only_the_last_epochs_are_kept(self) -> None:
        """A peer that slept through more restarts than are remembered gets a snapshot; one that did not, a delta."""
        part = Part(PEER).new_epoch(1, "")
        marks = []
        for _ in range(KEPT_EPOCHS + 2):
            part = part.advanced()
            marks.append(part.version)
            part = part.new_epoch(1, "")
        assert not part.follows(marks[0])
        assert [part.follows(mark) for mark in marks[-KEPT_EPOCHS:]] == [True] * KEPT_EPOCHS

    def test_an_epoch_ends_where_it_ended(self) -> None:
        """A mark beyond the end of an epoch is on no history: somebody wrote there on a disk that was lost."""
        part = Part(PEER).new_epoch(1, "aa").advanced()
        part = part.new_epoch(1, "bb").advanced().advanced()
        assert part.follows(Version(1, "aa", 1))
        assert not part.follows(Version(1, "aa", 2))
        assert not part.follows(Version(1, "ab", 1))

    def test_a_nonce_tells_two_starts_apart(self) -> None:
        """A delta on the same seconds and count of another nonce is not taken: it is of another content."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1)))
        made.update("peer", delta("far", v(1, 5, "ce"), v(2, 5, "ce"), record(2, "other")))
        assert made.version("far") == (5, "cd", 1)


class TestDeltas:
    def test_what_builds_on_what_is_here(self) -> None:
        """A delta that builds on the mark, or on less, is taken; one that builds on more, or is old, is not."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(3), record(1, "a"), record(3, "b")))
        made.update("peer", delta("far", v(4), v(5), record(5, "c")))
        assert made.version("far").seq == 3
        made.update("peer", delta("far", v(2), v(6), record(3, "b"), record(5, "c"), record(6, "d")))
        assert (made.version("far").seq, made.listed()) == (6, ["a", "b", "c", "d"])
        made.update("peer", delta("far", v(2), v(6), record(3, "x")))
        assert made.listed() == ["a", "b", "c", "d"]

    def test_a_gap_is_answered_with_the_own_mark(self) -> None:
        """What is not taken changes nothing, and the answer says what is here."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1)))
        done = made.update("peer", delta("far", v(4), v(5), record(5, "c")))
        assert written(done) == []
        assert reply(done).marks == ((FAR, Version(5, "cd", 1)),)

    def test_across_epochs(self) -> None:
        """A delta into a new epoch is taken if the mark is on its history, and not if the epoch ended before it."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(3), record(3)))
        made.update("peer", delta("far", v(2), v(4, 6, ""), record(4, "x"), epochs=[v(2)]))
        assert made.version("far") == (5, "cd", 3)
        made.update("peer", delta("far", v(3), v(4, 6, ""), record(4, "x"), epochs=[v(3)]))
        assert made.version("far") == (6, "", 4)

    def test_any_order_and_doubles(self) -> None:
        """Deltas in any order, each twice, end alike: the same records, version and content."""
        steps = [
            delta("far", ZERO, v(2), record(1, "a"), record(2, "b")),
            delta("far", v(1), v(3), record(2, "b"), record(3, "a", gone=True)),
            delta("far", v(3), v(4), record(4, "a", modified=LATER)),
            delta("far", ZERO, v(4), record(2, "b"), record(4, "a", modified=LATER)),
        ]
        ends = []
        for order in permutations(steps):
            made = linked()
            for step in (*order, *order):
                made.update("peer", step)
            ends.append((made.registry.parts[FAR].version, made.registry.parts[FAR].content, made.listed()))
        assert len(set(map(str, ends))) == 1
        assert ends[0][0] == (5, "cd", 4)

    def test_two_of_an_origin_in_one_message(self) -> None:
        """Of several deltas of an origin in one message the content is kept, whichever of them are taken."""
        made = linked()
        bare = record(2, modified=LATER)
        del bare["node"]["flows"]
        made.update("peer", delta("far", ZERO, v(1), record(1)), delta("far", v(1), v(2), bare))
        assert made.version("far").seq in (1, 2)
        made.update("peer", delta("far", v(1), v(2), bare))
        after = made.row(origin=FAR)
        assert after is not None
        assert after.modified == LATER

    def test_flows_that_did_not_change_are_not_told_again(self) -> None:
        """A record without flows keeps those that are here, and the content knows it."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1)))
        before = made.row(origin=FAR)
        bare = record(2, modified=LATER)
        del bare["node"]["flows"]
        made.update("peer", delta("far", v(1), v(2), bare))
        after = made.row(origin=FAR)
        assert before is not None
        assert after is not None
        assert (after.digest, after.modified) == (before.digest, LATER)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"records": {url_of("node"): {"seq": 1, "node": {"url": url_of("other"), "flows": []}}}},
            {"records": {url_of("node"): {"seq": 1}}},
            {"records": {url_of("node"): record(9)}},
            {"records": {url_of("node"): record(0)}},
        ],
        ids=["another node's", "no node", "after its end", "before its beginning"],
    )
    def test_what_contradicts_itself(self, wrong: dict[str, Any]) -> None:
        """A delta that contradicts itself is refused before anything of the message is taken."""
        made = linked()
        before = made.state()
        good = delta("peer", ZERO, v(1), record(1, "good"))
        with pytest.raises(InvalidMessageError, match="deltas"):
            made.update("peer", good, delta("far", ZERO, v(5)) | wrong)
        assert made.state() == before

    def test_nobody_writes_the_own_part(self) -> None:
        """A delta about this registry's own part writes nothing into it, whatever version it claims."""
        made = linked()
        made.register("mine")
        made.update("peer", delta("self", ZERO, v(9, 900), record(9, "planted")))
        assert made.listed() == ["mine"]


class TestSnapshots:
    def test_it_replaces_everything(self) -> None:
        """A snapshot replaces all that is here of its origin, and nothing of other origins."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(2), record(1, "a"), record(2, "b")))
        made.update("peer", delta("peer", ZERO, v(1), record(1, "c")))
        made.update("peer", delta("far", ZERO, v(5, 6), record(5, "d"), floor=v(3, 6)))
        assert made.listed() == ["c", "d"]

    def test_below_the_floor(self) -> None:
        """A delta does not help who is below the floor: tombstones may be missing in it."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(2), record(1, "a"), record(2, "b")))
        made.update("peer", delta("far", v(2), v(9), record(9, "c"), floor=v(5)))
        assert made.version("far").seq == 2
        made.update("peer", delta("far", v(2), v(9), record(9, "c"), floor=v(2)))
        assert made.version("far").seq == 9

    def test_pages_show_nothing_before_the_last(self) -> None:
        """Of a snapshot in pages nothing is listed, and no mark moves, before its last page."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1, "old")))
        made.update("peer", delta("far", ZERO, v(3, 6), record(3, "a"), complete=False))
        assert (made.listed(), made.version("far")) == (["old"], (5, "cd", 1))
        made.update("peer", delta("far", v(3, 6), v(6, 6), record(6, "b"), complete=False))
        assert (made.listed(), made.version("far")) == (["old"], (5, "cd", 1))
        made.update("peer", delta("far", v(6, 6), v(9, 6), record(9, "c")))
        assert (made.listed(), made.version("far")) == (["a", "b", "c"], (6, "cd", 9))

    def test_pages_that_end_below_the_mark(self) -> None:
        """The first pages of a snapshot may end below the mark: it is taken once its last page is above."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(5), record(5, "old")))
        made.update("peer", delta("far", ZERO, v(2), record(2, "a"), complete=False, floor=v(1)))
        made.update("peer", delta("far", v(2), v(4), record(4, "b"), complete=False, floor=v(1)))
        assert made.listed() == ["old"]
        made.update("peer", delta("far", v(4), v(8), record(8, "c"), floor=v(1)))
        assert (made.listed(), made.version("far").seq) == (["a", "b", "c"], 8)

    def test_pages_of_a_difference_that_end_below_the_mark(self) -> None:
        """The first pages of a difference may end below the mark as well, since another peer was faster."""
        made = linked("peer", "other")
        made.update("peer", delta("far", ZERO, v(1), record(1, "a")))
        made.update("other", delta("far", v(1), v(4), record(2, "b"), record(4, "d")))
        made.update("peer", delta("far", v(1), v(3), record(2, "b"), complete=False))
        made.update("peer", delta("far", v(3), v(6), record(4, "d"), record(6, "f"), complete=False))
        made.update("peer", delta("far", v(6), v(9), record(9, "a", gone=True)))
        assert (made.listed(), made.version("far").seq) == (["b", "d", "f"], 9)

    def test_a_node_on_two_pages(self) -> None:
        """A node that changes between two pages is on both, and counts once."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1, "old")))
        made.update("peer", delta("far", v(1), v(3), record(3, "a"), complete=False))
        made.update("peer", delta("far", v(3), v(6), record(4, "old", gone=True), record(6, "a", modified=LATER)))
        assert (made.listed(), made.version("far").seq) == (["a"], 6)

    def test_a_snapshot_begins_anew(self) -> None:
        """A snapshot that begins again forgets the pages of the one before."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(3), record(3, "a"), complete=False))
        made.update("peer", delta("far", ZERO, v(4), record(4, "b"), complete=False))
        made.update("peer", delta("far", v(4), v(9), record(9, "c")))
        assert made.listed() == ["b", "c"]

    def test_who_is_faster_wins(self) -> None:
        """When another peer completes the part, pages that were under way are forgotten, and none continues them."""
        made = linked("peer", "other")
        made.update("peer", delta("far", ZERO, v(3), record(3, "a"), complete=False))
        made.update("other", delta("far", ZERO, v(5), record(5, "b")))
        made.update("peer", delta("far", v(3), v(7), record(7, "c"), floor=v(6)))
        assert (made.listed(), made.version("far").seq) == (["b"], 5)
        assert made.store.staged == {}


class TestFloors:
    def test_tombstones_go_after_a_while(self) -> None:
        """Own tombstones are dropped after their time and the floor rises over them; younger ones stay."""
        made = linked(tombstones=1600.0, beacon=10.0)
        made.register("a")
        made.register("b")
        made.farewell("a")
        made.run(1000)
        made.farewell("b")
        assert made.registry.own.floor == NOTHING
        made.run(800)
        assert made.registry.own.floor == made.registry.own.version.at(3)
        assert (made.row("a"), made.row("b") is not None) == (None, True)
        made.run(1000)
        assert made.row("b") is None

    def test_who_is_below_gets_a_snapshot(self) -> None:
        """A peer that has not seen the tombstones is owed everything; one that has, the difference alone."""
        made = linked("peer", tombstones=1600.0, beacon=10.0)
        made.register("a")
        mark = list(made.registry.own.version)
        made.farewell("a")
        seen = list(made.registry.own.version)
        made.run(1800)
        made.register("b")
        made.run(1)
        for said, base in ((mark, NOTHING), (seen, Version(*seen))):
            offer = reply(made.connect("peer", marks={url_of("self"): said})).offer
            assert offer is not None
            assert [(part.base, part.since) for part in offer.ranges] == [(base, base)]

    def test_after_a_restart_they_are_remembered(self) -> None:
        """Tombstones from before a restart are dropped in their time, and the floor lies in the epoch they are of."""
        made = linked(tombstones=1600.0, beacon=10.0)
        made.register("a")
        made.farewell("a")
        old = made.registry.own.version
        made.restart()
        made.run(1800)
        assert made.registry.own.floor == old
        assert made.row("a") is None

    def test_restarts_put_nothing_off(self) -> None:
        """Tombstones are dropped in their time, however often the registry starts meanwhile."""
        made = linked(tombstones=1600.0, beacon=10.0)
        made.register("a")
        made.farewell("a")
        for _ in range(7):
            made.restart()
            made.run(300)
        assert made.row("a") is None

    def test_of_who_lapsed_as_well(self) -> None:
        """The tombstone of a node that stayed away is as old as its end, also after a restart, not as its last beat."""
        made = linked("peer", lease=10.0, retention=3000.0, tombstones=1600.0, beacon=10.0)
        made.register("a")
        made.beat("a")
        for _ in range(310):
            made.run(10)
            made.update("peer")
        assert made.listed() == []
        made.restart()
        made.run(1000)
        assert made.row("a") is not None
        made.run(1000)
        assert made.row("a") is None

    def test_replicas_drop_what_the_origin_dropped(self) -> None:
        """A replica drops tombstones below the floor of the origin, and only those."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(2), record(1, "a", gone=True), record(2, "b", gone=True)))
        made.update("peer", delta("far", v(2), v(3), record(3, "c"), floor=v(1)))
        assert made.row("a", FAR) is None
        assert made.row("b", FAR) is not None


class TestContents:
    def test_what_does_not_come_out_is_not_taken(self) -> None:
        """A difference that would not come to what its origin holds is not taken: a snapshot is asked for."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1)))
        done = made.update("peer", delta("far", v(1), v(2), record(2, "x"), content="0" * 16))
        assert (made.listed(), made.version("far").seq) == (["node"], 1)
        assert made.registry.ledger.doubted == {FAR}
        assert reply(done).marks == ((FAR, Version(5, "", 1)),)

    def test_nor_a_snapshot_that_was_spoiled(self) -> None:
        """A snapshot that is not what its origin has is not taken, and what is here is not doubted for it."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1)))
        made.update("peer", delta("far", ZERO, v(2), record(2, "x"), content="0" * 16))
        assert (made.listed(), made.version("far").seq) == (["node"], 1)
        assert made.registry.ledger.doubted == set()

    @pytest.mark.parametrize("paged", [False, True])
    def test_what_comes_out_is(self, paged: bool) -> None:
        """Deltas that say what comes out are taken, in one message or in pages."""
        one, two = linked(), linked()
        one.update("peer", delta("far", ZERO, v(2), record(1), record(2, "x")))
        content = f"{one.registry.parts[FAR].content:016x}"
        if paged:
            two.update("peer", delta("far", ZERO, v(1), record(1), complete=False, content=content))
            two.update("peer", delta("far", v(1), v(2), record(2, "x"), content=content))
        else:
            two.update("peer", delta("far", ZERO, v(1), record(1)))
            two.update("peer", delta("far", v(1), v(2), record(2, "x"), content=content))
        assert two.listed() == ["node", "x"]

    def test_a_part_that_was_spoiled_on_disk(self) -> None:
        """After a start on a spoiled disk replicas are doubted, and the own part begins anew."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1)))
        made.register("mine")
        before = made.registry.own.version
        for at, row in list(made.store.records.items()):
            made.store.records[at] = replace(row, organization="spoiled")
        made.restart()
        assert made.registry.ledger.doubted == {FAR}
        assert made.registry.own.version.seconds > before.seconds + 1
        assert made.registry.own.floor == made.registry.own.version

    def test_a_spoiled_part_that_nobody_else_has(self) -> None:
        """A copy in doubt of which no peer has another is given up after a while: nobody can mend it."""
        made = linked(beacon=1000.0)
        made.update("peer", delta("far", ZERO, v(1), record(1)))
        for at, row in list(made.store.records.items()):
            made.store.records[at] = replace(row, organization="spoiled")
        greeting = next(send for send in sends(made.restart()) if send.route == "/connect")
        made.delivered(greeting, marks={}, providers={"url": url_of("peer"), "feed": True})
        assert made.listed() == ["node"]
        made.here = {"peer"}
        made.run(3 * made.registry.timing.tombstones / CHORES)
        assert made.listed() == []
        assert FAR not in made.registry.parts

    def test_a_disk_as_it_was(self) -> None:
        """After a start on the disk as it was nothing is doubted, and the own part can be followed."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1)))
        made.register("mine")
        before = made.registry.own.version
        made.restart()
        assert made.registry.ledger.doubted == set()
        assert made.registry.own.follows(before)


class TestSurpass:
    def test_who_is_behind_its_own_past(self) -> None:
        """When a peer knows more of the own part than is here, it goes on in an epoch above, told as a snapshot."""
        made = linked()
        made.follow(made.register())
        made.run(1)
        high = v(50, 5000)
        done = made.connect("other", marks={url_of("self"): high})
        own = made.registry.own
        assert own.version > Version(*high)
        assert (own.floor, own.epochs) == (own.version, ())
        assert made.listed() == ["node"]
        offer = reply(done).offer
        assert offer is not None
        assert [said.base for said in offer.ranges] == [NOTHING]
        assert [owed(send) for send in news(done)] == [{own.origin: (NOTHING, NOTHING)}]

    @pytest.mark.parametrize("way", ["update", "delta", "answer"])
    def test_whichever_message_says_so(self, way: str) -> None:
        """The marks of an update, a delta about the own part, and the marks of an answer say it as well."""
        made = linked()
        made.here = set()
        (send,) = sends(made.register())
        high = v(50, 5000)
        match way:
            case "update":
                made.update("peer", marks={url_of("self"): high})
            case "delta":
                made.update("peer", delta("self", ZERO, high))
            case _:
                made.delivered(send, marks={url_of("self"): high})
        assert made.registry.own.version > Version(*high)

    def test_what_is_known_already_changes_nothing(self) -> None:
        """A peer that knows the own part as it is, or less, changes nothing."""
        made = linked()
        made.register()
        version = made.registry.own.version
        made.update("peer", marks={url_of("self"): list(version)})
        made.update("peer", marks={url_of("self"): list(version.at(0))})
        assert made.registry.own.version == version

    def test_above_which_there_is_nothing(self) -> None:
        """A mark above which no epoch fits into a version is not followed."""
        made = linked()
        made.update("peer", marks={url_of("self"): v(1, LAST_EPOCH + 1)})
        assert made.registry.own.version.seconds == 100
        made.update("peer", marks={url_of("self"): v(1, LAST_EPOCH)})
        assert made.registry.own.version.seconds == LAST_EPOCH + 1


class TestWhatIsOwed:
    def test_the_difference(self) -> None:
        """What is owed is the difference to what the peer acknowledged, however many changes; not a queue."""
        made = linked()
        made.follow(made.register("a"))
        made.here = set()
        acked = made.registry.own.version
        made.run(1)
        made.register("b")
        made.register("c")
        made.lost("peer")
        (send,) = news(made.run(30))
        assert owed(send) == {made.registry.key: (acked, acked)}

    def test_what_the_peer_says_counts(self) -> None:
        """A peer that says it has less than it was sent is owed from there; one that lost all of it, everything."""
        made = linked()
        made.follow(made.register("a"))
        made.here = set()
        made.run(1)
        (send,) = news(made.register("b"))
        made.delivered(send, marks={})
        assert made.registry.peers[PEER].acked[made.registry.key] == NOTHING

    def test_nothing_is_told_to_where_it_came_from(self) -> None:
        """No peer is owed its own part, nor what it told itself; the others are."""
        made = linked("peer", "other")
        made.here = set()
        done = made.update("peer", delta("peer", ZERO, v(1), record(1)), delta("far", ZERO, v(1), record(1, "x")))
        assert [send.peer for send in news(done)] == [OTHER]
        assert set(owed(news(done)[0])) == {PEER, FAR}

    def test_the_save_comes_first(self) -> None:
        """What a Reply or a Send rests on is saved in the same step, before it."""
        made = linked()
        made.here = set()
        done = made.register()
        kinds = [type(step).__name__ for step in done]
        assert kinds == ["Save", "Reply", "Send", "Wake"]
        assert not saves(done)[0].lazy
