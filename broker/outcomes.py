"""What a producer is asked, and what it may answer.

A producer gives the whole dataset (`Snapshot`), or all that changed since the newest version (`Delta`), or says `Unchanged`;
or it gives an iterator whose items are all `Snapshot`s or all `Delta`s, each with one batch of the rows, so that the whole
is never in memory. Returning None is an error: forgetting a `return` must not look like "nothing changed".

**Positions.** `position` is opaque JSON that comes back as `since.position`. It may be a callable without arguments: it is
called by `resolve_position` once the data was read to its end, for what is known only then. An iterator's position is the
last one given; its attributes are those of the first item.

**Failures while streaming.** Rows pass through Arrow and DuckDB, which turn a producer's exception into their own. So
`outcome_of` wraps iterators in a `Guarded`, and `failure_of(outcome, error)` gives back what really went wrong.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyarrow as pa

from broker.columnar.intake import Intake, accept_deletes, reader_of
from broker.columnar.scratch import disk_errors
from broker.columnar.types import schema_of
from broker.errors import AttemptFailed, BrokerError, Invalid, SchemaConflict
from broker.model.attributes import check_attributes
from broker.model.dataset import DatasetSpec

MAX_POSITION_BYTES: Final = 65_536
"""A position travels in every commit record and projection: a note, not a place for data."""


@dataclass(frozen=True, slots=True)
class Since:
    """The newest version the broker has, and what the producer noted with it."""

    version: int
    position: Any = None


@dataclass(frozen=True, slots=True)
class ProductionRequest:
    """What a producer is asked: the dataset as it is, for all requests that wait for it.

    It carries no `where`, `columns`, format or attributes: those are each request's own, and apply after the seal.
    """

    dataset: str
    spec: DatasetSpec


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole dataset. Over an existing version it is committed as its difference: an absent key is a delete."""

    data: Intake
    position: Any | Callable[[], Any] = None
    attributes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_attributes(self.attributes, "Snapshot")


@dataclass(frozen=True, slots=True)
class Delta:
    """Everything changed since `since.version`: whole rows, and keys (with order columns, where the dataset has them)."""

    upserts: Intake | None = None
    deletes: Intake | None = None
    position: Any | Callable[[], Any] = None
    attributes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_attributes(self.attributes, "Delta")


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Nothing changed since `since.version`. A Delta without rows says the same."""

    position: Any = None


Outcome: TypeAlias = Snapshot | Delta | Unchanged


# --- what a producer returned


class Guarded:
    """An iterator that remembers what broke it: a producer's own error survives its way through Arrow and DuckDB."""

    def __init__(self, items: Iterable[Any], of: str) -> None:
        self._items, self._of = iter(items), of
        self.failure: BrokerError | None = None

    def __iter__(self) -> Guarded:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._items)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = attempt_failed(error, self._of)
            raise self.failure from error

    def close(self) -> None:
        """End a generator at once, so that what it holds open (a connection, a file) is freed; idempotent."""
        close = getattr(self._items, "close", None)
        if callable(close):
            close()


def attempt_failed(error: Exception, of: str) -> BrokerError:
    """A typed error as it is; anything else a producer raised as AttemptFailed, which is retried."""
    if isinstance(error, BrokerError):
        return error
    return AttemptFailed("the producer raised", of=of, why=f"{type(error).__name__}: {error}"[:1000])


def failure_of(outcome: Outcome, error: Exception) -> BrokerError:
    """What really went wrong when reading `outcome` ended in `error`: the producer's own error where there is one."""
    for guard in _guards(outcome):
        if guard.failure is not None:
            return guard.failure
    return attempt_failed(error, "reading what the producer gave")


def close(outcome: Outcome) -> None:
    """Free what the outcome's iterators hold open, after success or failure; idempotent."""
    for guard in _guards(outcome):
        guard.close()


def _guards(outcome: Outcome) -> list[Guarded]:
    match outcome:
        case Snapshot(data=data):
            sides = [data]
        case Delta(upserts=upserts, deletes=deletes):
            sides = [upserts, deletes]
        case _:
            sides = []
    return [side for side in sides if isinstance(side, Guarded)]


def attributes_of(outcome: Outcome) -> dict[str, str]:
    """What the version is told to carry; nothing where there is no version."""
    return {} if isinstance(outcome, Unchanged) else outcome.attributes


def resolve_position(outcome: Outcome) -> Any:
    """The position as plain JSON; call it once the outcome's data was read to its end. Raises Invalid."""
    return checked_position(outcome.position() if callable(outcome.position) else outcome.position)


