"""Files of micro-batches: changes of one log slot in, coalesced, upserts and deletes out."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final

import pyarrow as pa

from broker.columnar.coalesce import Changes, coalesce
from broker.columnar.database import Database
from broker.columnar.engine import Written
from broker.columnar.parquet import Outbox, ParquetEncoder, Target
from broker.columnar.scratch import PrivateFolder
from broker.model.commit import File, Role
from broker.model.dataset import DatasetSpec
from broker.model.names import data_key
from broker.settings import Settings
from broker.stores.port import ObjectStore

ROLES: Final[tuple[Role, Role]] = ("upserts", "deletes")


class Writing:
    """Files of a micro-batch, encoded but not complete. Either `commit` or `drop` ends it."""

    def __init__(self, outbox: Outbox, written: Written, partition: int, opened: ExitStack) -> None:
        self._outbox, self._written, self._partition, self._opened = outbox, written, partition, opened

    def commit(self) -> Written:
        """Committed files nobody names yet. Raises Unavailable."""
        with self._opened:
            return replace(self._written, files=tuple(_of_partition(file, self._partition) for file in self._outbox.commit()))

    def drop(self) -> None:
        self._opened.close()


class BatchWriter:
    """One per process; safe for several threads. Nothing it wrote is visible when it raises."""

    def __init__(self, store: ObjectStore, settings: Settings) -> None:
        self._store, self._max_rows = store, settings.max_file_rows
        self._folder = PrivateFolder(settings.temp_folder)
        self._database = Database(settings.memory_limit_bytes // 2, self._folder.path / "spill")

    def write(self, spec: DatasetSpec, changes: Iterable[Changes], partition: int) -> Writing:
        """Their files, each key once in all of them. `stale` counts changes that another replaced.

        The changes, in commit order, must have a row. Raises SchemaConflict, NullKey, BadData, Unavailable.
        """
        found = coalesce(spec, changes, self._database)
        sides = [(role, rows) for role, rows in zip(ROLES, (found.upserts, found.deletes), strict=True) if rows is not None]
        with ExitStack() as opened:
            outbox = opened.enter_context(Outbox(self._store, self._max_rows))
            counts = {role: outbox.write(_target(spec, role, rows.schema), rows.to_batches()) for role, rows in sides}
            written = Written((), found.schema, stale=found.dropped, **counts)
            return Writing(outbox, written, partition, opened.pop_all())

    def close(self) -> None:
        """End DuckDB and remove the private folder; idempotent."""
        self._database.close()
        self._folder.close()


def _target(spec: DatasetSpec, role: Role, columns: pa.Schema) -> Target:
    return Target(role, columns, partial(data_key, spec.dataset), ParquetEncoder)


def _of_partition(file: File, partition: int) -> File:
    return file.model_copy(update={"partition": partition})
