"""Micro-batches that wait for their commit, in the dataset's own slot of Redis. Losing one is harmless: its entries remain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from broker.backend.client import RedisClient
from broker.backend.driver_errors import broker_error
from broker.backend.index import Index
from broker.backend.keys import Slot, writer_lease
from broker.backend.lanes import Argument
from broker.backend.logs import Logged, Logs
from broker.model.names import DatasetId
from broker.rules.batching import Batch

TOTALS: Final = ("appended", "rows", "released", "released_rows")
MOST_READY: Final = 1_000


class Batches:
    """Safe for threads and processes: a field per log slot, and the last writer's batch is as good as any other's."""

    def __init__(self, redis: RedisClient, index: Index, logs: Logs) -> None:
        self._redis, self._index, self._logs = redis, index, logs

    def put(self, dataset: DatasetId, batches: Sequence[Batch]) -> None:
        """They wait for the next commit, each in the place of its log slot's former one."""
        fields = [item for batch in batches for item in (str(batch.slot), batch.model_dump_json(exclude_defaults=True))]
        self._redis.run("HSET", self._index.slot(dataset).batches(dataset), *fields)

    def waiting(self, dataset: DatasetId) -> list[Batch]:
        return [Batch.model_validate_json(text) for text in self._redis.run("HVALS", self._key(dataset), writes=False)]

    def drop(self, dataset: DatasetId, slots: Iterable[int]) -> None:
        """They are in a version, or fit none any more."""
        if names := [str(slot) for slot in slots]:
            self._redis.run("HDEL", self._key(dataset), *names)

    def ready(self, places: Sequence[tuple[int, Slot]]) -> tuple[int, dict[DatasetId, dict[int, int]]]:
        """Redis' time (ms), and per dataset with unbatched entries in log slots (number, slot) the time of its oldest in each.

        One round trip; of a slot the oldest MOST_READY.
        """
        commands = [("ZRANGE", slot.ready, 0, MOST_READY - 1, "WITHSCORES") for _, slot in places]
        clock, *replies = self._replies([("TIME",), *commands])
        found = dict[DatasetId, dict[int, int]]()
        for (number, _), flat in zip(places, replies, strict=True):
            for name, at in zip(flat[::2], flat[1::2], strict=True):
                found.setdefault(_dataset(name), {})[number] = int(float(at))
        return int(clock[0]) * 1000 + int(clock[1]) // 1000, found

    def totals(self, places: Sequence[tuple[DatasetId, int]]) -> list[Logged]:
        """What of each dataset lies in each log slot, in one round trip."""
        commands = [("HMGET", self._logs.slot(dataset, number).logged(dataset), *TOTALS) for dataset, number in places]
        return [Logged(*(int(value or 0) for value in reply)) for reply in self._replies(commands)]

    def writing(self, dataset: DatasetId) -> bool:
        """Whether somebody holds the dataset's writer lease."""
        until = self._redis.run("HGET", self._index.slot(dataset).lease(writer_lease(dataset)), "until", writes=False)
        return until is not None and int(until) > self.now_ms()

    def now_ms(self) -> int:
        """By Redis' clock, which dates entries and leases."""
        seconds, micros = self._redis.run("TIME", writes=False)
        return int(seconds) * 1000 + int(micros) // 1000

    def _replies(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Of reads. Raises what was refused."""
        replies = self._redis.pipeline(commands, "change logs", writes=False) if commands else []
        for reply in replies:
            if isinstance(reply, Exception):
                raise broker_error(reply, "change logs", unknown=False) from reply
        return replies

    def _key(self, dataset: DatasetId) -> bytes:
        return self._index.slot(dataset).batches(dataset)


@lru_cache(maxsize=100_000)
def _dataset(name: bytes) -> DatasetId:
    """Checked once: a busy slot names the same ones many times a second."""
    return DatasetId(name.decode())
