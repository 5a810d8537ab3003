"""What a simulated service would answer: `/`, `/map`, `/explain` and `/convergence`, as plain data.

Pure functions over a `World`. An older service answers none of these: it knows neither parts nor peers.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import orjson

from kodo.core import report
from kodo.models import Key, canonical
from kodo.sim.store import Stored
from kodo.sim.world import Site, World


def status(world: World, name: str) -> dict[str, Any]:
    """The common reply: who it is, what it is connected with, and whether all is said."""
    site = world.site(name)
    standing = site.registry.standing()
    return {
        "url": site.url,
        "organization": None if site.own is None else site.own.organization,
        "node": site.own is not None,
        "registry": site.profile.registry,
        "provider": site.profile.provider,
        "connection": dict(standing.connection),
        "idle": standing.idle,
        "message": [],
    }


def mesh_map(world: World, name: str) -> dict[str, Any]:
    """Its view of the mesh: the nodes that registered here, and each peer with the nodes known through it."""
    site = world.site(name)
    nodes: dict[str, Any] = {}
    providers: dict[Key, dict[str, Any]] = {
        peer.key: {"url": peer.url, "organization": peer.organization, "feed": peer.feed, "nodes": {}}
        for peer in site.disk.peers()
        if peer.connected
    }
    parts = {part.origin: part for part in site.disk.parts()}
    for url, stored in site.disk.view().items():
        row = stored.row
        via = row.via if row.origin == site.key else parts[row.origin].via
        if via is None:
            nodes[url] = _body(stored)
        else:
            blank: dict[str, Any] = {"url": via, "organization": None, "feed": False, "nodes": {}}
            providers.setdefault(via, blank)["nodes"][url] = _body(stored)
    return {
        "url": site.url,
        "organization": None,
        "feed": site.profile.registry and not site.profile.provider,
        "nodes": nodes,
        "providers": {peer["url"]: peer for peer in providers.values()},
        "connection": dict(site.registry.standing().connection),
    }


def explain(world: World, name: str, node: str | None = None, flow: str | None = None) -> dict[str, Any]:
    """Why a node, a flow of it, or a flow of any node, is listed there or not: what every part says of it."""
    site = world.site(name)
    report.question(node, flow)
    if node is not None:
        return report.explain(site.registry, _known(site, node), flow, world.clock)
    offering = (
        stored.row.url
        for stored in site.disk.view().values()
        if any(flow in (path, offered) for path, offered in _names(stored).items())
    )
    known = [_known(site, url) for url in islice(offering, report.MANY + 1)]
    return report.explain_flow(site.registry, flow or "", known, world.clock)


def convergence(world: World, name: str) -> dict[str, Any]:
    """How far every peer is behind, and how old what is known of every origin is."""
    return report.convergence(world.site(name).registry, world.clock)


def _known(site: Site, node: str) -> report.Known:
    key = canonical(node)
    rows = site.disk.rows([key]).get(key, ())
    offered = {
        row.origin: _names(stored) for row in rows for stored in site.disk.records(row.origin) if stored.row.node == key
    }
    return report.Known(node, rows, offered)


def _names(stored: Stored) -> dict[str, str]:
    """The names of its flows by their paths."""
    return {path: flow["name"] for path, flow in orjson.loads(stored.flows).items()}


def _body(stored: Stored) -> dict[str, Any]:
    return {**stored.body(), "flows": orjson.loads(stored.flows)}
