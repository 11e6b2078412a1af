"""Go live: a search index is filled from staging while production serves, and one event switches it.

The data lies on S3 servers, one of each kind; every read of it is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import broker
from broker import Broker, Dataset
from broker.errors import Conflict
from broker.sinks import DuckDB
from broker.stores.open import open_store
from tests.faulty_store import Fault, FaultyStore
from tests.ledger import broker_over
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server

OFFERS, IMAGES = "acme/catalog/offers", "acme/catalog/images"


class Reads:
    """Keys of data files that were read from the store: a plan for a FaultyStore in which nothing fails."""

    def __init__(self) -> None:
        self.data = list[str]()

    def __call__(self, method: str, key: str, nth: int) -> Fault | None:
        del nth
        if method == "get" and "/data/" in key:
            self.data.append(key)
        return None


@pytest.fixture
def reads() -> Reads:
    return Reads()


@pytest.fixture(params=["rclone", "moto"])
def b(request: pytest.FixtureRequest, redis_url: str, reads: Reads) -> Iterator[Broker]:
    server: S3Server = request.getfixturevalue(f"s3_{request.param}")
    settings = server.settings()
    store = FaultyStore(open_store(settings.store, settings, conditional=request.param == "moto"), reads)
    with broker_over(store, redis_url, s3_access_key=ACCESS_KEY, s3_secret_key=SECRET_KEY) as connected:
        yield connected


@pytest.fixture
def offers(b: Broker) -> Dataset:
    """Version 1 serves; version 2, with one price changed and one offer gone, is staged."""
    offers = b.dataset(OFFERS, key="sku")
    offers.publish([{"sku": f"s{number}", "price": number} for number in range(1_000)])
    offers.promote(1, to="production")
    offers.publish_delta([{"sku": "s1", "price": 100}], [{"sku": "s2"}])
    offers.promote(2, to="staging")
    return offers


def wait_for(b: Broker, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The newest event of the domain that is as asked."""
    entries = b.parts.redis.run("XREVRANGE", b.parts.index.slot(b.dataset(OFFERS).id).events, "+", "-", writes=False)
    told: list[dict[str, Any]] = [json.loads(fields[1]) for _, fields in entries]
    return next(event for event in told if what(event))


