"""The read half: what a replica holds after a sync, why it starts anew, and who may sync it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import broker
from broker.errors import Busy, Corrupt
from broker.model.commit import File, NewEdge
from broker.model.names import DatasetId
from broker.parts import STORE_FOLDER
from broker.sinks import DuckDB, Memory
from tests.servers import wait_until

OFFERS = DatasetId("shop/catalog/offers")
ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 0.5


def connected(url: str, home: Path, **settings: Any) -> broker.Broker:
    return broker.connect(redis=url, home=home, lease_seconds=LEASE_SECONDS, **settings)


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with connected(redis_url, tmp_path) as opened:
        yield opened


def rows(*pairs: tuple[str, int]) -> pa.Table:
    return pa.table({"sku": [sku for sku, _ in pairs], "price": [price for _, price in pairs]})


def offers(b: broker.Broker) -> broker.Dataset:
    """Version 1: a and b."""
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(rows(("a", 1), ("b", 60)))
    return dataset


def prices(sink: Memory | DuckDB) -> dict[str, int]:
    return {row["sku"]: row["price"] for row in sink.read().to_pylist()}


def damage(b: broker.Broker, file: File, home: Path) -> None:
    """Turn one bit of the stored object."""
    path = home / STORE_FOLDER / file.key
    data = path.read_bytes()
    path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])


# --- what a sync does


def test_a_replica_follows_from_nothing_by_deltas_to_the_head_and_then_says_so(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    sink = Memory()
    replica = b.replica(OFFERS, name="search", sink=sink)
    assert replica.sync().mode == "nothing-yet"
    dataset.publish(rows(("a", 1), ("b", 60)))
    first = replica.sync()
    assert (first.mode, first.version, first.rows, first.reset) == ("applied", 1, 2, None)
    dataset.publish_delta(rows(("a", 2), ("c", 3)), [{"sku": "b"}])
    second = replica.sync()
    assert (second.version, second.edges, second.upserts, second.deletes, second.reset) == (2, 1, 2, 1, None)
    assert prices(sink) == {"a": 2, "c": 3}
    assert replica.sync().mode == "up-to-date"


def test_sync_waits_for_something_new_and_wakes_when_told(b: broker.Broker) -> None:
    dataset = offers(b)
    replica = b.replica(OFFERS, name="search", sink=Memory())
    replica.sync()
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(replica.sync(timeout=30)))
    waiting.start()
    dataset.publish_delta(rows(("c", 3)))
    replica.wake()
    waiting.join(10)
    assert [(report.mode, report.version) for report in found] == [("applied", 2)]
    assert replica.sync(timeout=0.01).mode == "up-to-date"


def test_while_it_waits_a_replica_leaves_its_sink_alone(b: broker.Broker) -> None:
    offers(b)

    class Counted(Memory):
        looks = 0

        def cursor(self, name: str) -> Any:
            self.looks += 1
            return super().cursor(name)

    sink = Counted()
    replica = b.replica(OFFERS, name="search", sink=sink)
    replica.sync()
    before = sink.looks
    replica.sync(timeout=0.3)
    assert sink.looks == before + 1


# --- why it starts anew


def test_a_new_session_resets_and_before_its_first_version_the_replica_stays_as_it_is(b: broker.Broker) -> None:
    dataset, sink = offers(b), Memory()
    replica = b.replica(OFFERS, name="search", sink=sink)
    replica.sync()
    dataset.alter(pa.schema([("sku", pa.string()), ("price", pa.string())]), force=True)
    assert replica.sync().mode == "nothing-yet"
    assert prices(sink) == {"a": 1, "b": 60}
    dataset.publish_delta(pa.table({"sku": ["z"], "price": ["dear"]}))
    report = replica.sync()
    assert (report.mode, report.reset) == ("applied", "new-session")
    assert sink.read().to_pylist() == [{"sku": "z", "price": "dear"}]


def test_a_dataset_dropped_and_made_again_is_a_new_session(b: broker.Broker) -> None:
    dataset, sink = offers(b), Memory()
    b.replica(OFFERS, name="search", sink=sink).sync()
    dataset.drop()
    b.dataset(OFFERS, key=["sku"]).publish(rows(("z", 9)))
    assert b.replica(OFFERS, name="search", sink=sink).sync().reset == "new-session"
    assert prices(sink) == {"z": 9}


def test_another_filter_resets(b: broker.Broker) -> None:
    offers(b)
    sink = Memory()
    b.replica(OFFERS, name="search", sink=sink, where="price < 50").sync()
    assert prices(sink) == {"a": 1}
    report = b.replica(OFFERS, name="search", sink=sink, where="price > 50").sync()
    assert (report.reset, prices(sink)) == ("filter-changed", {"b": 60})


def test_a_snapshot_published_over_the_version_held_resets_as_replaced(b: broker.Broker) -> None:
    dataset, sink = offers(b), Memory()
    replica = b.replica(OFFERS, name="search", sink=sink)
    replica.sync()
    dataset.publish(rows(("z", 9)))
    assert (replica.sync().reset, prices(sink)) == ("replaced", {"z": 9})


@pytest.mark.parametrize("kind", ["memory", "duckdb"])
def test_columns_added_and_widened_reach_the_replica_without_a_reset(b: broker.Broker, tmp_path: Path, kind: str) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(pa.table({"sku": ["a", "b"], "price": pa.array([1, 60], pa.int32())}))
    sink = Memory() if kind == "memory" else DuckDB(tmp_path / "r.duckdb", "r")
    replica = b.replica(OFFERS, name="search", sink=sink)
    replica.sync()
    dataset.alter(pa.schema([("sku", pa.string()), ("price", pa.int64()), ("shop", pa.string())]))
    assert replica.sync().mode == "up-to-date"
    dataset.publish_delta(pa.table({"sku": ["c"], "price": [2**40], "shop": ["eu"]}))
    assert replica.sync().reset is None
    found = sorted(sink.read().to_pylist(), key=lambda row: row["sku"])
    assert found == [
        {"sku": "a", "price": 1, "shop": None}, {"sku": "b", "price": 60, "shop": None},
        {"sku": "c", "price": 2**40, "shop": "eu"},
    ]  # fmt: skip


@pytest.mark.parametrize("where", [None, "price < 50"])
def test_a_replica_that_starts_from_a_snapshot_knows_what_was_deleted_before(b: broker.Broker, where: str | None) -> None:
    dataset = b.dataset(OFFERS, key=["sku"], order=["price"])
    dataset.publish(rows(("a", 10), ("b", 20)))
    dataset.publish(rows(("b", 20)))
    sink = Memory()
    replica = b.replica(OFFERS, name="search", sink=sink, where=where)
    replica.sync()
    dataset.publish_delta(rows(("a", 5), ("c", 1)))
    replica.sync()
    assert prices(sink) == prices_of(dataset) == {"b": 20, "c": 1}


def test_a_filtered_replica_knows_the_order_of_rows_it_does_not_see(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"], order=["at"])
    dataset.publish(rows(("a", 60)).append_column("at", pa.array([10])))
    sink = Memory()
    replica = b.replica(OFFERS, name="search", sink=sink, where="price < 50")
    replica.sync()
    for at, price, seen in ((9, 1, {}), (11, 2, {"a": 2})):
        dataset.publish_delta(rows(("a", price)).append_column("at", pa.array([at])))
        replica.sync()
        assert prices(sink) == seen


def prices_of(dataset: broker.Dataset) -> dict[str, int]:
    return {row["sku"]: row["price"] for row in dataset.read().to_pylist()}


# --- damaged files


def test_a_file_damaged_on_its_way_is_fetched_once_more(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    offers(b)
    fetch, failures = b.parts.engine.read, [Corrupt("cut short", of="a file")]

    def read(*args: Any) -> pa.RecordBatchReader:
        if failures:
            raise failures.pop()
        return fetch(*args)

    monkeypatch.setattr(b.parts.engine, "read", read)
    report = b.replica(OFFERS, name="search", sink=Memory()).sync()
    assert (report.mode, report.rows, report.reset) == ("applied", 2, None)


def test_a_damaged_delta_resets_the_replica_where_a_snapshot_leads_there_too(
    b: broker.Broker, redis_url: str, tmp_path: Path
) -> None:
    dataset, sink = offers(b), Memory()
    replica = b.replica(OFFERS, name="search", sink=sink)
    replica.sync()
    edge = dataset.publish_delta(rows(("c", 3))).edge
    assert edge is not None
    compacted = b.parts.engine.write_snapshot(dataset.spec, dataset.read())
    snapshot = edge.model_copy(update={"base": None, "files": compacted.files})
    b.parts.catalog.commit(OFFERS, lambda state: None if snapshot in state.edges else NewEdge(edge=snapshot), "test")
    damage(b, edge.files[0], tmp_path)
    with connected(redis_url, tmp_path) as fresh:
        report = fresh.replica(OFFERS, name="search", sink=sink).sync()
    assert (report.version, report.reset) == (2, "corrupt")
    assert prices(sink) == {"a": 1, "b": 60, "c": 3}


def test_without_another_road_damage_is_an_error_and_the_replica_stays_whole(
    b: broker.Broker, redis_url: str, tmp_path: Path
) -> None:
    dataset, sink = offers(b), Memory()
    b.replica(OFFERS, name="search", sink=sink).sync()
    edge = dataset.publish_delta(rows(("c", 3))).edge
    assert edge is not None
    damage(b, edge.files[0], tmp_path)
    with connected(redis_url, tmp_path) as fresh:
        replica = fresh.replica(OFFERS, name="search", sink=sink)
        with pytest.raises(Corrupt, match="not what was sealed"):
            replica.sync()
        assert prices(sink) == {"a": 1, "b": 60}
        damage(b, edge.files[0], tmp_path)  # the bit turned back
        assert replica.sync().version == 2
    assert prices(sink) == {"a": 1, "b": 60, "c": 3}


# --- two processes, one name

HOLDER = """
import sys
from broker.connect import Broker
from broker.parts import open_parts
from broker.settings import load
from broker.sinks import DuckDB

