"""The micro-batcher: change-log entries become versions within `max_age_seconds`. One pass, one report.

    ready datasets, oldest first ──► close: read (consumed, until], coalesce, write files ──► wait in Redis ──► commit ──► trim

Datasets are served in groups: each step asks Redis once for all of them, and their files are written side by side. All waiting
batches of a dataset go into one version. Memory holds one batch of one log slot at a time, or small ones of several datasets
that are no more together, whatever the number of datasets and keys. A crash anywhere leaves the entries in the log, and at
most files that nobody names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from broker.backend.batches import Batches
from broker.backend.logs import Logs
from broker.catalog import Catalog, Moment, Wanted
from broker.errors import BrokerError, Conflict, NotFound
from broker.microbatcher_closing import SMALL_BYTES, Closer, portions
from broker.microbatcher_slots import HeldSlots
from broker.model.commit import Body
from broker.model.names import DatasetId
from broker.pauses import Pauses
from broker.rules.batching import (
    PRODUCER,
    Backlog,
    Batch,
    Reason,
    batches_of,
    blocks_of,
    check_mixture,
    fits,
    reasons,
    rows_of,
    version_of,
)
from broker.rules.correlation import line
from broker.rules.fold import State
from broker.rules.steps import OnStep, nothing
from broker.stores.side_by_side import side_by_side

T = TypeVar("T")
log = logging.getLogger("broker.microbatcher")
STEPS: Final = ("read", "upload", "waiting", "committed", "trimmed")
"""The named steps of a batch, in order: tests crash at each. Those of publishing lie before `committed`."""
SERVED: Final = 64
"""Datasets of one pass that are due: between passes leases and signals have their turn."""
GLANCED: Final = 64
"""Datasets of one pass that are not due yet and may be closed by their size."""
THREADS: Final = 8
"""Files of so many datasets are written at once: they wait for disks and servers, not for this processor."""
QUIET_BYTES: Final = 64 << 10
"""Of one dataset: encoded in less time than threads take to share the work."""
POLL_SECONDS: Final = 0.02
"""Between two looks, unless something falls due before."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 60.0
"""A dataset that fails is left alone so long, the first time and at most: others must not wait for it."""
BARE_SECONDS: Final = 1.0
"""Between two looks at a dataset in whose log there are marks only, before its first version."""
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

    def add(self, made: int, taken: Sequence[Batch]) -> None:
        """One commit."""
        self.batches += made
        self.versions += bool(taken)
        self.rows += rows_of(taken)
        self.coalesced += sum(batch.coalesced for batch in taken)


Ready = dict[DatasetId, dict[int, int]]
"""Dataset -> log slot -> when its oldest unbatched entry came (ms by Redis' clock)."""


@dataclass(frozen=True, slots=True)
class _Due:
    """A dataset to be served: why its log slots' batches close, and the bytes that wait in them."""

    dataset: DatasetId
    closing: Mapping[int, Reason]
    bytes: int


@dataclass(slots=True)
class _Work:
    """A dataset in a group. `state` is the one before the commit, then the one behind it."""

    due: _Due
    state: State
    waiting: dict[int, Batch] = field(default_factory=dict)
    made: list[Batch] = field(default_factory=list)
    taken: list[Batch] = field(default_factory=list)
    landed: int = 0
    error: Exception | None = None

    @property
    def dataset(self) -> DatasetId:
        return self.due.dataset

    @property
    def bare(self) -> bool:
        """Whether nothing but marks waits, and no version could take them."""
        return not self.state.offered and not any(batch.source.rows for batch in self.waiting.values())

    @property
    def closing(self) -> Set[int]:
        return self.due.closing.keys()

    @property
    def wanted(self) -> dict[int, Reason]:
        """Log slots of which no batch with files waits that still counts."""
        written = {batch.slot for batch in batches_of(self.state, self.waiting.values()) if batch.files}
        return {slot: reason for slot, reason in self.due.closing.items() if slot not in written}

    def commit(self) -> Wanted:
        """All that waits, whoever made it."""
        self.waiting |= {batch.slot: batch for batch in self.made}
        age_seconds = max((time.time() - batch.written_at for batch in self.waiting.values()), default=0.0)
        return Wanted(self.dataset, self._body, PRODUCER, Moment.now(age_seconds))

    def _body(self, state: State) -> Body | None:
        check_mixture(state)
        self.taken, found = [], batches_of(state, self.waiting.values())
        version = version_of(state, found)
        if version is not None:
            self.taken, self.landed = found, version.edge.version
        return version

    def unfit(self) -> set[int]:
        """Log slots whose waiting batch is in a version, or fits none any more."""
        return {slot for slot, batch in self.waiting.items() if not fits(self.state, batch)}


