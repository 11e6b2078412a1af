"""A writer beside the workers: one publish of a snapshot, with its steps hooked. Exit code 3: a typed error.

BROKER_FAULTS=<folder> python -m tests.faults.publisher <dataset>
"""

from __future__ import annotations

import sys

from broker.connect import Broker
from broker.errors import BrokerError
from broker.parts import insisted_parts
from broker.settings import load
from tests.faults import steps
from tests.faults.arena import settings_of

TYPED_ERROR = 3


def main(dataset: str) -> int:
    with Broker(insisted_parts(load(**settings_of(steps.HOME)), steps.publisher_step)) as b:
        try:
            b.dataset(dataset).publish([{"sku": "direct", "price": 1}])
        except BrokerError as error:
            sys.stderr.write(f"{error}\n")
            return TYPED_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
