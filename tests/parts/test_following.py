"""Following by events, and what a replica tells the broker behind each sync."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import broker
from broker.audits import Audits
from broker.errors import Conflict, Invalid, Unavailable
from broker.events_listening import Listener
from broker.model.commit import Retire
from broker.model.names import DatasetId
from broker.replica import Replica, Report
from broker.rules.following import AtMostEvery, Every, Latest
from broker.sinks import DuckDB, Memory, ParquetDirectory, SQLite
from tests.servers import redis_server, wait_until

OFFERS = DatasetId("shop/catalog/offers")
SECONDS = 20


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path, lease_seconds=0.5, digest_every=3) as opened:
        opened.dataset(OFFERS, key=["sku"]).publish(pa.table({"sku": ["a", "b"], "price": [1, 60]}))
        yield opened


def change(b: broker.Broker, price: int) -> None:
    b.dataset(OFFERS).publish_delta(pa.table({"sku": ["c"], "price": [price]}))


def replica(b: broker.Broker, sink: Any = None, **fields: Any) -> Replica:
    return b.replica(OFFERS, name="search", sink=sink or Memory(), **fields)


def audits(b: broker.Broker, lag_seconds: float = 3600) -> Audits:
    parts = b.parts
    return Audits((parts.catalog, parts.channels, parts.index, parts.engine), parts.cursors, parts.events, lag_seconds)


def told(b: broker.Broker, *types: str) -> list[dict[str, Any]]:
    """Events of these types so far, the oldest first."""
    wanted = b.parts.redis.run("XRANGE", b.parts.index.slot(OFFERS).events, "-", "+", writes=False)
    found = [broker.Event.model_validate_json(fields[1]) for _, fields in wanted]
    return [event.data for event in found if event.type in types]


# --- following


@pytest.mark.timeout(60)
def test_a_follower_applies_what_events_tell_of_and_stops_by_its_handle(b: broker.Broker) -> None:
    reports, follower = queue.Queue[Report](), replica(b)
    with follower.following(told=reports.put) as following:
        assert reports.get(timeout=SECONDS).version == 1
        for version in (2, 3):
            change(b, version)
            assert reports.get(timeout=SECONDS).version == version
        assert following.running
    assert not following.running
    assert {row["sku"]: row["price"] for row in follower.sink.read().to_pylist()} == {"a": 1, "b": 60, "c": 3}


def test_a_follower_asks_for_nothing_while_nothing_happens(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs, listens, quiet = list[float](), 0, threading.Event()
    listen, sync = Listener.listen, Replica._sync

    def heard(self: Listener, timeout: float | None = None) -> Any:
        nonlocal listens
        listens += 1
        if listens > 1:
            quiet.set()
        return listen(self, 0.05)

    def counted(self: Replica, *args: Any) -> Report:
        syncs.append(0.0)
        return sync(self, *args)

    monkeypatch.setattr(Listener, "listen", heard)
    monkeypatch.setattr(Replica, "_sync", counted)
    with replica(b).following():
        wait_until(lambda: listens > 5, "listening")
    assert quiet.is_set()
    assert len(syncs) == 2  # one that applied, one that found nothing more


def test_every_takes_each_version_and_latest_jumps(b: broker.Broker) -> None:
    every, latest = replica(b), b.replica(OFFERS, name="latest", sink=Memory())
    every.sync(), latest.sync()
    for price in (2, 3, 4):
        change(b, price)
    for one, policy, expected in ((every, Every(), [2, 3, 4]), (latest, Latest(), [4])):
        found, stop = list[int](), threading.Event()

        def take(report: Report, found: list[int] = found, stop: threading.Event = stop) -> None:
            found.append(report.version)
            if report.version == 4:
                stop.set()

        one.follow(policy, take, stop)
        assert found == expected


def test_every_goes_on_when_the_next_version_is_retired(b: broker.Broker) -> None:
    one, found, stop = replica(b), list[int](), threading.Event()
    one.sync()
    for price in (2, 3):
        change(b, price)
    gone = Retire(edges=((1, 2),), versions_until=2)
    b.parts.catalog.commit(OFFERS, lambda now: gone if now.edge(1, 2) else None, "retention")
    b.dataset(OFFERS).publish(pa.table({"sku": ["z"], "price": [9]}))

    def take(report: Report) -> None:
        found.append(report.version)
        stop.set()

    one.follow(Every(), take, stop)
    assert found == [4]


def test_at_most_every_rests_between_versions(b: broker.Broker) -> None:
    one, times = replica(b), queue.Queue[float]()
    with one.following(AtMostEvery(0.5), lambda _: times.put(time.monotonic())):
        first = times.get(timeout=SECONDS)
        for price in (2, 3):
            change(b, price)
        assert times.get(timeout=SECONDS) - first >= 0.45
    assert one.cursor is not None
    assert one.cursor.version == 3
    with pytest.raises(Invalid):
        AtMostEvery(0)
    with pytest.raises(Invalid):
        AtMostEvery("1 min")  # type: ignore[arg-type]


def test_a_signal_ends_a_follower_in_the_main_thread_and_its_handlers_come_back(b: broker.Broker) -> None:
    before = signal.getsignal(signal.SIGINT)
    replica(b).follow(told=lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before


def test_what_does_not_pass_by_itself_ends_a_follower_and_is_raised_by_its_handle(b: broker.Broker) -> None:
    sink = Memory()
    b.replica(OFFERS, name="other", sink=sink).sync()
    following = replica(b, sink).following()
    wait_until(lambda: not following.running, "the end")
    with pytest.raises(Conflict):
        following.stop()


@pytest.mark.timeout(90)
def test_a_follower_outlives_a_restart_of_redis(tmp_path: Path) -> None:
    with redis_server() as server, broker.connect(redis=server.url, home=tmp_path, lease_seconds=0.5) as b:
        b.dataset(OFFERS, key=["sku"]).publish(pa.table({"sku": ["a"], "price": [1]}))
        reports = queue.Queue[Report]()
        with replica(b).following(told=reports.put), broker.connect(redis=server.url, home=tmp_path) as other:
            assert reports.get(timeout=SECONDS).version == 1
            server.restart()
            with pytest.raises(broker.errors.Transient):
                other.parts.index.slots()
            change(other, 2)
            assert reports.get(timeout=SECONDS).version == 2


# --- lag


def test_lag_counts_versions_bytes_and_seconds(b: broker.Broker) -> None:
    one = replica(b)
    assert one.lag().versions == 1
    one.sync()
    assert one.lag().none
    for price in (2, 3):
        change(b, price)
    lag, edges = one.lag(), b.dataset(OFFERS).state.edges
    assert (lag.versions, lag.bytes) == (2, edges[1].bytes + edges[2].bytes)
    assert 0 < lag.seconds < SECONDS


def test_lag_is_behind_what_the_channel_names_not_behind_the_newest_version(b: broker.Broker) -> None:
    offers, one = b.dataset(OFFERS), replica(b, channel="production")
    assert one.lag().none  # nothing is named
    offers.promote(1, to="production")
    one.sync()
    change(b, 2)
    change(b, 3)
    assert one.lag().none
    begun = time.time()  # the versions are older than their promotion
    offers.promote(3, to="production")
    lag = one.lag()
    assert (lag.versions, lag.bytes) == (2, sum(edge.bytes for edge in offers.state.edges[1:]))
    assert 0 <= lag.seconds <= time.time() - begun
    one.sync()
    offers.rollback("production")
    back = one.lag()
    assert (back.versions, back.bytes) == (1, offers.state.edges[0].bytes)


def test_who_is_at_what_its_channel_names_is_not_told_of_as_lagging(b: broker.Broker) -> None:
    b.dataset(OFFERS).promote(1, to="production")
    replica(b, channel="production").sync()
    change(b, 2)
    assert audits(b, lag_seconds=0).run_once().lagging == 0
    b.dataset(OFFERS).promote(2, to="production")
    assert audits(b, lag_seconds=0).run_once().lagging == 1
    (lagging,) = told(b, "broker.replica.lagging")
    assert (lagging["channel"], lagging["held"], lagging["version"]) == ("production", 1, 2)


# --- cursors and receipts


def cursor_of(b: broker.Broker, name: str = "search") -> Any:
    (held,) = [one for one in b.parts.cursors.standing(OFFERS).cursors if one.cursor.name == name]
    return held.cursor


def test_each_sync_reports_the_cursor_and_a_snapshot_or_every_third_version_a_receipt(b: broker.Broker) -> None:
    one, proven = replica(b), list[int | None]()
    for price in range(2, 8):
        one.sync()
        cursor = cursor_of(b)
        proven.append(cursor.receipt and cursor.receipt.version)
        assert cursor.version == price - 1
        change(b, price)
    assert proven == [1, None, 3, None, None, 6]


def test_a_sync_that_finds_nothing_renews_the_lease_and_keeps_the_receipt(b: broker.Broker) -> None:
    one = replica(b)
    one.sync()
    before = cursor_of(b)
    one.sync()
    assert cursor_of(b) == before
    b.parts.cursors.forget(OFFERS, "search")
    one.sync()
    assert cursor_of(b).version == 1


@pytest.mark.parametrize("kind", ["memory", "duckdb", "sqlite", "parquet"])
@pytest.mark.parametrize("where", [None, "price > 5"])
def test_receipts_of_every_sink_and_selection_agree_with_the_broker(
    b: broker.Broker, tmp_path: Path, kind: str, where: str | None
) -> None:
    sinks: dict[str, Any] = {
        "memory": Memory, "duckdb": lambda: DuckDB(tmp_path / "r.duckdb", "offers"),
        "sqlite": lambda: SQLite(tmp_path / "r.sqlite", "offers"), "parquet": lambda: ParquetDirectory(tmp_path / "r"),
    }  # fmt: skip
    one = replica(b, sinks[kind](), where=where)
    for price in (2, 30):
        one.sync()
        change(b, price)
    one.sync()
    assert cursor_of(b).receipt.version == 3
    report = audits(b).run_once()
    assert (report.compared, report.mismatches, report.failed) == (1, 0, {})


def test_a_replica_that_holds_something_else_is_told_of_once(b: broker.Broker) -> None:
    one, sink = replica(b), Memory()
    one = replica(b, sink)
    change(b, 2)
    one.sync()
    sink._state.rows[("a",)]["price"] = 7
    b.dataset(OFFERS).publish_delta(pa.table({"sku": ["d"], "price": [4]}))
    one.sync()
    watcher = audits(b)
    assert [watcher.run_once().mismatches for _ in range(2)] == [1, 0]
    assert audits(b).run_once().mismatches == 0
    (mismatch,) = told(b, "broker.replica.mismatch")
    assert (mismatch["replica"], mismatch["version"], mismatch["rows"], mismatch["expected_rows"]) == ("search", 3, 4, 4)
    assert mismatch["digest"] != mismatch["expected_digest"]


def test_a_mismatch_that_redis_did_not_take_is_told_by_the_next_pass(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Memory()
    one = replica(b, sink)
    one.sync()
    sink._state.rows[("a",)]["price"] = 7
    for price in (2, 3):
        change(b, price)
        one.sync()
    watcher, emit, silent = audits(b), b.parts.events.emit, [Unavailable("redis does not answer")]

    def emitting(*given: Any, **named: Any) -> bool:
        if silent:
            raise silent.pop()
        return emit(*given, **named)

    monkeypatch.setattr(b.parts.events, "emit", emitting)
    first, second, third = (watcher.run_once() for _ in range(3))
    assert (first.mismatches, list(first.failed)) == (0, [OFFERS])
    assert (second.mismatches, second.failed) == (1, {})
    assert third.compared == 0
    assert len(told(b, "broker.replica.mismatch")) == 1


def test_a_receipt_of_a_retired_version_is_not_compared(b: broker.Broker) -> None:
    replica(b).sync()
    b.dataset(OFFERS).publish(pa.table({"sku": ["z"], "price": [9]}))
    gone = Retire(edges=((None, 1),), versions_until=1)
    b.parts.catalog.commit(OFFERS, lambda now: gone if now.edge(None, 1) else None, "retention")
    report = audits(b).run_once()
    assert (report.compared, report.failed) == (0, {})


def test_a_cursor_whose_lease_ends_and_one_that_lags_are_told_of_once(b: broker.Broker) -> None:
    replica(b).sync()
    change(b, 2)
    watcher = audits(b, lag_seconds=0)
    report = watcher.run_once()
    assert (report.expiring, report.lagging) == (0, 1)
    cursor = cursor_of(b)
    b.parts.cursors.lease_seconds = 100.0
    b.parts.redis.run("HDEL", b.parts.index.slot(OFFERS).cursors(OFFERS), "search")
    b.parts.cursors.lease_seconds = 10.0
    b.parts.cursors.report(OFFERS, cursor)
    b.parts.cursors.lease_seconds = 100.0
    reports = [audits(b, lag_seconds=0).run_once() for _ in range(2)]
    assert [(one.expiring, one.lagging) for one in reports] == [(1, 0), (0, 0)]
    (expiring,), (lagging,) = told(b, "broker.replica.expiring"), told(b, "broker.replica.lagging")
    assert 0 < expiring["left_seconds"] <= 10
    assert (lagging["held"], lagging["versions"]) == (1, 1)


def test_a_reset_is_told(b: broker.Broker) -> None:
    sink = Memory()
    replica(b, sink).sync()
    replica(b, sink, where="price > 5").sync()
    (reset,) = told(b, "broker.replica.reset")
    assert (reset["reason"], reset["held"], reset["version"]) == ("filter-changed", 1, 1)
