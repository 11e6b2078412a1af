"""One erasure of one key, with its steps hooked.

BROKER_FAULTS=<folder> python -m tests.faults.eraser <dataset> <key>
"""

from __future__ import annotations

import sys

from broker.cli.erase import erasure_of
from broker.connect import Broker
from broker.model.names import DatasetId
from broker.parts import insisted_parts
from broker.settings import load
from tests.faults import steps
from tests.faults.arena import settings_of


def main(dataset: str, key: str) -> int:
    with Broker(insisted_parts(load(**settings_of(steps.HOME)), steps.eraser_step)) as b:
        return 0 if erasure_of(b).erase(DatasetId(dataset), key).done else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
