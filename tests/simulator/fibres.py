"""The product's own blocking code as a process of the simulator: it stops at each effect, as a generator does at each yield.

So `Delivery`, `MicroBatcher`, `Channels` and `Retention` run here line by line as they are; only what they stand on is a model.
A clock of the world takes the place of `time` in their modules while a schedule runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet


class Crash(GreenletExit):
    """The process is gone: whatever its `finally` still tries is not done."""


class Fibre(Generator[Any, Any, None]):
    """A function that calls `perform`, with the face of a generator that yields those effects."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._greenlet = greenlet(lambda _: work())

    def send(self, value: Any) -> Any:
        return self._paused(self._greenlet.switch(value))

    def throw(self, kind: Any, value: BaseException | object = None, traceback: TracebackType | None = None, /) -> Any:
        del value, traceback  # as worlds throw: an error alone
        return self._paused(self._greenlet.throw(kind))

    def close(self) -> None:
        if not self._greenlet:  # never begun: nothing to unwind
            return
        while not self._greenlet.dead:
            self._greenlet.throw(Crash())

    def _paused(self, effect: Any) -> Any:
        if self._greenlet.dead:
            raise StopIteration
        return effect


def perform(effect: Any) -> Any:
    """Hand an effect to the world; -> its outcome, when the world comes back to this process."""
    parent = getcurrent().parent
    assert parent is not None, "only a fibre has effects"
    return parent.switch(effect)


@dataclass(frozen=True, slots=True)
class Script:
    """One atomic step on a model, in words. `writes`: when its reply is lost nobody knows whether it happened."""

    says: str
    run: Callable[[], Any]
    writes: bool = True


@dataclass(frozen=True, slots=True)
class Clock:
    """What the product's modules know as `time`: the world's."""

    now: Callable[[], float]
    pause: Callable[[], None]

    def time(self) -> float:
        return self.now()

    def monotonic(self) -> float:
        return self.now()

    def sleep(self, seconds: float) -> None:
        del seconds
        self.pause()


@contextmanager
def swapped(modules: tuple[str, ...], name: str, value: object) -> Iterator[None]:
    """While it lasts, modules that know something by this name know `value` instead."""
    kept = {module: found for module in modules if (found := vars(sys.modules[module]).get(name)) is not None}
    for module in kept:
        vars(sys.modules[module])[name] = value
    try:
        yield
    finally:
        for module, real in kept.items():
            vars(sys.modules[module])[name] = real
