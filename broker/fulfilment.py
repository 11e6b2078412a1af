"""Answering requests, in two halves: the clerk claims flights and answers members; the maker, in a child process, makes data.

    Clerk.claim ─► flights ─► Maker.produce (child) ─► Clerk.finish: close, Maker.derive (child) where files are needed, answer

The clerk never touches rows, so it stays responsive while a maker works, and a maker that dies harms only its attempt.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeAlias

from broker.backend.client import Entry
from broker.backend.derived import Derived
from broker.backend.keys import Slot
from broker.catalog import Catalog
from broker.columnar.engine import Engine
from broker.errors import AttemptFailed, BrokerError, Invalid, StaleBase, Transient
from broker.flights import Claimed, Confirmed, Flight, Member, Retry, dataset_of, ended
from broker.model.commit import Edge
from broker.model.dataset import Frozen
from broker.model.names import DatasetId, derived_key
from broker.model.request import Completion, Request, State
from broker.outcomes import (
    Delta,
    Outcome,
    ProductionRequest,
    Since,
    Snapshot,
    attributes_of,
    close,
    failure_of,
    resolve_position,
)
from broker.producers import Producers
from broker.publication import Note, Publication, Published
from broker.requests import Requests
from broker.rules.answering import completed, derivation_of, expiry_hour, needs_files, road
from broker.rules.fold import State as DatasetState
from broker.rules.plan import Plan
from broker.rules.steps import OnStep, nothing
from broker.settings import Settings

STEPS: Final = ("claimed", "produced", "derived", "closed", "answered")
"""The named steps of fulfilment, in order: tests crash at each. `upload` and those of publishing lie within `produced`."""


class Produced(Frozen):
    """How a production ended well. `confirmed_at`: its start, seconds since the epoch; `version` stands after it.

    `session`: the one it was made in; '' where that is not known.
    """

    version: int
    changed: bool
    confirmed_at: float
    position: str | None = None
    session: str = ""


class Derivation(Frozen):
    """An order for files: `request` answered at `version`. They stay until `expires_at` (seconds since the epoch).

    That time is fixed before they are made: their names and what is told of them say the same, however long it takes.
    """

    request: Request
    version: int
    expires_at: float


Made: TypeAlias = Edge | BrokerError
"""What an order for files came to."""
Refused: TypeAlias = Mapping[str, BrokerError]
"""Why files could not be made, by fingerprint: it concerns only those who asked for these."""


class Maker:
    """Runs producers and makes files. One attempt at a time, in its own process; all effects carry the flight's fence."""

    def __init__(
        self, catalog: Catalog, engine: Engine, publication: Publication, producers: Producers, on_step: OnStep = nothing
    ) -> None:
        self._catalog, self._engine = catalog, engine
        self._publication = publication.with_validators(producers.validators)
        self._producers, self._on_step = producers, on_step

    def produce(self, flight: Flight, since: Since | None) -> Produced:
        """Run the producer and publish what it gave. A version that this flight made already is not made again.

        `since`: what the claim saw, if it saw something; the head is looked at anyway, and the newer of both is told.

        Raises what the producer raised (typed, or AttemptFailed), BadData, Fenced, StaleBase.
        """
        started = flight.started or time.time()
        state = self._catalog.state(flight.dataset)
        if (version := state.made_by(flight.id)) is not None:
            return Produced(version=version, changed=True, confirmed_at=state.confirmed_at)
        if (since.version if since else 0) != state.offered:
            since = Since(*self._catalog.noted(flight.dataset)) if state.offered else None
        producer = self._producers.match(flight.dataset)
        outcome = producer.run(ProductionRequest(flight.dataset, state.spec), since)
        try:
            published = self._publish(flight, outcome, since)
        except Exception as error:
            raise failure_of(outcome, error) from error
        finally:
            close(outcome)
        self._on_step("produced")
        # A producer that says no position leaves the one noted before: forgetting a watermark would read everything again.
        noted = None if published.edge else resolve_position(outcome)
        position = None if noted is None else json.dumps(noted)
        return Produced(
            version=published.version, changed=published.edge is not None, confirmed_at=started, position=position,
            session=state.session,
        )  # fmt: skip

    def parts(self, flight: Flight) -> tuple[str, ...]:
        """Names of the parts into which the production is cut. Raises what `values` raised, Invalid when it names none."""
        producer, spec = self._producers.match(flight.dataset), self._catalog.state(flight.dataset).spec
        found = producer.parts(ProductionRequest(flight.dataset, spec))
        if not found:
            raise Invalid(
                "the producer has no parts", of=producer.name, why="its values are empty, which says nothing of the rows",
                hint="Give at least one value; a part may be an empty Snapshot",
            )  # fmt: skip
        return found

    def _publish(self, flight: Flight, outcome: Outcome, since: Since | None) -> Published:
        note = Note(
            production=flight.id, started=flight.started or None, lease=flight.lease, kind="producer",
            position=lambda: resolve_position(outcome), attributes=attributes_of(outcome),
        )  # fmt: skip
        match outcome:
            case Snapshot(data=data):
                return self._publication.difference(flight.dataset, data, note)
            case Delta(upserts=upserts, deletes=deletes):
                return self._publication.delta(flight.dataset, upserts, deletes, note, since.version if since else 0)
        if since is None:
            raise Invalid(
                "the producer said Unchanged", of=flight.dataset, why="no version exists yet", hint="Give a Snapshot first"
            )
        return Published(since.version, None)

    def derive(self, orders: Iterable[Derivation]) -> list[Made]:
        """Make the files of selections from sealed edges; an order's error stands for it alone."""
        return [self._derived(order) for order in orders]

    def _derived(self, order: Derivation) -> Made:
        try:
            return self._edge(order)
        except BrokerError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a selection nobody foresaw must not fail those who asked for another
            return AttemptFailed(
                "no files could be made", of=order.request.dataset, why=f"{type(error).__name__}: {error}"[:1000]
            )

    def _edge(self, order: Derivation) -> Edge:
        request = order.request
        state = self._catalog.state(request.dataset)
        found = road(state, request, order.version)
        hour, fingerprint = expiry_hour(order.expires_at), derivation_of(request)

        def key_of(extension: str) -> str:
            return derived_key(request.dataset, hour, fingerprint, extension)

        edge = self._engine.derive(state.spec, found.edges, request.selection, request.format, key_of, found.held or ())
        self._on_step("derived")
        return edge


