"""A request for data, its states, and its one terminal answer, the completion."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from secrets import token_hex
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from broker.errors import InvalidRequest
from broker.model.attributes import Attributes
from broker.model.commit import Edge, File
from broker.model.dataset import ColumnName, Frozen
from broker.model.names import DatasetId, Name

Format = Literal["parquet", "jsonl", "csv", "arrow"]
Mode = Literal["auto", "snapshot", "delta"]
Priority = Literal["high", "normal", "low"]
ResetReason = Literal["new-session", "too-old", "replaced", "corrupt", "filter-changed", "rolled-back", "asked"]
PRIORITIES: Final[tuple[Priority, ...]] = ("high", "normal", "low")


class State(StrEnum):
    """queued -> running -> completed | failed | cancelled | expired; running -> queued on retry."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


def _listed(columns: object) -> object:
    """One column may be given by its name alone, like a key."""
    return (columns,) if isinstance(columns, str) else columns


def _distinct(columns: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if columns is not None and len(set(columns)) < len(columns):
        twice = sorted({name for name in columns if columns.count(name) > 1})
        raise InvalidRequest("a column is asked for twice", of=", ".join(twice)[:200], hint="Name each once")
    return columns


class Selection(Frozen):
    """Which rows and columns: `where` is the canonical text of a predicate. Key and order columns are always delivered."""

    where: str | None = None
    columns: tuple[ColumnName, ...] | None = None

    @property
    def everything(self) -> bool:
        return self.where is None and self.columns is None

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits; equal for equal selections, in whatever order columns are named. `all` for everything."""
        if self.everything:
            return "all"
        columns = None if self.columns is None else sorted(set(self.columns))
        return hashlib.sha256(json.dumps([self.where, columns]).encode()).hexdigest()[:16]


class Cursor(Frozen):
    """What a consumer holds: a version of a session through a selection. None: as now (session), as asked (selection)."""

    version: int = Field(ge=0)
    session: str | None = Field(None, max_length=64)
    selection: str | None = Field(None, max_length=64)

    def __str__(self) -> str:
        return f"{self.version}~{self.session or ''}~{self.selection or ''}"

    @classmethod
    def parse(cls, value: object) -> object:
        """An int, the text of a cursor, or fields. Raises InvalidRequest."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            return value
        number, _, rest = str(value).partition("~")
        session, _, selection = rest.partition("~")
        if not number.isascii() or not number.isdigit() or len(number) > 18:
            raise InvalidRequest("not a cursor", of=repr(value)[:80], why="a version number or a completion's cursor is wanted")
        return cls(version=int(number), session=session or None, selection=selection or None)


class Request(Frozen):
    """A metadata object without data. `deadline` counts in seconds from submission; `max_staleness` None: always ask."""

    dataset: DatasetId
    target: Name
    since: Annotated[Cursor | None, BeforeValidator(Cursor.parse)] = None
    where: str | None = None
    columns: Annotated[tuple[ColumnName, ...] | None, BeforeValidator(_listed), AfterValidator(_distinct)] = Field(
        None, min_length=1
    )
    format: Format = "parquet"
    mode: Mode = "auto"
    max_staleness: float | None = Field(None, ge=0, allow_inf_nan=False)
    deadline: float | None = Field(None, allow_inf_nan=False)
    priority: Priority = "normal"
    idempotency_key: str | None = Field(None, min_length=1, max_length=200)
    attributes: Attributes = Field(default_factory=dict)

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Self:
        """Raises InvalidRequest that names the field."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidRequest(
                "request is invalid", of=".".join(map(str, first["loc"])), why=first["msg"], hint="See the request's reference"
            ) from None

    @property
    def selection(self) -> Selection:
        return Selection(where=self.where, columns=self.columns)

    @property
    def body_hash(self) -> str:
        """Equal for requests that ask the same: what an idempotency key is compared by."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Completion(Frozen):
    """The terminal answer. Times are seconds since the epoch. `edges` are applied in order; None fields: it did not complete.

    mode `snapshot`: replace what you hold; `delta`: apply to `since`; `unchanged`: you hold it already. `columns` as asked.
    """

    request: str
    dataset: DatasetId
    target: Name
    state: State
    version: int | None = None
    cursor: str | None = None
    mode: Literal["snapshot", "delta", "unchanged"] | None = None
    reset_reason: ResetReason | None = None
    format: Format = "parquet"
    columns: tuple[ColumnName, ...] | None = None
    edges: tuple[Edge, ...] = ()
    expires_at: float | None = None
    error: dict[str, str] | None = None
    attempts: int = 0
    attributes: dict[str, str] = Field(default_factory=dict)

    @property
    def files(self) -> tuple[File, ...]:
        return tuple(file for edge in self.edges for file in edge.files)

    @property
    def rows(self) -> int:
        return sum(edge.rows for edge in self.edges)

    @property
    def bytes(self) -> int:
        return sum(edge.bytes for edge in self.edges)


def new_id(slot: str) -> str:
    """A request or flight id: `domain.shard.` + 12 hex digits of milliseconds + 20 random ones; sorts by time of birth."""
    return f"{slot}.{time.time_ns() // 1_000_000:012x}{token_hex(10)}"


def slot_of(id: str) -> str:
    """The `domain.shard` of an id. Raises InvalidRequest."""
    slot, _, tail = id.rpartition(".")
    domain, _, shard = slot.rpartition(".")
    if len(tail) != 32 or not shard.isdigit() or not domain:
        raise InvalidRequest("not a request id", of=repr(id)[:100], why="it must be domain.shard.<32 hex digits>")
    return slot


def born_at(id: str) -> float:
    """Seconds since the epoch at which the id was made."""
    return int(id.rpartition(".")[2][:12], 16) / 1000
