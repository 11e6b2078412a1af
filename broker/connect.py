"""connect(): the front door. Thin objects over the parts: each method is one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import pyarrow as pa

from broker.asking import Asking, selection_of
from broker.changelog import ChangeLog
from broker.columnar.intake import Intake
from broker.columnar.types import schema_of
from broker.errors import BrokerError, Invalid, NotFound
from broker.events_listening import Listener
from broker.handle import Handle
from broker.model.commit import checked_version
from broker.model.dataset import GUARDS, DatasetSpec, Schema
from broker.model.names import LIVE, DatasetId, check_name
from broker.model.request import Completion, Cursor, Request, Selection
from broker.outcomes import checked_position
from broker.parts import Parts, open_parts
from broker.past import Past
from broker.publication import Note, Published
from broker.received import Received
from broker.replica import Replica
from broker.replica_followed import Followed
from broker.responses import Response, Responses
from broker.retention import DatasetRetention
from broker.rules.fold import State as DatasetState
from broker.rules.hearing import Wanted
from broker.rules.patch import Named, VersionInfo
from broker.rules.plan import EVERYTHING, Plan, plan, plan_for
from broker.sealed import Checked
from broker.settings import load
from broker.sinks.port import Sink


def connect(redis: str | None = None, store: str | None = None, **settings: Any) -> Broker:
    """Open a broker: arguments, then BROKER_* variables, then broker.toml, then an embedded Redis and a folder under ./.broker.

    Raises InvalidSettings naming the field, Unavailable, Unsupported (no Redis to be had, with the install line).
    """
    return Broker(open_parts(load(redis=redis, store=store, **settings)))


class Broker:
    """A connection. Safe for threads; a context manager."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._readers = WeakSet[Responses]()
        self._asking = Asking(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release connections and temporary files, those of its `responses` too. Idempotent. An embedded Redis goes on."""
        for reader in list(self._readers):
            reader.close()
        self.parts.close()

    def dataset(  # noqa: PLR0913 - the fields of DatasetSpec
        self, name: str, *, key: str | Sequence[str] | None = None, order: str | Sequence[str] = (),
        schema: Schema | pa.Schema | None = None, partitions: int = 1, attributes: Mapping[str, str] | None = None,
        tombstone_seconds: int | None = None, min_rows: int | None = None, max_rows: int | None = None,
        max_delete_ratio: float | None = None,
    ) -> Dataset:  # fmt: skip
        """Create a dataset, or open it. Without `key` it must exist. What is None stays as it is; for a new one tombstones live
        7 days, and the guards (min_rows, max_rows, max_delete_ratio) are those of the settings.

        One that exists keeps its attributes; a schema from which its own has grown fits.
        Raises NotFound, Conflict (it exists with another spec), InvalidName, Invalid (naming the field), SchemaConflict.
        """
        dataset = DatasetId(name)
        if key is None:
            self.parts.catalog.state(dataset)
            return Dataset(self.parts, dataset)
        limits = dict(
            zip(("tombstone_seconds", *GUARDS), (tombstone_seconds, min_rows, max_rows, max_delete_ratio), strict=True)
        )
        spec = DatasetSpec.of(
            dataset=dataset, key=_names(key), order=_names(order), partitions=partitions, attributes=dict(attributes or {}),
            columns=schema_of(schema) if isinstance(schema, pa.Schema) else schema,
            **{name: limit for name, limit in limits.items() if limit is not None},
        )  # fmt: skip
        self.parts.catalog.create(spec)
        return Dataset(self.parts, dataset)

    def datasets(self, pattern: str = "*") -> list[str]:
        """Ids of existing datasets that match a glob."""
        return [str(dataset) for dataset in self.parts.catalog.find(pattern)]

    def request(self, dataset: str, *, target: str, **fields: Any) -> Handle:
        """Ask for data; returns at once. Fields as in `Request`: since, where, columns, format, mode, max_staleness (seconds),
        deadline (seconds from now), priority, idempotency_key, attributes.

        Raises NotFound, InvalidRequest, InvalidPredicate, Conflict (idempotency key), Overloaded, RequestExpired.
        """
        handle = next(self.requests([{"dataset": dataset, "target": target, **fields}]))
        if isinstance(handle, BrokerError):
            raise handle
        return handle

    def requests(self, asked: Iterable[Mapping[str, Any]]) -> Iterator[Handle | BrokerError]:
        """Ask for much at once: fields as in `request`, a handle or an error for each, in order.

        Several share a round trip, which is what makes thousands a second out of one process. Raises what makes a request
        malformed (InvalidRequest, InvalidPredicate); what refuses a good one stands in its place.
        """
        return self._asking.submit(Request.of(fields) for fields in asked)

    def submitted(self, id: str) -> Handle:
        """The handle of a request made elsewhere. Raises NotFound, RequestLost."""
        return Handle(self.parts, id, self.parts.requests.status(id).request.target)

    def responses(self, target: str) -> Responses:
        """The target's response stream: `listen()`, `read()`, `peek()`."""
        reader = Responses(self.parts.redis, self.parts.index, target)
        self._readers.add(reader)
        return reader

    def events(
        self, pattern: str = "*", cursor: str | None = None, channel: str | None = None,
        types: str | Sequence[str] | None = None,
    ) -> Listener:  # fmt: skip
        """The events of all datasets that match: `listen(timeout)`. `cursor`: a name under which its position is kept.

        `channel`: of versions and channels only that one's news. Raises InvalidName (pattern, channel, type, cursor).
        """
        return Listener(self.parts.events, Wanted.of(pattern, channel, types), cursor)

    def received(self, response: Response | Completion) -> Received:
        """The data of a completion."""
        completion = response.completion if isinstance(response, Response) else response
        return Received(self.parts.catalog, self.parts.engine, self.parts.store, self.parts.requests, completion)

    def replica(
        self, dataset: str, *, name: str, sink: Sink, where: str | None = None, columns: Sequence[str] | None = None,
        channel: str = LIVE,
    ) -> Replica:  # fmt: skip
        """An exact copy in `sink`, kept by `sync()`: of the newest version, or of what `channel` names.

        Raises NotFound, InvalidPredicate, InvalidName.
        """
        id, parts = DatasetId(dataset), self.parts
        followed = Followed(parts.catalog, parts.channels, id, check_name(channel, "channel"))
        selection = Dataset(parts, id).selection(where, columns)
        return Replica(parts.means, followed, name, sink, selection, parts.on_step)

    def release(
        self, domain: str, versions: Mapping[str, int], *, to: str, expect: Mapping[str, int] | None = None
    ) -> int:  # fmt: skip
        """Let channel `to` name versions of several datasets of `tenant/domain` at one moment, all or nothing.

        `expect`: versions it must name until then (0: none). Returns and raises as `Dataset.promote`.
        """
        return self.parts.channels.release(domain, versions, to, expect)

    def released(self, domain: str, channel: str) -> dict[str, int]:
        """What a channel names of the datasets of `tenant/domain`, at one moment: dataset name -> version."""
        return self.parts.channels.released(domain, channel)


class Dataset:
    """One dataset: publish and read."""

    def __init__(self, parts: Parts, dataset: DatasetId) -> None:
        self._parts, self.id = parts, dataset

    @property
    def state(self) -> DatasetState:
        """Everything the log says of it, as of now. Raises NotFound."""
        return self._parts.catalog.state(self.id)

    @property
    def spec(self) -> DatasetSpec:
        return self.state.spec

    @property
    def changelog(self) -> ChangeLog:
        """Its change log: append changes, and micro-batches make versions of them."""
        return self._parts.changelogs.of(self.id)

    @property
    def past(self) -> Past:
        """What differs between two versions, and what became of one key."""
        return Past(self._parts.catalog, self._parts.engine, self.id)

    def publish(
        self, data: Intake, *, delta: bool = False, attributes: Mapping[str, str] | None = None, position: Any = None
    ) -> Published:
        """The whole dataset as a new version; `delta=True` commits only its difference (an absent key is a delete).

        Raises NullKey, DuplicateKey, SchemaConflict, Busy (another writer), StaleBase, Invalid (attributes, position).
        """
        note = _note(attributes, position)
        publish = self._parts.publication.difference if delta else self._parts.publication.snapshot
        return publish(self.id, data, note)

    def publish_delta(
        self, upserts: Intake | None = None, deletes: Intake | None = None, *,
        attributes: Mapping[str, str] | None = None, position: Any = None,
    ) -> Published:  # fmt: skip
        """Changed rows, and keys of deleted ones (with the order columns, where the dataset has them). Raises as `publish`."""
        note = _note(attributes, position)
        return self._parts.publication.delta(self.id, upserts, deletes, note)

    def read(self, version: int | None = None, where: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a version (None: the newest), merged from the planned edges; key and order columns always included."""
        return self.reader(version, where, columns).read_all()

    def reader(
        self, version: int | None = None, where: str | None = None, columns: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """As `read`, in batches. Raises NotFound for a version that never was or is retired, and before the first."""
        state = self.state
        edges = plan(state.edges, None, state.info(_wanted(state, version)).version).edges
        return self._parts.engine.read(state.spec, edges, self.selection(where, columns))

    def versions(self) -> tuple[VersionInfo, ...]:
        """All versions remembered, oldest first."""
        return self.state.versions

    def latest(self) -> VersionInfo | None:
        """The newest version; None before the first."""
        state = self.state
        return state.info(state.offered) if state.offered else None

    def plan(self, since: int | None = None, version: int | None = None) -> Plan:
        """The edges, fewest bytes, from `since` to `version` (None: the newest). Raises NotFound as `reader`."""
        state = self.state
        cursor = Cursor(version=checked_version(since)) if since else None
        return plan_for(state, cursor, EVERYTHING, _wanted(state, version))

    def promote(self, version: int, *, to: str, expect: int | None = None) -> int:
        """Let channel `to` name a version: one announcement, one event, no data copied. -> number of the announcement.

        `expect`: the version it must name until then (0: none). Raises Conflict (it moved), NotFound, InvalidName.
        """
        return self._parts.channels.promote(self.id, version, to, expect)

    def rollback(self, channel: str, *, expect: int | None = None) -> int:
        """Let a channel name again what it named before; once more: what it named before that.

        `expect`: the version to leave, so that the same call, repeated, leaves it once. Returns and raises as `promote`.
        """
        return self._parts.channels.rollback(self.id, channel, expect)

    def channels(self) -> dict[str, Named]:
        """What each channel names; `live`, the newest version, is not among them."""
        return self._parts.channels.named(self.id)

    def alter(self, schema: Schema | pa.Schema, force: bool = False) -> None:
        """New nullable columns and lossless widening; anything else only with `force`: a new session, and replicas reset."""
        columns = schema_of(schema) if isinstance(schema, pa.Schema) else schema
        self._parts.catalog.alter(self.id, columns, force)

    def guard(self, **limits: float | None) -> None:
        """Other guards for versions to come: min_rows, max_rows, max_delete_ratio; None: the settings'. Raises Invalid."""
        self._parts.catalog.guard(self.id, limits)

    def drop(self) -> None:
        """No longer offered; its log stays."""
        self._parts.catalog.drop(self.id)

    @property
    def retention(self) -> DatasetRetention:
        """What would be given up and why the rest stays: `plan()`, `explain(file_or_version)`, `apply()`."""
        return self._parts.retention.of(self.id)

    def hold(self, version: int, until: float | datetime | None = None, why: str = "", name: str | None = None) -> str:
        """Keep a version readable until a time (seconds since the epoch; None: until `release_hold`). -> the hold's name

        A hold of the same name (None: `v<version>`) is replaced. Raises NotFound (also for a retired version), InvalidName,
        Invalid (a time that is over).
        """
        return self.retention.hold(version, _seconds(until), why, name)

    def release_hold(self, name: str) -> None:
        """End a hold. Raises NotFound."""
        self.retention.release(name)

    def verify(self) -> Iterator[Checked]:
        """Re-hash every file offered, then fold the whole log: each object with what is wrong with it, or None."""
        for file in {file.key: file for edge in self.state.edges for file in edge.files}.values():
            try:
                self._parts.engine.verify(file)
                yield Checked(file.key, file.bytes)
            except BrokerError as error:
                yield Checked(file.key, file.bytes, error)
        yield from self._parts.catalog.check(self.id)

    def selection(self, where: str | None, columns: Sequence[str] | None) -> Selection:
        """Canonical and checked. Raises InvalidPredicate, InvalidRequest for an unknown column."""
        return selection_of(self.spec, where, None if columns is None else _names(columns))


def _wanted(state: DatasetState, version: int | None) -> int:
    """The version asked for, or the newest. Raises NotFound before the first."""
    if not state.offered:
        raise NotFound("no version yet", of=state.dataset, why="nothing was published", hint="Publish, or request it")
    return state.offered if version is None else version


def _note(attributes: Mapping[str, str] | None, position: Any) -> Note:
    """Checked before anything is read or uploaded. Raises Invalid."""
    plain = checked_position(position)
    return Note(attributes=dict(attributes or {}), position=lambda: plain)


def _seconds(until: float | datetime | None) -> float | None:
    """Since the epoch. Raises Invalid."""
    if isinstance(until, datetime):
        return until.timestamp()
    if until is None or isinstance(until, int | float):
        return until
    raise Invalid("not a time", of=repr(until)[:80], hint="Give a datetime, or seconds since the epoch")


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """One column name, or several."""
    return (given,) if isinstance(given, str) else tuple(given)
