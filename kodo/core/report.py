"""Reports: why something is listed or not, and how far the others are. Reads the core, and changes nothing.

Both answer with plain data, for `GET /explain` and `GET /convergence` and for the simulator alike. Seconds are those of
the monotonic clock, so that no clock of another machine has a say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kodo.core.parts import Row, listed
from kodo.core.peers import Peer
from kodo.core.registry import Registry
from kodo.models import NOTHING, Key, Version


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a node, a flow of it if one is meant, and of each part that knows the node the flows it names."""

    node: str
    flow: str | None
    offered: Mapping[Key, frozenset[str]]


def explain(registry: Registry, asked: Question, rows: Sequence[Row], clock: float) -> dict[str, Any]:
    """Whether the node, or the flow of it, is listed here, why, and what every part says of it, the deciding first."""
    ranked = sorted(rows, key=lambda row: row.rank, reverse=True)
    shown = listed(rows)
    is_listed = shown is not None and (asked.flow is None or asked.flow in asked.offered[shown.origin])
    return {
        "registry": registry.profile.url,
        "node": asked.node,
        "flow": asked.flow,
        "listed": is_listed,
        "why": _why(asked, ranked, shown),
        "records": [_record(registry, asked, row, row is shown, clock) for row in ranked],
    }


def _why(asked: Question, ranked: Sequence[Row], shown: Row | None) -> str:
    if not ranked:
        return "never seen: no registry that is known here has told of this node"
    newest = ranked[0]
    if shown is None and newest.left:
        return f"it has left {newest.origin}, and nobody registered it after that"
    if shown is None:
        return f"its registration at {newest.origin} has lapsed, and no other is known"
    behalf = f" on behalf of {shown.via}" if shown.via not in {None, shown.origin} else ""
    others = sum(not row.gone for row in ranked) - 1
    instead = f", the newest of {others + 1} registrations" if others else ""
    if asked.flow is not None and asked.flow not in asked.offered[shown.origin]:
        paths = ", ".join(sorted(asked.offered[shown.origin]))
        named = f"it has the paths {paths}" if paths else "it names no flow at all"
        return f"the node is registered at {shown.origin}{behalf}{instead}, without this flow: {named}"
    return f"registered at {shown.origin}{behalf}{instead}"


def _record(registry: Registry, asked: Question, row: Row, shown: bool, clock: float) -> dict[str, Any]:
    part = registry.parts[row.origin]
    own = row.origin == registry.key
    until = registry.leases.online.get(row.node) if own else None
    return {
        "origin": row.origin,
        "state": _state(row, shown),
        "status": row.status,
        "created": row.created,
        "modified": row.modified,
        "seq": row.seq,
        "version": list(part.version),
        "on_behalf_of": row.via if row.via != row.origin else None,
        "told_by": part.via,
        "age": round(registry.ages.of(row.origin, clock), 1),
        "lease": None if until is None else round(max(0.0, until - clock), 1),
        "flow": None if asked.flow is None or row.gone else asked.flow in asked.offered[row.origin],
    }


def _state(row: Row, shown: bool) -> str:
    if row.gone:
        return "left" if row.left else "lapsed"
    return "listed" if shown else "older"


def convergence(registry: Registry, clock: float) -> dict[str, Any]:
    """For each origin how old what is known of it is, and for each peer how far it is behind, by its own word."""
    origins = [registry.key, *registry.ledger.told]
    stale = set(registry.ages.stale(registry.parts, clock))
    return {
        "registry": registry.profile.url,
        "idle": registry.standing().idle,
        "frozen": registry.leases.frozen(clock),
        "origins": {
            origin: {
                "version": list(registry.parts[origin].version),
                "age": round(registry.ages.of(origin, clock), 1),
                "stale": origin in stale,
                "told_by": registry.parts[origin].via,
            }
            for origin in sorted(set(origins))
        },
        "peers": {peer.state.url: _peer(registry, peer, clock) for _, peer in sorted(registry.peers.items())},
    }


def _peer(registry: Registry, peer: Peer, clock: float) -> dict[str, Any]:
    return {
        "state": _standing(peer),
        "deltas": bool(peer.state.deltas),
        "heard": round(clock - peer.heard_at, 1),
        "next_try": round(max(0.0, peer.not_before - clock), 1) if peer.away else None,
        "behind": {
            origin: {
                "known": list(registry.parts[origin].version),
                "acknowledged": list(peer.acked.get(origin, NOTHING)),
                "changes": _changes(registry.parts[origin].version, peer.acked.get(origin, NOTHING)),
            }
            for origin in (sorted(peer.behind) if peer.told else ())
        },
    }


def _standing(peer: Peer) -> str:
    if peer.stopped is not None:
        return f"refused {peer.stopped}"
    if peer.state.farewell is not None:
        return "leaving"
    if peer.away:
        return "away"
    return "greeting" if peer.greet else "standing"


def _changes(known: Version, acknowledged: Version) -> int:
    """How many changes a peer has not acknowledged; `seq` runs through all epochs."""
    return known.seq - acknowledged.seq if acknowledged.seq <= known.seq else known.seq
