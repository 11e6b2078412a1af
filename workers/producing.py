"""The producer role: reads request streams, runs flights in children, answers. Four threads, one owner each.

intake    streams -> claim -> line of flights (by priority, every tenth from the low end) -> an idle child
outcome   a child's answer -> close, derive, answer
follow    flights cut into parts: RQ jobs make them, no child (leading.py)
watch     heartbeats, limits, ticks: overdue, lapsed, delayed, parked
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final
from uuid import uuid4

from broker.backend.client import BLOCK_MAX_MS, Entry
from broker.backend.keys import Slot
from broker.errors import AttemptFailed, BrokerError, Fenced, NotFound, RequestCancelled, StaleBase, Transient
from broker.flights import Flight, Member
from broker.fulfilment import Clerk, Derivation, Produced, Refused
from broker.model.names import DatasetId
from broker.parts import Parts
from broker.producers import Producers
from workers import lines
from workers.child import flight_to_json, made_from_json
from workers.leading import Leading, spent
from workers.line import Line
from workers.streams import READ_COUNT, Streams
from workers.supervisor import Result, Supervisor

log = logging.getLogger("broker.worker")
LINE_LENGTH: Final = 64
"""Flights a worker holds before it stops reading: what it cannot start soon, others may."""
STEAL_SECONDS: Final = 5.0
EVERYWHERE_SECONDS: Final = 1.0
"""Between two looks at the slots of datasets that are not served here."""


@contextmanager
def surviving(work: str) -> Iterator[None]:
    """One dataset's damage is logged and left to the next pass: it must not stop the worker for all the others."""
    try:
        yield
    except Transient:
        raise
    except BrokerError:
        log.exception("%s failed", work)


@dataclass
class Held:
    """A flight this worker holds, with what it knows so far. `members` None: not closed yet; `spent`: no other round."""

    flight: Flight
    members: list[Member] | None = None
    produced: Produced | None = None
    orders: list[Derivation] = field(default_factory=list)
    spent: bool = False


@dataclass
class Counts:
    """What the role has done since it started."""

    claimed: int = 0
    answered: int = 0
    retried: int = 0
    failed_attempts: int = 0
    taken_over: int = 0
    fenced: int = 0


