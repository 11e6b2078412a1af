"""Files of a plan as SQL relations in the dataset's columns and types, whatever schema each file was written with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from broker.columnar.formats import file_columns, scan_sql
from broker.columnar.merge import Part, Shape, Sources
from broker.columnar.sql import quoted
from broker.columnar.types import arrow_type, sql_type
from broker.errors import SchemaConflict
from broker.model.commit import Edge, File
from broker.model.dataset import DatasetSpec, Schema


@lru_cache(4096)
def cast_type(name: str) -> str:
    """A column's type as it may stand in SQL: never the caller's own text. Raises SchemaConflict."""
    return sql_type(arrow_type(name))


def schema_of_spec(spec: DatasetSpec) -> Schema:
    """The dataset's columns. Raises SchemaConflict when no version has fixed them yet."""
    if spec.columns is None:
        raise SchemaConflict("the dataset has no columns yet", of=str(spec.dataset), hint="Its first version fixes them")
    return spec.columns


def shape_of(spec: DatasetSpec, schema: Schema) -> Shape:
    return Shape(schema.names, spec.key, spec.order)


def sources_of(schema: Schema, edges: Sequence[Edge], paths: Mapping[str, Path]) -> Sources:
    """Relations of a plan's files. A plan that starts with a snapshot has at least one `rows` relation, if an empty one."""
    rows: list[str] = []
    guards: list[Part] = []
    changes: list[Part] = []
    for number, edge in enumerate(edges):
        rows += relations(schema, edge.of_role("rows"), paths)
        guards += [Part(number, True, text) for text in relations(schema, edge.of_role("tombstones"), paths)]
        changes += [Part(number, False, text) for text in relations(schema, edge.of_role("upserts"), paths)]
        changes += [Part(number, True, text) for text in relations(schema, edge.of_role("deletes"), paths)]
    if not rows and (not edges or edges[0].base is None):
        rows = [empty(schema)]
    return Sources(tuple(rows), tuple(guards), tuple(changes))


def relations(schema: Schema, files: Iterable[File], paths: Mapping[str, Path]) -> list[str]:
    """One SELECT of all columns per group of files that were written alike."""
    described = [(file.format, file_columns(paths[file.key], file.format), str(paths[file.key])) for file in files if file.rows]
    return [
        typed(schema, names, scan_sql([path for *_, path in group], form, schema, names))
        for (form, names), group in ((key, list(group)) for key, group in groupby(sorted(described), lambda item: item[:2]))
    ]


def typed(schema: Schema, present: Iterable[str], source: str) -> str:
    """A SELECT of all columns from `source`, cast to the dataset's types; those not `present` are NULL."""
    there = frozenset(present)
    columns = (
        f"CAST({quoted(column.name) if column.name in there else 'NULL'} AS {cast_type(column.type)}) AS {quoted(column.name)}"
        for column in schema.columns
    )
    return f"SELECT {', '.join(columns)} FROM {source}"


def empty(schema: Schema) -> str:
    return typed(schema, (), "(SELECT 1) WHERE false")
