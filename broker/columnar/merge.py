"""The merge of edges as SQL text: which row of a key stands (DESIGN, section 5). No I/O.

Newest order wins, NULL being the lowest; equal orders: the later edge. Without order columns the later edge wins. A delete
is an entry like a row, so one that is older than the row loses, and a row older than a delete loses too.

A relation here is the text of a SELECT that gives all columns (those a delete does not name are NULL). Snapshots are
streamed past the keys that deltas touch, never grouped: memory follows the size of the deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.columnar.sql import listed, quoted


@dataclass(frozen=True)
class Shape:
    """Columns of a dataset by what they do. `columns` holds all of them, in order."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    order: tuple[str, ...]

    def own(self, name: str) -> str:
        """A quoted name that no column has (DuckDB ignores case)."""
        taken = {column.casefold() for column in self.columns}
        while name in taken:
            name += "_"
        return quoted(name)


@dataclass(frozen=True)
class Part:
    """One role's files of one edge. `edge` is its place in the plan; `gone`: these are deletes."""

    edge: int
    gone: bool
    relation: str


@dataclass(frozen=True)
class Sources:
    """A plan's parts. `rows`: the snapshot (none in a delta plan); `guards`: its tombstones; `changes`: upserts, deletes."""

    rows: tuple[str, ...] = ()
    guards: tuple[Part, ...] = ()
    changes: tuple[Part, ...] = ()


def rows_sql(sources: Sources, shape: Shape) -> str:
    """All columns of the rows that stand."""
    base = _base(sources, shape)
    if not sources.changes:
        return base
    untouched = (
        f"SELECT {listed(shape.columns)} FROM ({base}) ANTI JOIN ({_touched(sources, shape)}) USING ({listed(shape.key)})"
    )
    changed = f"SELECT {listed(shape.columns)} FROM ({_last(sources, shape)}) WHERE NOT {shape.own('gone')}"
    return f"{untouched} UNION ALL {changed}"


def tombstones_sql(sources: Sources, shape: Shape) -> str:
    """Key and order of the deletes that stand."""
    names = listed((*shape.key, *shape.order))
    if sources.changes:
        return f"SELECT {names} FROM ({_last(sources, shape)}) WHERE {shape.own('gone')}"
    return " UNION ALL ".join(f"SELECT {names} FROM ({part.relation})" for part in sources.guards)


def guards_sql(sources: Sources, shape: Shape, where: str | None) -> str | None:
    """Key and order of every key which the rows that match `where` do not hold, but whose newest order is known.

    A filtered replica needs those of rows it does not see, too: else a late, older row that matches would come to life there.
    None: there are none.
    """
    names = listed((*shape.key, *shape.order))
    parts = [tombstones_sql(sources, shape)] if sources.guards or sources.changes else []
    if where:
        parts.append(f"SELECT {names} FROM ({rows_sql(sources, shape)}) WHERE ({where}) IS NOT TRUE")
    return " UNION ALL ".join(parts) if shape.order and parts else None


def upserts_sql(sources: Sources, shape: Shape, where: str | None) -> str:
    """All columns of the last change per key that left a row, where it matches `where`."""
    condition = f" AND ({where})" if where else ""
    return f"SELECT {listed(shape.columns)} FROM ({_last(sources, shape)}) WHERE NOT {shape.own('gone')}{condition}"


def deletes_sql(sources: Sources, shape: Shape, where: str | None) -> str:
    """Key and order of the last change per key that left no row, or one that `where` does not select."""
    condition = f" OR ({where}) IS NOT TRUE" if where else ""
    names = listed((*shape.key, *shape.order))
    return f"SELECT {names} FROM ({_last(sources, shape)}) WHERE {shape.own('gone')}{condition}"


def _last(sources: Sources, shape: Shape) -> str:
    """Per touched key the one entry that stands: all columns, `gone`."""
    entries = _entries((*sources.guards, *sources.changes), shape)
    if sources.rows and shape.order:
        base = f"SELECT {listed(shape.columns)} FROM ({_base(sources, shape)}) SEMI JOIN ({_touched(sources, shape)})"
        entries += f" UNION ALL SELECT {listed(shape.columns)}, 0, false FROM ({base} USING ({listed(shape.key)}))"
    newest = [f"{quoted(name)} DESC NULLS LAST" for name in shape.order]
    ranking = ", ".join([*newest, f"{shape.own('edge')} DESC", shape.own("gone")])
    return f"SELECT * FROM ({entries}) QUALIFY row_number() OVER (PARTITION BY {listed(shape.key)} ORDER BY {ranking}) = 1"


def _touched(sources: Sources, shape: Shape) -> str:
    parts = (f"SELECT {listed(shape.key)} FROM ({part.relation})" for part in (*sources.guards, *sources.changes))
    return f"SELECT DISTINCT {listed(shape.key)} FROM ({' UNION ALL '.join(parts)})"


def _entries(parts: Sequence[Part], shape: Shape) -> str:
    """Rows and deletes as one relation: all columns, `edge`, `gone`."""
    return " UNION ALL ".join(
        f"SELECT {listed(shape.columns)}, {part.edge} AS {shape.own('edge')}, {str(part.gone).lower()} AS {shape.own('gone')} "
        f"FROM ({part.relation})"
        for part in parts
    )


def _base(sources: Sources, shape: Shape) -> str:
    return " UNION ALL ".join(f"SELECT {listed(shape.columns)} FROM ({relation})" for relation in sources.rows)
