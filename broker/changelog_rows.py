"""From a caller's records to the parts of blocks: checked, in the dataset's types, split by key, each encoded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from typing import Final

import pyarrow as pa

from broker.catalog import Catalog
from broker.changelog_recent import Recent
from broker.columnar.blocks import encoded, split
from broker.columnar.intake import Accepted, Intake, accept, accept_deletes, settled
from broker.columnar.types import arrow_schema
from broker.errors import Conflict, Invalid, SchemaConflict
from broker.model.names import DatasetId
from broker.rules.batching import check_mixture
from broker.rules.blocks import Kind
from broker.rules.fold import State
from broker.settings import Settings

BLOCK_ROWS: Final = 65_536
BLOCK_BYTES: Final = 4 << 20
"""Of a block that the client cuts itself: what its micro-batcher reads at a time."""
NUMBERED_BYTES: Final = 32 << 20
"""Of a block that its producer numbered: it cannot be cut."""
ENTRY_BYTES: Final = 64
"""What an entry counts besides its payload (append.lua)."""
ALTERATIONS: Final = 64
"""Each lost race is another producer's column: more than a dataset ever gets at once."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a block holds: rows and payload of each slot that has any. Equal content is equal bytes, of one session.

    `session`: the dataset's when its columns were settled ('': any): what waits when that is over is in no version.
    """

    kind: Kind
    rows: int
    parts: dict[int, tuple[int, bytes]]
    session: str = ""

    @property
    def digest(self) -> bytes:
        """32 bytes that name this content."""
        found = sha256(f"{self.kind}{self.session}".encode())
        for slot, (rows, payload) in sorted(self.parts.items()):
            found.update(f"{slot}:{rows}:{len(payload)}:".encode())
            found.update(payload)
        return found.digest()


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in pieces of at most BLOCK_ROWS and about BLOCK_BYTES: a block each."""
    rows = max(1, min(BLOCK_ROWS, batch.num_rows * BLOCK_BYTES // max(batch.nbytes, 1)))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


class Shaper:
    """Makes contents of one dataset. Safe for threads."""

    def __init__(self, catalog: Catalog, dataset: DatasetId, settings: Settings, recent: Recent | None = None) -> None:
        self._catalog, self._dataset, self._settings = catalog, dataset, settings
        self._recent = recent or Recent(catalog)
        self._fit: set[str] = set()  # sessions that may have a change log

    def contents(self, data: Intake, kind: Kind) -> Iterator[Content]:
        """The data in blocks of at most BLOCK_ROWS and about BLOCK_BYTES, the same for the same data.

        Raises what `columnar.intake` does, Conflict (a dataset without order columns that takes snapshots, or whose session
        ends meanwhile), Invalid.
        """
        session, batches = self._opened(data, kind)
        for batch in batches:
            for piece in pieces(batch):
                yield self._content(kind, session, piece)

    def check(self, data: Intake, kind: Kind) -> None:
        """Raises what `contents` would raise of the data itself."""
        for _ in self._opened(data, kind)[1]:
            pass

    def content(self, data: Intake, kind: Kind) -> Content:
        """The data as one block, also when there is none. Raises as `contents`, and Invalid for too much of it."""
        batches, size = list[pa.RecordBatch](), 0
        session, opened = self._opened(data, kind)
        for batch in opened:
            batches.append(batch)
            size += batch.nbytes
            if size > NUMBERED_BYTES:
                raise Invalid(
                    "the block is too large", of=self._dataset, why=f"more than {NUMBERED_BYTES} bytes",
                    hint="Give it in several numbered blocks, or without a number",
                )  # fmt: skip
        whole = pa.Table.from_batches(batches).combine_chunks().to_batches() if batches else []
        return self._content(kind, session, whole[0]) if whole else Content(kind, 0, {}, session)

    def _content(self, kind: Kind, session: str, rows: pa.RecordBatch) -> Content:
        state = self._recent.state(self._dataset)
        if state.session != session:
            raise session_over(self._dataset)
        found = {slot: (part.num_rows, encoded(part)) for slot, part in split(rows, state.spec.key, self._settings.log_slots)}
        largest = max(len(payload) for _, payload in found.values()) if found else 0
        if largest + ENTRY_BYTES > self._settings.unbatched_bytes:
            raise Invalid(
                "a block is larger than its log may be", of=self._dataset,
                why=f"{largest} bytes, BROKER_UNBATCHED_BYTES is {self._settings.unbatched_bytes}",
                hint="Give smaller records or blocks, or raise it",
            )  # fmt: skip
        return Content(kind, rows.num_rows, found, session)

    def _opened(self, data: Intake, kind: Kind) -> tuple[str, Iterator[pa.RecordBatch]]:
        """The session whose types these batches have, and the batches."""
        state = self._recent.state(self._dataset)
        return state.session, self._batches(self._accept(state, data, kind), kind)

    def _batches(self, taken: Accepted, kind: Kind) -> Iterator[pa.RecordBatch]:
        """Before the first is given out, the dataset has the columns it needs."""
        full = (batch for batch in taken.batches if batch.num_rows)
        for first in full:
            self._settle(first.schema, whole=kind == "u")
            yield from chain([first], full)

    def _accept(self, state: State, data: Intake, kind: Kind) -> Accepted:
        if state.session not in self._fit:
            check_mixture(state)
            self._fit.add(state.session)
        if kind == "u":
            return accept(data, state.spec)
        if state.spec.columns is None:
            raise Invalid("nothing to delete from", of=self._dataset, why="no rows came yet", hint="Append rows first")
        return accept_deletes(data, state.spec, state.spec.columns)

    def _settle(self, columns: pa.Schema, whole: bool) -> None:
        """Let the dataset have these columns: what lies in the log fits its schema, now or when it was appended."""
        for _ in range(ALTERATIONS):
            state = self._recent.state(self._dataset)
            known = state.spec.columns
            if known is not None and (columns == arrow_schema(known) or settled(state.spec, columns, whole=whole) == known):
                return
            try:
                self._catalog.alter(self._dataset, settled(state.spec, columns, whole=whole))
                return
            except SchemaConflict:
                if self._catalog.state(self._dataset).spec.columns == known:
                    raise
        raise SchemaConflict("the schema keeps changing", of=self._dataset, hint="Let one producer settle it first")


def session_over(dataset: DatasetId) -> Conflict:
    """For changes of a session that is over."""
    return Conflict(
        "the dataset began a new session meanwhile", of=dataset, why="it was dropped and made anew, or altered by force",
        hint="Changes of the one before that no version holds are lost with it: append what belongs to the new one",
    )  # fmt: skip
