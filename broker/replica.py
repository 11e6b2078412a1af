"""The read half: a named cursor, and a sink whose rows and cursor move in one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Final
from uuid import uuid4

from broker.backend.keys import replica_lease
from broker.backend.leases import Leases
from broker.catalog import Catalog, OnStep, nothing
from broker.columnar.engine import Engine
from broker.columnar.types import schema_of
from broker.errors import Corrupt, NotFound
from broker.model.names import DatasetId, check_name
from broker.model.request import Cursor, ResetReason, Selection
from broker.rules.correlation import line
from broker.rules.fold import State
from broker.rules.plan import Plan, plan, plan_for
from broker.rules.publishing import Lease
from broker.sinks.port import Batch, Sink, SinkCursor, taken

STEPS: Final = ("planned", "fetched", "applied")
"""The named steps of a sync, in order: tests crash at each. A sink has its own inside `applied`."""
log = logging.getLogger("broker.replica")
POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Report:
    """What one sync did. `mode`: applied | up-to-date | nothing-yet (the dataset has no version)."""

    mode: str
    version: int
    edges: int = 0
    rows: int = 0
    upserts: int = 0
    deletes: int = 0
    bytes: int = 0
    reset: ResetReason | None = None
    seconds: float = 0.0


class Replica:
    """An exact copy of a dataset, or of a selection of it. Of two processes with one name one has the lease, one Busy."""

    def __init__(
        self, parts: tuple[Catalog, Engine, Leases], dataset: DatasetId, name: str, sink: Sink, selection: Selection,
        on_step: OnStep = nothing,
    ) -> None:  # fmt: skip
        self._catalog, self._engine, self._leases = parts
        self.dataset, self.name, self.sink, self.selection = dataset, check_name(name, "replica"), sink, selection
        self._owner, self._on_step, self._woken = uuid4().hex, on_step, Event()

    @property
    def cursor(self) -> SinkCursor | None:
        """Where the sink stands."""
        return self.sink.cursor(self.name)

    def sync(self, timeout: float = 0.0) -> Report:
        """Bring the sink to the newest version: plan, fetch, verify, apply. Waits up to `timeout` seconds for something new.

        A damaged file is fetched once more, then left aside for another road, with a reset `corrupt` where that starts anew.
        Raises Busy (held by another process, or the sink is locked), Fenced, Corrupt, Unavailable; the sink is whole always.
        """
        begun = time.monotonic()
        held = self.sink.cursor(self.name)
        state = self._wait(held, begun + timeout)
        if not self._behind(state, held):
            mode = "up-to-date" if state.edges else "nothing-yet"
            return Report(mode, held.version if held else 0, seconds=time.monotonic() - begun)
        with self._leases.held(self._catalog.slot(self.dataset), replica_lease(self.dataset, self.name), self._owner) as lease:
            return self._apply(lease, begun)

    def wake(self) -> None:
        """Let a `sync` that waits in another thread look at once: an event said that there is something new."""
        self._woken.set()

    def _wait(self, held: SinkCursor | None, until: float) -> State:
        """The newest state: one that `held` is behind of, if it comes before `until` (monotonic seconds)."""
        while True:
            state, left = self._catalog.state(self.dataset), until - time.monotonic()
            if left <= 0 or self._behind(state, held):
                return state
            self._woken.wait(min(POLL_SECONDS, left))
            self._woken.clear()

    def _behind(self, state: State, held: SinkCursor | None) -> bool:
        """Whether there is something to apply. A session without a version has nothing yet, whatever an older one had."""
        if held is None or not state.edges:
            return bool(state.edges)
        wanted = (state.version, state.session, self.selection.fingerprint)
        return (held.version, held.session, held.selection) != wanted

    def _apply(self, lease: Lease, begun: float) -> Report:
        fence = (lease.fence.epoch, lease.fence.counter)
        held = self.sink.cursor(self.name)
        self.sink.take(self.name, held, fence)
        state = self._catalog.state(self.dataset)
        found = plan_for(state, _cursor_of(held), self.selection)
        self._on_step("planned")
        if found.mode == "unchanged":  # another process was quicker
            return Report("up-to-date", found.version, seconds=time.monotonic() - begun)
        found, batch = self._fetched(state, found)
        self._on_step("fetched")
        to = SinkCursor(self.dataset, found.version, state.session, self.selection.fingerprint, fence)
        applied = self.sink.apply(self.name, batch, expect=taken(held, fence), to=to)
        self._on_step("applied")
        log.debug("applied", extra=line(state, found.version, replica=self.name, rows=applied.rows))
        return Report(
            "applied", found.version, len(found.edges), applied.rows, applied.upserts, applied.deletes, found.bytes,
            found.reset, time.monotonic() - begun,
        )  # fmt: skip

    def _fetched(self, state: State, found: Plan) -> tuple[Plan, Batch]:
        """Verified data, and the plan it follows: another one where files of this one are damaged or gone."""
        damaged: set[str] = set()
        while True:
            try:
                return found, self._batch_or_again(state, found)
            except (Corrupt, NotFound) as error:
                if error.of in damaged:
                    raise
                damaged.add(error.of)
                detour = around(state, found, damaged)
                if detour is None:
                    raise
                found = detour

    def _batch_or_again(self, state: State, found: Plan) -> Batch:
        try:
            return self._batch(state, found)
        except Corrupt:  # perhaps only on its way: the second copy decides
            return self._batch(state, found)

    def _batch(self, state: State, found: Plan) -> Batch:
        spec = state.spec
        if spec.columns is None:
            raise NotFound("the dataset has no schema yet", of=self.dataset)
        if found.mode == "delta":
            upserts, deletes = self._engine.changes(spec, found.edges, self.selection)
            return Batch(spec=spec, schema=schema_of(upserts.schema), replace=False, upserts=upserts, deletes=deletes)
        rows = self._engine.read(spec, found.edges, self.selection)
        dead = self._engine.tombstones(spec, found.edges, self.selection)
        files = self._plain_files(found)
        return Batch(spec=spec, schema=schema_of(rows.schema), replace=True, rows=rows, tombstones=dead, files=files)

    def _plain_files(self, found: Plan) -> list[Any]:
        """Verified local files that hold exactly the rows wanted: one snapshot, whole, of the present schema."""
        if len(found.edges) != 1 or not self.selection.everything:
            return []
        return [self._engine.fetch(file) for file in found.edges[0].of_role("rows")]


def around(state: State, found: Plan, damaged: Collection[str]) -> Plan | None:
    """Another road to the plan's version, past all edges with a file (store key) in `damaged`; None when there is none."""
    whole = [edge for edge in state.edges if not any(file.key in damaged for file in edge.files)]
    if len(whole) == len(state.edges):
        return None
    try:
        other = plan(whole, found.base, found.version)
    except NotFound:
        return None
    lost = found.base is not None and other.base is None
    return replace(other, reset=found.reset or ("corrupt" if lost else None))


def _cursor_of(held: SinkCursor | None) -> Cursor | None:
    if held is None or held.version == 0:
        return None
    return Cursor(version=held.version, session=held.session, selection=held.selection)
