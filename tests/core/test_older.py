"""Older services (FEDERATION.md, rule 15): what they tell is written here, on their behalf, and yields to better."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from kodo.catalogue import Catalogue
from kodo.core.instructions import Parcel, Range
from kodo.models import NOTHING, canonical
from tests.core.steps import (
    FAR,
    FLOWS,
    LATER,
    NODE,
    NOW,
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

OLD = canonical("http://old:1")
EARLY = "2024-12-25T18:00:00.000000"


def node(name: str = "node", modified: str | None = NOW, **fields: Any) -> dict[str, Any]:
    said = {"url": url_of(name), "flows": [{"url": "/a", "name": "a"}], **fields}
    return said if modified is None else {**said, "modified": modified, "created": EARLY, "heartbeat": modified}


def linked(*older: str, **timing: float) -> Desk:
    """A registry that is connected with one like it, and with older services."""
    made = Desk(**{"beacon": 1e6, **timing})
    made.here = {"peer", *older}
    made.follow(made.connect("peer"))
    for name in older or ("old",):
        made.here.add(name)
        made.follow(made.connect_older(name))
    made.run(1)
    return made


class TestTaken:
    def test_it_is_written_here(self) -> None:
        """News of an older service becomes part of the own part, on its behalf, with its times, and is told on."""
        made = linked()
        done = made.older("old", node())
        (entry,) = written(done)
        assert (entry.origin, entry.via) == (made.registry.key, OLD)
        assert (entry.node.created, entry.node.modified, entry.node.status) == (EARLY, NOW, "unknown")
        assert [send.peer for send in news(done)] == [PEER]

    def test_it_is_not_passed_back(self) -> None:
        """What an older service told is not told to it; other older services are told, but not what is theirs."""
        made = linked("old", "elder")
        done = made.follow(made.older("old", node())) + made.run(10)
        assert {send.peer for send in news(done)} == {PEER, canonical(url_of("elder"))}
        done = made.follow(made.register("mine")) + made.run(10)
        (to_old,) = [send for send in news(done) if send.peer == OLD]
        assert to_old.parcel is not None
        assert (to_old.parcel.form, to_old.parcel.unsaid, to_old.marks) == ("plain", OLD, None)

    @pytest.mark.parametrize("origin", ["self", "far"])
    @pytest.mark.parametrize(("modified", "taken"), [(EARLY, False), (NOW, False), (LATER, True)])
    def test_only_what_is_later(self, origin: str, modified: str, taken: bool) -> None:
        """It is taken only if it is later than any record of that node, whoever wrote it."""
        made = Desk()
        made.connect("peer")
        if origin == "self":
            made.register()
        else:
            made.update("peer", delta("far", ZERO, v(1), record(1)))
        assert bool(written(made.older("old", node(modified=modified)))) is taken

    @pytest.mark.parametrize(("modified", "taken"), [(EARLY, False), (LATER, True)])
    def test_a_node_that_left(self, modified: str, taken: bool) -> None:
        """An old record of a node that has left is not taken; one that is later than its leaving is."""
        made = Desk()
        made.register()
        made.farewell("node")
        made.older("old", node(modified=modified))
        assert (made.listed() == ["node"]) is taken

    def test_without_times(self) -> None:
        """A node without times is stamped by the receiver."""
        (entry,) = written(Desk().older("old", node(modified=None)))
        assert (entry.node.created, entry.node.modified, entry.node.heartbeat) == (NOW, NOW, NOW)

    def test_created_stays(self) -> None:
        """A node that is known keeps its `created` when an older service gives none."""
        made = Desk()
        made.register()
        (entry,) = written(made.older("old", {"url": url_of("node"), "flows": FLOWS, "modified": LATER}))
        assert entry.node.created == NOW

    def test_an_end_is_that_of_its_own_alone(self) -> None:
        """A node without flows counts where an older service told of it before; what others wrote it does not end."""
        made = Desk()
        gone = {"url": url_of("node"), "flows": [], "modified": LATER}
        made.older("old", node())
        assert len(written(made.older("old", gone))) == 1
        made = Desk()
        made.register()
        assert written(made.older("old", gone)) == []

    def test_nobody_else_speaks_for_the_own_node(self) -> None:
        """What an older service says of this service itself is not taken."""
        made = Desk()
        assert written(made.older("old", node("self", LATER))) == []

    def test_a_lapsed_record_does_not_stand_in_the_way(self) -> None:
        """A record that lapsed says nothing of what others know: an older time is taken after it."""
        made = linked()
        made.older("old", node(modified=LATER))
        made.farewell("old")
        assert made.listed() == []
        made.older("other", node(modified=NOW))
        assert made.listed() == ["node"]


class TestYielding:
    def test_to_a_registry_that_speaks_deltas(self) -> None:
        """An adopted record yields to any part of a registry that speaks deltas, even to an older time."""
        made = linked()
        made.older("old", node(modified=LATER))
        made.update("peer", delta("peer", ZERO, v(1), record(1, modified=EARLY)))
        own = made.row()
        assert own is not None
        assert (own.gone, own.left) == (True, False)
        assert made.listed() == ["node"]

    def test_with_the_last_page_alone(self) -> None:
        """It yields once the other part shows, not to its first pages: the node is listed at every moment."""
        made = linked()
        made.older("old", node(modified=LATER))
        made.update("peer", delta("peer", ZERO, v(1), record(1, modified=EARLY), complete=False))
        assert made.status() == "unknown"
        made.update("peer", delta("peer", v(1), v(2), record(2, "other"), floor=ZERO))
        own = made.row()
        assert own is not None
        assert own.gone
        assert made.listed() == ["node", "other"]

    @pytest.mark.parametrize("said", [{"adopted": True}, {"gone": True}])
    def test_not_to_what_others_adopted(self, said: dict[str, Any]) -> None:
        """It does not yield to what another registry adopted, nor to an older leaving."""
        made = linked()
        made.older("old", node(modified=LATER))
        made.update("peer", delta("peer", ZERO, v(1), record(1, modified=EARLY, **said)))
        own = made.row()
        assert own is not None
        assert not own.gone

    def test_a_registration_here_does_not(self) -> None:
        """What registered here itself yields to nobody's older record."""
        made = linked()
        made.register()
        made.update("peer", delta("peer", ZERO, v(1), record(1, modified=LATER)))
        own = made.row()
        assert own is not None
        assert not own.gone

    def test_to_a_registration_here(self) -> None:
        """A node that was adopted and registers here is on nobody's behalf any more, and does not lapse."""
        made = linked()
        made.older("old", node())
        made.register()
        made.beat()
        made.farewell("old")
        assert made.listed() == ["node"]


