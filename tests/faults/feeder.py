"""An appender process under test: it appends what feed.py says, and goes on behind the last block after it was killed.

BROKER_FAULTS=<folder> python -m tests.faults.feeder <dataset> <producer> <last block> <kept>

`kept`: the level that a loss of Redis must leave whole, "accepted" or "sealed". A line of `acked.<producer>` for each block
acknowledged at that level. Exit code 5: such a block is asked for again, so something acknowledged is lost.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from broker.backend.logs import Logs, Part
from broker.changelog import Ack, ChangeLog
from broker.connect import Broker
from broker.errors import Gap, Transient
from tests.faults import steps
from tests.faults.batcher import opened_parts
from tests.faults.feed import block_of

LOST: Final = 5
STEPS: Final = ("half", "sent")
"""A block is in every other log slot; a block is in, and nobody knows it yet."""
PACE_SECONDS: Final = 0.04
SEALED_EVERY: Final = 6


def acked(home: Path, producer: str) -> int:
    """The newest block acknowledged at the level that counts; 0: none."""
    path = home / f"acked.{producer}"
    return max((int(line) for line in path.read_text().split()), default=0) if path.exists() else 0


def hook_append() -> None:
    """A process killed at `half` brings its block into every other slot only."""
    whole = Logs.append

    def append(self: Logs, dataset: Any, parts: Sequence[Part]) -> Any:
        if steps.take("appender", "half"):
            whole(self, dataset, parts[::2])
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, dataset, parts)

    Logs.append = append  # type: ignore[method-assign]


def feed(log: ChangeLog, producer: str, last: int, kept: str) -> int:
    """All blocks that are missing. -> exit code"""
    number, ordered = log.resume(producer), bool(log.dataset.endswith("-ordered"))
    while number <= last:
        if number <= acked(steps.HOME, producer):
            sys.stderr.write(f"{producer}: block {number} was acknowledged, and is asked for again\n")
            return LOST
        # The last one, too: nobody would send again what a loss behind it takes away.
        level = "sealed" if kept == "sealed" and (number % SEALED_EVERY == 0 or number == last) else "accepted"
        try:
            _append(log, (producer, number), ordered, level)
        except Gap:
            steps.count("gap")
            number = log.resume(producer)
            continue
        steps.on_self("appender", "sent")
        if level == kept:
            with (steps.HOME / f"acked.{producer}").open("ab", buffering=0) as file:
                file.write(f"{number}\n".encode())
        number += 1
        time.sleep(PACE_SECONDS)
    return 0


def _append(log: ChangeLog, whose: tuple[str, int], ordered: bool, level: str) -> Ack:
    (producer, number), block = whose, block_of(*whose, ordered)
    call = log.delete if block.kind == "d" else log.append
    return call(block.rows, producer=producer, block=number, level=level, timeout=20)


def main(dataset: str, producer: str, last: str, kept: str) -> int:
    hook_append()
    with Broker(opened_parts()) as b:
        while True:
            try:
                return feed(b.dataset(dataset).changelog, producer, int(last), kept)
            except Transient:
                time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
