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

LIVELY: Final = frozenset({JobStatus.QUEUED.value, JobStatus.STARTED.value})
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
        """One per id, in order. Reads two fields of RQ's hash: a whole job of a half-written one cannot be had."""
        known = [job_id(id) for id in ids]
        with mapped(self._of, writes=False):
            with self._redis.pipeline(transaction=False) as pipeline:
                for id in known:
                    pipeline.hmget(Job.key_for(id), "status", "last_heartbeat")
                replies = pipeline.execute()
            waiting = frozenset(self._queue(queue).get_job_ids())
            return [self._seen(id, reply, waiting) for id, reply in zip(known, replies, strict=True)]

    def stop(self, queue: str, ids: Sequence[str]) -> None:
        """Take them from the queue, or have their process killed at once. Best effort.

        One that was popped and has not started yet is out of reach: it must see for itself that nobody waits for it.
        """
        with mapped(self._of):
            for id in map(job_id, ids):
                with suppress(NoSuchJobError, InvalidJobOperation):
                    if self._queue(queue).remove(id):
                        Job.fetch(id, connection=self._redis, serializer=JSONSerializer).delete()
                    else:
                        send_stop_job_command(self._redis, id, serializer=JSONSerializer)

    def close(self) -> None:
        self._redis.close()

    def _seen(self, id: str, reply: Sequence[bytes | None], waiting: frozenset[str]) -> Look:
        status, heartbeat = (value.decode() if value else "" for value in reply)
        if id in waiting:
            return Look("waiting")
        if status in LIVELY:
            # Popped but not started yet looks queued without being in the queue: it must move on soon, like a running one.
            return Look("running", f"{status} {heartbeat}")
        return Look("dead", why=self._last_words(id, status)) if status else Look("absent")

    def _last_words(self, id: str, status: str) -> str:
        text = ""
        with suppress(NoSuchJobError):
            result = Job.fetch(id, connection=self._redis, serializer=JSONSerializer).latest_result()
            text = (result.exc_string or "") if result is not None and result.type == Result.Type.FAILED else ""
        lines = text.strip().splitlines()
        return lines[-1][:500] if lines else f"its job is {status}"

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
