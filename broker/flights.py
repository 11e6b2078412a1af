"""What the ledger of requests takes and gives, as values: orders, flights with their members, answers, and their JSON forms."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from broker.backend.client import Entry
from broker.backend.keys import Slot, flight_lease
from broker.errors import BrokerError
from broker.model.commit import Fence
from broker.model.event import EventType, envelope
from broker.model.names import DatasetId
from broker.model.request import Completion, Priority, Request, State
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
    """A request as Redis knows it. `progress` of its flight: rows, bytes, total where known."""

    id: str
    state: State
    request: Request
    attempts: int
    created: float
    waits: str | None = None
    flight: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    completion: Completion | None = None


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
    """The completion inside a terminal event."""
    return Completion.model_validate(json.loads(event)["data"])


def dataset_of(entry: Entry) -> DatasetId:
    """Which dataset an entry of a request stream rings for."""
    return DatasetId(entry.fields[b"d"].decode())


def flight_of(worker: str, outcome: Sequence[Any]) -> Flight:
    """From a claim's reply about the request that opened the flight."""
    _, _, body, attempts, id, epoch, counter, kind, version, position, started = outcome
    request, fence = Request.model_validate_json(body), Fence(int(epoch), int(counter))
    return Flight(
        id=id.decode(), dataset=request.dataset, kind=kind.decode(), owner=worker, fence=fence, attempt=int(attempts),
        priority=request.priority, noted=(int(version), json.loads(position)), started=int(started) / 1000,
    )  # fmt: skip


def status_of(id: str, known: Mapping[str, bytes], progress: dict[str, Any]) -> Status:
    """A request's hash, read."""
    return Status(
        id=id, state=State(known["state"].decode()), request=Request.model_validate_json(known["body"]),
        attempts=int(known["attempts"]), created=int(known["created"]) / 1000,
        waits=known["wait"].decode() if "wait" in known else None,
        flight=known["flight"].decode() if "flight" in known else None, progress=progress,
        completion=completion_of(known["done"]) if "done" in known else None,
    )  # fmt: skip


def ended(id: str, request: Request, state: State, attempts: int = 0, error: BrokerError | None = None) -> Completion:
    """A terminal answer without data."""
    return Completion(
        request=id, dataset=request.dataset, target=request.target, state=state, format=request.format, attempts=attempts,
        error=error.to_dict() if error else None, attributes=request.attributes,
    )  # fmt: skip
