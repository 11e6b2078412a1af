"""The data of a completion: what it may be asked for, what a sink remembers of it, and that it is verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import broker
from broker.errors import Conflict, Corrupt, Unavailable
from broker.model.names import DatasetId
from broker.parts import STORE_FOLDER
from broker.sinks import Applied, Memory
from tests.ledger import Hand, Source

OFFERS = DatasetId("shop/catalog/offers")


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path) as opened:
        yield opened


@pytest.fixture
def dataset(b: broker.Broker) -> broker.Dataset:
    """Version 2: b, and the memory that a was deleted as of 10."""
    dataset = b.dataset(OFFERS, key=["sku"], order=["at"])
    dataset.publish(rows(("a", 10), ("b", 20)))
    dataset.publish(rows(("b", 20)))
    return dataset


def rows(*pairs: tuple[str, int]) -> pa.Table:
    return pa.table({"sku": [sku for sku, _ in pairs], "at": [at for _, at in pairs]})


def asked(b: broker.Broker, since: Any = None, **fields: Any) -> Any:
    """What stands, from the files that are there or are made of it."""
    handle = b.request(OFFERS, target="search", since=since, max_staleness=3600, **fields)
    Hand(b.parts, Source()).work()
    return handle.wait(10)


def held(sink: Memory) -> dict[str, int]:
    return {sku: row["at"] for sku, row in sink.rows.items()}


def test_completions_applied_one_after_the_other_keep_deleted_keys_deleted(b: broker.Broker, dataset: broker.Dataset) -> None:
    sink, first = Memory(), asked(b)
    assert first.apply(sink) == Applied(rows=1)
    dataset.publish_delta(rows(("a", 9), ("c", 1)))
    second = asked(b, first.cursor)
    assert second.mode == "delta"
    assert second.apply(sink) == Applied(upserts=1)
    assert held(sink) == {"b": 20, "c": 1}
    assert asked(b, second.cursor).apply(sink) == Applied()


def test_a_snapshot_has_a_table_and_a_delta_has_upserts_and_deletes(b: broker.Broker, dataset: broker.Dataset) -> None:
    first = asked(b)
    assert first.table().to_pylist() == [{"sku": "b", "at": 20}]
    dataset.publish_delta(rows(("c", 1)), [{"sku": "b", "at": 21}])
    second = asked(b, first.cursor)
    assert (second.upserts().to_pylist(), second.deletes().to_pylist()) == ([{"sku": "c", "at": 1}], [{"sku": "b", "at": 21}])
    for wrong in (first.upserts, first.deletes, second.table):
        with pytest.raises(Conflict, match="not a"):
            wrong()


@pytest.mark.parametrize("asking", [{}, {"format": "csv"}, {"format": "jsonl"}, {"where": "at < 1000"}])
def test_a_row_that_comes_late_reaches_nobody_who_would_take_it_for_new(
    b: broker.Broker, dataset: broker.Dataset, tmp_path: Path, asking: dict[str, Any]
) -> None:
    first = asked(b, **asking)
    dataset.publish_delta(rows(("a", 9), ("b", 19), ("c", 1)), None)
    second = asked(b, first.cursor, **asking)
    assert (second.mode, second.upserts().to_pylist(), second.deletes().to_pylist()) == ("delta", [{"sku": "c", "at": 1}], [])
    assert second.rows == 1, "nor does it lie in the files"
    dataset.publish_delta(rows(("b", 18)))
    third = asked(b, second.cursor, **asking)
    assert (third.mode, third.files) == ("delta", ())
    assert third.download(tmp_path / "nothing") == []
    again = asked(b, **asking)
    assert {file.role for file in again.files} == {"rows", "tombstones"}, "a snapshot is merged, too"
    assert again.table().sort_by("sku").to_pylist() == [{"sku": "b", "at": 20}, {"sku": "c", "at": 1}]


def test_files_are_downloaded_verified_in_order_of_application(
    b: broker.Broker, dataset: broker.Dataset, tmp_path: Path
) -> None:
    done = asked(b)
    assert [path.name for path in done.download(tmp_path / "to")] == ["01-rows.parquet", "02-tombstones.parquet"]
    object_ = tmp_path / STORE_FOLDER / done.files[0].key
    object_.write_bytes(object_.read_bytes()[:-1])
    with broker.connect(redis=b.parts.settings.redis, home=tmp_path) as fresh:
        with pytest.raises(Corrupt):
            fresh.received(done.completion).download(tmp_path / "again")
        assert list((tmp_path / "again").iterdir()) == []


def test_a_folder_holds_the_files_of_the_last_download_and_what_others_put_there(
    b: broker.Broker, dataset: broker.Dataset, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    asked(b).download(tmp_path)
    dataset.publish_delta(rows(("c", 1)))
    asked(b, 2).download(tmp_path)
    mine = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert mine == {"notes.txt", "01-upserts.parquet"}


def test_a_download_that_cannot_be_written_is_a_typed_error(b: broker.Broker, dataset: broker.Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = asked(b)
    with pytest.raises(Unavailable, match="file"):
        done.download(tmp_path / "file")
    (tmp_path / "to" / "01-rows.parquet" / "x").mkdir(parents=True)
    with pytest.raises(Unavailable, match="01-rows"):
        done.download(tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["01-rows.parquet"]
