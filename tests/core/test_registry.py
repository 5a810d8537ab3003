"""The registry by its steps: what PROTOCOL.md fixes, as events in and instructions out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kodo.core import events as ev
from kodo.core.instructions import Instruction, Save, Wake
from kodo.core.parts import Carried, Row
from kodo.core.registry import Profile, Registry
from kodo.errors import InvalidMessageError
from kodo.models import Node, PeerReply, Registration, Version, canonical, digest
from tests.core.steps import (
    FLOWS,
    LATER,
    NODE,
    NOW,
    OTHER,
    PEER,
    SELF,
    answered,
    at,
    connect,
    register,
    reply,
    row,
    saved,
    sends,
    started,
    update,
)


def lost_again_and_again(registry: Registry, times: int) -> tuple[list[float], float]:
    """Lose each message to the peer, and send the next when it is due: the pauses between, and the time it is then."""
    clock, pauses = 0.0, []
    for _ in range(times):
        done = registry.step(ev.Lost(at(clock, chance=0.999), peer=PEER))
        (wake,) = [step for step in done if isinstance(step, Wake)]
        pauses.append(wake.at - clock)
        clock = wake.at
        while not sends(done := registry.step(ev.Tick(at(clock)))):
            (wake,) = [step for step in done if isinstance(step, Wake)]
            pauses[-1] += wake.at - clock
            clock = wake.at
    return pauses, clock


class TestRegister:
    def test_first_visit(self) -> None:
        """At the first visit all three times are now, and the message says so."""
        registry, _ = started()
        done = register(registry)
        (entry,) = saved(done).entries
        assert (entry.node.created, entry.node.modified, entry.node.heartbeat) == (NOW, NOW, NOW)
        assert reply(done).message == ("registered node http://node:1 (first visit)",)

    def test_seen_previously(self) -> None:
        """At a later visit `created` stays, the other times move, and the message shows `created`."""
        registry, _ = started()
        done = register(registry, (row(),), LATER)
        (entry,) = saved(done).entries
        assert (entry.node.created, entry.node.modified, entry.node.heartbeat) == (NOW, LATER, LATER)
        seen = "registered node http://node:1 (seen previously 2024-12-25 18:03:12.989989)"
        assert reply(done).message == (seen,)

    def test_known_through_a_peer_only(self) -> None:
        """A node so far known through a peer that now registers here keeps its `created`."""
        registry, _ = started()
        done = register(registry, (row(origin=PEER),), LATER)
        assert saved(done).entries[0].node.created == NOW
        assert "seen previously" in reply(done).message[0]

    def test_modified_is_above_what_is_listed(self) -> None:
        """`modified` is one microsecond above what is listed when the clock is behind it."""
        registry, _ = started()
        (entry,) = saved(register(registry, (row("2030-01-01T00:00:00.000000", PEER),))).entries
        assert entry.node.modified == "2030-01-01T00:00:00.000001"

    def test_the_end_of_the_calendar(self) -> None:
        """A `modified` at the end of the calendar cannot be passed, and is no error."""
        registry, _ = started()
        end = "9999-12-31T23:59:59.999999"
        (entry,) = saved(register(registry, (row(end, PEER),))).entries
        assert entry.node.modified == end

    def test_duplicates_in_a_list(self) -> None:
        """Of flows with the same url in a list the last wins, and the message counts them."""
        registry, _ = started()
        done = register(registry, flows=[*FLOWS, {"url": "/b", "name": "b"}, {"url": "/a", "name": "last"}])
        assert reply(done).message[1] == "received 3 flows, registered 2 flows"
        flows = saved(done).entries[0].node.flows
        assert isinstance(flows, dict)
        assert flows["/a"].name == "last"

    def test_own_url(self) -> None:
        """A service's own url as the sender is refused before anything changes."""
        registry, _ = started()
        version = registry.own.version
        with pytest.raises(InvalidMessageError):
            register(registry, url="http://SELF:1/")
        assert registry.own.version == version

    def test_the_same_flows_keep_their_count(self) -> None:
        """A node that registers the same again changes its times, not the count at which its flows changed."""
        registry, _ = started()
        register(registry)
        (entry,) = saved(register(registry, (row(),), LATER)).entries
        assert (entry.seq, entry.flows_seq) == (2, 1)


