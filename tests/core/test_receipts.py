"""Receipts (FEDERATION.md, rule 16): who has a change, confirmed along the way that it came."""

from __future__ import annotations

from typing import Any

from kodo.core.instructions import Instruction, Reply, Send
from kodo.core.receipts import KEPT, SHARE
from kodo.models import Receipt, canonical
from tests.core.steps import OTHER, PEER, SELF, ZERO, Desk, delta, news, record, replies, sends, url_of, v

FAR = "far"


def ask(within: float = 8.0, origin: str = FAR, version: list[Any] | None = None) -> dict[str, Any]:
    return {"origin": url_of(origin), "version": version or v(1), "within": within}


def receipt(*reached: str, missing: tuple[str, ...] = (), origin: str = FAR, version: Any = None) -> dict[str, Any]:
    said = {"origin": url_of(origin), "version": version or v(1)}
    return {**said, "reached": list(map(url_of, reached)), "missing": list(map(url_of, missing))}


def linked(*names: str) -> Desk:
    """A registry that is connected with others, at a moment when all is said and no beacon is due for long."""
    made = Desk(beacon=1000.0)
    made.here = set(names)
    for name in names:
        made.follow(made.connect(name))
    made.run(1)
    made.here = set()
    return made


def asked(made: Desk, by: str = "peer", within: float = 8.0) -> list[Instruction]:
    """A peer tells of a change far away, and asks for a receipt."""
    return made.update(by, delta(FAR, ZERO, v(1), record(1)), asks=[ask(within)])


def given(done: list[Instruction]) -> list[Receipt]:
    """The receipts that a reply gives at once."""
    return [said for answer in replies(done) for said in answer.receipts]


def reached(*names: str) -> tuple[str, ...]:
    return tuple(sorted(canonical(url_of(name)) for name in names))


def confirms(done: list[Instruction]) -> list[tuple[str, Receipt]]:
    """The receipts that leave in messages, and to whom."""
    return [(send.peer, said) for send in sends(done) for said in send.receipts]


def send_to(done: list[Instruction], name: str) -> Send:
    (send,) = [send for send in sends(done) if send.peer == canonical(url_of(name))]
    return send


class TestLeaf:
    def test_it_confirms_at_once(self) -> None:
        """Who has no others to ask confirms in its answer, and names itself."""
        made = linked("peer")
        (said,) = given(asked(made))
        assert (said.origin, said.version, said.reached, said.missing) == (
            canonical(url_of(FAR)),
            (5, "cd", 1),
            (SELF,),
            (),
        )

    def test_what_is_not_here_is_not_confirmed(self) -> None:
        """An ask about a version that has not been taken in yet gets no receipt, and is no first copy."""
        made = linked("peer")
        assert given(made.update("peer", asks=[ask()])) == []
        assert len(given(asked(made))) == 1

    def test_a_registration_alone(self) -> None:
        """Who is connected with nobody answers a registration that waits at once: one of one."""
        (answer,) = replies(linked().register(wait=5))
        assert answer.message[-1] == "visible at 1 of 1 registries in 0 ms"

    def test_providers_are_not_asked(self) -> None:
        """Nobody waits for a peer that is not told: a provider takes nothing."""
        made = linked()
        made.connect("peer", feed=False)
        (answer,) = replies(made.register(wait=5))
        assert answer.message[-1].startswith("visible at 1 of 1")

    def test_older_services_are_not_asked(self) -> None:
        """Nobody waits for a service that knows no receipts."""
        made = linked()
        made.connect_older("old")
        (answer,) = replies(made.register(wait=5))
        assert answer.message[-1].startswith("visible at 1 of 1")


class TestSecondCopy:
    def test_of_another_peer_gets_nothing(self) -> None:
        """The same change with an ask from another peer is confirmed at once, with nothing, and asked of nobody."""
        made = linked("peer", "other", "third")
        assert given(asked(made)) == []
        done = asked(made, "other")
        (said,) = given(done)
        assert (said.reached, said.missing) == ((), ())
        made.run(1)
        assert confirms(made.run(1)) == []

    def test_after_it_was_confirmed(self) -> None:
        """A second copy that comes after the first was confirmed gets nothing either, for a while."""
        made = linked("peer", "other")
        asked(made)
        made.update("other", delta(FAR, ZERO, v(1), record(1)))
        made.run(1)
        (said,) = given(asked(made, "other"))
        assert said.reached == ()
        made.run(2 * KEPT)
        made.tick()
        assert not made.registry.receipts.open


