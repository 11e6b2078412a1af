"""A replica in DuckDB: a 3,000,000-row snapshot beside DuckDB's own CREATE TABLE AS, then a 30,000-row delta."""

from __future__ import annotations

from pathlib import Path

import duckdb

from benchmarks.common import Row, offers, private_broker, seconds
from broker.parts import STORE_FOLDER
from broker.settings import home_folder
from broker.sinks.duckdb import DuckDB

ROWS = 3_000_000
DATASET = "goodstuff_01/catalog/offers"


def run() -> list[Row]:
    with private_broker() as b:
        dataset = b.dataset(DATASET, key=["sku"])
        dataset.publish(offers(ROWS))
        home = home_folder(b.parts.settings)
        edge = dataset.plan().edges[0]
        paths = [str(home / STORE_FOLDER / file.key) for file in edge.files]
        alone = seconds(lambda: _create(home / "alone.duckdb", paths))
        replica = b.replica(DATASET, name="bench", sink=DuckDB(str(home / "replica.duckdb"), table="offers"))
        load = seconds(replica.sync)
        dataset.publish_delta(upserts=offers(ROWS, changed_every=1).slice(0, ROWS // 100))
        delta = seconds(replica.sync)
    return [
        Row(
            "replica: snapshot of 3,000,000 rows into DuckDB", f"{load:.2f} s", f"CREATE TABLE AS {alone:.2f} s", alone / load,
            "at most 2x its time", load <= 2 * alone,
        ),
        Row("replica: delta of 30,000 rows into it", f"{delta:.2f} s", "", None, "0.5 s", delta <= 0.5),
    ]  # fmt: skip


def _create(path: Path, files: list[str]) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE offers AS SELECT * FROM read_parquet($1)", [files])
