"""What an operator watches, as one value: read from Redis alone, in a few round trips a slot however many datasets it has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from broker.backend.client import RedisClient
from broker.backend.driver_errors import mapped
from broker.backend.index import Index
from broker.backend.keys import BATCH_LEASE, Slot, log_slot
from broker.backend.lanes import Argument
from broker.backend.logs import Logged, Logs
from broker.backend.registry import Registry
from broker.cursors import LiveCursor
from broker.model.names import LIVE, DatasetId
from broker.model.request import PRIORITIES
from broker.rules.following import Goal
from broker.rules.patch import TABLES, Named

_VERSIONS, _EDGES, _HOLDS, _CHANNELS = map(TABLES.index, ("versions", "edges", "holds", "channels"))
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
    """A consumer's lag behind what it follows: versions it lacks, and for how long the first of them has been there.

    `left_seconds`: until its lease ends; negative once it has.
    """

    name: str
    version: int
    behind: int
    lag_seconds: float
    live: bool
    channel: str = LIVE
    left_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DatasetGauge:
    """`edges_bytes`: of all files offered. `confirmed_at`: seconds since the epoch, 0 for never. `channels`: channel -> version
    it names. `holds`: those that are not over."""

    dataset: DatasetId
    version: int
    seq: int
    confirmed_at: float
    edges: int
    edges_bytes: int
    logs: tuple[LogGauge, ...] = ()
    cursors: tuple[CursorGauge, ...] = ()
    channels: Mapping[str, int] = field(default_factory=dict)
    holds: int = 0

    @property
    def waiting_rows(self) -> int:
        """Changes that no version holds yet."""
        return sum(log.logged.unbatched_rows for log in self.logs)

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest of them has waited."""
        return max((log.oldest_seconds for log in self.logs), default=0.0)

    @property
    def live(self) -> list[CursorGauge]:
        """Consumers whose lease lasts."""
        return [cursor for cursor in self.cursors if cursor.live]


@dataclass(frozen=True, slots=True)
class QueueGauge:
    """Requests for datasets of one name at one priority. `oldest_seconds`: for how long the first of them has waited."""

    dataset_name: str
    priority: str
    waiting: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class LogSlotGauge:
    """Who makes the micro-batches of a log slot ('': nobody), of how many datasets changes wait there, and since when."""

    number: int
    owner: str
    waiting: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class SlotGauge:
    """Counts of one slot. `in_work`: tenant -> requests; `unanswered`: target -> requests without a terminal event.

    `known_seconds`: for how long this Redis has remembered cursors there.
    """

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
    schedules: int = 0
    known_seconds: float = 0.0
    batchers: int = 0
    log_slots: tuple[LogSlotGauge, ...] = ()

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


