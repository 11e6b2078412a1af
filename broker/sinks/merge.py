"""Merging in SQL, written once over the transaction each database offers (design, section 5).

Statements are pure text (`newer`, `matching`), so DuckDB, SQLite, Postgres and the Parquet folder decide alike. Staged changes
lie in temporary tables; the order rules prune the stage, and what is left is applied as sets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from broker.columnar.merge import newer
from broker.columnar.sql import listed, quoted
from broker.model.dataset import Column, Schema
from broker.sinks.port import TOMBSTONES, Applied, Batch, Shape

UPSERTS: Final = "broker_upserts"
DELETES: Final = "broker_deletes"


def tombstone_schema(shape: Shape) -> Schema:
    """Key and order columns, then when the tombstone was laid, in seconds since the epoch."""
    return Schema(columns=(*shape.guard.columns, Column(name=dropped_at(shape), type="DOUBLE", nullable=False)))


def dropped_at(shape: Shape) -> str:
    """The name of the tombstones' time column: one that no key or order column has."""
    name, names = "dropped_at", {name.casefold() for name in shape.guard.names}
    while name in names:
        name = "_" + name
    return name


def matching(key: Sequence[str], stage: str) -> str:
    """Condition: the row's key is in the stage. Keys are never null."""
    one = listed(key) if len(key) == 1 else f"({listed(key)})"
    return f"{one} IN (SELECT {listed(key)} FROM {stage})"


def alterations(table: str, before: Schema, after: Schema, declared: Callable[[str], str]) -> Iterator[str]:
    """Statements that add columns and widen types in place; `declared` gives the database's name of a dataset type."""
    types = before.types
    for column in after.columns:
        if column.name not in types:
            yield f"ALTER TABLE {quoted(table)} ADD COLUMN {quoted(column.name)} {declared(column.type)}"
        elif types[column.name] != column.type:
            yield f"ALTER TABLE {quoted(table)} ALTER COLUMN {quoted(column.name)} TYPE {declared(column.type)}"


class Transaction(ABC):
    """One open transaction: all an implementation has to offer. Table names arrive unquoted except the temporary stages."""

    for_update = ""
    source_error: Exception | None = None

    def watched(self, rows: pa.RecordBatchReader) -> pa.RecordBatchReader:
        """The same stream; its error is kept in `source_error`, since a driver that reads it makes text of its own of it."""

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                yield from rows
            except Exception as error:
                self.source_error = error
                raise

        return pa.RecordBatchReader.from_batches(rows.schema, batches())

    @abstractmethod
    def run(self, sql: str) -> int:
        """Rows changed."""

    @abstractmethod
    def first(self, sql: str, *values: object) -> Sequence[Any] | None:
        """The first row; `?` marks a value."""

    @abstractmethod
    def has_table(self, table: str) -> bool: ...

    @abstractmethod
    def create(self, table: str, schema: Schema, key: Sequence[str]) -> None:
        """An empty table, in place of what has that name."""

    @abstractmethod
    def replace(self, table: str, before: Shape | None, after: Shape, batch: Batch) -> int:
        """The table holds the batch's rows and nothing else. Returns how many."""

    @abstractmethod
    def alter(self, table: str, before: Schema, after: Schema, key: Sequence[str]) -> None:
        """Add nullable columns and widen types in place."""

    @abstractmethod
    def stage(self, stage: str, schema: Schema, rows: pa.RecordBatchReader) -> int:
        """A temporary table of these rows, missing columns null. Returns how many."""

    def upsert(self, table: str, schema: Schema, key: Sequence[str]) -> int:
        """Write the staged upserts over the table."""
        self.run(f"DELETE FROM {quoted(table)} WHERE {matching(key, UPSERTS)}")
        columns = listed(schema.names)
        return self.run(f"INSERT INTO {quoted(table)} ({columns}) SELECT {columns} FROM {UPSERTS}")

    def comparable(self, column: Column) -> Callable[[str], str]:
        """How an order column is written in a comparison."""
        del column
        return lambda text: text


