"""Who is missing: members that do not run, and what for that reason no registry lists.

A registry that is down cannot be asked, and the nodes that register with it alone are listed nowhere. What those offer
they tell themselves; what a node that is down offered nobody can tell, but whether it is listed still.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kodo.errors import KodoError
from kodo.lab.engine import Asking
from kodo.lab.flows import all_flows
from kodo.lab.naming import numbered
from kodo.models import canonical

if TYPE_CHECKING:
    from kodo.lab.member import Member

FEW = 3
"""Flows that a text names."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A member that does not run.

    `unlisted` are the flows, as url and name of their node, that nodes of this registry offer and no registry lists;
    `listed` is how many flows of this node are listed still.
    """

    name: str
    kind: str
    state: str
    unlisted: Sequence[tuple[str, str]] = ()
    listed: int = 0

    def __str__(self) -> str:
        if self.kind == "node":
            still = f", and {numbered(self.listed, 'flow')} of it still listed" if self.listed else ""
            return f"{self.name} is not running ({self.state}){still}"
        asked = f"{self.name} is not running ({self.state}) and cannot be asked"
        if not self.unlisted:
            return asked
        named = ", ".join(f"{url} of {node}" for url, node in self.unlisted[:FEW])
        more = f" and {len(self.unlisted) - FEW} more" if len(self.unlisted) > FEW else ""
        return f"{asked}, so nobody lists {named}{more}"


def missing_among(
    members: Sequence[Member], listings: Mapping[str, Iterable[tuple[str, str]]], clients: Mapping[str, Asking]
) -> list[Missing]:
    """The members that do not run; `listings` are the flows that each registry lists, by node and url."""
    listed = {(canonical(node), url) for listing in listings.values() for node, url in listing}
    return [_missing(member, members, listed, clients) for member in members if not member.running]


def _missing(
    member: Member, members: Sequence[Member], listed: set[tuple[Any, str]], clients: Mapping[str, Asking]
) -> Missing:
    if member.kind == "node":
        own = canonical(member.url)
        return Missing(member.name, member.kind, member.state, listed=sum(node == own for node, _ in listed))
    told = {canonical(member.url)}
    unlisted = []
    for node in members:
        if node.kind == "node" and node.answers and told & {canonical(url) for url in node.connect}:
            offered = {url for _, url in _offered(clients[node.name])}
            unlisted += [(url, node.name) for url in sorted(offered) if (canonical(node.url), url) not in listed]
    return Missing(member.name, member.kind, member.state, unlisted)


def _offered(client: Asking) -> list[tuple[str, str]]:
    try:
        return [(row["node"], row["url"]) for row in all_flows(client)]
    except KodoError:
        return []