class TestFeedForward:
    def test_each_peer_is_named_and_told(self) -> None:
        """A registration is told to each peer with `feed`, the message names them, and `idle` is false."""
        registry, _ = started()
        for url in ("http://peer:1", "http://other:1"):
            connect(registry, url)
            answered(registry, canonical(url))
        connect(registry, "http://provider:1", feed=False)
        done = register(registry)
        assert reply(done).message[1:] == (
            "feed forward node to http://other:1",
            "feed forward node to http://peer:1",
        )
        assert not reply(done).standing.idle
        assert [send.peer for send in sends(done)] == [OTHER, PEER]

    def test_first_at_once_later_gathered(self) -> None:
        """The first news leaves at once; the next waits until the first is answered and the window is over."""
        registry, _ = started()
        connect(registry)
        answered(registry)
        register_at = ev.Register(
            at(10), ticket=1, node=Registration.model_validate({"url": "http://n:1", "flows": []})
        )
        assert len(sends(registry.step(register_at))) == 1
        assert sends(registry.step(replace(register_at, at=at(10.01)))) == []
        carried = {SELF: Carried(Version(), registry.own.version.at(1))}
        done = registry.step(
            ev.Delivered(at(10.02), peer=PEER, route="/update/node", carried=carried, reply=PeerReply())
        )
        assert [type(step) for step in done] == [Save, Wake]
        assert done[1] == Wake(10.1)
        assert len(sends(registry.step(ev.Tick(at(10.1))))) == 1

    def test_no_news_no_lines(self) -> None:
        """A registry that connects with nothing new is forwarded to nobody."""
        registry, _ = started()
        connect(registry)
        assert reply(connect(registry, "http://other:1")).message == (
            "registry http://other:1 connected (first visit)",
        )

    def test_news_of_a_registry_names_it(self) -> None:
        """A registry that connects with news is forwarded under its url, to the other peers."""
        registry, _ = started()
        connect(registry)
        answered(registry)
        done = connect(registry, "http://other:1", nodes=[{"url": "http://node:1", "flows": []}])
        assert reply(done).message[1] == "feed forward http://other:1 to http://peer:1"
        assert [send.peer for send in sends(done)] == [PEER]

    def test_what_came_from_a_peer_is_not_told_back(self) -> None:
        """A delta that a peer sends is acknowledged by it, even if another brought the same before."""
        registry, _ = started()
        for url in ("http://peer:1", "http://other:1"):
            connect(registry, url, marks={})
            answered(registry, canonical(url))
        delta = {"origin": "http://far:1", "since": [0, "", 0], "to": [5, "cd", 1], "records": {}}
        first = update(registry, deltas=[delta], marks={})
        assert [send.peer for send in sends(first)] == [OTHER]
        update(registry, url="http://other:1", deltas=[delta], marks={})
        registry.step(ev.Lost(at(1), peer=OTHER))
        assert [send for send in sends(registry.step(ev.Tick(at(100)))) if send.beacon is None] == []


class TestConnect:
    def test_feed_asks_for_an_offer(self) -> None:
        """With `feed` the reply offers everything; without, it is the common reply."""
        registry, _ = started()
        assert reply(connect(registry)).offer is not None
        assert reply(connect(registry, "http://other:1", feed=False)).offer is None

    def test_seen_previously(self) -> None:
        """The second visit tells the time of the first."""
        registry, _ = started()
        connect(registry)
        assert reply(connect(registry)).message == (
            "registry http://peer:1 connected (seen previously 2024-12-25 18:03:12.989989)",
        )

    def test_nothing_is_awaited(self) -> None:
        """The answer comes in the step itself, whoever the sender and whatever it names."""
        registry, _ = started()
        done = connect(registry, nodes=[{"url": "http://unreachable:9", "flows": []}])
        assert reply(done).ticket == 8
        assert sends(done) == []

    def test_nodes_without_times_are_stamped(self) -> None:
        """Nodes without times get those of the receiver; what the sender says of their status is ignored."""
        registry, _ = started()
        (entry,) = saved(connect(registry, nodes=[{"url": "http://node:1", "flows": [], "status": "online"}])).entries
        assert (entry.node.created, entry.node.modified, entry.node.heartbeat) == (NOW, NOW, NOW)
        assert (entry.node.status, entry.via) == ("unknown", PEER)

    def test_a_time_ahead(self) -> None:
        """A time more than a day ahead is refused in a plain message, and taken as written inside a delta."""
        registry, _ = started()
        ahead = {"url": "http://node:1", "flows": [], "modified": "2024-12-27T18:03:12.989989"}
        with pytest.raises(InvalidMessageError, match="modified"):
            connect(registry, nodes=[ahead])
        assert PEER not in registry.peers
        record = {"seq": 1, "node": ahead}
        delta = {
            "origin": "http://peer:1",
            "since": [0, "", 0],
            "to": [5, "cd", 1],
            "records": {"http://node:1": record},
        }
        assert saved(connect(registry, deltas=[delta], marks={})).staged[0][1].node.modified == ahead["modified"]

    def test_a_provider_takes_nothing(self) -> None:
        """What is offered to a provider is answered and not taken, in `/connect` and in `/update/node`."""
        registry, _ = started(Profile("http://self:1", provider=True))
        nodes = [{"url": "http://node:1", "flows": []}]
        assert saved(connect(registry, nodes=nodes)).entries == ()
        done = update(registry, nodes=nodes)
        assert reply(done).message == ()
        assert not any(isinstance(step, Save) for step in done)


