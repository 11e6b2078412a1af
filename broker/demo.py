"""The main job in under a minute, on an embedded Redis and a local folder: `broker demo`, `make demo`.

Everything is real: a worker process answers requests from a folder of files, one worker is killed with -9 in the middle of a
production, and the end is a comparison of replica and source, row by row. Behind it come micro-batches and a channel.
"""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.backend import embedded
from broker.connect import Broker, connect
from broker.demo_changes import Changes
from broker.demo_data import Feeds, generated_feeds, real_feeds
from broker.errors import RequestFailed, TimedOut
from broker.handle import Handle
from broker.model.request import State
from broker.received import Received
from broker.settings import CONFIG_FILE
from broker.sinks import DuckDB

DATASET: Final = "debian/catalog/packages"
TARGET: Final = "search"
WHERE: Final = "section = 'utils'"
COLUMNS: Final = ["package", "version", "section"]
LEASE_SECONDS: Final = 1.0
"""Short, so that the take-over from the killed worker can be watched."""
WAIT_SECONDS: Final = 60.0
STOP_SECONDS: Final = 15.0

Tell = Callable[[str], None]


def show(tell: Tell, *, generated: bool = False, keep: bool = False) -> bool:
    """Run the demonstration in a temporary folder; `tell` gets each line. True: replica and source are equal, row by
    row, and so is what came by single changes.

    `generated`: a made-up catalogue, also where the real one lies beside the checkout. `keep`: leave the folder.
    """
    begun, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="broker-demo-"))
    home = folder / ".broker"
    try:
        with connect(redis="", store="", home=home, lease_seconds=LEASE_SECONDS) as broker:
            feeds = (None if generated else real_feeds()) or generated_feeds(folder / "made")
            equal = Demo(broker, folder, feeds, tell).run()
    finally:
        embedded.stop(home)
        if keep:
            tell(f"Everything lies in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    tell(f"{'PASSED' if equal else 'FAILED'} in {time.monotonic() - begun:.1f} s")
    return equal


@dataclass
class Demo:
    """The steps, in order. `folder` holds the source's files, the worker's broker.toml and the replica."""

    broker: Broker
    folder: Path
    feeds: Feeds
    tell: Tell
    number: int = 0

    def run(self) -> bool:
        self._prepare()
        with self._worker(CONFIG_FILE) as worker:
            self._snapshot()
            self._sync("A replica in DuckDB takes the snapshot")
            self._change(self.feeds.second, "20-changes.csv.gz")
            self._two_targets()
            self._sync("The replica takes only the difference")
            self._change(self.feeds.third, "30-late.csv.gz")
            lost = self._kill(worker)
        with self._worker(CONFIG_FILE):
            once = self._answered_once(lost)
        self._sync("The replica goes on where it was")
        equal = self._equal()
        with self._worker("--role", "microbatch", "--max-age", "100ms"):
            return Changes(self.broker, self.folder, self._step, self.tell).run() and equal and once

    # --- steps

    def _step(self, text: str) -> None:
        self.number += 1
        self.tell(f"\n{self.number}. {text}")

    def _prepare(self) -> None:
        self._step("A source: a folder of CSV files, named in broker.toml. No code is needed.")
        (self.folder / "feeds").mkdir()
        shutil.copyfile(self.feeds.first, self.folder / "feeds" / "10-main.csv.gz")
        config = f'[[sources]]\ndataset = "{DATASET}"\nkind = "files"\nglob = "feeds/*.csv.gz"\n'
        (self.folder / CONFIG_FILE).write_text(f"lease_seconds = {LEASE_SECONDS}\n{config}")
        for line in config.splitlines():
            self.tell(f"     {line}")
        self.tell(f"   The files are {self.feeds.origin}.")
        self.broker.dataset(DATASET, key=["package"])
        parts = self.broker.parts
        self.tell(f"   Dataset {DATASET}, key package. Redis: {parts.redis.url}; store: a folder.")

    def _snapshot(self) -> None:
        self._step(f"'{TARGET}' asks for all of it. Nothing has been produced yet, so the worker asks the source.")
        done = self._wait(self._ask(TARGET))
        self.tell(f"   {_answer(done)}")

    def _change(self, feed: Path, name: str) -> None:
        self._step(f"The source changes: {name} is added; its rows win over older ones.")
        part = self.folder / "feeds" / f".{name}"
        shutil.copyfile(feed, part)
        part.replace(self.folder / "feeds" / name)

    def _two_targets(self) -> None:
        self._step("Two targets ask at once what changed since version 1: one for everything, one for a part of it.")
        self.tell(f"     since=1                                     ({TARGET})")
        self.tell(f"     since=1, where={WHERE!r}, columns={','.join(COLUMNS)}  (tools)")
        plain = self._ask(TARGET, since=1)
        chosen = self._ask("tools", since=1, where=WHERE, columns=COLUMNS)
        everything, part = self._wait(plain), self._wait(chosen)
        self.tell(f"   {TARGET}: {_answer(everything)}")
        upserts, deletes = part.upserts(), part.deletes()
        counts = f"{upserts.num_rows} upserts, {deletes.num_rows} deletes"
        self.tell(f"   tools: version {part.version}, delta: {counts} (changed rows that are not in utils)")
        made = len(self.broker.dataset(DATASET).versions()) - 1
        self.tell(f"   Both were answered from {made} production: the source was read once.")

    def _kill(self, worker: subprocess.Popen[bytes]) -> Handle:
        self._step("A request comes, the worker begins, and is killed with -9 in the middle of it.")
        handle = self._ask(TARGET, since=2)
        _until(lambda: handle.status().state is State.RUNNING, "the worker to begin")
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        self.tell(f"   Worker {worker.pid} and its children are dead; request {handle.id} is '{handle.status().state}'.")
        return handle

    def _answered_once(self, lost: Handle) -> bool:
        self._step(f"The lease of the dead worker ends after {LEASE_SECONDS:g} s; then the new one takes its request over.")
        done = self._wait(lost)
        events = [response for response in self.broker.responses(TARGET).peek() if response.id == lost.id]
        versions = [info.version for info in self.broker.dataset(DATASET).versions()]
        self.tell(f"   {_answer(done)}, attempt {done.attempts}")
        self.tell(f"   Terminal events of the request: {len(events)}. Versions: {', '.join(map(str, versions))}.")
        return len(events) == 1 and versions == sorted(set(versions)) and done.version == versions[-1]

    def _sync(self, text: str) -> None:
        self._step(f"{text}: rows and cursor in one transaction.")
        with _closing(DuckDB(self.folder / "search.duckdb", table="packages")) as sink:
            report = self.broker.replica(DATASET, name=TARGET, sink=sink).sync()
        what = (
            f"{report.upserts} upserts, {report.deletes} deletes" if report.upserts or report.deletes else f"{report.rows} rows"
        )
        self.tell(f"   version {report.version}: {what}, {report.bytes / 1024:.0f} KiB read, {report.seconds:.2f} s")

    def _equal(self) -> bool:
        self._step(
            "The check: the source's files are read once more, without the broker, and compared with the replica row by row."
        )
        missing, surplus, rows = difference(self.folder)
        self.tell(f"   {rows} rows in the source; missing in the replica: {missing}; in the replica only: {surplus}")
        return missing == surplus == 0 and rows > 0

    # --- tools

    def _ask(self, target: str, **fields: object) -> Handle:
        return self.broker.request(DATASET, target=target, **fields)

    def _wait(self, handle: Handle) -> Received:
        try:
            return handle.wait(WAIT_SECONDS)
        except (TimedOut, RequestFailed):
            self.tell((self.folder / "worker.log").read_text(errors="replace")[-2000:])
            raise

    @contextmanager
    def _worker(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker process in a process group of its own, so that -9 meets its children too."""
        parts, home = self.broker.parts, self.folder / ".broker"
        options = ["--redis", parts.redis.url, "--store", str(home / "store"), "--home", str(home)]
        command = [sys.executable, "-m", "broker.cli", "worker", *arguments, *options]
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._step(f"A worker starts: broker worker {' '.join(arguments)} (pid {process.pid})")
        try:
            yield process
        finally:
            _end(process)


def difference(folder: Path) -> tuple[int, int, int]:
    """(rows missing in the replica, rows only there, rows of the source): the source read with the standard library alone."""
    names, source = _source_rows(sorted((folder / "feeds").glob("*.csv.gz")))
    with _closing(DuckDB(folder / "search.duckdb", table="packages")) as sink:
        columns = [column.to_pylist() for column in sink.read(names).columns]
    replica = Counter(tuple("" if cell is None else str(cell) for cell in row) for row in zip(*columns, strict=True))
    wanted = Counter(source.values())
    return (wanted - replica).total(), (replica - wanted).total(), wanted.total()


def _source_rows(files: list[Path]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Column names, and package -> row as text; a later file's row wins."""
    names, rows = list[str](), dict[str, tuple[str, ...]]()
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
            reader = csv.reader(text)
            names = next(reader)
            rows |= {row[0]: tuple(row) for row in reader}
    return names, rows


def _answer(done: Received) -> str:
    reset = f", reset: {done.reset_reason}" if done.reset_reason else ""
    return f"version {done.version}, {done.mode}{reset}: {done.rows} rows, {done.bytes / 1024:.0f} KiB"


def _until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise TimedOut("the demonstration waits too long", of=what)
        time.sleep(0.005)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _closing(sink: DuckDB) -> Iterator[DuckDB]:
    try:
        yield sink
    finally:
        sink.close()
