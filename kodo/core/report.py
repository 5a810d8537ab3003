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
from kodo.errors import InvalidMessageError
from kodo.models import NOTHING, Key, Version, canonical

MANY = 20
"""Nodes that are told of at once."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a node: what every part says of it, and of each part the flows it names, names by paths."""

    node: str
    rows: Sequence[Row]
    offered: Mapping[Key, Mapping[str, str]]

    def path_of(self, flow: str) -> str:
        """The path of a flow that is given by its path or by its name; what the node has not stays as it is given.

        Raises `InvalidMessageError` for a name that several of its flows have.
        """
        paths = {path for offered in self.offered.values() for path in offered}
        named = {path for offered in self.offered.values() for path, name in offered.items() if name == flow}
        if flow in paths or not named:
            return flow
        if len(named) > 1:
            raise _refused("flow", f"a path, since {self.node} has {len(named)} flows of this name")
        return named.pop()


def question(node: str | None, flow: str | None) -> None:
    """Raise `InvalidMessageError` unless something is asked for."""
    if node is None and flow is None:
        raise _refused("node", "a node, a flow, or a flow of a node to explain")


def _refused(parameter: str, expected: str) -> InvalidMessageError:
    fault = {"loc": ["query", parameter], "msg": f"expected {expected}", "type": "value_error"}
    return InvalidMessageError([fault])


def explain(registry: Registry, known: Known, flow: str | None, clock: float) -> dict[str, Any]:
    """Whether the node, or the flow of it, is listed here, why, and what every part says of it, the deciding first."""
    path = None if flow is None else known.path_of(flow)
    ranked = sorted(known.rows, key=lambda row: row.rank, reverse=True)
    shown = listed(known.rows)
    is_listed = shown is not None and (path is None or path in known.offered[shown.origin])
    return {
        "registry": registry.profile.url,
        "node": known.node,
        "flow": path,
        "listed": is_listed,
        "why": _why(path, known.offered, ranked, shown) if ranked else _stranger(registry, known.node),
        "frozen": registry.leases.frozen(clock),
        "records": [_record(registry, known, path, row, clock) for row in ranked],
    }


def explain_flow(registry: Registry, flow: str, offering: Sequence[Known], clock: float) -> dict[str, Any]:
    """Why a flow is listed here, for all the nodes `offering` it: the same, of one node; of several, `node` is None.

    Raises `InvalidMessageError` when there are too many of them.
    """
    if len(offering) > MANY:
        raise _refused("node", f"a node as well, since more than {MANY} offer this flow")
    told = [explain(registry, known, flow, clock) for known in offering]
    if len(told) == 1:
        return told[0]
    each = [f"{answer['node']}{answer['flow']}" for answer in told]
    nobody = "no node that is listed here offers it; name a node to learn why it does not"
    return {
        "registry": registry.profile.url,
        "node": None,
        "flow": flow,
        "listed": any(answer["listed"] for answer in told),
        "why": f"{len(told)} nodes offer it: {', '.join(each)}" if told else nobody,
        "frozen": registry.leases.frozen(clock),
        "records": [record for answer in told for record in answer["records"]],
    }


def _stranger(registry: Registry, node: str) -> str:
    """Why nothing is known of a node."""
    if (key := canonical(node)) == registry.key or key in registry.peers or key in registry.parts:
        return "it is known as a registry, and offers no flows itself"
    return "never seen: no registry that is known here has told of this node"


def _why(path: str | None, offered: Mapping[Key, Mapping[str, str]], ranked: Sequence[Row], shown: Row | None) -> str:
    newest = ranked[0]
    if shown is None and newest.left:
        return f"it has left {newest.origin}, and nobody registered it after that"
    if shown is None:
        return f"its registration at {newest.origin} has lapsed, and no other is known"
    behalf = f" on behalf of {shown.via}" if shown.via not in {None, shown.origin} else ""
    others = sum(not row.gone for row in ranked) - 1
    instead = f", the newest of {others + 1} registrations" if others else ""
    if path is not None and path not in offered[shown.origin]:
        paths = ", ".join(sorted(offered[shown.origin]))
        named = f"it has the paths {paths}" if paths else "it names no flow at all"
        return f"the node is registered at {shown.origin}{behalf}{instead}, without this flow: {named}"
    return f"registered at {shown.origin}{behalf}{instead}"


def _record(registry: Registry, known: Known, path: str | None, row: Row, clock: float) -> dict[str, Any]:
    part = registry.parts[row.origin]
    own = row.origin == registry.key
    until = registry.leases.online.get(row.node) if own else None
    return {
        "node": row.url,
        "origin": row.origin,
        "state": _state(row, row is listed(known.rows)),
        "status": row.status,
        "created": row.created,
        "modified": row.modified,
        "seq": row.seq,
        "version": list(part.version),
        "on_behalf_of": row.via if row.via != row.origin else None,
        "told_by": part.via,
        "age": round(registry.ages.of(row.origin, clock), 1),
        "lease": None if until is None else round(max(0.0, until - clock), 1),
        "flow": None if path is None or row.gone else path in known.offered[row.origin],
    }


def _state(row: Row, shown: bool) -> str:
    if row.gone:
        return "left" if row.left else "lapsed"
    return "listed" if shown else "older"


def convergence(registry: Registry, clock: float, why: Mapping[str, str] | None = None) -> dict[str, Any]:
    """For each origin how old what is known of it is, and for each peer how far it is behind, by its own word.

    `silent` are the nodes here that would be offline, were expiry not frozen. `why` says of peers that do not answer,
    by their addresses, why that is.
    """
    reasons = why or {}
    origins = [registry.key, *registry.ledger.told]
    stale = set(registry.ages.stale(registry.parts, clock))
    return {
        "registry": registry.profile.url,
        "idle": registry.standing().idle,
        "frozen": registry.leases.frozen(clock),
        "silent": registry.leases.silent(clock),
        "origins": {
            origin: {
                "version": list(registry.parts[origin].version),
                "age": round(registry.ages.of(origin, clock), 1),
                "stale": origin in stale,
                "told_by": registry.parts[origin].via,
            }
            for origin in sorted(set(origins))
        },
        "peers": {
            peer.state.url: _peer(registry, peer, clock)
            | {"why": reasons.get(peer.state.address) if peer.away or peer.stopped is not None else None}
            for _, peer in sorted(registry.peers.items())
        },
    }


def _peer(registry: Registry, peer: Peer, clock: float) -> dict[str, Any]:
    return {
        "state": _standing(peer),
        "deltas": bool(peer.state.deltas),
        "connected": peer.connected,
        "heard": round(clock - peer.heard_at, 1) if peer.met else None,
        "next_try": round(max(0.0, peer.not_before - clock), 1) if peer.away and not _stopped(peer) else None,
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
    if _stopped(peer):
        return f"refused {peer.stopped}"
    if peer.state.farewell is not None:
        return "leaving"
    if peer.away:
        return "no registry" if peer.foreign else "away"
    return "greeting" if peer.greet else "standing"


def _stopped(peer: Peer) -> bool:
    """Whether it is not asked any more, since it refused; a farewell is said all the same."""
    return peer.stopped is not None and peer.state.farewell is None


def _changes(known: Version, acknowledged: Version) -> int:
    """How many changes a peer has not acknowledged; `seq` runs through all epochs."""
    return known.seq - acknowledged.seq if acknowledged.seq <= known.seq else known.seq
