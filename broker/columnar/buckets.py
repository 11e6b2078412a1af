"""A version laid out by key bucket, so that some buckets can be read without the others.

An Arrow file: each record batch has rows of one bucket, buckets ascend, each cut every BATCH_ROWS rows. So the content digest
of the version says which batches are whose, and the file's footer (6 kB) where each lies.

No SHA-256 covers a part of a file. What proves the part is the digest of each bucket, which its reader holds already.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import pyarrow as pa

from broker.columnar.digest import ContentDigest, bucket_sql, buckets_sql, digest_of
from broker.columnar.engine import Engine
from broker.columnar.formats import ENCODERS
from broker.columnar.merge import own_name
from broker.columnar.parquet import Outbox, Target
from broker.columnar.results import Result, rows_result, schema_of_spec, selected
from broker.columnar.scan import sources_of
from broker.columnar.sql import quoted
from broker.columnar.trace import Paths
from broker.columnar.types import arrow_schema, schema_of
from broker.errors import Corrupt
from broker.model.commit import Edge, File
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.model.request import Selection
from broker.stores.port import ObjectStore

BATCH_ROWS: Final = 131_072
"""Bounds the memory of who writes and who reads a bucket. Part of the layout: readers count on it."""
DIGESTED: Final = "broker_digested"


def digest_of_rows(engine: Engine, key: Sequence[str], rows: pa.RecordBatchReader | pa.Table) -> ContentDigest:
    """The content digest of rows, by key bucket. A reader is consumed."""
    schema = schema_of(rows.schema)
    with engine.session("content digest") as session:
        session.bind(DIGESTED, rows)
        return digest_of(schema, session.rows(buckets_sql(schema, key, f"SELECT * FROM {DIGESTED}")))


def content_id(spec: DatasetSpec, edges: Sequence[Edge], selection: Selection) -> str:
    """32 hex digits that name what a plan from a snapshot gives through a selection: of equal ids, the content is equal.

    An edge that was rewritten, as by an erasure, has other files and so another id.
    """
    files = [file.sha256 for edge in edges for file in edge.files]
    parts = (spec.key, spec.order, schema_of_spec(spec).id, selection.fingerprint, files)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def lay_out(
    engine: Engine, store: ObjectStore, spec: DatasetSpec, edges: Sequence[Edge], selection: Selection,
    key_of: Callable[[str], str],
) -> Edge:  # fmt: skip
    """The rows of a plan from a snapshot as one file by bucket. Raises as `Engine.read`."""
    columns = selected(spec, schema_of_spec(spec), selection)
    bucket = own_name(columns.names, "bucket")

    def ask(paths: Paths) -> Result:
        rows = rows_result(spec, selection, sources_of(schema_of_spec(spec), edges, paths)).sql
        sql = f"SELECT *, {bucket_sql(spec.key)} AS {quoted(bucket)} FROM ({rows}) ORDER BY {quoted(bucket)}"
        return Result("rows", sql, Schema(columns=(*columns.columns, Column(name=bucket, type="INTEGER"))))

    fields = arrow_schema(columns)
    target = Target("rows", fields, partial(key_of, "arrow"), ENCODERS["arrow"], "arrow")
    with Outbox(store, max_file_rows=1 << 62) as outbox:
        outbox.write(target, _cut(engine.query(spec, edges, ask), fields), even_empty=True)
        return Edge(base=None, version=edges[-1].version, files=outbox.commit())


def _cut(batches: Iterable[pa.RecordBatch], columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Batches in bucket order, their last column, as batches of the layout."""
    held: list[pa.RecordBatch] = []
    number = rows = 0
    for batch in batches:
        for bucket, piece in _runs(batch):
            if held and bucket != number:
                yield _joined(held, columns)
                held, rows = [], 0
            number = bucket
            while piece.num_rows:
                part = piece.slice(0, BATCH_ROWS - rows)
                held.append(part.select(columns.names))
                rows, piece = rows + part.num_rows, piece.slice(part.num_rows)  # noqa: PLW2901
                if rows == BATCH_ROWS:
                    yield _joined(held, columns)
                    held, rows = [], 0
    if held:
        yield _joined(held, columns)


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    start, numbers = 0, batch.column(batch.num_columns - 1)
    for run in numbers.value_counts():
        yield run["values"].as_py(), batch.slice(start, run["counts"].as_py())
        start += run["counts"].as_py()


def _joined(pieces: list[pa.RecordBatch], columns: pa.Schema) -> pa.RecordBatch:
    return pa.Table.from_batches(pieces, columns).combine_chunks().to_batches()[0]


def read_buckets(
    engine: Engine, laid: Ranges, key: Sequence[str], right: ContentDigest, wanted: Collection[int]
) -> pa.Table:  # fmt: skip
    """The rows of some buckets of a file that was laid out. `right`: the digest of all that it holds.

    Raises Corrupt (also for rows that are not those of `right`), NotFound, Unavailable.
    """
    try:
        with pa.PythonFile(laid, mode="r") as source, pa.ipc.open_file(source) as reader:
            batches = [reader.get_batch(number) for number in _batches_of(right, wanted)]
            rows = pa.Table.from_batches(batches, reader.schema)
        rows.validate(full=True)  # Arrow trusts what it reads; DuckDB trusts Arrow
    except (pa.ArrowException, ValueError, OSError, IndexError) as error:
        raise _not_right(laid.file, str(error)[:300]) from error
    found = digest_of_rows(engine, key, rows)
    if found.columns != right.columns or found.buckets != tuple(one for one in right.buckets if one.number in wanted):
        raise _not_right(laid.file, "its rows have another digest")
    return rows


def _not_right(file: File, why: str) -> Corrupt:
    return Corrupt("a part of the object is not what was laid out", of=file.key, why=why)


def _batches_of(right: ContentDigest, wanted: Collection[int]) -> Iterator[int]:
    at = 0
    for bucket in right.buckets:
        batches = -(-bucket.rows // BATCH_ROWS)
        if bucket.number in wanted:
            yield from range(at, at + batches)
        at += batches


class Ranges(io.RawIOBase):
    """An object as a file of which parts are read. `bytes`: read so far."""

    def __init__(self, store: ObjectStore, file: File) -> None:
        self._store, self.file, self._at, self.bytes = store, file, 0, 0

    def read(self, size: int | None = -1) -> bytes:
        left = self.file.bytes - self._at
        wanted = left if size is None or size < 0 else min(size, left)
        data = b"".join(self._store.get(self.file.key, self._at, wanted)) if wanted > 0 else b""
        self._at += len(data)
        self.bytes += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.file.bytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
