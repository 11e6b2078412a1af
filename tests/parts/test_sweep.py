"""The sweep of files given up: by retirement, drop or a new session; never early, never on an error path, whatever crashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from broker import Broker, Column, Schema
from broker.janitor import LATE_SECONDS, Janitor
from broker.model.commit import Edge, File, NewEdge, Retire
from broker.model.names import data_key
from broker.retention import Retention
from broker.rules.fold import State, replay
from broker.rules.naming import Naming
from broker.rules.patch import edge_field
from broker.rules.retention import Floors
from broker.stores.memory import MemoryStore
from tests.faulty_store import Fault, FaultyStore, matching, never
from tests.ledger import OFFERS, broker_over
from tests.parts.test_retention import cursors

DAY = 86_400.0


class Clock:
    """The store's clock, which a test moves on."""

    def __init__(self, store: MemoryStore) -> None:
        self._now, self.ahead = store.clock, 0.0
        store.clock = self

    def __call__(self) -> float:
        return self._now() + self.ahead


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def clock(store: FaultyStore) -> Clock:
    assert isinstance(store.inner, MemoryStore)
    return Clock(store.inner)


@pytest.fixture
def b(redis_url: str, store: FaultyStore) -> Iterator[Broker]:
    with broker_over(store, redis_url, checkpoint_every=4) as connected:
        yield connected


@pytest.fixture
def janitor(b: Broker) -> Janitor:
    return Janitor(b.parts.index, b.parts.catalog, b.parts.store, b.parts.leases, b.parts.settings)


def stays(b: Broker) -> float:
    """Seconds from giving up a file to its end."""
    return b.parts.settings.result_seconds + LATE_SECONDS


def publish(b: Broker, *prices: int) -> list[str]:
    """A snapshot for each price; -> the key of each one's file."""
    offers, keys = b.dataset(OFFERS, key=["sku"]), list[str]()
    for price in prices:
        edge = offers.publish([{"sku": "a", "price": price}]).edge
        assert edge is not None
        keys += [file.key for file in edge.files]
    return keys


def retire(b: Broker) -> None:
    """Everything that only history needs."""
    parts = b.parts
    Retention(parts.catalog, parts.index, parts.leases, cursors(b), Floors(1, 0)).apply(OFFERS)


def left(store: FaultyStore) -> list[str]:
    return sorted(info.key for info in store.list(f"{OFFERS}/data/"))


def swept(janitor: Janitor) -> int:
    report = janitor.sweep("janitor")
    assert report.failed == {}
    return report.swept


def test_a_retired_file_goes_when_no_answer_can_name_it_and_not_before(
    b: Broker, janitor: Janitor, store: FaultyStore, clock: Clock
) -> None:
    _, kept = publish(b, 1, 2)
    clock.ahead = 100 * DAY  # a file's own age says nothing: it was offered until now
    retire(b)
    clock.ahead += stays(b) - 60
    assert swept(janitor) == 0
    clock.ahead += 120
    assert swept(janitor) == 1
    assert left(store) == [kept]
    assert b.dataset(OFFERS).read()["price"].to_pylist() == [2]
    assert swept(janitor) == 0


def test_what_two_sessions_and_a_drop_left_behind_goes_each_in_its_time(
    b: Broker, janitor: Janitor, store: FaultyStore, clock: Clock
) -> None:
    first = publish(b, 1)
    b.dataset(OFFERS).drop()
    clock.ahead = DAY / 2
    second = publish(b, 2)
    b.dataset(OFFERS).alter(Schema(columns=(Column(name="sku", type="VARCHAR", nullable=False),)), force=True)
    third = [file.key for edge in [b.dataset(OFFERS).publish([{"sku": "a"}]).edge] if edge for file in edge.files]
    clock.ahead = stays(b) + 60
    assert swept(janitor) == 1
    assert left(store) == sorted(second + third)
    clock.ahead += DAY / 2
    assert swept(janitor) == 1
    assert left(store) == third
    assert first + second != []


def test_a_file_that_another_edge_still_names_stays(b: Broker, janitor: Janitor, store: FaultyStore, clock: Clock) -> None:
    publish(b, 1, 2)
    state = b.parts.catalog.state(OFFERS)
    one, two = state.edge(None, 1), state.edge(None, 2)
    assert one is not None
    assert two is not None
    shared = Edge(base=1, version=2, files=one.files)
    b.parts.catalog.commit(OFFERS, lambda now: NewEdge(edge=shared) if now.edge(1, 2) is None else None, "test")
    b.parts.catalog.commit(OFFERS, lambda now: Retire(edges=((None, 1),)) if now.edge(None, 1) else None, "test")
    clock.ahead = 100 * DAY
    assert swept(janitor) == 0
    assert left(store) == sorted(file.key for edge in (one, two) for file in edge.files)


