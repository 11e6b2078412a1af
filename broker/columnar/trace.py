"""Questions about what was: what differs between two plans, and which files hold a key. As SQL text; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from broker.columnar.digest import STEADY, bucket_sql
from broker.columnar.merge import Shape, rows_sql
from broker.columnar.results import Result, schema_of_spec, shape_of
from broker.columnar.scan import relations, sources_of
from broker.columnar.sql import listed, quoted, text_literal
from broker.columnar.types import cast_type
from broker.errors import Invalid
from broker.model.commit import Edge, File, Role
from broker.model.dataset import Column, DatasetSpec, Schema

Paths = Mapping[str, Path]
CHANGES: Final = ("added", "changed", "removed")
ROLES: Final[tuple[Role, ...]] = ("rows", "upserts", "deletes", "tombstones")
GONE: Final[tuple[Role, ...]] = ("deletes", "tombstones")


def difference_result(spec: DatasetSpec, one: Sequence[Edge], other: Sequence[Edge], paths: Paths) -> Result:
    """`change`, `before`, `after` (whole rows) for every key whose row differs after the plans `one` and `other`.

    Where `other` goes on from `one`, only keys that the edges behind it touch are compared.
    """
    schema = schema_of_spec(spec)
    shape, behind = shape_of(spec, schema), other[len(one) :] if other[: len(one)] == one else None
    moved = _touched(spec, schema, behind, paths)
    only = f" SEMI JOIN moved USING ({listed(spec.key)})" if moved else ""
    sides = [f"SELECT {listed(schema.names)} FROM ({_standing(schema, shape, edges, paths)}){only}" for edges in (one, other)]
    same = " AND ".join(f"a.{quoted(name)} = b.{quoted(name)}" for name in spec.key)
    values = " OR ".join(f"a.{quoted(name)} IS DISTINCT FROM b.{quoted(name)}" for name in schema.names)
    first = quoted(spec.key[0])
    sql = (
        f"WITH {moved} a AS ({sides[0]}), b AS ({sides[1]}) SELECT CASE WHEN a.{first} IS NULL THEN 'added' "
        f"WHEN b.{first} IS NULL THEN 'removed' ELSE 'changed' END AS change, {_whole(schema, 'a', first)} AS before, "
        f"{_whole(schema, 'b', first)} AS after FROM a FULL JOIN b ON {same} WHERE {values}"
    )
    row = "STRUCT({})".format(", ".join(f"{quoted(column.name)} {column.type}" for column in schema.columns))
    answer = (Column(name="change", type="VARCHAR"), Column(name="before", type=row), Column(name="after", type=row))
    return Result("rows", sql, Schema(columns=answer))


def _standing(schema: Schema, shape: Shape, edges: Sequence[Edge], paths: Paths) -> str:
    return rows_sql(sources_of(schema, edges, paths), shape)


def _touched(spec: DatasetSpec, schema: Schema, behind: Sequence[Edge] | None, paths: Paths) -> str:
    if behind is None:
        return ""
    sources = sources_of(schema, behind, paths) if behind else None
    texts = [f"SELECT {listed(spec.key)} FROM ({part.relation})" for part in sources.changes] if sources else []
    return f"moved AS (SELECT DISTINCT * FROM ({' UNION ALL '.join(texts)}))," if texts else ""


def _whole(schema: Schema, side: str, first: str) -> str:
    fields = ", ".join(f"{quoted(name)} := {side}.{quoted(name)}" for name in schema.names)
    return f"CASE WHEN {side}.{first} IS NOT NULL THEN struct_pack({fields}) END"


def entries_result(spec: DatasetSpec, files: Sequence[tuple[int, File]], key: Sequence[str], paths: Paths) -> Result:
    """Every entry of one key in numbered files: `number`, `gone`, `rank` (by order: the newest is highest), `text` and `row`.

    Entries of equal `text` are equal rows. Raises BadData, when read, for a text that is no value of its key column.
    """
    schema = schema_of_spec(spec)
    shape, where = shape_of(spec, schema), holds_sql(spec, schema, key)
    found = [
        f"SELECT {listed(schema.names)}, {shape.own('edge')}, {str(role in GONE).lower()} AS {shape.own('gone')} "
        f"FROM ({relation}) WHERE {where}"
        for role in ROLES
        for relation in relations(schema, [(number, file) for number, file in files if file.role == role], paths)
    ]
    whole = "struct_pack({})".format(", ".join(f"{quoted(name)} := {quoted(name)}" for name in schema.names))
    newest = ", ".join(f"{quoted(name)} NULLS FIRST" for name in spec.order)
    rank = f"dense_rank() OVER (ORDER BY {newest})" if newest else "0"
    entries = " UNION ALL ".join(found) or _nothing(schema, shape)
    sql = (
        f"SELECT CAST({shape.own('edge')} AS BIGINT) AS number, {shape.own('gone')} AS gone, CAST({rank} AS BIGINT) AS rank, "
        f"CAST(to_json({whole}) AS VARCHAR) AS text, {whole} AS row FROM ({entries})"
    )
    row = "STRUCT({})".format(", ".join(f"{quoted(column.name)} {column.type}" for column in schema.columns))
    types = {"number": "BIGINT", "gone": "BOOLEAN", "rank": "BIGINT", "text": "VARCHAR", "row": row}
    return Result("rows", sql, Schema(columns=tuple(Column(name=name, type=kind) for name, kind in types.items())))


def _nothing(schema: Schema, shape: Shape) -> str:
    columns = ", ".join(f"CAST(NULL AS {cast_type(column.type)}) AS {quoted(column.name)}" for column in schema.columns)
    return f"SELECT {columns}, 0 AS {shape.own('edge')}, false AS {shape.own('gone')} WHERE false"


def holds_sql(spec: DatasetSpec, schema: Schema, key: Sequence[str]) -> str:
    """Condition: the row has this key, given as one text for each key column. Raises Invalid for another number of them."""
    if len(key) != len(spec.key):
        raise Invalid(
            "not a key of this dataset", of=spec.dataset, why=f"{len(key)} value(s) for {', '.join(spec.key)}",
            hint="Give one value for each key column, in their order",
        )  # fmt: skip
    types = schema.types
    values = (
        f"{quoted(name)} = CAST({text_literal(text)} AS {cast_type(types[name])})"
        for name, text in zip(spec.key, key, strict=True)
    )
    return " AND ".join(values)


def key_result(spec: DatasetSpec, key: Sequence[str]) -> Result:
    """One row: the key in its columns' types. Asked for first, as a filter may never get to see that a text is no value."""
    schema = schema_of_spec(spec)
    where = holds_sql(spec, schema, key)
    columns = tuple(column for name in spec.key for column in schema.columns if column.name == name)
    values = (
        f"CAST({text_literal(text)} AS {cast_type(c.type)}) AS {quoted(c.name)}" for c, text in zip(columns, key, strict=True)
    )
    return Result("rows", f"SELECT * FROM (SELECT {', '.join(values)}) WHERE {where}", Schema(columns=columns))


def bucket_result(spec: DatasetSpec, key: Sequence[str]) -> Result:
    """One number: the key's bucket in every file of this session; NULL where it depends on the types they were written in."""
    types = schema_of_spec(spec).types
    bucket = bucket_sql(spec.key) if STEADY.issuperset(types[name] for name in spec.key) else "NULL"
    sql = f"SELECT CAST({bucket} AS INTEGER) AS bucket FROM ({key_result(spec, key).sql})"
    return Result("rows", sql, Schema(columns=(Column(name="bucket", type="INTEGER"),)))


def without_sql(spec: DatasetSpec, names: Sequence[str], source: str, key: Sequence[str]) -> str:
    """A relation's rows but for one key. Raises as `holds_sql`."""
    return f"SELECT {listed(names)} FROM ({source}) WHERE NOT ({holds_sql(spec, schema_of_spec(spec), key)})"


def numbered(edges: Iterable[Edge]) -> list[tuple[int, File]]:
    """The files of edges, each with its edge's place."""
    return [(number, file) for number, edge in enumerate(edges) for file in edge.files]
