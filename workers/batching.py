"""The microbatch role: one process' micro-batcher, as passes for the loop."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import asdict, dataclass
from threading import Event
from typing import Final
from uuid import uuid4

from broker.backend.batches import Batches
from broker.backend.logs import Logs
from broker.backend.registry import Registry
from broker.columnar.batch import BatchWriter
from broker.errors import BrokerError
from broker.microbatcher import BatchReport, MicroBatcher
from broker.microbatcher_closing import Closer
from broker.microbatcher_slots import HeldSlots, Place
from broker.parts import Parts, open_parts
from broker.rules.batching import Limits
from broker.settings import Settings
from workers.loop import Loop
from workers.roles import add_janitor

log = logging.getLogger("broker.worker")
TELL_SECONDS: Final = 5.0


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
        self._told = asdict(self.counts)

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

    @property
    def places(self) -> list[Place]:
        """The log slots this process serves."""
        return self._held.places

    def keep(self) -> None:
        """Renew the leases, also while a pass is long."""
        self._held.keep(self.name)

    def tell(self) -> None:
        """A line when the counts changed."""
        counts = asdict(self.counts)
        if counts != self._told:
            log.info(" ".join(f"{name}={value}" for name, value in counts.items() if value), extra={"counts": counts})
            self._told = counts

    def idle(self) -> bool:
        """For a burst: whether nothing is left in any log slot, whoever serves it."""
        return not self.batcher.left()

    def close(self) -> None:
        """Give the log slots away, which otherwise lapse, and drop temporary files."""
        try:
            self.batcher.leave(self.name)
        except BrokerError as error:
            log.warning("could not give the log slots away: %s", error)
        finally:
            self._writer.close()


def serve_batches(settings: Settings, name: str | None = None, burst: bool = False) -> None:
    """Micro-batches until a signal, which ends with the pass at work; a burst ends when no change waits any more."""
    parts = open_parts(settings)
    try:
        role, loop = Batching(parts, name), Loop()
        loop.handle_signals()
        loop.every("microbatch", 0, lambda: role.step(loop.stopping))
        loop.every("leases", settings.lease_seconds / 3, role.keep, drains=True)
        loop.every("counts", TELL_SECONDS, role.tell)
        add_janitor(loop, parts, role.name, sweeps=not burst)
        log.info("%s makes micro-batches", role.name)
        try:
            loop.run(role.idle if burst else None)
        finally:
            role.tell()
            role.close()
            log.info("%s ended", role.name)
    finally:
        parts.close()
