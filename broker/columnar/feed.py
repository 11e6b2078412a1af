"""A full feed compared with what stands: where it lies while it is compared, and the run of the comparison's steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.columnar.database import Session
from broker.columnar.difference import Difference
from broker.columnar.intake import Intake, accept, settled
from broker.columnar.intake import opened as opened_intake
from broker.columnar.kept import Kept
from broker.columnar.keys import duplicate_key, duplicates_sql
from broker.columnar.merge import Sources, rows_sql, tombstones_sql
from broker.columnar.results import shape_of
from broker.columnar.scan import typed
from broker.columnar.sql import listed, text_literal
from broker.errors import BadData, NullKey
from broker.model.dataset import DatasetSpec, Schema


@dataclass(frozen=True)
class Feed:
    """`relation` gives the feed's rows in all columns of `schema`, the dataset's after this data; it can be read many times."""

    relation: str
    schema: Schema


@dataclass(frozen=True)
class Found:
    """SELECTs of what changed, valid in the session that compared; `arrived`: rows of the feed that equal none that stands."""

    upserts: str
    deletes: str
    arrived: int
    unchanged: int


@contextmanager
def opened(data: Intake, spec: DatasetSpec, folder: Path, plain: Callable[[Path], Path]) -> Iterator[Feed]:
    """A Parquet file is read where it lies; a stream is written to a file in `folder` first, since it must be read twice.

    `plain` gives a name of a path that is no pattern. Raises as `intake.accept`; the data's own exceptions pass through.
    """
    if isinstance(data, str | Path):
        source = opened_intake(data, spec.columns).schema
        yield _in_file(plain(Path(data)), source.names, settled(spec, source))
        return
    taken = accept(data, spec)
    with Kept(folder, taken.columns) as kept:
        for _ in kept.watch(taken.batches):
            pass
        yield _in_file(kept.path, taken.schema.names, taken.schema)


def _in_file(path: Path, names: list[str] | tuple[str, ...], schema: Schema) -> Feed:
    return Feed(typed(schema, names, f"read_parquet({text_literal(str(path))})"), schema)


def compare(session: Session, spec: DatasetSpec, feed: Feed, sources: Sources) -> Found:
    """Run the steps of the comparison. Raises NullKey, BadData (null in a column that has none), DuplicateKey."""
    shape = shape_of(spec, feed.schema)
    guards = None
    if spec.order and (sources.guards or sources.changes):
        guards = f"SELECT {listed(shape.known)} FROM ({tombstones_sql(sources, shape)})"
    steps = Difference(feed.schema, shape, feed.relation, rows_sql(sources, shape), guards)
    session.run(steps.unmatched)
    rows, standing, arrived, lost = (int(count) for count in session.rows(steps.counts)[0])
    session.run(steps.arrived)
    _check_nulls(session, spec, feed.schema, steps)
    repeated = feed.relation if rows - arrived != standing - lost else "arrived"
    _check_keys(session, spec, f"({repeated})" if repeated != "arrived" else repeated)
    session.run(steps.held)
    _check_keys(session, spec, steps.repeated)
    return Found(steps.upserts, steps.deletes, arrived, rows - arrived)


def _check_nulls(session: Session, spec: DatasetSpec, schema: Schema, steps: Difference) -> None:
    names = tuple(column.name for column in schema.columns if column.name in spec.key or not column.nullable)
    for name, nulls in zip(names, session.rows(steps.nulls(names))[0], strict=True):
        if nulls and name in spec.key:
            raise NullKey("a key is null", of=name, why=f"in {nulls} row(s)", hint="Every row needs its whole key")
        if nulls:
            raise BadData("a value is null", of=name, why=f"in {nulls} row(s); the dataset says the column is never null")


def _check_keys(session: Session, spec: DatasetSpec, relation: str) -> None:
    if found := session.rows(duplicates_sql(spec.key, relation)):
        raise duplicate_key(spec.key, found, str(spec.dataset))
