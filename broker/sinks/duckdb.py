"""A replica in a DuckDB file. The file is open only while something is applied or read, so that others can read in between.

One process at a time may hold a DuckDB file: while another one does, every call is `Busy`. In this very process, too, a
connection of one's own is refused by DuckDB while an apply or a read is under way. The table has no primary key: the
engine has checked the keys, and an index over millions of rows would cost more than each delta's hash join.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from broker.columnar.database import to_error
from broker.columnar.digest import ContentDigest, buckets_sql, digest_of
from broker.columnar.sql import listed, quoted, text_literal
from broker.columnar.types import arrow_schema
from broker.errors import BadData, BrokerError, Busy, Conflict, Corrupt, NotFound
from broker.model.dataset import Schema
from broker.sinks.duckdb_file import DuckDBFile
from broker.sinks.merge import Transaction, alterations
from broker.sinks.port import Batch, Shape, nothing
from broker.sinks.sql import FileSink

INCOMING: Final = "broker_incoming"


_IN_USE: Final = (
    duckdb.TransactionException, duckdb.ConstraintException, duckdb.ConnectionException, duckdb.ResourceInUseException,
)  # fmt: skip


def projection(schema: Schema, present: Sequence[str]) -> str:
    """The schema's columns in its types; what is not present becomes null."""
    held = {name.casefold(): name for name in present}
    return ", ".join(
        f"CAST({quoted(held[c.name.casefold()]) if c.name.casefold() in held else 'NULL'} AS {c.type}) AS {quoted(c.name)}"
        for c in schema.columns
    )


def mapped(error: duckdb.Error, of: str) -> BrokerError:
    """The broker's error for a driver's: what only a file can have, else as everywhere."""
    text = str(error)
    if isinstance(error, _IN_USE):
        return Busy("the DuckDB file is in use", of=of, why=text, hint="Close the other connection, or try again")
    if isinstance(error, duckdb.IOException) and ("lock" in text.lower() or "already open" in text.lower()):
        return Busy("the DuckDB file is in use by another process", of=of, why=text, hint="Try again when it is closed")
    if isinstance(error, duckdb.IOException) and "not a valid DuckDB" in text:
        return Corrupt("not a DuckDB file", of=of, why=text)
    if isinstance(error, duckdb.InvalidInputException):
        return BadData("a value does not fit its column", of=of, why=text)
    if isinstance(error, duckdb.DependencyException):
        return Conflict("something depends on the replica's table", of=of, why=text, hint="Drop it first")
    return to_error(error, of)


class DuckDB(FileSink):
    """A table of the DuckDB file at `path`, made when absent. An apply beyond `memory_limit_bytes` spills beside the file."""

    def __init__(
        self,
        path: str | Path,
        table: str,
        *,
        memory_limit_bytes: int = 1 << 30,
        on_step: Callable[[str], None] = nothing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, table, on_step, clock)
        self._memory, self._file = memory_limit_bytes, DuckDBFile.at(self.path)

    def digest(self) -> ContentDigest:
        """The content digest of the rows, by key bucket, computed in the file's own database."""
        with self._transaction(write=False) as tx:
            shape = self._row(tx)[2] if tx is not None else None
            if tx is None or shape is None:
                raise NotFound("nothing was applied yet", of=self.place)
            assert isinstance(tx, DuckDBTransaction)
            tx.connection.execute("SET TimeZone = 'UTC'")
            sql = buckets_sql(shape.schema, shape.key, f"SELECT * FROM {quoted(self.table)}")
            return digest_of(shape.schema, tx.connection.execute(sql).fetchall())

    @contextmanager
    def _begun(self, *, write: bool) -> Iterator[Transaction]:
        tx = None
        try:
            with self._file.opened(write) as connection:
                connection.execute(f"SET memory_limit = '{self._memory}B'")
                connection.execute("BEGIN")
                tx = DuckDBTransaction(connection)
                yield tx
                connection.execute("COMMIT")
        except duckdb.Error as error:
            raise (tx and tx.source_error) or mapped(error, self.place) from error

    def _select(self, tx: Transaction, columns: Sequence[str], shape: Shape) -> pa.Table:
        assert isinstance(tx, DuckDBTransaction)
        table = tx.connection.sql(f"SELECT {listed(columns)} FROM {quoted(self.table)}").to_arrow_table()
        return table.cast(arrow_schema(shape.chosen(columns)))


class DuckDBTransaction(Transaction):
    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection

    def run(self, sql: str) -> int:
        rows = self.connection.execute(sql).fetchall()
        return int(rows[0][0]) if rows and isinstance(rows[0][0], int) else 0

    def first(self, sql: str, *values: object) -> Sequence[Any] | None:
        rows = self.connection.execute(sql, list(values)).fetchall()
        return rows[0] if rows else None

    def has_table(self, table: str) -> bool:
        sql = (
            "SELECT 1 FROM duckdb_tables() WHERE lower(table_name) = lower(?) AND schema_name = 'main' AND NOT temporary"
            " AND database_name = current_database()"
        )
        return self.first(sql, table) is not None

    def create(self, table: str, schema: Schema, key: Sequence[str]) -> None:
        del key
        columns = ", ".join(f"{quoted(column.name)} {column.type}" for column in schema.columns)
        self.run(f"CREATE OR REPLACE TABLE {quoted(table)} ({columns})")

    def replace(self, table: str, before: Shape | None, after: Shape, batch: Batch) -> int:
        del before
        if batch.files:
            return self.load(table, after.schema, batch.files)
        if batch.rows is None:
            self.create(table, after.schema, after.key)
            return 0
        return self._create_as(f"TABLE {quoted(table)}", after.schema, batch.rows)

    def load(self, table: str, schema: Schema, files: Sequence[Path]) -> int:
        """The table holds these Parquet files' rows: DuckDB reads them in parallel."""
        source = f"read_parquet([{', '.join(text_literal(str(file)) for file in files)}], union_by_name = true)"
        present = [row[0] for row in self.connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
        return self.run(f"CREATE OR REPLACE TABLE {quoted(table)} AS SELECT {projection(schema, present)} FROM {source}")

    def alter(self, table: str, before: Schema, after: Schema, key: Sequence[str]) -> None:
        del key
        for statement in alterations(table, before, after, str):
            self.run(statement)

    def stage(self, stage: str, schema: Schema, rows: pa.RecordBatchReader) -> int:
        return self._create_as(f"TEMP TABLE {stage}", schema, rows)

    def _create_as(self, target: str, schema: Schema, rows: pa.RecordBatchReader) -> int:
        present = rows.schema.names
        self.connection.register(INCOMING, self.watched(rows))
        try:
            return self.run(f"CREATE OR REPLACE {target} AS SELECT {projection(schema, present)} FROM {INCOMING}")
        finally:
            self.connection.unregister(INCOMING)
