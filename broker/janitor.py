"""The janitor: finishes what crashed writers left, seals checkpoints, and sweeps what nobody needs. One pass, one report."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final
from uuid import uuid4

from broker.backend.index import Glance, Index
from broker.backend.keys import Slot, duty_lease
from broker.backend.leases import Leases
from broker.catalog import Catalog
from broker.errors import BrokerError, Busy, Corrupt
from broker.model.names import ChannelsId, DatasetId
from broker.rules.answering import HOUR
from broker.rules.naming import Naming, keys_of
from broker.rules.publishing import Lease
from broker.settings import Settings
from broker.stores.port import ObjectInfo, ObjectStore

log = logging.getLogger("broker.janitor")
SWEEP_BATCH: Final = 500
"""Objects deleted by one call."""
SWEEP_PAGE: Final = 100_000
"""Objects looked at together: what a sweep remembers of a dataset, in about 20 MB. Each page walks the log."""
LATE_SECONDS: Final = 3_600.0
"""A file goes so long after the last answer that may name it has expired: clocks differ, and downloads end late."""
LOOK_SECONDS: Final = 300.0
"""A dataset whose index shows nothing open is compared with the store at most so often: one or two reads each."""
LOOKS_SECONDS: Final = 0.2
"""So long a pass does so, and for one dataset at least: with thousands it must not keep others from their work."""
RESTS: Final = 9
"""A sweep rests so many times as long as it worked: nobody waits for it."""


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
        self._open = dict[DatasetId, dict[tuple[str, int], float]]()

    def run_once(self, owner: str) -> JanitorReport:
        """Visit those logs of every slot whose lease is free that a restart of Redis left behind, or where something has stood
        open for `reservation_seconds`; then a few of those whose checkpoint or look is due, the longest not looked at first.
        """
        report = JanitorReport()

        def visit(slot: Slot, _: Lease) -> bool:
            glances = self._index.glance(slot, self._index.logs(slot))
            urgent = {dataset for dataset, glance in glances.items() if self._urgent(dataset, glance)}
            for dataset in urgent:
                self._visit(dataset, report, look=self._look_due(dataset))
            begun = time.monotonic()
            for dataset in self._queue(glances, urgent):
                self._visit(dataset, report, look=True)
                if time.monotonic() - begun >= LOOKS_SECONDS:
                    break
            return False

        self._in_slots("janitor", owner, visit)
        return report

    def sweep(self, owner: str, rest: Callable[[float], bool] = lambda _: False) -> JanitorReport:
        """Visit all logs of every slot whose lease is free, and delete expired derived files, orphans and what was given up.

        `rest`: called with seconds behind each visit; True ends the pass.
        """
        report = JanitorReport()

        def visit(slot: Slot, lease: Lease) -> bool:
            for dataset in self._index.logs(slot):
                begun = time.monotonic()
                self._visit(dataset, report, look=True, sweep=partial(self._leases.renew, slot, lease))
                if rest(RESTS * (time.monotonic() - begun)):
                    return True
            return False

        self._in_slots("sweep", owner, visit)
        return report

    def _in_slots(self, duty: str, owner: str, work: Callable[[Slot, Lease], bool]) -> None:
        """Under the lease of a duty, in every slot where it is free, until `work` says that it is enough."""
        for slot in self._index.slots():
            with suppress(Busy), self._leases.held(slot, duty_lease(duty), f"{owner}/{uuid4().hex[:8]}") as lease:
                if work(slot, lease):
                    return

    def _urgent(self, dataset: DatasetId, glance: Glance) -> bool:
        """Whether somebody must be helped now. Remembers since when what stands open has stood."""
        now, known = time.monotonic(), self._open.pop(dataset, {})
        stands = {thing: known.get(thing, now) for thing in glance.open}
        if stands:
            self._open[dataset] = stands
        return glance.lost or any(now - since >= self._settings.reservation_seconds for since in stands.values())

    def _queue(self, glances: Mapping[DatasetId, Glance], visited: Set[DatasetId]) -> list[DatasetId]:
        """Those with something open first: a worker that has only begun does not know for how long it has stood."""
        every = self._settings.checkpoint_every
        due = [
            dataset
            for dataset, glance in glances.items()
            if self._look_due(dataset) or glance.seq - glance.seq % every > self._sealed.get(dataset, 0)
        ]
        return sorted(set(due) - visited, key=lambda dataset: (dataset not in self._open, self._looked_at(dataset)))

    def _look_due(self, dataset: DatasetId) -> bool:
        """Whether it is time to ask the store, too."""
        return time.monotonic() - self._looked_at(dataset) >= LOOK_SECONDS

    def _looked_at(self, dataset: DatasetId) -> float:
        return self._looked.get(dataset, -LOOK_SECONDS)

    def _visit(
        self, dataset: DatasetId, report: JanitorReport, look: bool, sweep: Callable[[], None] | None = None
    ) -> None:  # fmt: skip
        """Nothing is deleted on an error path: a failed look ends the visit. `sweep`: raises when the right to it is lost."""
        if look:  # also one that fails: it must not keep the others from theirs
            self._looked[dataset] = time.monotonic()
        try:
            if self._catalog.help(dataset, self._settings.reservation_seconds, look):
                report.helped.append(dataset)
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
        """Delete derived files whose hour is over, and data files that nobody can be reading any more.

        A dropped dataset is swept, too; one without any record is not: its log may only be out of sight.
        """
        if not self._catalog.known(dataset).seq:
            return 0
        now, swept, after = self._clock(), 0, ""
        while page := list(islice(self._store.list(f"{dataset}/data/", after), SWEEP_PAGE)):
            after = page[-1].key
            swept += self._delete(self._over(dataset, page, now), still_mine)
        expired = [info.key for info in self._store.list(f"{dataset}/derived/") if _over(info, now)]
        return swept + self._delete(expired, still_mine)

    def _clock(self) -> float:
        """The store's own time: age is compared with what the store stamps."""
        return self._store.put("=probe/clock", b"").modified

    def _over(self, dataset: DatasetId, page: Sequence[ObjectInfo], now: float) -> list[str]:
        """Keys of the data files among `page` that go: given up so long ago that no answer names them, or never named.

        The walk begins at a checkpoint as old as that: what an older record gave up looks like an orphan, and is as dead.
        """
        given_up_before = now - self._settings.result_seconds - LATE_SECONDS
        naming = self._naming(dataset, given_up_before, {info.key for info in page})
        gone, offered = naming.gone, naming.offered
        due = self._sealed_before(dataset, set(gone.values()), given_up_before)
        orphaned = now - self._settings.orphan_seconds
        over = [
            info.key
            for info in page
            if info.key not in offered and (gone[info.key] in due if info.key in gone else info.modified < orphaned)
        ]
        # The index is read again behind the walk: a file that was named meanwhile is no orphan.
        fresh = {key for edge in self._catalog.known(dataset).edges for key in keys_of(edge)}
        return [key for key in over if key not in fresh]

    def _naming(self, dataset: DatasetId, before: float, asked: Container[str]) -> Naming:
        """The whole log, walked from a fold sealed `before`. Raises Corrupt when it has a hole."""
        head, naming = self._catalog.known(dataset).seq, Naming(self._catalog.settled(dataset, before), asked)
        for data in self._catalog.records(dataset, naming.seq + 1):
            naming.follow(data)
        if naming.seq < head:
            raise Corrupt(
                "a record of the log is not there", of=f"{dataset} log {naming.seq + 1}", why=f"the head is at {head}",
                hint="Nothing is swept while the log cannot be read to its end",
            )  # fmt: skip
        return naming

    def _sealed_before(self, dataset: DatasetId, seqs: set[int], before: float) -> frozenset[int]:
        """Those of `seqs` that the store says were sealed before a time. Records are sealed in order: few are looked at."""
        ordered = sorted(seqs)
        return frozenset(ordered[: bisect_left(ordered, before, key=lambda seq: self._catalog.sealed_at(dataset, seq))])

    def _delete(self, keys: list[str], still_mine: Callable[[], None]) -> int:
        for start in range(0, len(keys), SWEEP_BATCH):
            still_mine()
            self._store.delete(keys[start : start + SWEEP_BATCH])
        return len(keys)


def _over(info: ObjectInfo, now: float) -> bool:
    """Whether a derived file's hour, and one more for clocks that differ, is over. What has no hour is not ours."""
    hour = info.key.split("/derived/", 1)[1].split("/", 1)[0]
    return hour.isdecimal() and (int(hour) + 1) * HOUR < now
