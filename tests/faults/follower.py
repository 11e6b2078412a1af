"""A replica process under test: it follows one dataset, with its steps and those of its sink hooked.

BROKER_FAULTS=<folder> python -m tests.faults.follower <kind> <dataset>

Exit code 3: it slept past its lease, another process under its name went on, and the sink refused it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import broker
from broker.connect import Broker
from broker.errors import Fenced, Transient
from broker.model.names import DatasetId
from broker.replica import STEPS as SYNC_STEPS
from broker.replica import Replica
from broker.rules.following import Policy
from broker.rules.steps import OnStep, nothing
from broker.sinks.duckdb import DuckDB
from broker.sinks.parquet import ParquetDirectory
from broker.sinks.port import STEPS as SINK_STEPS
from broker.sinks.port import Sink
from broker.sinks.sqlite import SQLite
from tests.faults import steps
from tests.faults.batcher import opened_parts

REFUSED: Final = 3
STEPS: Final = (*SYNC_STEPS, *SINK_STEPS)


@dataclass(frozen=True)
class Kind:
    """What a replica wants, and where it keeps it."""

    policy: Policy
    sink: Callable[[Path, OnStep], Sink]
    where: str | None = None
    columns: tuple[str, ...] | None = None


KINDS: Final = {
    "every": Kind(broker.Every(), lambda place, on_step: DuckDB(place.with_suffix(".duckdb"), "rows", on_step=on_step)),
    "latest": Kind(broker.Latest(), lambda place, on_step: ParquetDirectory(place, on_step=on_step)),
    "some": Kind(
        broker.AtMostEvery(0.1), lambda place, on_step: SQLite(place.with_suffix(".sqlite"), "rows", on_step=on_step),
        where="part <> 1", columns=("sku", "n"),
    ),
}  # fmt: skip


def replica_of(b: Broker, home: Path, kind: str, dataset: DatasetId, on_step: OnStep = nothing) -> Replica:
    """The same replica for whoever asks. `home` holds its sink."""
    found = KINDS[kind]
    sink = found.sink(home / f"{dataset.name}-{kind}", on_step)
    return b.replica(dataset, name=kind, sink=sink, where=found.where, columns=found.columns)


def main(kind: str, dataset: str) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(levelname)s %(message)s")
    on_step = partial(steps.on_self, kind)
    with Broker(opened_parts(on_step)) as b:
        while True:
            try:
                replica = replica_of(b, steps.HOME, kind, DatasetId(dataset), on_step)
                replica.follow(KINDS[kind].policy, lambda _: steps.count(f"applied-{kind}"))
            except Transient:  # nothing to follow yet: Redis is away
                time.sleep(0.05)
            except Fenced as error:
                sys.stderr.write(f"{error}\n")
                steps.count("refused-replica")
                return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