def checked_position(value: object) -> Any:
    """As plain JSON. Raises Invalid."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Invalid("a position must be JSON", of=type(value).__name__, why=str(error)) from None
    if len(text) > MAX_POSITION_BYTES:
        raise Invalid("a position is too long", of=f"{len(text)} bytes", why=f"at most {MAX_POSITION_BYTES}")
    return json.loads(text)


def outcome_of(value: object, of: str, spec: DatasetSpec) -> Outcome:
    """One value for whatever a producer returned; `of` names the producer in errors.

    An iterator of Snapshots stays a stream. An iterator of Deltas is read to its end, into unlinked temporary files on disk:
    its two sides go on separately, and neither may wait in memory. Raises Invalid for any other type.
    """
    if isinstance(value, Iterator):
        return _of_iterator(Guarded(value, of), of, spec)
    match value:
        case Snapshot():
            return replace(value, data=_guarded(value.data, of))
        case Delta(upserts=None, deletes=None, position=position):
            return Unchanged(position)
        case Delta():
            return replace(value, upserts=_guarded(value.upserts, of), deletes=_guarded(value.deletes, of))
        case Unchanged():
            return value
        case _:
            raise _wrong_type("returned", value, of)


def _guarded(data: Intake, of: str) -> Intake:
    is_stream = isinstance(data, Iterator) and not hasattr(data, "__arrow_c_stream__") and not isinstance(data, Guarded)
    return Guarded(data, of) if is_stream else data


def _wrong_type(did: str, value: object, of: str) -> Invalid:
    return Invalid(
        f"the producer {did} a {type(value).__name__}", of=of, why="Snapshot, Delta, Unchanged or an iterator is wanted",
        hint="Wrap the rows: return Snapshot(rows); when nothing changed: return Unchanged()",
    )  # fmt: skip


def _of_iterator(items: Guarded, of: str, spec: DatasetSpec) -> Outcome:
    first = next(items, None)
    match first:
        case Snapshot():
            return _stream(chain([first], items), first, of, spec)
        case Delta():
            return _collect(chain([first], items), first, of, spec)
        case None:
            raise Invalid(
                "the producer's iterator was empty", of=of, why="neither a snapshot nor a delta",
                hint="Yield one Snapshot or Delta (it may have no rows), or return Unchanged()",
            )  # fmt: skip
        case _:
            raise _wrong_type("yielded", first, of)


def _stream(items: Iterable[object], first: Snapshot, of: str, spec: DatasetSpec) -> Snapshot:
    last = _LastPosition()
    pieces = (piece.data for piece in last.passing(items, Snapshot, of))
    return Snapshot(Guarded(_batches(pieces, spec, reader_of), of), last.resolve, first.attributes)


def _collect(items: Iterable[object], first: Delta, of: str, spec: DatasetSpec) -> Outcome:
    last, upserts, deletes = _LastPosition(), Spool(), Spool()
    for piece in last.passing(items, Delta, of):
        if piece.upserts is not None:
            upserts.extend(_batches([piece.upserts], upserts.shape(spec), reader_of))
        if piece.deletes is not None:
            deletes.extend(_batches([piece.deletes], deletes.shape(spec), _deletes_reader))
    return outcome_of(Delta(upserts.reader(), deletes.reader(), last.resolve, first.attributes), of, spec)


def _deletes_reader(data: Intake, spec: DatasetSpec) -> pa.RecordBatchReader:
    taken = accept_deletes(data, spec, spec.columns)
    return pa.RecordBatchReader.from_batches(taken.columns, taken.batches)


class _LastPosition:
    """Checks that all items of an iterator are of one kind, and keeps the last position given."""

    def __init__(self) -> None:
        self._position: Any = None

    def passing(self, items: Iterable[object], kind: type[Any], of: str) -> Iterator[Any]:
        for item in items:
            if not isinstance(item, kind):
                raise _wrong_type(f"yielded, after a {kind.__name__},", item, of)
            if item.position is not None:
                self._position = item.position
            yield item

    def resolve(self) -> Any:
        return self._position() if callable(self._position) else self._position


def _batches(
    pieces: Iterable[Intake], spec: DatasetSpec, opened: Callable[[Intake, DatasetSpec], pa.RecordBatchReader]
) -> Iterator[pa.RecordBatch]:
    """The pieces' rows under the first piece's schema. Always at least one batch, since an empty one carries the schema."""
    schema: pa.Schema | None = None
    for piece in pieces:
        reader = opened(piece, spec)
        if schema is None:
            schema = reader.schema
            yield pa.RecordBatch.from_pylist([], schema=schema)
            spec = spec.model_copy(update={"columns": schema_of(schema)})
        if not reader.schema.equals(schema):
            raise SchemaConflict(
                "a later batch has other columns than the first", of=str(spec.dataset),
                why=f"{_described(reader.schema)} after {_described(schema)}", hint="Give every batch the same columns",
            )  # fmt: skip
        yield from reader


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name} {column.type}" for column in schema)


class Spool:
    """Arrow batches parked on disk in a file without a name, lz4; memory holds one batch. Freed with the last reader.

    It lies in the folder of temporary files. Raises Overloaded when the disk is full, Unavailable for its other errors.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.gettempdir())
        with disk_errors(self._folder):
            handle, path = tempfile.mkstemp(prefix="broker-spool-", dir=self._folder)
            os.close(handle)
            self._out, self._in = pa.OSFile(path, "wb"), pa.OSFile(path, "rb")
            os.unlink(path)  # a killed process leaves nothing behind
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        self.schema: pa.Schema | None = None
        self.rows = 0

    def extend(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Append batches of one schema."""
        for batch in batches:
            with disk_errors(self._folder):
                self._write(batch)
            self.rows += batch.num_rows

    def _write(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            self.schema = batch.schema
            self._writer = pa.ipc.new_stream(self._out, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        self._writer.write_batch(batch)

    def shape(self, spec: DatasetSpec) -> DatasetSpec:
        """`spec` with the columns this spool already has, so that later batches are brought to them."""
        return spec if self.schema is None else spec.model_copy(update={"columns": schema_of(self.schema)})

    def reader(self) -> pa.RecordBatchReader | None:
        """What was parked, from its beginning; None when nothing was. Ends writing, and the reader given before."""
        if self._writer is None:
            return None
        with disk_errors(self._folder):
            if not self._out.closed:
                self._writer.close()
                self._out.close()
            self._in.seek(0)
            return pa.ipc.open_stream(self._in)
