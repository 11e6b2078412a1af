"""The second half of the demonstration: single changes become small versions, and a channel goes live by one event."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker.connect import Broker, Dataset
from broker.events_listening import Heard
from broker.replica import Replica
from broker.sinks import DuckDB

VOTES: Final = "debian/catalog/votes"
CHANGES, PACKAGES, REPEATED = 5_000, 1_000, 500
WAIT_SECONDS: Final = 60.0

Row = dict[str, Any]


def made_changes() -> list[Row]:
    """Votes for packages: each changes several times, in no order of time, and some come twice. The same on every run."""
    chance = random.Random(12)
    made = [
        {"package": f"package-{chance.randrange(PACKAGES):05d}", "at": at, "stars": chance.randrange(1, 6)}
        for at in range(CHANGES)
    ]
    made += chance.sample(made, REPEATED)
    chance.shuffle(made)
    return made


def standing(changes: Iterable[Row]) -> list[Row]:
    """What must stand in the end, without the broker: the newest change of each package."""
    newest: dict[str, Row] = {}
    for row in changes:
        if row["package"] not in newest or newest[row["package"]]["at"] < row["at"]:
            newest[row["package"]] = row
    return [newest[name] for name in sorted(newest)]


@dataclass
class Changes:
    """The steps, in order, beside a worker that makes micro-batches. `step` and `tell` are the demonstration's."""

    broker: Broker
    folder: Path
    step: Callable[[str], None]
    tell: Callable[[str], None]

    def run(self) -> bool:
        """True: what stands, live and in production, is what a plain computation says."""
        votes, changes = self.broker.dataset(VOTES, key=["package"], order=["at"]), made_changes()
        self._append(votes, changes)
        sink = DuckDB(self.folder / "shop.duckdb", table="votes")
        try:
            shop = self.broker.replica(VOTES, name="shop", sink=sink, channel="production")
            first = self._stage(votes, shop)
            moved = self._switch(votes, shop, first)
            late = {"package": "package-00000", "at": CHANGES, "stars": 5}
            return self._equal(votes, shop, (changes, [*changes, late])) and moved
        finally:
            sink.close()

    def _append(self, votes: Dataset, changes: list[Row]) -> None:
        self.step(f"{len(changes)} changes are appended to a change log, in no order of time and {REPEATED} of them twice.")
        begun = time.monotonic()
        votes.changelog.append(changes, level="sealed", timeout=WAIT_SECONDS)
        made, spent = votes.state.version, time.monotonic() - begun
        self.tell(f"   In {made} version(s) after {spent * 1000:.0f} ms: micro-batches close by rows, bytes or age (100 ms).")

    def _stage(self, votes: Dataset, shop: Replica) -> int:
        first = votes.state.version
        self.step(
            f"A shop reads the channel 'production': version {first}. The next version is staged, and fetched before it counts."
        )
        votes.promote(first, to="production")
        shop.sync()
        begun = time.monotonic()
        votes.changelog.append([{"package": "package-00000", "at": CHANGES, "stars": 5}], level="sealed", timeout=WAIT_SECONDS)
        self.tell(f"   A lone change was in version {votes.state.version} after {(time.monotonic() - begun) * 1000:.0f} ms.")
        votes.promote(votes.state.version, to="staging")
        ready = shop.preload("staging")
        self.tell(
            f"   {ready.files} file(s) for version {ready.version} lie ready; the shop serves version {shop.sync().version}."
        )
        return first

    def _switch(self, votes: Dataset, shop: Replica, first: int) -> bool:
        self.step("production moves by one event, and back by another. No data is copied.")
        news = self.broker.events(VOTES, channel="production", types=["promoted", "rolled-back"]).listen(WAIT_SECONDS)
        next(news)
        newest = votes.state.version
        there = self._moved(news, lambda: votes.promote(newest, to="production", expect=first), shop)
        back = self._moved(news, lambda: votes.rollback("production"), shop)
        return (there, back) == (newest, first)

    def _moved(self, news: Iterator[Heard], move: Callable[[], int], shop: Replica) -> int:
        """-> the version the shop serves once it heard of the move."""
        begun = time.monotonic()
        move()
        heard, report = next(news), shop.sync()
        reset = f" (reset: {report.reset})" if report.reset else ""
        self.tell(
            f"   {heard.type}: the shop serves version {report.version}{reset} after {(time.monotonic() - begun) * 1000:.0f} ms"
        )
        return report.version

    def _equal(self, votes: Dataset, shop: Replica, wanted: tuple[list[Row], list[Row]]) -> bool:
        self.step("The check: the newest change of each package, computed without the broker.")
        production, live = (standing(changes) for changes in wanted)
        served, newest = (found.sort_by("package").to_pylist() for found in (shop.sink.read(), votes.read()))
        equal = (served, newest) == (production, live)
        self.tell(
            f"   {len(live)} rows, {sum(row['stars'] for row in live)} stars; production, live: {'equal' if equal else 'not'}"
        )
        return equal
