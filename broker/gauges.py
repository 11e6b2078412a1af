"""What an operator watches, as one value: read from Redis alone, in a few round trips a slot however many datasets it has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from broker.backend.client import RedisClient
from broker.backend.driver_errors import mapped
from broker.backend.index import Index
from broker.backend.keys import Slot
from broker.backend.lanes import Argument
from broker.backend.logs import Logged, Logs
from broker.backend.registry import Registry
from broker.cursors import LiveCursor
from broker.model.names import DatasetId
from broker.model.request import PRIORITIES

RUN: Final = 500
"""Datasets asked about in one round trip."""
_BYTES: Final = re.compile(rb'"bytes":(\d+)')
Commands = list[Sequence[Argument]]


@dataclass(frozen=True, slots=True)
class LogGauge:
    """One log slot of a dataset. Rows and bytes count from its beginning; `oldest_seconds`: since when something waits."""

    slot: int
    logged: Logged
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class CursorGauge:
    """A consumer's lag: versions it lacks, and for how long the first of them has been there."""

    name: str
    version: int
    behind: int
    lag_seconds: float
    live: bool


@dataclass(frozen=True, slots=True)
class DatasetGauge:
    """`edges_bytes`: of all files offered. `confirmed_at`: seconds since the epoch, 0 for never."""

    dataset: DatasetId
    version: int
    seq: int
    confirmed_at: float
    edges: int
    edges_bytes: int
    logs: tuple[LogGauge, ...] = ()
    cursors: tuple[CursorGauge, ...] = ()


@dataclass(frozen=True, slots=True)
class QueueGauge:
    """Requests for datasets of one name at one priority. `oldest_seconds`: for how long the first of them has waited."""

    dataset_name: str
    priority: str
    waiting: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class SlotGauge:
    """Counts of one slot. `in_work`: tenant -> requests; `unanswered`: target -> requests without a terminal event."""

    slot: str
    flights: int
    delayed: int
    parked: int
    dead: int
    events: int
    workers: int
    queues: tuple[QueueGauge, ...]
    in_work: dict[str, int] = field(default_factory=dict)
    unanswered: dict[str, int] = field(default_factory=dict)

    @property
    def queued(self) -> int:
        return sum(queue.waiting for queue in self.queues)


@dataclass(frozen=True, slots=True)
class ServerGauge:
    """One Redis server. `max_bytes` 0: without a bound."""

    server: str
    used_bytes: int
    max_bytes: int
    clients: int
    commands: int


@dataclass(frozen=True, slots=True)
class Gauges:
    """Everything at about one moment; `at`: seconds since the epoch by Redis' clock."""

    at: float
    slots: tuple[SlotGauge, ...]
    datasets: tuple[DatasetGauge, ...]
    servers: tuple[ServerGauge, ...]


