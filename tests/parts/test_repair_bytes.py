"""What a repair fetches: no more than twice the bytes of the key buckets that differ. Every byte read of S3 is counted.

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
from broker.columnar import buckets, digest
from broker.columnar.buckets import Ranges, digest_of_rows, lay_out, read_buckets
from broker.columnar.digest import BUCKETS, ContentDigest
from broker.columnar.engine import EVERYTHING, Engine
from broker.columnar.results import schema_of_spec
from broker.columnar.types import arrow_schema, schema_of
from broker.connect import Broker
from broker.errors import Corrupt, Unavailable
from broker.mending import Mending
from broker.model.commit import Edge, File
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId, derived_key
from broker.parts import Parts
from broker.replica import Replica
from broker.replica_repair import MOST_BUCKETS
from broker.settings import load
from broker.sinks import DuckDB, Memory
from broker.stores.memory import MemoryStore
from broker.stores.open import open_store
from tests.campaign import examples
from tests.cli import Shell
from tests.faulty_store import Fault, FaultyStore, at, matching
from tests.ledger import broker_over
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server, wait_until

OFFERS = DatasetId("shop/catalog/offers")
ROWS, FEW, DELTAS = 200_000, 20_000, 4
OFFER = """'sku-' || (hash(i) % 1000000000)::VARCHAR || i AS sku, (hash(i, 2) % 100000) / 100.0 AS price,
    (hash(i, 3) % 1000)::INT AS stock, 'https://shop.example/p/' || lower(hex(hash(i))) || '.html' AS url,
    'Product ' || (hash(i, 4) % 50000) || ', colour ' || (hash(i, 5) % 40) || ', size ' || (hash(i, 6) % 12) AS title,
    TIMESTAMP '2026-01-01' + INTERVAL (hash(i, 7) % 10000000) SECOND AS updated_at"""


class Counting(FaultyStore):
    """Counts the bytes that data files gave, whether sealed or derived."""

    read = 0

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        for chunk in super().get(key, start, length):
            self.read += len(chunk) if "/data/" in key or "/derived/" in key else 0
            yield chunk


def offers(rows: int, begin: int = 0) -> pa.Table:
    relation = duckdb.sql(f"SELECT {OFFER} FROM range({begin}, {begin + rows}) AS r(i)")
    assert relation is not None
    return relation.to_arrow_table()


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Counting:
    """A bucket of moto's, or of the server that a test names."""
    server: S3Server = request.getfixturevalue(f"s3_{getattr(request, 'param', 'moto')}")
    settings = server.settings()
    return Counting(open_store(settings.store or "", settings))


@contextmanager
def opened(store: Counting, redis_url: str) -> Iterator[Broker]:
    with broker_over(store, redis_url, s3_access_key=ACCESS_KEY, s3_secret_key=SECRET_KEY) as connected:
        yield connected


@pytest.fixture
def b(redis_url: str, store: Counting, request: pytest.FixtureRequest) -> Iterator[Broker]:
    """The broker's side: it published a few rows, or as many as a test says, and its reading is its own."""
    with opened(Counting(store.inner), redis_url) as connected:
        dataset = connected.dataset(OFFERS, key="sku")
        dataset.publish(offers(getattr(request, "param", FEW)))
        for number in range(DELTAS):
            dataset.publish_delta(offers(100, ROWS + number * 100), offers(10, number * 10).select(["sku"]))
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


def same(left: pa.Table, right: pa.Table, key: str = "sku") -> bool:
    return bool(left.sort_by(key).equals(right.sort_by(key)))


@pytest.mark.parametrize(("store", "rows"), [("moto", 1), ("rclone", 3)], indirect=["store"])
@pytest.mark.parametrize("b", [ROWS], indirect=True)
def test_a_repair_fetches_at_most_twice_the_bytes_of_the_buckets_that_differ(
    b: Broker, damaged: Callable[[int], Replica], store: Counting, rows: int
) -> None:
    replica = damaged(rows)
    with worker(b.parts):
        done = replica.repair()
    assert (len(done.buckets), done.upserts) == (rows, rows)
    assert done.bytes == store.read
    assert 0 < store.read <= 2 * road_bytes(b) * rows / BUCKETS
    assert same(replica.sink.read(), b.dataset(OFFERS).read())