class MicroBatcher:
    """Any number of processes may run it: leases share the work, the head decides what counts. One thread an object."""

    def __init__(
        self, batches: Batches, logs: Logs, held: HeldSlots, catalog: Catalog, closer: Closer, on_step: OnStep = nothing
    ) -> None:
        self._batches, self._logs, self._held, self._catalog, self._closer = batches, logs, held, catalog, closer
        self._limits, self._on_step = closer.limits, on_step
        self._pauses, self._lead_ms = Pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS), 0.0
        self._bare = set[DatasetId]()  # nothing but marks waits, and no version that could take them

    def run_once(self, owner: str) -> BatchReport:
        """Serve what is due in the log slots this process holds. Raises Transient errors of the look around alone."""
        self._held.keep(owner)
        report = BatchReport()
        now_ms, ready = self._ready()
        now_ms += self._lead_ms
        for group in self._groups(self._due(now_ms, ready)):
            self._serve(group, report)
        report.due_seconds = 0.0 if report.versions else self._until_due(now_ms, ready)
        return report

    def left(self) -> list[DatasetId]:
        """Datasets with changes that no version holds yet, in any log slot; those that failed are not waited for."""
        _, ready = self._batches.ready([(place.number, place.log) for place in self._held.every()])
        places = [(dataset, slot) for dataset in self._bare & ready.keys() for slot in ready[dataset]]
        rows = {
            dataset for (dataset, _), logged in zip(places, self._batches.totals(places), strict=True) if logged.unbatched_rows
        }
        return sorted(ready.keys() - self._pauses.failing() - (self._bare - rows))

    def leave(self, owner: str) -> None:
        """Give the log slots to whoever else is alive. It runs no more."""
        self._held.leave(owner)

    # --- what is due

    def _ready(self) -> tuple[float, Ready]:
        now_ms, found = self._batches.ready([(place.number, place.log) for place in self._held.places])
        resting = self._pauses.resting()
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

    def _groups(self, due: Sequence[_Due]) -> Iterator[list[_Due]]:
        """The small ones together, the oldest first, as many as a batch may hold bytes; then each large one by itself."""
        small = self._limits.bytes // THREADS
        group, size = list[_Due](), 0
        for one in due:
            if one.bytes > small:
                continue
            if group and size + one.bytes > self._limits.bytes:
                yield group
                group, size = [], 0
            group.append(one)
            size += one.bytes
        if group:
            yield group
        yield from ([one] for one in due if one.bytes > small)

    # --- serving a group

    def _serve(self, group: Sequence[_Due], report: BatchReport) -> None:
        """One dataset's harm, or its writer's lease, must not keep the others waiting."""
        begun, works = time.monotonic(), list[_Work]()
        try:
            works += self._opened(group, report)
            self._close(works)
            self._commit([work for work in works if not work.error])
        except BrokerError as error:  # of a step that all of them share
            works = works or [_Work(due, State(due.dataset)) for due in group]
            for work in works:
                work.error = work.error or error
        served = [work for work in works if not work.error]
        self._tidy(served)
        for work in works:
            if work.error:
                self._failed(work.dataset, work.error, report)
            else:
                self._pauses.done(work.dataset)
                self._bare.discard(work.dataset)
                if work.bare:  # until the first version: meanwhile others have their turn
                    self._bare.add(work.dataset)
                    self._pauses.rest(work.dataset, BARE_SECONDS)
                report.add(len(work.made), work.taken)
        if served:
            self._learn((time.monotonic() - begun) * 1000)

    def _opened(self, group: Sequence[_Due], report: BatchReport) -> list[_Work]:
        """Those that may be served, with their states."""
        works = list[_Work]()
        for due, state in zip(group, self._catalog.states([due.dataset for due in group]), strict=True):
            try:
                if isinstance(state, BrokerError):
                    raise state
                check_mixture(state)
                works.append(_Work(due, state))
            except BrokerError as error:
                self._unserved(due, error, report)
        plain = [work.dataset for work in works if not work.state.spec.order]
        held_up = self._batches.writing(plain) if plain else set()
        for dataset in held_up:
            report.held_up.append(dataset)
            self._pauses.rest(dataset, WRITING_SECONDS)
        return [work for work in works if work.dataset not in held_up]

    def _unserved(self, due: _Due, error: BrokerError, report: BatchReport) -> None:
        """A dataset that is gone, or takes no change log: perhaps all that waits is of a session that is over."""
        try:
            if isinstance(error, NotFound | Conflict) and self._closer.clear(due.dataset, due.closing):
                return self._batches.drop({due.dataset: due.closing.keys()})
        except BrokerError as other:
            error = other
        self._failed(due.dataset, error, report)

    def _close(self, works: Sequence[_Work]) -> None:
        """The files of what closes and waits nowhere yet."""
        since = time.time() - self._limits.file_seconds
        for work, found in zip(works, self._batches.waiting([work.dataset for work in works]), strict=True):
            # Files that a sweep may take for orphans before they are named are written anew.
            work.waiting = {batch.slot: batch for batch in found if batch.written_at > since}
        read = self._closer.first((work.state, work.wanted) for work in works if work.due.bytes <= SMALL_BYTES)
        # Threads that have little to encode hinder each other more than they help: they come in where a store is waited for.
        encoders = THREADS if any(work.due.bytes > QUIET_BYTES for work in works) else 1
        for some in portions((work, work.due.bytes, work.wanted) for work in works):
            closed = side_by_side(lambda one: _attempt(self._closer.close_all, one[0].state, one[1], read), some, encoders)
            batches = side_by_side(lambda found: _attempt(self._closer.complete, found), closed, THREADS)
            for (work, _), made in zip(some, batches, strict=True):
                if isinstance(made, Exception):
                    work.error = work.error or made
                else:
                    work.made += made
        waiting = {work.dataset: work.made for work in works if work.made and not work.error}
        if waiting:
            self._batches.put(waiting)
            self._on_step("waiting")

    def _commit(self, works: Sequence[_Work]) -> None:
        """Of each dataset all batches that wait, whoever made them, in one version. What others close meanwhile is theirs.

        A lost reply needs no memory: on the new head these batches fit no more, and nothing is left to do.
        """
        for work, state in zip(works, self._catalog.commit_all([work.commit() for work in works]), strict=True):
            if isinstance(state, Exception):
                work.error = state
                continue
            work.state = state
            if work.taken and log.isEnabledFor(logging.DEBUG):
                log.debug("sealed", extra=line(state, work.landed, rows=rows_of(work.taken), blocks=blocks_of(work.taken)))
        self._on_step("committed")

    def _tidy(self, works: Sequence[_Work]) -> None:
        """Forget what versions hold by now; what cannot be forgotten is tried again, and does no harm until then."""
        try:
            self._batches.drop({work.dataset: work.closing & work.unfit() for work in works})
            self._logs.trim_all((work.state, work.closing) for work in works)
        except BrokerError as error:
            log.warning("change logs of %d datasets are not trimmed: %s", len(works), error)
        self._on_step("trimmed")

    def _failed(self, dataset: DatasetId, error: Exception, report: BatchReport) -> None:
        report.failed[dataset] = str(error)
        surprise = None if isinstance(error, BrokerError) else error
        log.warning("%s: %s; again in %.2f s", dataset, error, self._pauses.failed(dataset), exc_info=surprise)

    def _learn(self, took_ms: float) -> None:
        """Batches close by age so much sooner that they are visible, not only closed, when their time is over."""
        self._lead_ms = min(self._limits.age_ms / 2, 0.8 * self._lead_ms + 0.2 * took_ms)


def _attempt(step: Callable[..., T], *of: Any) -> T | Exception:
    """What the step gives, or raises, or what was raised before it: also a surprise is one dataset's alone."""
    if isinstance(of[0], Exception):
        return of[0]
    try:
        return step(*of)
    except Exception as error:  # noqa: BLE001 - told by `_failed`
        return error
