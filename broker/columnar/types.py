"""Arrow types and the dataset's types, which are DuckDB SQL type names: one Arrow type per name, one name per Arrow type.

Encodings are not types: dictionaries, views, large and fixed-size variants become the plain type of their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, cast

import duckdb
import pyarrow as pa
from duckdb.sqltypes import DuckDBPyType
from pydantic import ValidationError

from broker.columnar.sql import quoted
from broker.errors import Invalid, SchemaConflict
from broker.model.dataset import Column, Schema

NULL_TYPE: Final = '"NULL"'
"""DuckDB's name for the type of a column that holds nothing but NULL: fits every type."""
MAX_DECIMAL_DIGITS: Final = 38
SCHEMAS: Final = 4_096
"""Remembered translations: every block and batch of a dataset has the same."""

FIXED_TYPES: Final = frozenset({
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "FLOAT", "DOUBLE",
    "DATE", "TIME", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE",
})  # fmt: skip
"""Types of at most 64 bits, whose 64-bit hash loses nothing."""

_NAMES: Final[dict[pa.DataType, str]] = {
    pa.bool_(): "BOOLEAN", pa.int8(): "TINYINT", pa.int16(): "SMALLINT", pa.int32(): "INTEGER", pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT", pa.uint16(): "USMALLINT", pa.uint32(): "UINTEGER", pa.uint64(): "UBIGINT",
    pa.float16(): "FLOAT", pa.float32(): "FLOAT", pa.float64(): "DOUBLE", pa.null(): NULL_TYPE,
    pa.date32(): "DATE", pa.date64(): "DATE", pa.timestamp("s"): "TIMESTAMP_S", pa.timestamp("ms"): "TIMESTAMP_MS",
    pa.timestamp("us"): "TIMESTAMP", pa.timestamp("ns"): "TIMESTAMP_NS",
}  # fmt: skip
_TYPES: Final[dict[str, pa.DataType]] = {
    "BOOLEAN": pa.bool_(), "TINYINT": pa.int8(), "SMALLINT": pa.int16(), "INTEGER": pa.int32(), "BIGINT": pa.int64(),
    "UTINYINT": pa.uint8(), "USMALLINT": pa.uint16(), "UINTEGER": pa.uint32(), "UBIGINT": pa.uint64(),
    "HUGEINT": pa.decimal128(38, 0), "FLOAT": pa.float32(), "DOUBLE": pa.float64(), "VARCHAR": pa.string(),
    "BLOB": pa.binary(), "DATE": pa.date32(), "TIME": pa.time64("us"), "TIMESTAMP_S": pa.timestamp("s"),
    "TIMESTAMP_MS": pa.timestamp("ms"), "TIMESTAMP": pa.timestamp("us"), "TIMESTAMP_NS": pa.timestamp("ns"),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", tz="UTC"), NULL_TYPE: pa.null(),
}  # fmt: skip

_KINDS: Final[tuple[tuple[Callable[[pa.DataType], bool], str], ...]] = (
    (pa.types.is_string, "VARCHAR"), (pa.types.is_large_string, "VARCHAR"), (pa.types.is_string_view, "VARCHAR"),
    (pa.types.is_binary, "BLOB"), (pa.types.is_large_binary, "BLOB"), (pa.types.is_binary_view, "BLOB"),
    (pa.types.is_fixed_size_binary, "BLOB"), (pa.types.is_time, "TIME"),
)  # fmt: skip
_LISTS: Final = (
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view, pa.types.is_large_list_view,
)  # fmt: skip


