"""The merge of edges as SQL text: which row of a key stands (DESIGN, section 5). No I/O.

Newest order wins, NULL being the lowest; equal orders: the later edge. Without order columns the later edge wins. A delete
is an entry like a row, so one that is older than the row loses, and a row older than a delete loses too.

A relation here is the text of a SELECT that gives all columns (those a delete does not name are NULL). Snapshots are
streamed past the keys that deltas touch, never grouped: memory follows the size of the deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from broker.columnar.sql import listed, quoted


@dataclass(frozen=True)
class Shape:
    """Columns of a dataset by what they do. `columns` holds all of them, in order."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    order: tuple[str, ...]

    @property
    def known(self) -> tuple[str, ...]:
        """What a delete names: key and order."""
        return (*self.key, *self.order)

    def own(self, name: str) -> str:
        """A quoted name that no column has."""
        return quoted(own_name(self.columns, name))


def newer(order: Sequence[str], left: str, right: str, comparable: Callable[[str], str] = lambda column: column) -> str:
    """Condition: row `left` is newer than row `right`, compared column by column, NULL being the lowest; NULL stands for no.

    `comparable`: how an order column is written in a comparison.
    """
    conditions: list[str] = []
    equal = ""
    for name in order:
        a, b = comparable(f"{left}.{quoted(name)}"), comparable(f"{right}.{quoted(name)}")
        conditions.append(f"({equal}({a} > {b} OR ({a} IS NOT NULL AND {b} IS NULL)))")
        equal += f"({a} = {b} OR ({a} IS NULL AND {b} IS NULL)) AND "
    return f"({' OR '.join(conditions)})"


def own_name(columns: Iterable[str], name: str) -> str:
    """`name`, or the like, that none of the columns has (DuckDB ignores case)."""
    taken = {column.casefold() for column in columns}
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class Part:
    """Files of like roles: all columns, and (`Shape.own("edge")`) each row's edge as its place in the plan.

    Guards, all of the first edge, count their files instead, from 0 downwards.
    """

    gone: bool
    relation: str


@dataclass(frozen=True)
class Sources:
    """A plan's parts. `rows`: the snapshot (none in a delta plan); `guards`: its tombstones; `changes`: upserts, deletes.

    `held`: so many edges lead to what the consumer holds. They decide what is late and are not delivered; a plan that has
    them starts with a snapshot.
    """

    rows: tuple[str, ...] = ()
    guards: tuple[Part, ...] = ()
    changes: tuple[Part, ...] = ()
    held: int = 0


def rows_sql(sources: Sources, shape: Shape) -> str:
    """All columns of the rows that stand."""
    if not sources.changes:
        return _base(sources, shape)
    names, key = listed(shape.columns), listed(shape.key)
    return (
        f"{_with_entries(sources, shape)} SELECT {names} FROM ({_base(sources, shape)}) ANTI JOIN touched USING ({key}) "
        f"UNION ALL SELECT {names} FROM ({_last(sources, shape)}) WHERE NOT {shape.own('gone')}"
    )


def tombstones_sql(sources: Sources, shape: Shape) -> str:
    """Key and order of the deletes that stand, and (`Shape.own("edge")`) which edge or file of guards each comes from."""
    names = f"{listed(shape.known)}, {shape.own('edge')}"
    if sources.changes:
        return f"{_with_entries(sources, shape)} SELECT {names} FROM ({_last(sources, shape)}) WHERE {shape.own('gone')}"
    if sources.guards:
        return " UNION ALL ".join(f"SELECT {names} FROM ({part.relation})" for part in sources.guards)
    return f"SELECT {listed(shape.known)}, 0 AS {shape.own('edge')} FROM ({_base(sources, shape)}) WHERE false"


def guards_sql(sources: Sources, shape: Shape, where: str | None) -> str:
    """Key and order of every key which the rows that match `where` do not hold, but whose newest order is known.

    A filtered replica needs those of rows it does not see, too: else a late, older row that matches would come to life there.
    """
    standing = f"SELECT {listed(shape.known)} FROM ({tombstones_sql(sources, shape)})"
    if not where:
        return standing
    return f"{standing} UNION ALL SELECT {listed(shape.known)} FROM ({rows_sql(sources, shape)}) WHERE ({where}) IS NOT TRUE"


def upserts_sql(sources: Sources, shape: Shape, where: str | None) -> str:
    """All columns of the last change per key that left a row, where it matches `where`. Late ones are left out: see `held`."""
    condition = f" AND ({where})" if where else ""
    left = f"FROM ({_delivered(sources, shape)}) WHERE NOT {shape.own('gone')}{condition}"
    return f"{_with_entries(sources, shape)} SELECT {listed(shape.columns)} {left}"


def deletes_sql(sources: Sources, shape: Shape, where: str | None) -> str:
    """Key and order of the last change per key that left no row, or one that `where` does not select."""
    condition = f" OR ({where}) IS NOT TRUE" if where else ""
    left = f"FROM ({_delivered(sources, shape)}) WHERE {shape.own('gone')}{condition}"
    return f"{_with_entries(sources, shape)} SELECT {listed(shape.known)} {left}"


def _with_entries(sources: Sources, shape: Shape) -> str:
    """`entries`: rows and deletes of all changes; `touched`: keys of those to be delivered."""
    names, edge, gone = listed(shape.columns), shape.own("edge"), shape.own("gone")
    entries = " UNION ALL ".join(
        f"SELECT {names}, {edge}, {str(part.gone).lower()} AS {gone} FROM ({part.relation})"
        for part in (*sources.guards, *sources.changes)
    )
    news = f" WHERE {edge} >= {sources.held}" if sources.held else ""
    return f"WITH entries AS ({entries}), touched AS (SELECT DISTINCT {listed(shape.key)} FROM entries{news})"


def _last(sources: Sources, shape: Shape) -> str:
    """Per touched key the one entry that stands: all columns, `gone`. To be used behind `_with_entries`."""
    touched = f"SEMI JOIN touched USING ({listed(shape.key)})"
    entries = f"SELECT * FROM entries {touched if sources.held else ''}"
    if sources.rows and shape.order:
        # What is held is only compared with: its other columns need not be read.
        wanted = shape.known if sources.held else shape.columns
        columns = ", ".join(quoted(name) if name in wanted else "NULL" for name in shape.columns)
        entries += f" UNION ALL SELECT {columns}, 0, false FROM ({_base(sources, shape)}) {touched}"
    newest = [f"{quoted(name)} DESC NULLS LAST" for name in shape.order]
    ranking = ", ".join([*newest, f"{shape.own('edge')} DESC", shape.own("gone")])
    return f"SELECT * FROM ({entries}) QUALIFY row_number() OVER (PARTITION BY {listed(shape.key)} ORDER BY {ranking}) = 1"


def _delivered(sources: Sources, shape: Shape) -> str:
    """Of the entries that stand, those which the consumer does not hold. To be used behind `_with_entries`."""
    news = f" WHERE {shape.own('edge')} >= {sources.held}" if sources.held else ""
    return f"SELECT * FROM ({_last(sources, shape)}){news}"


def _base(sources: Sources, shape: Shape) -> str:
    return " UNION ALL ".join(f"SELECT {listed(shape.columns)} FROM ({relation})" for relation in sources.rows)
