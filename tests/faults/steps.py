"""The hook behind every named step of a process under test: dies or stops there, once, when a test has armed the step.

A folder named by BROKER_FAULTS is the whole interface. `armed/<role>.<step>.<fault>` orders a fault; the first process of
that role that reaches the step takes the order by renaming it into `hit/`, so each is carried out once. What happened is
appended to `counts` (a word a line): the steps passed, and how the publishing protocol met others' work.

Faults:  kill    this process, as a power cut would
         orphan  its parent; it goes on alone
         pause   this process, and a child's parent with it, until the test lets them go on
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from broker.catalog import Catalog
from broker.rules.publishing import ReadLog, Seal

FAULTS: Final = ("kill", "orphan", "pause")
HOME: Final = Path(os.environ.get("BROKER_FAULTS", "."))
_local: Final = threading.local()


def count(word: str) -> None:
    """One line, written at once: processes share the file."""
    with (HOME / "counts").open("ab", buffering=0) as file:
        file.write(f"{word}\n".encode())


def take(role: str, step: str) -> str | None:
    """The fault ordered for this step, if this process got it."""
    for fault in FAULTS:
        order = f"{role}.{step}.{fault}"
        with suppress(FileNotFoundError):
            (HOME / "armed" / order).rename(HOME / "hit" / f"{order}.{os.getpid()}.{os.getppid()}")
            return fault
    return None


def child_step(step: str) -> None:
    match take("child", step):
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "orphan":
            os.kill(os.getppid(), signal.SIGKILL)
        case "pause":
            os.kill(os.getppid(), signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)


def parent_step(step: str) -> None:
    _on_self("parent", step)


def replica_step(step: str) -> None:
    _on_self("replica", step)


def publisher_step(step: str) -> None:
    _on_self("publisher", step)


def eraser_step(step: str) -> None:
    _on_self("eraser", step)


def _on_self(role: str, step: str) -> None:
    match take(role, step):
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "pause":
            os.kill(os.getpid(), signal.SIGSTOP)


def observe() -> None:
    """Count what the protocol meets: reservations of others, foreign records under one's own number, reconciles."""
    perform, head = Catalog._perform, Catalog._head

    def looked(self: Catalog, dataset: Any) -> Any:
        view = head(self, dataset)
        _local.open = view.reservation
        return view

    def observed(self: Catalog, dataset: Any, effect: Any) -> Any:
        answer = perform(self, dataset, effect)
        match effect:
            case Seal(seq=seq, data=data):
                _local.sealed = (seq, data)
                _count_seal(seq, data)
            case ReadLog(seq=seq) if answer is not None and getattr(_local, "sealed", (0, b""))[0] == seq:
                if answer != _local.sealed[1]:
                    count("foreign-record")
                _local.sealed = (0, b"")
        return answer

    Catalog._perform, Catalog._head = observed, looked  # type: ignore[method-assign]


def _count_seal(seq: int, data: bytes) -> None:
    if getattr(_local, "open", None) == (seq, data):
        count("helped-reservation")


if "BROKER_FAULTS" in os.environ:
    observe()
