"""Data on its way in: whatever a producer gives becomes one stream of Arrow batches in the dataset's own columns and types.

A producer's own exception passes through unchanged, whenever its iterator raises it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from broker.columnar.rows import batches_of_rows
from broker.columnar.types import NULL_TYPE, arrow_schema, checked, schema_of
from broker.errors import BadData, Invalid, NotFound, NullKey
from broker.model.commit import Role
from broker.model.dataset import DatasetSpec, Schema

Intake: TypeAlias = Any
"""What `opened` takes: see its docstring."""

BATCH_ROWS: Final = 131_072


@dataclass(frozen=True)
class Accepted:
    """A stream whose batches have exactly `columns` (of `schema`, in its order), and the dataset's schema after this data."""

    batches: Iterator[pa.RecordBatch]
    columns: pa.Schema
    schema: Schema


def reader_of(data: Intake, spec: DatasetSpec) -> pa.RecordBatchReader:
    """The data in the dataset's columns and types, canonical Arrow, as a stream.

    Raises SchemaConflict before the first batch; NullKey and BadData, naming row and column, while it is read.
    """
    taken = accept(data, spec)
    return pa.RecordBatchReader.from_batches(taken.columns, taken.batches)


def accept(data: Intake, spec: DatasetSpec) -> Accepted:
    """Whole rows. New nullable columns and lossless widening change the schema; the caller notes that in the log."""
    source = opened(data, spec.columns)
    schema = settled(spec, source.schema)
    columns = arrow_schema(schema)
    return Accepted(conformed(source, columns, spec.key), columns, schema)


def accept_deletes(data: Intake, spec: DatasetSpec, schema: Schema | None) -> Accepted:
    """Keys (and order, where the dataset has order columns) of rows to delete; other columns are left behind.

    `schema` is the dataset's; None: nothing is known but these columns.
    """
    names = (*spec.key, *spec.order)
    source = opened(data, schema, names)
    missing = [name for name in names if source.schema.get_field_index(name) < 0]
    if missing:
        raise BadData(
            "deletes lack columns", of=str(spec.dataset), why=f"no {', '.join(missing)} in {source.schema.names}",
            hint="A delete names the whole key and, where the dataset has an order, its place in it",
        )  # fmt: skip
    arriving = pa.schema([source.schema.field(name) for name in names])
    known = spec.model_copy(update={"columns": schema})
    settled_schema = settled(known, arriving, whole=False)
    columns = pa.schema([arrow_schema(settled_schema).field(name) for name in names])
    return Accepted(conformed(source, columns, spec.key), columns, settled_schema)


def settled(spec: DatasetSpec, arriving: pa.Schema, *, whole: bool = True) -> Schema:
    """The dataset's schema after data with these columns. Key columns are never null. Raises SchemaConflict.

    `whole` False: the data names some columns only, which says nothing of the others.
    """
    if whole and spec.columns is not None and arriving == arrow_schema(spec.columns):
        return spec.columns
    incoming = schema_of(arriving)
    if spec.columns is None:
        spec.check(incoming)
        return checked(
            column.model_copy(
                update={
                    "nullable": column.nullable and column.name not in spec.key,
                    "type": "VARCHAR" if column.type == NULL_TYPE else column.type,
                }
            )
            for column in incoming.columns
        )
    if not whole:
        named = set(incoming.names)
        incoming = checked((*incoming.columns, *(column for column in spec.columns.columns if column.name not in named)))
    spec.check(incoming)
    try:
        return spec.columns.merged(incoming, spec.order)
    except ValidationError as error:
        raise Invalid("not a schema", of=str(spec.dataset), why=error.errors()[0]["msg"]) from None