def sql_type(kind: pa.DataType, of: str = "") -> str:
    """The SQL name of an Arrow type. Raises SchemaConflict for a type no dataset can hold (`of`: the column)."""
    if isinstance(kind, pa.ExtensionType | pa.BaseExtensionType) and kind.extension_name != "arrow.uuid":
        return sql_type(kind.storage_type, of)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return sql_type(kind.value_type, of)
    if name := _NAMES.get(kind) or next((name for test, name in _KINDS if test(kind)), None):
        return name
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP WITH TIME ZONE"
    if pa.types.is_decimal(kind) and kind.precision <= MAX_DECIMAL_DIGITS and 0 <= kind.scale <= kind.precision:
        return f"DECIMAL({kind.precision},{kind.scale})"
    return _nested(kind, of)


def _nested(kind: pa.DataType, of: str) -> str:
    if any(test(kind) for test in _LISTS):
        return f"{sql_type(kind.value_type, of)}[]"
    if pa.types.is_struct(kind):
        return "STRUCT({})".format(", ".join(f"{quoted(field.name)} {sql_type(field.type, of)}" for field in kind))
    if pa.types.is_map(kind):
        return f"MAP({sql_type(kind.key_type, of)}, {sql_type(kind.item_type, of)})"
    raise SchemaConflict(
        "a column's type is not supported", of=of, why=str(kind), hint="Cast it at the source, for example to text"
    )


def arrow_type(name: str) -> pa.DataType:
    """The one Arrow type that holds a SQL type's values. Raises SchemaConflict for a name that is none."""
    if known := _TYPES.get(name):
        return known
    try:
        return _arrow(duckdb.sqltype(name))
    except (duckdb.Error, KeyError):
        raise SchemaConflict(
            "not a column type", of=name[:100], hint="Use DuckDB's SQL type names, such as DECIMAL(18,2)"
        ) from None


def _arrow(kind: DuckDBPyType) -> pa.DataType:
    match kind.id:
        case "list":
            return pa.list_(_arrow(_child(kind, "child")))
        case "map":
            return pa.map_(_arrow(_child(kind, "key")), _arrow(_child(kind, "value")))
        case "struct":
            return pa.struct([(name, _arrow(_child(kind, name))) for name, _ in kind.children])
        case "decimal":
            (_, precision), (_, scale) = kind.children
            return pa.decimal128(precision, scale)
        case _:
            return _TYPES[str(kind)]


def _child(kind: DuckDBPyType, name: str) -> DuckDBPyType:
    return cast(DuckDBPyType, dict(kind.children)[name])


@lru_cache(SCHEMAS)
def schema_of(schema: pa.Schema) -> Schema:
    """The dataset schema of Arrow columns. Raises SchemaConflict (type), Invalid (names that repeat), InvalidName."""
    return checked(Column(name=field.name, type=sql_type(field.type, field.name), nullable=field.nullable) for field in schema)


def checked(columns: Iterable[Column]) -> Schema:
    """A schema of these columns. Raises Invalid with the field's own reason, not pydantic's report."""
    try:
        return Schema(columns=tuple(columns))
    except ValidationError as error:
        first = error.errors()[0]
        raise Invalid("not a schema", of=str(first["input"])[:100], why=first["msg"]) from None


@lru_cache(SCHEMAS)
def arrow_schema(schema: Schema) -> pa.Schema:
    """The Arrow columns of a dataset schema, nullable as it says."""
    return pa.schema([pa.field(column.name, arrow_type(column.type), column.nullable) for column in schema.columns])


@lru_cache(4096)
def cast_type(name: str) -> str:
    """A type's name as it may stand in SQL: rendered, never the caller's own text. Raises SchemaConflict."""
    return sql_type(arrow_type(name))


def canonical(schema: Schema) -> Schema:
    """The schema with every type under the one name that data of this type has. Raises SchemaConflict for what is no type."""
    return Schema(columns=tuple(column.model_copy(update={"type": _canonical_type(column)}) for column in schema.columns))


def _canonical_type(column: Column) -> str:
    known = column.type.strip().upper()
    try:
        return known if known in _TYPES else cast_type(column.type)
    except SchemaConflict as error:
        raise SchemaConflict(error.what, of=column.name, why=column.type[:100], hint=error.hint) from None
