"""The microbatch role: one process' micro-batcher, as passes for the loop."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from threading import Event
from uuid import uuid4

from broker.backend.batches import Batches
from broker.backend.logs import Logs
from broker.backend.registry import Registry
from broker.columnar.batch import BatchWriter
from broker.microbatcher import BatchReport, MicroBatcher
from broker.microbatcher_closing import Closer
from broker.microbatcher_slots import HeldSlots
from broker.parts import Parts
from broker.rules.batching import Limits


@dataclass
class Counts:
    """What the role has done since it started."""

    batches: int = 0
    versions: int = 0
    rows: int = 0
    coalesced: int = 0
    failures: int = 0


class Batching:
    """One micro-batcher over the parts of this process. `step` is one pass; `keep` another, for a thread of its own."""

    def __init__(self, parts: Parts, name: str | None = None) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
        self._writer = BatchWriter(parts.store, parts.settings)
        logs = Logs(parts.redis, parts.settings)
        self._held = HeldSlots(parts.index, parts.leases, Registry(parts.redis), parts.settings)
        limits = Limits.of(parts.settings)
        closer = Closer(logs, parts.catalog, self._writer, parts.publication, limits, parts.on_step)
        batches = Batches(parts.redis, parts.index, logs)
        self.batcher = MicroBatcher(batches, logs, self._held, parts.catalog, closer, parts.on_step)
        self.counts = Counts()

    def run_once(self) -> BatchReport:
        """One pass, without a wait."""
        report = self.batcher.run_once(self.name)
        counts = self.counts
        counts.batches += report.batches
        counts.versions += report.versions
        counts.rows += report.rows
        counts.coalesced += report.coalesced
        counts.failures += len(report.failed)
        return report

    def step(self, stopping: Event) -> None:
        """One pass, and the wait until the next has work."""
        report = self.run_once()
        if report.due_seconds:
            stopping.wait(report.due_seconds)

    def keep(self) -> None:
        """Renew the leases, also while a pass is long."""
        self._held.keep(self.name)

    def close(self) -> None:
        """Give the log slots away and drop temporary files."""
        self.batcher.leave(self.name)
        self._writer.close()
