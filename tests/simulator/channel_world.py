"""Channels under faults: announcements, retention and notify as the product has them, over models of Redis and of the store.

Two datasets and the log of announcements share a slot. Promoters move two channels, publishers add versions, retention retires
edges: the two that say what stays exclude each other by a lease.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Final, cast

from broker.backend.index import Head, Index
from broker.bell import notification
from broker.bell_notices import Notices, of_dataset
from broker.channels import Channels
from broker.cursors import Cursors, Standing
from broker.errors import BrokerError, NotFound, Terminal, Transient
from broker.model.commit import Body, Create, Edge, File, NewVersion
from broker.model.dataset import DatasetSpec
from broker.model.names import LIVE, ChannelsId, DatasetId, notify_key
from broker.retention import Retention
from broker.rules.fold import State, replay
from broker.rules.publishing import Effect, Notify, ReadHead, reconcile
from broker.rules.retention import Floors
from broker.stores.port import ObjectStore
from tests.simulator.channel_checker import Domain, DomainChecker, Intent
from tests.simulator.checker import Violation
from tests.simulator.choices import Choices
from tests.simulator.fibres import Fibre, Script, perform
from tests.simulator.plan import WORLD_FAULTS, Plan
from tests.simulator.product import INDEX, On, ProductWorld, WorldCatalog, WorldDriver, WorldLeases, nap
from tests.simulator.programs import FILE_BYTES, LEASE_SECONDS, NO_SHA, Job, Program, Upload, Verify, janitor_pass
from tests.simulator.redis_model import ModelRedis
from tests.simulator.store_model import ModelStore
from tests.simulator.world import Process

DOMAIN: Final = ChannelsId("t/d")
NAMES: Final = ("a", "b")
LOGS: Final[dict[str, str]] = {"t/d/a": "a", "t/d/b": "b", DOMAIN: ""}
"""Each log with its dataset's name."""
CHANNELS: Final = ("production", "staging")
MOVES: Final = 3
"""Of each promoter."""
VERSIONS: Final = 5
"""That publishers come to, in all."""


def channel_plan_of(seed: int) -> Plan:
    """As `plan_of`: each schedule has its own few kinds of faults."""
    pick = Choices(seed).below
    return Plan(
        jobs=tuple(Job(f"promoter{number}", "promote") for number in range(1 + pick(3))), workers=1 + pick(2),
        helpers=tuple(helper for helper in ("retention", "janitor", "retention2") if pick(3)), stormy_steps=60 + pick(120),
        network_rate=(0.0, 0.0, 0.02, 0.08)[pick(4)], fault_rate=(0.0, 0.01, 0.03, 0.06)[pick(4)],
        nap_rate=(0.0, 0.1, 0.4)[pick(3)], landing=(1, 10)[pick(2)], faults=tuple(kind for kind in WORLD_FAULTS if pick(2)),
        conditional=True,
    )  # fmt: skip


