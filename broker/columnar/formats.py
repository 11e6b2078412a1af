"""The four formats of files: how each is written, and how DuckDB reads it back with the dataset's types, never sniffed.

Parquet is canonical; the others are derived. In CSV an empty field is NULL and `""` an empty text, as RFC 4180 readers that
care can tell; nested values and blobs are DuckDB's text of them. JSON Lines: NaN and infinities, which JSON lacks, are texts,
and so are decimals of more than 15 digits, which most readers would round.
Arrow: IPC file format (Feather 2), zstd.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from broker.columnar.parquet import Encoder, Hashed, ParquetEncoder
from broker.columnar.sql import listed, quoted, text_literal
from broker.columnar.types import FIXED_TYPES, arrow_schema, cast_type
from broker.errors import Corrupt
from broker.model.dataset import Schema
from broker.model.request import Format

SUFFIXES: Final[dict[str, Format]] = {
    ".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".arrow": "arrow",
}  # fmt: skip
"""How a file's name says its format."""
EXACT_DIGITS: Final = 15  # of a double
MAX_LINE_BYTES: Final = 16 << 20  # DuckDB's readers hold twice this per thread


class CsvEncoder:
    def __init__(self, sink: Hashed, columns: pa.Schema) -> None:
        self._writer = pacsv.CSVWriter(sink, columns, write_options=pacsv.WriteOptions(quoting_style="needed"))

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write(batch)

    def close(self) -> None:
        self._writer.close()


class LinesEncoder:
    """Takes batches of one text column that holds whole lines: their bytes lie in memory as they go to the file."""

    def __init__(self, sink: Hashed, columns: pa.Schema) -> None:
        del columns
        self._sink = sink

    def write(self, batch: pa.RecordBatch) -> None:
        lines = batch.column(0)
        _, offsets, data = lines.buffers()
        ends = memoryview(offsets).cast("i")
        self._sink.write(memoryview(data)[ends[lines.offset] : ends[lines.offset + len(lines)]])

    def close(self) -> None:
        """Nothing is left: each line went out as it came."""


class ArrowEncoder:
    def __init__(self, sink: Hashed, columns: pa.Schema) -> None:
        self._writer = pa.ipc.new_file(sink, columns, options=pa.ipc.IpcWriteOptions(compression="zstd"))

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


ENCODERS: Final[dict[Format, Callable[[Hashed, pa.Schema], Encoder]]] = {
    "parquet": ParquetEncoder, "csv": CsvEncoder, "jsonl": LinesEncoder, "arrow": ArrowEncoder,
}  # fmt: skip


def rendered(sql: str, schema: Schema, form: Format) -> tuple[str, pa.Schema]:
    """The SELECT whose batches a format's encoder takes, and their columns. `sql` gives exactly the columns of `schema`."""
    if form == "jsonl":
        fields = ", ".join(f"{quoted(name)} := {_json(name, kind)}" for name, kind in schema.types.items())
        line = pa.schema([("line", pa.string())])
        return f"SELECT CAST(to_json(struct_pack({fields})) AS VARCHAR) || chr(10) AS line FROM ({sql})", line
    if form == "csv":
        flat = Schema(columns=tuple(c if _plain(c.type) else c.model_copy(update={"type": "VARCHAR"}) for c in schema.columns))
        fields = ", ".join(f"CAST({quoted(name)} AS {cast_type(kind)}) AS {quoted(name)}" for name, kind in flat.types.items())
        return f"SELECT {fields} FROM ({sql})", arrow_schema(flat)
    return f"SELECT {listed(schema.names)} FROM ({sql})", arrow_schema(schema)


def _json(name: str, kind: str) -> str:
    column = quoted(name)
    if _wide_decimal(cast_type(kind)):
        return f"CAST({column} AS VARCHAR)"
    if kind not in ("FLOAT", "DOUBLE"):
        return column
    return f"CASE WHEN isfinite({column}) THEN to_json({column}) ELSE to_json(CAST({column} AS VARCHAR)) END"


def _wide_decimal(kind: str) -> bool:
    """Whether a decimal has more digits than the double which a JSON reader makes of a number."""
    return kind.startswith("DECIMAL(") and int(kind[8:].partition(",")[0]) > EXACT_DIGITS


def _plain(kind: str) -> bool:
    """Whether Arrow writes the type to CSV in a form that DuckDB reads back."""
    return kind in FIXED_TYPES or kind == "VARCHAR" or kind.startswith("DECIMAL")


Columns: TypeAlias = tuple[tuple[str, str], ...]
"""Names of a file's columns, in order, and how each is typed there: '' where the reader is told the types."""


@lru_cache(4096)  # files never change
def file_columns(path: Path, form: Format) -> Columns:
    """The columns a file holds. Raises Corrupt when it is not of its format."""
    try:
        return _READERS[form](path)
    except (pa.ArrowException, ValueError, StopIteration) as error:
        raise Corrupt(f"not a {form} file", of=str(path), why=str(error)[:300]) from None


def _parquet_columns(path: Path) -> Columns:
    return _typed(pq.read_schema(path))


def _csv_columns(path: Path) -> Columns:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple((name, "") for name in next(csv.reader(file)))


def _json_columns(path: Path) -> Columns:
    with path.open(encoding="utf-8") as file:
        return tuple((name, "") for name in json.loads(next(file)))


def _arrow_columns(path: Path) -> Columns:
    with pa.memory_map(str(path)) as source:
        return _typed(pa.ipc.open_file(source).schema)


def _typed(schema: pa.Schema) -> Columns:
    return tuple((field.name, str(field.type)) for field in schema)


_READERS: Final[dict[Format, Callable[[Path], Columns]]] = {
    "parquet": _parquet_columns, "csv": _csv_columns, "jsonl": _json_columns, "arrow": _arrow_columns,
}  # fmt: skip


def bound_name(paths: Iterable[str]) -> str:
    """The name under which a session knows Arrow files, which DuckDB cannot open itself."""
    return "arrow_" + hashlib.sha256("\n".join(paths).encode()).hexdigest()[:32]


def scan_sql(paths: Sequence[str], form: Format, schema: Schema, names: Iterable[str]) -> str:
    """A table expression over files of one format that hold the columns `names`, in that order."""
    listing = f"[{', '.join(map(text_literal, paths))}]"
    if form == "parquet":
        return f"read_parquet({listing})"
    if form == "arrow":
        return bound_name(paths)
    types = {name: cast_type(kind) for name, kind in schema.types.items()}
    if form == "jsonl":
        # DuckDB's JSON reader would leave a blob's escapes as they are; a cast from text resolves them.
        types = {name: "VARCHAR" if kind == "BLOB" or _wide_decimal(kind) else kind for name, kind in types.items()}
    columns = ", ".join(f"{text_literal(name)}: {text_literal(types.get(name, 'VARCHAR'))}" for name in names)
    if form == "jsonl":
        return (
            f"read_json({listing}, format = 'newline_delimited', columns = {{{columns}}}, "
            f"maximum_object_size = {MAX_LINE_BYTES})"
        )
    return (
        f"read_csv({listing}, header = true, auto_detect = false, delim = ',', quote = '\"', escape = '\"', nullstr = '', "
        f"allow_quoted_nulls = false, parallel = false, max_line_size = {MAX_LINE_BYTES}, columns = {{{columns}}})"
    )


def arrow_dataset(path: Path) -> pads.Dataset:
    """An Arrow file as DuckDB may read it, many times."""
    return pads.dataset(path, format="ipc")