def test_without_a_worker_the_whole_road_is_read_and_counted(
    b: Broker, damaged: Callable[[int], Replica], store: Counting
) -> None:
    replica = damaged(1)
    done = replica.repair()
    assert done.upserts == 1
    assert done.bytes == store.read == road_bytes(b)
    assert same(replica.sink.read(), b.dataset(OFFERS).read())


def test_a_replica_that_holds_what_it_must_fetches_nothing(
    b: Broker, damaged: Callable[[int], Replica], store: Counting
) -> None:
    replica = damaged(0)
    with worker(b.parts):
        assert replica.repair().buckets == ()
    assert store.read == 0


def test_where_most_buckets_differ_the_whole_road_is_read_which_is_no_more_than_twice_their_bytes(
    b: Broker, damaged: Callable[[int], Replica], store: Counting
) -> None:
    replica = damaged(FEW // 10)
    with worker(b.parts):
        done = replica.repair()
    assert len(done.buckets) > MOST_BUCKETS
    assert done.bytes == store.read == road_bytes(b) <= 2 * road_bytes(b) * len(done.buckets) / BUCKETS
    assert same(replica.sink.read(), b.dataset(OFFERS).read())


def test_a_part_that_is_not_what_was_laid_out_is_never_written_and_whole_files_repair(
    b: Broker, damaged: Callable[[int], Replica], store: Counting
) -> None:
    replica = damaged(1)
    store.plan = matching("get", "/derived/", Fault.OTHER_BYTES)
    with worker(b.parts):
        done = replica.repair()
    assert store.hits["get", Fault.OTHER_BYTES]
    assert road_bytes(b) < done.bytes == store.read
    assert same(replica.sink.read(), b.dataset(OFFERS).read())


def test_a_filtered_replica_with_few_columns_is_repaired_by_bucket_too(b: Broker, consumer: Broker, store: Counting) -> None:
    sink, where, columns = Memory(), "price < 100", ["stock"]
    b.replica(OFFERS, name="search", sink=sink, where=where, columns=columns).sync()
    wrong = next(iter(sink._state.rows))
    sink._state.rows[wrong]["stock"] = -1
    with worker(b.parts):
        done = consumer.replica(OFFERS, name="search", sink=sink, where=where, columns=columns).repair()
    assert (len(done.buckets), done.upserts) == (1, 1)
    assert 0 < done.bytes == store.read < road_bytes(b) / 20
    assert same(sink.read(), b.dataset(OFFERS).read(where=where, columns=columns))


def test_what_was_learnt_for_one_replica_serves_all_that_hold_the_same(b: Broker, consumer: Broker, store: Counting) -> None:
    sinks = {name: Memory() for name in ("one", "two")}
    for name, sink in sinks.items():
        b.replica(OFFERS, name=name, sink=sink).sync()
        del sink._state.rows[next(iter(sink._state.rows))]
    with worker(b.parts):
        consumer.replica(OFFERS, name="one", sink=sinks["one"]).repair()
    assert consumer.replica(OFFERS, name="two", sink=sinks["two"]).repair().bytes < road_bytes(b) / 10
    assert b.parts.mending.run_once() == 0


def test_a_worker_process_answers_a_repair(redis_url: str, tmp_path: Path) -> None:
    place = tmp_path / "replica.duckdb"
    shell = Shell(tmp_path, {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store")})
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as b:
        b.dataset(OFFERS, key="sku").publish(offers(FEW))
        replica = b.replica(OFFERS, name="search", sink=DuckDB(place, "offers"))
        replica.sync()
        damage(place, 1)
        running, slot = shell.start("worker", "--role", "compact", log=tmp_path / "log"), b.parts.index.slot(OFFERS)
        wait_until(lambda: bool(b.parts.redis.run("EXISTS", slot.heeded, writes=False)), "the worker")
        done = replica.repair(timeout=60)
        running.terminate()
        assert running.wait(60) == 0
        assert (len(done.buckets), done.upserts) == (1, 1)
        assert done.bytes < road_bytes(b) / 10
        assert same(replica.sink.read(), b.dataset(OFFERS).read())


# --- the file by bucket itself

MEMORY = MemoryStore()
COLUMNS = pa.schema([("k", pa.string()), ("v", pa.list_(pa.int64()))])
KEYS = st.lists(st.text("abc", min_size=1, max_size=6), unique=True, max_size=60)


Laid = tuple[pa.Table, ContentDigest, File]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(MEMORY, load()) as made:
        yield made


SPEC = DatasetSpec.of(
    dataset=OFFERS, key=("k",), columns=schema_of(pa.schema([("k", pa.string()), ("v", pa.list_(pa.int64()))]))
)


def laid_out(engine: Engine, keys: list[str]) -> Laid:
    rows = pa.table({"k": keys, "v": [[len(key), None] for key in keys]}, schema=arrow_schema(schema_of_spec(SPEC)))
    written = engine.write_snapshot(SPEC, rows)
    edges = [Edge(version=1, files=written.files)]
    (file,) = lay_out(engine, MEMORY, SPEC, edges, EVERYTHING, lambda form: derived_key(OFFERS, 1, "0" * 32, form)).files
    return rows, digest_of_rows(engine, SPEC.key, rows), file


@pytest.fixture(scope="module")
def laid(engine: Engine) -> Laid:
    return laid_out(engine, [f"k{number}" for number in range(40)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(25))
@given(keys=KEYS, data=st.data())
def test_some_buckets_are_exactly_their_rows_however_many_batches_they_take(
    engine: Engine, keys: list[str], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(buckets, "BATCH_ROWS", data.draw(st.integers(1, 4)))
        patched.setattr(digest, "BUCKETS", 7)
        rows, right, file = laid_out(engine, keys)
        wanted = data.draw(st.sets(st.integers(0, 6)))
        found = read_buckets(engine, Ranges(MEMORY, file), SPEC.key, right, wanted)
        with engine.session("test") as session:
            session.bind("given", rows)
            chosen = f"{digest.bucket_sql(SPEC.key)} IN ({', '.join(map(str, wanted)) or 'NULL'})"
            names = [name for (name,) in session.rows(f"SELECT k FROM given WHERE {chosen}")]
    assert sorted(found.column("k").to_pylist()) == sorted(names)


@pytest.mark.parametrize("fault", [Fault.OTHER_BYTES, Fault.TRUNCATED, Fault.CUT, Fault.REFUSED])
@pytest.mark.parametrize("nth", range(1, 4))
def test_any_read_that_goes_wrong_is_an_error_of_its_own_kind(engine: Engine, fault: Fault, nth: int) -> None:
    _, right, file = laid_out(engine, [f"k{number}" for number in range(1_000)])
    store = FaultyStore(MEMORY, at("get", nth, fault))
    with pytest.raises(Unavailable if fault is Fault.REFUSED else Corrupt):
        read_buckets(engine, Ranges(store, file), SPEC.key, right, {right.buckets[3].number})
    assert store.hits["get", fault] == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(50))
@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_file_by_bucket_gives_other_rows(engine: Engine, laid: Laid, at: int, bit: int) -> None:
    rows, right, file = laid
    data = bytearray(b"".join(MEMORY.get(file.key)))
    data[at % len(data)] ^= 1 << bit
    spoilt = MemoryStore()
    spoilt.put(file.key, bytes(data))
    try:
        found = read_buckets(engine, Ranges(spoilt, file), SPEC.key, right, range(BUCKETS))
    except Corrupt:
        return
    assert same(found.select(rows.schema.names), rows, "k")