class ChannelWorld(ProductWorld):
    leaps: ClassVar = (15.0,)
    modules: ClassVar = ("broker.catalog", "broker.channels", "broker.retention")

    def cast(self) -> None:
        self.domain, server = Domain(), self.redis.server
        self.places: dict[str, tuple[ModelRedis, ModelStore, DomainChecker]] = {}
        for log, name in LOGS.items():
            redis, store = type(self.redis)(server, log), ModelStore()
            checker = DomainChecker(redis, store, self.counters, domain=self.domain, name=name)
            self.places[log] = (redis, store, checker)
        granted = self.places[DOMAIN][2].granted
        for _, _, checker in self.places.values():
            checker.granted = granted
        self.intents: dict[str, Intent | None] = {}
        self.writes: dict[str, list[str]] = {}
        self.moves: dict[str, int] = {}
        self.notices: dict[str, bytes] = {}
        self.resting: set[str] = set()
        self.asked: list[DatasetId] = []
        """What is to be rung for: by anybody, in any order, as bells are threads."""
        self.cut = False
        """A bell may not have rung: its process died, or Redis did not answer."""
        programs: dict[str, Callable[[ChannelWorld, Process], None]] = {
            "retention": retire,
            "retention2": retire,
            "janitor": help_all,
        }
        self.processes = [Process(job.name, _fibre(move)) for job in self.jobs]
        self.processes += [Process(f"publisher{name}", _fibre(publish)) for name in NAMES]
        self.processes += [Process(name, _fibre(programs[name])) for name in self.plan.helpers]
        self.processes += [Process(f"bell{number}", _fibre(ring)) for number in range(2)]

    def enter(self, log: str) -> None:
        self.log = log
        self.redis, self.store, self.checker = self.places[log]

    def offered(self, name: str) -> int:
        """The newest version of a dataset."""
        return self.domain.states[name].version if name in self.domain.states else 0

    def at(self, name: str, channel: str) -> int:
        """Where a channel is: a good guess, until somebody else moves it."""
        named = self.domain.channels.channels.get((name, channel))
        return named.version if named else 0

    def named(self, id: str) -> None:
        """A process asked for an id: of what it writes, among others."""
        if hasattr(self, "acting"):
            intent = self.intents.get(self.acting.owner)
            self.domain.meant[id] = intent
            self.writes.setdefault(self.acting.owner, []).append(id)

    def run(self) -> None:
        self.enter(DOMAIN)
        super().run()

    def redis_fault(self, fault: str) -> None:
        self.cut = True
        super().redis_fault(fault)
        for log in LOGS:  # each reads its own incarnation
            if self.places[log][2] is not self.checker:
                self.places[log][2].restarted()

    def left(self) -> list[str]:
        return (
            super().left()
            or [*map(str, self.asked)]
            or [process.name for process in self.processes if process.name not in self.resting]
        )

    def suspend(self, victim: Process) -> None:
        """Often for longer than its lease lasts, and for as long as others need for their work."""
        super().suspend(victim)
        victim.asleep_until += self.choices.below(150)
        if self.choices.below(2):
            self.redis.server.now += LEASE_SECONDS + 1
            self.counters["lease slept through"] += 1

    def crash(self, victim: Process) -> None:
        self.cut = True
        self.resting.discard(victim.name)
        super().crash(victim)

    def end(self) -> None:
        if not self.cut:
            self.noticed()
        self.drive(janitor := Fibre(lambda: help_once(BellCatalog(self))))
        self.noticed()
        told = {}
        for log in LOGS:
            self.enter(log)
            for _ in range(2):
                self.drive(janitor_pass(self, Process("last", lambda *_: janitor)))
            self.checker.rest()
            told[log] = replay(log, [self.store.log[number] for number in range(1, len(self.store.log) + 1)])
            self.compare("P9", told[log])
        self.redis.server.wipe()
        for log in LOGS:
            self.enter(log)
            self.checker.restarted()
            self.drive(reconcile())
            if self.store.log:
                self.compare("P8", replay(log, [self.store.log[number] for number in range(1, len(self.store.log) + 1)]))

    def noticed(self) -> None:
        """notify/<channel>.json of every dataset is what the logs say."""
        for log, name in LOGS.items():
            state = State(log, self.domain.states[name].tables) if name in self.domain.states else None
            if not name or state is None:
                continue
            for channel, named in [(LIVE, None), *of_dataset(self.domain.channels, DatasetId(log)).items()]:
                written = self.notices.get(notify_key(log, channel))
                if written is None or _told(written) != _told(notification(state, channel, named)):
                    raise Violation("notify", f"{log} {channel}: {written!r}, the log has {state.seq}")


def _told(data: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(data).items() if name != "seq"}


def _fibre(work: Callable[[ChannelWorld, Process], None]) -> Callable[[Any, Process], Program]:
    return lambda world, me: Fibre(lambda: work(world, me))


def channel_world_of(
    seed: int, plan: Plan | None = None, replay_of: list[int] | None = None, traced: bool = False
) -> ChannelWorld:
    """The schedule of a seed, ready to run."""
    plan = plan or channel_plan_of(seed)
    return ChannelWorld(plan, Choices(seed ^ 0xCAFE, replay_of), ModelRedis(), ModelStore(), trace=[] if traced else None)