@dataclass(frozen=True, slots=True)
class Answered:
    """Report of one flight: how many requests ended, and how many go another round."""

    ended: int = 0
    retried: int = 0


class Clerk:
    """Claims and answers: Redis and planning only, no rows."""

    def __init__(
        self, catalog: Catalog, requests: Requests, derived: Derived, settings: Settings, on_step: OnStep = nothing
    ) -> None:
        self.catalog, self.requests = catalog, requests
        self._derived, self._settings, self._on_step = derived, settings, on_step

    def claim(self, slot: Slot, worker: str, entries: Sequence[Entry], serves: Callable[[DatasetId], bool]) -> Claimed:
        """Flights this worker must run now. Entries of datasets it does not serve are parked for others."""
        mine, foreign = list[Entry](), list[Entry]()
        for entry in entries:
            dataset = dataset_of(entry)
            (mine if dataset is not None and serves(dataset) else foreign).append(entry)
        if foreign:
            self.requests.park(slot, foreign)
        claimed = self.requests.claim(slot, worker, mine)
        self.requests.expire(claimed.expired)
        self._on_step("claimed")
        return claimed

    def since(self, flight: Flight) -> Since | None:
        """What the claim saw of the dataset: the newest version and the position noted with it."""
        return Since(*flight.noted) if flight.noted and flight.noted[0] else None

    def close(self, flight: Flight) -> list[Member]:
        members = self.requests.close(flight)
        self._on_step("closed")
        return members

    def orders(self, flight: Flight, members: Iterable[Member], version: int) -> list[Derivation]:
        """Derivations that the members need and nobody has made yet, one a fingerprint."""
        state, wanted = self._state(flight, members, version), dict[str, Derivation]()
        expires_at = time.time() + self._settings.result_seconds
        for member in members:
            request, fingerprint = member.request, derivation_of(member.request)
            try:
                found = road(state, request, answered_at(state, request, version))
            except BrokerError:
                continue  # answered with its error in `complete`
            if fingerprint in wanted or not needs_files(found, request):
                continue
            if self._derived.get(request.dataset, fingerprint, found.version) is None:
                wanted[fingerprint] = Derivation(request=request, version=found.version, expires_at=expires_at)
        return list(wanted.values())

    def keep(self, orders: Sequence[Derivation], made: Sequence[Made]) -> Refused:
        """Remember derived files for whoever asks the same of the same version. -> what could not be made, for `complete`"""
        refused = dict[str, BrokerError]()
        for order, edge in zip(orders, made, strict=True):
            fingerprint = derivation_of(order.request)
            if isinstance(edge, BrokerError):
                refused[fingerprint] = edge
            else:
                self._derived.put(order.request.dataset, fingerprint, order.version, edge, order.expires_at)
        return refused

    def complete(
        self, flight: Flight, members: Sequence[Member], produced: Produced, refused: Refused = MappingProxyType({})
    ) -> Answered:
        """Answer all members at `produced.version`, those whose files were `refused` with that error. Raises Fenced."""
        state = self._state(flight, members, produced.version)
        answers = [self._completion(flight, state, member, produced.version, refused) for member in members]
        if flight.kind == "derive":
            return self._answer(flight, answers)
        session = produced.session or state.session
        confirmed = Confirmed(session, produced.version, produced.confirmed_at, produced.position)
        return self._answer(flight, answers, confirmed)

    def fail(self, flight: Flight, members: Sequence[Member], error: BrokerError) -> Answered:
        """A failed attempt: transient errors go another round with back-off, the rest to the dead letters."""
        return self._answer(flight, [self._failure(flight, member, error) for member in members])

    def _answer(self, flight: Flight, answers: Sequence[Completion | Retry], confirmed: Confirmed | None = None) -> Answered:
        count = self.requests.answer(flight, answers, confirmed=confirmed)
        self._on_step("answered")
        return Answered(count, sum(isinstance(answer, Retry) for answer in answers))

    def _state(self, flight: Flight, members: Iterable[Member], version: int) -> DatasetState:
        """One that knows `version`, and what the members hold already."""
        held = (member.request.since.version for member in members if member.request.since)
        return self.catalog.at_least(flight.dataset, max((version, *held)))

    def _completion(
        self, flight: Flight, state: DatasetState, member: Member, version: int, refused: Refused
    ) -> Completion | Retry:
        request = member.request
        try:
            found = road(state, request, answered_at(state, request, version))
            expires_at = time.time() + self._settings.result_seconds
            if needs_files(found, request):
                found, expires_at = self._with_files(found, request, refused)
            return completed(member.id, request, state.session, found, expires_at, member.attempts)
        except BrokerError as error:
            return self._failure(flight, member, error)

    def _failure(self, flight: Flight, member: Member, error: BrokerError) -> Completion | Retry:
        """Members that go another round come back together: one production can serve them all again."""
        if isinstance(error, Transient) and member.attempts < self._settings.max_attempts:
            return Retry(member.id, backoff(self._settings, flight.attempt, flight.id), error)
        return ended(member.id, member.request, State.FAILED, member.attempts, error)

    def _with_files(self, found: Plan, request: Request, refused: Refused) -> tuple[Plan, float]:
        fingerprint = derivation_of(request)
        if fingerprint in refused:
            raise refused[fingerprint]
        made = self._derived.get(request.dataset, fingerprint, found.version)
        if made is None:
            raise StaleBase("derived files are missing", of=request.dataset, why=f"version {found.version}", hint="Ask again")
        return replace(found, edges=(made[0],)), made[1]


