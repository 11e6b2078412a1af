"""The read half: a named cursor, and a sink whose rows and cursor move in one transaction."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from broker.backend.leases import Leases
from broker.catalog import Catalog, OnStep, nothing
from broker.columnar.engine import Engine
from broker.columnar.types import schema_of
from broker.errors import NotFound
from broker.model.names import DatasetId, check_name
from broker.model.request import Cursor, ResetReason, Selection
from broker.rules.fold import State
from broker.rules.plan import Plan, plan_for
from broker.rules.publishing import Lease
from broker.sinks.port import Applied, Batch, Sink, SinkCursor

STEPS: Final = ("planned", "fetched", "applied")
"""The named steps of a sync, in order: tests crash at each. A sink has its own inside `applied`."""
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
        self._owner, self._on_step = uuid4().hex, on_step

    @property
    def cursor(self) -> SinkCursor | None:
        """Where the sink stands."""
        return self.sink.cursor(self.name)

    def sync(self, timeout: float = 0.0) -> Report:
        """Bring the sink to the newest version: plan, fetch, verify, apply. Waits up to `timeout` seconds for something new.

        Raises Busy (held by another process, or the sink is locked), Fenced, Corrupt, Unavailable; the sink is whole always.
        """
        begun, slot = time.monotonic(), self._catalog.slot(self.dataset)
        while True:
            state = self._catalog.state(self.dataset)
            held = self.sink.cursor(self.name)
            if state.version and not self._at_head(state, held):
                break
            if time.monotonic() - begun >= timeout:
                mode = "up-to-date" if state.version else "nothing-yet"
                return Report(mode, held.version if held else 0, seconds=time.monotonic() - begun)
            time.sleep(min(POLL_SECONDS, timeout))
        with self._leases.held(
            slot, f"lease:replica:{self.dataset.tenant}/{self.dataset.name}:{self.name}", self._owner
        ) as lease:
            return self._apply(lease, begun)

    def _at_head(self, state: State, held: SinkCursor | None) -> bool:
        return held is not None and (held.version, held.session, held.selection) == (
            state.version,
            state.session,
            self.selection.fingerprint,
        )

    def _apply(self, lease: Lease, begun: float) -> Report:
        fence = (lease.fence.epoch, lease.fence.counter)
        held = self.sink.cursor(self.name)
        self.sink.take(self.name, held, fence)
        expect = self.sink.cursor(self.name)
        state = self._catalog.state(self.dataset)
        found = plan_for(state, _cursor_of(held), self.selection)
        self._on_step("planned")
        batch = self._batch(state, found)
        self._on_step("fetched")
        to = SinkCursor(self.dataset, found.version, state.session, self.selection.fingerprint, fence)
        applied = self.sink.apply(self.name, batch, expect=expect, to=to) if found.edges or held is None else Applied()
        self._on_step("applied")
        return Report(
            "applied", found.version, len(found.edges), applied.rows, applied.upserts, applied.deletes, found.bytes,
            found.reset, time.monotonic() - begun,
        )  # fmt: skip

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


def _cursor_of(held: SinkCursor | None) -> Cursor | None:
    if held is None or held.version == 0:
        return None
    return Cursor(version=held.version, session=held.session, selection=held.selection)
