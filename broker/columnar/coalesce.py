"""Changes of one log slot, coalesced: per key the one that stands, as the merge of edges would have it (columnar/merge.py).

Newest order wins, NULL being the lowest; equal orders: the later change. Without order columns the later change wins. A delete
is a change like a row. What a batch drops is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from broker.columnar.database import Database
from broker.columnar.intake import conformed, settled
from broker.columnar.sql import listed, quoted
from broker.columnar.types import arrow_schema
from broker.errors import BadData
from broker.model.dataset import DatasetSpec, Schema

LARGE_ROWS: Final = 4_096
"""Of one chunk, on average: smaller ones cost more one by one than put together."""
FEW_ROWS: Final = 64
"""Of a batch: setting up Arrow's kernels takes longer than comparing so many in Python."""
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
    groups = _grouped(changes)
    schema = _settled(spec, groups)
    sides = list(_sides(spec, groups, arrow_schema(schema)))
    stand = _standing(spec, sides, database) if sum(side.rows.num_rows for side in sides) > 1 else None
    rows = {side.gone: side.rows if stand is None else side.of(stand) for side in sides}
    dropped = 0 if stand is None else sum(side.rows.num_rows for side in sides) - len(stand)
    return Coalesced(rows.get(False), rows.get(True), schema, dropped)


# --- one schema


@dataclass(slots=True)
class _Group:
    """Changes of one kind that came in one schema, and the runs of places they have among all."""

    gone: bool
    tables: list[pa.Table] = field(default_factory=list)
    places: list[range] = field(default_factory=list)

    def add(self, rows: pa.Table, begin: int) -> None:
        end = begin + rows.num_rows
        if self.places and self.places[-1].stop == begin:
            begin = self.places.pop().start
        self.places.append(range(begin, end))
        self.tables.append(rows)

    @property
    def schema(self) -> pa.Schema:
        return self.tables[0].schema


@dataclass(frozen=True, slots=True)
class _Side:
    """All changes of one kind, and the runs of places they have among the changes of both."""

    gone: bool
    rows: pa.Table
    ranges: Sequence[Sequence[range]]
    straight: bool
    """Whether each row's place is its index, as where all changes came alike."""

    @property
    def places(self) -> pa.Array:
        """The place of each row."""
        return pa.concat_arrays([_numbered(ranges) for ranges in self.ranges])

    def of(self, stand: pa.Array) -> pa.Table | None:
        """The rows that stand, if any do."""
        rows = self.rows.take(stand) if self.straight else self.rows.filter(pc.is_in(self.places, value_set=stand))
        return rows if rows.num_rows else None


def _grouped(changes: Iterable[Changes]) -> list[_Group]:
    """Many small blocks cost as much as one: what came alike is handled together."""
    groups, begin = dict[tuple[bool, pa.Schema], _Group](), 0
    for change in changes:
        groups.setdefault((change.gone, change.rows.schema), _Group(change.gone)).add(change.rows, begin)
        begin += change.rows.num_rows
    return list(groups.values())


def _settled(spec: DatasetSpec, groups: Sequence[_Group]) -> Schema:
    """The dataset's schema after all of them. Deletes say nothing of the columns they do not name, so they come last."""
    known = spec
    for group in sorted(groups, key=lambda group: group.gone):
        columns = settled(known, group.schema, whole=not group.gone)
        known = known if columns is known.columns else known.model_copy(update={"columns": columns})
    if known.columns is None:
        raise BadData("no changes, so no columns are known", of=str(spec.dataset))
    return known.columns


def _sides(spec: DatasetSpec, groups: Sequence[_Group], columns: pa.Schema) -> Iterator[_Side]:
    """Upserts and deletes in the dataset's types, where there are any."""
    known = pa.schema([columns.field(name) for name in (*spec.key, *spec.order)])
    for gone, wanted in ((False, columns), (True, known)):
        mine = [group for group in groups if group.gone == gone]
        if mine:
            tables = [_conformed(pa.concat_tables(group.tables), wanted, spec) for group in mine]
            yield _Side(gone, pa.concat_tables(tables), [group.places for group in mine], len(groups) == 1)


def _conformed(rows: pa.Table, wanted: pa.Schema, spec: DatasetSpec) -> pa.Table:
    """Large blocks stay apart: where each key stands once, nothing need be copied."""
    if rows.num_rows == 1 and rows.schema == wanted and not any(column.null_count for column in rows.columns):
        return rows  # the only change of a quiet dataset
    batches = rows if rows.num_rows >= LARGE_ROWS * rows.column(0).num_chunks else rows.combine_chunks()
    return pa.Table.from_batches(conformed(batches.to_reader(), wanted, spec.key), wanted)


def _numbered(places: Sequence[range]) -> pa.Array:
    if len(places) == 1:
        return _counted(places[0].start, len(places[0]))
    return pa.array(chain.from_iterable(places), pa.int64())


