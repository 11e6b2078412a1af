"""Progress bars on stderr. A module of its own, because rich is wanted on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)


@contextmanager
def bar(label: str, total: float | None, unit: str) -> Iterator[Callable[[float], None]]:
    """A bar of `total` units (None: it only turns); `unit` is `bytes` or a word such as `rows`."""
    counts: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit)]
    )
    head: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    with Progress(*head, *counts, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(label, total=total)
        yield lambda amount: shown.advance(task, amount)
