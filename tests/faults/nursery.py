"""Processes under test, forked from one that has imported everything: a killed one has its successor within milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Thread
from typing import Final

_CONTEXT: Final = multiprocessing.get_context("forkserver")
# Nothing of tests.faults: steps.py reads at import whose home it is.
_CONTEXT.set_forkserver_preload(
    ["broker.connect", "broker.sinks.duckdb", "broker.sinks.parquet", "broker.sinks.sqlite", "workers.batching"]
)


class Forked:
    """As much of subprocess.Popen as the tests use."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode


def fork(home: Path, module: str, *args: str) -> Forked:
    """`python -m <module> <args>` with BROKER_FAULTS=<home>, but quicker. `module` has a `main` that takes the arguments."""
    process = _CONTEXT.Process(target=_born, args=(str(home), module, args), daemon=True)
    process.start()
    return Forked(process)


def _born(home: str, module: str, args: tuple[str, ...]) -> None:
    Thread(target=_end_with_the_tests, daemon=True).start()
    os.environ["BROKER_FAULTS"] = home
    with Path(home, "log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.exit(import_module(module).main(*args))


def _end_with_the_tests() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
