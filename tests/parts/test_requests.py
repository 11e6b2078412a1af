"""The contract of the request ledger: what is accepted, who waits where, and that each request ends exactly once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import broker
from broker.backend.keys import PRODUCERS, Slot
from broker.errors import (
    AttemptFailed,
    BrokerError,
    Conflict,
    Fenced,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    RequestCancelled,
    RequestExpired,
    RequestFailed,
    RequestLost,
    Unavailable,
    Unsupported,
)
from broker.flights import Due
from broker.inquiry import Inquiry
from broker.model.names import DatasetId
from broker.model.request import State, new_id, slot_of
from tests.ledger import OFFERS, Hand, Source, ask, events, let_lapse, opened
from tests.servers import RedisServer, redis_server, wait_until


@pytest.fixture
def b(redis_url: str) -> Iterator[broker.Broker]:
    with opened(redis_url) as connected:
        yield connected


@pytest.fixture
def hand(b: broker.Broker) -> Hand:
    return Hand(b.parts, Source())


def tick(b: broker.Broker) -> Due:
    return b.parts.requests.tick(b.parts.index.slot(OFFERS))


def ended_once(b: broker.Broker, *handles: broker.Handle, target: str = "search") -> bool:
    """Whether each of these requests has exactly one terminal event, and nothing else is in the stream."""
    return Counter(done.request for done in events(b, target)) == Counter(handle.id for handle in handles)


# --- accepted once


def test_the_same_idempotency_key_and_body_is_the_same_request(b: broker.Broker, hand: Hand) -> None:
    first, again = ask(b, idempotency_key="job-17"), ask(b, idempotency_key="job-17")
    assert again.id == first.id
    assert hand.work() == 1
    assert ask(b, idempotency_key="job-17").wait(1).request == first.id
    assert ended_once(b, first)


def test_an_idempotency_key_with_another_body_is_a_conflict(b: broker.Broker) -> None:
    first = ask(b, idempotency_key="job-17")
    with pytest.raises(Conflict, match=first.id):
        ask(b, idempotency_key="job-17", format="csv")


def test_idempotency_keys_of_two_targets_have_nothing_to_do_with_each_other(b: broker.Broker) -> None:
    assert ask(b, idempotency_key="job-17").id != ask(b, target="feeds", idempotency_key="job-17").id


def test_a_submission_repeated_after_a_lost_reply_is_one_request(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    call_many, lost = b.parts.redis.call_many, list[int]()

    def losing(script: Any, calls: Any) -> Any:
        replies = call_many(script, calls)
        if script.name == "submit" and not lost:
            lost.append(1)
            raise OutcomeUnknown("the reply was lost", of="submit")
        return replies

    monkeypatch.setattr(b.parts.redis, "call_many", losing)
    ask(b)
    assert lost
    assert len(Hand(b.parts, Source()).read()) == 1


@pytest.mark.parametrize("later", [Unavailable("Redis is gone"), OutcomeUnknown("lost again")])
def test_a_submission_whose_reply_was_lost_is_never_said_to_be_refused(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch, later: BrokerError
) -> None:
    call_many, failures = b.parts.redis.call_many, [OutcomeUnknown("the reply was lost"), later]

    def losing(script: Any, calls: Any) -> Any:
        if script.name == "submit" and failures:
            call_many(script, calls)
            raise failures.pop(0)
        return call_many(script, calls)

    monkeypatch.setattr(b.parts.redis, "call_many", losing)
    with pytest.raises(OutcomeUnknown, match="may be queued"):
        ask(b)
    assert len(Hand(b.parts, Source()).read()) == 1


def test_an_unknown_dataset_is_refused(b: broker.Broker) -> None:
    with pytest.raises(NotFound, match="dataset create"):
        b.request("goodstuff_01/catalog/nothing", target="search")


# --- limits refuse, and drop nothing


def test_a_tenant_at_its_cap_waits_in_its_own_line_and_others_pass(redis_url: str) -> None:
    with opened(redis_url, tenant_inflight=2, tenant_backlog=1) as b:
        other = DatasetId("quiet/catalog/offers")
        b.dataset(other, key=["sku"])
        hand, handles = Hand(b.parts, Source()), [ask(b) for _ in range(3)]
        assert handles[2].status().waits == "backlog"
        with pytest.raises(Overloaded, match="line is full"):
            ask(b)
        b.request(other, target="search")
        assert {flight.dataset for flight in hand.claim().flights} == {OFFERS, other}


def test_each_request_that_ends_lets_the_next_of_its_line_go(redis_url: str) -> None:
    with opened(redis_url, tenant_inflight=1) as b:
        hand, handles = Hand(b.parts, Source()), [ask(b) for _ in range(3)]
        assert [hand.work() for _ in range(4)] == [1, 1, 1, 0]
        assert [done.request for done in events(b)] == [handle.id for handle in handles]


def test_of_a_tenants_line_the_high_priority_goes_first(redis_url: str) -> None:
    with opened(redis_url, tenant_inflight=1) as b:
        hand = Hand(b.parts, Source())
        handles = [ask(b, priority=priority) for priority in ("normal", "low", "normal", "high")]
        assert [hand.work() for _ in range(4)] == [1, 1, 1, 1]
        assert [done.request for done in events(b)] == [handles[index].id for index in (0, 3, 2, 1)]


def test_a_parked_request_holds_no_place_of_its_tenant(redis_url: str) -> None:
    with opened(redis_url, tenant_inflight=1) as b:
        prices = DatasetId("goodstuff_01/catalog/prices")
        b.dataset(prices, key=["sku"])
        dead, live = b.request(prices, target="search"), ask(b)
        assert live.status().waits == "backlog"
        slot = b.parts.index.slot(prices)
        b.parts.redis.create_group(slot.requests("prices", "normal"), PRODUCERS)
        (entry,) = b.parts.redis.wait_entries({slot.requests("prices", "normal"): b">"}, PRODUCERS, "one", 10, 0)
        b.parts.requests.park(slot, [entry])
        b.parts.requests.park(slot, [entry])  # the same bell heard twice
        assert (dead.status().waits, live.status().waits) == ("no-producer", None)
        b.parts.requests.unpark(slot, [dead.id])
        assert dead.status().waits == "backlog"  # it comes back to the front of the line
        later = ask(b)
        assert live.cancel()
        assert (dead.status().waits, later.status().waits) == (None, "backlog")
        assert dead.cancel()
        assert later.status().waits is None


def test_a_cancelled_request_leaves_its_line(redis_url: str) -> None:
    with opened(redis_url, tenant_inflight=1, tenant_backlog=1) as b:
        ask(b)
        assert ask(b).cancel()
        assert ask(b).status().waits == "backlog"  # the cancelled one gave its place back


def test_a_target_that_does_not_read_is_refused(redis_url: str) -> None:
    with opened(redis_url, max_unread_responses=2) as b:
        hand = Hand(b.parts, Source())
        for _ in range(2):
            ask(b)
            hand.work()
        with pytest.raises(Overloaded, match="too many unread"):
            ask(b)
        assert ask(b, target="other").status().state is State.QUEUED
        for response in b.responses("search").read():
            response.ack()
        assert ask(b).status().state is State.QUEUED


def test_a_nearly_full_redis_refuses_new_requests_and_answers_those_it_took() -> None:
    with redis_server("--maxmemory", "64mb") as server, opened(server.url, max_memory_ratio=0.2) as b:
        hand, handles = Hand(b.parts, Source()), list[broker.Handle]()

        def flood() -> None:
            while len(handles) < 10_000:
                handles.append(ask(b, attributes={"why": "x" * 4000}))

        with pytest.raises(Overloaded, match="nearly full"):
            flood()
        while hand.work():
            pass
        assert ended_once(b, *handles)


def test_a_full_redis_is_a_typed_error_and_nothing_is_half_done() -> None:
    with redis_server() as server, opened(server.url) as b:
        hand, kept = Hand(b.parts, Source()), ask(b)
        flight = hand.lead()
        produced = hand.produce(flight)
        b.parts.redis.run("CONFIG", "SET", "maxmemory", 1)
        for effect in (lambda: ask(b), lambda: b.dataset(OFFERS).publish([]), lambda: hand.answer(flight, produced)):
            with pytest.raises(Overloaded):
                effect()
        assert not events(b)
        b.parts.redis.run("CONFIG", "SET", "maxmemory", 0)
        hand.answer(hand.take_over(flight.id), produced)
        assert ended_once(b, kept)


# --- deadlines and cancelling


def test_a_deadline_that_has_passed_is_refused(b: broker.Broker) -> None:
    with pytest.raises(RequestExpired):
        ask(b, deadline=0)


def test_a_request_whose_deadline_passes_in_the_queue_expires_once(b: broker.Broker, hand: Hand) -> None:
    handle = ask(b, deadline=0.05)
    wait_until(lambda: handle.id in tick(b).expired, "the deadline", 5)
    claimed = hand.claim()
    assert (claimed.flights, claimed.expired) == ((), (handle.id,))
    b.parts.requests.expire(tick(b).expired)
    assert ended_once(b, handle)
    with pytest.raises(RequestExpired):
        handle.wait(1)


def test_a_request_whose_deadline_passes_while_it_runs_expires_once_and_the_version_lands(b: broker.Broker, hand: Hand) -> None:
    handle, patient = ask(b, deadline=0.1), ask(b)
    flight = hand.lead()
    wait_until(lambda: handle.id in tick(b).expired, "the deadline", 5)
    b.parts.requests.expire([handle.id, handle.id])
    b.parts.requests.beat(flight)
    assert hand.run(flight).ended == 1
    assert ended_once(b, handle, patient)
    assert (handle.status().state, patient.status().state) == (State.EXPIRED, State.COMPLETED)
    assert b.dataset(OFFERS).latest() is not None


def test_what_redis_forgot_is_not_expired_and_no_error(b: broker.Broker) -> None:
    handle = ask(b)
    b.parts.redis.run("FLUSHALL")
    b.parts.requests.expire([handle.id])
    assert not events(b)


def test_a_cancelled_request_in_the_queue_is_never_run(b: broker.Broker, hand: Hand) -> None:
    handle = ask(b)
    assert handle.cancel()
    assert not handle.cancel()
    assert hand.work() == 0
    assert ended_once(b, handle)
    with pytest.raises(RequestCancelled):
        handle.wait(1)


def test_a_member_cancelled_while_it_runs_is_cancelled_although_the_version_lands(b: broker.Broker, hand: Hand) -> None:
    handle, other = ask(b), ask(b)
    flight = hand.lead()
    produced = hand.produce(flight)
    assert handle.cancel()
    assert hand.answer(flight, produced).ended == 1
    assert (handle.status().state, other.status().state) == (State.CANCELLED, State.COMPLETED)
    assert ended_once(b, handle, other)


def test_a_member_cancelled_while_its_answer_is_under_way_ends_once(b: broker.Broker, hand: Hand) -> None:
    handle = ask(b)
    flight = hand.lead()
    produced = hand.produce(flight)
    members = hand.clerk.close(flight)
    assert handle.cancel()
    assert hand.clerk.complete(flight, members, produced).ended == 0
    assert handle.status().state is State.CANCELLED
    assert ended_once(b, handle)


def test_a_flight_nobody_waits_for_is_deserted_and_nobody_joins_it(b: broker.Broker, hand: Hand) -> None:
    handle = ask(b)
    flight = hand.lead()
    assert b.parts.requests.beat(flight)
    handle.cancel()
    assert not b.parts.requests.beat(flight)
    late = ask(b)
    claimed = hand.claim()
    assert (claimed.flights, claimed.joined) == ((), 0)
    hand.clerk.fail(flight, hand.clerk.close(flight), RequestCancelled("cancelled"))
    assert hand.work() == 1
    assert ended_once(b, handle, late)


# --- flights


def test_a_thousand_requests_alike_are_one_production_and_one_derivation(b: broker.Broker, hand: Hand) -> None:
    handles = [ask(b, where="price < 50", columns=["price"], format="csv") for _ in range(1_000)]
    claimed = hand.claim()
    assert (len(claimed.flights), claimed.joined) == (1, 999)
    assert hand.run(claimed.flights[0]).ended == 1_000
    assert hand.source.runs == 1
    files = {file.key for done in events(b) for file in done.files}
    assert len(files) == 1
    assert ended_once(b, *handles)


def test_different_selections_share_a_production_and_get_each_their_own_files(b: broker.Broker, hand: Hand) -> None:
    cheap, dear = ask(b, where="price < 50"), ask(b, where="price >= 50", target="feeds")
    assert hand.work() == 1
    assert hand.source.runs == 1
    assert (cheap.wait(1).table()["sku"].to_pylist(), dear.wait(1).table()["sku"].to_pylist()) == (["a"], ["b"])


def test_a_full_flight_leaves_the_rest_to_the_next(redis_url: str) -> None:
    with opened(redis_url, flight_members=2) as b:
        hand, handles = Hand(b.parts, Source()), [ask(b) for _ in range(5)]
        assert [hand.work() for _ in range(4)] == [1, 1, 1, 0]
        assert hand.source.runs == 3
        assert ended_once(b, *handles)


def test_who_asks_after_the_reservation_gets_what_the_next_production_finds(b: broker.Broker, hand: Hand) -> None:
    ask(b)
    flight = hand.lead()
    produced = hand.produce(flight)
    hand.source.rows.append({"sku": "c", "price": 7})
    late = ask(b)
    assert hand.claim().joined == 0
    hand.answer(flight, produced)
    assert hand.work() == 1
    assert sorted(late.wait(1).table()["sku"].to_pylist()) == ["a", "b", "c"]


def test_a_member_without_an_answer_is_asked_again(b: broker.Broker, hand: Hand) -> None:
    handle, left_out = ask(b), ask(b)
    flight = hand.lead()
    produced = hand.produce(flight)
    answered = [member for member in hand.clerk.close(flight) if member.id == handle.id]
    assert hand.clerk.complete(flight, answered, produced).ended == 1
    assert hand.work() == 1
    assert ended_once(b, handle, left_out)


def test_a_request_that_is_fresh_enough_is_answered_at_submit(b: broker.Broker, hand: Hand) -> None:
    ask(b)
    hand.work()
    handle = ask(b, max_staleness=60)
    assert handle.status().state is State.COMPLETED
    assert handle.wait(0.1).version == 1
    assert hand.source.runs == 1
    assert ask(b, max_staleness=0).status().state is State.QUEUED


def test_however_patient_a_request_is_the_producer_is_asked_for_a_dataset_made_anew(b: broker.Broker, hand: Hand) -> None:
    ask(b)
    hand.work()
    b.dataset(OFFERS).drop()
    b.dataset(OFFERS, key=["sku"])
    ask(b, max_staleness=3e9)
    assert hand.lead().kind == "produce"


def test_a_fresh_request_that_needs_files_is_only_derived(b: broker.Broker, hand: Hand) -> None:
    ask(b)
    hand.work()
    handle = ask(b, max_staleness=60, where="price < 50")
    flight = hand.lead()
    assert flight.kind == "derive"
    hand.run(flight)
    assert handle.wait(1).rows == 1
    assert hand.source.runs == 1
    assert ask(b, max_staleness=60, where="price < 50").status().state is State.COMPLETED  # the files are there now


def test_a_flight_has_the_priority_of_the_request_that_opened_it(b: broker.Broker, hand: Hand) -> None:
    ask(b, priority="low")
    assert hand.lead().priority == "low"


def test_a_request_says_why_each_of_its_attempts_failed(b: broker.Broker, hand: Hand) -> None:
    handle = ask(b)
    for why in ("first", "second"):
        hand.source.error = AttemptFailed(f"the {why} went wrong")
        hand.work()
        wait_until(
            lambda: not tick(b).lapsed and not b.parts.redis.run("ZCARD", b.parts.index.slot(OFFERS).key("delayed")), "it"
        )
    assert [cause["what"] for cause in handle.status().causes] == ["the first went wrong", "the second went wrong"]
    hand.source.error = None
    hand.work()
    assert handle.wait(1).completion.attempts == 3
    assert ask(b).status().causes == ()


# --- what another release wrote


def spoil(b: broker.Broker, handle: broker.Handle) -> None:
    """Give the request a field that this release does not know."""
    key = Slot(slot_of(handle.id)).request(handle.id)
    body = json.loads(b.parts.redis.run("HGET", key, "body"))
    b.parts.redis.run("HSET", key, "body", json.dumps(body | {"sample": 0.1}))


@pytest.mark.parametrize("first", [True, False])
def test_a_request_that_this_release_cannot_read_fails_alone(b: broker.Broker, hand: Hand, first: bool) -> None:
    one, other = ask(b), ask(b)
    strange, plain = (one, other) if first else (other, one)
    spoil(b, strange)
    assert hand.work() == 1
    assert plain.wait(1).version == 1
    with pytest.raises(RequestFailed, match=r"this release cannot read it.*sample"):
        strange.wait(1)
    letter = Inquiry(b.parts.redis, b.parts.requests).dead_letter(strange.id)
    assert letter is not None
    assert letter.request is None
    assert ended_once(b, one, other)
    with pytest.raises(Unsupported, match="sample"):
        strange.status()


def test_a_request_that_this_release_cannot_read_can_be_cancelled_and_expires(b: broker.Broker) -> None:
    cancelled, expired = ask(b), ask(b)
    spoil(b, cancelled)
    spoil(b, expired)
    assert cancelled.cancel()
    assert not cancelled.cancel()
    b.parts.requests.expire([expired.id])
    assert [done.state for done in events(b)] == [State.CANCELLED, State.EXPIRED]


@pytest.mark.parametrize("fields", [{}, {"d": "no dataset"}, {"d": b"\xff"}])
def test_a_bell_that_names_no_dataset_rings_for_that_of_its_request(
    b: broker.Broker, hand: Hand, fields: dict[str, Any]
) -> None:
    handle, slot = ask(b), b.parts.index.slot(OFFERS)
    hand.read()
    stream = slot.requests("offers", "normal")
    for bell in ({"r": handle.id, **fields}, {"r": "nobody"}, {"x": "y"}):
        b.parts.redis.run("XADD", stream, "*", *(text for field in bell.items() for text in field))
    assert hand.claim().flights == ()
    assert tick(b).parked == ((handle.id, OFFERS),)
    b.parts.requests.unpark(slot, [handle.id])
    assert hand.work() == 1
    assert ended_once(b, handle)


# --- entries of others


def test_a_request_nobody_here_can_serve_waits_parked_until_somebody_can(b: broker.Broker, hand: Hand) -> None:
    stranger, handle = Hand(b.parts, Source(), "stranger", serves=lambda _: False), ask(b)
    assert stranger.claim().flights == ()
    assert handle.status().waits == "no-producer"
    assert tick(b).parked == ((handle.id, OFFERS),)
    b.parts.requests.unpark(b.parts.index.slot(OFFERS), [handle.id])
    b.parts.requests.unpark(b.parts.index.slot(OFFERS), [handle.id])  # two workers may find it at once
    assert handle.status().waits is None
    assert hand.work() == 1
    assert ended_once(b, handle)


def test_a_parked_request_can_be_cancelled(b: broker.Broker) -> None:
    handle = ask(b)
    Hand(b.parts, Source(), "stranger", serves=lambda _: False).claim()
    handle.cancel()
    assert tick(b).parked == ()


# --- failures


def test_a_transient_failure_is_tried_again_after_its_back_off(b: broker.Broker, hand: Hand) -> None:
    handle, hand.source.error = ask(b), AttemptFailed("the source is away")
    assert hand.run(hand.lead()).retried == 1
    assert (handle.status().state, handle.status().attempts) == (State.QUEUED, 1)
    hand.source.error = None
    wait_until(lambda: bool(tick(b) and hand.work()), "the back-off", 5)
    assert handle.wait(1).attempts == 2
    assert ended_once(b, handle)


def test_a_terminal_failure_goes_straight_to_the_dead_letters(b: broker.Broker, hand: Hand) -> None:
    handle, hand.source.error = ask(b), Invalid("the query is wrong", hint="Correct it")
    assert hand.work() == 1
    with pytest.raises(RequestFailed, match="the query is wrong"):
        handle.wait(1)
    assert b.parts.redis.run("XLEN", Slot(slot_of(handle.id)).dead) == 1
    assert ended_once(b, handle)


def test_a_request_that_fails_every_time_is_poison(b: broker.Broker, hand: Hand) -> None:
    handle, hand.source.error = ask(b), AttemptFailed("always")
    wait_until(lambda: bool((hand.work(), tick(b)) and handle.status().state.terminal), "the last attempt", 10)
    assert handle.status().attempts == b.parts.settings.max_attempts == hand.source.runs
    assert handle.status().state is State.FAILED
    assert ended_once(b, handle)


# --- take-over


def test_the_old_holder_of_a_flight_that_was_taken_over_is_fenced_from_everything(b: broker.Broker, hand: Hand) -> None:
    handle, second = ask(b), Hand(b.parts, hand.source, "second")
    flight = hand.lead()
    assert b.parts.requests.take_over(flight.id, "too early") is None
    taken = second.take_over(flight.id)
    assert taken.attempt == 2
    for effect in (hand.produce, hand.clerk.close, b.parts.requests.beat, lambda old: b.parts.requests.answer(old, [])):
        with pytest.raises(Fenced):
            effect(flight)
    assert b.dataset(OFFERS).latest() is None
    second.run(taken)
    assert ended_once(b, handle)


def test_a_flight_that_lapsed_is_found_by_the_tick(b: broker.Broker, hand: Hand) -> None:
    ask(b)
    flight = hand.lead()
    assert tick(b).lapsed == ()
    let_lapse(b.parts, flight.id)
    assert tick(b).lapsed == ((flight.id, OFFERS),)


def test_a_production_found_in_the_log_after_a_take_over_is_not_run_again(b: broker.Broker, hand: Hand) -> None:
    handle = ask(b)
    flight = hand.lead()
    hand.produce(flight)
    late = ask(b)
    second = Hand(b.parts, hand.source, "second")
    taken = second.take_over(flight.id)
    assert second.claim().joined == 0
    second.run(taken)
    assert hand.source.runs == 1
    assert handle.wait(1).version == 1
    assert second.work() == 1
    assert ended_once(b, handle, late)


def test_an_answer_repeated_after_a_lost_reply_ends_nobody_twice(b: broker.Broker, hand: Hand) -> None:
    handle = ask(b)
    flight = hand.lead()
    produced = hand.produce(flight)
    hand.answer(flight, produced)
    with pytest.raises(Fenced):
        hand.answer(flight, produced)
    assert ended_once(b, handle)


# --- Redis forgets, restarts, goes back


def test_a_request_that_redis_forgot_is_lost_and_answered_when_it_is_asked_again(b: broker.Broker, hand: Hand) -> None:
    handle = ask(b, idempotency_key="job-17")
    hand.work()
    b.parts.redis.run("FLUSHALL")
    with pytest.raises(RequestLost, match="idempotency"):
        handle.status()
    with pytest.raises(RequestLost):
        handle.wait(1)
    again = ask(b, idempotency_key="job-17")
    assert hand.work() == 1
    done = again.wait(1)
    assert (done.version, done.table()["sku"].to_pylist()) == (1, ["a", "b"])


def test_a_request_older_than_the_history_is_unknown_not_lost(b: broker.Broker) -> None:
    fresh = new_id("catalog.0")
    old = fresh[: fresh.rindex(".") + 1] + "0" * 12 + fresh[-20:]
    with pytest.raises(NotFound):
        b.submitted(old)


def test_after_flushall_a_request_that_allows_staleness_is_answered_from_the_log_alone(b: broker.Broker, hand: Hand) -> None:
    ask(b)
    hand.work()
    b.parts.redis.run("FLUSHALL")
    assert ask(b, max_staleness=3600).wait(1).version == 1
    assert hand.source.runs == 1


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def reconnect(b: broker.Broker) -> None:
    """A connection that died shows at its next use, as Unavailable; after that a new one is made."""

    def answers() -> bool:
        try:
            return bool(b.parts.redis.run("PING", writes=False) == b"PONG")
        except Unavailable:
            return False

    wait_until(answers, "Redis", 10)


def test_a_restart_voids_leases_and_the_flight_goes_on_elsewhere(own_redis: RedisServer) -> None:
    with opened(own_redis.url) as b:
        hand, handle = Hand(b.parts, Source()), ask(b)
        flight = hand.lead()
        assert tick(b).lapsed == ()
        own_redis.restart()
        reconnect(b)
        with pytest.raises(Fenced):
            hand.produce(flight)
        assert tick(b).lapsed == ((flight.id, OFFERS),)
        second = Hand(b.parts, hand.source, "second")
        second.run(second.take_over(flight.id))
        assert ended_once(b, handle)
        assert [record.kind for record in bodies(b)] == ["create", "barrier", "version"]


def test_a_redis_gone_back_shows_the_newest_version_and_repeats_no_production(own_redis: RedisServer) -> None:
    with opened(own_redis.url) as b:
        hand, handle = Hand(b.parts, Source()), ask(b)
        flight = hand.lead()
        saved = own_redis.save("claimed")
        hand.answer(flight, hand.produce(flight))
        own_redis.roll_back(saved)
        reconnect(b)
        assert b.dataset(OFFERS).state.version == 1
        second = Hand(b.parts, hand.source, "second")
        second.run(second.take_over(flight.id))
        assert hand.source.runs == 1
        assert handle.wait(1).version == 1
        assert ended_once(b, handle)


def test_a_wiped_redis_is_rebuilt_by_the_first_who_asks(own_redis: RedisServer) -> None:
    with opened(own_redis.url) as b:
        hand = Hand(b.parts, Source())
        ask(b)
        hand.work()
        own_redis.wipe()
        reconnect(b)
        handle = ask(b)
        hand.source.rows.append({"sku": "c", "price": 7})
        assert hand.work() == 1
        assert handle.wait(1).version == 2
        assert [record.kind for record in bodies(b)] == ["create", "version", "barrier", "version"]


def bodies(b: broker.Broker) -> list[Any]:
    """Bodies of the dataset's sealed records; the alter that notes the first schema left out."""
    from broker.model.commit import parse_record

    found = [parse_record(data, "log").body for data in b.parts.catalog.records(OFFERS)]
    return [body for body in found if body.kind != "alter"]
