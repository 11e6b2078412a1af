"""What replicas ask so as to repair themselves, and what is known of contents. The only writer of these keys.

    replica: ask ──► `asked` ──► worker: take, answer (mending.py) ──► content digest; where that differs: a file by bucket

All of it is a cache and a bell: who gets no answer reads the version's whole road himself.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Final

from pydantic import ValidationError

from broker.backend.client import RedisClient
from broker.backend.index import Index
from broker.backend.keys import Slot
from broker.columnar.digest import Bucket, ContentDigest
from broker.model.dataset import Frozen
from broker.model.names import DatasetId, Name
from broker.model.request import Selection

log = logging.getLogger("broker.mending")
CONTENT_SECONDS: Final = 3600
"""A digest by bucket is 15 kB of Redis' memory, and is made again when it is asked for again."""
HEEDED_SECONDS: Final = 60
"""For so long after its last pass a worker counts as alive: one answer about many rows takes a while."""


class Ask(Frozen):
    """What a replica would know of a version through a selection: its content digest, or its rows as a file by bucket too."""

    dataset: DatasetId
    replica: Name
    version: int
    where: str | None = None
    columns: tuple[str, ...] | None = None
    rows: bool = False

    @property
    def selection(self) -> Selection:
        return Selection(where=self.where, columns=self.columns)


class Repairs:
    """Safe for threads and processes."""

    def __init__(self, redis: RedisClient, index: Index) -> None:
        self._redis, self._index = redis, index

    def ask(self, ask: Ask) -> bool:
        """Say what is wanted; a replica's newer ask replaces its older one. False: no worker is there to answer."""
        slot = self._index.slot(ask.dataset)
        if not self._redis.run("EXISTS", slot.heeded, writes=False):
            return False
        self._redis.run("HSET", slot.asked, _field(ask), ask.model_dump_json())
        return True

    def withdraw(self, ask: Ask) -> None:
        """Nobody waits for the answer. Idempotent."""
        self._redis.run("HDEL", self._index.slot(ask.dataset).asked, _field(ask))

    def taken(self, slot: Slot) -> list[Ask]:
        """All that is asked in a slot, each given to one caller, who says hereby that asks are heeded."""
        self._redis.run("SET", slot.heeded, 1, "EX", HEEDED_SECONDS)
        found: list[Ask] = []
        asked = self._redis.run("HGETALL", slot.asked, writes=False)
        for field, text in zip(asked[::2], asked[1::2], strict=True):
            if self._redis.run("HDEL", slot.asked, field):
                try:
                    found.append(Ask.model_validate_json(text))
                except ValidationError as error:  # of another release: who asked reads the whole road
                    log.warning("%s: not read: %s", field.decode(), str(error).splitlines()[0])
        return found

    def content(self, dataset: DatasetId, id: str) -> ContentDigest | None:
        """The digest of a content (`content_id`), if it was kept within the hour."""
        text = self._redis.run("GET", self._index.slot(dataset).content(dataset, id), writes=False)
        if text is None:
            return None
        known = json.loads(text)
        return ContentDigest(**known | {"buckets": tuple(Bucket(*fields) for fields in known["buckets"])})

    def keep(self, dataset: DatasetId, id: str, digest: ContentDigest) -> None:
        fields = asdict(digest) | {"buckets": [tuple(asdict(bucket).values()) for bucket in digest.buckets]}
        self._redis.run("SET", self._index.slot(dataset).content(dataset, id), json.dumps(fields), "EX", CONTENT_SECONDS)


def _field(ask: Ask) -> str:
    return f"{ask.dataset}|{ask.replica}"
