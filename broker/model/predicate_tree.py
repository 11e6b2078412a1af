"""The tree of a predicate and its one canonical text.

The tree is in negation normal form: NOT stands only at a leaf. Nothing above a leaf negates, so a comparison with NULL may
count as false: TRUE is the only answer that selects, and AND and OR of other answers never become TRUE.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from broker.model.predicate_types import ColumnType, Value, literal

NEGATED: Final = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
FLIPPED: Final = {"=": "=", "<>": "<>", "<": ">", ">": "<", "<=": ">=", ">=": "<="}


@dataclass(frozen=True)
class Column:
    """A column by its exact name; `type` is None when the predicate was parsed without a schema."""

    name: str
    type: ColumnType | None = None


@dataclass(frozen=True)
class Constant:
    value: bool


@dataclass(frozen=True)
class Flag:
    """A boolean column standing alone, or NOT that column."""

    column: Column
    negated: bool


@dataclass(frozen=True)
class IsNull:
    column: Column
    negated: bool


@dataclass(frozen=True)
class Compare:
    column: Column
    op: str
    other: Column | Value


@dataclass(frozen=True)
class In:
    """`values`: at least two, all of one kind, without repeats, in the order of their canonical text."""

    column: Column
    values: tuple[Value, ...]
    negated: bool


@dataclass(frozen=True)
class Like:
    """`%` is any text, `_` one code point, no escape character; case counts."""

    column: Column
    pattern: str
    negated: bool


@dataclass(frozen=True)
class Junction:
    """AND or OR of at least two parts, none of them the same junction, in the order of their canonical text."""

    word: str
    parts: tuple[Node, ...]


Node: TypeAlias = Constant | Flag | IsNull | Compare | In | Like | Junction


def junction(word: str, parts: Iterable[Node]) -> Node:
    """AND or OR of parts: flattened, without repeats and constants, in canonical order."""
    absorbing = Constant(word == "OR")
    flat: dict[str, Node] = {}
    for part in parts:
        for node in part.parts if isinstance(part, Junction) and part.word == word else (part,):
            if node == absorbing:
                return absorbing
            if not isinstance(node, Constant):
                flat.setdefault(canonical(node), node)
    if not flat:
        return Constant(word == "AND")
    return next(iter(flat.values())) if len(flat) == 1 else Junction(word, tuple(flat[text] for text in sorted(flat)))


def canonical(node: Node) -> str:
    """The node as SQL text with as few brackets as it can have."""
    if isinstance(node, Constant):
        return literal(node.value)
    if isinstance(node, Junction):
        return f" {node.word} ".join(
            f"({canonical(part)})" if _needs_brackets(node, part) else canonical(part) for part in node.parts
        )
    name, negation = _quoted(node.column.name), "NOT " if not isinstance(node, Compare) and node.negated else ""
    if isinstance(node, Flag):
        return negation + name
    if isinstance(node, IsNull):
        return f"{name} IS {negation}NULL"
    if isinstance(node, Like):
        return f"{name} {negation}LIKE {literal(node.pattern)}"
    if isinstance(node, In):
        return f"{name} {negation}IN ({', '.join(map(literal, node.values))})"
    return f"{name} {node.op} {_quoted(node.other.name) if isinstance(node.other, Column) else literal(node.other)}"


def _needs_brackets(node: Junction, part: Node) -> bool:
    return node.word == "AND" and isinstance(part, Junction)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def columns(node: Node) -> Iterable[str]:
    """Names of the columns below a node, with repeats."""
    if isinstance(node, Junction):
        for part in node.parts:
            yield from columns(part)
    elif not isinstance(node, Constant):
        yield node.column.name
        if isinstance(node, Compare) and isinstance(node.other, Column):
            yield node.other.name
