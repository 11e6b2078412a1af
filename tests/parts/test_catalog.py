"""The catalog over a store that fails: what is sealed, what is visible, and that no decision follows from an unknown answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from broker import Broker, Dataset
from broker.backend.client import RedisClient, Script
from broker.catalog import Moment
from broker.columnar.types import arrow_schema
from broker.errors import (
    BrokerError,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Reconciling,
    SchemaConflict,
    StaleBase,
    Transient,
    Unavailable,
    Unsupported,
)
from broker.model import names
from broker.model.commit import Hold
from broker.model.dataset import Column, Schema
from broker.model.names import DatasetId
from broker.outcomes import Snapshot
from broker.publication import Note
from broker.stores.memory import MemoryStore
from tests.faulty_store import Fault, FaultyStore, matching, never
from tests.ledger import OFFERS, broker_over

ROWS = [{"sku": "a", "price": 1}, {"sku": "b", "price": 60}]
MORE = [*ROWS, {"sku": "c", "price": 7}]


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def b(redis_url: str, store: FaultyStore) -> Iterator[Broker]:
    with broker_over(store, redis_url) as connected:
        yield connected


@pytest.fixture
def offers(b: Broker) -> Dataset:
    """One version, and a store without faults so far."""
    dataset = b.dataset(OFFERS, key=["sku"])
    dataset.publish(ROWS)
    return dataset


def kinds(b: Broker, dataset: DatasetId = OFFERS) -> list[str]:
    from broker.model.commit import parse_record

    return [parse_record(data, "log").body.kind for data in b.parts.catalog.records(dataset)]


def once(method: str, part: str, fault: Fault) -> Callable[[str, str, int], Fault | None]:
    """The plan in which the next call of `method` for such a key fails, and no other."""
    left = [fault]
    return lambda called, key, _: left.pop() if left and called == method and part in key else None


@pytest.mark.parametrize("fault", [Fault.UNKNOWN_DONE, Fault.UNKNOWN_LOST, Fault.UNKNOWN_LATE])
def test_a_seal_of_unknown_outcome_is_read_back_and_the_version_lands_once(
    b: Broker, offers: Dataset, store: FaultyStore, fault: Fault
) -> None:
    store.plan = once("put_if_absent", "/log/", fault)
    assert offers.publish(MORE, delta=True).version == 2
    store.land()
    assert store.hits["put_if_absent", fault] == 1
    assert kinds(b) == ["create", "alter", "version", "version"]
    assert offers.read().num_rows == 3


def test_a_store_that_is_silent_behind_the_reservation_leaves_the_outcome_unknown_and_the_repetition_finds_out(
    b: Broker, offers: Dataset, store: FaultyStore
) -> None:
    store.plan = matching("put_if_absent", "/log/", Fault.REFUSED)
    note = Note(production="job-17")
    with pytest.raises(OutcomeUnknown, match="Do the same again"):
        b.parts.publication.difference(OFFERS, MORE, note)
    assert offers.state.version == 1
    store.plan = never
    assert b.parts.publication.difference(OFFERS, MORE, note).version == 2
    assert kinds(b) == ["create", "alter", "version", "version"]


@pytest.mark.parametrize("silence", [Unavailable("away"), Overloaded("full"), Reconciling("restarted")])
def test_a_reservation_whose_answer_is_lost_leaves_the_outcome_unknown_when_redis_then_refuses_to_be_asked(
    b: Broker, offers: Dataset, monkeypatch: pytest.MonkeyPatch, silence: BrokerError
) -> None:
    call_many, lost = RedisClient.call_many, list[str]()

    def losing(self: RedisClient, script: Script, calls: Any) -> Any:
        if lost:
            raise silence
        reply = call_many(self, script, calls)
        if script.name == "reserve":
            lost.append(script.name)
            raise OutcomeUnknown("the reply was lost")
        return reply

    note = Note(production="job-17")
    with monkeypatch.context() as patch:
        patch.setattr(RedisClient, "call_many", losing)
        with pytest.raises(OutcomeUnknown, match="Do the same again"):
            b.parts.publication.delta(OFFERS, MORE, None, note)
    b.parts.catalog.help(OFFERS, 0)
    assert offers.state.version == 2
    assert b.parts.publication.delta(OFFERS, MORE, None, note).version == 2


@pytest.mark.parametrize("method", ["upload", "stat"])
def test_a_store_that_refuses_the_files_seals_nothing(b: Broker, offers: Dataset, store: FaultyStore, method: str) -> None:
    store.plan = matching("upload", "/data/", Fault.REFUSED)
    with pytest.raises(Transient):
        offers.publish(MORE, delta=True)
    assert kinds(b) == ["create", "alter", "version"]
    store.plan = never
    assert offers.publish(MORE, delta=True).version == 2


@pytest.mark.parametrize("fault", [Fault.TRUNCATED, Fault.OTHER_BYTES])
def test_files_that_the_store_keeps_otherwise_than_they_were_sent_are_never_sealed(
    b: Broker, offers: Dataset, store: FaultyStore, fault: Fault
) -> None:
    store.plan = matching("upload", "/data/", fault)
    with pytest.raises(BrokerError):
        offers.publish(MORE, delta=True)
    assert store.hits["upload", fault]
    assert kinds(b) == ["create", "alter", "version"]
    assert offers.latest().version == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.TRUNCATED, Fault.OTHER_BYTES])
def test_a_reader_never_sees_bytes_that_are_not_the_recorded_ones(
    redis_url: str, offers: Dataset, store: FaultyStore, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "locate", lambda key, _: f"https://store.invalid/{key}")  # a store on the other side of a net
    with broker_over(store, redis_url) as reader:  # one that has fetched nothing yet
        store.plan = matching("get", "/data/", fault)
        with pytest.raises(Corrupt):
            reader.dataset(OFFERS).read()
        store.plan = never
        assert reader.dataset(OFFERS).read().num_rows == 2


def test_a_bit_that_flips_in_a_value_of_a_record_read_back_does_not_break_the_chain(
    b: Broker, offers: Dataset, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, flips = store.inner.get, [1]

    def flipping(key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        data = b"".join(get(key, start, length))
        yield data.replace(b'"why":"one"', b'"why":"onf"') if key.endswith("4.json") and flips and flips.pop() else data

    monkeypatch.setattr(store.inner, "get", flipping)
    offers.publish(MORE, delta=True, attributes={"why": "one"})
    assert not flips
    offers.publish(ROWS, delta=True)
    assert kinds(b) == ["create", "alter", "version", "version", "version"]
    assert [info.custom for info in offers.versions()][1] == {"why": "one"}


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.TRUNCATED, Fault.OTHER_BYTES])
def test_a_record_read_back_spoiled_once_never_becomes_the_index(
    b: Broker, offers: Dataset, store: FaultyStore, fault: Fault
) -> None:
    store.plan = once("get", "/log/", fault)
    try:
        offers.publish(MORE, delta=True)
    except BrokerError:
        b.parts.catalog.help(OFFERS, 0)
    assert store.hits["get", fault] == 1
    store.plan = never
    assert offers.state.sha == b.parts.index.head(OFFERS).sha
    offers.publish(ROWS, delta=True)
    assert kinds(b) == ["create", "alter", "version", "version", "version"]
    assert offers.state.version == 3


def test_a_record_that_is_gone_is_never_written_anew_with_other_bytes(b: Broker, offers: Dataset, store: FaultyStore) -> None:
    store.inner.delete([names.log_key(OFFERS, 3)])
    b.parts.redis.run("FLUSHALL")
    b.parts.catalog.reconcile(OFFERS)
    assert offers.state.version == 0
    assert kinds(b) == ["create", "alter", "barrier"]


def test_a_log_that_forked_is_corrupt_and_stays_unread(b: Broker, offers: Dataset, store: FaultyStore) -> None:
    from broker.model.commit import parse_record

    record = parse_record(b"".join(store.get(names.log_key(OFFERS, 3))), "log")
    forked = record.model_copy(update={"previous": "f" * 64}).to_bytes()
    store.inner.put(names.log_key(OFFERS, 3), forked)
    b.parts.redis.run("FLUSHALL")
    with pytest.raises(Corrupt, match="log"):
        b.parts.catalog.reconcile(OFFERS)


def test_notify_is_best_effort_and_the_next_visit_catches_up(b: Broker, offers: Dataset, store: FaultyStore) -> None:
    store.plan = matching("put", "/notify/", Fault.REFUSED)
    assert offers.publish(MORE, delta=True).version == 2
    store.plan = never
    b.parts.catalog.help(OFFERS, 0)
    assert b'"version": 2' in b"".join(store.get(names.notify_key(OFFERS, "live")))


# --- specs


def test_opening_with_another_spec_is_a_conflict(b: Broker, offers: Dataset) -> None:
    assert b.dataset(OFFERS, key=["sku"]).state.version == 1
    for other in ({"key": ["price"]}, {"key": ["sku"], "order": ["price"]}, {"key": ["sku"], "partitions": 2}):
        with pytest.raises(Conflict):
            b.dataset(OFFERS, **other)


def test_a_dataset_in_several_partitions_is_refused_until_partitions_mean_something(b: Broker) -> None:
    with pytest.raises(Unsupported, match="partitions"):
        b.dataset(OFFERS, key=["sku"], partitions=2)
    assert b.datasets() == []


BIG = [{str(n): "x" for n in range(65)}, {"name": "x" * 4096}]


@pytest.mark.parametrize("attributes", BIG)
def test_attributes_of_datasets_and_versions_are_bounded(b: Broker, offers: Dataset, attributes: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="attribute"):
        b.dataset("a/b/c", key=["sku"], attributes=attributes)
    with pytest.raises(Invalid, match="attribute"):
        offers.publish(MORE, attributes=attributes)
    with pytest.raises(Invalid, match="attribute"):
        Snapshot(MORE, attributes=attributes)
    with pytest.raises(Invalid, match="attribute"):
        b.request(OFFERS, target="shop", attributes=attributes)
    with pytest.raises(Invalid, match="since"):
        b.request(OFFERS, target="shop", since="1~" + "x" * 65)
    assert kinds(b) == ["create", "alter", "version"]
    fits = {str(n): "x" for n in range(64)}
    assert offers.publish(MORE, attributes=fits).version == 2
    assert offers.versions()[-1].custom == fits


def columns(*names: str, type: str = "BIGINT") -> Schema:
    return Schema(columns=(Column(name="sku", type="VARCHAR"), *(Column(name=name, type=type) for name in names)))


def test_a_schema_from_which_the_dataset_has_grown_opens_it_and_another_is_named_in_the_conflict(b: Broker) -> None:
    asked = columns("price", type="INTEGER")
    b.dataset(OFFERS, key=["sku"], schema=asked).alter(columns("price", "stock"))
    assert b.dataset(OFFERS, key=["sku"], schema=asked).state.spec.columns == columns("price", "stock")
    with pytest.raises(Conflict, match=r"price BIGINT, stock BIGINT, asked for sku VARCHAR, price VARCHAR") as caught:
        b.dataset(OFFERS, key=["sku"], schema=columns("price", type="VARCHAR"))
    assert "its key" not in str(caught.value)
    with pytest.raises(Conflict, match="columns"):
        b.dataset(OFFERS, key=["sku"], schema=columns("price", "stock", "colour"))


def test_an_arrow_schema_opens_the_dataset_whose_key_is_never_null(b: Broker) -> None:
    b.dataset(OFFERS, key=["sku"]).publish(ROWS)
    schema = pa.schema([("sku", pa.string()), ("price", pa.int64())])
    assert b.dataset(OFFERS, key=["sku"], schema=schema).state.version == 1


TYPES = [
    ("TEXT", "VARCHAR"), ("int", "INTEGER"), ("REAL", "FLOAT"), ("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"),
    ("NUMERIC(10,2)", "DECIMAL(10,2)"), ("DECIMAL(18, 2)", "DECIMAL(18,2)"), ("hugeint", "HUGEINT"),
    ("struct(Ab int, cD text[])", 'STRUCT("Ab" INTEGER, "cD" VARCHAR[])'),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "kept"), TYPES)
def test_a_column_type_is_kept_under_the_one_name_that_data_of_it_has(b: Broker, asked: str, kept: str) -> None:
    schema = Schema(columns=(Column(name="sku", type="STRING"), Column(name="c", type=asked)))
    dataset = b.dataset(OFFERS, key=["sku"], schema=schema)
    assert b.dataset(OFFERS, key=["sku"], schema=schema).state.seq == 1
    assert dataset.spec.columns
    assert dataset.spec.columns.types == {"sku": "VARCHAR", "c": kept}
    dataset.alter(Schema(columns=(*dataset.spec.columns.columns, Column(name="more", type=asked))))
    assert dataset.spec.columns.types["more"] == kept
    if kept != "HUGEINT":  # which integers fit, and Arrow has no name for
        assert dataset.publish(arrow_schema(dataset.spec.columns).empty_table()).version == 1


@pytest.mark.parametrize("type", ["TEXTT", "VARCHAR); DROP TABLE x; --", "INT, '1')", "ENUM('a')", "INT" + "[]" * 3000])
def test_what_is_no_column_type_is_refused_before_anything_is_sealed(b: Broker, offers: Dataset, type: str) -> None:
    assert offers.spec.columns
    before = offers.state.seq
    with pytest.raises(SchemaConflict, match="not a column type"):
        offers.alter(Schema(columns=(*offers.spec.columns.columns, Column(name="c", type=type))))
    assert offers.state.seq == before
    with pytest.raises(SchemaConflict, match=r"\[bad\]"):
        b.dataset("a/b/c", key=["sku"], schema=columns("bad", type=type))
    assert b.datasets("a/*") == []


def test_another_life_of_tombstones_is_a_conflict_only_where_it_is_asked_for(b: Broker) -> None:
    b.dataset(OFFERS, key=["sku"], tombstone_seconds=60, attributes={"owner": "shop"})
    assert b.dataset(OFFERS, key=["sku"], attributes={"owner": "else"}).state.spec.attributes == {"owner": "shop"}
    assert b.dataset(OFFERS, key=["sku"], tombstone_seconds=60).state.spec.tombstone_seconds == 60
    with pytest.raises(Conflict, match="tombstone_seconds is 60, asked for 61"):
        b.dataset(OFFERS, key=["sku"], tombstone_seconds=61)


def test_a_dropped_dataset_is_unknown_and_a_new_one_begins_a_new_session(b: Broker, offers: Dataset) -> None:
    session = offers.state.session
    offers.drop()
    for call in (lambda: b.dataset(OFFERS), lambda: b.request(OFFERS, target="search"), offers.read):
        with pytest.raises(NotFound):
            call()
    again = b.dataset(OFFERS, key=["sku"])
    assert again.state.session != session
    assert again.publish(ROWS).version == 2


def test_a_schema_change_that_loses_something_is_refused_unless_forced(offers: Dataset) -> None:
    session = offers.state.session
    narrow = Schema(columns=(Column(name="sku", type="VARCHAR"),))
    with pytest.raises(SchemaConflict):
        offers.alter(narrow)
    offers.alter(narrow, force=True)
    assert offers.state.session != session


# --- checkpoints


def test_files_that_grew_old_while_the_machine_slept_are_refused(redis_url: str) -> None:
    with broker_over(MemoryStore(), redis_url) as b:
        before = b.dataset(OFFERS, key=["sku"]).state.seq
        asleep = Moment(time.monotonic(), time.time() - b.parts.settings.upload_max_age_seconds - 1)
        with pytest.raises(StaleBase):
            b.parts.catalog.commit(OFFERS, lambda _: Hold(name="x", version=1), "test", uploaded_at=asleep)
        assert b.dataset(OFFERS).state.seq == before
        assert Moment.now(60).age_seconds >= 60


def test_a_rebuild_starts_at_the_checkpoint_and_needs_nothing_below_it(redis_url: str) -> None:
    store: Any = FaultyStore(MemoryStore())
    with broker_over(store, redis_url, checkpoint_every=2) as b:
        dataset = b.dataset(OFFERS, key=["sku"])
        for price in range(5):
            dataset.publish([{"sku": "a", "price": price}], delta=True)
        before = dataset.versions()
        sealed = b.parts.catalog.checkpoint(OFFERS)
        assert sealed == 6
        assert b.parts.catalog.checkpoint(OFFERS) is None
        store.inner.delete([names.log_key(OFFERS, seq) for seq in range(1, sealed + 1)])
        b.parts.redis.run("FLUSHALL")
        assert list(b.parts.catalog.rebuild()) == [OFFERS]
        assert dataset.versions() == before
        assert dataset.read(3)["price"].to_pylist() == [2]


def test_a_store_that_lists_nothing_does_not_hide_the_log(b: Broker, offers: Dataset, store: FaultyStore) -> None:
    store.plan = matching("list", "", Fault.STALE)
    b.parts.redis.run("FLUSHALL")
    assert offers.state.version == 1


def test_a_store_that_is_away_is_a_typed_error(b: Broker, offers: Dataset, store: FaultyStore) -> None:
    store.plan = lambda *_: Fault.REFUSED
    with pytest.raises(Unavailable):
        offers.read()
    with pytest.raises(Transient):
        offers.publish(MORE, delta=True)


# --- checkpoints that were damaged


@pytest.fixture
def long(redis_url: str, store: FaultyStore) -> Iterator[Broker]:
    """Six records, checkpoints behind the second, fourth and sixth."""
    with broker_over(store, redis_url, checkpoint_every=2) as connected:
        dataset = connected.dataset(OFFERS, key=["sku"])
        for price in range(4):
            dataset.publish([{"sku": "a", "price": price}], delta=True)
            connected.parts.catalog.checkpoint(OFFERS)
        yield connected


DAMAGES = [b"", b"{}", b'{"format": 2}', b"\xff", b'{"format":1,"dataset":"x","tables":{"head":{"seq":"y"}}}']


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_by_for_an_older_one_or_the_whole_log(
    long: Broker, store: FaultyStore, damage: bytes
) -> None:
    before = long.dataset(OFFERS).versions()
    for seq in (6, 4, 2):
        store.inner.put(names.checkpoint_key(OFFERS, seq), damage)
        long.parts.redis.run("FLUSHALL")
        assert list(long.parts.catalog.rebuild()) == [OFFERS]
        assert long.dataset(OFFERS).versions() == before


def test_a_checkpoint_under_another_number_is_not_taken_for_it(long: Broker, store: FaultyStore) -> None:
    before = long.dataset(OFFERS).versions()
    store.inner.put(names.checkpoint_key(OFFERS, 6), b"".join(store.get(names.checkpoint_key(OFFERS, 4))))
    assert long.parts.catalog.checkpoint(OFFERS) is None
    store.inner.put(names.checkpoint_key(OFFERS, 99), b"".join(store.get(names.checkpoint_key(OFFERS, 4))))
    long.parts.redis.run("FLUSHALL")
    long.parts.catalog.rebuild()
    assert long.dataset(OFFERS).versions() == before


def test_a_log_that_begins_behind_a_damaged_checkpoint_is_corrupt_and_never_begun_anew(
    long: Broker, store: FaultyStore
) -> None:
    store.inner.delete([names.log_key(OFFERS, seq) for seq in range(1, 7)])
    for seq in (2, 4, 6):
        store.inner.put(names.checkpoint_key(OFFERS, seq), b"{}")
    long.parts.redis.run("FLUSHALL")
    assert isinstance(long.parts.catalog.rebuild()[OFFERS], Corrupt)
    with pytest.raises(Corrupt, match="checkpoint"):
        long.dataset(OFFERS, key=["sku"])


def test_a_rebuild_restores_the_others_and_says_what_is_wrong_with_the_broken_one(
    b: Broker, offers: Dataset, store: FaultyStore
) -> None:
    for name in ("aaa/catalog/broken", "zzz/catalog/whole"):
        b.dataset(name, key=["sku"])
    store.inner.put(names.log_key("aaa/catalog/broken", 1), b"no record")
    store.inner.put("a/B/c/log/00000000000000000001.json", b"somebody else's")
    store.inner.put("zzz/catalog/whole/checkpoint/readme.json", b"not ours")
    b.parts.redis.run("FLUSHALL")
    told = list[int]()
    found = b.parts.catalog.rebuild(told=told.append)
    assert {dataset: isinstance(result, BrokerError) for dataset, result in found.items()} == {
        "aaa/catalog/broken": True, OFFERS: False, "zzz/catalog/whole": False,
    }  # fmt: skip
    assert isinstance(found[DatasetId("aaa/catalog/broken")], Corrupt)
    assert told == [1, 1, 1]
    assert b.parts.catalog.find() == [OFFERS, "zzz/catalog/whole"]


# --- whether all that is sealed agrees


def wrong(dataset: Dataset) -> dict[str, str]:
    """What verify finds wrong: folder of the object -> what is said of it."""
    return {found.key.removeprefix(OFFERS + "/").split("/")[0]: str(found.error) for found in dataset.verify() if found.error}


def test_a_checkpoint_is_not_sealed_over_a_hole_in_the_log(long: Broker, store: FaultyStore) -> None:
    state = long.dataset(OFFERS).state
    store.inner.delete(
        [names.log_key(OFFERS, state.seq - 1)] + [info.key for info in store.inner.list(f"{OFFERS}/checkpoint/")]
    )
    with pytest.raises(Corrupt, match="not there"):
        long.parts.catalog.checkpoint(OFFERS)
    assert not list(store.inner.list(f"{OFFERS}/checkpoint/"))


def test_every_object_of_a_whole_dataset_is_found_whole(long: Broker) -> None:
    dataset = long.dataset(OFFERS)
    long.parts.catalog.close()
    kinds = [found.key.removeprefix(OFFERS + "/").split("/")[0] for found in dataset.verify()]
    assert {"data", "checkpoint", "log", "notify"} == set(kinds)
    assert kinds.count("data") == sum(len(edge.files) for edge in dataset.state.edges)
    assert wrong(dataset) == {}


def test_verify_goes_on_behind_the_first_bad_file_of_an_edge(b: Broker, offers: Dataset, store: FaultyStore) -> None:
    edge = offers.publish_delta([{"sku": "a", "price": 2}], [{"sku": "b"}]).edge
    assert edge is not None
    for file in edge.files:
        store.inner.put(file.key, b"x" * file.bytes)
    spoiled = [found.key for found in offers.verify() if found.error]
    assert spoiled == [file.key for file in edge.files]
    assert len(spoiled) == 2


def test_verify_finds_a_log_with_a_hole_a_false_checkpoint_and_a_false_notification(long: Broker, store: FaultyStore) -> None:
    dataset = long.dataset(OFFERS)
    long.parts.catalog.close()
    checkpoint = names.checkpoint_key(OFFERS, 6)
    store.inner.put(checkpoint, b"".join(store.inner.get(checkpoint)).replace(b'\\"rows\\":1', b'\\"rows\\":9'))
    notify = names.notify_key(OFFERS, "live")
    store.inner.put(notify, b"".join(store.inner.get(notify)).replace(b'"version": 1', b'"version": 7'))
    assert set(wrong(dataset)) == {"checkpoint", "notify"}
    store.inner.delete([names.log_key(OFFERS, dataset.state.seq)])
    assert "is not there" in wrong(dataset)["log"]


def test_verify_finds_an_index_that_somebody_else_wrote(b: Broker, offers: Dataset) -> None:
    slot = b.parts.index.slot(OFFERS)
    b.parts.redis.run("HDEL", slot.key("versions:goodstuff_01/offers"), "1")
    b.parts.catalog._driver.cache.clear()
    assert "versions" in wrong(offers)["log"]
