"""Leaving (PROTOCOL.md, Beyond): `DELETE /connect` here, `/disconnect` there, for nodes and for registries."""

from __future__ import annotations

from typing import Any

import pytest

from kodo.core import events as ev
from kodo.core.instructions import Instruction, Send
from kodo.core.registry import DEADLINE, FAREWELL_DEADLINE, Profile
from kodo.errors import InvalidMessageError, UnknownServiceError
from kodo.models import Farewell, Version, canonical
from tests.core.steps import (
    FAR,
    LATER,
    OTHER,
    PEER,
    PROFILE,
    ZERO,
    Desk,
    delta,
    news,
    record,
    refuses,
    replies,
    reply,
    saved,
    sends,
    url_of,
    v,
    written,
)


def linked(*names: str, profile: Profile = PROFILE) -> Desk:
    """A registry that is connected with others, which have what it has."""
    made = Desk(profile, beacon=1e6)
    made.here = set(names)
    for name in names:
        made.follow(made.connect(name))
    made.run(1)
    made.here = set()
    return made


def goodbye(made: Desk, name: str, version: list[Any] | None = None) -> ev.Disconnect:
    return ev.Disconnect(
        made.at(), ticket=5, message=Farewell.model_validate({"url": url_of(name), "version": version})
    )


def farewells(done: list[Instruction]) -> list[Send]:
    return [send for send in sends(done) if send.route == "/disconnect"]


def left(done: list[Instruction]) -> bool:
    """Whether the `DELETE /connect` was answered."""
    return any(answer.ticket == 4 for answer in replies(done))


class TestANodeLeaves:
    def test_it_is_gone_everywhere(self) -> None:
        """A node that leaves is a tombstone with a time above its last, and the peers are told."""
        made = linked("peer")
        made.here = {"peer"}
        made.follow(made.register())
        made.run(1)
        done = made.farewell("node")
        (entry,) = written(done)
        assert entry.gone
        assert (entry.node.modified or "") == "2024-12-25T18:03:13.989990"
        assert made.listed() == []
        assert [send.peer for send in news(done)] == [PEER]

    @pytest.mark.parametrize("ahead", ["2024-12-25T18:03:13.500000", "2024-12-25T18:09:00.000000"])
    def test_whoever_else_knows_it(self, ahead: str) -> None:
        """A node that leaves the mesh is gone though it is registered elsewhere, also by a clock that is ahead."""
        made = linked("peer")
        made.register()
        made.update("peer", delta("far", ZERO, v(1), record(1, modified=ahead)))
        assert made.listed() == ["node"]
        made.run(2)
        made.farewell("node", everywhere=True)
        assert made.listed() == []

    def test_who_has_moved(self) -> None:
        """A node that leaves this registry alone is listed as it registered elsewhere meanwhile."""
        made = linked("peer")
        made.register()
        made.update("peer", delta("far", ZERO, v(1), record(1, modified=LATER)))
        made.run(2)
        made.farewell("node")
        assert made.listed() == ["node"]

    def test_who_hears_of_it_late(self) -> None:
        """What was written elsewhere before a node left the mesh, and comes in after, is not listed."""
        made = linked("peer")
        made.register()
        made.run(2)
        made.farewell("node", everywhere=True)
        made.update("peer", delta("far", ZERO, v(1), record(1, modified="2024-12-25T18:03:13.500000")))
        assert made.listed() == []

    def test_the_reply(self) -> None:
        """`/disconnect` of a node that is registered here is answered 200."""
        made = Desk()
        made.register()
        assert reply(made.farewell("node")).ticket == 5

    def test_unknown(self) -> None:
        """`/disconnect` of a service nobody knows, of a node known through a peer only, or of one that left, is 404."""
        made = linked("peer")
        refuses(made, goodbye(made, "node"), UnknownServiceError)
        made.update("peer", delta("peer", ZERO, v(1), record(1)))
        refuses(made, goodbye(made, "node"), UnknownServiceError)
        made.register("other")
        made.farewell("other")
        refuses(made, goodbye(made, "other"), UnknownServiceError)

    def test_the_own_url(self) -> None:
        """A service cannot be told that it leaves itself: 422."""
        made = Desk()
        refuses(made, goodbye(made, "self"), InvalidMessageError, "url")

    def test_older_registrations_elsewhere_are_hidden(self) -> None:
        """A node that left is not listed by an older registration at another registry, early or late."""
        made = linked("peer")
        made.update("peer", delta("peer", ZERO, v(1), record(1)))
        made.run(1)
        made.register()
        made.farewell("node")
        assert made.listed() == []
        made.update("peer", delta("peer", v(1), v(2), record(2)))
        made.older("old", {"url": url_of("node"), "flows": [], "modified": "2024-12-25T18:03:12.989989"})
        assert made.listed() == []

    def test_a_newer_registration_elsewhere_counts(self) -> None:
        """A node that registers elsewhere after it left here is listed."""
        made = linked("peer")
        made.register()
        made.farewell("node")
        made.update("peer", delta("peer", ZERO, v(1), record(1, modified=LATER)))
        assert made.listed() == ["node"]

    def test_at_the_same_time_as_a_registration(self) -> None:
        """A node that left one registry at the very time at which it registered with another is listed."""
        made = linked("peer")
        made.update("peer", delta("peer", ZERO, v(1), record(1)), delta("far", ZERO, v(1), record(1, gone=True)))
        assert made.listed() == ["node"]

    def test_a_leaving_elsewhere_ends_the_own_registration(self) -> None:
        """A node that left another registry after it registered here has left here too, and its lease is over."""
        made = linked("peer")
        made.register()
        made.beat()
        (entry,) = written(made.update("peer", delta("peer", ZERO, v(1), record(1, modified=LATER, gone=True))))[-1:]
        assert made.listed() == []
        assert entry.node.modified == LATER
        refuses(made, ev.Heartbeat(made.at(), ticket=6, url=url_of("node")), UnknownServiceError)

    def test_a_leaving_before_the_own_registration_does_not(self) -> None:
        """A node that left another registry and registered here after that stays."""
        made = linked("peer")
        made.clock = 1000.0
        made.register()
        made.update("peer", delta("peer", ZERO, v(1), record(1, modified=LATER, gone=True)))
        assert made.listed() == ["node"]

    def test_it_may_come_again(self) -> None:
        """A node that left and registers again is listed, above its own leaving."""
        made = Desk()
        made.register()
        made.farewell("node")
        done = made.register()
        assert made.listed() == ["node"]
        assert "first visit" in reply(done).message[0]


