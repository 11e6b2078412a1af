"""The sink port: where a replica's rows and its cursor live, and how both change in one transaction.

A sink is one table (or folder, or dict) of one replica. Rules of merging (design, section 5), the same in every sink:

- the newest order wins; an equal order goes to the later commit, so an arriving row replaces its equal; a null order is lowest;
- what is older than the row or the tombstone held is skipped and counted as `stale`;
- a delete removes the row and, where the dataset has order columns, leaves a tombstone (key, order, time) that keeps a late
  older upsert from bringing the row back; ones older than `tombstone_seconds` are cleaned in the next transaction whose changes
  were all committed later than that;
- without order columns the last change wins and no tombstones are kept.

Driver errors leave a sink only as `broker.errors` types: `Busy` (locked by somebody), `Unavailable`, `OutcomeUnknown` (a commit
without an answer: read the cursor), `BadData` and its kinds, `Conflict`, `Corrupt`, `Unsupported`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import pyarrow as pa

from broker.columnar.digest import ContentDigest
from broker.errors import Conflict, Fenced, InvalidSettings, NotFound, StaleBase
from broker.model.dataset import DatasetSpec, Schema

TOMBSTONES: Final = "__tombstones"
STEPS: Final = ("begun", "cursor", "rows", "committed")
"""What an `on_step` of an implementation is told, in this order but for Parquet, whose cursor comes behind the rows."""
RESERVED: Final = ("broker_", "sqlite_", "pg_", "duckdb_")
MAX_TABLE_BYTES: Final = 63 - len(TOMBSTONES)
"""Postgres cuts longer names without a word; the same limit everywhere keeps a replica movable."""


@dataclass(frozen=True, slots=True)
class SinkCursor:
    """What a replica holds: a version of a session through a selection. Version 0: taken, and nothing applied yet."""

    dataset: str
    version: int
    session: str
    selection: str
    fence: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """One transaction's worth: a whole replacement (`replace`) or the changes since the cursor, at most one per key.

    `schema`: the delivered columns, key and order among them; readers may lack nullable ones and hold narrower types. `deletes`
    and `tombstones` hold key and order columns. `files`: the same rows as plain, verified Parquet files, which a sink that can
    read those takes instead of `rows`. `repair`: the changes are right whatever order is held, and leave no tombstones.
    `since`: when the first of the changes was committed (seconds since the epoch). Readers are consumed.
    """

    spec: DatasetSpec
    schema: Schema
    replace: bool
    rows: pa.RecordBatchReader | None = None
    tombstones: pa.RecordBatchReader | None = None
    upserts: pa.RecordBatchReader | None = None
    deletes: pa.RecordBatchReader | None = None
    files: Sequence[Path] = ()
    repair: bool = False
    since: float | None = None

    def lapsed(self, now: float) -> float:
        """Tombstones laid up to then have lapsed: changes are compared as of their commit, however late they are read."""
        return min(now, now if self.since is None else self.since) - self.spec.tombstone_seconds


@dataclass(frozen=True, slots=True)
class Applied:
    """`rows` loaded by a replacement; else rows written (`upserts`), rows removed (`deletes`), changes too old (`stale`)."""

    rows: int = 0
    upserts: int = 0
    deletes: int = 0
    stale: int = 0


class Sink(Protocol):
    """Five methods; safe to call from several processes, of which one at a time gets through."""

    def cursor(self, name: str) -> SinkCursor | None:
        """Where replica `name` stands, or None. Raises Conflict when the place belongs to another replica, Busy."""
        ...

    def apply(self, name: str, batch: Batch, *, expect: SinkCursor | None, to: SinkCursor) -> Applied:
        """Rows and cursor in ONE transaction that begins with compare-and-set on the cursor (None: there is none yet).

        Raises Fenced (another fence holds it) or StaleBase (same fence, another position) with nothing changed. Not repeatable:
        a second call with the same arguments is StaleBase, which is what makes it exactly-once. After any error the sink holds
        the old state, except OutcomeUnknown: then it is the old or the new one, and `cursor` tells.
        """
        ...

    def take(self, name: str, expect: SinkCursor | None, fence: tuple[int, int]) -> None:
        """Move only the fence of the cursor, by the same compare-and-set: whoever holds an older one can no longer apply."""
        ...

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows, unordered; an empty table without columns when nothing was ever applied."""
        ...

    def close(self) -> None:
        """Release connections. Idempotent."""
        ...


