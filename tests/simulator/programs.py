"""What the simulated processes do: generators that yield effects, around the generators of `broker.rules.publishing`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from broker.errors import Conflict, Fenced, Reconciling, StaleBase, Transient
from broker.model.commit import Body, Create, Edge, File, Hold, NewEdge, NewVersion
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.rules.checkpoint import Checkpoint
from broker.rules.fold import State
from broker.rules.patch import edge_field
from broker.rules.publishing import (
    Draft,
    Effect,
    HeadView,
    Lease,
    Notify,
    ReadHead,
    ReadLog,
    commit,
    publish,
    reconcile,
    settle,
)
from tests.simulator.fibres import Script
from tests.simulator.redis_model import DATASET

if TYPE_CHECKING:
    from tests.simulator.world import Process, World

LEASE_SECONDS: Final = 12.0
SWEEP_AGE_SECONDS: Final = 24 * 3600.0
FILE_BYTES: Final = 7
NO_SHA: Final = "0" * 64
SPEC: Final = DatasetSpec(dataset=DatasetId(DATASET), key=("id",))


# --- effects beside those of the protocol


@dataclass(frozen=True, slots=True)
class Acquire:
    """-> Lease, or None while somebody else holds it"""

    name: str
    owner: str


@dataclass(frozen=True, slots=True)
class Renew:
    """-> bool; `seconds` 0 releases."""

    lease: Lease
    seconds: float


@dataclass(frozen=True, slots=True)
class Upload:
    """Put a whole file under a fresh name. -> None"""

    key: str


@dataclass(frozen=True, slots=True)
class Verify:
    """-> bool: the file is there with its full length"""

    key: str


@dataclass(frozen=True, slots=True)
class ListFiles:
    """-> keys of files older than a day"""


@dataclass(frozen=True, slots=True)
class Delete:
    """-> None"""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SealCheckpoint:
    """-> None"""

    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer script: the job is done for everyone. -> None"""

    job: str


@dataclass(frozen=True, slots=True)
class Sleep:
    """-> None"""


Doing = Effect | Acquire | Renew | Upload | Verify | ListFiles | Delete | SealCheckpoint | Answer | Sleep | Script
Program = Generator[Doing, Any, None]


# --- jobs


@dataclass(frozen=True, slots=True)
class Job:
    """`delta`: takes base = head at reserve. `diff`: valid for one base. `hold`: no files or lease. `snapshot`: an edge.

    Of other worlds: what their programs do under this name.
    """

    name: str
    kind: str

    @property
    def lease(self) -> str | None:
        return {"delta": f"part {self.name}", "diff": "writer", "snapshot": "writer"}.get(self.kind)


def worker(world: World, me: Process) -> Program:
    """Takes any job that is not answered, its own or one that another may be at, until none is left."""
    while True:
        left = [job for job in world.jobs if job.name not in world.answered]
        if not left:
            yield Sleep()
            continue
        try:
            yield from _attempt(world, me, left[world.choices.below(len(left))])
        except (Fenced, StaleBase, Reconciling, Transient) as error:
            world.counters[f"error {error.code}"] += 1
        yield Sleep()


def _attempt(world: World, me: Process, job: Job) -> Program:
    lease: Lease | None = None
    if job.lease is not None:
        lease = yield Acquire(job.lease, me.owner)
        if lease is None:
            return
    yield from commit(_draft(world, me, _create, None, world.redis.now))
    born, key, based_on = world.redis.now, "", -1
    if job.kind != "hold":
        view: HeadView = yield ReadHead()
        based_on, key = view.state.version, world.fresh_key()
        yield Upload(key)
        whole: bool = yield Verify(key)
        if not whole:
            return

    def body_for(state: State) -> Body | None:
        return _body(state, job, key, based_on)

    state: State = yield from commit(_draft(world, me, body_for, lease, born))
    world.acknowledge(job, state, based_on)
    yield Answer(job.name)
    if lease is not None:
        yield Renew(lease, 0)


def _draft(world: World, me: Process, body_for: Any, lease: Lease | None, born: float) -> Draft:
    return Draft(
        write_id=f"{me.owner}.{world.steps}", producer=me.owner, body_for=body_for, now=lambda: world.redis.now, lease=lease,
        age_seconds=lambda: world.redis.now - born,
    )  # fmt: skip


def _create(state: State) -> Body | None:
    return None if state.exists else Create(session="s", spec=SPEC)


def _body(state: State, job: Job, key: str, based_on: int) -> Body | None:
    if not state.exists:
        raise Conflict("created and gone", of=job.name)
    if job.kind == "hold":
        return None if job.name in state.tables["holds"] else Hold(name=job.name, version=0)
    file = File(role="rows", key=key, sha256=NO_SHA, bytes=FILE_BYTES, rows=1)
    if job.kind == "snapshot":
        done = not based_on or edge_field(None, based_on) in state.tables["edges"]
        return None if done else NewEdge(edge=Edge(base=None, version=based_on, files=(file,)))
    if state.made_by(job.name) is not None:
        return None
    if job.kind == "diff" and state.version != based_on:
        raise StaleBase("the head moved", of=job.name)
    return NewVersion(edge=Edge(base=state.version or None, version=state.version + 1, files=(file,)), production=job.name)


# --- those that help


def janitor(world: World, me: Process) -> Program:
    """Finishes what others left: reservations, sealed records nobody published, announcements, a new incarnation."""
    while True:
        try:
            yield from janitor_pass(world, me)
        except (Reconciling, Transient) as error:
            world.counters[f"error {error.code}"] += 1
        for _ in range(3):
            yield Sleep()


def janitor_pass(world: World, me: Process) -> Program:
    view: HeadView = yield ReadHead()
    if not view.current:
        yield from reconcile()
    elif view.reservation is not None:
        world.counters["helped reservation"] += 1
        yield from settle(*view.reservation)
    else:
        found: bytes | None = yield ReadLog(view.state.seq + 1)
        if found is not None:
            world.counters["found behind the head"] += 1
            yield from publish(view.state.seq + 1, found)
        yield Notify()


def sweeper(world: World, me: Process) -> Program:
    """Deletes files older than a day that no record names. Candidates first, then names: what comes between is young."""
    while True:
        try:
            yield from _sweep(world, me)
        except (Reconciling, Transient) as error:
            world.counters[f"error {error.code}"] += 1
        for _ in range(5):
            yield Sleep()


def _sweep(world: World, me: Process) -> Program:
    candidates: tuple[str, ...] = yield ListFiles()
    yield from janitor_pass(world, me)
    view: HeadView = yield ReadHead()
    if not candidates or not view.current or view.reservation is not None:
        return
    beyond: bytes | None = yield ReadLog(view.state.seq + 1)
    if beyond is None:
        named = {file.key for edge in view.state.edges for file in edge.files}
        orphans = tuple(key for key in candidates if key not in named)
        world.counters["swept"] += len(orphans)
        yield Delete(orphans)


def checkpointer(world: World, me: Process) -> Program:
    """Seals the fold of the log up to the head."""
    while True:
        try:
            view: HeadView = yield ReadHead()
            if view.current and view.state.seq:
                yield SealCheckpoint(Checkpoint.of(view.state))
        except Transient as error:
            world.counters[f"error {error.code}"] += 1
        for _ in range(8):
            yield Sleep()
