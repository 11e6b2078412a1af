"""One file of rows for people and other programs, written batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from broker.columnar.sql import text_literal
from broker.errors import BadData, Unavailable

FORMATS: Final = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".arrow": "arrow"}
"""Suffix -> format."""
_OPTIONS: Final = {"parquet": "FORMAT parquet, COMPRESSION zstd", "csv": "FORMAT csv, HEADER", "jsonl": "FORMAT json"}


def write_file(rows: pa.RecordBatchReader, path: Path, form: str, advance: Callable[[float], None]) -> int:
    """Write all rows to `path` and count them. Raises Unavailable (the disk), BadData (a value the format cannot hold)."""
    counter = _Counter(rows, advance)
    try:
        if form == "arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
                for batch in counter:
                    writer.write_batch(batch)
        else:
            stream = pa.RecordBatchReader.from_batches(rows.schema, iter(counter))
            with duckdb.connect() as engine:
                engine.execute("SET TimeZone = 'UTC'")
                engine.register("stream", stream)
                engine.execute(f"COPY (SELECT * FROM stream) TO {text_literal(str(path))} ({_OPTIONS[form]})")
    except (OSError, duckdb.IOException) as error:
        raise Unavailable("the file cannot be written", of=str(path), why=str(error)[:300]) from None
    except duckdb.Error as error:
        raise BadData("the rows do not fit the format", of=form, why=str(error)[:300]) from None
    return counter.rows


class _Counter:
    """Passes batches on and counts their rows."""

    def __init__(self, batches: pa.RecordBatchReader, advance: Callable[[float], None]) -> None:
        self._batches, self._advance, self.rows = batches, advance, 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            self._advance(batch.num_rows)
            yield batch
