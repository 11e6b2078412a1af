"""A producer that stops half way until the file named by TELLING_FILE exists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from broker import Producers, ProductionRequest, Since, Snapshot
from tests.servers import wait_until

app = Producers()
COLUMNS = pa.schema({"sku": pa.string()})


@app.producer("*/*/*")
def halves(request: ProductionRequest, since: Since | None) -> Snapshot:
    del request, since
    return Snapshot(pa.RecordBatchReader.from_batches(COLUMNS, _batches()))


def _batches() -> Iterator[pa.RecordBatch]:
    yield pa.record_batch({"sku": ["a", "b", "c"]}, schema=COLUMNS)
    wait_until(Path(os.environ["TELLING_FILE"]).exists, "the test's go")
    yield pa.record_batch({"sku": ["d"]}, schema=COLUMNS)
