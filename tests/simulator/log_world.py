"""The change log under faults: appenders and micro-batchers as the product has them, over models of Redis and of the store.

Everything that decides is the product's: `ChangeLog` with its numbering and delivery, `MicroBatcher` with its closer, the rules
of batching and publishing. Models are the scripts of Redis, the store, and files, which hold tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Final, cast
from zlib import crc32

import pyarrow as pa

from broker.backend.batches import Batches
from broker.backend.logs import Logs
from broker.changelog import ChangeLog
from broker.changelog_delivery import Author, Delivery, Numbering
from broker.changelog_rows import Content, Shaper
from broker.columnar.batch import BatchWriter
from broker.columnar.blocks import decoded, encoded
from broker.columnar.coalesce import Changes
from broker.columnar.engine import Written
from broker.errors import BrokerError, Conflict, Corrupt, Gap, Transient
from broker.microbatcher import MicroBatcher
from broker.microbatcher_closing import Closer
from broker.microbatcher_slots import HeldSlots, Place
from broker.model.commit import Create, File
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.model.names import DatasetId
from broker.publication import Publication
from broker.rules.batching import Limits
from broker.rules.blocks import Kind, Level
from broker.rules.fold import State
from broker.rules.publishing import Draft, commit
from broker.rules.steps import nothing
from tests.simulator.choices import Choices
from tests.simulator.fibres import Fibre, Script, perform
from tests.simulator.log_checker import LogChecker, Token
from tests.simulator.log_model import LogScripts, ModelClient, id_of
from tests.simulator.plan import WORLD_FAULTS, Plan
from tests.simulator.product import INDEX, SETTINGS, ProductWorld, WorldCatalog, nap
from tests.simulator.programs import FILE_BYTES, NO_SHA, Job, Program, Upload, Verify, checkpointer, janitor, sweeper
from tests.simulator.redis_model import DATASET, ModelRedis, Server
from tests.simulator.store_model import ModelStore
from tests.simulator.world import Process

ID: Final = DatasetId(DATASET)
COLUMNS: Final = Schema(columns=(Column(name="id", type="VARCHAR"), Column(name="at", type="BIGINT")))
SPEC: Final = DatasetSpec(dataset=ID, key=("id",), order=("at",), columns=COLUMNS)
LIMITS: Final = Limits.of(SETTINGS)
KINDS: Final = ("accepted", "sealed", "insisting", "named", "named", "unnamed", "unnamed sealed")
"""Of producers. The first three number their blocks and keep what they sent; `insisting` ones ask until all of it is there.
For the others their client numbers."""
CALLS: Final = 4
"""Of each producer."""
SLOTS: Final = range(SETTINGS.log_slots)
PLACE: Final = INDEX.slot(ID)
STREAMS: Final = {slot: Place(PLACE, slot).log.log(ID).decode() for slot in SLOTS}
CLOCK_FAULT_MS: Final = 60_000
"""So far a server's clock may be from the one before."""


def log_plan_of(seed: int) -> Plan:
    """As `plan_of`: each schedule has its own few kinds of faults."""
    pick = Choices(seed).below
    jobs = tuple(Job(f"p{number}", KINDS[pick(len(KINDS))]) for number in range(1 + pick(2)))
    return Plan(
        jobs=jobs, workers=1 + pick(2), helpers=tuple(h for h in ("janitor", "sweeper", "checkpointer") if not pick(3)),
        stormy_steps=40 + pick(160), network_rate=(0.0, 0.02, 0.06, 0.15)[pick(4)], fault_rate=(0.0, 0.01, 0.03, 0.06)[pick(4)],
        nap_rate=(0.0, 0.1, 0.4)[pick(3)], landing=(1, 10)[pick(2)], faults=tuple(kind for kind in WORLD_FAULTS if pick(2)),
        conditional=True,
    )  # fmt: skip


class LogScriptsSeen(LogScripts):
    """The scripts, with the checker looking on."""

    checker: LogChecker

    def append_part(self, keys: list[str], args: list[str]) -> list[Any]:
        answer = super().append_part(keys, args)
        self.checker.counters[f"append {answer[0]}"] += 1
        if answer[0] == "accepted":
            self.checker.added(_number(keys[1]), answer[1], tokens_in(self.entries(keys[1])[answer[1]]))
        return answer

    def log_open(self, keys: list[str], args: list[str]) -> list[str]:
        answer = super().log_open(keys, args)
        self.checker.counters[f"log {answer[0]}"] += 1
        return answer

    def trim(self, keys: list[str], args: list[str]) -> int:
        before = len(self.entries(keys[1]))
        left = super().trim(keys, args)
        self.checker.trimmed(_number(keys[1]), args[1])
        self.checker.counters["trimmed"] += before - left
        return left