@runtime_checkable
class Digesting(Protocol):
    """A sink that can digest its rows where they lie, so that they need not come into memory for it."""

    def digest(self) -> ContentDigest:
        """The content digest of the rows `read` gives."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What a sink remembers of its table: enough to alter it, and to read it back in the dataset's types."""

    key: tuple[str, ...]
    order: tuple[str, ...]
    schema: Schema

    @classmethod
    def of(cls, batch: Batch) -> Shape:
        batch.spec.check(batch.schema)
        return cls(batch.spec.key, batch.spec.order, batch.schema)

    def grown(self, batch: Batch) -> Shape:
        """The shape after a delta. Raises SchemaConflict where its columns do not fit, Conflict on another key or order."""
        if (self.key, self.order) != (batch.spec.key, batch.spec.order):
            raise Conflict("a delta with another key or order", of=str(batch.spec.dataset), hint="Reset the replica")
        return Shape(self.key, self.order, self.schema.merged(batch.schema, self.order))

    @property
    def guard(self) -> Schema:
        """Columns of deletes and tombstones: key and order."""
        wanted = (*self.key, *self.order)
        return Schema(columns=tuple(column for column in self.schema.columns if column.name in wanted))

    def chosen(self, names: Sequence[str]) -> Schema:
        """The columns of these names, in this order. Raises NotFound for one that is not there."""
        columns = {column.name: column for column in self.schema.columns}
        missing = [name for name in names if name not in columns]
        if missing:
            raise NotFound("no such column", of=", ".join(missing), why=f"the replica has {', '.join(columns)}")
        return Schema(columns=tuple(columns[name] for name in names))

    def to_json(self) -> str:
        return json.dumps({"key": self.key, "order": self.order, "schema": self.schema.model_dump(mode="json")})

    @classmethod
    def from_json(cls, text: str) -> Shape:
        fields = json.loads(text)
        return cls(tuple(fields["key"]), tuple(fields["order"]), Schema.model_validate(fields["schema"]))


def check_cursor(held: SinkCursor | None, expect: SinkCursor | None, fence: tuple[int, int], of: str) -> None:
    """The compare of compare-and-set. Raises Fenced or StaleBase when `held` is not `expect`, Fenced when `fence` is older."""
    if held is not None and held.fence != (expect.fence if expect else fence):
        raise Fenced("the replica is held by another fence", of=of, why=f"{held.fence} holds it", hint="Take it over or stop")
    if held != expect:
        raise StaleBase(
            "the replica moved", of=of, why=f"at {_at(held)}, expected {_at(expect)}", hint="Plan again from its cursor"
        )
    if held is not None and fence < held.fence:
        raise Fenced("an older fence cannot take the replica", of=of, why=f"{held.fence} holds it, {fence} is older")


def _at(cursor: SinkCursor | None) -> str:
    return f"version {cursor.version} of session {cursor.session or '-'}" if cursor else "nothing"


def taken(expect: SinkCursor | None, fence: tuple[int, int]) -> SinkCursor:
    """The cursor after `take`."""
    if expect is None:
        return SinkCursor("", 0, "", "", fence)
    return SinkCursor(expect.dataset, expect.version, expect.session, expect.selection, fence)


def check_table(table: str) -> str:
    """A table name this package may create. Raises InvalidSettings."""
    size = len(table.encode("utf-8", "replace"))
    if not table or size > MAX_TABLE_BYTES or any(ord(c) < 32 or ord(c) == 127 for c in table):
        raise InvalidSettings(
            "not a table name", of=repr(table)[:100], why=f"1 to {MAX_TABLE_BYTES} bytes, no control characters"
        )
    if table.lower().startswith(RESERVED) or table.lower().endswith(TOMBSTONES):
        raise InvalidSettings("a reserved table name", of=table, why=f"not {', '.join(RESERVED)}… and not …{TOMBSTONES}")
    return table


def nothing(step: str) -> None:
    """The default `on_step`: tests pass one that kills the process at a named step."""


def foreign(of: str) -> Conflict:
    return Conflict(
        "there is data that is not a replica", of=of, why="it would be replaced", hint="Choose another name, or drop it"
    )


def check_owner(owner: str, name: str, of: str) -> None:
    """Raises Conflict when the place belongs to another replica."""
    if owner != name:
        raise Conflict(
            "the place belongs to another replica", of=of, why=f"{owner!r} lives there",
            hint=f"Choose another place, or go on under its name: --name {owner}",
        )  # fmt: skip
