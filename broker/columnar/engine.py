"""Columnar work behind one door: what comes in becomes sealed files, what files hold comes out merged.

Nothing a method wrote is visible when it raises. A producer's own exception passes through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, TypeAlias

import pyarrow as pa

from broker.columnar import feed
from broker.columnar.database import Database, Session
from broker.columnar.fetch import Fetcher
from broker.columnar.formats import ENCODERS, arrow_dataset, bound_name, rendered
from broker.columnar.intake import Accepted, Intake, accept, changed_sides
from broker.columnar.kept import Kept
from broker.columnar.keys import KeyCheck, duplicate_key, duplicates_sql
from broker.columnar.merge import Sources
from broker.columnar.parquet import Hashed, Outbox, Tally, Target
from broker.columnar.partitions import Partitions, cast
from broker.columnar.results import (
    Result,
    deletes_result,
    guards_result,
    named_by_deletes,
    rows_result,
    schema_of_spec,
    settled_results,
    shape_of,
    upserts_result,
)
from broker.columnar.scan import sources_of
from broker.columnar.scratch import PrivateFolder, appearing
from broker.columnar.sql import listed, text_literal
from broker.columnar.tombstones import Burial, Standing
from broker.columnar.types import arrow_schema
from broker.model.commit import Edge, File, Role
from broker.model.dataset import DatasetSpec, Schema
from broker.model.names import data_key
from broker.model.request import Format, Selection
from broker.settings import Settings
from broker.stores.port import ObjectStore

EVERYTHING = Selection()
Advance: TypeAlias = Callable[[float], object]


@dataclass(frozen=True)
class Written:
    """What became of some data. `files` are committed objects nobody names yet; `rows` counts a snapshot's.

    `schema` is the dataset's after this data; where it differs from the spec's, the caller writes an `alter` record.
    `unchanged` and `stale` (older than what stands, so dropped) count rows of a feed.
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
        self._folder = PrivateFolder(settings.temp_folder)
        self._tally = Tally()
        self._database = Database(settings.memory_limit_bytes, self._folder.path / "spill")
        # Keys arrive no faster than one thread encodes rows: a second one would only pay for being a second one.
        self._keys = Database(settings.memory_limit_bytes // 2, self._folder.path / "keys", threads=1)
        self._fetcher = Fetcher(store, self._folder.path / "cache")

    def write_snapshot(self, spec: DatasetSpec, data: Intake, standing: Standing | None = None) -> Written:
        """The whole dataset as files of role `rows`: at least one, even for no rows.

        `standing`: the state it replaces. Where the dataset has an order, keys of it that `data` lacks become `tombstones`.
        Raises NullKey, DuplicateKey, SchemaConflict, BadData, Overloaded; with `standing` as `read`.
        """
        taken = accept(data, spec)
        with self._outbox() as outbox, self._key_check(spec, taken.columns) as check:
            watched = replace(taken, batches=check.watch(taken.batches))
            if spec.order and standing:
                rows = self._write_over(spec, standing, watched, outbox)
            else:
                rows = outbox.write(self._canonical(spec, "rows", taken.columns), watched.batches, even_empty=True)
            check.finish()
            return Written(outbox.commit(), taken.schema, rows=rows)

    def write_delta(self, spec: DatasetSpec, upserts: Intake | None, deletes: Intake | None) -> Written:
        """Changes as files of roles `upserts` and `deletes`; an empty side makes no file.

        A key stands once in both sides together. Raises as `write_snapshot`, and BadData for deletes without key or order.
        """
        sides, grown = changed_sides(spec, upserts, deletes)
        schema = grown or schema_of_spec(spec)
        counts = {"upserts": 0, "deletes": 0}
        with self._outbox() as outbox, self._key_check(spec, arrow_schema(schema)) as check:
            for role, taken in sides:
                counts[role] = outbox.write(self._canonical(spec, role, taken.columns), check.watch(taken.batches))
            check.finish()
            return Written(outbox.commit(), schema, **counts)

    def write_difference(self, spec: DatasetSpec, data: Intake, current: Sequence[Edge]) -> Written:
        """A full feed as the difference to what stands after the plan `current`: new and changed rows, and deletes of keys the
        feed lacks (with the order of the row they delete). Nothing changed: no files.

        Rows older than the row, or the delete, that stands are `stale` and dropped. Raises as `write_snapshot`.
        """
        with self._plan(spec, current) as plan, feed.opened(data, spec, self._folder.path, self._fetcher.plain) as taken:
            found = feed.compare(plan.session, spec, taken, plan.sources(taken.schema))
            results = [
                Result("upserts", found.upserts, taken.schema),
                Result("deletes", found.deletes, named_by_deletes(spec, taken.schema)),
            ]
            files = self._write(spec, plan.session, results)
        upserts, deletes = (sum(file.rows for file in files if file.role == role) for role in ("upserts", "deletes"))
        stale = found.arrived - upserts
        return Written(files, taken.schema, upserts=upserts, deletes=deletes, unchanged=found.unchanged, stale=stale)

    def write_merged(self, spec: DatasetSpec, standing: Standing) -> Written:
        """A fresh snapshot equal to the plan that stands: rows by key bucket, and the tombstones whose life is not over."""
        schema = schema_of_spec(spec)
        with self._plan(spec, standing.edges) as plan, self._outbox() as outbox:
            sources = plan.sources(schema)
            parts, columns = Partitions.of(standing.edges), arrow_schema(schema)
            stream = plan.session.stream(parts.sql(rows_result(spec, EVERYTHING, sources).sql, columns, spec.key))
            targets = parts.targets(self._canonical(spec, "rows", columns))
            rows = outbox.deal(targets, parts.dealt(stream, columns), even_empty=True)
            if spec.order:
                self._bury(spec, schema, Burial(plan.session, shape_of(spec, schema), sources, standing), outbox)
            return Written(outbox.commit(), schema, rows=rows)

    def read(self, spec: DatasetSpec, edges: Sequence[Edge], selection: Selection) -> pa.RecordBatchReader:
        """The rows that stand after a plan which starts with a snapshot, as a stream, in no order.

        Key and order columns are always among the columns. Raises Corrupt, NotFound, InvalidPredicate, Unavailable.
        """
        return self._reader(spec, edges, partial(rows_result, spec, selection))

    def write_file(
        self, spec: DatasetSpec, edges: Sequence[Edge], selection: Selection, path: Path, form: Format, advance: Advance
    ) -> int:
        """The rows of `read` as one file on this machine, which appears whole or not at all. Returns how many.

        `advance` is told the rows as they are written. Raises as `read`; Overloaded when the disk is full.
        """
        rows = 0
        with self._plan(spec, edges) as plan, appearing(path) as file, Hashed(file) as sink:
            result = rows_result(spec, selection, plan.sources(schema_of_spec(spec)))
            sql, columns = rendered(result.sql, result.schema, form)
            encoder = ENCODERS[form](sink, columns)
            for batch in cast(plan.session.stream(sql), columns):
                encoder.write(batch)
                rows += batch.num_rows
                advance(batch.num_rows)
            encoder.close()
        return rows

    def tombstones(self, spec: DatasetSpec, edges: Sequence[Edge], selection: Selection) -> pa.RecordBatchReader | None:
        """Key and order of what the rows of `read` lack, though their order is known; None where there are none.

        A replica keeps them for `tombstone_seconds`, so that a late, older row brings no key back.
        """
        if not spec.order or not (selection.where or any(file.role != "rows" for edge in edges for file in edge.files)):
            return None
        return self._reader(spec, edges, partial(guards_result, spec, selection))

    def changes(
        self, spec: DatasetSpec, edges: Sequence[Edge], selection: Selection
    ) -> tuple[pa.RecordBatchReader, pa.RecordBatchReader]:
        """Upserts and deletes of a delta plan, the last change per key. A row `where` does not select is a delete.

        Where the dataset has an order, some may be older than what is held: for sinks, which compare. `derive` gives what needs
        no comparing.
        """
        upserts = self._reader(spec, edges, partial(upserts_result, spec, selection))
        return upserts, self._reader(spec, edges, partial(deletes_result, spec, selection))

    def derive(
        self,
        spec: DatasetSpec,
        edges: Sequence[Edge],
        selection: Selection,
        format: Format,
        key_of: Callable[[str], str],
        held: Sequence[Edge] = (),
    ) -> Edge:
        """One edge in the format asked that does what the plan `edges` does, through the selection.

        A plan from a snapshot gives rows and (datasets with an order) tombstones, a delta plan upserts and deletes. `key_of`
        makes a fresh store key of a file extension. Raises as `read`.

        `held`: the plan from a snapshot to where a delta plan begins. With it only what stands after the merge is delivered:
        who has no notion of order may remove the deletes and write the upserts. Datasets with an order need it.
        """
        with self._plan(spec, [*held, *edges]) as plan:
            sources = plan.sources(schema_of_spec(spec), len(held))
            makers = (rows_result, guards_result) if edges[0].base is None else (upserts_result, deletes_result)
            results = [make(spec, selection, sources) for make in makers if spec.order or make is not guards_result]
            files = self._write(spec, plan.session, results, format, partial(key_of, format))
        return Edge(base=held[-1].version if held else edges[0].base, version=edges[-1].version, files=files)

    def write_settled(self, spec: DatasetSpec, snapshot: Edge, edges: Sequence[Edge]) -> tuple[File, ...]:
        """What of the changes in `edges` stands in `snapshot`, to whose version they lead: nothing late. Raises as `read`."""
        with self._plan(spec, [snapshot, *edges]) as plan:
            return self._write(spec, plan.session, settled_results(spec, plan.sources(schema_of_spec(spec), held=1)))

    def session(self, of: str) -> AbstractContextManager[Session]:
        """A cursor on this process' DuckDB, for work on what `read` gives. Errors name `of`."""
        return self._database.session(of)

    def verify(self, file: File) -> None:
        """Re-read an object. Raises Corrupt when its length or SHA-256 differ, NotFound."""
        self._fetcher.verify(file)

    def check_keys(self, spec: DatasetSpec, edge: Edge) -> None:
        """Whether each key stands once in all the edge's rows, upserts and deletes together. Raises DuplicateKey."""
        with self._plan(spec, [edge]) as plan:
            sources, key = plan.sources(schema_of_spec(spec)), listed(spec.key)
            relations = [*sources.rows, *(part.relation for part in sources.changes)]
            keys = " UNION ALL ".join(f"SELECT {key} FROM ({relation})" for relation in relations)
            if found := plan.session.rows(duplicates_sql(spec.key, f"({keys})")):
                raise duplicate_key(spec.key, found, str(spec.dataset))

    def compare_keys(self, spec: DatasetSpec, before: Sequence[Edge], after: Sequence[Edge]) -> tuple[int, int, int]:
        """Rows that stand after each of two plans from nothing, and how many keys of the first the second lacks."""
        keys = Selection(columns=spec.key)
        with self._plan(spec, before) as old, self._plan(spec, after) as new:
            one, other = (rows_result(spec, keys, plan.sources(schema_of_spec(spec))).sql for plan in (old, new))
            count = new.session.number
            gone = f"SELECT count(*) FROM ({one}) ANTI JOIN ({other}) USING ({listed(spec.key)})"
            return count(f"SELECT count(*) FROM ({one})"), count(f"SELECT count(*) FROM ({other})"), count(gone)

    def fetch(self, file: File) -> Path:
        """A verified local copy, to be opened at once: a later fetch may drop it. Raises Corrupt, NotFound, Unavailable."""
        return self._fetcher.fetch(file)

    def progress(self) -> tuple[int, int]:
        """Rows and bytes written since the engine was made; for any thread, while another writes."""
        return self._tally.rows, self._tally.bytes

    def verified_bytes(self) -> int:
        """Bytes read and checked since the engine was made, for a bar; for any thread."""
        return self._fetcher.verified_bytes

    def close(self) -> None:
        """End DuckDB and remove the private folder; idempotent."""
        self._database.close()
        self._keys.close()
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_over(self, spec: DatasetSpec, standing: Standing, taken: Accepted, outbox: Outbox) -> int:
        keys = pa.schema([taken.columns.field(name) for name in spec.key])
        with self._plan(spec, standing.edges) as plan, Kept(self._folder.path, keys) as kept:
            target = self._canonical(spec, "rows", taken.columns)
            rows = outbox.write(target, kept.watch(taken.batches), even_empty=True)
            sources, shape = plan.sources(taken.schema), shape_of(spec, taken.schema)
            arrived = f"SELECT {listed(spec.key)} FROM read_parquet({text_literal(str(kept.path))})"
            self._bury(spec, taken.schema, Burial(plan.session, shape, sources, standing, arrived), outbox)
        return rows

    def _bury(self, spec: DatasetSpec, schema: Schema, burial: Burial, outbox: Outbox) -> None:
        columns = arrow_schema(named_by_deletes(spec, schema))
        for since, sql in burial.run(spec.tombstone_seconds):
            target = replace(self._canonical(spec, "tombstones", columns), since=since)
            outbox.write(target, cast(burial.session.stream(f"SELECT {listed(columns.names)} FROM ({sql})"), columns))

    def _outbox(self) -> Outbox:
        return Outbox(self._store, self._settings.max_file_rows, self._tally)

    def _key_check(self, spec: DatasetSpec, columns: pa.Schema) -> KeyCheck:
        return KeyCheck(self._keys, spec.key, columns, str(spec.dataset))

    def _canonical(self, spec: DatasetSpec, role: Role, columns: pa.Schema) -> Target:
        return Target(role, columns, partial(data_key, spec.dataset), ENCODERS["parquet"])

    @contextmanager
    def _plan(self, spec: DatasetSpec, edges: Sequence[Edge]) -> Iterator[_Plan]:
        files = [file for edge in edges for file in edge.files if file.rows]
        with self._fetcher.held(files) as paths, self._database.session(str(spec.dataset)) as session:
            for file in files:
                if file.format == "arrow":
                    session.bind(bound_name([str(paths[file.key])]), arrow_dataset(paths[file.key]))
            yield _Plan(session, edges, paths)

    def query(
        self, spec: DatasetSpec, edges: Sequence[Edge], result_of: Callable[[Mapping[str, Path]], Result]
    ) -> pa.RecordBatchReader:
        """What one SELECT over the edges' files, given their paths by store key, answers, as a stream. Raises as `read`."""
        return self._stream(spec, edges, lambda plan: result_of(plan.paths))

    def _reader(self, spec: DatasetSpec, edges: Sequence[Edge], result_of: Callable[[Sources], Result]) -> pa.RecordBatchReader:
        """The result as a stream. Files are fetched and the query is checked before this returns."""
        return self._stream(spec, edges, lambda plan: result_of(plan.sources(schema_of_spec(spec))))

    def _stream(self, spec: DatasetSpec, edges: Sequence[Edge], result_of: Callable[[_Plan], Result]) -> pa.RecordBatchReader:
        def batches() -> Iterator[pa.Schema | pa.RecordBatch]:
            with self._plan(spec, edges) as plan:
                result = result_of(plan)
                columns = arrow_schema(result.schema)
                stream = cast(plan.session.stream(result.sql), columns)
                yield columns
                yield from stream

        running = batches()
        return pa.RecordBatchReader.from_batches(next(running), running)

    def _write(
        self, spec: DatasetSpec, session: Session, results: Sequence[Result], form: Format = "parquet",
        new_key: Callable[[], str] | None = None,
    ) -> tuple[File, ...]:  # fmt: skip
        encoder = ENCODERS[form]
        with self._outbox() as outbox:
            for result in results:
                sql, columns = rendered(result.sql, result.schema, form)
                target = Target(result.role, columns, new_key or partial(data_key, spec.dataset), encoder, form)
                outbox.write(target, cast(session.stream(sql), columns), even_empty=result.role == "rows")
            return outbox.commit()


@dataclass(frozen=True)
class _Plan:
    """The files of a plan, at hand: a session that can read them, and their paths by store key."""

    session: Session
    edges: Sequence[Edge]
    paths: Mapping[str, Path]

    def sources(self, schema: Schema, held: int = 0) -> Sources:
        return sources_of(schema, self.edges, self.paths, held)