def opened(data: Intake, schema: Schema | None, named: Sequence[str] = ()) -> pa.RecordBatchReader:
    """The data as a stream, in its own types. Python rows must name the columns `named`, if only as None.

    Taken are: a RecordBatchReader, Table or RecordBatch; anything with `__arrow_c_stream__` (polars, pandas, DuckDB); the
    path of a Parquet file; an iterable of RecordBatches, mappings or pydantic objects (rows take their types from `schema`
    where it knows the column). Raises BadData for anything else and for a file that is not whole, NotFound for none.
    """
    if isinstance(data, pa.RecordBatchReader):
        return data
    if isinstance(data, pa.Table):
        return data.to_reader(max_chunksize=BATCH_ROWS)
    if isinstance(data, pa.RecordBatch):
        return pa.RecordBatchReader.from_batches(data.schema, iter([data]))
    if isinstance(data, str | Path):
        return _opened_file(Path(data))
    if hasattr(data, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(data)
    if isinstance(data, Iterable) and not isinstance(data, Mapping | bytes):
        return _opened_iterable(iter(data), schema, named)
    raise BadData(
        "this is no data", of=type(data).__name__,
        hint="Give an Arrow table or stream, a DataFrame, a Parquet path, or an iterable of dicts",
    )  # fmt: skip


def _opened_file(path: Path) -> pa.RecordBatchReader:
    with _parquet_errors(path):
        file = pq.ParquetFile(path)

    def batches() -> Iterator[pa.RecordBatch]:
        with _parquet_errors(path):
            yield from file.iter_batches(BATCH_ROWS)

    return pa.RecordBatchReader.from_batches(file.schema_arrow, batches())


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound("no such file", of=str(path)) from None
    except (pa.ArrowException, OSError) as error:
        raise BadData("not a whole Parquet file", of=str(path), why=str(error)[:300]) from None


def _opened_iterable(items: Iterator[Any], schema: Schema | None, named: Sequence[str]) -> pa.RecordBatchReader:
    for first in items:
        everything = chain([first], items)
        if isinstance(first, pa.RecordBatch):
            return pa.RecordBatchReader.from_batches(first.schema, everything)
        return batches_of_rows(everything, schema, named)
    if schema is None:
        raise BadData(
            "nothing came, so no columns are known", hint="Give an empty Arrow table, or create the dataset with a schema"
        )
    return pa.RecordBatchReader.from_batches(arrow_schema(schema), iter(()))


def conformed(source: pa.RecordBatchReader, columns: pa.Schema, key: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """The source's batches with exactly `columns`: absent ones NULL, encodings resolved, types widened. Nulls are checked."""
    row = 0
    for batch in source:
        arrays = [_column(batch, field) for field in columns]
        for field, array in zip(columns, arrays, strict=True):
            if array.null_count and (field.name in key or not field.nullable):
                raise _null(field.name, array, row, in_key=field.name in key)
        yield pa.RecordBatch.from_arrays(arrays, schema=columns)
        row += batch.num_rows


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    index = batch.schema.get_field_index(field.name)
    if index < 0:
        return pa.nulls(batch.num_rows, field.type)
    array = batch.column(index)
    if array.type == field.type:
        return array
    try:
        return _cast(array, field.type)
    except pa.ArrowException as error:
        raise BadData("a column does not fit the dataset's type", of=field.name, why=str(error)[:300]) from None


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        return _cast(array.storage, kind)
    if pa.types.is_run_end_encoded(array.type):
        return _cast(pc.run_end_decode(array), kind)
    if pa.types.is_dictionary(array.type):
        return _cast(array.dictionary_decode(), kind)
    return array if array.type == kind else array.cast(kind)


def _null(name: str, array: pa.Array, row: int, *, in_key: bool) -> BadData:
    first = row + pc.index(array.is_null(), True).as_py()
    why = f"{array.null_count} null(s) in this batch, the first in row {first} (counted from 0)"
    if in_key:
        return NullKey("a key is null", of=name, why=why, hint="Every row needs its whole key")
    return BadData("a value is null", of=name, why=f"{why}; the dataset says the column is never null")


def changed_sides(
    spec: DatasetSpec, upserts: Intake | None, deletes: Intake | None
) -> tuple[list[tuple[Role, Accepted]], Schema | None]:
    """Both sides of a delta, as far as they are given, and the dataset's schema behind them (None: there is none yet)."""
    sides: list[tuple[Role, Accepted]] = []
    schema = spec.columns
    if upserts is not None:
        sides.append(("upserts", accept(upserts, spec)))
        schema = sides[-1][1].schema
    if deletes is not None:
        sides.append(("deletes", accept_deletes(deletes, spec, schema)))
        schema = sides[-1][1].schema
    return sides, schema
