"""A replica process under test: one sync into SQLite, with its steps and those of the sink hooked. Exit code 3: a typed error.

BROKER_FAULTS=<folder> python -m tests.faults.replica
"""

from __future__ import annotations

import sys

from broker.connect import Broker
from broker.errors import BrokerError
from broker.parts import insisted_parts
from broker.settings import load
from broker.sinks.sqlite import SQLite
from tests.faults import steps
from tests.faults.arena import OFFERS, settings_of

TYPED_ERROR = 3


def main() -> int:
    with Broker(insisted_parts(load(**settings_of(steps.HOME)), steps.replica_step)) as b:
        sink = SQLite(steps.HOME / "replica.sqlite", "offers", on_step=steps.replica_step)
        try:
            b.replica(OFFERS, name="search", sink=sink).sync()
        except BrokerError as error:
            sys.stderr.write(f"{error}\n")
            return TYPED_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
