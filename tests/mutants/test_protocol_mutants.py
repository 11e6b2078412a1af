"""Each safeguard of the publishing protocol is needed: without it the simulator sees a promise broken."""

from __future__ import annotations

import pytest

from tests.simulator.checker import Violation
from tests.simulator.mutations import Mutation, mutant
from tests.simulator.world import world_of

SCHEDULES = 3000
PROMISES = {
    Mutation.FENCE: {"P3"},
    Mutation.PUT_IF_ABSENT: {"P2"},
    Mutation.READ_BACK: {"P1", "P2", "P9"},
    Mutation.EXPECTED_HEAD: {"P2"},
    Mutation.BARRIER: {"P1", "P3"},
    Mutation.RUN_ID: {"P3", "P8"},
    Mutation.ONE_VIEW: {"P2", "P8"},
}


def first_violation(mutation: Mutation) -> tuple[int, Violation] | None:
    """Of the first schedules without this safeguard, the first that breaks a promise."""
    for seed in range(SCHEDULES):
        try:
            mutant(mutation, seed).run()
        except Violation as violation:
            return seed, violation
    return None


@pytest.mark.parametrize("mutation", Mutation)
def test_a_protocol_without_this_safeguard_is_caught(mutation: Mutation) -> None:
    found = first_violation(mutation)
    assert found is not None, f"{SCHEDULES} schedules without {mutation.value}: nobody noticed"
    seed, violation = found
    assert violation.promise in PROMISES[mutation], str(violation)
    world_of(seed).run()  # the same schedule with the whole protocol breaks nothing
