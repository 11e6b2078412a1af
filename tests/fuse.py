"""A crash at a named step, inside the test's own process."""

from __future__ import annotations

from collections.abc import Callable


class Crash(BaseException):
    """Stands for kill -9: no handler of the code under test catches it."""


class Fuse:
    """An on_step hook that crashes at `step`, once, or calls `act` there."""

    step = ""
    act: Callable[[], object] | None = None

    def __call__(self, step: str) -> None:
        if step == self.step:
            self.step = ""
            if self.act is None:
                raise Crash
            self.act()
