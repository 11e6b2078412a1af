"""Many schedules, one report: what was broken, and how often each fault and each answer occurred."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Final

from tests.simulator.checker import Violation
from tests.simulator.worlds import SUBJECTS

MUST_NOT_HAPPEN: Final = ("publish differs",)
"""Two histories in one log: only a store that lost or replaced records can show it."""
BLOCK: Final = 500


@dataclass(slots=True)
class Report:
    """Of one world. `failures`: seed -> the promise broken."""

    world: str = "publishing"
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
        return [name for name in SUBJECTS[self.world].must_happen if not self.counters[name]]

    def __str__(self) -> str:
        columns = "\n".join(f"  {name:24}{count:>12,}" for name, count in sorted(self.counters.items()))
        return f"{self.world}: {self.schedules:,} schedules, {self.steps:,} steps, {len(self.failures)} failures\n{columns}"


def run_block(first: int, count: int, of: str) -> Report:
    """The schedules of `count` seeds."""
    report, subject = Report(of, count), SUBJECTS[of]
    for seed in range(first, first + count):
        world = subject.build(seed, subject.plan_of(seed), None, False)
        try:
            world.run()
        except Violation as violation:
            report.failures[seed] = str(violation)
        report.steps += world.steps
        report.counters += world.counters
    return report


def campaign(of: str, schedules: int, first: int, processes: int) -> Iterator[Report]:
    """Reports of blocks of a world as they end."""
    blocks = [(start, min(BLOCK, first + schedules - start), of) for start in range(first, first + schedules, BLOCK)]
    if processes == 1:
        yield from (run_block(*block) for block in blocks)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_block, *zip(*blocks, strict=True))
