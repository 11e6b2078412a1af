"""Each safeguard of the protocols is needed: without it the simulator sees a promise broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulator.checker import Violation
from tests.simulator.mutations import Mutation, mutant
from tests.simulator.product_mutations import OFF, ProductMutation, product_mutant
from tests.simulator.world import World, world_of

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


def first_violation(world_of: Callable[[int], World], seeds: range) -> tuple[int, Violation] | None:
    """Of the schedules without a safeguard, the first that breaks a promise."""
    for seed in seeds:
        try:
            world_of(seed).run()
        except Violation as violation:
            return seed, violation
    return None


@pytest.mark.parametrize("mutation", Mutation)
def test_a_protocol_without_this_safeguard_is_caught(mutation: Mutation) -> None:
    found = first_violation(lambda seed: mutant(mutation, seed), range(SCHEDULES))
    assert found is not None, f"{SCHEDULES} schedules without {mutation.value}: nobody noticed"
    seed, violation = found
    assert violation.promise in PROMISES[mutation], str(violation)
    world_of(seed).run()  # the same schedule with the whole protocol breaks nothing


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", ProductMutation)
def test_a_change_log_or_channels_without_this_safeguard_are_caught(mutation: ProductMutation) -> None:
    off = OFF[mutation]
    found = first_violation(lambda seed: product_mutant(mutation, seed), range(off.first, off.first + SCHEDULES))
    assert found is not None, f"{SCHEDULES} schedules without {mutation.value}: nobody noticed"
    seed, violation = found
    assert violation.promise in off.breaks, str(violation)
    product_mutant(None, seed, like=mutation).run()  # the same schedule with the safeguard on breaks nothing
