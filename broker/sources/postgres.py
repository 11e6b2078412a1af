"""Postgres through ADBC: Arrow batches streamed by COPY, in a repeatable-read, read-only transaction.

The only module that imports this driver. A failure in the middle of a stream is `Unavailable`, since ADBC reports no SQLSTATE
there. Types are ADBC's; `numeric(p,s)` becomes DECIMAL(p,s), and `numeric` without digits, uuid and json become VARCHAR.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as pat

from broker.columnar.sql import quoted
from broker.errors import BadData, Invalid, Unavailable, Unsupported
from broker.sources.database import Database, Mark, decimal, empty, wrapped

try:
    import adbc_driver_manager
    import adbc_driver_postgresql.dbapi as adbc
except ImportError:  # the [postgres] extra
    adbc = None

BATCH_BYTES: Final = 4 << 20
"""ADBC's own default is 16 MiB; several batches are in flight between source and file."""
_PASSING: Final = ("08", "40", "53", "55", "57", "58")
"""SQLSTATE classes (Postgres manual, appendix A) that may pass: connection, rollback, resources, locks, operator, system."""


@contextmanager
def open_postgres(url: str, known: pa.Schema | None) -> Iterator[Database]:
    """Connect and begin. Postgres knows its types, so `known` does not matter."""
    del known
    if adbc is None:
        raise Unsupported("no Postgres driver", hint="pip install 'data-request-broker[postgres]'")
    with _postgres_errors(), closing(adbc.connect(url)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield _Postgres(connection)


@contextmanager
def _postgres_errors() -> Iterator[None]:
    try:
        yield
    except adbc_driver_manager.Error as error:
        state = getattr(error, "sqlstate", None) or ""
        passing = not state or state.startswith(_PASSING)
        if passing and not isinstance(error, adbc_driver_manager.ProgrammingError):
            raise Unavailable("Postgres does not answer", why=_first_line(error)) from None
        raise Invalid("Postgres refuses the query", of=f"SQLSTATE {state}", why=_first_line(error)) from None
    except OSError as error:
        raise Unavailable("Postgres failed while it was read", why=_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


class _Postgres:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def schema(self, query: str) -> pa.Schema:
        with _postgres_errors(), self._connection.cursor() as cursor:
            cursor.execute(wrapped(query, " LIMIT 0"))
            return _plain_schema(cursor.fetch_record_batch().schema)

    def select(self, query: str, since: tuple[str, Mark] | None = None) -> Iterator[pa.RecordBatch]:
        with _postgres_errors(), self._connection.cursor() as cursor:
            condition = self._condition(query, cursor, since)
            cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
            cursor.execute(wrapped(query, condition))
            reader = cursor.fetch_record_batch()
            schema = _plain_schema(reader.schema)
            yield empty(schema)
            for batch in reader:
                yield _plain_batch(batch, schema)

    def _condition(self, query: str, cursor: Any, since: tuple[str, Mark] | None) -> str:
        """ADBC streams (by COPY) only statements without parameters, so the bound travels as a transaction's setting."""
        if since is None:
            return ""
        column, bound = since
        text = str(bound) if isinstance(bound, int) else bound.isoformat()
        cursor.execute("SELECT set_config('broker.bound', $1, true)", (text,))
        cursor.fetchall()
        kind = _postgres_type(self.schema(query).field(column).type)
        return f" WHERE {quoted(column)} >= current_setting('broker.bound')::{kind}"


def _postgres_type(kind: pa.DataType) -> str:
    if pat.is_integer(kind):
        return "bigint"
    if pat.is_date(kind):
        return "date"
    return "timestamptz" if kind.tz else "timestamp"


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(column.name, _plain_type(column)) for column in schema])


def _plain_type(column: pa.Field) -> pa.DataType:
    kind, typmod = column.type, int((column.metadata or {}).get(b"POSTGRESQL:typmod", b"-1"))
    if not isinstance(kind, pa.BaseExtensionType):
        return kind
    if getattr(kind, "type_name", "") == "numeric" and typmod >= 4:
        return decimal((typmod - 4) >> 16, (typmod - 4) & 0x7FF)
    if pat.is_string(kind.storage_type) or kind.extension_name == "arrow.uuid":
        return pa.string()
    raise Invalid(
        "a column has a type without an Arrow counterpart", of=column.name, why=getattr(kind, "type_name", str(kind)),
        hint=f"Cast it in the query: {column.name}::text",
    )  # fmt: skip


def _plain_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([_plain_array(*pair) for pair in zip(batch.columns, schema, strict=True)], schema=schema)


def _plain_array(values: pa.Array, column: pa.Field) -> pa.Array:
    if not isinstance(values.type, pa.BaseExtensionType):
        return values
    if values.type.extension_name == "arrow.uuid":
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())
    try:
        return values.storage.cast(column.type)
    except pa.ArrowInvalid as error:
        raise BadData("a value does not fit its column", of=column.name, why=str(error)[:300]) from None
