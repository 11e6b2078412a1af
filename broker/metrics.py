"""Prometheus text (exposition format 0.0.4) of what Redis knows: for a scraper, a file collector, or `broker metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from broker.backend.logs import Logs
from broker.connect import Broker
from broker.gauges import DatasetGauge, Gauges, SlotGauge, Watcher
from broker.parts import Parts


class Metric(NamedTuple):
    """A family: its type and its line of help."""

    kind: str
    help: str


METRICS: Final[dict[str, Metric]] = {
    "broker_queue_requests": Metric("gauge", "Requests that wait for a worker."),
    "broker_queue_oldest_seconds": Metric("gauge", "For how long the oldest of them has waited."),
    "broker_flights": Metric("gauge", "Productions and derivations at work."),
    "broker_requests_delayed": Metric("gauge", "Requests that wait for their next attempt."),
    "broker_requests_parked": Metric("gauge", "Requests that the worker which read them could not serve."),
    "broker_requests_in_work": Metric("gauge", "Requests of a tenant that are not answered yet."),
    "broker_requests_unanswered": Metric("gauge", "Requests of a target without a terminal event."),
    "broker_dead_letters": Metric("gauge", "Requests that failed for good."),
    "broker_events": Metric("gauge", "Events that are kept."),
    "broker_workers": Metric("gauge", "Workers alive, micro-batchers too."),
    "broker_batchers": Metric("gauge", "Micro-batchers alive."),
    "broker_schedules": Metric("gauge", "Requests by the clock."),
    "broker_log_slot_served": Metric("gauge", "1 while somebody makes a log slot's micro-batches."),
    "broker_log_slot_waiting": Metric("gauge", "Datasets of a log slot with changes that no version holds yet."),
    "broker_dataset_version": Metric("gauge", "Newest version."),
    "broker_dataset_records_total": Metric("counter", "Records in the commit log."),
    "broker_dataset_confirmed_timestamp_seconds": Metric("gauge", "Start of the last production that confirmed the dataset."),
    "broker_dataset_edges": Metric("gauge", "Edges offered."),
    "broker_dataset_bytes": Metric("gauge", "Bytes of all files offered."),
    "broker_dataset_holds": Metric("gauge", "Holds that are not over."),
    "broker_channel_version": Metric("gauge", "Version a channel names."),
    "broker_log_rows_total": Metric("counter", "Changes appended to a change log."),
    "broker_log_bytes_total": Metric("counter", "Bytes appended to a change log."),
    "broker_log_unbatched_rows": Metric("gauge", "Changes that no version holds yet."),
    "broker_log_unbatched_bytes": Metric("gauge", "Bytes of them."),
    "broker_log_oldest_seconds": Metric("gauge", "For how long the oldest of them has waited."),
    "broker_cursor_version": Metric("gauge", "Version a consumer holds."),
    "broker_cursor_lag_versions": Metric("gauge", "Versions a consumer lacks."),
    "broker_cursor_lag_seconds": Metric("gauge", "For how long the first version that it lacks has been there."),
    "broker_cursor_live": Metric("gauge", "1 while the cursor's lease lasts."),
    "broker_cursor_left_seconds": Metric("gauge", "Until the cursor's lease ends; negative once it has."),
    "broker_redis_used_bytes": Metric("gauge", "Memory that Redis uses."),
    "broker_redis_max_bytes": Metric("gauge", "Memory that Redis may use; 0: without a bound."),
    "broker_redis_clients": Metric("gauge", "Connections."),
    "broker_redis_commands_total": Metric("counter", "Commands that Redis has run."),
}
"""In the order in which they are printed. What a family counts in stands at the end of its name; counters end in `total`."""


class Sample(NamedTuple):
    """One line."""

    name: str
    value: float
    labels: Mapping[str, str]


def metrics(broker: Broker) -> str:
    """The text, computed from Redis alone. Raises Unavailable."""
    return render(watcher(broker.parts).read())


def watcher(parts: Parts) -> Watcher:
    """What reads the gauges of a connection."""
    return Watcher(parts.redis, parts.index, Logs(parts.redis, parts.settings))


def render(gauges: Gauges) -> str:
    """Every family with its type and help, also those without a sample; ends with a newline."""
    found: dict[str, list[str]] = {name: [] for name in METRICS}
    for sample in samples(gauges):
        found[sample.name].append(f"{sample.name}{_labels(sample.labels)} {_number(sample.value)}")
    blocks = (
        "\n".join((f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}", *found[name]))
        for name, metric in METRICS.items()
    )
    return "\n".join(blocks) + "\n"


def samples(gauges: Gauges) -> Iterator[Sample]:
    """Every line, in no order of families."""
    for slot in gauges.slots:
        yield from _of_slot(slot)
    for dataset in gauges.datasets:
        yield from _of_dataset(dataset)
    for server in gauges.servers:
        labels = {"server": server.server}
        values = {"used_bytes": server.used_bytes, "max_bytes": server.max_bytes, "clients": server.clients}
        yield from _named("broker_redis", values | {"commands_total": server.commands}, labels)


def _of_slot(slot: SlotGauge) -> Iterator[Sample]:
    here = {"slot": slot.slot}
    for queue in slot.queues:
        labels = here | {"dataset_name": queue.dataset_name, "priority": queue.priority}
        yield from _named("broker_queue", {"requests": queue.waiting, "oldest_seconds": queue.oldest_seconds}, labels)
    counts = {"flights": slot.flights, "dead_letters": slot.dead, "events": slot.events, "workers": slot.workers}
    counts |= {"batchers": slot.batchers, "schedules": slot.schedules}
    yield from _named("broker", counts, here)
    yield from _named("broker_requests", {"delayed": slot.delayed, "parked": slot.parked}, here)
    for log in slot.log_slots:
        served = {"served": bool(log.owner), "waiting": log.waiting}
        yield from _named("broker_log_slot", served, here | {"log_slot": str(log.number)})
    for tenant, count in slot.in_work.items():
        yield Sample("broker_requests_in_work", count, here | {"tenant": tenant})
    for target, count in slot.unanswered.items():
        yield Sample("broker_requests_unanswered", count, here | {"target": target})


def _of_dataset(one: DatasetGauge) -> Iterator[Sample]:
    here = {"dataset": str(one.dataset)}
    counts = {
        "version": one.version, "records_total": one.seq, "edges": one.edges, "bytes": one.edges_bytes, "holds": one.holds,
    }  # fmt: skip
    yield from _named("broker_dataset", counts | {"confirmed_timestamp_seconds": one.confirmed_at}, here)
    for log in one.logs:
        totals = {
            "rows_total": log.logged.rows, "bytes_total": log.logged.appended, "unbatched_rows": log.logged.unbatched_rows,
            "unbatched_bytes": log.logged.unbatched_bytes, "oldest_seconds": log.oldest_seconds,
        }  # fmt: skip
        yield from _named("broker_log", totals, here | {"slot": str(log.slot)})
    for channel, version in one.channels.items():
        yield Sample("broker_channel_version", version, here | {"channel": channel})
    for cursor in one.cursors:
        lag = {
            "version": cursor.version, "lag_versions": cursor.behind, "lag_seconds": cursor.lag_seconds, "live": cursor.live,
            "left_seconds": cursor.left_seconds,
        }  # fmt: skip
        yield from _named("broker_cursor", lag, here | {"cursor": cursor.name})


def _named(prefix: str, values: Mapping[str, float], labels: Mapping[str, str]) -> Iterator[Sample]:
    return (Sample(f"{prefix}_{name}", value, labels) for name, value in values.items())


def _labels(labels: Mapping[str, str]) -> str:
    texts: Iterable[str] = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(texts) + "}" if labels else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.3f}"
