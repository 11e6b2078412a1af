"""Following: a replica brought up whenever an event tells of something new, until it is told to stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from broker.errors import BrokerError, Transient
from broker.events import Events
from broker.events_listening import Listener
from broker.model.names import DatasetId
from broker.rules.following import Policy, rest_seconds
from broker.rules.hearing import Wanted

log = logging.getLogger("broker.replica")
WAIT_SECONDS: Final = 1.0
"""A follower that is told to stop does so within this, unless it is applying something."""
RENEW_SECONDS: Final = 600.0
"""A follower that hears nothing says so often that it lives, and looks whether it missed something after all."""
BACKOFF_SECONDS: Final = 0.1
BACKOFF_MAX_SECONDS: Final = 5.0
NEWS: Final = ("published", "broker.dataset.reset", "promoted", "rolled-back", "released")


class Synced(Protocol):
    """What following needs to know of a sync."""

    @property
    def mode(self) -> str: ...
    @property
    def version(self) -> int: ...


R = TypeVar("R", bound=Synced)


def nothing(report: object) -> None:
    """The default `told`."""


class Follower(Generic[R]):
    """One replica's loop. `sync` brings it up by one step of its policy."""

    def __init__(self, events: Events, dataset: DatasetId, sync: Callable[[], R], name: str) -> None:
        self._sync, self._of = sync, f"{dataset}: replica {name}"
        self._listener = Listener(events, Wanted.of(dataset, None, NEWS))
        self._version, self._failures = -1, 0

    def run(self, policy: Policy, told: Callable[[R], object], stop: threading.Event) -> None:
        """Until `stop`. Raises what does not pass by itself."""
        with ending_by_signals(stop):
            while not stop.is_set():
                try:
                    self._step(policy, told, stop)
                    self._failures = 0
                except Transient as error:
                    self._failures += 1
                    pause = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2 ** min(self._failures, 10))
                    log.info("%s: again in %.1f s: %s", self._of, pause, error)
                    stop.wait(pause)

    def _step(self, policy: Policy, told: Callable[[R], object], stop: threading.Event) -> None:
        begun = time.monotonic()
        report = self._sync()
        self._version = report.version
        if report.mode != "applied":
            return self._wait(stop, begun + RENEW_SECONDS)
        told(report)
        stop.wait(rest_seconds(policy))
        return None

    def _wait(self, stop: threading.Event, until: float) -> None:
        """Until there is something new, at most until a time (monotonic seconds)."""
        while not stop.is_set() and time.monotonic() < until:
            for heard in self._listener.listen(WAIT_SECONDS):
                if not self._known(heard.type, heard.data.get("version", 0)):
                    heard.ack()
                    return
                if stop.is_set():
                    return

    def _known(self, type: str, version: int) -> bool:
        return type == "broker.dataset.published" and version <= self._version


class Following:
    """A replica that follows in a thread. Leaving the `with` block, or `stop()`, ends it behind the sync under way."""

    def __init__(self, run: Callable[[threading.Event], None], name: str) -> None:
        self._stop, self._run, self.error = threading.Event(), run, None
        self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
        self._thread.start()

    error: BrokerError | None
    """What ended it, if it did not end by `stop`."""

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Raises what had ended it before. Idempotent."""
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _follow(self) -> None:
        try:
            self._run(self._stop)
        except BrokerError as error:
            self.error = error
            log.error("a replica no longer follows: %s", error)


@contextmanager
def ending_by_signals(stop: threading.Event) -> Iterator[None]:
    """In the main thread SIGINT and SIGTERM set `stop`, where nobody else handles them.

    The handler takes no lock, as `stop` does: that may be held by the very code that it interrupts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = SimpleQueue[bool]()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        told.put(True)

    def hear() -> None:
        if told.get():
            stop.set()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [number for number, how in before.items() if how in (signal.SIG_DFL, signal.default_int_handler)]
    hearing = threading.Thread(target=hear, name="signals", daemon=True)
    hearing.start()
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
        told.put(False)
        hearing.join()
