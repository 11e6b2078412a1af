"""repair: only what differs is written, in one transaction, whatever order the wrong rows claim."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import broker
from broker.errors import NotFound
from broker.model.names import DatasetId
from broker.sinks import DuckDB, Memory, Sink, SQLite

OFFERS = DatasetId("shop/catalog/offers")
ROWS = 1_000


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path) as opened:
        dataset = opened.dataset(OFFERS, key=["sku"], order=["n"])
        skus = [f"s{number}" for number in range(ROWS)]
        dataset.publish(pa.table({"sku": skus, "price": list(range(ROWS)), "n": [5] * ROWS}))
        dataset.publish_delta(pa.table({"sku": ["new"], "price": [1], "n": [5]}), [{"sku": "s0", "n": 6}])
        yield opened


def spoil(sink: Sink, place: Path) -> None:
    """A changed row, one that claims to be newer, a missing one, and one too many."""
    statements = [
        "UPDATE offers SET price = -1 WHERE sku = 's1'", "UPDATE offers SET price = -1, n = 99 WHERE sku = 's2'",
        "DELETE FROM offers WHERE sku = 's3'", "INSERT INTO offers VALUES ('ghost', 1, 99)",
    ]  # fmt: skip
    if isinstance(sink, Memory):
        rows = sink._state.rows
        rows[("s1",)]["price"] = rows[("s2",)]["price"] = -1
        rows[("s2",)]["n"] = 99
        del rows[("s3",)]
        rows[("ghost",)] = {"sku": "ghost", "price": 1, "n": 99}
        return
    with duckdb.connect(place) if isinstance(sink, DuckDB) else sqlite3.connect(place) as connection:
        for statement in statements:
            connection.execute(statement)


def content(table: pa.Table) -> list[dict[str, object]]:
    return sorted(table.to_pylist(), key=lambda row: str(row["sku"]))


@pytest.mark.parametrize("kind", ["memory", "duckdb", "sqlite"])
def test_rows_that_differ_are_brought_back_and_no_others(b: broker.Broker, tmp_path: Path, kind: str) -> None:
    place = tmp_path / f"replica.{kind}"
    kinds: dict[str, Callable[[], Sink]] = {
        "memory": Memory, "duckdb": lambda: DuckDB(place, "offers"), "sqlite": lambda: SQLite(place, "offers")
    }  # fmt: skip
    sink = kinds[kind]()
    replica = b.replica(OFFERS, name="search", sink=sink)
    replica.sync()
    assert replica.repair().buckets == ()
    spoil(sink, place)
    done = replica.repair()
    assert 1 <= len(done.buckets) <= 4
    assert (done.version, done.upserts, done.deletes) == (2, 3, 1)
    assert content(sink.read()) == content(b.dataset(OFFERS).read())
    assert replica.repair().buckets == ()
    report = b.parts.audits.run_once()
    assert (report.compared, report.mismatches) == (1, 0)


def test_after_a_repair_a_key_that_was_removed_takes_the_next_change_and_a_late_one_stays_out(b: broker.Broker) -> None:
    sink = Memory()
    replica = b.replica(OFFERS, name="search", sink=sink)
    replica.sync()
    spoil(sink, Path())
    replica.repair()
    b.dataset(OFFERS).publish_delta(pa.table({"sku": ["ghost", "s0", "s2"], "price": [7, 7, 7], "n": [6, 5, 6]}))
    replica.sync()
    assert content(sink.read()) == content(b.dataset(OFFERS).read())
    assert sink.rows["ghost"]["price"] == 7
    assert "s0" not in sink.rows


def test_a_filtered_replica_is_repaired_to_its_filter(b: broker.Broker) -> None:
    sink = Memory()
    replica = b.replica(OFFERS, name="search", sink=sink, where="price < 10")
    replica.sync()
    spoil(sink, Path())
    replica.repair()
    assert content(sink.read()) == content(b.dataset(OFFERS).read(where="price < 10"))


def test_a_replica_that_holds_nothing_readable_is_told_to_sync(b: broker.Broker) -> None:
    with pytest.raises(NotFound, match="sync"):
        b.replica(OFFERS, name="search", sink=Memory()).repair()
