"""Beacons (FEDERATION.md, rule 11): with nothing to say, registries tell each other that they hold the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kodo.core import events as ev
from kodo.core.instructions import Send
from kodo.core.registry import Profile
from kodo.models import Beacon, PeerMessage, Version
from tests.core.steps import (
    FAR,
    LATER,
    NOW,
    OTHER,
    PEER,
    SELF,
    ZERO,
    Desk,
    delta,
    news,
    record,
    reply,
    sends,
    url_of,
    v,
)

EVERY = 10.0


def beacons(done: list[Any]) -> list[Send]:
    return [send for send in sends(done) if send.beacon is not None]


def linked(*names: str, profile: Profile | None = None) -> Desk:
    """A registry whose peers have what it has: a node of its own, and one far away that the first peer told of."""
    made = Desk(profile or Profile("http://self:1"), beacon=EVERY)
    made.here = set(names or ("peer",))
    made.register("mine")
    for name in names or ("peer",):
        made.follow(made.connect(name))
    made.follow(made.update((names or ("peer",))[0], delta("far", ZERO, v(1), record(1))))
    made.run(1)
    return made


def first(made: Desk) -> Send:
    """The next beacon to the first peer, which nobody has answered."""
    made.here = set()
    (send,) = beacons(made.run(EVERY * 1.2))
    return send


def contents(made: Desk, **other: str) -> dict[str, str]:
    """The contents as they are here, but for those named."""
    same = {origin: f"{part.content:016x}" for origin, part in made.registry.parts.items()}
    return same | {url_of(name): content for name, content in other.items()}


def marks(made: Desk) -> dict[str, list[Any]]:
    return {origin: list(part.version) for origin, part in made.registry.parts.items()}


class TestSending:
    def test_when_nothing_else_is_said(self) -> None:
        """Every ten seconds or so a beacon goes to each peer, which carries no records."""
        made = linked("peer", "other")
        done = made.run(1000)
        assert news(done) == []
        counts = [sum(send.peer == peer for send in beacons(done)) for peer in (PEER, OTHER)]
        assert all(95 <= count <= 101 for count in counts)
        assert all(send.parcel is not None and send.parcel.ranges == () for send in beacons(done))

    @pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.8), (0.5, 1.0), (0.999999, 1.2)])
    def test_jitter(self, chance: float, factor: float) -> None:
        """The time to the next beacon is spread by a fifth to both sides, so that they do not fall together."""
        made = linked()
        made.clock = made.wake or 0.0
        (send,) = beacons(made.step(ev.Tick(made.at(chance))))
        made.delivered(send)
        assert made.wake == pytest.approx(made.clock + EVERY * factor, rel=1e-3)

    def test_none_to_older_services(self) -> None:
        """A service that speaks no deltas gets no beacons."""
        made = linked()
        made.connect_older("old")
        assert {send.peer for send in beacons(made.run(100))} == {PEER}

    def test_none_to_providers(self) -> None:
        """A peer that takes nothing is not told what is here; its own beacons are answered."""
        made = Desk(beacon=EVERY)
        made.connect("peer", feed=False)
        assert beacons(made.run(100)) == []

    def test_a_provider_speaks_of_itself_alone(self) -> None:
        """A provider lists and tells of its own part alone, even if it knew others when it was none."""
        made = linked()
        made.older("old", {"url": url_of("adopted"), "flows": [{"url": "/a", "name": "a"}]})
        assert made.listed() == ["adopted", "mine", "node"]
        made.profile = replace(made.profile, provider=True)
        made.restart()
        assert made.listed() == ["mine"]
        made.connect("other")
        (send,) = beacons(made.run(EVERY + 2))
        assert send.beacon is not None
        assert len(send.beacon.ages) == 1

    def test_a_provider_fits_with_its_own(self) -> None:
        """The beacon of a provider fits if what is here of it is the same, whatever else is known here."""
        provider = Desk(Profile(url_of("peer"), provider=True), beacon=EVERY)
        provider.register("own")
        provider.here = {"self"}
        provider.follow(provider.connect("self"))
        beacon = beacons(provider.run(EVERY + 2))[0].beacon
        assert beacon is not None
        made = linked("other")
        made.connect("peer", feed=False, deltas=[delta("peer", ZERO, v(1, 100, "ab"), record(1, "own"))])
        assert reply(made.update("peer", beacon=beacon.model_dump())).contents is None

    def test_news_is_no_reason_to_leave_it_out(self) -> None:
        """A beacon is due in its time whether news was told meanwhile or not."""
        made = linked()
        for at in range(20):
            made.follow(made.register(f"n{at}"))
            made.run(1)
        assert len(beacons(made.run(EVERY))) == 1


class TestComparing:
    def test_the_same(self) -> None:
        """A beacon that fits is answered without marks or contents."""
        made = linked()
        beacon = first(made).beacon
        assert beacon is not None
        answer = reply(made.update("peer", beacon=beacon.model_dump()))
        assert (answer.marks, answer.contents) == ((), None)
        assert not answer.handshake

    @pytest.mark.parametrize("what", ["version", "content", "origins"])
    def test_another(self, what: str) -> None:
        """A beacon of other versions, contents or origins is answered with all marks and contents."""
        made, other = linked(), linked()
        match what:
            case "version":
                other.follow(other.register("mine"))
            case "content":
                same = delta("far", ZERO, v(1), record(1, modified=LATER))
                other.registry.ledger.doubted.add(FAR)
                other.update("peer", same)
            case _:
                other.update("peer", delta("third", ZERO, v(1), record(1, "x")))
        other.run(1)
        beacon = first(other).beacon
        assert beacon is not None
        answer = reply(made.update("peer", beacon=beacon.model_dump()))
        assert dict(answer.marks or ()) == {origin: part.version for origin, part in made.registry.parts.items()}
        assert dict(answer.contents or ()) == contents(made)

    def test_of_a_stranger(self) -> None:
        """A beacon of a registry that is not connected is answered with the wish for a handshake, and makes no peer."""
        made = linked()
        beacon = first(made).beacon
        assert beacon is not None
        answer = reply(made.update("stranger", beacon=beacon.model_dump()))
        assert answer.handshake
        assert set(made.registry.peers) == {PEER}

    def test_who_is_asked_for_a_handshake_connects(self) -> None:
        """A peer that has forgotten this registry asks for a handshake, and gets it."""
        made = linked()
        done = made.delivered(first(made), handshake=True)
        made.run(1)
        assert [send.route for send in sends(done)] == ["/connect"]

    @pytest.mark.parametrize("kept", [SELF, FAR])
    def test_what_the_peer_lost_is_told(self, kept: str) -> None:
        """A peer whose answer shows that it has nothing of an origin is owed all of it, whoever told it before."""
        made = linked()
        send = first(made)
        done = made.delivered(send, marks={kept: marks(made)[kept]}, contents=contents(made)) + made.run(1)
        (said,) = news(done)
        assert said.parcel is not None
        assert [(owed.origin, owed.base) for owed in said.parcel.ranges] == [
            (FAR if kept == SELF else SELF, (0, "", 0))
        ]


class TestDoubt:
    WRONG = "0123456789abcdef"

    def doubting(self) -> tuple[Desk, list[Any]]:
        """A registry whose peer says that far away holds something else at the same version."""
        made = linked()
        return made, made.delivered(first(made), marks=marks(made), contents=contents(made, far=self.WRONG))

    def test_other_content_at_the_same_version(self) -> None:
        """What the one peer that told it holds otherwise is doubted: a handshake asks for all of it."""
        made, done = self.doubting()
        assert made.registry.ledger.doubted == {FAR}
        (greeting,) = sends(done + made.run(1))
        assert greeting.route == "/connect"
        assert dict(greeting.marks or ()) == {FAR: Version(5, "", 1), SELF: made.registry.own.version}

    def test_also_if_who_told_it_is_away(self) -> None:
        """What another peer told is doubted as well once that one is away, and cannot say which of them is right."""
        made = linked("other", "peer")
        made.here, made.away = set(), {"other"}
        wrong = contents(made, far=self.WRONG)
        while FAR not in made.registry.ledger.doubted:
            assert made.clock < 10 * EVERY
            (send, *_) = [send for send in made.run(EVERY * 1.2) if isinstance(send, Send) and send.peer == PEER]
            made.delivered(send, marks=marks(made), contents=wrong)

    def test_a_snapshot_alone_ends_it(self) -> None:
        """While it is doubted no difference is taken; a snapshot of the same version is, and ends the doubt."""
        made, _ = self.doubting()
        made.update("peer", delta("far", v(1), v(2), record(2, "x")))
        assert (made.version("far").seq, made.listed()) == (1, ["mine", "node"])
        made.update("peer", delta("far", ZERO, v(1), record(1, "right")))
        assert made.listed() == ["mine", "right"]
        assert made.registry.ledger.doubted == set()
        made.update("peer", delta("far", v(1), v(2), record(2, "x")))
        assert made.version("far").seq == 2

    def test_an_older_snapshot_does_not(self) -> None:
        """A snapshot of a version below the mark does not end the doubt: marks never fall."""
        made = linked()
        made.update("peer", delta("far", v(1), v(4), record(4, "x")))
        made.run(1)
        made.delivered(first(made), marks=marks(made), contents=contents(made, far=self.WRONG))
        assert made.registry.ledger.doubted == {FAR}
        made.update("peer", delta("far", ZERO, v(3), record(3, "y")))
        assert made.version("far").seq == 4
        assert made.registry.ledger.doubted == {FAR}

    def test_it_is_told_to_nobody(self) -> None:
        """What is doubted is offered to nobody."""
        made, _ = self.doubting()
        offer = reply(made.connect("other")).offer
        assert offer is not None
        assert FAR not in {owed.origin for owed in offer.ranges}

    def test_nobody_is_told_in_vain(self) -> None:
        """While it is doubted nobody is owed it: no try after the other, with nothing in it."""
        made, _ = self.doubting()
        made.here, made.away = {"other"}, {"peer"}
        made.lost("peer")
        made.follow(made.connect("other"))
        assert made.registry.ledger.doubted == {FAR}
        assert [send for send in news(made.run(5)) if send.peer == OTHER] == []
        done = made.update("peer", delta("far", ZERO, v(1), record(1, "right")))
        assert len([send for send in news(done) if send.peer == OTHER]) == 1

    def test_of_another_version_nothing_follows(self) -> None:
        """Other content at another version is what other versions are for."""
        made = linked()
        made.delivered(first(made), marks=marks(made) | {FAR: v(9)}, contents=contents(made, far=self.WRONG))
        assert made.registry.ledger.doubted == set()

    def test_the_own_part_is_not_doubted(self) -> None:
        """Whatever a peer says of the own part, this registry is the one to know."""
        made = linked()
        made.delivered(first(made), marks=marks(made), contents=contents(made, self=self.WRONG))
        assert made.registry.ledger.doubted == set()

    def test_who_did_not_tell_it_is_not_believed(self) -> None:
        """A peer that holds otherwise what another peer told is not believed against it, unless it is the origin."""
        made = linked("peer", "other")
        made.update("other", delta("other", ZERO, v(1), record(1, "x")))
        made.update("peer", delta("other", v(1), v(2), record(2, "x")))
        made.run(1)
        made.here = {"peer"}
        (send,) = [send for send in beacons(made.run(EVERY * 1.2)) if send.peer == OTHER]
        told = contents(made, far=self.WRONG, other=self.WRONG)
        made.delivered(send, marks=marks(made), contents=told)
        assert made.registry.ledger.doubted == {OTHER}


class TestConnection:
    def greeted(self) -> Desk:
        made = Desk(Profile("http://self:1", connect=(url_of("peer"),)), beacon=EVERY)
        made.delivered(
            Send(PEER, url_of("peer"), "/connect", 1, None, ()), providers={"url": url_of("peer"), "feed": True}
        )
        assert made.registry.standing().connection == ((url_of("peer"), NOW),)
        made.here = {"peer"}
        return made

    def test_beacons_do_not_count(self) -> None:
        """`connection` holds the time of the last message that was no beacon, sent or received."""
        made = self.greeted()
        assert len(beacons(made.run(50))) >= 4
        beacon = Beacon(vector="0" * 16, origins="0" * 16)
        made.update("peer", beacon=beacon.model_dump())
        assert made.registry.standing().connection == ((url_of("peer"), NOW),)
        made.update("peer", delta("peer", ZERO, v(1), record(1)))
        assert made.registry.standing().connection == ((url_of("peer"), made.utc()),)

    def test_idle_does_not_count_them(self) -> None:
        """A beacon in flight, or due again after one was lost, leaves the registry idle."""
        made = linked()
        first(made)
        assert made.registry.peers[PEER].sending == "beacon"
        assert made.registry.standing().idle
        made.lost("peer")
        assert made.registry.standing().idle

    def test_a_beacon_is_a_sign_of_life(self) -> None:
        """A beacon of a peer that was away ends the pause."""
        made = linked()
        made.here = set()
        made.register("news")
        for _ in range(8):
            made.lost("peer")
            made.clock = made.wake or 0.0
            made.tick()
        made.lost("peer", chance=0.999)
        assert (made.wake or 0) > made.clock + 40
        done = made.update("peer", beacon=Beacon(vector="0" * 16, origins="0" * 16).model_dump())
        assert [send.peer for send in news(done)] == [PEER]


def test_beacons_can_be_read() -> None:
    """A beacon that is written can be read by the other side."""
    send = first(linked())
    assert send.beacon is not None
    said = PeerMessage.model_validate({"url": url_of("peer"), "marks": {}, "beacon": send.beacon.model_dump()})
    assert said.beacon == send.beacon
