"""Kill -9 of appenders and micro-batchers over a real Redis: every acknowledged record is in exactly one delta (P5).

BROKER_FAULT_SCHEDULES=100 python -m pytest tests/faults/test_microbatch_faults.py      the campaign; the default is a sample
BROKER_FAULT_SEED=17                                                                    other schedules
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow.parquet as pq
import pytest

import broker
from broker import microbatcher
from broker.errors import Transient
from broker.model.commit import NewVersion, SourceRange, parse_record
from broker.model.names import DatasetId
from broker.rules import publishing
from broker.rules.patch import NOTHING_CONSUMED
from tests.faults.appender import rows_of
from tests.faults.arena import Arena, check_log
from tests.faults.batcher import STEPS
from tests.faults.nursery import Forked, fork
from tests.servers import RedisServer, redis_server, temporary_folder, wait_until

SCHEDULES: Final = int(os.environ.get("BROKER_FAULT_SCHEDULES", "4"))
SEED: Final = int(os.environ.get("BROKER_FAULT_SEED", "1"))
BATCHERS: Final = 2
CAMPAIGN: Final = 50
"""From so many schedules on, what was never met is a hole in the campaign, and fails it."""
FAULTS: Final = ("appender", "batcher", "restart", "step")
CLOSED: Final = ("age", "joined", "idle")
"""Why batches end here: by the clock, beside another log slot's, or with marks alone."""
MAX_AGE_SECONDS: Final = 0.05
SEAL_SECONDS: Final = 40.0


@dataclass
class Log:
    """A deployment whose change log is under attack: batchers and appenders, each replaced when it was killed."""

    arena: Arena
    server: RedisServer
    b: broker.Broker
    batchers: list[Forked] = field(default_factory=list)
    appenders: dict[tuple[str, str, int], Forked] = field(default_factory=dict)
    met: Counter[str] = field(default_factory=Counter)

    def tend(self) -> None:
        """Successors for the killed. Raises AssertionError when one ended by itself, other than with its work done."""
        alive = [batcher for batcher in self.batchers if self._alive(batcher)]
        self.batchers = alive + [fork(self.arena.home, "tests.faults.batcher") for _ in range(BATCHERS - len(alive))]
        for job, appender in self.appenders.items():
            if not self._alive(appender) and appender.returncode != 0:
                self.appenders[job] = fork(self.arena.home, "tests.faults.appender", *map(str, job))

    def _alive(self, process: Forked) -> bool:
        code = process.poll()
        assert code in (None, 0, -signal.SIGKILL), f"a process ended with {code}:\n{self.arena.log_tail()}"
        return code is None

    def append(self, dataset: DatasetId, producer: str, last: int) -> None:
        job = (str(dataset), producer, last)
        self.appenders[job] = fork(self.arena.home, "tests.faults.appender", *map(str, job))

    def appended(self) -> bool:
        """Whether all appenders have done their work."""
        self.tend()
        return all(appender.poll() == 0 for appender in self.appenders.values())

    def sealed(self, dataset: DatasetId) -> bool:
        self.tend()
        try:
            return not any(slot.unbatched_rows for slot in self.b.dataset(dataset).changelog.status())
        except Transient:
            return False

    def stop(self) -> None:
        self.arena.let_go_on()
        for process in (*self.batchers, *self.appenders.values()):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def log() -> Iterator[Log]:
    with redis_server() as server, temporary_folder("batch") as home:
        arena = Arena(home, server.url, settings={"max_age_seconds": MAX_AGE_SECONDS})
        with arena.connect() as b:
            found = Log(arena, server, b)
            try:
                yield found
            finally:
                found.stop()


# --- the checker


def check_exactly_once(log: Log, dataset: DatasetId, producers: dict[str, int]) -> int:
    """Neither gap nor overlap, whatever happened: ranges follow on each other, and each record is in one delta's files, once.

    -> versions
    """
    check_log(log.b, dataset)
    ends: dict[int, list[SourceRange]] = {}
    seen, newest, versions = Counter[str](), dict[str, int](), 0
    for data in log.b.parts.catalog.records(dataset):
        body = parse_record(data, "log").body
        if not isinstance(body, NewVersion):
            continue
        versions += 1
        for source in body.sources:
            ends.setdefault(source.slot, []).append(source)
            assert source.closed in CLOSED, "no batch here is closed by its size"
            log.met[source.closed] += 1
        for row in rows_in(log.b, body):
            seen[row["sku"]] += 1
            if row["sku"] in producers:
                assert row["n"] > newest.get(row["sku"], 0), "a later version holds an older change of the producer"
                newest[row["sku"]] = row["n"]
    for ranges in ends.values():
        assert [source.after for source in ranges] == [NOTHING_CONSUMED, *(source.until for source in ranges[:-1])]
    own = [row["sku"] for producer, last in producers.items() for n in range(1, last + 1) for row in rows_of(producer, n)[:-1]]
    assert {sku: count for sku, count in seen.items() if sku not in producers} == dict.fromkeys(own, 1)
    assert newest == {producer: last for producer, last in producers.items() if last}
    state = log.b.parts.catalog.state(dataset)
    for slot in ends:
        for producer, mark in state.marks(slot).items():
            assert mark.block <= producers[producer]
    return versions


