"""RQ workers as supervised processes: some for parts, one for finalisers. A process that ends is replaced.

    python -m workers.rq_pool <socket fd> <module:app> <queue> [module:on_step]

The socket brings the settings, whose secrets belong on no command line, and its end tells that the parent is gone.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from threading import Thread
from typing import Final

from broker.backend.jobs import MAINTENANCE, PARTS
from broker.producers import Producers
from broker.rules.steps import nothing
from broker.settings import Settings
from workers.channel import Channel
from workers.child import step_of
from workers.jobs import run_rq_worker
from workers.supervisor import revealed

log = logging.getLogger("broker.worker")
STOP_SECONDS: Final = 5.0
SECOND_SIGNAL_SECONDS: Final = 1.1
"""RQ takes two signals within a second for one."""
RESTART_SECONDS: Final = 1.0
RESTART_MAX_SECONDS: Final = 30.0


@dataclass
class _Place:
    """One process and its successors. `failures`: how often in a row it ended soon."""

    queue: str
    process: subprocess.Popen[bytes]
    lifeline: socket.socket
    started: float = field(default_factory=time.monotonic)
    failures: int = 0

    def end(self) -> None:
        self.lifeline.close()


class RqPool:
    """`processes` RQ workers for parts and one for finalisers. `inspect` is one pass; one thread."""

    def __init__(self, settings: Settings, app: str, processes: int, on_step: str = "") -> None:
        self._settings, self._app, self._on_step = settings, app, on_step
        self._places = [self._start(queue) for queue in (*(PARTS,) * processes, MAINTENANCE)]

    def inspect(self) -> int:
        """Replace processes that ended, later each time they end at once; -> how many."""
        replaced = 0
        for number, place in enumerate(self._places):
            if place.process.poll() is None:
                continue
            lived = time.monotonic() - place.started
            if lived < (pause := min(RESTART_MAX_SECONDS, RESTART_SECONDS * 2.0**place.failures)):
                continue
            log.warning("the RQ worker of %s ended with %s; another is started", place.queue, place.process.returncode)
            place.end()
            self._places[number] = self._start(place.queue, place.failures + 1 if lived < 2 * pause else 0)
            replaced += 1
        return replaced

    def stop(self) -> None:
        """End all: after their jobs if those end within some seconds, else with them; another leader has those done again."""
        self._signal(signal.SIGTERM)
        self._wait(SECOND_SIGNAL_SECONDS)
        self._signal(signal.SIGTERM)
        self._wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)
        for place in self._places:
            place.process.wait()
            place.end()

    def _signal(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.process.poll() is None:
                place.process.send_signal(number)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for place in self._places:
            try:
                place.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return

    def _start(self, queue: str, failures: int = 0) -> _Place:
        mine, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-m", "workers.rq_pool", str(fd), self._app, queue, *filter(None, [self._on_step])]
            process = subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL)
        Channel(mine).send({"settings": revealed(self._settings)})
        return _Place(queue, process, mine, failures=failures)


def pool_for(settings: Settings, app: str, producers: Producers, processes: int) -> RqPool | None:
    """The pool that a plain worker starts beside its children; None when no producer is cut into parts."""
    return RqPool(settings, app, processes) if any(producer.partitioned for producer in producers) else None


def _end_with(parent: socket.socket) -> None:
    """When the parent dies, finish the job at hand and end."""
    hangup = select.poll()
    hangup.register(parent.fileno(), 0)  # errors and hang-ups are reported without being asked for
    hangup.poll()
    os.kill(os.getpid(), signal.SIGTERM)


def main(argv: list[str]) -> int:
    parent = socket.socket(fileno=int(argv[0]))
    first = Channel(parent).receive()
    if first is None:
        return 1
    on_step = step_of(argv[3]) if len(argv) > 3 else nothing
    Thread(target=_end_with, args=(parent,), name="lifeline", daemon=True).start()
    run_rq_worker(Settings.model_validate(first["settings"]), argv[1], queue=argv[2], on_step=on_step)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
