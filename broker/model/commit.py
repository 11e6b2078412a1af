"""The commit log's words: file, edge, record. A record's canonical bytes are its JSON; its identity is their SHA-256."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

from pydantic import Field, ValidationError

from broker.errors import Corrupt, Invalid
from broker.model.dataset import DatasetSpec, Frozen
from broker.model.names import Name

RECORD_FORMAT: Final = 1
GENESIS: Final = "0" * 64
"""What the first record names as its predecessor."""

Role = Literal["rows", "upserts", "deletes", "tombstones"]
EdgeKind = Literal["snapshot", "delta", "roll-up"]
PAST: Final = 3
"""Versions a channel named before: so far a rollback goes back, and retention keeps them readable."""
Why = Literal["promoted", "rolled-back", "released"]
Position = Annotated[Any, Field(description="opaque JSON from the producer: watermark, LSN")]


class Fence(NamedTuple):
    """(epoch, counter): ever growing; the right to write is checked by equality at the moment of effect."""

    epoch: int
    counter: int


class File(Frozen):
    """An immutable object. `key` is the full store key; sizes are bytes.

    Nothing here tells of a record's values: what is sealed stays, and a key that is erased must leave no trace.
    """

    role: Role
    key: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    rows: int = Field(ge=0)
    format: Literal["parquet", "jsonl", "csv", "arrow"] = "parquet"
    partition: int = Field(0, ge=0)
    since: int | None = Field(
        None, ge=0, description="tombstones: no later their deletes were committed (epoch seconds); None: with the edge"
    )
    buckets: tuple[int, int] | None = Field(
        None,
        exclude_if=lambda buckets: buckets is None,
        description="first and last key bucket its rows may be of (columnar/digest.py); None, then left out: any",
    )
    low: str | None = Field(None, exclude=True, repr=False, description="in records of older builds; never written")
    high: str | None = Field(None, exclude=True, repr=False, description="likewise")

    def may_hold(self, bucket: int | None) -> bool:
        """Whether a key of this bucket (None: of an unknown one) can be in it."""
        return bucket is None or self.buckets is None or self.buckets[0] <= bucket <= self.buckets[1]


Hop: TypeAlias = tuple[int | None, int, int, bool]
"""An edge for the planner: base, version, weight, settled. Weights add up and compare like (bytes, edges); the lowest bit is
free."""


def hop_of(base: int | None, version: int, size_bytes: int, settled: bool = False) -> Hop:
    return base, version, (size_bytes << 32) + 2, settled


class Edge(Frozen):
    """Files that take a replica from version `base` (None: from nothing) to `version`.

    A roll-up that is `settled` holds no change that came late (rules/levels.py, `making_room`).
    """

    base: int | None = Field(None, ge=0)
    version: int = Field(ge=1)
    files: tuple[File, ...] = ()
    settled: bool = Field(False, exclude_if=lambda settled: not settled, description="left out where it does not hold")

    @property
    def kind(self) -> EdgeKind:
        if self.base is None:
            return "snapshot"
        return "delta" if self.base == self.version - 1 else "roll-up"

    @cached_property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @cached_property
    def hop(self) -> Hop:
        return hop_of(self.base, self.version, self.bytes, self.settled)

    @property
    def rows(self) -> int:
        """Rows of content: tombstones do not count."""
        return sum(file.rows for file in self.files if file.role != "tombstones")

    def of_files(self, files: tuple[File, ...]) -> Edge:
        """The same edge in other files."""
        return Edge(base=self.base, version=self.version, files=files, settled=self.settled)

    def of_role(self, role: Role) -> tuple[File, ...]:
        return tuple(file for file in self.files if file.role == role)


def checked_version(version: int) -> int:
    """The number, if it can be a version's. Raises Invalid."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise Invalid("not a version", of=repr(version)[:80], why="versions are 1, 2, 3, …")
    return version


class Create(Frozen):
    kind: Literal["create"] = "create"
    session: str
    spec: DatasetSpec


class Alter(Frozen):
    """The whole spec after the change. A breaking change names a new session."""

    kind: Literal["alter"] = "alter"
    spec: DatasetSpec
    session: str | None = None


class Drop(Frozen):
    kind: Literal["drop"] = "drop"


class Mark(NamedTuple):
    """The highest block accepted from a producer in one log slot, and when it was (seconds since the epoch)."""

    block: int
    at: float


