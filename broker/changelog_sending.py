"""Single records, coalesced: while one block is on its way, what comes meanwhile becomes the next one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from threading import Condition, Event, Thread
from typing import Any, Final

from broker.errors import BadData, BrokerError, Gap, Invalid, OutcomeUnknown, Overloaded, TimedOut, Transient
from broker.rules.blocks import Kind

log = logging.getLogger("broker.changelog")
SEND_RECORDS: Final = 10_000
"""Records that wait for the block before; as many again may be on their way."""
SEND_BYTES: Final = 32 << 20
"""And so many bytes of text in them."""
AGAIN_SECONDS: Final = 0.2
"""Between tries while the log refuses."""

Item = tuple[Kind, Any]


class Batch:
    """Records that leave together: runs of one kind, each acknowledged by its own block. Errors by record."""

    __slots__ = ("acks", "bytes", "ended", "errors", "items")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.bytes = 0
        self.acks: list[tuple[int, Any]] = []  # behind the run's last record
        self.errors: dict[int, BrokerError] = {}
        self.ended = Event()

    def ack_of(self, index: int) -> Any:
        return next(ack for until, ack in self.acks if index < until)


class Pending:
    """A record on its way."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch, self._index = batch, index

    @property
    def done(self) -> bool:
        return self._batch.ended.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """The Ack of its block. Raises TimedOut while it is on its way; BadData, Gap and what else ended it."""
        if not self._batch.ended.wait(timeout):
            raise TimedOut("not acknowledged yet", why=f"within {timeout:g} s", hint="Ask again: it is still being sent")
        error = self._batch.errors.get(self._index)
        if error is not None:
            raise error
        return self._batch.ack_of(self._index)


class Sending:
    """The thread that sends, and its queue. `deliver(kind, records)` -> Ack appends records of one kind."""

    def __init__(self, deliver: Callable[[Kind, Sequence[Any]], Any], check: Callable[[Kind, Sequence[Any]], None]) -> None:
        self._deliver, self._check = deliver, check
        self._filling, self._leaving, self._free = Batch(), Batch(), Condition()
        self._leaving.ended.set()
        self._thread: Thread | None = None
        self._stopping, self._closed = Event(), False

    def put(self, kind: Kind, record: Any, timeout: float) -> Pending:
        """Raises Overloaded when there is no room within `timeout` seconds, or no thread to send: nothing waits then."""
        with self._free:
            if not self._room() and not self._free.wait_for(self._room, timeout):
                why = f"{len(self._filling.items)} records, {self._filling.bytes} bytes"
                raise Overloaded("too much waits to be sent", why=why, hint="Wait for results first: Pending.result()")
            if self._closed:
                raise Invalid("the connection is closed", hint="Send before it closes")
            if self._thread is None:
                self._thread = self._begun()
            batch = self._filling
            batch.items.append((kind, record))
            batch.bytes += _text_bytes(record)
            if len(batch.items) == 1:
                self._free.notify_all()
            return Pending(batch, len(batch.items) - 1)

    def flush(self, timeout: float) -> None:
        """Wait until all that was put before has ended, well or badly. Raises TimedOut."""
        with self._free:
            batch = self._filling if self._filling.items else self._leaving
        if not batch.ended.wait(timeout):
            raise TimedOut("records sent before are still on their way", why=f"within {timeout:g} s", hint="Wait for them")

    def close(self, timeout: float) -> None:
        """Send what waits, for at most about `timeout` seconds; what is left then ends as it stands."""
        with self._free:
            thread, self._closed = self._thread, True
        if thread is not None:
            with suppress(TimedOut):
                self.flush(timeout)
            self._stopping.set()
            with self._free:
                self._free.notify_all()
            thread.join()

    def _begun(self) -> Thread:
        thread = Thread(target=self._run, name="changelog", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Overloaded("no thread begins to send", why=str(error), hint="Send later, or append: it needs none") from None
        return thread

    def _room(self) -> bool:
        return len(self._filling.items) < SEND_RECORDS and self._filling.bytes < SEND_BYTES

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._send(batch)
            except Exception as error:  # a surprise must end what waits for it, and not the thread
                log.exception("the change log failed")
                _fail(batch, range(len(batch.items)), OutcomeUnknown("sending failed", why=repr(error)[:200]))
            batch.items = []
            batch.ended.set()

    def _next(self) -> Batch | None:
        with self._free:
            self._free.wait_for(lambda: bool(self._filling.items) or self._stopping.is_set())
            if not self._filling.items:
                return None
            batch, self._filling = self._filling, Batch()
            self._leaving = batch
            self._free.notify_all()
            return batch

    def _send(self, batch: Batch) -> None:
        for kind, run in groupby(range(len(batch.items)), key=lambda number: batch.items[number][0]):
            numbers = list(run)
            try:
                ack = self._sorted_out(batch, kind, numbers)
            except BrokerError as error:
                ack = None
                _fail(batch, numbers, error)
            batch.acks.append((numbers[-1] + 1, ack))

    def _sorted_out(self, batch: Batch, kind: Kind, numbers: Sequence[int]) -> Any:
        """The run's ack; where it holds records that cannot be appended, that of the others."""
        try:
            return self._persist(kind, [batch.items[number][1] for number in numbers])
        except Gap:
            raise
        except (BadData, Invalid):
            good = list(self._good(batch, kind, numbers))
            return self._persist(kind, [batch.items[number][1] for number in good]) if good else None

    def _good(self, batch: Batch, kind: Kind, numbers: Sequence[int]) -> Iterator[int]:
        """Those records that can be appended; the others end with their error. Halves until the bad ones are alone."""
        try:
            self._check(kind, [batch.items[number][1] for number in numbers])
            yield from numbers
        except (BadData, Invalid) as error:
            if len(numbers) == 1:
                batch.errors[numbers[0]] = error
                return
            middle = len(numbers) // 2
            yield from self._good(batch, kind, numbers[:middle])
            yield from self._good(batch, kind, numbers[middle:])

    def _persist(self, kind: Kind, records: Sequence[Any]) -> Any:
        """Until it is in, refused for good, or the connection closes."""
        while True:
            try:
                return self._deliver(kind, records)
            except Transient as error:
                log.debug("sent again: %s", error)
                if self._stopping.wait(AGAIN_SECONDS):
                    raise


def _text_bytes(record: Any) -> int:
    """Roughly: what is not text or bytes is small, and other records than mappings are counted by number alone."""
    if not isinstance(record, dict):
        return 0
    return sum(len(value) for value in record.values() if isinstance(value, str | bytes))


def _fail(batch: Batch, numbers: Sequence[int] | range, error: BrokerError) -> None:
    for number in numbers:
        batch.errors.setdefault(number, error)


def time_left(deadline: float) -> float:
    """Seconds until `deadline` (monotonic), at least 0."""
    return max(deadline - time.monotonic(), 0.0)
