"""What the ledger of requests takes and gives, as values: orders, flights with their members, answers, and their JSON forms."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import ValidationError

from broker.backend.client import Entry, RedisClient, Script
from broker.backend.keys import Slot, flight_lease
from broker.backend.lanes import Argument
from broker.errors import BrokerError, Fenced, InvalidName, Unsupported
from broker.model.commit import Fence
from broker.model.event import EventType, envelope
from broker.model.names import DatasetId
from broker.model.request import Completion, Priority, Request, State, slot_of
from broker.rules.publishing import Lease

Kind = Literal["produce", "derive"]


@dataclass(frozen=True, slots=True)
class Order:
    """A request on its way in. `answer`: what to answer at once, if the head is still `seq` and fresh enough.

    `seq` 0: the head was not looked at, since no staleness is allowed.
    """

    id: str
    slot: Slot
    request: Request
    derivation: str
    answer: Completion | None = None
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Submitted:
    """`how`: queued | backlog (the tenant's line) | answered (at once) | same (this id or idempotency key is known)."""

    id: str
    how: Literal["queued", "backlog", "answered", "same"]
    seq: int


@dataclass(frozen=True, slots=True)
class Flight:
    """One production or derivation held by this worker. Its id is the production id in the commit record.

    `started`: when it was opened, seconds since the epoch by Redis' clock, with which staleness is measured (0: not known).
    `noted`: the newest version (0: none) and the producer's position, as the claim saw them; None after a take-over.
    """

    id: str
    dataset: DatasetId
    kind: Kind
    owner: str
    fence: Fence
    attempt: int
    priority: Priority = "normal"
    noted: tuple[int, Any] | None = None
    started: float = 0.0

    def __str__(self) -> str:
        return self.id

    @property
    def lease(self) -> Lease:
        return Lease(flight_lease(self.id), self.owner, self.fence)


def fenced(redis: RedisClient, script: Script, flight: Flight, args: Sequence[Argument] = (), *keys: bytes) -> Any:
    """Run a script of the flight's slot that acts only while this flight is held; its reply. Raises Fenced."""
    fence: list[Argument] = [flight.id, flight.fence.epoch, flight.fence.counter]
    reply = redis.call(script, [Slot(slot_of(flight.id)).meta, *keys], [*fence, *args])
    if reply == b"fenced":
        raise Fenced("the flight went to another worker", of=flight.id, why=f"{flight.owner} was silent too long")
    return reply


@dataclass(frozen=True, slots=True)
class Member:
    """A request that waits for a flight's answer. `attempts` counts this one."""

    id: str
    request: Request
    attempts: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """What became of entries read from a request stream: flights to run, and requests whose deadline had passed."""

    flights: tuple[Flight, ...]
    joined: int
    expired: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Due:
    """What a tick found: requests past their deadline, flights past their lease, requests no reader could serve."""

    expired: tuple[str, ...]
    lapsed: tuple[tuple[str, DatasetId], ...]
    parked: tuple[tuple[str, DatasetId], ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a production that ended well says of one version: current at `at` (seconds), read up to `position` (JSON)."""

    session: str
    version: int
    at: float
    position: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Try a member again, `delay_seconds` from now. `cause`: why this attempt failed, for the dead letter it may become."""

    id: str
    delay_seconds: float
    cause: BrokerError | None = None

    def to_argument(self) -> str:
        return f"{int(self.delay_seconds * 1000)} {json.dumps(self.cause.to_dict()) if self.cause else ''}"


@dataclass(frozen=True)
class Status:
    """A request as Redis knows it. `progress` of its flight: rows, bytes, total where known.

    `causes`: why attempts failed before another was made, as error fields, oldest first; `completion` has the last one's.
    """

    id: str
    state: State
    request: Request
    attempts: int
    created: float
    waits: str | None = None
    flight: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    completion: Completion | None = None
    causes: tuple[dict[str, str], ...] = ()


TERMINAL_EVENTS: Final[dict[State, EventType]] = {
    State.COMPLETED: "broker.request.completed",
    State.FAILED: "broker.request.failed",
    State.CANCELLED: "broker.request.cancelled",
    State.EXPIRED: "broker.request.expired",
}


def completion_event(completion: Completion) -> str:
    """The terminal event, as JSON: its id is the request's, so a redelivery shows."""
    data = completion.model_dump_json(exclude_defaults=True)
    return envelope(completion.request, TERMINAL_EVENTS[completion.state], completion.dataset, time.time(), data)


def completion_of(event: bytes | str) -> Completion:
    """The completion inside a terminal event. Raises Unsupported as `request_of`."""
    data = json.loads(event)["data"]
    with _of_this_release(f"completion of {data.get('request')}"):
        return Completion.model_validate(data)


def request_of(id: str, body: bytes | None) -> Request:
    """Raises Unsupported for a body of another release: a field that is not known here may change what is asked."""
    with _of_this_release(id):
        return Request.model_validate_json(body or b"")


def outline_of(id: str, body: bytes | None, dataset: bytes, target: bytes) -> Request:
    """The request, or, where its body cannot be read, as much of it as its end must name."""
    try:
        return request_of(id, body)
    except Unsupported:
        return Request(dataset=DatasetId(dataset.decode()), target=target.decode())


@contextmanager
def _of_this_release(of: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise Unsupported(
            "this release cannot read it", of=of, why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            hint="Another release of the broker wrote it: update the one that reads",
        ) from None  # fmt: skip


def dataset_of(entry: Entry) -> DatasetId | None:
    """Which dataset an entry of a request stream rings for; None where it does not say: its request does."""
    try:
        return DatasetId(entry.fields.get(b"d", b"").decode())
    except (InvalidName, UnicodeDecodeError):
        return None


def flight_of(worker: str, outcome: Sequence[Any]) -> Flight:
    """From a claim's reply about the request that opened the flight."""
    _, _, dataset, priority, attempts, id, epoch, counter, kind, version, position, started = outcome
    return Flight(
        id=id.decode(), dataset=DatasetId(dataset.decode()), kind=kind.decode(), owner=worker,
        fence=Fence(int(epoch), int(counter)), attempt=int(attempts), priority=priority.decode(),
        noted=(int(version), json.loads(position)), started=int(started) / 1000,
    )  # fmt: skip


def hash_of(flat: Sequence[bytes]) -> dict[str, bytes]:
    """A Redis hash (or entry of a stream) by field, from names and values in turn."""
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def status_of(id: str, known: Mapping[str, bytes], progress: dict[str, Any]) -> Status:
    """A request's hash, read. Raises Unsupported as `request_of`."""
    return Status(
        id=id, state=State(known["state"].decode()), request=request_of(id, known["body"]),
        attempts=int(known["attempts"]), created=int(known["created"]) / 1000,
        waits=known["wait"].decode() if "wait" in known else None,
        flight=known["flight"].decode() if "flight" in known else None, progress=progress,
        completion=completion_of(known["done"]) if "done" in known else None,
        causes=tuple(json.loads(b"[%s]" % known.get("causes", b""))),
    )  # fmt: skip


def ended(id: str, request: Request, state: State, attempts: int = 0, error: BrokerError | None = None) -> Completion:
    """A terminal answer without data."""
    return Completion(
        request=id, dataset=request.dataset, target=request.target, state=state, format=request.format, attempts=attempts,
        error=error.to_dict() if error else None, attributes=request.attributes,
    )  # fmt: skip
