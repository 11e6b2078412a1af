"""One schedule: processes, a network that loses and delays, a Redis that forgets, a clock that leaps, and the checker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from broker.errors import Conflict, Corrupt, OutcomeUnknown, Unavailable
from broker.model.commit import parse_record
from broker.rules.checkpoint import Checkpoint
from broker.rules.fold import State, replay
from broker.rules.patch import TABLES
from broker.rules.publishing import (
    HeadView,
    Install,
    Notify,
    Publish,
    PublishAnswer,
    ReadCheckpoint,
    ReadHead,
    ReadLog,
    Reserve,
    ReserveAnswer,
    Seal,
    reconcile,
)
from tests.simulator.checker import Checker, Violation
from tests.simulator.choices import Choices
from tests.simulator.plan import REDIS_FAULTS, Plan, plan_of
from tests.simulator.programs import (
    FILE_BYTES,
    LEASE_SECONDS,
    SWEEP_AGE_SECONDS,
    Acquire,
    Answer,
    Delete,
    Doing,
    Job,
    ListFiles,
    Program,
    Renew,
    SealCheckpoint,
    Sleep,
    Upload,
    Verify,
    checkpointer,
    janitor,
    janitor_pass,
    sweeper,
    worker,
)
from tests.simulator.redis_model import DATASET, LOCAL, ModelRedis, Sealed, Server
from tests.simulator.store_model import ModelStore, StoredFile
from tests.simulator.talk import brief

READS: Final = (ReadLog, ReadCheckpoint, Verify, ListFiles)
CALM_STEPS: Final = 3000
"""Within so many steps after the last fault every job must be answered."""
LEAPS: Final = (15.0, 15.0, 15.0, 13 * 3600.0, 30 * 3600.0)


@dataclass(slots=True)
class Process:
    """`owner` is another one after each crash: memory is gone, and with it the right to call a lease its own."""

    name: str
    start: Callable[[World, Process], Program]
    life: int = 1
    program: Program | None = None
    doing: Doing | None = None
    half_sealed: bool = False
    sealed: tuple[int, bytes] | None = None
    glimpse: HeadView | None = None
    asleep_until: int = 0

    @property
    def owner(self) -> str:
        return f"{self.name}.{self.life}"


@dataclass(slots=True)
class World:
    leaps: ClassVar[tuple[float, ...]] = LEAPS

    plan: Plan
    choices: Choices
    redis: ModelRedis
    store: ModelStore
    counters: Counter[str] = field(default_factory=Counter)
    trace: list[str] | None = None
    processes: list[Process] = field(default_factory=list)
    in_flight: list[tuple[str, str, Doing]] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    steps: int = 0
    calm: bool = False
    checker: Checker = field(init=False)
    _turn: int = 0
    _files: int = 0

    log: str = DATASET
    """Whose log the effects at hand are about."""

    def __post_init__(self) -> None:
        self.checker = Checker(self.redis, self.store, self.counters)
        self.cast()

    def cast(self) -> None:
        """Who takes part."""
        helpers: dict[str, Callable[[World, Process], Program]] = {
            "janitor": janitor, "sweeper": sweeper, "checkpointer": checkpointer,
        }  # fmt: skip
        self.processes = [Process(f"worker{i}", worker) for i in range(self.plan.workers)]
        self.processes += [Process(name, helpers[name]) for name in self.plan.helpers]

    @property
    def jobs(self) -> tuple[Job, ...]:
        return self.plan.jobs

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.steps:4d}  {text}")

    def fresh_key(self) -> str:
        self._files += 1
        return f"{DATASET}/data/{self._files}"

    def acknowledge(self, job: Job, state: State, based_on: int) -> None:
        if job.kind == "snapshot":
            if not based_on:
                return
            self.checker.acknowledge(f"edge -{based_on}", state)
        else:
            self.checker.acknowledge(job.name, state)
        self.say(f"acknowledged: {job.name}")

    # --- the schedule

    def run(self) -> None:
        """Raises Violation."""
        for _ in range(self.plan.stormy_steps):
            self.weather()
            self.step()
        self.calm = True
        self.say("--- no more faults")
        for process in self.processes:
            process.asleep_until = 0
        while self.in_flight:
            self._land()
        for _ in range(CALM_STEPS):
            if not self.left():
                break
            self.step()
        else:
            raise Violation("liveness", f"unanswered after {CALM_STEPS} calm steps: {self.left()}")
        self.end()

    def left(self) -> list[str]:
        """What is still to be done."""
        return [job.name for job in self.jobs if job.name not in self.answered]

    def enter(self, log: str) -> None:
        """The effects that follow are about this log."""
        self.log = log

    def step(self) -> None:
        """One process does one thing."""
        self.steps += 1
        self.redis.server.now += 0.1
        awake = [process for process in self.processes if process.asleep_until <= self.steps]
        if not awake:
            return
        self._turn += 1 + self.choices.below(len(awake))
        self.advance(awake[self._turn % len(awake)])

    def advance(self, process: Process) -> None:
        """Let the process' pending effect happen, and the process think until its next one."""
        if process.program is None:
            process.program = process.start(self, process)
            process.doing = next(process.program)
            return
        assert process.doing is not None
        try:
            outcome = self._perform(process, process.doing)
        except Again:
            return
        except (OutcomeUnknown, Unavailable) as error:
            process.doing = process.program.throw(error)
        except Corrupt as error:
            raise Violation("P2", str(error)) from error
        else:
            try:
                process.doing = process.program.send(outcome)
            except Corrupt as error:
                raise Violation("P2", str(error)) from error
            except Conflict as error:
                raise Violation("P8", str(error)) from error

    # --- the network

    def _perform(self, process: Process, effect: Doing) -> Any:
        """The effect as the process sees it. Raises Again: the driver repeats it by itself."""
        if isinstance(effect, Sleep):
            return None
        lost = 0
        if not self.calm and self.plan.network_rate and self.choices.happens(self.plan.network_rate):
            lost = 1 + self.choices.below(3)
        if not lost:
            return self._answered(process, effect)
        if self.reads(effect):
            self.counters["lost read"] += 1
            return self.unknown(process, effect)
        if lost == 1:
            self.counters["lost request"] += 1
        elif lost == 2:
            self.counters["lost reply"] += 1
            self.apply(process.owner, effect)
        else:
            self.counters["delayed write"] += 1
            self.in_flight.append((process.owner, self.log, effect))
        if self.trace is not None:
            self.say(f"{process.owner}: {brief(effect)} -> unknown ({('request lost', 'reply lost', 'delayed')[lost - 1]})")
        return self.unknown(process, effect)

    def reads(self, effect: Doing) -> bool:
        """Whether a lost reply leaves everything as it was."""
        return isinstance(effect, READS)

    def unknown(self, process: Process, effect: Doing) -> Any:
        """What a driver may make of a time-out: repeat, give up, or (where the protocol reads back) go on."""
        self.counters["answer unknown"] += 1
        if isinstance(effect, Seal | Upload | Notify | Delete | SealCheckpoint):
            process.half_sealed = False
            return None
        way = self.choices.below(3)
        if way == 0:
            raise Again
        if way == 1 and isinstance(effect, Reserve):
            return ReserveAnswer("unknown")
        if way == 1 and isinstance(effect, Publish):
            return PublishAnswer("behind")
        raise OutcomeUnknown("timed out", of=type(effect).__name__)

    def _answered(self, process: Process, effect: Doing) -> Any:
        if isinstance(effect, Seal) and not self.store.conditional and not process.half_sealed:
            process.half_sealed = effect.seq not in self.store.log
            self.say(f"{process.owner}: GET log {effect.seq} before the seal")
            if process.half_sealed:
                raise Again
            return None
        process.half_sealed = False
        outcome = self.apply(process.owner, effect)
        if self.trace is not None:
            self.say(f"{process.owner}: {brief(effect)} -> {brief(outcome)}")
        if isinstance(effect, Reserve) and outcome.kind == "reserved":
            self.stall(process)
        return outcome

    def stall(self, process: Process) -> None:
        """Between reserve and seal a process may sleep long, and Redis may forget meanwhile."""
        if self.calm or not self.plan.nap_rate or not self.choices.happens(self.plan.nap_rate):
            return
        self.suspend(process)
        forgets = [fault for fault in self.plan.faults if fault in REDIS_FAULTS]
        if forgets and self.choices.below(2):
            self._befall(forgets[self.choices.below(len(forgets))])

    def _land(self) -> None:
        owner, log, effect = self.in_flight.pop(self.choices.below(len(self.in_flight)))
        self.enter(log)
        outcome = self.apply(owner, effect)
        if self.trace is not None:
            self.say(f"{owner}: {brief(effect)} arrives late -> {brief(outcome)}")
        self.counters["landed late"] += 1

    # --- effects on the models

    def apply(self, owner: str, effect: Doing) -> Any:
        """The effect happens, now and at once; the checker looks on."""
        match effect:
            case ReadHead() | Reserve() | Publish() | Install() | Acquire() | Renew():
                before = self.redis.seq
                outcome = self._script(effect)
                self.redis.server.remember()
                self.checker.redis_changed(before)
                return outcome
            case Seal(seq=seq, data=data):
                return self.seal(owner, seq, data)
            case ReadLog(seq=seq):
                return self.store.log.get(seq)
            case ReadCheckpoint():
                self.counters["checkpoint read"] += self.store.checkpoint is not None
                return Checkpoint.model_validate_json(self.store.checkpoint).state() if self.store.checkpoint else None
            case Answer(job=job):
                self.answered.add(job)
            case _:
                return self._store_effect(effect)

    def _script(self, effect: Doing) -> Any:
        match effect:
            case ReadHead():
                view = self.redis.read_head()
                self.checker.served(view)
                return view
            case Reserve():
                answer = self.redis.reserve(effect)
                self.counters[f"reserve {answer.kind}"] += 1
                if answer.kind == "reserved":
                    self.checker.reserved(effect)
                return answer
            case Publish(seq=seq, data=data):
                published = self._publish(seq, data)
                self.counters[f"publish {published.kind}"] += 1
                return published
            case Install(state=state, adopt=adopt):
                self.counters["adopted" if adopt else "installed"] += 1
                return self.redis.install(state, adopt)
            case Acquire(name=name, owner=owner):
                lease = self.redis.acquire(name, owner, LEASE_SECONDS)
                if lease is not None:
                    self.checker.granted_lease(lease)
                return lease
            case Renew(lease=lease, seconds=seconds):
                return self.redis.renew(lease, seconds)
        raise AssertionError(effect)

    def _publish(self, seq: int, data: bytes) -> PublishAnswer:
        known = self.checker.chain[seq - 1] if seq <= len(self.checker.chain) else None
        return self.redis.publish(known if known is not None and known.data == data else Sealed.of(data))

    def seal(self, owner: str, seq: int, data: bytes) -> None:
        if not self.store.put_record(seq, data):
            self.counters["seal refused"] += 1
            self.counters["foreign record"] += self.store.log[seq] != data
            return
        writer = parse_record(data, "seal").write_id.rpartition(".")[0]
        self.counters["sealed for another"] += writer != owner
        self.checker.landed(seq, data)

    def _store_effect(self, effect: Doing) -> Any:
        match effect:
            case Upload(key=key):
                self.store.files[key] = StoredFile(FILE_BYTES, self.redis.now)
            case Verify(key=key):
                found = self.store.files.get(key)
                return found is not None and found.bytes == FILE_BYTES
            case ListFiles():
                old = self.redis.now - SWEEP_AGE_SECONDS
                return tuple(key for key, file in self.store.files.items() if file.modified < old)
            case Delete(keys=keys):
                for key in keys:
                    self.store.files.pop(key, None)
            case SealCheckpoint(data=data):
                self.store.checkpoint = data
            case Notify():
                self.store.notified = self.redis.seq
        return None

    # --- what befalls the world

    def weather(self) -> None:
        if self.in_flight and self.choices.below(4 * self.plan.landing) == 1:
            self._land()
        if not self.plan.faults or not self.plan.fault_rate or not self.choices.happens(self.plan.fault_rate):
            return
        fault = self.plan.faults[self.choices.below(len(self.plan.faults))]
        self._befall(fault)

    def _befall(self, fault: str) -> None:
        if fault in REDIS_FAULTS:
            if self.plan.conditional or self.redis.server.runs == 1:
                self.redis_fault(fault)
        elif fault == "crash":
            self.counters["fault crash"] += 1
            self.crash(self._victim())
        elif fault == "pause":
            self.suspend(self._victim())
        else:
            seconds = self.leaps[self.choices.below(len(self.leaps))]
            self.redis.server.now += seconds
            self.counters["fault leap"] += 1
            self.say(f"{seconds:.0f} seconds pass")

    def suspend(self, victim: Process) -> None:
        victim.asleep_until = self.steps + 10 + self.choices.below(60)
        self.counters["fault pause"] += 1
        self.say(f"{victim.owner} is suspended")

    def _victim(self) -> Process:
        return self.processes[self.choices.below(len(self.processes))]

    def crash(self, victim: Process) -> None:
        self.say(f"{victim.owner} crashes")
        if victim.program is not None:
            victim.program.close()
        victim.life += 1
        victim.program = victim.doing = None
        victim.half_sealed, victim.sealed, victim.glimpse = False, None, None

    def redis_fault(self, fault: str) -> None:
        self.counters[f"fault {fault}"] += 1
        self.upset(self.redis.server, fault)
        self.checker.restarted()
        self.say(f"redis: {fault}; it has record {self.redis.seq} of {len(self.checker.chain)}")

    def upset(self, server: Server, fault: str) -> None:
        match fault:
            case "restart":
                server.restart()
            case "rollback":
                server.restart(1 + self.choices.below(12))
            case "wipe":
                server.wipe()
            case _:
                server.flush()

    # --- the end

    def end(self) -> None:
        """One janitor's pass, then projection = fold(log); a wiped Redis, rebuilt, shows the same (P8)."""
        helper = Process("last-janitor", janitor_pass)
        for _ in range(2):
            self.drive(janitor_pass(self, helper))
        self.checker.rest()
        told = replay(DATASET, [self.store.log[number] for number in range(1, len(self.store.log) + 1)])
        self.compare("P9", told)
        self.redis.server.wipe()
        self.checker.restarted()
        self.drive(reconcile())
        again = replay(DATASET, [self.store.log[number] for number in range(1, len(self.store.log) + 1)])
        self.compare("P8", again)
        if [table for table in TABLES if table != "head" and again.tables[table] != told.tables[table]]:
            raise Violation("P8", "the rebuild changed versions")

    def drive(self, program: Program) -> None:
        helper = Process("last", janitor_pass)
        try:
            effect = next(program)
            for _ in range(CALM_STEPS):
                effect = program.send(self._alone(helper, effect))
        except StopIteration:
            return
        except Corrupt as error:
            raise Violation("P2", str(error)) from error
        raise Violation("liveness", "the last janitor does not end")

    def _alone(self, helper: Process, effect: Doing) -> Any:
        while True:
            try:
                return self._perform(helper, effect)
            except Again:
                continue

    def compare(self, promise: str, told: State) -> None:
        for table in TABLES:
            kept = {name: text for name, text in self.redis.tables[table].items() if name not in LOCAL}
            if kept != told.tables[table]:
                raise Violation(promise, f"the projection's {table} is {kept}, the log says {told.tables[table]}")


class Again(Exception):
    """The effect is tried again when the process is next scheduled."""


def world_of(seed: int, plan: Plan | None = None, replay_of: list[int] | None = None, traced: bool = False) -> World:
    """The schedule of a seed, ready to run."""
    plan = plan or plan_of(seed)
    return World(
        plan, Choices(seed ^ 0x5EED, replay_of), ModelRedis(), ModelStore(plan.conditional), trace=[] if traced else None
    )
