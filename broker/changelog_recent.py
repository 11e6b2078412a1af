"""What appenders know of their datasets: as last seen, and looked at again each second, many datasets in one round trip."""

from __future__ import annotations

import os
import time
from itertools import islice
from threading import Lock
from typing import Final
from weakref import WeakSet

from broker.catalog import Catalog
from broker.errors import Transient
from broker.model.names import DatasetId
from broker.rules.fold import State

LOOK_SECONDS: Final = 1.0
"""What is appended for as long after a session ended (a drop, a forced alteration) is lost with what waited then."""
TOGETHER: Final = 32
"""Datasets of one look: whoever appends to many asks once for those that come next, too."""


class Recent:
    """States fit to shape records by: of the newest session and spec, perhaps not of the newest version. Safe for threads."""

    _lock: Lock
    _looked: dict[DatasetId, float]
    """When each was looked at, the longest ago first."""
    _asked: set[DatasetId]
    """Since then."""

    def __init__(self, catalog: Catalog, together: int = TOGETHER) -> None:
        self._catalog, self._together = catalog, together
        self._begin()
        _ALL.add(self)

    def state(self, dataset: DatasetId) -> State:
        """At most LOOK_SECONDS old: a schema only grows, but a dataset may be dropped. Raises as `Catalog.state`."""
        seen, now = self._catalog.cached(dataset), time.monotonic()
        if seen is None or not seen.exists:
            return self._first(dataset, now)
        with self._lock:
            self._asked.add(dataset)
            if now - self._looked.get(dataset, float("-inf")) < LOOK_SECONDS:
                return seen
            due = self._due(dataset, now)
        try:
            if dataset in self._steady(due):
                return self._catalog.cached(dataset) or seen
            return self._catalog.state(dataset)
        except Transient:  # delivery waits for Redis to come back, and then asks whoever was not sure
            return seen

    def _first(self, dataset: DatasetId, now: float) -> State:
        state = self._catalog.state(dataset)
        with self._lock:
            self._looked.pop(dataset, None)
            self._looked[dataset] = now
        return state

    def _due(self, dataset: DatasetId, now: float) -> list[DatasetId]:
        """This one, and others that were asked for since the last look at them."""
        due = [dataset]
        for other, looked in list(islice(self._looked.items(), 2 * self._together)):
            if now - looked < LOOK_SECONDS or len(due) >= self._together:
                break
            del self._looked[other]
            if other in self._asked and other != dataset:
                due.append(other)
        for one in due:
            self._looked.pop(one, None)
            self._looked[one] = now
        self._asked.difference_update(due)
        return due

    def _steady(self, due: list[DatasetId]) -> set[DatasetId]:
        """Those that are as they were seen; the others are looked at by whoever asks for them next."""
        steady = set[DatasetId]()
        try:
            steady = self._catalog.steady(due)
        finally:
            with self._lock:
                for one in due[1:]:
                    if one not in steady:
                        self._looked.pop(one, None)
        return steady

    def _begin(self) -> None:
        """As new: a forked child has none of its parent's threads, and may have their lock."""
        self._lock, self._looked, self._asked = Lock(), {}, set()


_ALL: Final = WeakSet[Recent]()


def _after_fork() -> None:
    for recent in _ALL:
        recent._begin()


os.register_at_fork(after_in_child=_after_fork)
