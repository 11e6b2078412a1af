"""The janitor: finishes what crashed writers left, seals checkpoints, sweeps what nobody names, and harms nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from broker import Broker
from broker.errors import Busy
from broker.janitor import LOOK_SECONDS, RESTS, Janitor
from broker.model import names
from broker.model.names import DatasetId
from broker.stores.memory import MemoryStore
from tests.faulty_store import Fault, FaultyStore, matching, never
from tests.fuse import Crash, Fuse
from tests.ledger import OFFERS, Hand, Source, broker_over

DAY = 86_400.0


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def fuse() -> Fuse:
    return Fuse()


@pytest.fixture
def b(redis_url: str, store: FaultyStore, fuse: Fuse) -> Iterator[Broker]:
    with broker_over(store, redis_url, fuse, reservation_seconds=0, checkpoint_every=4) as connected:
        connected.dataset(OFFERS, key=["sku"]).publish([{"sku": "a", "price": 1}])
        yield connected


@pytest.fixture
def janitor(b: Broker) -> Janitor:
    return Janitor(b.parts.index, b.parts.catalog, b.parts.store, b.parts.leases, b.parts.settings)


def crash_publishing(b: Broker, fuse: Fuse, step: str) -> None:
    fuse.step = step
    with pytest.raises(Crash):
        b.dataset(OFFERS).publish([{"sku": "a", "price": 2}], delta=True)


@pytest.mark.parametrize("step", ["reserve", "seal", "read-back"])
def test_a_commit_that_was_left_behind_its_reservation_is_finished(b: Broker, janitor: Janitor, fuse: Fuse, step: str) -> None:
    crash_publishing(b, fuse, step)
    assert b.dataset(OFFERS).state.version == 1
    assert janitor.run_once("janitor").helped == [OFFERS]
    assert b.dataset(OFFERS).state.version == 2
    assert b.dataset(OFFERS).read()["price"].to_pylist() == [2]
    assert janitor.run_once("janitor").helped == []


def test_a_version_that_nobody_announced_is_announced(b: Broker, janitor: Janitor, fuse: Fuse, store: FaultyStore) -> None:
    b.parts.catalog.close()
    crash_publishing(b, fuse, "publish")
    assert b'"version": 1' in b"".join(store.get(names.notify_key(OFFERS, "live")))
    janitor.run_once("janitor")
    assert b'"version": 2' in b"".join(store.get(names.notify_key(OFFERS, "live")))


def test_a_record_sealed_behind_the_head_that_redis_never_heard_of_is_published(
    b: Broker, janitor: Janitor, fuse: Fuse
) -> None:
    crash_publishing(b, fuse, "seal")
    b.parts.redis.run("HDEL", b.parts.index.slot(OFFERS).head(OFFERS), "reserved_seq", "reserved_data", "reserved_at")
    assert janitor.run_once("janitor").helped == [OFFERS]
    assert b.dataset(OFFERS).state.version == 2


class Watched:
    """A janitor whose clock stands still, and whom it visited."""

    def __init__(self, b: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.visited, self._help = 1_000.0, list[DatasetId](), b.parts.catalog.help
        monkeypatch.setattr("broker.janitor.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(b.parts.catalog, "help", self._visit)
        self._janitor = Janitor(b.parts.index, b.parts.catalog, b.parts.store, b.parts.leases, b.parts.settings)

    def _visit(self, dataset: DatasetId, older_than_seconds: float, look: bool) -> bool:
        self.visited.append(dataset)
        return self._help(dataset, older_than_seconds, look)

    def run(self, later: float = 0.0) -> list[DatasetId]:
        self.now += later
        self.visited.clear()
        self._janitor.run_once("janitor")
        return list(self.visited)


def test_what_a_writer_is_just_finishing_is_left_to_it(
    redis_url: str, store: FaultyStore, fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker_over(store, redis_url, fuse, reservation_seconds=30) as b:
        b.dataset(OFFERS, key=["sku"]).publish([{"sku": "a", "price": 1}])
        b.parts.catalog.close()
        janitor = Watched(b, monkeypatch)
        assert [janitor.run(), janitor.run()] == [[OFFERS], []]
        crash_publishing(b, fuse, "reserve")
        assert [janitor.run(), janitor.run(29.0), janitor.run(1.0)] == [[], [], [OFFERS]]


def test_a_bell_that_rings_again_and_again_is_not_visited_though_it_is_always_behind(
    redis_url: str, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker_over(store, redis_url, reservation_seconds=30) as b:
        offers, janitor, visits = b.dataset(OFFERS, key=["sku"]), Watched(b, monkeypatch), list[list[DatasetId]]()
        for price in range(4):
            offers.publish([{"sku": "a", "price": price}])
            b.parts.catalog.close()
            b.parts.redis.run("HSET", b.parts.index.slot(OFFERS).head(OFFERS), "notified", offers.state.seq - 1)
            visits.append(janitor.run(31.0))
        assert visits == [[OFFERS], [], [], []]
        assert janitor.run(31.0) == [OFFERS]


AT_REST = [DatasetId(f"acme/catalog/d{number}") for number in range(3)]


@pytest.fixture
def watched(redis_url: str, store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Of datasets at rest, of which each pass looks at one."""
    monkeypatch.setattr("broker.janitor.LOOKS_SECONDS", 0.0)
    with broker_over(store, redis_url) as b:
        for id in AT_REST:
            b.dataset(id, key=["sku"])
        b.parts.catalog.close()
        yield Watched(b, monkeypatch)


