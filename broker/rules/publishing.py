"""The publishing protocol (DESIGN.md, section 3) as a state machine without I/O.

`commit`, `settle` and `reconcile` are generators: each `yield` is an effect, whoever drives them sends its outcome back.
The product drives them against Redis and the store (catalog_driver.py); the simulator drives the very same code through lost
replies, delayed writes, crashes and a Redis that forgets. Dropping the generator at a yield is a crash at that step.

    read head ──► reserve ──► seal ──► read back ──► publish ──► notify ──► own record? ──► state
        │            │ occupied: settle the other's reservation ─┐
        │            │ moved ────────────────────────────────────┤ begin again: every round asks the draft anew
        └ another incarnation of Redis: walk the log, seal a barrier ┘

Only what was read back from the log is ever published. A reservation is never dropped: whoever meets one seals its bytes.
A lost reply needs no memory: the draft looks at the head and says that nothing is left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, Literal

from broker.errors import Corrupt, Fenced, Reconciling, StaleBase
from broker.model.commit import Barrier, Body, Fence, Record
from broker.rules.fold import State, fold

STEPS: Final = ("reserve", "seal", "read-back", "publish", "notify")
"""The named steps of publishing, in order: tests crash at each."""
MAX_ROUNDS: Final = 64
"""Bound of every loop: a head that moves so often under one writer is a livelock to report, not to sit in."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write under `name`, checked by fence at the moment of effect."""

    name: str
    owner: str
    fence: Fence


# --- effects: what the machine asks for --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadHead:
    """-> HeadView"""


@dataclass(frozen=True, slots=True)
class Reserve:
    """One atomic step: check incarnation, lease, head and that no reservation is open; fix seq and bytes. -> ReserveAnswer"""

    seq: int
    previous: str
    data: bytes
    lease: Lease | None
    age_seconds: float
    ends_lease: bool = False


@dataclass(frozen=True, slots=True)
class Seal:
    """Put-if-absent of log/<seq>; created, refused and unknown are one answer: read back. -> None"""

    seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ReadLog:
    """-> bytes of log/<seq>, or None when it is surely not there"""

    seq: int


@dataclass(frozen=True, slots=True)
class ReadCheckpoint:
    """-> State of the newest sealed checkpoint, or None"""


@dataclass(frozen=True, slots=True)
class Install:
    """One atomic step: make `state` the projection, unless the head is there or further. -> None

    `adopt`: lets this incarnation in without a barrier, for a dataset whose log is empty.
    """

    state: State
    adopt: str | None = None


@dataclass(frozen=True, slots=True)
class Publish:
    """One atomic step: move the head by exactly this sealed record; needs no right, sealed is sealed. -> PublishAnswer

    A barrier for the server's present incarnation makes the projection current.
    """

    seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Notify:
    """Write notify/<channel>.json for the head, again until the head stands still; the janitor makes up for a crash. -> None"""


Effect = ReadHead | Reserve | Seal | ReadLog | ReadCheckpoint | Install | Publish | Notify
Step = Generator[Effect, Any, None]


# --- outcomes: what the driver answers ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeadView:
    """The projection at one moment. `current`: it belongs to this incarnation of the server, whose id is `run_id`.

    `epoch`: the fence epoch of this incarnation. `reservation`: (seq, bytes) that nobody has published yet.
    """

    state: State
    current: bool
    run_id: str
    epoch: int
    reservation: tuple[int, bytes] | None = None


@dataclass(frozen=True, slots=True)
class ReserveAnswer:
    """`refused` covers every reason to look at the head again: it moved, a reservation is open, the incarnation changed.

    `unknown`: the reply was lost. The next look at the head shows whether the reservation stands; until then it may.
    """

    kind: Literal["reserved", "refused", "fenced", "too-old", "unknown"]

    @property
    def may_stand(self) -> bool:
        return self.kind in ("reserved", "unknown")


@dataclass(frozen=True, slots=True)
class PublishAnswer:
    """`behind`: the head is before seq - 1. `differs`: the record does not name the head's SHA-256."""

    kind: Literal["published", "behind", "differs"]


# --- the machine -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draft:
    """What a writer wants to record.

    `body_for` looks at a head and answers the body, or None when the head shows the work done (so a retry is harmless). It
    raises StaleBase when the work was made for another head, Conflict when the head forbids it.

    `ends_lease`: the reservation gives the lease back. Whoever takes it next meets the reservation, and settles it first.
    """

    write_id: str
    producer: str
    body_for: Callable[[State], Body | None]
    now: Callable[[], float]
    lease: Lease | None = None
    age_seconds: Callable[[], float] = lambda: 0.0
    ends_lease: bool = False

    def record(self, state: State, body: Body) -> Record:
        return Record(
            seq=state.seq + 1, previous=state.sha, write_id=self.write_id, time=self.now(), producer=self.producer,
            fence=self.lease.fence if self.lease else None, body=body,
        )  # fmt: skip