@dataclass(frozen=True)
class Merge:
    """One batch into `table` and its tombstones beside it. `now`: seconds since the epoch."""

    tx: Transaction
    table: str
    now: float

    def replace(self, batch: Batch, before: Shape | None, after: Shape) -> Applied:
        rows = self.tx.replace(self.table, before, after, batch)
        if after.order:
            self.tx.create(self.table + TOMBSTONES, tombstone_schema(after), after.key)
            if batch.tombstones is not None and self.tx.stage(DELETES, after.guard, batch.tombstones):
                self._bury(after)
        elif before is not None and before.order:
            self.tx.run(f"DROP TABLE {quoted(self.table + TOMBSTONES)}")
        return Applied(rows=rows)

    def change(self, batch: Batch, before: Shape | None, after: Shape) -> Applied:
        self._prepare(before, after)
        if after.order:
            lapsed = f"{quoted(dropped_at(after))} <= {batch.lapsed(self.now)!r}"
            self.tx.run(f"DELETE FROM {quoted(self.table + TOMBSTONES)} WHERE {lapsed}")
        deletes, stale_deletes = self._delete(batch, after)
        upserts, stale_upserts = self._upsert(batch, after)
        return Applied(upserts=upserts, deletes=deletes, stale=stale_deletes + stale_upserts)

    def _prepare(self, before: Shape | None, after: Shape) -> None:
        if before is None:
            self.tx.create(self.table, after.schema, after.key)
            if after.order:
                self.tx.create(self.table + TOMBSTONES, tombstone_schema(after), after.key)
        elif before.schema != after.schema:
            self.tx.alter(self.table, before.schema, after.schema, after.key)
            if after.order and before.guard != after.guard:
                self.tx.alter(self.table + TOMBSTONES, tombstone_schema(before), tombstone_schema(after), after.key)

    def _delete(self, batch: Batch, shape: Shape) -> tuple[int, int]:
        if batch.deletes is None or not self.tx.stage(DELETES, shape.guard, batch.deletes):
            return 0, 0
        stale = 0 if batch.repair else self._prune(DELETES, shape)
        removed = self.tx.run(f"DELETE FROM {quoted(self.table)} WHERE {matching(shape.key, DELETES)}")
        if shape.order and not batch.repair:
            self._bury(shape)
        return removed, stale

    def _upsert(self, batch: Batch, shape: Shape) -> tuple[int, int]:
        if batch.upserts is None or not self.tx.stage(UPSERTS, shape.schema, batch.upserts):
            return 0, 0
        stale = 0 if batch.repair else self._prune(UPSERTS, shape)
        if shape.order:
            self.tx.run(f"DELETE FROM {quoted(self.table + TOMBSTONES)} WHERE {matching(shape.key, UPSERTS)}")
        return self.tx.upsert(self.table, shape.schema, shape.key), stale

    def _prune(self, stage: str, shape: Shape) -> int:
        """Drop staged changes older than the row or the tombstone held."""
        if not shape.order:
            return 0
        same = " AND ".join(f"held.{quoted(name)} = {stage}.{quoted(name)}" for name in shape.key)
        older = _newer_than(self.tx, shape, "held", stage)
        return sum(
            self.tx.run(f"DELETE FROM {stage} WHERE EXISTS (SELECT 1 FROM {quoted(table)} AS held WHERE {same} AND {older})")
            for table in (self.table, self.table + TOMBSTONES)
        )

    def _bury(self, shape: Shape) -> None:
        """A staged delete becomes the key's only tombstone. One older than the row needs none: the row itself guards."""
        table, columns = quoted(self.table + TOMBSTONES), listed(shape.guard.names)
        self.tx.run(f"DELETE FROM {table} WHERE {matching(shape.key, DELETES)}")
        self.tx.run(
            f"INSERT INTO {table} ({columns}, {quoted(dropped_at(shape))}) SELECT {columns}, {self.now!r} FROM {DELETES}"
        )


def _newer_than(tx: Transaction, shape: Shape, left: str, right: str) -> str:
    columns = {column.name: column for column in shape.schema.columns}
    writers = {f"{side}.{quoted(name)}": tx.comparable(columns[name]) for side in (left, right) for name in shape.order}
    return newer(shape.order, left, right, lambda text: writers[text](text))
