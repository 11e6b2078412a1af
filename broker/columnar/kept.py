"""A stream on its way past, kept in a private Parquet file because it must be read again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from broker.columnar.parquet import Hashed, ParquetEncoder
from broker.columnar.scratch import Scratch


class Kept:
    """The file goes when the block ends. `path` may be read once `watch` has come to its end."""

    def __init__(self, folder: Path, columns: pa.Schema) -> None:
        self._scratch = Scratch(folder / f"{uuid.uuid4().hex}.parquet")
        self._sink = Hashed(self._scratch)
        self._encoder = ParquetEncoder(self._sink, columns)
        self._names = columns.names

    @property
    def path(self) -> Path:
        return self._scratch.path

    def watch(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches; the columns wanted of them are noted on the way."""
        for batch in batches:
            self._encoder.write(batch.select(self._names))
            yield batch
        self._encoder.close()
        self._sink.flush()
        self._scratch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sink.drop()
