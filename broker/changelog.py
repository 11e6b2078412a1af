"""The change log of a dataset: append changes, acknowledged at the level asked for; micro-batches make versions of them.

accepted    Redis has it: what Redis alone acknowledged can die with Redis
fsynced     Redis proved that it is on disk
sealed      a version holds it: it survives the loss of Redis
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final
from weakref import WeakSet

from broker.backend.client import RedisClient
from broker.backend.durable import Durability
from broker.backend.logs import UNNAMED_SECONDS, Logs
from broker.backend.watch import Watch
from broker.catalog import Catalog
from broker.changelog_ahead import bring_all
from broker.changelog_delivery import Author, Block, Delivery, Numbering
from broker.changelog_recent import TOGETHER, Recent
from broker.changelog_rows import Content, Shaper, session_over
from broker.changelog_sending import Pending, Sending, time_left
from broker.columnar.intake import Intake
from broker.errors import BrokerError, Conflict, Invalid, TimedOut, Transient
from broker.model.names import DatasetId
from broker.rules.blocks import (
    Kind,
    Level,
    checked_block,
    checked_level,
    checked_producer,
    missing_slots,
    next_block,
    unnamed_producer,
)
from broker.settings import Settings

TIMEOUT_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 1.0
"""While waiting for a seal: between looks at a log that may have been lost."""
PRODUCERS: Final = 100
"""Names whose numbering one client remembers; the longest unused is forgotten, and asks Redis again."""


@dataclass(frozen=True, slots=True)
class Ack:
    """What was reached. Of a call that made several blocks: its last one, whose being there says the same of those before.

    `offsets`: log slot -> id of the block's entry ('' where an earlier try had brought it and a later block followed).
    """

    producer: str
    block: int
    offsets: dict[int, str] = field(default_factory=dict)
    level: Level = "accepted"
    rows: int = 0
    blocks: int = 1


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """One log slot of a dataset. `oldest_seconds`: since when something waits for a batch; None: nothing does."""

    slot: int
    unbatched_rows: int
    unbatched_bytes: int
    appended_rows: int
    appended_bytes: int
    last_id: str
    consumed: str
    oldest_seconds: float | None


class ChangeLog:
    """Of one dataset, for one client. Safe for threads and after a fork; calls of one producer run one after the other."""

    _unnamed: Numbering
    _named: dict[str, Numbering]
    _sending: Sending
    _lock: Lock

    def __init__(
        self, redis: RedisClient, catalog: Catalog, settings: Settings, dataset: DatasetId, recent: Recent | None = None
    ) -> None:
        self._redis, self._catalog, self.dataset = redis, catalog, dataset
        self._logs, self._durability = Logs(redis, settings), Durability(redis)
        self._delivery, self._shaper = Delivery(self._logs, catalog, dataset), Shaper(catalog, dataset, settings, recent)
        self._begin()
        _LOGS.add(self)

    def append(
        self, records: Intake, producer: str | None = None, block: int | None = None, level: str = "accepted",
        timeout: float = TIMEOUT_SECONDS,
    ) -> Ack:  # fmt: skip
        """Append changed rows: dicts, pydantic objects, anything Arrow. Large data makes several blocks, read as it goes.

        `block`: the producer's own number of this one block, 1, 2, 3, ... without gaps; the same number again is dropped.
        Without it the client numbers, and the same call again after an error, in the same thread, is known to be the same;
        without a producer's name within half an hour, then a Conflict tells so once.
        `timeout`: seconds for Redis to come back after a failure, and for the level to be reached.

        Raises Gap (`expected` is the number to go on with), Overloaded (batches do not keep up: nothing is lost, append the
        same later), OutcomeUnknown and TimedOut (the same call again finds out), NotDurable (fsynced cannot be proven),
        Conflict, NullKey, SchemaConflict, BadData, Invalid, NotFound.
        """
        return self._append("u", records, (producer, block), checked_level(level), timeout)

    def delete(
        self, keys: Intake, producer: str | None = None, block: int | None = None, level: str = "accepted",
        timeout: float = TIMEOUT_SECONDS,
    ) -> Ack:  # fmt: skip
        """Append deletes: keys, with the order columns where the dataset has them. Otherwise as `append`."""
        return self._append("d", keys, (producer, block), checked_level(level), timeout)

    def send(self, record: Any, *, delete: bool = False, timeout: float = TIMEOUT_SECONDS) -> Pending:
        """One record, coalesced with others into blocks by a thread; `.result()` waits for its Ack.

        It is tried until it is in or refused for good. Raises Overloaded when too many wait for longer than `timeout` seconds.
        """
        return self._sending.put("d" if delete else "u", record, timeout)

    def resume(self, producer: str) -> int:
        """The number of the next block: everything before it is in every slot."""
        return next_block(self._delivery.marks(checked_producer(producer)).values())

    def status(self) -> list[SlotStatus]:
        """One for each log slot."""
        state, logs, found = self._catalog.state(self.dataset), self._logs, []
        for slot in self._delivery.slots:
            logged, oldest = logs.logged(self.dataset, slot), logs.oldest_seconds(self.dataset, slot)
            totals = (logged.unbatched_rows, logged.unbatched_bytes, logged.rows, logged.appended)
            found.append(SlotStatus(slot, *totals, logs.last_id(self.dataset, slot), state.consumed(slot), oldest))
        return found

    def close(self, timeout: float = TIMEOUT_SECONDS) -> None:
        """Bring in what was sent, for at most `timeout` seconds."""
        self._sending.close(timeout)

    # --- the call

    def _append(self, kind: Kind, data: Intake, whose: tuple[str | None, int | None], level: Level, timeout: float) -> Ack:
        deadline = time.monotonic() + timeout
        proof = self._durability.proof() if level == "fsynced" else None
        self._sending.flush(timeout)
        producer, number = whose
        if number is not None:
            if producer is None:
                raise Invalid("a numbered block needs its producer's name", of=self.dataset, hint="Give producer=")
            author = Author(checked_producer(producer))
            block = Block(checked_block(number), self._shaper.content(data, kind))
            self._delivery.deliver(block, author, deadline)
            ack = Ack(producer, block.number, block.offsets, level, block.content.rows)
            self._reach(level, proof, block, author, deadline)
            return ack
        return self._numbered(self._numbering(producer), kind, data, (level, proof), deadline)

    def _numbered(
        self, numbering: Numbering, kind: Kind, data: Intake, level: tuple[Level, str | None], deadline: float
    ) -> Ack:
        brought, timeout = _Brought(), time_left(deadline)

        def bring(content: Content) -> None:
            brought.add(numbering.append(content, time.monotonic() + timeout))

        with numbering.call(deadline):
            try:
                bring_all(self._shaper.contents(data, kind), bring)
                if brought.last is not None:
                    self._reach(*level, brought.last, numbering.author, time.monotonic() + timeout)
            except BrokerError as error:
                raise _with_progress(error, brought.rows) from error
        number, offsets = (brought.last.number, brought.last.offsets) if brought.last else (numbering.last, {})
        return Ack(numbering.author.producer, number, offsets, level[0], brought.rows, brought.blocks)

    def _reach(self, level: Level, proof: str | None, block: Block, author: Author, deadline: float) -> None:
        """Wait until the block is at the level."""
        if proof == "waitaof":
            self._durability.wait(self._logs.slot(self.dataset, 0), time_left(deadline))
        if level == "sealed":
            self._sealed(block, author, deadline)

    def _sealed(self, block: Block, author: Author, deadline: float) -> None:
        """Wait for the versions that hold the block; bring it again where Redis lost it meanwhile."""
        watch = Watch(self._redis, self._catalog.slot(self.dataset).events)
        while True:
            try:
                at = watch.position()
                state = self._catalog.state(self.dataset)
                marks = {slot: state.marks(slot) for slot in self._delivery.slots}
                if block.content.session not in ("", state.session):
                    raise session_over(self.dataset)
                missing = missing_slots(marks, author.producer, block.number)
                if not missing:
                    return
                left = time_left(deadline)
                if not left:
                    raise TimedOut(
                        "the block is not sealed yet", of=f"{self.dataset} {author.producer} block {block.number}",
                        why=f"slots {', '.join(map(str, missing))} wait for a version",
                        hint="It is in the change log. Is a micro-batcher running? Append the same again to wait on",
                    )  # fmt: skip
                watch.wait(at, int(min(left, LOOK_SECONDS) * 1000) or 1)
                if min(self._logs.marks(self.dataset, author.producer)) < block.number:
                    self._delivery.deliver(block, author, deadline)
            except TimedOut:
                raise
            except Transient:
                self._delivery.deliver(block, author, deadline)

    # --- single records

    def _deliver(self, kind: Kind, records: Sequence[Any]) -> Ack:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        return self._numbered(self._numbering(None), kind, records, ("accepted", None), deadline)

    def _check(self, kind: Kind, records: Iterable[Any]) -> None:
        """Raises what makes a record none of this dataset's."""
        self._shaper.check(records, kind)

    # --- who numbers

    def _numbering(self, producer: str | None) -> Numbering:
        with self._lock:
            if producer is None:
                before = self._unnamed
                if before.idle(UNNAMED_SECONDS / 2):
                    self._unnamed = self._new_numbering(unnamed_producer())
                    if not before.settled:
                        raise _too_late(self.dataset)
                return self._unnamed
            known = self._named.pop(producer, None) or self._new_numbering(checked_producer(producer))
            self._named[producer] = known
            if len(self._named) > PRODUCERS:
                settled = next((name for name, one in self._named.items() if one.settled and one is not known), None)
                self._named.pop(settled or "", None)
            return known

    def _new_numbering(self, producer: str) -> Numbering:
        return Numbering(self._delivery, Author(producer, os.urandom(6).hex()))

    def _begin(self) -> None:
        """As new: a forked child must not go on with its parent's numbers, and has none of its threads."""
        self._lock, self._named = Lock(), {}
        self._unnamed = self._new_numbering(unnamed_producer())
        self._sending = Sending(self._deliver, self._check)


