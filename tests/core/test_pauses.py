"""Pauses (FEDERATION.md, rule 9): when a peer is tried again, and when it is not."""

from __future__ import annotations

import pytest

from kodo.core import events as ev
from kodo.core.registry import Profile
from kodo.models import PeerReply
from tests.core.steps import FAR, PEER, ZERO, Desk, delta, news, record, sends, url_of, v


def owing() -> Desk:
    """A registry that has just sent news to its peer."""
    made = Desk(beacon=1e6)
    made.connect("peer")
    made.register()
    return made


class TestRetryAfter:
    def test_it_is_waited_for(self) -> None:
        """A peer that asks to be left alone is sent nothing before, and is tried right after."""
        made = owing()
        assert sends(made.lost("peer", retry_after=120.0)) == []
        assert sends(made.run(119.9)) == []
        assert [send.peer for send in news(made.run(0.2))] == [PEER]

    def test_a_longer_pause_stays(self) -> None:
        """A shorter wish does not shorten the pause that has grown meanwhile."""
        made = owing()
        for _ in range(8):
            made.lost("peer")
            made.clock = made.wake or 0.0
            made.tick()
        made.lost("peer", retry_after=1.0, chance=0.999)
        assert (made.wake or 0) > made.clock + 50

    def test_a_sign_of_life_does_not_end_it(self) -> None:
        """A peer that asked to be left alone is, also when it speaks itself; only other pauses end with that."""
        made = owing()
        made.lost("peer", retry_after=120.0)
        assert news(made.update("peer")) == []
        assert news(made.run(119)) == []
        assert [send.peer for send in news(made.run(2))] == [PEER]

    @pytest.mark.parametrize("heard", [False, True])
    def test_who_connects_is_ready(self, heard: bool) -> None:
        """A peer that asked to be left alone and connects anew is told what it is owed, whatever it said meanwhile."""
        made = owing()
        made.lost("peer", retry_after=3600.0)
        if heard:
            made.update("peer")
        made.connect("peer", feed=True)
        assert [send.peer for send in news(made.register("other") + made.run(1))] == [PEER]

    def test_of_a_first_contact(self) -> None:
        """A registry that is greeted for the first time may ask for it as well."""
        made = Desk(Profile("http://self:1", connect=(url_of("peer"),)))
        made.lost("peer", retry_after=60.0)
        assert sends(made.run(59)) == []
        assert len(sends(made.run(2))) == 1


class TestRefusals:
    @pytest.mark.parametrize("status", [401, 403])
    def test_they_stop_and_are_shown(self, status: int) -> None:
        """A peer that answers 401 or 403 is not asked again, whatever is owed to it, and that is shown."""
        made = owing()
        assert sends(made.refused("peer", status)) == []
        made.register("other")
        assert sends(made.run(100_000)) == []
        assert made.registry.standing().refused == ((url_of("peer"), status),)

    @pytest.mark.parametrize("status", [400, 404, 413, 422, None])
    def test_others_lead_to_a_handshake(self, status: int | None) -> None:
        """After any other refusal the two start again with a handshake, not in a hurry."""
        made = owing()
        made.refused("peer", status)
        (send,) = sends(made.run(60))
        assert send.route == "/connect"
        assert made.registry.standing().refused == ()

    def test_what_is_no_registry_yet(self) -> None:
        """Who answers 404 to a first greeting may be about to become a registry: it is tried within 1.5 s, for ever."""
        made = Desk(Profile("http://self:1", connect=(url_of("peer"),)))
        for _ in range(20):
            made.step(ev.Refused(made.at(), peer=PEER, route="/connect", status=404))
            assert [send.route for send in sends(made.run(1.5))] == ["/connect"]

    def test_who_answers_and_takes_nothing(self) -> None:
        """A peer that answers all it is told, and takes nothing of it, is told ever less often, though it is there."""
        made = Desk(beacon=1e6)
        made.connect("peer")
        sent = sends(made.register())
        told: list[float] = []
        while made.clock < 600:
            for send in sent:
                told.append(made.clock)
                made.delivered(send, marks={}, providers={"url": url_of("peer"), "feed": True})
            sent = sends(made.run(1))
        assert len([at for at in told if at < 60]) < 12
        assert len([at for at in told if at > 300]) < 14

    def stuck(self) -> Desk:
        """A registry whose peer answers, and takes nothing of one origin."""
        made = Desk(beacon=1e6)
        made.connect("peer")
        sent = sends(made.update("other", delta("far", ZERO, v(1), record(1))))
        while made.registry.peers[PEER].unmoved < 8:
            for send in sent:
                made.delivered(send, marks={}, providers={"url": url_of("peer"), "feed": True})
            sent = sends(made.run(1))
        return made

    def test_who_is_stuck_and_goes_away(self) -> None:
        """A peer that took nothing and then is away is tried ever less often too, however much is new."""
        made = self.stuck()
        made.away = {"peer"}
        tries = []
        for number in range(300):
            tries += sends(made.follow(made.register(f"n{number}")) + made.run(1))
        assert len(tries) < 30

    def test_who_has_all_is_not_stuck(self) -> None:
        """A peer that has got all by another way is told what is new, once it was away and is back, at once."""
        made = self.stuck()
        made.connect("peer", marks={FAR: v(1), url_of("self"): list(made.registry.own.version)})
        made.update("peer")
        assert made.registry.peers[PEER].unmoved == 0

    def test_what_else_is_new_is_told_at_once(self) -> None:
        """That a peer takes nothing of one origin keeps no other news from it."""
        assert [send.peer for send in sends(self.stuck().register())] == [PEER]

    def test_a_sign_of_life_begins_anew(self) -> None:
        """Once the peer is heard of, it is asked again, with a handshake, and no longer shown."""
        made = owing()
        made.refused("peer", 401)
        made.run(100)
        done = made.update("peer", delta("peer", ZERO, v(1), record(1))) + made.run(1)
        assert [send.route for send in sends(done)] == ["/connect"]
        assert made.registry.standing().refused == ()

    def test_nor_are_there_beacons(self) -> None:
        """A peer that refused gets no beacons either."""
        made = Desk(beacon=10.0)
        made.connect("peer")
        (send,) = sends(made.run(12))
        assert send.beacon is not None
        made.refused("peer", 403)
        assert sends(made.run(1000)) == []

    def test_a_node_whose_beat_is_refused(self) -> None:
        """A node that its registry does not know any more registers again at once, and beats when that was taken."""
        made = Desk(Profile("http://self:1", registry=False, connect=(url_of("peer"),)))
        taken = PeerReply.model_validate({"lease": 30.0})
        made.step(ev.Delivered(made.at(), peer=PEER, route="/register", carried={}, reply=taken))
        (beat,) = sends(made.run(13))
        assert beat.route == "/heartbeat"
        assert 8 <= made.clock <= 13
        done = made.refused("peer", 404) + made.run(0.2)
        assert [send.route for send in sends(done)] == ["/register"]
        done = made.step(ev.Delivered(made.at(), peer=PEER, route="/register", carried={}, reply=taken))
        assert [send.route for send in sends(done + made.run(13))] == ["/heartbeat"]
        assert made.registry.standing().idle
