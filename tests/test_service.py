"""The service, end to end over real sockets."""

from __future__ import annotations

from tests.conftest import Start
from tests.waiting import until


def test_a_nodes_flows_are_listed_at_every_registry(serve: Start) -> None:
    """What a node registers at one registry is listed at all that are connected with it."""
    first = serve(organization="registry1", node=False)
    second = serve(organization="registry2", node=False, connect=first.url)
    node = serve(organization="node1", registry=False, connect=second.url, loader=["my test"])
    for registry in (first, second):
        until(lambda at=registry: at.flows(), "the flow to be listed")  # type: ignore[misc]
        assert [(row["node"], row["url"]) for row in registry.flows()] == [(node.url, "/my-test")]
