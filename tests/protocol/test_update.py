"""Fixed: registry → registry, `POST /update/node`; and the silence after it in every topology."""

from __future__ import annotations

import pytest

from tests.conftest import Served, Start, free_port
from tests.protocol.conftest import Old
from tests.protocol.helpers import (
    COMMON,
    RECORD,
    ago,
    calm,
    connected,
    flow,
    flow_urls,
    record,
    seen,
    settled,
    stamped,
    told,
)
from tests.waiting import until

NODE = "http://node1:3367"
OTHER = "http://registry2:3368"


def test_what_kodo_tells(serve: Start, old: Old) -> None:
    """The sourcing registry sends the news to its peers in the shape that is fixed, under its own url."""
    plain, served = old(), serve(node=False, organization="registry1")
    plain.connect(served)
    served.post("/register", record(NODE, "mytest"))
    until(lambda: plain.pushes(NODE), "the news")
    (body,) = plain.pushes()
    (row,) = served.flows()
    assert list(body) == ["url", "organization", "feed", "nodes"]
    assert (body["url"], body["organization"], body["feed"]) == (served.url, "registry1", False)
    assert list(body["nodes"]) == [NODE]
    assert list(body["nodes"][NODE]) == RECORD
    times = {name: row[name] for name in ("created", "modified", "heartbeat")}
    assert body["nodes"][NODE] == record(NODE, flow("mytest"), **times)
    assert plain.requests("/update/node")[0].content_type == "application/json"


def test_news_is_passed_on_under_the_own_url(serve: Start, old: Old) -> None:
    """Each passes the news on to its own other peers, under its own url, with the times of its origin."""
    served, source, other = serve(node=False, organization="registry1"), old(), old()
    source.connect(served)
    other.connect(served)
    created, modified = ago(hours=2), ago(hours=1)
    source.update(served, stamped(NODE, "a", created=created, modified=modified))
    until(lambda: other.pushes(NODE), "the news")
    (body,) = other.pushes()
    assert (body["url"], body["organization"]) == (served.url, "registry1")
    assert (body["nodes"][NODE]["created"], body["nodes"][NODE]["modified"]) == (created, modified)
    calm(served)
    assert source.pushes() == []


def test_the_reply(serve: Start) -> None:
    """The reply is the common reply; `message` has one line for each node, `created` or `updated node SENDER`."""
    served = serve(node=False)
    hour = ago(hours=1)
    first, second = stamped(NODE, "a", created=hour), stamped("http://node2:3367", created=hour)
    served.post("/connect", told(OTHER, feed=False))
    reply = served.post("/update/node", told(OTHER, first))
    assert list(reply) == COMMON
    assert reply["message"] == [f"created node {OTHER}"]
    assert served.post("/update/node", told(OTHER, first))["message"] == [f"updated node {OTHER}"]
    reply = served.post("/update/node", told(OTHER, first, second))
    assert reply["message"] == [f"updated node {OTHER}", f"created node {OTHER}"]
    assert served.post("/update/node", told(OTHER))["message"] == []
    assert flow_urls(served) == ["/a"]


def test_nodes_as_a_list(serve: Start) -> None:
    """`nodes` is an object keyed by node url, or a list."""
    served = serve(node=False)
    body = told(OTHER, stamped(NODE, "a", created=ago(hours=1)))
    body["nodes"] = list(body["nodes"].values())
    assert served.post("/update/node", body)["message"] == [f"created node {OTHER}"]
    assert flow_urls(served) == ["/a"]


def test_the_newer_record_wins(serve: Start) -> None:
    """Newer news replaces what is listed; older news, late, changes nothing."""
    served = serve(node=False)
    created = ago(hours=3)
    newer = stamped(NODE, "new", created=created, modified=ago(hours=1))
    older = stamped(NODE, "old", created=created, modified=ago(hours=2))
    served.post("/update/node", told(OTHER, newer))
    served.post("/update/node", told(OTHER, older))
    assert flow_urls(served) == ["/new"]
    newest = stamped(NODE, "newest", created=created, modified=ago(minutes=1))
    served.post("/update/node", told(OTHER, newest))
    assert flow_urls(served) == ["/newest"]


def test_news_that_is_none_is_not_passed_on(serve: Start, old: Old) -> None:
    """What is known already is told to nobody: then there is silence."""
    served, source, other = serve(node=False), old(), old()
    source.connect(served)
    other.connect(served)
    node = stamped(NODE, "a", created=ago(hours=1))
    for _ in range(4):
        source.update(served, node)
    until(lambda: other.pushes(NODE), "the news")
    last = stamped("http://node2:3367", created=ago(hours=1))
    source.update(served, last)
    until(lambda: other.pushes("http://node2:3367"), "the next news")
    calm(served)
    assert len(other.pushes(NODE)) == 1
    assert source.pushes() == []


