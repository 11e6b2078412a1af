"""A replica in a Postgres table, through ADBC (`pip install 'data-request-broker[postgres]'`; imported when first used).

Rows arrive by binary COPY in a temporary table, then as sets. A replacement of the same shape deletes and inserts, never
truncates: readers see the old rows until the commit, and views, grants and indexes stay. A new shape drops the table.
Nested values become JSONB, HUGEINT and UBIGINT become NUMERIC; a TIMESTAMP_NS with nanoseconds is refused (Postgres has none).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa

from broker.columnar.intake import conformed
from broker.columnar.sql import listed, quoted
from broker.columnar.types import arrow_schema, arrow_type
from broker.errors import (
    BadData,
    BrokerError,
    Busy,
    Conflict,
    DuplicateKey,
    OutcomeUnknown,
    Overloaded,
    Terminal,
    Unavailable,
    Unsupported,
)
from broker.model.dataset import Column, Schema
from broker.sinks.merge import UPSERTS, Transaction, alterations
from broker.sinks.port import Batch, Shape, nothing
from broker.sinks.sql import CREATE_CURSORS, CURSORS, SqlSink
from broker.sinks.values import is_nested, restored, to_json

INSTALL: Final = "pip install 'data-request-broker[postgres]'"
_TYPES: Final = {
    "TINYINT": "smallint", "UTINYINT": "smallint", "USMALLINT": "integer", "UINTEGER": "bigint", "UBIGINT": "numeric(20,0)",
    "HUGEINT": "numeric(38,0)", "FLOAT": "real", "DOUBLE": "double precision", "VARCHAR": "text", "BLOB": "bytea",
    "TIMESTAMP_S": "timestamp", "TIMESTAMP_MS": "timestamp", "TIMESTAMP_NS": "timestamp", '"NULL"': "text",
}  # fmt: skip
_OPTION: Final = re.compile(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S*)")
_BY_STATE: Final[tuple[tuple[tuple[str, ...], type[BrokerError], str], ...]] = (
    (("55P03", "40"), Busy, "another transaction holds the replica"),
    (("23505", "21000"), DuplicateKey, "a key comes twice"),
    (("2BP01", "42P07"), Conflict, "something else depends on the replica's table, or has its name"),
    (("53",), Overloaded, "the server is at a limit"),
    (("08", "57P"), Unavailable, "the server does not answer"),
    (("22", "23"), BadData, "a value does not fit its column"),
)


def mapped(error: Exception, of: str) -> BrokerError:
    """The broker's error for a driver's, by SQLSTATE (Postgres, appendix A). No state: the connection is gone."""
    state = getattr(error, "sqlstate", None) or ""
    for prefixes, kind, what in _BY_STATE:
        if state.startswith(prefixes):
            return kind(what, of=of, why=str(error)[:500])
    if not state and type(error).__name__ in ("OperationalError", "InternalError"):
        return Unavailable("the server does not answer", of=of, why=str(error)[:500])
    return Terminal("Postgres refused", of=of, why=str(error)[:500])


def public_dsn(dsn: str) -> str:
    """A connection URL or string without what may be secret: whatever stands before a URL's host or behind its path; of a
    string (`host=db password=…`) only host, port and database are left.
    """
    scheme, url, rest = dsn.partition("://")
    if url:
        return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
    return " ".join(f"{name}={value}" for name, value in _OPTION.findall(dsn) if name in ("host", "port", "dbname"))


def declared(type_name: str) -> str:
    """The Postgres type of a dataset type."""
    if is_nested(arrow_type(type_name)):
        return "jsonb"
    return _TYPES.get(type_name) or type_name.replace("DECIMAL", "numeric").lower()


def _driver() -> Any:
    try:
        import adbc_driver_postgresql.dbapi as driver  # noqa: PLC0415  # an extra: nobody else pays for it
    except ImportError as error:
        raise Unsupported("Postgres needs its driver", why=str(error), hint=INSTALL) from None
    return driver


class Postgres(SqlSink):
    """A table in the first schema of the search path. A transaction waits `lock_seconds` for another one, then Busy."""

    def __init__(
        self,
        dsn: str,
        table: str,
        *,
        lock_seconds: float = 10.0,
        on_step: Callable[[str], None] = nothing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection: Any = None
        self._inherited: Any = None  # a parent's connection: closing it here would end it there
        self._owner, self._lock = 0, threading.RLock()
        super().__init__(table, on_step, clock)
        self._dsn, self._lock_seconds = dsn, lock_seconds

    @property
    def place(self) -> str:
        return f"{public_dsn(self._dsn)}, table {self.table}"

    def close(self) -> None:
        if self._connection is not None and self._owner == os.getpid():
            connection, self._connection = self._connection, None
            connection.close()

    def __del__(self) -> None:
        self.close()

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Transaction | None]:
        driver = _driver()
        tx, committing, done = None, False, False
        with self._lock:
            try:
                connection = self._connected(driver)
                with connection.cursor() as cursor:
                    tx = PostgresTransaction(cursor, write=write)
                    if write:
                        tx.run(f"SET LOCAL lock_timeout = '{round(self._lock_seconds * 1000)}ms'")
                        tx.prepare()
                    yield tx
                    committing = write
                    connection.commit()
                    done = True
            except driver.Error as error:
                raise (tx and tx.source_error) or self._mapped(error, committing=committing) from error
            finally:
                if not done:  # rolls back, whatever state the connection is in
                    self.close()

    def _connected(self, driver: Any) -> Any:
        """One connection is kept, since opening one costs more than a small delta; a forked child opens its own."""
        if self._connection is not None and self._owner != os.getpid():
            self._inherited, self._connection = self._connection, None
        if self._connection is None:
            self._connection, self._owner = driver.connect(self._dsn), os.getpid()
        return self._connection

    def _mapped(self, error: Exception, *, committing: bool) -> BrokerError:
        known = mapped(error, self.place)
        if committing and isinstance(known, Unavailable):
            return OutcomeUnknown("the commit was not answered", of=self.place, why=known.why, hint="Read the cursor: it tells")
        return known

    def _select(self, tx: Transaction, columns: Sequence[str], shape: Shape) -> pa.Table:
        assert isinstance(tx, PostgresTransaction)
        schema = shape.chosen(columns)
        return tx.table(f"SELECT {listed(columns)} FROM {quoted(self.table)}", schema)


class PostgresTransaction(Transaction):
    def __init__(self, cursor: Any, *, write: bool) -> None:
        self._cursor = cursor
        self.for_update = " FOR UPDATE" if write else ""

    def prepare(self) -> None:
        """The cursor table exists. Two first creators would collide in the catalog, so they queue."""
        if not self.has_table(CURSORS):
            self.run("SELECT pg_advisory_xact_lock(hashtext('broker_cursors'))")
            self.run(CREATE_CURSORS)

    def run(self, sql: str) -> int:
        self._cursor.execute(sql)
        return max(int(self._cursor.rowcount), 0)

    def first(self, sql: str, *values: object) -> Sequence[Any] | None:
        parts = sql.split("?")
        marked = "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)) + parts[-1]
        self._cursor.execute(marked, values)
        rows: list[tuple[Any, ...]] = self._cursor.fetchall()
        return rows[0] if rows else None

    def has_table(self, table: str) -> bool:
        sql = "SELECT 1 FROM pg_class WHERE relname = ? AND relnamespace = current_schema()::regnamespace"
        return self.first(sql, table) is not None

    def create(self, table: str, schema: Schema, key: Sequence[str]) -> None:
        self._create_bare(table, schema)
        self._add_key(table, key)

    def replace(self, table: str, before: Shape | None, after: Shape, batch: Batch) -> int:
        if before == after:
            self.run(f"DELETE FROM {quoted(table)}")
            return self._load(table, after.schema, batch)
        self._create_bare(table, after.schema)
        count = self._load(table, after.schema, batch)
        self._add_key(table, after.key)  # an index is built faster than it grows
        return count

    def alter(self, table: str, before: Schema, after: Schema, key: Sequence[str]) -> None:
        del key
        for statement in alterations(table, before, after, declared):
            self.run(statement)

    def stage(self, stage: str, schema: Schema, rows: pa.RecordBatchReader) -> int:
        kinds = [_wire(arrow_type(column.type)) for column in schema.columns]
        wire = pa.schema(list(zip(schema.names, kinds, strict=True)))
        batches = (
            pa.RecordBatch.from_arrays([_encoded(array) for array in batch.columns], schema=wire)
            for batch in conformed(rows, arrow_schema(schema), ())
        )
        self.run(f"DROP TABLE IF EXISTS pg_temp.{stage}")
        reader = self.watched(pa.RecordBatchReader.from_batches(wire, batches))
        count = int(self._cursor.adbc_ingest(stage, reader, mode="create", temporary=True))
        self.run(f"ANALYZE {stage}")
        return count

    def upsert(self, table: str, schema: Schema, key: Sequence[str]) -> int:
        # Twice the rate of INSERT .. ON CONFLICT: one join instead of a probe per row, and updates that stay in their page.
        same = " AND ".join(f"held.{quoted(name)} = {UPSERTS}.{quoted(name)}" for name in key)
        values = ", ".join(f"{quoted(c.name)} = {UPSERTS}.{quoted(c.name)}::{declared(c.type)}" for c in schema.columns)
        updated = self.run(f"UPDATE {quoted(table)} AS held SET {values} FROM {UPSERTS} WHERE {same}")
        absent = f" WHERE NOT EXISTS (SELECT 1 FROM {quoted(table)} AS held WHERE {same})"
        return updated + self._insert(table, schema, absent)

    def comparable(self, column: Column) -> Callable[[str], str]:
        return (lambda text: f'{text} COLLATE "C"') if column.type == "VARCHAR" else (lambda text: text)

    def table(self, sql: str, schema: Schema) -> pa.Table:
        self._cursor.execute(sql)
        result = self._cursor.fetch_arrow_table().combine_chunks()
        arrays = [
            pa.chunked_array([restored(chunk, column.type) for chunk in values.chunks], arrow_type(column.type))
            for values, column in zip(result.columns, schema.columns, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=arrow_schema(schema))

    def _create_bare(self, table: str, schema: Schema) -> None:
        columns = ", ".join(f"{quoted(column.name)} {declared(column.type)}" for column in schema.columns)
        self.run(f"DROP TABLE IF EXISTS {quoted(table)}")
        # Room in every page lets an update stay in it without touching the index (HOT), for 40 % more disk.
        self.run(f"CREATE TABLE {quoted(table)} ({columns}) WITH (fillfactor = 70)")

    def _add_key(self, table: str, key: Sequence[str]) -> None:
        self.run(f"ALTER TABLE {quoted(table)} ADD PRIMARY KEY ({listed(key)})")

    def _load(self, table: str, schema: Schema, batch: Batch) -> int:
        if batch.rows is None or not self.stage(UPSERTS, schema, batch.rows):
            return 0
        return self._insert(table, schema, "")

    def _insert(self, table: str, schema: Schema, condition: str) -> int:
        casts = ", ".join(f"{quoted(column.name)}::{declared(column.type)}" for column in schema.columns)
        return self.run(f"INSERT INTO {quoted(table)} ({listed(schema.names)}) SELECT {casts} FROM {UPSERTS}{condition}")


def _wire(kind: pa.DataType) -> pa.DataType:
    """The Arrow type in which a column's values are sent."""
    if is_nested(kind) or pa.types.is_null(kind):
        return pa.string()
    if kind == pa.uint64():
        return pa.decimal128(20, 0)
    return pa.timestamp("us", tz=kind.tz) if pa.types.is_timestamp(kind) else kind


def _encoded(values: pa.Array) -> pa.Array:
    kind = _wire(values.type)
    if is_nested(values.type):
        return pa.array(to_json(values), kind)
    try:
        return values.cast(kind)
    except pa.ArrowInvalid as error:
        raise BadData("a value does not fit Postgres", why=str(error)[:300]) from None
