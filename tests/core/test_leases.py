"""Leases (FEDERATION.md, rule 13): who beats is online, who falls silent is offline, who stays away is dropped."""

from __future__ import annotations

import pytest

from kodo.core import events as ev
from kodo.core.instructions import Reply, Wake
from kodo.core.leases import AT_ONCE, FREEZE, SWEEP
from kodo.errors import InvalidMessageError, UnknownServiceError
from kodo.models import Node, canonical
from tests.core.steps import NOW, ZERO, Desk, delta, news, record, refuses, reply, url_of, v, written

LEASE, RETENTION = 30.0, 1000.0


def desk(**timing: float) -> Desk:
    return Desk(**{"lease": LEASE, "retention": RETENTION, **timing})


def beating(*names: str, **timing: float) -> Desk:
    """A registry at which these nodes are registered, and have just beaten."""
    made = desk(**timing)
    for name in names:
        made.register(name)
        made.beat(name)
    return made


def keep_beating(made: Desk, name: str, seconds: float, every: float = LEASE / 3) -> None:
    """Time passes, in which one node beats."""
    end = made.clock + seconds
    while made.clock < end:
        made.beat(name)
        made.run(min(every, end - made.clock))


class TestBeat:
    def test_the_reply_names_the_lease(self) -> None:
        """A beat is answered with the seconds that the node may be silent."""
        made = desk()
        made.register()
        assert reply(made.beat()).lease == LEASE

    def test_a_registration_names_it_to_a_node_that_will_beat(self) -> None:
        """A registration is answered with a lease if the node will beat, and only then."""
        made = desk()
        assert reply(made.register()).lease is None
        event = ev.Register(made.at(), ticket=1, node=ev.Registration(url=url_of("other"), flows=[]), beats=True)
        assert reply(made.step(event)).lease == LEASE

    def test_of_a_node_nobody_knows(self) -> None:
        """A beat of a node that never registered is answered 404."""
        made = desk()
        refuses(made, ev.Heartbeat(made.at(), ticket=6, url=url_of("node")), UnknownServiceError)

    def test_of_this_service_itself(self) -> None:
        """A beat in the own name is refused: the own flows have no lease that could run out."""
        own = Node(url=url_of("self"), flows={})
        made = desk()
        made.step(ev.Start(made.at(), own=own, unix=200, nonce="ef"))
        assert made.listed() == ["self"]
        refuses(made, ev.Heartbeat(made.at(), ticket=6, url=url_of("self")), InvalidMessageError)

    def test_of_a_node_known_through_a_peer(self) -> None:
        """A beat of a node that is registered elsewhere only is answered 404: its lease lives at its origin."""
        made = desk()
        made.connect()
        made.update("peer", delta("peer", ZERO, v(1), record(1)))
        assert made.listed() == ["node"]
        refuses(made, ev.Heartbeat(made.at(), ticket=6, url=url_of("node")), UnknownServiceError)

    def test_of_a_node_on_behalf_of_an_older_service(self) -> None:
        """A beat of a node that an older service told of is answered 404, though it stands in the own part."""
        made = desk()
        made.older("old", {"url": url_of("node"), "flows": []})
        assert made.row() is not None
        refuses(made, ev.Heartbeat(made.at(), ticket=6, url=url_of("node")), UnknownServiceError)

    def test_of_a_node_that_has_left(self) -> None:
        """A beat of a node that has left is answered 404."""
        made = beating("node")
        made.farewell("node")
        refuses(made, ev.Heartbeat(made.at(), ticket=6, url=url_of("node")), UnknownServiceError)

    def test_alone_it_saves_and_tells_nothing(self) -> None:
        """A beat that changes no status saves nothing, sends nothing and moves no version."""
        made = beating("node")
        made.here = {"peer"}
        made.connect()
        made.run(1)
        version = made.registry.own.version
        done = made.beat()
        assert {type(step) for step in done} == {Reply, Wake}
        assert made.registry.own.version == version
        assert reply(done).standing.idle

    def test_it_moves_status_and_heartbeat_alone(self) -> None:
        """The first beat makes a node online: `heartbeat` moves, `modified`, `created` and the flows do not."""
        made = desk()
        made.register()
        made.run(7)
        (entry,) = written(made.beat())
        assert (entry.node.status, entry.node.heartbeat) == ("online", made.utc())
        assert (entry.node.created, entry.node.modified, entry.node.flows) == (NOW, NOW, None)
        assert entry.flows_seq == 1


