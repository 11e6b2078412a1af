"""pytest plugin: inside a micro-batch the later change of a key wins, whatever its order."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from hypothesis import Phase, settings

from broker.columnar import coalesce

_by_arrow = coalesce.by_arrow


def by_arrow(table: pa.Table, key: Sequence[str], order: Sequence[str]) -> pa.Array | None:
    del order
    return _by_arrow(table, key, ())


coalesce.by_arrow = by_arrow
settings.register_profile("mutant", phases=[Phase.explicit, Phase.generate])  # one failure is enough: no shrinking
settings.load_profile("mutant")
