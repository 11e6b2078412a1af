"""Erasure on a real broker: no object has the key, every version reads as if it never had, and consumers let it go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import broker
from broker.cli.erase import erasure_of
from broker.cli.exits import Exit
from broker.columnar.engine import EVERYTHING
from broker.columnar.rewrite import OneKey
from broker.compactor import Compactor, Dues
from broker.connect import Broker
from broker.cursors import Cursors, LiveCursor
from broker.erasure import Erased, Erasure
from broker.errors import BadData, Busy, Fenced, TimedOut
from broker.model.commit import Edge, NewEdge, Retire, parse_record
from broker.model.names import DatasetId, data_key
from broker.parts import open_parts
from broker.rules.levels import Levels
from broker.rules.patch import MARK_SECONDS
from broker.settings import Settings, load
from broker.sinks.memory import Memory
from tests.cli import Cli
from workers.batching import Batching

OFFERS = DatasetId("shop/catalog/offers")
KEY = "secret-7"
LAST = 10_000


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[Broker]:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as opened:
        yield opened


def made(b: Broker, order: list[str]) -> broker.Dataset:
    """Snapshots, deltas, roll-ups, tombstones: the key is in all kinds of files."""
    offers = b.dataset(OFFERS, key=["sku"], order=order)
    rows = [{"sku": f"s{n}", "at": 1, "price": n} for n in range(20)]
    offers.publish([*rows, {"sku": KEY, "at": 1, "price": 7}])
    for version in range(2, 10):
        if version % 4 == 0:
            offers.publish_delta(None, [{"sku": KEY} | ({"at": version} if order else {})])
        else:
            offers.publish_delta(
                [{"sku": KEY, "at": version, "price": version}, {"sku": f"n{version}", "at": version, "price": 0}]
            )
    parts = b.parts
    tools = parts.index, parts.catalog, parts.engine, parts.publication, parts.leases
    Compactor(*tools, Dues(Levels(2, 0.5, 0), (lambda _: 1) if order else None)).run_once()
    return offers


def contents(offers: broker.Dataset, last: int) -> list[dict[str, Any]]:
    return [
        {row["sku"]: row for row in offers.read(version).to_pylist() if row["sku"] != KEY} for version in range(1, last + 1)
    ]


def traces(tmp_path: Path) -> list[str]:
    """Files below the store's data and derived folders that say the key, as Parquet or as bytes."""
    found = []
    for path in (tmp_path / "store" / OFFERS).rglob("*"):
        if path.is_file() and path.parts[-2] != "log" and ("data" in path.parts or "derived" in path.parts):
            said = (
                KEY in str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else KEY.encode() in path.read_bytes()
            )
            found += [path.name] if said else []
    return found


@pytest.mark.parametrize("order", [[], ["at"]], ids=["without order", "with order"])
def test_no_object_has_the_key_and_every_version_reads_as_before_without_it(
    b: Broker, tmp_path: Path, order: list[str]
) -> None:
    offers = made(b, order)
    before, settled = contents(offers, 9), [(edge.base, edge.version) for edge in offers.state.edges if edge.settled]
    assert len(traces(tmp_path)) > 9
    assert bool(settled) == bool(order)
    report = erasure_of(b).erase(OFFERS, KEY)
    assert report.done
    assert report.deleted_in == 10
    assert traces(tmp_path) == []
    assert contents(offers, 9) == before
    assert [(edge.base, edge.version) for edge in offers.state.edges if edge.settled] == settled
    assert all(KEY not in str(offers.read(version).column("sku").to_pylist()) for version in range(1, 11))
    assert offers.past.history(KEY) == []
    assert [checked.error for checked in offers.verify() if checked.error] == []


def test_every_rewritten_edge_is_an_edge_record_and_a_retirement_of_its_old_files(b: Broker) -> None:
    offers = made(b, [])
    before, seq = {(e.base, e.version): e for e in offers.state.edges}, offers.state.seq
    report = erasure_of(b).erase(OFFERS, KEY)
    bodies = [parse_record(data, "test").body for data in b.parts.catalog.records(OFFERS, seq + 2)]
    edges, retired = [x for x in bodies if isinstance(x, NewEdge)], [x for x in bodies if isinstance(x, Retire)]
    assert [(x.edge.base, x.edge.version) for x in edges] == report.rewritten
    assert len(retired) == len(edges) == len(bodies) / 2
    gone = {file.key for edge in before.values() for file in edge.files} - {f.key for e in offers.state.edges for f in e.files}
    assert {key for x in retired for key in x.files} >= gone
    assert offers.state.version == 10


