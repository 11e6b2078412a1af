"""Micro-batches that wait for their commit, in the dataset's own slot of Redis. Losing one is harmless: its entries remain."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Final

from broker.backend.client import RedisClient
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

    def put(self, made: Mapping[DatasetId, Sequence[Batch]]) -> None:
        """They wait for the next commit of their dataset, each in the place of its log slot's former one."""
        self._redis.replies([self._putting(*item) for item in made.items()], "micro-batches")

    def waiting(self, datasets: Sequence[DatasetId]) -> list[list[Batch]]:
        """Of each dataset."""
        texts = self._redis.replies([("HVALS", self._key(dataset)) for dataset in datasets], "micro-batches", writes=False)
        return [[Batch.model_validate_json(text) for text in found] for found in texts]

    def drop(self, gone: Mapping[DatasetId, Collection[int]]) -> None:
        """Those of these log slots are in a version, or fit none any more."""
        commands: list[list[Argument]] = [["HDEL", self._key(dataset), *slots] for dataset, slots in gone.items() if slots]
        self._redis.replies(commands, "micro-batches")

    def ready(self, places: Sequence[tuple[int, Slot]]) -> tuple[int, dict[DatasetId, dict[int, int]]]:
        """Redis' time (ms), and per dataset with unbatched entries in log slots (number, slot) the time of its oldest in each.

        One round trip; of a slot the oldest MOST_READY.
        """
        commands = [("ZRANGE", slot.ready, 0, MOST_READY - 1, "WITHSCORES") for _, slot in places]
        clock, *replies = self._redis.replies([("TIME",), *commands], "change logs", writes=False)
        found = dict[DatasetId, dict[int, int]]()
        for (number, _), flat in zip(places, replies, strict=True):
            for name, at in zip(flat[::2], flat[1::2], strict=True):
                found.setdefault(_dataset(name), {})[number] = int(float(at))
        return int(clock[0]) * 1000 + int(clock[1]) // 1000, found

    def totals(self, places: Sequence[tuple[DatasetId, int]]) -> list[Logged]:
        """What of each dataset lies in each log slot, in one round trip."""
        commands = [("HMGET", self._logs.slot(dataset, number).logged(dataset), *TOTALS) for dataset, number in places]
        return [
            Logged(*(int(value or 0) for value in reply))
            for reply in self._redis.replies(commands, "change logs", writes=False)
        ]

    def writing(self, datasets: Sequence[DatasetId]) -> set[DatasetId]:
        """Of these the ones whose writer lease somebody holds."""
        leases = [("HGET", self._index.slot(dataset).lease(writer_lease(dataset)), "until") for dataset in datasets]
        untils = self._redis.replies(leases, "writer leases", writes=False)
        now_ms = self.now_ms() if any(untils) else 0
        return {dataset for dataset, until in zip(datasets, untils, strict=True) if until is not None and int(until) > now_ms}

    def now_ms(self) -> int:
        """By Redis' clock, which dates entries and leases."""
        seconds, micros = self._redis.run("TIME", writes=False)
        return int(seconds) * 1000 + int(micros) // 1000

    def _putting(self, dataset: DatasetId, batches: Sequence[Batch]) -> list[Argument]:
        fields = [item for batch in batches for item in (str(batch.slot), batch.model_dump_json(exclude_defaults=True))]
        return ["HSET", self._key(dataset), *fields]

    def _key(self, dataset: DatasetId) -> bytes:
        return self._index.slot(dataset).batches(dataset)


@lru_cache(maxsize=100_000)
def _dataset(name: bytes) -> DatasetId:
    """Checked once: a busy slot names the same ones many times a second."""
    return DatasetId(name.decode())
