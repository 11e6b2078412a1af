"""connect(): the front door. Thin objects over the parts: each method is one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

import pyarrow as pa

from broker.changelog import ChangeLog
from broker.columnar.intake import Intake
from broker.columnar.types import schema_of
from broker.errors import (
    BrokerError,
    InvalidRequest,
    NotFound,
    Reconciling,
)
from broker.flights import Order, Submitted
from broker.fulfilment import completion_at_once
from broker.handle import Handle
from broker.model.dataset import DatasetSpec, Schema
from broker.model.names import DatasetId
from broker.model.predicate_parser import parse
from broker.model.request import Completion, Request, Selection, new_id
from broker.outcomes import checked_position
from broker.parts import Parts, open_parts
from broker.past import Past
from broker.publication import Note, Published
from broker.received import Received
from broker.replica import Replica
from broker.responses import Response, Responses
from broker.rules.answering import derivation_of
from broker.rules.fold import State as DatasetState
from broker.rules.fold import VersionInfo
from broker.rules.plan import Plan, plan
from broker.sealed import Checked
from broker.settings import load
from broker.sinks.port import Sink

SELECTIONS: Final = 1_024
"""Checked selections a connection remembers."""
SUBMIT_BATCH: Final = 64
"""Requests of one round trip: four runs of the script, so that Redis works on the first while the last is on its way."""


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
        self._selections: dict[tuple[DatasetId, int, str | None, tuple[str, ...] | None], Selection] = {}

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
        tombstone_seconds: int | None = None,
    ) -> Dataset:  # fmt: skip
        """Create a dataset, or open it. Without `key` it must exist. `tombstone_seconds` None: as it is, 7 days for a new one.

        One that exists keeps its attributes; a schema from which its own has grown fits.
        Raises NotFound, Conflict (it exists with another spec), InvalidName, Invalid (naming the field), SchemaConflict.
        """
        dataset = DatasetId(name)
        if key is None:
            self.parts.catalog.state(dataset)
            return Dataset(self.parts, dataset)
        limits = {} if tombstone_seconds is None else {"tombstone_seconds": tombstone_seconds}
        spec = DatasetSpec.of(
            dataset=dataset, key=_names(key), order=_names(order), partitions=partitions, attributes=dict(attributes or {}),
            columns=schema_of(schema) if isinstance(schema, pa.Schema) else schema, **limits,
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
        checked = (self._checked(Request.of(fields)) for fields in asked)
        while batch := list(islice(checked, SUBMIT_BATCH)):
            yield from self._submit(batch)

    def submitted(self, id: str) -> Handle:
        """The handle of a request made elsewhere. Raises NotFound, RequestLost."""
        return Handle(self.parts, id, self.parts.requests.status(id).request.target)

    def responses(self, target: str) -> Responses:
        """The target's response stream: `listen()`, `read()`, `peek()`."""
        reader = Responses(self.parts.redis, self.parts.index, target)
        self._readers.add(reader)
        return reader

    def received(self, response: Response | Completion) -> Received:
        """The data of a completion."""
        completion = response.completion if isinstance(response, Response) else response
        return Received(self.parts.catalog, self.parts.engine, self.parts.store, self.parts.requests, completion)

    def replica(
        self, dataset: str, *, name: str, sink: Sink, where: str | None = None, columns: Sequence[str] | None = None,
        channel: str = "live",
    ) -> Replica:  # fmt: skip
        """An exact copy in `sink`, kept by `sync()`. Raises NotFound, InvalidPredicate."""
        if channel != "live":
            raise InvalidRequest("no such channel", of=channel, why="only 'live' exists so far")
        id = DatasetId(dataset)
        parts = self.parts
        selection = Dataset(parts, id).selection(where, columns)
        return Replica((parts.catalog, parts.engine, parts.leases), id, name, sink, selection, parts.on_step)

    def _checked(self, request: Request) -> Request:
        """The request in canonical form, checked against the dataset's columns where they are known."""
        if request.mode == "delta" and request.since is None:
            raise InvalidRequest("mode='delta' needs since=", of=request.dataset, hint="Give the version or cursor you hold")
        if request.where is None and request.columns is None:
            return request
        selection = self._selection(request)
        return request.model_copy(update={"where": selection.where, "columns": selection.columns})

    def _selection(self, request: Request) -> Selection:
        """Canonical and checked, once for all that ask alike of the dataset as this process last saw it."""
        seen = self.parts.catalog.cached(request.dataset) or self.parts.catalog.state(request.dataset)
        alike = (request.dataset, seen.seq, request.where, request.columns)
        found = self._selections.get(alike)
        if found is None:
            found = Dataset(self.parts, request.dataset).selection(request.where, request.columns)
            if len(self._selections) >= SELECTIONS:
                self._selections.clear()
            self._selections[alike] = found
        return found

    def _submit(self, requests: Sequence[Request]) -> list[Handle | BrokerError]:
        orders = [self._order(request) for request in requests]
        results = self.parts.requests.submit(orders)
        for index, result in enumerate(results):
            if isinstance(result, Reconciling):
                results[index] = self._submit_again(requests[index])
        self._catch_up(orders, results)
        return [
            result if isinstance(result, BrokerError) else Handle(self.parts, result.id, order.request.target)
            for order, result in zip(orders, results, strict=True)
        ]

    def _submit_again(self, request: Request) -> Submitted | BrokerError:
        """After a restart of Redis: bring the dataset's index up, then ask again."""
        try:
            self.parts.catalog.state(request.dataset)
            self.parts.catalog.reconcile(request.dataset)
            return self.parts.requests.submit([self._order(request)])[0]
        except BrokerError as error:
            return error

    def _order(self, request: Request) -> Order:
        """With the answer at once, where the request allows one that is not quite fresh."""
        parts, slot = self.parts, self.parts.index.slot(request.dataset)
        id, derivation = new_id(slot.name), derivation_of(request)
        if request.max_staleness is None:
            return Order(id, slot, request, derivation)
        state = parts.catalog.cached(request.dataset) or parts.catalog.state(request.dataset)
        answer = completion_at_once(id, request, state, parts.derived, parts.settings)
        return Order(id, slot, request, derivation, answer, state.seq)

    def _catch_up(self, orders: Sequence[Order], results: Sequence[Submitted | BrokerError]) -> None:
        """Where a head had moved, look at it, so that the next request is answered from it at once."""
        moved = {
            order.request.dataset
            for order, result in zip(orders, results, strict=True)
            if isinstance(result, Submitted) and order.seq and result.seq != order.seq
        }
        for dataset in moved:
            with suppress(BrokerError):  # these requests are accepted: what a look brings is for the next ones
                self.parts.catalog.state(dataset)


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
        self,
        upserts: Intake | None = None,
        deletes: Intake | None = None,
        *,
        attributes: Mapping[str, str] | None = None,
        position: Any = None,
    ) -> Published:
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
        return plan(state.edges, since, _wanted(state, version))

    def alter(self, schema: Schema | pa.Schema, force: bool = False) -> None:
        """New nullable columns and lossless widening; anything else only with `force`: a new session, and replicas reset."""
        columns = schema_of(schema) if isinstance(schema, pa.Schema) else schema
        self._parts.catalog.alter(self.id, columns, force)

    def drop(self) -> None:
        """No longer offered; its log stays."""
        self._parts.catalog.drop(self.id)

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
        spec = self.spec
        types = spec.columns.types if spec.columns else None
        names = None if columns is None else _names(columns)
        unknown = [name for name in names or () if types is not None and name not in types]
        if unknown:
            raise InvalidRequest("no such columns", of=self.id, why=", ".join(unknown), hint=f"It has {', '.join(types or ())}")
        text = None if where is None else parse(where, types).canonical
        return Selection(where=text, columns=names)


def _wanted(state: DatasetState, version: int | None) -> int:
    """The version asked for, or the newest. Raises NotFound before the first."""
    if not state.offered:
        raise NotFound("no version yet", of=state.dataset, why="nothing was published", hint="Publish, or request it")
    return state.offered if version is None else version


def _note(attributes: Mapping[str, str] | None, position: Any) -> Note:
    """Checked before anything is read or uploaded. Raises Invalid."""
    plain = checked_position(position)
    return Note(attributes=dict(attributes or {}), position=lambda: plain)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """One column name, or several."""
    return (given,) if isinstance(given, str) else tuple(given)
