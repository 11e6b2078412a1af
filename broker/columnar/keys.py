"""Are the keys unique? Arrow groups small data; DuckDB bigger data, on a thread of its own while the caller writes."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc

from broker.columnar.database import Database, Session
from broker.columnar.merge import own_name
from broker.columnar.sql import listed, quoted
from broker.errors import DuplicateKey

SMALL_ROWS: Final = 50_000  # below it Arrow's grouping is quicker than a thread and a query
QUEUED_BATCHES: Final = 16
SHOWN_KEYS: Final = 5
THREAD_NAME: Final = "broker-key-check"


def duplicates_sql(key: Sequence[str], source: str) -> str:
    """The keys that occur more than once in `source`: key as text, occurrences, number of such keys. At most five."""
    names, count = listed(key), quoted(own_name(key, "n"))
    groups = f"SELECT {names}, count(*) AS {count} FROM {source} GROUP BY {names} HAVING count(*) > 1"
    shown = ", ".join(f"CAST({quoted(name)} AS VARCHAR)" for name in key)
    return f"SELECT {shown}, {count}, count(*) OVER () FROM ({groups}) ORDER BY {names} LIMIT {SHOWN_KEYS}"


def duplicate_key(key: Sequence[str], found: Sequence[tuple[Any, ...]], of: str) -> DuplicateKey:
    """The error for rows of `duplicates_sql`."""
    shown = "; ".join(
        ", ".join(f"{name}={value!r:.60}" for name, value in zip(key, row[:-2], strict=True)) + f" ({row[-2]} times)"
        for row in found
    )
    return DuplicateKey(
        "keys repeat",
        of=of,
        why=f"{found[0][-1]} key(s): {shown}",
        hint="Give each key once, or add the columns that tell rows apart",
    )


class KeyCheck:
    """Fed with batches that hold the key columns; `finish` raises DuplicateKey. Leaving early stops the work."""

    def __init__(self, database: Database, key: tuple[str, ...], columns: pa.Schema, of: str) -> None:
        self._database, self._key, self._of = database, key, of
        self._columns = pa.schema([columns.field(name) for name in key])
        # Arrow tells -0.0 from 0.0 in a group, DuckDB and SQL do not.
        self._arrow = not any(pa.types.is_floating(kind) or pa.types.is_nested(kind) for kind in self._columns.types)
        self._small: list[pa.RecordBatch] = []
        self._rows = 0
        self._worker: _Worker | None = None

    def watch(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches; their keys are noted on the way."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: pa.RecordBatch) -> None:
        keys = batch.select(self._key)
        if keys.schema != self._columns:  # upserts and deletes of one delta may differ in width
            keys = keys.cast(self._columns)
        self._rows += keys.num_rows
        if self._worker is None and self._rows <= SMALL_ROWS:
            self._small.append(keys)
            return
        if self._worker is None:
            self._start()
        assert self._worker
        self._worker.put(keys)

    def finish(self) -> None:
        if self._worker is None and self._arrow:
            found = _small_duplicates(pa.Table.from_batches(self._small, self._columns), self._key)
        else:
            if self._worker is None:
                self._start()
            assert self._worker
            found = self._worker.finish()
        if found:
            raise duplicate_key(self._key, found, self._of)

    def _start(self) -> None:
        self._worker = _Worker(self._database, self._columns, duplicates_sql(self._key, "keys"), self._of)
        for batch in self._small:
            self._worker.put(batch)
        self._small = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._worker:
            self._worker.stop()


def _small_duplicates(keys: pa.Table, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    if len(names) == 1 and pc.count_distinct(keys[names[0]], mode="all").as_py() == keys.num_rows:
        return []  # nearly always so, at a tenth of the cost of groups
    groups = keys.group_by(list(names), use_threads=False).aggregate([([], "count_all")])
    if groups.num_rows == keys.num_rows:
        return []
    counts = groups["count_all"].to_pylist()
    many = [index for index, count in enumerate(counts) if count > 1]
    shown = (
        groups.take(many).sort_by([(name, "ascending") for name in names]).slice(0, SHOWN_KEYS).select([*names, "count_all"])
    )
    return [(*map(str, key), count, len(many)) for *key, count in (row.values() for row in shown.to_pylist())]


class _Worker:
    """One query over the batches put in; the queue bounds what waits."""

    def __init__(self, database: Database, columns: pa.Schema, sql: str, of: str) -> None:
        self._database, self._columns, self._sql, self._of = database, columns, sql, of
        self._queue: queue.Queue[pa.RecordBatch | None] = queue.Queue(QUEUED_BATCHES)
        self._session: Session | None = None
        self._sent_last = self._took_last = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME)
        self._answer = self._pool.submit(self._run)

    def put(self, batch: pa.RecordBatch) -> None:
        self._queue.put(batch)

    def finish(self) -> list[tuple[Any, ...]]:
        self._last()
        return self._answer.result()

    def stop(self) -> None:
        """End without an answer; nothing happens after `finish`."""
        if not self._sent_last and self._session:
            self._session.interrupt()
        self._last()

    def _last(self) -> None:
        if not self._sent_last:
            self._sent_last = True
            self._queue.put(None)
        self._pool.shutdown()

    def _run(self) -> list[tuple[Any, ...]]:
        try:
            with self._database.session(self._of) as session:
                self._session = session
                session.bind("keys", pa.RecordBatchReader.from_batches(self._columns, self._taken()))
                return session.rows(self._sql)
        finally:
            self._session = None
            for _ in self._taken():  # the writer must never wait for a reader that has gone
                pass

    def _taken(self) -> Iterator[pa.RecordBatch]:
        while not self._took_last and (batch := self._queue.get()) is not None:
            yield batch
        self._took_last = True
