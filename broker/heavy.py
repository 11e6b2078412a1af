"""Heavy production: one flight cut into parts, each an RQ job, put together by a finaliser, which is an RQ job too.

    Lead.begin ─► parts noted ─► Lead.look: jobs enqueued, watched, tried again ─► the finaliser's answer ─► the flight goes on
                                   └─► Hands.make (per part): run, write, verify, record ─► last one: Hands.finalise: one edge

The flight stays the promise, held by a worker that occupies no child meanwhile; a job is only a pair of hands. A part that
has a result is never run again, whoever leads. Parts are not one moment of the source: each reads it when its turn comes,
so rows that move between parts meanwhile may be seen twice (DuplicateKey) or not at all. Cut by what never moves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from broker import hands
from broker.backend.jobs import MAINTENANCE, PARTS, Jobs, Look
from broker.cuts import FINALISE, Cut, CutPlan, Cuts, Progress
from broker.errors import AttemptFailed, BrokerError, Fenced, StaleBase, Terminal, Transient
from broker.flights import Flight
from broker.fulfilment import Produced, backoff
from broker.rules.fold import State
from broker.rules.steps import OnStep, nothing
from broker.settings import Settings

STEPS: Final = ("planned", *hands.STEPS)
"""The named steps of heavy production, in order: tests crash at each."""
RUN_PART: Final = "workers.jobs.run_part"
RUN_FINALISER: Final = "workers.jobs.finalise"
INSPECT_SECONDS: Final = 1.0
"""Between two looks at a flight's jobs: an error or a death waits no longer."""


def enqueue(jobs: Jobs, settings: Settings, flight: str, task: str, attempt: int) -> bool:
    """Have a task done. The id is the same whoever asks, so asking twice is one job."""
    args = (flight, attempt) if task == FINALISE else (flight, task, attempt)
    function = RUN_FINALISER if task == FINALISE else RUN_PART
    return jobs.enqueue(queue_of(task), job_of(flight, task, attempt), function, args, settings.attempt_seconds)


def queue_of(task: str) -> str:
    """Finalisers do not wait behind other flights' parts."""
    return MAINTENANCE if task == FINALISE else PARTS


def job_of(flight: str, task: str, attempt: int) -> str:
    return f"{flight}-{task}-{attempt}"


@dataclass(frozen=True, slots=True)
class Report:
    """One look at a flight: `produced` once it is all done. Both None: its ledger is gone, so it is over."""

    progress: Progress | None
    produced: Produced | None = None


@dataclass
class _Followed:
    """What the leader remembers of a flight between two looks, by monotonic clock; a successor begins anew."""

    inspected: float = float("-inf")
    signs: dict[str, tuple[str, float]] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)


