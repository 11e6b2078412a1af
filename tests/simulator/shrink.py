"""The smallest schedule that breaks the same promise: fewer faults, fewer processes, a shorter and plainer list of choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.simulator.checker import Violation
from tests.simulator.plan import Plan, plan_of
from tests.simulator.world import world_of
from tests.simulator.worlds import Build


@dataclass(frozen=True, slots=True)
class Failure:
    """A broken promise with the schedule that breaks it."""

    seed: int
    violation: Violation
    plan: Plan
    choices: list[int]
    trace: list[str]

    def __str__(self) -> str:
        store = "honours put-if-absent" if self.plan.conditional else "ignores put-if-absent"
        head = f"seed {self.seed}: {self.violation}\nstore {store}; {len(self.choices)} choices"
        return "\n".join((head, *self.trace))


def outcome(build: Build, seed: int, plan: Plan, choices: list[int] | None = None) -> Failure | None:
    """Run one schedule; None when every promise was kept."""
    world = build(seed, plan, choices, True)
    try:
        world.run()
    except Violation as violation:
        return Failure(seed, violation, plan, list(world.choices.made), world.trace or [])
    return None


def shrink(
    seed: int, build: Build = world_of, most_runs: int = 3000, plan_of: Callable[[int], Plan] = plan_of
) -> Failure:  # fmt: skip
    """The smallest failure found within `most_runs` schedules. Raises ValueError for a seed that keeps every promise."""
    best = outcome(build, seed, plan_of(seed))
    if best is None:
        raise ValueError(f"seed {seed} breaks no promise")
    runs, again = 0, True
    while again and runs < most_runs:
        again = False
        for plan, choices in _simpler(best):
            runs += 1
            found = outcome(build, seed, plan, choices)
            if found is not None and found.violation.promise == best.violation.promise and _size(found) < _size(best):
                best, again = found, True
                break
            if runs >= most_runs:
                break
    return best


def _size(failure: Failure) -> tuple[int, int, int]:
    plan = failure.plan
    world = len(plan.faults) + len(plan.helpers) + len(plan.jobs) + plan.workers + (plan.network_rate > 0)
    return world + len(failure.trace), sum(1 for choice in failure.choices if choice), len(failure.choices)


def _simpler(failure: Failure) -> Iterator[tuple[Plan, list[int]]]:
    plan, choices = failure.plan, failure.choices
    for fault in plan.faults:
        yield replace(plan, faults=tuple(kind for kind in plan.faults if kind != fault)), choices
    for name in plan.helpers:
        yield replace(plan, helpers=tuple(kind for kind in plan.helpers if kind != name)), choices
    for job in plan.jobs if len(plan.jobs) > 1 else ():
        yield replace(plan, jobs=tuple(other for other in plan.jobs if other != job)), choices
    if plan.workers > 1:
        yield replace(plan, workers=plan.workers - 1), choices
    if plan.network_rate:
        yield replace(plan, network_rate=0.0), choices
    if plan.stormy_steps > 2:
        yield replace(plan, stormy_steps=plan.stormy_steps * 3 // 4), choices
        yield replace(plan, stormy_steps=plan.stormy_steps - 1), choices
    chunk = max(1, len(choices) // 2)
    while chunk:
        for start in range(0, len(choices), chunk):
            yield plan, choices[:start] + choices[start + chunk :]
            if any(choices[start : start + chunk]):
                yield plan, choices[:start] + [0] * len(choices[start : start + chunk]) + choices[start + chunk :]
        chunk //= 2
