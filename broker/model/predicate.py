"""A predicate as a value: which rows a selection wants. Made by `predicate_parser.parse`, never from text pasted into SQL.

The order of values is DuckDB's: text by the bytes of its UTF-8 (binary collation: `default_collation` must stay unset), NaN
equal to itself and above every number, -0.0 = 0.0. A comparison with NULL selects nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cached_property
from typing import Final, TypeVar

from broker.errors import InvalidPredicate
from broker.model import predicate_tree as tree
from broker.model.predicate_sql import Quote, condition
from broker.model.predicate_tree import Column, Compare, Constant, Flag, In, IsNull, Junction, Like, Node
from broker.model.predicate_types import single

T = TypeVar("T")


@dataclass(frozen=True)
class Predicate:
    """A selection of rows. Equal selections written differently (order, brackets, BETWEEN, NOT) share `canonical`."""

    tree: Node

    @cached_property
    def canonical(self) -> str:
        """One SQL text per selection; parsing it gives it again."""
        return tree.canonical(self.tree)

    @cached_property
    def columns(self) -> frozenset[str]:
        """Names of the columns it reads."""
        return frozenset(tree.columns(self.tree))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the canonical text."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:16]

    def sql(self, quote: Quote) -> str:
        """A DuckDB condition; `quote` makes an identifier of a column name. Raises InvalidPredicate if parsed without types."""
        return condition(self.tree, quote)

    def matches(self, row: Mapping[str, object]) -> bool:
        """Whether DuckDB would select this row. Values: None, str, bool, int, float, Decimal, date, datetime; a datetime
        with zone compares as its moment, and as UTC with one without. An absent column is NULL.
        Raises InvalidPredicate when a value cannot be compared with its literal (only if parsed without types)."""
        return _matches(self.tree, row)

    def __str__(self) -> str:
        return self.canonical


def _matches(node: Node, row: Mapping[str, object]) -> bool:
    if isinstance(node, Constant):
        return node.value
    if isinstance(node, Junction):
        return (all if node.word == "AND" else any)(_matches(part, row) for part in node.parts)
    value = row.get(node.column.name)
    if isinstance(node, IsNull):
        return (value is None) is not node.negated
    return value is not None and _leaf(node, value, row)


def _leaf(node: Flag | Compare | In | Like, value: object, row: Mapping[str, object]) -> bool:
    if isinstance(node, Flag):
        return _same_kind(node.column, value, bool) is not node.negated
    if isinstance(node, Like):
        return like(_same_kind(node.column, value, str), node.pattern) is not node.negated
    if isinstance(node, In):
        return any(_order(node.column, value, item) == 0 for item in node.values) is not node.negated
    other = row.get(node.other.name) if isinstance(node.other, Column) else node.other
    return other is not None and _HOLDS[node.op](_order(node.column, value, other))


_HOLDS: Final[dict[str, Callable[[int], bool]]] = {
    "=": lambda sign: sign == 0, "<>": lambda sign: sign != 0, "<": lambda sign: sign < 0,
    "<=": lambda sign: sign <= 0, ">": lambda sign: sign > 0, ">=": lambda sign: sign >= 0,
}  # fmt: skip


def _same_kind(column: Column, value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise _incomparable(column, value, kind.__name__)
    return value


def _order(column: Column, left: object, right: object) -> int:
    """-1, 0 or 1 as DuckDB orders two values that are not NULL; the column's type decides how a literal is rounded."""
    if isinstance(left, bool) or isinstance(right, bool):
        if isinstance(left, bool) and isinstance(right, bool):
            return left - right
    elif isinstance(left, str) and isinstance(right, str):
        return (left > right) - (left < right)  # by code point, which for UTF-8 is by bytes
    elif isinstance(left, int | float | Decimal) and isinstance(right, int | float | Decimal):
        return _order_of_numbers(column, left, right)
    elif isinstance(left, date) and isinstance(right, date):
        return _order_of_moments(left, right)
    raise _incomparable(column, left, type(right).__name__)


def _order_of_numbers(column: Column, left: float | Decimal, right: float | Decimal) -> int:
    if isinstance(left, float) or isinstance(right, float):
        rounded = isinstance(right, Decimal) and column.type is not None and column.type.name == "FLOAT"
        left, right = float(left), single(right) if rounded else float(right)
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) - math.isnan(right)
    return (left > right) - (left < right)


def _order_of_moments(left: date, right: date) -> int:
    first, second = _utc(left), _utc(right)
    return (first > second) - (first < second)


def _utc(value: date) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.combine(value, time())
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _incomparable(column: Column, value: object, other: str) -> InvalidPredicate:
    return InvalidPredicate(
        "predicate does not fit the row", of=column.name, why=f"{type(value).__name__} cannot be compared with {other}",
        hint="Parse it with the dataset's columns to find this out before any row is read",
    )  # fmt: skip


def like(text: str, pattern: str) -> bool:
    """SQL LIKE in at most len(text) * len(pattern) steps: only the last `%` is ever tried again."""
    here = at = 0
    retry_here, retry_at = 0, -1
    while here < len(text):
        if at < len(pattern) and pattern[at] == "%":
            retry_here, retry_at = here, at
            at += 1
        elif at < len(pattern) and pattern[at] in ("_", text[here]):
            here, at = here + 1, at + 1
        elif retry_at >= 0:
            retry_here += 1
            here, at = retry_here, retry_at + 1
        else:
            return False
    return not pattern[at:].strip("%")