class TestUpdate:
    def test_lines(self) -> None:
        """One line for each node, with the sender's url: created, or updated if it was known at all."""
        registry, _ = started()
        nodes = [{"url": "http://node:1", "flows": []}, {"url": "http://new:1", "flows": []}]
        done = update(registry, {NODE: (row(LATER),)}, nodes=nodes)
        assert reply(done).message == ("updated node http://peer:1", "created node http://peer:1")

    def test_an_unknown_sender_makes_no_peer(self) -> None:
        """News from an unknown sender is taken and makes no peer."""
        registry, _ = started()
        assert len(saved(update(registry, nodes=[{"url": "http://node:1", "flows": []}])).entries) == 1
        assert registry.peers == {}

    def test_feed_changes_no_subscription(self) -> None:
        """The `feed` of an update does not change whether the peer is told news."""
        registry, _ = started()
        connect(registry)
        answered(registry)
        update(registry, feed=False, nodes=[])
        assert registry.peers[PEER].told

    @pytest.mark.parametrize("modified", [NOW, "2024-12-25T18:03:12.989988"])
    def test_equal_or_older_changes_nothing(self, modified: str) -> None:
        """Plain news of a node that is not later than what is known of it changes nothing."""
        registry, _ = started()
        nodes = [{"url": "http://node:1", "flows": [], "modified": modified}]
        done = update(registry, {NODE: (row(origin=OTHER),)}, nodes=nodes)
        assert not any(isinstance(step, Save) for step in done)

    def test_a_delta_with_a_gap(self) -> None:
        """A delta that builds on what is not here changes nothing, and is answered with one's own mark."""
        registry, _ = started()
        connect(registry, marks={})
        delta = {"origin": "http://peer:1", "since": [5, "cd", 3], "to": [5, "cd", 4], "records": {}}
        done = update(registry, deltas=[delta], marks={})
        assert not any(isinstance(step, Save) for step in done)
        assert reply(done).marks == ()

    def test_an_older_delta_changes_nothing(self) -> None:
        """A delta that is not above one's own mark changes nothing: marks never fall."""
        registry, _ = started()
        connect(registry, marks={})
        for to in ([5, "cd", 4], [5, "cd", 2]):
            delta = {"origin": "http://peer:1", "since": [0, "", 0], "to": to, "records": {}}
            update(registry, deltas=[delta], marks={})
        assert registry.parts[PEER].version == Version(5, "cd", 4)

    def test_pages_of_two_peers_are_not_mixed(self) -> None:
        """A page continues only the pages of its own peer, without a gap."""
        registry, _ = started()
        for url in ("http://peer:1", "http://other:1"):
            connect(registry, url, marks={})
        page = {"origin": "http://far:1", "since": [0, "", 0], "to": [5, "cd", 2], "records": {}, "complete": False}
        update(registry, deltas=[page], marks={})
        rest = {"origin": "http://far:1", "since": [5, "cd", 2], "to": [5, "cd", 9], "records": {}}
        update(registry, url="http://other:1", deltas=[rest], marks={})
        assert canonical("http://far:1") not in registry.parts
        update(registry, deltas=[rest | {"since": [5, "cd", 3]}], marks={})
        assert canonical("http://far:1") not in registry.parts
        update(registry, deltas=[rest], marks={})
        assert registry.parts[canonical("http://far:1")].version == Version(5, "cd", 9)


