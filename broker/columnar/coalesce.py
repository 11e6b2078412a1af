"""Changes of one log slot, coalesced: per key the one that stands, as the merge of edges would have it (columnar/merge.py).

Newest order wins, NULL being the lowest; equal orders: the later change. Without order columns the later change wins. A delete
is a change like a row. What a batch drops is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from broker.columnar.database import Database
from broker.columnar.intake import conformed, settled
from broker.columnar.sql import listed
from broker.columnar.types import arrow_schema
from broker.errors import BadData
from broker.model.dataset import DatasetSpec, Schema

PLACE: Final = "place"
"""A change's place among all changes of the batch, in commit order."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows of one kind in commit order: whole rows, or (`gone`) key and order of deletes."""

    gone: bool
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class Coalesced:
    """Each key once in both sides together. `schema` is the dataset's after these changes; `dropped` counts the others."""

    upserts: pa.Table | None
    deletes: pa.Table | None
    schema: Schema
    dropped: int = 0


def coalesce(spec: DatasetSpec, changes: Iterable[Changes], database: Database) -> Coalesced:
    """The changes that stand of those given in commit order. DuckDB is asked only where Arrow orders values otherwise.

    Raises SchemaConflict, NullKey, BadData: a change does not fit the dataset.
    """
    runs = _runs(changes)
    schema = _settled(spec, runs)
    columns = arrow_schema(schema)
    runs = [_conformed(spec, run, columns) for run in runs]
    stand = _standing(spec, runs, database)
    if stand is None:
        return Coalesced(_side(runs, gone=False), _side(runs, gone=True), schema)
    dropped = sum(run.rows.num_rows for run in runs) - len(stand)
    return Coalesced(_taken(runs, stand, gone=False), _taken(runs, stand, gone=True), schema, dropped)


# --- one schema


def _runs(changes: Iterable[Changes]) -> list[Changes]:
    """Neighbours of one kind and one schema become one table: many small blocks cost as much as one."""
    found: list[tuple[bool, list[pa.Table]]] = []
    for change in changes:
        if not change.rows.num_rows:
            continue
        if found and found[-1][0] == change.gone and found[-1][1][0].schema == change.rows.schema:
            found[-1][1].append(change.rows)
        else:
            found.append((change.gone, [change.rows]))
    return [Changes(gone, pa.concat_tables(tables).combine_chunks()) for gone, tables in found]


def _settled(spec: DatasetSpec, runs: Sequence[Changes]) -> Schema:
    """The dataset's schema after all of them. Deletes say nothing of the columns they do not name."""
    known = spec
    for run in [run for run in runs if not run.gone] + [run for run in runs if run.gone]:
        known = known.model_copy(update={"columns": settled(known, run.rows.schema, whole=not run.gone)})
    if known.columns is None:
        raise BadData("no changes, so no columns are known", of=str(spec.dataset))
    return known.columns


def _conformed(spec: DatasetSpec, run: Changes, columns: pa.Schema) -> Changes:
    wanted = pa.schema([columns.field(name) for name in (*spec.key, *spec.order)]) if run.gone else columns
    batches = list(conformed(run.rows.to_reader(), wanted, spec.key))
    return replace(run, rows=pa.Table.from_batches(batches, wanted))


# --- who stands


def _standing(spec: DatasetSpec, runs: Sequence[Changes], database: Database) -> pa.Array | None:
    """Places of the changes that stand, ascending; None: all of them."""
    known = (*spec.key, *spec.order)
    table = pa.concat_tables([run.rows.select(known) for run in runs]).combine_chunks()
    names = [f"c{number}" for number in range(len(known))]
    places = pa.array(range(0), pa.int64()) if not table.num_rows else _places(table.num_rows)
    table = table.rename_columns(names).append_column(PLACE, places)
    key, order = names[: len(spec.key)], names[len(spec.key) :]
    if not all(_plain(table.schema.field(name).type) for name in names):
        return _by_duckdb(table, key, order, database, str(spec.dataset))
    return by_arrow(table, key, order)


def _places(count: int) -> pa.Array:
    return pc.subtract(pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.int64()), count)), 1)


def _plain(kind: pa.DataType) -> bool:
    """Arrow tells -0.0 from 0.0, puts NaN elsewhere, and orders no nested values."""
    return not (pa.types.is_floating(kind) or pa.types.is_nested(kind))


def by_arrow(table: pa.Table, key: Sequence[str], order: Sequence[str]) -> pa.Array | None:
    """For types that Arrow compares as SQL does."""
    if len(key) == 1 and pc.count_distinct(table[key[0]], mode="all").as_py() == table.num_rows:
        return None  # nearly always so, at a fraction of the cost of groups
    if order and not _ascending(table, order):
        ranking = [(name, "ascending") for name in (*order, PLACE)]
        ranked = pc.sort_indices(table, sort_keys=ranking, null_placement="at_start").cast(pa.int64())
        last = _last(table.select(key).take(ranked).append_column(PLACE, _places(table.num_rows)), key)
        return None if last is None else _sorted(ranked.take(last))
    last = _last(table, key)
    return None if last is None else _sorted(last)


def _ascending(table: pa.Table, order: Sequence[str]) -> bool:
    """Whether changes came in their order already, as from one source they do."""
    column = table[order[0]]
    if len(order) > 1 or column.null_count or table.num_rows < 2:
        return len(order) <= 1 and not column.null_count
    return bool(pc.all(pc.greater_equal(column.slice(1), column.slice(0, len(column) - 1))).as_py())


def _last(table: pa.Table, key: Sequence[str]) -> pa.ChunkedArray | None:
    """The greatest place per key; None: each key stands once."""
    groups = table.group_by(list(key), use_threads=False).aggregate([(PLACE, "max")])
    return None if groups.num_rows == table.num_rows else groups[f"{PLACE}_max"]


def _sorted(places: pa.ChunkedArray | pa.Array) -> pa.Array:
    flat = places.combine_chunks() if isinstance(places, pa.ChunkedArray) else places
    return flat.take(pc.sort_indices(flat))


def _by_duckdb(table: pa.Table, key: Sequence[str], order: Sequence[str], database: Database, of: str) -> pa.Array:
    newest = ", ".join([*(f"{name} DESC NULLS LAST" for name in order), f"{PLACE} DESC"])
    ranked = f"row_number() OVER (PARTITION BY {listed(key)} ORDER BY {newest})"
    with database.session(of) as session:
        session.bind("changes", table)
        batches = list(session.stream(f"SELECT {PLACE} FROM changes QUALIFY {ranked} = 1 ORDER BY {PLACE}"))
    return pa.Table.from_batches(batches, pa.schema([(PLACE, pa.int64())]))[PLACE].combine_chunks()


# --- the two sides


def _of_kind(runs: Sequence[Changes], gone: bool) -> Iterator[pa.Table]:
    return (run.rows for run in runs if run.gone == gone)


def _side(runs: Sequence[Changes], gone: bool) -> pa.Table | None:
    tables = list(_of_kind(runs, gone))
    return pa.concat_tables(tables) if tables else None


def _taken(runs: Sequence[Changes], stand: pa.Array, gone: bool) -> pa.Table | None:
    """The rows of one kind that stand, run by run: places are ascending, so each run's lie together."""
    tables, begin = list[pa.Table](), 0
    for run in runs:
        end = begin + run.rows.num_rows
        if run.gone == gone:
            mine = stand.filter(pc.and_(pc.greater_equal(stand, begin), pc.less(stand, end)))
            if len(mine):
                tables.append(run.rows.take(pc.subtract(mine, begin)))
        begin = end
    return pa.concat_tables(tables) if tables else None
