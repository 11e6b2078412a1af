"""A replica in a dict, for tests of one's own code. Holds everything in memory; gone with the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from broker.columnar.intake import conformed
from broker.columnar.types import arrow_schema
from broker.errors import DuplicateKey
from broker.model.dataset import Schema
from broker.sinks.port import Applied, Batch, Shape, SinkCursor, check_cursor, check_owner, nothing, taken

Key = tuple[Any, ...]
Row = dict[str, Any]


@dataclass(frozen=True)
class _State:
    """Swapped as one value, so a reader sees the old or the new one."""

    owner: str = ""
    cursor: SinkCursor | None = None
    shape: Shape | None = None
    rows: dict[Key, Row] = field(default_factory=dict)
    tombstones: dict[Key, tuple[Row, float]] = field(default_factory=dict)


class Memory:
    """`rows` maps a key (a tuple of its values where it has several columns) to its row."""

    def __init__(self, *, on_step: Callable[[str], None] = nothing, clock: Callable[[], float] = time.time) -> None:
        self._step, self._clock = on_step, clock
        self._state, self._lock = _State(), threading.Lock()

    @property
    def rows(self) -> Mapping[Any, Row]:
        rows = self._state.rows
        return MappingProxyType({key[0] if len(key) == 1 else key: row for key, row in rows.items()})

    def cursor(self, name: str) -> SinkCursor | None:
        state = self._state
        if state.cursor is not None:
            check_owner(state.owner, name, "memory")
        return state.cursor

    def apply(self, name: str, batch: Batch, *, expect: SinkCursor | None, to: SinkCursor) -> Applied:
        with self._lock:
            self._step("begun")
            check_cursor(self.cursor(name), expect, to.fence, "memory")
            held = self._state
            shape = Shape.of(batch) if batch.replace or held.shape is None else held.shape.grown(batch)
            rows, tombstones, applied = self._merged(held, batch, shape)
            self._step("rows")
            self._state = _State(name, to, shape, rows, tombstones)
        self._step("committed")
        return applied

    def take(self, name: str, expect: SinkCursor | None, fence: tuple[int, int]) -> None:
        with self._lock:
            check_cursor(self.cursor(name), expect, fence, "memory")
            held = self._state
            self._state = _State(name, taken(expect, fence), held.shape, held.rows, held.tombstones)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        state = self._state
        if state.shape is None:
            return pa.table({})
        schema = state.shape.chosen(columns or state.shape.schema.names)
        return pa.Table.from_pylist(list(state.rows.values()), schema=arrow_schema(schema))

    def close(self) -> None:
        """Nothing is held; the rows stay readable."""

    def _merged(self, held: _State, batch: Batch, shape: Shape) -> tuple[dict[Key, Row], dict[Key, tuple[Row, float]], Applied]:
        now = self._clock()
        if batch.replace:
            rows = _by_key(batch.rows, shape.schema, shape)
            guards = _by_key(batch.tombstones, shape.guard, shape) if shape.order else {}
            return rows, {key: (row, now) for key, row in guards.items()}, Applied(rows=len(rows))
        merge = _Merge(shape, _grown(held, shape), _fresh(held.tombstones, batch.lapsed(now)), batch.repair)
        for key, row in _by_key(batch.deletes, shape.guard, shape).items():
            merge.delete(key, row, now)
        for key, row in _by_key(batch.upserts, shape.schema, shape).items():
            merge.upsert(key, row)
        return merge.rows, merge.tombstones, Applied(upserts=merge.upserts, deletes=merge.deletes, stale=merge.stale)


@dataclass
class _Merge:
    shape: Shape
    rows: dict[Key, Row]
    tombstones: dict[Key, tuple[Row, float]]
    repair: bool = False
    upserts: int = 0
    deletes: int = 0
    stale: int = 0

    def upsert(self, key: Key, row: Row) -> None:
        if self._older(key, row):
            return
        self.rows[key] = row
        self.tombstones.pop(key, None)
        self.upserts += 1

    def delete(self, key: Key, row: Row, now: float) -> None:
        if self._older(key, row):
            return
        self.deletes += self.rows.pop(key, None) is not None
        if self.shape.order and not self.repair:
            self.tombstones[key] = (row, now)

    def _older(self, key: Key, row: Row) -> bool:
        if self.repair:
            return False
        held = [self.rows.get(key), self.tombstones.get(key, (None, 0.0))[0]]
        older = any(other is not None and self._rank(other) > self._rank(row) for other in held)
        self.stale += older
        return older

    def _rank(self, row: Row) -> list[tuple[bool, Any]]:
        return [(row[name] is not None, row[name] if row[name] is not None else 0) for name in self.shape.order]


def _grown(held: _State, shape: Shape) -> dict[Key, Row]:
    if held.shape is None or held.shape.schema == shape.schema:
        return dict(held.rows)
    table = pa.Table.from_pylist(list(held.rows.values()), schema=arrow_schema(held.shape.schema))
    return _by_key(table.to_reader(), shape.schema, shape)


def _fresh(tombstones: dict[Key, tuple[Row, float]], limit: float) -> dict[Key, tuple[Row, float]]:
    return {key: (row, laid) for key, (row, laid) in tombstones.items() if laid > limit}


def _by_key(reader: pa.RecordBatchReader | None, schema: Schema, shape: Shape) -> dict[Key, Row]:
    result: dict[Key, Row] = {}
    for row in _rows(reader, schema, shape.key):
        key = tuple(row[name] for name in shape.key)
        if key in result:
            raise DuplicateKey("a key comes twice", of="memory", why=repr(key)[:200])
        result[key] = row
    return result


def _rows(reader: pa.RecordBatchReader | None, schema: Schema, key: tuple[str, ...]) -> Iterator[Row]:
    if reader is not None:
        for batch in conformed(reader, arrow_schema(schema), key):
            yield from batch.to_pylist()
