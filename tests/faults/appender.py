"""An appender process under test: a producer that numbers its blocks, and goes on behind the last after it was killed.

BROKER_FAULTS=<folder> python -m tests.faults.appender <dataset> <producer> <last block>

Block n holds rows `<producer>-<n>-<i>`, once in all time, and the row `<producer>`, which says n. A line of
`acked.<producer>` for each block acknowledged.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from broker.connect import Broker
from broker.errors import BrokerError, Terminal
from tests.faults import steps
from tests.faults.batcher import opened_parts

ROWS = 5
PACE_SECONDS = 0.02
"""Between blocks: so that the clock closes several batches."""


def rows_of(producer: str, block: int) -> list[dict[str, Any]]:
    own = [{"sku": f"{producer}-{block}-{number}", "n": block} for number in range(block % (ROWS + 1))]
    return [*own, {"sku": producer, "n": block}]


def append(b: Broker, dataset: str, producer: str, last: int) -> None:
    log = b.dataset(dataset).changelog
    for block in range(log.resume(producer), last + 1):
        log.append(rows_of(producer, block), producer=producer, block=block, timeout=20)
        with (steps.HOME / f"acked.{producer}").open("ab", buffering=0) as acked:
            acked.write(f"{block}\n".encode())
        time.sleep(PACE_SECONDS)


def main(dataset: str, producer: str, last: str) -> int:
    with Broker(opened_parts()) as b:
        while True:
            try:
                append(b, dataset, producer, int(last))
                return 0
            except Terminal as error:
                sys.stderr.write(f"{error}\n")
                return 3
            except BrokerError:
                time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