def _counted(begin: int, count: int) -> pa.Array:
    """begin, begin + 1, ..."""
    return pc.add(pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.int64()), count)), begin - 1)


# --- who stands


def _standing(spec: DatasetSpec, sides: Sequence[_Side], database: Database) -> pa.Array | None:
    """Places of the changes that stand, ascending; None: all of them."""
    kinds = [side.rows.schema.field(name).type for side in sides for name in (*spec.key, *spec.order)]
    if sum(side.rows.num_rows for side in sides) <= FEW_ROWS and all(_comparable(kind) for kind in kinds):
        return by_python(spec, sides)
    names = [f"c{number}" for number in range(len(spec.key) + len(spec.order))]
    known = [side.rows.select((*spec.key, *spec.order)).rename_columns(names) for side in sides]
    table = pa.concat_tables(known).append_column(PLACE, pa.concat_arrays([side.places for side in sides]))
    key, order = names[: len(spec.key)], names[len(spec.key) :]
    plain = not any(pa.types.is_floating(kind) or pa.types.is_nested(kind) for kind in table.schema.types)
    stand = by_arrow(table, key, order) if plain else by_duckdb(table, key, order, database, str(spec.dataset))
    return None if stand is None else stand.take(pc.sort_indices(stand))


def _comparable(kind: pa.DataType) -> bool:
    """Whether Python compares its values as Arrow does, once those of time are numbers."""
    tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_binary, pa.types.is_boolean, pa.types.is_temporal)
    return any(test(kind) for test in tests)


def by_python(spec: DatasetSpec, sides: Sequence[_Side]) -> pa.Array | None:
    """Places of the last per key, ascending; None: each key stands once. For few changes of types that are `_comparable`."""
    last, count = dict[tuple[Any, ...], tuple[Any, ...]](), 0
    for side in sides:
        keys, orders = ([_values(side.rows[name]) for name in names] for names in (spec.key, spec.order))
        places = chain.from_iterable(chain.from_iterable(side.ranges))
        for index, place in enumerate(places):
            key = tuple([column[index] for column in keys])
            rank = (*[(column[index] is not None, column[index]) for column in orders], place)
            last[key] = max(last.get(key, rank), rank)
            count += 1
    return None if len(last) == count else pa.array(sorted(rank[-1] for rank in last.values()), pa.int64())


def _values(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())  # compared by bytes, whatever they are
    values: list[Any] = column.to_pylist()
    return values


def by_arrow(table: pa.Table, key: Sequence[str], order: Sequence[str]) -> pa.Array | None:
    """Places of the last per key; None: each key stands once. For types that Arrow compares as SQL does.

    Those are neither floating (Arrow tells -0.0 from 0.0 and puts NaN elsewhere) nor nested (Arrow does not order them).
    """
    if not order or _ascending(table, order):
        return _last(table, key, PLACE)
    ranked = table.take(_ranking(table, order)).append_column("rank", _counted(0, table.num_rows))
    ranks = _last(ranked, key, "rank")
    return None if ranks is None else ranked[PLACE].take(ranks).combine_chunks()


def _ranking(table: pa.Table, order: Sequence[str]) -> pa.Array:
    """Rows from the oldest to the newest."""
    return pc.sort_indices(table, sort_keys=[(name, "ascending", "at_start") for name in (*order, PLACE)])


def _ascending(table: pa.Table, order: Sequence[str]) -> bool:
    """Whether changes came in their order already, as from one source they do."""
    for name in (order[0], PLACE):
        column = table[name]
        if column.null_count or not pc.all(pc.greater_equal(column.slice(1), column.slice(0, max(0, len(column) - 1)))).as_py():
            return False
    return len(order) == 1


def _last(table: pa.Table, key: Sequence[str], by: str) -> pa.Array | None:
    """The greatest `by` per key; None: each key stands once."""
    groups = table.group_by(list(key), use_threads=False).aggregate([(by, "max")])
    return None if groups.num_rows == table.num_rows else groups[f"{by}_max"].combine_chunks()


def by_duckdb(table: pa.Table, key: Sequence[str], order: Sequence[str], database: Database, of: str) -> pa.Array:
    """Places of the last per key, whatever its type."""
    newest = ", ".join([*(f"{quoted(name)} DESC NULLS LAST" for name in order), f"{PLACE} DESC"])
    ranked = f"row_number() OVER (PARTITION BY {listed(key)} ORDER BY {newest})"
    with database.session(of) as session:
        session.bind("changes", table)
        batches = list(session.stream(f"SELECT {PLACE} FROM changes QUALIFY {ranked} = 1"))
    return pa.Table.from_batches(batches, pa.schema([(PLACE, pa.int64())]))[PLACE].combine_chunks()
