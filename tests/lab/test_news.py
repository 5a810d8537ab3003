"""When each had its news, from the messages between them."""

from __future__ import annotations

from kodo.lab.history import Message
from kodo.lab.news import first_news, last_news


def told(  # noqa: PLR0913, PLR0917, what a message is
    sender: str, receiver: str, left: float, arrived: float, route: str = "/update/node", nodes: int = 1
) -> Message:
    """A message that was answered a moment after it arrived, and whose sender knew a moment later."""
    return Message(
        id=f"{sender}{receiver}{left}",
        sender=sender,
        receiver=receiver,
        route=route,
        nodes=nodes,
        bytes=1,
        outcome="200",
        utc="",
        sent=left,
        received=arrived,
        answered=arrived + 0.1,
        ended=arrived + 0.2,
    )


RING = [
    told("node", "a", 1, 2, "/register", nodes=0),
    told("a", "b", 2.05, 3),
    told("a", "c", 2.05, 5),
    told("b", "c", 3.05, 4),
    told("c", "b", 4.05, 6),
]


def test_a_registry_knows_when_it_first_hears_and_not_when_it_hears_again() -> None:
    """On a ring the same news arrives from both sides."""
    assert first_news({"node": 1}, RING) == {"a": 2.1, "b": 3.1, "c": 4.1}
    assert last_news(RING) == {"a": 2.1, "b": 6.1, "c": 5.1}


def test_other_news_is_not_counted() -> None:
    """That of a node elsewhere, from who does not know yet; what left before its sender knew; and much later news."""
    others = [
        told("far", "c", 0.5, 1.5),
        told("a", "b", 1.9, 2.9),
        told("c", "a", 90, 91),
        told("else", "b", 2, 3, "/register"),
    ]
    assert first_news({"node": 1}, [*RING, *others]) == {"a": 2.1, "b": 3.1, "c": 4.1}
    assert first_news({"node": 1.5}, RING) == {}


def test_of_several_nodes_the_last_that_is_heard_of_counts() -> None:
    """And who connects hears in the answer."""
    more = [told("late", "b", 7, 8, "/register"), told("d", "b", 9, 10, "/connect", nodes=0)]
    assert first_news({"node": 1, "late": 7}, [*RING, *more]) == {"a": 2.1, "b": 8.1, "c": 4.1, "d": 10.2}