def answered_at(state: DatasetState, request: Request, version: int) -> int:
    """At which version a flight that ended at `version` answers: that one, or what the target holds of a newer one.

    A version published beside the flight may have reached the target before it asked: it must not be sent back.
    """
    since = request.since
    if since is None or since.session not in (None, state.session) or since.version > state.version:
        return version
    return max(version, since.version)


def completion_at_once(
    id: str, request: Request, state: DatasetState, derived: Derived, settings: Settings
) -> Completion | None:
    """The answer of a request that needs neither production nor derivation, if `state` is still fresh; None otherwise."""
    if not state.offered:
        return None
    try:
        found = road(state, request)
    except BrokerError:
        return None
    expires_at = time.time() + settings.result_seconds
    if needs_files(found, request):
        made = derived.get(request.dataset, derivation_of(request), found.version)
        if made is None:
            return None
        found, expires_at = replace(found, edges=(made[0],)), made[1]
    return completed(id, request, state.session, found, expires_at, attempts=0)


def backoff(settings: Settings, attempts: int, of: str) -> float:
    """Seconds before the next attempt: doubling, capped, half of it jitter (AWS: Exponential Backoff And Jitter, 2015).

    What fails alike at one `of` waits alike.
    """
    ceiling = min(settings.backoff_max_seconds, settings.backoff_seconds * 2.0 ** min(attempts - 1, 64))
    return float(ceiling * random.Random(of).uniform(0.5, 1.0))
