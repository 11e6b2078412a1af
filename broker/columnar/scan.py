"""Files of a plan as SQL relations in the dataset's columns and types, whatever schema each file was written with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from broker.columnar.formats import file_columns, scan_sql
from broker.columnar.merge import Part, Sources
from broker.columnar.sql import quoted
from broker.columnar.types import cast_type
from broker.model.commit import Edge, File
from broker.model.dataset import Schema
from broker.model.request import Format


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
    groups: dict[tuple[Format, tuple[str, ...], str], list[str]] = {}
    for file in files:
        if file.rows:
            path = paths[file.key]
            alone = str(path) if file.format == "arrow" else ""  # a session knows Arrow files one by one
            groups.setdefault((file.format, file_columns(path, file.format), alone), []).append(str(path))
    return [typed(schema, names, scan_sql(group, form, schema, names)) for (form, names, _), group in groups.items()]


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
