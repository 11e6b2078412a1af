"""The DuckDB engine of one process: one in-memory database under a memory limit, sessions on it, its errors as ours.

DuckDB spills to `folder` what exceeds the limit. A session is one cursor; several threads may each hold their own.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from broker.errors import BadData, BrokerError, Overloaded, Terminal, Unavailable

STREAM_ROWS: Final = 131_072  # rows of one Arrow batch on its way out

_OUT_OF_MEMORY: Final = (
    "DuckDB ran out of memory or disk",
    "Raise BROKER_MEMORY_LIMIT_BYTES, or give BROKER_TEMP_FOLDER a disk with more room",
)
_NOT_READ: Final = "a file could not be read or written"
_FULL: Final = os.strerror(errno.ENOSPC)
_BAD_DATA: Final = (duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.TypeMismatchException)


class Database:
    """Opened by the first session. `close` ends it; sessions still open then fail. `threads` None: as many as cores."""

    def __init__(self, memory_limit_bytes: int, folder: Path, threads: int | None = None) -> None:
        self._limit, self._folder, self._threads = memory_limit_bytes, folder, threads
        self._lock = threading.Lock()
        self._connection: duckdb.DuckDBPyConnection | None = None

    @contextmanager
    def session(self, of: str) -> Iterator[Session]:
        """A cursor of one's own, closed at the end; errors name `of`."""
        cursor = self._opened().cursor()
        try:
            yield Session(cursor, of)
        finally:
            cursor.close()

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _opened(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._connection is None:
                with mapped("DuckDB"):
                    self._connection = duckdb.connect(":memory:", config=self._config())
                    # Outside the configuration: DuckDB knows the setting only once it runs.
                    self._connection.execute("SET TimeZone = 'UTC'")
            return self._connection

    def _config(self) -> dict[str, str | bool | int | float | list[str]]:
        threads: dict[str, str | bool | int | float | list[str]] = {"threads": self._threads} if self._threads else {}
        return threads | {
            "memory_limit": f"{self._limit}B",
            "temp_directory": str(self._folder),
            # The order of rows means nothing here, and keeping it costs memory.
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }


class Session:
    """SQL on one cursor. Tables made here are temporary and die with it."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, of: str) -> None:
        self._cursor, self._of = cursor, of

    def bind(self, name: str, source: Any) -> None:
        """Let SQL read an Arrow stream, table or dataset under `name`."""
        with mapped(self._of):
            self._cursor.register(name, source)

    def run(self, sql: str) -> None:
        with mapped(self._of):
            self._cursor.execute(sql)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows: for small results without a time with zone, which DuckDB would fetch by way of pytz."""
        with mapped(self._of):
            return self._cursor.execute(sql).fetchall()

    def number(self, sql: str) -> int:
        """The one number a query answers with."""
        return int(self.rows(sql)[0][0])

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The result as it is computed, never whole in memory. One stream at a time per session."""
        with mapped(self._of):
            reader = self._cursor.sql(sql).to_arrow_reader(STREAM_ROWS)
        return self._batches(reader)

    def _batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        try:
            with mapped(self._of):
                yield from reader
        except OSError as error:  # Arrow's class for what DuckDB's stream reports of the disk
            raise _in_stream(str(error)[:300], self._of) from error

    def interrupt(self) -> None:
        """Stop what another thread runs here."""
        self._cursor.interrupt()


@contextmanager
def mapped(of: str) -> Iterator[None]:
    """DuckDB's errors as the broker's. Behind an Arrow stream DuckDB's error is text only, so there its prefix decides."""
    try:
        yield
    except duckdb.Error as error:
        raise to_error(error, of) from error
    except pa.ArrowException as error:
        raise _in_stream(str(error)[:300], of) from error


def _in_stream(why: str, of: str) -> BrokerError:
    if why.startswith("Out of Memory Error") or _FULL in why:
        return Overloaded(_OUT_OF_MEMORY[0], of=of, why=why, hint=_OUT_OF_MEMORY[1])
    if why.startswith(("IO Error", "HTTP Error")):
        return Unavailable(_NOT_READ, of=of, why=why)
    return BadData("data could not be read", of=of, why=why)


def to_error(error: duckdb.Error, of: str) -> BrokerError:
    """The broker's error for one of DuckDB's: Overloaded (memory or disk), Unavailable, BadData or Terminal."""
    why = str(error)[:300]
    if isinstance(error, duckdb.OutOfMemoryException) or _FULL in why:
        return Overloaded(_OUT_OF_MEMORY[0], of=of, why=why, hint=_OUT_OF_MEMORY[1])
    if isinstance(error, duckdb.IOException | duckdb.HTTPException):
        return Unavailable(_NOT_READ, of=of, why=why)
    if isinstance(error, _BAD_DATA):
        return BadData("values do not fit their type", of=of, why=why)
    return Terminal("the query failed", of=of, why=why)
