"""pytest plugin: sinks keep a tombstone for ever."""

from __future__ import annotations

from dataclasses import replace

from broker.model.dataset import DatasetSpec
from broker.sinks.memory import Memory
from broker.sinks.merge import Merge
from broker.sinks.port import Batch

_merged, _change = Memory._merged, Merge.change
FOR_EVER = 100 * 365 * 86_400


def lasting(batch: Batch) -> Batch:
    spec: DatasetSpec = batch.spec.model_copy(update={"tombstone_seconds": FOR_EVER})
    return replace(batch, spec=spec)


Memory._merged = lambda self, held, batch, shape: _merged(self, held, lasting(batch), shape)  # type: ignore[method-assign]
Merge.change = lambda self, batch, before, after: _change(self, lasting(batch), before, after)  # type: ignore[method-assign]
