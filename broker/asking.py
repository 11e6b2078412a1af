"""Asking: requests on their way in, checked against what they ask for, many in one round trip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from broker.errors import BrokerError, InvalidRequest, Reconciling
from broker.flights import Order, Submitted
from broker.fulfilment import completion_at_once
from broker.handle import Handle
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.model.request import Request, Selection, new_id
from broker.parts import Parts
from broker.rules.answering import derivation_of

SELECTIONS: Final = 1_024
"""Checked selections a connection remembers."""
SUBMIT_BATCH: Final = 64
"""Requests of one round trip: four runs of the script, so that Redis works on the first while the last is on its way."""


class Asking:
    """The way of requests into a connection's Redis. Safe for threads."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._selections: dict[tuple[DatasetId, int, str | None, tuple[str, ...] | None], Selection] = {}

    def submit(self, asked: Iterable[Request]) -> Iterator[Handle | BrokerError]:
        """A handle or an error for each, in order. Raises what makes one malformed: InvalidRequest, InvalidPredicate."""
        checked = (self._checked(request) for request in asked)
        while batch := list(islice(checked, SUBMIT_BATCH)):
            yield from self._submit(batch)

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
        seen = self._parts.catalog.cached(request.dataset) or self._parts.catalog.state(request.dataset)
        alike = (request.dataset, seen.seq, request.where, request.columns)
        found = self._selections.get(alike)
        if found is None:
            spec = self._parts.catalog.state(request.dataset).spec
            found = selection_of(spec, request.where, request.columns)
            if len(self._selections) >= SELECTIONS:
                self._selections.clear()
            self._selections[alike] = found
        return found

    def _submit(self, requests: Sequence[Request]) -> list[Handle | BrokerError]:
        orders = [self._order(request) for request in requests]
        results = self._parts.requests.submit(orders)
        for index, result in enumerate(results):
            if isinstance(result, Reconciling):
                results[index] = self._submit_again(requests[index])
        self._catch_up(orders, results)
        return [
            result if isinstance(result, BrokerError) else Handle(self._parts, result.id, order.request.target)
            for order, result in zip(orders, results, strict=True)
        ]

    def _submit_again(self, request: Request) -> Submitted | BrokerError:
        """After a restart of Redis: bring the dataset's index up, then ask again."""
        try:
            self._parts.catalog.state(request.dataset)
            self._parts.catalog.reconcile(request.dataset)
            return self._parts.requests.submit([self._order(request)])[0]
        except BrokerError as error:
            return error

    def _order(self, request: Request) -> Order:
        """With the answer at once, where the request allows one that is not quite fresh."""
        parts, slot = self._parts, self._parts.index.slot(request.dataset)
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
                self._parts.catalog.state(dataset)


def selection_of(spec: DatasetSpec, where: str | None, columns: Sequence[str] | None) -> Selection:
    """Canonical and checked. Raises InvalidPredicate, InvalidRequest for an unknown column."""
    types = spec.columns.types if spec.columns else None
    names = None if columns is None else tuple(columns)
    unknown = [name for name in names or () if types is not None and name not in types]
    if unknown:
        why, hint = ", ".join(unknown), f"It has {', '.join(types or ())}"
        raise InvalidRequest("no such columns", of=spec.dataset, why=why, hint=hint)
    if where is None:
        return Selection(columns=names)
    from broker.model.predicate_parser import parse  # noqa: PLC0415  # sqlglot: who does not filter does without

    return Selection(where=parse(where, types).canonical, columns=names)
