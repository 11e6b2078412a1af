"""A replica process under test: one sync into SQLite, with its steps and those of the sink hooked.

BROKER_FAULTS=<folder> python -m tests.faults.replica
"""

from __future__ import annotations

from broker.connect import Broker
from broker.parts import open_parts
from broker.settings import load
from broker.sinks.sqlite import SQLite
from tests.faults import steps
from tests.faults.arena import OFFERS, settings_of


def main() -> None:
    with Broker(open_parts(load(**settings_of(steps.HOME)), steps.replica_step)) as b:
        sink = SQLite(steps.HOME / "replica.sqlite", "offers", on_step=steps.replica_step)
        b.replica(OFFERS, name="search", sink=sink).sync()


if __name__ == "__main__":
    main()
