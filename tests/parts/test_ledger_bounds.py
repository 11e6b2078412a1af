"""What the ledger of requests must not do: put a head back, grow without bound, or lose a place in a line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

import broker
from broker.errors import Fenced, Invalid, Overloaded, Unavailable
from broker.fulfilment import Maker, Produced
from broker.inquiry import Inquiry
from broker.model.commit import Edge, File
from broker.model.names import DatasetId
from broker.model.request import Request
from broker.outcomes import ProductionRequest, Since, Unchanged
from broker.producers import Producers
from broker.requests import ANSWER_RUN, TICK_LIMIT
from broker.rules.answering import MOST_EDGES, MOST_FILES, needs_files
from broker.rules.checkpoint import Checkpoint
from broker.rules.plan import Plan
from tests.ledger import OFFERS, Hand, Source, ask, events, let_lapse, opened


@pytest.fixture
def b(redis_url: str) -> Iterator[broker.Broker]:
    with opened(redis_url) as connected:
        yield connected


@pytest.fixture
def hand(b: broker.Broker) -> Hand:
    return Hand(b.parts, Source())


def noted(b: broker.Broker, dataset: DatasetId = OFFERS) -> tuple[int, Any]:
    """The head's version and the position a producer would be told with it."""
    return b.parts.catalog.noted(dataset)


def says_unchanged(b: broker.Broker, position: Any) -> Maker:
    """The hands of a producer that finds nothing new, up to `position`."""

    def nothing_new(request: ProductionRequest, since: Since | None) -> Unchanged:
        del request, since
        return Unchanged(position=position)

    app = Producers()
    app.add("*/*/*", nothing_new)
    return Maker(b.parts.catalog, b.parts.engine, b.parts.publication, app)


# --- a late answer


def test_a_late_answer_of_nothing_new_leaves_the_position_of_a_newer_version(b: broker.Broker, hand: Hand) -> None:
    b.dataset(OFFERS).publish([{"sku": "a", "price": 1}], position="first")
    ask(b)
    flight = hand.lead()
    produced = says_unchanged(b, "stale").produce(flight, hand.clerk.since(flight))
    b.dataset(OFFERS).publish([{"sku": "a", "price": 2}], position="second")
    hand.answer(flight, produced)
    assert noted(b) == (2, "second")


def test_a_late_answer_of_nothing_new_says_nothing_of_a_dataset_made_anew(b: broker.Broker, hand: Hand) -> None:
    offers = b.dataset(OFFERS)
    offers.publish([{"sku": "a", "price": 1}], position="first")
    ask(b)
    flight = hand.lead()
    produced = says_unchanged(b, "stale").produce(flight, hand.clerk.since(flight))
    offers.drop()
    b.dataset(OFFERS, key=["sku"])
    hand.answer(flight, produced)
    assert b.parts.index.fields(OFFERS, "position", "confirmed_at") == [b"null", b"0"]


def test_an_answer_of_nothing_new_notes_its_position_with_the_version_it_spoke_of(b: broker.Broker, hand: Hand) -> None:
    b.dataset(OFFERS).publish([{"sku": "a", "price": 1}], position="first")
    ask(b)
    flight = hand.lead()
    hand.answer(flight, says_unchanged(b, "further").produce(flight, hand.clerk.since(flight)))
    assert noted(b) == (1, "further")


# --- a target that only waits


def test_a_target_that_only_waits_takes_its_own_answers_and_is_never_refused(redis_url: str) -> None:
    with opened(redis_url, max_unread_responses=2) as b:
        hand = Hand(b.parts, Source())
        for _ in range(5):
            handle = ask(b)
            hand.work()
            assert handle.wait(1).ack()
        assert events(b) == []


def test_an_ack_takes_exactly_the_answer_it_names(b: broker.Broker, hand: Hand) -> None:
    first, second = ask(b), ask(b)
    assert not first.ack()  # it has not ended
    hand.work()
    assert first.ack()
    assert not first.ack()
    assert [done.request for done in events(b)] == [second.id]