class LogWorld(ProductWorld):
    modules: ClassVar = (
        "broker.catalog", "broker.changelog", "broker.changelog_delivery", "broker.changelog_sending", "broker.microbatcher",
        "broker.microbatcher_closing", "broker.pauses", "broker.rules.blocks",
    )  # fmt: skip
    leaps: ClassVar = (15.0, 15.0, 15.0, 700.0)
    """Together less than the life of marks: whoever sends a block again later than that is told so, or cannot be known."""

    checker: LogChecker

    def cast(self) -> None:
        self.checker = LogChecker(self.redis, self.store, self.counters)
        self.use(LogScriptsSeen)
        self.calls: dict[str, int] = {}
        self.sure: set[Token] = set()
        helpers: dict[str, Callable[..., Program]] = {"janitor": janitor, "sweeper": sweeper, "checkpointer": checkpointer}
        self.processes = [Process(job.name, _producer(job)) for job in self.jobs]
        self.processes += [
            Process(f"batcher{i}", lambda w, me: Fibre(lambda: batch(cast(LogWorld, w), me))) for i in range(self.plan.workers)
        ]
        self.processes += [Process(name, helpers[name]) for name in self.plan.helpers]

    def use(self, scripts: type[LogScriptsSeen]) -> None:
        """The scripts of log slots."""
        main = scripts(self.redis.server)
        self.log_scripts = scripts(Server()) if self.plan.apart else main
        self.log_scripts.checker = self.checker
        self.client = ModelClient(main, self.log_scripts, self.sent)

    def sent(self, script: Script) -> Any:
        """A write may be long on its way, when the network is bad."""
        if script.writes and not self.calm and self.plan.nap_rate and self.choices.below(8) == 1:
            self.pause(self.choices.below(120))
        return perform(script)

    def run(self) -> None:
        self.created(commit(Draft("create", "create", _create, lambda: self.redis.now)))
        super().run()

    def step(self) -> None:
        if self.plan.apart:
            self.log_scripts.server.now = self.redis.now
        super().step()

    def apply(self, owner: str, effect: Any) -> Any:
        outcome = super().apply(owner, effect)
        if isinstance(effect, Script) and self.plan.apart:
            self.log_scripts.server.remember()
        return outcome

    def standing(self) -> dict[int, dict[str, Any]]:
        """Entries by slot."""
        return {slot: self.log_scripts.entries(stream) for slot, stream in STREAMS.items()}

    def left(self) -> list[str]:
        if unanswered := super().left():
            return unanswered
        return [
            f"{entry['p']} {entry['b']}" for slot, entries in self.standing().items() for id, entry in entries.items()
            if "d" in entry and id_of(id) > id_of(self.checker.consumed(slot))
        ]  # fmt: skip

    def redis_fault(self, fault: str) -> None:
        if self.plan.apart and self.choices.below(2):
            self.counters[f"log slots: {fault}"] += 1
            self.say(f"log slots: {fault}")
            self.upset(self.log_scripts.server, fault)
        else:
            super().redis_fault(fault)
        if fault != "restart":
            self.log_scripts.ahead_ms = self.choices.below(2 * CLOCK_FAULT_MS) - CLOCK_FAULT_MS
        entries = (entry for found in self.standing().values() for entry in found.values())
        self.checker.lost({token for entry in entries for token in tokens_in(entry)})

    def end(self) -> None:
        self.checker.skipped({slot: list(entries) for slot, entries in self.standing().items()})
        self.checker.settled(self.sure)
        super().end()


def _create(state: State) -> Create | None:
    return None if state.exists else Create(session="s", spec=SPEC)


def log_world_of(seed: int, plan: Plan | None = None, replay_of: list[int] | None = None, traced: bool = False) -> LogWorld:
    """The schedule of a seed, ready to run."""
    plan = plan or log_plan_of(seed)
    return LogWorld(plan, Choices(seed ^ 0x106, replay_of), ModelRedis(), ModelStore(), trace=[] if traced else None)


# --- what is appended


def _number(key: str) -> int:
    """Of the log slot that a key is in."""
    return int(key.partition("}")[0].rpartition("p")[2])


def tokens_in(entry: dict[str, Any]) -> tuple[Token, ...]:
    return _decoded(entry["d"]) if "d" in entry else ()


@lru_cache(maxsize=10_000)
def _decoded(payload: bytes) -> tuple[Token, ...]:
    return tuple(map(Token.of, decoded(payload).column("id").to_pylist()))


@lru_cache(maxsize=10_000)
def content_of(who: str, order: int, kind: Kind) -> Content:
    """A block's content: a row in each slot, in one of them, or in none."""
    which = crc32(f"{who}{order}".encode()) % 5
    slots = {0: SLOTS, 1: SLOTS, 2: range(1), 3: range(1, 2), 4: range(0)}[which]
    tokens = {slot: Token(who, order, slot) for slot in slots}
    parts = {slot: (1, encoded(pa.record_batch({"id": [str(token)], "at": [order]}))) for slot, token in tokens.items()}
    return Content(kind, len(parts), parts)


def tokens_of(content: Content) -> set[Token]:
    return {token for _, payload in content.parts.values() for token in _decoded(payload)}


class _Shaper:
    """Contents come as they are."""

    def content(self, data: Any, kind: Kind) -> Content:
        content: Content = replace(data[0], kind=kind)
        return content

    def contents(self, data: Any, kind: Kind) -> Iterable[Content]:
        return (replace(content, kind=kind) for content in data)