def test_of_many_datasets_at_rest_each_pass_looks_at_a_few(watched: Watched) -> None:
    looked = [watched.run(1.0), watched.run(1.0), watched.run(1.0), watched.run(1.0)]
    assert [len(some) for some in looked] == [1, 1, 1, 0]
    assert {id for some in looked for id in some} == set(AT_REST)
    assert [watched.run(LOOK_SECONDS), watched.run(), watched.run()] == looked[:3]


def test_one_that_cannot_be_looked_at_keeps_no_other_from_its_look(watched: Watched, store: FaultyStore) -> None:
    store.plan = matching("get", "/d1/log/", Fault.REFUSED)
    assert sorted(id for _ in AT_REST for id in watched.run(1.0)) == AT_REST


def test_what_stands_open_is_looked_at_first_by_a_worker_that_has_only_begun(
    redis_url: str, store: FaultyStore, fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.janitor.LOOKS_SECONDS", 0.0)
    with broker_over(store, redis_url, fuse, reservation_seconds=30) as b:
        for name in ("acme/catalog/aa", OFFERS, "acme/catalog/zz"):
            b.dataset(name, key=["sku"]).publish([{"sku": "a", "price": 1}])
        crash_publishing(b, fuse, "reserve")
        b.parts.catalog.close()
        assert Watched(b, monkeypatch).run() == [OFFERS]


def test_a_first_pass_over_many_logs_with_checkpoints_is_short_too(
    redis_url: str, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.janitor.LOOKS_SECONDS", 0.0)
    with broker_over(store, redis_url, checkpoint_every=2) as b:
        for number in range(3):
            b.dataset(f"acme/catalog/d{number}", key=["sku"]).publish([{"sku": "a"}])
        b.parts.catalog.close()
        janitor = Watched(b, monkeypatch)
        assert [len(janitor.run(1.0)) for _ in range(4)] == [1, 1, 1, 0]
    assert len([info for info in store.list("acme/") if "/checkpoint/" in info.key]) == 3


def test_a_sweep_rests_between_datasets_and_ends_where_its_worker_does(b: Broker, janitor: Janitor, store: FaultyStore) -> None:
    for name in ("acme/catalog/d1", "acme/catalog/d2", "acme/pricing/d3"):
        b.dataset(name, key=["sku"])
    rests = list[float]()

    def rest(seconds: float) -> bool:
        rests.append(seconds)
        return len(rests) == 2

    begun = time.monotonic()
    janitor.sweep("janitor", rest)
    assert len(rests) == 2
    assert RESTS * (time.monotonic() - begun) > sum(rests) > 0
    rests.append(0.0)
    assert not janitor.sweep("janitor", rest).failed
    assert len(rests) == 3 + 4


def test_checkpoints_are_sealed_at_their_numbers(b: Broker, janitor: Janitor, store: FaultyStore) -> None:
    assert janitor.run_once("janitor").checkpoints == 0
    b.dataset(OFFERS).publish([{"sku": "b", "price": 1}])
    assert [janitor.run_once("janitor").checkpoints for _ in range(2)] == [1, 0]
    assert store.stat(names.checkpoint_key(OFFERS, 4)) is not None


def test_two_janitors_do_not_do_the_same_work_at_once(b: Broker, janitor: Janitor, fuse: Fuse) -> None:
    crash_publishing(b, fuse, "reserve")
    slot = b.parts.index.slot(OFFERS)
    with b.parts.leases.held(slot, "lease:janitor", "the other"):
        assert janitor.run_once("janitor").helped == []
        with pytest.raises(Busy):
            b.parts.leases.acquire(slot, "lease:janitor", "janitor")
    assert janitor.run_once("janitor").helped == [OFFERS]


def test_orphans_are_swept_when_they_are_old_and_nothing_else_is(
    b: Broker, janitor: Janitor, fuse: Fuse, store: FaultyStore
) -> None:
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    kept = {info.key for info in store.list(f"{OFFERS}/data/")}
    crash_publishing(b, fuse, "upload")
    assert janitor.sweep("janitor").swept == 0
    clock = inner.clock
    inner.clock = lambda: clock() + 1.5 * DAY
    b.dataset(OFFERS).publish([{"sku": "c", "price": 3}])
    named = {info.key for info in store.list(f"{OFFERS}/data/")} - kept
    assert janitor.sweep("janitor").swept == 1
    left = {info.key for info in store.list(f"{OFFERS}/data/")}
    assert kept <= left
    assert len(named - left) == 1
    assert b.dataset(OFFERS).read()["sku"].to_pylist() == ["c"]


def test_a_sweep_amid_an_upload_spares_it_for_longer_than_it_may_be_committed(
    b: Broker, janitor: Janitor, fuse: Fuse, store: FaultyStore
) -> None:
    inner, settings = store.inner, b.parts.settings
    assert isinstance(inner, MemoryStore)
    clock, swept = inner.clock, list[int]()

    def sweep() -> None:
        """By the store's clock the upload is as old as a commit may find it, twice over, less a minute."""
        inner.clock = lambda: clock() + settings.orphan_seconds - 60
        assert settings.upload_max_age_seconds * 2 <= settings.orphan_seconds
        swept.append(janitor.sweep("janitor").swept)

    fuse.step, fuse.act = "upload", sweep
    b.dataset(OFFERS).publish([{"sku": "b", "price": 2}])
    assert swept == [0]
    assert b.dataset(OFFERS).read()["sku"].to_pylist() == ["b"]


def test_nothing_is_deleted_when_the_log_cannot_be_read(b: Broker, janitor: Janitor, fuse: Fuse, store: FaultyStore) -> None:
    crash_publishing(b, fuse, "upload")
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    clock = inner.clock
    inner.clock = lambda: clock() + 2 * DAY
    store.plan = matching("get", "/log/", Fault.REFUSED)
    report = janitor.sweep("janitor")
    assert (report.swept, list(report.failed)) == (0, [OFFERS])
    assert store.calls["delete"] == 0
    store.plan = never
    assert janitor.sweep("janitor").swept == 1


def test_a_dataset_that_is_broken_or_dropped_does_not_keep_the_janitor_from_the_others(
    b: Broker, janitor: Janitor, fuse: Fuse, store: FaultyStore
) -> None:
    for name in ("aaa/catalog/dropped", "aaa/catalog/broken"):
        b.dataset(name, key=["sku"])
    b.dataset("aaa/catalog/dropped").drop()
    store.inner.put(names.log_key(DatasetId("aaa/catalog/broken"), 2), b"no record")
    crash_publishing(b, fuse, "reserve")
    report = janitor.sweep("janitor")
    assert report.helped == [OFFERS]
    assert list(report.failed) == ["aaa/catalog/broken"]


def test_what_a_dropped_dataset_left_is_swept_and_its_log_is_not(b: Broker, janitor: Janitor, store: FaultyStore) -> None:
    files = [file.key for edge in b.dataset(OFFERS).state.edges for file in edge.files]
    b.dataset(OFFERS).drop()
    left = [names.data_key(OFFERS), names.derived_key(OFFERS, 0, "f", "csv")]
    for key in left:
        store.put(key, b"left behind")
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    clock = inner.clock
    inner.clock = lambda: clock() + 30 * DAY
    assert janitor.sweep("janitor").swept == len(left) + len(files)
    assert list(store.list(f"{OFFERS}/data/")) == []
    assert [info.key for info in store.list(f"{OFFERS}/log/")] == [names.log_key(OFFERS, seq) for seq in (1, 2, 3, 4)]


def test_a_pass_over_datasets_at_rest_asks_the_store_nothing(b: Broker, janitor: Janitor, store: FaultyStore) -> None:
    for number in range(9):
        b.dataset(f"aaa/catalog/d{number}", key=["sku"]).publish([{"sku": "a"}])
    b.parts.catalog.close()
    janitor.run_once("janitor")
    before = store.calls.total()
    janitor.run_once("janitor")
    assert store.calls.total() == before


def test_two_loops_of_one_name_are_two_janitors(b: Broker, janitor: Janitor, fuse: Fuse) -> None:
    crash_publishing(b, fuse, "reserve")
    with b.parts.leases.held(b.parts.index.slot(OFFERS), "lease:janitor", "worker"):
        assert janitor.run_once("worker").helped == []
    assert janitor.run_once("worker").helped == [OFFERS]


def test_a_notification_that_was_overwritten_with_an_older_one_is_written_anew(
    b: Broker, janitor: Janitor, store: FaultyStore
) -> None:
    key = names.notify_key(OFFERS, "live")
    b.parts.catalog.close()
    older = b"".join(store.get(key))
    b.dataset(OFFERS).publish([{"sku": "a", "price": 2}], delta=True)
    b.parts.catalog.close()
    store.put(key, older)  # by a writer that was slow between its look and its write, and died behind it
    janitor.run_once("janitor")
    assert b'"version": 2' in b"".join(store.get(key))


@pytest.mark.parametrize("stray", ["stray.txt", "hour/x/y.jsonl", "\u00b2/x/y.jsonl"])
def test_an_object_that_is_not_ours_among_the_derived_stays_and_harms_nothing(
    b: Broker, janitor: Janitor, store: FaultyStore, stray: str
) -> None:
    store.inner.put(f"{OFFERS}/derived/{stray}", b"")
    assert janitor.sweep("janitor").failed == {}
    assert store.stat(f"{OFFERS}/derived/{stray}") is not None


def test_derived_files_go_by_the_clock_of_the_store_an_hour_behind_theirs(
    b: Broker, janitor: Janitor, store: FaultyStore
) -> None:
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    keys = {hour: names.derived_key(OFFERS, hour, "f", "jsonl") for hour in (997, 998, 999)}
    for key in keys.values():
        store.put(key, b"")
    inner.clock = lambda: 998 * 3600 + 60.0
    assert janitor.sweep("janitor").swept == 1
    assert {hour for hour, key in keys.items() if store.stat(key)} == {998, 999}


def test_a_log_with_a_hole_sweeps_nothing(b: Broker, janitor: Janitor, fuse: Fuse, store: FaultyStore) -> None:
    crash_publishing(b, fuse, "upload")
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    clock = inner.clock
    inner.clock = lambda: clock() + 2 * DAY
    hidden = b"".join(inner.get(names.log_key(OFFERS, 2)))
    inner.delete([names.log_key(OFFERS, 2)])
    report = janitor.sweep("janitor")
    assert (report.swept, store.calls["delete"]) == (0, 0)
    assert "log 2" in report.failed[OFFERS]
    inner.put(names.log_key(OFFERS, 2), hidden)
    assert janitor.sweep("janitor").swept == 1


def test_a_sweeper_whose_lease_is_lost_deletes_nothing(
    b: Broker, janitor: Janitor, fuse: Fuse, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_publishing(b, fuse, "upload")
    inner = store.inner
    assert isinstance(inner, MemoryStore)
    clock, records = inner.clock, b.parts.catalog.records
    inner.clock = lambda: clock() + 2 * DAY

    def slow(dataset: DatasetId, first: int = 1) -> Iterator[bytes]:
        b.parts.redis.run("DEL", b.parts.index.slot(OFFERS).lease("lease:sweep"))  # as if it slept through its time
        return records(dataset, first)

    monkeypatch.setattr(b.parts.catalog, "records", slow)
    assert list(janitor.sweep("janitor").failed) == [OFFERS]
    assert store.calls["delete"] == 0


def test_derived_files_stay_as_long_as_the_answer_says_however_slowly_they_were_made(b: Broker, janitor: Janitor) -> None:
    hand = Hand(b.parts, Source())
    handle = b.request(OFFERS, target="search", where="price > 5", max_staleness=None)
    flight = hand.lead()
    produced = hand.produce(flight)
    members = hand.clerk.close(flight)
    (order,) = hand.clerk.orders(flight, members, produced.version)
    late = order.model_copy(update={"expires_at": order.expires_at - 2 * 3600})  # it took two hours to make them
    hand.clerk.keep([late], hand.maker.derive([late]))
    hand.clerk.complete(flight, members, produced)
    answer = handle.wait(30)
    hour = int(answer.files[0].key.split("/derived/")[1].split("/")[0])
    assert answer.expires_at <= hour * 3600
