"""One loop for all duties: signals, drain, back-off. A duty is a pass that says whether it did something."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import FrameType
from typing import Final

from broker.errors import Transient

log = logging.getLogger("broker.worker")
BACK_OFF_SECONDS: Final = 0.1
BACK_OFF_MAX_SECONDS: Final = 5.0
DRAIN_SECONDS: Final = 30.0
"""What runs at a signal may take this long to end; then its child is killed and another worker takes it over."""


class Loop:
    """Runs passes in threads until told to stop. An error of a pass that is not transient stops the whole worker."""

    def __init__(self) -> None:
        self.stopping, self.ended, self.failure = Event(), Event(), list[BaseException]()
        self._threads: list[Thread] = []
        self._draining: list[Thread] = []
        # What signal handlers touch takes no lock: an Event's lock may be held by the very code that a handler interrupts.
        self._signals, self._woken = count(), SimpleQueue[None]()

    def every(self, name: str, seconds: float, work: Callable[[], object], drains: bool = False) -> None:
        """Run `work` every `seconds` in a thread of its own; 0: again at once (it waits by itself).

        `drains`: it goes on after the signal to stop, until what is held has ended.
        """
        over = self.ended if drains else self.stopping

        def passes() -> None:
            failures = 0
            while not over.is_set():
                try:
                    work()
                    failures = 0
                except Transient as error:
                    failures += 1
                    pause = min(BACK_OFF_MAX_SECONDS, BACK_OFF_SECONDS * 2 ** min(failures, 10))
                    log.warning("%s: %s; again in %.1f s", name, error, pause)
                    over.wait(pause)
                except Exception as error:
                    log.exception("%s failed", name)
                    self.failure.append(error)
                    self.stopping.set()
                    self.ended.set()
                    self._woken.put(None)
                if seconds:
                    over.wait(seconds)

        (self._draining if drains else self._threads).append(Thread(target=passes, name=name, daemon=True))

    def handle_signals(self) -> None:
        """TERM and INT ask for a drain; a second one ends at once, also one that comes while the first is still handled."""

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            if next(self._signals) or self.stopping.is_set():
                raise SystemExit(128 + number)
            self._woken.put(None)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def run(
        self,
        done: Callable[[], bool] | None = None,
        poll_seconds: float = 0.05,
        drained: Callable[[], bool] = lambda: True,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        """Until a signal, a failure, or `done()`; then until all passes ended and `drained()`, at most `drain_seconds`.

        A pass that takes longer is left behind: it is one that may be cut off anywhere. Raises the failure.
        """
        for thread in (*self._threads, *self._draining):
            thread.start()
        while not self.stopping.is_set():
            if done is not None and done():
                break
            with suppress(Empty):
                self._woken.get(timeout=poll_seconds if done else 1.0)
                break
        self.stopping.set()
        deadline = time.monotonic() + drain_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        log.info("takes no more, finishes what runs")
        while not self.ended.is_set() and not drained() and time.monotonic() < deadline:
            self.ended.wait(poll_seconds)
        self.ended.set()
        for thread in self._draining:
            thread.join()
        if self.failure:
            raise self.failure[0]
