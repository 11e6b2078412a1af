"""The index: Redis' side of the publishing protocol. Each method is one script, or one read; none of them decides anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from broker.backend.client import Call, RedisClient
from broker.backend.driver_errors import broker_error
from broker.backend.keys import SLOTS, Slot, slot_for
from broker.backend.lanes import Argument
from broker.errors import BrokerError, OutcomeUnknown
from broker.model.names import ChannelsId, DatasetId
from broker.rules.fold import State
from broker.rules.patch import TABLES, Patch
from broker.rules.publishing import PublishAnswer, Reserve, ReserveAnswer

T = TypeVar("T")
TOGETHER: Final = 16
"""Heads of one script, which others wait for."""
VOLATILE = ("reserved_seq", "reserved_data", "reserved_at", "run_id", "notified")
"""Fields of the head hash that are no part of the fold."""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest record by number and SHA-256 ('' before the first); `current`: the index belongs to this incarnation.

    `reserved_seconds`: how long the reservation has stood, by Redis' clock.
    """

    seq: int
    sha: str
    current: bool
    run_id: str
    epoch: int
    reservation: tuple[int, bytes] | None
    reserved_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Move:
    """A step of a log's head, to `seq`, whose record names `previous`. `barrier`: the run id it lets in ('' none).

    `events`: each as JSON, kept for `history_ms`.
    """

    log: DatasetId
    seq: int
    previous: str
    patch: Patch
    barrier: str = ""
    events: Sequence[str] = ()
    history_ms: int = 0


@dataclass(frozen=True, slots=True)
class Glance:
    """A head as a janitor sees it from afar. `lost`: it is of another incarnation of the server.

    `open`: what its writer, or somebody else, has still to finish: a reservation, and the bell. By kind, with the number that
    tells one from the next.
    """

    seq: int
    lost: bool = False
    open: frozenset[tuple[str, int]] = frozenset()


