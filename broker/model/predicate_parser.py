"""SQL text to Predicate. sqlglot reads the grammar, a whitelist decides: what is not named here is refused.

Importing sqlglot takes about 0.15 s, so this module is imported where something is parsed. Hostile text is refused by its
tokens, before sqlglot's recursive parser sees it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NoReturn

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import ErrorLevel, SqlglotError
from sqlglot.tokens import Token, TokenType

from broker.errors import InvalidPredicate
from broker.model.predicate import Predicate
from broker.model.predicate_tree import FLIPPED, NEGATED, Column, Compare, Constant, Flag, In, IsNull, Like, Node, junction
from broker.model.predicate_types import Kind, Value, column_type, comparable, fit, kind_of, literal, moment, number

MAX_BYTES: Final = 64 << 10
MAX_NODES: Final = 2_000  # columns, literals and operators: about 30 ms of parsing
MAX_DEPTH: Final = 32  # brackets and NOTs: sqlglot spends 23 of Python's 1,000 frames on a bracket, and the caller needs some

ALLOWED: Final = (
    "Allowed: columns, literals, = <> < <= > >=, [NOT] IN (literals), [NOT] BETWEEN, [NOT] LIKE, IS [NOT] NULL, AND, OR, NOT, "
    "brackets, TRUE, FALSE, DATE '2024-01-31', TIMESTAMP '2024-01-31 12:00:00'"
)
_LARGE: Final = "Select less finely here and filter the rest at the target"
_SYMBOLS: Final = frozenset({"=", "==", "<>", "!=", "<", "<=", ">", ">=", "(", ")", ",", "+", "-"})
_BEFORE_BRACKET: Final = _SYMBOLS | {"AND", "OR", "NOT", "IN", "BETWEEN", "LIKE"}
_LITERALS: Final = frozenset({TokenType.STRING, TokenType.NUMBER, TokenType.IDENTIFIER})
_WORD: Final = re.compile(r"[^\W\d]\w*")
_COMPARISONS: Final[dict[type[Any], str]] = {exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">="}
_MOMENTS: Final = {"DATE": "DATE", "TIMESTAMP": "TIMESTAMP", "TIMESTAMPNTZ": "TIMESTAMP", "TIMESTAMPTZ": "TIMESTAMPTZ"}


def parse(text: str, columns: Mapping[str, str] | None = None) -> Predicate:
    """Read a SQL boolean expression. `columns`: every column's name and DuckDB type; None: neither is checked, and the
    result matches rows but prints no SQL.

    Text in ISO form serves as DATE or TIMESTAMP where the column is one, so fingerprints are only comparable between
    predicates parsed with columns. Raises InvalidPredicate naming the part, the reason and what is allowed.
    """
    return _parse(text, None if columns is None else tuple(sorted(columns.items())))


@lru_cache(maxsize=64)
def _parse(text: str, columns: tuple[tuple[str, str], ...] | None) -> Predicate:
    _check_size(text)
    try:
        predicate = Predicate(_Reader(None if columns is None else dict(columns)).condition(_syntax(text)))
    except RecursionError:
        refuse(text, "nested too deeply for the stack that is left", "Write it flatter")
    _check_size(predicate.canonical)  # BETWEEN and NOT can grow: what is accepted once stays acceptable as canonical text
    return predicate


def refuse(part: object, why: str, hint: str = ALLOWED) -> NoReturn:
    shown = part.sql("duckdb", unsupported_level=ErrorLevel.IGNORE) if isinstance(part, exp.Expression) else str(part)
    shown = shown.encode(errors="backslashreplace").decode()
    raise InvalidPredicate("predicate is invalid", of=shown if len(shown) <= 120 else shown[:119] + "…", why=why, hint=hint)


def _check_size(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        refuse(text, "it contains a lone surrogate, which is no text")
    if size > MAX_BYTES:
        refuse(text, f"{size:,} bytes exceed {MAX_BYTES:,}")
    if "\0" in text:
        refuse(text, "it contains a NUL character")
    try:
        tokens = DuckDB().tokenize(text)
    except SqlglotError:
        refuse(text, "a quote is not closed")
    _check_tokens(text, tokens)


def _check_tokens(text: str, tokens: list[Token]) -> None:
    if not tokens:
        refuse(text, "it is empty", "Leave it out (None) to select all rows")
    if len(tokens) > 4 * MAX_NODES:
        refuse(text, f"more than {4 * MAX_NODES:,} words and signs", _LARGE)
    nodes, run, opened, before = 0, 0, [0], "("
    for token in tokens:
        shown = _check_token(text, token, before)
        nodes += shown not in ("(", ")", ",")
        prefixes, run = run, run + 1 if shown in ("NOT", "-", "+") else 0
        if shown == "(":
            opened.append(opened[-1] + 1 + prefixes)
        elif shown == ")" and len(opened) > 1:
            opened.pop()
        if nodes > MAX_NODES or opened[-1] + run > MAX_DEPTH:
            why = (
                f"more than {MAX_NODES:,} columns, literals and operators"
                if nodes > MAX_NODES
                else f"nested deeper than {MAX_DEPTH}"
            )
            refuse(text, why, _LARGE)
        before = shown


def _check_token(text: str, token: Token, before: str) -> str:
    """The token in upper case, as it stands in the text."""
    raw = text[token.start : token.end + 1]
    if token.token_type in _LITERALS:
        return raw
    if raw in _SYMBOLS:
        if raw == "(" and before not in _BEFORE_BRACKET:
            refuse(f"{before.lower()}(", "functions and casts are not allowed")
        return raw
    if not _WORD.fullmatch(raw):
        refuse(raw, _UNUSUAL.get(raw, "not allowed in a predicate"))
    return raw.upper()


_UNUSUAL: Final = {
    ".": "write columns without their table and 0.5 with its zero", ";": "only one expression is allowed",
    "*": "arithmetic and stars are not allowed", "/": "arithmetic is not allowed", "%": "arithmetic is not allowed",
    "::": "casts are not allowed", "?": "parameters are not allowed", "$": "parameters are not allowed",
    "[": "elements are not allowed", "||": "operators on text are not allowed",
}  # fmt: skip


def _syntax(text: str) -> exp.Expression:
    try:
        parsed = DuckDB().parse_into(exp.Condition, text)
    except (SqlglotError, ValueError, TypeError, AttributeError, LookupError) as error:
        found = getattr(error, "errors", None) or [{}]
        refuse(found[0].get("highlight") or text, "this is no SQL expression")
    if len(parsed) != 1 or not isinstance(parsed[0], exp.Expression):
        refuse(text, "only one expression is allowed")
    return parsed[0]


def _args(node: exp.Expression, *known: str) -> None:
    """Refuse a node that carries more than we read: a newer sqlglot may put a word's meaning into a new argument."""
    for name, value in node.args.items():
        if name not in known and value:
            refuse(node, f"{name} is not allowed here")


