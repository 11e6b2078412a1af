"""Channels on a real Redis: what a promotion, a rollback and a release promise, and what becomes of them in a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import Any

import pytest

from broker import Broker, Column, Dataset, Schema
from broker.backend.keys import retention_lease
from broker.cursors import Cursors
from broker.errors import Busy, Conflict, Invalid, InvalidName, InvalidRequest, NotFound
from broker.janitor import Janitor
from broker.model import names
from broker.model.commit import Announce, NewEdge, Point, Retire
from broker.model.names import ChannelsId, DatasetId
from broker.retention import Retention
from broker.rules.announcing import Wish, moved
from broker.rules.fold import State
from broker.rules.publishing import STEPS, ReserveAnswer
from broker.rules.retention import Floors
from broker.sinks.memory import Memory
from broker.stores.memory import MemoryStore
from broker.stores.port import ObjectInfo
from tests.faulty_store import FaultyStore
from tests.fuse import Crash, Fuse
from tests.ledger import broker_over
from tests.servers import RedisServer

OFFERS, IMAGES = DatasetId("acme/catalog/offers"), DatasetId("acme/catalog/images")
LOG = ChannelsId("acme/catalog")


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def fuse() -> Fuse:
    return Fuse()


@pytest.fixture
def b(redis_url: str, store: FaultyStore, fuse: Fuse) -> Iterator[Broker]:
    with broker_over(store, redis_url, fuse, reservation_seconds=0, lease_seconds=2) as connected:
        yield connected


@pytest.fixture
def offers(b: Broker) -> Dataset:
    return history(b, OFFERS)


def history(b: Broker, dataset: str, count: int = 4) -> Dataset:
    """A snapshot, and deltas up to version `count`."""
    found = b.dataset(dataset, key="sku")
    found.publish([{"sku": f"s{number}", "at": 1} for number in range(20)])
    for version in range(2, count + 1):
        found.publish_delta([{"sku": "s0", "at": version}])
    return found


def end_session(dataset: Dataset) -> None:
    """A change of schema that no replica can follow."""
    columns = (Column(name="sku", type="VARCHAR"), Column(name="at", type="VARCHAR"))
    dataset.alter(Schema(columns=columns), force=True)


def janitor(b: Broker) -> Janitor:
    return Janitor(b.parts.index, b.parts.catalog, b.parts.store, b.parts.leases, b.parts.settings)


def events(b: Broker, kind: str = "broker.channel.") -> list[dict[str, Any]]:
    entries = b.parts.redis.run("XRANGE", b.parts.index.slot(OFFERS).events, "-", "+", writes=False)
    found = [json.loads(fields[1]) for _, fields in entries]
    return [event for event in found if event["type"].startswith(kind)]


def notified(b: Broker, channel: str = "production", dataset: DatasetId = OFFERS) -> dict[str, Any]:
    """What the file says once the bell has rung."""
    b.parts.catalog.close()
    told: dict[str, Any] = json.loads(b"".join(b.parts.store.get(names.notify_key(dataset, channel))))
    return told


def announcements(b: Broker) -> int:
    return b.parts.catalog.known(LOG).seq


# --- promote


def test_a_promotion_moves_a_channel_by_one_record_and_one_event(b: Broker, offers: Dataset) -> None:
    assert offers.promote(2, to="production") == 1
    assert offers.promote(3, to="production", expect=2) == 2
    named = offers.channels()["production"]
    assert (named.version, named.seq, named.why, [point.version for point in named.past]) == (3, 2, "promoted", [2])
    assert [(event["subject"], event["data"]["version"], event["data"]["before"]) for event in events(b)] == [
        (OFFERS, 2, 0), (OFFERS, 3, 2),
    ]  # fmt: skip
    assert events(b)[1]["type"] == "broker.channel.promoted"


def test_what_stands_already_is_not_announced_again(b: Broker, offers: Dataset) -> None:
    first = offers.promote(2, to="production")
    assert offers.promote(2, to="production") == first
    assert offers.promote(2, to="production", expect=0) == first
    assert (announcements(b), len(events(b))) == (1, 1)


def test_a_channel_that_moved_meanwhile_is_a_conflict_and_stays_where_it_is(b: Broker, offers: Dataset) -> None:
    with pytest.raises(Conflict, match="not named yet"):
        offers.promote(1, to="production", expect=2)
    offers.promote(2, to="production", expect=0)
    with pytest.raises(Conflict, match="at version 2, expected was 1"):
        offers.promote(3, to="production", expect=1)
    assert (offers.channels()["production"].version, announcements(b)) == (2, 1)


def test_only_a_version_that_can_be_read_is_announced(b: Broker, offers: Dataset) -> None:
    with pytest.raises(NotFound, match="no such version"):
        offers.promote(9, to="production")
    b.parts.catalog.commit(OFFERS, lambda state: Retire(edges=((1, 2),)) if state.edge(1, 2) else None, "test")
    with pytest.raises(NotFound, match="no road"):
        offers.promote(2, to="production")
    end_session(offers)
    with pytest.raises(NotFound, match="no road"):
        offers.promote(4, to="production")
    with pytest.raises(NotFound, match="no such dataset"):
        b.parts.channels.promote(DatasetId("acme/catalog/none"), 1, "production")
    assert announcements(b) == 0


@pytest.mark.parametrize("odd", ["1", 1.0, True, 0, None])
def test_what_is_no_number_of_a_version_is_refused_before_anything_is_written(b: Broker, offers: Dataset, odd: Any) -> None:
    with pytest.raises(Invalid, match="not a version"):
        offers.promote(version=odd, to="production")
    with pytest.raises(Invalid, match="not a version"):
        b.release("acme/catalog", {"offers": odd}, to="production")
    assert announcements(b) == 0


@pytest.mark.parametrize("channel", ["live", "Production", "a/b", "", "a:b"])
def test_a_channel_must_have_a_name_of_its_own(offers: Dataset, channel: str) -> None:
    with pytest.raises(InvalidName):
        offers.promote(1, to=channel)
    with pytest.raises(InvalidName):
        offers.rollback(channel)


def test_of_two_promoters_at_once_one_is_told_of_the_other(b: Broker, offers: Dataset) -> None:
    offers.promote(1, to="production")
    start = Barrier(2)

    def promote(version: int) -> int | Conflict:
        start.wait(10)
        try:
            return offers.promote(version, to="production", expect=1)
        except Conflict as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(promote, (2, 3)))
    assert sorted(isinstance(each, Conflict) for each in found) == [False, True]
    winner = 2 if found[1].__class__ is Conflict else 3
    assert (offers.channels()["production"].version, announcements(b)) == (winner, 2)


def test_a_promotion_that_was_overtaken_is_done_and_does_not_take_the_channel_back(
    b: Broker, offers: Dataset, fuse: Fuse
) -> None:
    """The head moves on between the publishing of an announcement and its author's look at it."""

    def later(state: State) -> Announce | None:
        return moved(state, Wish("production", {"offers": Point(4, offers.state.session)}))

    fuse.step, fuse.act = "publish", lambda: b.parts.catalog.commit(LOG, later, "another")
    assert offers.promote(3, to="production", expect=0) == 1
    assert (offers.channels()["production"].version, announcements(b)) == (4, 2)


