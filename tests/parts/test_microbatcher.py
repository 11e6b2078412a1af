"""The micro-batcher over a real Redis: what becomes a version, when, by whom, and what stands in nobody's way."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pyarrow as pa
import pytest

import broker
from broker.backend.keys import writer_lease
from broker.backend.logs import Logs
from broker.errors import BrokerError, Unavailable
from broker.microbatcher import BatchReport
from broker.microbatcher_closing import Closer, portions
from broker.model.commit import NewVersion, SourceRange, parse_record
from broker.model.names import DatasetId
from broker.rules.batching import PRODUCER, Reason
from broker.rules.fold import State
from broker.rules.patch import NOTHING_CONSUMED
from broker.settings import Settings
from tests.servers import redis_server, wait_until
from workers.batching import Batching

OFFERS = DatasetId("shop/catalog/offers")
SLOTS = Settings().log_slots


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path, max_age_seconds=0.05, lease_seconds=0.5) as opened:
        yield opened


def until_versions(batching: Batching, count: int = 1) -> list[BatchReport]:
    """Passes until so many versions were made; the reports that made one."""
    made: list[BatchReport] = []

    def some() -> bool:
        report = batching.run_once()
        assert not report.failed, report.failed
        if report.versions:
            made.append(report)
        return len(made) >= count

    wait_until(some, f"{count} versions", 20)
    return made


def drain(batching: Batching) -> None:
    def empty() -> bool:
        batching.run_once()
        return batching.idle()

    wait_until(empty, "the log to be empty", 20)


def rows(count: int, at: int = 0) -> list[dict[str, Any]]:
    return [{"sku": f"s{n}", "at": at, "price": n} for n in range(count)]


def prices(dataset: broker.Dataset) -> dict[str, int]:
    return {row["sku"]: row["price"] for row in dataset.read().to_pylist()}


def ranges(b: broker.Broker, dataset: DatasetId = OFFERS) -> dict[int, list[SourceRange]]:
    """Every sealed range of the dataset's log, by log slot, in commit order."""
    found: dict[int, list[SourceRange]] = {}
    for data in b.parts.catalog.records(dataset):
        body = parse_record(data, "log").body
        if isinstance(body, NewVersion):
            for source in body.sources:
                found.setdefault(source.slot, []).append(source)
    return found


# --- what becomes of changes


def test_a_lone_record_becomes_a_version_by_its_age(b: broker.Broker, batching: Batching) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(1))
    until_versions(batching)
    assert prices(offers) == {"s0": 0}
    latest = offers.latest()
    assert latest is not None
    assert latest.system["producer"] == PRODUCER


def test_all_log_slots_of_a_dataset_go_into_one_version(b: broker.Broker, batching: Batching) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(100))
    (report,) = until_versions(batching)
    assert (report.versions, report.batches, report.rows) == (1, SLOTS, 100)
    (edge,) = offers.state.edges
    assert {file.partition for file in edge.files} == set(range(SLOTS))
    assert sum(len(found) for found in ranges(b).values()) == SLOTS


def test_a_batch_is_closed_by_rows_long_before_its_age(redis_url: str, tmp_path: Path) -> None:
    with broker.connect(redis=redis_url, home=tmp_path, max_age_seconds=3600, batch_rows=10, log_slots=1) as b:
        offers, batching = b.dataset(OFFERS, key=["sku"], order=["at"]), Batching(b.parts)
        for n in range(25):
            offers.changelog.append([{"sku": f"s{n}", "at": n, "price": n}])
        until_versions(batching, 2)
        assert [source.closed for source in ranges(b)[0]] == ["rows", "rows"]
        assert [source.rows for source in ranges(b)[0]] == [10, 10]
        batching.run_once()
        assert prices(offers) == {f"s{n}": n for n in range(20)}
        batching.close()


def test_a_batch_is_closed_by_bytes_and_holds_little_more_than_those(redis_url: str, tmp_path: Path) -> None:
    with broker.connect(redis=redis_url, home=tmp_path, max_age_seconds=3600, batch_bytes=8 << 10, log_slots=1) as b:
        offers, batching = b.dataset(OFFERS, key=["sku"], order=["at"]), Batching(b.parts)
        for n in range(20):
            offers.changelog.append(pa.table({"sku": [f"s{n}"], "at": [n], "price": [n], "text": ["x" * 1000]}))
        until_versions(batching)
        first = ranges(b)[0][0]
        assert first.closed == "bytes"
        assert 0 < first.rows < 12
        batching.close()


