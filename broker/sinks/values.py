"""Values in databases that lack the dataset's types: text and JSON forms, and the way back without loss."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from broker.columnar.types import arrow_type


def is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind))


def to_json(values: pa.Array) -> list[str | None]:
    """Nested values as JSON text: dates in ISO form, decimals as text, bytes in base64, maps as lists of pairs."""
    return [None if value is None else json.dumps(value, default=_leaf, ensure_ascii=False) for value in values.to_pylist()]


def _leaf(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, date | datetime | time) else str(value)


def from_json(texts: Sequence[str | None], kind: pa.DataType) -> pa.Array:
    """The inverse of `to_json`."""
    return pa.array([None if text is None else _restored(json.loads(text), kind) for text in texts], kind)


def _restored(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _restored(value[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return [(_restored(key, kind.key_type), _restored(item, kind.item_type)) for key, item in value]
    if pa.types.is_list(kind):
        return [_restored(item, kind.value_type) for item in value]
    if pa.types.is_decimal(kind):
        return Decimal(value)
    if pa.types.is_binary(kind):
        return base64.b64decode(value)
    if pa.types.is_date(kind):
        return date.fromisoformat(value)
    if pa.types.is_time(kind):
        return time.fromisoformat(value)
    return datetime.fromisoformat(value) if pa.types.is_timestamp(kind) else value


def restored(values: pa.Array, type_name: str) -> pa.Array:
    """What a database gave back, in the dataset's type `type_name`."""
    kind = arrow_type(type_name)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if values.type == kind:
        return values
    if is_nested(kind):
        return from_json(values.to_pylist(), kind)
    if pa.types.is_time(kind):  # Arrow writes a time as text and does not read it
        return pa.array([None if text is None else time.fromisoformat(text) for text in values.to_pylist()], kind)
    return values.cast(kind)
