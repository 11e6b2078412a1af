"""Which derived files exist: one hash a dataset, one field a selection, holding the newest version it was made for."""

from __future__ import annotations

import json
import time

from broker.backend.client import RedisClient
from broker.backend.index import Index
from broker.model.commit import Edge
from broker.model.names import DatasetId


class Derived:
    """A cache: losing it costs another derivation. Entries past half their life are made anew, so a reader has time."""

    def __init__(self, redis: RedisClient, index: Index, result_seconds: float) -> None:
        self._redis, self._index, self._result_seconds = redis, index, result_seconds

    def get(self, dataset: DatasetId, fingerprint: str, version: int) -> tuple[Edge, float] | None:
        """The edge and until when its files stay, for exactly this version."""
        text = self._redis.run("HGET", self._key(dataset), fingerprint, writes=False)
        if text is None:
            return None
        known = json.loads(text)
        if known["version"] != version or known["expires_at"] < time.time() + self._result_seconds / 2:
            return None
        return Edge.model_validate(known["edge"]), known["expires_at"]

    def put(self, dataset: DatasetId, fingerprint: str, version: int, edge: Edge, expires_at: float) -> None:
        fields = {"version": version, "expires_at": expires_at, "edge": edge.model_dump(mode="json")}
        self._redis.run("HSET", self._key(dataset), fingerprint, json.dumps(fields))
        self._redis.run("EXPIRE", self._key(dataset), int(self._result_seconds))

    def _key(self, dataset: DatasetId) -> bytes:
        return self._index.slot(dataset).key(f"derived:{dataset.tenant}/{dataset.name}")
