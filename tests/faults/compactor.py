"""A compactor process under test: what `broker worker --role compact` does to roads, every few versions, with its steps hooked.

BROKER_FAULTS=<folder> python -m tests.faults.compactor
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

from broker.compactor import Compactor, Dues
from broker.errors import Transient
from broker.rules.fold import State
from broker.rules.levels import Levels
from broker.rules.publishing import STEPS as PUBLISHING
from tests.faults import steps
from tests.faults.batcher import opened_parts

STEPS: Final = ("upload", *PUBLISHING)
LEVELS: Final = Levels(factor=3, snapshot_ratio=0.5, snapshot_least_bytes=0)


def compactor_step(step: str) -> None:
    steps.on_self("compactor", step)


def crowded(state: State) -> int | None:
    """As if readers kept too much from the oldest version on, until an edge leads from there to the newest snapshot."""
    snapshot = state.snapshot
    if not state.exists or not state.spec.order or snapshot is None:
        return None
    led = any(edge.settled and edge.version == snapshot.version for edge in state.edges)
    return None if led else min(edge.version if edge.base is None else edge.base for edge in state.edges)


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(levelname)s %(message)s")
    parts = opened_parts(compactor_step)
    compactor = Compactor(parts.index, parts.catalog, parts.engine, parts.publication, parts.leases, Dues(LEVELS, crowded))
    while True:
        try:
            report = compactor.run_once()
            for word, times in (("roll-up", report.roll_ups), ("snapshot", report.snapshots), ("settled", report.settled)):
                for _ in range(times):
                    steps.count(word)
            for why in report.failed.values():
                steps.count("refused-compactor" if "the lease was lost" in why else "failed-compaction")
        except Transient:
            pass
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
