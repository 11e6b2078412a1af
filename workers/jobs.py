"""What RQ forks: one process per part, one per finaliser, each with its own connections; and the RQ worker that forks them.

A job is done under three limits: RQ's own alarm after `attempt_seconds`, which a producer can swallow; a kill soon after
that; and a kill above `attempt_max_bytes`. The user's application is imported behind the fork, so that whatever it starts
(threads, connections) is never inherited half alive.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from rq import Worker
from rq.serializers import JSONSerializer
from rq.utils import now

from broker.backend.client import RedisClient
from broker.backend.jobs import PARTS, Jobs, connect
from broker.cuts import FINALISE, Cuts
from broker.errors import AttemptFailed, BrokerError, Busy, NotFound
from broker.hands import Hands
from broker.heavy import RUN_FINALISER, RUN_PART, enqueue
from broker.model.names import DatasetId
from broker.parts import Parts, insisted_parts, redis_url, rq_url
from broker.rules.steps import nothing
from broker.settings import Settings, load
from workers.bounds import overrun, resident_bytes
from workers.child import park_under, producers_of

log = logging.getLogger("broker.worker")
WATCH_SECONDS: Final = 1
"""Between two looks at a job's process; whole seconds, since RQ counts by alarm(2). It is the job's heartbeat, too."""
GRACE_SECONDS: Final = 5.0
"""A job that swallowed its alarm is killed this much later."""


@dataclass(frozen=True)
class _Serving:
    """What this process was started with; the jobs' processes inherit it."""

    settings: Settings
    on_step: Callable[[str], None] = nothing


_serving: list[_Serving] = []


# --- jobs: their arguments are ids


def run_part(flight: str, part: str, attempt: int) -> None:
    """Make one part of a flight. Whoever makes the last one has the finaliser enqueued, under an id that is always the same."""
    with _opened() as (parts, hands):
        if hands.make(flight, part, attempt, producers_of):
            jobs = Jobs.open(rq_url(parts.settings))
            enqueue(jobs, parts.settings, flight, FINALISE, 1)
            jobs.close()


def finalise(flight: str, attempt: int) -> None:
    """Make one version of all parts of a flight."""
    with _opened() as (_, hands):
        hands.finalise(flight, attempt, producers_of)


def compact(dataset: str) -> None:
    """Merge what is due for a dataset. Another that is at it does the same."""
    with _opened() as (parts, _), suppress(Busy, NotFound):
        for work in parts.compactor.compact(DatasetId(dataset)):
            log.info("%s: merged %d edges up to version %d", dataset, len(work.parts), work.version)


def retain(dataset: str) -> None:
    """Give up what nobody needs of a dataset."""
    with _opened() as (parts, _), suppress(Busy, NotFound):
        parts.retention.apply(DatasetId(dataset))


@contextmanager
def _opened() -> Iterator[tuple[Parts, Hands]]:
    serving = _serving[0] if _serving else _Serving(load())
    park_under(serving.settings.temp_folder)
    parts = insisted_parts(serving.settings, serving.on_step)
    try:
        yield parts, Hands(Cuts(parts.redis), parts.catalog, parts.engine, parts.publication, serving.on_step)
    finally:
        parts.close()


# --- the worker


class BoundedWorker(Worker):  # type: ignore[misc]
    """RQ's forking worker, which also kills a job that outgrew its memory or outlived its alarm."""

    limits: Settings

    def maintain_heartbeats(self, job: Any, execution: Any) -> None:
        super().maintain_heartbeats(job, execution)
        seconds = (now() - job.started_at).total_seconds()
        why = overrun(self.limits, resident_bytes(self.horse_pid), seconds, GRACE_SECONDS)
        if why:
            self._tell(job, why)
            self.kill_horse()

    def _tell(self, job: Any, why: str) -> None:
        """Note why, for the flight's leader; RQ knows only the signal. Maintenance has no leader: it is done again."""
        if job.func_name not in (RUN_PART, RUN_FINALISER):
            log.warning("%s is killed: %s", job.id, why)
            return
        flight, task, attempt = job.args if len(job.args) == 3 else (job.args[0], FINALISE, job.args[1])
        try:
            with RedisClient.open(redis_url(self.limits)) as redis:
                Cuts(redis).failed(flight, task, attempt, AttemptFailed("the attempt was killed", why=why))
        except BrokerError as error:
            log.warning("could not note why %s was killed: %s", job.id, error)


def run_rq_worker(
    settings: Settings, app: str, burst: bool = False, queue: str = PARTS, on_step: Callable[[str], None] = nothing
) -> None:
    """Serve one queue until a signal (`burst`: until it is empty); TERM ends it after its job, a second one at once.

    `app` names this worker in `rq info`; the application a part needs is named by its plan, and must be importable here.
    Raises InvalidSettings when RQ has no plain Redis.
    """
    _serving[:] = [_Serving(settings, on_step)]
    worker = BoundedWorker(
        [queue], name=f"{app.replace(':', '.')}-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}",
        connection=connect(rq_url(settings)), serializer=JSONSerializer, job_monitoring_interval=WATCH_SECONDS,
    )  # fmt: skip
    worker.limits = settings
    worker.work(burst=burst, logging_level="WARNING")