def on_step(step):
    if step == "fetched":
        print("holding", flush=True)
        sys.stdin.readline()

url, home = sys.argv[1:]
with Broker(open_parts(load(redis=url, home=home, lease_seconds=0.5), on_step)) as b:
    print(b.replica("shop/catalog/offers", name="search", sink=DuckDB(home + "/r.duckdb", "r")).sync().mode)
"""


@contextmanager
def another_process(url: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the replica amid a sync until it is told to go on."""
    command = [sys.executable, "-c", HOLDER, url, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


def test_two_processes_with_one_name_sync_one_at_a_time(b: broker.Broker, redis_url: str, tmp_path: Path) -> None:
    offers(b)
    sink = DuckDB(tmp_path / "r.duckdb", "r")
    replica = b.replica(OFFERS, name="search", sink=sink)
    with another_process(redis_url, tmp_path) as other:
        with pytest.raises(Busy):
            replica.sync()
        out, _ = other.communicate("go on\n", timeout=30)
    assert out == "applied\n"
    assert replica.sync().mode == "up-to-date"
    assert prices(sink) == {"a": 1, "b": 60}


def test_a_killed_holder_is_followed_by_the_next_when_its_lease_has_lapsed(
    b: broker.Broker, redis_url: str, tmp_path: Path
) -> None:
    offers(b)
    replica = b.replica(OFFERS, name="search", sink=DuckDB(tmp_path / "r.duckdb", "r"))
    with another_process(redis_url, tmp_path) as other:
        other.kill()
    assert lapsed(replica)
    assert replica.sync().mode == "up-to-date"


def test_a_holder_that_slept_past_its_lease_changes_nothing(b: broker.Broker, redis_url: str, tmp_path: Path) -> None:
    dataset = offers(b)
    sink = DuckDB(tmp_path / "r.duckdb", "r")
    replica = b.replica(OFFERS, name="search", sink=sink)
    with another_process(redis_url, tmp_path) as other:
        stop(other)
        dataset.publish_delta(rows(("c", 3)))
        assert lapsed(replica)
        resume(other)
        out, _ = other.communicate("go on\n", timeout=30)
    assert (out, other.returncode) == ("", 1)
    assert prices(sink) == {"a": 1, "b": 60, "c": 3}


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)


