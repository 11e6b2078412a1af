"""(a) A request that needs no production, answered at submit: 8,000/s from one process, p50 0.5 ms."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.common import Row, percentile, private_broker, seconds
from benchmarks.producers import batch

DATASET = "goodstuff_01/catalog/still"
COUNT = 20_000


def run() -> list[Row]:
    with private_broker(max_unread_responses=10 * COUNT, embedded_maxmemory_bytes=4 << 30) as b:
        b.dataset(DATASET, key=["sku"]).publish(batch(0))
        fields: dict[str, Any] = {"dataset": DATASET, "target": "search", "since": 1, "max_staleness": 3600}
        list(b.requests([fields] * 500))
        spent = seconds(lambda: sum(1 for _ in b.requests(fields for _ in range(COUNT))))
        lone = []
        for _ in range(2_000):
            begun = time.perf_counter()
            b.request(**fields)
            lone.append(time.perf_counter() - begun)
        ping = min(seconds(lambda: b.parts.redis.run("PING")) for _ in range(200))
    rate, p50 = COUNT / spent, percentile(lone, 0.5) * 1000
    return [
        Row("fresh enough, answered at submit", f"{rate:,.0f}/s", "target 8,000/s", rate / 8000, "8,000/s", rate >= 8000),
        Row("the same, one at a time", f"p50 {p50:.2f} ms", f"PING {ping * 1000:.2f} ms", None, "p50 0.5 ms", p50 <= 0.5),
    ]
