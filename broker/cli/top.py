"""top: rates, lag and what waits, as a table that is drawn anew; one shot on a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import click

from broker.cli.bars import live
from broker.cli.face import Command, Face, columns, pass_face
from broker.cli.words import bytes_text, span_text
from broker.gauges import DatasetGauge, Gauges, SlotGauge
from broker.metrics import watcher

HEADS: Final = (
    "dataset", "version", "versions/s", "appended/s", "batched/s", "waiting rows", "oldest", "queued", "oldest request",
    "behind", "lag",
)  # fmt: skip

NO_REQUESTS: Final[dict[str, float]] = {"queued": 0, "oldest_request_seconds": 0.0}


@click.command(
    "top", cls=Command,
    examples="""
    broker top
    broker top --interval 5
    broker top --json
    """,
    answer="{at, seconds, datasets, slots, servers}",
)  # fmt: skip
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between two looks.")
@pass_face
def top(face: Face, interval: float) -> None:
    """What runs: rates, lag in records and seconds, oldest pending; the busiest first. Ctrl-C ends it."""
    with face.connect() as broker:
        watch = watcher(broker.parts)
        if face.json or not sys.stdout.isatty():
            before = watch.read()
            time.sleep(interval)
            value = seen(before, watch.read())
            face.emit(value, lines(value))
            return
        before = watch.read()
        with suppress(KeyboardInterrupt), live() as draw:
            while True:
                time.sleep(interval)
                after = watch.read()
                draw(lines(seen(before, after)))
                before = after


def seen(before: Gauges, after: Gauges) -> dict[str, Any]:
    """The documented JSON: `after`, with rates since `before`. Pure."""
    seconds = max(after.at - before.at, 1e-3)
    earlier = {one.dataset: one for one in before.datasets}
    waiting = _requests(after.slots)
    rows = [
        _dataset(one, earlier.get(one.dataset, one), seconds) | waiting.get((one.dataset.domain, one.dataset.name), NO_REQUESTS)
        for one in after.datasets
    ]
    rows.sort(key=lambda row: (-row["appended_per_second"], -row["waiting_rows"], -row["queued"], row["dataset"]))
    servers = [{"used_bytes": one.used_bytes, "max_bytes": one.max_bytes, "clients": one.clients} for one in after.servers]
    return {"at": after.at, "seconds": seconds, "datasets": rows, "slots": [*map(_slot, after.slots)], "servers": servers}


def lines(value: dict[str, Any]) -> list[str]:
    """As people read it."""
    memory = ", ".join(f"{bytes_text(s['used_bytes'])} of {bytes_text(s['max_bytes'])}" for s in value["servers"])
    totals = {name: sum(slot[name] for slot in value["slots"]) for name in ("queued", "flights", "delayed", "dead")}
    workers = max((slot["workers"] for slot in value["slots"]), default=0)
    told = "  ".join(f"{name} {count}" for name, count in totals.items())
    return [f"{told}  workers {workers}  Redis {memory}", "", *columns(HEADS, map(_shown, value["datasets"]))]


def _shown(row: dict[str, Any]) -> Sequence[object]:
    return (
        row["dataset"], row["version"], _rate(row["versions_per_second"]), _rate(row["appended_per_second"]),
        _rate(row["batched_per_second"]), row["waiting_rows"], _age(row["oldest_seconds"]), row["queued"],
        _age(row["oldest_request_seconds"]), row["behind_versions"], _age(row["lag_seconds"]),
    )  # fmt: skip


def _dataset(now: DatasetGauge, before: DatasetGauge, seconds: float) -> dict[str, Any]:
    """Lag: of the live consumer that is furthest behind."""
    appended = sum(log.logged.rows for log in now.logs) - sum(log.logged.rows for log in before.logs)
    batched = sum(log.logged.released_rows for log in now.logs) - sum(log.logged.released_rows for log in before.logs)
    live = now.live
    return {
        "dataset": str(now.dataset), "version": now.version,
        "versions_per_second": max(0, now.version - before.version) / seconds,
        "appended_per_second": max(0, appended) / seconds, "batched_per_second": max(0, batched) / seconds,
        "waiting_rows": now.waiting_rows, "oldest_seconds": now.oldest_seconds,
        "cursors": len(live), "behind_versions": max((cursor.behind for cursor in live), default=0),
        "lag_seconds": max((cursor.lag_seconds for cursor in live), default=0.0),
    }  # fmt: skip


def _requests(slots: Iterable[SlotGauge]) -> dict[tuple[str, str], dict[str, float]]:
    """(domain, dataset name) -> requests that wait, and for how long the oldest has: they share their streams."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for slot in slots:
        for queue in slot.queues:
            known = found.setdefault((slot.slot.rpartition(".")[0], queue.dataset_name), dict(NO_REQUESTS))
            known["queued"] += queue.waiting
            known["oldest_request_seconds"] = max(known["oldest_request_seconds"], queue.oldest_seconds)
    return found


def _slot(slot: SlotGauge) -> dict[str, Any]:
    return {
        "slot": slot.slot, "queued": slot.queued, "flights": slot.flights, "delayed": slot.delayed, "parked": slot.parked,
        "dead": slot.dead, "workers": slot.workers,
        "oldest_seconds": max((queue.oldest_seconds for queue in slot.queues), default=0.0),
    }  # fmt: skip


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or not value else f"{value:.1f}"


def _age(seconds: float) -> str | None:
    return span_text(seconds) if seconds else None
