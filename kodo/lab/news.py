"""When each member had its news, from the messages between them.

A message says how many nodes it tells of, not which. But whoever knows something owes it to its peers, and a message
carries all that is owed when it leaves; so that the first message with nodes that leaves someone who knows, after that
one knew, tells it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kodo.lab.history import Message

Telling = tuple[float, float, str, str, float]
"""Who told whom: when it arrived and when it had left, both ends, and when it was taken in."""


def last_news(messages: Iterable[Message]) -> dict[str, float]:
    """When each last got news of any kind: with a message, or in the answer to its own `/connect`."""
    got: dict[str, float] = {}
    for _, _, _, name, moment in _tellings(messages):
        got[name] = max(got.get(name, moment), moment)
    return got


def first_news(nodes: Mapping[str, float], messages: Iterable[Message]) -> dict[str, float]:
    """When each had first heard of all these nodes, of each as it was registered after a moment."""
    known: dict[str, float] = {}
    tellings = sorted(_tellings(messages))
    for node, since in nodes.items():
        for name, moment in _first_news(node, since, tellings).items():
            known[name] = max(known.get(name, moment), moment)
    return known


def _first_news(node: str, since: float, tellings: Iterable[Telling]) -> dict[str, float]:
    begun = {node: since}
    known: dict[str, float] = {}
    for arrived, left, teller, name, moment in tellings:
        if teller in begun and left >= begun[teller] and name not in begun:
            begun[name], known[name] = arrived, moment
    return known


def _tellings(messages: Iterable[Message]) -> Iterator[Telling]:
    for message in messages:
        # In the simulator a registration, which is that of its sender, counts no node.
        if (message.nodes or message.route == "/register") and message.answered is not None:
            arrived = message.answered if message.received is None else message.received
            yield arrived, message.began, message.sender, message.receiver, message.answered
        if message.route == "/connect" and message.delivered and message.ended is not None:
            left = message.ended if message.answered is None else message.answered
            yield message.ended, left, message.receiver, message.sender, message.ended
