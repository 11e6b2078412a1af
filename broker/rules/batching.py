"""Micro-batches, decided without I/O: when one closes, which waiting ones a commit takes, and what the version then says.

A closed batch is the files made of change-log entries (after, until] of one log slot. It waits in the dataset's own slot of
Redis until somebody commits. Losing it there is harmless: the entries stay in the log until a version holds them.

Exactly once: a batch counts only while its `after` is what the head has consumed of its slot. `batches_of` makes that
comparison on the very head that the reservation then names (rules/publishing.py), so no two versions take one entry, and no
fence over log slots is needed: leases only keep two processes from doing the same work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from pydantic import Field

from broker.errors import Conflict
from broker.model.commit import Edge, File, Mark, NewVersion, SourceRange
from broker.model.dataset import Frozen
from broker.rules.blocks import UNNAMED
from broker.rules.correlation import first
from broker.rules.fold import State
from broker.settings import Settings

PRODUCER: Final = "changelog"
"""What a version made of a change log says of its producer."""

UNNAMED_MARK_SECONDS: Final = 3_600
"""Redis forgets marks of producers without a name after so long, too (backend/logs.py)."""

Reason = Literal["rows", "bytes", "age", "joined", "idle"]
"""Why a batch ended: its size, its age, with another slot of the dataset, or (marks alone) because nothing came after them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch is closed. `idle_ms`: marks alone wait so much longer for rows to travel with.

    `file_seconds`: older files are written anew rather than committed, well before they can be reserved no more.
    """

    rows: int
    bytes: int
    age_ms: float
    idle_ms: float
    file_seconds: float = 3_600.0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        age_ms = settings.max_age_seconds * 1000
        return cls(settings.batch_rows, settings.batch_bytes, age_ms, age_ms, settings.upload_max_age_seconds / 2)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What of one dataset waits in one log slot. `oldest_ms`: when its oldest entry came, by Redis' clock."""

    oldest_ms: float
    rows: int
    bytes: int


def closes(now_ms: float, backlog: Backlog, limits: Limits) -> Reason | None:
    """Why a batch is to be closed now; None: more may come first."""
    if backlog.rows >= limits.rows:
        return "rows"
    if backlog.rows and backlog.bytes >= limits.bytes:
        return "bytes"
    if now_ms < due_ms(backlog, limits):
        return None
    return "age" if backlog.rows else "idle"


def due_ms(backlog: Backlog, limits: Limits) -> float:
    """When it closes at the latest, also if nothing more comes."""
    return backlog.oldest_ms + limits.age_ms + (0 if backlog.rows else limits.idle_ms)


def reasons(now_ms: float, backlogs: Mapping[int, Backlog], limits: Limits) -> dict[int, Reason]:
    """Log slot -> why its batch of one dataset closes now. Once one closes, the others go along: one commit takes them all."""
    found = {slot: closes(now_ms, backlog, limits) for slot, backlog in backlogs.items()}
    return {slot: reason or "joined" for slot, reason in found.items()} if any(found.values()) else {}


