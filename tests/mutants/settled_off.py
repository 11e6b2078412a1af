"""pytest plugin: a roll-up is called settled though it holds what came late."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from broker.columnar.engine import EVERYTHING, Engine
from broker.model.commit import Edge, File
from broker.model.dataset import DatasetSpec
from broker.model.names import data_key


def write_settled(self: Engine, spec: DatasetSpec, snapshot: Edge, edges: Sequence[Edge]) -> tuple[File, ...]:
    return self.derive(spec, edges, EVERYTHING, "parquet", partial(data_key, spec.dataset), [snapshot]).files


Engine.write_settled = write_settled  # type: ignore[method-assign]