# --- what the product stands on


class _Notified:
    """Of the index what the bell needs, and of the store."""

    def __init__(self, world: ChannelWorld) -> None:
        self._world, self.slot, self.announce = world, INDEX.slot, INDEX.announce

    def head(self, log: DatasetId) -> Head:
        view = perform(On(log, ReadHead()))
        return Head(view.state.seq, view.state.sha, view.current, view.run_id, view.epoch, view.reservation, 99.0)

    def fields(self, log: DatasetId, field: str) -> list[bytes | None]:
        server = self._world.redis.server
        text = perform(Script(f"{log} {field}", lambda: server.get(f"rung:{log}", field), writes=False))
        return [text.encode() if text else None]

    def heads(self, logs: Sequence[DatasetId]) -> list[Head]:
        return [self.head(log) for log in logs]

    def mark_notified(self, rung: Sequence[tuple[DatasetId, int]]) -> None:
        server = self._world.redis.server
        for log, seq in rung:
            perform(Script(f"{log} notified {seq}", partial(server.put, f"rung:{log}", notified=str(seq))))

    def put(self, key: str, data: bytes) -> None:
        """It may take a while, in which others write, too."""
        for _ in range(self._world.choices.below(30) * (self._world.choices.below(4) == 1)):
            nap()
        perform(Script(f"put {key}", lambda: self._world.notices.update({key: data})))

    def get(self, key: str) -> Iterator[bytes]:
        found = perform(Script(f"get {key}", lambda: self._world.notices.get(key), writes=False))
        if found is None:
            raise NotFound("no such object", of=key)
        yield found


class _BellDriver(WorldDriver):
    def __init__(self, world: ChannelWorld) -> None:
        super().__init__()
        self._world = world

    def perform(self, log: DatasetId, effect: Effect) -> Any:
        return self._world.asked.append(log) if isinstance(effect, Notify) else super().perform(log, effect)


class BellCatalog(WorldCatalog):
    """With the product's bell, rung by who asks for it."""

    def __init__(self, world: ChannelWorld) -> None:
        super().__init__(_BellDriver(world))
        notified = _Notified(world)
        self._index = cast(Index, notified)
        self._notices = Notices(self._index, cast(ObjectStore, notified), self._seen, self.known)


class _NoCursors:
    lease_seconds = 1.0

    def standing(self, dataset: DatasetId) -> Standing:
        del dataset
        return Standing((), 10.0)


# --- processes


def rest(world: ChannelWorld, me: Process, steps: int) -> None:
    """Nothing is under way; in the end for good."""
    world.resting.add(me.name)
    world.pause(6 * steps)
    while world.calm and len(world.answered) == len(world.jobs):
        world.pause()
    world.resting.discard(me.name)


def move(world: ChannelWorld, me: Process) -> None:
    """Promotes, releases and rolls back; the same again while it cannot know."""
    catalog = BellCatalog(world)
    channels = Channels(catalog, INDEX, WorldLeases())
    while not world.offered("a") or not world.offered("b"):
        world.pause()
    while (number := world.moves.get(me.name, 0) + 1) <= MOVES:
        world.moves[me.name] = number
        channel, kind = CHANNELS[world.choices.below(len(CHANNELS))], world.choices.below(3)
        names = NAMES if kind == 2 else NAMES[: 1 + world.choices.below(2)][-1:]
        targets = {name: max(1, world.offered(name) - world.choices.below(3)) for name in names}
        expect = {} if world.choices.below(3) else {name: world.at(name, channel) for name in names}
        work = (_promoted, _rolled_back, _released)[kind]
        call = partial(work, world, me, channels, (channel, targets, expect))
        while not _moved(world, me, call, channel):
            world.pause()
        world.intents[me.owner] = None
        rest(world, me, 3)
    world.answered.add(me.name)
    while True:
        rest(world, me, 1)


Asked = tuple[str, dict[str, int], dict[str, int]]