def share_of(slots: int, processes: int) -> int:
    """How many log slots one of so many live processes serves."""
    return -(-slots // max(1, processes))


class Seen(NamedTuple):
    """A block as a log slot has it. `at`: when it was appended, seconds since the epoch."""

    producer: str
    block: int
    at: float


def marks_after(known: Mapping[str, Mark], seen: Iterable[Seen]) -> dict[str, Mark]:
    """The producers' marks behind these blocks, which follow on those `known`.

    Producers without a name are soon forgotten: nobody comes back under such a name, and every version names all marks.
    """
    marks = dict(known)
    for producer, block, at in seen:
        mark = marks.get(producer, Mark(0, 0))
        marks[producer] = Mark(max(block, mark.block), max(at, mark.at))
    newest = max((mark.at for mark in marks.values()), default=0)
    return {
        producer: mark
        for producer, mark in marks.items()
        if not producer.startswith(UNNAMED) or mark.at > newest - UNNAMED_MARK_SECONDS
    }


class Batch(Frozen):
    """A closed micro-batch: its range of the log, and the verified files that nobody names yet."""

    source: SourceRange
    session: str = Field(description="of the dataset whose schema the files fit")
    epoch: str = Field("", description="of the incarnation of Redis whose log was read")
    written_at: float = Field(description="start of the upload, seconds since the epoch")
    files: tuple[File, ...] = ()
    coalesced: int = Field(0, ge=0, description="changes that another of the same key replaced")

    @property
    def slot(self) -> int:
        return self.source.slot


def epoch_of(state: State) -> str:
    """The incarnation of Redis that the newest barrier let in."""
    return state.head.get("epoch", "")


def fits(state: State, batch: Batch) -> bool:
    """Whether it goes on exactly where the head ends, was made for its session (whose schema only grows), and its log still is.

    A Redis that lost its newest entries takes them anew from their producers: a batch that holds them must not count as well.
    """
    return batch.source.after == state.consumed(batch.slot) and (batch.session, batch.epoch) == (state.session, epoch_of(state))


def batches_of(state: State, waiting: Iterable[Batch]) -> list[Batch]:
    """The waiting batches that the next version takes, by log slot."""
    return sorted((batch for batch in waiting if fits(state, batch)), key=lambda batch: batch.slot)


def rows_of(batches: Iterable[Batch]) -> int:
    """Changes read, whatever coalesced."""
    return sum(batch.source.rows for batch in batches)


def blocks_of(batches: Iterable[Batch]) -> dict[str, int]:
    """Producer -> highest block that versions hold now, in the log slots of these batches; of many producers some."""
    found = {name: mark.block for batch in batches for name, mark in batch.source.marks.items()}
    return {name: found[name] for name in first(found)}


def version_of(state: State, taken: Sequence[Batch]) -> NewVersion | None:
    """One version with one edge of all batches; None when nothing changes but marks which nobody waits for any more.

    Over no version, rows are the snapshot, and deletes its tombstones: a late, older row must not bring a key back.
    """
    files = tuple(file for batch in taken for file in batch.files)
    if not files and not (state.offered and any(batch.source.closed == "idle" for batch in taken)):
        return None
    edge = Edge(base=state.version, version=state.version + 1, files=files) if state.offered else _first(state, files)
    system = {
        "producer": PRODUCER, "kind": edge.kind, "rows": str(edge.rows), "bytes": str(edge.bytes),
        "changes": str(sum(batch.source.rows for batch in taken)),
        "coalesced": str(sum(batch.coalesced for batch in taken)),
    }  # fmt: skip
    columns = state.spec.columns
    return NewVersion(
        edge=edge, position=state.position, sources=tuple(batch.source for batch in taken),
        schema_id=columns.id if columns else "", system=system,
    )  # fmt: skip


def _first(state: State, files: tuple[File, ...]) -> Edge:
    rows = [file.model_copy(update={"role": "rows"}) for file in files if file.role == "upserts"]
    dead = [file.model_copy(update={"role": "tombstones"}) for file in files if file.role == "deletes" and state.spec.order]
    return Edge(base=None, version=state.version + 1, files=(*rows, *dead))


def check_mixture(state: State) -> None:
    """Raises Conflict for a dataset without an order that stands on a published snapshot.

    There nothing tells whether a change is older than the snapshot (design, section 3).
    """
    if not state.offered or state.spec.order:
        return
    snapshot = state.snapshot
    known = snapshot is not None and str(snapshot.version) in state.tables["versions"]
    made = state.info(snapshot.version) if snapshot and known else None
    if made is not None and made.base is None and made.system.get("producer") != PRODUCER:
        raise Conflict(
            "the dataset takes snapshots, so it takes no change log", of=state.dataset,
            why=f"version {made.version} is a published snapshot, and no order column says which change is newer",
            hint="Create the dataset with an order column, or publish deltas",
        )  # fmt: skip
