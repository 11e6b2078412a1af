"""Many schedules, one report: what was broken, and how often each fault and each answer occurred."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Final

from tests.simulator.checker import Violation
from tests.simulator.world import world_of

MUST_HAPPEN: Final = (
    "fault crash", "fault pause", "fault leap", "fault restart", "fault rollback", "fault wipe", "fault flush",
    "lost request", "lost reply", "lost read", "delayed write", "landed late", "answer unknown",
    "reserve reserved", "reserve refused", "reserve fenced", "reserve too-old", "publish published", "publish behind",
    "seal refused", "foreign record", "helped reservation", "sealed for another", "found behind the head",
    "reconciled", "adopted", "installed", "checkpoint read", "swept", "acknowledged",
)  # fmt: skip
"""A campaign in which one of these is zero has not tried what it claims."""
MUST_NOT_HAPPEN: Final = ("publish differs",)
"""Two histories in one log: only a store that lost or replaced records can show it."""
BLOCK: Final = 500


@dataclass(slots=True)
class Report:
    """`failures`: seed -> the promise broken."""

    schedules: int = 0
    steps: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        self.schedules += other.schedules
        self.steps += other.steps
        self.counters += other.counters
        self.failures |= other.failures

    @property
    def never(self) -> list[str]:
        """Columns that should not be zero and are."""
        return [name for name in MUST_HAPPEN if not self.counters[name]]

    def __str__(self) -> str:
        columns = "\n".join(f"  {name:24}{count:>12,}" for name, count in sorted(self.counters.items()))
        return f"{self.schedules:,} schedules, {self.steps:,} steps, {len(self.failures)} failures\n{columns}"


def run_block(first: int, count: int) -> Report:
    """The schedules of `count` seeds."""
    report = Report(schedules=count)
    for seed in range(first, first + count):
        world = world_of(seed)
        try:
            world.run()
        except Violation as violation:
            report.failures[seed] = str(violation)
        report.steps += world.steps
        report.counters += world.counters
    return report


def campaign(schedules: int, first: int, processes: int) -> Iterator[Report]:
    """Reports of blocks as they end."""
    blocks = [(start, min(BLOCK, first + schedules - start)) for start in range(first, first + schedules, BLOCK)]
    if processes == 1:
        yield from (run_block(*block) for block in blocks)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_block, *zip(*blocks, strict=True))
