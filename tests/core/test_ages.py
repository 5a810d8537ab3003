"""Ages (FEDERATION.md, rule 12): who was not heard of is stale, then given up, by no clock but the own."""

from __future__ import annotations

from typing import Any

import pytest

from kodo.core.ages import HOP, STALE, Ages
from kodo.core.registry import CHORES
from tests.core.steps import FAR, PEER, ZERO, Desk, delta, news, record, reply, sends, v

GRACE = 3200.0
CHORE = GRACE / CHORES


def meshed(age: int = 0) -> Desk:
    """A registry whose peer answers, and has told of a registry far away."""
    made = Desk(grace=GRACE, tombstones=GRACE)
    made.connect("peer")
    made.update("peer", delta("far", ZERO, v(1), record(1), age=age), delta("peer", ZERO, v(1), record(1, "own")))
    made.here = {"peer"}
    made.run(1)
    return made


def beacon(made: Desk, **ages: int) -> dict[str, Any]:
    """A beacon of a peer that knows the same, with these ages."""
    ours = made.registry._beacon(made.at())
    told = [ages.get(origin.split("/")[2].split(":")[0], 0) for origin in made.registry.ledger.told]
    return ours.model_dump() | {"ages": told}


class TestOf:
    def test_each_hop_makes_older(self) -> None:
        """What is told is rounded up and a second more, so that no two registries keep each other believing."""
        here, there = Ages(GRACE), Ages(GRACE)
        here.heard(FAR, 100.0)
        assert here.told(FAR, 100.5) == 1 + HOP
        for clock in range(101, 2000):
            there.heard(FAR, clock, here.told(FAR, clock))
            here.heard(FAR, clock, there.told(FAR, clock))
        assert here.of(FAR, 2000) == 1900
        assert there.of(FAR, 2000) > here.of(FAR, 2000)

    def test_the_younger_counts(self) -> None:
        """An older word than is known already changes nothing."""
        ages = Ages(GRACE)
        ages.heard(FAR, 100.0, 10)
        ages.heard(FAR, 101.0, 50)
        assert ages.of(FAR, 101.0) == 11
        ages.heard(FAR, 102.0, 5)
        assert ages.of(FAR, 102.0) == 5

    def test_at_itself_it_is_nothing(self) -> None:
        """A registry is of age 0 at itself, whatever time passes."""
        assert Ages(GRACE).told(FAR, 1e9) == 0


class TestStale:
    def test_shown_after_a_while(self) -> None:
        """An origin of which nothing was heard for 300 s is shown as stale, not earlier; its nodes stay listed."""
        made = meshed()
        made.run(STALE - 5)
        assert made.registry.standing().stale == ()
        made.run(20)
        assert made.registry.standing().stale == (FAR,)
        assert made.listed() == ["node", "own"]

    def test_a_peer_that_answers_is_not(self) -> None:
        """A peer that answers is heard with every answer; what it told of others is not."""
        made = meshed()
        made.run(GRACE / 2)
        assert made.registry.ages.of(PEER, made.clock) < 15
        assert made.registry.ages.of(FAR, made.clock) > GRACE / 2 - 5

    def test_beacons_tell_ages(self) -> None:
        """A beacon of a peer that knows the same origins makes them as young as it says, and not younger."""
        made = meshed()
        made.run(STALE + 20)
        made.update("peer", beacon=beacon(made, far=20))
        assert made.registry.ages.of(FAR, made.clock) == 20
        made.update("peer", beacon=beacon(made, far=100))
        assert made.registry.ages.of(FAR, made.clock) == 20
        made.tick()
        assert made.registry.standing().stale == ()

    def test_ages_of_other_origins_are_not_read(self) -> None:
        """Ages in a beacon that tells of other origins say nothing: they go by place."""
        made = meshed()
        made.run(STALE + 20)
        made.update("peer", beacon=beacon(made, far=20) | {"origins": "0" * 16})
        made.update("peer", beacon=beacon(made, far=20) | {"ages": [1]})
        assert made.registry.ages.of(FAR, made.clock) > STALE

    def test_they_add_up(self) -> None:
        """A beacon tells the age that was told here, the time since, and the way."""
        made = meshed(age=100)
        made.clock = 50.0
        (told,) = [
            age
            for origin, age in zip(made.registry.ledger.told, made.registry._beacon(made.at()).ages, strict=True)
            if origin == FAR
        ]
        assert told == 150 + HOP

    def test_deltas_tell_ages(self) -> None:
        """A delta that is passed on tells how old its origin is, with the time that it waited here."""
        made = meshed(age=100)
        made.run(45)
        made.connect("other")
        done = made.update("other", delta("far", v(1), v(2), age=120))
        (send,) = [send for send in sends(done) if send.peer == PEER]
        assert send.parcel is not None
        assert {owed.origin: owed.age for owed in send.parcel.ranges}[FAR] == 120 + HOP