# --- rollback


def test_a_rollback_is_an_announcement_of_what_was_named_before(b: Broker, offers: Dataset) -> None:
    for version in (1, 2, 3):
        offers.promote(version, to="production")
    assert offers.rollback("production") == 4
    named = offers.channels()["production"]
    assert (named.version, named.why, named.left) == (2, "rolled-back", (3, offers.state.session))
    event = events(b)[-1]
    assert (event["type"], event["data"]["version"], event["data"]["before"]) == ("broker.channel.rolled-back", 2, 3)
    offers.rollback("production")
    assert offers.channels()["production"].version == 1
    with pytest.raises(Conflict, match="nothing to roll back to"):
        offers.rollback("production")


def test_a_rollback_that_names_what_it_leaves_can_be_repeated(b: Broker, offers: Dataset) -> None:
    for version in (1, 2, 3):
        offers.promote(version, to="production")
    assert offers.rollback("production", expect=3) == offers.rollback("production", expect=3) == 4
    with pytest.raises(Conflict, match="at version 2, expected was 1"):
        offers.rollback("production", expect=1)
    with pytest.raises(NotFound, match="staging"):
        offers.rollback("staging")


def test_nobody_is_rolled_back_into_a_session_that_is_over(b: Broker, offers: Dataset) -> None:
    offers.promote(4, to="production")
    end_session(offers)
    offers.publish([{"sku": "s0", "at": "5"}])
    offers.promote(5, to="production", expect=4)
    with pytest.raises(NotFound, match="session that is over"):
        offers.rollback("production")
    assert offers.channels()["production"].version == 5


