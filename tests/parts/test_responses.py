"""Response streams: at least once to the readers that share them, gone when acknowledged, back when asked for later."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import broker
from broker import Response, Responses, responses
from broker.errors import InvalidName
from broker.model.request import State
from tests.ledger import OFFERS, Hand, Source, events
from tests.servers import wait_until


@pytest.fixture
def b(redis_url: str) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, store="memory://") as connected:
        connected.dataset(OFFERS, key=["sku"])
        yield connected


@pytest.fixture
def reader(b: broker.Broker) -> Iterator[Responses]:
    stream = b.responses("search")
    yield stream
    stream.close()


def answered(b: broker.Broker, count: int = 1, target: str = "search") -> list[str]:
    """Requests that have their completions. -> ids"""
    ids = [b.request(OFFERS, target=target).id for _ in range(count)]
    Hand(b.parts, Source()).work()
    return ids


def ids_of(found: list[Response]) -> list[str]:
    return [response.id for response in found]


def test_a_response_is_delivered_once_and_gone_when_acknowledged(b: broker.Broker, reader: Responses) -> None:
    (id,) = answered(b)
    (response,) = reader.read()
    assert (response.id, response.completion.state) == (id, State.COMPLETED)
    assert reader.read() == []
    response.ack()
    response.ack()
    assert events(b) == []


def test_readers_of_one_target_share_what_comes(b: broker.Broker, reader: Responses) -> None:
    ids, second = answered(b, 4), b.responses("search")
    first, rest = reader.read(count=2), second.read()
    second.close()
    assert sorted(ids_of(first) + ids_of(rest)) == sorted(ids)
    assert len(first) == 2


def test_another_target_sees_nothing_of_it(b: broker.Broker) -> None:
    answered(b)
    other = b.responses("feeds")
    assert other.read() == []
    other.close()


def test_a_reader_that_died_leaves_its_responses_to_another(
    b: broker.Broker, reader: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = answered(b)
    dead = b.responses("search")
    assert ids_of(dead.read()) == [id]
    dead.close()
    assert ids_of(list(reader.listen(timeout=0.05))) == []
    monkeypatch.setattr(responses, "CLAIM_IDLE_MS", 0)
    assert next(reader.listen(timeout=0.05)).id == id


def test_a_response_asked_for_later_comes_back_to_any_reader(b: broker.Broker, reader: Responses) -> None:
    (id,) = answered(b)
    (response,) = reader.read()
    response.retry(in_seconds=0.05)
    response.retry(in_seconds=0.05)  # a repetition does not show it twice
    assert events(b) == []
    second, found = b.responses("search"), list[Response]()

    def came() -> bool:
        found.extend(second.read())
        return bool(found)

    wait_until(came, "the response to come back", 5)
    second.close()
    assert ids_of(found) == [id]


def test_peeking_takes_nothing(b: broker.Broker, reader: Responses) -> None:
    ids = answered(b, 2)
    seen = ids_of(reader.peek())
    assert sorted(seen) == sorted(ids)
    assert ids_of(reader.peek(limit=1)) == seen[:1]
    assert ids_of(reader.read()) == seen


def test_listening_ends_after_silence_and_gives_what_came_before(b: broker.Broker, reader: Responses) -> None:
    ids = answered(b, 3)
    assert sorted(ids_of(list(reader.listen(timeout=0.05)))) == sorted(ids)


def test_a_reader_goes_on_after_redis_lost_everything(b: broker.Broker, reader: Responses) -> None:
    answered(b)
    reader.read()
    b.parts.redis.run("FLUSHALL")
    assert list(reader.listen(timeout=0.05)) == []
    (id,) = answered(b)
    assert ids_of(list(reader.listen(timeout=0.2))) == [id]


def test_waiting_for_a_request_takes_nothing_from_the_stream(b: broker.Broker, reader: Responses) -> None:
    (id,) = answered(b)
    b.submitted(id).wait(1)
    b.submitted(id).wait(1)
    assert ids_of(reader.read()) == [id]
    reader.ack(reader.peek())
    assert b.submitted(id).wait(1).request == id


def test_a_name_that_is_no_target_is_refused(b: broker.Broker) -> None:
    with pytest.raises(InvalidName):
        b.responses("../search")


@pytest.mark.foreign_events
def test_an_answer_that_this_release_cannot_read_holds_up_no_other_and_stays(
    b: broker.Broker, reader: Responses, caplog: pytest.LogCaptureFixture
) -> None:
    strange, plain = answered(b, 2)
    slot = b.parts.index.slot(OFFERS)
    (seen,) = [entry for entry in reader.peek() if entry.id == strange]
    event = json.loads(seen.entry.fields[b"e"])
    event["data"]["sample"] = 0.1
    b.parts.redis.run("XDEL", slot.responses("search"), seen.entry.id)
    b.parts.redis.run("XADD", slot.responses("search"), "*", "e", json.dumps(event))
    assert ids_of(reader.peek()) == [plain]
    assert ids_of(reader.read()) == [plain]
    assert "this release cannot read it" in caplog.text
    assert b.parts.redis.run("XLEN", slot.responses("search")) == 2


def test_who_stops_listening_or_closes_the_broker_leaves_no_consumer_behind(b: broker.Broker, redis_url: str) -> None:
    answered(b, 3)

    def consumers() -> int:
        return len(b.parts.redis.run("XINFO", "CONSUMERS", b.parts.index.slot(OFFERS).responses("search"), "readers"))

    with broker.connect(redis=redis_url, store="memory://") as other:
        listener = other.responses("search").listen(timeout=5)
        for response in listener:
            response.ack()
            break
        assert consumers() == 1
        for left in listener:
            left.ack()
        assert list(other.responses("search").listen(timeout=0.05)) == []
        assert consumers() == 0
        reader = other.responses("search")
        assert reader.read() == []
        b.parts.redis.create_group(b.parts.index.slot(OFFERS).responses("search"), b"readers")
        assert consumers() == 1
    assert consumers() == 0


def test_a_reader_that_closes_leaves_the_group_unless_it_still_holds_something(b: broker.Broker) -> None:
    slot = b.parts.index.slot(OFFERS)
    answered(b)

    def consumers() -> int:
        return len(b.parts.redis.run("XINFO", "CONSUMERS", slot.responses("search"), "readers", writes=False))

    holder, idle = b.responses("search"), b.responses("search")
    (response,) = holder.read()
    assert idle.read() == []
    before = consumers()
    idle.close()
    assert consumers() == before - 1
    holder.close()
    assert consumers() == before - 1
    response.ack()
    holder.read()
    holder.close()
    assert consumers() == before - 2
