"""What the SQL sinks share, written once: the cursor row, the protocol of apply, and where the database is a file."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pyarrow as pa

from broker.columnar.scratch import disk_errors
from broker.errors import StaleBase
from broker.sinks.merge import Merge, Transaction
from broker.sinks.port import (
    Applied,
    Batch,
    Shape,
    SinkCursor,
    check_cursor,
    check_owner,
    check_table,
    foreign,
    nothing,
    taken,
)

CURSORS: Final = "broker_cursors"
CREATE_CURSORS: Final = f"""CREATE TABLE IF NOT EXISTS {CURSORS} (
    place VARCHAR(63) PRIMARY KEY, replica TEXT NOT NULL, dataset TEXT NOT NULL, version BIGINT NOT NULL, session TEXT NOT NULL,
    selection TEXT NOT NULL, epoch BIGINT NOT NULL, counter BIGINT NOT NULL, shape TEXT)"""
_FIELDS: Final = "replica, dataset, version, session, selection, epoch, counter, shape"


class SqlSink(ABC):
    """Cursor, apply, take and read over `Transaction`. The cursor row is keyed by table: one table, one replica."""

    def __init__(self, table: str, on_step: Callable[[str], None] = nothing, clock: Callable[[], float] = time.time) -> None:
        self.table = check_table(table)
        self._step, self._clock = on_step, clock

    @property
    @abstractmethod
    def place(self) -> str:
        """What errors name: file or server, and table."""

    @abstractmethod
    def _transaction(self, *, write: bool) -> AbstractContextManager[Transaction | None]:
        """Commits at the end of the block, rolls back on an error. None: nothing to read from yet."""

    @abstractmethod
    def _select(self, tx: Transaction, columns: Sequence[str], shape: Shape) -> pa.Table: ...

    def cursor(self, name: str) -> SinkCursor | None:
        with self._transaction(write=False) as tx:
            return self._held(tx, name)[0] if tx is not None else None

    def apply(self, name: str, batch: Batch, *, expect: SinkCursor | None, to: SinkCursor) -> Applied:
        with self._transaction(write=True) as tx:
            assert tx is not None
            self._step("begun")
            held, before = self._held(tx, name)
            check_cursor(held, expect, to.fence, self.place)
            after = Shape.of(batch) if batch.replace or before is None else before.grown(batch)
            if before is None and tx.has_table(self.table):
                raise foreign(self.place)
            self._set(tx, name, held, to, after)
            self._step("cursor")
            merge = Merge(tx, self.table, self._clock())
            applied = merge.replace(batch, before, after) if batch.replace else merge.change(batch, before, after)
            self._step("rows")
        self._step("committed")
        return applied

    def take(self, name: str, expect: SinkCursor | None, fence: tuple[int, int]) -> None:
        with self._transaction(write=True) as tx:
            assert tx is not None
            held, shape = self._held(tx, name)
            check_cursor(held, expect, fence, self.place)
            self._set(tx, name, held, taken(expect, fence), shape)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        with self._transaction(write=False) as tx:
            shape = self._row(tx)[2] if tx is not None else None
            if tx is None or shape is None:
                return pa.table({})
            return self._select(tx, columns or shape.schema.names, shape)

    def close(self) -> None:  # noqa: B027  # nothing is held open between calls
        """Idempotent."""

    def _held(self, tx: Transaction, name: str) -> tuple[SinkCursor | None, Shape | None]:
        owner, cursor, shape = self._row(tx)
        if cursor is not None:
            check_owner(owner, name, self.place)
        return cursor, shape

    def _row(self, tx: Transaction) -> tuple[str, SinkCursor | None, Shape | None]:
        if not tx.has_table(CURSORS):
            return "", None, None
        row = tx.first(f"SELECT {_FIELDS} FROM {CURSORS} WHERE place = ?{tx.for_update}", self.table)
        if row is None:
            return "", None, None
        owner, dataset, version, session, selection, epoch, counter, shape = row
        cursor = SinkCursor(dataset, version, session, selection, (epoch, counter))
        return owner, cursor, Shape.from_json(shape) if shape else None

    def _set(self, tx: Transaction, name: str, held: SinkCursor | None, to: SinkCursor, shape: Shape | None) -> None:
        """The set of compare-and-set, first in the transaction: the row stays locked while rows are written."""
        values = (name, to.dataset, to.version, to.session, to.selection, *to.fence, shape.to_json() if shape else None)
        if held is None:
            row = tx.first(
                f"INSERT INTO {CURSORS} ({_FIELDS}, place) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING RETURNING 1",
                *values, self.table,
            )  # fmt: skip
        else:
            row = tx.first(
                f"UPDATE {CURSORS} SET replica = ?, dataset = ?, version = ?, session = ?, selection = ?,"
                " epoch = ?, counter = ?, shape = ? WHERE place = ? AND version = ? AND epoch = ? AND counter = ? RETURNING 1",
                *values, self.table, held.version, *held.fence,
            )  # fmt: skip
        if row is None:
            raise StaleBase(
                "the replica moved", of=self.place, why="its cursor changed meanwhile", hint="Plan again from its cursor"
            )


class FileSink(SqlSink):
    """A table of the database file at `path`, made when absent, with its folder."""

    def __init__(
        self, path: str | Path, table: str, on_step: Callable[[str], None] = nothing, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(table, on_step, clock)
        self.path = Path(path).absolute()

    @property
    def place(self) -> str:
        return f"{self.path}, table {self.table}"

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Transaction | None]:
        with disk_errors(self.path):
            exists = self.path.exists()
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
        if not write and not exists:
            yield None
            return
        with self._begun(write=write) as tx:
            if write:
                tx.run(CREATE_CURSORS)
            yield tx

    @abstractmethod
    def _begun(self, *, write: bool) -> AbstractContextManager[Transaction]:
        """As `_transaction`, of a file that is there or may be made."""
