"""The ledger of cut productions: which parts a flight has, what became of each. The only writer of `parts:<flight>`.

    Lead (heavy.py)         plan ─► look, again                          with the flight's fence
    Hands (an RQ job each)  read ─► work ─► record; whoever hears `last` has the finaliser enqueued

A task is a part, named by its number, or `finalise`. The first result of a task counts, whichever attempt made it, so two
attempts at one part do no harm. The whole ledger of a flight goes when the flight ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from broker.backend.client import RedisClient
from broker.backend.keys import Slot
from broker.backend.lanes import Argument
from broker.errors import BrokerError, from_dict
from broker.flights import Flight, fenced, hash_of
from broker.model.commit import Fence, File
from broker.model.dataset import Frozen, Schema
from broker.model.names import DatasetId
from broker.model.request import slot_of

FINALISE: Final = "finalise"


class CutPlan(Frozen):
    """How a production is cut. Every part is told the same newest `version` and, of `position`, what is its own.

    `first`: no version stands that a part could know of, so it is told nothing, and makes rows whatever it gives.
    `app` names the application that holds the producer, as module:attribute; `started` is seconds since the epoch.
    """

    dataset: DatasetId
    app: str
    parts: tuple[str, ...]
    version: int
    first: bool
    position: Any = None
    started: float

    def name_of(self, task: str) -> str:
        """For messages: the part's own name."""
        return f"part {self.parts[int(task)]!r}" if task != FINALISE else "the finaliser"


class PartMade(Frozen):
    """What one part gave: sealed files nobody names yet. `schema_after` is the dataset's, as this part's rows would make it."""

    kind: Literal["snapshot", "delta", "unchanged"]
    files: tuple[File, ...] = ()
    schema_after: Schema | None = None
    position: Any = None
    attributes: dict[str, str] = {}  # noqa: RUF012 - pydantic copies defaults

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a cut production is; rows and bytes are those of its finished parts."""

    parts_done: int
    parts_total: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Cut:
    """A flight's ledger at one moment."""

    plan: CutPlan
    attempts: dict[str, int]
    results: dict[str, str]
    errors: dict[str, dict[str, str]]

    @property
    def open_tasks(self) -> tuple[str, ...]:
        """Tasks to be done now: parts without a result; with none left the finaliser; then nothing."""
        parts = tuple(task for task in map(str, range(len(self.plan.parts))) if task not in self.results)
        return parts or ((FINALISE,) if FINALISE not in self.results else ())

    def error_of(self, task: str) -> BrokerError | None:
        """What the present attempt said went wrong; None: nothing yet, or it died silently."""
        fields = self.errors.get(task)
        return from_dict(fields) if fields else None

    def made(self) -> Iterator[tuple[str, PartMade]]:
        """Each finished part's name and result."""
        for number, name in enumerate(self.plan.parts):
            if (text := self.results.get(str(number))) is not None:
                yield name, PartMade.model_validate_json(text)


class Cuts:
    """Safe for threads and processes; every change is one atomic script."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._scripts = {name: redis.script(f"parts_{name}") for name in ("plan", "record", "again")}

    def plan(self, flight: Flight, plan: CutPlan) -> None:
        """Note the parts; a plan that stands already stays. Raises Fenced."""
        fenced(self._redis, self._scripts["plan"], flight, [plan.model_dump_json(), len(plan.parts)])

    def again(self, flight: Flight, task: str, attempt: int) -> int:
        """Count another attempt at a task whose attempt number `attempt` came to nothing; -> the one to run. Raises Fenced."""
        return int(fenced(self._redis, self._scripts["again"], flight, [task, attempt]))

    def done(self, flight: str, task: str, attempt: int, result: str, size: tuple[int, int] = (0, 0)) -> bool:
        """Record a result (JSON) with its rows and bytes. True: no part is left, so the finaliser is due. Idempotent."""
        return bool(self._record(flight, task, attempt, "done", result, *size) == b"last")

    def failed(self, flight: str, task: str, attempt: int, error: BrokerError) -> None:
        """Record why an attempt failed, for the flight's holder to read. Idempotent."""
        self._record(flight, task, attempt, "error", json.dumps(error.to_dict()), 0, 0)

    def plan_of(self, flight: str) -> CutPlan | None:
        """None: the flight is over, or not cut."""
        text = self._redis.run("HGET", Slot(slot_of(flight)).parts(flight), "plan", writes=False)
        return CutPlan.model_validate_json(text) if text else None

    def load(self, flight: str) -> Cut | None:
        """Everything about a flight's parts; None: it is over, or not cut."""
        flat = self._redis.run("HGETALL", Slot(slot_of(flight)).parts(flight), writes=False)
        fields = {name: value.decode() for name, value in hash_of(flat).items()}
        if "plan" not in fields:
            return None

        def under(prefix: str) -> dict[str, str]:
            return {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}

        return Cut(
            plan=CutPlan.model_validate_json(fields["plan"]),
            attempts={task: int(text) for task, text in under("attempt:").items()},
            results=under("done:"),
            errors={task: json.loads(text) for task, text in under("error:").items()},
        )

    def progress(self, flight: str) -> tuple[Progress, str | None] | None:
        """How far it is, and the finaliser's result (JSON) once it is there; None: the flight is over, or not cut."""
        names = ("total", "left", "rows", "bytes", f"done:{FINALISE}")
        total, left, rows, size, result = self._redis.run("HMGET", Slot(slot_of(flight)).parts(flight), *names, writes=False)
        if total is None:
            return None
        found = Progress(int(total) - int(left), int(total), int(rows), int(size))
        return found, result.decode() if result else None

    def flight(self, id: str) -> Flight | None:
        """The flight as its present holder holds it: its fence is what the finaliser commits under. None: it is over."""
        names = ("dataset", "kind", "owner", "epoch", "counter")
        dataset, kind, owner, epoch, counter = self._redis.run("HMGET", Slot(slot_of(id)).flight(id), *names, writes=False)
        if dataset is None:
            return None
        return Flight(id, DatasetId(dataset.decode()), kind.decode(), owner.decode(), Fence(int(epoch), int(counter)), 0)

    def _record(self, flight: str, *args: Argument) -> Any:
        return self._redis.call(self._scripts["record"], [Slot(slot_of(flight)).meta], [flight, *args])
