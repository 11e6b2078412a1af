"""`python -m tests.simulator --schedules 1000000 --seed 0`: a campaign; exit 1 when a promise was broken."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulator.campaign import Report, campaign
from tests.simulator.shrink import shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--schedules", type=int, default=int(os.environ.get("BROKER_SIMULATE_SCHEDULES", "10000")))
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the others count on")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", type=int, metavar="SEED", help="shrink and print this one schedule")
    asked = parser.parse_args()
    if asked.show is not None:
        print(shrink(asked.show))  # noqa: T201 - its output
        return 1
    total, began = Report(), time.monotonic()
    for report in campaign(asked.schedules, asked.seed, asked.processes):
        total.add(report)
        rate = total.schedules / (time.monotonic() - began)
        print(f"{total.schedules:,} schedules, {rate:,.0f}/s, {len(total.failures)} failures", file=sys.stderr, flush=True)  # noqa: T201
    print(total)  # noqa: T201
    for seed, violation in list(total.failures.items())[:10]:
        print(f"seed {seed}: {violation}")  # noqa: T201
    if total.failures:
        print(shrink(min(total.failures)))  # noqa: T201
    if total.never:
        print("never happened:", ", ".join(total.never))  # noqa: T201
    return 1 if total.failures or total.never else 0


if __name__ == "__main__":
    sys.exit(main())
