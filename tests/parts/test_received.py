"""A completion applied to a sink: only where it begins, only once, never backwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import broker
from broker.errors import StaleBase
from broker.model.request import Completion, Request, State
from broker.received import Received
from broker.rules.answering import completed
from broker.rules.plan import plan
from broker.sinks.memory import Memory

DATASET = "goodstuff_01/catalog/offers"


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as connection:
        yield connection


@pytest.fixture
def offers(b: broker.Broker) -> broker.Dataset:
    """Five versions: a row each."""
    dataset = b.dataset(DATASET, key="sku")
    dataset.publish([{"sku": "v1", "n": 1}])
    for number in range(2, 6):
        dataset.publish_delta([{"sku": f"v{number}", "n": number}])
    return dataset


def answer(b: broker.Broker, dataset: broker.Dataset, since: int | None, version: int) -> Received:
    """What a request since `since` was answered with at `version`."""
    state = dataset.state
    request = Request.of({"dataset": dataset.id, "target": "t", "since": since})
    completion: Completion = completed(f"catalog.0.{'0' * 32}", request, state.session, plan(state.edges, since, version), 9e9)
    assert completion.state is State.COMPLETED
    return b.received(completion)


def skus(sink: Memory) -> list[str]:
    return sorted(row["sku"] for row in sink.rows.values())


def test_a_delta_that_begins_elsewhere_is_stale_and_changes_nothing(b: broker.Broker, offers: broker.Dataset) -> None:
    sink = Memory()
    answer(b, offers, None, 1).apply(sink, "r")
    with pytest.raises(StaleBase, match="begins at version 4"):
        answer(b, offers, 4, 5).apply(sink, "r")
    assert skus(sink) == ["v1"]


def test_a_delta_that_begins_before_where_the_sink_stands_leads_it_on(b: broker.Broker, offers: broker.Dataset) -> None:
    sink = Memory()
    answer(b, offers, None, 3).apply(sink, "r")
    answer(b, offers, 2, 5).apply(sink, "r")
    assert skus(sink) == ["v1", "v2", "v3", "v4", "v5"]


def test_a_delta_needs_a_sink_that_holds_something(b: broker.Broker, offers: broker.Dataset) -> None:
    with pytest.raises(StaleBase):
        answer(b, offers, 4, 5).apply(Memory(), "r")


def test_a_delta_of_another_dataset_is_refused(b: broker.Broker, offers: broker.Dataset) -> None:
    other = b.dataset("goodstuff_01/catalog/images", key="sku")
    other.publish([{"sku": "a", "n": 1}])
    other.publish_delta([{"sku": "b", "n": 2}])
    sink = Memory()
    answer(b, offers, None, 1).apply(sink, "r")
    with pytest.raises(StaleBase):
        answer(b, other, 1, 2).apply(sink, "r")


def test_an_answer_applied_twice_is_applied_once(b: broker.Broker, offers: broker.Dataset) -> None:
    sink = Memory()
    answer(b, offers, None, 3).apply(sink, "r")
    delta = answer(b, offers, 3, 5)
    assert delta.apply(sink, "r").upserts == 2
    assert delta.apply(sink, "r").upserts == 0
    assert skus(sink) == ["v1", "v2", "v3", "v4", "v5"]


def test_an_older_snapshot_does_not_take_a_sink_back(b: broker.Broker, offers: broker.Dataset) -> None:
    sink = Memory()
    answer(b, offers, None, 5).apply(sink, "r")
    with pytest.raises(StaleBase, match="further"):
        answer(b, offers, None, 1).apply(sink, "r")
    assert len(skus(sink)) == 5
