"""100 deltas of 30,000 rows merged over a snapshot of 3,000,000 into a fresh one, beside DuckDB alone doing the same join."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.common import MEBIBYTE, Row, forget_peak, offers, peak_bytes, peak_text, private_broker, seconds
from broker.columnar.sql import text_literal
from broker.columnar.tombstones import Standing
from broker.connect import Dataset
from broker.model.commit import Role
from broker.parts import STORE_FOLDER
from broker.rules.plan import plan
from broker.settings import home_folder

ROWS, DELTAS, CHANGED = 3_000_000, 100, 30_000
DATASET = "goodstuff_01/catalog/offers"


def run() -> list[Row]:
    with private_broker() as b:
        dataset = b.dataset(DATASET, key=["sku"])
        _publish(dataset, offers(ROWS))
        folder = home_folder(b.parts.settings) / STORE_FOLDER
        forget_peak()
        alone = seconds(lambda: _duckdb(dataset, folder, b.parts.settings.memory_limit_bytes))
        alone_peak = peak_bytes()
        state = dataset.state
        standing = Standing(plan(state.edges, None, state.version).edges, {}, time.time())
        forget_peak()
        spent = seconds(lambda: b.parts.engine.write_merged(state.spec, standing))
        memory = peak_text(b)
    merged = ROWS + DELTAS * CHANGED
    return [
        Row(
            f"{DELTAS} deltas of {CHANGED:,} rows over {ROWS:,}, merged into a snapshot",
            f"{merged / spent:,.0f} rows/s ({memory})",
            f"DuckDB alone {merged / alone:,.0f} rows/s ({alone_peak // MEBIBYTE:,} MiB)",
            alone / spent, "0.60x", alone / spent >= 0.6,
        )
    ]  # fmt: skip


def _publish(dataset: Dataset, table: pa.Table) -> None:
    """Each delta is of random rows, with another price."""
    dataset.publish(table)
    random = Random(1)
    at = table.schema.get_field_index("price")
    for number in range(DELTAS):
        rows = table.take(pa.array(sorted(random.sample(range(table.num_rows), CHANGED))))
        price = pc.add(rows.column(at), pa.scalar(number + 1, rows.schema.field(at).type)).cast(rows.schema.field(at).type)
        dataset.publish_delta(rows.set_column(at, rows.schema.field(at), price))


def _duckdb(dataset: Dataset, folder: Path, memory_bytes: int) -> None:
    """The files as they lie in the store, the last change of each key, one zstd file out: a join by hand."""
    edges = plan(dataset.state.edges, None, dataset.state.version).edges

    def scan(role: Role) -> str:
        paths = [text_literal(str(folder / file.key)) for edge in edges for file in edge.of_role(role)]
        return f"read_parquet([{', '.join(paths)}], file_row_number = false)"

    target = text_literal(str(folder / "alone.parquet"))
    last = (
        f"SELECT * EXCLUDE (n) FROM (SELECT *, row_number() OVER (PARTITION BY sku ORDER BY file_index DESC) AS n "
        f"FROM (SELECT *, file_index FROM {scan('upserts')})) WHERE n = 1"
    )
    with duckdb.connect(config={"memory_limit": f"{memory_bytes}B", "preserve_insertion_order": "false"}) as alone:
        alone.execute(f"CREATE TEMP TABLE changed AS {last}")
        kept = f"SELECT * FROM {scan('rows')} ANTI JOIN changed USING (sku)"
        merged = f"{kept} UNION ALL SELECT * EXCLUDE (file_index) FROM changed"
        alone.execute(f"COPY ({merged}) TO {target} (FORMAT parquet, COMPRESSION zstd)")
