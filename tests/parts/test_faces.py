"""What callers get from the broker's faces: typed refusals, honest words, and few round trips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import broker
from broker.errors import InvalidRequest, NotFound
from tests.ledger import OFFERS, Hand, Source


@pytest.fixture
def b(redis_url: str) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, store="memory://") as connected:
        connected.dataset(OFFERS, key=["sku"])
        yield connected


def round_trips(b: broker.Broker, work: Callable[[], object]) -> int:
    """How many single commands `work` sends to Redis; scripts do not count."""
    run, sent = b.parts.redis.run, list[object]()

    def counted(*command: Any, **options: Any) -> Any:
        sent.append(command)
        return run(*command, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(b.parts.redis, "run", counted)
        work()
    return len(sent)


# --- few round trips


def test_members_with_one_selection_cost_one_look_for_its_files(b: broker.Broker) -> None:
    hand, asked = Hand(b.parts, Source()), [{"dataset": OFFERS, "target": "search", "where": "price > 1"}] * 20
    handles = list(b.requests(asked))
    (flight,) = hand.claim().flights
    produced = hand.produce(flight)
    assert round_trips(b, lambda: hand.answer(flight, produced)) < 20
    assert all(handle.wait(5).files for handle in handles if isinstance(handle, broker.Handle))


def test_requests_with_one_selection_look_for_its_files_and_columns_once(b: broker.Broker) -> None:
    hand, fields = Hand(b.parts, Source()), {"dataset": OFFERS, "target": "search", "where": "price > 1", "max_staleness": 60.0}
    b.request(**fields)  # type: ignore[arg-type]
    hand.work()
    first = b.request(**fields)  # type: ignore[arg-type]
    assert first.status().completion is not None
    assert round_trips(b, lambda: list(b.requests([fields] * 20))) == 0
