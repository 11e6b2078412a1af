"""Who is alive: each worker says what it serves, for a while. What nobody renews lapses by Redis' own clock."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from broker.backend.client import RedisClient
from broker.backend.keys import Slot

BATCHING: Final = "=microbatch"
"""What a batcher's entry serves: no dataset has such a name."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process as it registered. `until`: seconds since the epoch by Redis' clock."""

    id: str
    patterns: tuple[str, ...]
    host: str
    pid: int
    processes: int
    until: float = 0.0

    @property
    def batches(self) -> bool:
        """Whether it makes micro-batches."""
        return BATCHING in self.patterns


class Registry:
    """The only writer of the `workers` hashes. Safe for threads and processes."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    def register(self, slots: Iterable[Slot], worker: Worker, seconds: float) -> None:
        """Alive for `seconds` from now, in every slot; clears away what lapsed there. Idempotent."""
        now = self.now()
        fields = json.dumps(asdict(worker) | {"until": now + seconds})
        for slot in slots:
            self._redis.run("HSET", slot.workers, worker.id, fields)
            lapsed = [other.id for other in self._all(slot) if other.until < now]
            if lapsed:
                self._redis.run("HDEL", slot.workers, *lapsed)

    def remove(self, slots: Iterable[Slot], id: str) -> None:
        """Gone, at drain."""
        for slot in slots:
            self._redis.run("HDEL", slot.workers, id)

    def alive(self, slot: Slot) -> list[Worker]:
        """Workers of a slot whose time is not over."""
        now = self.now()
        return [worker for worker in self._all(slot) if worker.until >= now]

    def _all(self, slot: Slot) -> list[Worker]:
        return [_worker(json.loads(text)) for text in self._redis.run("HVALS", slot.workers, writes=False)]

    def now(self) -> float:
        seconds, micros = self._redis.run("TIME", writes=False)
        return int(seconds) + int(micros) / 1e6


def _worker(fields: dict[str, Any]) -> Worker:
    return Worker(**fields | {"patterns": tuple(fields["patterns"])})
