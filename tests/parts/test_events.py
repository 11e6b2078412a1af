"""Listening: nothing lost from the present on, in order per dataset, at least once, one listener per cursor."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import broker
from broker.catalog import Catalog
from broker.errors import Busy, Invalid, InvalidName, Transient, Unavailable
from broker.events_listening import Heard
from broker.model.commit import NewEdge, Retire
from broker.model.event import Lagging
from broker.model.names import DatasetId
from broker.rules.fold import State
from broker.rules.hearing import Pointer
from tests.servers import redis_server

OFFERS, IMAGES, PRICES = DatasetId("shop/catalog/offers"), DatasetId("shop/catalog/images"), DatasetId("shop/pricing/prices")
QUIET = 0.05
"""Seconds without an event after which a test believes that none comes: what it waits for lies in the stream already."""


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path, lease_seconds=0.5) as opened:
        yield opened


def publish(b: broker.Broker, name: str = OFFERS, *prices: int) -> int:
    """A delta on the dataset, made where it does not exist. -> its version"""
    rows = [{"sku": f"s{price}", "price": price} for price in prices or (1,)]
    return b.dataset(name, key=["sku"]).publish_delta(pa.Table.from_pylist(rows)).version or 0


def publish_after_restart(b: broker.Broker) -> int:
    """The first call on a connection that broke tells of it; the next one connects."""
    with suppress(Transient):
        b.parts.index.slots()
    while True:
        with suppress(Transient):
            return publish(b)


def told(found: Sequence[Heard]) -> list[tuple[str, str, int]]:
    return [(heard.type.removeprefix("broker."), heard.subject, heard.data.get("version", 0)) for heard in found]


def heard(listener: Any, timeout: float = QUIET) -> list[tuple[str, str, int]]:
    return told(list(listener.listen(timeout)))


# --- the present, and then what comes


def test_a_late_listener_first_learns_the_present_and_then_what_comes(b: broker.Broker) -> None:
    publish(b), publish(b), publish(b, IMAGES)
    b.dataset("shop/catalog/empty", key=["sku"])
    listener = b.events("shop/catalog/*")
    first = list(listener.listen(QUIET))
    assert sorted(told(first)) == [("dataset.published", IMAGES, 1), ("dataset.published", OFFERS, 2)]
    assert all(one.present and one.data["session"] for one in first)
    publish(b)
    (news,) = listener.listen(QUIET)
    assert (news.data["version"], news.present) == (3, False)


def test_a_version_that_comes_between_the_end_of_the_stream_and_the_state_is_told_once(b: broker.Broker) -> None:
    publish(b)
    listener, state = b.events(), b.parts.catalog.state

    def late(dataset: DatasetId) -> Any:
        b.parts.catalog.state = state  # type: ignore[method-assign]
        publish(b)
        return state(dataset)

    b.parts.catalog.state = late  # type: ignore[method-assign]
    assert heard(listener) == [("dataset.published", OFFERS, 2)]
    publish(b)
    assert heard(listener) == [("dataset.published", OFFERS, 3)]


def test_events_of_several_domains_come_as_one_each_dataset_in_its_order(b: broker.Broker) -> None:
    listener = b.events("shop/*/*")
    publish(b), publish(b, PRICES)
    list(listener.listen(QUIET))
    for _ in range(5):
        publish(b), publish(b, PRICES)
    found = heard(listener)
    assert [version for _, name, version in found if name == OFFERS] == [2, 3, 4, 5, 6]
    assert [version for _, name, version in found if name == PRICES] == [2, 3, 4, 5, 6]


def test_a_listener_waits_and_hears_a_version_while_it_is_published(b: broker.Broker) -> None:
    publish(b)
    listener, found = b.events(), list[Heard]()
    list(listener.listen(QUIET))
    ear = threading.Thread(target=lambda: found.append(next(iter(listener.listen(30)))))
    ear.start()
    publish(b)
    ear.join(10)
    assert told(found) == [("dataset.published", OFFERS, 2)]


def test_a_domain_that_begins_while_somebody_listens_is_heard(b: broker.Broker) -> None:
    listener, found = b.events("*"), list[Heard]()
    ear = threading.Thread(target=lambda: found.append(next(iter(listener.listen(30)))))
    ear.start()
    publish(b, PRICES)
    ear.join(10)
    assert told(found) == [("dataset.published", PRICES, 1)]


def test_long_poll_ends_after_its_time_and_not_before(b: broker.Broker) -> None:
    publish(b)
    listener = b.events()
    list(listener.listen(0))
    begun = time.monotonic()
    assert list(listener.listen(0.3)) == []
    assert 0.3 <= time.monotonic() - begun < 2


# --- what is asked for


def test_only_what_matches_is_told(b: broker.Broker) -> None:
    publish(b), publish(b, IMAGES)
    assert heard(b.events("shop/catalog/im*")) == [("dataset.published", IMAGES, 1)]
    assert heard(b.events("other/*/*")) == []
    assert heard(b.events("*/*/offers", types="retired")) == []
    assert heard(b.events("*/*/offers", types=["broker.dataset.published"])) == [("dataset.published", OFFERS, 1)]
    for wrong in ({"pattern": "catalog"}, {"types": "explode"}, {"cursor": "No"}, {"channel": "No"}):
        with pytest.raises(InvalidName):
            b.events(**wrong)


def test_a_listener_to_a_channel_hears_what_moves_it_and_no_version_by_itself(b: broker.Broker) -> None:
    publish(b)
    emit, moved = b.parts.events.emit, {"version": 1, "session": "s", "announced": 1}
    listener = b.events(channel="production")
    assert heard(listener) == []
    publish(b)
    emit(OFFERS, "broker.channel.promoted", {"channel": "production", **moved})
    emit(OFFERS, "broker.channel.promoted", {"channel": "staging", **moved})
    finding = {"rule": "max_delete_ratio", "text": "half of the rows are gone"}
    refused = {"version": 3, "stays": 2, "kind": "delta", "rows": 1, "bytes": 1, "production": "p", "findings": [finding]}
    emit(OFFERS, "broker.dataset.refused", refused)
    assert heard(listener) == [("channel.promoted", OFFERS, 1), ("dataset.refused", OFFERS, 3)]
    assert [type for type, _, _ in heard(b.events(channel="live"))] == ["dataset.published"]


def test_the_present_of_a_channel_is_what_it_names(b: broker.Broker) -> None:
    publish(b), publish(b)
    named = {"production": Pointer(1, "s", 7, 0.0), "staging": Pointer(2, "s", 8, 0.0)}
    tools = b.parts.events.tools
    object.__setattr__(tools, "named", lambda dataset: named if dataset == OFFERS else {})
    (one,) = b.events(channel="production").listen(QUIET)
    assert (one.type, one.data["version"], one.data["announced"], one.present) == ("broker.channel.promoted", 1, 7, True)
    assert len(heard(b.events())) == 3


# --- what is told


def test_records_tell_what_they_mean(b: broker.Broker) -> None:
    publish(b), publish(b), publish(b)
    listener = b.events()
    list(listener.listen(QUIET))
    state = b.parts.catalog.state(OFFERS)
    edge = state.edges[-1].model_copy(update={"base": 1})
    b.parts.catalog.commit(OFFERS, lambda now: None if now.edge(1, 3) else NewEdge(edge=edge), "compact")
    gone = Retire(edges=((1, 2),), versions_until=1)
    b.parts.catalog.commit(OFFERS, lambda now: gone if now.edge(1, 2) else None, "retention")
    b.dataset(OFFERS).alter(pa.schema([("sku", pa.int64())]), force=True)
    b.dataset(OFFERS).drop()
    b.dataset(OFFERS, key=["sku"])
    found = list(listener.listen(QUIET))
    assert [one.type for one in found] == [
        "broker.dataset.rolled-up", "broker.dataset.retired", "broker.dataset.reset", "broker.dataset.reset"
    ]  # fmt: skip
    assert found[1].data == {"edges": [[1, 2]], "versions_until": 1}
    assert [one.data.get("why") for one in found[2:]] == ["altered", "created"]


def test_what_is_told_only_once_is_told_once_and_wrong_data_is_refused(b: broker.Broker) -> None:
    publish(b)
    listener, emit = b.events(types="lagging"), b.parts.events.emit
    list(listener.listen(QUIET))
    late = Lagging(replica="search", held=1, version=3, versions=2, bytes=10, seconds=5.0)
    assert [emit(OFFERS, "broker.replica.lagging", late, once="search at 1") for _ in range(3)] == [True, False, False]
    assert emit(IMAGES, "broker.replica.lagging", late, once="search at 1")
    assert len(heard(listener)) == 2
    with pytest.raises(Invalid, match="held"):
        emit(OFFERS, "broker.replica.lagging", {"replica": "search"})


# --- durable positions


def test_a_cursor_goes_on_where_its_last_listener_stopped(b: broker.Broker) -> None:
    publish(b)
    assert heard(b.events(cursor="search")) == [("dataset.published", OFFERS, 1)]
    publish(b), publish(b)
    assert heard(b.events(cursor="search")) == [("dataset.published", OFFERS, 2), ("dataset.published", OFFERS, 3)]
    assert heard(b.events(cursor="search")) == []
    assert heard(b.events(cursor="ads")) == [("dataset.published", OFFERS, 3)]


def test_an_event_that_was_not_acknowledged_comes_again_and_one_that_was_does_not(b: broker.Broker) -> None:
    publish(b)
    heard(b.events(cursor="search"))
    publish(b), publish(b), publish(b)

    def crash_at(place: int, *, ack: bool) -> int:
        """Stop at an event as a crash would; -> its version."""
        for number, one in enumerate(b.events(cursor="search").listen(QUIET)):
            if number == place:
                if ack:
                    one.ack()
                return int(one.data["version"])
        raise AssertionError("no such event")

    assert crash_at(1, ack=False) == 3
    assert crash_at(0, ack=True) == 3
    assert crash_at(0, ack=False) == 4
    assert heard(b.events(cursor="search")) == [("dataset.published", OFFERS, 4)]


def test_half_of_the_present_heard_is_told_again(b: broker.Broker) -> None:
    publish(b), publish(b, IMAGES)
    next(iter(b.events(cursor="search").listen(QUIET))).ack()
    assert len(heard(b.events(cursor="search"))) == 2


def test_of_two_listeners_with_one_cursor_one_is_busy_until_the_other_stops(b: broker.Broker) -> None:
    publish(b)
    first = b.events(cursor="search").listen(5)
    next(first)
    with pytest.raises(Busy):
        next(b.events(cursor="search").listen(QUIET))
    assert heard(b.events(cursor="ads"))
    first.close()  # type: ignore[attr-defined]
    assert heard(b.events(cursor="search"))


def test_another_wish_under_one_cursor_begins_with_the_present(b: broker.Broker) -> None:
    publish(b), publish(b, IMAGES)
    heard(b.events("shop/catalog/offers", cursor="search"))
    assert len(heard(b.events("shop/catalog/*", cursor="search"))) == 2


def test_what_the_history_no_longer_holds_begins_with_the_present(b: broker.Broker) -> None:
    publish(b)
    heard(b.events(cursor="search"))
    publish(b), publish(b)
    old = b.parts.events.tools
    object.__setattr__(old, "history_seconds", -1)  # as if all that is in the stream were older than that
    (one,) = b.events(cursor="search").listen(QUIET)
    assert (one.present, one.data["version"]) == (True, 3)


# --- a Redis that goes away


def test_a_present_that_was_cut_off_is_told_to_its_end_by_the_next_call(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"shop/catalog/d{number}" for number in range(3)]
    for name in names:
        publish(b, name)
    state, asked = Catalog.state, list[str]()

    def silent(catalog: Catalog, dataset: DatasetId) -> State:
        asked.append(dataset)
        if len(asked) == 2:
            raise Unavailable("Redis does not answer")
        return state(catalog, dataset)

    monkeypatch.setattr(Catalog, "state", silent)
    listener = b.events("shop/catalog/*")
    with pytest.raises(Unavailable):
        heard(listener)
    assert {subject for _, subject, _ in heard(listener)} == set(names)


def test_a_listener_survives_a_restart_and_a_loss_of_redis(tmp_path: Path) -> None:
    with redis_server() as server, broker.connect(redis=server.url, home=tmp_path, lease_seconds=0.5) as b:
        publish(b)
        listener = b.events(cursor="search")
        assert heard(listener) == [("dataset.published", OFFERS, 1)]
        server.stop()
        with pytest.raises(Transient):
            heard(listener)
        server.start()
        publish_after_restart(b)
        assert heard(listener) == [("dataset.published", OFFERS, 2)]
        publish(b)
        server.flush()
        b.parts.catalog.rebuild()
        assert heard(listener) == [("dataset.published", OFFERS, 3)]


def test_a_listener_whose_lease_redis_forgot_while_it_worked_goes_on(tmp_path: Path) -> None:
    with redis_server() as server, broker.connect(redis=server.url, home=tmp_path, lease_seconds=0.5) as b:
        publish(b), publish(b)
        listening = b.events(cursor="search").listen(1)
        assert next(listening).data["version"] == 2
        server.restart()
        publish_after_restart(b)
        assert next(listening).data["version"] == 3
        listening.close()  # type: ignore[attr-defined]