class Index:
    """Safe for threads and processes: every change is one atomic script."""

    def __init__(self, redis: RedisClient, shards: int) -> None:
        self.redis, self._shards = redis, shards
        self._read_head, self._load = redis.script("read_head", writes=False), redis.script("load", writes=False)
        self._reserve, self._publish, self._install = map(redis.script, ("reserve", "publish", "install"))
        self._tell = redis.script("tell")

    def slot(self, dataset: DatasetId) -> Slot:
        return Slot(slot_for(dataset, self._shards))

    def slots(self) -> list[Slot]:
        """Every slot in use."""
        return [Slot(name.decode()) for name in sorted(self.redis.run("SMEMBERS", SLOTS, writes=False))]

    def announce(self, dataset: DatasetId) -> None:
        """Let workers and readers find the dataset's slot. Idempotent."""
        self.redis.run("SADD", SLOTS, self.slot(dataset).name)

    def datasets(self, slot: Slot) -> list[DatasetId]:
        return sorted(DatasetId(name.decode()) for name in self.redis.run("SMEMBERS", slot.datasets, writes=False))

    def announced(self, slot: Slot) -> list[ChannelsId]:
        """Logs of announcements."""
        return sorted(ChannelsId(name.decode()) for name in self.redis.run("SMEMBERS", slot.announced, writes=False))

    def logs(self, slot: Slot) -> list[DatasetId]:
        """Every log: those of datasets, and those of announcements."""
        return [*self.announced(slot), *self.datasets(slot)]

    def head(self, dataset: DatasetId) -> Head:
        return _only(self.heads([dataset]))

    def heads(self, logs: Sequence[DatasetId]) -> list[Head | BrokerError]:
        """In one round trip: TOGETHER of one slot at one moment, by one script."""
        by_slot = dict[str, list[DatasetId]]()
        for log in dict.fromkeys(logs):
            by_slot.setdefault(self.slot(log).name, []).append(log)
        groups = [alike[at : at + TOGETHER] for alike in by_slot.values() for at in range(0, len(alike), TOGETHER)]
        found = dict[DatasetId, Head | BrokerError]()
        replies = self.redis.call_many(self._read_head, [self._heads(group) for group in groups])
        for group, reply in zip(groups, replies, strict=True):
            alone = [reply] * len(group) if isinstance(reply, BrokerError) else heads_of(*reply)
            found.update(zip(group, alone, strict=True))
        return [found[log] for log in logs]

    def _heads(self, logs: Sequence[DatasetId]) -> Call:
        """Of one slot."""
        slot = self.slot(logs[0])
        return [slot.meta, *map(slot.head, logs)], ()

    def fields(self, dataset: DatasetId, *names: str) -> list[bytes | None]:
        """Fields of the head hash, read at one moment."""
        return cast(list[bytes | None], self.redis.run("HMGET", self.slot(dataset).head(dataset), *names, writes=False))

    def fields_all(self, logs: Sequence[DatasetId], *names: str) -> list[list[bytes | None] | None]:
        """`fields` of each, in one round trip; each at its own moment. None: Redis refused it."""
        commands: list[Sequence[Argument]] = [("HMGET", self.slot(log).head(log), *names) for log in logs]
        replies = self.redis.pipeline(commands, "heads", writes=False)
        return [None if isinstance(reply, Exception) else reply for reply in replies]

    def glance(self, slot: Slot, logs: Sequence[DatasetId] | None = None) -> dict[DatasetId, Glance]:
        """Heads of a slot (None: of all its datasets), in two round trips however many there are."""
        logs = self.datasets(slot) if logs is None else logs
        if not logs:
            return {}
        run_id = self.redis.call(self._read_head, [slot.meta, slot.head(logs[0])])[0]
        commands = [("HMGET", slot.head(log), "seq", "run_id", "notified", "reserved_seq") for log in logs]
        found = dict[DatasetId, Glance]()
        for log, reply in zip(logs, self.redis.replies(commands, slot.name, writes=False), strict=True):
            seq, notified, reserved = int(reply[0] or 0), int(reply[2] or 0), int(reply[3] or 0)
            kinds = (("reservation", reserved, reserved > seq), ("bell", notified, notified < seq))
            found[log] = Glance(seq, reply[1] != run_id, frozenset((kind, at) for kind, at, stands in kinds if stands))
        return found

    def mark_notified(self, rung: Sequence[tuple[DatasetId, int]]) -> None:
        """Up to which record of a log the bell has rung."""
        self.redis.replies([("HSET", self.slot(log).head(log), "notified", seq) for log, seq in rung], "the bell")

    def load(self, dataset: DatasetId) -> State:
        """The whole projection, read at one moment."""
        slot = self.slot(dataset)
        keys = slot.tables(dataset)
        if self.redis.cluster:
            replies = self.redis.call(self._load, [slot.meta, *keys])
        else:
            replies = self.redis.at_once([("HGETALL", key) for key in keys], slot.name)
        texts = [[item.decode("utf-8", "replace") for item in flat] for flat in replies]
        tables = {name: dict(zip(flat[::2], flat[1::2], strict=True)) for name, flat in zip(TABLES, texts, strict=True)}
        for field in VOLATILE:
            tables["head"].pop(field, None)
        return State(dataset, tables)

    def reserve(self, dataset: DatasetId, effect: Reserve, max_age_seconds: float) -> ReserveAnswer:
        return _only(self.reserve_all([(dataset, effect)], max_age_seconds))

    def reserve_all(
        self, wanted: Sequence[tuple[DatasetId, Reserve]], max_age_seconds: float
    ) -> list[ReserveAnswer | BrokerError]:
        """Of different logs, each for itself, in one round trip. Raises Unavailable: none stands."""
        calls = [self._reserving(log, effect, max_age_seconds) for log, effect in wanted]
        try:
            replies = self.redis.call_many(self._reserve, calls)
        except OutcomeUnknown:
            return [ReserveAnswer("unknown")] * len(calls)
        return [reply if isinstance(reply, BrokerError) else ReserveAnswer(reply.decode()) for reply in replies]

    def _reserving(self, log: DatasetId, effect: Reserve, max_age_seconds: float) -> Call:
        slot, lease = self.slot(log), effect.lease
        keys = [slot.meta, slot.head(log), *([slot.lease(lease.name)] if lease else [])]
        args: list[Argument] = [effect.seq, effect.previous, effect.data]
        args += [lease.fence.epoch, lease.fence.counter] if lease else ["", ""]
        return keys, [*args, int(effect.age_seconds * 1000), int(max_age_seconds * 1000), int(effect.ends_lease)]

    def publish(self, move: Move) -> PublishAnswer:
        return _only(self.publish_all([move]))

    def publish_all(self, moves: Sequence[Move]) -> list[PublishAnswer | BrokerError]:
        """Of different logs, each for itself, in one round trip."""
        calls: list[Call] = [
            (
                self._projection(self.slot(move.log), move.log),
                [move.seq, move.previous, move.patch.to_json(), move.barrier, move.log, move.history_ms, *move.events],
            )
            for move in moves
        ]
        try:
            replies = self.redis.call_many(self._publish, calls)
        except OutcomeUnknown:
            return [PublishAnswer("behind")] * len(calls)  # walking the log again publishes it, or finds it published
        return [reply if isinstance(reply, BrokerError) else PublishAnswer(reply.decode()) for reply in replies]

    def tell(self, dataset: DatasetId, event: str, history_seconds: float) -> None:
        """Add an event (JSON) that belongs to no record."""
        slot = self.slot(dataset)
        self.redis.call(self._tell, [slot.meta, slot.events], [event, int(history_seconds * 1000)])

    def install(self, dataset: DatasetId, state: State, adopt: str) -> None:
        slot = self.slot(dataset)
        args: list[Argument] = [state.seq, json.dumps(state.tables), adopt, dataset]
        self.redis.call(self._install, self._projection(slot, dataset), args)

    @staticmethod
    def _projection(slot: Slot, dataset: DatasetId) -> list[bytes]:
        return [slot.meta, slot.listed(dataset), *slot.tables(dataset)]


def heads_of(run_id: bytes, epoch: bytes, *heads: Any) -> list[Head | BrokerError]:
    """Each of a script's heads (prelude.lua), or what became of it."""
    return [
        broker_error(one, "read_head", unknown=False) if isinstance(one, Exception) else _head(run_id, epoch, one)
        for one in heads
    ]


def _head(run_id: bytes, epoch: bytes, fields: list[Any]) -> Head:
    seq, sha, known_run, reserved_seq, reserved, age_ms = fields
    at = int(seq or 0)
    reservation = (int(reserved_seq), reserved) if reserved_seq and int(reserved_seq) > at else None
    current, age_seconds = known_run == run_id, int(age_ms or 0) / 1000
    return Head(at, sha.decode() if sha else "", current, run_id.decode(), int(epoch), reservation, age_seconds)


def _only(found: list[T | BrokerError]) -> T:
    """The one answer. Raises where it is an error."""
    (answer,) = found
    if isinstance(answer, BrokerError):
        raise answer
    return answer
