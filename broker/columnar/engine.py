"""Columnar work behind one door: what comes in becomes sealed files, what files hold comes out merged.

Nothing a method wrote is visible when it raises. A producer's own exception passes through unchanged.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import pyarrow as pa

from broker.columnar.database import Database
from broker.columnar.fetch import Fetcher
from broker.columnar.intake import Accepted, Intake, accept, accept_deletes
from broker.columnar.keys import KeyCheck
from broker.columnar.merge import rows_sql
from broker.columnar.parquet import Outbox, Target
from broker.columnar.scan import schema_of_spec, shape_of, sources_of
from broker.columnar.sql import listed, quoted
from broker.columnar.types import arrow_schema
from broker.model.commit import Edge, File, Role
from broker.model.dataset import DatasetSpec, Schema
from broker.model.names import data_key
from broker.model.predicate_parser import parse
from broker.model.request import Selection
from broker.settings import Settings
from broker.stores.port import ObjectStore


@dataclass(frozen=True)
class Written:
    """What became of some data. `files` are committed objects nobody names yet; `rows` counts a snapshot's.

    `schema` is the dataset's after this data; where it differs from the spec's, the caller writes an `alter` record.
    """

    files: tuple[File, ...]
    schema: Schema
    rows: int = 0
    upserts: int = 0
    deletes: int = 0
    unchanged: int = 0
    stale: int = 0


class Engine:
    """One per process. Safe for several threads; DuckDB starts with the first work that needs it."""

    def __init__(self, store: ObjectStore, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._lock = threading.Lock()
        folder = settings.temp_folder or Path(tempfile.gettempdir())
        self._folder = Path(tempfile.mkdtemp(prefix="broker-", dir=folder))
        self._database = Database(settings.memory_limit_bytes, self._folder / "spill")
        self._fetcher = Fetcher(store, self._folder / "cache")

    def write_snapshot(self, spec: DatasetSpec, data: Intake) -> Written:
        """The whole dataset as files of role `rows`: at least one, even for no rows.

        Raises NullKey, DuplicateKey, SchemaConflict, BadData, Overloaded.
        """
        taken = accept(data, spec)
        with self._outbox() as outbox, self._key_check(spec, taken.columns) as check:
            rows = outbox.write(self._target(spec, "rows", taken.columns), check.watch(taken.batches), even_empty=True)
            check.finish()
            return Written(outbox.commit(), taken.schema, rows=rows)

    def write_delta(self, spec: DatasetSpec, upserts: Intake | None, deletes: Intake | None) -> Written:
        """Changes as files of roles `upserts` and `deletes`; an empty side makes no file.

        A key stands once in both sides together. Raises as `write_snapshot`, and BadData for deletes without key or order.
        """
        sides, schema = _sides(spec, upserts, deletes)
        counts = {"upserts": 0, "deletes": 0}
        with self._outbox() as outbox, self._key_check(spec, arrow_schema(schema)) as check:
            for role, taken in sides:
                counts[role] = outbox.write(self._target(spec, role, taken.columns), check.watch(taken.batches))
            check.finish()
            return Written(outbox.commit(), schema, **counts)

    def read(self, spec: DatasetSpec, edges: Sequence[Edge], selection: Selection) -> pa.RecordBatchReader:
        """The rows that stand after a plan which starts with a snapshot, as a stream, in no order.

        Key and order columns are always among the columns. Raises Corrupt, NotFound, InvalidPredicate, Unavailable.
        """
        schema = schema_of_spec(spec)
        names = selected(spec, schema, selection)
        columns = arrow_schema(schema)
        where = condition(schema, selection)

        def batches() -> Iterator[pa.RecordBatch]:
            with self._fetcher.held(_files(edges)) as paths, self._database.session(str(spec.dataset)) as session:
                merged = rows_sql(sources_of(schema, edges, paths), shape_of(spec, schema))
                sql = f"SELECT {listed(names)} FROM ({merged})" + (f" WHERE {where}" if where else "")
                yield from session.stream(sql)

        return _reader(pa.schema([columns.field(name) for name in names]), batches())

    def verify(self, file: File) -> None:
        """Re-read an object. Raises Corrupt when its length or SHA-256 differ, NotFound."""
        self._fetcher.verify(file)

    def fetch(self, file: File) -> Path:
        """A verified local copy, to be opened at once: a later fetch may drop it. Raises Corrupt, NotFound, Unavailable."""
        return self._fetcher.fetch(file)

    def close(self) -> None:
        """End DuckDB and remove the private folder; idempotent."""
        self._database.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _outbox(self) -> Outbox:
        return Outbox(self._store, self._settings.max_file_rows)

    def _key_check(self, spec: DatasetSpec, columns: pa.Schema) -> KeyCheck:
        return KeyCheck(self._database, spec.key, columns, str(spec.dataset))

    def _target(self, spec: DatasetSpec, role: Role, columns: pa.Schema) -> Target:
        return Target(role, columns, partial(data_key, spec.dataset))


def _sides(spec: DatasetSpec, upserts: Intake | None, deletes: Intake | None) -> tuple[list[tuple[Role, Accepted]], Schema]:
    sides: list[tuple[Role, Accepted]] = []
    schema = spec.columns
    if upserts is not None:
        sides.append(("upserts", accept(upserts, spec)))
        schema = sides[-1][1].schema
    if deletes is not None:
        sides.append(("deletes", accept_deletes(deletes, spec, schema)))
        schema = sides[-1][1].schema
    return sides, schema or schema_of_spec(spec)


def selected(spec: DatasetSpec, schema: Schema, selection: Selection) -> tuple[str, ...]:
    """The columns a selection delivers, in the dataset's order. Raises SchemaConflict for one it does not have."""
    if selection.columns is None:
        return schema.names
    wanted = {*selection.columns, *spec.key, *spec.order}
    return tuple(name for name in schema.names if name in wanted)


def condition(schema: Schema, selection: Selection) -> str | None:
    return parse(selection.where, schema.types).sql(quoted) if selection.where else None


def _files(edges: Sequence[Edge]) -> list[File]:
    return [file for edge in edges for file in edge.files if file.rows]


def _reader(columns: pa.Schema, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(columns, (batch.cast(columns) for batch in batches))
