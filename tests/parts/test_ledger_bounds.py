"""What the ledger of requests must not do: put a head back, grow without bound, or lose a place in a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import broker
from broker.fulfilment import Maker
from broker.model.names import DatasetId
from broker.outcomes import ProductionRequest, Since, Unchanged
from broker.producers import Producers
from tests.ledger import OFFERS, Hand, Source

SHORT: dict[str, Any] = {"lease_seconds": 60, "backoff_seconds": 0.02, "backoff_max_seconds": 0.05, "max_attempts": 3}


@pytest.fixture
def b(redis_url: str) -> Iterator[broker.Broker]:
    with opened(redis_url) as connected:
        yield connected


@pytest.fixture
def hand(b: broker.Broker) -> Hand:
    return Hand(b.parts, Source())


def opened(url: str, **settings: Any) -> broker.Broker:
    """A broker over an own memory store, with the dataset of these tests."""
    connected = broker.connect(redis=url, store="memory://", **(SHORT | settings))
    connected.dataset(OFFERS, key=["sku"])
    return connected


def ask(b: broker.Broker, **fields: Any) -> broker.Handle:
    return b.request(OFFERS, **({"target": "search"} | fields))


def noted(b: broker.Broker, dataset: DatasetId = OFFERS) -> tuple[int, Any]:
    """The head's version and the position a producer would be told with it."""
    return b.parts.catalog.noted(dataset)


def says_unchanged(b: broker.Broker, position: Any) -> Maker:
    """The hands of a producer that finds nothing new, up to `position`."""

    def nothing_new(request: ProductionRequest, since: Since | None) -> Unchanged:
        del request, since
        return Unchanged(position=position)

    app = Producers()
    app.add("*/*/*", nothing_new)
    return Maker(b.parts.catalog, b.parts.engine, b.parts.publication, app)


# --- a late answer


def test_a_late_answer_of_nothing_new_leaves_the_position_of_a_newer_version(b: broker.Broker, hand: Hand) -> None:
    b.dataset(OFFERS).publish([{"sku": "a", "price": 1}], position="first")
    ask(b)
    flight = hand.lead()
    produced = says_unchanged(b, "stale").produce(flight, 1, hand.clerk.since(flight))
    b.dataset(OFFERS).publish([{"sku": "a", "price": 2}], position="second")
    hand.answer(flight, produced)
    assert noted(b) == (2, "second")


def test_a_late_answer_of_nothing_new_says_nothing_of_a_dataset_made_anew(b: broker.Broker, hand: Hand) -> None:
    offers = b.dataset(OFFERS)
    offers.publish([{"sku": "a", "price": 1}], position="first")
    ask(b)
    flight = hand.lead()
    produced = says_unchanged(b, "stale").produce(flight, 1, hand.clerk.since(flight))
    offers.drop()
    b.dataset(OFFERS, key=["sku"])
    hand.answer(flight, produced)
    assert b.parts.index.fields(OFFERS, "position", "confirmed_at") == [b"null", b"0"]


def test_an_answer_of_nothing_new_notes_its_position_with_the_version_it_spoke_of(b: broker.Broker, hand: Hand) -> None:
    b.dataset(OFFERS).publish([{"sku": "a", "price": 1}], position="first")
    ask(b)
    flight = hand.lead()
    hand.answer(flight, says_unchanged(b, "further").produce(flight, 1, hand.clerk.since(flight)))
    assert noted(b) == (1, "further")
