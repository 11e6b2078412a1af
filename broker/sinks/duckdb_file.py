"""A DuckDB file, opened for a moment at a time in a DuckDB that is kept: attaching costs a tenth of starting DuckDB for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Final
from weakref import WeakValueDictionary

import duckdb

from broker.columnar.sql import text_literal

ALIAS: Final = "broker_replica"


class DuckDBFile:
    """One a path and process, so that several sinks of it share what is open. Safe for threads."""

    _known: Final = WeakValueDictionary[Path, "DuckDBFile"]()
    _abandoned: Final = list[duckdb.DuckDBPyConnection]()
    """Of the process this one was forked from: DuckDB's threads are not here, so they cannot be closed."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._begin()

    @classmethod
    def at(cls, path: Path) -> DuckDBFile:
        return cls._known.setdefault(path, cls(path))

    @contextmanager
    def opened(self, write: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to the file, closed behind the block with the file. Raises DuckDB's errors."""
        try:
            engine = self._attach(write)
        except duckdb.ResourceInUseException:  # open in this very process: its DuckDB can be shared
            with _shared(self._path, write) as connection:
                yield connection
            return
        try:
            with engine.cursor() as connection:
                connection.execute(f"USE {ALIAS}")
                yield connection
        finally:
            self._detach(engine)

    def _attach(self, write: bool) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._pid != os.getpid():
                self._abandoned.extend([self._engine] if self._engine else [])
                self._begin()
            if self._engine is None:
                self._engine = duckdb.connect(":memory:", config={"temp_directory": f"{self._path}.tmp"})
                # Order costs memory: a replica is a set of rows.
                self._engine.execute("SET preserve_insertion_order = false")
            if not self._users:
                read_only = "" if write else " (READ_ONLY)"
                self._engine.execute(f"ATTACH {text_literal(str(self._path))} AS {ALIAS}{read_only}")
                self._writable = write
            elif write and not self._writable:
                raise duckdb.ConnectionException("the file is being read in this process")
            self._users += 1
            return self._engine

    def _detach(self, engine: duckdb.DuckDBPyConnection) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                engine.execute(f"DETACH {ALIAS}")

    def _begin(self) -> None:
        self._engine, self._pid, self._users, self._writable = None, os.getpid(), 0, False

    _engine: duckdb.DuckDBPyConnection | None

    def __del__(self) -> None:
        if self._engine is not None and self._pid == os.getpid():
            with suppress(duckdb.Error):
                self._engine.close()


def _shared(path: Path, write: bool) -> duckdb.DuckDBPyConnection:
    if write:
        return duckdb.connect(path)
    try:
        return duckdb.connect(path, read_only=True)
    except duckdb.ConnectionException:  # open for writing
        return duckdb.connect(path)
