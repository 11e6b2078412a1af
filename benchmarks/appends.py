"""(e) Append into a change log: 300,000 dicts/s and 2,000,000 Arrow rows/s from one process; one record a call against NATS."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import broker
from benchmarks.common import MEBIBYTE, Row, offers, peak_bytes, percentile, private_broker, seconds
from tests.servers import MissingServer, free_port, require, wait_until

DOMAIN = "goodstuff_01/catalog"
ARROW_ROWS, DICT_ROWS, SINGLE_RECORDS, IN_FLIGHT, CALLS = 2_000_000, 600_000, 60_000, 500, 1_000


def run() -> list[Row]:
    table = offers(ARROW_ROWS)
    dicts = table.slice(0, DICT_ROWS).to_pylist()
    with private_broker() as b:
        arrow = ARROW_ROWS / _spent(b, "arrow", lambda log: log.append(table), dicts)
        plain = DICT_ROWS / _spent(b, "dicts", lambda log: log.append(dicts), dicts)
        singles = SINGLE_RECORDS / _spent(b, "singles", lambda log: _send(log, dicts[:SINGLE_RECORDS]), dicts)
        lone = _lone(b, dicts)
        used = b.parts.redis.run("INFO", "memory", writes=False).decode()
        held = int(used.split("used_memory_peak:")[1].split()[0])
    rows = [
        Row("append, dicts", f"{plain:,.0f} rows/s", "target 300,000/s", plain / 300_000, "300,000/s", plain >= 300_000),
        Row("append, Arrow", f"{arrow:,.0f} rows/s", "target 2,000,000/s", arrow / 2e6, "2,000,000/s", arrow >= 2e6),
        Row("one record a call, alone, acknowledged", f"p50 {lone * 1000:.2f} ms"),
        Row("memory: client, and Redis with all of it", f"{(peak_bytes()) / MEBIBYTE:.0f} and {held / MEBIBYTE:.0f} MiB"),
    ]
    return [*rows, _beside_nats(singles, dicts[:SINGLE_RECORDS])]


def _spent(b: broker.Broker, name: str, work: Callable[[Any], object], dicts: list[dict[str, Any]]) -> float:
    log = b.dataset(f"{DOMAIN}/{name}", key="sku", order="updated_at").changelog
    log.append(dicts[:10])
    return seconds(lambda: work(log))


def _send(log: Any, records: list[dict[str, Any]]) -> None:
    """One record a call, at most IN_FLIGHT without acknowledgement."""
    pending = deque[Any]()
    for record in records:
        if len(pending) >= IN_FLIGHT:
            pending.popleft().result()
        pending.append(log.send(record))
    for one in pending:
        one.result()


def _lone(b: broker.Broker, dicts: list[dict[str, Any]]) -> float:
    log = b.dataset(f"{DOMAIN}/lone", key="sku", order="updated_at").changelog
    log.append(dicts[:10])
    return percentile([seconds(lambda row=row: log.append([row])) for row in dicts[:CALLS]], 0.5)  # type: ignore[misc]


def _beside_nats(singles: float, records: list[dict[str, Any]]) -> Row:
    work, figure = f"one record a call, {IN_FLIGHT} in flight", f"{singles:,.0f}/s"
    try:
        with nats_server() as url:
            peer = asyncio.run(_nats_rate(url, records))
    except (MissingServer, ImportError) as missing:
        return Row(work, figure, f"NATS: {missing}", None, "1x NATS JetStream")
    return Row(work, figure, f"NATS JetStream {peer:,.0f}/s", singles / peer, "1x", singles >= peer)


async def _nats_rate(url: str, records: list[dict[str, Any]]) -> float:
    """Records per second into a stream on disk, each as JSON in a message of its own, each acknowledged."""
    import nats

    connection = await nats.connect(url)
    stream = connection.jetstream(publish_async_max_pending=IN_FLIGHT)
    await stream.add_stream(name="offers", subjects=["offers"])
    await stream.publish("offers", b"first")
    begun = time.perf_counter()
    for record in records:
        await stream.publish_async("offers", json.dumps(record, default=str).encode())
    await stream.publish_async_completed()
    spent = time.perf_counter() - begun
    held = (await stream.stream_info("offers")).state.messages
    await connection.close()
    if held != len(records) + 1:
        raise RuntimeError(f"NATS holds {held} of {len(records) + 1} messages")
    return len(records) / spent


@contextmanager
def nats_server() -> Iterator[str]:
    """A private nats-server with JetStream on disk. Raises MissingServer."""
    program = require("nats-server", "apt-get install nats-server")
    with tempfile.TemporaryDirectory(prefix="broker-nats-") as folder:
        port = free_port()
        command = [program, "-js", "-sd", folder, "-a", "127.0.0.1", "-p", str(port), "-l", f"{folder}/log"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: _ready(f"{folder}/log"), "nats-server")
            yield f"nats://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(15)


def _ready(log: str) -> bool:
    try:
        with open(log) as file:
            return "Server is ready" in file.read()
    except FileNotFoundError:
        return False
