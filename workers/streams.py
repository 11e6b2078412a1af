"""The request streams that a worker reads: those of the datasets it serves, as they come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final

from broker.backend.client import Entry
from broker.backend.group_reader import GroupReader
from broker.backend.index import Index
from broker.backend.keys import PRODUCERS, Slot
from broker.errors import NotFound, Transient
from broker.model.names import DatasetId
from broker.model.request import PRIORITIES

READ_COUNT: Final = 100
"""Entries of one read of one stream."""
DISCOVER_SECONDS: Final = 1.0


class Streams:
    """Reads as consumer `name` of the group `producers`. `read` is for one thread; `of` is a whole new dict at each change."""

    def __init__(self, index: Index, name: str, serves: Callable[[DatasetId], bool]) -> None:
        self._index, self._redis, self._name, self._serves = index, index.redis, name, serves
        self.of: dict[bytes, Slot] = {}
        self._readers: list[GroupReader] = []
        self._discovered = 0.0

    def __bool__(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._readers)

    def discover(self) -> None:
        """The streams of datasets served here; looked for once a second."""
        if time.monotonic() - self._discovered < DISCOVER_SECONDS:
            return
        streams = dict[bytes, Slot]()
        for priority in PRIORITIES:
            for slot in self._index.slots():
                for name in sorted({dataset.name for dataset in self._index.datasets(slot) if self._serves(dataset)}):
                    streams[slot.requests(name, priority)] = slot
        if streams.keys() != self.of.keys():
            self._open(streams)
        self._discovered = time.monotonic()

    def read(self, block_ms: int) -> list[Entry]:
        """What has come, waiting at most `block_ms` for the first."""
        try:
            if len(self._readers) == 1:
                return self._readers[0].read(READ_COUNT, block_ms)
            found = [entry for reader in self._readers for entry in reader.read(READ_COUNT, 0)]
            return found or self._wait(block_ms)
        except NotFound:
            self._open({})  # the groups are gone with Redis' memory, and the slots of datasets that nobody announces again
            self._discovered = 0.0
            return []

    def stale(self, streams: Iterable[bytes], idle_ms: int) -> Iterator[list[Entry]]:
        """Stream by stream, entries that a worker read `idle_ms` ago and never claimed; they are this one's now."""
        for stream in streams:
            try:
                reply = self._redis.run("XAUTOCLAIM", stream, PRODUCERS, self._name, idle_ms, "0", "COUNT", READ_COUNT)
            except NotFound:
                return  # Redis lost its memory: the next read makes the groups anew
            yield [Entry(stream, id, dict(zip(flat[::2], flat[1::2], strict=True))) for id, flat in reply[1] if flat]

    def close(self) -> None:
        """Leave the groups where nothing is pending."""
        for reader in self._readers:
            reader.close()
        with suppress(Transient, NotFound):
            for stream in self.of:
                if not self._redis.run("XPENDING", stream, PRODUCERS, "-", "+", 1, self._name, writes=False):
                    self._redis.run("XGROUP", "DELCONSUMER", stream, PRODUCERS, self._name)

    def _open(self, streams: dict[bytes, Slot]) -> None:
        for stream in streams:
            self._redis.create_group(stream, PRODUCERS)
        for reader in self._readers:
            reader.close()
        # One command reads several streams only where they lie in one place: on a cluster, those of one slot.
        groups = dict[str, list[bytes]]()
        for stream, slot in streams.items():
            groups.setdefault(slot.name if self._redis.cluster else "", []).append(stream)
        self._readers = [GroupReader(self._redis, of, PRODUCERS, self._name.encode()) for of in groups.values()]
        self.of = streams

    def _wait(self, block_ms: int) -> list[Entry]:
        """The first that comes: each reader waits for its share of the time."""
        for reader in self._readers:
            if found := reader.read(READ_COUNT, block_ms // len(self._readers)):
                return found
        return []