def _operands(node: exp.Expression, kind: type[exp.Expression]) -> Iterable[exp.Expression]:
    """The operands of a chain of AND or OR. Chains lean left and may be long, so this does not recurse."""
    todo = [node]
    while todo:
        item = todo.pop()
        if type(item) is kind:
            _args(item, "this", "expression")
            todo += [item.expression, item.this]
        else:
            yield item


class _Reader:
    """sqlglot's tree to ours. `positive` is False below an odd number of NOTs: negation moves to the leaves."""

    def __init__(self, columns: Mapping[str, str] | None) -> None:
        self.columns = columns

    def condition(self, node: exp.Expression, positive: bool = True) -> Node:
        kind = type(node)
        if kind in (exp.And, exp.Or):
            word = "AND" if (kind is exp.And) is positive else "OR"
            return junction(word, [self.condition(part, positive) for part in _operands(node, kind)])
        if kind in (exp.Paren, exp.Not):
            _args(node, "this")
            return self.condition(node.this, positive is (kind is exp.Paren))
        if kind is exp.Boolean:
            return Constant(bool(node.this) is positive)
        if kind in _COMPARISONS:
            _args(node, "this", "expression")
            return self.comparison(node, _COMPARISONS[kind], positive)
        return self.test(node, positive)

    def test(self, node: exp.Expression, positive: bool) -> Node:
        """What stands on one column."""
        kind = type(node)
        if kind is exp.Column:
            return self.flag(node, positive)
        if kind is exp.In:
            return self.membership(node, positive)
        if kind is exp.Between:
            return self.range(node, positive)
        if kind is exp.Like:
            return self.like(node, positive)
        if kind is exp.Is:
            _args(node, "this", "expression")
            if type(node.expression) is not exp.Null:
                refuse(
                    node, "IS is only allowed with NULL", "Write `column` or `NOT column` for TRUE and FALSE, `=` for the rest"
                )
            return IsNull(self.column(node.this), not positive)
        if kind in (exp.Literal, exp.Neg, exp.Null, exp.Cast):
            refuse(node, "this is a value, not a condition")
        refuse(node, f"{node.key.upper()} is not allowed in a predicate")

    def column(self, node: exp.Expression) -> Column:
        node = _bare(node)
        if type(node) is not exp.Column or type(node.this) is not exp.Identifier:
            refuse(node, "a column is expected here")
        _args(node, "this")
        name = str(node.this.this)
        if self.columns is None:
            return Column(name)
        if name not in self.columns:
            near = difflib.get_close_matches(name, self.columns, 1, 0.5) or [
                n for n in self.columns if n.lower() == name.lower()
            ]
            refuse(
                name, "there is no such column", f"Did you mean {near[0]}?" if near else f"Columns: {', '.join(self.columns)}"
            )
        return Column(name, column_type(self.columns[name]))

    def flag(self, node: exp.Expression, positive: bool) -> Node:
        column = self.column(node)
        if column.type and column.type.kind is not Kind.BOOLEAN:
            refuse(node, f"a {column.type.name} column is no condition", "Compare it with a literal")
        return Flag(column, not positive)

    def comparison(self, node: exp.Expression, op: str, positive: bool) -> Node:
        op = op if positive else NEGATED[op]
        left, right = _bare(node.this), _bare(node.expression)
        if type(left) is exp.Column and type(right) is exp.Column:
            return self.two_columns(node, op)
        if type(left) is not exp.Column:
            left, right, op = right, left, FLIPPED[op]
        return self.compare(node, self.column(left), op, _value(right))

    def two_columns(self, node: exp.Expression, op: str) -> Node:
        left, right = self.column(node.this), self.column(node.expression)
        if left.name > right.name:
            left, right, op = right, left, FLIPPED[op]
        why = comparable(left.type, right.type) if left.type and right.type else ""
        if not why and left.type and left.type.kind is Kind.BOOLEAN and op not in ("=", "<>"):
            why = "booleans have no order"
        return refuse(node, why) if why else Compare(left, op, right)

    def compare(self, node: exp.Expression, column: Column, op: str, value: Value) -> Node:
        value = self.fitted(node, column, value)
        if not isinstance(value, bool):
            return Compare(column, op, value)
        if op not in ("=", "<>"):
            refuse(node, "booleans have no order")
        return Flag(column, value is not (op == "="))

    def fitted(self, node: exp.Expression, column: Column, value: Value) -> Value:
        if column.type is None:
            return value
        fitting = fit(value, column.type.kind)
        if fitting is None:
            refuse(
                node,
                f"{column.name} is {column.type.name} and cannot be compared with {literal(value)}",
                _wanted(column.type.kind),
            )
        return fitting

    def membership(self, node: exp.Expression, positive: bool) -> Node:
        _args(node, "this", "expressions")
        column = self.column(node.this)
        values = [self.fitted(node, column, _value(item)) for item in node.expressions]
        if not values:
            refuse(node, "IN needs a list of literals")
        if any(isinstance(value, bool) for value in values) or len({kind_of(value) for value in values}) > 1:
            refuse(node, "IN needs literals of one kind, and TRUE and FALSE need no IN")
        unique = {literal(value): value for value in values}
        if len(unique) == 1:
            return Compare(column, "=" if positive else "<>", values[0])
        return In(column, tuple(unique[text] for text in sorted(unique)), not positive)

    def range(self, node: exp.Expression, positive: bool) -> Node:
        _args(node, "this", "low", "high")
        column = self.column(node.this)
        low = self.compare(node, column, ">=" if positive else "<", _value(node.args["low"]))
        high = self.compare(node, column, "<=" if positive else ">", _value(node.args["high"]))
        return junction("AND" if positive else "OR", [low, high])

    def like(self, node: exp.Expression, positive: bool) -> Node:
        _args(node, "this", "expression", "negate")
        column, pattern = self.column(node.this), _value(node.expression)
        if not isinstance(pattern, str) or (column.type and column.type.kind is not Kind.TEXT):
            refuse(node, "LIKE needs a text column and a text literal")
        return Like(column, pattern, positive is bool(node.args.get("negate")))