class TestStatus:
    def test_a_node_that_never_beats(self) -> None:
        """A node that never beat has no lease: it stays unknown and is never dropped."""
        made = beating("other")
        made.register("node")
        keep_beating(made, "other", 3 * RETENTION)
        assert made.status("node") == "unknown"

    def test_its_way(self) -> None:
        """A node goes unknown, online, offline and is dropped; each change is told to the peers, once, and no beat."""
        made = beating("other")
        made.connect()
        made.here = {"peer"}
        made.run(1)
        made.follow(made.register("node"))
        told, seen = 0, [made.status("node")]
        done = made.follow(made.beat("node"))
        while made.clock < LEASE + RETENTION + 60:
            told += len(news(done))
            if made.status("node") != seen[-1]:
                seen.append(made.status("node"))
            done = made.follow(made.beat("other")) + made.run(1)
        assert seen == ["unknown", "online", "offline", None]
        assert told == 3

    def test_silence_is_shown_within_a_lease_and_a_sweep(self) -> None:
        """A silent node is online until its lease is over, and offline one sweep later at the latest."""
        made = beating("node")
        made.run(LEASE - 0.1)
        assert made.status() == "online"
        made.run(SWEEP + 0.1)
        assert made.status() == "offline"

    def test_who_beats_in_time_is_never_offline(self) -> None:
        """A node that beats thrice in a lease is never shown offline."""
        made = beating("node")
        for _ in range(100):
            made.run(LEASE / 3)
            assert written(made.beat()) == []
        assert made.status() == "online"

    def test_back_before_it_is_dropped(self) -> None:
        """A node that was offline is online with its next beat, keeps its flows, and is not dropped afterwards."""
        made = beating("node", "other")
        keep_beating(made, "other", RETENTION / 2)
        assert made.status() == "offline"
        made.beat()
        assert made.status() == "online"
        keep_beating(made, "other", RETENTION / 2 + LEASE + SWEEP)
        assert made.status() == "offline"

    def test_dropping_lapses_and_hides_nothing_else(self) -> None:
        """A node that is dropped here stays listed if it is registered elsewhere, even with an older registration."""
        made = desk()
        made.connect()
        made.update("peer", delta("peer", ZERO, v(1), record(1)))
        made.register("node")
        made.beat("node")
        made.register("other")
        keep_beating(made, "other", RETENTION + LEASE + 2 * SWEEP)
        own = made.row()
        assert own is not None
        assert (own.gone, own.left) == (True, False)
        assert made.listed() == ["node", "other"]

    def test_registering_is_a_sign_of_life(self) -> None:
        """Who has a lease renews it by registering; who was offline is online by it."""
        made = beating("node")
        made.run(LEASE + SWEEP)
        assert made.status() == "offline"
        (entry,) = written(made.register())
        assert entry.node.status == "online"
        made.run(LEASE - 1)
        made.register()
        made.run(LEASE - 1)
        assert made.status() == "online"

    def test_registering_after_it_was_dropped(self) -> None:
        """A node that was dropped and registers again is listed, as unknown until it beats."""
        made = beating("node", "other")
        keep_beating(made, "other", RETENTION + LEASE + 2 * SWEEP)
        assert made.status() is None
        made.register()
        assert made.status() == "unknown"
        made.beat()
        assert made.status() == "online"

    def test_leaving_ends_the_lease(self) -> None:
        """A node that left and registers again without beating has no lease from before."""
        made = beating("node")
        made.farewell("node")
        made.register()
        made.run(LEASE + 2 * SWEEP)
        assert made.status() == "unknown"


