"""Kill -9 at each named step of publishing, fulfilment and replica apply: another process finishes, and P1-P4, P6-P9 hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import broker
from broker import fulfilment, replica
from broker.rules import publishing
from broker.sinks.sqlite import SQLite
from tests.faults.arena import OFFERS, Arena, check_events, check_log, same_rows
from tests.servers import redis_server, temporary_folder, wait_until

CHILD_STEPS = ("upload", *publishing.STEPS, "produced", "derived")
WORKER_STEPS = ("claimed", "closed", "answered")
SINK_STEPS = ("begun", "cursor", "rows", "committed")
ANSWER_SECONDS = 40


def test_every_named_step_of_fulfilment_is_killed_at() -> None:
    assert set(fulfilment.STEPS) <= {*CHILD_STEPS, *WORKER_STEPS}


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with redis_server() as server, temporary_folder("kill") as home:
        arena = Arena(home, server.url)
        for _ in range(2):
            arena.start_worker(children=2)
        try:
            yield arena
        finally:
            arena.stop()


@pytest.fixture(scope="module")
def b(arena: Arena) -> Iterator[broker.Broker]:
    with arena.connect() as connected:
        connected.dataset(OFFERS, key=["sku"])
        arena.set_source(rows_at(0))
        connected.request(OFFERS, target="warm").wait(60)
        yield connected


def rows_at(round_: int) -> list[dict[str, Any]]:
    """Each round changes a row, adds one and drops one."""
    return [{"sku": f"s{n}", "price": (n * 7 + round_ * (n % 3 == 0)) % 100} for n in range(round_, round_ + 20)]


def survive(arena: Arena, b: broker.Broker, order: str, round_: int) -> None:
    """Two requests over a changed source, with the fault on their way: both are answered, once, and all is whole."""
    target = order.replace(".", "-")
    arena.set_source(rows_at(round_))
    arena.arm(order)
    handles = [b.request(OFFERS, target=target), b.request(OFFERS, target=target, where="price < 50", format="arrow")]
    whole, cheap = (handle.wait(ANSWER_SECONDS).table() for handle in handles)
    assert arena.was_hit(order)
    want = rows_at(round_)
    assert sorted(whole.to_pylist(), key=str) == sorted(want, key=str)
    assert sorted(cheap.to_pylist(), key=str) == sorted((row for row in want if row["price"] < 50), key=str)
    check_events(b, handles, target)
    check_log(b)
    arena.replace_dead_workers(children=2)


@pytest.mark.parametrize("step", CHILD_STEPS)
def test_a_child_killed_at_a_step_harms_only_its_attempt(arena: Arena, b: broker.Broker, step: str) -> None:
    survive(arena, b, f"child.{step}.kill", 100 + CHILD_STEPS.index(step))


@pytest.mark.parametrize("step", CHILD_STEPS)
def test_a_worker_killed_while_its_child_is_at_a_step_is_taken_over(arena: Arena, b: broker.Broker, step: str) -> None:
    survive(arena, b, f"child.{step}.orphan", 200 + CHILD_STEPS.index(step))


@pytest.mark.parametrize("step", WORKER_STEPS)
def test_a_worker_killed_at_a_step_of_its_own_is_taken_over(arena: Arena, b: broker.Broker, step: str) -> None:
    survive(arena, b, f"parent.{step}.kill", 300 + WORKER_STEPS.index(step))


@pytest.mark.parametrize("step", [*replica.STEPS, *SINK_STEPS])
def test_a_replica_killed_at_a_step_is_finished_by_the_next_process(arena: Arena, b: broker.Broker, step: str) -> None:
    offers = b.dataset(OFFERS)
    offers.publish(rows_at(400 + [*replica.STEPS, *SINK_STEPS].index(step)), delta=True)
    arena.arm(f"replica.{step}.kill")
    assert arena.spawn("tests.faults.replica").wait(60) == -9
    assert arena.was_hit(f"replica.{step}.kill")
    sink = SQLite(arena.home / "replica.sqlite", "offers")
    held = sink.cursor("search")
    if held is not None and held.version:  # rows and cursor are of one moment, whatever was killed (P7)
        assert same_rows(sink.read(), offers.read(held.version))
    follower = b.replica(OFFERS, name="search", sink=sink)
    wait_until(lambda: synced(follower), "the lease of the dead replica", 20)
    assert same_rows(sink.read(), offers.read())


def synced(follower: broker.Replica) -> bool:
    try:
        return follower.sync().version > 0
    except broker.errors.Busy:
        return False
