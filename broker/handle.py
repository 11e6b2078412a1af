"""A handle: one submitted request, from the side of the one who asked."""

from __future__ import annotations

import time
from typing import Final

from broker.errors import RequestCancelled, RequestExpired, RequestFailed, TimedOut, from_dict
from broker.flights import Status
from broker.model.request import Completion, State
from broker.parts import Parts
from broker.received import Received

WAIT_BLOCK_MS: Final = 1_000


class Handle:
    """A submitted request."""

    def __init__(self, parts: Parts, id: str, target: str) -> None:
        self._parts, self.id, self.target = parts, id, target

    def status(self) -> Status:
        """Raises RequestLost, NotFound."""
        return self._parts.requests.status(self.id)

    def cancel(self) -> bool:
        """True: it ends as cancelled. False: it had ended."""
        return self._parts.requests.end(self.id, State.CANCELLED)

    def ack(self) -> bool:
        """Take this request's terminal event from the response stream. False: it has not ended, or was taken already."""
        return self._parts.requests.ack(self.id)

    def wait(self, timeout: float | None = None) -> Received:
        """The completion; looks at the response stream without taking from it: `ack()` does that, and frees its place.

        Raises TimedOut, RequestFailed (with the cause), RequestCancelled, RequestExpired, RequestLost.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = self._parts.requests.watch(self.id, self.target)
        while True:
            at = watch.position()
            completion = self._parts.requests.outcome(self.id)
            if completion is not None:
                return self._received(completion)
            left = WAIT_BLOCK_MS if deadline is None else int(min(WAIT_BLOCK_MS, (deadline - time.monotonic()) * 1000))
            if left <= 0:
                raise TimedOut("no answer yet", of=self.id, why=f"within {timeout:g} s", hint="Wait again: the request goes on")
            watch.wait(at, left)

    def _received(self, completion: Completion) -> Received:
        match completion.state:
            case State.FAILED:
                cause = from_dict(completion.error or {})
                raise RequestFailed(
                    "the request failed", of=self.id, why=str(cause), hint="See: broker requests dead"
                ) from cause
            case State.CANCELLED:
                raise RequestCancelled("the request was cancelled", of=self.id)
            case State.EXPIRED:
                raise RequestExpired("the request's deadline passed", of=self.id)
        return Received(self._parts.catalog, self._parts.engine, self._parts.store, self._parts.requests, completion)