def test_newest_order_wins_over_later_arrival_and_deletes_stay(b: broker.Broker, batching: Batching) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(3, at=10))
    until_versions(batching)
    offers.changelog.delete([{"sku": "s0", "at": 20}])
    offers.changelog.append([{"sku": "s0", "at": 15, "price": 99}, {"sku": "s1", "at": 5, "price": 99}])
    offers.changelog.append([{"sku": "s2", "at": 10, "price": 77}])
    until_versions(batching)
    assert prices(offers) == {"s1": 1, "s2": 77}


def test_without_an_order_the_later_change_wins(b: broker.Broker, batching: Batching) -> None:
    stock = b.dataset("shop/catalog/stock", key=["sku"])
    stock.changelog.append([{"sku": "a", "price": 1}, {"sku": "b", "price": 1}])
    stock.changelog.append([{"sku": "a", "price": 2}])
    stock.changelog.delete([{"sku": "b"}])
    (report,) = until_versions(batching)
    assert prices(stock) == {"a": 2}
    assert report.coalesced == 2


def test_a_new_column_makes_the_schema_grow_before_its_rows_are_named(b: broker.Broker, batching: Batching) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(2))
    until_versions(batching)
    session = offers.state.session
    offers.changelog.append([{"sku": "s9", "at": 1, "price": 9, "title": "new"}])
    until_versions(batching)
    titles = {row["sku"]: row["title"] for row in offers.read().to_pylist()}
    assert titles == {"s0": None, "s1": None, "s9": "new"}
    assert offers.state.session == session


def test_what_is_in_a_version_leaves_the_log_and_nothing_else_does(b: broker.Broker, batching: Batching) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(50))
    until_versions(batching)
    offers.changelog.append(rows(7, at=1))
    status = offers.changelog.status()
    assert sum(slot.unbatched_rows for slot in status) == 7
    drain(batching)
    assert sum(slot.unbatched_rows for slot in offers.changelog.status()) == 0
    assert batching.batcher.left() == []


def test_ranges_follow_on_each_other_and_marks_reach_the_last_block_in_every_slot(b: broker.Broker, batching: Batching) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    for block in range(1, 6):
        offers.changelog.append(rows(3, at=block), producer="pim-1", block=block)
        until_versions(batching)
    drain(batching)
    for slot, sealed in ranges(b).items():
        assert [source.after for source in sealed] == [NOTHING_CONSUMED, *(source.until for source in sealed[:-1])]
        assert offers.state.marks(slot)["pim-1"].block == 5
    assert len(ranges(b)) == SLOTS


def test_marks_alone_are_sealed_too_when_nothing_comes_after_them(b: broker.Broker, batching: Batching) -> None:
    """A block that a slot knows as a mark only must be found sealed there; here its rows were committed without the marks."""
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(1), producer="pim-1", block=1)
    until_versions(batching)
    offers.changelog.append([], producer="pim-1", block=2)
    wait_until(lambda: bool(batching.run_once().versions), "a version of marks alone", 10)
    assert {offers.state.marks(slot)["pim-1"].block for slot in range(SLOTS)} == {2}
    assert prices(offers) == {"s0": 0}


