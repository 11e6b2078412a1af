"""The four formats of files: how each is written, and how DuckDB reads it back with the dataset's types, never sniffed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from broker.columnar.sql import text_literal
from broker.errors import Corrupt, Unsupported
from broker.model.dataset import Schema
from broker.model.request import Format


@lru_cache(4096)  # files never change
def file_columns(path: Path, form: Format) -> tuple[str, ...]:
    """Names of the columns a file holds. Raises Corrupt when it is not of its format."""
    if form != "parquet":
        raise Unsupported("not yet", of=form)
    try:
        return tuple(pq.read_schema(path).names)
    except pa.ArrowException as error:
        raise Corrupt("not a Parquet file", of=str(path), why=str(error)[:300]) from None


def scan_sql(paths: Sequence[str], form: Format, schema: Schema, names: Iterable[str]) -> str:
    """A table function over files of one format that hold the columns `names`."""
    del form, schema, names
    listing = ", ".join(text_literal(path) for path in paths)
    return f"read_parquet([{listing}])"
