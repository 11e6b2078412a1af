"""A SQL query as a source: whole at first, then what its watermark says has changed, whole again from time to time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from broker.columnar.types import arrow_schema
from broker.errors import BadData, Invalid
from broker.model.duration import seconds_of
from broker.model.names import check_column
from broker.outcomes import Delta, Outcome, ProductionRequest, Since, Snapshot, Spool, Unchanged
from broker.sources.database import Database, Mark
from broker.sources.postgres import open_postgres
from broker.sources.sqlite import open_sqlite

Opener = Callable[[str, pa.Schema | None], AbstractContextManager[Database]]


class SQL:
    """Rows of a query in Postgres (`postgresql://…`) or SQLite (`sqlite:///file`), streamed; memory holds a few batches.

    `watermark` names a column of the query that grows with every change of a row: a timestamp, a date or an integer (in SQLite
    also ISO text). A run then reads the rows at or after the highest value seen so far, less `overlap_seconds` for
    transactions that commit late (for an integer: that many units). None: every run reads the whole query.

    **Deletes are seen only by the full difference**, as are changes that leave the watermark alone, and rows whose watermark
    is null. A full run comes first, then every `full_every` (None: never again), and when query or watermark were edited.

    The noted watermark is never ahead of this machine's clock (UTC), so a row dated 2999 does not hide the years before it.
    A run whose overlap holds exactly the rows known from the run before answers `Unchanged`.

    Called by the broker. Raises Unavailable or Busy (no connection, a lock: it is tried again), Invalid (SQL, URL, watermark),
    BadData (values of mixed types in one SQLite column). A password belongs into PGPASSWORD or ~/.pgpass, not into the URL.
    """

    def __init__(
        self, url: str, query: str, watermark: str | None = None, overlap_seconds: float = 300, full_every: str | None = "24h"
    ) -> None:
        if not query.strip() or query.rstrip().endswith(";"):
            raise Invalid(
                "not a single query", of="query", why="it is empty or ends in ';'", hint="Give one SELECT without ';'"
            )
        if not overlap_seconds >= 0:
            raise Invalid("overlap_seconds must not be negative", of="overlap_seconds", why=str(overlap_seconds))
        _opener(url)
        self.url, self.query = url, query
        self.watermark = None if watermark is None else check_column(watermark)
        self.overlap_seconds = overlap_seconds
        self.full_seconds = float("inf") if full_every is None else seconds_of(full_every, "full_every")

    def __repr__(self) -> str:
        """Without the URL, which may hold a password."""
        return f"SQL({urlsplit(self.url).scheme}, {self.query[:60]!r}, watermark={self.watermark!r})"

    def __call__(self, request: ProductionRequest, since: Since | None) -> Outcome:
        """A full Snapshot, or a Delta of the upserts since `since.position`, or Unchanged."""
        known = None if request.spec.columns is None else arrow_schema(request.spec.columns)
        note = _Note.read(since, self.identity)
        started = time.time()
        if self.watermark is None:
            return Snapshot(_Run(self, known, started).start())
        if note is None or not 0 <= started - note.full_at < self.full_seconds:
            run = _Run(self, known, started)
            return Snapshot(run.start(), run.position)
        return _delta(self, known, note)

    @property
    def identity(self) -> str:
        """Changes when a position made by another query, watermark or overlap must not be used."""
        return hashlib.sha256(repr((self.query, self.watermark, self.overlap_seconds)).encode()).hexdigest()[:16]

    def highest(self, now: float) -> Highest:
        """An empty high-water mark. SQLite has no type for times and keeps them as text."""
        return Highest(self.watermark, now, as_text=urlsplit(self.url).scheme == "sqlite")

    def open(self, known: pa.Schema | None) -> AbstractContextManager[Database]:
        """One read-only transaction. `known`: the dataset's columns, where it has them."""
        return _opener(self.url)(self.url, known)


def _opener(url: str) -> Opener:
    openers: dict[str, Opener] = {"postgresql": open_postgres, "postgres": open_postgres, "sqlite": open_sqlite}
    scheme = urlsplit(url).scheme
    if scheme not in openers:
        raise Invalid("not a database URL", of=f"{scheme}:", hint="postgresql://user@host/database or sqlite:///file")
    return openers[scheme]


@dataclass(frozen=True, slots=True)
class _Note:
    """What a position holds. `digest` tells the rows at or after the bound, as this run saw them."""

    mark: Mark
    full_at: float
    digest: str

    @classmethod
    def read(cls, since: Since | None, identity: str) -> _Note | None:
        """None: no position, or one of another source or form; then the whole query is read."""
        position = since.position if since else None
        if not isinstance(position, Mapping) or position.get("source") != identity:
            return None
        mark, full_at = _parsed(position.get("watermark")), position.get("full_at")
        if mark is None or not isinstance(full_at, int | float):
            return None
        return cls(mark, full_at, str(position.get("digest")))

    def position(self, identity: str) -> dict[str, object]:
        text = self.mark if isinstance(self.mark, int) else self.mark.isoformat()
        return {"source": identity, "watermark": text, "full_at": self.full_at, "digest": self.digest}


def _parsed(value: object) -> Mark | None:
    if isinstance(value, int):
        return value
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value) if len(value) > len("2026-01-01") else date.fromisoformat(value)
    except ValueError:
        return None


