"""The janitor: finishes what crashed writers left, seals checkpoints, and sweeps what nobody names. One pass, one report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import uuid4

from broker.backend.index import Glance, Index
from broker.backend.keys import duty_lease
from broker.backend.leases import Leases
from broker.catalog import Catalog
from broker.errors import BrokerError, Busy, Corrupt
from broker.model.commit import NewEdge, NewVersion, parse_record
from broker.model.names import ChannelsId, DatasetId
from broker.rules.answering import HOUR
from broker.settings import Settings
from broker.stores.port import ObjectInfo, ObjectStore

log = logging.getLogger("broker.janitor")
SWEEP_BATCH: Final = 500
"""Objects deleted by one call."""
LOOK_SECONDS: Final = 300.0
"""How often a dataset whose index shows nothing open is compared with the store: one or two reads each."""


@dataclass
class JanitorReport:
    """What one pass did. `failed`: dataset -> why; the next pass tries again."""

    helped: list[DatasetId] = field(default_factory=list)
    checkpoints: int = 0
    swept: int = 0
    failed: dict[DatasetId, str] = field(default_factory=dict)


class Janitor:
    """Idempotent and safe to run anywhere; one lease a slot and duty keeps several from doing the same work at once."""

    def __init__(self, index: Index, catalog: Catalog, store: ObjectStore, leases: Leases, settings: Settings) -> None:
        self._index, self._catalog, self._store = index, catalog, store
        self._leases, self._settings = leases, settings
        self._looked, self._sealed, self._failing = dict[DatasetId, float](), dict[DatasetId, int](), dict[DatasetId, str]()

    def run_once(self, owner: str, sweep: bool = False) -> JanitorReport:
        """Visit the logs of every slot whose lease is free. `sweep` visits all of them, and also deletes expired derived
        files and orphans; without it, those where Redis shows something open, and each every LOOK_SECONDS.
        """
        report = JanitorReport()
        name, me = duty_lease("sweep" if sweep else "janitor"), f"{owner}/{uuid4().hex[:8]}"
        for slot in self._index.slots():
            try:
                with self._leases.held(slot, name, me) as lease:
                    for dataset, glance in self._index.glance(slot, self._index.logs(slot)).items():
                        if sweep or self._wanted(dataset, glance):
                            self._visit(dataset, report, partial(self._leases.renew, slot, lease) if sweep else None)
            except Busy:
                continue
        return report

    def _wanted(self, dataset: DatasetId, glance: Glance) -> bool:
        due = glance.seq - glance.seq % self._settings.checkpoint_every
        return glance.restless or due > self._sealed.get(dataset, 0) or self._look(dataset)

    def _look(self, dataset: DatasetId) -> bool:
        """Whether it is time to ask the store, too."""
        return time.monotonic() - self._looked.get(dataset, -LOOK_SECONDS) >= LOOK_SECONDS

    def _visit(self, dataset: DatasetId, report: JanitorReport, sweep: Callable[[], None] | None) -> None:
        """Nothing is deleted on an error path: a failed look ends the visit. `sweep`: raises when the right to it is lost."""
        try:
            look = sweep is not None or self._look(dataset)
            if self._catalog.help(dataset, self._settings.reservation_seconds, look):
                report.helped.append(dataset)
            if look:
                self._looked[dataset] = time.monotonic()
            report.checkpoints += self._checkpoint(dataset)
            if sweep is not None and not isinstance(dataset, ChannelsId):
                report.swept += self._sweep(dataset, sweep)
        except BrokerError as error:  # also a broken log: one dataset's harm must not end the care for the others
            report.failed[dataset] = str(error)
            if self._failing.get(dataset) != str(error):
                log.warning("%s: %s", dataset, error)
        self._failing[dataset] = report.failed.get(dataset, "")

    def _checkpoint(self, dataset: DatasetId) -> bool:
        """Seal what is due; whether it was this call that did it."""
        made = self._catalog.checkpoint(dataset)
        seq = self._catalog.known(dataset).seq
        self._sealed[dataset] = seq - seq % self._settings.checkpoint_every
        return made is not None

    def _sweep(self, dataset: DatasetId, still_mine: Callable[[], None]) -> int:
        """Delete derived files whose hour is over, and data files no record names that are older than `orphan_seconds`.

        A dropped dataset is swept, too; one without any record is not: its log may only be out of sight.
        """
        if not self._catalog.known(dataset).seq:
            return 0
        now, named = self._clock(), self._named(dataset)
        listed = self._store.list(f"{dataset}/data/")
        orphans = [info for info in listed if info.key not in named and info.modified < now - self._settings.orphan_seconds]
        # The log is read again behind the listing: a file that was named meanwhile is no orphan.
        state = self._catalog.known(dataset)
        fresh = {file.key for edge in state.edges for file in edge.files}
        expired = [info.key for info in self._store.list(f"{dataset}/derived/") if _over(info, now)]
        return self._delete([info.key for info in orphans if info.key not in fresh] + expired, still_mine)

    def _clock(self) -> float:
        """The store's own time: age is compared with what the store stamps."""
        return self._store.put("=probe/clock", b"").modified

    def _named(self, dataset: DatasetId) -> set[str]:
        """Every file key that any sealed record names, retired ones included. Raises Corrupt when the log has a hole."""
        head, seq, found = self._catalog.known(dataset).seq, 0, set[str]()
        for seq, data in enumerate(self._catalog.records(dataset), 1):
            body = parse_record(data, f"{dataset} log {seq}").body
            if isinstance(body, NewVersion | NewEdge):
                found |= {file.key for file in body.edge.files}
        if seq < head:
            raise Corrupt(
                "a record of the log is not there", of=f"{dataset} log {seq + 1}", why=f"the head is at {head}",
                hint="Nothing is swept while the log cannot be read to its end",
            )  # fmt: skip
        return found

    def _delete(self, keys: list[str], still_mine: Callable[[], None]) -> int:
        for start in range(0, len(keys), SWEEP_BATCH):
            still_mine()
            self._store.delete(keys[start : start + SWEEP_BATCH])
        return len(keys)


def _over(info: ObjectInfo, now: float) -> bool:
    """Whether a derived file's hour, and one more for clocks that differ, is over. What has no hour is not ours."""
    hour = info.key.split("/derived/", 1)[1].split("/", 1)[0]
    return hour.isdecimal() and (int(hour) + 1) * HOUR < now
