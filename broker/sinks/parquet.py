"""A replica as Parquet files: a folder of generations and a pointer, swapped by rename.

    CURRENT             JSON: the generation that counts, the one before it, the cursor, the shape
    g-<id>/rows.parquet where the dataset has order columns, rows__tombstones.parquet beside it
    LOCK                held (flock) by the one writer

Readers: read `CURRENT`, then `<its generation>/rows.parquet`. The generation before is kept for whoever has just read the
pointer, older ones are deleted. Each apply writes a whole generation: simple and right, and dear for small deltas into large
replicas.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from broker.columnar.intake import conformed
from broker.columnar.sql import quoted, text_literal
from broker.columnar.types import arrow_schema
from broker.errors import Busy, Corrupt, Unavailable
from broker.model.dataset import Schema
from broker.sinks.duckdb import DuckDBTransaction, mapped
from broker.sinks.merge import Merge, tombstone_schema
from broker.sinks.port import (
    TOMBSTONES,
    Applied,
    Batch,
    Shape,
    SinkCursor,
    check_cursor,
    check_owner,
    foreign,
    nothing,
    taken,
)

POINTER: Final = "CURRENT"
LOCK: Final = "LOCK"
ROWS: Final = "rows"
BATCH_ROWS: Final = 131_072
_OURS: Final = (POINTER, LOCK, "g-", ".spill")


@dataclass(frozen=True)
class _Pointer:
    """What CURRENT says."""

    owner: str
    cursor: SinkCursor
    shape: Shape | None
    generation: str
    previous: str

    def to_json(self) -> str:
        fields = {"format": 1, "generation": self.generation, "previous": self.previous, "replica": self.owner}
        shape = self.shape.to_json() if self.shape else None
        return json.dumps(fields | {"cursor": asdict(self.cursor), "shape": shape}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> _Pointer:
        fields = json.loads(text)
        place: dict[str, Any] = fields["cursor"]
        cursor = SinkCursor(**(place | {"fence": (place["fence"][0], place["fence"][1])}))
        shape = Shape.from_json(fields["shape"]) if fields["shape"] else None
        return cls(fields["replica"], cursor, shape, fields["generation"], fields["previous"])


class ParquetDirectory:
    """A folder, made when absent. `memory_limit_bytes` bounds an apply; more spills into the folder."""

    def __init__(
        self,
        folder: str | Path,
        *,
        memory_limit_bytes: int = 1 << 30,
        on_step: Callable[[str], None] = nothing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self._memory = Path(folder).absolute(), memory_limit_bytes
        self._step, self._clock = on_step, clock

    @property
    def place(self) -> str:
        return str(self.folder)

    def cursor(self, name: str) -> SinkCursor | None:
        with self._errors():
            held = self._held(name)
        return held.cursor if held else None

    def apply(self, name: str, batch: Batch, *, expect: SinkCursor | None, to: SinkCursor) -> Applied:
        with self._errors(), self._writing():
            self._step("begun")
            held = self._held(name)
            check_cursor(held.cursor if held else None, expect, to.fence, self.place)
            before = held.shape if held else None
            after = Shape.of(batch) if batch.replace or before is None else before.grown(batch)
            self._sweep(held)
            generation = f"g-{uuid4().hex}"
            applied = self._write(generation, batch, held, after)
            self._step("rows")
            pointer = _Pointer(name, to, after, generation, held.generation if held else "")
            self._point(pointer)
            self._sweep(pointer)
        self._step("committed")
        return applied

    def take(self, name: str, expect: SinkCursor | None, fence: tuple[int, int]) -> None:
        with self._errors(), self._writing():
            held = self._held(name)
            check_cursor(held.cursor if held else None, expect, fence, self.place)
            shape, generation, previous = (held.shape, held.generation, held.previous) if held else (None, "", "")
            self._point(_Pointer(name, taken(expect, fence), shape, generation, previous))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        with self._errors():
            pointer = self._pointer()
            if pointer is None or pointer.shape is None:
                return pa.table({})
            schema = pointer.shape.chosen(columns or pointer.shape.schema.names)
            file = self.folder / pointer.generation / f"{ROWS}.parquet"
            return pq.read_table(file, columns=list(schema.names), partitioning=None).cast(arrow_schema(schema))

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _pointer(self) -> _Pointer | None:
        try:
            return _Pointer.from_json((self.folder / POINTER).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt("the pointer cannot be read", of=str(self.folder / POINTER), why=str(error)) from None

    def _held(self, name: str) -> _Pointer | None:
        pointer = self._pointer()
        if pointer is not None:
            check_owner(pointer.owner, name, self.place)
        elif self.folder.exists() and any(not entry.name.startswith(_OURS) for entry in self.folder.iterdir()):
            raise foreign(self.place)
        return pointer

    def _write(self, generation: str, batch: Batch, held: _Pointer | None, after: Shape) -> Applied:
        """The next generation's files, on disk. Nothing points to them yet."""
        before = held.shape if held else None
        (self.folder / generation).mkdir()
        with duckdb.connect(":memory:") as connection:
            connection.execute(f"SET memory_limit = '{self._memory}B'")
            connection.execute("SET preserve_insertion_order = false")
            connection.execute(f"SET temp_directory = {text_literal(str(self.folder / '.spill'))}")
            tx = DuckDBTransaction(connection)
            merge = Merge(tx, ROWS, self._clock())
            if held is not None and before is not None and not batch.replace:
                for table, schema in _tables(before):
                    tx.load(table, schema, [self.folder / held.generation / f"{table}.parquet"])
            try:
                applied = merge.replace(batch, None, after) if batch.replace else merge.change(batch, before, after)
            except duckdb.Error as error:
                raise tx.source_error or error from error
            for table, schema in _tables(after):
                rows = tx.connection.sql(f"SELECT * FROM {quoted(table)}").to_arrow_reader(BATCH_ROWS)
                _write_file(self.folder / generation / f"{table}.parquet", schema, rows)
        _sync(self.folder / generation)
        return applied

    def _point(self, pointer: _Pointer) -> None:
        """The moment of the commit: the pointer is on disk whole, under its own name, or the old one is."""
        fresh = self.folder / f"{POINTER}.new"
        fresh.write_text(pointer.to_json(), "utf-8")
        _sync(fresh)
        self._step("cursor")
        fresh.rename(self.folder / POINTER)
        _sync(self.folder)

    def _sweep(self, pointer: _Pointer | None) -> None:
        """Delete generations nobody points to: older ones, and what a crash left."""
        kept = (pointer.generation, pointer.previous) if pointer else ()
        for folder in self.folder.glob("g-*"):
            if folder.name not in kept:
                shutil.rmtree(folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy("somebody else writes this replica", of=self.place, hint="Try again when it has finished") from None
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as error:
            raise mapped(error, self.place) from error
        except OSError as error:
            raise Unavailable("the folder cannot be read or written", of=self.place, why=str(error)) from error


def _tables(shape: Shape) -> Iterator[tuple[str, Schema]]:
    """A generation's files, by table name."""
    yield ROWS, shape.schema
    if shape.order:
        yield ROWS + TOMBSTONES, tombstone_schema(shape)


def _write_file(file: Path, schema: Schema, rows: pa.RecordBatchReader) -> None:
    # pyarrow's writer, because DuckDB's turns HUGEINT into DOUBLE and seconds into microseconds.
    columns = arrow_schema(schema)
    with pq.ParquetWriter(file, columns, compression="zstd") as writer:
        for batch in conformed(rows, columns, ()):
            writer.write_batch(batch)
    _sync(file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
