"""The blocks of one call, brought in one after the other: while a large one is on its way, the next is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Thread
from typing import Final

from broker.changelog_rows import Content

AHEAD_ROWS: Final = 32_768
"""A block of so many rows is sent by a thread, and costs far more than that; what `send` coalesces is smaller."""


class _Bringing:
    """A block on its way by a thread, while the next is made."""

    def __init__(self, bring: Callable[[Content], None], content: Content) -> None:
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, args=(bring, content), name="append")

    def begin(self) -> bool:
        """False: no thread can begin (there are too many, or the interpreter ends), and nothing is on its way."""
        try:
            self._thread.start()
        except RuntimeError:
            return False
        return True

    def end(self) -> None:
        """Raises what it came to. Until then the numbering is the thread's, so an interruption is raised behind it."""
        interruption: BaseException | None = None
        while self._thread.is_alive():
            try:
                self._thread.join()
            except BaseException as error:  # noqa: BLE001 - raised below
                interruption = error
        if (failure := interruption or self._error) is not None:
            raise failure

    def _run(self, bring: Callable[[Content], None], content: Content) -> None:
        try:
            bring(content)
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            self._error = error


def bring_all(contents: Iterable[Content], bring: Callable[[Content], None]) -> None:
    """One after the other, in their order. While a large one is on its way, the next is made: the data is read here only."""
    ahead: _Bringing | None = None
    try:
        for content in contents:
            if ahead is not None:
                ahead.end()
                ahead = None
            if content.rows >= AHEAD_ROWS:
                ahead = _Bringing(bring, content)
                if ahead.begin():
                    continue
                ahead = None
            bring(content)
    finally:  # what became of the one on its way is told before what is wrong with the next
        if ahead is not None:
            ahead.end()
