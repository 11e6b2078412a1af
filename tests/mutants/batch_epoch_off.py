"""pytest plugin: a micro-batch outlives the incarnation of Redis whose log it was read from."""

from __future__ import annotations

from broker.rules import batching
from broker.rules.batching import Batch
from broker.rules.fold import State


def fits(state: State, batch: Batch) -> bool:
    return batch.source.after == state.consumed(batch.slot) and batch.session == state.session


batching.fits = fits
