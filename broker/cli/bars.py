"""Progress bars on stderr. A module of its own, because rich is wanted on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
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
from rich.text import Text


class Gauge(Progress):
    """A bar that looks for itself, each time it is drawn."""

    def __init__(self, *columns: ProgressColumn, read: Callable[[], float]) -> None:
        self._read = read
        super().__init__(*columns, console=Console(stderr=True), transient=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            self.update(task.id, completed=self._read())
        yield from super().get_renderables()


@contextmanager
def bar(label: str, total: float | None, unit: str, read: Callable[[], float]) -> Iterator[None]:
    """A bar at `read()` of `total` units (None: it only turns); `unit` is `bytes` or a word such as `rows`."""
    counts: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit)]
    )
    head: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    with Gauge(*head, *counts, TimeElapsedColumn(), read=read) as shown:
        shown.add_task(label, total=total)
        yield


@contextmanager
def live() -> Iterator[Callable[[Sequence[str]], None]]:
    """A screen of lines on stdout, drawn anew by each call; gone at the end. As many lines as fit."""
    with Live(console=Console(), screen=True, auto_refresh=False) as screen:
        yield lambda lines: screen.update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)