class TestPauses:
    @pytest.mark.parametrize("pause", [LEASE, 3600.0, 10 * RETENTION])
    def test_a_late_sweep_makes_up_for_its_pause(self, pause: float) -> None:
        """A registry that slept shows nobody offline for it, drops nobody, and does so afterwards in due time."""
        made = beating("node", "away")
        keep_beating(made, "node", LEASE + SWEEP)
        assert made.status("away") == "offline"
        made.clock += pause
        made.tick()
        assert (made.status("node"), made.status("away")) == ("online", "offline")
        made.run(LEASE + SWEEP)
        assert made.status("node") == "offline"

    def test_who_beats_before_the_late_sweep(self) -> None:
        """A node that beats after a pause, before the sweep, has a lease from then on, not one that is longer."""
        made = beating("node")
        made.run(1)
        made.clock += 500
        made.beat()
        made.tick()
        made.run(LEASE + SWEEP)
        assert made.status() == "offline"

    def test_restarts_put_nothing_off(self) -> None:
        """A node that stays away is dropped after its retention, however often the registry starts meanwhile."""
        made = beating("node", "away")
        keep_beating(made, "node", LEASE + SWEEP)
        for _ in range(6):
            made.restart()
            keep_beating(made, "node", RETENTION / 5)
        assert (made.status("node"), made.status("away")) == ("online", None)

    def test_a_short_lease(self) -> None:
        """A pause that is short for a sweep but long for a lease is made up for as well."""
        made = beating("node", lease=2.0)
        made.run(SWEEP - 1)
        made.beat()
        made.clock += SWEEP - 0.5
        made.tick()
        assert made.status() == "online"

    def test_whom_it_shows_offline_is_written_so(self) -> None:
        """Whoever a late sweep shows offline is written so at once, however the times round."""
        made = desk(lease=6 * SWEEP)
        made.clock = 19.1
        made.register()
        made.beat()
        made.run(6 * SWEEP - 1)
        made.clock = 119.5
        made.tick()
        assert made.registry.leases.status(canonical(url_of("node"))) == made.status() == "offline"

    def test_restart_resumes_leases(self) -> None:
        """After a restart an online node has a whole lease again, and an offline one is not dropped at once."""
        made = beating("node", "away")
        keep_beating(made, "node", LEASE + SWEEP)
        made.restart(pause=10 * RETENTION)
        made.run(LEASE - 1)
        assert (made.status("node"), made.status("away")) == ("online", "offline")
        made.run(SWEEP + 1)
        assert made.status("node") == "offline"
        made.register("other")
        made.beat("other")
        keep_beating(made, "other", RETENTION)
        assert made.status("away") is None

    def test_restart_knows_who_never_beat(self) -> None:
        """After a restart a node that never beat has no lease."""
        made = desk()
        made.register()
        made.restart(pause=1)
        made.run(10 * LEASE)
        assert made.status() == "unknown"

    def test_no_step_ends_more_than_so_many(self) -> None:
        """When many run out at once, no step ends more than 256 leases, and the next follows at once."""
        names = [f"n{at}" for at in range(2 * AT_ONCE + 50)]
        made = beating(*names)
        made.clock = made.wake or 0.0
        made.tick()
        while all(made.status(name) == "online" for name in ("n0", "n1")):
            made.clock = made.wake or 0.0
            counts = [len(written(made.tick()))]
        for _ in range(2):
            assert made.wake == made.clock
            counts.append(len(written(made.tick())))
        assert counts == [AT_ONCE, AT_ONCE, 50]
        assert all(made.status(name) == "offline" for name in names)


