"""A dataset that begins anew (dropped and created again, or altered by force), and writers that meet on its first version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import broker
from broker.errors import Fenced, StaleBase
from broker.flights import Flight
from broker.fulfilment import Maker
from broker.model.commit import Fence
from broker.model.names import DatasetId
from broker.outcomes import ProductionRequest
from broker.publication import Note
from broker.rules.publishing import Lease

DATASET = "goodstuff_01/catalog/offers"


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as connection:
        yield connection


def created_again(b: broker.Broker) -> broker.Dataset:
    """A dataset in its second session, without a version in it."""
    dataset = b.dataset(DATASET, key="sku")
    dataset.publish([{"sku": "old", "n": 1}], position={"lsn": 1})
    dataset.drop()
    return b.dataset(DATASET, key="sku")


def forced(b: broker.Broker) -> broker.Dataset:
    """A dataset whose column changed its type by force."""
    dataset = b.dataset(DATASET, key="sku")
    dataset.publish([{"sku": "old", "n": 1}], position={"lsn": 1})
    dataset.alter(pa.schema([("sku", pa.string()), ("n", pa.string())]), force=True)
    return dataset


@pytest.mark.parametrize("begin", [created_again, forced])
def test_a_new_session_has_no_version_to_read_until_one_is_published(
    b: broker.Broker, begin: Callable[[broker.Broker], broker.Dataset]
) -> None:
    dataset = begin(b)
    assert dataset.latest() is None
    assert b.parts.catalog.noted(DatasetId(DATASET)) == (0, None)
    published = dataset.publish([{"sku": "new", "n": "x" if begin is forced else 2}])
    assert published.version == 2
    assert dataset.read().column("sku").to_pylist() == ["new"]


@pytest.mark.parametrize("begin", [created_again, forced])
def test_a_producer_is_told_nothing_of_a_dead_session(
    b: broker.Broker, begin: Callable[[broker.Broker], broker.Dataset]
) -> None:
    begin(b)
    told: list[object] = []
    app = broker.Producers()

    @app.producer("*/catalog/offers")
    def offers(request: ProductionRequest, since: broker.Since | None) -> broker.Snapshot:
        told.append((request.dataset, since))
        return broker.Snapshot(pa.table({"sku": ["new"], "n": ["x"] if begin is forced else [2]}))

    lease = b.parts.leases.acquire(b.parts.index.slot(DatasetId(DATASET)), "flight:f", "w")
    flight = Flight("f", DatasetId(DATASET), "produce", "w", lease.fence, 1)
    maker = Maker(b.parts.catalog, b.parts.engine, b.parts.publication, app)
    made = maker.produce(flight, broker.Since(1, {"lsn": 1}))
    assert told == [(DATASET, None)]
    assert made.version == 2


@pytest.mark.parametrize("begin", [created_again, forced])
def test_changes_since_a_version_of_a_dead_session_do_not_become_the_first_snapshot_of_the_new_one(
    b: broker.Broker, begin: Callable[[broker.Broker], broker.Dataset]
) -> None:
    dataset = begin(b)
    changes = [{"sku": "changed", "n": "x" if begin is forced else 2}]
    with pytest.raises(StaleBase, match="made anew"):
        b.parts.publication.delta(dataset.id, changes, None, Note(position=lambda: {"lsn": 9}), base=1)
    assert dataset.latest() is None
    assert b.parts.catalog.noted(dataset.id) == (0, None)


def test_changes_written_for_one_session_are_not_sealed_in_another_of_the_same_schema(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = b.dataset(DATASET, key="sku")
    dataset.publish([{"sku": "a", "n": 1}])
    engine, write = b.parts.engine, b.parts.engine.write_delta
    grown = pa.schema([pa.field("sku", pa.string(), nullable=False), ("n", pa.int64()), ("more", pa.int64())])

    def late(*args: object) -> object:
        written = write(*args)  # type: ignore[arg-type]
        dataset.drop()
        b.dataset(DATASET, key="sku", schema=grown)
        return written

    monkeypatch.setattr(engine, "write_delta", late)
    with pytest.raises(StaleBase):
        dataset.publish_delta([{"sku": "b", "n": 2, "more": 3}])
    assert dataset.latest() is None


def test_a_first_delta_does_not_wipe_out_a_snapshot_that_came_between(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = b.dataset(DATASET, key="sku")
    engine, write = b.parts.engine, b.parts.engine.write_snapshot
    met: list[str] = []

    def late(*args: object) -> object:
        if not met:
            met.append("once")
            dataset.publish([{"sku": f"s{number}", "n": number} for number in range(100)])
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "write_snapshot", late)
    with pytest.raises(StaleBase):
        dataset.publish_delta([{"sku": "d", "n": 1}])
    assert dataset.read().num_rows == 100


def test_a_fenced_writer_does_not_alter_the_schema(b: broker.Broker) -> None:
    dataset = b.dataset(DATASET, key="sku")
    dataset.publish([{"sku": "a", "n": 1}])
    before = dataset.state
    stale = Lease("flight:gone", "w", Fence(1, 1))
    with pytest.raises(Fenced):
        b.parts.publication.delta(dataset.id, [{"sku": "b", "n": 2, "more": 3}], None, Note(lease=stale))
    assert dataset.state.seq == before.seq
    assert dataset.spec.columns == before.spec.columns


def test_two_writers_that_add_different_columns_at_once_begin_again(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = b.dataset(DATASET, key="sku")
    dataset.publish([{"sku": "a", "n": 1}])
    engine, write = b.parts.engine, b.parts.engine.write_delta
    met: list[str] = []

    def late(*args: object) -> object:
        written = write(*args)  # type: ignore[arg-type]
        if not met:
            met.append("once")
            dataset.publish_delta([{"sku": "x", "n": 1, "theirs": 1}])
        return written

    monkeypatch.setattr(engine, "write_delta", late)
    with pytest.raises(StaleBase, match="schema changed"):
        dataset.publish_delta([{"sku": "y", "n": 1, "mine": 1}])
    dataset.publish_delta([{"sku": "y", "n": 1, "mine": 1}])
    assert {column.name for column in dataset.spec.columns.columns} == {"sku", "n", "theirs", "mine"}  # type: ignore[union-attr]
