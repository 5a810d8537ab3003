"""Fixed: the common reply."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.conftest import Start, free_port
from tests.protocol.conftest import Old
from tests.protocol.helpers import COMMON, TIME, ago, calm, connected, record, stamped, swallowing, told
from tests.waiting import until


def test_its_shape(serve: Start) -> None:
    """`GET /` answers url, organization, the roles, connection, times, idle and message."""
    served = serve(organization="registry1", node=False)
    reply = served.get()
    assert list(reply) == COMMON
    assert (reply["url"], reply["organization"]) == (served.url, "registry1")
    assert (reply["node"], reply["registry"], reply["provider"]) == (False, True, False)
    assert reply["connection"] == {}
    assert reply["message"] == []
    assert reply["idle"] is True


def test_its_times(serve: Start) -> None:
    """Times are UTC, ISO 8601 with microseconds and no zone."""
    before = ago()
    served = serve()
    reply = served.get()
    assert TIME.fullmatch(reply["started_at"])
    assert TIME.fullmatch(reply["now"])
    assert before <= reply["started_at"] <= reply["now"] <= ago()
    assert served.get()["started_at"] == reply["started_at"]
    assert served.get()["now"] > reply["now"]


def test_organization_may_be_null(serve: Start) -> None:
    """The organization is a str or null."""
    assert serve().get()["organization"] is None


def test_connection_is_null_until_it_stands(serve: Start) -> None:
    """`connection` has a key for every url in `connect`; its value is null until the connection stands."""
    first = serve(node=False)
    nobody = f"http://127.0.0.1:{free_port()}"
    second = serve(node=False, connect=[first.url, nobody])
    assert set(second.get()["connection"]) == {first.url, nobody}
    until(lambda: connected(second, first.url), "the connection to stand")
    reply = second.get()
    assert TIME.fullmatch(reply["connection"][first.url])
    assert reply["started_at"] <= reply["connection"][first.url] <= reply["now"]
    assert reply["connection"][nobody] is None


def test_a_nodes_connection_stands_once_it_is_registered(serve: Start) -> None:
    """A node's `connection` is null until it is registered."""
    with swallowing() as silent:
        registry = serve(node=False)
        node = serve(registry=False, connect=[registry.url, silent], loader=["mytest"])
        until(lambda: connected(node, registry.url), "the registration")
        assert registry.flows()
        assert node.get()["connection"][silent] is None


def test_idle_is_false_while_a_message_is_in_flight(serve: Start, old: Old) -> None:
    """`idle` is false while anything is queued or in flight to another service."""
    registry, served = old(), serve(node=False)
    registry.connect(served)
    calm(served)
    registry.open.clear()
    served.post("/register", record("http://node1:3367", "mytest"))
    until(lambda: registry.pushes("http://node1:3367"), "the push")
    assert served.get()["idle"] is False
    registry.open.set()
    until(served.idle, "the service to be idle")


def test_posts_answer_it(serve: Start) -> None:
    """Every POST that has nothing better to say answers the common reply."""
    served = serve(node=False, organization="registry1")
    other = "http://registry2:3368"
    for path, body in [
        ("/register", record("http://node1:3367", "mytest")),
        ("/connect", told(other, feed=False)),
        ("/update/node", told(other, stamped("http://node2:3367", "x", created=ago(hours=1)))),
    ]:
        reply = served.post(path, body)
        assert list(reply) == COMMON, path
        assert reply["url"] == served.url
        assert reply["message"]
        assert all(isinstance(line, str) for line in reply["message"])
    assert served.get()["message"] == []


def test_now_is_utc(serve: Start) -> None:
    """`now` is UTC."""
    now = datetime.fromisoformat(serve().get()["now"]).replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - now).total_seconds()) < 60
