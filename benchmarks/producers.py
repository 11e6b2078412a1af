"""The application whose worker the benchmarks run."""

from __future__ import annotations

import pyarrow as pa

import broker
from broker.outcomes import ProductionRequest, Since

app = broker.Producers()
ROWS = 1_000


def batch(version: int) -> pa.Table:
    """1,000 offers as of a version."""
    return pa.table({"sku": [f"s{i:06d}" for i in range(ROWS)], "price": [float(version + i % 100) for i in range(ROWS)]})


@app.producer("*/catalog/still")
def still(_: ProductionRequest, since: Since | None) -> broker.Snapshot | broker.Unchanged:
    """A source in which nothing ever changes."""
    return broker.Unchanged() if since else broker.Snapshot(batch(0))


@app.producer("*/catalog/moving")
def moving(_: ProductionRequest, since: Since | None) -> broker.Snapshot | broker.Delta:
    """A source in which 1,000 rows change between any two looks."""
    return broker.Delta(batch(since.version)) if since else broker.Snapshot(batch(0))
