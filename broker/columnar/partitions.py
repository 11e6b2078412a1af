"""A fresh snapshot in partitions: a file has the rows of a range of key buckets, so that a key is looked for in one file alone.

The buckets are those of the content digest: files, repair and erasure mean the same rows by one number. Rows are dealt out as
they stream by and keep their order: to sort them all costs half a merge more, and by bucket they compress worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Self

import pyarrow as pa
import pyarrow.compute as pc

from broker.columnar.digest import BUCKETS, bucket_sql
from broker.columnar.merge import own_name
from broker.columnar.parquet import ParquetEncoder, Target
from broker.columnar.sql import quoted
from broker.model.commit import Edge

PARTITIONS: Final = 8
"""At most: each has a file open, with rows in memory until they make a row group, and parts of 16 MiB on their way to S3."""
PARTITION_ROWS: Final = 131_072
"""At least: for fewer, what a file costs whoever reads all of it, a request and a footer, outweighs what others skip."""
SHARE: Final = 1 / 4
"""Of a row group as a lone file has it: 128 MiB in memory for 8 files."""


@dataclass(frozen=True)
class Partitions:
    """`count`: a power of two, so that the partitions of all snapshots nest. One partition is not said in the record."""

    count: int

    @classmethod
    def of(cls, edges: Sequence[Edge]) -> Self:
        """For the snapshot that these edges are merged into; a small one stays in one file."""
        rows = sum(file.rows for edge in edges for file in edge.files if file.role in ("rows", "upserts"))
        return cls(1 << max(0, min(PARTITIONS, rows // PARTITION_ROWS).bit_length() - 1))

    def targets(self, target: Target) -> list[Target]:
        """One for each partition."""
        if self.count == 1:
            return [target]
        width, encoder = BUCKETS // self.count, partial(ParquetEncoder, share=SHARE)
        return [replace(target, encoder=encoder, buckets=(at, at + width - 1)) for at in range(0, BUCKETS, width)]

    def sql(self, rows: str, columns: pa.Schema, key: Sequence[str]) -> str:
        """The rows of a SELECT, and behind their columns the number of the partition, for `dealt`."""
        if self.count == 1:
            return rows
        name = quoted(own_name(columns.names, "partition"))
        return f"SELECT *, ({bucket_sql(key)} // {BUCKETS // self.count})::UTINYINT AS {name} FROM ({rows})"

    def dealt(self, batches: Iterable[pa.RecordBatch], columns: pa.Schema) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Rows of each partition with its number, batch by batch, in exactly these columns. A piece is memory of its own."""
        if self.count == 1:
            yield from ((0, batch) for batch in cast(batches, columns))
            return
        for batch in batches:
            (rows,), numbers = cast([batch.select(columns.names)], columns), batch.column(batch.num_columns - 1)
            order, start = pc.sort_indices(numbers), 0  # stable, so that the rows' order is kept
            for run in numbers.take(order).value_counts():
                number, count = run["values"].as_py(), run["counts"].as_py()
                yield number, rows.take(order.slice(start, count))
                start += count


def cast(batches: Iterable[pa.RecordBatch], columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """DuckDB's batches with exactly these columns: its time zone is `Etc/UTC`, and all it gives may be null."""
    return (batch if batch.schema == columns else batch.cast(columns) for batch in batches)
