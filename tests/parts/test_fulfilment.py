"""Answering a flight's members: each at a version that serves it, and one's fault is not another's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import broker
from broker.errors import AttemptFailed, InvalidPredicate
from broker.flights import Flight
from broker.fulfilment import Produced
from broker.model.request import State
from tests.ledger import OFFERS, Hand, Source


@pytest.fixture
def b(redis_url: str) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, store="memory://", max_attempts=2) as connected:
        connected.dataset(OFFERS, key=["sku"])
        yield connected


@pytest.fixture
def hand(b: broker.Broker) -> Hand:
    return Hand(b.parts, Source())


def finds_nothing_new(b: broker.Broker, flight: Flight, version: int) -> Produced:
    """What a producer that was told of `version` says when it found nothing newer."""
    return Produced(version=version, changed=False, confirmed_at=flight.started)


# --- a target that holds more than the flight ended at


def test_a_version_published_beside_a_flight_is_not_taken_back_by_its_answer(b: broker.Broker, hand: Hand) -> None:
    offers = b.dataset(OFFERS)
    offers.publish([{"sku": "a", "price": 1}])
    first = b.request(OFFERS, target="search")
    flight = hand.lead()
    offers.publish([{"sku": "a", "price": 2}])
    ahead, filtered = (b.request(OFFERS, target="shop", since=2, where=where) for where in (None, "price > 0"))
    hand.claim()
    hand.answer(flight, finds_nothing_new(b, flight, 1))
    assert first.wait(1).version == 1
    assert [(done.version, done.mode, done.reset_reason) for done in (ahead.wait(1), filtered.wait(1))] == [
        (2, "unchanged", None)
    ] * 2


def test_a_snapshot_asked_for_by_a_target_that_is_ahead_is_of_what_it_holds(b: broker.Broker, hand: Hand) -> None:
    offers = b.dataset(OFFERS)
    offers.publish([{"sku": "a", "price": 1}])
    b.request(OFFERS, target="search")
    flight = hand.lead()
    offers.publish([{"sku": "a", "price": 2}])
    whole = b.request(OFFERS, target="shop", since=2, mode="snapshot", format="csv")
    hand.claim()
    hand.answer(flight, finds_nothing_new(b, flight, 1))
    assert (whole.wait(1).version, whole.wait(1).reset_reason) == (2, "asked")


# --- one member's selection


def test_files_that_cannot_be_made_fail_only_those_who_asked_for_them(b: broker.Broker, hand: Hand) -> None:
    bad, plain = b.request(OFFERS, target="search", where="nosuch < 5"), b.request(OFFERS, target="search")
    hand.work()
    assert plain.wait(1).version == 1
    error = bad.status().completion.error  # type: ignore[union-attr]
    assert error is not None
    assert error["code"] == InvalidPredicate.code


def test_members_of_a_failed_flight_come_back_together_and_share_the_next_production(b: broker.Broker, hand: Hand) -> None:
    handles = [b.request(OFFERS, target="search") for _ in range(20)]
    hand.source.error = OSError("not now")
    hand.work()
    slot = b.parts.index.slot(OFFERS)
    due = {b.parts.redis.run("ZSCORE", slot.key("delayed"), handle.id, writes=False) for handle in handles}
    assert len(due) == 1


def test_files_that_could_not_be_made_this_time_are_asked_for_again(b: broker.Broker, hand: Hand) -> None:
    unlucky, plain = b.request(OFFERS, target="search", format="csv"), b.request(OFFERS, target="search")
    flight = hand.lead()
    hand.claim()
    produced = hand.produce(flight)
    members = hand.clerk.close(flight)
    orders = hand.clerk.orders(flight, members, produced.version)
    answered = hand.clerk.complete(flight, members, produced, hand.clerk.keep(orders, [AttemptFailed("out of luck")]))
    assert (answered.ended, answered.retried) == (1, 1)
    assert (unlucky.status().state, plain.status().state) == (State.QUEUED, State.COMPLETED)