class ChangeLogs:
    """The change logs of a connection, one a dataset: so that whoever opens a dataset twice goes on with one numbering."""

    def __init__(self, redis: RedisClient, catalog: Catalog, settings: Settings) -> None:
        # A cluster is asked for one after the other anyway.
        self._of, self._recent = (redis, catalog, settings), Recent(catalog, 1 if redis.cluster else TOGETHER)
        self._known: dict[DatasetId, ChangeLog] = {}

    def of(self, dataset: DatasetId) -> ChangeLog:
        """Safe for threads: of two made at once, one stays."""
        known = self._known.get(dataset)
        return known if known is not None else self._known.setdefault(dataset, ChangeLog(*self._of, dataset, self._recent))

    def close(self) -> None:
        """Bring in what was sent."""
        for log in self._known.values():
            log.close()


@dataclass(slots=True)
class _Brought:
    """What of a call is in. `last`: its last block."""

    rows: int = 0
    blocks: int = 0
    last: Block | None = None

    def add(self, block: Block) -> None:
        self.rows, self.blocks, self.last = self.rows + block.content.rows, self.blocks + 1, block


def _with_progress(error: BrokerError, rows: int) -> BrokerError:
    """The same error; what of a long call is in already stands in it."""
    if rows:
        error.hint = f"{error.hint}. The first {rows} rows of this call are in: the same call again goes on behind them".lstrip(
            ". "
        )
    return error


def _too_late(dataset: DatasetId) -> Conflict:
    return Conflict(
        "too late to tell whether an append that failed is in the change log", of=dataset,
        why=f"marks of producers without a name are kept for {UNNAMED_SECONDS // 60} minutes",
        hint="Read whether it is there before you append it again; under a producer's name it would be known for days",
    )  # fmt: skip


_LOGS: Final = WeakSet[ChangeLog]()


def _after_fork() -> None:
    for log in _LOGS:
        log._begin()


def _at_exit() -> None:
    for log in list(_LOGS):
        log.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
