"""What the product's own code stands on in a world: its catalog over the world's effects, its leases, its clock."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Final, cast

from broker.backend.index import Index
from broker.backend.keys import Slot, slot_for
from broker.backend.lanes import Argument
from broker.backend.leases import Leases
from broker.catalog import Catalog
from broker.catalog_driver import Driver, Run
from broker.errors import BrokerError, Busy, Fenced, OutcomeUnknown, Transient, Unavailable
from broker.model.names import DatasetId
from broker.rules.publishing import Effect, HeadView, Lease, ReadHead, ReadLog
from broker.rules.steps import nothing
from broker.sealed import Sealed
from broker.settings import Settings
from tests.simulator.fibres import Clock, Script, perform, swapped
from tests.simulator.programs import LEASE_SECONDS, Acquire, Doing, Renew, Sleep
from tests.simulator.world import Again, Process, World

SETTINGS: Final = Settings(log_slots=2, max_age_seconds=0.4, batch_rows=6, unbatched_bytes=2_200)


@dataclass(frozen=True, slots=True)
class On:
    """An effect on the log of one dataset."""

    log: str
    effect: Doing


class ProductWorld(World):
    """A world whose processes run the product's blocking code."""

    modules: ClassVar[tuple[str, ...]]
    """Where the product tells the time."""

    acting: Process

    def run(self) -> None:
        try:
            clock, ids = Clock(lambda: self.redis.now, self.pause), count(1)
            with (
                swapped(self.modules, "time", clock),
                swapped(self.modules, "uuid4", lambda: self._new_id(next(ids))),
                _quiet(),
            ):
                super().run()
        finally:
            for process in self.processes:
                if process.program is not None:
                    process.program.close()

    def pause(self, steps: int = 8) -> None:
        """Whoever waits is left out for a while."""
        self.acting.asleep_until = max(self.acting.asleep_until, self.steps + steps)
        nap()

    def _new_id(self, number: int) -> _Id:
        """In the order in which they are asked for: a schedule is the same each time."""
        self.named(id := f"{number:08x}" + "0" * 24)
        return _Id(id)

    def named(self, id: str) -> None:
        """Somebody asked for an id of its own."""

    def advance(self, process: Process) -> None:
        self.acting = process
        super().advance(process)

    def _perform(self, process: Process, effect: Any) -> Any:
        if isinstance(effect, On):
            self.enter(effect.log)
            effect = effect.effect
        return super()._perform(process, effect)

    def reads(self, effect: Doing) -> bool:
        return not effect.writes if isinstance(effect, Script) else super().reads(effect)

    def unknown(self, process: Process, effect: Doing) -> Any:
        if not isinstance(effect, Script):
            return super().unknown(process, effect)
        self.counters["answer unknown"] += 1
        if effect.writes:
            raise OutcomeUnknown("timed out", of=effect.says)
        if self.choices.below(2):
            raise Unavailable("timed out", of=effect.says)
        raise Again

    def apply(self, owner: str, effect: Doing) -> Any:
        if not isinstance(effect, Script):
            return super().apply(owner, effect)
        outcome = effect.run()
        self.redis.server.remember()
        return outcome

    def created(self, machine: Any) -> None:
        """Before anything befalls the world."""
        self.calm = True
        self.drive(machine)
        self.calm = False


def nap() -> None:
    perform(Sleep())


class _Unsearched:
    """The index of attributes is no part of these worlds."""

    def replies(self, commands: Sequence[Sequence[Argument]], of: str) -> list[Any]:
        del commands, of
        return []


class _Slots:
    redis = _Unsearched()

    def slot(self, dataset: DatasetId) -> Slot:
        return Slot(slot_for(dataset, SETTINGS.shards))

    def announce(self, dataset: DatasetId) -> None:
        del dataset


INDEX: Final = cast(Index, _Slots())


class _Log:
    """Sealed records, read through the world."""

    def exists(self, dataset: DatasetId) -> bool:
        return perform(On(dataset, ReadLog(1))) is not None

    def records(self, dataset: DatasetId, first: int) -> Iterator[bytes]:
        while (data := perform(On(dataset, ReadLog(first)))) is not None:
            yield data
            first += 1

    def record(self, dataset: DatasetId, seq: int) -> Any:
        return perform(On(dataset, ReadLog(seq)))


class WorldDriver(Driver):
    """The product's driver: whatever it does to Redis or the store is an effect of the world, one after the other."""

    def __init__(self) -> None:
        super().__init__(INDEX, cast(Sealed, _Log()), SETTINGS, lambda _: None)

    def perform(self, log: DatasetId, effect: Effect) -> Any:
        return perform(On(log, effect))

    def views(self, heads: Mapping[DatasetId, Any]) -> dict[DatasetId, HeadView]:
        """They are views already."""
        return dict(heads)

    def head(self, log: DatasetId) -> HeadView:
        return cast(HeadView, perform(On(log, ReadHead())))

    def heads(self, logs: Sequence[DatasetId]) -> list[HeadView | BrokerError]:
        return [self._attempt(log, ReadHead()) for log in logs]

    def _perform_all(self, runs: Sequence[Run]) -> list[Any]:
        return [self._attempt(run.log, run.effect) for run in runs]


class WorldCatalog(Catalog):
    """The product's catalog over such a driver."""

    def __init__(self, driver: WorldDriver | None = None) -> None:
        self._settings, self._on_step, self._driver = SETTINGS, nothing, driver or WorldDriver()
        self._index, self._sealed = INDEX, cast(Sealed, _Log())

    def close(self) -> None:
        """It has no bell."""


class WorldLeases(Leases):
    """Leases that nobody renews: whoever sleeps longer than one loses it, as a stopped process does."""

    def __init__(self) -> None:
        self.lease_seconds = LEASE_SECONDS

    def acquire(self, slot: Slot, name: str, owner: str) -> Lease:
        del slot
        lease: Lease | None = perform(Acquire(name, owner))
        if lease is None:
            raise Busy("the lease is held by somebody else", of=name)
        return lease

    def acquire_looking(
        self, slot: Slot, name: str, owner: str, logs: Sequence[DatasetId]
    ) -> tuple[Lease, Mapping[DatasetId, Any]]:
        """One after the other: what happens in between is one thing more that a look may miss."""
        lease, seen = self.acquire(slot, name, owner), dict[DatasetId, HeadView]()
        for log in logs:
            with suppress(Transient):
                seen[log] = perform(On(log, ReadHead()))
        return lease, seen

    def renew(self, slot: Slot, lease: Lease) -> None:
        del slot
        if not perform(Renew(lease, LEASE_SECONDS)):
            raise Fenced("the lease is lost", of=lease.name)

    def release(self, slot: Slot, lease: Lease) -> None:
        del slot
        perform(Renew(lease, 0))

    @contextmanager
    def held(self, slot: Slot, name: str, owner: str) -> Iterator[Lease]:
        lease = self.acquire(slot, name, owner)
        try:
            yield lease
        finally:
            with suppress(Transient):
                self.release(slot, lease)


@dataclass(frozen=True, slots=True)
class _Id:
    hex: str


@contextmanager
def _quiet() -> Iterator[None]:
    """What goes wrong here goes wrong on purpose."""
    log = logging.getLogger("broker")
    kept = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(kept)