class Goals(NamedTuple):
    """What consumers of a dataset shall be at: its newest version, and what channels name."""

    newest: int
    named: Mapping[str, Named]

    def of(self, channel: str) -> Goal:
        at = self.named.get(channel)
        return Goal(self.newest) if channel == LIVE else Goal(at.version, at.time) if at else Goal(0)


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
            named = self._named(slot)
            for start in range(0, len(known), RUN):
                datasets += self._datasets(slot, known[start : start + RUN], named, now)
        return Gauges(now, tuple(slots), tuple(datasets), tuple(self._servers()))

    def _slot(self, slot: Slot, datasets: Iterable[DatasetId], now: float) -> SlotGauge:
        names = sorted({dataset.name for dataset in datasets})
        places = [(name, priority) for name in names for priority in PRIORITIES]
        commands: Commands = [
            ("ZCARD", slot.key("lapse")), ("ZCARD", slot.key("delayed")), ("HLEN", slot.key("parked")), ("XLEN", slot.dead),
            ("XLEN", slot.events), ("HGETALL", slot.key("inflight")), ("HGETALL", slot.key("awaited")),
            ("HLEN", slot.key("schedules")), ("HGET", slot.meta, "born"),
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
        workers = self._registry.alive(slot)
        return SlotGauge(
            slot.name, flights, delayed, parked, dead, events, len(workers), tuple(queues), _counts(replies[5]),
            _counts(replies[6]), int(replies[7]), now - int(replies[8] or now * 1000) / 1000,
            sum(worker.batches for worker in workers), tuple(self._log_slots(slot, now)),
        )  # fmt: skip

    def _log_slots(self, slot: Slot, now: float) -> Iterator[LogSlotGauge]:
        for number in range(self._logs.count):
            log = Slot(log_slot(slot.name, number))
            commands: Commands = [
                ("HMGET", log.lease(BATCH_LEASE), "owner", "until"), ("ZCARD", log.ready),
                ("ZRANGE", log.ready, 0, 0, "WITHSCORES"),
            ]  # fmt: skip
            (owner, until), waiting, oldest = self._redis.replies(commands, log.name, writes=False)
            held = owner is not None and int(until) / 1000 > now
            age = max(0.0, now - float(oldest[1]) / 1000) if oldest else 0.0
            yield LogSlotGauge(number, owner.decode() if held else "", int(waiting), age)

    def _named(self, slot: Slot) -> dict[DatasetId, dict[str, Named]]:
        """What channels name, by dataset and channel."""
        found = dict[DatasetId, dict[str, Named]]()
        for log in self._index.announced(slot):
            flat = self._redis.run("HGETALL", slot.tables(log)[_CHANNELS], writes=False)
            for field_, text in zip(flat[::2], flat[1::2], strict=True):
                name, _, channel = field_.decode().partition(":")
                found.setdefault(log.dataset(name), {})[channel] = Named.model_validate_json(text)
        return found

    def _datasets(
        self, slot: Slot, datasets: Sequence[DatasetId], named: Mapping[DatasetId, Mapping[str, Named]], now: float
    ) -> Iterator[DatasetGauge]:  # fmt: skip
        commands: Commands = []
        for dataset in datasets:
            tables = slot.tables(dataset)
            commands += [
                ("HMGET", slot.head(dataset), "version", "seq", "confirmed_at", "session", "dropped"),
                ("HVALS", tables[_EDGES]), ("HGETALL", slot.cursors(dataset)), ("HVALS", tables[_HOLDS]),
            ]  # fmt: skip
        replies = self._redis.replies(commands, slot.name, writes=False)
        logs = self._all_logs(datasets, now)
        for at, dataset in enumerate(datasets):
            (version, seq, confirmed, session, dropped), edges, cursors, holds = replies[4 * at : 4 * at + 4]
            if not session or dropped:
                continue
            newest, channels = int(version or 0), named.get(dataset, {})
            standing = {channel: at for channel, at in channels.items() if at.session == session.decode()}
            yield DatasetGauge(
                dataset, newest, int(seq or 0), float(confirmed or 0), len(edges), sum(map(_bytes, edges)), logs[dataset],
                self._consumers(slot.tables(dataset)[_VERSIONS], cursors, Goals(newest, standing), now),
                {channel: at.version for channel, at in channels.items()}, sum(_holds(hold, now) for hold in holds),
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

    def _consumers(self, versions: bytes, flat: Sequence[bytes], goals: Goals, now: float) -> tuple[CursorGauge, ...]:
        """From the ledger's hash as it is: asking the ledger would make it forget those that lapsed long ago."""
        leases = (value.partition(b" ") for value in flat[1::2])
        held = [(LiveCursor.model_validate_json(fields), int(until) / 1000 - now) for until, _, fields in leases]
        missing = [str(cursor.version + 1) for cursor, _ in held]
        texts = self._redis.run("HMGET", versions, *missing, writes=False) if missing else []
        found = list[CursorGauge]()
        for (cursor, left), text in zip(held, texts, strict=True):
            goal = goals.of(cursor.channel)
            behind = max(goal.version - cursor.version, int(0 < goal.version < cursor.version))
            since = max(goal.since, json.loads(text)["time"] if text and goal.version > cursor.version else 0.0)
            age = max(0.0, now - since) if behind and since else 0.0
            found.append(CursorGauge(cursor.name, cursor.version, behind, age, left > 0, cursor.channel, left))
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


def _holds(text: bytes, now: float) -> bool:
    until = json.loads(text).get("until")
    return until is None or until > now


def _counts(flat: Sequence[bytes]) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in zip(flat[::2], flat[1::2], strict=True) if int(count)}
