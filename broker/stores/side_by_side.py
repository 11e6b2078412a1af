"""Work that waits for a store, side by side: together it waits once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

MOST: Final = 4 * (os.cpu_count() or 1)
"""Threads: more than four a core would wait for each other. For a local disk two are enough; a store far away is worth more."""
T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """The work of each, in order, by this thread and up to `threads - 1` more. Raises what one raised, once all rest.

    Whoever is free takes the next: handing each over by itself would cost as much as the small ones take. Behind what is raised
    nobody begins anything.
    """
    waiting = deque(enumerate(items))
    results: list[Any] = [None] * len(waiting)

    def run() -> None:
        while waiting:
            try:
                index, item = waiting.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                results[index] = work(item)
            except BaseException:
                waiting.clear()
                raise

    helpers = min(len(waiting), threads, MOST) - 1
    if helpers < 1:
        run()
        return results
    with ThreadPoolExecutor(helpers, thread_name_prefix="side-by-side") as pool:
        others = list[Future[None]]()
        with suppress(RuntimeError):  # no more threads: then those that are there do it
            others += (pool.submit(run) for _ in range(helpers))
        run()
    for other in others:
        other.result()
    return results