# --- release


def test_a_release_moves_several_datasets_at_one_moment(b: Broker, offers: Dataset) -> None:
    history(b, IMAGES)
    b.release("acme/catalog", {"offers": 2, "images": 3}, to="production", expect={"offers": 0, "images": 0})
    assert b.released("acme/catalog", "production") == {"images": 3, "offers": 2}
    assert announcements(b) == 1
    assert [(event["type"], event["subject"]) for event in events(b)] == [
        ("broker.channel.released", OFFERS), ("broker.channel.released", IMAGES),
    ]  # fmt: skip
    assert len({event["id"] for event in events(b)}) == 2
    assert (notified(b)["version"], notified(b, dataset=IMAGES)["version"]) == (2, 3)


@pytest.mark.parametrize(
    ("versions", "expect", "error"),
    [
        ({"offers": 3, "images": 9}, {}, NotFound),
        ({"offers": 3, "images": 3}, {"images": 1}, Conflict),
        ({"offers": 3, "none": 1}, {}, NotFound),
        ({"offers": 3}, {"images": 2}, InvalidRequest),
        ({}, {}, InvalidRequest),
    ],
)
def test_a_release_happens_whole_or_not_at_all(
    b: Broker, offers: Dataset, versions: dict[str, int], expect: dict[str, int], error: type[Exception]
) -> None:
    history(b, IMAGES)
    b.release("acme/catalog", {"offers": 2, "images": 2}, to="production")
    with pytest.raises(error):
        b.release("acme/catalog", versions, to="production", expect=expect)
    assert b.released("acme/catalog", "production") == {"images": 2, "offers": 2}
    assert announcements(b) == 1


def test_a_release_announces_only_what_moves(b: Broker, offers: Dataset) -> None:
    history(b, IMAGES)
    offers.promote(1, to="production")
    offers.promote(2, to="production")
    b.release("acme/catalog", {"offers": 2, "images": 2}, to="production")
    assert [event["subject"] for event in events(b, "broker.channel.released")] == [IMAGES]
    offers.rollback("production")
    assert b.released("acme/catalog", "production") == {"images": 2, "offers": 1}


# --- crashes and losses


@pytest.mark.parametrize("step", STEPS[:-1])
def test_an_announcement_whose_author_died_behind_its_reservation_is_made_by_others(
    b: Broker, offers: Dataset, fuse: Fuse, step: str
) -> None:
    offers.promote(1, to="production")
    b.parts.catalog.close()
    fuse.step = step
    with pytest.raises(Crash):
        offers.promote(3, to="production", expect=1)
    janitor(b).run_once("janitor")
    assert offers.channels()["production"].version == 3
    assert (notified(b)["version"], notified(b)["announced"]) == (3, 2)
    assert len(events(b)) == 2
    assert offers.promote(3, to="production", expect=1) == 2


def test_an_announcement_that_the_index_never_heard_of_is_no_reason_to_fail(b: Broker, offers: Dataset, fuse: Fuse) -> None:
    """Its seq is taken: the next one finds that out behind its own reservation, and takes the lease once more."""
    offers.promote(1, to="production")
    fuse.step = "seal"
    with pytest.raises(Crash):
        offers.promote(2, to="production")
    b.parts.redis.run("HDEL", b.parts.index.slot(LOG).head(LOG), "reserved_seq", "reserved_data", "reserved_at")
    assert offers.promote(3, to="production") == 3
    assert [point.version for point in offers.channels()["production"].past] == [2, 1]


