"""The bell: notify/<channel>.json, enough to follow a dataset with GET alone, and the events of records.

It is rung behind the commit, by one thread, once for many commits of a dataset: who waits for an answer does not wait for it.
A crash before it rang is made up for by the janitor, which compares the head with what was last rung.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from queue import SimpleQueue
from threading import Event as Signal
from threading import Lock, Thread
from typing import Final
from weakref import WeakSet

from broker.errors import BrokerError, Transient
from broker.model.commit import Announce, Edge, Move, Record, Why
from broker.model.event import Event, EventType, Moved, rfc3339
from broker.model.names import LIVE, ChannelsId, DatasetId
from broker.rules.fold import State
from broker.rules.news import news_of
from broker.rules.patch import Named, edge_field
from broker.rules.plan import cheapest

log = logging.getLogger("broker.bell")
NOTIFY_FORMAT: Final = 1
NOTIFY_DELTAS: Final = 100
"""About a hundred kilobytes of JSON."""
EDGES: Final = 32_768
EDGE_BYTES: Final = 1024
"""Of so many edges the JSON is remembered, where it is no longer: 64 MiB at most."""
CHANNEL_EVENTS: Final[dict[Why, EventType]] = {
    "promoted": "broker.channel.promoted", "rolled-back": "broker.channel.rolled-back", "released": "broker.channel.released",
}  # fmt: skip
PAUSE_SECONDS: Final = 0.05
"""Between asking and ringing: the commit's own answer goes first, and commits of so short a while ring once. Who follows by GET
asks less often; and each ring is two syncs of a disk that the next commit needs."""
RUNG_TOGETHER: Final = 64
"""Datasets whose bells ring in one go: Redis is asked once for all of them."""


class Bell:
    """Calls `ring(datasets)` in the background. Safe for threads and over a fork; what was asked rings before an exit."""

    _ringer: _Ringer | None
    _asked: set[DatasetId]

    def __init__(self, ring: Callable[[Sequence[DatasetId]], object]) -> None:
        self._ring = ring
        self._begin()
        _BELLS.add(self)

    def ask(self, dataset: DatasetId) -> None:
        """Ring soon; asked again before it rang, it rings once. Where no thread begins it does not: ask anew."""
        with self._lock:
            if dataset in self._asked:
                return
            if self._ringer is None:
                try:
                    self._ringer = _Ringer(self._rung)
                except RuntimeError as error:  # as with a ring that fails: the janitor makes up for it
                    log.warning("%s: not rung, no thread begins: %s", dataset, error)
                    return
            self._asked.add(dataset)
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

    def _rung(self, datasets: Sequence[DatasetId]) -> None:
        with self._lock:
            self._asked.difference_update(datasets)
        try:
            self._ring(datasets)
        except Exception as error:  # one dataset's surprise must not silence the others
            if len(datasets) > 1 and not isinstance(error, Transient):
                for dataset in datasets:
                    self._rung([dataset])
            elif isinstance(error, BrokerError):  # the janitor finds the bell unrung, and reports why if it cannot ring either
                log.debug("%s: not rung: %s", ", ".join(datasets), error)
            else:
                log.exception("%s: the bell failed", datasets[0])


class _Ringer:
    """One thread and its own queue: whoever asks while a bell closes gets another one, and neither takes the other's end."""

    def __init__(self, ring: Callable[[Sequence[DatasetId]], None]) -> None:
        self._ring, self._closing = ring, Signal()
        self.queue = SimpleQueue[DatasetId | None]()
        self._thread = Thread(target=self._run, name="bell", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._closing.set()
        self.queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        asked = self.queue.get()
        while asked is not None:
            if self.queue.qsize() < RUNG_TOGETHER:
                self._closing.wait(PAUSE_SECONDS)
            group = [asked]
            while len(group) < RUNG_TOGETHER and not self.queue.empty() and (asked := self.queue.get()) is not None:
                group.append(asked)
            self._ring(group)
            asked = asked and self.queue.get()


_BELLS: Final = WeakSet[Bell]()


def _after_fork() -> None:
    for bell in _BELLS:
        bell._begin()


def _at_exit() -> None:
    for bell in list(_BELLS):
        bell.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def notification(state: State, channel: str = LIVE, named: Named | None = None) -> bytes:
    """The bytes of notify/<channel>.json: session, seq, version, a snapshot and the deltas behind it, with SHA-256.

    `live`: the newest version. Another channel: the one that it names, with `announced`, the number of the announcement; who
    follows it ignores a lower one. Where its session is over nothing leads there: neither snapshot nor deltas.

    `deltas` lead from the snapshot to the version without a gap: the newest NOTIFY_DELTAS one by one, those before as roll-ups
    where there are some, so that a commit costs the same however many versions there are. Who stands anywhere on the way goes
    on with the first that ends behind it: an edge may be applied to any version from its base on. Only who comes from below
    `erased_until`, and goes there or beyond, begins with the snapshot: an erasure took deletes out of the way. No snapshot is
    named while nobody has compacted so many deltas: then who is before the first of them waits, or reads the commit log.
    """
    version, session = named.point if named else (state.version, state.session)
    snapshot, chain = _road(state, version) if session == state.session else (None, [])
    spec = state.spec if state.exists else None
    fields = {
        "format": NOTIFY_FORMAT, "dataset": state.dataset, "channel": channel, "session": session, "seq": state.seq,
        "version": version, "key": spec.key if spec else (), "order": spec.order if spec else (),
    } | ({"announced": named.seq} if named else {})  # fmt: skip
    fields |= {"erased_until": state.erased_until} if state.erased_until else {}
    deltas = ", ".join(map(_whole, chain))
    return f'{json.dumps(fields)[:-1]}, "snapshot": {_whole(snapshot) if snapshot else "null"}, "deltas": [{deltas}]}}'.encode()


def _whole(edge: str) -> str:
    """An edge's JSON as a state has it, with the fields that it leaves out."""
    return _short(edge) if len(edge) <= EDGE_BYTES else json.dumps(Edge.model_validate_json(edge).model_dump(mode="json"))


@lru_cache(maxsize=EDGES)
def _short(edge: str) -> str:
    return json.dumps(Edge.model_validate_json(edge).model_dump(mode="json"))


def _road(state: State, version: int) -> tuple[str | None, list[str]]:
    """A snapshot and what leads on from it: the newest deltas, behind the cheapest road to where they begin.

    As the state's text: parsing a hundred edges anew would cost a quiet dataset as much as its version.
    """
    texts, snapshot, at, chain = state.tables["edges"], state.snapshot_at(version), version, list[str]()
    oldest = max(snapshot.version if snapshot else 0, version - NOTIFY_DELTAS)
    while at > oldest and (delta := texts.get(edge_field(at - 1, at))) is not None:
        chain.append(delta)
        at -= 1
    chain.reverse()
    if snapshot is not None and at == snapshot.version:
        return texts[edge_field(None, at)], chain
    for to, behind in ((at, chain), (version, [])):  # a delta may be gone, and only a roll-up lead past it
        road = [texts[edge_field(edge.base, edge.version)] for edge in cheapest(state.edges, None, to) or ()]
        if road and len(road) <= NOTIFY_DELTAS:
            return road[0], [*road[1:], *behind]
    return None, chain


def rung(data: bytes) -> int:
    """The seq that notify/<channel>.json was written for; 0 when it cannot be read, so that it is written anew."""
    try:
        return int(json.loads(data)["seq"])
    except (ValueError, KeyError, TypeError):
        return 0


def events_of(log: DatasetId, record: Record) -> list[str]:
    """The events of a record, as JSON: what it tells of its dataset, or one for each dataset that a channel was moved for."""
    match record.body:
        case Announce(channel=channel, moves=moves, why=why):
            return [_moved(ChannelsId(log), record, (channel, name, why), move) for name, move in moves.items()]
    news = news_of(log, record)
    return [news.model_dump_json()] if news else []


def _moved(log: ChannelsId, record: Record, of: tuple[str, str, Why], move: Move) -> str:
    channel, name, why = of
    before = move.left or next(iter(move.past), None)
    data = Moved(
        channel=channel, version=move.version, session=move.session, announced=record.seq,
        before=before.version if before else 0,
    )  # fmt: skip
    return Event(
        id=f"{log}/{record.seq}/{name}", source=f"broker/{log.domain}", type=CHANNEL_EVENTS[why], subject=log.dataset(name),
        time=rfc3339(record.time), correlationid=f"{log}/{record.seq}", data=data.model_dump(mode="json", exclude_unset=True),
    ).model_dump_json()  # fmt: skip
