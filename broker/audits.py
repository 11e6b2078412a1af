"""Audits: receipts of replicas against what their version holds. A difference is told once; nobody is stopped.

    receipt (version, selection, digest) ──► digest of the same version from the sealed files ──► equal, or `replica.mismatch`

The same pass looks after the leases of cursors: what ends soon, and who is behind for too long, is told before it matters.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, TypeVar

from broker.backend.index import Index
from broker.catalog import Catalog
from broker.channels import Channels
from broker.columnar.buckets import content_id, digest_of_rows
from broker.columnar.digest import ContentDigest
from broker.columnar.engine import Engine
from broker.cursors import Cursors, Held, LiveCursor, Receipt
from broker.errors import BrokerError, NotFound
from broker.events import Events
from broker.model.event import Expiring, Lagging, Mismatch
from broker.model.names import DatasetId
from broker.rules.fold import State
from broker.rules.following import Goal, goal_of, lag_of
from broker.rules.plan import plan

K = TypeVar("K")
V = TypeVar("V")
log = logging.getLogger("broker.audits")
EXPIRING_RATIO: Final = 0.2
"""Of a cursor's lease: when so little is left, and nobody has come, it is told."""
KNOWN_DIGESTS: Final = 100
"""Digests a process remembers, by dataset and content: a fleet of equal replicas costs one reading."""


@dataclass
class AuditReport:
    """What one pass found. `failed`: dataset -> why; the next pass tries again."""

    compared: int = 0
    mismatches: int = 0
    expiring: int = 0
    lagging: int = 0
    failed: dict[DatasetId, str] = field(default_factory=dict)


class Audits:
    """Idempotent and safe to run anywhere, several at once: each thing is told once."""

    def __init__(
        self, parts: tuple[Catalog, Channels, Index, Engine], cursors: Cursors, events: Events, lag_seconds: float
    ) -> None:  # fmt: skip
        self._catalog, self._channels, self._index, self._engine = parts
        self._cursors, self._events, self._lag_seconds = cursors, events, lag_seconds
        self._known = OrderedDict[tuple[DatasetId, str], ContentDigest]()
        self._compared = OrderedDict[tuple[DatasetId, str, Receipt], bool]()

    def run_once(self) -> AuditReport:
        """A pass over all datasets."""
        report = AuditReport()
        for slot in self._index.slots():
            for dataset in self._index.datasets(slot):
                try:
                    self.look(dataset, report)
                except NotFound:
                    continue  # dropped
                except BrokerError as error:  # one dataset's harm must not end the care for the others
                    report.failed[dataset] = str(error)
                    log.warning("%s: %s", dataset, error)
        return report

    def look(self, dataset: DatasetId, report: AuditReport) -> None:
        """The cursors of one dataset. Raises NotFound, Corrupt, Unavailable."""
        standing = self._cursors.standing(dataset).cursors
        if not standing:
            return
        named = self._channels.named(dataset)
        state = self._catalog.state(dataset)
        for held in standing:
            report.expiring += self._tell_expiring(dataset, held)
            if held.live and held.cursor.session == state.session:
                goal = goal_of(state, held.cursor.channel, named)
                report.lagging += self._tell_lagging(dataset, held.cursor, goal, state)
                self._compare(dataset, state, held.cursor, report)

    def _tell_expiring(self, dataset: DatasetId, held: Held) -> bool:
        cursor, left = held.cursor, held.left_seconds
        if not expiring(left, self._cursors.lease_seconds):
            return False
        data = Expiring(replica=cursor.name, version=cursor.version, left_seconds=round(left, 3), channel=cursor.channel)
        ends = round((time.time() + left) / max(1.0, EXPIRING_RATIO * self._cursors.lease_seconds))
        return self._events.emit(dataset, "broker.replica.expiring", data, once=f"expiring:{cursor.name}:{ends}")

    def _tell_lagging(self, dataset: DatasetId, cursor: LiveCursor, goal: Goal, state: State) -> bool:
        lag = lag_of(state, cursor.version, goal, time.time())
        if lag.none or lag.seconds < self._lag_seconds:
            return False
        data = Lagging(
            replica=cursor.name, held=cursor.version, version=goal.version, versions=lag.versions, bytes=lag.bytes,
            seconds=round(lag.seconds, 3), channel=cursor.channel,
        )  # fmt: skip
        return self._events.emit(dataset, "broker.replica.lagging", data, once=f"lagging:{cursor.name}:{cursor.version}")

    def _compare(self, dataset: DatasetId, state: State, cursor: LiveCursor, report: AuditReport) -> None:
        receipt = cursor.receipt
        if receipt is None or (dataset, cursor.name, receipt) in self._compared:
            return
        wanted = self._digest(dataset, state, receipt.version, cursor)
        if wanted is None or wanted.columns != receipt.schema_id:
            return  # the version is retired, or the dataset has other columns by now: nothing to compare with
        report.compared += 1
        if (wanted.rows, wanted.text) != (receipt.rows, receipt.digest):
            report.mismatches += self._tell_mismatch(dataset, cursor, receipt, wanted)
        # Behind the telling: what could not be told is compared again.
        _remember(self._compared, (dataset, cursor.name, receipt), True, 100 * KNOWN_DIGESTS)

    def _tell_mismatch(self, dataset: DatasetId, cursor: LiveCursor, receipt: Receipt, wanted: ContentDigest) -> bool:
        data = Mismatch(
            replica=cursor.name, version=receipt.version, rows=receipt.rows, digest=receipt.digest, expected_rows=wanted.rows,
            expected_digest=wanted.text, channel=cursor.channel,
        )  # fmt: skip
        once = f"mismatch:{cursor.name}:{receipt.version}:{receipt.digest}"
        return self._events.emit(dataset, "broker.replica.mismatch", data, once=once)

    def _digest(self, dataset: DatasetId, state: State, version: int, cursor: LiveCursor) -> ContentDigest | None:
        """None where no road leads to the version any more."""
        try:
            edges = plan(state.edges, None, version).edges
        except NotFound:
            return None
        alike = (dataset, content_id(state.spec, edges, cursor.seen))  # an erasure makes another content of a version
        if alike not in self._known:
            rows = self._engine.read(state.spec, edges, cursor.seen)
            _remember(self._known, alike, digest_of_rows(self._engine, state.spec.key, rows), KNOWN_DIGESTS)
        return self._known[alike]


def expiring(left_seconds: float, lease_seconds: float) -> bool:
    """Whether a cursor's lease lasts, and ends soon."""
    return 0 < left_seconds <= EXPIRING_RATIO * lease_seconds


def _remember(known: OrderedDict[K, V], what: K, value: V, most: int) -> None:
    known[what] = value
    if len(known) > most:
        known.popitem(last=False)
