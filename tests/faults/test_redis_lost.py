"""Redis loses everything: a rebuild from the object store alone brings back what was sealed, and replicas just go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import broker
from broker.errors import RequestLost
from broker.model import names
from broker.model.names import DatasetId
from broker.sinks import Memory
from tests.ledger import OFFERS, Hand, Source
from tests.servers import RedisServer, redis_server

PRICES = DatasetId("goodstuff_01/pricing/prices")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@pytest.fixture
def b(server: RedisServer, tmp_path: Path) -> Iterator[broker.Broker]:
    """Two datasets of several versions, one with checkpoints below its head."""
    with broker.connect(redis=server.url, store=str(tmp_path / "store"), checkpoint_every=3) as connected:
        for dataset, key in ((OFFERS, "sku"), (PRICES, "id")):
            handle = connected.dataset(dataset, key=[key])
            for round_ in range(4):
                handle.publish([{key: f"k{n}", "price": n * round_} for n in range(round_, round_ + 5)], delta=True)
            handle.hold(version=2, why="audit")
            handle.promote(3, to="production")
            connected.parts.catalog.checkpoint(dataset)
        connected.parts.catalog.close()  # the bell has rung: what it writes is compared, too
        yield connected


def all_there_is(b: broker.Broker) -> dict[str, Any]:
    """Versions, edges, rows of every version, schema, holds and channels of each dataset."""
    return {name: seen_through(b, b.dataset(name)) for name in b.datasets()}


def seen_through(b: broker.Broker, dataset: broker.Dataset) -> list[Any]:
    versions = dataset.versions()
    rows = [sorted(dataset.read(info.version).to_pylist(), key=str) for info in versions]
    plans = [dataset.plan(since=info.version).edges for info in versions]
    live = b"".join(b.parts.store.get(names.notify_key(dataset.id, "live")))
    return [
        versions,
        dataset.state.edges,
        rows,
        plans,
        dataset.spec,
        dataset.state.session,
        dataset.state.position,
        dataset.state.holds,
        dataset.channels(),
        without_seq(live),
    ]


def without_seq(notification: bytes) -> dict[str, Any]:
    """The announcement without the number of the newest record: a barrier moves that."""
    import json

    return {name: value for name, value in json.loads(notification).items() if name != "seq"}


def lose(server: RedisServer, b: broker.Broker, how: str) -> None:
    if how == "flushall":
        b.parts.redis.run("FLUSHALL")
        return
    server.wipe()
    b.parts.redis.close()


@pytest.mark.parametrize("how", ["flushall", "wiped"])
def test_after_a_rebuild_everything_sealed_is_as_before(b: broker.Broker, server: RedisServer, how: str) -> None:
    before = all_there_is(b)
    assert set(before) == {OFFERS, PRICES}
    lose(server, b, how)
    assert {*b.parts.catalog.rebuild()} == {*before, "goodstuff_01/catalog/=channels", "goodstuff_01/pricing/=channels"}
    assert all_there_is(b) == before


def test_a_rebuild_repeated_changes_nothing(b: broker.Broker) -> None:
    b.parts.redis.run("FLUSHALL")
    b.parts.catalog.rebuild()
    seqs = [b.dataset(name).state.seq for name in b.datasets()]
    b.parts.catalog.rebuild()
    assert [b.dataset(name).state.seq for name in b.datasets()] == seqs


@pytest.mark.parametrize("rebuilt", [True, False])
def test_replicas_go_on_without_a_reset(b: broker.Broker, rebuilt: bool) -> None:
    whole, cheap = Memory(), Memory()
    replicas = [b.replica(OFFERS, name="whole", sink=whole), b.replica(OFFERS, name="cheap", sink=cheap, where="price < 5")]
    for replica in replicas:
        replica.sync()
    b.parts.redis.run("FLUSHALL")
    if rebuilt:
        b.parts.catalog.rebuild()
    assert [replica.sync().mode for replica in replicas] == ["up-to-date", "up-to-date"]
    b.dataset(OFFERS).publish([{"sku": "k4", "price": 4}, {"sku": "new", "price": 9}], delta=True)
    for replica in replicas:
        report = replica.sync()
        assert (report.reset, report.edges, report.version) == (None, 1, 5)
    assert dict(whole.rows) == {"k4": {"sku": "k4", "price": 4}, "new": {"sku": "new", "price": 9}}
    assert dict(cheap.rows) == {"k4": {"sku": "k4", "price": 4}}


def test_a_completion_held_from_before_is_a_cursor_for_after(b: broker.Broker) -> None:
    hand = Hand(b.parts, Source([{"sku": "a", "price": 1}]))
    request = b.request(OFFERS, target="search")
    hand.work()
    held = request.wait(1)
    b.parts.redis.run("FLUSHALL")
    with pytest.raises(RequestLost):
        request.status()
    hand.source.rows.append({"sku": "b", "price": 2})
    again = b.request(OFFERS, target="search", since=held.cursor)
    hand.work()
    done = again.wait(1)
    assert (done.mode, done.reset_reason, done.upserts()["sku"].to_pylist()) == ("delta", None, ["b"])


def test_what_workers_wait_for_comes_back_with_the_first_request(b: broker.Broker) -> None:
    b.parts.redis.run("FLUSHALL")
    assert b.parts.index.slots() == []
    hand, request = Hand(b.parts, Source()), b.request(OFFERS, target="search")
    assert [slot.name for slot in b.parts.index.slots()] == ["catalog.0"]
    assert hand.work() == 1
    assert request.wait(1).version == 5


def test_after_a_rebuild_nothing_is_given_up_for_a_whole_cursor_lease(b: broker.Broker) -> None:
    """Cursors are not restored: whoever lives must have the time to say so, and then keeps its road."""
    b.dataset(OFFERS).publish([{"sku": f"k{number}", "price": 0} for number in range(2_000)])  # so that a delta is cheap
    sink = Memory()
    replica = b.replica(OFFERS, name="search", sink=sink)
    replica.sync()
    for price in (1, 2):
        b.dataset(OFFERS).publish_delta([{"sku": "k0", "price": price}])
    before = b.dataset(OFFERS).state.edges
    b.parts.redis.run("FLUSHALL")
    b.parts.catalog.rebuild()
    lease, retention = b.parts.settings.cursor_seconds, b.dataset(OFFERS).retention
    assert lease - 60 < retention.waits_seconds() <= lease
    assert retention.apply() is None
    assert b.dataset(OFFERS).state.edges == before
    meta = b.parts.index.slot(OFFERS).meta
    b.parts.redis.run("HINCRBY", meta, "born", int(-lease * 1000))  # a lease later
    assert retention.waits_seconds() == 0
    assert retention.apply() is not None
    assert replica.sync().reset is None


def test_a_dataset_is_found_also_when_redis_is_lost_again_behind_the_reconciliation(
    b: broker.Broker, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, losses = b.parts.catalog, iter((True, False))
    reconcile, before = catalog.reconcile, catalog.state(PRICES).version

    def lost_again(dataset: DatasetId) -> None:
        reconcile(dataset)
        if next(losses):
            server.flush()

    monkeypatch.setattr(catalog, "reconcile", lost_again)
    server.flush()
    assert catalog.state(PRICES).version == before