def test_what_compaction_merged_before_the_erasure_is_refused_after_it(b: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the key would come back in a roll-up."""
    offers, parts, derive = made(b, []), b.parts, b.parts.engine.derive
    duty = Compactor(parts.index, parts.catalog, parts.engine, parts.publication, parts.leases, Dues(Levels(2, 1e9, 0)))
    offers.publish_delta([{"sku": KEY, "at": 10, "price": 10}])

    def and_erased(*args: Any) -> Edge:
        monkeypatch.undo()
        edge = derive(*args)
        erasure_of(b).erase(OFFERS, KEY)
        return edge

    monkeypatch.setattr(parts.engine, "derive", and_erased)
    assert [(work.base, work.version) for work in duty.compact(OFFERS)] == [(8, 10)], "merged anew"
    assert list(OneKey(parts.engine, offers.spec, [KEY]).holding([f for e in offers.state.edges for f in e.files])) == []


def test_once_more_changes_nothing(b: Broker) -> None:
    offers = made(b, ["at"])
    erasure_of(b).erase(OFFERS, KEY)
    seq = offers.state.seq
    again = erasure_of(b).erase(OFFERS, KEY)
    assert (again.done, again.rewritten, again.removed, again.deleted_in) == (True, [], [], None)
    assert offers.state.seq == seq


@pytest.mark.parametrize("order", [[], ["at"]], ids=["without order", "with order"])
def test_a_consumer_gets_the_delete_before_it_goes(b: Broker, tmp_path: Path, order: list[str]) -> None:
    offers = made(b, order)
    sink = Memory()
    replica = b.replica(OFFERS, name="app", sink=sink)
    replica.sync()
    ledger = Cursors(b.parts.redis, b.parts.index, MARK_SECONDS)

    def stands() -> None:
        state = offers.state
        ledger.report(OFFERS, LiveCursor(name="app", version=state.version, session=state.session))

    stands()
    first = erasure_of(b).erase(OFFERS, KEY)
    assert (first.done, first.waits_for) == (False, ["app"])
    assert len(traces(tmp_path)) == 1  # the delete
    replica.sync()
    assert KEY not in str(sink.rows)
    stands()
    assert erasure_of(b).erase(OFFERS, KEY).done
    assert traces(tmp_path) == []
    replica.sync()


def test_now_does_not_wait_for_consumers(b: Broker, tmp_path: Path) -> None:
    offers = made(b, [])
    ledger = Cursors(b.parts.redis, b.parts.index, MARK_SECONDS)
    ledger.report(OFFERS, LiveCursor(name="app", version=9, session=offers.state.session))
    assert erasure_of(b).erase(OFFERS, KEY, now=True).done
    assert traces(tmp_path) == []


def test_what_is_committed_while_the_store_is_cleared_stays_whole(b: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source has the row still, or again: its version is read like any other, and the next erasure takes the key out."""
    offers, named = made(b, []), Erasure._named
    again = [{"sku": KEY, "at": 11, "price": 11}, {"sku": "late", "at": 11, "price": 1}]

    def and_committed(erasure: Erasure, *args: Any) -> Any:
        monkeypatch.undo()
        offers.publish_delta(again)
        return named(erasure, *args)

    monkeypatch.setattr(Erasure, "_named", and_committed)
    report = erasure_of(b).erase(OFFERS, KEY)
    assert (report.done, report.holding) == (False, [file.key for file in offers.state.edges[-1].files])
    assert [checked.error for checked in offers.verify() if checked.error] == []
    assert {row["sku"] for row in offers.read().to_pylist()} >= {KEY, "late"}
    assert erasure_of(b).erase(OFFERS, KEY).done
    assert "late" in offers.read().column("sku").to_pylist()


def test_a_redis_without_memory_lets_deletes_stay_for_consumers_it_does_not_know(
    b: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.erasure.CLOCKS_SECONDS", 0.0)
    offers, sink = made(b, []), Memory()
    replica = b.replica(OFFERS, name="app", sink=sink)
    replica.sync()
    offers.publish_delta([{"sku": KEY, "at": 10, "price": 10}])
    replica.sync()
    assert KEY in str(sink.rows)
    b.parts.redis.servers()[0].flushall()
    b.parts.catalog.rebuild()
    first = erasure_of(b).erase(OFFERS, KEY)
    assert (first.done, first.waits_for) == (False, [])
    assert 0 < MARK_SECONDS - first.waits_seconds < 3600
    deletes = {Path(file.key).name for edge in offers.state.edges for file in edge.files if file.role == "deletes"}
    assert set(traces(tmp_path)) == deletes
    replica.sync()
    assert KEY not in str(sink.rows)
    ledger = Cursors(b.parts.redis, b.parts.index, lease_seconds=0)
    assert replace(erasure_of(b), cursors=ledger).erase(OFFERS, KEY).done, "a lease later"
    assert traces(tmp_path) == []


@pytest.mark.parametrize("order", [[], ["at"]], ids=["without order", "with order"])
def test_whom_nobody_knows_of_begins_anew_behind_the_erased_delete(b: Broker, order: list[str]) -> None:
    """A target without a cursor, a replica whose first sync was under way, one whose lease lapsed: the key would stay there."""
    offers, sink = made(b, order), Memory()
    replica = b.replica(OFFERS, name="app", sink=sink)
    replica.sync()
    assert KEY in str(sink.rows)
    Cursors(b.parts.redis, b.parts.index, MARK_SECONDS).forget(OFFERS, "app")
    assert erasure_of(b).erase(OFFERS, KEY).done
    assert (offers.state.version, offers.state.erased_until) == (10, 10)
    assert offers.plan(8, 9).base == 8
    assert (offers.plan(9).base, offers.plan(9).reset) == (None, "too-old")
    report = replica.sync()
    assert (report.version, report.reset, KEY in str(sink.rows)) == (10, "too-old", False)
    assert replica.sync().mode == "up-to-date"
    offers.publish_delta([{"sku": "next", "at": 11, "price": 1}])
    report = replica.sync()
    assert (report.version, report.reset) == (11, None)
    assert sorted(map(str, sink.read().to_pylist())) == sorted(map(str, offers.read().to_pylist()))
    assert b.parts.catalog.rebuild()
    assert offers.state.erased_until == 10


def test_what_was_reserved_long_ago_is_a_version_before_the_key_leaves_it(redis_url: str, tmp_path: Path) -> None:
    """Its files look like those of an upload that died; once sealed, they are what its version says."""

    def on_step(step: str) -> None:
        if step == "seal":
            raise Died(step)

    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as b:
        b.dataset(OFFERS, key=["sku"]).publish([{"sku": "s0", "price": 1}])
    settings: Settings = load(redis=redis_url, store=str(tmp_path / "store"))
    with Broker(open_parts(settings, on_step)) as b, pytest.raises(Died):
        b.dataset(OFFERS).publish_delta([{"sku": KEY, "price": 7}, {"sku": "s1", "price": 1}])
    for path in (tmp_path / "store" / OFFERS / "data").iterdir():
        os.utime(path, (0, 0))
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as b:
        offers = b.dataset(OFFERS)
        assert erasure_of(b).erase(OFFERS, KEY).done
        assert [checked.error for checked in offers.verify() if checked.error] == []
        assert sorted(offers.read().column("sku").to_pylist()) == ["s0", "s1"]
    assert traces(tmp_path) == []


class Died(BaseException):
    """As a kill: nothing behind it runs."""


def test_who_dies_at_any_step_leaves_what_the_next_finishes(redis_url: str, tmp_path: Path) -> None:
    left = [0]

    def on_step(step: str) -> None:
        if step != "notify":  # the bell's own thread
            left[0] -= 1
            if left[0] == 0:
                raise Died(step)

    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as b:
        made(b, ["at"])
        before = contents(b.dataset(OFFERS), 9)
    settings: Settings = load(redis=redis_url, store=str(tmp_path / "store"), lease_seconds=0.2, reservation_seconds=0)
    deaths = 0
    for at in (1, 2, 3, 5, 7, 8, 9, 11, 12, 14, 17, 19, 23, LAST):
        left[0] = at
        if at == LAST:  # an upload nobody named may be at work for half a day: here it has been
            for path in (tmp_path / "store" / OFFERS / "data").iterdir():
                os.utime(path, (0, 0))
        with Broker(open_parts(settings, on_step)) as b:
            try:
                done = retried(erasure_of(b))
            except Died:
                deaths += 1
                continue
            assert done.done
    assert deaths >= 8
    assert traces(tmp_path) == []
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as b:
        assert contents(b.dataset(OFFERS), 9) == before
        assert [checked.error for checked in b.dataset(OFFERS).verify() if checked.error] == []


def retried(erasure: Erasure) -> Erased:
    """Until the lease of the one that died has lapsed; a lease this short may lapse at work, too."""
    while True:
        try:
            return erasure.erase(OFFERS, KEY)
        except (Busy, Fenced):
            continue


def test_derived_files_and_leftovers_are_found_too(b: Broker, tmp_path: Path) -> None:
    offers = made(b, [])
    state, parts = offers.state, b.parts
    key_of = lambda form: f"{OFFERS}/derived/999999/{'0' * 16}/{form}.{form}"  # noqa: E731
    edges = offers.plan().edges
    for form in ("jsonl", "csv", "arrow"):
        edge = parts.engine.derive(state.spec, edges, EVERYTHING, form, key_of)
        parts.derived.put(OFFERS, "0" * 16, state.version, edge, 4e9)
    leftover = data_key(OFFERS, "parquet")
    table = offers.read(1)
    pq.write_table(table, tmp_path / "leftover.parquet")
    parts.store.put(leftover, (tmp_path / "leftover.parquet").read_bytes())
    report = erasure_of(b).erase(OFFERS, KEY)
    assert report.holding == [leftover]  # young: it may be an upload at work
    assert len(traces(tmp_path)) == 1
    assert parts.redis.run("KEYS", parts.index.slot(OFFERS).key("derived:*")) == []


def test_changes_that_wait_are_taken_into_a_version_first(b: Broker, tmp_path: Path) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    offers.changelog.append([{"sku": KEY, "price": 1}, {"sku": "b", "price": 2}])
    with pytest.raises(TimedOut):
        erasure_of(b).erase(OFFERS, KEY, timeout=0.2)
    role = Batching(b.parts)
    role.keep()
    while not role.idle():
        role.run_once()
    role.close()
    assert erasure_of(b).erase(OFFERS, KEY).done
    assert traces(tmp_path) == []
    assert offers.read().column("sku").to_pylist() == ["b"]


def test_a_key_nobody_has_and_one_that_is_none(b: Broker) -> None:
    offers = b.dataset(OFFERS, key=["id"])
    offers.publish([{"id": 1}])
    report = erasure_of(b).erase(OFFERS, 2)
    assert (report.done, report.rewritten, report.deleted_in, report.objects) == (True, [], None, 1)
    with pytest.raises(BadData):
        erasure_of(b).erase(OFFERS, "two")
    assert erasure_of(b).erase(OFFERS, 1).done
    assert offers.read().num_rows == offers.read(1).num_rows == 0


def test_the_command_line_says_what_is_left(
    b: Broker, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": "a"}, {"sku": "b"}])
    ledger = Cursors(b.parts.redis, b.parts.index, MARK_SECONDS)
    ledger.report(OFFERS, LiveCursor(name="app", version=1, session=offers.state.session))
    left = cli("erase", OFFERS, "a")
    assert left.code == Exit.FAILED
    assert "the delete stays for app" in left.out
    done = cli.json("erase", OFFERS, "a", "--now")
    assert (done["done"], done["holding"]) == (True, [])
    assert cli("erase", "shop/catalog/none", "a").code == Exit.NOT_FOUND
    assert cli("erase", OFFERS, "a", "b").code == Exit.USAGE