class SourceRange(Frozen):
    """Change-log entries (after, until] of one log slot that a version consumed, with the producers' marks at `until`.

    `closed` says why the batch ended there (rows, bytes, age, idle), so that a replay gives the same content.
    """

    slot: int = Field(ge=0)
    after: str
    until: str
    marks: dict[str, Mark] = Field(default_factory=dict)
    rows: int = Field(0, ge=0, description="changes read; those that a later one of the same key replaced are among them")
    closed: str = ""


class NewVersion(Frozen):
    """A new version with the one edge that leads to it."""

    kind: Literal["version"] = "version"
    edge: Edge
    rows_total: int | None = Field(None, description="rows of the whole state, where the producer of the edge knew")
    position: Position = None
    production: str | None = Field(None, description="the flight that made it: how a take-over knows its work is done")
    confirmed_at: float | None = Field(None, description="start of the production: what max_staleness counts from")
    sources: tuple[SourceRange, ...] = ()
    schema_id: str = ""
    system: dict[str, str] = Field(default_factory=dict)
    custom: dict[str, str] = Field(default_factory=dict)


class NewEdge(Frozen):
    """A roll-up or snapshot between existing versions, by compaction, or an edge in other files, by erasure: never a version.

    `erased_until`: an erasure took a delete out of an edge that ends there. Who comes from below it begins anew: no road would
    let the key go (0: it stays where it was).
    """

    kind: Literal["edge"] = "edge"
    edge: Edge
    erased_until: int = Field(0, ge=0, exclude_if=lambda version: version == 0)


class Hold(Frozen):
    kind: Literal["hold"] = "hold"
    name: str
    version: int
    until: float | None = None
    why: str = ""

    def stands(self, now: float) -> bool:
        """Whether it still keeps its version, at `now` (seconds since the epoch)."""
        return self.until is None or self.until > now


class Retire(Frozen):
    """Edges no longer offered; their files go `result_seconds` + 1 h later. No edge touches versions up to `versions_until`.

    `versions`, closed ranges, and `productions` are forgotten: the log tells of them, the state does no more. Roll-ups of
    versions up to `rolled_until`, and settled ones up to `settled_until`, are made no more (0: they stay where they were).
    """

    kind: Literal["retire"] = "retire"
    edges: tuple[tuple[int | None, int], ...] = ()
    files: tuple[str, ...] = ()
    versions_until: int = 0
    versions: tuple[tuple[int, int], ...] = ()
    productions: tuple[str, ...] = ()
    rolled_until: int = Field(0, ge=0, exclude_if=lambda version: version == 0)
    settled_until: int = Field(0, ge=0, exclude_if=lambda version: version == 0)


class Barrier(Frozen):
    """Closes the log to every writer of an older incarnation of Redis: what they reserved, they can no longer seal."""

    kind: Literal["barrier"] = "barrier"
    run_id: str
    epoch: int


class Point(NamedTuple):
    """A version, and the session in which it is readable."""

    version: int
    session: str


class Move(Frozen):
    """Where a channel goes for one dataset. `past`: what a rollback from there leads to, the latest first.

    `left`: the version a rollback left. It is no part of `past`: nobody rolls back to what was found bad.
    """

    version: int = Field(ge=1)
    session: str
    past: tuple[Point, ...] = Field((), max_length=PAST)
    left: Point | None = None

    @property
    def point(self) -> Point:
        return Point(self.version, self.session)


class Announce(Frozen):
    """What a channel names from now on, by dataset name: one, or several of a tenant's domain at one moment."""

    kind: Literal["announce"] = "announce"
    channel: Name
    moves: dict[Name, Move] = Field(min_length=1)
    why: Why = "promoted"


Body = Annotated[Create | Alter | Drop | NewVersion | NewEdge | Hold | Retire | Barrier | Announce, Field(discriminator="kind")]


class Record(Frozen):
    """One sealed entry of a dataset's commit log. `time` is seconds since the epoch by the writer's clock, for people."""

    format: Literal[1] = RECORD_FORMAT
    seq: int = Field(ge=1)
    previous: str
    write_id: str
    time: float
    producer: str = ""
    fence: Fence | None = None
    body: Body

    def to_bytes(self) -> bytes:
        """Canonical bytes: what is sealed, hashed and chained. Made once; afterwards only the sealed bytes count."""
        return self.model_dump_json(exclude_defaults=False).encode()


def digest(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def parse_record(data: bytes, of: str) -> Record:
    """Raises Corrupt for anything but a record of a known format."""
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise Corrupt(
            "not a commit record of format 1", of=of, why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            hint="It was damaged, or written by a newer broker: upgrade this one",
        ) from None  # fmt: skip
