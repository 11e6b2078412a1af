"""What a plan's sources give through a selection: one SELECT and its columns per role. No I/O."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from broker.columnar.merge import Shape, Sources, deletes_sql, guards_sql, rows_sql, upserts_sql
from broker.columnar.sql import listed, quoted
from broker.errors import SchemaConflict
from broker.model.commit import Role
from broker.model.dataset import DatasetSpec, Schema
from broker.model.request import Selection


@dataclass(frozen=True)
class Result:
    """A SELECT that gives the columns of `schema`, destined for files of one role."""

    role: Role
    sql: str
    schema: Schema


def rows_result(spec: DatasetSpec, selection: Selection, sources: Sources) -> Result:
    """The rows that stand and that `where` selects. Raises SchemaConflict (no such column), InvalidPredicate."""
    schema = schema_of_spec(spec)
    columns, where = selected(spec, schema, selection), condition(schema, selection)
    ending = f" WHERE {where}" if where else ""
    sql = f"SELECT {listed(columns.names)} FROM ({rows_sql(sources, shape_of(spec, schema))}){ending}"
    return Result("rows", sql, columns)


def guards_result(spec: DatasetSpec, selection: Selection, sources: Sources) -> Result:
    """Tombstones of a snapshot through the selection; only for datasets with an order."""
    schema = schema_of_spec(spec)
    columns = named_by_deletes(spec, schema)
    sql = guards_sql(sources, shape_of(spec, schema), condition(schema, selection))
    return Result("tombstones", f"SELECT {listed(columns.names)} FROM ({sql})", columns)


def upserts_result(spec: DatasetSpec, selection: Selection, sources: Sources) -> Result:
    schema = schema_of_spec(spec)
    columns = selected(spec, schema, selection)
    sql = upserts_sql(sources, shape_of(spec, schema), condition(schema, selection))
    return Result("upserts", f"SELECT {listed(columns.names)} FROM ({sql})", columns)


def deletes_result(spec: DatasetSpec, selection: Selection, sources: Sources) -> Result:
    """Deletes, and rows that `where` does not select, of a delta plan."""
    schema = schema_of_spec(spec)
    columns = named_by_deletes(spec, schema)
    sql = deletes_sql(sources, shape_of(spec, schema), condition(schema, selection))
    return Result("deletes", f"SELECT {listed(columns.names)} FROM ({sql})", columns)


def settled_results(spec: DatasetSpec, sources: Sources) -> list[Result]:
    """What of the changes stands in the snapshot that is held: no row of a key it lacks, though its tombstone may be gone.

    By key, as what comes in often is: in any other order rows may take twice the bytes.
    """
    everything, key = Selection(), listed(spec.key)
    upserts, rows = upserts_result(spec, everything, sources), " UNION ALL ".join(sources.rows)
    standing = f"SELECT * FROM ({upserts.sql}) SEMI JOIN (SELECT {key} FROM ({rows})) USING ({key}) ORDER BY {key}"
    return [replace(upserts, sql=standing), deletes_result(spec, everything, sources)]


def schema_of_spec(spec: DatasetSpec) -> Schema:
    """The dataset's columns. Raises SchemaConflict when no version has fixed them yet."""
    if spec.columns is None:
        raise SchemaConflict("the dataset has no columns yet", of=str(spec.dataset), hint="Its first version fixes them")
    return spec.columns


def shape_of(spec: DatasetSpec, schema: Schema) -> Shape:
    return Shape(schema.names, spec.key, spec.order)


def selected(spec: DatasetSpec, schema: Schema, selection: Selection) -> Schema:
    """The columns a selection delivers, in the dataset's order. Raises SchemaConflict for one it does not have."""
    if selection.columns is None:
        return schema
    if unknown := [name for name in selection.columns if name not in schema.names]:
        raise SchemaConflict("no such column", of=", ".join(unknown), why=f"the dataset has {', '.join(schema.names)}")
    return _only(schema, {*selection.columns, *spec.key, *spec.order})


def named_by_deletes(spec: DatasetSpec, schema: Schema) -> Schema:
    """What a delete names: key and order."""
    return _only(schema, {*spec.key, *spec.order})


def _only(schema: Schema, names: Collection[str]) -> Schema:
    return Schema(columns=tuple(column for column in schema.columns if column.name in names))


def condition(schema: Schema, selection: Selection) -> str | None:
    """The selection's `where` as SQL. Raises InvalidPredicate."""
    if not selection.where:
        return None
    from broker.model.predicate_parser import parse  # noqa: PLC0415  # sqlglot: who does not filter does without

    return parse(selection.where, schema.types).sql(quoted)
