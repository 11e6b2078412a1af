"""A micro-batcher process under test: what `broker worker --role microbatch` runs, with its steps hooked.

BROKER_FAULTS=<folder> python -m tests.faults.batcher
"""

from __future__ import annotations

import logging
import sys
import time
from threading import Event
from typing import Final

from broker import microbatcher
from broker.errors import Transient
from broker.parts import Parts, open_parts
from broker.rules import publishing
from broker.rules.steps import OnStep, nothing
from broker.settings import load
from tests.faults import steps
from tests.faults.arena import settings_of
from workers.batching import Batching

STEPS: Final = tuple(dict.fromkeys((*microbatcher.STEPS[:3], *publishing.STEPS, *microbatcher.STEPS[3:])))


def batcher_step(step: str) -> None:
    steps.on_self("batcher", step)
    steps.count(f"batcher-{step}")


def opened_parts(on_step: OnStep = nothing) -> Parts:
    """With the settings of the arena, as soon as Redis answers: it may be restarting."""
    while True:
        try:
            return open_parts(load(**settings_of(steps.HOME)), on_step)
        except Transient:
            time.sleep(0.05)


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(levelname)s %(message)s")
    role, never = Batching(opened_parts(batcher_step)), Event()
    while True:
        try:
            role.step(never)
        except Transient:
            never.wait(0.05)


if __name__ == "__main__":
    sys.exit(main())
