"""A replica in an SQLite file (the standard library's driver).

Journal mode WAL, which the file keeps: readers go on while something is applied; WAL wants a local disk, not a network share.
SQLite has five types. Integers and booleans become INTEGER, floats REAL (but NaN, which SQLite lacks, the text `NaN`, and -0.0
becomes 0.0), BLOB stays; everything else is TEXT: dates and times in ISO form with all digits of their unit (a time with zone
in UTC, ending in Z), decimals and integers beyond 64 bits as decimal digits, nested values as JSON.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from broker.columnar.intake import conformed
from broker.columnar.sql import listed, quoted
from broker.columnar.types import arrow_schema, arrow_type
from broker.errors import BadData, BrokerError, Busy, Corrupt, DuplicateKey, Terminal, Unavailable
from broker.model.dataset import Column, Schema
from broker.sinks.merge import Transaction
from broker.sinks.port import Batch, Shape, nothing
from broker.sinks.sql import FileSink
from broker.sinks.values import is_nested, restored, to_json

NAN: Final = "NaN"
READ_ROWS: Final = 10_000
_REBUILT: Final = "broker_rebuilt"
_INTEGERS: Final = frozenset({"BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"})
_NUMBERS_AS_TEXT: Final = ("DECIMAL", "HUGEINT", "UBIGINT")


def mapped(error: sqlite3.Error, of: str) -> BrokerError:
    """The broker's error for a driver's."""
    name, why = getattr(error, "sqlite_errorname", ""), str(error)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Busy("the SQLite file is in use", of=of, why=why, hint="Try again when the other writer has finished")
    if name.startswith(("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_ROWID")):
        return DuplicateKey("a key comes twice", of=of, why=why)
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return Corrupt("not a whole SQLite file", of=of, why=why)
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return Unavailable("the SQLite file cannot be read or written", of=of, why=why)
    if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
        return BadData("a value does not fit its column", of=of, why=why)
    return Terminal("SQLite refused", of=of, why=why)


def declared(type_name: str) -> str:
    """The SQLite type of a dataset type."""
    if type_name in _INTEGERS:
        return "INTEGER"
    return {"FLOAT": "REAL", "DOUBLE": "REAL", "BLOB": "BLOB"}.get(type_name, "TEXT")


def encoded(values: pa.Array, kind: pa.DataType) -> list[Any]:
    """An Arrow column as the values SQLite stores."""
    if is_nested(kind):
        return to_json(values)
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_binary(kind) or pa.types.is_string(kind)
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        values = values.cast(pa.int8())
    elif kind == pa.uint64() or not plain:
        values = pc.cast(values, pa.string())
    found: list[Any] = values.to_pylist()
    if pa.types.is_floating(kind) and pc.any(pc.is_nan(values)).as_py():  # the driver would make NULL of it
        return [NAN if value is not None and math.isnan(value) else value for value in found]
    return found


def decoded(values: Sequence[Any], column: Column) -> pa.Array:
    """The inverse of `encoded`."""
    if pa.types.is_floating(arrow_type(column.type)):
        values = [math.nan if value == NAN else value for value in values]
    storage = {"INTEGER": pa.int64(), "REAL": pa.float64(), "BLOB": pa.binary(), "TEXT": pa.string()}[declared(column.type)]
    return restored(pa.array(values, storage), column.type)


class SQLite(FileSink):
    """A table of the SQLite file at `path`, made when absent. A writer waits `busy_seconds` for another one, then Busy."""

    def __init__(
        self,
        path: str | Path,
        table: str,
        *,
        busy_seconds: float = 5.0,
        on_step: Callable[[str], None] = nothing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, table, on_step, clock)
        self._busy_seconds = busy_seconds

    @contextmanager
    def _begun(self, *, write: bool) -> Iterator[Transaction]:
        try:
            with closing(sqlite3.connect(self.path, timeout=self._busy_seconds, isolation_level=None)) as connection:
                connection.create_collation("broker_number", _compare_numbers)
                if write:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield SQLiteTransaction(connection)
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise mapped(error, self.place) from error

    def _select(self, tx: Transaction, columns: Sequence[str], shape: Shape) -> pa.Table:
        assert isinstance(tx, SQLiteTransaction)
        schema = shape.chosen(columns)
        return pa.Table.from_batches(tx.batches(self.table, schema), arrow_schema(schema))


class SQLiteTransaction(Transaction):
    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def run(self, sql: str) -> int:
        return max(self.connection.execute(sql).rowcount, 0)

    def first(self, sql: str, *values: object) -> Sequence[Any] | None:
        rows = self.connection.execute(sql, values).fetchall()  # to the end: RETURNING takes effect only then
        return rows[0] if rows else None

    def has_table(self, table: str) -> bool:
        sql = "SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND lower(name) = lower(?)"
        return self.first(sql, table) is not None

    def create(self, table: str, schema: Schema, key: Sequence[str]) -> None:
        columns = ", ".join(f"{quoted(column.name)} {declared(column.type)}" for column in schema.columns)
        self.run(f"DROP TABLE IF EXISTS {quoted(table)}")
        self.run(f"CREATE TABLE {quoted(table)} ({columns}, PRIMARY KEY ({listed(key)}))")

    def replace(self, table: str, before: Shape | None, after: Shape, batch: Batch) -> int:
        if before == after:  # keeps what users built on it: indexes, views, triggers
            self.run(f"DELETE FROM {quoted(table)}")
        else:
            self.create(table, after.schema, after.key)
        return self._load(quoted(table), after.schema, batch.rows) if batch.rows is not None else 0

    def alter(self, table: str, before: Schema, after: Schema, key: Sequence[str]) -> None:
        types = before.types
        if all(types.get(column.name, column.type) == column.type for column in after.columns):
            for column in after.columns[len(before.columns) :]:
                self.run(f"ALTER TABLE {quoted(table)} ADD COLUMN {quoted(column.name)} {declared(column.type)}")
            return
        # A column's type is fixed, and with it the form of its values: the table is written anew.
        self.create(_REBUILT, after, key)
        rows = pa.RecordBatchReader.from_batches(arrow_schema(before), self.batches(table, before))
        self._load(_REBUILT, after, rows)
        self.run(f"DROP TABLE {quoted(table)}")
        self.run(f"ALTER TABLE {_REBUILT} RENAME TO {quoted(table)}")

    def stage(self, stage: str, schema: Schema, rows: pa.RecordBatchReader) -> int:
        columns = ", ".join(f"{quoted(column.name)} {declared(column.type)}" for column in schema.columns)
        self.run(f"DROP TABLE IF EXISTS temp.{stage}")
        self.run(f"CREATE TEMP TABLE {stage} ({columns})")
        return self._load(stage, schema, rows)

    def comparable(self, column: Column) -> Callable[[str], str]:
        if column.type.startswith(_NUMBERS_AS_TEXT) and not column.type.endswith("]"):
            return lambda text: f"{text} COLLATE broker_number"
        return lambda text: text

    def batches(self, table: str, schema: Schema) -> Iterator[pa.RecordBatch]:
        """The table's rows in the dataset's types."""
        cursor = self.connection.execute(f"SELECT {listed(schema.names)} FROM {quoted(table)}")
        while rows := cursor.fetchmany(READ_ROWS):
            arrays = [decoded(values, column) for values, column in zip(zip(*rows, strict=True), schema.columns, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(schema))

    def _load(self, target: str, schema: Schema, rows: pa.RecordBatchReader) -> int:
        kinds = [arrow_type(column.type) for column in schema.columns]
        sql = f"INSERT INTO {target} ({listed(schema.names)}) VALUES ({', '.join('?' * len(kinds))})"
        count = 0
        for batch in conformed(rows, arrow_schema(schema), ()):
            columns = [encoded(array, kind) for array, kind in zip(batch.columns, kinds, strict=True)]
            self.connection.executemany(sql, zip(*columns, strict=True))
            count += batch.num_rows
        return count


def _compare_numbers(left: str, right: str) -> int:
    a, b = Decimal(left), Decimal(right)
    return (a > b) - (a < b)
