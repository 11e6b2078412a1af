"""A snapshot of 3,000,000 rows (6 columns, RecordBatchReader in, unsorted) sealed, beside pyarrow alone writing that file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import minio
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Row, median_seconds, offers, private_broker
from broker.connect import Broker
from broker.parts import STORE_FOLDER
from broker.settings import home_folder
from tests.servers import ACCESS_KEY, BUCKET, SECRET_KEY, rclone_s3_server

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
        spent = _publish(b, table)
    return Row(
        "snapshot of 3,000,000 rows, local store", f"{ROWS / spent:,.0f} rows/s", f"pyarrow alone {ROWS / alone:,.0f} rows/s",
        alone / spent, "0.60x", alone / spent >= 0.6,
    )  # fmt: skip


def _publish(b: Broker, table: pa.Table) -> float:
    names = iter(f"goodstuff_01/catalog/offers{number}" for number in range(10))
    return median_seconds(lambda: b.dataset(next(names), key=["sku"]).publish(reader(table)))


def _s3(table: pa.Table) -> Row:
    with rclone_s3_server() as server, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.parquet"
        client = minio.Minio(f"127.0.0.1:{server.port}", access_key=ACCESS_KEY, secret_key=SECRET_KEY, secure=False)
        with private_broker(store=server.url(), s3_access_key=ACCESS_KEY, s3_secret_key=SECRET_KEY) as b:
            overlapped = max(_plain(table, path), median_seconds(lambda: _upload(client, path)))
            spent = _publish(b, table)
    return Row(
        "the same, loopback S3 (rclone)", f"{ROWS / spent:,.0f} rows/s",
        f"pyarrow write + minio upload, overlapped {ROWS / overlapped:,.0f} rows/s", overlapped / spent,
        "0.60x", overlapped / spent >= 0.6,
    )  # fmt: skip


def _upload(client: minio.Minio, path: Path) -> None:
    """minio's own multipart upload of the finished file."""
    client.fput_object(BUCKET, "plain.parquet", str(path), part_size=16 << 20)
