"""What a stranger or a crowd may send costs a bounded amount, and nothing that can be sent ends a registry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kodo.core import ledger, receipts
from kodo.core.registry import MOST_TOLD
from kodo.errors import UnknownServiceError
from kodo.models import LONGEST_URL, NOTHING, PeerMessage, Version, _remembered, canonical
from tests.core.steps import FAR, PEER, SELF, ZERO, Desk, delta, news, record, replies, url_of, v


def linked(*names: str, **timing: float) -> Desk:
    made = Desk(**timing)
    for name in names:
        made.connect(name)
    made.run(1)
    return made


def ask(version: list[Any], within: float = 8.0) -> dict[str, Any]:
    return {"origin": url_of("far"), "version": version, "within": within}


def test_a_receipt_names_a_bounded_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many registries peers name in receipts, the receipt that is made of them can be told."""
    monkeypatch.setattr(receipts, "MOST_NAMED", 3)
    made = linked("peer", "other")
    made.update("peer", delta("far", ZERO, v(1), record(1)), asks=[ask(v(1))])
    crowd = {"origin": url_of("far"), "version": v(1), "reached": [url_of(f"r{at}") for at in range(9)], "missing": []}
    made.update("other", receipts=[crowd])
    (said,) = made.registry.peers[PEER].confirms.values()
    assert len(said.reached) <= 4
    PeerMessage.model_validate({"url": url_of("self"), "receipts": [said.model_dump()]})


def test_a_registry_follows_a_bounded_number_of_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more origins than can be told in one message no news is taken; those that are known go on."""
    monkeypatch.setattr(ledger, "MOST_ORIGINS", 3)
    made = linked("peer")
    made.update("peer", *(delta(f"o{at}", ZERO, v(1)) for at in range(9)))
    assert len(made.registry.parts) == 3
    made.update("peer", delta("o0", v(1), v(2)))
    assert made.registry.parts[canonical(url_of("o0"))].version.seq == 2


def test_many_origins_go_in_several_messages() -> None:
    """What is owed of more origins than one message may tell of goes with the next ones, and all of it goes."""
    made = Desk()
    made.here = {"peer"}
    made.connect("peer")
    made.connect("other")
    many = [delta(f"o{at}", ZERO, v(1)) for at in range(MOST_TOLD + 5)]
    told = [
        len(send.parcel.ranges) for send in news(made.follow(made.update("other", *many)) + made.run(2)) if send.parcel
    ]
    assert max(told) <= MOST_TOLD
    assert sum(told) >= MOST_TOLD + 5
    assert not made.registry.peers[PEER].behind


def test_many_asks_and_receipts_go_in_several_messages() -> None:
    """More asks, or receipts, than a message may carry do not make it one that is refused."""
    made = linked("peer")
    peer = made.registry.peers[PEER]
    (first,) = news(made.register("first"))
    for at in range(MOST_TOLD + 50):
        made.register(f"n{at}", wait=60.0)
    (second,) = news(made.delivered(first) + made.run(1))
    assert len(second.asks) == MOST_TOLD
    assert len(peer.asks) == MOST_TOLD + 50


def test_an_epoch_stays_one_that_can_be_told() -> None:
    """Whatever mark of a registry others claim to know, and however often it starts or leaves, its version is legal."""
    made = linked("peer")
    made.update("peer", marks={url_of("self"): [2**40 - 1, "", 0]})
    made.update("peer", marks={url_of("self"): [2**40 - 2**20, "", 0]})
    for _ in range(3):
        made.restart()
        made.connect("peer")
        made.leave()
    PeerMessage.model_validate({"url": url_of("self"), "marks": {SELF: list(made.registry.own.version)}})


def test_a_stranger_moves_no_epoch() -> None:
    """A mark that somebody who is not connected claims to know costs nobody a snapshot (rule 10 is of peers)."""
    made = linked("peer")
    before = made.registry.own.version
    made.update("stranger", marks={url_of("self"): [before.seconds + 1, "", 0]})
    made.update("stranger", delta("self", ZERO, [before.seconds + 1, "", 1]))
    assert made.registry.own.version == before


def test_pages_of_strangers_are_not_kept() -> None:
    """A first page from somebody who is not connected is dropped, and its origin is not known by it."""
    made = linked("peer")
    made.update("stranger", delta("far", ZERO, v(1), complete=False))
    assert not made.registry.ledger.staging
    assert FAR not in made.registry.ages.alive


def test_abandoned_pages_go_with_their_peer() -> None:
    """Pages whose last one never comes are dropped once their peer is given up."""
    made = Desk(grace=1600.0, tombstones=1600.0)
    made.connect("peer")
    made.connect("other")
    made.update("peer", delta("far", ZERO, v(1), record(1), complete=False))
    assert made.store.staged
    made.here = {"other"}
    for _ in range(80):
        made.run(50)
        made.update("other")
    assert PEER not in made.registry.peers
    assert not made.registry.ledger.staging
    assert not made.store.staged


def test_asks_are_answered_of_what_was() -> None:
    """Only a state that an origin went through, as far as is known here, is confirmed."""
    made = linked("peer")
    made.update("peer", delta("far", ZERO, v(2), record(1)))
    asked = [ask(list(NOTHING)), ask(v(1, nonce="ff")), ask(v(2))]
    asked[0]["origin"] = url_of("nobody")
    (answer,) = replies(made.update("peer", asks=asked))
    assert [said.version for said in answer.receipts] == [Version(*v(2))]


def test_a_stranger_does_not_leave() -> None:
    """Who was never known cannot leave, and makes no part by it."""
    made = linked("peer")
    with pytest.raises(UnknownServiceError):
        made.farewell("nobody", v(1))
    assert canonical(url_of("nobody")) not in made.registry.parts


def test_what_is_not_taken_is_not_remembered() -> None:
    """Of origins whose news is refused nothing is kept for the peer that told of them."""
    made = linked("peer")
    made.update("peer", *(delta(f"o{at}", ZERO, v(1), age=2**39) for at in range(50)))
    assert len(made.registry.parts) == 1
    assert not [origin for origin in made.registry.peers[PEER].acked if origin != SELF]


def test_a_cache_from_before_contents_were_kept() -> None:
    """Parts that were saved without a content are believed as they are, and told to others."""
    made = linked("peer")
    made.register("node")
    made.update("peer", delta("far", ZERO, v(1), record(1, "n1")))
    made.store.parts = {origin: replace(part, content=0) for origin, part in made.store.parts.items()}
    before = made.registry.own.version
    made.restart()
    assert not made.registry.ledger.doubted
    assert made.registry.own.floor == NOTHING
    assert made.registry.own.version.seq == before.seq
    done = made.connect("new")
    offered = {told.origin for answer in replies(done) if answer.offer for told in answer.offer.ranges}
    assert offered == {SELF, FAR}


def test_long_urls_are_not_remembered() -> None:
    """Whoever sends very many long urls makes nothing grow: the canonical form of a usual one alone is kept."""
    _remembered.cache_clear()
    assert canonical(f"http://HOST/{'x' * LONGEST_URL}"[:LONGEST_URL]).startswith("http://host:80/x")
    assert _remembered.cache_info().currsize == 0
    assert canonical("http://HOST/x") == "http://host:80/x"
    assert _remembered.cache_info().currsize == 1