class Watcher:
    """Reads only. Safe for threads."""

    def __init__(self, redis: RedisClient, index: Index, logs: Logs) -> None:
        self._redis, self._index, self._logs = redis, index, logs
        self._registry = Registry(redis)

    def read(self) -> Gauges:
        """Raises Unavailable and the like."""
        now, slots, datasets = self._registry.now(), list[SlotGauge](), list[DatasetGauge]()
        for slot in self._index.slots():
            known = self._index.datasets(slot)
            slots.append(self._slot(slot, known, now))
            for start in range(0, len(known), RUN):
                datasets += self._datasets(slot, known[start : start + RUN], now)
        return Gauges(now, tuple(slots), tuple(datasets), tuple(self._servers()))

    def _slot(self, slot: Slot, datasets: Iterable[DatasetId], now: float) -> SlotGauge:
        names = sorted({dataset.name for dataset in datasets})
        places = [(name, priority) for name in names for priority in PRIORITIES]
        commands: Commands = [
            ("ZCARD", slot.key("lapse")), ("ZCARD", slot.key("delayed")), ("HLEN", slot.key("parked")), ("XLEN", slot.dead),
            ("XLEN", slot.events), ("HGETALL", slot.key("inflight")), ("HGETALL", slot.key("awaited")),
        ]  # fmt: skip
        fixed = len(commands)
        for place in places:
            stream = slot.requests(*place)
            commands += [("XLEN", stream), ("XRANGE", stream, "-", "+", "COUNT", 1)]
        replies = self._redis.replies(commands, slot.name, writes=False)
        queues = [
            QueueGauge(*place, int(replies[at]), _age(replies[at + 1], now))
            for place, at in zip(places, range(fixed, len(replies), 2), strict=True)
            if replies[at]
        ]
        flights, delayed, parked, dead, events = map(int, replies[:5])
        workers = len(self._registry.alive(slot))
        return SlotGauge(
            slot.name, flights, delayed, parked, dead, events, workers, tuple(queues), _counts(replies[5]), _counts(replies[6])
        )

    def _datasets(self, slot: Slot, datasets: Sequence[DatasetId], now: float) -> Iterator[DatasetGauge]:
        commands: Commands = []
        for dataset in datasets:
            edges = slot.tables(dataset)[2]
            commands += [
                ("HMGET", slot.head(dataset), "version", "seq", "confirmed_at", "session", "dropped"),
                ("HVALS", edges), ("HGETALL", slot.cursors(dataset)),
            ]  # fmt: skip
        replies = self._redis.replies(commands, slot.name, writes=False)
        logs = self._all_logs(datasets, now)
        for dataset, head, edges, cursors in zip(datasets, replies[::3], replies[1::3], replies[2::3], strict=True):
            version, seq, confirmed, session, dropped = head
            if not session or dropped:
                continue
            newest = int(version or 0)
            yield DatasetGauge(
                dataset, newest, int(seq or 0), float(confirmed or 0), len(edges), sum(map(_bytes, edges)), logs[dataset],
                self._consumers(slot.tables(dataset)[1], cursors, newest, now),
            )  # fmt: skip

    def _all_logs(self, datasets: Sequence[DatasetId], now: float) -> dict[DatasetId, tuple[LogGauge, ...]]:
        """Of each dataset the log slots that were ever used."""
        found: dict[DatasetId, tuple[LogGauge, ...]] = dict.fromkeys(datasets, ())
        for number in range(self._logs.count):
            commands: Commands = []
            for dataset in datasets:
                slot = self._logs.slot(dataset, number)
                totals = ("HMGET", slot.logged(dataset), "appended", "rows", "released", "released_rows")
                commands += [totals, ("ZSCORE", slot.ready, dataset)]
            replies = self._redis.replies(commands, "change logs", writes=False)
            for dataset, totals, since in zip(datasets, replies[::2], replies[1::2], strict=True):
                if totals[0] is not None:
                    logged = Logged(*(int(value or 0) for value in totals))
                    age = max(0.0, now - float(since) / 1000) if since else 0.0
                    found[dataset] += (LogGauge(number, logged, age),)
        return found

    def _consumers(self, versions: bytes, flat: Sequence[bytes], newest: int, now: float) -> tuple[CursorGauge, ...]:
        """From the ledger's hash as it is: asking the ledger would make it forget those that lapsed long ago."""
        leases = (value.partition(b" ") for value in flat[1::2])
        held = [(LiveCursor.model_validate_json(fields), int(until) / 1000 > now) for until, _, fields in leases]
        missing = [str(cursor.version + 1) for cursor, _ in held]
        texts = self._redis.run("HMGET", versions, *missing, writes=False) if missing else []
        found = list[CursorGauge]()
        for (cursor, live), text in zip(held, texts, strict=True):
            behind = max(0, newest - cursor.version)
            since = json.loads(text)["time"] if text and behind else now
            found.append(CursorGauge(cursor.name, cursor.version, behind, max(0.0, now - since), live))
        return tuple(sorted(found, key=lambda cursor: cursor.name))

    def _servers(self) -> Iterator[ServerGauge]:
        with mapped(self._redis.url, writes=False):
            for number, server in enumerate(self._redis.servers()):
                info: dict[str, Any] = dict(server.info())
                yield ServerGauge(
                    str(number), int(info["used_memory"]), int(info.get("maxmemory") or 0), int(info["connected_clients"]),
                    int(info["total_commands_processed"]),
                )  # fmt: skip


def _age(entries: Sequence[Any], now: float) -> float:
    return max(0.0, now - int(entries[0][0].partition(b"-")[0]) / 1000) if entries else 0.0


def _bytes(edge: bytes) -> int:
    """Of all files of an edge, without parsing it: there may be very many."""
    return sum(map(int, _BYTES.findall(edge)))


def _counts(flat: Sequence[bytes]) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in zip(flat[::2], flat[1::2], strict=True) if int(count)}
