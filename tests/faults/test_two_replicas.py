"""Two processes under one replica name, and one that slept past its lease: rows and cursor are of one moment, applied once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import broker
from broker.errors import Busy
from broker.sinks.sqlite import SQLite
from tests.faults import replica
from tests.faults.arena import LEASE_SECONDS, OFFERS, Arena, same_rows
from tests.servers import redis_server, temporary_folder, wait_until


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with redis_server() as server, temporary_folder("replicas") as home:
        arena = Arena(home, server.url, settings={"lease_seconds": LEASE_SECONDS})
        yield arena
        arena.stop()


@pytest.fixture(scope="module")
def b(arena: Arena) -> Iterator[broker.Broker]:
    with arena.connect() as connected:
        connected.dataset(OFFERS, key=["sku"]).publish([{"sku": "a", "price": 1}])
        yield connected


def test_of_two_processes_with_one_name_the_second_is_told_that_it_is_busy(b: broker.Broker) -> None:
    sinks = broker.sinks.Memory(), broker.sinks.Memory()
    first, second = (b.replica(OFFERS, name="twice", sink=sink) for sink in sinks)
    slot = b.parts.index.slot(OFFERS)
    with (
        b.parts.leases.held(slot, f"lease:replica:{OFFERS.tenant}/{OFFERS.name}:twice", "the first"),
        pytest.raises(Busy, match="somebody else"),
    ):
        second.sync()
    assert first.sync().version == 1


@pytest.mark.parametrize("step", ["planned", "fetched"])
def test_a_replica_that_slept_past_its_lease_applies_nothing(arena: Arena, b: broker.Broker, step: str) -> None:
    order, offers = f"replica.{step}.pause", b.dataset(OFFERS)
    offers.publish([{"sku": "a", "price": len(step)}, {"sku": step, "price": 2}], delta=True)
    arena.arm(order)
    sleeper = arena.spawn("tests.faults.replica")
    wait_until(lambda: arena.was_hit(order), "the replica to sleep", 60)
    sink = SQLite(arena.home / "replica.sqlite", "offers")
    follower = b.replica(OFFERS, name="search", sink=sink)
    wait_until(lambda: synced(follower), "its lease to lapse", 60)
    offers.publish([{"sku": "b", "price": 3}], delta=True)
    assert follower.sync().version == offers.state.version
    arena.let_go_on()
    assert sleeper.wait(60) == replica.TYPED_ERROR
    held = sink.cursor("search")
    assert held is not None
    assert held.version == offers.state.version
    assert same_rows(sink.read(), offers.read())


def synced(follower: broker.Replica) -> bool:
    try:
        return follower.sync().version > 0
    except Busy:
        return False
