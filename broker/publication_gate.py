"""The gate between upload and reserve: guards and validators look at what is about to be sealed, and may refuse it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pyarrow as pa

from broker.catalog import Catalog
from broker.columnar.engine import EVERYTHING, Engine, Written
from broker.errors import Vetoed
from broker.model.commit import Edge
from broker.model.dataset import DatasetSpec
from broker.model.finding import Objection
from broker.model.names import DatasetId
from broker.producers_validators import Proposed, Validator
from broker.rules.fold import State
from broker.rules.guards import Effect, Guards, effect, objections
from broker.rules.plan import plan

log = logging.getLogger("broker.publication")


class Gate:
    """`defaults` hold where a dataset has no guards of its own. Micro-batches do not pass here: what was acknowledged lands."""

    def __init__(self, catalog: Catalog, engine: Engine, defaults: Guards, validators: Sequence[Validator] = ()) -> None:
        self._catalog, self._engine, self._defaults, self._validators = catalog, engine, defaults, tuple(validators)

    def with_validators(self, validators: Sequence[Validator]) -> Gate:
        return Gate(self._catalog, self._engine, self._defaults, validators)

    def admit(self, state: State, written: Written, base: int | None, production: str) -> None:
        """Judge files as the version behind `state`, the head they were made for. Raises Vetoed, behind its event."""
        if not written.files:
            return
        edge = Edge(base=base, version=state.version + 1, files=written.files)
        spec = state.spec.model_copy(update={"columns": written.schema})
        found = [*self._guarded(state, spec, edge), *self._validated(spec, edge)]
        if not found:
            return
        log.warning("%s: version %d is refused: %s", spec.dataset, edge.version, "; ".join(text for _, text in found))
        data = {
            "version": edge.version, "stays": state.offered, "kind": edge.kind, "rows": edge.rows, "bytes": edge.bytes,
            "production": production, "findings": [objection._asdict() for objection in found],
        }  # fmt: skip
        self._catalog.tell(DatasetId(state.dataset), "broker.dataset.refused", f"refused/{production}", data)
        raise Vetoed.by(state.dataset, (text for _, text in found))

    def _guarded(self, state: State, spec: DatasetSpec, edge: Edge) -> Sequence[Objection]:
        guards = self._defaults.of(spec)
        if guards == Guards():
            return ()
        road = plan(state.edges, None, state.version).edges if state.offered else ()
        found = objections(guards, effect(road, edge))
        if found is None:
            after = (edge,) if edge.base is None else (*road, edge)
            found = objections(guards, Effect.exact(*self._engine.compare_keys(spec, road, after)))
        return found or ()

    def _validated(self, spec: DatasetSpec, edge: Edge) -> Sequence[Objection]:
        found = list[Objection]()
        for validator in self._validators:
            if validator.concerns(spec.dataset):
                found += validator.objections(self._proposed(spec, edge))
        return found

    def _proposed(self, spec: DatasetSpec, edge: Edge) -> Proposed:
        upserts, deletes = (sum(file.rows for file in edge.of_role(role)) for role in ("upserts", "deletes"))

        def opened() -> tuple[pa.RecordBatchReader, pa.RecordBatchReader]:
            if edge.base is not None:
                return self._engine.changes(spec, [edge], EVERYTHING)
            names = {*spec.key, *spec.order}
            rows = self._engine.read(spec, [edge], EVERYTHING)
            return rows, pa.RecordBatchReader.from_batches(pa.schema([f for f in rows.schema if f.name in names]), [])

        return Proposed(spec, edge.version, edge.kind, edge.rows, upserts, deletes, opened)