class TestGivingUp:
    def test_after_the_grace_time(self) -> None:
        """An origin of which nothing was heard for the grace time is dropped with its nodes, not earlier."""
        made = meshed()
        made.run(GRACE - 5)
        assert made.listed() == ["node", "own"]
        made.run(2 * CHORE)
        assert made.listed() == ["own"]
        assert FAR not in made.registry.parts
        assert FAR not in made.store.parts

    def test_not_while_all_links_are_down(self) -> None:
        """Nothing is dropped while no peer answers; once one does, what is too old goes."""
        made = meshed()
        made.here, made.away = set(), {"peer"}
        made.run(3 * GRACE)
        assert made.listed() == ["node", "own"]
        made.here, made.away = {"peer"}, set()
        made.run(60 + 2 * CHORE)
        assert made.listed() == ["own"]

    def test_a_peer_that_only_calls_is_a_link(self) -> None:
        """A peer to which nothing is ever sent, a provider, is a link as long as it is heard."""
        made = Desk(grace=GRACE, tombstones=GRACE)
        made.connect("peer", feed=False)
        made.update("peer", delta("peer", ZERO, v(1), record(1, "own")))
        made.connect("gone", feed=False)
        made.update("gone", delta("gone", ZERO, v(1), record(1)))
        for _ in range(20):
            made.run(CHORE)
            made.update("peer")
        assert made.listed() == ["own"]

    def test_an_older_delta_is_not_taken(self) -> None:
        """A delta whose origin is older than the grace time is not taken in; one that is not, is."""
        made = meshed()
        made.update("peer", delta("gone", ZERO, v(1), record(1, "x"), age=int(GRACE) + 1))
        assert made.version("gone").seq == 0
        made.update("peer", delta("gone", ZERO, v(1), record(1, "x"), age=int(GRACE)))
        assert made.version("gone").seq == 1

    def test_it_is_told_no_more(self) -> None:
        """What is older than the grace time is told to nobody, though it is not dropped yet."""
        made = meshed()
        made.here, made.away = set(), {"peer"}
        made.run(GRACE + CHORE)
        assert made.listed() == ["node", "own"]
        offer = reply(made.connect("other")).offer
        assert offer is not None
        assert FAR not in {owed.origin for owed in offer.ranges}

    def test_nobody_is_asked_in_vain(self) -> None:
        """Who lacks what is too old to be told is owed nothing of it: there is silence, and no try without end."""
        made = meshed()
        made.here, made.away = set(), {"peer"}
        made.run(GRACE + CHORE)
        made.here, made.away = {"peer", "other"}, set()
        made.follow(made.connect("other", feed=True))
        done = made.run(CHORE / 4)
        unsaid = [send for send in news(done) if send.parcel is not None and not send.parcel.ranges]
        assert unsaid == []
        assert made.registry.standing().idle

    def test_beacons_speak_of_it_no_more(self) -> None:
        """What is too old is left out of beacons, as it is by those who dropped it: the ages of others go on."""
        made = meshed()
        made.here, made.away = set(), {"peer"}
        made.run(GRACE + CHORE)
        made.here, made.away = {"peer"}, set()
        made.run(55)
        assert made.listed() == ["node", "own"]
        assert len(made.registry._beacon(made.at()).ages) == 1

    def test_it_comes_back_by_itself(self) -> None:
        """An origin that was given up and is there again is taken in like any other."""
        made = meshed()
        made.run(GRACE + 2 * CHORE)
        made.update("peer", delta("far", ZERO, v(2, 6), record(1), floor=v(0, 6)))
        assert made.listed() == ["node", "own"]
        assert made.registry.standing().stale == ()


class TestRestart:
    def test_the_time_away_counts(self) -> None:
        """The time that a registry was stopped makes the others older; it does not empty itself for that."""
        made = meshed()
        made.run(CHORE)
        made.restart(pause=2 * GRACE)
        assert made.registry.ages.of(FAR, made.clock) == pytest.approx(2 * GRACE + CHORE, abs=5 + CHORE)
        assert made.listed() == ["node", "own"]

    def test_a_clock_set_back_does_not(self) -> None:
        """A clock that was set back meanwhile makes nobody older, and nobody younger than now."""
        made = meshed()
        made.run(CHORE)
        made.clock -= CHORE / 2
        made.restart()
        assert made.registry.ages.of(FAR, made.clock) >= 0


def test_nothing_is_said_of_what_is_known() -> None:
    """Time that passes, with beacons alone, is no news: nothing is sent beside beacons."""
    made = meshed()
    assert news(made.run(GRACE / 2)) == []
