"""Closing a micro-batch: change-log entries read, coalesced and written as files, with the range and marks they stand for."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from broker.backend.logs import FIRST_READ, LogEntry, Logs
from broker.catalog import Catalog
from broker.columnar.batch import BatchWriter, Writing
from broker.columnar.blocks import decoded
from broker.columnar.coalesce import Changes
from broker.errors import SchemaConflict, StaleBase
from broker.model.commit import SourceRange
from broker.model.dataset import DatasetSpec, Schema
from broker.model.names import DatasetId
from broker.publication import Publication
from broker.rules.batching import PRODUCER, Batch, Limits, Reason, Seen, epoch_of, marks_after
from broker.rules.fold import State
from broker.rules.steps import OnStep, nothing

W = TypeVar("W")
log = logging.getLogger("broker.microbatcher")
OPENED: Final = 256
"""Files that are open at once, two a log slot: a process may have 1,024."""
SMALL_BYTES: Final = 1 << 20
"""Of one dataset: read in one round trip."""
First: TypeAlias = Mapping[tuple[DatasetId, int], Sequence[LogEntry]]
"""Dataset and log slot -> its first entries, where they were read already."""
ALTER_TRIES: Final = 3
"""Others may make the schema grow at the same moment."""


@dataclass
class Taken:
    """Entries of one slot behind what is consumed, up to a batch's limits.

    Those of sessions that are over are passed over; `over_until`: the last of them before any other (''): none.
    """

    until: str = ""
    rows: int = 0
    bytes: int = 0
    seen: list[Seen] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    over_until: str = ""
    over_rows: int = 0
    over_bytes: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing came of the session that is."""
        return self.until == self.over_until

    def add(self, entry: LogEntry) -> None:
        self._note(entry)
        self.rows += entry.rows
        self.bytes += len(entry.payload or b"")
        if entry.payload is not None:
            self.changes.append(Changes(entry.kind == "d", decoded(entry.payload, entry.id)))

    def pass_over(self, entry: LogEntry) -> None:
        if self.empty:
            self.over_until = entry.id
        self._note(entry)
        self.over_rows += entry.rows
        self.over_bytes += len(entry.payload or b"")

    def _note(self, entry: LogEntry) -> None:
        self.until = entry.id
        self.seen.append(Seen(entry.producer, entry.block, entry.at_ms / 1000))


def portions(wanted: Iterable[tuple[W, int, Mapping[int, Reason]]]) -> Iterator[list[tuple[W, Mapping[int, Reason]]]]:
    """Of what is to be closed (for whom, bytes, log slots), what is open at once.

    Of small ones up to OPENED files, of a large one a log slot by itself: memory is bounded by one batch of one log slot.
    """
    portion, opened = list[tuple[W, Mapping[int, Reason]]](), 0
    for work, size, slots in wanted:
        if size > SMALL_BYTES:
            for slot, reason in slots.items():
                yield [(work, {slot: reason})]
            continue
        if portion and opened + 2 * len(slots) > OPENED:
            yield portion
            portion, opened = [], 0
        portion.append((work, slots))
        opened += 2 * len(slots)
    if portion:
        yield portion


@dataclass(frozen=True, slots=True)
class Closing:
    """A batch whose files are encoded, not complete (`writing` None: it has none)."""

    batch: Batch
    spec: DatasetSpec
    writing: Writing | None = None


