"""A producer's cycle of 3,000,000 rows, beside the fixed reference for Netflix Hollow (shared/PEERS.md; not run here)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.common import ROOT, Row, forget_peak, offers, peak_text, private_broker, seconds
from broker.connect import Broker, Dataset

ROWS, CHANGED_EVERY = 3_000_000, 100
DATASET = "goodstuff_01/catalog/offers"
HOLLOW_SNAPSHOT, HOLLOW_DELTA = 370_000, 700_000
"""Rows a second: the whole state written as a snapshot; the next state, 1 % changed, taken in and its delta written."""


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as folder, private_broker() as b:
        feed = Path(folder) / "feed.parquet"
        pq.write_table(offers(ROWS, changed_every=CHANGED_EVERY), feed, compression="zstd")
        dataset = b.dataset(DATASET, key=["sku"])
        snapshot, memory = _snapshot(b, dataset)
        forget_peak()
        delta, delta_memory = ROWS / seconds(lambda: dataset.publish(feed, delta=True)), peak_text(b)
        assert dataset.state.version == 2
    return [
        _row("snapshot of 3,000,000 rows", (snapshot, f"{memory}, the table among it"), HOLLOW_SNAPSHOT, 5),
        _row("next state, 1 % changed: its delta", (delta, delta_memory), HOLLOW_DELTA, 2),
    ]


def _snapshot(b: Broker, dataset: Dataset) -> tuple[float, str]:
    """The table is let go behind it, so that it does not count for the delta."""
    table = offers(ROWS)
    forget_peak()
    return ROWS / seconds(lambda: dataset.publish(table)), peak_text(b)


def _row(work: str, measured: tuple[float, str], reference: int, target: int) -> Row:
    rate, memory = measured
    peer = f"Hollow, fixed reference, {reference:,} rows/s"
    return Row(work, f"{rate:,.0f} rows/s ({memory})", peer, rate / reference, f"{target}x", rate >= target * reference)