class TestChain:
    def test_passed_on_and_confirmed_later(self) -> None:
        """Who is between asks its other peers, in less time, and confirms all that were reached."""
        made = linked("peer", "other")
        done = asked(made)
        assert given(done) == []
        send = send_to(done, "other")
        (passed,) = send.asks
        assert (passed.origin, passed.version) == (canonical(url_of(FAR)), (5, "cd", 1))
        assert passed.within == 8 * SHARE
        made.run(0.2)
        ((to, said),) = confirms(made.delivered(send, receipts=[receipt("other", "leaf")]))
        assert (to, said.reached, said.missing) == (PEER, reached("self", "other", "leaf"), ())

    def test_a_receipt_in_a_later_message(self) -> None:
        """A peer that answers without a receipt gives it in a message of its own; only then is confirmed."""
        made = linked("peer", "other")
        send = send_to(asked(made), "other")
        assert confirms(made.delivered(send)) == []
        assert confirms(made.run(1)) == []
        ((to, said),) = confirms(made.update("other", receipts=[receipt("other")]))
        assert (to, said.reached) == (PEER, reached("self", "other"))

    def test_registration_that_waits(self) -> None:
        """A registration that waits is answered once all have confirmed, and says how many, not before."""
        made = linked("peer", "other")
        done = made.register(wait=5)
        version = list(made.registry.own.version)
        assert replies(done) == []
        first = made.delivered(
            send_to(done, "peer"), receipts=[receipt("peer", "leaf", origin="self", version=version)]
        )
        assert replies(first) == []
        made.clock += 0.5
        last = made.delivered(send_to(done, "other"), receipts=[receipt("other", origin="self", version=version)])
        (answer,) = replies(last)
        assert answer.ticket == 7
        assert answer.message[0].startswith("registered node http://node:1 (first visit)")
        assert answer.message[-1] == "visible at 4 of 4 registries in 500 ms"

    def test_whoever_tells_it_has_it(self) -> None:
        """A peer that tells the change itself, before it was asked, is not waited for and counts as reached."""
        made = linked("peer", "other", "third")
        made.registry.peers[OTHER].not_before = made.clock + 5
        asked(made)
        made.update("other", delta(FAR, ZERO, v(1), record(1)), asks=[ask()])
        third = made.registry.receipts.open[canonical(url_of(FAR)), made.version(FAR)]
        assert third.waiting == {canonical(url_of("third"))}
        assert OTHER in third.reached

    def test_one_who_has_it_already_is_asked_as_well(self) -> None:
        """A peer that was told the change before anybody asked for a receipt is asked: nobody else knows of it."""
        made = linked("peer", "other")
        send = send_to(made.update("peer", delta(FAR, ZERO, v(1), record(1))), "other")
        made.delivered(send)
        made.run(1)
        done = made.update("peer", asks=[ask()])
        assert given(done) == []
        told = made.delivered(send_to(done, "other"), receipts=[receipt("other")])
        ((_, said),) = confirms([*told, *made.run(1)])
        assert said.reached == reached("self", "other")

    def test_the_asker_is_not_asked(self) -> None:
        """Who asks has the change, even where that was not known yet: it is not asked in turn."""
        made = linked("peer", "other")
        made.update("other", delta(FAR, ZERO, v(1), record(1)))
        assert [peer.key for peer in made.registry.peers.values() if peer.sending] == [PEER]
        assert not given(made.update("peer", asks=[ask()]))
        (waiting,) = made.registry.receipts.open.values()
        assert waiting.waiting == {OTHER}


class TestTime:
    def test_the_missing_are_named(self) -> None:
        """Who has not confirmed in time is named; what a peer names as missing is passed on."""
        made = linked("peer", "other", "third")
        done = asked(made, within=8.0)
        made.delivered(send_to(done, "other"), receipts=[receipt("other", missing=("deep",))])
        early = made.run(7.9)
        assert confirms(early) == []
        made.lost("third")
        ((to, said),) = confirms(made.run(0.2))
        assert (to, said.reached) == (PEER, reached("self", "other"))
        assert said.missing == reached("deep", "third")

    def test_a_registration_names_them(self) -> None:
        """A registration that waits is answered in time, and names whom it is not visible at."""
        made = linked("peer")
        assert replies(made.register(wait=5)) == []
        assert replies(made.run(4.9)) == []
        (answer,) = replies(made.run(0.2))
        assert answer.message[-1] == "visible at 1 of 2 registries after 5000 ms; missing: http://peer:1"

    def test_whoever_was_reached_by_another_way_is_not_missing(self) -> None:
        """A registry that one peer names as missing and another as reached, was reached."""
        made = linked("peer", "other", "third")
        done = asked(made)
        made.delivered(send_to(done, "other"), receipts=[receipt("other", missing=("deep",))])
        last = made.delivered(send_to(done, "third"), receipts=[receipt("third", "deep")])
        ((_, said),) = confirms(last + made.run(1))
        assert said.missing == ()
        assert canonical(url_of("deep")) in said.reached

    def test_a_late_receipt_changes_nothing(self) -> None:
        """A receipt that comes after the time is over is read and forgotten."""
        made = linked("peer", "other")
        send = send_to(asked(made), "other")
        made.run(9)
        assert confirms(made.delivered(send, receipts=[receipt("other")])) == []

    def test_of_a_peer_that_was_not_asked(self) -> None:
        """A receipt of somebody who was not asked counts nobody as reached."""
        made = linked("peer", "other", "third")
        made.connect("stranger")
        made.update("peer", delta(FAR, ZERO, v(1), record(1)), asks=[ask()])
        made.update("peer", receipts=[receipt("invented")])
        (open_ask,) = made.registry.receipts.open.values()
        assert canonical(url_of("invented")) not in open_ask.reached


