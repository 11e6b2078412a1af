"""pytest plugin: inside a micro-batch the later change of a key wins, whatever its order."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from hypothesis import Phase, settings

from broker.columnar import coalesce
from broker.model.dataset import DatasetSpec

_by_arrow, _by_python = coalesce.by_arrow, coalesce.by_python


def by_arrow(table: pa.Table, key: Sequence[str], order: Sequence[str]) -> pa.Array | None:
    del order
    return _by_arrow(table, key, ())


def by_python(spec: DatasetSpec, sides: Sequence[coalesce._Side]) -> pa.Array | None:
    return _by_python(spec.model_copy(update={"order": ()}), sides)


coalesce.by_arrow, coalesce.by_python = by_arrow, by_python
settings.register_profile("mutant", phases=[Phase.explicit, Phase.generate])  # one failure is enough: no shrinking
settings.load_profile("mutant")
