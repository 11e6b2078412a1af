"""Predicates as DuckDB conditions, printed from the tree so that no literal is cast in a way that rounds or overflows.

DuckDB casts both sides to a common type: `qty < 0.5` on a HUGEINT fails at run time, `date < TIMESTAMP '...'` overflows on a
far date, and a DECIMAL literal compared with DOUBLE is rounded twice. So a literal is first moved into the column's type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TypeAlias

from broker.errors import InvalidPredicate
from broker.model.predicate_tree import Column, Compare, Constant, Flag, In, IsNull, Junction, Like, Node
from broker.model.predicate_types import ColumnType, Value, literal, single

Quote: TypeAlias = Callable[[str], str]


def condition(node: Node, quote: Quote) -> str:
    """The node as a bracketed or atomic DuckDB condition. Raises InvalidPredicate if a column has no type."""
    if isinstance(node, Constant):
        return literal(node.value)
    if isinstance(node, Junction):
        return "(" + f" {node.word} ".join(condition(part, quote) for part in node.parts) + ")"
    name, negation = quote(node.column.name), "NOT " if not isinstance(node, Compare) and node.negated else ""
    if isinstance(node, Flag):
        return f"({negation}{name})"
    if isinstance(node, IsNull):
        return f"({name} IS {negation}NULL)"
    if isinstance(node, Like):
        return f"({name} {negation}LIKE {literal(node.pattern)})"
    return _comparison(node, quote)


def _comparison(node: Compare | In, quote: Quote) -> str:
    name = quote(node.column.name)
    if isinstance(node, Compare) and isinstance(node.other, Column):
        return f"({name} {node.op} {quote(node.other.name)})"
    lowered = lower(node)
    if not isinstance(lowered, Compare | In):
        return condition(lowered, quote)
    kind = _typed(lowered.column)
    if isinstance(lowered, In):
        return _with_nan(
            f"{name} {'NOT ' * lowered.negated}IN ({', '.join(_cast(v, kind) for v in lowered.values)})", lowered, quote
        )
    assert not isinstance(lowered.other, Column)
    return _with_nan(f"{name} {lowered.op} {_cast(lowered.other, kind)}", lowered, quote)


def _with_nan(text: str, node: Compare | In, quote: Quote) -> str:
    """NaN is above every number, but Parquet statistics leave it out: DuckDB 2.0 skips row groups by them and loses the row."""
    above = node.negated if isinstance(node, In) else node.op in (">", ">=", "<>")
    return f"({text} OR isnan({quote(node.column.name)}))" if above and _typed(node.column).approximate else f"({text})"


def _cast(value: Value, kind: ColumnType) -> str:
    if isinstance(value, Decimal) and kind.approximate:
        return f"CAST('{single(value) if kind.name == 'FLOAT' else float(value)!r}' AS {kind.name})"
    return literal(value)


def _typed(column: Column) -> ColumnType:
    if column.type is None:
        raise InvalidPredicate(
            "predicate has no column types", of=column.name, why="DuckDB would guess the casts",
            hint="Parse it with the dataset's columns",
        )  # fmt: skip
    return column.type


def lower(node: Compare | In) -> Node:
    """An equal condition whose literals all lie in the column's type: `qty < 2.5` on integers is `qty <= 2`.

    May replace NULL by FALSE, which selects the same rows (see predicate_tree).
    """
    if isinstance(node, Compare):
        return node if isinstance(node.other, Column) else _lower_comparison(node, node.other, _typed(node.column))
    kind = _typed(node.column)
    values = tuple(value for value in node.values if not _side(value, kind) and kind.floor(value) == value)
    if values:
        return replace(node, values=values)
    return IsNull(node.column, True) if node.negated else Constant(False)


def _lower_comparison(node: Compare, value: Value, kind: ColumnType) -> Node:
    side = _side(value, kind)
    everything = IsNull(node.column, True)
    if side:
        return everything if node.op in (("<>", "<", "<=") if side > 0 else ("<>", ">", ">=")) else Constant(False)
    below = kind.floor(value)
    if below == value:
        return node
    if node.op in ("=", "<>"):
        return everything if node.op == "<>" else Constant(False)
    return Compare(node.column, "<=" if node.op in ("<", "<=") else ">", below)


def _side(value: Value, kind: ColumnType) -> int:
    """-1 or 1 when the literal lies below or above all values of the type, else 0."""
    for low, high, family in ((kind.low, kind.high, Decimal), (kind.low, kind.high, datetime)):
        if isinstance(value, family) and isinstance(low, family) and isinstance(high, family):
            return (value > high) - (value < low)  # type: ignore[operator]
    return 0
