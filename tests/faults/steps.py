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
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from broker.backend.leases import Leases
from broker.catalog_driver import Driver
from broker.rules.publishing import ReadLog, Seal

FAULTS: Final = ("kill", "orphan", "pause")
HOME: Final = Path(os.environ.get("BROKER_FAULTS", "."))


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
    on_self("parent", step)


def replica_step(step: str) -> None:
    on_self("replica", step)


def publisher_step(step: str) -> None:
    on_self("publisher", step)


def eraser_step(step: str) -> None:
    on_self("eraser", step)


def on_self(role: str, step: str) -> None:
    match take(role, step):
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "pause":
            os.kill(os.getpid(), signal.SIGSTOP)


def observe() -> None:
    """Count what is met: reservations of others, foreign records under one's own number, leases that the dead left."""
    perform, heads, acquire = Driver.perform, Driver.heads, Leases.acquire
    sealed, opened = dict[Any, tuple[int, bytes]](), dict[Any, Any]()  # by log: a group's effects run in several threads

    def acquired(self: Leases, slot: Any, name: str, owner: str) -> Any:
        before = self._redis.run("HGET", slot.lease(name), "owner", writes=False)
        lease = acquire(self, slot, name, owner)
        if before is not None and before.decode() != owner:
            count(f"take-over-{name.split(':')[1]}")
        return lease

    def looked(self: Driver, logs: Any) -> Any:
        views = heads(self, logs)
        opened.update({log: getattr(view, "reservation", None) for log, view in zip(logs, views, strict=True)})
        return views

    def observed(self: Driver, log: Any, effect: Any) -> Any:
        answer = perform(self, log, effect)
        match effect:
            case Seal(seq=seq, data=data):
                sealed[log] = (seq, data)
                if opened.get(log) == (seq, data):
                    count("helped-reservation")
            case ReadLog(seq=seq) if answer is not None and sealed.get(log, (0, b""))[0] == seq:
                if answer != sealed.pop(log)[1]:
                    count("foreign-record")
        return answer

    Driver.perform, Driver.heads, Leases.acquire = observed, looked, acquired  # type: ignore[method-assign]


if "BROKER_FAULTS" in os.environ:
    observe()
