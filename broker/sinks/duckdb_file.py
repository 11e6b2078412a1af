"""A DuckDB file, opened for a moment at a time in a DuckDB that is kept: attaching costs a tenth of starting DuckDB for it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import ClassVar, Final
from weakref import WeakValueDictionary

import duckdb

from broker.columnar.sql import text_literal

ALIAS: Final = "broker_replica"


class DuckDBFile:
    """One a path and process, so that several sinks of it share what is open. Safe for threads."""

    _known: Final = WeakValueDictionary[Path, "DuckDBFile"]()
    _finding: ClassVar = Lock()
    _engine: duckdb.DuckDBPyConnection | None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    @classmethod
    def at(cls, path: Path) -> DuckDBFile:
        with cls._finding:
            known = cls._known.get(real := path.resolve())
            if known is None:
                known = cls._known[real] = cls(real)
            return known

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
            if self._users:
                return
            try:
                engine.execute(f"DETACH {ALIAS}")
            except duckdb.Error:  # the next one starts anew
                engine.close()
                self._engine = None

    def _begin(self) -> None:
        self._lock, self._engine, self._users, self._writable = Lock(), None, 0, False

    @classmethod
    def after_fork(cls) -> None:
        """As new: neither who held a lock nor DuckDB's threads are here, so that its engine can never be closed."""
        cls._finding = Lock()
        for file in list(cls._known.values()):
            if file._engine is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(file._engine))
            file._begin()


def _shared(path: Path, write: bool) -> duckdb.DuckDBPyConnection:
    if write:
        return duckdb.connect(path)
    try:
        return duckdb.connect(path, read_only=True)
    except duckdb.ConnectionException:  # open for writing
        return duckdb.connect(path)


os.register_at_fork(after_in_child=DuckDBFile.after_fork)
