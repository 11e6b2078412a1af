"""Blocks of the change log as Arrow: rows split over the log slots by key, each part a payload of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from zlib import crc32

import pyarrow as pa
import pyarrow.compute as pc

from broker.columnar.crc32 import crc32s
from broker.errors import Corrupt
from broker.rules.blocks import SEPARATOR

COMPRESS_BYTES: Final = 8 << 10
"""Smaller parts stay as they are: setting up lz4 costs more than it saves."""
_LZ4: Final = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_PLAIN: Final = pa.ipc.IpcWriteOptions(use_threads=False)


def encoded(rows: pa.RecordBatch) -> bytes:
    """The rows as an Arrow IPC stream: schema and data, lz4 where it pays."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=_LZ4 if rows.nbytes >= COMPRESS_BYTES else _PLAIN) as writer:
        writer.write_batch(rows)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def decoded(payload: bytes, of: str = "") -> pa.Table:
    """The rows of an entry's payload, in the columns they had when they were appended. Raises Corrupt."""
    try:
        with pa.ipc.open_stream(payload) as reader:
            return reader.read_all()
    except (pa.ArrowException, OSError) as error:
        raise Corrupt("a block of the change log cannot be read", of=of, why=str(error)[:300]) from None


def split(rows: pa.RecordBatch, key: Sequence[str], slots: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(slot, its rows in their order) for each slot that has any: `rules.blocks.slot_of_key` of each row."""
    if slots == 1 or rows.num_rows == 0:
        if rows.num_rows:
            yield 0, rows
        return
    texts = key_texts(rows, key)
    if rows.num_rows == 1:
        yield crc32(texts[0].as_py()) % slots, rows
        return
    hashes = crc32s(texts)
    whole = pc.multiply(pc.divide(hashes, pa.scalar(slots, pa.uint32())), pa.scalar(slots, pa.uint32()))
    found = pc.subtract(hashes, whole).cast(pa.uint8())
    for slot in sorted(pc.unique(found).to_pylist()):
        yield slot, rows.filter(pc.equal(found, slot))


def key_texts(rows: pa.RecordBatch, key: Sequence[str]) -> pa.Array:
    """The canonical text of each row's key, as bytes. A key's text outlives lossless widening of its columns' types."""
    texts = [_text(rows.column(name)) for name in key]
    if len(texts) == 1:
        return texts[0]
    return pc.binary_join_element_wise(*texts, SEPARATOR.encode())


def _text(column: pa.Array) -> pa.Array:
    """Text by the widest type the column may grow to."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return column.cast(pa.binary())
    if pa.types.is_floating(kind):
        column = pc.add(column.cast(pa.float64()), 0.0)  # -0.0 is the same key as 0.0
    elif pa.types.is_decimal(kind):
        column = column.cast(pa.decimal256(76, 38))
    elif pa.types.is_date(kind):
        column = column.cast(pa.date32()).cast(pa.timestamp("us"))
    elif pa.types.is_timestamp(kind) and kind.unit != "ns":
        column = column.cast(pa.timestamp("us", tz=kind.tz)).cast(pa.int64())
        return column.cast(pa.string()).cast(pa.binary())
    try:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        return column.cast(pa.string()).cast(pa.binary())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pa.array([repr(value).encode() for value in column.to_pylist()], pa.binary())
