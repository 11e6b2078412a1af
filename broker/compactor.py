"""Compaction: roll-ups and fresh snapshots between versions that exist. It adds edges, never versions, and changes no content.

    due by levels, or to make room (rules/levels.py) ──► files of the merged road ──► verify ──► `edge` record

A crash before the record leaves orphans for the sweep. Two that compact one dataset find the other's edge, or its lease.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final
from uuid import uuid4

from broker.backend.index import Index
from broker.backend.keys import compact_lease
from broker.backend.leases import Leases
from broker.catalog import Catalog, Moment
from broker.columnar.engine import EVERYTHING, Engine, Written
from broker.columnar.results import schema_of_spec
from broker.columnar.tombstones import Standing
from broker.errors import BrokerError, Busy, StaleBase, Transient
from broker.model.commit import Body, Edge, NewEdge
from broker.model.names import DatasetId, data_key
from broker.pauses import Pauses
from broker.publication import Publication
from broker.rules.fold import State
from broker.rules.levels import Levels, Merge, due, making_room, tight
from broker.rules.publishing import Lease

log = logging.getLogger("broker.compactor")
MERGES: Final = 16
"""Merges of one dataset in one pass: the others have a turn, too."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 600.0
"""A dataset that fails is left alone so long, the first time and at most: each try may read its whole road in vain."""


@dataclass
class CompactReport:
    """What one pass did. `settled`: so many of the roll-ups. `failed`: dataset -> why; it is tried again, later each time."""

    roll_ups: int = 0
    settled: int = 0
    snapshots: int = 0
    read_bytes: int = 0
    failed: dict[DatasetId, str] = field(default_factory=dict)

    def add(self, work: Merge) -> None:
        self.snapshots += work.base is None
        self.roll_ups += work.base is not None
        self.settled += work.settled is not None
        self.read_bytes += work.bytes


@dataclass(frozen=True, slots=True)
class Dues:
    """What is owed to a dataset: by `levels`, and where readers keep too much. `crowded`, as of retention, says from where."""

    levels: Levels = field(default_factory=Levels)
    crowded: Callable[[State], int | None] | None = None

    def of(self, state: State) -> Iterator[Merge]:
        """What is due, the levels first."""
        yield from due(state.edges, self.levels, state.rolled_until)
        base = self.crowded(state) if self.crowded and tight(state.edges, self.levels) else None
        if base is None:
            return
        room = making_room(state.edges, base, self.levels, over=state.leads_over, settled_until=state.settled_until)
        if room is not None:
            yield room


class Compactor:
    """Idempotent and safe to run anywhere, several at once."""

    def __init__(
        self, index: Index, catalog: Catalog, engine: Engine, publication: Publication, leases: Leases, dues: Dues | None = None
    ) -> None:
        self._index, self._catalog, self._engine = index, catalog, engine
        self._publication, self._leases, self._dues = publication, leases, dues or Dues()
        self._seen, self._pauses = dict[DatasetId, int](), Pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self._told = dict[DatasetId, tuple[int, int | None]]()  # newest record, the hour; None: nothing was owed

    def run_once(self) -> CompactReport:
        """A pass over all datasets whose head moved since the last one, but for those that rest behind a failure."""
        report, resting = CompactReport(), self._pauses.resting()
        for slot in self._index.slots():
            for dataset, glance in self._index.glance(slot).items():
                if self._seen.get(dataset) != glance.seq and dataset not in resting:
                    self._visit(dataset, report)
        return report

    def due(self) -> Iterator[tuple[DatasetId, int]]:
        """Datasets that are owed something, with the newest record they have; each told once, and again in the next hour.

        Whoever is told does it, or does not take the next one: what it failed at is told again.
        """
        hour = hour_of(time.time())
        for slot in self._index.slots():
            for dataset, glance in self._index.glance(slot).items():
                if self._told.get(dataset) in ((glance.seq, None), (glance.seq, hour)):
                    continue
                try:
                    state = self._catalog.known(dataset)
                    owed = state.exists and next(self._dues.of(state), None)
                except Transient:
                    raise
                except BrokerError as error:  # one dataset's harm must not end the care for the others
                    log.warning("%s: %s", dataset, error)
                    continue
                if owed:
                    yield dataset, state.seq
                self._told[dataset] = state.seq, hour if owed else None

    def owed(self, dataset: DatasetId, most: int = 100) -> list[Merge]:
        """What is due for a dataset, at most `most` merges. Raises NotFound."""
        return list(islice(self._dues.of(self._catalog.state(dataset)), most))

    def compact(self, dataset: DatasetId, most: int = MERGES) -> Iterator[Merge]:
        """Do what is due for one dataset, at most `most` merges; each as it is done.

        Raises NotFound, Busy (another compacts it), Fenced, Corrupt, Unavailable.
        """
        with self._leases.held(self._catalog.slot(dataset), compact_lease(dataset), uuid4().hex) as lease:
            missed: Merge | None = None
            for _ in range(most):
                state = self._catalog.state(dataset)
                work = next(self._dues.of(state), None)
                if work is None:
                    return
                try:
                    self._merge(state, work, lease)
                except StaleBase:  # the history changed meanwhile: it owes something else
                    if work == missed:
                        raise
                    missed = work
                    continue
                yield work

    def _visit(self, dataset: DatasetId, report: CompactReport) -> None:
        try:
            state, done = self._catalog.known(dataset), 0
            if not state.exists:  # dropped: it offers nothing
                self._seen[dataset] = state.seq
                self._pauses.done(dataset)
                return
            for work in self.compact(dataset):
                report.add(work)
                done += 1
            self._pauses.done(dataset)
            if done < MERGES:
                self._seen[dataset] = state.seq + done
        except Busy:
            return
        except BrokerError as error:  # one dataset's harm must not end the care for the others
            report.failed[dataset] = str(error)
            log.warning("%s: %s; again in %.0f s", dataset, error, self._pauses.failed(dataset))

    def _merge(self, state: State, work: Merge, lease: Lease) -> None:
        dataset, begun = DatasetId(state.dataset), Moment.now()
        edge = self._written(state, work)

        def body(now: State) -> Body | None:
            if now.edge(work.base, work.version) is not None:
                return None
            if not now.alike(state) or any(now.edge(part.base, part.version) != part for part in work.parts):
                raise StaleBase("the history changed meanwhile", of=dataset, why=f"{len(work.parts)} edges were merged")
            return NewEdge(edge=edge)

        self._catalog.commit(dataset, body, "compact", lease, begun)

    def _written(self, state: State, work: Merge) -> Edge:
        if work.settled:
            files = self._engine.write_settled(state.spec, work.settled, work.edges)
            edge = Edge(base=work.base, version=work.version, files=files, settled=True)
        elif work.base is None:
            times = {info.version: info.time for info in state.versions}
            written = self._engine.write_merged(state.spec, Standing(work.edges, times, time.time()))
            edge = Edge(base=None, version=work.version, files=written.files)
        else:
            key_of = partial(data_key, DatasetId(state.dataset))
            edge = self._engine.derive(state.spec, work.edges, EVERYTHING, "parquet", key_of)
        self._publication.verify(Written(edge.files, schema_of_spec(state.spec)))
        return edge


def hour_of(now: float) -> int:
    """What is handed out and comes to nothing is handed out again when this changes. `now`: seconds since the epoch."""
    return int(now // 3600)
