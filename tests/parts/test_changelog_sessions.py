"""Changes that wait in the log when their dataset's session ends: they belong to what is over, and stand in nobody's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pyarrow as pa
import pytest

import broker
from broker.backend.logs import Logs, Part
from broker.changelog_recent import LOOK_SECONDS
from broker.columnar.blocks import encoded
from broker.errors import BrokerError, Conflict, NotFound, Overloaded, StaleBase
from broker.microbatcher_closing import Closer
from broker.model.names import DatasetId
from broker.rules.blocks import ANYBODY
from tests.ledger import refusals
from tests.servers import wait_until
from workers.batching import Batching

OFFERS = DatasetId("shop/catalog/offers")
NUMBERS = pa.schema([("sku", pa.string()), ("at", pa.int64()), ("price", pa.float64())])


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path, max_age_seconds=0.02, unbatched_bytes=64 << 10) as opened:
        yield opened


@pytest.fixture
def offers(b: broker.Broker) -> broker.Dataset:
    """With a row in a version and one in the log, both of the first session. Prices are text."""
    offers = b.dataset(OFFERS, key=["sku"], order=["at"])
    offers.publish([{"sku": "x", "at": 0, "price": "cheap"}])
    offers.changelog.append([{"sku": "old", "at": 1, "price": "dear"}])
    return offers


def altered(b: broker.Broker) -> broker.Dataset:
    offers = b.dataset(OFFERS)
    offers.alter(NUMBERS, force=True)
    return offers


def made_anew(b: broker.Broker) -> broker.Dataset:
    b.dataset(OFFERS).drop()
    return b.dataset(OFFERS, key=["sku"], order=["at"], schema=NUMBERS)


def made_anew_with_another_key(b: broker.Broker) -> broker.Dataset:
    b.dataset(OFFERS).drop()
    return b.dataset(OFFERS, key=["sku", "price"], order=["at"], schema=NUMBERS)


ENDS = [altered, made_anew, made_anew_with_another_key]


def drain(batching: Batching) -> None:
    """Passes until nothing waits; none may fail."""

    def empty() -> bool:
        assert not (failed := batching.run_once().failed), failed
        return batching.idle()

    wait_until(empty, "the log to be empty", 20)


def skus(offers: broker.Dataset) -> list[str]:
    return sorted(offers.read().column("sku").to_pylist()) if offers.latest() else []


@pytest.mark.parametrize("end", ENDS)
def test_what_waited_is_in_no_version_of_the_next_session_and_is_told(
    b: broker.Broker, batching: Batching, offers: broker.Dataset, end: Callable[[broker.Broker], broker.Dataset]
) -> None:
    fresh = end(b)
    fresh.changelog.append([{"sku": "new", "at": 2, "price": 2.5}])
    drain(batching)
    assert skus(fresh) == ["new"]
    (event,) = refusals(b, OFFERS)
    told = event.data
    assert (told["rows"], told["production"], told["findings"][0]["rule"]) == (1, "changelog", "session")


@pytest.mark.parametrize("end", ENDS)
def test_with_nothing_new_behind_it_the_log_is_emptied_without_a_version(
    b: broker.Broker, batching: Batching, offers: broker.Dataset, end: Callable[[broker.Broker], broker.Dataset]
) -> None:
    fresh = end(b)
    drain(batching)
    assert fresh.latest() is None
    assert sum(slot.unbatched_rows for slot in fresh.changelog.status()) == 0


def test_the_log_of_a_dropped_dataset_is_emptied(b: broker.Broker, batching: Batching, offers: broker.Dataset) -> None:
    offers.drop()
    drain(batching)
    logs = Logs(b.parts.redis, b.parts.settings)
    assert [logs.logged(OFFERS, slot).unbatched_bytes for slot in range(logs.count)] == [0] * logs.count


def test_a_log_that_is_full_of_it_is_free_again(b: broker.Broker, batching: Batching, offers: broker.Dataset) -> None:
    wait_until(lambda: refused(offers, [{"sku": "old", "at": 1, "price": "x" * 1_000}]) is Overloaded, "a full log", 20)
    fresh = altered(b)
    new = [{"sku": "old", "at": 1, "price": 1.5}]
    wait_until(lambda: refused(fresh, new) is Overloaded, "the append to see the new session", 10)
    drain(batching)
    fresh.changelog.append(new)
    drain(batching)
    assert skus(fresh) == ["old"]


def refused(offers: broker.Dataset, rows: list[dict[str, Any]]) -> type[BrokerError] | None:
    try:
        offers.changelog.append(rows)
    except BrokerError as error:
        return type(error)
    return None


def test_what_a_client_appends_that_does_not_know_yet_is_passed_over_between_what_counts(
    b: broker.Broker, batching: Batching, offers: broker.Dataset
) -> None:
    old = offers.state.session
    fresh = altered(b)
    late = encoded(pa.RecordBatch.from_pylist([{"sku": "late", "at": 3, "price": "dear"}]))
    logs = Logs(b.parts.redis, b.parts.settings)
    for block in (1, 2, 3):
        fresh.changelog.append([{"sku": f"new{block}", "at": block, "price": 1.5}], producer="pim", block=block)
        answers = logs.append(OFFERS, [Part(0, "slow", block, ANYBODY, "u", 1, late, old)])
        assert not isinstance(answers[0], BrokerError)
    drain(batching)
    assert skus(fresh) == ["new1", "new2", "new3"]
    assert fresh.changelog.append([{"sku": "new4", "at": 4, "price": 1.5}], producer="pim", block=4).block == 4


def test_a_batcher_that_does_not_know_the_new_session_yet_takes_nothing_out(
    b: broker.Broker, batching: Batching, offers: broker.Dataset
) -> None:
    drain(batching)
    before = offers.state
    fresh = altered(b)
    fresh.changelog.append([{"sku": "new", "at": 2, "price": 2.5}])
    closer: Closer = batching.batcher._closer
    for slot in range(b.parts.settings.log_slots):
        try:
            assert closer.close_all(before, {slot: "age"}, {}) == []
        except StaleBase:
            continue
    drain(batching)
    assert skus(fresh) == ["new"]


def test_a_dataset_that_takes_snapshots_now_is_rid_of_what_waited(b: broker.Broker, batching: Batching) -> None:
    plain = b.dataset(OFFERS, key=["sku"])
    plain.changelog.append([{"sku": "old"}])
    plain.drop()
    fresh = b.dataset(OFFERS, key=["sku"])
    fresh.publish([{"sku": "new"}])
    drain(batching)
    assert skus(fresh) == ["new"]


def test_who_waits_for_a_seal_is_told_that_it_will_not_come(b: broker.Broker, offers: broker.Dataset) -> None:
    found, begun = list[BrokerError](), Event()

    def wait() -> None:
        begun.set()
        try:
            offers.changelog.append([{"sku": "y", "at": 2, "price": "dear"}], level="sealed", timeout=60)
        except BrokerError as error:
            found.append(error)

    thread = Thread(target=wait)
    thread.start()
    begun.wait(10)
    waiting = Logs(b.parts.redis, b.parts.settings)
    wait_until(lambda: sum(waiting.logged(OFFERS, slot).unbatched_rows for slot in range(4)) == 2, "the append", 10)
    altered(b)
    thread.join(30)
    (error,) = found
    assert isinstance(error, Conflict)
    assert "new session" in str(error)


def test_a_call_that_a_new_session_overtakes_is_told(b: broker.Broker, offers: broker.Dataset) -> None:
    def source() -> Iterator[pa.RecordBatch]:
        batch = pa.RecordBatch.from_pylist([{"sku": "y", "at": 2, "price": "dear"}])
        yield batch
        altered(b)
        wait_until(lambda: b.parts.catalog.state(OFFERS).spec.columns != before, "the new session", LOOK_SECONDS * 10)
        yield batch

    before = offers.state.spec.columns
    with pytest.raises(Conflict, match="first 1 rows of this call are in"):
        offers.changelog.append(source())


def test_an_append_to_what_is_gone_is_refused(b: broker.Broker, offers: broker.Dataset) -> None:
    log = offers.changelog
    offers.drop()
    wait_until(lambda: refused(offers, [{"sku": "y", "at": 2, "price": "dear"}]) is NotFound, "the refusal", 10)
    assert log is offers.changelog
