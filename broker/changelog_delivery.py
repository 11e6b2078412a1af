"""Delivery of blocks: one block into every log slot, exactly once, whatever is lost on the way; and the numbering of blocks.

An answer counts only when all slots gave theirs in one round: between two, Redis may have restarted and forgotten the first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Final, NamedTuple, Self

from broker.backend.logs import Answer, Logs, Part
from broker.catalog import Catalog
from broker.changelog_rows import Content
from broker.errors import (
    BrokerError,
    Conflict,
    Gap,
    OutcomeUnknown,
    Overloaded,
    Reconciling,
    TimedOut,
    Transient,
    Unavailable,
)
from broker.model.names import DatasetId
from broker.rules.blocks import ANYBODY
from broker.rules.publishing import MAX_ROUNDS

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.01, 0.5
THREADS: Final = 64
"""Threads whose call failed, and whose repetition is known."""
FILL_BLOCKS: Final = 1_000
"""Empty blocks of one round trip."""


class Author(NamedTuple):
    """Who a block is by: the producer, and the client that numbers for it (ANYBODY: it numbers by itself)."""

    producer: str
    client: str = ANYBODY


@dataclass(slots=True)
class Block:
    """A numbered content on its way. `touched`: a slot has it, or may have it. `slots`: the only ones it goes to; None: all."""

    number: int
    content: Content
    touched: bool = False
    offsets: dict[int, str] = field(default_factory=dict)
    slots: Sequence[int] | None = None

    def part(self, slot: int, author: Author) -> Part:
        rows, payload = self.content.parts.get(slot, (0, b""))
        kind, session = self.content.kind, self.content.session
        return Part(slot, author.producer, self.number, author.client, kind, rows, payload, session)


class Delivery:
    """Of one dataset. Safe for threads."""

    def __init__(self, logs: Logs, catalog: Catalog, dataset: DatasetId) -> None:
        self._logs, self._catalog, self.dataset = logs, catalog, dataset

    @property
    def slots(self) -> range:
        return range(self._logs.count)

    def deliver(self, block: Block, author: Author, deadline: float) -> None:
        """Bring the block into every slot until `deadline` (monotonic); afterwards `block.offsets` names its entries.

        Raises Gap, Conflict (somebody else numbers for this producer), Overloaded; OutcomeUnknown when no round of answers
        came: the same block again finds out.
        """
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                if self._round(block, author):
                    return
                failure: Transient | None = None
            except Overloaded:
                raise
            except Transient as error:
                failure = error
            if time.monotonic() + pause > deadline:
                raise self._given_up(block, author, failure)
            if failure is not None:
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def fill(self, author: Author, marks: Mapping[int, int], until: int) -> None:
        """Blocks without rows up to number `until`, for slots whose mark is behind it. Raises what refuses one of them."""
        empty = Content("u", 0, {})
        for slot, mark in marks.items():
            for first in range(mark + 1, until + 1, FILL_BLOCKS):
                blocks = [Block(number, empty) for number in range(first, min(first + FILL_BLOCKS, until + 1))]
                answers = self._logs.append(self.dataset, [block.part(slot, author) for block in blocks])
                for block, answer in zip(blocks, answers, strict=True):
                    if isinstance(answer, BrokerError):
                        raise answer
                    if answer.kind not in ("accepted", "same"):
                        raise self._refused({slot: answer}, block, author)

    def open(self) -> None:
        """Every slot goes on from what is sealed, where Redis restarted or lost it. Raises NotFound, Reconciling."""
        for _ in range(MAX_ROUNDS):
            closed = self._logs.closed(self.dataset)
            state = self._catalog.state(self.dataset)
            if all([self._logs.open(state, slot, run) for slot, run in closed.items()]):
                return
        raise Reconciling("the change log does not come to rest", of=self.dataset, hint="Is Redis restarting again and again?")

    def marks(self, producer: str) -> dict[int, int]:
        """The producer's mark in each slot."""
        self.open()
        return dict(zip(self.slots, self._logs.marks(self.dataset, producer), strict=True))

    def _round(self, block: Block, author: Author) -> bool:
        """One round trip. -> whether the block is everywhere; False: slots were opened, ask again."""
        before, block.touched = block.touched, True  # until the answers say otherwise
        slots = self.slots if block.slots is None else block.slots
        try:
            answers = self._logs.append(self.dataset, [block.part(slot, author) for slot in slots])
        except Unavailable:
            block.touched = before
            raise
        good = {
            slot: answer.value
            for slot, answer in zip(slots, answers, strict=True)
            if isinstance(answer, Answer) and answer.kind in ("accepted", "same")
        }
        block.touched = before or bool(good) or any(isinstance(answer, OutcomeUnknown) for answer in answers)
        if len(good) == len(answers):
            block.offsets = {**block.offsets, **good}
            return True
        refused = {slot: answer for slot, answer in zip(slots, answers, strict=True) if slot not in good}
        for refusal in refused.values():
            if isinstance(refusal, BrokerError):
                raise refusal
        if any(isinstance(answer, Answer) and answer.kind == "reconcile" for answer in refused.values()):
            self.open()
            return False
        raise self._refused({slot: answer for slot, answer in refused.items() if isinstance(answer, Answer)}, block, author)

    def _refused(self, refused: Mapping[int, Answer], block: Block, author: Author) -> BrokerError:
        gaps = [int(answer.value) for answer in refused.values() if answer.kind == "gap"]
        if gaps:
            return Gap.between(author.producer, block.number, min(gaps))
        slot, answer = next(iter(refused.items()))
        if answer.kind == "reconcile":
            return Reconciling("Redis restarted meanwhile", of=self.dataset, hint="Append the same again")
        if answer.kind == "taken":
            return Conflict(
                "somebody else appends as this producer", of=author.producer, why=f"slot {slot} is at block {answer.value}",
                hint="Give each process its own name, or number the blocks yourself",
            )  # fmt: skip
        if answer.kind == "full":
            return Overloaded(
                "the change log is full", of=self.dataset, why=f"slot {slot} waits for its micro-batches",
                hint="Run broker worker --role microbatch, or wait and append the same again",
            )  # fmt: skip
        return Overloaded(
            "Redis is almost full", of=self.dataset, why="append stops at BROKER_MAX_MEMORY_RATIO of maxmemory",
            hint="Let micro-batches and consumers catch up, or raise maxmemory; then append the same again",
        )  # fmt: skip

    def _given_up(self, block: Block, author: Author, failure: Transient | None) -> Transient:
        why = str(failure) if failure else "Redis restarted again and again"
        if not block.touched and failure is not None:
            return failure
        number = f", block={block.number}" if author.client == ANYBODY else ""
        return OutcomeUnknown(
            "the block may be in the change log or not", of=f"{self.dataset} {author.producer} block {block.number}", why=why,
            hint=f"Append the same again{number}: what is there already is dropped",
        )  # fmt: skip


