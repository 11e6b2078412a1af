"""Change logs: Redis' side of them. Each method is one script or one read; none decides anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

from broker.backend.client import Call, RedisClient
from broker.backend.driver_errors import broker_error
from broker.backend.keys import Slot, log_slot, slot_for
from broker.errors import BrokerError, OutcomeUnknown, Unavailable
from broker.model.names import DatasetId
from broker.rules.blocks import Kind
from broker.rules.fold import State
from broker.rules.patch import MARK_SECONDS, NOTHING_CONSUMED
from broker.settings import Settings

T = TypeVar("T")
CLOCK_MARGIN_MS: Final = 10_000
"""After a loss of Redis ids begin so far ahead: the clock of the server before may have been ahead of this one's."""
MARK_SLACK_SECONDS: Final = 86_400
"""Redis remembers a producer longer than sealed versions do, so that whoever begins anew here is new there, too."""
UNNAMED_SECONDS: Final = 3_600
"""Marks of producers without a name live so long: after such a silence their client takes another name."""
MARKS_PAUSE_SECONDS: Final = 600
READ_BYTES: Final = 4 << 20
"""What one read of a log asks for, by the size of the entries before it."""
FIRST_READ, MOST_ENTRIES = 16, 1_000
PLACES: Final = 20_000
"""Datasets' log slots whose keys are remembered, about half a kilobyte each."""
TOGETHER: Final = 16
"""Parts of one script, which others wait for: a large block's are a few megabytes together."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One block, or the part of it that fell into this slot. `bytes_until`, `rows_until`: the slot's totals, itself included.

    `payload` is an Arrow IPC stream (columnar.blocks.decoded); None: a mark only, without rows. `session`: the dataset's
    that its types are of; '': any.
    """

    id: str
    producer: str
    block: int
    kind: Kind
    rows: int
    bytes_until: int
    rows_until: int
    payload: bytes | None
    session: str = ""

    @property
    def at_ms(self) -> int:
        """When it was appended, by its id; up to CLOCK_MARGIN_MS ahead after a loss of Redis."""
        return int(self.id.partition("-")[0])


@dataclass(frozen=True, slots=True)
class Logged:
    """A dataset's totals in one log slot: bytes and rows appended, and those of them that were trimmed."""

    appended: int
    rows: int
    released: int
    released_rows: int

    @property
    def unbatched_bytes(self) -> int:
        return self.appended - self.released

    @property
    def unbatched_rows(self) -> int:
        return self.rows - self.released_rows


class Part(NamedTuple):
    """A block's part for one slot. `author`: the client that chose the number (rules.blocks.ANYBODY: the producer did)."""

    slot: int
    producer: str
    block: int
    author: str
    kind: Kind
    rows: int = 0
    payload: bytes = b""
    session: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a slot says to a part. `value`: the entry's id (accepted, same), the number expected (gap) or the mark (taken)."""

    kind: Literal["accepted", "same", "gap", "taken", "reconcile", "full", "memory"]
    value: str = ""