def _moved(world: ChannelWorld, me: Process, work: Callable[[], int], channel: str) -> bool:
    """Whether it has an answer that stands."""
    world.writes[me.owner] = []
    checker = world.places[DOMAIN][2]
    try:
        number = work()
    except Transient as error:
        world.counters[f"error {error.code}"] += 1
        return False
    except Terminal as error:
        intent = world.intents.get(me.owner)
        if intent is not None:
            checker.refused(intent, world.writes[me.owner], error)
        return True
    intent = world.intents[me.owner]
    assert intent is not None
    checker.told(intent, channel, number)
    return True


def _promoted(world: ChannelWorld, me: Process, channels: Channels, asked: Asked) -> int:
    channel, targets, expect = asked
    (name, version), *_ = targets.items()
    world.intents[me.owner] = Intent("promote", {name: version}, {n: v for n, v in expect.items() if n == name})
    return channels.promote(DOMAIN.dataset(name), version, channel, expect.get(name))


def _released(world: ChannelWorld, me: Process, channels: Channels, asked: Asked) -> int:
    channel, targets, expect = asked
    world.intents[me.owner] = Intent("release", targets, expect)
    return channels.release("t/d", targets, channel, expect)


def _rolled_back(world: ChannelWorld, me: Process, channels: Channels, asked: Asked) -> int:
    channel, targets, _ = asked
    name = next(iter(targets))
    world.intents[me.owner] = Intent("rollback", {name: 0})
    return channels.rollback(DOMAIN.dataset(name), channel)


def publish(world: ChannelWorld, me: Process) -> None:
    """Adds versions, each whole or on the one before."""
    dataset, catalog = DOMAIN.dataset(me.name[-1]), BellCatalog(world)
    while True:
        try:
            state = catalog.commit(dataset, _created, "create")
            if state.version < VERSIONS:
                key, whole = world.fresh_key(), not state.version or not world.choices.below(3)
                perform(On(dataset, Upload(key)))
                if perform(On(dataset, Verify(key))):
                    catalog.commit(dataset, _version(state, key, whole), "publisher")
        except Transient as error:
            world.counters[f"error {error.code}"] += 1
        rest(world, me, 6)


def _created(state: State) -> Body | None:
    return None if state.exists else Create(session="s", spec=DatasetSpec(dataset=DatasetId(state.dataset), key=("id",)))


def _version(based_on: State, key: str, whole: bool) -> Callable[[State], Body | None]:
    file = File(role="rows" if whole else "upserts", key=key, sha256=NO_SHA, bytes=FILE_BYTES, rows=1)
    edge = Edge(base=None if whole else based_on.version, version=based_on.version + 1, files=(file,))
    return lambda state: None if state.version != based_on.version else NewVersion(edge=edge)


def retire(world: ChannelWorld, me: Process) -> None:
    """Retention's passes; it keeps the newest version and what channels need."""
    catalog, leases = BellCatalog(world), WorldLeases()
    channels = Channels(catalog, INDEX, leases)
    retention = Retention(catalog, INDEX, leases, cast(Cursors, _NoCursors()), Floors(1, 0.0), channels.pins)
    while True:
        for name in NAMES:
            try:
                retention.apply(DOMAIN.dataset(name))
            except BrokerError as error:
                world.counters[f"error {error.code}"] += 1
            rest(world, me, 4)


def ring(world: ChannelWorld, me: Process) -> None:
    """A bell."""
    catalog = BellCatalog(world)
    while True:
        world.resting.add(me.name)
        while not world.asked:
            world.pause()
        world.resting.discard(me.name)
        log = world.asked.pop(world.choices.below(len(world.asked)))
        try:
            catalog._notify(log)
        except BrokerError:  # as the bell's thread does
            world.cut = True


def help_all(world: ChannelWorld, me: Process) -> None:
    """The janitor."""
    catalog = BellCatalog(world)
    while True:
        try:
            help_once(catalog)
        except Transient as error:
            world.counters[f"error {error.code}"] += 1
        rest(world, me, 4)


def help_once(catalog: BellCatalog) -> None:
    for log in LOGS:
        catalog.help(ChannelsId(log) if log == DOMAIN else DatasetId(log), 2.0)
