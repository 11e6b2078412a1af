"""One key in files: which of them hold it, and the same files without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import pyarrow as pa

from broker.columnar.engine import Engine
from broker.columnar.merge import rows_sql
from broker.columnar.parquet import Outbox, ParquetEncoder, Target
from broker.columnar.results import Result, named_by_deletes, schema_of_spec, shape_of
from broker.columnar.scan import relations, sources_of
from broker.columnar.trace import GONE, Paths, bucket_result, entries_result, holds_sql, key_result, without_sql
from broker.columnar.types import arrow_schema
from broker.model.commit import Edge, File
from broker.model.dataset import DatasetSpec
from broker.model.names import data_key
from broker.settings import Settings
from broker.stores.port import ObjectStore

RUN: Final = 100
"""Files looked into at once."""


class OneKey:
    """A key of a dataset, as one text for each key column. Raises BadData, Invalid for what is no key."""

    def __init__(self, engine: Engine, spec: DatasetSpec, key: Sequence[str]) -> None:
        self._engine, self.spec, self.key = engine, spec, key
        self.row: pa.Table = engine.query(spec, [], lambda _: key_result(spec, key)).read_all()
        """The key in its columns' types."""
        self.bucket: int | None = engine.query(spec, [], lambda _: bucket_result(spec, key)).read_all()[0][0].as_py()
        """`File.may_hold` says by it what need not be read, of edges that are offered."""

    def holding(self, files: Sequence[File]) -> Iterator[File]:
        """Those that have it, whatever their role and format. Raises Corrupt, NotFound, Unavailable."""
        full = [file for file in files if file.rows]
        for start in range(0, len(full), RUN):
            run = full[start : start + RUN]
            numbered = list(enumerate(run))
            edge = Edge(version=1, files=tuple(run))
            ask = partial(entries_result, self.spec, numbered, self.key)
            found = self._engine.query(self.spec, [edge], ask).read_all()
            yield from (run[number] for number in sorted(set(found.column("number").to_pylist())))

    def near(self, edge: Edge) -> Edge:
        """An edge that is offered, but for its files of other key buckets."""
        files = tuple(file for file in edge.files if file.may_hold(self.bucket))
        return edge.of_files(files)

    def standing(self, edges: Sequence[Edge]) -> pa.Table:
        """Its row after a plan from a snapshot, as a delete would name it: key and order. No row: it does not stand."""
        spec, schema, edges = self.spec, schema_of_spec(self.spec), [self.near(edge) for edge in edges]
        columns = named_by_deletes(spec, schema)

        def ask(paths: Paths) -> Result:
            rows = rows_sql(sources_of(schema, edges, paths), shape_of(spec, schema))
            return Result("deletes", f"SELECT * FROM ({rows}) WHERE {holds_sql(spec, schema, self.key)}", schema)

        return self._engine.query(spec, edges, ask).read_all().select(list(columns.names))

    def rewritten(self, file: File, store: ObjectStore, settings: Settings) -> tuple[File, ...]:
        """The file without it, under a fresh name; no file where nothing else was in it, but for a snapshot's rows."""
        spec, schema = self.spec, schema_of_spec(self.spec)
        columns = named_by_deletes(spec, schema) if file.role in GONE else schema

        def ask(paths: Paths) -> Result:
            (relation,) = relations(schema, [(0, file)], paths)
            return Result(file.role, without_sql(spec, columns.names, relation, self.key), columns)

        fields = arrow_schema(columns)
        target = Target(file.role, fields, partial(data_key, spec.dataset), ParquetEncoder)
        with Outbox(store, settings.max_file_rows) as outbox:
            rest = self._engine.query(spec, [Edge(version=1, files=(file,))], ask)
            outbox.write(replace(target, since=file.since, buckets=file.buckets), rest, even_empty=file.role == "rows")
            return tuple(made.model_copy(update={"partition": file.partition}) for made in outbox.commit())
