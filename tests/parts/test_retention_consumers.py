"""P10 under a crowd: consumers that are live, slow, dead or expired, on a real Redis. Nobody who lives loses a road untold, the
store stays small, and the dead pin nothing for ever."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import pytest

import broker
from broker.compactor import Compactor, Dues
from broker.cursors import Cursors, LiveCursor
from broker.janitor import LATE_SECONDS, Janitor
from broker.model.commit import Edge
from broker.model.names import DatasetId
from broker.retention import Retention
from broker.rules.fold import State
from broker.rules.levels import Levels
from broker.rules.plan import cheapest, plan
from broker.rules.retention import Floors
from broker.sinks.memory import Memory
from broker.stores.memory import MemoryStore
from tests.ledger import broker_over

OFFERS = DatasetId("shop/catalog/offers")
CONSUMERS = int(os.environ.get("BROKER_TEST_CONSUMERS", "1000"))
ROUNDS = int(os.environ.get("BROKER_TEST_ROUNDS", "40"))
KEYS, REPLICAS, FLOOR_VERSIONS = 10_000, 8, 3
Kind = Literal["live", "slow", "dead", "expired"]
KINDS: tuple[Kind, ...] = ("live", "slow", "dead", "expired")
CHANCE: dict[Kind, float] = {"live": 0.3, "slow": 0.03, "dead": 0.3, "expired": 0.3}
"""Of a sync in a round."""


@dataclass
class Consumer:
    """`leaves`: the round from which on it is silent. An expired one comes back later, a dead one never."""

    name: str
    kind: Kind
    leaves: int
    version: int = 0
    lives: bool = True
    replica: broker.Replica | None = None
    sink: Memory | None = None


@dataclass
class Crowd:
    """The parts under test, and everybody who reads."""

    b: broker.Broker
    random: Random
    order: tuple[str, ...] = ()
    consumers: list[Consumer] = field(default_factory=list)
    changes: int = 0
    better_anew: set[int] = field(default_factory=set)
    """Versions from which, once, a snapshot held fewer bytes than any other road to the newest version."""

    def cursors(self, lease_seconds: float) -> Cursors:
        return Cursors(self.b.parts.redis, self.b.parts.index, lease_seconds)

    @property
    def state(self) -> State:
        return self.b.parts.catalog.state(OFFERS)

    def sync(self, consumer: Consumer) -> None:
        """Up to the newest version, and said so. Who lives gets a snapshot only where that is cheaper, or was."""
        state = self.state
        reset = plan(state.edges, consumer.version, state.version, over=state.leads_over).reset if consumer.version else None
        gone = reset == "too-old"
        assert not (gone and consumer.lives) or consumer.version in self.better_anew
        if consumer.replica is not None:
            report = consumer.replica.sync()
            assert report.version == state.version
            assert (report.reset == "too-old") == bool(gone)
        consumer.version, consumer.lives = state.version, True
        self.report(consumer, 3600.0)

    def row(self, key: int) -> dict[str, object]:
        """Every eighth change comes late."""
        at = {"at": self.changes - self.random.choice([0] * 7 + [50])} if self.order else {}
        return {"sku": f"s{key}", "price": self.random.random(), **at}

    def report(self, consumer: Consumer, lease_seconds: float) -> None:
        """A lease of no time: it has lapsed."""
        cursor = LiveCursor(name=consumer.name, version=consumer.version, session=self.state.session)
        self.cursors(lease_seconds).report(OFFERS, cursor)

    def act(self, round: int) -> None:
        for consumer in self.consumers:
            if consumer.kind in ("dead", "expired") and round >= consumer.leaves:
                if consumer.lives:
                    consumer.lives = False
                    self.report(consumer, 0.0)
                if consumer.kind == "expired" and round == consumer.leaves + 12:
                    self.sync(consumer)
                    consumer.leaves = ROUNDS
            elif self.random.random() < CHANCE[consumer.kind]:
                self.sync(consumer)

    def live(self) -> list[Consumer]:
        return [consumer for consumer in self.consumers if consumer.lives]


@pytest.fixture(params=[(), ("at",)], ids=["in-turn", "by-order"])
def crowd(redis_url: str, request: pytest.FixtureRequest) -> Iterator[Crowd]:
    with broker_over(MemoryStore(), redis_url) as b:
        made = Crowd(b, Random(11), request.param)
        rows = [made.row(number) for number in range(KEYS)]
        b.dataset(OFFERS, key=["sku"], order=request.param).publish(rows)
        for number in range(CONSUMERS):
            kind = KINDS[number % len(KINDS)]
            consumer = Consumer(f"{kind}-{number}", kind, leaves=made.random.randint(2, ROUNDS // 2))
            if number < REPLICAS:
                consumer.sink = Memory()
                consumer.replica = b.replica(OFFERS, name=consumer.name, sink=consumer.sink)
            made.consumers.append(consumer)
            made.sync(consumer)
        yield made


def change(crowd: Crowd) -> None:
    """A delta of up to two per cent."""
    crowd.changes += 1
    keys = crowd.random.sample(range(KEYS), crowd.random.randint(1, KEYS // 50))
    gone = {name: value for name, value in crowd.row(keys[0]).items() if name != "price"}
    crowd.b.dataset(OFFERS).publish_delta([crowd.row(key) for key in keys[1:]], [gone])


def led_on(state: State, versions: set[int]) -> dict[int, int]:
    """The bytes of the road from each version to the newest one, of those from where a snapshot does not cost less."""
    known = {at: cheapest(state.edges, at, state.version, over=state.leads_over) for at in versions}
    assert None not in known.values(), "nothing leads to the newest version"
    return {at: cost(road) for at, road in known.items() if not road or road[0].base is not None}


def cost(road: Iterable[Edge] | None) -> int:
    return sum(edge.bytes for edge in road or ())


@pytest.mark.timeout(300)
@pytest.mark.slow(30)
def test_nobody_who_lives_loses_a_road_and_the_store_stays_small(crowd: Crowd) -> None:
    parts = crowd.b.parts
    retention = Retention(parts.catalog, parts.index, parts.leases, crowd.cursors(0), Floors(FLOOR_VERSIONS, 0))
    tools = parts.index, parts.catalog, parts.engine, parts.publication, parts.leases
    compactor = Compactor(*tools, Dues(Levels(snapshot_least_bytes=0), retention.crowded))
    retired = pins = 0
    for round in range(ROUNDS):
        change(crowd)
        crowd.act(round)
        assert compactor.run_once().failed == {}
        before = crowd.state
        done = retention.apply(OFFERS)
        assert done is not None
        retired += len(done.retire)
        after, live = crowd.state, crowd.live()
        stands = {consumer.version for consumer in live}
        was, is_ = led_on(before, stands), led_on(after, stands)
        anew = cost(cheapest(after.edges, None, after.version))
        assert not [at for at in was if at not in is_ and was[at] < anew], (
            "who lives loses no road that costs less than a snapshot"
        )
        assert all(size < anew for at, size in is_.items() if at != after.version)
        crowd.better_anew |= stands - is_.keys()
        whole = max(edge.bytes for edge in after.edges if edge.base is None)
        assert sum(edge.bytes for edge in after.edges) <= 2 * whole + floor_bytes(after)
        pinned_by = {why.removeprefix("cursor ") for why in done.kept.values() if why.startswith("cursor ")}
        assert pinned_by <= {consumer.name for consumer in live}, "whoever does not live pins nothing"
        pins += len(pinned_by)
    assert retired > ROUNDS // 4
    assert pins, "cursors kept roads"
    _the_dead_come_back(crowd)
    _what_is_offered_is_all_that_is_stored(crowd)


def floor_bytes(state: State) -> int:
    """What leads from one of the newest versions to the next, whoever else needs it."""
    first = state.version - FLOOR_VERSIONS
    return sum(edge.bytes for edge in state.edges if edge.base is not None and edge.base >= first)


def _the_dead_come_back(crowd: Crowd) -> None:
    """With a typed reset or without one: equal in the end."""
    truth = {row["sku"]: row["price"] for row in crowd.b.dataset(OFFERS).read().to_pylist()}
    for consumer in crowd.consumers[:REPLICAS]:
        assert consumer.replica is not None
        assert consumer.sink is not None
        report = consumer.replica.sync()
        assert report.reset in (None, "replaced", "too-old")
        assert {row["sku"]: row["price"] for row in consumer.sink.read().to_pylist()} == truth


def _what_is_offered_is_all_that_is_stored(crowd: Crowd) -> None:
    """Once no answer can name the rest."""
    parts = crowd.b.parts
    store = parts.store
    assert isinstance(store, MemoryStore)
    clock = store.clock
    store.clock = lambda: clock() + parts.settings.result_seconds + LATE_SECONDS + 60
    janitor = Janitor(parts.index, parts.catalog, store, parts.leases, parts.settings)
    assert janitor.sweep("janitor").failed == {}
    offered = {file.key for edge in crowd.state.edges for file in edge.files}
    assert {info.key for info in store.list(f"{OFFERS}/data/")} == offered
