"""Reports: why something is listed or not, in words, and how far the others are."""

from __future__ import annotations

from typing import Any

import pytest

from kodo.core.report import MANY, Known, convergence, explain, explain_flow
from kodo.errors import InvalidMessageError
from kodo.models import Key, canonical
from tests.core.steps import FAR, LATER, NODE, NOW, PEER, SELF, ZERO, Desk, delta, record, url_of, v


def asked(made: Desk, flow: str | None = None, node: str = "node", flows: tuple[str, ...] = ("/a",)) -> dict[str, Any]:
    """The explanation, where every part that knows the node names these flows of it."""
    rows = made.store.rows(canonical(url_of(node)))
    offered: dict[Key, dict[str, str]] = {row.origin: {} if row.gone else dict.fromkeys(flows, "name") for row in rows}
    before = made.state()
    said = explain(made.registry, Known(url_of(node), rows, offered), flow, made.clock)
    assert made.state() == before, "a report changes nothing"
    return said


def states(said: dict[str, Any]) -> list[tuple[str, str]]:
    return [(found["origin"], found["state"]) for found in said["records"]]


def linked() -> Desk:
    made = Desk(beacon=1e6)
    made.here = {"peer"}
    made.follow(made.connect("peer"))
    made.run(1)
    return made


class TestExplain:
    def test_never_seen(self) -> None:
        """Of a node that nobody told of, that is said, and no record is shown."""
        said = asked(linked())
        assert (said["listed"], said["records"]) == (False, [])
        assert said["why"].startswith("never seen")

    @pytest.mark.parametrize("registry", ["self", "peer", "far"])
    def test_a_registry(self, registry: str) -> None:
        """Of a registry that is known, this one included, it is said that it is one, and no node."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(3), record(3)))
        said = asked(made, node=registry)
        assert (said["listed"], said["records"]) == (False, [])
        assert said["why"] == "it is known as a registry, and offers no flows itself"

    def test_listed(self) -> None:
        """A node that is registered here is listed, with its times, its count and no lease while it never beat."""
        made = linked()
        made.register()
        said = asked(made)
        assert (said["listed"], said["why"]) == (True, f"registered at {SELF}")
        (found,) = said["records"]
        assert (found["state"], found["status"], found["modified"]) == ("listed", "unknown", made.utc())
        assert (found["seq"], found["lease"], found["flow"]) == (1, None, None)

    def test_its_lease(self) -> None:
        """The lease that is left is told, at the origin alone."""
        made = linked()
        made.register()
        made.beat()
        made.clock += 10
        (found,) = asked(made)["records"]
        assert (found["status"], found["lease"]) == ("online", 20.0)
        made.clock += 100
        assert asked(made)["records"][0]["lease"] == 0.0

    def test_a_flow(self) -> None:
        """A flow that the node names is listed."""
        made = linked()
        made.register()
        said = asked(made, "/a")
        assert (said["listed"], said["records"][0]["flow"]) == (True, True)

    def test_another_flow(self) -> None:
        """Of a flow that the node does not name, it is said which it does."""
        made = linked()
        made.register()
        said = asked(made, "/b", flows=("/c", "/a"))
        assert (said["listed"], said["records"][0]["flow"]) == (False, False)
        assert said["why"].endswith("without this flow: it has the paths /a, /c")
        assert asked(made, "/b", flows=())["why"].endswith("it names no flow at all")

    def test_older(self) -> None:
        """Of a node with several registrations the newest decides and comes first; the others are older."""
        made = linked()
        made.register()
        made.update("peer", delta("far", ZERO, v(1), record(1, modified=LATER)))
        said = asked(made)
        assert said["why"] == f"registered at {FAR}, the newest of 2 registrations"
        assert states(said) == [(FAR, "listed"), (SELF, "older")]
        assert said["records"][0]["told_by"] == PEER
        assert said["records"][0]["version"] == [5, "cd", 1]

    def test_a_flow_of_an_older_registration(self) -> None:
        """A flow that only an older registration names is not listed."""
        made = linked()
        made.register()
        made.update("peer", delta("far", ZERO, v(1), record(1, modified=LATER)))
        offered = {SELF: {"/a": "a"}, FAR: {"/z": "z"}}
        rows = made.store.rows(NODE)
        said = explain(made.registry, Known(url_of("node"), rows, offered), "/a", made.clock)
        assert not said["listed"]
        assert [found["flow"] for found in said["records"]] == [False, True]

    def test_a_flow_by_its_name(self) -> None:
        """A name is as good as a path, where one flow has it; a path comes before a name."""
        made = linked()
        made.register()
        flows = {"/a": "first", "/b": "second", "/c": "/a", "/d": "both", "/e": "both"}
        known = Known(url_of("node"), made.store.rows(NODE), {SELF: flows})
        paths = {flow: explain(made.registry, known, flow, made.clock)["flow"] for flow in ("first", "/a", "/b", "no")}
        assert paths == {"first": "/a", "/a": "/a", "/b": "/b", "no": "no"}
        with pytest.raises(InvalidMessageError, match="expected a path, since http://node:1 has 2 flows of this name"):
            explain(made.registry, known, "both", made.clock)

    def test_a_flow_of_any_node(self) -> None:
        """Of one node that offers it, the answer is as if it was named; of several all are told; more than MANY are
        refused.
        """
        made = linked()
        made.register("node")
        made.register("other")
        names = ("node", "other")
        known = [Known(url_of(n), made.store.rows(canonical(url_of(n))), {SELF: {"/a": "a"}}) for n in names]
        assert explain_flow(made.registry, "a", known[:1], made.clock) == explain(
            made.registry, known[0], "/a", made.clock
        )
        said = explain_flow(made.registry, "a", known, made.clock)
        assert (said["node"], said["flow"], said["listed"]) == (None, "a", True)
        assert said["why"] == "2 nodes offer it: http://node:1/a, http://other:1/a"
        assert [found["node"] for found in said["records"]] == ["http://node:1", "http://other:1"]
        nobody = explain_flow(made.registry, "a", [], made.clock)
        assert (nobody["listed"], nobody["records"]) == (False, [])
        assert nobody["why"].startswith("no node that is listed here offers it")
        with pytest.raises(InvalidMessageError, match="expected a node as well"):
            explain_flow(made.registry, "a", known[:1] * (MANY + 1), made.clock)

    def test_left(self) -> None:
        """A node that left is said to have left, and where; older registrations are shown as such."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1, modified=NOW)))
        made.register()
        made.farewell("node")
        said = asked(made, "/a")
        assert (said["listed"], states(said)) == (False, [(SELF, "left"), (FAR, "older")])
        assert said["why"] == f"it has left {SELF}, and nobody registered it after that"
        assert said["records"][0]["flow"] is None

    def test_lapsed(self) -> None:
        """A node whose only registration lapsed is said to have lapsed."""
        made = linked()
        made.older("old", {"url": url_of("node"), "flows": []})
        made.connect_older("old")
        made.farewell("old")
        said = asked(made)
        assert (said["listed"], states(said)) == (False, [(SELF, "lapsed")])
        assert said["why"] == f"its registration at {SELF} has lapsed, and no other is known"

    def test_on_behalf(self) -> None:
        """A record on behalf of an older service says so."""
        made = linked()
        made.older("old", {"url": url_of("node"), "flows": []})
        said = asked(made)
        assert said["why"] == f"registered at {SELF} on behalf of http://old:1"
        assert said["records"][0]["on_behalf_of"] == "http://old:1"

    def test_age(self) -> None:
        """How long ago the origin was known to be there is told; for the own part it is nothing."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(1), record(1), age=100))
        made.register()
        made.clock += 7
        assert {found["origin"]: found["age"] for found in asked(made)["records"]} == {FAR: 107.0, SELF: 0.0}


class TestConvergence:
    def test_all_is_said(self) -> None:
        """When all is said, nobody is behind, and every origin is named with its version and age."""
        made = linked()
        made.follow(made.register())
        made.update("peer", delta("far", ZERO, v(3), record(3)))
        made.run(1)
        said = convergence(made.registry, made.clock)
        assert (said["registry"], said["idle"], said["frozen"]) == ("http://self:1", True, False)
        assert set(said["origins"]) == {SELF, FAR}
        assert said["origins"][FAR] == {"version": [5, "cd", 3], "age": 1.0, "stale": False, "told_by": PEER}
        peer = said["peers"]["http://peer:1"]
        assert (peer["state"], peer["behind"], peer["next_try"], peer["heard"]) == ("standing", {}, None, 1.0)

    def test_who_is_behind(self) -> None:
        """A peer that has not acknowledged is behind by so many changes, and it is said when it is tried next."""
        made = linked()
        made.follow(made.register())
        acked = list(made.registry.own.version)
        made.run(1)
        made.here = set()
        made.register()
        made.register()
        made.lost("peer")
        said = convergence(made.registry, made.clock)
        peer = said["peers"]["http://peer:1"]
        assert not said["idle"]
        assert peer["state"] == "away"
        assert peer["next_try"] == 0.2
        assert peer["behind"] == {SELF: {"known": list(made.registry.own.version), "acknowledged": acked, "changes": 2}}

    def test_who_has_nothing(self) -> None:
        """A peer that has acknowledged more than there is, of another past, is behind by all of it."""
        made = linked()
        made.register()
        made.registry.peers[PEER].acked[SELF] = made.registry.own.version.at(99)
        made.registry.peers[PEER].behind.add(SELF)
        said = convergence(made.registry, made.clock)["peers"]["http://peer:1"]["behind"][SELF]
        assert said["changes"] == 1

    def test_states(self) -> None:
        """A peer is standing, away, greeted, refusing or being left, in words."""
        made = linked()
        said = []
        for change in (lambda: made.refused("peer"), lambda: made.connect("peer"), lambda: made.refused("peer", 401)):
            change()
            said.append(convergence(made.registry, made.clock)["peers"]["http://peer:1"]["state"])
        assert said == ["away", "greeting", "refused 401"]
        made.connect("peer")
        made.leave()
        assert convergence(made.registry, made.clock)["peers"]["http://peer:1"]["state"] == "leaving"

    def test_who_refuses_is_tried_when_this_leaves(self) -> None:
        """Of a peer that answered 403 no next try is told, until it is to be told that this one leaves."""
        made = linked()
        made.follow(made.register())
        made.refused("peer", 403)
        said = []
        for _ in range(2):
            peer = convergence(made.registry, made.clock)["peers"]["http://peer:1"]
            said.append((peer["state"], peer["next_try"] is None))
            made.leave()
        assert said == [("refused 403", True), ("leaving", False)]

    def test_stale(self) -> None:
        """An origin of which nothing was heard for long is stale, and is told as such."""
        made = linked()
        made.update("peer", delta("far", ZERO, v(3), record(3)))
        made.run(400)
        assert convergence(made.registry, made.clock)["origins"][FAR]["stale"]
