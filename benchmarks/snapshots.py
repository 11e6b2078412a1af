"""A snapshot of 3,000,000 rows (6 columns, RecordBatchReader in, unsorted) sealed, beside pyarrow alone writing that file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Row, median_seconds, offers, private_broker, seconds
from broker.connect import Broker
from broker.parts import STORE_FOLDER
from broker.settings import home_folder
from broker.stores.s3 import S3Store
from tests.servers import rclone_s3_server

ROWS = 3_000_000


def reader(table: pa.Table) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=65_536))


def run() -> list[Row]:
    table = offers(ROWS)
    return [_local(table), _s3(table)]


def _plain(table: pa.Table, path: Path) -> float:
    """pyarrow alone: batches in, one zstd file out."""

    def write() -> None:
        with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
            for batch in reader(table):
                writer.write_batch(batch)

    return median_seconds(write)


def _local(table: pa.Table) -> Row:
    with private_broker() as b:
        folder = home_folder(b.parts.settings) / STORE_FOLDER
        alone = _plain(table, folder / "plain.parquet")
        names = iter(f"goodstuff_01/catalog/offers{number}" for number in range(10))
        spent = median_seconds(lambda: b.dataset(next(names), key=["sku"]).publish(reader(table)))
    return Row(
        "snapshot of 3,000,000 rows, local store", f"{ROWS / spent:,.0f} rows/s", f"pyarrow alone {ROWS / alone:,.0f} rows/s",
        alone / spent, "0.60x", alone / spent >= 0.6,
    )  # fmt: skip


def _s3(table: pa.Table) -> Row:
    with rclone_s3_server() as server, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.parquet"
        secrets = server.settings().model_dump()
        keys = {name: secrets[name].get_secret_value() for name in ("s3_access_key", "s3_secret_key")}
        with private_broker(store=server.url(), **keys) as b:
            write = _plain(table, path)
            upload = seconds(lambda: _upload(b, path))
            overlapped = max(write, upload)
            spent = seconds(lambda: b.dataset("goodstuff_01/catalog/offers", key=["sku"]).publish(reader(table)))
    return Row(
        "the same, loopback S3 (rclone)", f"{ROWS / spent:,.0f} rows/s",
        f"pyarrow write + minio upload, overlapped {ROWS / overlapped:,.0f} rows/s", overlapped / spent,
        "0.60x", overlapped / spent >= 0.6,
    )  # fmt: skip


def _upload(b: Broker, path: Path) -> None:
    """minio's own multipart upload of the finished file."""
    store = b.parts.store
    assert isinstance(store, S3Store)
    store._client.fput_object(store._bucket, "plain.parquet", str(path), part_size=16 << 20)
