"""The simulator proves something about the product only while its Redis is the product's: the same calls, the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import pytest

from broker.backend.client import RedisClient
from broker.backend.index import VOLATILE, Index, Move
from broker.backend.leases import Leases
from broker.errors import Busy, Fenced
from broker.model.commit import GENESIS, Barrier, Body, Create, Hold, Record, digest, parse_record
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.rules.fold import State, replay
from broker.rules.patch import TABLES, patch_of
from broker.rules.publishing import Lease, PublishAnswer, Reserve, ReserveAnswer
from tests.servers import RedisServer, redis_server
from tests.simulator.redis_model import DATASET, LOCAL, MAX_AGE_SECONDS, ModelRedis, Sealed

LEASE_SECONDS = 600.0
ID = DatasetId(DATASET)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reader sees, without the ids that differ between two servers."""

    seq: int
    current: bool
    reserved: int | None


class Side(Protocol):
    """One of the two: the calls a schedule makes."""

    def look(self) -> tuple[Seen, str]: ...
    def reserve(self, wish: Reserve) -> ReserveAnswer: ...
    def publish(self, data: bytes) -> PublishAnswer: ...
    def install(self, state: State, adopt: str | None) -> None: ...
    def acquire(self, name: str, owner: str) -> Lease | None: ...
    def renew(self, lease: Lease, release: bool) -> bool: ...
    def tables(self) -> dict[str, dict[str, str]]: ...
    def restart(self) -> None: ...
    def flush(self) -> None: ...


class Model:
    def __init__(self) -> None:
        self.redis = ModelRedis()

    def look(self) -> tuple[Seen, str]:
        view = self.redis.read_head()
        return Seen(view.state.seq, view.current, view.reservation and view.reservation[0]), view.run_id

    def reserve(self, wish: Reserve) -> ReserveAnswer:
        return self.redis.reserve(wish)

    def publish(self, data: bytes) -> PublishAnswer:
        return self.redis.publish(Sealed.of(data))

    def install(self, state: State, adopt: str | None) -> None:
        self.redis.install(state, adopt)

    def acquire(self, name: str, owner: str) -> Lease | None:
        return self.redis.acquire(name, owner, LEASE_SECONDS)

    def renew(self, lease: Lease, release: bool) -> bool:
        return self.redis.renew(lease, 0 if release else LEASE_SECONDS)

    def tables(self) -> dict[str, dict[str, str]]:
        return {name: {k: v for k, v in self.redis.tables[name].items() if k not in LOCAL} for name in TABLES}

    def restart(self) -> None:
        """As on the real side: the server's own id stays."""
        self.redis.server.now += 1.0
        self.redis.server.put("meta", run_id="0" * 40)

    def flush(self) -> None:
        self.redis.server.now += 1.0
        self.redis.server.flush()


class Real:
    def __init__(self, server: RedisServer, client: RedisClient) -> None:
        self.server, self.client = server, client
        self.index, self.leases = Index(client, shards=1), Leases(client, LEASE_SECONDS)
        self.slot = self.index.slot(ID)

    def look(self) -> tuple[Seen, str]:
        head = self.index.head(ID)
        return Seen(head.seq, head.current, head.reservation and head.reservation[0]), head.run_id

    def reserve(self, wish: Reserve) -> ReserveAnswer:
        return self.index.reserve(ID, wish, MAX_AGE_SECONDS)

    def publish(self, data: bytes) -> PublishAnswer:
        record = parse_record(data, "test")
        barrier = record.body.run_id if isinstance(record.body, Barrier) else ""
        return self.index.publish(Move(ID, record.seq, record.previous, patch_of(record, digest(data)), barrier))

    def install(self, state: State, adopt: str | None) -> None:
        self.index.install(ID, state, adopt or "")

    def acquire(self, name: str, owner: str) -> Lease | None:
        try:
            return self.leases.acquire(self.slot, name, owner)
        except Busy:
            return None

    def renew(self, lease: Lease, release: bool) -> bool:
        if release:
            self.leases.release(self.slot, lease)
            return True
        with suppress(Fenced):
            self.leases.renew(self.slot, lease)
            return True
        return False

    def tables(self) -> dict[str, dict[str, str]]:
        tables = self.index.load(ID).tables
        return {name: {k: v for k, v in tables[name].items() if k not in VOLATILE} for name in TABLES}

    def restart(self) -> None:
        """What a script sees of a restart: the id it stored is not the server's."""
        self.client.run("HSET", self.slot.meta, "run_id", "0" * 40)

    def flush(self) -> None:
        self.server.flush()


