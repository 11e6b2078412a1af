"""Peers: task queues with an empty handler, one worker process, results read back. Installed by `make bench` only."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import ROOT
from tests.servers import redis_server

HUEY_APP = """
import os
from huey import RedisHuey
huey = RedisHuey("bench", url=os.environ["PEER_REDIS"])

@huey.task()
def empty(number):
    return number
"""
CELERY_APP = """
import os
from celery import Celery
app = Celery("bench", broker=os.environ["PEER_REDIS"], backend=os.environ["PEER_REDIS"])

@app.task(name="empty")
def empty(number):
    return number
"""


@contextmanager
def peer(source: str, name: str, *command: str) -> Iterator[None]:
    """A private Redis, a module on the path, and the peer's worker process."""
    with redis_server() as server, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{name}.py").write_text(source)
        os.environ["PEER_REDIS"] = server.tcp_url
        sys.path.insert(0, folder)
        environment = dict(os.environ) | {"PYTHONPATH": f"{folder}:{ROOT}"}
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            sys.path.remove(folder)
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def huey_rate(count: int) -> float:
    """Tasks per second: all enqueued, then every result read."""
    with peer(HUEY_APP, "bench_huey", "huey.bin.huey_consumer", "bench_huey.huey", "-w", "1"):
        from bench_huey import empty  # type: ignore[import-not-found]

        empty(0).get(blocking=True, timeout=30)
        begun = time.perf_counter()
        for result in [empty(number) for number in range(count)]:
            result.get(blocking=True, timeout=60, backoff=1.0, max_delay=0.01)
        return count / (time.perf_counter() - begun)


def celery_rate(count: int) -> float:
    with peer(CELERY_APP, "bench_celery", "celery", "-A", "bench_celery", "worker", "-c", "1", "--loglevel", "ERROR"):
        from bench_celery import empty  # type: ignore[import-not-found]

        empty.delay(0).get(timeout=60)
        begun = time.perf_counter()
        for result in [empty.delay(number) for number in range(count)]:
            result.get(timeout=60)
        return count / (time.perf_counter() - begun)
