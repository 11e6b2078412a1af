"""A micro-batcher process under test: what `broker worker --role microbatch` runs, with its steps hooked.

BROKER_FAULTS=<folder> python -m tests.faults.batcher
"""

from __future__ import annotations

import logging
import sys
from threading import Event

from broker.errors import Transient
from broker.parts import open_parts
from broker.settings import load
from tests.faults import steps
from tests.faults.arena import settings_of
from workers.batching import Batching


def batcher_step(step: str) -> None:
    steps._on_self("batcher", step)
    steps.count(f"batcher-{step}")


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(levelname)s %(message)s")
    role, never = Batching(open_parts(load(**settings_of(steps.HOME)), batcher_step)), Event()
    while True:
        try:
            role.step(never)
        except Transient:
            never.wait(0.05)


if __name__ == "__main__":
    sys.exit(main())
