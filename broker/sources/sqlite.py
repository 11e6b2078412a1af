"""SQLite through Python's own driver: the only module of the sources that imports it.

SQLite has types per value, so a column follows its declared type (sqlite.org/datatype3.html, section 3.1, plus BOOLEAN, DATE,
DATETIME or TIMESTAMP as ISO text, DECIMAL(p,s)); one without follows the dataset, and on first sight its first value. A value
of another type is an error, never a silent conversion.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as pat

from broker.columnar.sql import quoted
from broker.errors import BadData, BrokerError, Busy, Invalid, Unavailable
from broker.sources.database import Database, Mark, decimal, empty, wrapped

BATCH_ROWS: Final = 10_000
BUSY_SECONDS: Final = 10.0
_VIEW: Final = "broker_query"
_DECIMAL: Final = re.compile(r"(?:DECIMAL|NUMERIC)\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_DECLARED: Final[tuple[tuple[re.Pattern[str], pa.DataType], ...]] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"INT", pa.int64()),
        (r"CHAR|CLOB|TEXT|STRING|JSON|UUID", pa.string()),
        (r"BLOB", pa.binary()),
        (r"REAL|FLOA|DOUB|^NUMERIC$|^DECIMAL$|^NUM$", pa.float64()),
        (r"BOOL", pa.bool_()),
        (r"DATETIME|TIMESTAMP", pa.timestamp("us")),
        (r"^DATE$", pa.date32()),
    )
)
_BY_VALUE: Final = {int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}


@contextmanager
def open_sqlite(url: str, known: pa.Schema | None) -> Iterator[Database]:
    """`sqlite:///relative/path` or `sqlite:////absolute/path`."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path:
        raise Invalid("not a SQLite URL", of=url, hint="sqlite:///relative/path or sqlite:////absolute/path")
    escaped = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    with _sqlite_errors(path), closing(_connected(f"file:{escaped}?mode=ro")) as connection:
        yield _SQLite(connection, path, known)


def _connected(uri: str) -> sqlite3.Connection:
    # A generator may be closed by another thread than the one that began it.
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