class TestLapsing:
    def test_with_the_peer_that_leaves(self) -> None:
        """When the older service leaves, what was adopted from it lapses, and nothing else."""
        made = linked("old", "elder")
        made.older("old", node("a"))
        made.older("elder", node("b"))
        made.register("c")
        made.farewell("old")
        assert made.listed() == ["b", "c"]

    def test_with_the_peer_that_is_gone(self) -> None:
        """When nothing was heard of the older service for the grace time, what was adopted from it lapses."""
        made = linked(grace=1600.0, tombstones=1600.0, beacon=10.0)
        made.older("old", node())
        made.here, made.away = {"peer"}, {"old"}
        made.follow(made.register("mine"))
        for _ in range(80):
            made.run(20)
            made.update("peer")
        assert made.listed() == ["mine", "node"]
        for _ in range(10):
            made.run(20)
            made.update("peer")
        assert made.listed() == ["mine"]
        assert OLD not in made.registry.peers

    def test_with_the_time_of_who_never_connected(self) -> None:
        """What a service told that never connected lapses after the grace time, unless it is told again meanwhile."""
        made = Desk(grace=1600.0, tombstones=1600.0)
        made.older("old", node("a"), node("b"))
        for _ in range(79):
            made.run(20)
            made.register("mine")
        assert made.listed() == ["a", "b", "mine"]
        made.older("old", node("b", modified=made.utc()))
        for _ in range(10):
            made.run(20)
            made.register("mine")
        assert made.listed() == ["b", "mine"]

    def test_restarts_put_nothing_off(self) -> None:
        """An older service that is gone is given up after the grace time, however often this one starts meanwhile."""
        made = linked(grace=1600.0, tombstones=1600.0, beacon=10.0)
        made.older("old", node())
        made.here, made.away = {"peer"}, {"old"}
        for _ in range(7):
            made.restart()
            for _ in range(15):
                made.run(20)
                made.update("peer")
        assert made.listed() == []
        assert OLD not in made.registry.peers

    def test_after_a_restart(self) -> None:
        """On whose behalf a record was written is known after a restart."""
        made = linked()
        made.older("old", node())
        made.restart()
        made.farewell("old")
        assert made.listed() == []


class TestRemoval:
    def test_it_has_empty_flows(self) -> None:
        """A removal is told to an older service as the node with empty flows, at a time above its last."""
        made = linked("old")
        store = Catalogue(url_of("self"))
        for save in saves(made.register() + made.farewell("node")):
            store.write(save)
        store.commit()
        content = store.content(Parcel("plain", (Range(made.registry.key, NOTHING, NOTHING),), OLD), 2**20)
        store.close()
        (told,) = orjson.loads(orjson.dumps(content.nodes)).values()
        assert (told["flows"], told["modified"] > NOW) == ({}, True)

    def test_from_an_older_service(self) -> None:
        """An older service's removal, the node with empty flows, is taken like any other news of it."""
        made = linked()
        made.older("old", node())
        (entry,) = written(made.older("old", node(modified=LATER, flows=[])))
        assert entry.node.flows == {}


class TestHandshake:
    def test_it_is_offered_plainly(self) -> None:
        """An older service that connects is offered nodes alone, no deltas, and reads no marks."""
        made = Desk()
        made.register()
        answer = reply(made.connect_older("old"))
        assert answer.offer is not None
        assert (answer.offer.form, answer.offer.unsaid, answer.marks) == ("plain", None, None)

    def test_it_hears_of_nothing_that_is_gone(self) -> None:
        """An older service that connects first is offered what is listed, and of what is gone what it brings itself."""
        made = Desk()
        store = Catalogue(url_of("self"))
        for save in saves(made.register() + made.register("left") + made.farewell("left")):
            store.write(save)
        store.commit()
        both = {url_of("node"), url_of("left")}
        for name, brought, told in (("old", [], both - {url_of("left")}), ("old", [], both), ("elder", ["left"], both)):
            nodes = [node(left, modified=EARLY) for left in brought]
            offer = reply(made.connect_older(name, nodes=nodes)).offer
            assert offer is not None
            assert store.content(offer, 2**20).nodes.keys() == told, (name, brought)
        store.close()

    def test_one_that_was_renewed(self) -> None:
        """A service that answers with marks where none were expected, or without them, is greeted anew."""
        made = linked()
        made.here = set()
        (send,) = [send for send in sends(made.register()) if send.peer == OLD]
        done = made.delivered(send, marks={}) + made.run(1)
        assert [send.route for send in sends(done) if send.peer == OLD] == ["/connect"]


def test_adopted_records_of_others_are_marked() -> None:
    """A replica knows which records of a part its origin had adopted."""
    made = linked()
    made.update("peer", delta("far", ZERO, v(1), record(1, adopted=True)))
    row = made.store.records[FAR, NODE]
    assert row.via == FAR
