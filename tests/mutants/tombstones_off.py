"""pytest plugin: a delete leaves no tombstone, neither in a sink nor in a snapshot."""

from __future__ import annotations

from typing import Any

from broker.columnar import merge as columnar
from broker.sinks.memory import _Merge
from broker.sinks.merge import Merge

_delete, _tombstones = _Merge.delete, columnar.tombstones_sql


def delete_and_forget(self: _Merge, *args: Any) -> None:
    _delete(self, *args)
    self.tombstones.clear()


def bury_nothing(self: Merge, shape: Any) -> None:
    del self, shape


_Merge.delete = delete_and_forget  # type: ignore[method-assign, assignment]
Merge._bury = bury_nothing  # type: ignore[method-assign]
