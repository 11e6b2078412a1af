"""Retention on a real broker: who lives keeps its road, who does not holds nothing, and every decision has a reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace
from typing import Any

import pytest

import broker
from broker.compactor import Compactor, Dues
from broker.cursors import Cursors, LiveCursor
from broker.errors import Invalid, NotFound, Unavailable
from broker.model.commit import Edge, NewEdge, Retire, parse_record
from broker.model.names import DatasetId
from broker.retention import Retention
from broker.rules.fold import State, replay
from broker.rules.levels import Levels, due
from broker.rules.patch import TABLES, Tables, VersionInfo, edge_field
from broker.rules.retention import NEWEST, PRODUCTION_SECONDS, Floors, Wanted, forgotten
from broker.search import Search
from broker.sinks.memory import Memory
from tests.servers import wait_until

OFFERS = DatasetId("shop/catalog/offers")
NO_FLOOR = Floors(versions=1, seconds=0)


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path) as opened:
        yield opened


def cursors(b: broker.Broker, lease_seconds: float = 0.0) -> Cursors:
    """A lease of no time: this Redis has always known everybody for long enough. Who reports under it has lapsed at once."""
    return Cursors(b.parts.redis, b.parts.index, lease_seconds)


def duty(b: broker.Broker, floors: Floors = NO_FLOOR, **named: list[int]) -> Retention:
    parts = b.parts
    return Retention(parts.catalog, parts.index, parts.leases, cursors(b), floors, lambda _: named)


def history(b: broker.Broker) -> broker.Dataset:
    """Snapshots at 1 and 4, deltas to all others up to 6."""
    offers = b.dataset(OFFERS, key=["sku"])
    for version in range(1, 7):
        rows = [{"sku": f"s{number}", "at": version} for number in range(50)]
        if version in (1, 4):
            offers.publish(rows)
        else:
            offers.publish_delta(rows[:40])
    return offers


def pairs(offers: broker.Dataset) -> list[tuple[int | None, int]]:
    return [(edge.base, edge.version) for edge in offers.state.edges]


def test_what_nobody_needs_goes_and_the_newest_version_reads_as_before(b: broker.Broker) -> None:
    offers = history(b)
    before = sorted(map(str, offers.read().to_pylist()))
    report = duty(b).run_once()
    assert (report.retired, report.failed) == (3, {})
    assert pairs(offers) == [(None, 4), (4, 5), (5, 6)]
    assert sorted(map(str, offers.read().to_pylist())) == before
    with pytest.raises(NotFound, match="retired"):
        offers.read(2)
    assert duty(b).run_once().retired == 0


def test_versions_that_no_edge_touches_are_forgotten_but_for_those_whose_production_may_be_repeated(b: broker.Broker) -> None:
    offers = history(b)
    duty(b).apply(OFFERS)
    young = offers.state
    assert [info.version for info in young.versions] == [1, 2, 3, 4, 5, 6]
    later = time.time() + PRODUCTION_SECONDS + 1
    infos, ranges = forgotten(young, [], Wanted(), later)
    assert ([info.version for info in infos], ranges) == ([1, 2, 3], [(1, 3)])
    gone = Retire(versions=tuple(ranges), productions=tuple(str(info.production) for info in infos))
    after = b.parts.catalog.commit(OFFERS, lambda state: None if len(state.versions) == 3 else gone, "retention")
    assert [info.version for info in after.versions] == [4, 5, 6]
    assert b.parts.index.load(OFFERS).tables == after.tables
    assert after.made_by(str(infos[0].production)) is None
    with pytest.raises(NotFound, match="retired"):
        offers.read(2)


def test_the_index_of_attributes_forgets_with_the_projection(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    offers, search = history(b), Search(b.parts.redis, b.parts.index)
    assert [hit.version for hit in search.find({"kind": "delta"})] == [6, 5, 3, 2]
    slot = b.parts.index.slot(OFFERS)
    old = set(b.parts.redis.run("KEYS", slot.key("find:sha256=*")))
    monkeypatch.setattr("broker.retention.time", SimpleNamespace(time=lambda: time.time() + PRODUCTION_SECONDS + 1))
    duty(b).apply(OFFERS)
    assert [info.version for info in offers.state.versions] == [4, 5, 6]
    assert len(set(b.parts.redis.run("KEYS", slot.key("find:sha256=*")))) == len(old) - 3
    assert [hit.version for hit in search.find({"kind": "delta"})] == [6, 5]
    assert [hit.version for hit in search.find({"kind": "snapshot"})] == [4]


def test_a_retirement_that_is_sealed_stands_though_the_index_of_attributes_cannot_be_told(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offers, search = history(b), Search(b.parts.redis, b.parts.index)
    search.find({"kind": "delta"})

    def silent(*given: object) -> None:
        raise Unavailable("redis does not answer")

    monkeypatch.setattr("broker.retention.unindex", silent)
    monkeypatch.setattr("broker.retention.time", SimpleNamespace(time=lambda: time.time() + PRODUCTION_SECONDS + 1))
    report = duty(b).run_once()
    assert (report.retired, report.failed) == (3, {})
    assert "3 versions stay in the index of attributes: redis does not answer" in caplog.text
    assert [info.version for info in offers.state.versions] == [4, 5, 6]
    assert [hit.version for hit in search.find({"kind": "delta"})] == [6, 5], "what is named in vain is left out"


def test_what_nobody_produced_under_a_name_is_forgotten_at_once_and_the_newest_version_never() -> None:
    edge = Edge(version=9)
    infos = {str(version): VersionInfo(version=version, seq=1, time=0, base=None, rows=0, bytes=0) for version in range(1, 10)}
    tables: Tables = {name: {} for name in TABLES}
    tables["head"]["version"] = "9"
    tables["versions"] = {name: info.model_dump_json() for name, info in infos.items()}
    tables["edges"] = {edge_field(4, 6): Edge(base=4, version=6).model_dump_json(), "-9": edge.model_dump_json()}
    assert forgotten(State(OFFERS, tables), [edge], Wanted(), 0)[1] == [(1, 3), (5, 5), (7, 8)]
    standing = Wanted(versions={"channel production": [6]}, readers={"search": 1})
    assert forgotten(State(OFFERS, tables), [edge], standing, 0)[1] == [(1, 1), (3, 3), (5, 5), (8, 8)]


def test_what_goes_is_told_before_and_recorded_after_by_edge_and_file(b: broker.Broker) -> None:
    offers = history(b)
    before, planned = offers.state, duty(b).plan(OFFERS)
    assert offers.state.seq == before.seq, "a plan changes nothing"
    duty(b).apply(OFFERS)
    (record,) = [parse_record(data, "log") for data in b.parts.catalog.records(OFFERS, before.seq + 1)]
    assert isinstance(record.body, Retire)
    assert record.body.edges == ((None, 1), (1, 2), (2, 3)) == tuple((edge.base, edge.version) for edge in planned.retire)
    assert record.body.files == tuple(file.key for edge in planned.retire for file in edge.files)
    assert record.producer == "retention"


def test_roll_ups_that_went_are_not_made_again_whatever_goes_later(b: broker.Broker) -> None:
    offers, parts, levels = b.dataset(OFFERS, key=["sku"]), b.parts, Levels(2, 1e9)
    offers.publish([payload(number) for number in range(50)])
    for number in range(7):
        offers.publish_delta([payload(number)])
    compactor = Compactor(parts.index, parts.catalog, parts.engine, parts.publication, parts.leases, Dues(levels))
    compactor.run_once()
    settled, deltas = Edge(base=4, version=7, settled=True), [offers.state.edge(at, at + 1) for at in (4, 5)]
    offers.publish([payload(number) for number in range(50)])

    def commit(edge: Edge) -> None:
        parts.catalog.commit(OFFERS, lambda now: None if now.edge(edge.base, edge.version) else NewEdge(edge=edge), "test")

    commit(settled)
    duty(b, pinned=[3]).apply(OFFERS)
    assert pairs(offers) == [(None, 1), (1, 2), (2, 3), (None, 9)]
    duty(b).apply(OFFERS)
    assert pairs(offers) == [(None, 9)]
    parts.catalog.commit(OFFERS, lambda now: None if now.seq > offers.state.seq else Retire(files=("gone",)), "erase")
    assert (offers.state.rolled_until, offers.state.settled_until) == (8, 7)
    assert replay(OFFERS, parts.catalog.records(OFFERS)).tables["head"]["rolled_until"] == "8"
    for delta in deltas:
        assert delta is not None
        commit(delta)
    assert [(work.base, work.version) for work in due(offers.state.edges, levels)] == [(4, 6)]
    assert compactor.owed(OFFERS) == []


def test_the_road_of_the_farthest_reader_leads_the_others_where_not_all_fit(b: broker.Broker) -> None:
    offers, parts = b.dataset(OFFERS, key=["sku"]), b.parts
    compactor = Compactor(parts.index, parts.catalog, parts.engine, parts.publication, parts.leases, Dues(Levels(2, 0.5)))
    offers.publish([payload(number) for number in range(200)])
    offers.publish_delta([payload(0)])
    sink = Memory()
    b.replica(OFFERS, name="near", sink=sink).sync()
    for _ in range(2):
        offers.publish_delta([payload(number) for number in range(150)])
        if offers.state.version == 3:
            b.replica(OFFERS, name="near", sink=sink).sync()
    cursors(b, 60).report(OFFERS, LiveCursor(name="far", version=2, session=offers.state.session))
    assert [(work.base, work.version) for work in compactor.compact(OFFERS)] == [(2, 4), (None, 4)]
    planned = Retention(parts.catalog, parts.index, parts.leases, cursors(b), NO_FLOOR).apply(OFFERS)
    assert planned is not None
    assert (planned.why(2, 4), pairs(offers)) == ("cursor far", [(None, 4), (2, 4), (3, 4)]), "the last one for the floor"
    parts.catalog.commit(OFFERS, lambda now: Retire(edges=((3, 4),)) if now.edge(3, 4) else None, "test")
    report = b.replica(OFFERS, name="near", sink=sink).sync()
    assert (report.version, report.reset, report.edges) == (4, None, 1)
    assert sorted(map(str, sink.read().to_pylist())) == sorted(map(str, offers.read().to_pylist()))


def payload(number: int) -> dict[str, object]:
    """About a kilobyte that nothing makes smaller."""
    return {"sku": f"s{number}", "text": token_hex(500)}


def test_a_live_cursor_keeps_its_road_and_a_lapsed_one_does_not(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    rows = [{"sku": f"s{number}", "at": 0} for number in range(2_000)]
    offers.publish(rows)
    for at in range(1, 3):
        offers.publish_delta([{"sku": "s0", "at": at}])
    offers.publish(rows, delta=True)
    b.parts.catalog.commit(OFFERS, lambda now: None if now.edge(None, 4) else NewEdge(edge=whole(offers)), "test")
    live = LiveCursor(name="search", version=2, session=offers.state.session)
    cursors(b, 60).report(OFFERS, live)
    cursors(b, 60).report(OFFERS, LiveCursor(name="old", version=1, session="another"))
    plan = duty(b).apply(OFFERS)
    assert plan is not None
    assert (plan.why(2, 3), plan.why(1, 2)) == ("cursor search", None)
    assert "cursor search" in duty(b).explain(OFFERS, 3)
    assert offers.plan(since=2).reset is None
    cursors(b, 0).report(OFFERS, live)
    duty(b).apply(OFFERS)
    assert pairs(offers) == [(None, 4), (3, 4)], "only what the floor keeps anyway"
    assert offers.plan(since=2).reset == "too-old"


def whole(offers: broker.Dataset) -> Edge:
    """A snapshot of the newest version, as compaction makes it."""
    snapshot = offers.state.edge(None, 1)
    assert snapshot is not None
    return Edge(base=None, version=offers.state.version, files=snapshot.files)


def test_a_replica_goes_on_without_a_reset_over_what_is_left(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": f"s{number}", "at": 0} for number in range(1_000)])
    sink = Memory()
    replica = b.replica(OFFERS, name="search", sink=sink)
    replica.sync()
    cursors(b, 60).report(OFFERS, LiveCursor(name="search", version=1, session=offers.state.session))
    for at in range(1, 4):
        offers.publish_delta([{"sku": "s0", "at": at}])
    offers.publish([{"sku": f"s{number}", "at": 9} for number in range(1_000)])
    offers.publish_delta([{"sku": "s0", "at": 10}])
    duty(b).apply(OFFERS)
    replica.sync()
    assert sorted(map(str, sink.read().to_pylist())) == sorted(map(str, offers.read().to_pylist()))


def test_nothing_goes_before_everybody_alive_had_time_to_be_known(b: broker.Broker) -> None:
    history(b)
    parts = b.parts
    waiting = Retention(parts.catalog, parts.index, parts.leases, cursors(b, 3600), NO_FLOOR)
    assert waiting.apply(OFFERS) is None
    assert waiting.run_once().waits == [OFFERS]


def test_a_redis_that_loses_its_memory_before_the_lease_is_held_gives_nothing_up(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(b)
    parts, held = b.parts, b.parts.leases.held
    patient = Retention(parts.catalog, parts.index, parts.leases, cursors(b, 3600), NO_FLOOR)
    parts.redis.run("HINCRBY", parts.index.slot(OFFERS).meta, "born", -3_600_000)
    assert patient.waits_seconds(OFFERS) == 0

    def and_lost(*args: Any) -> Any:
        parts.redis.servers()[0].flushall()
        parts.catalog.rebuild()
        return held(*args)

    monkeypatch.setattr(parts.leases, "held", and_lost)
    assert patient.apply(OFFERS) is None


def test_holds_channels_and_floors_keep_what_they_name_and_say_so(b: broker.Broker) -> None:
    history(b)
    keeper = duty(b, production=[2])
    keeper.hold(OFFERS, "audit", 1, why="the auditor comes")
    plan = keeper.plan(OFFERS)
    assert plan.why(None, 1) == "production"
    assert plan.why(1, 2) == "production"
    assert plan.why(None, 4) == NEWEST
    assert plan.why(2, 3) is None
    assert "hold audit" in duty(b).explain(OFFERS, 1)
    assert "it goes" in duty(b).explain(OFFERS, 3)
    keeper.release(OFFERS, "audit")
    assert duty(b).plan(OFFERS).why(None, 1) is None
    assert duty(b, Floors(versions=5, seconds=0)).plan(OFFERS).why(2, 3) == "floor"


def test_a_hold_ends_by_itself_and_what_is_gone_cannot_be_held(b: broker.Broker) -> None:
    history(b)
    duty(b).hold(OFFERS, "audit", 1, until=time.time() + 1)
    assert duty(b).plan(OFFERS).why(None, 1) == "hold audit"
    wait_until(lambda: duty(b).plan(OFFERS).why(None, 1) is None, "the hold ends")
    duty(b).apply(OFFERS)
    with pytest.raises(NotFound, match="retired"):
        duty(b).hold(OFFERS, "late", 1)
    with pytest.raises(NotFound, match="no such hold"):
        duty(b).release(OFFERS, "never")


def test_a_hold_that_would_be_over_already_is_refused(b: broker.Broker) -> None:
    offers = history(b)
    for until in (0.0, time.time() - 60, datetime(2020, 1, 1, tzinfo=UTC)):
        with pytest.raises(Invalid, match="over already"):
            offers.hold(version=1, until=until)
    for odd in (timedelta(days=30), "30d"):
        with pytest.raises(Invalid, match="not a time"):
            offers.hold(version=1, until=odd)  # type: ignore[arg-type]
    assert offers.hold(version=1, until=datetime.now(UTC) + timedelta(days=30)) == "v1"


def test_what_is_not_offered_is_not_explained(b: broker.Broker) -> None:
    history(b)
    with pytest.raises(NotFound):
        duty(b).explain(OFFERS, "data/nothing.parquet")
