"""Retention: gives up edges that nobody needs, by a `retire` record; the sweep deletes their files long after.

    who needs what: cursors, channels, holds, floors ──► rules/retention.py ──► `retire` record ──► later: the sweep

Nothing is given up while Redis has not remembered cursors for a full lease: whoever is alive must have had the time to say so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

from broker.backend.index import Index
from broker.backend.keys import retention_lease
from broker.backend.leases import Leases
from broker.catalog import Catalog
from broker.cursors import Cursors
from broker.errors import BrokerError, Busy, Invalid, NotFound, Transient
from broker.model.commit import Body, Edge, Hold, Retire, checked_version
from broker.model.event import rfc3339
from broker.model.names import DatasetId, check_name
from broker.rules.fold import State
from broker.rules.patch import VersionInfo
from broker.rules.retention import Floors, RetentionPlan, Wanted, forgotten, pair, retention
from broker.search import unindex

log = logging.getLogger("broker.retention")
Pins = Callable[[DatasetId], Mapping[str, Sequence[int]]]
"""Reason -> versions that must stay readable, the present one first: what channels name."""
HOLD: Final = "hold"


@dataclass
class RetentionReport:
    """What one pass did. `waits`: datasets that are left alone until all cursors are known. `failed`: dataset -> why."""

    retired: int = 0
    bytes: int = 0
    waits: list[DatasetId] = field(default_factory=list)
    failed: dict[DatasetId, str] = field(default_factory=dict)


def no_pins(dataset: DatasetId) -> Mapping[str, Sequence[int]]:
    """For a broker without channels."""
    del dataset
    return {}


class Retention:
    """Idempotent and safe to run anywhere, several at once."""

    def __init__(
        self, catalog: Catalog, index: Index, leases: Leases, cursors: Cursors, floors: Floors, pins: Pins = no_pins
    ) -> None:
        self._catalog, self._index, self._leases = catalog, index, leases
        self._cursors, self._floors, self._pins = cursors, floors, pins

    def run_once(self) -> RetentionReport:
        """A pass over all datasets."""
        report = RetentionReport()
        for slot in self._index.slots():
            for dataset in self._index.datasets(slot):
                try:
                    done = self.apply(dataset)
                except Busy:
                    continue
                except NotFound:
                    continue  # dropped: it offers nothing
                except BrokerError as error:  # one dataset's harm must not end the care for the others
                    report.failed[dataset] = str(error)
                    log.warning("%s: %s", dataset, error)
                    continue
                if done is None:
                    report.waits.append(dataset)
                    continue
                report.retired += len(done.retire)
                report.bytes += done.bytes
        return report

    def plan(self, dataset: DatasetId) -> RetentionPlan:
        """What would go now, and why the rest stays. Raises NotFound."""
        return self._plan(self._catalog.state(dataset))

    def crowded(self, state: State) -> int | None:
        """As of the plan: where the first reader stands, if what live ones need exceeds the bytes of a snapshot."""
        return self._plan(state).crowded

    def apply(self, dataset: DatasetId) -> RetentionPlan | None:
        """Retire what nobody needs. None: not before all cursors are known. Raises NotFound, Busy, Fenced, Unavailable."""
        done, gone = list[RetentionPlan](), list[VersionInfo]()
        with self._leases.held(self._catalog.slot(dataset), retention_lease(dataset), uuid4().hex) as lease:
            if self.waits_seconds(dataset):  # asked under the lease: a Redis that loses its memory now takes that along
                return None

            def body(state: State) -> Body | None:
                wanted, now = self._wanted(state), time.time()
                found = retention(state.edges, wanted, self._floors, now, over=state.leads_over)
                done.append(found)
                if not found.retire:
                    return None
                files = tuple(file.key for edge in found.retire for file in edge.files)
                gone[:], ranges = forgotten(state, found.retire, wanted, now)
                return Retire(
                    edges=tuple(map(pair, found.retire)), files=files, versions_until=found.until, versions=tuple(ranges),
                    productions=tuple(info.production for info in gone if info.production),
                    rolled_until=max(found.rolled_until, state.rolled_until),
                    settled_until=max(found.settled_until, state.settled_until),
                )  # fmt: skip

            after = self._catalog.commit(dataset, body, "retention", lease).tables["versions"]
        if gone := [info for info in gone if str(info.version) not in after]:
            self._unindex(dataset, gone)
        return next((found for found in reversed(done) if found.retire), done[0])

    def waits_seconds(self, dataset: DatasetId) -> float:
        """For how long nothing is given up, because a consumer that lives may not have said so yet; 0: all are known."""
        return self._cursors.standing(dataset).lacking_seconds(self._cursors.lease_seconds)

    def explain(self, dataset: DatasetId, of: str | int) -> str:
        """Why a file (store key) or a version's edges stay, or that they go. Raises NotFound for what is not offered."""
        state = self._catalog.state(dataset)
        found, wanted = self._plan(state), self._wanted(state).versions
        edges = [
            edge for edge in state.edges if edge.version == of or any(file.key == of for file in edge.files)
        ]  # fmt: skip
        if not edges:
            raise NotFound(
                "nothing offered has this", of=f"{dataset}: {of}", why="it was retired, or never was",
                hint=f"See what is: broker versions list {dataset}",
            )  # fmt: skip

        def why(edge: Edge) -> str:
            """The first reason, and whoever names the version."""
            first = found.why(*pair(edge))
            named = [who for who, versions in wanted.items() if first and edge.version in versions]
            return ", ".join(dict.fromkeys([first or "nobody needs it: it goes", *named]))

        return "; ".join(f"{_named(*pair(edge))}: {why(edge)}" for edge in edges)

    def hold(self, dataset: DatasetId, name: str, version: int, until: float | None = None, why: str = "") -> None:
        """Keep a version readable until a time (seconds since the epoch; None: until `release`). Raises NotFound, Invalid."""
        if until is not None and until <= time.time():
            raise Invalid(
                "the hold would be over already", of=f"{dataset} version {version}", why=f"it ends {rfc3339(until)}",
                hint="Give a time to come, or none",
            )  # fmt: skip
        wanted = Hold(name=check_name(name, "hold"), version=checked_version(version), until=until, why=why)

        def body(state: State) -> Body | None:
            state.info(version)
            if not any(edge.version == version for edge in state.edges):
                raise NotFound("no road leads to this version", of=f"{dataset} version {version}", why="its edges are retired")
            return None if state.holds.get(name) == wanted else wanted

        self._catalog.commit(dataset, body, "hold")

    def release(self, dataset: DatasetId, name: str) -> None:
        """End a hold. Raises NotFound."""

        def body(state: State) -> Body | None:
            held = state.holds.get(name)
            if held is None:
                standing = [hold.name for hold in state.holds.values() if hold.stands(time.time())]
                raise NotFound(
                    "no such hold", of=f"{dataset}: {name}", why=f"there are {', '.join(standing) or 'none'}",
                    hint=f"See them: broker hold {dataset}",
                )  # fmt: skip
            return None if held.until == 0 else held.model_copy(update={"until": 0})

        self._catalog.commit(dataset, body, "hold")

    def of(self, dataset: DatasetId) -> DatasetRetention:
        return DatasetRetention(self, dataset)

    def _unindex(self, dataset: DatasetId, gone: Sequence[VersionInfo]) -> None:
        """The retirement is sealed, and a search leaves out what the index names in vain: to fail here does no harm."""
        try:
            unindex(self._index, dataset, gone)
        except Transient as error:
            log.warning("%s: %d versions stay in the index of attributes: %s", dataset, len(gone), error)

    def _plan(self, state: State) -> RetentionPlan:
        return retention(state.edges, self._wanted(state), self._floors, time.time(), over=state.leads_over)

    def _wanted(self, state: State) -> Wanted:
        dataset, now = DatasetId(state.dataset), time.time()
        holds = [hold for _, hold in sorted(state.holds.items()) if hold.stands(now)]
        versions = {**self._pins(dataset), **{f"{HOLD} {hold.name}": [hold.version] for hold in holds}}
        offered = {edge.version for edge in state.edges}
        readers = {
            held.cursor.name: held.cursor.version
            for held in self._cursors.standing(dataset).cursors
            if held.live and held.cursor.session == state.session
        }
        times = {info.version: info.time for info in state.versions if info.version in offered}
        return Wanted(versions, readers, times)