class WorldChangeLog(ChangeLog):
    """The product's change log, which knows itself by its process."""

    def __init__(self, world: LogWorld, me: Process) -> None:
        self._redis, self._catalog, self.dataset, self._me = world.client.client, WorldCatalog(), ID, me.owner
        self._logs = Logs(self._redis, SETTINGS)
        self._delivery, self._shaper = Delivery(self._logs, self._catalog, ID), cast(Shaper, _Shaper())
        self._begin()

    def _new_numbering(self, producer: str) -> Numbering:
        return Numbering(self._delivery, Author(producer, self._me))


# --- processes


def _producer(job: Job) -> Callable[[Any, Process], Program]:
    work = number_blocks if job.kind in ("accepted", "sealed", "insisting") else call
    return lambda world, me: Fibre(lambda: work(world, me, job))


def number_blocks(world: LogWorld, me: Process, job: Job) -> None:
    """A producer that numbers by itself, sends again what it cannot know, and goes back where the log tells of a gap."""
    log, number = WorldChangeLog(world, me), 0
    level: Level = "sealed" if job.kind == "sealed" else "accepted"
    while True:
        try:
            number = number or log.resume(job.name)
            if number <= CALLS:
                content = content_of(job.name, number, "u")
                log.append([content], producer=job.name, block=number, level=level)
                world.checker.acked(tokens_of(content), level == "sealed")
                number += 1 if world.choices.below(5) else 0
            else:
                number = _rest(world, job, number)
        except Gap as gap:
            world.counters["gap told"] += 1
            number = gap.expected
        except Transient as error:
            world.counters[f"error {error.code}"] += 1
        nap()


def _rest(world: LogWorld, job: Job, number: int) -> int:
    """Everything is acknowledged. Who insists looks again whether it still is, until nothing more befalls the world."""
    if job.kind != "insisting":
        world.answered.add(job.name)
        return number
    if world.calm:
        world.sure |= {token for n in range(1, CALLS + 1) for token in tokens_of(content_of(job.name, n, "u"))}
        world.answered.add(job.name)
    return 0


def call(world: LogWorld, me: Process, job: Job) -> None:
    """A caller whose client numbers: the same call again after an error; after a crash it goes on with the next one."""
    log = WorldChangeLog(world, me)
    producer, sealed = (job.name if job.kind == "named" else None), job.kind == "unnamed sealed"
    who = job.name if producer else me.owner
    while (number := world.calls.get(job.name, 0) + 1) <= CALLS:
        world.calls[job.name] = number
        contents = [content_of(who, 10 * number + i, "d" if number % 3 == 0 else "u") for i in range(1 + number % 2)]
        contents = [content for content in contents if content.parts]
        append = log.delete if number % 3 == 0 else log.append
        while contents:
            try:
                append(cast(Any, contents), producer=producer, level="sealed" if sealed else "accepted")
                world.checker.acked({token for content in contents for token in tokens_of(content)}, sealed)
                break
            except Gap:
                world.counters["gap told"] += 1
            except Conflict:
                world.counters["too late told"] += 1
                break
            except Transient as error:
                world.counters[f"error {error.code}"] += 1
            nap()
    while True:
        world.answered.add(job.name)
        nap()


class _Held:
    """Everybody serves every slot: leases only keep two from doing the same work."""

    places: ClassVar = [Place(PLACE, slot) for slot in SLOTS]

    def keep(self, owner: str) -> None:
        del owner


class _Writing:
    """A file on its way."""

    def __init__(self, written: Written) -> None:
        self._written = written

    def commit(self) -> Written:
        perform(Upload(self._written.files[0].key))
        return self._written

    def drop(self) -> None:
        """It is in nobody's way."""


class _Files:
    """Writes files of tokens."""

    def __init__(self, world: LogWorld) -> None:
        self._world = world

    def write(self, spec: DatasetSpec, changes: Iterable[Changes], slot: int) -> _Writing:
        key = self._world.fresh_key()
        rows = [text for some in changes for text in some.rows.column("id").to_pylist()]
        self._world.checker.files[key] = tuple(map(Token.of, rows))
        file = File(role="upserts", key=key, sha256=NO_SHA, bytes=FILE_BYTES, rows=len(rows), partition=slot)
        return _Writing(Written((file,), spec.columns or COLUMNS))

    def verify(self, written: Written) -> None:
        if not all([perform(Verify(file.key)) for file in written.files]):
            raise Corrupt("not whole", of=written.files[0].key)


def batch(world: LogWorld, me: Process) -> None:
    """A micro-batcher's passes."""
    client, catalog, files = world.client.client, WorldCatalog(), _Files(world)
    logs = Logs(client, SETTINGS)
    closer = Closer(logs, catalog, cast(BatchWriter, files), cast(Publication, files), LIMITS)
    batcher = MicroBatcher(Batches(client, INDEX, logs), logs, cast(HeldSlots, _Held()), catalog, closer, nothing)
    while True:
        try:
            report = batcher.run_once(me.owner)
            world.counters["batch closed"] += report.batches
            world.counters["batches committed"] += report.versions
        except BrokerError as error:
            world.counters[f"error {error.code}"] += 1
        nap()
