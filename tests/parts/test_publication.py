"""The write transaction: what becomes a version, what does not, and what happens when the head moves under it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import broker
from broker.backend.keys import writer_lease
from broker.columnar.engine import Engine
from broker.errors import Busy, Corrupt, DuplicateKey, NullKey, SchemaConflict, StaleBase
from broker.model.commit import Edge
from broker.model.names import DatasetId
from broker.publication import Note, Publication
from tests.faulty_store import Fault, FaultyStore, matching

OFFERS = DatasetId("shop/catalog/offers")


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path) as opened:
        yield opened


def rows(*pairs: tuple[str, int]) -> pa.Table:
    return pa.table({"sku": [sku for sku, _ in pairs], "at": [at for _, at in pairs]})


def held(dataset: broker.Dataset) -> dict[str, int]:
    return {row["sku"]: row["at"] for row in dataset.read().to_pylist()}


def roles(edge: Edge | None) -> list[str]:
    assert edge is not None
    return [file.role for file in edge.files]


class Again:
    """Data that can be read many times; `before` is called at each reading with its number, from 1."""

    def __init__(self, table: pa.Table, before: Callable[[int], object]) -> None:
        self._table, self._before, self.readings = table, before, 0

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        self.readings += 1
        self._before(self.readings)
        return self._table.__arrow_c_stream__(requested_schema)


# --- what becomes a version


def test_snapshots_deltas_and_differences_are_versions_one_by_one(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    made = [
        dataset.publish(rows(("a", 1), ("b", 1))),
        dataset.publish_delta(rows(("c", 1)), [{"sku": "a"}]),
        dataset.publish(rows(("b", 2), ("d", 1)), delta=True),
        dataset.publish(rows(("z", 1))),
    ]
    assert [published.number for published in made] == [1, 2, 3, 4]
    assert [roles(published.edge) for published in made] == [["rows"], ["upserts", "deletes"], ["upserts", "deletes"], ["rows"]]
    assert [published.edge.base for published in made if published.edge] == [None, 1, 2, None]
    assert held(dataset) == {"z": 1}


def test_a_version_says_who_made_it_when_and_of_what(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    before = time.time()
    first = dataset.publish(rows(("a", 1)))
    second = dataset.publish_delta(rows(("b", 1)), [{"sku": "a"}])
    assert first.edge
    assert second.edge
    assert dataset.spec.columns
    told = [info.system for info in dataset.versions()]
    always = {"tenant": "shop", "domain": "catalog", "producer": "direct", "schema": dataset.spec.columns.id}
    assert all(always.items() <= system.items() for system in told)
    assert [(system["kind"], system.get("base"), system["rows"], system["files"]) for system in told] == [
        ("snapshot", None, "1", "1"), ("delta", "1", "2", "2"),
    ]  # fmt: skip
    assert [system["bytes"] for system in told] == [str(first.edge.bytes), str(second.edge.bytes)]
    assert told[0]["sha256"] == first.edge.files[0].sha256
    assert told[1]["sha256"] == hashlib.sha256("".join(file.sha256 for file in second.edge.files).encode()).hexdigest()
    assert (
        before - 0.001
        <= datetime.fromisoformat(told[0]["produced"]).timestamp()
        <= datetime.fromisoformat(told[1]["produced"]).timestamp()
    )


def test_a_feed_that_changes_nothing_makes_no_version(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(rows(("a", 1), ("b", 1)), delta=True)
    again = dataset.publish(rows(("b", 1), ("a", 1)), delta=True)
    assert (again.number, again.edge, again.unchanged) == (1, None, 2)
    assert [info.version for info in dataset.versions()] == [1]


def test_rows_of_a_feed_older_than_what_stands_are_counted_and_dropped(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"], order=["at"])
    dataset.publish(rows(("a", 5), ("b", 5)))
    made = dataset.publish(rows(("a", 4), ("b", 6)), delta=True)
    assert (made.stale, held(dataset)) == (1, {"a": 5, "b": 6})


def test_a_production_that_is_in_the_log_is_not_made_again(b: broker.Broker) -> None:
    dataset, note = b.dataset(OFFERS, key=["sku"]), Note(production="flight-1")
    first = b.parts.publication.snapshot(OFFERS, rows(("a", 1)), note)
    dataset.publish_delta(rows(("b", 1)))
    again = b.parts.publication.snapshot(OFFERS, rows(("a", 1)), note)
    assert (first.version, again.version, again.edge) == (1, 1, first.edge)
    assert held(dataset) == {"a": 1, "b": 1}


def test_new_columns_become_an_alter_record_before_the_version_that_needs_them(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(rows(("a", 1)))
    dataset.publish_delta(rows(("b", 1)).append_column("shop", pa.array(["eu"])))
    assert dataset.spec.columns is not None
    assert dataset.spec.columns.names == ("sku", "at", "shop")
    assert {row["sku"]: row["shop"] for row in dataset.read().to_pylist()} == {"a": None, "b": "eu"}


# --- tombstones


def test_a_snapshot_remembers_what_it_leaves_out_so_that_late_rows_do_not_bring_it_back(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"], order=["at"])
    dataset.publish(rows(("a", 10), ("b", 20)))
    dataset.publish_delta(deletes=[{"sku": "b", "at": 25}])
    made = dataset.publish(rows(("c", 1)))
    assert roles(made.edge) == ["rows", "tombstones", "tombstones"]  # of this commit, and the older one of b
    dataset.publish_delta(rows(("a", 9), ("b", 24), ("c", 2)))
    assert held(dataset) == {"c": 2}
    dataset.publish_delta(rows(("a", 11)))
    assert held(dataset) == {"a": 11, "c": 2}


def test_tombstones_end_with_their_time(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"], order=["at"], tombstone_seconds=0)
    dataset.publish(rows(("a", 10)))
    dataset.publish_delta(deletes=[{"sku": "a", "at": 25}])
    assert roles(dataset.publish(rows(("c", 1))).edge) == ["rows"]


def test_a_dataset_without_order_has_no_tombstones(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(rows(("a", 10)))
    assert roles(dataset.publish(rows(("b", 1))).edge) == ["rows"]


# --- what does not


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (rows(("a", 1), ("a", 2)), DuplicateKey),
        (pa.table({"sku": pa.array([None], pa.string()), "at": [1]}), NullKey),
        (pa.table({"sku": ["a"], "at": ["late"]}), SchemaConflict),
    ],
)
@pytest.mark.parametrize("delta", [False, True])
def test_bad_data_makes_no_version_and_leaves_no_file(
    b: broker.Broker, data: pa.Table, error: type[Exception], delta: bool
) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(rows(("a", 1)))
    before = stored(b)
    with pytest.raises(error):
        dataset.publish(data, delta=delta)
    assert (dataset.state.version, stored(b)) == (1, before)


def stored(b: broker.Broker) -> list[str]:
    return [info.key for info in b.parts.store.list(f"{OFFERS}/data/")]


def test_a_file_that_arrives_damaged_is_found_before_anything_is_sealed(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    store = FaultyStore(b.parts.store, matching("upload", "/data/", Fault.OTHER_BYTES))
    with Engine(store, b.parts.settings) as engine:
        careful = Publication(b.parts.catalog, engine, b.parts.leases, trusted=False)
        with pytest.raises(Corrupt):
            careful.snapshot(OFFERS, rows(("a", 1)))
        assert (dataset.state.version, dataset.state.seq) == (0, 1)
        store.plan = lambda *_: None
        assert careful.snapshot(OFFERS, rows(("a", 1))).version == 1
    assert held(dataset) == {"a": 1}


def test_two_writers_do_not_make_the_same_difference(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    with b.parts.leases.held(b.parts.catalog.slot(OFFERS), writer_lease(OFFERS), "another"), pytest.raises(Busy):
        dataset.publish(rows(("a", 1)), delta=True)
    assert dataset.publish(rows(("a", 1)), delta=True).version == 1


# --- a head that moves


def test_a_difference_is_made_again_from_the_new_head_when_its_data_can_be_read_again(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(rows(("a", 1)))
    feed = Again(rows(("a", 1), ("c", 1)), lambda reading: reading == 1 and dataset.publish_delta(rows(("b", 1))))
    made = dataset.publish(feed, delta=True)
    assert (made.version, feed.readings, held(dataset)) == (3, 2, {"a": 1, "c": 1})


@pytest.mark.parametrize("delta", [True, False])
def test_data_that_can_be_read_once_is_refused_when_the_head_moves_and_nothing_else_changes(
    b: broker.Broker, delta: bool
) -> None:
    dataset = b.dataset(OFFERS, key=["sku"], order=["at"])
    dataset.publish(rows(("a", 1)))

    def feed() -> Iterator[dict[str, Any]]:
        dataset.publish_delta(rows(("b", 1)))
        yield {"sku": "c", "at": 1}

    with pytest.raises(StaleBase):
        dataset.publish(feed(), delta=delta)
    assert (dataset.state.version, held(dataset)) == (2, {"a": 1, "b": 1})


def test_a_snapshot_over_a_moving_head_remembers_what_came_in_between(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"], order=["at"])
    dataset.publish(rows(("a", 10)))
    feed = Again(rows(("c", 1)), lambda reading: reading == 1 and dataset.publish_delta(rows(("b", 10))))
    assert dataset.publish(feed).version == 3
    dataset.publish_delta(rows(("a", 9), ("b", 9)))
    assert held(dataset) == {"c": 1}


def test_changes_made_for_one_version_are_refused_over_another(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(rows(("a", 1)))
    dataset.publish_delta(rows(("b", 1)))
    with pytest.raises(StaleBase):
        b.parts.publication.delta(OFFERS, rows(("c", 1)), None, base=1)
    assert b.parts.publication.delta(OFFERS, rows(("c", 1)), None, base=2).version == 3


def test_changes_without_a_base_follow_whatever_the_head_is(b: broker.Broker) -> None:
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(rows(("a", 1)))
    late = Again(rows(("c", 1)), lambda _: dataset.publish_delta(rows(("b", 1))))
    assert dataset.publish_delta(late).version == 3
    assert held(dataset) == {"a": 1, "b": 1, "c": 1}