class Closer:
    """Makes batches; decides nothing about which of them count. `limits` say how much one holds."""

    def __init__(
        self, logs: Logs, catalog: Catalog, writer: BatchWriter, publication: Publication, limits: Limits,
        on_step: OnStep = nothing,
    ) -> None:  # fmt: skip
        self._logs, self._catalog, self._writer, self._publication = logs, catalog, writer, publication
        self.limits, self._on_step = limits, on_step

    def first(self, wanted: Iterable[tuple[State, Collection[int]]]) -> First:
        """What lies behind the ends of these datasets' log slots, read together: for those in which little waits."""
        after = {(DatasetId(state.dataset), slot): state.consumed(slot) for state, slots in wanted for slot in slots}
        return self._logs.first(after) if after else {}

    def close_all(self, state: State, closing: Mapping[int, Reason], first: First) -> list[Closing]:
        """The batches behind what `state` has consumed of log slots, as far as there is anything, all of them or none.

        Raises SchemaConflict, BadData (a change fits the dataset no more), StaleBase (a new session began), Corrupt,
        Unavailable.
        """
        dataset, closed = DatasetId(state.dataset), list[Closing]()
        with ExitStack() as undone:
            for slot, reason in closing.items():
                one = self._close(state, slot, reason, first.get((dataset, slot)))
                if one is not None:
                    closed.append(one)
                    undone.callback(_drop, one)
            undone.pop_all()
        return closed

    def complete(self, closed: Sequence[Closing]) -> list[Batch]:
        """Make the batches' files complete, and the schema theirs. Raises as `close_all`; what is left then is dropped."""
        with ExitStack() as undone:
            for one in closed:
                undone.callback(_drop, one)
            return [self._completed(one) for one in closed]

    def clear(self, dataset: DatasetId, slots: Iterable[int]) -> bool:
        """Take out what lies at the front of log slots from sessions that are over. -> whether anything did."""
        state, cleared = self._catalog.known(dataset), False
        for slot in slots if state.seq else ():
            taken = self._take(state, self._entries(state, slot, None))
            self._pass_over(state, slot, taken)
            cleared = cleared or bool(taken.over_until)
        return cleared

    def _close(self, state: State, slot: int, reason: Reason, first: Sequence[LogEntry] | None) -> Closing | None:
        """The batch behind what `state` has consumed of a log slot; None: nothing is there.

        `first`: the first entries, where they were read already; fewer than FIRST_READ are all.
        """
        written_at, taken = time.time(), self._take(state, self._entries(state, slot, first))
        self._pass_over(state, slot, taken)
        if taken.empty:
            return None
        self._on_step("read")
        source = SourceRange(
            slot=slot, after=state.consumed(slot), until=taken.until, marks=marks_after(state.marks(slot), taken.seen),
            rows=taken.rows, closed=reason,
        )  # fmt: skip
        batch = Batch(source=source, session=state.session, epoch=epoch_of(state), written_at=written_at)
        return Closing(batch, state.spec, self._writer.write(state.spec, taken.changes, slot) if taken.changes else None)

    def _completed(self, closing: Closing) -> Batch:
        if closing.writing is None:
            return closing.batch
        written = closing.writing.commit()
        self._publication.verify(written)
        self._grow(closing.spec, written.schema)
        return closing.batch.model_copy(update={"files": written.files, "coalesced": written.stale})

    def _take(self, state: State, entries: Iterable[LogEntry]) -> Taken:
        taken, over = Taken(), dict[str, bool]()
        for entry in entries:
            if entry.session not in over:
                over[entry.session] = self._over(state, entry.session)
            if over[entry.session]:
                taken.pass_over(entry)
                continue
            taken.add(entry)
            if taken.rows >= self.limits.rows or taken.bytes >= self.limits.bytes:
                break
        return taken

    def _over(self, state: State, session: str) -> bool:
        """Whether the session of an entry that was read before is over: none comes back. Raises StaleBase for a newer one."""
        if session in ("", state.session):
            return not state.exists
        now = self._catalog.known(DatasetId(state.dataset))
        if now.exists and now.session == session:
            raise StaleBase("the dataset began a new session", of=state.dataset, hint="The next pass takes what waits")
        return True

    def _pass_over(self, state: State, slot: int, taken: Taken) -> None:
        """What no version may hold uses up no budget of the log, and is told."""
        if taken.over_until:
            self._logs.discard(DatasetId(state.dataset), slot, taken.over_until)
        if taken.over_rows:
            text = f"{taken.over_rows} changes in log slot {slot} belong to a session that is over"
            log.warning("%s: %s", state.dataset, text)
            data = {
                "version": state.version + 1, "stays": state.offered, "kind": "delta", "rows": taken.over_rows,
                "bytes": taken.over_bytes, "production": PRODUCER, "findings": [{"rule": "session", "text": text}],
            }  # fmt: skip
            self._catalog.tell(DatasetId(state.dataset), "broker.dataset.refused", f"refused/{slot}/{taken.until}", data)

    def _entries(self, state: State, slot: int, first: Sequence[LogEntry] | None) -> Iterator[LogEntry]:
        after = state.consumed(slot)
        if first is not None:
            yield from first
            if len(first) < FIRST_READ:
                return
            after = first[-1].id
        yield from self._logs.entries(DatasetId(state.dataset), slot, after)

    def _grow(self, spec: DatasetSpec, schema: Schema) -> None:
        """Make the dataset's schema hold what the files have, before anybody may commit them. Raises SchemaConflict."""
        tries, known = ALTER_TRIES, spec.columns
        while known != (wanted := known.merged(schema, spec.order) if known else schema):
            tries -= 1
            try:
                known = self._catalog.alter(spec.dataset, wanted).spec.columns
            except SchemaConflict:
                known = self._catalog.state(spec.dataset).spec.columns
                if not tries:
                    raise


def _drop(closing: Closing) -> None:
    """Idempotent, and nothing behind a commit."""
    if closing.writing is not None:
        closing.writing.drop()
