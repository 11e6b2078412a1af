"""Looking at requests without touching them: the newest ones, dead letters, and what one of them waits for."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from broker.backend.client import RedisClient
from broker.backend.driver_errors import mapped
from broker.backend.keys import Slot
from broker.backend.registry import Registry, Worker
from broker.errors import NotFound, Unsupported
from broker.flights import Status, completion_of, hash_of, request_of, status_of
from broker.model.names import DatasetId
from broker.model.request import PRIORITIES, Completion, Request, State, slot_of
from broker.requests import Requests
from broker.rules.patterns import pattern_matches

SCAN_KEYS: Final = 100_000
"""Keys one listing looks at on each server, at most, so that a full Redis does not hold a person up."""
SCAN_PAGE: Final = 1_000
PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that failed for good. `causes`: why each attempt failed, as error fields, the last one last.

    `request` None: another release wrote it, and this one cannot read it.
    """

    entry: bytes
    completion: Completion
    request: Request | None
    causes: tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class FlightView:
    """The production or derivation a request rides on. Times are seconds since the epoch."""

    id: str
    kind: str
    state: str
    owner: str
    started: float
    until: float


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What is known of one request. `waits_for` and `why` are sentences for people; `waits_for` is '' once it has ended."""

    status: Status
    flight: FlightView | None
    workers: tuple[Worker, ...]
    waits_for: str
    why: str


@dataclass(frozen=True, slots=True)
class Queues:
    """Counts of one slot. `queued`: dataset name -> unread entries."""

    slot: str
    queued: dict[str, int]
    flights: int
    delayed: int
    parked: int
    dead: int
    workers: tuple[Worker, ...]


class Inquiry:
    """Reads only. Safe for threads."""

    def __init__(self, redis: RedisClient, requests: Requests) -> None:
        self._redis, self._requests = redis, requests
        self._registry = Registry(redis)
        self._outstanding = redis.script("outstanding", writes=False)

    def recent(self, slot: Slot) -> Iterator[Status]:
        """Requests Redis remembers, newest first, among at most SCAN_KEYS keys looked at."""
        ids = self._ids(slot)
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            replies = self._redis.replies([("HGETALL", slot.request(id)) for id in page], slot.name, writes=False)
            for id, flat in zip(page, replies, strict=True):
                with suppress(Unsupported):  # another release wrote it: it shows once it is a dead letter
                    if flat:
                        yield status_of(id, hash_of(flat), {})

    def newest(self, slots: Iterable[Slot]) -> Iterator[Status]:
        """As `recent`, of several slots: reads as far as it is asked."""
        return heapq.merge(*map(self.recent, slots), key=lambda status: status.id.rpartition(".")[2], reverse=True)

    def dead(self, slot: Slot, limit: int = PAGE) -> list[DeadLetter]:
        """The newest dead letters."""
        reply = self._redis.run("XREVRANGE", slot.dead, "+", "-", "COUNT", limit, writes=False)
        return [_dead(entry, hash_of(flat)) for entry, flat in reply]

    def dead_letter(self, id: str) -> DeadLetter | None:
        """The dead letter of a request; None when it has none."""
        slot, last = Slot(slot_of(id)), b"+"
        while page := self._redis.run("XREVRANGE", slot.dead, last, "-", "COUNT", PAGE, writes=False):
            for entry, flat in page:
                letter = _dead(entry, hash_of(flat))
                if letter.completion.request == id:
                    return letter
            last = b"(" + page[-1][0]
        return None

    def outstanding(self, slot: Slot) -> list[DatasetId]:
        """Datasets of the slot with a request queued, in flight, delayed or parked, as of one moment."""
        return [DatasetId(name.decode()) for name in self._redis.call(self._outstanding, [slot.meta], [PAGE])]

    def serving(self, dataset: DatasetId, slot: Slot) -> list[Worker]:
        """Live workers whose patterns match the dataset."""
        return [worker for worker in self._registry.alive(slot) if any(pattern_matches(p, dataset) for p in worker.patterns)]

    def queues(self, slot: Slot, datasets: Sequence[DatasetId]) -> Queues:
        """What waits in a slot."""
        names = sorted({dataset.name for dataset in datasets})
        streams = [(name, slot.requests(name, priority)) for name in names for priority in PRIORITIES]
        sizes = self._redis.replies([("XLEN", stream) for _, stream in streams], slot.name, writes=False)
        queued = dict.fromkeys(names, 0)
        for (name, _), size in zip(streams, sizes, strict=True):
            queued[name] += int(size)
        others = [
            ("ZCARD", slot.key("lapse")),
            ("ZCARD", slot.key("delayed")),
            ("HLEN", slot.key("parked")),
            ("XLEN", slot.dead),
        ]
        flights, delayed, parked, dead = map(int, self._redis.replies(others, slot.name, writes=False))
        return Queues(slot.name, queued, flights, delayed, parked, dead, tuple(self._registry.alive(slot)))

    def whereabouts(self, id: str) -> Whereabouts:
        """Where a request is and what it waits for. Raises NotFound, RequestLost."""
        status, slot = self._requests.status(id), Slot(slot_of(id))
        flight = self._flight(slot, status.flight) if status.flight else None
        workers = tuple(self.serving(status.request.dataset, slot))
        parked, due, unread = self._queue_facts(slot, status)
        waits_for, why = reason_of(status, flight, workers, parked, due - self._registry.now() if due else None, unread)
        return Whereabouts(status, flight, workers, waits_for, why)

    def _queue_facts(self, slot: Slot, status: Status) -> tuple[bool, float | None, int]:
        """Parked or not, when it is due again (seconds since the epoch), how many entries its stream holds."""
        stream = slot.requests(status.request.dataset.name, status.request.priority)
        commands = [("HEXISTS", slot.key("parked"), status.id), ("ZSCORE", slot.key("delayed"), status.id), ("XLEN", stream)]
        parked, due, unread = self._redis.replies(commands, status.id, writes=False)
        return bool(parked), float(due) / 1000 if due else None, int(unread)

    def _flight(self, slot: Slot, id: str) -> FlightView | None:
        flat = self._redis.run("HGETALL", slot.flight(id), writes=False)
        if not flat:
            return None
        known = {name: value.decode() for name, value in hash_of(flat).items()}
        return FlightView(
            id, known["kind"], known["state"], known["owner"], int(known.get("started", 0)) / 1000, int(known["until"]) / 1000
        )

    def _ids(self, slot: Slot) -> list[str]:
        """Newest first: an id sorts by time of birth."""
        found, pages = list[str](), SCAN_KEYS // SCAN_PAGE
        with mapped(slot.name, writes=False):
            for server in self._redis.servers():
                cursor, keys = 0, list[bytes]()
                for _ in range(pages):
                    cursor, keys = cast(Any, server).scan(cursor, match=slot.request("*"), count=SCAN_PAGE)
                    found += [key.decode().rpartition(":")[2] for key in keys]
                    if int(cursor) == 0:
                        break
        return sorted(found, reverse=True)


def reason_of(
    status: Status, flight: FlightView | None, workers: Sequence[Worker], parked: bool, due_in: float | None, unread: int
) -> tuple[str, str]:
    """(what the request waits for, why): the decision behind `whereabouts`. ('', how it ended) once it is terminal."""
    dataset = status.request.dataset
    if status.state.terminal:
        return "", f"it ended as {status.state}"
    if status.waits == "backlog":
        return "its tenant's turn", f"{dataset.tenant} has as many requests in work as it may"
    if due_in is not None:
        return f"its next attempt, in {max(0.0, due_in):.1f} s", f"attempt {status.attempts} failed with an error that may pass"
    if status.state is State.RUNNING and flight is not None:
        return f"the {'production' if flight.kind == 'produce' else 'derivation'} {flight.id}", f"{flight.owner} holds it"
    if not workers:
        return "a worker", f"no-producer: no live worker's patterns match {dataset}"
    if parked:
        return "a worker that serves it", "the one that read it does not; another picks it up"
    return "a free worker", f"{unread} request(s) in its stream, {len(workers)} worker(s) serve it"


def _dead(entry: bytes, known: dict[str, bytes]) -> DeadLetter:
    completion = completion_of(known["e"])
    causes: list[Any] = json.loads(known.get("c", b"[]"))
    last = [completion.error] if completion.error else []
    try:
        body = request_of(completion.request, known.get("b"))
    except Unsupported:
        body = None
    return DeadLetter(entry, completion, body, (*causes, *last))


def find_request(inquiry: Inquiry, requests: Requests, id: str) -> Request:
    """What a request asked, from its own memory or from its dead letter. Raises NotFound."""
    letter = inquiry.dead_letter(id)
    if letter is not None and letter.request is not None:
        return letter.request
    try:
        return requests.status(id).request
    except NotFound:
        raise NotFound("no such request, and no dead letter of it", of=id, hint="See: broker requests dead") from None


__all__ = ["DeadLetter", "FlightView", "Inquiry", "Queues", "Whereabouts", "find_request", "reason_of"]
