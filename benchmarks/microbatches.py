"""Micro-batches: records through the change log into versions, the latency of a lone record, and a thousand quiet datasets.

One appender (this process), one micro-batcher (`broker worker --role microbatch`), Redis and the store share this machine.
BROKER_BENCH_SECONDS: how long records flow (default 60, as the claim says).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from threading import Event
from typing import Any

import pyarrow as pa

from benchmarks.common import MEBIBYTE, ROOT, Row, offers, peak_bytes, percentile, private_broker
from broker.backend.logs import Logs
from broker.connect import Broker, Dataset
from broker.errors import Overloaded
from broker.settings import home_folder
from broker.sinks.duckdb import DuckDB

DATASET = "shop/catalog/offers"
SECONDS = float(os.environ.get("BROKER_BENCH_SECONDS", "60"))
BLOCK_ROWS, KEYS = 100_000, 1_000_000
LONE, DATASETS, ROUNDS = 100, 1_000, 5
DRAIN_SECONDS, SAMPLE_SECONDS, APPENDERS = 60.0, 0.05, 2


@contextmanager
def batcher(connection: Broker) -> Iterator[subprocess.Popen[bytes]]:
    """A `broker worker --role microbatch` process on the same Redis and store."""
    settings = connection.parts.settings
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "BROKER_HOME": str(settings.home)}
    given = settings.model_dump(exclude_defaults=True, exclude={"home"})
    environment |= {f"BROKER_{name.upper()}": str(value) for name, value in given.items()}
    command = [sys.executable, "-m", "broker.cli", "worker", "--role", "microbatch"]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def wait_for(done: Callable[[], bool], seconds: float = DRAIN_SECONDS) -> bool:
    """Poll every millisecond. False: not within `seconds`."""
    deadline = time.perf_counter() + seconds
    while not done():
        if time.perf_counter() > deadline:
            return False
        time.sleep(0.001)
    return True


def drained(dataset: Dataset) -> bool:
    return not any(slot.unbatched_rows for slot in dataset.changelog.status())


@dataclass(frozen=True)
class Flow:
    """Rows a second, and the bytes that Redis used at a third of the time and when the last block was in."""

    rate: float
    third: int
    end: int


def flow(b: Broker, dataset: Dataset, blocks: Callable[[int], Any], seconds: float) -> Flow:
    """From the first append until the last is in a version: back-pressure sets the pace."""
    begun, rows, third = time.perf_counter(), 0, 0
    for number in count(1):
        if (spent := time.perf_counter() - begun) > seconds:
            break
        if not third and spent > seconds / 3:
            third = _redis_bytes(b, "used_memory")
        block = blocks(number)
        while True:
            try:
                rows += dataset.changelog.append(block, timeout=30).rows
                break
            except Overloaded:
                time.sleep(0.005)
    end = _redis_bytes(b, "used_memory")
    if not wait_for(lambda: drained(dataset)):
        raise TimeoutError("the log was not drained")
    return Flow(rows / (time.perf_counter() - begun), third, end)


def through() -> Iterator[Row]:
    table = offers(KEYS)
    tables = [table.slice(start, BLOCK_ROWS) for start in range(0, KEYS, BLOCK_ROWS)]

    def arrow(number: int) -> pa.Table:
        """Every key again and again, each time newer."""
        block = tables[number % len(tables)]
        newer = pa.array([number] * block.num_rows, pa.int64())
        return block.set_column(4, "updated_at", newer)

    rows = [block.slice(0, BLOCK_ROWS // 4).set_column(4, "updated_at", pa.array([0] * (BLOCK_ROWS // 4))) for block in tables]
    dicts = [block.to_pylist() for block in rows]
    for name, blocks, target in (("Arrow", arrow, 1_000_000), ("dict", lambda n: dicts[n % len(dicts)], 250_000)):
        with private_broker() as b, batcher(b) as process:
            dataset = b.dataset(DATASET, key=["sku"], order=["updated_at"])
            dataset.changelog.append(blocks(0))
            wait_for(lambda dataset=dataset: drained(dataset))  # type: ignore[misc]
            done = flow(b, dataset, blocks, SECONDS)
            memory = _memory(b, process.pid, done)
        work, figure = f"through, {name} records, {SECONDS:g} s", f"{done.rate:,.0f}/s ({memory})"
        yield Row(work, figure, "", done.rate / target, f"{target:,}/s", done.rate >= target)


def _memory(b: Broker, batcher_pid: int, done: Flow) -> str:
    most, third, end = (size // MEBIBYTE for size in (_redis_bytes(b, "used_memory_peak"), done.third, done.end))
    return (
        f"batcher {peak_bytes(batcher_pid) // MEBIBYTE} MiB, Redis at most {most} MiB, at a third of the time {third}, "
        f"at the end {end}"
    )


def _redis_bytes(b: Broker, which: str) -> int:
    return int(b.parts.redis.servers()[0].info("memory")[which])


def lone() -> Iterator[Row]:
    with private_broker(max_age_seconds=0.1) as b, batcher(b):
        dataset = b.dataset(DATASET, key=["sku"], order=["at"])
        dataset.changelog.append([{"sku": "warm", "at": 0}])
        wait_for(lambda: dataset.latest() is not None)
        waits = list[float]()
        for number in range(LONE):
            before = dataset.state.version
            begun = time.perf_counter()
            dataset.changelog.append([{"sku": "lone", "at": number}])
            wait_for(lambda before=before: dataset.state.version > before)  # type: ignore[misc]
            waits.append((time.perf_counter() - begun) * 1000)
    p50, p99 = percentile(waits, 0.5), percentile(waits, 0.99)
    yield Row("lone record, max_age 100 ms, visible", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms", "", None, "p50 130 ms", p50 <= 130)


def applied() -> Iterator[Row]:
    """A lone record until a replica in DuckDB, which follows in this process, holds it."""
    with private_broker(max_age_seconds=0.1) as b, batcher(b):
        dataset, held = b.dataset(DATASET, key=["sku"], order=["at"]), Event()
        dataset.changelog.append([{"sku": "warm", "at": 0}])
        sink = DuckDB(home_folder(b.parts.settings) / "replica.duckdb", "offers")
        waits = list[float]()
        with b.replica(DATASET, name="bench", sink=sink).following(told=lambda _: held.set()):
            held.wait(DRAIN_SECONDS)
            for number in range(LONE):
                held.clear()
                begun = time.perf_counter()
                dataset.changelog.append([{"sku": "lone", "at": number}])
                held.wait(DRAIN_SECONDS)
                waits.append((time.perf_counter() - begun) * 1000)
    p50, p99 = percentile(waits, 0.5), percentile(waits, 0.99)
    yield Row(
        "the same, applied by a replica that follows", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms", "", None, "p50 180 ms", p50 <= 180
    )


def quiet() -> Iterator[Row]:
    """Each dataset gets a record a second, as far as the appenders reach that; what counts is how old the oldest record is that
    no version holds, until the log is empty. The first record of each, which settles its schema and opens its log, is in
    before."""
    with private_broker() as b:
        datasets = [b.dataset(f"shop/catalog/d{number:04}", key=["sku"], order=["at"]) for number in range(DATASETS)]
        shares = [datasets[number::APPENDERS] for number in range(APPENDERS)]
        with batcher(b):
            for dataset in datasets:
                dataset.changelog.append([{"sku": "a", "at": -1}])
            _until_drained(b, datasets)
            with oldest_sampled(b, datasets) as ages:
                with ThreadPoolExecutor(APPENDERS) as pool:
                    rate = min(pool.map(a_record_a_second, shares))
                _until_drained(b, datasets)
    worst, allowed = max(ages), b.parts.settings.max_age_seconds + 1
    yield Row(
        f"{DATASETS:,} datasets, a record a second each", f"the oldest waits {worst:.1f} s, at {rate:.2f}/s each", "", None,
        f"{allowed:g} s", worst <= allowed,
    )  # fmt: skip


def _until_drained(b: Broker, datasets: list[Dataset]) -> None:
    if not wait_for(lambda: _oldest_seconds(b, datasets) is None):
        raise TimeoutError("the logs were not drained")


def a_record_a_second(datasets: list[Dataset]) -> float:
    """Append to each, ROUNDS times. -> the rate reached, records a second and dataset"""
    begun = time.perf_counter()
    for at in range(ROUNDS):
        for dataset in datasets:
            dataset.changelog.append([{"sku": "a", "at": at}])
        time.sleep(max(0.0, begun + at + 1 - time.perf_counter()))
    return ROUNDS / (time.perf_counter() - begun)


@contextmanager
def oldest_sampled(b: Broker, datasets: list[Dataset]) -> Iterator[list[float]]:
    """Meanwhile a thread notes how old the oldest record is."""
    ages, stop = [0.0], Event()

    def look() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            ages.append(_oldest_seconds(b, datasets) or 0.0)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield ages
        finally:
            stop.set()
        looking.result()


def _oldest_seconds(b: Broker, datasets: list[Dataset]) -> float | None:
    """Of all log slots of the datasets' one domain. None: nothing waits."""
    logs = Logs(b.parts.redis, b.parts.settings)
    oldest = [at for number in range(logs.count) for _, at in logs.ready(logs.slot(datasets[0].id, number), 1)]
    seconds, micros = map(int, b.parts.redis.run("TIME", writes=False))
    return max(0.0, seconds + micros / 1e6 - min(oldest) / 1000) if oldest else None


def run() -> list[Row]:
    return [*lone(), *applied(), *quiet(), *through()]
