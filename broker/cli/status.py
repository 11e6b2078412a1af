"""status: what runs and what waits, at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from broker.audits import expiring
from broker.backend.health import describe
from broker.cli.face import Command, Face, columns, joined, pass_face
from broker.cli.requests import inquiry_of
from broker.cli.words import public_place, span_text, time_text
from broker.connect import Broker
from broker.gauges import DatasetGauge, SlotGauge
from broker.metrics import watcher
from broker.parts import store_url
from broker.rules.patterns import pattern_matches

DATASET: Final = (
    "dataset", "version", "confirmed", "served by", "waiting", "oldest", "merges due", "cursors", "behind", "channels", "holds",
)  # fmt: skip
QUEUE: Final = ("slot", "queued", "flights", "delayed", "parked", "dead", "workers")
SLOT: Final = ("slot", "micro-batchers", "unserved", "schedules", "events", "retention waits")


@click.command(
    "status", cls=Command, examples="broker status\nbroker status --json",
    answer="{redis, store, datasets, queues, slots, workers}",
)  # fmt: skip
@pass_face
def status(face: Face) -> None:
    """What runs: Redis, store, workers, micro-batchers; what waits: requests, changes, merges, consumers that are behind."""
    with face.connect() as broker:
        value = _status(broker)
    face.emit(value, _lines(value))


def _status(broker: Broker) -> dict[str, Any]:
    parts, inquiry, gauges = broker.parts, inquiry_of(broker), watcher(broker.parts).read()
    queues = [inquiry.queues(slot, parts.index.datasets(slot)) for slot in parts.index.slots()]
    workers = {worker.id: worker for queue in queues for worker in queue.workers}
    datasets = []
    for one in gauges.datasets:
        served = sorted(
            worker.id for worker in workers.values() if any(pattern_matches(p, one.dataset) for p in worker.patterns)
        )
        due = len(parts.compactor.owed(one.dataset))
        datasets.append(_dataset(one, parts.settings.cursor_seconds) | {"served_by": served, "merges_due": due})
    return {
        "redis": {
            "url": parts.redis.url,
            "server": describe(parts.redis.servers()[0].info()),
            "embedded": not parts.settings.redis,
        },
        "store": {"url": public_place(store_url(parts.settings))},
        "datasets": datasets,
        "queues": [asdict(queue) | {"workers": len(queue.workers)} for queue in queues],
        "slots": [_slot(slot, parts.settings.cursor_seconds) for slot in gauges.slots],
        "workers": [asdict(worker) for worker in workers.values()],
    }


def _dataset(one: DatasetGauge, lease_seconds: float) -> dict[str, Any]:
    live = one.live
    ending = sum(expiring(cursor.left_seconds, lease_seconds) for cursor in live)
    return {
        "dataset": str(one.dataset), "version": one.version, "confirmed_at": one.confirmed_at or None,
        "waiting_rows": one.waiting_rows, "oldest_seconds": one.oldest_seconds,
        "cursors": {"live": len(live), "expiring": ending, "lapsed": len(one.cursors) - len(live)},
        "behind_versions": max((cursor.behind for cursor in live), default=0),
        "lag_seconds": max((cursor.lag_seconds for cursor in live), default=0.0),
        "channels": dict(one.channels), "holds": one.holds,
    }  # fmt: skip


def _slot(slot: SlotGauge, lease_seconds: float) -> dict[str, Any]:
    return {
        "slot": slot.slot, "batchers": slot.batchers, "log_slots": [asdict(log) for log in slot.log_slots],
        "schedules": slot.schedules, "events": slot.events,
        "retention_waits_seconds": max(0.0, lease_seconds - slot.known_seconds),
    }  # fmt: skip


def _lines(value: dict[str, Any]) -> list[str]:
    redis, store = value["redis"], value["store"]
    lines = [
        f"redis   {redis['server']} at {redis['url']}{' (embedded)' if redis['embedded'] else ''}",
        f"store   {store['url']}",
        "",
    ]
    counts = [[sum(q["queued"].values()) if head == "queued" else q[head] for head in QUEUE] for q in value["queues"]]
    lines += [*columns(DATASET, map(_dataset_line, value["datasets"])), "", *columns(QUEUE, counts), ""]
    return [*lines, *columns(SLOT, map(_slot_line, value["slots"]))]


def _dataset_line(one: dict[str, Any]) -> Sequence[object]:
    told = [f"{count} {state}" for state, count in one["cursors"].items() if count]
    return (
        one["dataset"], one["version"], time_text(one["confirmed_at"]), ", ".join(one["served_by"]) or "no-producer",
        one["waiting_rows"], span_text(one["oldest_seconds"]) if one["oldest_seconds"] else None, one["merges_due"],
        ", ".join(told), one["behind_versions"], joined(one["channels"]), one["holds"],
    )  # fmt: skip


def _slot_line(slot: dict[str, Any]) -> Sequence[object]:
    unserved = sum(not log["owner"] for log in slot["log_slots"])
    waits = slot["retention_waits_seconds"]
    return (
        slot["slot"], slot["batchers"], f"{unserved} of {len(slot['log_slots'])}", slot["schedules"], slot["events"],
        span_text(waits) if waits else None,
    )  # fmt: skip
