"""The compact role: compaction, retention, audits and the sweep, in this process, or by ids handed to RQ's maintenance queue.

Both ways may run at once and several times over: each dataset has a lease for either duty, and both are idempotent.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import suppress
from hashlib import sha256
from typing import Final
from uuid import uuid4

from broker.backend.jobs import MAINTENANCE, Jobs
from broker.compactor import hour_of
from broker.errors import InvalidSettings
from broker.model.names import DatasetId
from broker.parts import Parts, insisted_parts, rq_url
from broker.settings import Settings
from workers.loop import Loop
from workers.roles import add_janitor

log = logging.getLogger("broker.worker")
COMPACT_SECONDS: Final = 5.0
"""Between two looks at which heads moved, in three round trips a slot."""
RETENTION_SECONDS: Final = 300.0
AUDIT_SECONDS: Final = 60.0
MEND_SECONDS: Final = 1.0
"""A replica waits for the answer."""
RUN_COMPACTION: Final = "workers.jobs.compact"
RUN_RETENTION: Final = "workers.jobs.retain"


class Maintenance:
    """Passes over all datasets; each tells in a line what it did."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._audits, self._mending = parts, parts.audits, parts.mending

    def audit(self) -> None:
        """Compare what replicas proved, and tell of those that lag or are about to be forgotten."""
        self._audits.run_once()

    def mend(self) -> None:
        """Answer replicas that repair themselves."""
        self._mending.run_once()

    def compact(self) -> None:
        done = self._parts.compactor.run_once()
        if done.roll_ups or done.snapshots:
            counts = {
                "roll_ups": done.roll_ups, "settled": done.settled, "snapshots": done.snapshots, "read_bytes": done.read_bytes,
            }  # fmt: skip
            log.info("compacted: %s", _words(counts), extra={"counts": counts})

    def retain(self) -> None:
        """Give up what nobody needs."""
        done = self._parts.retention.run_once()
        if done.retired:
            counts = {"retired": done.retired, "bytes": done.bytes}
            log.info("given up: %s", _words(counts), extra={"counts": counts})


class Foreman:
    """Has RQ workers do it: one job a dataset and state of its log, whoever asks for it, and again in the next hour."""

    def __init__(self, parts: Parts, jobs: Jobs) -> None:
        self._parts, self._jobs = parts, jobs

    def compact(self) -> None:
        """Enqueue what is due."""
        for dataset, seq in self._parts.compactor.due():
            self._enqueue("compact", RUN_COMPACTION, dataset, seq)

    def retain(self) -> None:
        for slot in self._parts.index.slots():
            for dataset, glance in self._parts.index.glance(slot).items():
                self._enqueue("retain", RUN_RETENTION, dataset, glance.seq)

    def _enqueue(self, duty: str, function: str, dataset: DatasetId, seq: int) -> None:
        seconds = self._parts.settings.attempt_seconds
        self._jobs.enqueue(MAINTENANCE, job_of(duty, dataset, seq, time.time()), function, [dataset], seconds)


def job_of(duty: str, dataset: DatasetId, seq: int, now: float) -> str:
    """The same for whoever asks within an hour: RQ keeps one job of an id. Ids differ however alike two names are to RQ."""
    return f"{duty}-{sha256(dataset.encode()).hexdigest()[:20]}-{seq}-{hour_of(now)}"


def add_maintenance(loop: Loop, parts: Parts, elsewhere: bool = False) -> None:
    """Compaction and retention, often and sometimes. `elsewhere`: by RQ workers, where there is a Redis for RQ."""
    mine = Maintenance(parts)
    duty: Maintenance | Foreman = mine
    if elsewhere:
        with suppress(InvalidSettings):  # a cluster has no place for RQ's keys: then this process does it
            duty = Foreman(parts, Jobs.open(rq_url(parts.settings)))
    loop.every("compact", COMPACT_SECONDS, duty.compact)
    loop.every("retention", RETENTION_SECONDS, duty.retain)
    loop.every("audit", AUDIT_SECONDS, mine.audit)
    loop.every("mend", MEND_SECONDS, mine.mend)


def serve_maintenance(settings: Settings, name: str | None = None, burst: bool = False) -> None:
    """Compaction, retention, audits and the sweep until a signal, without producers; a burst does one pass of each and ends."""
    name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
    parts = insisted_parts(settings)
    try:
        if burst:
            duty = Maintenance(parts)
            duty.compact()
            duty.retain()
            duty.audit()
            return
        loop = Loop()
        loop.handle_signals()
        add_maintenance(loop, parts)
        add_janitor(loop, parts, name, sweeps=True)
        log.info("%s keeps roads short and the store small", name)
        loop.run()
        log.info("%s ended", name)
    finally:
        parts.close()


def _words(counts: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in counts.items() if value)
