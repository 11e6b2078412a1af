"""The micro-batcher: change-log entries become versions within `max_age_seconds`. One pass, one report.

    ready datasets, oldest first ──► close: read (consumed, until], coalesce, write files ──► wait in Redis ──► commit ──► trim

All waiting batches of a dataset go into one version. Memory holds one batch of one log slot at a time, or small ones of several
datasets that are no more together, whatever the number of datasets and keys. A crash anywhere leaves the entries in
the log, and at most files that nobody names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from broker.backend.batches import Batches
from broker.backend.logs import Logs
from broker.catalog import Catalog
from broker.errors import BrokerError
from broker.microbatcher_closing import Closer
from broker.microbatcher_slots import HeldSlots
from broker.model.commit import Body
from broker.model.names import DatasetId
from broker.rules.batching import (
    PRODUCER,
    Backlog,
    Batch,
    Reason,
    batches_of,
    check_mixture,
    fits,
    reasons,
    version_of,
)
from broker.rules.correlation import first, line
from broker.rules.fold import State
from broker.rules.steps import OnStep, nothing

log = logging.getLogger("broker.microbatcher")
STEPS: Final = ("read", "upload", "waiting", "committed", "trimmed")
"""The named steps of a batch, in order: tests crash at each. Those of publishing lie before `committed`."""
SERVED: Final = 64
"""Datasets of one pass that are due: between passes leases and signals have their turn."""
GLANCED: Final = 64
"""Datasets of one pass that are not due yet and may be closed by their size."""
THREADS: Final = 8
"""Small batches of so many datasets are made at once: they wait for disks and servers, not for this processor."""
SMALL_BYTES: Final = 1 << 20
"""Of one dataset: read in one round trip."""
POLL_SECONDS: Final = 0.02
"""Between two looks, unless something falls due before."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 60.0
"""A dataset that fails is left alone so long, the first time and at most: others must not wait for it."""
WRITING_SECONDS: Final = 0.05
"""So long for one whose writer lease is held."""


@dataclass
class BatchReport:
    """What one pass did. `failed`: dataset -> why; it is tried again. `due_seconds`: until the next pass has work.

    `held_up`: datasets without an order, while somebody holds their writer lease.
    """

    batches: int = 0
    versions: int = 0
    rows: int = 0
    coalesced: int = 0
    held_up: list[DatasetId] = field(default_factory=list)
    failed: dict[DatasetId, str] = field(default_factory=dict)
    due_seconds: float = POLL_SECONDS
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, made: int, taken: Sequence[Batch]) -> None:
        """One commit; for any thread."""
        with self._lock:
            self.batches += made
            self.versions += bool(taken)
            self.rows += sum(batch.source.rows for batch in taken)
            self.coalesced += sum(batch.coalesced for batch in taken)


Ready = dict[DatasetId, dict[int, int]]
"""Dataset -> log slot -> when its oldest unbatched entry came (ms by Redis' clock)."""


@dataclass(frozen=True, slots=True)
class _Due:
    """A dataset to be served: why its log slots' batches close, and the bytes that wait in them."""

    dataset: DatasetId
    closing: Mapping[int, Reason]
    bytes: int


