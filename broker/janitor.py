"""The janitor: finishes what crashed writers left, seals checkpoints, and sweeps what nobody names. One pass, one report."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.backend.index import Index
from broker.backend.leases import Leases
from broker.catalog import Catalog
from broker.errors import BrokerError, Busy
from broker.model.commit import NewEdge, NewVersion, parse_record
from broker.model.names import DatasetId
from broker.settings import Settings
from broker.stores.port import ObjectInfo, ObjectStore

SWEEP_BATCH = 500
"""Objects deleted by one call."""


@dataclass
class JanitorReport:
    """What one pass did. `failed`: dataset -> why; the next pass tries again."""

    helped: list[DatasetId] = field(default_factory=list)
    checkpoints: int = 0
    swept: int = 0
    failed: dict[DatasetId, str] = field(default_factory=dict)


class Janitor:
    """Idempotent and safe to run anywhere; one lease a slot keeps several from doing the same work at once."""

    def __init__(self, index: Index, catalog: Catalog, store: ObjectStore, leases: Leases, settings: Settings) -> None:
        self._index, self._catalog, self._store = index, catalog, store
        self._leases, self._settings = leases, settings

    def run_once(self, owner: str, sweep: bool = False) -> JanitorReport:
        """Visit every dataset of every slot whose lease is free. `sweep` also deletes expired derived files and orphans."""
        report = JanitorReport()
        for slot in self._index.slots():
            try:
                with self._leases.held(slot, "lease:janitor", owner):
                    for dataset in self._index.datasets(slot):
                        self._visit(dataset, report, sweep)
            except Busy:
                continue
        return report

    def _visit(self, dataset: DatasetId, report: JanitorReport, sweep: bool) -> None:
        """Nothing is deleted on an error path: a failed look ends the visit."""
        try:
            if self._catalog.help(dataset, self._settings.reservation_seconds):
                report.helped.append(dataset)
            report.checkpoints += self._catalog.checkpoint(dataset) is not None
            if sweep:
                report.swept += self._sweep(dataset)
        except BrokerError as error:  # also a broken log: one dataset's harm must not end the care for the others
            report.failed[dataset] = str(error)

    def _sweep(self, dataset: DatasetId) -> int:
        """Delete derived files whose hour is over, and data files no record names that are older than `orphan_seconds`."""
        now = time.time()
        old = self._clock() - self._settings.orphan_seconds
        named = _named(self._catalog.records(dataset))
        orphans = [info for info in self._store.list(f"{dataset}/data/") if info.key not in named and info.modified < old]
        # The log is read again behind the listing: a file that was named meanwhile is no orphan.
        state = self._catalog.state(dataset)
        fresh = {file.key for edge in state.edges for file in edge.files}
        expired = [info for info in self._store.list(f"{dataset}/derived/") if _hour(info) * 3600 < now]
        return self._delete([info.key for info in orphans if info.key not in fresh] + [info.key for info in expired])

    def _clock(self) -> float:
        """The store's own time: age is compared with what the store stamps."""
        return self._store.put("=probe/clock", b"").modified

    def _delete(self, keys: list[str]) -> int:
        for start in range(0, len(keys), SWEEP_BATCH):
            self._store.delete(keys[start : start + SWEEP_BATCH])
        return len(keys)


def _named(records: Iterable[bytes]) -> set[str]:
    """Every file key that any sealed record names, retired ones included."""
    bodies = (parse_record(data, "log").body for data in records)
    return {file.key for body in bodies if isinstance(body, NewVersion | NewEdge) for file in body.edge.files}


def _hour(info: ObjectInfo) -> int:
    return int(info.key.split("/derived/", 1)[1].split("/", 1)[0])