def test_a_sweep_that_died_between_two_deletes_is_finished_by_the_next(
    b: Broker, janitor: Janitor, store: FaultyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, kept = publish(b, 1, 2, 3, 4, 5)
    retire(b)
    clock.ahead = stays(b) + 60
    monkeypatch.setattr("broker.janitor.SWEEP_BATCH", 1)
    delete, died = store.inner.delete, list[str]()

    def dying(keys: Iterable[str]) -> None:
        if died:
            raise KeyboardInterrupt  # no handler of the code under test takes it for its own
        died.extend(keys)
        delete(died)

    monkeypatch.setattr(store.inner, "delete", dying)
    with pytest.raises(KeyboardInterrupt):
        janitor.sweep("janitor")
    assert len(left(store)) == 4
    monkeypatch.setattr(store.inner, "delete", delete)
    assert swept(janitor) == 3
    assert left(store) == [kept]


def test_after_a_loss_of_redis_the_store_alone_says_what_was_given_up(
    b: Broker, janitor: Janitor, store: FaultyStore, clock: Clock
) -> None:
    *_, kept = publish(b, 1, 2, 3, 4, 5, 6)
    retire(b)
    janitor.run_once("janitor")
    b.parts.redis.run("FLUSHALL")
    assert [type(found) for found in b.parts.catalog.rebuild().values()] == [State]
    assert swept(janitor) == 0
    clock.ahead = stays(b) + 60
    assert swept(janitor) == 5
    assert left(store) == [kept]
    assert b.dataset(OFFERS).read()["price"].to_pylist() == [6]


@pytest.mark.parametrize("unreadable", ["/log/", "/checkpoint/"])
def test_nothing_given_up_is_deleted_while_the_log_cannot_be_read(
    b: Broker, janitor: Janitor, store: FaultyStore, clock: Clock, unreadable: str
) -> None:
    publish(b, 1, 2, 3, 4, 5)
    retire(b)
    janitor.run_once("janitor")
    clock.ahead = stays(b) + 60
    store.plan = matching("get", unreadable, Fault.REFUSED)
    assert janitor.sweep("janitor").swept == 0
    assert store.calls["delete"] == 0
    store.plan = never
    assert swept(janitor) == 4


def test_the_time_of_a_retirement_is_the_stores_whatever_its_writer_thinks(
    b: Broker, janitor: Janitor, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(b, 1, 2)
    monkeypatch.setattr("broker.catalog.time.time", lambda: 1.0)  # a machine whose clock says 1970
    b.parts.catalog.commit(OFFERS, lambda now: Retire(edges=((None, 1),)) if now.edge(None, 1) else None, "test")
    monkeypatch.undo()
    assert swept(janitor) == 0
    clock.ahead = stays(b) + 60
    assert swept(janitor) == 1


def test_a_sweep_reads_the_log_from_an_old_checkpoint_on_and_finds_the_same(
    b: Broker, janitor: Janitor, store: FaultyStore, clock: Clock
) -> None:
    publish(b, *range(7))
    retire(b)
    janitor.run_once("janitor")
    clock.ahead = stays(b) + 60
    publish(b, *range(7, 12))
    reads: list[str] = []
    plain = store.inner.get
    store.inner.get = lambda key, *range: reads.append(key) or plain(key, *range)  # type: ignore[func-returns-value, method-assign]
    assert swept(janitor) == 6
    assert not [key for key in reads if key.endswith("/00000000000000000003.json")]


def test_a_listing_of_many_pages_is_swept_as_one_is(
    b: Broker, janitor: Janitor, store: FaultyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, kept = publish(b, 1, 2, 3, 4, 5)
    retire(b)
    store.put(data_key(OFFERS), b"an orphan")
    clock.ahead = stays(b) + DAY
    monkeypatch.setattr("broker.janitor.SWEEP_PAGE", 2)
    assert swept(janitor) == 5
    assert left(store) == [kept]


def test_what_a_log_names_is_what_its_fold_offers_at_every_record(b: Broker) -> None:
    publish(b, 1, 2, 3)
    retire(b)
    b.dataset(OFFERS).drop()
    publish(b, 4)
    records = list(b.parts.catalog.records(OFFERS))
    everything = {info.key for info in b.parts.store.list(f"{OFFERS}/data/")}
    for start in range(len(records)):
        naming = Naming(replay(OFFERS, records[:start]), everything)
        for at in range(start, len(records)):
            naming.follow(records[at])
            state = replay(OFFERS, records[: at + 1])
            assert naming.offered == {file.key for edge in state.edges for file in edge.files}
            assert naming.offered.isdisjoint(naming.gone)
    assert len(Naming(State(OFFERS), everything).gone) == 0


def test_of_files_nobody_asked_about_nothing_is_remembered() -> None:
    file = File(role="rows", key="k", sha256="0" * 64, bytes=1, rows=1)
    edge = Edge(base=None, version=1, files=(file,))
    tables = {"edges": {edge_field(None, 1): edge.model_dump_json()}}
    naming = Naming(State(OFFERS, tables | {name: {} for name in ("head", "versions", "productions", "holds")}), ())  # type: ignore[arg-type]
    assert naming.offered == {"k"}
    assert naming.gone == {}
