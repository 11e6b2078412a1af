"""(b) Through the stream, a worker and a producer that answers `Unchanged`; beside task queues with an empty handler.

Each peer runs one worker process on the same kind of Redis; a lone task gives the latency, 256 in flight the rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.common import Row, percentile, private_broker, worker
from benchmarks.peers import celery_rate, huey_rate
from benchmarks.producers import batch
from broker.connect import Broker
from broker.errors import BrokerError

DATASET = "goodstuff_01/catalog/still"
COUNT, IN_FLIGHT, LONE = 10_000, 256, 500


def through(b: Broker, count: int, in_flight: int) -> tuple[float, list[float]]:
    """Requests per second and latencies in seconds, with `in_flight` open at a time."""
    fields = {"dataset": DATASET, "target": "search", "since": 1}
    responses, born, latencies, sent = b.responses("search"), dict[str, float](), list[float](), 0
    begun = time.perf_counter()
    while len(latencies) < count:
        room = min(in_flight - len(born), count - sent)
        if room >= min(8, in_flight) or (room and sent + room == count):
            now = time.perf_counter()
            for handle in b.requests([fields] * room):
                if isinstance(handle, BrokerError):
                    raise handle
                born[handle.id] = now
            sent += room
        arrived = responses.read(in_flight, 1.0)
        now = time.perf_counter()
        latencies += [now - born.pop(response.id) for response in arrived if response.id in born]
        responses.ack(arrived)
    responses.close()
    return count / (time.perf_counter() - begun), latencies


def run() -> list[Row]:
    with private_broker(max_unread_responses=10 * COUNT, embedded_maxmemory_bytes=4 << 30) as b:
        b.dataset(DATASET, key=["sku"]).publish(batch(0))
        with worker(b, "benchmarks.producers:app"):
            through(b, 500, 64)
            _, lone = through(b, LONE, 1)
            rate, _ = through(b, COUNT, IN_FLIGHT)
        p50 = percentile(lone, 0.5) * 1000
    rows = [
        Row("through stream, worker and producer", f"{rate:,.0f}/s", "target 3,000/s", rate / 3000, "3,000/s", rate >= 3000),
        Row("the same, one at a time", f"p50 {p50:.2f} ms", "", None, "p50 2 ms", p50 <= 2.0),
    ]
    rows.append(_beside("huey", huey_rate, rate, 1.0))
    rows.append(_beside("celery", celery_rate, rate, 4.0))
    return rows


def _beside(name: str, measure: Callable[[int], float], rate: float, least: float) -> Row:
    theirs = measure(COUNT // 5)
    return Row(
        f"beside {name}, empty handler",
        f"{rate:,.0f}/s",
        f"{name} {theirs:,.0f}/s",
        rate / theirs,
        f"{least:g}x",
        rate >= least * theirs,
    )
