"""P1-P3, P8 and P9 over thousands of fault schedules of the publishing protocol."""

from __future__ import annotations

import os

import pytest

from tests.simulator.campaign import MUST_NOT_HAPPEN, Report, campaign
from tests.simulator.mutations import Mutation, mutant
from tests.simulator.plan import Plan, plan_of
from tests.simulator.shrink import outcome, shrink
from tests.simulator.world import World, world_of

SCHEDULES = int(os.environ.get("BROKER_SIMULATE_SCHEDULES", "10000"))
PARTS = 4


@pytest.mark.slow(25)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_holds_in_every_schedule_and_every_fault_occurs(part: int) -> None:
    total, share = Report(), SCHEDULES // PARTS
    for report in campaign(share, first=part * share, processes=1):
        total.add(report)
        if total.failures:
            pytest.fail(str(shrink(min(total.failures))))
    assert not total.never, f"the campaign proves nothing about: {total.never}\n{total}"
    assert not [name for name in MUST_NOT_HAPPEN if total.counters[name]], str(total)


def test_a_seed_gives_the_same_schedule_each_time() -> None:
    first, second = world_of(7, traced=True), world_of(7, traced=True)
    first.run()
    second.run()
    assert first.trace == second.trace
    assert first.trace


def test_a_recorded_schedule_replays_step_by_step() -> None:
    first = world_of(11, traced=True)
    first.run()
    again = world_of(11, first.plan, first.choices.made, traced=True)
    again.run()
    assert again.trace == first.trace


def test_a_failure_shrinks_to_a_smaller_schedule_that_breaks_the_same_promise() -> None:
    def unfenced(seed: int, plan: Plan, choices: list[int] | None, traced: bool) -> World:
        return mutant(Mutation.FENCE, seed, plan, choices, traced)

    seed, first = next((seed, found) for seed in range(200) if (found := outcome(unfenced, seed, plan_of(seed))))
    smallest = shrink(seed, unfenced, most_runs=300)
    assert smallest.violation.promise == first.violation.promise
    assert len(smallest.trace) < len(first.trace)
    assert str(smallest).startswith(f"seed {seed}: ")
