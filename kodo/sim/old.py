"""An older service: a registry written from the Fixed part of the protocol alone.

It knows no deltas, marks or versions. What it holds is one dictionary of nodes, in which the later `modified` wins, and
what changed there it passes on, under its own url, to every peer that wants to be fed but the one it came from. What
changed nothing is passed on to nobody, so that nothing goes round for ever.

It is a plain class without a clock: requests come in through `receive`, results of its own messages through `answered`;
what it wants sent is what `outbox` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kodo.errors import RoleError
from kodo.models import Key, Node, canonical

PAUSE = 1.0
"""Seconds until a message that was not answered is sent again."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that an older service wants sent, `after` some seconds."""

    address: str
    route: str
    body: dict[str, Any]
    after: float = 0.0


@dataclass(slots=True)
class _Peer:
    """A registry this one is connected with: where it is, and whether it wants news."""

    url: str
    feed: bool = False
    visited: str | None = None


@dataclass(slots=True)
class OldService:
    """The registry at `url`, which connects with those in `connect`."""

    url: str
    connect: tuple[str, ...] = ()
    nodes: dict[Key, dict[str, Any]] = field(default_factory=dict)
    pending: int = 0
    _peers: dict[Key, _Peer] = field(default_factory=dict)
    _outbox: list[Outgoing] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or in flight to another service."""
        return not self.pending

    def start(self) -> None:
        """Connect with those in `connect`; what was in memory before is still there."""
        self._outbox, self.pending = [], 0
        for address in self.connect:
            self._greet(address)

    def outbox(self) -> list[Outgoing]:
        """What is to be sent now; what became of each is to be told by `answered`."""
        outgoing, self._outbox = self._outbox, []
        return outgoing

    def listing(self) -> list[dict[str, Any]]:
        """Every flow with its node and times, by node, then url: the columns that say who registered what, and when."""
        return [
            {
                "node": node["url"],
                "organization": node["organization"],
                "created": node["created"],
                "modified": node["modified"],
                "heartbeat": node["heartbeat"],
                "url": url,
                "name": node["flows"][url]["name"],
            }
            for node in sorted(self.nodes.values(), key=lambda node: str(node["url"]))
            for url in sorted(node["flows"])
        ]

    # -- what comes in -------------------------------------------------------------------------------------

    def receive(self, route: str, body: Mapping[str, Any], now: str) -> dict[str, Any]:
        """Answer a request. Raises `KodoError` for what the protocol does not know."""
        match route:
            case "/register":
                return self._register(body, now)
            case "/connect":
                return self._connected(body, now)
            case "/update/node":
                return self._updated(body, now)
        raise RoleError("expected /register, /connect or /update/node")

    def _register(self, body: Mapping[str, Any], now: str) -> dict[str, Any]:
        known = self.nodes.get(canonical(body["url"]))
        times = {"created": known["created"] if known else now, "modified": now, "heartbeat": now}
        told = self._take([{**body, **times}], now, None)
        seen = f"seen previously {known['created'].replace('T', ' ')}" if known else "first visit"
        lines = [f"registered node {body['url']} ({seen})", *(f"feed forward node to {url}" for url in told)]
        return self._common(lines)

    def _connected(self, body: Mapping[str, Any], now: str) -> dict[str, Any]:
        url = body["url"]
        peer = self._peers.setdefault(canonical(url), _Peer(url))
        seen = f"seen previously {peer.visited.replace('T', ' ')}" if peer.visited else "first visit"
        peer.feed, peer.visited = bool(body.get("feed")), peer.visited or now
        told = self._take(_listed(body.get("nodes")), now, canonical(url))
        lines = [f"registry {url} connected ({seen})", *(f"feed forward {url} to {other}" for other in told)]
        if not peer.feed:
            return self._common(lines)
        return {"providers": self._message(self.nodes, feed=True), "message": lines}

    def _updated(self, body: Mapping[str, Any], now: str) -> dict[str, Any]:
        nodes = _listed(body.get("nodes"))
        lines = [
            f"{'updated' if canonical(node['url']) in self.nodes else 'created'} node {body['url']}" for node in nodes
        ]
        self._take(nodes, now, canonical(body["url"]))
        return self._common(lines)

    def refused(self) -> None:
        """A message was refused: it is not sent again."""
        self.pending -= 1

    def answered(self, outgoing: Outgoing, answer: Mapping[str, Any] | None, now: str) -> None:
        """What became of a message: its answer, or None when there was none and it is to be sent again."""
        self.pending -= 1
        if answer is None:
            self._push(Outgoing(outgoing.address, outgoing.route, outgoing.body, PAUSE))
        elif outgoing.route == "/connect":
            offer = answer.get("providers") or {}
            url = offer.get("url") or answer.get("url") or outgoing.address
            feed = offer.get("feed", bool(answer.get("registry")) and not answer.get("provider"))
            self._peers.setdefault(canonical(url), _Peer(url)).feed = bool(feed)
            self._take(_listed(offer.get("nodes")), now, canonical(url))

    # -- news ----------------------------------------------------------------------------------------------

    def _take(self, nodes: Iterable[Mapping[str, Any]], now: str, source: Key | None) -> list[str]:
        """Take in what is newer than what is known, and pass on what changed; the urls of those who are told."""
        changed: dict[Key, dict[str, Any]] = {}
        for node in nodes:
            key = canonical(node["url"])
            known = self.nodes.get(key)
            modified = node.get("modified") or now
            if known is None or modified > known["modified"]:
                changed[key] = self.nodes[key] = _node({**node, "modified": modified}, known)
        told = [peer.url for key, peer in sorted(self._peers.items()) if changed and peer.feed and key != source]
        for url in told:
            self._push(Outgoing(url, "/update/node", self._message(changed, feed=False)))
        return told

    def _greet(self, address: str) -> None:
        self._push(Outgoing(address, "/connect", self._message(self.nodes, feed=True)))

    def _push(self, outgoing: Outgoing) -> None:
        self.pending += 1
        self._outbox.append(outgoing)

    def _message(self, nodes: Mapping[Key, dict[str, Any]], *, feed: bool) -> dict[str, Any]:
        written = {node["url"]: node for node in nodes.values()}
        return {"url": self.url, "organization": None, "feed": feed, "nodes": written}

    def _common(self, lines: list[str]) -> dict[str, Any]:
        return {"url": self.url, "registry": True, "provider": False, "idle": self.idle, "message": lines}


def _listed(nodes: Any) -> list[dict[str, Any]]:
    return list(nodes.values()) if isinstance(nodes, dict) else list(nodes or ())


def _node(told: Mapping[str, Any], known: Mapping[str, Any] | None) -> dict[str, Any]:
    """A node as it is kept and passed on: times as they were told, those that were not filled in."""
    node = Node.model_validate(told).model_dump()
    flows = told["flows"]
    node["flows"] = flows if isinstance(flows, dict) else {flow["url"]: flow for flow in flows}
    node["created"] = node["created"] or (known and known["created"]) or node["modified"]
    node["heartbeat"] = node["heartbeat"] or node["modified"]
    return node