class Logs:
    """Safe for threads and processes: every change is one atomic script."""

    def __init__(self, redis: RedisClient, settings: Settings) -> None:
        self._redis, self._settings = redis, settings
        self._append, self._open, self._trim = map(redis.script, ("append", "log_open", "log_trim"))
        self.count = settings.log_slots

    def slot(self, dataset: DatasetId, number: int) -> Slot:
        return _slot(dataset, self._settings.shards, number)

    def append(self, dataset: DatasetId, parts: Sequence[Part]) -> list[Answer | BrokerError]:
        """Each part to its slot, in one round trip: an answer or what was refused for each, in order.

        Raises Unavailable: none was added; OutcomeUnknown: each may have been. The same parts again find out.
        """
        groups = self._grouped(parts)
        try:
            replies = self._redis.call_many(self._append, [self._appending(dataset, group) for group in groups])
        except Unavailable as error:
            if self._redis.cluster:  # one by one: those before had run
                raise OutcomeUnknown(error.what, of=error.of, why=error.why, hint="Read back what happened") from error
            raise
        return [answer for group, reply in zip(groups, replies, strict=True) for answer in _answers(reply, len(group))]

    def closed(self, dataset: DatasetId) -> dict[int, str]:
        """Slots that Redis restarted or lost, each with the incarnation to open it for, in one round trip."""
        calls: list[Call] = [(self._keys(dataset, number), [dataset, ""]) for number in range(self.count)]
        replies = [_good(reply) for reply in self._redis.call_many(self._open, calls)]
        return {number: reply[1].decode() for number, reply in enumerate(replies) if reply[0] == b"closed"}

    def open(self, state: State, number: int, run: str) -> bool:
        """Go on from what is sealed. `state` must be read behind the look (`closed`) that told `run`. Idempotent.

        False: Redis restarted or lost it again meanwhile, so that `state` may know too little: look again.
        Entries that a version holds already may be back from an older copy: they are trimmed, or they would use up the budget.
        """
        dataset = DatasetId(state.dataset)
        marks = [item for name, mark in state.marks(number).items() for item in (name, mark.block, round(mark.at * 1000))]
        arguments = [dataset, run, state.consumed(number), CLOCK_MARGIN_MS, *marks]
        answer = self._redis.call(self._open, self._keys(dataset, number), arguments)[0]
        if answer == b"opened":
            self.trim(state, number)
        return bool(answer != b"closed")

    def marks(self, dataset: DatasetId, producer: str) -> list[int]:
        """The producer's mark in each slot; 0: none. Tells nothing before the slots are open."""
        commands = [("HGET", self.slot(dataset, number).marks(dataset), producer) for number in range(self.count)]
        replies = self._redis.pipeline(commands, dataset, writes=False)
        return [int(_good(reply).split()[0]) if reply else 0 for reply in replies]

    def read(self, dataset: DatasetId, number: int, after: str = NOTHING_CONSUMED, count: int = MOST_ENTRIES) -> list[LogEntry]:
        """At most `count` entries behind `after`, oldest first."""
        stream = self.slot(dataset, number).log(dataset)
        found = self._redis.run("XRANGE", stream, f"({after}", "+", "COUNT", count, writes=False)
        return [_entry(id, fields) for id, fields in found]

    def entries(self, dataset: DatasetId, number: int, after: str = NOTHING_CONSUMED) -> Iterator[LogEntry]:
        """All entries behind `after`, read in runs of about READ_BYTES, so that whoever stops early has not read much more."""
        count = FIRST_READ
        while run := self.read(dataset, number, after, count):
            yield from run
            if len(run) < count:
                return
            after, size = run[-1].id, sum(len(entry.payload or b"") for entry in run) / len(run)
            count = max(1, min(MOST_ENTRIES, int(READ_BYTES / max(size, 1))))

    def logged(self, dataset: DatasetId, number: int) -> Logged:
        """The totals; zeros for a log nobody opened."""
        fields = ("appended", "rows", "released", "released_rows")
        reply = self._redis.run("HMGET", self.slot(dataset, number).logged(dataset), *fields, writes=False)
        return Logged(*(int(value or 0) for value in reply))

    def ready(self, slot: Slot, count: int = 1_000) -> list[tuple[DatasetId, int]]:
        """Datasets of a log slot with unbatched entries and the time (ms, Redis' clock) of their oldest, oldest first."""
        flat = self._redis.run("ZRANGE", slot.ready, 0, count - 1, "WITHSCORES", writes=False)
        return [(DatasetId(name.decode()), int(float(at))) for name, at in zip(flat[::2], flat[1::2], strict=True)]

    def trim(self, state: State, number: int) -> int:
        """Forget what versions hold: entries up to `state.consumed`, never one more. -> entries left. Idempotent."""
        return self.discard(DatasetId(state.dataset), number, state.consumed(number))

    def discard(self, dataset: DatasetId, number: int, until: str) -> int:
        """Forget entries up to an id, though no version holds them: only those of sessions that are over may go so."""
        return self._trimmed([[(dataset, number, until)]])[0]

    def trim_all(self, states: Iterable[tuple[State, Iterable[int]]]) -> None:
        """`trim` of several slots of several datasets in one round trip."""
        logs = [(DatasetId(state.dataset), number, state.consumed(number)) for state, numbers in states for number in numbers]
        self._trimmed(self._grouped(logs))

    def _trimmed(self, groups: Sequence[Sequence[tuple[DatasetId, int, str]]]) -> list[int]:
        """Entries left of each log. Raises what one of them met, behind the others."""
        left = list[int]()
        for reply in self._redis.call_many(self._trim, [self._trimming(group) for group in groups]):
            for one in [reply] if isinstance(reply, BrokerError) else reply:
                if isinstance(one, Exception):
                    raise one if isinstance(one, BrokerError) else broker_error(one, "log_trim", unknown=False)
                left.append(int(one))
        return left

    def first(self, after: Mapping[tuple[DatasetId, int], str]) -> dict[tuple[DatasetId, int], list[LogEntry]]:
        """Of each dataset and slot the first FIRST_READ entries behind an id, in one round trip: fewer are all there are."""
        commands = [
            ("XRANGE", self.slot(dataset, number).log(dataset), f"({id}", "+", "COUNT", FIRST_READ)
            for (dataset, number), id in after.items()
        ]
        replies = self._redis.replies(commands, "change logs", writes=False)
        return {place: [_entry(*entry) for entry in reply] for place, reply in zip(after, replies, strict=True)}

    def last_id(self, dataset: DatasetId, number: int) -> str:
        """Id of the newest entry; '0-0' when there is none."""
        newest = self._redis.run("XREVRANGE", self.slot(dataset, number).log(dataset), "+", "-", "COUNT", 1, writes=False)
        return newest[0][0].decode() if newest else NOTHING_CONSUMED

    def oldest_seconds(self, dataset: DatasetId, number: int) -> float | None:
        """Since when its oldest unbatched entry waits; None: nothing does."""
        commands = [("ZSCORE", self.slot(dataset, number).ready, dataset), ("TIME",)]
        score, clock = self._redis.pipeline(commands, dataset, writes=False)
        return None if _good(score) is None else max(0.0, int(clock[0]) + int(clock[1]) / 1e6 - float(score) / 1000)

    def _appending(self, dataset: DatasetId, parts: Sequence[Part]) -> Call:
        limits = (self._settings.unbatched_bytes, int(self._settings.max_memory_ratio * 100))
        keys = [key for part in parts for key in self._keys(dataset, part.slot)]
        return keys, [dataset, *limits, *(field for part in parts for field in part[1:])]  # the script takes them in this order

    def _trimming(self, logs: Sequence[tuple[DatasetId, int, str]]) -> Call:
        """Dataset, log slot, id to forget entries up to."""
        lives = ((MARK_SECONDS + MARK_SLACK_SECONDS) * 1000, UNNAMED_SECONDS * 1000, MARKS_PAUSE_SECONDS * 1000)
        keys = [key for dataset, number, _ in logs for key in self._keys(dataset, number)]
        return keys, [*lives, *(text for dataset, _, until in logs for text in (dataset, until))]

    def _grouped(self, parts: Sequence[T]) -> list[Sequence[T]]:
        """What one script may take, for half of what a script costs is its call; on a cluster it can touch one slot only."""
        together = 1 if self._redis.cluster else TOGETHER
        return [parts[start : start + together] for start in range(0, len(parts), together)]

    def _keys(self, dataset: DatasetId, number: int) -> tuple[bytes, ...]:
        return _keys(dataset, self._settings.shards, number)


