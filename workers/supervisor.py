"""Children under supervision: spawned, given one attempt at a time, measured, and killed when they must be.

The supervisor knows processes and messages, not requests.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

from pydantic import SecretStr

from broker.errors import AttemptFailed, BrokerError, Terminal, Transient, from_dict
from broker.settings import Settings
from workers.bounds import overrun, resident_bytes
from workers.channel import Channel

log = logging.getLogger("broker.worker")
STOP_SECONDS: Final = 5.0
"""A child that was told to end and does not is killed after this."""
START_SECONDS: Final = 60.0
"""A child may take so long to import its application, however short attempts are."""
START_TRIES: Final = 2
"""Children in a row that may die while they start (the kernel may choose one of them) before the worker gives up."""


@dataclass
class Task:
    """What a child works on: an opaque `subject`, for the caller."""

    subject: Any
    message: dict[str, Any]
    started: float = field(default_factory=time.monotonic)
    progress: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """A task's end: the child's answer, or why there is none."""

    task: Task
    ok: Any = None
    error: BrokerError | None = None


class ChildProcess:
    """One child, leader of a process group: what a producer starts is killed with it. `task` None: it has none."""

    def __init__(self, command: list[str]) -> None:
        mine, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            command = [*command[:3], str(fd), *command[3:]]
            self.process = subprocess.Popen(command, pass_fds=[fd], start_new_session=True)
        self.channel, self.doom, self.ready = Channel(mine), "", False
        self.task: Task | None = None

    @property
    def idle(self) -> bool:
        return self.task is None and not self.doom

    def died(self) -> bool:
        """Whether it ended, though a process it started may hold its channel open. It is not reaped: its id stays its own."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self, why: str) -> None:
        """End it at once, and all that it started; its task ends with `why`."""
        self.doom = self.doom or why
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self, seconds: float) -> str:
        """How it ended; it is killed after `seconds`, and what it leaves behind in any case."""
        self.channel.close()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill("did not end when its channel was closed")
            code = self.process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.doom or code >= 0:
            return self.doom or f"exited with {code}"
        return f"killed by {signal.Signals(-code).name}" + (" (out of memory, perhaps)" if code == -signal.SIGKILL else "")


def revealed(settings: Settings) -> dict[str, Any]:
    """Settings with their secrets: they go over the socket pair, never over a command line."""
    fields = settings.model_dump(mode="json")
    for name in settings.__class__.model_fields:
        if isinstance(value := getattr(settings, name), SecretStr):
            fields[name] = value.get_secret_value()
    return fields


class Supervisor:
    """A pool of children. `wait` is for one thread, the rest for any."""

    def __init__(self, settings: Settings, app: str, processes: int, on_step: str = "") -> None:
        self._settings, self.app = settings, app
        self._command = [sys.executable, "-m", "workers.child", app, *([on_step] if on_step else [])]
        self._lock, self._selector = Lock(), selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector.register(self._wake_in, selectors.EVENT_READ, None)
        self.children: list[ChildProcess] = []
        self._failed_starts = 0
        for _ in range(processes):
            self._spawn()

    @property
    def idle(self) -> int:
        """Children that would take a task."""
        with self._lock:
            return sum(child.idle for child in self.children)

    def run(self, subject: Any, message: dict[str, Any]) -> bool:
        """Give a task to an idle child. False: none is idle."""
        with self._lock:
            child = next((child for child in self.children if child.idle), None)
            if child is None:
                return False
            child.task = Task(subject, message)
        child.channel.send(message)  # a child that died meanwhile shows as end of stream in `wait`
        return True

    def wait(self, timeout: float) -> list[Result]:
        """Tasks that ended; empty after `timeout` seconds. Dead children are replaced. Raises Terminal if one cannot start."""
        results: list[Result] = []
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._wake_in.recv(1024)
                continue
            result = self._receive(key.data)
            if result is not None:
                results.append(result)
        return results

    def wake(self) -> None:
        """Make a blocked `wait` return."""
        self._wake_out.send(b".")

    def inspect(self) -> None:
        """Kill children whose attempt runs too long or holds too much memory; have `wait` see those that died unseen."""
        with self._lock:  # held over the kill: an idle child may get another's attempt meanwhile
            for child in self.children:
                if child.died():
                    child.channel.hang_up()
                elif child.task is not None and (why := self._overrun(child, child.task)):
                    child.kill(why)

    def _overrun(self, child: ChildProcess, task: Task) -> str:
        starting = 0.0 if child.ready else max(0.0, START_SECONDS - self._settings.attempt_seconds)
        return overrun(self._settings, resident_bytes(child.process.pid), time.monotonic() - task.started, starting)

    def progress(self, subject: Any) -> dict[str, int]:
        """What the child that works on `subject` told last: rows and bytes written; empty before that."""
        with self._lock:
            tasks = [child.task for child in self.children if child.task is not None]
        return next((task.progress for task in tasks if task.subject == subject), {})

    def abort(self, subject: Any, why: str) -> bool:
        """Kill the child that works on `subject`. False: none does."""
        with self._lock:
            found = [child for child in self.children if child.task is not None and child.task.subject == subject]
            for child in found:
                child.kill(why)
        return bool(found)

    def stop(self) -> None:
        """End all children: idle ones by closing their channel, others by signal."""
        with self._lock:
            children, self.children = self.children, []
        for child in children:
            child.channel.close()
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            child.end(max(0.0, deadline - time.monotonic()))
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def _spawn(self) -> None:
        child = ChildProcess(self._command)
        child.channel.send({"settings": revealed(self._settings)})
        with self._lock:
            self.children.append(child)
        self._selector.register(child.channel, selectors.EVENT_READ, child)

    def _receive(self, child: ChildProcess) -> Result | None:
        message = child.channel.receive()
        if message is None:
            return self._bury(child)
        if not child.ready:
            if "error" in message:
                self._not_started(child, from_dict(message["error"]))
                return None
            with self._lock:
                child.ready, self._failed_starts = True, 0
                if child.task is not None:
                    child.task.started = time.monotonic()  # its start-up is not the attempt's
            return None
        with self._lock:
            if "progress" in message:
                if child.task is not None:
                    child.task.progress = message["progress"]
                return None
            task, child.task = child.task, None
        if task is None:
            return None
        if "error" in message:
            return Result(task, error=from_dict(message["error"]))
        return Result(task, ok=message["ok"])

    def _not_started(self, child: ChildProcess, error: BrokerError) -> None:
        """A store that is away is no reason to give up: the child ends, and its successor tries again. Raises Terminal."""
        if not isinstance(error, Transient):
            raise Terminal("a worker's child cannot start", why=str(error), hint="See its settings and app")
        log.warning("a child cannot start yet: %s", error)
        child.doom = str(error)

    def _bury(self, child: ChildProcess) -> Result | None:
        self._selector.unregister(child.channel)
        with self._lock:
            self.children.remove(child)
        doomed, words = bool(child.doom), child.end(STOP_SECONDS)
        self._failed_starts += not child.ready and not doomed
        if self._failed_starts > START_TRIES:
            raise Terminal("a worker's child cannot start", why=words, hint="Its last output is on stderr")
        self._spawn()
        if child.task is None:
            return None
        error = AttemptFailed("the attempt died", of=str(child.task.subject), why=words, hint="Look at the producer's log")
        return Result(child.task, error=error)
