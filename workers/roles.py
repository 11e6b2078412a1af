"""What a worker process does: which duty runs how often, and when a burst is over."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import asdict
from typing import Final

from broker.backend.jobs import MAINTENANCE, PARTS
from broker.backend.registry import Registry, Worker
from broker.connect import Broker
from broker.errors import Transient
from broker.inquiry import Inquiry
from broker.janitor import Janitor
from broker.parts import Parts
from broker.producers import Producers
from broker.rules.patterns import pattern_matches
from broker.schedules import Schedules
from broker.settings import Settings
from workers.jobs import run_rq_worker
from workers.loop import Loop
from workers.producing import Producing
from workers.rq_pool import RqPool

log = logging.getLogger("broker.worker")
INTAKE_BLOCK_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 0.25
RQ_SECONDS: Final = 1.0
CANCEL_SECONDS: Final = 2.0
"""A beat also finds out that nobody waits any more: a cancelled attempt ends within 5 s, however long the lease."""
SWEEP_SECONDS: Final = 3600.0
JANITOR_LEAST_SECONDS: Final = 0.5
SCHEDULE_SECONDS: Final = 1.0


class Presence:
    """The worker's entry in the registry, renewed at a third of its time; also where its counts are logged."""

    def __init__(self, parts: Parts, role: Producing, patterns: tuple[str, ...], processes: int) -> None:
        self._parts, self._role, self._registry = parts, role, Registry(parts.redis)
        self._worker = Worker(role.name, patterns, socket.gethostname(), os.getpid(), processes)
        self._told = asdict(role.counts)

    def renew(self) -> None:
        """One pass."""
        self._registry.register(self._parts.index.slots(), self._worker, self._parts.settings.lease_seconds)
        self.tell()

    def tell(self) -> None:
        """A line when the counts changed."""
        counts = asdict(self._role.counts)
        if counts != self._told:
            log.info(" ".join(f"{name}={value}" for name, value in counts.items() if value), extra={"counts": counts})
            self._told = counts

    def leave(self) -> None:
        """Gone; when Redis does not hear it, the entry lapses."""
        try:
            self._registry.remove(self._parts.index.slots(), self._worker.id)
        except Transient as error:
            log.warning("could not deregister: %s", error)


def add_producing(loop: Loop, role: Producing, lease_seconds: float) -> None:
    """Intake ends with the first signal; the rest goes on until what is held has ended."""
    loop.every("intake", 0, lambda: role.intake(INTAKE_BLOCK_SECONDS))
    loop.every("outcome", 0, lambda: role.outcome(WATCH_SECONDS), drains=True)
    loop.every("beat", min(lease_seconds / 3, CANCEL_SECONDS), role.beat, drains=True)
    loop.every("follow", WATCH_SECONDS, role.follow, drains=True)
    loop.every("watch", WATCH_SECONDS, role.watch)


def serve_parts(settings: Settings, app: str, processes: int, burst: bool) -> None:
    """RQ workers only, until a signal; a burst does here what is enqueued now, and ends."""
    if burst:
        for queue in (PARTS, MAINTENANCE):
            run_rq_worker(settings, app, burst=True, queue=queue)
        return
    pool, loop = RqPool(settings, app, processes), Loop()
    loop.handle_signals()
    loop.every("rq", RQ_SECONDS, pool.inspect)
    try:
        loop.run()
    finally:
        pool.stop()


def add_janitor(loop: Loop, parts: Parts, owner: str, sweeps: bool) -> None:
    """Help stuck commits often, sweep the store hourly; a lease sees to it that one worker at a time does it.

    `sweeps` False: only what is quick, for a worker that ends with its work.
    """
    janitor = Janitor(parts.index, parts.catalog, parts.store, parts.leases, parts.settings)
    seconds = max(parts.settings.reservation_seconds, JANITOR_LEAST_SECONDS)
    loop.every("janitor", seconds, lambda: janitor.run_once(owner))
    if sweeps:
        add_schedules(loop, parts, owner)
        loop.every("sweep", SWEEP_SECONDS, lambda: janitor.sweep(owner, loop.stopping.wait))


def add_schedules(loop: Loop, parts: Parts, owner: str) -> None:
    """Submit scheduled requests that are due; a lease sees to it that one worker at a time looks."""
    schedules, broker = Schedules(parts.redis, parts.index, parts.leases), Broker(parts)
    loop.every("schedules", SCHEDULE_SECONDS, lambda: schedules.run_once(owner, lambda fields: broker.request(**fields).id))


class Drained:
    """For a burst: whether nothing this worker serves is queued, in flight, delayed or parked, as Redis knows it."""

    def __init__(self, parts: Parts, producers: Producers) -> None:
        self._index, self._inquiry = parts.index, Inquiry(parts.redis, parts.requests)
        self._patterns = [producer.pattern for producer in producers]

    def __call__(self) -> bool:
        try:
            waiting = [dataset for slot in self._index.slots() for dataset in self._inquiry.outstanding(slot)]
        except Transient:
            return False
        return not any(pattern_matches(pattern, dataset) for dataset in waiting for pattern in self._patterns)