class Lead:
    """What a worker does for the cut flights it holds: Redis only, no rows. `look` is for one thread, the rest for any."""

    def __init__(self, cuts: Cuts, jobs: Jobs, settings: Settings, app: str, on_step: OnStep = nothing) -> None:
        self._cuts, self._jobs, self._settings, self._app, self._on_step = cuts, jobs, settings, app, on_step
        self._followed: dict[str, _Followed] = {}

    def begun(self, flight: Flight) -> bool:
        """Whether somebody noted its parts already."""
        return self._cuts.plan_of(flight.id) is not None

    def begin(self, flight: Flight, parts: Sequence[str], state: State, position: Any) -> None:
        """Note the parts, and the state and position that all of them are told of; `look` has them run. Raises Fenced."""
        self._cuts.plan(
            flight,
            CutPlan(
                dataset=flight.dataset, app=self._app, parts=tuple(parts), version=state.version, first=not state.edges,
                position=position, started=time.time(),
            ),
        )  # fmt: skip
        self._on_step("planned")

    def look(self, flight: Flight) -> Report:
        """How far it is; enqueues what has no job, tries again what failed or died.

        Raises Fenced; a part's terminal error; AttemptFailed naming the task that used up its attempts; StaleBase.
        """
        found = self._cuts.progress(flight.id)
        if found is None:
            return Report(None)
        progress, result = found
        if result is not None:
            self._followed.pop(flight.id, None)
            return Report(progress, produced_of(result, str(flight.dataset)))
        followed = self._followed.setdefault(flight.id, _Followed())
        if time.monotonic() - followed.inspected >= INSPECT_SECONDS:
            followed.inspected = time.monotonic()
            self._inspect(flight, followed)
        return Report(progress)

    def cut(self, flight: Flight) -> Cut | None:
        """Its ledger, for `stop`: to be asked for before the flight ends, since both end together."""
        return self._cuts.load(flight.id)

    def stop(self, flight: Flight, cut: Cut) -> None:
        """Stop what may still work for a flight that is over; what cannot be stopped finds no ledger, and ends by itself."""
        ids = {task: job_of(flight.id, task, attempt) for task, attempt in cut.attempts.items() if task not in cut.results}
        self._jobs.stop(PARTS, [id for task, id in ids.items() if task != FINALISE])
        self._jobs.stop(MAINTENANCE, [id for task, id in ids.items() if task == FINALISE])

    def forget(self, flight: Flight) -> None:
        """It is over, or another worker's: its jobs run on for that one."""
        self._followed.pop(flight.id, None)

    def _inspect(self, flight: Flight, followed: _Followed) -> None:
        cut = self._cuts.load(flight.id)
        tasks = cut.open_tasks if cut else ()
        if cut is None or not tasks:
            return
        ids = [job_of(flight.id, task, cut.attempts[task]) for task in tasks]
        for task, id, look in zip(tasks, ids, self._jobs.look(queue_of(tasks[0]), ids), strict=True):
            error = cut.error_of(task) or self._death(followed, id, look)
            if error is not None:
                self._try_again(flight, cut, task, error, followed)
            elif look.condition == "absent":
                enqueue(self._jobs, self._settings, flight.id, task, cut.attempts[task])

    def _death(self, followed: _Followed, id: str, look: Look) -> AttemptFailed | None:
        """How a job died; None while it waits or lives. One that shows no sign of life for a lease's time is lost."""
        if look.condition == "dead":
            return AttemptFailed("the attempt died", why=look.why)
        if look.condition != "running":
            return None
        sign, since = followed.signs.get(id, ("", 0.0))
        if sign != look.sign:
            followed.signs[id] = (look.sign, time.monotonic())
        elif time.monotonic() - since > self._settings.lease_seconds:
            return AttemptFailed("the attempt died", why="its RQ worker is silent")
        return None

    def _try_again(self, flight: Flight, cut: Cut, task: str, error: BrokerError, followed: _Followed) -> None:
        attempt = cut.attempts[task]
        of = f"{flight.dataset} {cut.plan.name_of(task)}"
        if isinstance(error, StaleBase) or not isinstance(error, Transient | Fenced):
            raise type(error)(error.what, of=f"{of}: {error.of}" if error.of else of, why=error.why, hint=error.hint)
        if attempt >= self._settings.max_attempts:
            raise AttemptFailed(
                f"all {attempt} attempts failed", of=of, why=f"{error.what}: {error.why}", hint="Look at the producer's log"
            )
        job = job_of(flight.id, task, attempt)
        due = followed.due.setdefault(job, time.monotonic() + backoff(self._settings, attempt, job))
        if time.monotonic() >= due:
            enqueue(self._jobs, self._settings, flight.id, task, self._cuts.again(flight, task, attempt))


def produced_of(result: str, of: str) -> Produced:
    """The finaliser's answer. Raises Terminal when another release of the broker gave it, as in the middle of an upgrade."""
    try:
        return Produced.model_validate_json(result)
    except ValidationError as error:
        raise Terminal(
            "the finaliser's answer cannot be read", of=of, why=str(error.errors()[0]["msg"]),
            hint="Run workers of one release: broker --version",
        ) from None  # fmt: skip