def resume(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGCONT)


def lapsed(replica: broker.Replica) -> bool:
    """Sync as soon as the other's lease lets us."""
    done: list[bool] = []

    def synced() -> bool:
        try:
            done.append(replica.sync().mode == "applied")
        except Busy:
            return False
        return True

    wait_until(synced, "the other's lease to lapse")
    return done[0]


def test_a_replica_that_rests_longer_than_tombstones_live_does_not_bring_a_deleted_row_back(b: broker.Broker) -> None:
    """What came late was committed while the tombstone lived, whenever it is read."""
    clock = [time.time()]
    sink = Memory(clock=lambda: clock[0])
    dataset = b.dataset("shop/catalog/rested", key=["sku"], order=["at"], tombstone_seconds=100)
    dataset.publish([{"sku": "gone", "at": 5}, {"sku": "stays", "at": 5}])
    dataset.publish_delta(None, [{"sku": "gone", "at": 9}])
    replica = b.replica(dataset.id, name="rests", sink=sink)
    replica.sync()
    dataset.publish_delta([{"sku": "stays", "at": 6}])
    replica.sync()
    dataset.publish_delta([{"sku": "gone", "at": 3}])
    clock[0] += 1_000
    report = replica.sync()
    assert report.reset is None
    assert [(row["sku"], row["at"]) for row in sink.read().to_pylist()] == [("stays", 6)]
