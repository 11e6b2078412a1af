"""The worlds there are: what each schedules, and what must have happened in a campaign that claims to have tried it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.simulator.channel_world import channel_plan_of, channel_world_of
from tests.simulator.log_world import log_plan_of, log_world_of
from tests.simulator.plan import Plan, plan_of
from tests.simulator.world import World, world_of

Build = Callable[[int, Plan, list[int] | None, bool], World]
_FAULTS: Final = (
    "fault crash", "fault pause", "fault leap", "fault restart", "fault rollback", "fault wipe", "fault flush",
    "lost request", "lost reply", "lost read", "delayed write", "landed late", "answer unknown", "reconciled", "seal refused",
    "reserve reserved", "reserve refused", "publish published", "publish behind",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """`part`: of the schedules of a campaign over all worlds; `must_happen`: counters none of which may be zero."""

    plan_of: Callable[[int], Plan]
    build: Build
    part: float
    must_happen: tuple[str, ...]


SUBJECTS: Final = {
    "publishing": Subject(plan_of, world_of, 1.0, (
        *_FAULTS, "foreign record", "reserve fenced", "reserve too-old", "sealed for another", "helped reservation",
        "found behind the head", "adopted", "installed", "checkpoint read", "swept", "acknowledged",
    )),
    "log": Subject(log_plan_of, log_world_of, 0.1, (
        *_FAULTS, "foreign record", "append accepted", "append same", "append gap", "append full", "append reconcile",
        "log closed", "log opened", "trimmed", "batch closed", "batches committed", "record sealed", "gap told",
        "acknowledged accepted", "acknowledged sealed", "accepted and lost", "helped reservation",
    )),
    "channels": Subject(channel_plan_of, channel_world_of, 0.1, (
        *_FAULTS, "announced promoted", "announced released", "announced rolled-back", "acknowledged promote",
        "acknowledged release", "acknowledged rollback", "refused conflict", "refused not-found", "reserve fenced",
        "error busy", "retired", "lease slept through",
    )),
}  # fmt: skip
