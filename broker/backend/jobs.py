"""RQ as a pool of hands: jobs enqueued under ids of ours, looked at, stopped. The promise lies elsewhere (`cuts.py`).

RQ has no hash tags, so it needs a plain Redis. Arguments are ids only, as JSON. Each worker process serves one queue: with
several, RQ loses a job popped by a dying worker. Nothing here trusts RQ to notice a death: RQ waits a minute or more, so a
caller compares the `sign` of two looks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from broker.backend.client import CLUSTER_SCHEMES, SOCKET_SECONDS, public_url
from broker.backend.driver_errors import mapped
from broker.errors import InvalidSettings

PARTS: Final = "broker-parts"
MAINTENANCE: Final = "broker-maintenance"
RESULT_SECONDS: Final = 3_600
FAILURE_SECONDS: Final = 86_400
"""RQ would keep failed jobs for a year; what they teach is in our own records and dead letters."""

Condition = Literal["absent", "waiting", "running", "dead"]


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a job. `sign` changes while it lives; `why` says how a dead one ended.

    absent: RQ does not know it. dead: it ended without leaving a result that counts, or was stopped.
    """

    condition: Condition
    sign: str = ""
    why: str = ""


class Jobs:
    """Safe for threads. Raises Unavailable and the like; every call may be repeated."""

    def __init__(self, connection: redis.Redis, url: str) -> None:
        self._redis, self._of = connection, public_url(url)

    @classmethod
    def open(cls, url: str) -> Self:
        """Raises InvalidSettings when `url` names a cluster by its scheme; connects at the first call."""
        return cls(connect(url, SOCKET_SECONDS), url)

    def enqueue(self, queue: str, id: str, function: str, args: Sequence[str | int], timeout_seconds: float) -> bool:
        """False: a job of that id is known already, and stays as it is. Its process gets `timeout_seconds`, rounded up."""
        with mapped(self._of):
            try:
                self._queue(queue).enqueue_call(
                    function, args=list(args), job_id=job_id(id), timeout=math.ceil(timeout_seconds), unique=True,
                    result_ttl=RESULT_SECONDS, failure_ttl=FAILURE_SECONDS, description=f"{function} {id}",
                )  # fmt: skip
            except DuplicateJobError:
                return False
        return True

    def look(self, queue: str, ids: Sequence[str]) -> list[Look]:
        """One per id, in order."""
        with mapped(self._of, writes=False):
            known = [job_id(id) for id in ids]
            jobs = Job.fetch_many(known, connection=self._redis, serializer=JSONSerializer)
            waiting = frozenset(self._queue(queue).get_job_ids()) if any(jobs) else frozenset()
            return [_look(job, waiting) for job in jobs]

    def stop(self, ids: Sequence[str]) -> None:
        """Take them from their queue, or have their process killed at once. Best effort: what runs on is ignored later."""
        with mapped(self._of):
            for id in ids:
                with suppress(NoSuchJobError, InvalidJobOperation):
                    job = Job.fetch(job_id(id), connection=self._redis, serializer=JSONSerializer)
                    if job.get_status(refresh=False) == JobStatus.STARTED:
                        send_stop_job_command(self._redis, job.id, serializer=JSONSerializer)
                    else:
                        job.delete()

    def close(self) -> None:
        self._redis.close()

    def _queue(self, name: str) -> Any:
        return Queue(name, connection=self._redis, serializer=JSONSerializer)


def connect(url: str, timeout_seconds: float | None = None) -> redis.Redis:
    """A connection for RQ. Raises InvalidSettings for a cluster or a malformed URL."""
    if url.partition("://")[0] in CLUSTER_SCHEMES:
        raise InvalidSettings(
            "RQ cannot use a Redis cluster", of=public_url(url), why="its keys have no hash tags",
            hint="Set BROKER_RQ_URL to a plain Redis: heavy production needs it",
        )  # fmt: skip
    try:
        return redis.Redis.from_url(url, socket_timeout=timeout_seconds, socket_connect_timeout=SOCKET_SECONDS)
    except ValueError as error:
        raise InvalidSettings("BROKER_RQ_URL is not a Redis URL", of=public_url(url), why=str(error)) from None


def job_id(id: str) -> str:
    """RQ takes letters, digits, `_` and `-`; the random part of a flight's id keeps it unique."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", id)


def _look(job: Any, waiting: frozenset[str]) -> Look:
    if job is None:
        return Look("absent")
    status = job.get_status(refresh=False)
    if status in (JobStatus.QUEUED, JobStatus.STARTED):
        # Popped but not started yet looks queued without being in the queue: it must move on soon, like a running one.
        return Look("waiting") if job.id in waiting else Look("running", f"{status} {job.last_heartbeat}")
    return Look("dead", why=_last_words(job, status))


def _last_words(job: Any, status: JobStatus) -> str:
    result = job.latest_result()
    text = result.exc_string if result is not None and result.type == Result.Type.FAILED else ""
    lines = (text or "").strip().splitlines()
    return lines[-1][:500] if lines else f"its job is {status.value}"
