"""`python -m tests.simulator --schedules 1000000 --seed 0`: a campaign in all worlds; exit 1 when a promise was broken."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulator.campaign import Report, campaign
from tests.simulator.shrink import Failure, shrink
from tests.simulator.worlds import SUBJECTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--schedules", type=int, default=int(os.environ.get("BROKER_SIMULATE_SCHEDULES", "10000")))
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the others count on")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--world", choices=sorted(SUBJECTS), help="this one alone, with all schedules (default: each with its part)"
    )
    parser.add_argument("--show", type=int, metavar="SEED", help="shrink and print this one schedule")
    asked = parser.parse_args()
    if asked.show is not None:
        print(_shrunk(asked.world or "publishing", asked.show))  # noqa: T201 - its output
        return 1
    parts = {asked.world: 1.0} if asked.world else {name: subject.part for name, subject in SUBJECTS.items()}
    kept = [_campaign(name, int(asked.schedules * part), asked.seed, asked.processes) for name, part in parts.items()]
    return 0 if all(kept) else 1


def _campaign(of: str, schedules: int, seed: int, processes: int) -> bool:
    """Whether every promise was kept, and everything happened that should."""
    total, began = Report(of), time.monotonic()
    for report in campaign(of, schedules, seed, processes):
        total.add(report)
        rate = total.schedules / (time.monotonic() - began)
        said = f"{of}: {total.schedules:,} schedules, {rate:,.0f}/s, {len(total.failures)} failures"
        print(said, file=sys.stderr, flush=True)  # noqa: T201
    print(total)  # noqa: T201
    for number, violation in list(total.failures.items())[:10]:
        print(f"seed {number}: {violation}")  # noqa: T201
    if total.failures:
        print(_shrunk(of, min(total.failures)))  # noqa: T201
    if total.never:
        print("never happened:", ", ".join(total.never))  # noqa: T201
    return not (total.failures or total.never)


def _shrunk(of: str, seed: int) -> Failure:
    return shrink(seed, SUBJECTS[of].build, plan_of=SUBJECTS[of].plan_of)


if __name__ == "__main__":
    sys.exit(main())
