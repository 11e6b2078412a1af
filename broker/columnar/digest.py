"""Content digests: what a replica proves that it holds. As SQL text; no I/O.

A row's text names every column's value by its length, so no two rows share one, and NULL is none of them. Each row is hashed to
128 bits (MD5), the hashes are added up: no order of rows, no split into files or batches changes the sum. Sums are kept by key
bucket, so that two replicas which differ know where, and fetch no more than that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from broker.columnar.sql import quoted
from broker.model.dataset import Schema

BUCKETS: Final = 256
"""Key buckets: of a million rows, a single wrong one costs the fetch of four thousand."""
_HALF: Final = 1 << 64
_ALIKE: Final = {"HUGEINT": "DECIMAL(38,0)"}
"""Arrow has one type for both, and their values have one text."""
_FLOATS: Final = ("FLOAT", "DOUBLE")
STEADY: Final = frozenset({
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
    "VARCHAR", "BLOB", "DATE", "TIME", "TIMESTAMP_S", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE",
})  # fmt: skip
"""Types of keys that were in the bucket where they are now before their column was widened to this type, and whose equal values
are in one bucket: 1.5 becomes 1.50 in a wider decimal, a date a time, and -0.0 is 0.0."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The rows of one key bucket: how many, and the two halves of the sum of their hashes."""

    number: int
    rows: int
    upper: int
    lower: int


@dataclass(frozen=True, slots=True)
class ContentDigest:
    """`text`: 32 hex digits, equal for equal content of equal columns. Buckets without rows are left out.

    `columns`: 16 hex digits, equal for columns of equal names and types.
    """

    rows: int
    text: str
    buckets: tuple[Bucket, ...] = ()
    columns: str = ""

    def differing(self, other: ContentDigest) -> tuple[int, ...]:
        """Numbers of the buckets in which the two differ."""
        mine, theirs = ({bucket.number: bucket for bucket in side.buckets} for side in (self, other))
        return tuple(sorted(number for number in mine.keys() | theirs.keys() if mine.get(number) != theirs.get(number)))


def buckets_sql(schema: Schema, key: Sequence[str], relation: str) -> str:
    """One row per key bucket: number, rows, and the sums of the halves, to be read by `digest_of`."""
    row = _joined(_value(column.name, column.type) for column in schema.columns)
    hashed = f"SELECT {bucket_sql(key)} AS b, md5_number({row}) AS n FROM ({relation})"
    upper, lower = (f"sum(({half})::UBIGINT)::VARCHAR" for half in (f"n & {_HALF - 1}", "n >> 64"))
    return f"SELECT b, count(*), {upper}, {lower} FROM ({hashed}) GROUP BY b ORDER BY b"


def bucket_sql(key: Sequence[str]) -> str:
    """The key bucket of a row, from 0 to BUCKETS - 1. Part of the records' format (`File.buckets`): never changes.

    It is md5_number_lower % BUCKETS, at a fifth of the price: DuckDB takes more time to part the hash than to make it.
    """
    return f"((md5_number({_joined(map(_value, key))}) >> 64) & {BUCKETS - 1})::INTEGER"


def digest_of(schema: Schema, found: Iterable[tuple[int, int, str, str]]) -> ContentDigest:
    """From the rows of `buckets_sql`."""
    buckets = tuple(Bucket(number, rows, int(upper) % _HALF, int(lower) % _HALF) for number, rows, upper, lower in found)
    rows = sum(bucket.rows for bucket in buckets)
    upper, lower = (sum(halves) % _HALF for halves in ([b.upper for b in buckets], [b.lower for b in buckets]))
    columns = "\n".join(f"{column.name}\t{_ALIKE.get(column.type, column.type)}" for column in schema.columns)
    text = _sha256(f"{columns}\n{rows} {upper} {lower}")
    return ContentDigest(rows, text[:32], buckets, _sha256(columns)[:16])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _value(name: str, type: str = "") -> str:
    """A value's text. -0.0 is 0.0, as it is to SQL: a database may keep either for the other."""
    return f"CAST({quoted(name)}{f' + CAST(0 AS {type})' if type in _FLOATS else ''} AS VARCHAR)"


def _joined(values: Iterable[str]) -> str:
    return " || ".join(f"coalesce(strlen({value}) || ':' || {value}, '-')" for value in values)