class _Sent(NamedTuple):
    """A block of a call, without its content."""

    digest: bytes
    number: int
    offsets: dict[int, str]

    @classmethod
    def of(cls, block: Block) -> Self:
        return cls(block.content.digest, block.number, block.offsets)


class Numbering:
    """Numbers the blocks of one producer for its client, and remembers what it could not bring to an end.

    The same call again after an error, in the thread where it failed, is the same blocks again, whatever others brought since.
    A call with other data first finishes the block before. Calls of one producer run one after the other: that is what keeps
    their order.
    """

    def __init__(self, delivery: Delivery, author: Author) -> None:
        self._delivery, self.author = delivery, author
        self._lock, self._last = Lock(), -1  # -1: not asked for yet
        self._rows_until = dict.fromkeys(delivery.slots, 0)
        self._unsettled: Block | None = None
        self._caller = 0  # the thread whose call is under way, though another of its own may bring a block in
        self._whose = 0  # the thread whose call the unsettled block is of
        self._sent: list[_Sent] = []  # what the call under way has brought in
        self._again: Iterator[_Sent] = iter(())
        self._failed: dict[int, list[_Sent]] = {}  # thread -> what its call that failed has brought in, the latest last
        self.used = time.monotonic()

    @property
    def last(self) -> int:
        """Number of the newest block; 0 before the first."""
        return max(self._last, 0)

    @property
    def settled(self) -> bool:
        """Whether no call that failed may come again."""
        return self._unsettled is None and not self._failed

    def idle(self, seconds: float) -> bool:
        """Whether no call was made for so long, and none is under way."""
        return not self._lock.locked() and time.monotonic() - self.used > seconds

    @contextmanager
    def call(self, deadline: float) -> Iterator[None]:
        """One call: blocks of a call that failed are not brought again when it comes again, unless Redis lost them since.

        Raises TimedOut while another call of this producer is under way.
        """
        if not self._lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise TimedOut(
                "another append of this producer is under way", of=self.author.producer, hint="Wait, or use two names"
            )
        try:
            self.used = time.monotonic()
            self._caller = get_ident()
            self._again, self._sent = iter(self._failed.pop(self._caller, ())), []
            yield
        except BaseException:
            self._remember(self._caller, [*self._sent, *self._again])  # also what it did not come to this time
            raise
        finally:
            self.used = time.monotonic()
            self._lock.release()

    def _remember(self, thread: int, sent: list[_Sent]) -> None:
        if sent:
            self._failed[thread] = sent
        if len(self._failed) > THREADS:
            del self._failed[next(iter(self._failed))]

    def append(self, content: Content, deadline: float) -> Block:
        """The call's next block. Raises as `Delivery.deliver`."""
        digest, before = content.digest, next(self._again, None)
        if before is not None and before.digest == digest:
            self._sent.append(before)
            block = Block(before.number, content, touched=True, offsets=before.offsets)
            self._bring_back(block, deadline)
            return block
        self._again = iter(())
        block = self._bring_next(content, deadline)
        self._sent.append(_Sent(digest, block.number, block.offsets))
        return block

    def _bring_next(self, content: Content, deadline: float) -> Block:
        if self._last < 0:
            self._last = self._begin()
        block, whose = self._unsettled, self._whose
        if block is not None and block.content != content:
            self._bring(block, deadline)
            if whose != self._caller:  # whose call was that may make it again
                self._remember(whose, [*self._failed.get(whose, ()), _Sent.of(block)])
            block = None
        elif block is not None:
            self._whose = self._caller  # who makes the call again, if another than made it first
        block = block or Block(self._last + 1, content)
        self._bring(block, deadline)
        return block

    def _bring_back(self, block: Block, deadline: float) -> None:
        """Into slots that lost it since. The others may be further already, and would take it for somebody else's."""
        marks = self._delivery.marks(self.author.producer)
        block.slots = [slot for slot, mark in marks.items() if mark < block.number]
        if block.slots:
            self._deliver(block, deadline)
            self._note(block)

    def _begin(self) -> int:
        """Behind what an earlier process under this name left: its last block may have come into some slots only."""
        marks = self._delivery.marks(self.author.producer)
        last = max(marks.values())
        self._delivery.fill(self.author, marks, last)
        return last

    def _bring(self, block: Block, deadline: float) -> None:
        try:
            self._deliver(block, deadline)
        except BaseException:  # also Ctrl-C: another block must not go by the number of one that may be in
            if block is not self._unsettled:
                self._whose = self._caller
            self._unsettled = block if block.touched else None
            self._last = max(self._last, block.number) if block.touched else self._last
            raise
        self._unsettled, self._last = None, max(self._last, block.number)
        self._note(block)

    def _note(self, block: Block) -> None:
        for slot in block.content.parts:
            self._rows_until[slot] = max(block.number, self._rows_until[slot])

    def _deliver(self, block: Block, deadline: float) -> None:
        """Over a gap of blocks that had no rows where they are missing, or whose loss was told: those are filled."""
        try:
            self._delivery.deliver(block, self.author, deadline)
        except Gap:
            marks = {slot: mark for slot, mark in self._delivery.marks(self.author.producer).items() if mark < block.number}
            lost = [slot for slot, mark in marks.items() if mark < self._rows_until[slot]]
            if lost:
                for slot in lost:
                    self._rows_until[slot] = marks[slot]  # told once; afterwards the producer goes on
                raise
            self._delivery.fill(self.author, marks, block.number - 1)
            self._delivery.deliver(block, self.author, deadline)