class Producing:
    """One worker process' producer role. Each method that a loop calls is one pass."""

    def __init__(self, parts: Parts, producers: Producers, supervisor: Supervisor) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
        self._parts, self._producers, self._supervisor = parts, producers, supervisor
        self._requests = parts.requests
        self._clerk = Clerk(parts.catalog, parts.requests, parts.derived, parts.settings, parts.on_step)
        self._line, self._held, self._lock = Line(), dict[str, Held](), Lock()
        self._leading = Leading(parts, producers, supervisor.app)
        self._streams = Streams(parts.index, self.name, self._serves)
        self._stolen = self._looked = float("-inf")
        self.counts = Counts()

    @property
    def busy(self) -> int:
        """Flights held."""
        return len(self._held)

    # --- intake

    def intake(self, block_seconds: float) -> int:
        """Read what there is (waiting at most `block_seconds`), claim it, start what can start. -> entries read"""
        self._streams.discover()
        self._dispatch()
        if not self._streams or len(self._line) >= LINE_LENGTH:
            time.sleep(min(block_seconds, 0.01))
            return 0
        found, slots = 0, self._streams.of
        for entries in self._batches(min(int(block_seconds * 1000), BLOCK_MAX_MS)):
            self._claim(entries, slots)
            found += len(entries)
        self._dispatch()
        return found

    def _batches(self, block_ms: int) -> Iterator[list[Entry]]:
        """Entries until none is left: requests alike that wait already join one flight before it starts.

        A read that waited ends with the first that came: behind several there are more, a lone one starts at once.
        """
        entries, waited = self._streams.read(block_ms), True
        while entries:
            yield entries
            crowd = len(entries) >= READ_COUNT or (waited and len(entries) > 1)
            entries, waited = self._streams.read(0) if crowd and len(self._line) < LINE_LENGTH else [], False

    def _claim(self, entries: list[Entry], slots: dict[bytes, Slot]) -> None:
        for slot in {slot.name: slot for slot in (slots[entry.stream] for entry in entries)}.values():
            of_slot = [entry for entry in entries if slots[entry.stream].name == slot.name]
            try:
                self._claim_in(slot, of_slot)
            except Transient:
                raise
            except BrokerError:
                for entry in of_slot:
                    with surviving(f"claim of {entry.fields[b'r'].decode()}"):
                        self._claim_in(slot, [entry])

    def _claim_in(self, slot: Slot, entries: list[Entry]) -> None:
        for flight in self._clerk.claim(slot, self.name, entries, self._serves).flights:
            self._hold(flight)

    def _hold(self, flight: Flight) -> None:
        with self._lock:
            self._held[flight.id] = Held(flight)
        self.counts.claimed += 1
        lines.claimed(flight)
        self._line.put(flight)

    def _serves(self, dataset: DatasetId) -> bool:
        try:
            self._producers.match(dataset)
        except NotFound:
            return False
        return True

    def _dispatch(self) -> None:
        while self._supervisor.idle and (flight := self._line.take()) is not None:
            held = self._held.get(flight.id)
            if held is None:
                continue
            if flight.kind == "derive" or held.produced is not None:
                self._guarded(held, self._prepare_answer)
            else:
                self._guarded(held, self._start_production)

    def _start_production(self, held: Held) -> None:
        cut = self._leading.cuts(held.flight)
        if cut and self._leading.resumes(held.flight):
            return
        since = self._clerk.since(held.flight)
        told = {"version": since.version, "position": since.position} if since else None
        message = {"do": "parts" if cut else "produce", "flight": flight_to_json(held.flight), "since": told}
        if not self._supervisor.run(held.flight, message):
            self._line.put(held.flight)

    # --- outcome

    def outcome(self, timeout: float) -> int:
        """Take children's answers and go on with their flights. -> how many"""
        results = self._supervisor.wait(timeout)
        for result in results:
            held = self._held.get(result.task.subject.id)
            # The same flight under another fence is another attempt: this one's end says nothing about it.
            if held is not None and held.flight == result.task.subject:
                self._guarded(held, lambda held, result=result: self._continue(held, result))
        self._dispatch()
        return len(results)

    def _continue(self, held: Held, result: Result) -> None:
        if result.error is not None:
            self._fail(held, result.error)
        elif result.task.message["do"] == "produce":
            held.produced = Produced.model_validate(result.ok)
            self._prepare_answer(held)
        elif result.task.message["do"] == "parts":
            self._leading.begin(held.flight, result.ok)
        else:
            self._answer(held, self._clerk.keep(held.orders, [made_from_json(fields) for fields in result.ok]))

    def _prepare_answer(self, held: Held) -> None:
        """Close the flight; have files made if any member needs them, else answer."""
        flight = held.flight
        if held.produced is None:
            state = self._parts.catalog.state(flight.dataset)
            held.produced = Produced(version=state.version, changed=False, confirmed_at=state.confirmed_at)
        held.members = self._clerk.close(flight)
        held.orders = self._clerk.orders(flight, held.members, held.produced.version)
        if not held.orders:
            self._answer(held, {})
            return
        message = {"do": "derive", "orders": [order.model_dump(mode="json") for order in held.orders]}
        if not self._supervisor.run(flight, message):
            self._line.put(flight)

    def _answer(self, held: Held, refused: Refused) -> None:
        assert held.members is not None
        assert held.produced is not None
        answered = self._clerk.complete(held.flight, held.members, held.produced, refused)
        lines.answered(self._parts.catalog, held.flight, held.members, held.produced.version)
        self.counts.answered += answered.ended
        self.counts.retried += answered.retried
        self._release(held)

    def _fail(self, held: Held, error: BrokerError) -> None:
        self.counts.failed_attempts += 1
        members = held.members if held.members is not None else self._clerk.close(held.flight)
        members = spent(members, self._parts.settings.max_attempts) if held.spent else members
        lines.failed(held.flight, members, error)
        with self._leading.abandoning(held.flight):
            answered = self._clerk.fail(held.flight, members, error)
        self.counts.answered += answered.ended
        self.counts.retried += answered.retried
        self._release(held)

    def _guarded(self, held: Held, step: Any) -> None:
        """A step of a flight: losing it is no harm, silence of Redis leaves it to whoever finds it lapsed."""
        try:
            step(held)
        except Fenced:
            self.counts.fenced += 1
            self._release(held)
        except Transient:
            self._release(held)
        except BrokerError as error:
            self._guarded_fail(held, error)

    def _guarded_fail(self, held: Held, error: BrokerError) -> None:
        try:
            self._fail(held, error)
        except BrokerError:
            self._release(held)

    def _release(self, held: Held) -> None:
        self._leading.forget(held.flight)
        with self._lock:
            self._held.pop(held.flight.id, None)

    # --- follow

    def follow(self) -> int:
        """See after the jobs of the cut flights held here, and go on with those that are done. -> how many are followed"""
        flights = self._leading.flights
        for flight in flights:
            held = self._held.get(flight.id)
            if held is None or held.flight != flight:
                self._leading.forget(flight)
            else:
                self._guarded(held, self._look)
        return len(flights)

    def _look(self, held: Held) -> None:
        try:
            held.produced = self._leading.look(held.flight)
        except (AttemptFailed, StaleBase) as error:
            held.spent = isinstance(error, AttemptFailed)
            return self._fail(held, error)
        if held.produced is not None:
            self._leading.forget(held.flight)
            self._line.put(held.flight)
            self._supervisor.wake()

    # --- watch

    def beat(self) -> None:
        """Hold every flight for another lease; let go of what was lost, kill what nobody waits for any more."""
        for held in list(self._held.values()):
            try:
                wanted = self._requests.beat(held.flight, self._supervisor.progress(held.flight))
            except Fenced:
                self.counts.fenced += 1
                self._release(held)
                self._supervisor.abort(held.flight, "the flight went to another worker")
            except Transient:
                continue
            else:
                if not wanted and not self._supervisor.abort(held.flight, "cancelled"):
                    self._guarded(held, lambda held: self._fail(held, RequestCancelled("cancelled", of=held.flight.id)))

    def watch(self) -> None:
        """Limits of attempts, and what is due: at every pass where this worker serves a dataset, now and then everywhere.

        Deadlines end requests, too, that nobody alive can serve.
        """
        self._supervisor.inspect()
        slots = {slot.name: slot for slot in self._streams.of.values()}
        if time.monotonic() - self._looked > EVERYWHERE_SECONDS:
            self._looked = time.monotonic()
            slots |= {slot.name: slot for slot in self._parts.index.slots()}
        for slot in slots.values():
            with surviving(f"watch of {slot.name}"):
                self._watch(slot)
        if time.monotonic() - self._stolen > STEAL_SECONDS:
            self._stolen = time.monotonic()
            self._steal()

    def _watch(self, slot: Slot) -> None:
        due = self._requests.tick(slot)
        self._requests.expire(due.expired)
        self._requests.unpark(slot, [id for id, dataset in due.parked if self._serves(dataset)])
        for id, dataset in due.lapsed:
            if id not in self._held and self._serves(dataset):
                with surviving(f"take-over of {id}"):
                    self._take_over(id)

    def _take_over(self, id: str) -> None:
        flight = self._requests.take_over(id, self.name)
        if flight is None:
            return
        self.counts.taken_over += 1
        if flight.attempt <= self._parts.settings.max_attempts or self._leading.cuts(flight):  # parts count for themselves
            self._hold(flight)
            self._supervisor.wake()
            return
        held = Held(flight)
        error = AttemptFailed("poison: every attempt took its worker down", of=flight.id, why=f"{flight.attempt} attempts")
        self._guarded(held, lambda held: self._fail(held, error))

    def _steal(self) -> None:
        """Entries that a worker read and never claimed: it died in between."""
        slots = self._streams.of
        for entries in self._streams.stale(slots, int(self._parts.settings.lease_seconds * 1000)):
            self._claim(entries, slots)
        self._supervisor.wake()

    def close(self) -> None:
        """Leave the groups; what is held lapses to others."""
        self._streams.close()
