"""Compaction: shorter roads to the same content, at every version, from every version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import broker
from broker.backend.keys import compact_lease
from broker.columnar.engine import EVERYTHING
from broker.compactor import Compactor, CompactReport, Dues
from broker.errors import Busy, Corrupt
from broker.model.commit import Edge, Retire
from broker.model.names import DatasetId, data_key
from broker.rules.fold import State
from broker.rules.levels import Levels
from broker.rules.plan import plan
from broker.sinks.memory import Memory

OFFERS = DatasetId("shop/catalog/offers")
KEYS = 12


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path) as opened:
        yield opened


def compactor(
    b: broker.Broker, factor: int = 2, ratio: float = 0.5, crowded: Callable[[State], int | None] | None = None
) -> Compactor:
    parts = b.parts
    tools = parts.index, parts.catalog, parts.engine, parts.publication, parts.leases
    return Compactor(*tools, Dues(Levels(factor, ratio, 0), crowded))


def published(b: broker.Broker, versions: int, order: list[str]) -> list[dict[str, Any]]:
    """A history of random changes, late ones among them; the content of each version, from 1 on."""
    random, offers = Random(7), b.dataset(OFFERS, key=["sku"], order=order)
    offers.publish([{"sku": f"s{key}", "at": 0, "price": 0} for key in range(KEYS)])
    contents = [content(offers)]
    for version in range(2, versions + 1):
        keys = random.sample(range(KEYS), 5)
        changes = [{"sku": f"s{key}", "at": random.randint(0, 9), "price": version} for key in keys[:3]]
        deletes = [{"sku": f"s{key}"} | ({"at": random.randint(0, 9)} if order else {}) for key in keys[3:]]
        offers.publish_delta(changes, deletes)
        contents.append(content(offers))
    return contents


def content(dataset: broker.Dataset, version: int | None = None) -> dict[str, Any]:
    return {row["sku"]: (row["at"], row["price"]) for row in dataset.read(version).to_pylist()}


def pairs(dataset: broker.Dataset) -> set[tuple[int | None, int]]:
    return {(edge.base, edge.version) for edge in dataset.state.edges}


@pytest.mark.parametrize("order", [[], ["at"]], ids=["without order", "with order"])
def test_every_version_reads_as_before_over_fewer_edges(b: broker.Broker, order: list[str]) -> None:
    contents = published(b, 17, order)
    offers, before = b.dataset(OFFERS, key=["sku"], order=order), len(b.dataset(OFFERS, key=["sku"], order=order).plan().edges)
    report = compactor(b).run_once()
    assert report.failed == {}
    assert report.roll_ups >= 8
    assert len(offers.plan().edges) < before
    assert [content(offers, version) for version in range(1, 18)] == contents
    assert offers.state.version == 17  # edges, never versions


@pytest.mark.parametrize("order", [[], ["at"]], ids=["without order", "with order"])
def test_a_replica_that_takes_roll_ups_holds_what_one_that_took_every_delta_holds(b: broker.Broker, order: list[str]) -> None:
    published(b, 9, order)
    state, engine = b.dataset(OFFERS, key=["sku"], order=order).state, b.parts.engine
    merged = [edge for edge in _after(b).edges if edge.base is not None and edge.version - edge.base > 1]
    assert merged
    for roll_up in merged:
        deltas = [
            edge for version in range(roll_up.base + 1, roll_up.version + 1) if (edge := state.edge(version - 1, version))
        ]
        assert _ends_in(engine, state, [roll_up]) == _ends_in(engine, state, deltas)


def _after(b: broker.Broker) -> Any:
    compactor(b).run_once()
    return b.parts.catalog.state(OFFERS)


def _ends_in(engine: Any, state: Any, edges: list[Edge]) -> list[dict[str, Any]]:
    """The content behind `edges`, from the snapshot on by way of single deltas."""
    road = [edge for edge in plan(state.edges, None, edges[0].base or 0).edges] if edges[0].base else []
    rows = engine.read(state.spec, [*road, *edges], EVERYTHING).read_all().to_pylist()
    return sorted(rows, key=lambda row: str(row["sku"]))


def test_a_second_pass_finds_nothing_to_do(b: broker.Broker) -> None:
    published(b, 9, [])
    assert compactor(b).run_once().roll_ups
    again = compactor(b).run_once()
    assert (again.roll_ups, again.snapshots) == (0, 0)


def test_a_fresh_snapshot_comes_when_the_deltas_grow_heavy(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": "a", "price": 1}])
    for price in range(3):
        offers.publish_delta([{"sku": "a", "price": price}])
    assert compactor(b, factor=100, ratio=0.1).run_once().snapshots == 1
    assert (None, 4) in pairs(offers)
    assert offers.plan().edges == (offers.state.edge(None, 4),)


def test_a_dataset_whose_head_stands_still_is_not_looked_at_again(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    published(b, 5, [])
    duty = compactor(b)
    duty.run_once()
    monkeypatch.setattr(duty, "compact", lambda dataset: pytest.fail(f"{dataset} was looked at"))
    duty.run_once()


def test_while_another_compacts_the_dataset_it_is_left_alone(b: broker.Broker) -> None:
    published(b, 5, [])
    with b.parts.leases.held(b.parts.index.slot(OFFERS), compact_lease(OFFERS), "another"):
        with pytest.raises(Busy):
            next(compactor(b).compact(OFFERS))
        assert compactor(b).run_once().roll_ups == 0
    assert compactor(b).run_once().roll_ups


def test_a_dropped_dataset_is_no_failure_and_has_its_turn_again_when_it_is_made_anew(b: broker.Broker) -> None:
    published(b, 5, [])
    duty = compactor(b)
    b.dataset(OFFERS).drop()
    for _ in range(2):
        assert duty.run_once() == CompactReport()
    published(b, 5, [])
    assert duty.run_once().roll_ups


def test_a_dataset_that_fails_is_left_alone_longer_each_time_and_the_others_are_not(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    duty, compact, tried, now = compactor(b), Compactor.compact, list[DatasetId](), [0.0]
    monkeypatch.setattr("broker.pauses.time", SimpleNamespace(monotonic=lambda: now[0]))
    other = b.dataset("shop/catalog/stock", key=["sku"])

    def broken(self: Compactor, dataset: DatasetId, *rest: Any) -> Any:
        tried.append(dataset)
        if dataset == OFFERS:
            raise Corrupt("not what was sealed", of=dataset)
        return compact(self, dataset, *rest)

    monkeypatch.setattr(Compactor, "compact", broken)
    published(b, 5, [])
    for seconds in (0, 0, 0.5, 0.5, 0.5, 1.4, 0.2):
        other.publish([{"sku": "a"}])
        now[0] += seconds
        duty.run_once()
    assert tried.count(OFFERS) == 3, "at 0, 1 and 3 seconds, and not between"
    assert tried.count(other.id) == 7
    monkeypatch.setattr(Compactor, "compact", compact)
    assert duty.run_once().roll_ups == 0
    now[0] += 4
    assert duty.run_once().roll_ups


def test_a_session_that_ended_while_its_edges_were_merged_gets_none_of_them(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(b, 5, [])
    offers, duty = b.dataset(OFFERS, key=["sku"]), compactor(b)
    derive = b.parts.engine.derive

    def and_dropped(*args: Any) -> Edge:
        edge = derive(*args)
        offers.drop()
        b.dataset(OFFERS, key=["sku"]).publish([{"sku": "z", "at": 0, "price": 0}])
        return edge

    monkeypatch.setattr(b.parts.engine, "derive", and_dropped)
    assert list(duty.compact(OFFERS)) == []
    assert pairs(offers) == {(None, 6)}


def test_a_replica_far_behind_takes_the_roll_ups(b: broker.Broker) -> None:
    contents = published(b, 4, [])
    sink = Memory()
    replica = b.replica(OFFERS, name="slow", sink=sink)
    replica.sync()
    offers = b.dataset(OFFERS, key=["sku"])
    for price in range(12):
        offers.publish_delta([{"sku": "s0", "at": 0, "price": price}])
    compactor(b, ratio=1e9).run_once()
    report = replica.sync()
    assert report.edges < 12
    assert report.reset is None
    assert {row["sku"]: (row["at"], row["price"]) for row in sink.read().to_pylist()} == contents[-1] | {"s0": (0, 11)}


@pytest.mark.parametrize("tombstone_seconds", [0, 1000])
def test_where_readers_keep_too_much_an_edge_is_settled_that_holds_nothing_late(
    b: broker.Broker, tombstone_seconds: int
) -> None:
    """Whether or not the snapshot still has the tombstone that refused it."""
    offers = b.dataset(OFFERS, key=["sku"], order=["at"], tombstone_seconds=tombstone_seconds)
    offers.publish([{"sku": sku, "at": 5} for sku in ("gone", "stays", "kept", "dies")])
    offers.publish_delta(None, [{"sku": "gone", "at": 9}])
    offers.publish_delta([{"sku": "gone", "at": 3}, {"sku": "kept", "at": 4}, {"sku": "new", "at": 1}])
    offers.publish_delta([{"sku": "stays", "at": 6}])
    offers.publish_delta([{"sku": "stays", "at": 7}], [{"sku": "dies", "at": 8}])
    compactor(b, factor=3, ratio=0.0).run_once()
    duty = compactor(b, ratio=0.0, crowded=lambda _: 2)
    works = list(duty.compact(OFFERS))
    edge = offers.state.edge(2, 5)
    assert edge is not None
    assert (works[-1].settled, edge.settled) == (offers.state.snapshot, True)
    assert {file.role: file.rows for file in edge.files} == {"upserts": 2, "deletes": 1}
    assert duty.owed(OFFERS) == compactor(b, ratio=0.0, crowded=lambda _: 2).owed(OFFERS) == []
    found = plan([edge], 4, 5)
    assert (found.base, found.edges) == (4, (edge,)), "it leads who stands between, too"
    key_of = partial(data_key, OFFERS)
    held = [edge for edge in offers.state.edges if edge.version <= 4 and edge.base in (None, edge.version - 1)]
    answer = b.parts.engine.derive(offers.spec, found.edges, EVERYTHING, "parquet", key_of, held)
    assert (answer.base, answer.version) == (4, 5), "and an answer made of it begins where that one stands"


def test_an_edge_that_retention_found_of_no_use_is_not_settled_again(b: broker.Broker) -> None:
    published(b, 4, ["at"])
    offers = b.dataset(OFFERS)

    def settled() -> set[tuple[int | None, int]]:
        compactor(b, factor=100, ratio=0.0, crowded=lambda _: 2).run_once()
        return {(edge.base, edge.version) for edge in offers.state.edges if edge.settled}

    assert settled() == {(2, 4)}
    assert offers.retention.apply() is None, "not all cursors are known"
    b.parts.catalog.commit(OFFERS, lambda _: Retire(edges=((2, 4),), settled_until=4), "retention")
    assert settled() == set()
    offers.publish_delta([{"sku": "s0", "at": 10, "price": 0}])
    assert settled() == {(2, 5)}, "another snapshot, another edge"
