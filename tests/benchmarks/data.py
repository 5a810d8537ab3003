"""Flows as organizations would have them: the same for the same seed, whatever else was made before.

A node offers ten flows, each with a name, a description of 80 characters, an author and three tags. Few organizations
have many nodes and most have few, and tags and words are as skewed (by Zipf's law, as in real text): a filter meets
selections of every size.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

FLOWS_PER_NODE = 10
DESCRIPTION = 80
TAGS = 3
ORGANIZATIONS = 400


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS = _words("""
    report customer invoice order search summary press contract archive market data review claim price email ticket
    document energy travel forecast translation stock policy meeting delivery account quality research media sensor
    traffic payment training safety weather supplier audit campaign picture garden harvest hospital library machine
    membership museum network newspaper orchard parcel patient permit pharmacy podcast port project railway recipe
    recycling refund rescue river road roof satellite schedule school shipment signal soil solar song sound speech
    station storage street student subsidy survey tariff tax telescope tender theatre timber tourism tower tunnel
    turbine university vaccine valve vehicle vessel video village vineyard voice warehouse waste water wheat
    wholesale wind window winter workshop yard zoning müller straße café naïve
""")
VERBS = _words("""
    reads writes sorts checks compares collects explains translates watches plans counts answers drafts
""")
JOINS = _words("""
    the every all new old open daily weekly for of from with and into about
""")
KINDS = _words("""
    agent assistant finder planner monitor checker advisor writer reader broker guide scout clerk analyst
""")
TOPICS = _words("""
    news finance health law logistics energy retail travel education research insurance farming housing media sports
    weather security rescue support hiring marketing design science music food water air maps energy-saving
    transport translation public internal beta stable nightly
""")
FIRST = [
    "Anna",
    "Ben",
    "Chen",
    "Daria",
    "Emil",
    "Fatima",
    "Goran",
    "Hanna",
    "Ivan",
    "Jana",
    "Kofi",
    "Lena",
    "Marek",
    "Noor",
    "Olga",
    "Pavel",
    "Quinn",
    "Rosa",
    "Sami",
    "Tara",
]
LAST = [
    "Abel",
    "Brandt",
    "Costa",
    "Dietz",
    "Eriksen",
    "Faber",
    "Garcia",
    "Huber",
    "Ito",
    "Jansen",
    "Kaya",
    "Lang",
    "Moreau",
    "Novak",
    "Okafor",
    "Peters",
    "Rossi",
]
FIRMS = _words("""
    Media Nord Alpha Terra Aqua Civic Data Euro Futura Globe Helio Inter Jura Kappa Luma Metro Nova Omni Poly Quanta
""")
FORMS = _words("""
    plus works group labs press cloud union house line point net base port care link mark field stone craft way
""")


def organization(rank: int) -> str:
    """The organization of this rank, from 0: the lower, the more nodes it has."""
    return f"{FIRMS[rank % len(FIRMS)]}{FORMS[rank // len(FIRMS) % len(FORMS)]}"


def node(number: int, seed: int = 0) -> dict[str, Any]:
    """The body of the registration of a node, the same for the same number and seed."""
    chance = random.Random(f"{seed}:{number}")
    owner = organization(_skewed(chance, ORGANIZATIONS))
    flows = [_flow(chance, at) for at in range(FLOWS_PER_NODE)]
    url = node_url(f"{number:08d}", owner)
    return {"url": url, "organization": owner, "flows": {flow["url"]: flow for flow in flows}}


def node_url(number: str, owner: str) -> str:
    """Where a node is; `number` is a text, so that a client can put another one in its place."""
    return f"http://node-{number}.{owner.lower()}.example:8080"


def nodes(flows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """So many nodes that they have so many flows."""
    return (node(number, seed) for number in range(flows // FLOWS_PER_NODE))


def _flow(chance: random.Random, at: int) -> dict[str, Any]:
    name = " ".join((_pick(chance, WORDS), _pick(chance, WORDS), _pick(chance, KINDS)))
    author = f"{_pick(chance, FIRST)} {_pick(chance, LAST)}"
    tags: list[str] = []
    while len(tags) < TAGS:
        tag = _pick(chance, TOPICS)
        tags += [] if tag in tags else [tag]
    url = f"/{name.replace(' ', '-')}-{at}"
    return {"url": url, "name": name, "description": _description(chance), "author": author, "tags": tags}


def _description(chance: random.Random) -> str:
    text = f"{_pick(chance, VERBS)} the"
    while len(text) < DESCRIPTION:
        text += f" {_pick(chance, WORDS)} {_pick(chance, JOINS)}"
    return text[: DESCRIPTION - 1].rstrip().ljust(DESCRIPTION, ".")


def _pick(chance: random.Random, among: Sequence[str]) -> str:
    return among[_skewed(chance, len(among))]


def _skewed(chance: random.Random, count: int) -> int:
    """A number below `count`, of which the k-th has the weight 1 / k."""
    sums = _sums(count)
    return bisect(sums, chance.random() * sums[-1])


@cache
def _sums(count: int) -> list[float]:
    return list(accumulate(1 / rank for rank in range(1, count + 1)))
