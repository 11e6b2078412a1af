"""What a predicate may compare: column types as DuckDB names them, literals, and how a literal meets a type exactly.

A literal is one of four Python values: str, bool, Decimal (every number) or datetime. A naive datetime is a DATE or
TIMESTAMP (a date is its midnight), an aware one is in UTC. Nothing depends on the time zone of a session.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Context, Decimal
from enum import StrEnum
from typing import Final, TypeAlias

Value: TypeAlias = str | bool | Decimal | datetime

MAX_DIGITS: Final = 38  # before and after the point: DuckDB's widest DECIMAL, and less than a HUGEINT
_WIDE: Final = Context(prec=4 * MAX_DIGITS)  # the default context would round to 28 digits


class Kind(StrEnum):
    """Families of types; only members of one family compare."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "date or timestamp"
    ZONED = "timestamp with time zone"
    OTHER = "other"  # BLOB, UUID, lists, structs, ...: only IS [NOT] NULL


@dataclass(frozen=True)
class ColumnType:
    """One column's type. `low` and `high` bound what DuckDB can cast to it; None: every literal fits."""

    name: str
    kind: Kind
    scale: int = 0
    low: Value | None = None
    high: Value | None = None

    @property
    def approximate(self) -> bool:
        """Binary floating point: literals are rounded to it, and there is a NaN."""
        return self.name in ("FLOAT", "DOUBLE")

    @property
    def whole_digits(self) -> int:
        """Digits before the decimal point of an exact number."""
        return len(str(int(self.high))) if isinstance(self.high, Decimal) else 0

    def floor(self, value: Value) -> Value:
        """The largest value of this type that is not above `value` (which lies between low and high)."""
        if isinstance(value, Decimal) and not self.approximate:
            return value.quantize(Decimal(1).scaleb(-self.scale), ROUND_FLOOR, _WIDE)
        if isinstance(value, datetime) and self.name == "DATE":
            return value.replace(hour=0, minute=0, second=0, microsecond=0)
        return value


_ALIASES: Final = {
    "TEXT": "VARCHAR", "STRING": "VARCHAR", "CHAR": "VARCHAR", "BPCHAR": "VARCHAR", "BOOL": "BOOLEAN", "INT": "INTEGER",
    "INT1": "TINYINT", "INT2": "SMALLINT", "INT4": "INTEGER", "INT8": "BIGINT", "LONG": "BIGINT", "SHORT": "SMALLINT",
    "REAL": "FLOAT", "FLOAT4": "FLOAT", "FLOAT8": "DOUBLE", "NUMERIC": "DECIMAL", "DATETIME": "TIMESTAMP",
    "TIMESTAMP_US": "TIMESTAMP", "TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE",
}  # fmt: skip
_SIGNED: Final = {"TINYINT": 8, "SMALLINT": 16, "INTEGER": 32, "BIGINT": 64, "HUGEINT": 128}
_PLAIN: Final = {
    "VARCHAR": Kind.TEXT, "BOOLEAN": Kind.BOOLEAN, "FLOAT": Kind.NUMBER, "DOUBLE": Kind.NUMBER, "DATE": Kind.TIME,
    "TIMESTAMP": Kind.TIME, "TIMESTAMP_S": Kind.TIME, "TIMESTAMP_MS": Kind.TIME, "TIMESTAMP WITH TIME ZONE": Kind.ZONED,
}  # fmt: skip
_PARAMETERS: Final = re.compile(r"\s*([^()]*?)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?\s*")


def column_type(text: str) -> ColumnType:
    """The type DuckDB prints as `text` (`DECIMAL(18,2)`). A type without comparable literals has Kind.OTHER."""
    match = _PARAMETERS.fullmatch(text)
    word = match[1].upper() if match else text
    name = _ALIASES.get(word, word)
    if match and name == "DECIMAL":
        return _decimal(int(match[2] or 18), int(match[3] or (0 if match[2] else 3)))
    if name in _SIGNED:
        return _integer(name, -(1 << (_SIGNED[name] - 1)), (1 << (_SIGNED[name] - 1)) - 1)
    if name[:1] == "U" and name[1:] in _SIGNED:
        return _integer(name, 0, (1 << _SIGNED[name[1:]]) - 1)
    if name == "TIMESTAMP_NS":  # casting a later TIMESTAMP to it fails at run time
        return ColumnType(name, Kind.TIME, low=datetime(1677, 9, 22), high=datetime(2262, 4, 11, 23, 47, 16))
    return ColumnType(name, _PLAIN.get(name, Kind.OTHER))