def test_a_search_index_is_filled_from_staging_and_switches_when_an_event_says_so(
    b: Broker, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # README: live
    catalog = b.dataset("goodstuff_01/shop/catalog", key=["sku"])
    catalog.publish([{"sku": "a", "price": 1}, {"sku": "b", "price": 1}])
    catalog.promote(1, to="production")

    sink = broker.sinks.DuckDB("index.duckdb", table="catalog")  # stands for the search index
    index = b.replica("goodstuff_01/shop/catalog", name="index", sink=sink, channel="production")
    assert index.sync().version == 1

    catalog.publish_delta(upserts=[{"sku": "a", "price": 2}])
    catalog.promote(2, to="staging")
    ready = index.preload("staging")  # fetched and verified, while production serves on
    assert (ready.version, index.sync().mode) == (2, "up-to-date")

    # README goes on: whatever was read so far, no more will be
    before = list(reads.data)
    # README: switch
    news = b.events("goodstuff_01/shop/catalog", channel="production", types=["promoted", "rolled-back"]).listen(timeout=30)
    assert next(news).present  # first comes what stands: version 1

    catalog.promote(2, to="production", expect=1)  # raises Conflict if production moved meanwhile
    assert next(news).data["version"] == 2
    switched = index.sync()  # from what lies ready: the store is not read
    assert (switched.version, switched.upserts, switched.reset) == (2, 1, None)

    catalog.rollback("production")
    assert next(news).type == "broker.channel.rolled-back"
    assert index.sync().reset == "rolled-back"
    assert b.released("goodstuff_01/shop", "production") == {"catalog": 1}

    # README: listen
    heard = next(b.events("goodstuff_01/shop/*", channel="production").listen(timeout=5))
    assert heard.data["version"] == 1  # a listener that comes late learns the present first

    with index.following():  # syncs whenever an event tells of something new
        catalog.promote(2, to="production")
    index.sync()  # what was told last may not have been applied when the block ended
    assert index.lag().versions == 0

    # README ends here
    assert reads.data == before
    assert rows(sink) == sorted(map(str, catalog.read(2).to_pylist()))
    sink.close()


def test_the_search_index_switches_on_one_event_without_reading_the_store(
    b: Broker, offers: Dataset, reads: Reads, tmp_path: Path
) -> None:
    index = DuckDB(tmp_path / "search.duckdb", table="offers")
    search = b.replica(OFFERS, name="search", sink=index, channel="production")
    assert search.sync().version == 1

    ready = search.preload("staging")
    assert (ready.version, ready.edges, ready.files) == (2, 1, 2)
    assert search.cursor is not None
    assert search.cursor.version == 1

    offers.promote(2, to="production", expect=1)
    event = wait_for(b, lambda event: bool(event["data"].get("channel") == "production"))
    assert (event["type"], event["subject"], event["data"]["version"]) == ("broker.channel.promoted", OFFERS, 2)

    reads.data.clear()
    switched = search.sync()
    assert (switched.version, switched.upserts, switched.deletes, switched.reset) == (2, 1, 1, None)
    assert reads.data == []
    assert rows(index) == sorted(map(str, offers.read(2).to_pylist()))
    index.close()


def test_without_a_pre_load_the_switch_reads_the_store(b: Broker, offers: Dataset, reads: Reads, tmp_path: Path) -> None:
    index = DuckDB(tmp_path / "search.duckdb", table="offers")
    search = b.replica(OFFERS, name="search", sink=index, channel="production")
    search.sync()
    offers.promote(2, to="production")
    reads.data.clear()
    search.sync()
    assert len(reads.data) == 2
    index.close()


def test_an_index_that_starts_empty_is_pre_loaded_whole(b: Broker, offers: Dataset, reads: Reads, tmp_path: Path) -> None:
    index = DuckDB(tmp_path / "search.duckdb", table="offers")
    search = b.replica(OFFERS, name="search", sink=index, channel="green")
    assert search.preload("green").version == 0
    assert search.preload("staging").files == 3
    offers.promote(2, to="green")
    reads.data.clear()
    assert (search.sync().version, len(rows(index))) == (2, 999)
    assert reads.data == []
    index.close()


def test_going_back_is_one_event_as_well(b: Broker, offers: Dataset, tmp_path: Path) -> None:
    index = DuckDB(tmp_path / "search.duckdb", table="offers")
    search = b.replica(OFFERS, name="search", sink=index, channel="production")
    offers.promote(2, to="production")
    search.sync()
    offers.rollback("production")
    event = wait_for(b, lambda event: bool(event["type"] == "broker.channel.rolled-back"))
    assert (event["data"]["version"], event["data"]["before"]) == (1, 2)
    assert (search.sync().reset, rows(index)) == ("rolled-back", sorted(map(str, offers.read(1).to_pylist())))
    assert offers.channels()["staging"].version == 2
    index.close()


def test_offers_and_their_images_go_live_together(b: Broker, offers: Dataset) -> None:
    images = b.dataset(IMAGES, key="sku")
    images.publish([{"sku": "s1", "url": "https://images/s1"}])
    b.release("acme/catalog", {"offers": 2, "images": 1}, to="production", expect={"offers": 1, "images": 0})
    assert b.released("acme/catalog", "production") == {"images": 1, "offers": 2}
    with pytest.raises(Conflict):
        b.release("acme/catalog", {"offers": 1, "images": 1}, to="production", expect={"offers": 1})
    assert b.released("acme/catalog", "production") == {"images": 1, "offers": 2}


def rows(sink: DuckDB) -> list[str]:
    return sorted(map(str, sink.read().to_pylist()))
