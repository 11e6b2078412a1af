"""The bell: notify/<channel>.json, enough to follow a dataset with GET alone, and the events of records.

It is rung behind the commit, by one thread, once for many commits of a dataset: who waits for an answer does not wait for it.
A crash before it rang is made up for by the janitor, which compares the head with what was last rung.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event as Signal
from threading import Lock, Thread
from typing import Final
from weakref import WeakSet

from broker.errors import BrokerError
from broker.model.commit import Edge, Record
from broker.model.names import DatasetId
from broker.rules.fold import State
from broker.rules.news import news_of

log = logging.getLogger("broker.bell")
NOTIFY_FORMAT: Final = 1
NOTIFY_DELTAS: Final = 100
"""About a hundred kilobytes of JSON."""
LIVE: Final = "live"
PAUSE_SECONDS: Final = 0.01
"""Between asking and ringing: the commit's own answer goes first, and commits of so short a while ring once."""


class Bell:
    """Calls `ring(dataset)` in the background. Safe for threads and over a fork; what was asked rings before an exit."""

    _ringer: _Ringer | None
    _asked: set[DatasetId]

    def __init__(self, ring: Callable[[DatasetId], None]) -> None:
        self._ring = ring
        self._begin()
        _BELLS.add(self)

    def ask(self, dataset: DatasetId) -> None:
        """Ring soon; asked again before it rang, it rings once."""
        with self._lock:
            if dataset in self._asked:
                return
            self._asked.add(dataset)
            if self._ringer is None:
                self._ringer = _Ringer(self._rung)
            self._ringer.queue.put(dataset)

    def close(self) -> None:
        """Everything asked for so far has rung."""
        with self._lock:
            ringer, self._ringer = self._ringer, None
        if ringer is not None:
            ringer.end()

    def _begin(self) -> None:
        """As new: in a forked child the thread is gone, and the lock may be one that nobody is left to release."""
        self._lock, self._ringer, self._asked = Lock(), None, set()

    def _rung(self, dataset: DatasetId) -> None:
        with self._lock:
            self._asked.discard(dataset)
        try:
            self._ring(dataset)
        except BrokerError as error:  # the janitor finds the bell unrung, and reports why if it cannot ring either
            log.debug("%s: not rung: %s", dataset, error)
        except Exception:  # one dataset's surprise must not silence the others
            log.exception("%s: the bell failed", dataset)


class _Ringer:
    """One thread and its own queue: whoever asks while a bell closes gets another one, and neither takes the other's end."""

    def __init__(self, ring: Callable[[DatasetId], None]) -> None:
        self._ring, self._closing = ring, Signal()
        self.queue = SimpleQueue[DatasetId | None]()
        self._thread = Thread(target=self._run, name="bell", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._closing.set()
        self.queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (dataset := self.queue.get()) is not None:
            self._closing.wait(PAUSE_SECONDS)
            self._ring(dataset)


_BELLS: Final = WeakSet[Bell]()


def _after_fork() -> None:
    for bell in _BELLS:
        bell._begin()


def _at_exit() -> None:
    for bell in list(_BELLS):
        bell.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def notification(state: State, channel: str = LIVE) -> bytes:
    """The bytes of notify/<channel>.json: session, seq, version, the newest snapshot and the deltas behind it, with SHA-256.

    At most NOTIFY_DELTAS deltas, the newest, so that a commit costs the same however many versions there are. Who holds less
    than the first one's base takes the snapshot if that is newer, and else reads the commit log.
    """
    snapshot, at, chain = state.snapshot, state.version, list[Edge]()
    oldest = max(snapshot.version if snapshot else 0, at - NOTIFY_DELTAS)
    while at > oldest and (delta := state.edge(at - 1, at)) is not None:
        chain.insert(0, delta)
        at -= 1
    spec = state.spec if state.exists else None
    fields = {
        "format": NOTIFY_FORMAT, "dataset": state.dataset, "channel": channel, "session": state.session, "seq": state.seq,
        "version": state.version, "key": spec.key if spec else (), "order": spec.order if spec else (),
        "snapshot": snapshot.model_dump(mode="json") if snapshot else None,
        "deltas": [edge.model_dump(mode="json") for edge in chain],
    }  # fmt: skip
    return json.dumps(fields).encode()


def rung(data: bytes) -> int:
    """The seq that notify/<channel>.json was written for; 0 when it cannot be read, so that it is written anew."""
    try:
        return int(json.loads(data)["seq"])
    except (ValueError, KeyError, TypeError):
        return 0


def published(dataset: DatasetId, record: Record) -> str:
    """The event of a record, as JSON; '' for records that nobody needs to know of."""
    news = news_of(dataset, record)
    return news.model_dump_json() if news else ""