def _decimal(width: int, scale: int) -> ColumnType:
    high = Decimal((0, (9,) * width, -scale))
    return ColumnType(f"DECIMAL({width},{scale})", Kind.NUMBER, scale, high.copy_negate(), high)


def _integer(name: str, low: int, high: int) -> ColumnType:
    return ColumnType(name, Kind.NUMBER, 0, Decimal(low), Decimal(high))


def comparable(left: ColumnType, right: ColumnType) -> str:
    """Why two columns cannot be compared without loss or run-time errors in DuckDB; empty: they can."""
    if left.kind is Kind.OTHER or left.kind is not right.kind:
        return f"{left.name} and {right.name} cannot be compared"
    if left == right or left.kind is not Kind.NUMBER:
        return (
            "" if left == right or "TIMESTAMP_NS" not in (left.name, right.name) else "other timestamps overflow TIMESTAMP_NS"
        )
    if left.approximate or right.approximate:
        return "" if left.approximate and right.approximate else f"comparing {left.name} with {right.name} rounds"
    if (
        not left.scale
        and not right.scale
        and "UHUGEINT" not in (left.name, right.name)
        and "DECIMAL" not in left.name + right.name
    ):
        return ""
    digits = max(left.whole_digits, right.whole_digits) + max(left.scale, right.scale)
    return "" if digits <= MAX_DIGITS else f"comparing {left.name} with {right.name} overflows DECIMAL({MAX_DIGITS})"


_NUMBER: Final = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)\s*(Z|[+-]\d\d(?::?\d\d)?)?)?")


def number(text: str) -> Decimal | None:
    """An unsigned SQL number, exactly; None when malformed or longer than 38 digits on a side of the point."""
    if not _NUMBER.fullmatch(text):
        return None
    value = Decimal(text)
    if not value:
        return Decimal(0)
    if value.adjusted() >= MAX_DIGITS or value.adjusted() < -MAX_DIGITS or len(text) > 4 * MAX_DIGITS:
        return None
    plain = value.normalize(_WIDE)
    exponent = plain.as_tuple().exponent
    return plain if isinstance(exponent, int) and exponent >= -MAX_DIGITS else None


def moment(text: str) -> datetime | None:
    """`YYYY-MM-DD[ HH:MM[:SS[.ffffff]][Z|+HH[:MM]]]`, aware (in UTC) if it has an offset; None when it is no such moment."""
    match = _MOMENT.fullmatch(text)
    if not match:
        return None
    day, clock, offset = match.groups()
    try:
        value = datetime.fromisoformat(f"{day} {_six_digits(clock or '00:00')}{offset or ''}")
        return value.astimezone(UTC) if value.tzinfo else value
    except (ValueError, OverflowError):
        return None


def _six_digits(clock: str) -> str:
    whole, point, fraction = clock.partition(".")
    return whole + (point + fraction.ljust(6, "0") if point else "")


def kind_of(value: Value) -> Kind:
    """The family a literal belongs to."""
    if isinstance(value, str):
        return Kind.TEXT
    if isinstance(value, bool):
        return Kind.BOOLEAN
    if isinstance(value, Decimal):
        return Kind.NUMBER
    return Kind.ZONED if value.tzinfo else Kind.TIME


def literal(value: Value) -> str:
    """A literal as SQL text, one spelling per value: `'it''s'`, `TRUE`, `0.5`, `DATE '2024-01-31'`, `TIMESTAMPTZ '...+00'`."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, Decimal):
        return _plain(value)
    text = value.replace(tzinfo=None).isoformat(" ")
    if value.tzinfo:
        return f"TIMESTAMPTZ '{text}+00'"
    return f"DATE '{text[:10]}'" if text.endswith(" 00:00:00") else f"TIMESTAMP '{text}'"


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def fit(value: Value, kind: Kind) -> Value | None:
    """The literal as a column of `kind` compares it: text in ISO form serves as a date, a moment without offset is UTC
    where the column has a zone. None: they cannot be compared."""
    if kind in (Kind.TIME, Kind.ZONED) and isinstance(value, str):
        parsed = moment(value)
        return None if parsed is None else fit(parsed, kind)
    if kind is Kind.ZONED and isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return value if kind is kind_of(value) else None


def single(value: float | Decimal) -> float:
    """The nearest number a FLOAT column can hold."""
    return float(struct.unpack("f", struct.pack("f", value))[0])