class MicroBatcher:
    """Any number of processes may run it: leases share the work, the head decides what counts. One thread an object."""

    def __init__(
        self, batches: Batches, logs: Logs, held: HeldSlots, catalog: Catalog, closer: Closer, on_step: OnStep = nothing
    ) -> None:
        self._batches, self._logs, self._held, self._catalog, self._closer = batches, logs, held, catalog, closer
        self._limits, self._on_step = closer.limits, on_step
        self._paused, self._lead_ms = dict[DatasetId, tuple[float, float]](), 0.0
        self._small_bytes = self._limits.bytes // THREADS
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="microbatch")

    def run_once(self, owner: str) -> BatchReport:
        """Serve what is due in the log slots this process holds. Raises Transient errors of the look around alone."""
        self._held.keep(owner)
        report = BatchReport()
        now_ms, ready = self._ready()
        now_ms += self._lead_ms
        due = self._due(now_ms, ready)
        small = [one for one in due if one.bytes <= self._small_bytes]
        if len(small) > 1:
            list(self._pool.map(lambda one: self._serve(one, report), small))
        for one in due if len(small) < 2 else [one for one in due if one.bytes > self._small_bytes]:
            self._serve(one, report)
        report.due_seconds = 0.0 if report.versions else self._until_due(now_ms, ready)
        return report

    def left(self) -> list[DatasetId]:
        """Datasets with changes that no version holds yet, in any log slot; those that failed are not waited for."""
        _, ready = self._batches.ready([(place.number, place.log) for place in self._held.every()])
        return sorted(ready.keys() - {dataset for dataset, (_, failing) in self._paused.items() if failing})

    def leave(self, owner: str) -> None:
        """Give the log slots to whoever else is alive. It runs no more."""
        self._pool.shutdown()
        self._held.leave(owner)

    # --- what is due

    def _ready(self) -> tuple[float, Ready]:
        now_ms, found = self._batches.ready([(place.number, place.log) for place in self._held.places])
        resting = {dataset for dataset, (until, _) in self._paused.items() if time.monotonic() < until}
        return now_ms, {dataset: slots for dataset, slots in found.items() if dataset not in resting}

    def _due(self, now_ms: float, ready: Ready) -> list[_Due]:
        """The oldest first; those not due by age are looked at for their size."""
        by_age = sorted(ready, key=lambda dataset: min(ready[dataset].values()))
        aged = sum(min(slots.values()) + self._limits.age_ms <= now_ms for slots in ready.values())
        looked_at = [*by_age[: min(aged, SERVED)], *by_age[aged : aged + GLANCED]]
        places = [(dataset, slot) for dataset in looked_at for slot in ready[dataset]]
        backlogs = dict[DatasetId, dict[int, Backlog]]()
        for (dataset, slot), logged in zip(places, self._batches.totals(places), strict=True):
            backlog = Backlog(ready[dataset][slot], logged.unbatched_rows, logged.unbatched_bytes)
            backlogs.setdefault(dataset, {})[slot] = backlog
        found = [
            _Due(dataset, reasons(now_ms, slots, self._limits), sum(backlog.bytes for backlog in slots.values()))
            for dataset, slots in backlogs.items()
        ]
        return [due for due in found if due.closing]

    def _until_due(self, now_ms: float, ready: Ready) -> float:
        left_ms = (min(slots.values()) + self._limits.age_ms - now_ms for slots in ready.values())
        return min((left / 1000 for left in left_ms if 0 < left < POLL_SECONDS * 1000), default=POLL_SECONDS)

    # --- serving one dataset

    def _serve(self, due: _Due, report: BatchReport) -> None:
        """One dataset's harm, or its writer's lease, must not keep the others waiting."""
        dataset = due.dataset
        try:
            state = self._catalog.state(dataset)
            check_mixture(state)
            if not state.spec.order and self._batches.writing(dataset):
                report.held_up.append(dataset)
                self._paused[dataset] = (time.monotonic() + WRITING_SECONDS, 0.0)
                return
            begun = time.monotonic()
            self._batch(state, due, report)
            self._learn((time.monotonic() - begun) * 1000)
            self._paused.pop(dataset, None)
        except BrokerError as error:
            report.failed[dataset] = str(error)
            _, before = self._paused.get(dataset, (0.0, 0.0))
            pause = min(LONGEST_PAUSE_SECONDS, before * 2 or FIRST_PAUSE_SECONDS)
            self._paused[dataset] = (time.monotonic() + pause, pause)
            log.warning("%s: %s; again in %.2f s", dataset, error, pause)

    def _learn(self, took_ms: float) -> None:
        """Batches close by age so much sooner that they are visible, not only closed, when their time is over."""
        self._lead_ms = min(self._limits.age_ms / 2, 0.8 * self._lead_ms + 0.2 * took_ms)

    def _batch(self, state: State, due: _Due, report: BatchReport) -> None:
        dataset, closing = due.dataset, due.closing
        waiting = {batch.slot: batch for batch in self._waiting(dataset)}
        written = {batch.slot for batch in batches_of(state, waiting.values()) if batch.files}
        wanted = {slot: reason for slot, reason in closing.items() if slot not in written}
        made = self._closer.close_all(state, wanted, small=due.bytes <= SMALL_BYTES)
        if made:
            self._batches.put(dataset, made)
            self._on_step("waiting")
        waiting |= {batch.slot: batch for batch in made}
        state, taken = self._commit(dataset, [*waiting.values()])
        self._on_step("committed")
        self._batches.drop(dataset, closing.keys() & {slot for slot, batch in waiting.items() if not fits(state, batch)})
        self._logs.trim_all(state, closing)
        self._on_step("trimmed")
        report.add(len(made), taken)

    def _waiting(self, dataset: DatasetId) -> list[Batch]:
        """Those whose files no sweep may take for orphans before they are named."""
        since = time.time() - self._limits.file_seconds
        return [batch for batch in self._batches.waiting(dataset) if batch.written_at > since]

    def _commit(self, dataset: DatasetId, waiting: Sequence[Batch]) -> tuple[State, list[Batch]]:
        """All batches that wait, whoever made them, in one version. What others close meanwhile is left to them.

        A lost reply needs no memory: on the new head these batches fit no more, and nothing is left to do.
        """
        age_seconds = max((time.time() - batch.written_at for batch in waiting), default=0.0)
        taken, landed = list[Batch](), 0

        def body(state: State) -> Body | None:
            nonlocal landed
            check_mixture(state)
            found = batches_of(state, waiting)
            version = version_of(state, found)
            if version is not None:
                taken[:], landed = found, version.edge.version
            return version

        state = self._catalog.commit(dataset, body, PRODUCER, uploaded_at=time.monotonic() - age_seconds)
        if taken and log.isEnabledFor(logging.DEBUG):
            log.debug("sealed", extra=line(state, landed, rows=_rows(taken), blocks=_blocks(taken)))
        return state, taken


def _rows(taken: Iterable[Batch]) -> int:
    return sum(batch.source.rows for batch in taken)


def _blocks(taken: Iterable[Batch]) -> dict[str, int]:
    """Producer -> highest block that versions hold now, in the log slots of these batches."""
    found = {name: mark.block for batch in taken for name, mark in batch.source.marks.items()}
    return {name: found[name] for name in first(found)}
