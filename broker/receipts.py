"""Receipts: what a replica proves that it holds, and what the broker knows that it must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from broker.columnar.buckets import digest_of_rows
from broker.columnar.database import Session
from broker.columnar.digest import ContentDigest, bucket_sql
from broker.columnar.engine import Engine
from broker.columnar.sql import listed
from broker.cursors import Receipt
from broker.model.dataset import DatasetSpec
from broker.sinks.port import Digesting, Sink

MINE: Final = "broker_held"
THEIRS: Final = "broker_right"
RIGHT: Final = "broker_right_rows"


def content_of(engine: Engine, sink: Sink, key: Sequence[str]) -> ContentDigest:
    """The content digest of a sink's rows: where they lie, if the sink can, else read into memory."""
    return sink.digest() if isinstance(sink, Digesting) else digest_of_rows(engine, key, sink.read())


@dataclass(frozen=True, slots=True)
class Amends:
    """What makes a sink's rows those of the version, within some key buckets: rows to write, and what to remove."""

    upserts: pa.Table
    deletes: pa.Table


def amends(
    engine: Engine, spec: DatasetSpec, held: pa.Table, right: pa.RecordBatchReader, buckets: Sequence[int]
) -> Amends:  # fmt: skip
    """Compares what a sink holds with what is right, only in these key buckets. The reader is consumed."""
    chosen, key = f"WHERE {bucket_sql(spec.key)} IN ({', '.join(map(str, buckets))})", listed(spec.key)
    with engine.session("repair") as session:
        session.bind(MINE, held)
        session.bind(THEIRS, right)
        session.run(f"CREATE TEMP TABLE {RIGHT} AS SELECT * FROM {THEIRS} {chosen}")
        upserts = _table(session, f"SELECT * FROM {RIGHT} EXCEPT SELECT {listed(right.schema.names)} FROM {MINE}", right.schema)
        surplus = f"SELECT * FROM (SELECT * FROM {MINE} {chosen}) ANTI JOIN {RIGHT} USING ({key})"
        named = [name for name in held.schema.names if name in {*spec.key, *spec.order}]
        return Amends(upserts, _table(session, f"SELECT {listed(named)} FROM ({surplus})", held.select(named).schema))


def _table(session: Session, sql: str, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([batch.cast(schema) for batch in session.stream(sql)], schema)


def receipt_of(digest: ContentDigest, version: int) -> Receipt:
    return Receipt(rows=digest.rows, digest=digest.text, version=version, schema_id=digest.columns)