class TestLoss:
    def test_a_lost_confirmation_is_repeated(self) -> None:
        """A confirmation whose message is lost is said again, until it is answered, and then no more."""
        made = linked("peer", "other")
        send = send_to(asked(made), "other")
        made.run(0.2)
        first = confirms(made.delivered(send, receipts=[receipt("other")]))
        made.lost("peer")
        done = made.run(1)
        assert confirms(done) == first
        made.delivered(send_to(done, "peer"))
        assert confirms(made.run(10)) == []
        assert made.registry.standing().idle

    def test_a_confirmation_that_waits_is_not_idle(self) -> None:
        """While a confirmation waits for its next try, the registry is not idle."""
        made = linked("peer", "other")
        send = send_to(asked(made), "other")
        made.run(0.2)
        made.delivered(send, receipts=[receipt("other")])
        made.lost("peer")
        assert not made.registry.standing().idle

    def test_a_lost_ask_is_repeated(self) -> None:
        """An ask whose message is lost is asked again, with the time that is left."""
        made = linked("peer", "other")
        asked(made)
        made.clock += 1
        made.lost("other")
        (send,) = news(made.run(1))
        assert 0 < send.asks[0].within < (8 - 1) * SHARE

    def test_a_leaf_says_the_same_again(self) -> None:
        """A peer whose answer was lost asks again, and gets the same receipt: its own copy is no second one."""
        made = linked("peer")
        first = given(asked(made))
        assert given(asked(made)) == first
        assert first[0].reached == (SELF,)

    def test_who_waits_itself_goes_on_waiting(self) -> None:
        """A peer that asks again, while others are still asked, is confirmed once they have answered."""
        made = linked("peer", "other")
        send = send_to(asked(made), "other")
        made.run(0.2)
        assert given(asked(made)) == []
        ((to, said),) = confirms(made.delivered(send, receipts=[receipt("other")]))
        assert (to, said.reached) == (PEER, reached("self", "other"))

    def test_an_ask_that_did_not_leave(self) -> None:
        """An ask is said even if the peer has the change by a message that could not carry it, a handshake."""
        made = linked("peer")
        made.refused("peer")
        (greeting,) = sends(made.run(10))
        assert greeting.route == "/connect"
        made.register(wait=5)
        done = made.delivered(greeting, marks={SELF: list(made.registry.own.version)}) + made.run(1)
        (send,) = [send for send in sends(done) if send.asks]
        assert send.peer == PEER

    def test_not_beyond_its_time(self) -> None:
        """An ask whose time is over is not repeated."""
        made = linked("peer", "other")
        asked(made)
        made.run(9)
        made.lost("other")
        assert all(send.asks == () for send in sends(made.run(1)))


class TestLeaving:
    def test_a_peer_that_leaves_is_not_waited_for(self) -> None:
        """Nobody waits for a peer that has left: the registration is answered by what the others say."""
        made = linked("peer")
        made.register(wait=5)
        done = made.farewell("peer")
        said = [answer for answer in replies(done) if answer.ticket == 7]
        assert [answer.message[-1] for answer in said] == ["visible at 1 of 1 registries in 0 ms"]

    def test_an_asker_that_leaves_is_told_nothing(self) -> None:
        """Nothing is confirmed to a peer that asked and has left meanwhile."""
        made = linked("peer", "other")
        send = send_to(asked(made), "other")
        made.farewell("peer")
        done = made.delivered(send, receipts=[receipt("other")]) + made.run(1)
        assert confirms(done) == []
        assert all(not isinstance(step, Reply) for step in done)