class TestSending:
    def configured(self) -> tuple[Registry, list[Instruction]]:
        return started(Profile("http://self:1", connect=("http://peer:1",)))

    def test_a_registry_connects_at_once(self) -> None:
        """A registry greets what is in `connect` with its first step; the connection is null until it stands."""
        registry, done = self.configured()
        assert [(send.peer, send.route) for send in sends(done)] == [(PEER, "/connect")]
        assert registry.standing().connection == (("http://peer:1", None),)
        assert registry.standing().idle

    def test_a_node_registers(self) -> None:
        """A node registers with what is in `connect`."""
        _, done = started(Profile("http://self:1", registry=False, connect=("http://peer:1",)))
        assert [send.route for send in sends(done)] == ["/register"]

    def test_a_first_contact_is_retried_within_a_second_and_a_half(self) -> None:
        """A first contact is tried again with growing pauses of at most 1.5 s, for ever."""
        registry, _ = self.configured()
        pauses, _ = lost_again_and_again(registry, 50)
        assert pauses[0] < 0.2
        assert 1.0 < max(pauses) <= 1.5

    def test_pauses_between_registries_that_were_connected(self) -> None:
        """Between registries that were connected the pause grows to 60 s, with full jitter; a sign of life ends it."""
        registry, _ = started()
        connect(registry)
        answered(registry)
        register(registry)
        pauses, clock = lost_again_and_again(registry, 12)
        assert [round(pause) for pause in pauses] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
        assert 50 < pauses[-1] <= 60
        assert not registry.standing().idle
        registry.step(ev.Lost(at(clock), peer=PEER))
        assert len(sends(connect(registry, clock=clock))) == 0
        assert len(sends(answered(registry))) == 0
        assert registry.peers[PEER].failures == 0

    def test_connection_is_the_last_success(self) -> None:
        """`connection` holds the time of the last message that succeeded."""
        registry, _ = self.configured()
        greeted = PeerReply.model_validate({"providers": {"url": "http://peer:1", "feed": True}})
        registry.step(ev.Delivered(at(1, NOW), peer=PEER, route="/connect", carried={}, reply=greeted))
        assert registry.standing().connection == (("http://peer:1", NOW),)
        register(registry, utc=LATER)
        registry.step(ev.Delivered(at(3, LATER), peer=PEER, route="/update/node", carried={}, reply=PeerReply()))
        assert registry.standing().connection == (("http://peer:1", LATER),)

    def test_a_peer_by_another_name_is_one_peer(self) -> None:
        """A peer that was configured under another name than its own is one peer, reached where it was configured."""
        registry, _ = started(Profile("http://self:1", connect=("http://alias:1",)))
        connect(registry)
        greeted = PeerReply.model_validate({"providers": {"url": "http://peer:1", "feed": True}})
        registry.step(
            ev.Delivered(at(1), peer=canonical("http://alias:1"), route="/connect", carried={}, reply=greeted)
        )
        assert list(registry.peers) == [PEER]
        assert registry.peers[PEER].state.address == "http://alias:1"
        assert registry.standing().connection == (("http://alias:1", NOW),)

    def test_a_refusal_leads_to_a_handshake(self) -> None:
        """A peer that refuses news is greeted anew, after a pause, and never asked in a hurry."""
        registry, _ = started()
        connect(registry)
        answered(registry)
        register(registry)
        done = registry.step(ev.Refused(at(2, chance=0.9), peer=PEER))
        assert sends(done) == []
        (send,) = sends(registry.step(ev.Tick(at(100))))
        assert send.route == "/connect"


class TestStart:
    def test_a_new_epoch_each_time(self) -> None:
        """Every start takes an epoch above the stored one, even when the clock went back, and keeps the count."""
        registry, done = started()
        register(registry)
        again = Registry(registry.profile, registry.parts.values())
        again.step(ev.Start(at(), own=None, unix=50, nonce="cd"))
        assert saved(done).parts[0].version == Version(100, "ab", 0)
        assert again.own.version == Version(101, "cd", 1)
        assert again.own.epochs == (Version(100, "ab", 1),)

    def test_own_flows(self) -> None:
        """A service that is node and registry keeps `created` from its cache; `modified` is its start."""
        own = Node(url="http://self:1", flows={})
        registry = Registry(Profile("http://self:1"))
        kept = Row(SELF, SELF, "http://self:1", NOW, NOW, 1, 1, digest({}))
        done = registry.step(ev.Start(at(0, LATER), own=own, unix=1, nonce="", rows={SELF: (kept,)}))
        (entry,) = saved(done).entries
        assert (entry.node.created, entry.node.modified) == (NOW, LATER)

    def test_a_node_alone_has_no_times(self) -> None:
        """A pure node's own listing has null times."""
        _, done = started(Profile("http://self:1", registry=False), Node(url="http://self:1", flows={}))
        assert saved(done).entries[0].node.modified is None

    def test_a_service_that_is_no_node_any_more(self) -> None:
        """A registry that was a node before lists itself no more."""
        registry = Registry(Profile("http://self:1"))
        kept = Row(SELF, SELF, "http://self:1", NOW, NOW, 1, 1, digest({}))
        done = registry.step(ev.Start(at(), own=None, unix=1, nonce="", rows={SELF: (kept,)}))
        assert saved(done).entries[0].gone


def test_same_state_same_event_same_list() -> None:
    """The same events give the same instructions, whatever the order of sets."""

    def history() -> list[list[Instruction]]:
        registry, first = started(Profile("http://self:1", connect=("http://c:1", "http://b:1")))
        done = [first]
        for name in "zyx":
            done.append(connect(registry, f"http://{name}:1", nodes=[{"url": f"http://n{name}:1", "flows": []}]))
            done.append(answered(registry, canonical(f"http://{name}:1")))
        done.append(register(registry))
        return done

    assert history() == history()
