"""What callers get from the broker's faces: typed refusals, honest words, and few round trips."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import broker
from broker.errors import Invalid, InvalidRequest, NotFound, RequestLost, Unavailable
from broker.flights import Order
from broker.model.names import DatasetId
from broker.model.request import Request, new_id
from broker.rules.fold import State as DatasetState
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


def test_a_client_that_looked_before_the_first_version_is_soon_answered_at_once(b: broker.Broker, redis_url: str) -> None:
    with broker.connect(redis=redis_url, store="memory://") as other:
        other.parts.catalog.state(OFFERS)  # as it was: without a version
        b.dataset(OFFERS).publish([{"sku": "a"}])
        states = [other.request(OFFERS, target="search", max_staleness=60.0).status().state for _ in range(2)]
    assert states == ["queued", "completed"]


def test_an_accepted_request_has_its_handle_also_when_the_look_behind_it_fails(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    b.dataset(OFFERS).publish([{"sku": "a"}])
    b.parts.catalog.state(OFFERS)
    order, state = b._asking._order, b.parts.catalog.state

    def stale(request: Request) -> Order:
        return replace(order(request), seq=1)

    def gone(dataset: DatasetId) -> DatasetState:
        looks.append(dataset)
        raise Unavailable("Redis is gone")

    looks = list[DatasetId]()
    monkeypatch.setattr(b._asking, "_order", stale)
    monkeypatch.setattr(b.parts.catalog, "state", gone)
    handle = b.request(OFFERS, target="search", max_staleness=60.0)
    monkeypatch.setattr(b.parts.catalog, "state", state)
    assert looks == [OFFERS]
    assert handle.status().state == "queued"


@pytest.mark.parametrize("order", [["price", "stock"], ["stock", "price"]])
def test_the_order_in_which_columns_are_named_makes_no_other_selection(b: broker.Broker, order: list[str]) -> None:
    b.dataset(OFFERS).publish([{"sku": "a", "price": 1, "stock": 2}])
    hand, first = Hand(b.parts, Source()), {"columns": ["price", "stock"], "format": "csv", "max_staleness": 60.0}
    asked = b.request(OFFERS, target="search", **first)
    hand.work()
    held = asked.wait(1)
    again = b.request(OFFERS, target="search", **(first | {"columns": order}))
    assert again.wait(0.1).files == held.files  # nothing was made anew
    b.dataset(OFFERS).publish_delta([{"sku": "a", "price": 2, "stock": 2}])
    since = b.request(OFFERS, target="search", **(first | {"columns": order, "since": held.cursor}))
    hand.work()
    assert (since.wait(1).mode, since.wait(1).completion.reset_reason) == ("delta", None)


# --- typed refusals


@pytest.mark.parametrize("field", ["max_staleness", "deadline"])
@pytest.mark.parametrize("seconds", [math.inf, math.nan])
def test_a_time_that_is_no_number_is_an_invalid_request(b: broker.Broker, field: str, seconds: float) -> None:
    with pytest.raises(InvalidRequest, match=field):
        b.request(OFFERS, target="search", **{field: seconds})


@pytest.mark.parametrize(
    "bad", [{"attributes": {"n": 1}}, {"attributes": {1: "n"}}, {"position": object()}, {"position": math.nan}]
)
def test_what_no_record_can_hold_is_refused_before_anything_is_read(b: broker.Broker, bad: dict[str, Any]) -> None:
    rows = iter([[{"sku": "a"}]])
    for publish in (b.dataset(OFFERS).publish, b.dataset(OFFERS).publish_delta):
        with pytest.raises(Invalid, match=r"attribute|position"):
            publish(rows, **bad)
    assert next(rows)


def test_deletes_before_the_first_rows_say_that_there_is_nothing_to_delete_from(b: broker.Broker) -> None:
    with pytest.raises(Invalid, match="no version exists yet"):
        b.dataset(OFFERS).publish_delta(deletes=[{"sku": "a"}])


# --- before the first version, and behind a snapshot


def test_before_the_first_version_there_is_nothing_to_read_or_plan(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS)
    for ask in (offers.read, offers.plan, lambda: offers.plan(since=1)):
        with pytest.raises(NotFound, match="no version yet"):
            ask()


def test_a_reset_says_whether_what_is_held_is_gone_or_was_replaced(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS)
    offers.publish([{"sku": "a"}])
    offers.publish([{"sku": "b"}])
    assert offers.plan(since=1).reset == "replaced"


def test_one_column_may_be_named_alone_and_none_twice(b: broker.Broker) -> None:
    assert b.request(OFFERS, target="search", columns="sku").status().request.columns == ("sku",)
    with pytest.raises(InvalidRequest, match="twice"):
        b.request(OFFERS, target="search", columns=["sku", "sku"])


def test_an_id_that_nobody_submitted_is_not_said_to_have_been_known(b: broker.Broker) -> None:
    with pytest.raises(RequestLost, match="or nobody ever submitted"):
        b.submitted(new_id(b.parts.index.slot(OFFERS).name))


def test_many_overdue_requests_are_ended_in_few_round_trips(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    handles = [b.request(OFFERS, target="search", deadline=3600.0) for _ in range(20)]
    handles[0].cancel()
    pipeline, sent = b.parts.redis.pipeline, list[str]()

    def counted(commands: Any, of: str, writes: bool = True) -> Any:
        sent.append(of)
        return pipeline(commands, of, writes)

    monkeypatch.setattr(b.parts.redis, "pipeline", counted)
    b.parts.requests.expire([handle.id for handle in handles] + [new_id(b.parts.index.slot(OFFERS).name)])
    assert len(sent) < 5
    assert [handle.status().state for handle in handles] == ["cancelled", *["expired"] * 19]


def test_a_reader_makes_no_streams_where_its_target_has_no_answers(b: broker.Broker) -> None:
    b.responses("nobody").read()
    assert not b.parts.redis.run("EXISTS", b.parts.index.slot(OFFERS).responses("nobody"))