def test_marks_before_the_first_version_keep_nobody_waiting(
    b: broker.Broker, batching: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can take them yet; they must not be the oldest work there is, for ever."""
    monkeypatch.setattr("broker.microbatcher.SERVED", 2)
    early = [b.dataset(f"shop/catalog/early{number}", key=["sku"], order=["at"]) for number in range(3)]
    for dataset in early:
        dataset.changelog.append(pa.Table.from_pylist(rows(1))[:0], producer="pim-1", block=1)
    drain(batching)
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(1))
    until_versions(batching)
    assert prices(offers) == {"s0": 0}
    drain(batching)
    early[0].changelog.append(rows(1), producer="pim-1", block=2)
    drain(batching)
    assert {early[0].state.marks(slot)["pim-1"].block for slot in range(SLOTS)} == {2}


def test_an_append_that_waits_for_the_seal_is_answered(b: broker.Broker, batching: Batching) -> None:
    offers, stop = b.dataset(OFFERS, key=["sku"], order=["at"]), Event()

    def passes() -> None:
        while not stop.is_set():
            batching.step(stop)

    thread = Thread(target=passes)
    thread.start()
    try:
        ack = offers.changelog.append(rows(3), level="sealed", timeout=20)
        assert ack.level == "sealed"
        assert prices(offers) == {"s0": 0, "s1": 1, "s2": 2}
    finally:
        stop.set()
        thread.join()


# --- who does it


def test_two_processes_share_the_log_slots_and_the_survivor_takes_over_within_a_lease(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    one, two = Batching(b.parts, "one"), Batching(b.parts, "two")

    def fair() -> bool:
        one.keep()
        two.keep()
        return {len(one.places), len(two.places)} == {SLOTS // 2}

    wait_until(fair, "fair shares", 10)
    assert not {place.name for place in one.places} & {place.name for place in two.places}
    offers.changelog.append(rows(40))  # and `two` is dead from here on
    begun = time.monotonic()
    wait_until(lambda: bool(one.run_once()) and len(one.places) == SLOTS, "the take-over", 10)
    assert time.monotonic() - begun < 3 * b.parts.settings.lease_seconds
    drain(one)
    assert len(prices(offers)) == 40
    one.close()
    two.close()


def test_a_process_that_leaves_gives_its_slots_at_once(b: broker.Broker) -> None:
    b.dataset(OFFERS, key=["sku"])
    one, two = Batching(b.parts, "one"), Batching(b.parts, "two")
    one.keep()
    assert len(one.places) == SLOTS
    one.close()
    two.keep()
    assert len(two.places) == SLOTS
    two.close()


def test_whoever_commits_takes_the_batches_that_others_left_waiting(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(30))
    dead = Batching(b.parts, "dead")
    dead.batcher._commit = _die  # type: ignore[method-assign,assignment]
    with pytest.raises(Died):
        until_versions(dead)
    left = {file.key for batch in dead.batcher._batches.waiting([OFFERS])[0] for file in batch.files}
    dead.close()
    heir = Batching(b.parts, "heir")
    (report,) = until_versions(heir)
    assert report.batches == 0
    assert {file.key for edge in offers.state.edges for file in edge.files} == left
    assert len(prices(offers)) == 30
    heir.close()


class Died(Exception):
    """The process is gone."""


def _die(*_: object) -> None:
    raise Died


def test_a_restart_of_redis_between_close_and_commit_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with redis_server() as server, broker.connect(redis=server.url, home=tmp_path, max_age_seconds=0.05) as b:
        offers = b.dataset(OFFERS, key=["sku"])
        offers.changelog.append([{"sku": "a", "price": 1}], producer="pim", block=1)
        batching = Batching(b.parts, "one")
        batching.batcher._commit = _die  # type: ignore[method-assign,assignment]
        with pytest.raises(Died):
            until_versions(batching)
        server.restart()
        again = Batching(b.parts, "two")
        drain_through_errors(again)
        offers.changelog.append([{"sku": "b", "price": 2}], producer="pim", block=2, timeout=20)
        drain_through_errors(again)
        assert prices(offers) == {"a": 1, "b": 2}
        assert sum(source.rows for sealed in ranges(b).values() for source in sealed) == 2
        again.close()
        batching.close()


def drain_through_errors(batching: Batching) -> None:
    def empty() -> bool:
        try:
            batching.run_once()
            return batching.idle()
        except broker.errors.Transient:
            return False

    wait_until(empty, "the log to be empty", 30)


# --- what stands in nobody's way


def test_without_an_order_batches_wait_while_somebody_holds_the_writer_lease(b: broker.Broker, batching: Batching) -> None:
    stock = b.dataset("shop/catalog/stock", key=["sku"])
    stock.changelog.append([{"sku": "a", "price": 1}])
    with b.parts.leases.held(b.parts.catalog.slot(stock.id), writer_lease(stock.id), "somebody"):
        held_up: list[DatasetId] = []

        def seen() -> bool:
            held_up.extend(batching.run_once().held_up)
            return len(held_up) >= 3

        wait_until(seen, "a batch held up", 10)
        assert stock.latest() is None
    until_versions(batching)
    assert prices(stock) == {"a": 1}


def test_without_an_order_a_published_snapshot_keeps_the_change_log_out_and_others_go_on(
    b: broker.Broker, batching: Batching
) -> None:
    stock, offers = b.dataset("shop/catalog/stock", key=["sku"]), b.dataset(OFFERS, key=["sku"], order=["at"])
    stock.changelog.append([{"sku": "a", "price": 1}])
    stock.publish([{"sku": "z", "price": 0}])
    offers.changelog.append(rows(1))
    failed: dict[DatasetId, str] = {}

    def seen() -> bool:
        failed.update(batching.run_once().failed)
        return bool(failed) and offers.latest() is not None

    wait_until(seen, "a conflict", 10)
    assert "takes snapshots" in failed[stock.id]
    assert prices(stock) == {"z": 0}


def test_a_dataset_that_fails_is_left_alone_longer_each_time(b: broker.Broker, batching: Batching) -> None:
    stock = b.dataset("shop/catalog/stock", key=["sku"])
    stock.changelog.append([{"sku": "a", "price": 1}])
    stock.publish([{"sku": "z", "price": 0}])
    wait_until(lambda: bool(batching.run_once().failed), "the first failure", 10)
    failures = sum(bool(batching.run_once().failed) for _ in range(200))
    assert failures <= 2


def test_a_snapshot_of_a_dataset_with_an_order_and_late_changes_merge(b: broker.Broker, batching: Batching) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append([{"sku": "a", "at": 5, "price": 5}, {"sku": "b", "at": 50, "price": 50}])
    offers.publish([{"sku": "a", "at": 9, "price": 9}, {"sku": "b", "at": 9, "price": 9}])
    until_versions(batching)
    assert prices(offers) == {"a": 9, "b": 50}


def test_many_datasets_are_served_oldest_first_and_none_is_forgotten(b: broker.Broker, batching: Batching) -> None:
    many = [b.dataset(f"shop/catalog/d{n:03}", key=["sku"]) for n in range(80)]
    for dataset in many:
        dataset.changelog.append([{"sku": "a", "price": 1}])
    drain(batching)
    assert all(prices(dataset) == {"a": 1} for dataset in many)


@pytest.mark.parametrize("error", [ValueError("a surprise"), Unavailable("the disk does not answer")])
def test_of_a_group_one_datasets_harm_is_its_own(
    b: broker.Broker, batching: Batching, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    many = [b.dataset(f"shop/catalog/d{n}", key=["sku"]) for n in range(4)]
    close, harm = Closer.close_all, many[2]

    def closing(self: Closer, state: State, *rest: Any) -> Any:
        if state.dataset == harm.id:
            raise error
        return close(self, state, *rest)

    monkeypatch.setattr(Closer, "close_all", closing)
    for dataset in many:
        dataset.changelog.append([{"sku": "a", "price": 1}])
    failed: dict[DatasetId, str] = {}

    def served() -> bool:
        failed.update(batching.run_once().failed)
        return bool(failed) and all(dataset.latest() for dataset in many if dataset is not harm)

    wait_until(served, "the others", 10)
    assert list(failed) == [harm.id]
    assert harm.latest() is None
    monkeypatch.undo()
    until_versions(batching)
    assert prices(harm) == {"a": 1}


def test_a_log_that_cannot_be_trimmed_is_no_failure_of_what_was_committed(
    b: broker.Broker, batching: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: Logs, states: Any) -> None:
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(Logs, "trim_all", silent)
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(3))
    assert [report.rows for report in until_versions(batching)] == [3]
    monkeypatch.undo()
    drain(batching)
    assert len(prices(offers)) == 3
    assert offers.state.version == 1


# --- the command


def test_the_worker_command_makes_batches_until_nothing_is_left(b: broker.Broker, tmp_path: Path) -> None:
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.changelog.append(rows(10))
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    environment |= {"BROKER_REDIS": b.parts.settings.redis, "BROKER_HOME": str(tmp_path), "BROKER_MAX_AGE_SECONDS": "0.05"}
    command = [sys.executable, "-m", "broker.cli", "worker", "--role", "microbatch", "--burst"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert len(prices(offers)) == 10
    assert "rows=10" in run.stderr


def test_an_error_of_redis_ends_the_pass_with_its_type(b: broker.Broker, batching: Batching) -> None:
    b.parts.redis.run("SET", b.parts.index.slot(OFFERS).workers, "not a hash")
    b.dataset(OFFERS, key=["sku"])
    with pytest.raises(BrokerError):
        batching.run_once()
    b.parts.redis.run("DEL", b.parts.index.slot(OFFERS).workers)


def test_a_large_dataset_has_one_log_slot_open_at_once_and_small_ones_no_more_files_than_a_process_may() -> None:
    four: dict[int, Reason] = dict.fromkeys(range(4), "age")
    wanted = [("large", 2 << 20, four), *((f"small {number}", 10, four) for number in range(100))]
    found = list(portions(wanted))
    assert [[(name, list(slots)) for name, slots in portion] for portion in found[:4]] == [[("large", [at])] for at in range(4)]
    assert [len(portion) for portion in found[4:]] == [32, 32, 32, 4]
    assert [name for portion in found[4:] for name, _ in portion] == [f"small {number}" for number in range(100)]