@contextmanager
def _sqlite_errors(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or type(error).__name__
        kind: type[BrokerError] = Invalid
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            kind = Busy
        elif name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_NOMEM", "SQLITE_FULL", "SQLITE_SCHEMA")):
            kind = Unavailable
        raise kind("SQLite cannot run the query", of=path, why=f"{name}: {error}") from None


class _SQLite:
    def __init__(self, connection: sqlite3.Connection, path: str, known: pa.Schema | None) -> None:
        self._connection, self._path, self._known = connection, path, known
        self._declared: dict[str, pa.DataType] = {}
        self._query = ""

    def schema(self, query: str) -> pa.Schema:
        with _sqlite_errors(self._path):
            return pa.schema(list(self._columns(query).items()))

    def select(self, query: str, since: tuple[str, Mark] | None = None) -> Iterator[pa.RecordBatch]:
        with _sqlite_errors(self._path):
            columns = self._columns(query)
            with closing(self._rows(since)) as cursor:
                rows = cursor.fetchmany(BATCH_ROWS)
                schema = pa.schema(
                    [
                        (name, _by_value(rows, at) if pat.is_null(kind) else kind)
                        for at, (name, kind) in enumerate(columns.items())
                    ]
                )
                self._declared = dict(zip(schema.names, schema.types, strict=True))
                yield empty(schema)
                while rows:
                    arrays = [_array(values, column) for values, column in zip(zip(*rows, strict=True), schema, strict=True)]
                    yield pa.RecordBatch.from_arrays(arrays, schema=schema)
                    rows = cursor.fetchmany(BATCH_ROWS)

    def _rows(self, since: tuple[str, Mark] | None) -> sqlite3.Cursor:
        if since is None:
            return self._connection.execute(f"SELECT * FROM temp.{_VIEW}")
        column, bound = since
        if isinstance(bound, int):
            return self._connection.execute(f"SELECT * FROM temp.{_VIEW} WHERE {quoted(column)} >= ?", (bound,))
        # As points in time, not as text: '2026-01-01 10:00' and '2026-01-01T10:00Z' sort apart.
        condition = f"julianday({quoted(column)}) >= julianday(?)"
        return self._connection.execute(f"SELECT * FROM temp.{_VIEW} WHERE {condition}", (bound.isoformat(),))

    def _columns(self, query: str) -> dict[str, pa.DataType]:
        """Column name -> type. A temporary view tells declared types through subqueries; null: only the values know."""
        if query == self._query:
            return self._declared
        self._connection.execute(f"CREATE TEMP VIEW {_VIEW} AS {wrapped(query)}")
        self._connection.execute("BEGIN")
        found = self._connection.execute(f"PRAGMA temp.table_info({_VIEW})").fetchall()
        self._query = query
        self._declared = {name: self._type_of(name, declared) for _, name, declared, *_ in found}
        return self._declared

    def _type_of(self, name: str, declared: str) -> pa.DataType:
        text = declared.upper().strip()
        if exact := _DECIMAL.search(text):
            return decimal(int(exact[1]), int(exact[2]))
        kind = next((kind for pattern, kind in _DECLARED if pattern.search(text)), None)
        if kind is None and self._known is not None and name in self._known.names:
            kind = self._known.field(name).type
        return kind or pa.null()


def _by_value(rows: list[tuple[Any, ...]], at: int) -> pa.DataType:
    first = next((row[at] for row in rows if row[at] is not None), None)
    return pa.null() if first is None else _BY_VALUE[type(first)]


def _array(values: tuple[Any, ...], column: pa.Field) -> pa.Array:
    allowed, convert = _rule(column.type)
    wrong = next((value for value in values if value is not None and type(value) not in allowed), None)
    if wrong is not None:
        raise _misfit(column, wrong, "SQLite keeps types per value")
    try:
        if convert is not None:
            return pa.array([None if value is None else convert(value) for value in values], column.type)
        return pa.array(values, column.type)
    except (pa.ArrowException, ValueError, OverflowError, InvalidOperation, TypeError) as error:
        raise _misfit(column, _first_bad(values, column, convert), str(error)[:200]) from None


def _rule(kind: pa.DataType) -> tuple[tuple[type, ...], Callable[[Any], Any] | None]:
    """Which Python types may stand in a column of this Arrow type, and how one value becomes Arrow's."""
    rules: tuple[tuple[Callable[[pa.DataType], bool], tuple[type, ...], Callable[[Any], Any] | None], ...] = (
        (pat.is_integer, (int,), None),
        (pat.is_floating, (int, float), None),
        (pat.is_string, (str,), None),
        (pat.is_binary, (bytes,), None),
        (pat.is_boolean, (int,), _boolean),
        (pat.is_decimal, (int, float, str), lambda value: Decimal(str(value))),
        (pat.is_timestamp, (str,), _timestamp),
        (pat.is_date, (str,), date.fromisoformat),
    )
    return next(((types, convert) for fits, types, convert in rules if fits(kind)), ((), None))


def _boolean(value: int) -> bool:
    if value not in (0, 1):
        raise ValueError(f"{value} is neither 0 nor 1")
    return value == 1


def _timestamp(value: str) -> datetime:
    """SQLite's ISO text; without an offset it is taken as UTC, as SQLite's own functions do."""
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _first_bad(values: tuple[Any, ...], column: pa.Field, convert: Callable[[Any], Any] | None) -> object:
    for value in values:
        try:
            pa.array([value if value is None or convert is None else convert(value)], column.type)
        except (pa.ArrowException, ValueError, OverflowError, InvalidOperation, TypeError):
            return value
    return None


def _misfit(column: pa.Field, value: object, why: str) -> BadData:
    return BadData(
        "a value does not fit its column's type", of=column.name, why=f"{value!r:.80} in a column of {column.type}: {why}",
        hint="Convert it in the query, or declare the column's type",
    )  # fmt: skip
