"""A request that produces a 1,000-row delta on the local store; and 1,000 requests alike at once."""

from __future__ import annotations

import signal
import time
from typing import Any

from benchmarks.common import Row, percentile, private_broker, worker
from broker.errors import BrokerError

DATASET = "goodstuff_01/catalog/moving"
TIMES, CROWD = 60, 1_000


def run() -> list[Row]:
    with private_broker() as b:
        offers = b.dataset(DATASET, key=["sku"])
        with worker(b, "benchmarks.producers:app") as process:
            cursor = b.request(DATASET, target="search").wait(60).cursor
            spent = []
            for _ in range(TIMES):
                begun = time.perf_counter()
                cursor = b.request(DATASET, target="search", since=cursor).wait(30).cursor
                spent.append(time.perf_counter() - begun)
            before = offers.latest()
            assert before is not None
            begun = time.perf_counter()
            fields: dict[str, Any] = {"dataset": DATASET, "target": "crowd", "since": cursor, "where": "price < 50"}
            process.send_signal(signal.SIGSTOP)  # so that all are there at once when it goes on
            handles = list(b.requests([fields] * CROWD))
            process.send_signal(signal.SIGCONT)
            answered = sum(not isinstance(handle, BrokerError) and bool(handle.wait(30).version) for handle in handles)
            crowd = time.perf_counter() - begun
            after = offers.latest()
            assert after is not None
            productions = after.version - before.version
        files = {file.key for response in b.responses("crowd").peek(CROWD) for file in response.completion.files}
    p50 = percentile(spent, 0.5) * 1000
    exact = productions == 1 and answered == CROWD and len(files) == 1
    found = f"{crowd:.2f} s: {productions} production, {len(files)} derived file, {answered} completions"
    return [
        Row("request that produces a 1,000-row delta", f"p50 {p50:.1f} ms", "", None, "p50 10 ms", p50 <= 10),
        Row("1,000 requests alike at once", found, "", 1 / crowd, "under 1 s", exact and crowd < 1),
    ]