def test_an_answer_at_once_can_be_taken_and_a_reader_that_had_it_keeps_it_no_longer(b: broker.Broker, hand: Hand) -> None:
    ask(b, target="other")
    hand.work()
    handle, reader = ask(b, max_staleness=60), b.responses("search")
    (seen,) = reader.read()
    assert seen.id == handle.id
    assert handle.wait(1).ack()
    assert reader.read() == []
    seen.ack()  # idempotent


@pytest.mark.parametrize("shown", [False, True])
def test_an_answer_that_a_reader_put_off_can_be_taken(b: broker.Broker, hand: Hand, shown: bool) -> None:
    handle = ask(b)
    hand.work()
    reader = b.responses("search")
    reader.read()[0].retry(0 if shown else 3600)
    if shown:
        assert [again.id for again in reader.read()] == [handle.id]
    assert handle.ack()
    assert b.responses("search").read() == []
    assert events(b) == []


# --- a long road


def test_an_answer_along_a_long_road_is_one_derived_edge_that_serves_all(b: broker.Broker, hand: Hand) -> None:
    offers = b.dataset(OFFERS)
    offers.publish([{"sku": f"s{n}", "price": n} for n in range(500)])
    for n in range(1, MOST_EDGES + 2):
        offers.publish_delta([{"sku": "s1", "price": 1000 + n}])
    first, second = ask(b, since=1, max_staleness=60), ask(b, since=1, max_staleness=60)
    assert hand.work() == 1
    (edge,) = first.wait(1).edges
    assert (edge.base, edge.version, second.wait(1).edges) == (1, MOST_EDGES + 2, (edge,))
    assert first.wait(1).upserts().to_pylist() == [{"sku": "s1", "price": 1001 + MOST_EDGES}]
    assert ask(b, since=1, max_staleness=60).wait(1).edges == (edge,)  # made already: answered at submit
    assert len(ask(b, since=2, max_staleness=60).wait(1).edges) == MOST_EDGES


@pytest.mark.parametrize(("files", "derived"), [(MOST_FILES, False), (MOST_FILES + 1, True)])
def test_an_answer_names_a_bounded_number_of_files(files: int, derived: bool) -> None:
    edge = Edge(base=None, version=1, files=tuple(file_of(number) for number in range(files)))
    found = Plan(None, 1, (edge,))
    assert needs_files(found, Request(dataset=OFFERS, target="search")) is derived


def file_of(number: int) -> File:
    return File(key=f"{OFFERS}/data/{number}.parquet", role="rows", sha256="0" * 64, bytes=1, rows=1, format="parquet")


