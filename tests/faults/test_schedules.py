"""Randomized schedules of kills, pauses, restarts and roll-backs: 4 workers, 500 requests each, one terminal event a request.

    BROKER_FAULT_SCHEDULES=200 python -m pytest tests/faults/test_schedules.py      the campaign; the default is a sample
    BROKER_FAULT_SEED=17                                                            other schedules

Faults are ordered at named steps (steps.py), and processes are killed wherever they are ("anywhere").
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, Final, TypeVar

import pytest

import broker
from broker.errors import Transient
from broker.model.commit import parse_record
from broker.model.names import DatasetId
from broker.rules import publishing
from tests.faults import publisher
from tests.faults.arena import LEASE_SECONDS, Arena, check_events, check_log
from tests.servers import RedisServer, redis_server, temporary_folder, wait_until

T = TypeVar("T")
SCHEDULES: Final = int(os.environ.get("BROKER_FAULT_SCHEDULES", "4"))
SEED: Final = int(os.environ.get("BROKER_FAULT_SEED", "1"))
CAMPAIGN: Final = 100
"""From so many schedules on, a fault that never hit a step is a hole in the campaign, and fails it."""
WORKERS: Final = 4
REQUESTS: Final = 500
BATCH: Final = 50
ORDERS: Final = 4
"""Faults ordered in one schedule."""
ANSWER_SECONDS: Final = 80.0
PAUSE_SECONDS: Final = LEASE_SECONDS * 2
DATASETS: Final = tuple(DatasetId(f"goodstuff_0{n}/catalog/offers") for n in range(3))
CHILD_FAULTS: Final = tuple(
    f"child.{step}.{fault}"
    for step in ("upload", *publishing.STEPS, "produced", "derived")
    for fault in ("kill", "orphan", "pause")
)
PARENT_FAULTS: Final = tuple(
    f"parent.{step}.{fault}" for step in ("claimed", "closed", "answered") for fault in ("kill", "pause")
)
COLUMNS: Final = ("take-over", "refused-fence", "helped-reservation", "foreign-record", "reconcile")


class Campaign:
    """Schedules one after the other over one deployment. Every fault comes as often as any other."""

    def __init__(self, arena: Arena, server: RedisServer, b: broker.Broker) -> None:
        self.arena, self.server, self.b = arena, server, b
        self.anywhere: Counter[str] = Counter()
        self._asked: list[dict[str, Any]] = []
        self._sleepers: list[subprocess.Popen[bytes]] = []
        deck = [*CHILD_FAULTS, *PARENT_FAULTS]
        random.Random(SEED).shuffle(deck)
        self._deck = cycle(deck)

    def run(self, number: int) -> None:
        """One schedule: requests come in batches, faults between them; then everything must come to an end."""
        chance, target = random.Random(f"{SEED}-{number}"), f"schedule-{number}"
        orders = {chance.randrange(REQUESTS // BATCH): next(self._deck) for _ in range(ORDERS)}
        restart_at = chance.randrange(REQUESTS // BATCH) if number % 3 == 0 else -1
        back_at = chance.randrange(1, REQUESTS // BATCH) if number % 5 == 1 else -9
        handles: list[broker.Handle] = []
        self._asked.clear()
        for batch in range(REQUESTS // BATCH):
            if batch in orders:
                self.arena.arm(orders[batch])
            self._change_source(chance)
            handles += [self._ask(chance, f"{target}-{batch * BATCH + index}", target) for index in range(BATCH)]
            if chance.random() < 0.05:
                self._kill_anywhere(chance)
            if batch == restart_at:
                self.server.restart()
            if batch == back_at:
                handles = self._roll_back(target)
            self._tend()
        for handle in chance.sample(handles, 10):
            self._persist(handle.cancel)
        self._finish(target)
        check_events(self.b, handles, target)
        self._clean(target)

    def _ask(self, chance: random.Random, key: str, target: str) -> broker.Handle:
        fields: dict[str, Any] = {
            "dataset": chance.choice(DATASETS), "target": target, "idempotency_key": key,
            "where": chance.choice([None, "price < 50", "price >= 50"]), "max_staleness": chance.choice([None, None, 0.2]),
            "priority": chance.choice(["high", "normal", "low"]), "format": chance.choice(["parquet", "csv"]),
        }  # fmt: skip
        self._asked.append(fields)
        return self._submit(fields)

    def _roll_back(self, target: str) -> list[broker.Handle]:
        """Redis forgets the reservation of a writer that sleeps behind it, and all requests since; those are asked again."""
        order, saved = "publisher.reserve.pause", self.server.save(target)
        self.arena.arm(order)
        wait_until(lambda: self._tended() and self._asleep(order), "a writer asleep", 40)
        self.server.roll_back(saved)
        return [self._submit(fields) for fields in self._asked]

    def _asleep(self, order: str) -> bool:
        """Whether a publisher carries out the order; one that met a fault before it could is followed by another."""
        if not self._sleepers or self._sleepers[-1].poll() is not None:
            self._sleepers.append(self.arena.spawn("tests.faults.publisher", DATASETS[0]))
        return not self.arena.is_armed(order)

    def _tended(self) -> bool:
        self._tend()
        return True

    def _submit(self, fields: dict[str, Any]) -> broker.Handle:
        return self._persist(lambda: self.b.request(**fields))

    def _persist(self, call: Callable[[], T]) -> T:
        """What a careful caller does: transient errors are no reason to give up; the idempotency key makes it one request."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return call()
            except Transient:
                assert time.monotonic() < deadline, "Redis does not come back"

    def _change_source(self, chance: random.Random) -> None:
        rows = [{"sku": f"s{n}", "price": chance.randrange(100)} for n in range(chance.randrange(1, 30))]
        self.arena.set_source(rows, chance.choice(DATASETS))

    def _kill_anywhere(self, chance: random.Random) -> None:
        chance.choice(self.arena.workers).kill()
        self.anywhere["kill"] += 1

    def _tend(self) -> None:
        """What an operator's supervisor does: dead workers are replaced; and stopped ones go on after a while."""
        self.arena.let_go_on(older_than_seconds=PAUSE_SECONDS)
        self.arena.replace_dead_workers()

    def _finish(self, target: str) -> None:
        deadline, stream = time.monotonic() + ANSWER_SECONDS, self.b.parts.index.slot(DATASETS[0]).responses(target)
        while self._persist(lambda: self.b.parts.redis.run("XLEN", stream, writes=False)) < REQUESTS:
            self._tend()
            assert time.monotonic() < deadline, f"not all requests ended:\n{self.arena.log_tail()}"
            time.sleep(0.02)
        for sleeper in self._sleepers:
            wait_until(lambda sleeper=sleeper: self._tended() and sleeper.poll() is not None, "a writer that slept", 30)  # type: ignore[misc]
            assert sleeper.returncode in (0, publisher.TYPED_ERROR)
        self._sleepers.clear()

    def _clean(self, target: str) -> None:
        """What was checked is forgotten, so that the last restart of a campaign takes no longer than the first."""
        redis = self.b.parts.redis
        redis.run("DEL", self.b.parts.index.slot(DATASETS[0]).responses(target))
        redis.run("BGREWRITEAOF")
        wait_until(lambda: b"aof_rewrite_in_progress:0" in redis.run("INFO", "persistence", writes=False), "a short AOF")

    def table(self) -> str:
        """How often each named step was hit by each fault, and what the protocol met."""
        hits, counts = self.arena.hits(), self.counts()
        lines = [f"{'step':20}{'kill':>8}{'orphan':>8}{'pause':>8}"]
        for step in dict.fromkeys(order.split(".")[1] for order in (*CHILD_FAULTS, *PARENT_FAULTS)):
            lines.append(f"{step:20}" + "".join(f"{hits[step, fault] or '-':>8}" for fault in ("kill", "orphan", "pause")))
        lines.append(f"{'anywhere':20}{self.anywhere['kill'] or '-':>8}")
        return "\n".join(lines) + "\n" + ", ".join(f"{name} {counts[name]}" for name in COLUMNS)

    def counts(self) -> Counter[str]:
        """What the processes told, and the barriers in the logs: each is one reconcile that closed an incarnation."""
        records = (parse_record(data, "log") for dataset in DATASETS for data in self.b.parts.catalog.records(dataset))
        return self.arena.counts() + Counter({"reconcile": sum(record.body.kind == "barrier" for record in records)})

    def zeros(self) -> list[str]:
        """Faults that never hit their step, and columns nothing fell into."""
        hits, counts = self.arena.hits(), self.counts()
        missed = [order for order in (*CHILD_FAULTS, *PARENT_FAULTS) if not hits[order.split(".")[1], order.split(".")[2]]]
        return missed + [name for name in COLUMNS if not counts[name]]


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    with redis_server("--auto-aof-rewrite-percentage", "0") as server, temporary_folder("schedules") as home:
        arena = Arena(home, server.url, settings={"checkpoint_every": 50, "history_seconds": 300})
        with arena.connect() as b:
            for dataset in DATASETS:
                b.dataset(dataset, key=["sku"])
                arena.set_source([], dataset)
            for _ in range(WORKERS):
                arena.start_worker()
            try:
                yield Campaign(arena, server, b)
                for dataset in DATASETS:  # here too: with pytest-xdist the last test sees the schedules of its own worker
                    check_log(b, dataset)
            finally:
                arena.stop()


@pytest.mark.parametrize("number", range(SCHEDULES))
def test_each_request_of_a_schedule_has_exactly_one_terminal_event(campaign: Campaign, number: int) -> None:
    campaign.run(number)


def test_after_all_schedules_the_logs_are_whole_and_every_fault_was_met(
    campaign: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    if not campaign.arena.hits():  # pytest-xdist dealt the schedules to other workers
        campaign.run(0)
    for dataset in DATASETS:
        check_log(campaign.b, dataset)
    with capsys.disabled():
        sys.stdout.write(f"\n{SCHEDULES} schedules, {SCHEDULES * REQUESTS} requests, seed {SEED}\n{campaign.table()}\n")
    assert campaign.arena.hits(), "no fault at all was carried out"
    assert SCHEDULES < CAMPAIGN or not campaign.zeros()
