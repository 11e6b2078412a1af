"""The line of flights that wait for a child."""

from __future__ import annotations

import heapq
from itertools import count
from threading import Lock
from typing import Final

from broker.flights import Flight
from broker.model.request import PRIORITIES

LOW_EVERY: Final = 10


class Line:
    """Flights waiting for a child. Thread-safe."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Flight]] = []
        self._ticket, self._lock, self._taken = count(), Lock(), 0

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, flight: Flight) -> None:
        with self._lock:
            heapq.heappush(self._heap, (PRIORITIES.index(flight.priority), next(self._ticket), flight))

    def take(self) -> Flight | None:
        """The oldest of the highest priority; every tenth time the oldest of the lowest, so that none starves."""
        with self._lock:
            if not self._heap:
                return None
            self._taken += 1
            if self._taken % LOW_EVERY:
                return heapq.heappop(self._heap)[2]
            item = min(self._heap, key=lambda item: (-item[0], item[1]))
            self._heap.remove(item)
            heapq.heapify(self._heap)
            return item[2]
