"""Files on their way out: encoded, hashed and uploaded in one pass, and committed together or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from broker.model.commit import File, Role
from broker.model.request import Format
from broker.stores.port import ObjectStore, Upload
from broker.stores.side_by_side import side_by_side

# Measured over 3,000,000 rows of 6 columns: groups of 128k rows cost a third more time, zstd level 3 (default: 1) half more.
ROW_GROUP_ROWS: Final = 524_288
ROW_GROUP_BYTES: Final = 64 << 20  # of Arrow memory: what huge values may hold back, and far below Arrow's 2 GiB of text
SAMPLE_ROWS: Final = 8192
SMALL_BYTES: Final = 4 << 10  # of Arrow memory: setting up zstd and dictionaries takes longer than all else that is so small
WRITE_BYTES: Final = 1 << 20
COMMIT_THREADS: Final = 8


class Encoder(Protocol):
    """Turns batches into one file's bytes."""

    def write(self, batch: pa.RecordBatch) -> None: ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Sink(Protocol):
    """What an upload does before its commit."""

    def write(self, data: bytes | memoryview, /) -> int: ...

    def abort(self) -> None: ...


class Hashed:
    """An upload, or the like, as the file object pyarrow writes to. Small writes (a Parquet file has many) go out together."""

    closed = False

    def __init__(self, upload: Sink) -> None:
        self._upload, self._digest, self.bytes = upload, hashlib.sha256(), 0
        self._held, self._dropped = bytearray(), False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if not self._dropped:
            self.bytes += view.nbytes
            self._held += view
            if len(self._held) >= WRITE_BYTES:
                self.flush()
        return view.nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        if self._held and not self._dropped:
            self._digest.update(self._held)
            self._upload.write(memoryview(self._held))
            self._held = bytearray()

    def close(self) -> None:
        self.flush()
        self.closed = True

    def drop(self) -> None:
        """Abort the upload; what an abandoned encoder still writes when it is collected goes nowhere."""
        self._dropped = True
        self._upload.abort()

    @property
    def sha256(self) -> str:
        """Of everything written, once flushed."""
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """All of it is handed on, or nothing more."""
        if kind:
            self.drop()
        self.flush()


class ParquetEncoder:
    """Row groups of 512k rows or 64 MiB, so that their statistics prune and memory stays bounded.

    `share`: of so much, where other files are open at once.
    """

    def __init__(self, sink: Any, columns: pa.Schema, share: float = 1.0) -> None:
        self._sink, self._schema = sink, columns
        self._most_rows, self._most_bytes = ROW_GROUP_ROWS * share, ROW_GROUP_BYTES * share
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= self._most_rows or self._bytes >= self._most_bytes:
            self._flush()

    def close(self) -> None:
        if self._held or not self._writer:
            self._flush()
        assert self._writer
        self._writer.close()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._held, self._schema)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, self._schema, **self._options(table))
        if table.num_rows:
            self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._held, self._rows, self._bytes = [], 0, 0

    def _options(self, first: pa.Table) -> dict[str, Any]:
        if first.nbytes < SMALL_BYTES and self._rows < SAMPLE_ROWS:
            return {"compression": "none", "use_dictionary": False, "write_statistics": False}
        return {"compression": "zstd", "use_dictionary": repetitive(first)}


def repetitive(table: pa.Table) -> bool | list[str]:
    """Columns worth a dictionary, judged by the first rows: for those that hardly repeat it costs a tenth of the time."""
    sample = table.slice(0, SAMPLE_ROWS)
    if sample.num_rows < SAMPLE_ROWS:
        return True
    flat = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    return [name for name in flat if pc.count_distinct(sample[name]).as_py() < SAMPLE_ROWS // 2]


@dataclass(frozen=True)
class Target:
    """Where files of one role and format go: `new_key` gives a fresh store key each time."""

    role: Role
    columns: pa.Schema
    new_key: Callable[[], str]
    encoder: Callable[[Hashed, pa.Schema], Encoder]
    format: Format = "parquet"
    since: int | None = None
    buckets: tuple[int, int] | None = None


@dataclass
class Tally:
    """What was written so far: rows taken, bytes encoded. One writer; any thread may look."""

    rows: int = 0
    bytes: int = 0


class Outbox:
    """Uploads of one piece of work. `commit` makes all of them visible; leaving without it drops all of them.

    A commit that fails half way leaves objects nobody names to the orphan sweep: nothing is deleted on an error path.
    """

    def __init__(self, store: ObjectStore, max_file_rows: int, tally: Tally | None = None) -> None:
        self._store, self._max_rows, self._tally = store, max_file_rows, tally or Tally()
        self._sinks: list[Hashed] = []
        self._files: list[tuple[Upload, File]] = []

    def write(self, target: Target, batches: Iterable[pa.RecordBatch], *, even_empty: bool = False) -> int:
        """Write all batches, cutting files at the row limit. Returns the rows. `even_empty`: one file even for no rows."""
        return self.deal([target], ((0, batch) for batch in batches), even_empty=even_empty)

    def deal(
        self, targets: Sequence[Target], pieces: Iterable[tuple[int, pa.RecordBatch]], *, even_empty: bool = False
    ) -> int:  # fmt: skip
        """As `write`, each piece to the target of its number. Files of all targets are open at once."""
        opened: dict[int, _Open] = {0: self._open(targets[0])} if even_empty else {}
        total = 0
        for number, batch in pieces:
            total += batch.num_rows
            while batch.num_rows:
                current = opened.get(number) or opened.setdefault(number, self._open(targets[number]))
                piece = batch.slice(0, self._max_rows - current.rows)
                before = current.sink.bytes
                current.write(piece)
                self._tally.rows += piece.num_rows
                self._tally.bytes += current.sink.bytes - before
                batch = batch.slice(piece.num_rows)  # noqa: PLW2901
                if current.rows >= self._max_rows:
                    self._close(opened.pop(number))
        for number in sorted(opened):
            self._close(opened[number])
        return total

    def commit(self) -> tuple[File, ...]:
        side_by_side(lambda done: done[0].commit(), self._files, COMMIT_THREADS)
        return tuple(file for _, file in self._files)

    def _open(self, target: Target) -> _Open:
        key = target.new_key()
        upload = self._store.upload(key)
        sink = Hashed(upload)
        self._sinks.append(sink)
        return _Open(target, key, upload, sink, target.encoder(sink, target.columns))

    def _close(self, done: _Open) -> None:
        before = done.sink.bytes
        done.encoder.close()
        done.sink.flush()
        self._tally.bytes += done.sink.bytes - before
        file = File(
            role=done.target.role, key=done.key, sha256=done.sink.sha256, bytes=done.sink.bytes, rows=done.rows,
            format=done.target.format, since=done.target.since, buckets=done.target.buckets,
        )  # fmt: skip
        self._files.append((done.upload, file))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sink in self._sinks:
            sink.drop()


@dataclass
class _Open:
    target: Target
    key: str
    upload: Upload
    sink: Hashed
    encoder: Encoder
    rows: int = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self.encoder.write(batch)
        self.rows += batch.num_rows