def _bare(node: exp.Expression) -> exp.Expression:
    while type(node) is exp.Paren:
        _args(node, "this")
        node = node.this
    return node


def _value(node: exp.Expression) -> Value:
    """A literal's value. Raises InvalidPredicate for anything else."""
    node, sign = _bare(node), 1
    while type(node) is exp.Neg:
        _args(node, "this")
        node, sign = _bare(node.this), -sign
        if type(node) not in (exp.Neg, exp.Literal) or (type(node) is exp.Literal and node.is_string):
            refuse(node, "only numbers have a sign")
    if type(node) is exp.Literal:
        return str(node.this) if node.is_string else _number(str(node.this), sign)
    if type(node) is exp.Boolean:
        return bool(node.this)
    if type(node) is exp.Cast:
        return _moment(node)
    if type(node) is exp.Null:
        refuse(node, "comparing with NULL selects nothing", "Write IS NULL or IS NOT NULL")
    refuse(node, "a literal is expected here: compare a column with a literal or with a column")


def _number(text: str, sign: int) -> Decimal:
    value = number(text)
    if value is None:
        refuse(text, "a number has at most 38 digits before and after its point")
    return value if sign > 0 else value.copy_negate()


def _moment(node: exp.Expression) -> datetime:
    """DATE '...' and TIMESTAMP '...' reach us as casts of text."""
    _args(node, "this", "to")
    word = _MOMENTS.get(str(getattr(node.to.this, "name", "")))
    if word is None or type(node.this) is not exp.Literal or not node.this.is_string:
        refuse(node, "casts are not allowed")
    text = str(node.this.this)
    value = moment(text)
    if value is None or (word == "DATE" and len(text) != len("2024-01-31")):
        refuse(
            node,
            f"{text!r} is no {word}",
            "Write DATE '2024-01-31', TIMESTAMP '2024-01-31 12:00:00' or with an offset '…+02:00'",
        )
    fitting = fit(value, Kind.ZONED) if word == "TIMESTAMPTZ" else value
    return fitting if isinstance(fitting, datetime) else value


def _wanted(kind: Kind) -> str:
    return {
        Kind.TEXT: "Write text in single quotes: 'abc'",
        Kind.NUMBER: "Write a number without quotes: 49.90",
        Kind.BOOLEAN: "Write TRUE or FALSE",
        Kind.TIME: "Write DATE '2024-01-31' or TIMESTAMP '2024-01-31 12:00:00', without offset",
        Kind.ZONED: "Write TIMESTAMPTZ '2024-01-31 12:00:00+00'",
        Kind.OTHER: "This type allows only IS NULL and IS NOT NULL",
    }[kind]
