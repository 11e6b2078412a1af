"""Redis as the publishing scripts see it: broker/backend/scripts/*.lua in Python, over hashes that are never changed in place.

`history` keeps every state there was, as an append-only file would: a restart may come back with an older one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from broker.model.commit import GENESIS, Barrier, Fence, Record, digest, parse_record
from broker.rules.fold import State
from broker.rules.patch import TABLES, Patch, Table, Tables, patch_of
from broker.rules.publishing import HeadView, Lease, PublishAnswer, Reserve, ReserveAnswer

DATASET = "t/d/simulated"
MAX_AGE_SECONDS = 12 * 3600.0
"""Of files at reserve."""
LOCAL = ("run_id", "reserved_seq", "reserved_data", "reserved_at")
"""Fields of the head that are Redis' own and not of the log."""

Hash = dict[str, Any]
"""Text by field; of a stream: an entry's fields by its id, in their order."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A record's bytes with what they mean."""

    data: bytes
    record: Record
    sha: str
    patch: Patch

    @classmethod
    def of(cls, data: bytes) -> Sealed:
        record, sha = parse_record(data, "simulated log"), digest(data)
        return cls(data, record, sha, patch_of(record, sha))


class Server:
    """What the logs of one Redis share. `now` is its time in seconds."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.run = "run1"
        self.runs = 1
        self.db: dict[str, Hash] = {}
        self.history: list[dict[str, Hash]] = [self.db]

    # --- commands

    def get(self, key: str, name: str) -> str | None:
        return self.db.get(key, {}).get(name)

    def put(self, key: str, **fields: Any) -> None:
        self.db = {**self.db, key: {**self.db.get(key, {}), **fields}}

    def drop(self, key: str, *names: str) -> None:
        self.db = {**self.db, key: {name: text for name, text in self.db.get(key, {}).items() if name not in names}}

    def remember(self) -> None:
        """A point to which a crash may fall back."""
        if self.db is not self.history[-1]:
            self.history.append(self.db)

    # --- prelude.lua

    def incarnation(self, meta: str = "meta") -> tuple[str, str]:
        """`meta`: each slot has its own."""
        known = self.db.get(meta, {})
        if known.get("run_id") == self.run:
            return identity(self.run, known["epoch"]), known["epoch"]
        epoch = str(max(int(known.get("epoch", 0)) + 1, int(self.now * 1000)))
        self.put(meta, run_id=self.run, epoch=epoch)
        return identity(self.run, epoch), epoch

    # --- what befalls a server

    def restart(self, writes_lost: int = 0) -> None:
        """A new run id, and the state of `writes_lost` writes ago."""
        self.runs += 1
        self.run = f"run{self.runs}"
        self.history = self.history[: max(1, len(self.history) - writes_lost)]
        self.db = self.history[-1]

    def wipe(self) -> None:
        """A restart without its file."""
        self.restart(len(self.history))

    def flush(self) -> None:
        """FLUSHALL: everything is gone, and the run id stays."""
        self.db = {}
        self.history = [self.db]


class ModelRedis:
    """The slot of one log, of which a server may have several; every method is one atomic script."""

    def __init__(self, server: Server | None = None, log: str = DATASET) -> None:
        self.server, self.log = server or Server(), log
        self.names: dict[Table, str] = {name: f"{name}:{log}" for name in TABLES}
        self.head = self.names["head"]

    @property
    def now(self) -> float:
        return self.server.now

    @property
    def db(self) -> dict[str, Hash]:
        return self.server.db

    # --- prelude.lua

    def incarnation(self) -> tuple[str, str]:
        return self.server.incarnation()

    def outgrow(self, epoch: int) -> None:
        """A log of another incarnation whose clock was ahead."""
        if epoch >= int(self.incarnation()[1]):
            self.server.put("meta", epoch=str(epoch + 1))

    def holds(self, lease: Lease) -> bool:
        kept = self.db.get(f"lease:{lease.name}", {})
        _, current = self.incarnation()
        epoch, counter = map(str, lease.fence)
        same = kept.get("epoch") == epoch and kept.get("counter") == counter and epoch == current
        return same and float(kept["until"]) > self.now

    # --- leases

    def acquire(self, name: str, owner: str, seconds: float) -> Lease | None:
        _, epoch = self.incarnation()
        kept = self.db.get(f"lease:{name}", {})
        if kept and kept["owner"] != owner and kept["epoch"] == epoch and float(kept["until"]) > self.now:
            return None
        counter = int(self.server.get("meta", "counter") or 0) + 1
        self.server.put("meta", counter=str(counter))
        self.server.put(f"lease:{name}", owner=owner, epoch=epoch, counter=str(counter), until=repr(self.now + seconds))
        return Lease(name, owner, Fence(int(epoch), counter))

    def renew(self, lease: Lease, seconds: float) -> bool:
        """`seconds` 0 releases it."""
        if not self.holds(lease):
            return False
        if seconds:
            self.server.put(f"lease:{lease.name}", until=repr(self.now + seconds))
        else:
            self.server.db = {key: fields for key, fields in self.db.items() if key != f"lease:{lease.name}"}
        return True

    # --- the projection

    @property
    def tables(self) -> Tables:
        return {name: self.db.get(self.names[name], {}) for name in TABLES}

    @property
    def seq(self) -> int:
        return int(self.server.get(self.head, "seq") or 0)

    @property
    def current(self) -> bool:
        """Whether readers take the projection for good; unlike the scripts it writes nothing."""
        epoch = self.server.get("meta", "epoch")
        known = self.server.get("meta", "run_id") == self.server.run and epoch is not None
        return known and self.server.get(self.head, "run_id") == identity(self.server.run, str(epoch))

    def read_head(self) -> HeadView:
        run, epoch = self.incarnation()
        head = self.db.get(self.head, {})
        reserved = int(head.get("reserved_seq", 0))
        reservation = (reserved, head["reserved_data"].encode()) if reserved > self.seq else None
        tables = self.tables
        tables["head"] = {name: text for name, text in head.items() if name not in LOCAL}
        return HeadView(State(self.log, tables), head.get("run_id") == run, run, int(epoch), reservation)

    def reserve(self, wish: Reserve) -> ReserveAnswer:
        refusal = self.reserve_refusal(wish)
        if refusal:
            return ReserveAnswer(refusal)
        self.server.put(self.head, reserved_seq=str(wish.seq), reserved_data=wish.data.decode(), reserved_at=repr(self.now))
        if wish.ends_lease and wish.lease is not None:
            self.renew(wish.lease, 0)
        return ReserveAnswer("reserved")

    def reserve_refusal(self, wish: Reserve) -> Literal["refused", "fenced", "too-old"] | None:
        run, _ = self.incarnation()
        if self.server.get(self.head, "run_id") != run or not self.head_expected(wish):
            return "refused"
        if wish.lease is not None and not self.holds(wish.lease):
            return "fenced"
        return "too-old" if wish.age_seconds > MAX_AGE_SECONDS else None

    def head_expected(self, wish: Reserve) -> bool:
        head = self.db.get(self.head, {})
        if self.seq != wish.seq - 1 or head.get("sha", GENESIS) != wish.previous:
            return False
        return int(head.get("reserved_seq", 0)) <= self.seq

    def publish(self, sealed: Sealed) -> PublishAnswer:
        want, head = sealed.record.seq, self.db.get(self.head, {})
        if self.seq >= want:
            return PublishAnswer("published")
        if self.seq < want - 1:
            return PublishAnswer("behind")
        if head.get("sha", GENESIS) != sealed.record.previous:
            return PublishAnswer("differs")
        self._patch(sealed.patch)
        if int(head.get("reserved_seq", want + 1)) <= want:
            self.server.drop(self.head, "reserved_seq", "reserved_data", "reserved_at")
        body = sealed.record.body
        if isinstance(body, Barrier):
            if self.incarnation()[0] == body.run_id:
                self.server.put(self.head, run_id=body.run_id)
            else:
                self.outgrow(body.epoch)
        return PublishAnswer("published")

    def _patch(self, patch: Patch) -> None:
        emptied = {self.names[table] for table in patch.clear}
        self.server.db = {key: {} if key in emptied else fields for key, fields in self.db.items()}
        for table, names in patch.drop.items():
            self.server.drop(self.names[table], *names)
        for table, fields in patch.put.items():
            self.server.put(self.names[table], **fields)

    def install(self, state: State, adopt: str | None) -> None:
        if state.seq == 0:
            if self.seq == 0 and adopt == self.incarnation()[0]:
                self.server.put(self.head, run_id=self.incarnation()[0])
        elif self.seq < state.seq:
            self.outgrow(int(state.head.get("epoch", -1)))
            self.server.db = {**self.db, **{self.names[name]: dict(state.tables[name]) for name in TABLES}}


def identity(run: str, epoch: str) -> str:
    """What `incarnation()` of prelude.lua answers first. The epoch belongs to it: FLUSHALL keeps the run id."""
    return f"{run}:{epoch}"
