"""What may happen in a schedule, drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.simulator.choices import Choices
from tests.simulator.programs import Job

REDIS_FAULTS: Final = ("restart", "rollback", "wipe", "flush")
WORLD_FAULTS: Final = ("crash", "pause", "leap", *REDIS_FAULTS)


@dataclass(frozen=True, slots=True)
class Plan:
    """What may happen in a schedule. Rates are per step; `faults` are the kinds that may befall the world.

    `nap_rate`: of suspensions between a reservation and its seal, where most promises are at stake. `landing`: a delayed
    write takes about four times so many steps.
    """

    jobs: tuple[Job, ...]
    workers: int
    helpers: tuple[str, ...]
    stormy_steps: int
    network_rate: float
    fault_rate: float
    nap_rate: float
    landing: int
    faults: tuple[str, ...]
    conditional: bool
    apart: bool = False
    """Whether the log slots lie on another server than the dataset, as in a cluster."""


def plan_of(seed: int) -> Plan:
    """Swarm testing: each schedule has its own few kinds of faults, so that none drowns the others."""
    pick = Choices(seed).below
    kinds = ("delta", "diff", "delta", "hold", "diff", "snapshot")
    jobs = tuple(Job(f"{kind}{i}", kind) for i, kind in enumerate(kinds[pick(6)] for _ in range(2 + pick(4))))
    conditional = pick(4) > 0
    # Without put-if-absent only Redis keeps two writers apart: it may restart, not forget; and a barrier that is on its way
    # while Redis restarts again may meet the next one (a known limit, see DESIGN.md, section 2), so once only.
    possible = WORLD_FAULTS if conditional else ("crash", "pause", "leap", "restart")
    return Plan(
        jobs=jobs, workers=1 + pick(3), helpers=tuple(h for h in ("janitor", "sweeper", "checkpointer") if pick(3)),
        stormy_steps=30 + pick(120), network_rate=(0.0, 0.03, 0.1, 0.25)[pick(4)], fault_rate=(0.0, 0.01, 0.03, 0.08)[pick(4)],
        nap_rate=(0.0, 0.0, 0.1, 0.4)[pick(4)], landing=(1, 10)[pick(2)],
        faults=tuple(kind for kind in possible if pick(2)), conditional=conditional,
    )  # fmt: skip
