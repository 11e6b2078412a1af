"""Files of a plan as SQL relations in the dataset's columns and types, whatever schema each was written with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from broker.columnar.formats import Columns, file_columns, scan_sql
from broker.columnar.merge import Part, Sources, own_name
from broker.columnar.sql import quoted
from broker.columnar.types import cast_type
from broker.model.commit import Edge, File, Role
from broker.model.dataset import Schema
from broker.model.request import Format

FILE_INDEX: Final = "file_index"
"""DuckDB's virtual column: the place of a row's file in the list that is read. A column of that name hides it."""


def sources_of(schema: Schema, edges: Sequence[Edge], paths: Mapping[str, Path], held: int = 0) -> Sources:
    """Relations of a plan's files. A snapshot plan has at least one `rows` relation, a delta plan one change, if empty ones.

    `held`: so many of the edges only lead to where a delta plan begins.
    """

    def parts(role: Role) -> list[str]:
        return relations(schema, [(number, file) for number, edge in enumerate(edges) for file in edge.of_role(role)], paths)

    rows, nothing = parts("rows"), typed(schema, (), "(SELECT 1) WHERE false", "0")
    dead = [(-number, file) for number, file in enumerate(guards_of(edges))]
    guards = [Part(True, text) for text in relations(schema, dead, paths)]
    changes = [*(Part(False, text) for text in parts("upserts")), *(Part(True, text) for text in parts("deletes"))]
    if not edges or edges[0].base is None:
        rows = rows or [nothing]
    if held or (edges and edges[0].base is not None):
        changes = changes or [Part(False, nothing)]
    return Sources(tuple(rows), tuple(guards), tuple(changes), held)


def guards_of(edges: Sequence[Edge]) -> tuple[File, ...]:
    """The tombstones a plan starts with."""
    return edges[0].of_role("tombstones") if edges else ()


def relations(schema: Schema, files: Iterable[tuple[int, File]], paths: Mapping[str, Path]) -> list[str]:
    """One SELECT of all columns and the edge per group of files written alike: planning a query costs time per relation.

    Alike in types, too: of several Parquet files DuckDB takes the first one's types and casts the others, were they wider.
    """
    hidden = any(name.casefold() == FILE_INDEX for name in schema.names)
    groups: dict[tuple[Format, Columns, str], list[tuple[int, str]]] = {}
    for edge, file in files:
        if file.rows:
            path = paths[file.key]
            alone = file.key if file.format == "arrow" or hidden else ""  # a session knows Arrow files one by one
            groups.setdefault((file.format, file_columns(path, file.format), alone), []).append((edge, str(path)))
    return [
        typed(schema, names, scan_sql([path for _, path in group], form, schema, names), _edge_sql([edge for edge, _ in group]))
        for (form, columns, _), group in groups.items()
        for names in [[name for name, _ in columns]]
    ]


def _edge_sql(edges: list[int]) -> str:
    return str(edges[0]) if len(set(edges)) == 1 else f"({edges})[CAST({FILE_INDEX} AS BIGINT) + 1]"


def typed(schema: Schema, present: Iterable[str], source: str, edge: str = "0") -> str:
    """A SELECT of all columns from `source`, cast to the dataset's types, those not `present` NULL; and of the edge."""
    there = frozenset(present)
    columns = (
        f"CAST({quoted(column.name) if column.name in there else 'NULL'} AS {cast_type(column.type)}) AS {quoted(column.name)}"
        for column in schema.columns
    )
    return f"SELECT {', '.join(columns)}, {edge} AS {quoted(own_name(schema.names, 'edge'))} FROM {source}"
