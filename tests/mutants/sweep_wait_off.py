"""pytest plugin: what was given up is deleted at once, though answers still name it."""

from __future__ import annotations

from typing import Any

from broker.janitor import Janitor


def all_of_them(self: Janitor, dataset: Any, seqs: set[int], before: float) -> frozenset[int]:
    del self, dataset, before
    return frozenset(seqs)


Janitor._sealed_before = all_of_them  # type: ignore[method-assign]
