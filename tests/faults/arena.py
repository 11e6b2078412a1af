"""A deployment under attack: real worker processes over a real Redis and a folder, orders for faults, and the checker."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

import broker
from broker.model.commit import GENESIS, NewVersion, digest, parse_record
from broker.model.names import DatasetId
from broker.rules.fold import State, replay
from tests.ledger import events
from tests.servers import wait_until

LEASE_SECONDS: Final = 0.5
OFFERS: Final = DatasetId("goodstuff_01/catalog/offers")
ROOT: Final = Path(__file__).resolve().parents[2]
VOLATILE: Final = {"confirmed_at", "position"}
"""Head fields that productions without a version move as well."""


def settings_of(home: Path) -> dict[str, Any]:
    """Settings of every process of the arena."""
    settings: dict[str, Any] = json.loads((home / "settings.json").read_text())
    return settings


@dataclass
class Arena:
    """`home` holds settings, orders, counts, the source of the producers and the store."""

    home: Path
    redis: str
    app: str = "tests.faults.app:app"
    settings: dict[str, Any] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in ("armed", "hit"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        fields = {
            "redis": self.redis, "store": str(self.home / "store"), "lease_seconds": LEASE_SECONDS, "backoff_seconds": 0.02,
            "backoff_max_seconds": 0.1, "max_attempts": 1000, "reservation_seconds": 0.2, "memory_limit_bytes": 64 << 20,
        }  # fmt: skip
        (self.home / "settings.json").write_text(json.dumps(fields | self.settings))

    def connect(self) -> broker.Broker:
        return broker.connect(**settings_of(self.home))

    # --- processes

    def spawn(self, module: str, *args: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"BROKER_FAULTS": str(self.home)}
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *args],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start_worker(self, children: int = 1) -> None:
        self.workers.append(self.spawn("tests.faults.worker", self.app, str(children)))

    def replace_dead_workers(self, children: int = 1) -> int:
        """Every worker that ended gets a successor. Raises AssertionError when one ended otherwise than by SIGKILL."""
        dead = [worker for worker in self.workers if worker.poll() is not None]
        for worker in dead:
            assert worker.returncode == -signal.SIGKILL, f"a worker ended with {worker.returncode}:\n{self.log_tail()}"
            self.workers.remove(worker)
            self.start_worker(children)
        return len(dead)

    def stop(self) -> None:
        """Kill all workers; their children follow."""
        self.let_go_on()
        for worker in self.workers:
            worker.kill()
            worker.wait()

    def log_tail(self) -> str:
        return (self.home / "log").read_text(errors="replace")[-4000:]

    # --- faults

    def arm(self, order: str) -> None:
        """`<role>.<step>.<fault>`, see steps.py."""
        (self.home / "armed" / order).touch()

    def disarm(self) -> None:
        for order in (self.home / "armed").iterdir():
            order.unlink(missing_ok=True)

    def is_armed(self, order: str) -> bool:
        """Whether nobody has reached the step yet."""
        return (self.home / "armed" / order).exists()

    def was_hit(self, order: str) -> bool:
        return any((self.home / "hit").glob(f"{order}.*"))

    def hits(self) -> Counter[tuple[str, str]]:
        """(step, fault) -> how often."""
        names = (path.name.split(".") for path in (self.home / "hit").iterdir())
        return Counter((step, fault) for _, step, fault, *_ in names)

    def let_go_on(self, older_than_seconds: float = 0.0) -> None:
        """Continue the processes that stopped themselves that long ago."""
        for path in (self.home / "hit").glob("*.pause.*"):
            if path.name.endswith(".over") or time.time() - path.stat().st_ctime < older_than_seconds:
                continue
            role, _, _, pid, parent = path.name.split(".")
            for number in (int(pid), *([int(parent)] if role == "child" else [])):
                try:
                    os.kill(number, signal.SIGCONT)
                except ProcessLookupError:
                    continue
            path.rename(path.with_name(f"{path.name}.over"))

    def counts(self) -> Counter[str]:
        path = self.home / "counts"
        return Counter(path.read_text().split() if path.exists() else [])

    # --- the source of the producers

    def set_source(self, rows: Iterable[dict[str, Any]], dataset: str = OFFERS) -> None:
        path = source_path(self.home, dataset)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(list(rows)))
        part.replace(path)


def source_path(home: Path, dataset: str) -> Path:
    return home / f"{dataset.replace('/', '=')}.json"


# --- the checker


def check_log(b: broker.Broker, dataset: DatasetId = OFFERS) -> None:
    """P1, P2, P3: the chain is gapless, every file whole, no production twice, and the index is what the log says."""
    records, shown = _at_rest(b, dataset)
    previous, productions, versions = GENESIS, Counter[str](), list[int]()
    for number, data in enumerate(records, 1):
        record = parse_record(data, f"log {number}")
        assert (record.seq, record.previous) == (number, previous)
        previous = digest(data)
        if isinstance(record.body, NewVersion):
            versions.append(record.body.edge.version)
            productions[record.body.production or record.write_id] += 1
            for file in record.body.edge.files:
                body = b"".join(b.parts.store.get(file.key))
                assert (len(body), hashlib.sha256(body).hexdigest()) == (file.bytes, file.sha256), file.key
    assert versions == list(range(1, len(versions) + 1))
    assert max(productions.values(), default=0) <= 1, productions
    told = replay(dataset, records)
    for table in told.tables:
        assert _settled(told.tables[table]) == _settled(shown.tables[table]), table


def _at_rest(b: broker.Broker, dataset: DatasetId) -> tuple[list[bytes], State]:
    """The log and the index at one moment: who is still at work may commit between the two reads."""
    found: list[tuple[list[bytes], State]] = []

    def alike() -> bool:
        b.parts.catalog.state(dataset)
        shown = b.parts.index.load(dataset)
        found[:] = [(list(b.parts.catalog.records(dataset)), shown)]
        return len(found[0][0]) == shown.seq

    wait_until(alike, "the index to show the log", 20)
    return found[0]


def _settled(fields: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if name not in VOLATILE}


def check_events(b: broker.Broker, handles: Iterable[broker.Handle], target: str) -> None:
    """P4: exactly one terminal event a request, and nothing else in the target's stream."""
    seen = Counter(done.request for done in events(b, target))
    assert seen == Counter(handle.id for handle in handles), {id: n for id, n in seen.items() if n != 1}


def same_rows(left: pa.Table, right: pa.Table, key: str = "sku") -> bool:
    def ordered(table: pa.Table) -> list[dict[str, Any]]:
        return sorted(table.to_pylist(), key=lambda row: str(row[key]))

    return ordered(left) == ordered(right)