def rows_in(b: broker.Broker, body: NewVersion) -> list[dict[str, Any]]:
    return [row for file in body.edge.files for row in pq.read_table(b.parts.engine.fetch(file)).to_pylist()]


def acked(log: Log, producer: str) -> set[int]:
    path = log.arena.home / f"acked.{producer}"
    return {int(line) for line in path.read_text().split()} if path.exists() else set()


# --- kill -9 at each named step


def test_every_named_step_of_a_batch_is_killed_at() -> None:
    assert {*microbatcher.STEPS, *publishing.STEPS} == {*STEPS}


@pytest.mark.parametrize("step", STEPS)
def test_a_batcher_killed_at_a_step_is_taken_over_with_neither_gap_nor_overlap(log: Log, step: str) -> None:
    dataset, order = DatasetId(f"shop/kills/{step}"), f"batcher.{step}.kill"
    log.b.dataset(dataset, key=["sku"])
    log.tend()
    log.arena.arm(order)
    log.append(dataset, f"kill-{step}", 12)
    wait_until(log.appended, "the appender", SEAL_SECONDS)
    wait_until(lambda: log.sealed(dataset) and log.arena.was_hit(order), f"all sealed, one killed at {step}", SEAL_SECONDS)
    wait_until(lambda: log.sealed(dataset), "all sealed", SEAL_SECONDS)
    check_exactly_once(log, dataset, {f"kill-{step}": 12})
    assert acked(log, f"kill-{step}") <= set(range(1, 13))


# --- schedules


def run_schedule(log: Log, number: int) -> None:
    """Random kills of both kinds anywhere and at steps; every third schedule restarts Redis, too."""
    chance, dataset = random.Random(f"{SEED}-{number}"), DatasetId(f"shop/schedules/s{number}")
    log.b.dataset(dataset, key=["sku"])
    producers = {f"s{number}-{name}": chance.randrange(20, 40) for name in "ab"}
    log.tend()
    for producer, last in producers.items():
        log.append(dataset, producer, last)
    orders = [f"batcher.{step}.kill" for step in chance.sample(STEPS, 2)]
    for order in orders:
        log.arena.arm(order)
    for _ in range(chance.randrange(2, 5)):
        wait_for_blocks(log, [*producers], chance)
        log.met[_strike(log, chance, restarts=number % 3 == 2)] += 1
        log.tend()
    wait_until(log.appended, "the appenders", SEAL_SECONDS)
    wait_until(lambda: log.sealed(dataset), "all sealed", SEAL_SECONDS)
    log.met["step"] += sum(not log.arena.is_armed(order) for order in orders)
    log.arena.disarm()
    log.met["version"] += check_exactly_once(log, dataset, producers)
    log.met["schedule"] += 1
    log.appenders.clear()


@pytest.mark.parametrize("number", range(SCHEDULES))
def test_a_schedule_of_crashes_and_replays_closes_by_the_clock_and_seals_every_record_once(log: Log, number: int) -> None:
    run_schedule(log, number)


def test_after_all_schedules_batches_closed_by_the_clock_and_every_fault_was_met(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    if not log.met["schedule"]:  # pytest-xdist dealt the schedules to other workers
        run_schedule(log, 0)
    log.met["replay"] = log.arena.counts()["batcher-read"] - sum(log.met[reason] for reason in CLOSED)
    with capsys.disabled():
        counts = ", ".join(f"{kind} {log.met[kind]}" for kind in (*FAULTS, *CLOSED, "version", "replay"))
        sys.stdout.write(f"\n{log.met['schedule']} schedules, seed {SEED}: {counts}\n")
    assert log.met["version"] > log.met["schedule"], "batches were closed by the clock, not all at the end"
    assert log.met["age"]
    if log.met["schedule"] >= CAMPAIGN:
        assert [kind for kind in (*FAULTS, "age", "joined", "replay") if not log.met[kind]] == []


def wait_for_blocks(log: Log, producers: list[str], chance: random.Random) -> None:
    """Strike somewhere in the middle of the work, wherever that is by then."""
    some = chance.randrange(1, 15)
    wait_until(
        lambda: log.appended() or sum(len(acked(log, producer)) for producer in producers) >= some, "some blocks", SEAL_SECONDS
    )


def _strike(log: Log, chance: random.Random, *, restarts: bool) -> str:
    if restarts and chance.random() < 0.4:
        log.server.restart()
        return "restart"
    if chance.random() < 0.5:
        chance.choice(log.batchers).kill()
        return "batcher"
    chance.choice([*log.appenders.values()]).kill()
    return "appender"
