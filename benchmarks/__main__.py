"""python -m benchmarks [name ...]: run the claims, print one table. Ratios count; absolute times are this machine's."""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module

from benchmarks.common import HEADER

CLAIMS = (
    "start", "requests_at_submit", "requests_through_stream", "productions", "snapshots", "differences", "replicas", "appends",
    "microbatches", "compaction", "promotions", "planning", "cycles",
)  # fmt: skip


def main(names: list[str]) -> int:
    unknown = set(names) - set(CLAIMS)
    if unknown:
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(CLAIMS)}", file=sys.stderr)
        return 2
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}\n")
    print(HEADER, flush=True)
    missed = 0
    for name in names or CLAIMS:
        for row in import_module(f"benchmarks.{name}").run():
            print(row.line(), flush=True)
            missed += row.met is False
    print(f"\n{missed} targets missed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