class TestCutOff:
    """A registry that hears from few or from nobody doubts itself first."""

    def cut_off(self, *names: str, peers: int = 2) -> Desk:
        """A registry with nodes that have just beaten, whose peers are all away by now."""
        made = beating(*names)
        for at in range(peers):
            made.connect(f"p{at}")
        made.away = {f"p{at}" for at in range(peers)}
        made.run(0.2)
        for at in range(peers):
            made.lost(f"p{at}")
        return made

    def test_freeze(self) -> None:
        """When most leases run out at once and most peers are away, nobody is shown offline, and replies say so."""
        made = self.cut_off("a", "b", "c")
        made.run(LEASE + SWEEP)
        assert [made.status(name) for name in "abc"] == ["online"] * 3
        assert made.registry.standing().frozen

    def test_the_silent_are_told_from_those_that_beat(self) -> None:
        """While expiry is frozen it is said who would be offline, and who beats is not among them."""
        made = self.cut_off("a", "b", "c")
        keep_beating(made, "a", LEASE + SWEEP)
        silent = made.registry.leases.silent
        assert (made.registry.standing().frozen, silent(made.clock)) == (True, ["http://b:1", "http://c:1"])
        made.beat("b")
        assert silent(made.clock) == ["http://c:1"]
        made.run(2 * FREEZE * LEASE)
        assert silent(made.clock) == []

    def test_it_is_bounded(self) -> None:
        """The freeze ends after so many leases, whoever is still away; then the silent are offline."""
        made = self.cut_off("a", "b", "c")
        made.run(LEASE + FREEZE * LEASE - 1)
        assert [made.status(name) for name in "abc"] == ["online"] * 3
        made.run(2 * SWEEP + 1)
        assert [made.status(name) for name in "abc"] == ["offline"] * 3
        assert not made.registry.standing().frozen
        made.run(FREEZE * LEASE)
        assert not made.registry.standing().frozen

    def test_not_while_most_peers_are_there(self) -> None:
        """Nothing is frozen while half of the peers answer: then it is the nodes that are away."""
        made = self.cut_off("a", "b", "c")
        made.connect("p0")
        made.here, made.away = {"p0"}, {"p1"}
        made.run(LEASE + SWEEP)
        assert [made.status(name) for name in "abc"] == ["offline"] * 3

    def test_not_while_most_nodes_beat(self) -> None:
        """Nothing is frozen while half of the nodes beat, however few peers are there."""
        made = self.cut_off("a", "b")
        keep_beating(made, "a", LEASE + 2 * SWEEP)
        assert (made.status("a"), made.status("b")) == ("online", "offline")

    def test_without_peers_nothing_is_frozen(self) -> None:
        """A registry that is connected with nobody cannot tell, and shows silent nodes offline."""
        made = beating("a", "b")
        made.run(LEASE + SWEEP)
        assert (made.status("a"), made.status("b")) == ("offline", "offline")

    def test_a_registry_that_hears_nobody_drops_nobody(self) -> None:
        """A registry that hears from nobody at all does not empty itself."""
        made = beating("a", "b")
        made.run(10 * RETENTION)
        assert made.listed() == ["a", "b"]
        assert (made.status("a"), made.status("b")) == ("offline", "offline")

    def test_nor_does_the_first_that_is_heard_again(self) -> None:
        """Once somebody is heard again, the others have a lease to come back before they are dropped."""
        made = beating("a", "b", "c")
        made.run(10 * RETENTION)
        keep_beating(made, "a", LEASE - 1)
        assert made.listed() == ["a", "b", "c"]
        made.beat("b")
        keep_beating(made, "a", LEASE)
        assert made.listed() == ["a", "b"]

    def test_a_freeze_that_ends_early(self) -> None:
        """Once the peers are there again, silent nodes have a lease to come back before they are shown offline."""
        made = self.cut_off("a", "b", "c")
        made.run(3 * LEASE)
        made.here, made.away = {"p0", "p1"}, set()
        made.connect("p0")
        made.connect("p1")
        made.run(LEASE - 1)
        assert [made.status(name) for name in "abc"] == ["online"] * 3
        made.beat("a")
        made.run(2 * SWEEP + 1)
        assert [made.status(name) for name in "abc"] == ["online", "offline", "offline"]

    def test_a_peer_is_somebody(self) -> None:
        """What a peer says is heard as well: then nodes that stay away are dropped."""
        made = beating("a")
        made.connect("peer")
        made.here = {"peer"}
        made.run(RETENTION + LEASE + 2 * SWEEP)
        assert made.listed() == []