@dataclass(slots=True)
class Schedule:
    """Random calls to one side. Two with one seed make the same calls; what they write names their own ids and hashes."""

    side: Side
    random: Random
    flushes: bool
    log: list[bytes] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def step(self) -> object:
        """One call; its answer, in words that are the same on both sides."""
        name = self.random.choice(STEPS)
        return name, STEPS_BY_NAME[name](self)

    def record(self, seq: int, body: Body, previous: str | None = None) -> bytes:
        known = digest(self.log[seq - 2]) if 2 <= seq <= len(self.log) + 1 else GENESIS
        return Record(seq=seq, previous=previous or known, write_id="w", time=1.0, body=body).to_bytes()

    def look(self) -> object:
        seen, run = self.side.look()
        if run not in self.runs:
            self.runs.append(run)
        return seen, self.runs.index(run)

    def reserve(self) -> object:
        seq = max(1, len(self.log) + 1 + self.random.choice((0, 0, 0, -1, 1)))
        lease = self.random.choice([None, *self.leases[-3:]])
        age = self.random.choice((0.0, 0.0, MAX_AGE_SECONDS + 1))
        data = self.record(seq, Hold(name=f"h{seq}", version=0))
        previous = self.random.choice((parse_record(data, "test").previous,) * 4 + ("f" * 64,))
        ends = lease is not None and self.random.random() < 0.3
        return self.side.reserve(Reserve(seq, previous, data, lease, age, ends)).kind

    def seal(self) -> object:
        """The log grows by what any writer may have sealed."""
        seq = len(self.log) + 1
        run = self.random.choice(self.runs or ["x"]) if self.random.random() < 0.7 else self.side.look()[1]
        ahead = self.random.choice((1, 1, 10**15, 10**15 + 7))  # of both servers' clocks
        barrier = Barrier(run_id=run, epoch=ahead)
        hold = Hold(name=f"h{seq}", version=0)
        self.log.append(self.record(seq, CREATE if seq == 1 else self.random.choice((barrier, hold))))
        return None

    def publish(self) -> object:
        number = self.random.randint(0, len(self.log) - 1) if self.log else None
        seen, _ = self.side.look()
        following = seen.seq if seen.seq < len(self.log) else None
        at = self.random.choice((number, following, following))
        return None if at is None else self.side.publish(self.log[at]).kind

    def differ(self) -> object:
        seq = self.side.look()[0].seq + 1
        return self.side.publish(self.record(seq, Hold(name="x", version=0), previous="e" * 64)).kind

    def install(self) -> object:
        upto = self.random.randint(0, len(self.log))
        adopt = self.random.choice((self.side.look()[1], "stranger"))
        self.side.install(replay(DATASET, self.log[:upto]), adopt if upto == 0 else None)
        return None

    def acquire(self) -> object:
        lease = self.side.acquire("writer", self.random.choice(("a", "b")))
        self.leases += [lease] if lease else []
        return lease and lease.owner

    def renew(self) -> object:
        which, release = self.random.random(), self.random.random() < 0.2
        if not self.leases:
            return None
        done = self.side.renew(self.leases[int(which * len(self.leases))], release)
        return done or release

    def upset(self) -> object:
        if self.random.random() < 0.5:
            self.side.restart()
        elif self.flushes:
            self.side.flush()
        return None


CREATE = Create(session="s", spec=DatasetSpec(dataset=ID, key=("id",)))
STEPS_BY_NAME: dict[str, Callable[[Schedule], Any]] = {
    "look": Schedule.look, "reserve": Schedule.reserve, "seal": Schedule.seal, "publish": Schedule.publish,
    "differ": Schedule.differ, "install": Schedule.install, "acquire": Schedule.acquire, "renew": Schedule.renew,
    "upset": Schedule.upset,
}  # fmt: skip
STEPS = (
    ["look"] * 3 + ["reserve"] * 5 + ["seal"] * 3 + ["publish"] * 5 + ["differ", "install", "upset"] + ["acquire", "renew"] * 2
)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def compare(server: RedisServer, flushes: bool, seeds: range) -> set[str]:
    """Run both sides step by step; the answers seen."""
    seen = set[str]()
    with RedisClient.open(server.url) as client:
        for seed in seeds:
            server.flush()
            model, real = (
                Schedule(side := Model(), Random(seed), flushes),
                Schedule(Real(server, client), Random(seed), flushes),
            )
            for number in range(60):
                mine, theirs = model.step(), real.step()
                side.redis.server.remember()
                assert mine == theirs, f"seed {seed}, step {number}"
                assert model.look() == real.look(), f"seed {seed}, after step {number}: {mine}"
                seen.add(str(mine))
            assert {k: len(v) for k, v in model.side.tables().items()} == {k: len(v) for k, v in real.side.tables().items()}
    return seen


def test_the_model_answers_as_the_scripts_do(server: RedisServer) -> None:
    seen = compare(server, flushes=False, seeds=range(60))
    for answer in ("reserved", "refused", "fenced", "too-old"):
        assert f"('reserve', '{answer}')" in seen
    for answer in ("published", "behind", "differs"):
        assert any(f"'{answer}')" in text for text in seen), answer


def test_the_model_answers_as_the_scripts_do_when_redis_is_flushed(server: RedisServer) -> None:
    compare(server, flushes=True, seeds=range(60))
