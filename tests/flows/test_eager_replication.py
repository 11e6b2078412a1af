"""Eager replication: the owner of data publishes whenever it likes, and a replica takes what changed."""

from __future__ import annotations

import broker
from broker import Broker


def test_what_the_owner_publishes_arrives_in_the_replica(b: Broker) -> None:
    # README: publish
    stock = b.dataset("goodstuff_01/stock/levels", key=["sku"])  # creates or opens; another spec raises Conflict

    v1 = stock.publish([{"sku": "a", "left": 3}, {"sku": "b", "left": 0}])
    assert (v1.number, len(v1.files)) == (1, 1)

    v2 = stock.publish([{"sku": "a", "left": 2}, {"sku": "b", "left": 0}], delta=True)  # feed in, difference out
    assert (v2.number, v2.unchanged) == (2, 1)

    v3 = stock.publish_delta(upserts=[{"sku": "c", "left": 9}], deletes=[{"sku": "b"}], attributes={"store": "eu-1"})
    assert v3.number == 3
    assert stock.read(where="left > 1", columns=["sku", "left"]).sort_by("sku").to_pylist() == [
        {"sku": "a", "left": 2},
        {"sku": "c", "left": 9},
    ]
    assert [info.version for info in stock.versions()] == [1, 2, 3]
    assert stock.read(version=1).num_rows == 2

    # README: replica
    sink = broker.sinks.DuckDB("stock.duckdb", table="levels")
    replica = b.replica("goodstuff_01/stock/levels", name="warehouse", sink=sink)
    report = replica.sync()
    assert (report.mode, report.version, report.rows) == ("applied", 3, 2)

    stock.publish_delta(upserts=[{"sku": "a", "left": 1}])
    assert replica.sync(timeout=5).upserts == 1
    assert replica.sync().mode == "up-to-date"

    # README ends here: the replica holds what the dataset does, row by row
    assert sink.read().sort_by("sku").to_pylist() == stock.read().sort_by("sku").to_pylist()
    sink.close()