class TestANodeTells:
    def test_those_it_is_registered_with(self) -> None:
        """A node that is to leave tells every registry it is registered with, and nobody else."""
        made = Desk(Profile("http://self:1", registry=False, connect=(url_of("a"), url_of("b"))))
        made.step(
            ev.Delivered(made.at(), peer=canonical(url_of("a")), route="/register", carried={}, reply=ev.PeerReply())
        )
        made.step(ev.Refused(made.at(), peer=canonical(url_of("b")), route="/register"))
        made.clock = 5.0
        done = made.leave()
        assert [(send.address, send.version) for send in farewells(done)] == [(url_of("a"), None)]
        assert not left(done)
        done = made.delivered(farewells(done)[0])
        assert left(done)
        assert made.registry.peers == {}
        assert sends(made.run(1000)) == []


class TestARegistryLeaves:
    def test_all_are_told_then_it_is_answered(self) -> None:
        """`DELETE /connect` tells every peer, and is answered once all were told."""
        made = linked("peer", "other")
        made.here = {"peer", "other"}
        made.follow(made.register())
        made.run(1)
        done = made.leave()
        assert not left(done)
        assert sorted(send.peer for send in farewells(done)) == [OTHER, PEER]
        first, second = farewells(done)
        assert not left(made.delivered(first))
        assert left(made.delivered(second))
        assert made.registry.peers == {}
        assert made.store.peers == {}

    def test_it_keeps_its_own(self) -> None:
        """A registry that has left goes on listing what is registered with it, and tells it nobody."""
        made = linked("peer")
        made.here = {"peer"}
        made.follow(made.register())
        made.run(1)
        assert left(made.follow(made.leave()))
        made.run(100)
        assert made.listed() == ["node"]
        assert sends(made.register("other")) == []

    def test_the_version_of_the_farewell(self) -> None:
        """The version that is told is above all that was told before, and below the own part from now on."""
        made = linked("peer")
        made.here = {"peer"}
        made.follow(made.register())
        made.run(1)
        before = made.registry.own.version
        made.here = set()
        (send,) = farewells(made.leave())
        assert send.version is not None
        assert before < send.version < made.registry.own.version
        assert made.registry.own.floor > send.version

    def test_a_farewell_that_comes_after_the_return(self) -> None:
        """A registry whose part is known from after it left is back: its farewell, late, ends nothing."""
        made = linked("peer")
        made.update("peer", delta("peer", ZERO, v(2), record(2)))
        made.step(goodbye(made, "peer", list(v(1))))
        assert PEER in made.registry.peers
        assert made.listed() == ["node"]

    def test_with_nothing_to_tell(self) -> None:
        """A registry that is connected with nobody has left at once."""
        assert left(Desk().leave())

    def test_a_dead_peer(self) -> None:
        """A peer that does not answer holds the answer up for its deadline alone, and is told later."""
        made = linked("peer")
        (send,) = farewells(made.leave())
        assert send.deadline == FAREWELL_DEADLINE
        made.clock += FAREWELL_DEADLINE
        done = made.lost("peer")
        assert left(done)
        (again,) = farewells(made.run(60))
        assert again.version == send.version
        made.delivered(again)
        assert made.registry.peers == {}

    def test_a_peer_that_was_away_for_long(self) -> None:
        """A peer whose next try was a minute away is told at once: the answer waits for its deadline, not the pause."""
        made = linked("peer")
        made.away = {"peer"}
        made.follow(made.register())
        made.run(300)
        made.away = set()
        made.lost("peer", chance=0.999)
        assert (made.wake or 0) > made.clock + 50
        assert [send.peer for send in farewells(made.leave())] == [PEER]

    def test_a_peer_with_a_message_on_its_way(self) -> None:
        """A peer that was sent news it does not answer holds the answer up for the deadline of a message at most."""
        made = linked("peer")
        (send,) = news(made.register())
        assert farewells(made.leave()) == []
        made.clock += 6
        (farewell,) = farewells(made.lost("peer"))
        assert farewell.peer == send.peer
        assert left(made.run(DEADLINE - 6))
        made.delivered(farewell)
        assert made.registry.peers == {}

    def test_a_peer_that_asked_to_be_left_alone(self) -> None:
        """A peer that asked for an hour holds the answer up no longer than another, and is told after it."""
        made = linked("peer")
        made.register()
        made.leave()
        assert farewells(made.lost("peer", retry_after=3600.0)) == []
        assert left(made.run(DEADLINE))
        assert len(farewells(made.run(3600))) == 1

    def test_a_peer_that_refuses_for_good(self) -> None:
        """A peer that had answered 401 is told like any other, before and while this registry leaves."""
        made = linked("peer")
        made.refused("peer", 401)
        (send,) = farewells(made.leave())
        assert not made.registry.standing().idle
        assert left(made.delivered(send))
        made = linked("peer")
        made.register()
        made.leave()
        (send,) = farewells(made.refused("peer", 401) + made.run(5))
        assert left(made.delivered(send))

    def test_a_peer_by_another_name(self) -> None:
        """A peer whose name was not known yet is told under the one it gives, and the answer comes with it."""
        made = Desk(Profile("http://self:1", connect=(url_of("alias"),)), beacon=1e6)
        made.leave()
        greeted = Send(canonical(url_of("alias")), url_of("peer"), "/connect", 1, None, ())
        done = made.delivered(greeted, providers={"url": url_of("peer"), "feed": True}) + made.run(1)
        (send,) = farewells(done)
        assert (send.peer, send.address) == (PEER, url_of("alias"))
        assert left(made.delivered(send))

    def test_over_a_restart(self) -> None:
        """A farewell that was not told before a restart is told after it."""
        made = linked("peer")
        made.here = {"peer"}
        made.follow(made.register())
        made.run(1)
        (send,) = farewells(made.leave())
        (again,) = sends(made.restart())
        assert (again.route, again.version) == ("/disconnect", send.version)

    def test_a_peer_that_refuses(self) -> None:
        """A peer that does not know this registry any more has been told."""
        made = linked("peer")
        made.leave()
        assert left(made.refused("peer", 404))
        assert made.registry.peers == {}

    def test_a_peer_that_connects_meanwhile(self) -> None:
        """A peer that connects before it was told is connected, and nobody waits for its farewell."""
        made = linked("peer")
        made.leave()
        done = made.connect("peer")
        assert left(done)
        made.run(10)
        made.lost("peer")
        made.here = {"peer"}
        assert farewells(made.run(100)) == []
        assert made.registry.peers[PEER].told

    def test_a_peer_that_connects_while_it_is_told(self) -> None:
        """A peer that connects while its farewell is on its way forgets that by it, and is connected with again."""
        for overtaken in (Desk.delivered, lambda made, _: made.refused("peer", 404)):
            made = linked("peer")
            (send,) = farewells(made.leave())
            made.connect("peer")
            (greeting,) = [send for send in sends(overtaken(made, send) + made.run(60)) if send.route == "/connect"]
            assert greeting.resumes
            assert PEER in made.registry.peers

    def test_a_peer_that_resumes(self) -> None:
        """A peer that was away takes up what there was: it is told at once that this one left, and nothing else."""
        made = linked("peer")
        made.away = {"peer"}
        made.follow(made.register())
        made.follow(made.leave())
        made.run(600)
        made.away = set()
        done = made.connect("peer", resumes=True)
        assert reply(done).offer is None
        assert len(farewells(done + made.run(1))) == 1
        made.delivered(farewells(done)[0])
        assert made.registry.peers == {}

    def test_whether_a_greeting_resumes(self) -> None:
        """Who is configured is asked anew at every start; what was got through to, or saved, is resumed."""
        made = Desk(Profile("http://self:1", connect=(url_of("peer"),)), beacon=1e6)
        made.connect("other")
        greetings = {send.peer: send for send in sends(made.restart())}
        assert {peer: send.resumes for peer, send in greetings.items()} == {OTHER: True, PEER: False}
        made.delivered(greetings[PEER], providers={"url": url_of("peer"), "feed": True})
        (again,) = sends(made.refused("peer", 404) + made.run(60))
        assert (again.peer, again.route, again.resumes) == (PEER, "/connect", True)