def bound_of(mark: Mark, overlap_seconds: float) -> Mark:
    """The watermark to read from, inclusive."""
    if isinstance(mark, int):
        return mark - int(overlap_seconds)
    try:
        if isinstance(mark, datetime):
            return mark - timedelta(seconds=overlap_seconds)
        return (datetime(mark.year, mark.month, mark.day) - timedelta(seconds=overlap_seconds)).date()
    except OverflowError:
        return mark


class _Run:
    """A full read: streams the query, and knows its position once the stream has ended."""

    def __init__(self, source: SQL, known: pa.Schema | None, started: float) -> None:
        self._source, self._known, self._started = source, known, started
        self._note: _Note | None = None

    def start(self) -> Iterator[pa.RecordBatch]:
        """The rows. Connects at once, so that a failure to do so is raised here."""
        rows = self._rows()
        next(rows)
        return rows

    def position(self) -> dict[str, object] | None:
        return None if self._note is None else self._note.position(self._source.identity)

    def _rows(self) -> Iterator[pa.RecordBatch]:
        source = self._source
        with source.open(self._known) as database:
            highest = source.highest(self._started)
            for number, batch in enumerate(database.select(source.query)):
                if number == 0:
                    yield batch  # taken by start(); the empty batch comes again, as it carries the schema
                highest.see(batch)
                yield batch
            if highest.mark is not None and source.watermark is not None:
                bound = bound_of(highest.mark, source.overlap_seconds)
                digest = _digest(_read(database, source, bound))
                self._note = _Note(highest.mark, self._started, digest)


def _delta(source: SQL, known: pa.Schema | None, note: _Note) -> Outcome:
    """Rows at or after the bound, parked on disk: only after the last one it is clear whether anything is new."""
    assert source.watermark is not None
    highest = source.highest(time.time())
    with source.open(known) as database:
        spool = _read(database, source, bound_of(note.mark, source.overlap_seconds), highest)
        if _digest(spool) == note.digest:
            return Unchanged(note.position(source.identity))
        mark = _later(note.mark, highest.mark)
        digest = _digest(_read(database, source, bound_of(mark, source.overlap_seconds)))
    return Delta(upserts=spool.reader(), position=_Note(mark, note.full_at, digest).position(source.identity))


def _read(database: Database, source: SQL, bound: Mark, highest: Highest | None = None) -> Spool:
    assert source.watermark is not None
    spool = Spool()
    for batch in database.select(source.query, (source.watermark, bound)):
        if highest is not None:
            highest.see(batch)
        spool.extend([batch])
    return spool


def _later(mark: Mark, other: Mark | None) -> Mark:
    if other is None:
        return mark
    try:
        return max(mark, other)
    except TypeError:  # the column changed its type: the new one counts
        return other


_DIGEST: Final = "SELECT count(*), bit_xor(md5_number(to_json(q)::VARCHAR)) FROM q"


def _digest(spool: Spool) -> str:
    """Count and 128 bits over rows in any order; equal digests mean equal rows."""
    with duckdb.connect() as engine:
        engine.execute("SET threads = 1")
        engine.execute("SET TimeZone = 'UTC'")
        engine.register("q", spool.reader())
        rows, digest = engine.execute(_DIGEST).fetchone() or (0, None)
    return f"{rows}:{digest or 0:032x}"


class Highest:
    """The highest watermark among the rows seen that is not ahead of `now` (seconds since the epoch)."""

    def __init__(self, column: str | None, now: float, *, as_text: bool = False) -> None:
        self._column, self._now, self._as_text = column, datetime.fromtimestamp(now, UTC), as_text
        self.mark: Mark | None = None

    def see(self, batch: pa.RecordBatch) -> None:
        """Raises Invalid when the column is absent or of a type that cannot be a watermark."""
        if self._column is None:
            return
        if self._column not in batch.schema.names:
            raise Invalid(
                "the query has no such column", of=self._column, why=f"columns: {batch.schema.names}", hint="watermark="
            )
        found = self._highest(batch.column(self._column))
        if found is not None:
            self.mark = found if self.mark is None else _later(self.mark, found)

    def _highest(self, values: pa.Array) -> Mark | None:
        kind = values.type
        if pat.is_string(kind) and self._as_text:
            values = pa.array([self._moment(text) for text in values.to_pylist()], pa.timestamp("us"))
            kind = values.type
        if not (pat.is_integer(kind) or pat.is_timestamp(kind) or pat.is_date(kind) or pat.is_null(kind)):
            raise Invalid(
                "not a watermark column", of=self._column or "", why=f"its type is {kind}, not a timestamp, date or integer"
            )
        if pat.is_timestamp(kind):
            now = self._now if kind.tz else self._now.replace(tzinfo=None)
            values = values.filter(pc.less_equal(values, pa.scalar(now, kind)))
        elif pat.is_date(kind):
            values = values.filter(pc.less_equal(values, pa.scalar(self._now.date(), kind)))
        mark: Mark | None = pc.max(values).as_py()
        return mark

    def _moment(self, text: str | None) -> datetime | None:
        try:
            moment = None if text is None else datetime.fromisoformat(text)
        except ValueError:
            raise BadData(
                "not an ISO date or time", of=self._column or "", why=repr(text)[:80], hint="Another watermark="
            ) from None
        return moment if moment is None or moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