@dataclass(frozen=True, slots=True)
class DatasetRetention:
    """Retention of one dataset."""

    _retention: Retention
    _dataset: DatasetId

    def plan(self) -> RetentionPlan:
        """What would go now (`retire`, `bytes`), and why the rest stays (`kept`). Changes nothing. Raises NotFound."""
        return self._retention.plan(self._dataset)

    def explain(self, of: str | int) -> str:
        """Why the edges of a version, or the one that names a file (by store key), stay, or that they go. Raises NotFound."""
        return self._retention.explain(self._dataset, of)

    def apply(self) -> RetentionPlan | None:
        """Give up what nobody needs; files go `result_seconds` + 1 h later. None: not before all cursors are known.

        Raises NotFound, Busy (another is at it), Unavailable.
        """
        return self._retention.apply(self._dataset)

    def waits_seconds(self) -> float:
        """For how long nothing is given up, because a consumer that lives may not have said so yet; 0: all are known."""
        return self._retention.waits_seconds(self._dataset)

    def hold(self, version: int, until: float | None = None, why: str = "", name: str | None = None) -> str:
        """Keep a version readable until a time (seconds since the epoch). -> the hold's name (None: `v<version>`)."""
        name = name or f"v{version}"
        self._retention.hold(self._dataset, name, version, until, why)
        return name

    def release(self, name: str) -> None:
        """End a hold. Raises NotFound."""
        self._retention.release(self._dataset, name)


def _named(base: int | None, version: int) -> str:
    return f"snapshot {version}" if base is None else f"{base} to {version}"
