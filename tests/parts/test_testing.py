"""The fixtures users get: what `broker.testing` promises, tried as a user would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

import broker
from broker.errors import RequestFailed, TimedOut, Unavailable, Unsupported
from broker.testing import PrivateBroker, _private_redis, broker_env, private_broker

__all__ = ["_private_redis", "broker_env", "private_broker"]

OFFERS = "shop/catalog/offers"


def app_of(rows: list[dict[str, object]]) -> broker.Producers:
    app = broker.Producers()

    @app.producer("shop/catalog/*")
    def offers(request: broker.ProductionRequest, since: broker.Since | None) -> broker.Snapshot:
        return broker.Snapshot(list(rows))

    return app


def test_a_request_is_answered_in_the_calling_thread(private_broker: PrivateBroker) -> None:
    b = private_broker.broker
    b.dataset(OFFERS, key=["sku"])
    request = b.request(OFFERS, target="search")
    assert private_broker.work(app_of([{"sku": "a", "price": 1}, {"sku": "b", "price": 2}])) == 1
    assert sorted(row["sku"] for row in request.wait(timeout=0).table().to_pylist()) == ["a", "b"]


def test_a_filtered_delta_gets_files_of_its_own(private_broker: PrivateBroker) -> None:
    b, rows = private_broker.broker, [{"sku": "a", "price": 1}, {"sku": "b", "price": 2}]
    b.dataset(OFFERS, key=["sku"])
    b.request(OFFERS, target="search")
    private_broker.work(app_of(rows))
    request = b.request(OFFERS, target="search", since=1, where="price < 50", columns=["sku"])
    private_broker.work(app_of([{"sku": "a", "price": 99}, {"sku": "b", "price": 3}]))
    done = request.wait(timeout=0)
    assert (done.upserts().to_pylist(), done.deletes().to_pylist()) == ([{"sku": "b"}], [{"sku": "a"}])


def test_the_server_is_in_use_between_tests_too(_private_redis: str) -> None:  # noqa: PT019 - its URL is what is tested
    with redis.Redis.from_url(_private_redis) as client:
        assert [entry for entry in client.client_list() if entry["cmd"] == "ping"]


def test_each_test_begins_with_nothing(private_broker: PrivateBroker) -> None:
    assert private_broker.broker.datasets() == []
    assert private_broker.work(app_of([])) == 0


def test_a_transient_failure_is_tried_again_within_one_call(private_broker: PrivateBroker) -> None:
    private_broker.broker.dataset(OFFERS, key=["sku"])
    app, calls = broker.Producers(), list[int]()

    @app.producer(OFFERS)
    def flaky(request: broker.ProductionRequest, since: broker.Since | None) -> broker.Snapshot:
        calls.append(1)
        if len(calls) < 3:
            raise Unavailable("the source is asleep")
        return broker.Snapshot([{"sku": "a"}])

    request = private_broker.broker.request(OFFERS, target="search")
    private_broker.work(app)
    assert len(calls) == 3
    assert request.wait(timeout=0).attempts == 3


def test_what_a_producer_raises_is_the_requests_failure(private_broker: PrivateBroker) -> None:
    b, app = private_broker.broker, broker.Producers()
    b.dataset(OFFERS, key=["sku"])

    @app.producer(OFFERS)
    def broken(request: broker.ProductionRequest, since: broker.Since | None) -> broker.Snapshot:
        raise KeyError("no such table")

    request = b.request(OFFERS, target="search")
    private_broker.work(app)
    with pytest.raises(RequestFailed, match="no such table"):
        request.wait(timeout=0)


def test_datasets_of_other_producers_are_left_alone(private_broker: PrivateBroker) -> None:
    b = private_broker.broker
    b.dataset("shop/orders/open", key=["id"])
    b.dataset(OFFERS, key=["sku"])
    theirs, mine = b.request("shop/orders/open", target="search"), b.request(OFFERS, target="search")
    assert private_broker.work(app_of([{"sku": "a"}])) == 1
    assert mine.status().state.terminal
    with pytest.raises(TimedOut):
        theirs.wait(timeout=0)


def test_producers_in_parts_are_refused_with_the_way_out(private_broker: PrivateBroker) -> None:
    app = broker.Producers()

    @app.producer(OFFERS, partitions=2)
    def heavy(request: broker.ProductionRequest, since: broker.Since | None, part: int) -> Iterator[dict[str, object]]:
        yield {"sku": str(part)}

    with pytest.raises(Unsupported, match="broker worker"):
        private_broker.work(app)


def test_code_that_connects_by_itself_finds_the_private_broker(broker_env: PrivateBroker) -> None:
    with broker.connect() as own:
        own.dataset(OFFERS, key=["sku"]).publish([{"sku": "a"}])
    assert broker_env.broker.dataset(OFFERS).read().to_pylist() == [{"sku": "a"}]
