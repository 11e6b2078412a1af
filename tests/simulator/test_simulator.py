"""P1-P3, P5 and P8-P10 over thousands of fault schedules of the publishing protocol, the change log and channels."""

from __future__ import annotations

import os

import pytest

from tests.simulator.campaign import MUST_NOT_HAPPEN, Report, campaign
from tests.simulator.mutations import Mutation, mutant
from tests.simulator.plan import Plan, plan_of
from tests.simulator.shrink import outcome, shrink
from tests.simulator.world import World
from tests.simulator.worlds import SUBJECTS

SCHEDULES = int(os.environ.get("BROKER_SIMULATE_SCHEDULES", "10000"))
PARTS = 4
SHARES = {"log": SCHEDULES // 40, "channels": SCHEDULES // 80}
"""Of worlds whose schedules are longer."""


@pytest.mark.slow(25)
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("world", "first", "count"),
    [
        *(("publishing", part * SCHEDULES // PARTS, SCHEDULES // PARTS) for part in range(PARTS)),
        *((world, 0, count) for world, count in SHARES.items()),
    ],
)
def test_every_promise_holds_in_every_schedule_and_every_fault_occurs(world: str, first: int, count: int) -> None:
    total, subject = Report(world), SUBJECTS[world]
    for report in campaign(world, count, first, processes=1):
        total.add(report)
        if total.failures:
            pytest.fail(str(shrink(min(total.failures), subject.build, plan_of=subject.plan_of)))
    assert not total.never, f"the campaign proves nothing about: {total.never}\n{total}"
    assert not [name for name in MUST_NOT_HAPPEN if total.counters[name]], str(total)


@pytest.mark.parametrize("world", SUBJECTS)
def test_a_seed_gives_the_same_schedule_each_time(world: str) -> None:
    first, second = made(world, 7), made(world, 7)
    first.run()
    second.run()
    assert first.trace == second.trace
    assert first.trace


@pytest.mark.parametrize("world", SUBJECTS)
def test_a_recorded_schedule_replays_step_by_step(world: str) -> None:
    first = made(world, 11)
    first.run()
    again = SUBJECTS[world].build(11, first.plan, first.choices.made, True)
    again.run()
    assert again.trace == first.trace


def made(world: str, seed: int) -> World:
    """A traced schedule."""
    return SUBJECTS[world].build(seed, SUBJECTS[world].plan_of(seed), None, True)


def test_a_failure_shrinks_to_a_smaller_schedule_that_breaks_the_same_promise() -> None:
    def unfenced(seed: int, plan: Plan, choices: list[int] | None, traced: bool) -> World:
        return mutant(Mutation.FENCE, seed, plan, choices, traced)

    seed, first = next((seed, found) for seed in range(200) if (found := outcome(unfenced, seed, plan_of(seed))))
    smallest = shrink(seed, unfenced, most_runs=300)
    assert smallest.violation.promise == first.violation.promise
    assert len(smallest.trace) < len(first.trace)
    assert str(smallest).startswith(f"seed {seed}: ")
