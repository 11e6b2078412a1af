"""(channels) A promotion is one commit: p50 3 ms on the local store, whatever the size of the data."""

from __future__ import annotations

import os
import tempfile
import time

from benchmarks.common import ROOT, Row, percentile, private_broker, seconds
from benchmarks.producers import batch

DATASET = "goodstuff_01/catalog/promoted"
COUNT = 300
TRIPS = 3
"""Round trips to Redis: the lease with a look at both heads, reserve, publish."""


def run() -> list[Row]:
    with private_broker() as b:
        offers, spent = b.dataset(DATASET, key=["sku"]), list[float]()
        for number in range(2):
            offers.publish(batch(number))
        for number in range(COUNT):
            begun = time.perf_counter()
            offers.promote(number % 2 + 1, to="production")
            spent.append(time.perf_counter() - begun)
        ping = percentile([seconds(lambda: b.parts.redis.run("PING")) for _ in range(COUNT)], 0.5)
    p50, floor = percentile(spent, 0.5) * 1000, (TRIPS * ping + 2 * _sync_seconds()) * 1000
    peer = f"{TRIPS} PING and 2 fsync: {floor:.2f} ms"
    return [Row("promotion, one at a time", f"p50 {p50:.2f} ms", peer, p50 / floor, "p50 3 ms", p50 <= 3)]


def _sync_seconds() -> float:
    """What the disk takes to keep a small file: the median of what a seal waits for twice, for the file and its folder."""
    with tempfile.TemporaryFile(dir=ROOT.parent if os.access(ROOT.parent, os.W_OK) else None, buffering=0) as file:

        def kept() -> None:
            file.write(b"x" * 500)
            os.fsync(file.fileno())

        return percentile([seconds(kept) for _ in range(COUNT)], 0.5)