class TestARegistryIsGone:
    def test_with_its_nodes(self) -> None:
        """A registry that has left is no peer, its nodes are listed no more, and the others are told."""
        made = linked("peer", "other")
        made.here = {"other"}
        made.follow(made.update("peer", delta("peer", ZERO, v(3), record(3))))
        made.run(1)
        assert made.listed() == ["node"]
        done = made.farewell("peer", v(0, 6))
        assert made.listed() == []
        assert (set(made.registry.peers), set(made.store.peers)) == ({OTHER}, {OTHER})
        (send,) = news(done)
        assert send.parcel is not None
        assert [(said.origin, said.base) for said in send.parcel.ranges] == [(PEER, (0, "", 0))]

    def test_late_records(self) -> None:
        """An old record of a registry that has left, whoever tells it and however late, is not taken."""
        made = linked("peer", "other")
        made.update("peer", delta("peer", ZERO, v(3), record(3)))
        made.farewell("peer", v(5, 6))
        for late in (
            delta("peer", ZERO, v(3), record(3)),
            delta("peer", v(3), v(4), record(4, "x")),
            delta("peer", ZERO, v(4, 6), record(4, "x")),
        ):
            made.update("other", late)
            made.update("peer", late)
            assert made.listed() == []

    def test_late_pages(self) -> None:
        """Pages of a registry that were under way when it left continue nothing."""
        made = linked("peer")
        made.update("peer", delta("peer", ZERO, v(3), record(3), complete=False))
        made.farewell("peer", v(5, 6))
        made.update("peer", delta("peer", v(3), v(4), record(4, "x")))
        assert made.listed() == []
        assert made.store.staged == {}

    def test_connecting_again(self) -> None:
        """A registry that left and connects again is listed with what it has now."""
        made = linked("peer")
        made.update("peer", delta("peer", ZERO, v(3), record(3)))
        made.farewell("peer", v(3, 6))
        done = made.connect("peer", deltas=[delta("peer", ZERO, v(4, 7), record(3), record(4, "x"), floor=v(3, 7))])
        assert reply(done).message[0] == "registry http://peer:1 connected (first visit)"
        assert made.listed() == ["node", "x"]

    def test_through_a_peer(self) -> None:
        """A registry that left elsewhere is gone here by the delta that tells it, and so is what it had adopted."""
        made = linked("peer")
        made.update("peer", delta("far", ZERO, v(3), record(3), record(2, "old", adopted=True)))
        made.update("peer", delta("far", ZERO, v(3, 6), floor=v(3, 6)))
        assert made.listed() == []
        assert made.version("far") == Version(6, "cd", 3)

    def test_a_registry_that_is_a_node_too(self) -> None:
        """A service that is node and registry, registered and connected, is gone as both by one message."""
        made = linked("peer")
        made.register("peer")
        made.farewell("peer")
        assert (made.listed(), made.registry.peers) == ([], {})

    def test_it_is_not_connected_with_again_by_itself(self) -> None:
        """A peer that has left is not greeted again, though it stands in `connect`."""
        made = linked("peer", profile=Profile("http://self:1", connect=(url_of("peer"),)))
        made.here = {"peer"}
        made.lost("peer")
        made.run(60)
        made.farewell("peer", v(3, 6))
        assert sends(made.run(1000)) == []
        assert made.registry.standing().connection == ((url_of("peer"), None),)

    def test_one_that_was_not_known(self) -> None:
        """A registry that leaves and was never heard of is unknown, whatever version it names; nothing changes."""
        made = linked("peer")
        with pytest.raises(UnknownServiceError):
            made.farewell("far", v(3, 6))
        assert FAR not in made.registry.parts

    def test_what_is_saved(self) -> None:
        """What was known of the peer is forgotten in the same Save."""
        made = linked("peer")
        assert saved(made.farewell("peer")).forgotten == (PEER,)