@lru_cache(maxsize=PLACES)
def _slot(dataset: DatasetId, shards: int, number: int) -> Slot:
    return Slot(log_slot(slot_for(dataset, shards), number))


@lru_cache(maxsize=PLACES)
def _keys(dataset: DatasetId, shards: int, number: int) -> tuple[bytes, ...]:
    slot = _slot(dataset, shards, number)
    return slot.meta, slot.log(dataset), slot.logged(dataset), slot.marks(dataset), slot.ready


def _answers(reply: Any, parts: int) -> list[Answer | BrokerError]:
    """Of the parts that one script took; an error stands for all of them."""
    return [reply] * parts if isinstance(reply, BrokerError) else [_answer(one) for one in reply]


def _answer(reply: Any) -> Answer | BrokerError:
    if isinstance(reply, Exception):
        return broker_error(reply, "append", unknown=False)
    kind, *value = (item.decode() if isinstance(item, bytes) else str(item) for item in reply)
    return Answer(cast(Literal["accepted", "same", "gap", "taken", "reconcile", "full", "memory"], kind), *value)


def _entry(id: bytes, flat: list[bytes]) -> LogEntry:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    kind: Kind = "u" if fields[b"k"] == b"u" else "d"
    rows, bytes_until, rows_until = (int(fields[name]) for name in (b"n", b"c", b"r"))
    producer, block = fields[b"p"].decode(), int(fields[b"b"])
    payload, session = fields.get(b"d"), fields.get(b"s", b"").decode()
    return LogEntry(id.decode(), producer, block, kind, rows, bytes_until, rows_until, payload, session)


def _good(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply
