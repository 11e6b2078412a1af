"""Pauses: whatever fails is left alone for longer each time, so that it does not keep the others waiting."""

from __future__ import annotations

import time
from collections.abc import Set

from broker.model.names import DatasetId


class Pauses:
    """Of datasets, in one process: `first_seconds` behind a first failure, twice as long behind each next, at most
    `longest_seconds`. One thread an object."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first_seconds, self._longest_seconds = first_seconds, longest_seconds
        self._known = dict[DatasetId, tuple[float, float]]()

    def failed(self, dataset: DatasetId) -> float:
        """-> seconds for which it is left alone now."""
        _, before = self._known.get(dataset, (0.0, 0.0))
        pause = min(self._longest_seconds, before * 2 or self._first_seconds)
        self._known[dataset] = (time.monotonic() + pause, pause)
        return pause

    def rest(self, dataset: DatasetId, seconds: float) -> None:
        """Leave it alone for so long, though it did not fail."""
        self._known[dataset] = (time.monotonic() + seconds, 0.0)

    def done(self, dataset: DatasetId) -> None:
        """It went well: its next failure is a first one."""
        self._known.pop(dataset, None)

    def resting(self) -> Set[DatasetId]:
        """Those to be left alone now."""
        now = time.monotonic()
        return {dataset for dataset, (until, _) in self._known.items() if now < until}

    def failing(self) -> Set[DatasetId]:
        """Those whose last try failed, whether they rest or not."""
        return {dataset for dataset, (_, pause) in self._known.items() if pause}