def test_a_peers_own_nodes_never_come_back_to_it(serve: Start, old: Old) -> None:
    """An `/update/node` never contains the receiver's own nodes, in whichever way they were learned."""
    plain, served = old(), serve(node=False)
    plain.offer(stamped(NODE, "a", created=ago(hours=1)))
    plain.connect(served)
    plain.update(served, stamped("http://node2:3367", "b", created=ago(hours=1)))
    plain.connect(served)
    third = "http://node3:3367"
    served.post("/register", record(third, "c"))
    until(lambda: plain.pushes(third), "the news")
    calm(served)
    assert [set(body["nodes"]) for body in plain.pushes()] == [{third}]


def test_a_failed_push_is_repeated(serve: Start, old: Old) -> None:
    """News that a peer did not take waits for its next try, `idle` false, and gets through in the end."""
    plain, served = old(), serve(node=False)
    plain.connect(served)
    plain.failing = True
    served.post("/register", record(NODE, "a"))
    until(lambda: len(plain.pushes(NODE)) >= 2, "a second try")
    assert served.get()["idle"] is False
    plain.failing = False
    until(lambda: NODE in plain.listed, "the news to be taken")
    until(served.idle, "the service to be idle")


def ring(serve: Start, size: int) -> list[Served]:
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(size)]
    return [serve(url=url, node=False, connect=urls[(at + 1) % size]) for at, url in enumerate(urls)]


def clique(serve: Start, size: int) -> list[Served]:
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(size)]
    return [serve(url=url, node=False, connect=[each for each in urls if each != url]) for url in urls]


def mutual(serve: Start, size: int) -> list[Served]:
    return clique(serve, 2)


def chain(serve: Start, size: int) -> list[Served]:
    registries: list[Served] = []
    for _ in range(size):
        registries.append(serve(node=False, connect=[each.url for each in registries[-1:]]))
    return registries


@pytest.mark.parametrize("topology", [mutual, chain, ring, clique])
def test_all_agree_and_fall_silent(serve: Start, topology: object) -> None:
    """In rings, cliques, chains and mutual connections one change reaches all, and then there is silence."""
    assert callable(topology)
    registries: list[Served] = topology(serve, 4)
    for each in registries:
        until(lambda at=each: all(at.get()["connection"].values()), "the connections")  # type: ignore[misc]
    calm(*registries)
    for number, each in enumerate(registries):
        each.post("/register", record(f"http://node{number}:3367", "a"))
    until(lambda: all(len(each.flows()) == len(registries) for each in registries), "all to list all")
    settled(*registries)
    registries[0].post("/register", record("http://node0:3367", "changed"))
    until(lambda: all(flow_urls(each, "http://node0:3367") == ["/changed"] for each in registries), "the change")
    settled(*registries)
    connections = [each.get()["connection"] for each in registries]
    listed = [seen(each) for each in registries]
    settled(*registries)
    assert [each.get()["connection"] for each in registries] == connections
    assert [seen(each) for each in registries] == listed


def test_pushes_in_a_clique(serve: Start, old: Old) -> None:
    """With V registries and E connections one change costs at most 2E - V + 1 pushes; a peer hears at most one each."""
    plain = old()
    registries = clique(serve, 3)
    for each in registries:
        until(lambda at=each: all(at.get()["connection"].values()), "the connections")  # type: ignore[misc]
        plain.connect(each)
    calm(*registries)
    registries[0].post("/register", record(NODE, "a"))
    settled(*registries)
    until(lambda: plain.pushes(NODE), "the news")
    calm(*registries)
    senders = [body["url"] for body in plain.pushes(NODE)]
    assert len(senders) == len(set(senders)) <= 3
    before = len(plain.requests())
    registries[1].post("/register", record("http://node2:3367", "b"))
    until(lambda: plain.pushes("http://node2:3367"), "the next news")
    settled(*registries)
    assert len(plain.requests()) <= before + 3
    assert len(plain.pushes(NODE)) == len(senders)


def test_a_connection_that_both_opened_is_one(serve: Start, old: Old) -> None:
    """Two registries that connect with each other tell one another each piece of news once."""
    plain = old()
    served = serve(node=False, connect=plain.url)
    until(lambda: connected(served, plain.url), "the connection")
    plain.connect(served)
    plain.connect(served)
    reply = served.post("/register", record(NODE, "a"))
    assert reply["message"][1:] == [f"feed forward node to {plain.url}"]
    until(lambda: plain.pushes(NODE), "the news")
    calm(served)
    served.post("/register", record("http://node2:3367", "a"))
    until(lambda: plain.pushes("http://node2:3367"), "the next news")
    assert len(plain.pushes(NODE)) == 1
