"""Mending: workers answer what replicas ask so as to repair themselves, from the sealed files, once for all that hold the same.

    asked ──► content digest by bucket, kept an hour ──► asked again, where that differs ──► the rows as a file by bucket

So a replica fetches the buckets that differ, and no more; who reads the whole version is the broker.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from broker.backend.derived import Derived
from broker.backend.index import Index
from broker.catalog import Catalog
from broker.columnar.buckets import content_id, digest_of_rows, lay_out
from broker.columnar.engine import Engine
from broker.errors import BrokerError
from broker.model.names import derived_key
from broker.repairs import Ask, Repairs
from broker.rules.answering import expiry_hour
from broker.rules.plan import plan
from broker.settings import Settings
from broker.stores.port import ObjectStore

log = logging.getLogger("broker.mending")


@dataclass(frozen=True)
class Mending:
    """Safe to run anywhere, several at once: each ask is answered by one."""

    index: Index
    catalog: Catalog
    engine: Engine
    store: ObjectStore
    derived: Derived
    repairs: Repairs
    settings: Settings

    def run_once(self) -> int:
        """A pass over all that is asked. -> answers"""
        asked = [ask for slot in self.index.slots() for ask in self.repairs.taken(slot)]
        return sum(map(self._answered, asked))

    def _answered(self, ask: Ask) -> bool:
        try:
            self._answer(ask)
        except BrokerError as error:  # who asked does without; the others still wait
            log.warning("%s: replica %s gets no answer about version %d: %s", ask.dataset, ask.replica, ask.version, error)
            return False
        return True

    def _answer(self, ask: Ask) -> None:
        state, chosen = self.catalog.state(ask.dataset), ask.selection
        edges = plan(state.edges, None, ask.version).edges
        id = content_id(state.spec, edges, chosen)
        if self.repairs.content(ask.dataset, id) is None:
            digest = digest_of_rows(self.engine, state.spec.key, self.engine.read(state.spec, edges, chosen))
            self.repairs.keep(ask.dataset, id, digest)
        if ask.rows and self.derived.get(ask.dataset, id, ask.version) is None:
            expires_at = time.time() + self.settings.result_seconds

            def key_of(extension: str) -> str:
                return derived_key(ask.dataset, expiry_hour(expires_at), id, extension)

            edge = lay_out(self.engine, self.store, state.spec, edges, chosen, key_of)
            self.derived.put(ask.dataset, id, ask.version, edge, expires_at)
