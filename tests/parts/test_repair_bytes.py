"""What a repair fetches: no more than twice the bytes of the key buckets that differ. Every byte read of an S3 store is counted.

The bytes of a bucket are its even share, 1 of 256, of the files that lead to the version, as they were published. What is read
for it is what a worker laid out, with the footer that tells where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import broker
from broker.columnar import buckets
from broker.columnar.buckets import Ranges, digest_of_rows, lay_out, read_buckets
from broker.columnar.digest import BUCKETS
from broker.columnar.engine import EVERYTHING, Engine
from broker.connect import Broker
from broker.mending import Mending
from broker.model.names import DatasetId, data_key, derived_key
from broker.parts import Parts
from broker.replica import Replica
from broker.replica_repair import MOST_BUCKETS
from broker.settings import load
from broker.sinks import DuckDB, Memory
from broker.stores.memory import MemoryStore
from broker.stores.open import open_store
from tests.cli import Shell
from tests.faulty_store import Fault, FaultyStore, never
from tests.ledger import broker_over
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server

OFFERS = DatasetId("shop/catalog/offers")
ROWS, DELTAS = 200_000, 4
OFFER = """'sku-' || (hash(i) % 1000000000)::VARCHAR || i AS sku, (hash(i, 2) % 100000) / 100.0 AS price,
    (hash(i, 3) % 1000)::INT AS stock, 'https://shop.example/p/' || lower(hex(hash(i))) || '.html' AS url,
    'Product ' || (hash(i, 4) % 50000) || ', colour ' || (hash(i, 5) % 40) || ', size ' || (hash(i, 6) % 12) AS title,
    TIMESTAMP '2026-01-01' + INTERVAL (hash(i, 7) % 10000000) SECOND AS updated_at"""


class Counting(FaultyStore):
    """Counts the bytes that data files gave, whether sealed or derived."""

    bytes = 0

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        for chunk in super().get(key, start, length):
            self.bytes += len(chunk) if "/data/" in key or "/derived/" in key else 0
            yield chunk


def offers(rows: int, begin: int = 0) -> pa.Table:
    relation = duckdb.sql(f"SELECT {OFFER} FROM range({begin}, {begin + rows}) AS r(i)")
    assert relation is not None
    return relation.to_arrow_table()


@pytest.fixture(params=["moto", "rclone"])
def s3(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(f"s3_{request.param}")
    return server


@pytest.fixture
def store(s3: S3Server) -> Counting:
    settings = s3.settings()
    return Counting(open_store(settings.store or "", settings))


@contextmanager
def opened(store: Counting, redis_url: str) -> Iterator[Broker]:
    with broker_over(store, redis_url, s3_access_key=ACCESS_KEY, s3_secret_key=SECRET_KEY) as connected:
        yield connected


@pytest.fixture
def b(redis_url: str, store: Counting) -> Iterator[Broker]:
    """The broker's side: it published, and its reading is its own."""
    with opened(Counting(store.inner), redis_url) as connected:
        dataset = connected.dataset(OFFERS, key="sku")
        dataset.publish(offers(ROWS))
        for number in range(DELTAS):
            dataset.publish_delta(offers(1_000, ROWS + number * 1_000), offers(10, number * 10).select(["sku"]))
        yield connected


@pytest.fixture
def consumer(redis_url: str, store: Counting) -> Iterator[Broker]:
    with opened(store, redis_url) as connected:
        yield connected


@contextmanager
def worker(parts: Parts) -> Iterator[Mending]:
    """The duty at work, as `broker worker` does it, in a thread."""
    duty, stop = parts.mending, Event()
    duty.run_once()  # so that it counts as alive

    def passes() -> None:
        while not stop.wait(0.02):
            duty.run_once()

    thread = Thread(target=passes)
    thread.start()
    try:
        yield duty
    finally:
        stop.set()
        thread.join()


def damage(place: Path, rows: int) -> None:
    """Another price for so many rows."""
    with duckdb.connect(place) as connection:
        connection.execute(
            f"UPDATE offers SET price = -1 WHERE sku IN (SELECT sku FROM offers ORDER BY hash(sku) LIMIT {rows})"
        )


@pytest.fixture
def damaged(b: Broker, consumer: Broker, tmp_path: Path, store: Counting) -> Callable[[int], Replica]:
    """A synced replica of which so many rows are wrong, in a process that holds no file of the store any more."""

    def made(rows: int) -> Replica:
        sink = DuckDB(tmp_path / "replica.duckdb", "offers")
        b.replica(OFFERS, name="search", sink=sink).sync()
        damage(tmp_path / "replica.duckdb", rows)
        return consumer.replica(OFFERS, name="search", sink=sink)

    return made


def road_bytes(b: Broker) -> int:
    return sum(edge.bytes for edge in b.dataset(OFFERS).plan().edges)


def content(table: pa.Table) -> list[dict[str, object]]:
    return sorted(table.to_pylist(), key=lambda row: str(row["sku"]))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_repair_fetches_at_most_twice_the_bytes_of_the_buckets_that_differ(
    b: Broker, damaged: Callable[[int], Replica], store: Counting, rows: int
) -> None:
    replica = damaged(rows)
    with worker(b.parts):
        done = replica.repair()
    assert (len(done.buckets), done.upserts) == (rows, rows)
    assert done.bytes == store.bytes
    assert 0 < store.bytes <= 2 * road_bytes(b) * rows / BUCKETS
    assert content(replica.sink.read()) == content(b.dataset(OFFERS).read())


def test_without_a_worker_the_whole_road_is_read_and_counted(
    b: Broker, damaged: Callable[[int], Replica], store: Counting
) -> None:
    replica = damaged(1)
    done = replica.repair()
    assert done.upserts == 1
    assert done.bytes == store.bytes == road_bytes(b)
    assert content(replica.sink.read()) == content(b.dataset(OFFERS).read())


def test_a_replica_that_holds_what_it_must_fetches_nothing(
    b: Broker, damaged: Callable[[int], Replica], store: Counting
) -> None:
    replica = damaged(0)
    with worker(b.parts):
        assert replica.repair().buckets == ()
    assert store.bytes == 0


def test_where_most_buckets_differ_the_whole_road_is_read_which_is_no_more_than_twice_their_bytes(
    b: Broker, damaged: Callable[[int], Replica], store: Counting
) -> None:
    replica = damaged(ROWS // 100)
    with worker(b.parts):
        done = replica.repair()
    assert len(done.buckets) > MOST_BUCKETS
    assert done.bytes == store.bytes == road_bytes(b) <= 2 * road_bytes(b) * len(done.buckets) / BUCKETS
    assert content(replica.sink.read()) == content(b.dataset(OFFERS).read())


@pytest.mark.parametrize("fault", [Fault.OTHER_BYTES, Fault.TRUNCATED, Fault.CUT])
@pytest.mark.parametrize("at", range(1, 6))
def test_a_part_that_is_not_what_was_laid_out_is_never_written_and_whole_files_repair(
    b: Broker, damaged: Callable[[int], Replica], store: Counting, fault: Fault, at: int
) -> None:
    replica, reads = damaged(1), [0]

    def plan(method: str, key: str, nth: int) -> Fault | None:
        del nth
        if method != "get" or "/derived/" not in key:
            return None
        reads[0] += 1
        return fault if reads[0] == at else None

    store.plan = plan
    with worker(b.parts):
        replica.repair()
    store.plan = never
    assert reads[0] >= at
    assert content(replica.sink.read()) == content(b.dataset(OFFERS).read())
