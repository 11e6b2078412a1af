"""A worker process under test: what `broker worker` runs, with the steps of both its halves hooked.

BROKER_FAULTS=<folder> python -m tests.faults.worker <module:app> <children>
"""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict

from broker.parts import insisted_parts
from broker.producers import load_app
from broker.settings import load
from tests.faults import steps
from tests.faults.arena import settings_of
from workers.__main__ import Options, run
from workers.producing import Counts
from workers.supervisor import Supervisor


class Counted(Counts):
    """Counts that are told as they change: a killed worker cannot tell them at its end."""

    def __setattr__(self, name: str, value: int) -> None:
        if name in ("taken_over", "fenced") and value:
            steps.count({"taken_over": "take-over", "fenced": "refused-fence"}[name])
        super().__setattr__(name, value)


def main(app: str, children: int) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(levelname)s %(message)s")
    parts = insisted_parts(load(**settings_of(steps.HOME)), steps.parent_step)
    supervisor = Supervisor(parts.settings, app, children, on_step="tests.faults.steps:child_step")
    from workers import producing

    producing.Counts = Counted  # type: ignore[misc]
    assert asdict(Counted())
    run(parts, load_app(app), supervisor, Options(None, children, False, 5.0))
    parts.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
