"""Which derived files exist: one key a dataset, selection and version, which ends with the files."""

from __future__ import annotations

import json
import time
from typing import Final

from broker.backend.client import RedisClient
from broker.backend.index import Index
from broker.model.commit import Edge
from broker.model.names import DatasetId

KNOWN: Final = 1_024
"""Selections a process remembers by itself: many requests of one selection are then answered without asking Redis."""


class Derived:
    """A cache: losing it costs another derivation. Entries past half their life are made anew, so a reader has time."""

    def __init__(self, redis: RedisClient, index: Index, result_seconds: float) -> None:
        self._redis, self._index, self._result_seconds = redis, index, result_seconds
        self._known: dict[tuple[DatasetId, str], tuple[int, Edge, float]] = {}

    def get(self, dataset: DatasetId, fingerprint: str, version: int) -> tuple[Edge, float] | None:
        """The edge and until when its files stay, for exactly this version."""
        found = self._known.get((dataset, fingerprint))
        if found is None or found[0] != version or not self._lasts(found[2]):
            found = self._ask(dataset, fingerprint, version)
        return found[1:] if found and found[0] == version and self._lasts(found[2]) else None

    def put(self, dataset: DatasetId, fingerprint: str, version: int, edge: Edge, expires_at: float) -> None:
        text = json.dumps({"expires_at": expires_at, "edge": edge.model_dump(mode="json")})
        seconds = max(1, int(expires_at - time.time()))
        self._redis.run("SET", self._key(dataset, fingerprint, version), text, "EX", seconds)

    def _ask(self, dataset: DatasetId, fingerprint: str, version: int) -> tuple[int, Edge, float] | None:
        text = self._redis.run("GET", self._key(dataset, fingerprint, version), writes=False)
        if text is None:
            return None
        known = json.loads(text)
        found = version, Edge.model_validate(known["edge"]), float(known["expires_at"])
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[dataset, fingerprint] = found
        return found

    def _lasts(self, expires_at: float) -> bool:
        return expires_at >= time.time() + self._result_seconds / 2

    def _key(self, dataset: DatasetId, fingerprint: str, version: int) -> bytes:
        return self._index.slot(dataset).derived(dataset, fingerprint, version)
