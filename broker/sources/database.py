"""What the SQL source asks of a database: a query's columns and rows, inside one read-only transaction.

Drivers' errors leave an implementation as `Unavailable` or `Busy` (no connection, a lock, an admin's stop), `BadData`
(values that do not fit their column) and `Invalid` (SQL that can never run).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import Protocol, TypeAlias

import pyarrow as pa

Mark: TypeAlias = int | date | datetime
"""A watermark's value."""


class Database(Protocol):
    """One read-only transaction: everything read through it is one moment of the source."""

    def schema(self, query: str) -> pa.Schema:
        """Columns of the query. A column of SQLite without a declared type may come as null here."""
        ...

    def select(self, query: str, since: tuple[str, Mark] | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of the query; with `since` (column, bound) only those at or after the bound. The first batch is empty."""
        ...


def wrapped(query: str, condition: str = "") -> str:
    # The query stands on its own lines: it may end in a comment.
    return f"SELECT * FROM (\n{query}\n) AS q{condition}"


def empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=schema)


def decimal(precision: int, scale: int) -> pa.DataType:
    """DECIMAL has at most 38 digits, and a scale within them; beyond that (1000 in Postgres) the text is kept."""
    return pa.decimal128(precision, scale) if 0 < precision <= 38 and 0 <= scale <= precision else pa.string()