def commit(draft: Draft, seen: HeadView | None = None) -> Generator[Effect, Any, State]:
    """Seal and publish what the draft wants; the state in which it is done. `seen`: a look that the caller has had.

    Raises Fenced, StaleBase, or what `draft.body_for` raises: then nothing of it is or becomes visible. A crash behind
    `reserve` leaves a reservation that anyone finishes.
    """
    for _ in range(MAX_ROUNDS):
        view: HeadView = seen or (yield ReadHead())
        seen = None
        if not view.current:
            yield from reconcile()
            continue
        if view.reservation is not None:
            yield from settle(*view.reservation)
            continue
        body = draft.body_for(view.state)
        if body is None:
            return view.state
        record = draft.record(view.state, body)
        data = record.to_bytes()
        answer: ReserveAnswer = yield Reserve(
            record.seq, record.previous, data, draft.lease, draft.age_seconds(), draft.ends_lease
        )
        if answer.kind == "reserved":
            if (yield from settle(record.seq, data)) == data:
                return fold(view.state, data)
            if draft.ends_lease:
                why = "the lease went with the reservation"
                raise StaleBase("another record came first", of=draft.producer, why=why, hint="Again")
        elif answer.kind == "fenced":
            raise Fenced(
                "the lease was lost before the commit", of=str(draft.lease), hint="Stop: somebody else does this work now"
            )
        elif answer.kind == "too-old":
            raise StaleBase(
                "the uploaded files are too old", of=draft.producer, why="the orphan sweep may meet them", hint="Again"
            )
    raise StaleBase("the head moved too often", of=draft.producer, why=f"{MAX_ROUNDS} rounds", hint="Use fewer writers at once")


def settle(seq: int, data: bytes) -> Generator[Effect, Any, bytes]:
    """Seal `data` at `seq` unless something stands there; publish what stands there; ring the bell. -> what stands there"""
    for _ in range(MAX_ROUNDS):
        yield Seal(seq, data)
        found = yield from _read_back(seq, data)
        if found is not None:
            yield from publish(seq, found)
            yield Notify()
            return found
    raise Reconciling("the store takes writes and does not show them", of=f"log {seq}", hint="Check the store: broker doctor")


def _read_back(seq: int, data: bytes) -> Generator[Effect, Any, bytes | None]:
    """What stands at `seq`: `data`, or a foreign record that two reads show alike; else None, and the caller looks again.

    The next record will name the SHA-256 of what is published here, so a bit that flipped on its way would break the log.
    """
    found: bytes | None = yield ReadLog(seq)
    if found is None or found == data:
        return found
    again: bytes | None = yield ReadLog(seq)
    return found if again == found else None


def publish(seq: int, data: bytes) -> Step:
    """Move the head over the sealed record, and first over everything the log holds before it. Raises Corrupt."""
    for _ in range(MAX_ROUNDS):
        answer: PublishAnswer = yield Publish(seq, data)
        if answer.kind == "published":
            return
        if answer.kind == "differs":
            raise Corrupt("the log does not continue the index", of=f"log {seq}", hint="Run: broker rebuild")
        view: HeadView = yield ReadHead()
        yield from _walk(view.state)
    raise Reconciling("the head does not follow the log", of=f"log {seq}", hint="Is Redis restarting again and again?")


def reconcile() -> Step:
    """Bring the projection of another incarnation up to the log, then close the log to that incarnation's writers.

    The barrier takes the next free seq, so a writer that had reserved it before the loss finds a foreign record there and
    begins again. Idempotent: several processes may run it at once.
    """
    for _ in range(MAX_ROUNDS):
        view: HeadView = yield ReadHead()
        if view.current:
            return
        state = yield from _walk(view.state)
        if state.seq == 0 and view.reservation is None:
            yield Install(state, adopt=view.run_id)
        elif view.reservation is not None and view.reservation[0] == state.seq + 1:
            yield Seal(*view.reservation)
        elif state.seq == view.state.seq:
            yield from _close_log(view)
        # Else the walk moved the head, perhaps over this incarnation's barrier: writers may be at work, so look again.
    raise Reconciling(
        "the index does not come to rest", why=f"{MAX_ROUNDS} rounds", hint="Is Redis restarting again and again?"
    )


def _close_log(view: HeadView) -> Step:
    """Seal the barrier of the view's incarnation behind its head.

    Its bytes follow from the view alone. Everybody who reconciles one incarnation seals the same ones, so that a store
    without put-if-absent survives a restart of Redis that several processes notice at once.
    """
    seq = view.state.seq + 1
    barrier = Record(
        seq=seq, previous=view.state.sha, write_id=view.run_id, time=view.epoch / 1000, producer="reconcile",
        body=Barrier(run_id=view.run_id, epoch=view.epoch),
    )  # fmt: skip
    yield Seal(seq, barrier.to_bytes())
    found = yield from _read_back(seq, barrier.to_bytes())
    if found is not None:
        yield Publish(seq, found)


def _walk(state: State) -> Generator[Effect, Any, State]:
    """Publish every record the log holds behind `state`, key by key: LIST is only a hint."""
    if state.seq == 0:
        checkpoint: State | None = yield ReadCheckpoint()
        if checkpoint is not None:
            yield Install(checkpoint)
            state = checkpoint
    while True:
        data: bytes | None = yield ReadLog(state.seq + 1)
        if data is None:
            return state
        yield Publish(state.seq + 1, data)
        state = fold(state, data)