def test_what_somebody_else_announced_meanwhile_is_told_by_the_number_of_theirs(
    b: Broker, offers: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promoter sleeps past its lease; its reservation never came about, and the number it had in mind is another's."""
    images, slot = history(b, IMAGES), b.parts.index.slot(OFFERS)

    def overtaken(*_: Any) -> list[ReserveAnswer]:
        monkeypatch.undo()
        b.parts.redis.run("DEL", slot.lease(retention_lease(OFFERS)))
        assert [images.promote(1, to="production"), offers.promote(2, to="production")] == [1, 2]
        return [ReserveAnswer("unknown")]

    monkeypatch.setattr(b.parts.index, "reserve_all", overtaken)
    assert offers.promote(2, to="production") == 2


def test_a_release_of_more_datasets_than_are_looked_at_together(b: Broker) -> None:
    versions = {f"d{number:02}": 1 for number in range(20)}
    for name in versions:
        b.dataset(f"acme/catalog/{name}", key="sku").publish([{"sku": "a"}])
    assert b.release("acme/catalog", versions, to="production") == 1
    assert b.released("acme/catalog", "production") == versions


def test_who_tries_again_after_a_crash_finishes_what_was_reserved(b: Broker, offers: Dataset, fuse: Fuse) -> None:
    fuse.step = "reserve"
    with pytest.raises(Crash):
        offers.promote(1, to="production")
    assert offers.promote(2, to="production") == 2
    assert [point.version for point in offers.channels()["production"].past] == [1]


def test_channels_come_back_from_the_store_alone(
    b: Broker, offers: Dataset, redis_server: RedisServer, store: FaultyStore
) -> None:
    history(b, IMAGES)
    b.release("acme/catalog", {"offers": 3, "images": 2}, to="production")
    offers.promote(4, to="staging")
    offers.promote(4, to="production")
    offers.rollback("production")
    b.parts.catalog.close()
    before, past = b.released("acme/catalog", "production"), offers.channels()["production"].past
    told = {key: b"".join(store.get(key)) for key in (info.key for info in store.list("acme/")) if "/notify/" in key}
    redis_server.flush()
    found = b.parts.catalog.rebuild()
    assert set(found) == {LOG, OFFERS, IMAGES}
    assert b.datasets() == [IMAGES, OFFERS]
    assert b.released("acme/catalog", "production") == before == {"images": 2, "offers": 3}
    assert offers.channels()["production"].past == past
    again = {key: json.loads(b"".join(store.get(key))) for key in told}
    for key, data in told.items():
        assert {**json.loads(data), "seq": 0} == {**again[key], "seq": 0}
    assert offers.promote(4, to="production", expect=3)


def test_without_a_rebuild_the_first_look_restores_them(b: Broker, offers: Dataset, redis_server: RedisServer) -> None:
    offers.promote(2, to="production")
    b.parts.catalog.close()
    redis_server.flush()
    assert offers.channels()["production"].version == 2
    assert b.parts.channels.find("*")[0].channel == "production"


def test_a_checkpoint_is_sealed_of_announcements_too(redis_url: str, redis_server: RedisServer) -> None:
    store = MemoryStore()
    with broker_over(store, redis_url, checkpoint_every=4) as b:
        offers = history(b, OFFERS)
        for number in range(5):
            offers.promote(number % 2 + 1, to="production")
        janitor(b).run_once("janitor")
        assert store.stat(names.checkpoint_key(LOG, 4)) is not None
        store.delete([names.log_key(LOG, seq) for seq in range(1, 4)])
        b.parts.catalog.close()
        redis_server.flush()
        assert offers.channels()["production"].version == 1
        assert janitor(b).sweep("sweep").failed == {}


# --- apart from datasets


def test_the_log_of_announcements_is_no_dataset(b: Broker, offers: Dataset) -> None:
    offers.promote(1, to="production")
    assert b.datasets() == [OFFERS]
    assert list(b.parts.index.glance(b.parts.index.slot(OFFERS))) == [OFFERS]
    assert b.parts.index.logs(b.parts.index.slot(OFFERS)) == [LOG, OFFERS]
    with pytest.raises(InvalidName):
        b.dataset(LOG)
    with pytest.raises(InvalidName):
        b.dataset("acme/catalog/=channels", key="sku")


@pytest.mark.parametrize("text", ["acme", "acme/catalog/offers", "Acme/catalog", "acme//", "../catalog", "acme/..", ""])
def test_only_a_tenants_domain_has_announcements(b: Broker, text: str) -> None:
    with pytest.raises(InvalidName):
        b.released(text, "production")


# --- notify files


def test_a_channels_file_is_enough_to_fetch_the_version(b: Broker, offers: Dataset) -> None:
    offers.promote(3, to="production")
    told = notified(b)
    assert (told["channel"], told["version"], told["announced"], told["session"]) == (
        "production", 3, 1, offers.state.session,
    )  # fmt: skip
    assert told["snapshot"]["version"] == 1
    assert [(edge["base"], edge["version"]) for edge in told["deltas"]] == [(1, 2), (2, 3)]
    offers.publish([{"sku": "s1", "at": 9}])
    assert notified(b)["snapshot"]["version"] == 1
    assert notified(b, "live")["version"] == 5


def test_a_file_whose_road_changed_is_written_again_and_another_is_left_alone(
    b: Broker, offers: Dataset, store: FaultyStore
) -> None:
    offers.promote(3, to="production")
    notified(b)
    writes = store.calls["put"]
    offers.publish_delta([{"sku": "s0", "at": 5}])
    notified(b)
    assert store.calls["put"] == writes + 1
    rolled = offers.plan(version=3).edges[0].model_copy(update={"version": 3})
    b.parts.catalog.commit(OFFERS, lambda state: None if state.edge(None, 3) else NewEdge(edge=rolled), "test")
    assert notified(b)["snapshot"]["version"] == 3
    assert notified(b)["deltas"] == []


def test_a_road_through_a_roll_up_is_told_where_a_delta_is_gone(b: Broker, offers: Dataset) -> None:
    roll = offers.state.edge(1, 2)
    assert roll is not None
    wide = roll.model_copy(update={"version": 3})
    b.parts.catalog.commit(OFFERS, lambda state: None if state.edge(1, 3) else NewEdge(edge=wide), "test")
    b.parts.catalog.commit(OFFERS, lambda state: Retire(edges=((1, 2),)) if state.edge(1, 2) else None, "test")
    offers.promote(4, to="production")
    told = notified(b)
    assert told["snapshot"]["version"] == 1
    assert [(edge["base"], edge["version"]) for edge in told["deltas"]] == [(1, 3), (3, 4)]


def test_a_file_is_written_again_when_its_channel_moved_under_the_pen(
    b: Broker, offers: Dataset, fuse: Fuse, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By somebody who died before ringing: nobody else will write the file before the janitor comes."""
    b.parts.catalog.close()  # what the versions ring for is written
    moves, put = iter([3]), store.put

    def moving(key: str, data: bytes) -> ObjectInfo:
        for version in moves if key.endswith("production.json") else ():
            fuse.step = "publish"
            with suppress(Crash):
                offers.promote(version, to="production")
        return put(key, data)

    monkeypatch.setattr(store, "put", moving)
    offers.promote(2, to="production")
    assert (notified(b)["version"], notified(b)["announced"]) == (3, 2)


def test_a_file_that_a_slow_writer_wrote_over_is_found_by_the_janitor(b: Broker, offers: Dataset, store: FaultyStore) -> None:
    offers.promote(1, to="production")
    notified(b)
    old = b"".join(store.get(names.notify_key(OFFERS, "production")))
    offers.promote(2, to="production")
    notified(b)
    store.inner.put(names.notify_key(OFFERS, "production"), old)
    assert notified(b)["version"] == 1
    janitor(b).run_once("janitor")
    assert notified(b)["version"] == 2


def test_where_the_session_is_over_a_file_leads_nowhere(b: Broker, offers: Dataset) -> None:
    offers.promote(2, to="production")
    end_session(offers)
    told = notified(b)
    assert (told["version"], told["snapshot"], told["deltas"]) == (2, None, [])
    assert told["session"] != offers.state.session


# --- retention


def retention(b: Broker) -> Retention:
    parts, cursors = b.parts, Cursors(b.parts.redis, b.parts.index, 0)
    return Retention(parts.catalog, parts.index, parts.leases, cursors, Floors(1, 0), parts.channels.pins)


def two_snapshots_more(offers: Dataset) -> None:
    """So that nothing but a channel needs the versions before."""
    for at in (5, 6):
        offers.publish([{"sku": "s0", "at": at}])


def test_what_a_channel_named_lately_stays_readable(b: Broker, offers: Dataset) -> None:
    for version in (1, 2, 3):
        offers.promote(version, to="production")
    offers.rollback("production")
    assert b.parts.channels.pins(OFFERS) == {"channel production": [2, 3, 1]}
    two_snapshots_more(offers)
    retention(b).apply(OFFERS)
    assert [len(offers.read(version)) for version in (1, 2, 3, 6)] == [20, 20, 20, 1]
    with pytest.raises(NotFound, match="retired"):
        offers.read(4)
    assert "channel production" in retention(b).explain(OFFERS, 2)


def test_a_version_whose_promotion_was_left_behind_its_reservation_keeps_its_road(
    b: Broker, offers: Dataset, fuse: Fuse
) -> None:
    two_snapshots_more(offers)
    fuse.step = "reserve"
    with pytest.raises(Crash):
        offers.promote(2, to="production")
    retention(b).apply(OFFERS)
    assert offers.channels()["production"].version == 2
    assert len(offers.read(2)) == 20


def test_a_version_whose_retirement_was_left_behind_its_reservation_is_not_promoted(
    b: Broker, offers: Dataset, fuse: Fuse
) -> None:
    two_snapshots_more(offers)
    fuse.step = "reserve"
    with pytest.raises(Crash):
        retention(b).apply(OFFERS)
    with pytest.raises(NotFound, match="retired"):
        offers.promote(2, to="production")


def test_retention_and_promotion_do_not_pass_each_other_unseen(b: Broker, offers: Dataset) -> None:
    """Who retires and who promotes hold one lease: neither acts on what the other is about to change."""
    slot = b.parts.index.slot(OFFERS)
    with b.parts.leases.held(slot, retention_lease(OFFERS), "retention"), pytest.raises(Busy):
        offers.promote(2, to="production")
    assert announcements(b) == 0
    assert offers.promote(2, to="production") == 1


def test_the_reservation_gives_the_lease_back(redis_url: str, store: FaultyStore) -> None:
    """Whoever comes next finds it and settles it, though the promoter sleeps from there on: no lease must lapse first."""
    held = list[tuple[str, int]]()

    def look(step: str) -> None:
        slot = first.parts.index.slot(OFFERS)
        held.append((step, first.parts.redis.run("EXISTS", slot.lease(retention_lease(OFFERS)), writes=False)))

    with broker_over(store, redis_url) as first:
        offers = history(first, OFFERS)
        offers.promote(1, to="production")
        with broker_over(store, redis_url, look) as other:
            for _ in range(2):
                assert other.dataset(OFFERS).promote(2, to="production") == 2
            with pytest.raises(NotFound):
                other.dataset(OFFERS).promote(9, to="production")
        look("behind")
    assert held == [(step, 0) for step in (*STEPS, "behind")]


# --- replicas


def test_a_replica_goes_where_its_channel_goes(b: Broker, offers: Dataset) -> None:
    sink = Memory()
    replica = b.replica(OFFERS, name="search", sink=sink, channel="production")
    assert replica.sync().mode == "nothing-yet"
    offers.promote(2, to="production")
    assert (replica.sync().version, rows(sink)) == (2, rows_of(offers, 2))
    offers.publish_delta([{"sku": "s1", "at": 9}])
    assert replica.sync().mode == "up-to-date"
    offers.promote(5, to="production")
    report = replica.sync()
    assert (report.version, report.reset, report.edges, rows(sink)) == (5, None, 3, rows_of(offers, 5))
    offers.rollback("production")
    report = replica.sync()
    assert (report.version, report.reset, rows(sink)) == (2, "rolled-back", rows_of(offers, 2))


def test_a_replica_keeps_what_it_has_while_its_channel_names_a_session_that_is_over(b: Broker, offers: Dataset) -> None:
    sink = Memory()
    replica = b.replica(OFFERS, name="search", sink=sink, channel="production")
    offers.promote(2, to="production")
    replica.sync()
    end_session(offers)
    offers.publish([{"sku": "z", "at": "1"}])
    assert (replica.sync().mode, len(rows(sink))) == ("nothing-yet", 20)
    offers.promote(5, to="production")
    assert (replica.sync().reset, rows(sink)) == ("new-session", rows_of(offers, 5))


def rows(sink: Memory) -> list[str]:
    return sorted(map(str, sink.read().to_pylist()))


def rows_of(dataset: Dataset, version: int) -> list[str]:
    return sorted(map(str, dataset.read(version).to_pylist()))
