"""Python rows into Arrow batches: chunks of 10,000, types given by the dataset or inferred once, errors that name the row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import pyarrow as pa

from broker.columnar.types import arrow_type
from broker.errors import BadData, SchemaConflict
from broker.model.dataset import Schema

CHUNK_ROWS: Final = 10_000

Row = Mapping[str, Any]


def batches_of_rows(items: Iterable[Any], schema: Schema | None, named: Sequence[str] = ()) -> pa.RecordBatchReader:
    """Mappings or pydantic objects as a stream. Columns `schema` does not know are inferred over the first chunk.

    Raises BadData (not a row, one without a column of `named`, a value that does not fit) and SchemaConflict (a new column
    behind the first chunk).
    """
    chunks = _chunks(enumerate(items), named)
    first = next(chunks, [])
    columns = _columns(first, schema)

    def batches() -> Iterator[pa.RecordBatch]:
        yield _batch(first, columns, 0)
        done = len(first)
        for chunk in chunks:
            yield _batch(chunk, columns, done)
            done += len(chunk)

    return pa.RecordBatchReader.from_batches(columns, batches())


def _chunks(items: Iterator[tuple[int, Any]], named: Sequence[str]) -> Iterator[list[Row]]:
    while chunk := [_row(item, number) for number, item in islice(items, CHUNK_ROWS)]:
        for name in named:
            _check_named(chunk, name)
        yield chunk


def _check_named(chunk: list[Row], name: str) -> None:
    for row in chunk:
        if name not in row:
            raise BadData(
                "a delete lacks a column", of=name, why=f"in {dict(row)!r:.80}",
                hint="A delete names the whole key and, where the dataset has an order, its place in it, if only as None",
            )  # fmt: skip


def _row(item: Any, number: int) -> Row:
    if isinstance(item, Mapping):
        return item
    if hasattr(item, "model_dump"):
        fields: dict[str, Any] = item.model_dump()
        return fields
    raise BadData(
        "this is no row", of=type(item).__name__, why=f"row {number}: {item!r:.80}", hint="Give dicts or pydantic objects"
    )


def _columns(rows: list[Row], schema: Schema | None) -> pa.Schema:
    """The dataset's columns, then those only these rows have, in order of appearance."""
    known = schema.types if schema else {}
    names = dict.fromkeys((*known, *(name for row in rows for name in row)))
    if strange := [name for name in names if not isinstance(name, str)]:
        raise BadData("a column's name is no text", of=repr(strange[0])[:80], hint="Give rows whose keys are column names")
    return pa.schema([(name, arrow_type(known[name]) if name in known else _inferred(rows, name)) for name in names])


def _inferred(rows: list[Row], name: str) -> pa.DataType:
    values = [row.get(name) for row in rows]
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError):
        raise _misfit(values, name, None, 0) from None


def _batch(rows: list[Row], columns: pa.Schema, done: int) -> pa.RecordBatch:
    known = frozenset(columns.names)
    for number, row in enumerate(rows, done):
        if not known.issuperset(row):
            raise SchemaConflict(
                "a column appeared in the middle", of=", ".join(sorted(set(map(str, row)) - known)),
                why=f"row {number} has it, the first {min(done, CHUNK_ROWS) or CHUNK_ROWS} rows do not",
                hint="Create the dataset with a schema, or give every column in the first rows",
            )  # fmt: skip
    return pa.RecordBatch.from_arrays([_array(rows, field, done) for field in columns], schema=columns)


def _array(rows: list[Row], field: pa.Field, done: int) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        raise _misfit(values, field.name, field.type, done) from None


def _misfit(values: list[Any], name: str, kind: pa.DataType | None, done: int) -> BadData:
    """Names the first value that does not fit `kind`, or (None) the first that does not fit those before it."""
    fitting: list[Any] = []
    for number, value in enumerate(values, done):
        if value is None:
            continue
        try:
            pa.array([*fitting, value], kind)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            wanted = kind or (pa.array(fitting).type if fitting else "of any Arrow type")
            return BadData("a value does not fit its column", of=name, why=f"row {number}: {value!r:.80} is not {wanted}")
        fitting = [value]
    return BadData("values do not fit their column", of=name, why=f"rows from {done} on are not {kind or 'of one type'}")
