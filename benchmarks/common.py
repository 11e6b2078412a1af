"""What all benchmarks share: rows of the report, private homes, medians, and memory by VmHWM."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

import broker
from broker.backend import embedded
from broker.settings import home_folder

ROOT = Path(__file__).parent.parent
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Row:
    """One line of the report. `ratio` is the broker's figure by the peer's; `met`: whether the target of the issue holds."""

    work: str
    figure: str
    peer: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None

    def line(self) -> str:
        verdict = "" if self.met is None else ("met" if self.met else "MISSED")
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}x"
        return f"| {ratio:>8} | {self.work} | {self.figure} | {self.peer} | {self.target} | {verdict} |"


HEADER = "|    ratio | work | broker | peer | target | |\n|---:|---|---|---|---|---|"


@contextmanager
def private_broker(**settings: Any) -> Iterator[broker.Broker]:
    """A broker with the settings `connect()` gives, in a folder of its own; its Redis ends with it."""
    with tempfile.TemporaryDirectory(
        prefix="broker-bench-", dir=ROOT.parent if os.access(ROOT.parent, os.W_OK) else None
    ) as folder:
        home = Path(folder) / ".broker"
        connection = broker.connect(home=home, **settings)
        try:
            yield connection
        finally:
            connection.close()
            embedded.stop(home_folder(connection.parts.settings))


@contextmanager
def worker(connection: broker.Broker, app: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `broker worker` process for `module:app`, on the same Redis and store."""
    home = connection.parts.settings.home
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "BROKER_HOME": str(home)}
    environment |= {
        f"BROKER_{name.upper()}": str(value)
        for name, value in connection.parts.settings.model_dump(exclude_defaults=True, exclude={"home"}).items()
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "broker.cli", "worker", app], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def median_seconds(work: Callable[[], object], times: int = 3) -> float:
    return statistics.median(seconds(work) for _ in range(times))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def peak_bytes(pid: int | str = "self") -> int:
    """VmHWM: the most physical memory a process ever held."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def forget_peak() -> None:
    """This process' VmHWM begins anew at what it holds now: proc(5), clear_refs."""
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5")


def redis_pid(connection: broker.Broker) -> int:
    return int(connection.parts.redis.servers()[0].info("server")["process_id"])


def peak_text(connection: broker.Broker) -> str:
    """The most memory that all processes held: this one, since `forget_peak`, and Redis."""
    return f"{(peak_bytes() + peak_bytes(redis_pid(connection))) // MEBIBYTE:,} MiB in all processes"


def offers(rows: int, changed_every: int = 0) -> pa.Table:
    """`rows` offers in 6 columns, unsorted by key; every `changed_every`-th has another price (0: none)."""
    price = "(hash(i) % 10000) / 100.0" + (f" + (i % {changed_every} = 0)::INT" if changed_every else "")
    relation = duckdb.sql(
        f"""SELECT 'sku-' || lpad((i * 7919 % {rows})::VARCHAR, 9, '0') AS sku, {price} AS price,
            (hash(i, 1) % 1000)::INT AS stock, 'title of offer ' || (i % 5000) AS title,
            TIMESTAMP '2026-01-01' + INTERVAL (i % 100000) SECOND AS updated_at, (i % 50)::INT AS shop
        FROM range({rows}) AS r(i)"""
    )
    assert relation is not None
    return relation.to_arrow_table()
