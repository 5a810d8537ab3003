"""`GET /explain` and `GET /convergence`: why something is listed or not, and how far the others are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Served, Start
from tests.protocol.conftest import Launch, Old
from tests.protocol.helpers import ago, calm, connected, record, settled, stamped, told
from tests.waiting import until

NODE, SECOND, OTHER = "http://node1:3367", "http://node2:3367", "http://registry2:3368"
EXPLAIN = ["registry", "node", "flow", "listed", "why", "frozen", "records"]
RECORD = [
    "node",
    "origin",
    "state",
    "status",
    "created",
    "modified",
    "seq",
    "version",
    "on_behalf_of",
    "told_by",
    "age",
    "lease",
    "flow",
]
CONVERGENCE = ["registry", "idle", "frozen", "silent", "origins", "peers"]
ORIGIN = ["version", "age", "stale", "told_by"]
PEER = ["state", "deltas", "connected", "heard", "next_try", "behind", "why"]


def explained(served: Served, node: str, flow: str | None = None) -> dict[str, Any]:
    """The explanation, its shape checked."""
    asked = {"node": node} if flow is None else {"node": node, "flow": flow}
    reply: dict[str, Any] = served.get("/explain", **asked)
    assert list(reply) == EXPLAIN
    assert (reply["registry"], reply["node"], reply["flow"]) == (served.url, node, flow)
    assert all(list(each) == RECORD for each in reply["records"])
    return reply


def converged(served: Served) -> dict[str, Any]:
    """The state of convergence, its shape checked."""
    reply: dict[str, Any] = served.get("/convergence")
    assert list(reply) == CONVERGENCE
    assert reply["registry"] == served.url
    assert all(list(each) == ORIGIN for each in reply["origins"].values())
    assert all(list(each) == PEER for each in reply["peers"].values())
    return reply


# /explain


def test_a_node_nobody_knows(serve: Start) -> None:
    """A node that nobody has told of is not listed: never seen, with no record."""
    served = serve(node=False)
    reply = explained(served, NODE, "/a")
    assert (reply["listed"], reply["records"]) == (False, [])
    assert reply["why"].startswith("never seen")


@pytest.mark.parametrize("spelled", [NODE, "http://NODE1:3367/"])
def test_a_node_that_is_registered_here(serve: Start, spelled: str) -> None:
    """A node that is registered here, however its url is spelled: listed, with its times, its lease and its status."""
    served = serve(node=False, lease=7)
    served.post("/register", record(NODE, "a"))
    (row,) = served.flows()
    (only,) = explained(served, spelled)["records"]
    assert (only["origin"], only["state"], only["status"], only["lease"]) == (served.url, "listed", "unknown", None)
    assert (only["created"], only["modified"]) == (row["created"], row["modified"])
    assert (only["on_behalf_of"], only["told_by"], only["age"], only["flow"]) == (None, None, 0, None)
    assert only["version"][2] >= only["seq"] >= 1
    served.post("/heartbeat", {"url": NODE})
    reply = explained(served, spelled)
    assert reply["listed"] is True
    assert served.url in reply["why"]
    assert reply["records"][0]["status"] == "online"
    assert 6 <= reply["records"][0]["lease"] <= 7


def test_a_flow_of_a_node(serve: Start) -> None:
    """A flow is listed, or the node is there without it; then the reason names the flows that it has."""
    served = serve(node=False)
    served.post("/register", record(NODE, "a", "b"))
    assert explained(served, NODE, "/a")["listed"] is True
    reply = explained(served, NODE, "/c")
    assert reply["listed"] is False
    assert "/a, /b" in reply["why"]
    assert reply["records"][0]["flow"] is False
    served.post("/register", record(NODE))
    assert explained(served, NODE)["listed"] is True
    assert "no flow at all" in explained(served, NODE, "/a")["why"]


def test_a_node_at_two_registries(serve: Start) -> None:
    """Of two registrations the newer is listed and stands first, whichever registry is asked; the other is `older`."""
    first = serve(node=False)
    second = serve(node=False, connect=first.url)
    until(lambda: connected(second, first.url), "the connection")
    first.post("/register", record(NODE, "a"))
    settled(first, second)
    second.post("/register", record(NODE, "b"))
    settled(first, second)
    for served, other in ((first, second), (second, first)):
        reply = explained(served, NODE, "/b")
        assert reply["listed"] is True
        assert "the newest of 2 registrations" in reply["why"]
        assert [(each["origin"], each["state"]) for each in reply["records"]] == [
            (second.url, "listed"),
            (first.url, "older"),
        ]
        by_origin = {each["origin"]: each for each in reply["records"]}
        assert (by_origin[served.url]["told_by"], by_origin[other.url]["told_by"]) == (None, other.url)
        assert explained(served, NODE, "/a")["listed"] is False


def test_a_node_that_left(serve: Start) -> None:
    """A node that has left is not listed, and every registry says where it left and since when nobody has it."""
    first = serve(node=False)
    second = serve(node=False, connect=first.url)
    until(lambda: connected(second, first.url), "the connection")
    first.post("/register", record(NODE, "a"))
    settled(first, second)
    first.post("/disconnect", {"url": NODE})
    settled(first, second)
    for served in (first, second):
        reply = explained(served, NODE)
        assert reply["listed"] is False
        assert first.url in reply["why"]
        assert "left" in reply["why"]
        assert reply["records"][0]["state"] == "left"


def test_a_node_that_lapsed(serve: Start) -> None:
    """A node that was offline for too long has lapsed."""
    served = serve(node=False, lease=0.1, retention=0.1)
    serve(node=False, connect=served.url, beacon=0.05)
    served.post("/register", record(NODE, "a"))
    served.post("/heartbeat", {"url": NODE})
    until(lambda: not explained(served, NODE)["listed"], "the node to be dropped")
    reply = explained(served, NODE)
    assert "lapsed" in reply["why"]
    assert reply["records"][0]["state"] == "lapsed"


def test_a_node_of_an_older_service(serve: Start, old: Old) -> None:
    """What an older service told is listed on behalf of that service."""
    plain, served = old(), serve(node=False)
    plain.connect(served)
    plain.update(served, stamped(NODE, "a", created=ago(hours=1)))
    reply = explained(served, NODE, "/a")
    assert reply["listed"] is True
    assert plain.url in reply["why"]
    (only,) = reply["records"]
    assert (only["origin"], only["on_behalf_of"], only["flow"]) == (served.url, plain.url, True)


@pytest.mark.parametrize(
    "node", ["", "node1", "ftp://node1", "http://", "http://a b", "http://x:99999", "http://u@x", "http://x?y", "\x00"]
)
def test_a_bad_node(serve: Start, node: str) -> None:
    """What is no url is refused with 422, at `node`, and not echoed; so is a question without it."""
    served = serve(node=False)
    answer = served.client.get("/explain", params={"node": node})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "node"]
    assert not node or node == "http://" or node not in answer.text
    assert served.client.get("/explain").status_code == 422


def test_a_flow_by_its_name(serve: Start) -> None:
    """A flow is found by its path and by its name, at any registry; a name that two flows of a node have is refused."""
    first = serve(node=False)
    second = serve(node=False, connect=first.url)
    flows = [{"url": "/a", "name": "my test"}, {"url": "/b", "name": "two"}, {"url": "/c", "name": "two"}]
    first.post("/register", {"url": NODE, "flows": flows})
    until(lambda: len(second.flows()) == 3, "the flows")
    for served in (first, second):
        named = served.get("/explain", node=NODE, flow="my test")
        assert (named["flow"], named["listed"]) == ("/a", True)
        assert without_ages(served.get("/explain", flow="my test")) == without_ages(named)
        assert without_ages(served.get("/explain", flow="/a")) == without_ages(named)
        for asked in ({"node": NODE, "flow": "two"}, {"flow": "two"}):
            answer = served.client.get("/explain", params=asked)
            assert answer.status_code == 422
            assert answer.json()["detail"][0]["loc"] == ["query", "flow"]


def without_ages(reply: dict[str, Any]) -> dict[str, Any]:
    """A reply without what time changes."""
    return reply | {"records": [record | {"age": None} for record in reply["records"]]}


def test_a_flow_of_several_nodes(serve: Start) -> None:
    """A flow that several nodes offer is explained for each; of more than twenty one is to be named."""
    served = serve(node=False)
    other = "http://127.0.0.8:1"
    for node in (NODE, other):
        served.post("/register", record(node, "a"))
    reply = served.get("/explain", flow="a")
    assert list(reply) == EXPLAIN
    assert (reply["node"], reply["listed"]) == (None, True)
    assert sorted(each["node"] for each in reply["records"]) == sorted([NODE, other])
    assert f"{NODE}/a" in reply["why"]
    nobody = served.get("/explain", flow="nobody's")
    assert (nobody["listed"], nobody["records"]) == (False, [])
    for port in range(1, 21):
        served.post("/register", record(f"http://127.0.0.6:{port}", "a"))
    answer = served.client.get("/explain", params={"flow": "a"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "node"]


def test_hostile_questions(serve: Start) -> None:
    """No `node` and no `flow` gives a 500: NUL, long, percent-coded, and what no text can be."""
    served = serve(node=False)
    served.post("/register", record(NODE, "a"))
    bad = ["%00", "%ff", "%ed%a0%80", "a" * 20_000, "%27%3B--", "%F0%9F%98%80"]
    for text in bad:
        for query in (f"node={text}", f"node=http://{text}:1", f"node={NODE}&flow={text}", f"flow={text}"):
            answer = served.client.get(f"/explain?{query}")
            assert answer.status_code in (200, 422), (query[:60], answer.status_code)


def test_a_pure_node_explains_itself(serve: Start) -> None:
    """A pure node explains its own flows, knows no other node, and says how its registry is."""
    served = serve(node=False)
    node = serve(registry=False, connect=served.url, loader=["a"])
    until(lambda: connected(node, served.url), "the registration")
    reply = explained(node, node.url, "/a")
    assert (reply["listed"], reply["records"][0]["origin"]) == (True, node.url)
    assert explained(node, node.url, "/b")["listed"] is False
    assert explained(node, served.url)["listed"] is False
    state = converged(node)
    assert state["idle"] is True
    assert list(state["peers"]) == [served.url]
    assert (state["peers"][served.url]["state"], state["peers"][served.url]["behind"]) == ("standing", {})


# /convergence


def test_a_registry_by_itself(serve: Start) -> None:
    """A registry that knows nobody knows its own part, of age 0, and has no peers."""
    served = serve(node=False)
    state = converged(served)
    assert (state["idle"], state["frozen"], state["peers"]) == (True, False, {})
    (own,) = state["origins"].values()
    assert (own["age"], own["stale"], own["told_by"]) == (0, False, None)


def test_two_registries_that_agree(serve: Start) -> None:
    """Registries that agree know the same origins at the same versions, and owe each other nothing."""
    first = serve(node=False, beacon=0.1)
    second = serve(node=False, connect=first.url, beacon=0.1)
    until(lambda: connected(second, first.url), "the connection")
    first.post("/register", record(NODE, "a"))
    second.post("/register", record(SECOND, "b"))
    settled(first, second)
    states = [converged(first), converged(second)]
    versions = [{origin: each["version"] for origin, each in state["origins"].items()} for state in states]
    assert versions[0] == versions[1]
    assert set(versions[0]) == {first.url, second.url}
    for served, other, state in ((first, second, states[0]), (second, first, states[1])):
        peer = state["peers"][other.url]
        assert (peer["state"], peer["deltas"], peer["next_try"], peer["behind"]) == ("standing", True, None, {})
        assert state["origins"][other.url]["told_by"] == other.url
        assert state["origins"][served.url]["told_by"] is None


def test_a_peer_that_is_away(launch: Launch) -> None:
    """A peer that cannot be reached shows as away, with its next try and how many changes it is behind; then not."""
    first = launch(node=False, beacon=0.2)
    second = launch(node=False, connect=first.url, beacon=0.2)
    until(lambda: connected(second, first.url), "the connection")
    first.post("/register", record(NODE, "a"))
    settled(first, second)
    assert converged(first)["peers"][second.url]["behind"] == {}
    second.kill()
    until(lambda: converged(first)["peers"][second.url]["state"] == "away", "the peer to be away")
    for number in range(5):
        first.post("/register", record(f"http://more:{number + 1}", "b"))
    peer = converged(first)["peers"][second.url]
    assert (peer["state"], peer["deltas"]) == ("away", True)
    assert peer["next_try"] >= 0
    assert list(peer["behind"]) == [first.url]
    behind = peer["behind"][first.url]
    assert list(behind) == ["known", "acknowledged", "changes"]
    assert behind["changes"] == 5
    assert behind["known"][2] - behind["acknowledged"][2] == 5
    assert converged(first)["idle"] is False
    again = launch(node=False, url=second.url, beacon=0.2, connect=first.url)
    settled(first, again)
    peer = converged(first)["peers"][second.url]
    assert (peer["state"], peer["next_try"], peer["behind"]) == ("standing", None, {})


def test_an_older_peer_that_is_behind(serve: Start, old: Old) -> None:
    """An older peer that fails is away, without deltas, and behind by what it was not told."""
    plain, served = old(), serve(node=False)
    plain.connect(served)
    plain.failing = True
    served.post("/register", record(NODE, "a"))
    until(lambda: converged(served)["peers"][plain.url]["state"] == "away", "the peer to be away")
    peer = converged(served)["peers"][plain.url]
    assert (peer["deltas"], list(peer["behind"])) == (False, [served.url])
    plain.failing = False
    until(lambda: converged(served)["peers"][plain.url]["behind"] == {}, "the older one to be told")
    calm(served)


def test_a_peer_that_is_never_told(serve: Start) -> None:
    """A peer that wants no feed is owed nothing, whatever is registered."""
    served = serve(node=False)
    served.post("/connect", told(OTHER, feed=False))
    served.post("/register", record(NODE, "a"))
    assert converged(served)["peers"][OTHER]["behind"] == {}