def test_a_crowd_is_answered_in_runs_and_a_crash_between_them_ends_nobody_twice(
    b: broker.Broker, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = list(b.requests([{"dataset": OFFERS, "target": "search"}] * (2 * ANSWER_RUN + 1)))
    flight = hand.lead()
    produced, call, sizes = hand.produce(flight), b.parts.redis.call, list[int]()

    def dying(script: Any, keys: Any, args: Any = ()) -> Any:
        if script.name == "answer":
            sizes.append((len(args) - 9) // 3)
            if len(sizes) == 2:
                raise Unavailable("the worker died here")
        return call(script, keys, args)

    monkeypatch.setattr(b.parts.redis, "call", dying)
    with pytest.raises(Unavailable):
        hand.answer(flight, produced)
    assert len(events(b)) == ANSWER_RUN
    hand.answer(hand.take_over(flight.id), produced)
    assert sizes == [ANSWER_RUN, ANSWER_RUN, ANSWER_RUN, 1]
    assert sorted(done.request for done in events(b)) == sorted(
        handle.id for handle in handles if isinstance(handle, broker.Handle)
    )
    assert hand.claim().flights == ()


# --- fences


@pytest.mark.parametrize("checkpointed", [False, True])
def test_epochs_grow_also_when_redis_is_replaced_by_one_whose_clock_is_behind(b: broker.Broker, checkpointed: bool) -> None:
    parts, slot = b.parts, b.parts.index.slot(OFFERS)
    ahead = int((time.time() + 3600) * 1000)
    parts.redis.run("HSET", slot.meta, "run_id", "another", "epoch", ahead)
    b.dataset(OFFERS).publish([{"sku": "a", "price": 1}])
    if checkpointed:
        state = parts.catalog.state(OFFERS)
        key = f"{OFFERS}/checkpoint/{state.seq:020d}.json"
        parts.store.put(key, Checkpoint.of(state))
    before = parts.leases.acquire(slot, "lease:writer:test", "sleeper")
    parts.redis.run("FLUSHALL")
    b.dataset(OFFERS).publish([{"sku": "a", "price": 2}])
    after = parts.leases.acquire(slot, "lease:writer:test", "sleeper")
    assert before.fence < after.fence
    with pytest.raises(Fenced):
        parts.leases.renew(slot, before)
    assert parts.index.head(OFFERS).current
    assert b.dataset(OFFERS).read()["price"].to_pylist() == [2]


# --- whose clock says what is fresh


def test_staleness_is_measured_by_one_clock(b: broker.Broker, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(b)
    flight = hand.lead()
    ahead = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    hand.run(flight)
    (text,) = b.parts.index.fields(OFFERS, "confirmed_at")
    assert text is not None
    assert float(text) == flight.started
    seconds, _ = b.parts.redis.run("TIME")
    assert abs(flight.started - int(seconds)) < 60


def test_a_confirmation_by_a_clock_that_is_ahead_counts_as_of_now(
    b: broker.Broker, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    b.dataset(OFFERS).publish([{"sku": "a", "price": 1}])
    monkeypatch.undo()
    (published,) = b.parts.index.fields(OFFERS, "confirmed_at")
    ask(b)
    flight = hand.lead()
    late = Produced(version=1, changed=False, confirmed_at=ahead)
    hand.answer(flight, late)
    (answered,) = b.parts.index.fields(OFFERS, "confirmed_at")
    assert published is not None
    assert answered is not None
    assert float(published) <= float(answered) <= time.time() + 60


def test_a_flight_taken_over_counts_from_its_first_start(b: broker.Broker, hand: Hand) -> None:
    ask(b)
    flight = hand.lead()
    assert hand.take_over(flight.id).started == flight.started > 0


# --- what may pile up


def test_the_bound_of_unread_answers_counts_the_requests_still_to_be_answered(redis_url: str) -> None:
    with opened(redis_url, max_unread_responses=3) as b:
        hand, handles = Hand(b.parts, Source()), [ask(b) for _ in range(3)]
        with pytest.raises(Overloaded, match="too many unread"):
            ask(b)
        assert handles[0].cancel()
        with pytest.raises(Overloaded, match="too many unread"):
            ask(b)  # its terminal event is unread now
        assert handles[0].ack()
        handles[0] = ask(b)
        while hand.work():
            pass
        assert [handle.ack() for handle in handles] == [True] * 3
        assert not b.parts.redis.run("EXISTS", b.parts.index.slot(OFFERS).key("awaited"))


def test_an_answer_that_was_put_off_is_unread(redis_url: str) -> None:
    with opened(redis_url, max_unread_responses=1) as b:
        ask(b)
        Hand(b.parts, Source()).work()
        b.responses("search").read()[0].retry(3600)
        with pytest.raises(Overloaded, match="too many unread"):
            ask(b)


def test_dead_letters_are_kept_for_the_history_and_no_longer(b: broker.Broker, hand: Hand) -> None:
    dead = b.parts.index.slot(OFFERS).dead
    b.parts.redis.run("XADD", dead, "1-0", "e", "{}")
    hand.source.error = Invalid("the query is wrong")
    handles = [ask(b), ask(b)]
    hand.work()
    assert b.parts.redis.run("XLEN", dead) == len(handles)


def test_each_note_of_derived_files_ends_with_them(b: broker.Broker) -> None:
    edge, soon = Edge(base=None, version=1), time.time() + 0.9 * b.parts.settings.result_seconds
    for version in range(1, 4):
        b.parts.derived.put(OFFERS, "fingerprint", version, edge, soon)
    assert b.parts.derived.get(OFFERS, "fingerprint", 1) == (edge, soon)
    assert b.parts.derived.get(OFFERS, "fingerprint", 9) is None
    keys = [b.parts.index.slot(OFFERS).derived(OFFERS, "fingerprint", version) for version in range(1, 4)]
    for key in keys:
        assert 0 < b.parts.redis.run("TTL", key) <= soon - time.time() + 1
    found = set(b.parts.redis.run("KEYS", "*derived:*"))
    assert found == set(keys)


def test_lapsed_flights_that_nobody_serves_hide_no_other(b: broker.Broker, hand: Hand) -> None:
    slot, redis = b.parts.index.slot(OFFERS), b.parts.redis
    foreign = [f"catalog.0.{number:032x}" for number in range(TICK_LIMIT + 1)]
    redis.pipeline([("HSET", slot.flight(id), "dataset", "other/catalog/offers", "until", 1) for id in foreign], "flights")
    redis.pipeline([("ZADD", slot.key("lapse"), 1, id) for id in foreign], "flights")
    ask(b)
    flight = hand.lead()
    let_lapse(b.parts, flight.id)
    redis.run("ZADD", slot.key("lapse"), 2, flight.id)
    shown = [{id for id, _ in b.parts.requests.tick(slot).lapsed} for _ in range(3)]
    assert flight.id in shown[0] | shown[1]
    assert shown[0] | shown[1] == {*foreign, flight.id}
    assert len(shown[2]) == TICK_LIMIT
    assert b.parts.requests.take_over(flight.id, "another") is not None


def test_a_lapsed_flight_is_shown_to_every_worker_until_one_takes_it(b: broker.Broker, hand: Hand) -> None:
    ask(b)
    flight, slot = hand.lead(), b.parts.index.slot(OFFERS)
    let_lapse(b.parts, flight.id)
    for _ in range(3):
        assert b.parts.requests.tick(slot).lapsed == ((flight.id, OFFERS),)


def test_what_is_outstanding_is_seen_behind_any_number_of_others(b: broker.Broker) -> None:
    slot, redis, inquiry = b.parts.index.slot(OFFERS), b.parts.redis, Inquiry(b.parts.redis, b.parts.requests)
    other = DatasetId("other/catalog/offers")
    b.dataset(other, key=["sku"])
    list(b.requests([{"dataset": other, "target": "search"}] * 250))
    id = ask(b).id
    assert sorted(inquiry.outstanding(slot)) == [OFFERS, other]
    redis.run("DEL", slot.requests("offers", "normal"))
    assert inquiry.outstanding(slot) == []
    redis.pipeline([("ZADD", slot.key("delayed"), number, f"gone{number}") for number in range(250)], "delayed")
    redis.run("ZADD", slot.key("delayed"), 1000, id)
    assert inquiry.outstanding(slot) == [OFFERS]
    redis.run("DEL", slot.key("delayed"))
    redis.pipeline([("ZADD", slot.key("lapse"), number, f"gone{number}") for number in range(250)], "lapse")
    redis.run("HSET", slot.flight("f"), "dataset", OFFERS)
    redis.run("ZADD", slot.key("lapse"), 1000, "f")
    assert inquiry.outstanding(slot) == [OFFERS]


def test_a_tick_shows_parked_requests_a_page_at_a_time_and_misses_none(b: broker.Broker) -> None:
    slot = b.parts.index.slot(OFFERS)
    parked = {f"id{number}" for number in range(10 * TICK_LIMIT)}
    b.parts.redis.run("HSET", slot.key("parked"), *(text for id in sorted(parked) for text in (id, OFFERS)))
    pages = [{id for id, _ in b.parts.requests.tick(slot).parked} for _ in range(40)]
    assert set().union(*pages) == parked
    assert max(len(page) for page in pages) < 3 * TICK_LIMIT


@pytest.mark.foreign_events
def test_a_writer_whose_clock_is_ahead_trims_nobodys_events(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    events_of, offers = b.parts.index.slot(OFFERS).events, b.dataset(OFFERS)
    seconds, _ = b.parts.redis.run("TIME")
    for number in range(1, 301):  # several nodes of the stream, so that an approximate trim could take some
        b.parts.redis.run("XADD", events_of, f"{(int(seconds) - 600) * 1000 + number}-0", "e", "{}")
    ahead = time.time() + 2 * b.parts.settings.history_seconds
    monkeypatch.setattr(time, "time", lambda: ahead)
    offers.publish([{"sku": "a", "price": 1}])
    assert b.parts.redis.run("XLEN", events_of) > 300
