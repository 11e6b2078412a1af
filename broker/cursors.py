"""The ledger of live cursors: who reads a dataset, where each stands, and what it proved. The only writer of their keys.

A cursor is reported behind each sync and lives by a lease in Redis' time; the rows and the cursor that count lie in the sink.
When Redis lost its memory nobody is known for a while: `Standing.known_since` says since when the list can be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.backend.client import RedisClient
from broker.backend.index import Index
from broker.backend.lanes import Argument
from broker.model.dataset import Frozen
from broker.model.names import DatasetId
from broker.model.request import Selection

GRACE: Final = 4
"""Leases after whose end a cursor is forgotten altogether; until then it is shown as lapsed."""


class Receipt(Frozen):
    """What a replica proved that it held at a version: rows and digest, of columns with this id (columnar/digest.py)."""

    rows: int
    digest: str
    version: int = 0
    schema_id: str = ""


class LiveCursor(Frozen):
    """Where a consumer stands. `selection` is the fingerprint of what it sees, `where` and `columns` say it; `channel` what it
    follows. `receipt`: its last one, perhaps of an older version."""

    name: str
    version: int
    session: str
    selection: str = "all"
    channel: str = "live"
    where: str | None = None
    columns: tuple[str, ...] | None = None
    receipt: Receipt | None = None

    @property
    def seen(self) -> Selection:
        return Selection(where=self.where, columns=self.columns)


@dataclass(frozen=True, slots=True)
class Held:
    """A cursor as Redis knows it. `left_seconds`: until its lease ends; negative once it has lapsed."""

    cursor: LiveCursor
    left_seconds: float

    @property
    def live(self) -> bool:
        return self.left_seconds > 0


@dataclass(frozen=True, slots=True)
class Standing:
    """All cursors of a dataset, by name, live or lapsed. `known_seconds`: for how long this Redis has remembered cursors."""

    cursors: tuple[Held, ...]
    known_seconds: float

    def lacking_seconds(self, lease_seconds: float) -> float:
        """Until everybody alive has had the time to be known, one full lease since Redis forgot; 0: all are."""
        return max(0.0, lease_seconds - self.known_seconds)


class Cursors:
    """Safe for threads and processes."""

    def __init__(self, redis: RedisClient, index: Index, lease_seconds: float) -> None:
        self._redis, self._index, self.lease_seconds = redis, index, lease_seconds
        self._script = redis.script("cursor", writes=False)  # it may be called again, whatever became of the first call

    def report(self, dataset: DatasetId, cursor: LiveCursor) -> None:
        """Say where a consumer stands; its lease begins anew. Idempotent."""
        args: list[Argument] = [
            "report",
            cursor.name,
            cursor.model_dump_json(exclude_defaults=True),
            int(self.lease_seconds * 1000),
        ]
        self._redis.call(self._script, self._keys(dataset), args)

    def renew(self, dataset: DatasetId, name: str, version: int) -> bool:
        """Begin its lease anew, if it is known to stand at this version. False: it must be reported."""
        args: list[Argument] = ["renew", name, version, int(self.lease_seconds * 1000)]
        return bool(self._redis.call(self._script, self._keys(dataset), args))

    def standing(self, dataset: DatasetId) -> Standing:
        """Who reads the dataset."""
        now, born, *flat = self._redis.call(self._script, self._keys(dataset), ["list", int(GRACE * self.lease_seconds * 1000)])
        held = (
            Held(LiveCursor.model_validate_json(fields), (int(until) - int(now)) / 1000)
            for until, fields in zip(flat[1::3], flat[2::3], strict=True)
        )
        return Standing(tuple(sorted(held, key=lambda held: held.cursor.name)), (int(now) - int(born)) / 1000)

    def forget(self, dataset: DatasetId, name: str) -> bool:
        """Let a consumer go before its lease ends. False: it was not known."""
        return bool(self._redis.run("HDEL", self._index.slot(dataset).cursors(dataset), name))

    def _keys(self, dataset: DatasetId) -> list[bytes]:
        slot = self._index.slot(dataset)
        return [slot.meta, slot.cursors(dataset)]
