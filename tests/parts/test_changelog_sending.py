"""The queue of single records, by itself: its bounds, and how a batch ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event, Thread
from typing import Any

import pytest

from broker import changelog_sending
from broker.changelog_sending import Sending
from broker.errors import BadData, Gap, Invalid, OutcomeUnknown, Overloaded, TimedOut, Unavailable
from broker.rules.blocks import Kind


class Log:
    """Takes records when it may, or raises what it is told to."""

    def __init__(self) -> None:
        self.may, self.entered, self.taken, self.errors = Event(), Event(), list[list[Any]](), list[Exception]()
        self.may.set()

    def deliver(self, kind: Kind, records: Sequence[Any]) -> str:
        self.entered.set()
        self.may.wait(60)
        if self.errors:
            raise self.errors.pop(0)
        self.check(kind, records)
        self.taken.append(list(records))
        return f"{kind} {len(self.taken)}"

    def check(self, kind: Kind, records: Sequence[Any]) -> None:
        del kind
        if "bad" in records:
            raise BadData("this is no row")


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def sending(log: Log) -> Iterator[Sending]:
    made = Sending(log.deliver, log.check)
    yield made
    log.may.set()
    made.close(60)


def hold(log: Log, sending: Sending) -> None:
    """A first record is on its way, and does not arrive."""
    log.may.clear()
    sending.put("u", "first", 1)
    assert log.entered.wait(60)


def test_what_comes_while_a_block_is_on_its_way_leaves_together(log: Log, sending: Sending) -> None:
    hold(log, sending)
    pending = [sending.put("u", number, 1) for number in range(5)]
    with pytest.raises(TimedOut):
        pending[0].result(0)
    log.may.set()
    assert [one.result(60) for one in pending] == ["u 2"] * 5
    assert log.taken == [["first"], [0, 1, 2, 3, 4]]


def test_changes_of_two_kinds_keep_their_order_and_have_their_own_acks(log: Log, sending: Sending) -> None:
    hold(log, sending)
    kinds: list[Kind] = ["u", "u", "d", "u"]
    pending = [sending.put(kind, number, 1) for number, kind in enumerate(kinds)]
    log.may.set()
    assert [one.result(60) for one in pending] == ["u 2", "u 2", "d 3", "u 4"]
    assert log.taken == [["first"], [0, 1], [2], [3]]


@pytest.mark.parametrize(("limit", "bound"), [("SEND_RECORDS", 3), ("SEND_BYTES", 30)])
def test_when_too_much_waits_the_next_is_refused_and_nothing_is_dropped(
    log: Log, sending: Sending, monkeypatch: pytest.MonkeyPatch, limit: str, bound: int
) -> None:
    monkeypatch.setattr(changelog_sending, limit, bound)
    hold(log, sending)
    pending = [sending.put("u", {"sku": "0123456789"}, 1) for _ in range(3)]
    with pytest.raises(Overloaded, match="3 records, 30 bytes"):
        sending.put("u", {"sku": "one more"}, 0.01)
    log.may.set()
    assert [one.result(60) for one in pending] == ["u 2"] * 3


def test_bad_records_are_told_and_do_not_keep_the_others(log: Log, sending: Sending) -> None:
    hold(log, sending)
    pending = [sending.put("u", record, 1) for record in ("a", "bad", "b", "c", "bad")]
    log.may.set()
    for number in (1, 4):
        with pytest.raises(BadData):
            pending[number].result(60)
    assert [pending[number].result(60) for number in (0, 2, 3)] == ["u 2"] * 3
    assert log.taken == [["first"], ["a", "b", "c"]]


def test_it_tries_again_after_what_passes_and_tells_what_does_not(log: Log, sending: Sending) -> None:
    log.errors += [Unavailable("Redis does not answer"), OutcomeUnknown("lost"), Overloaded("full")]
    assert sending.put("u", "a", 1).result(60) == "u 1"
    log.errors += [Gap.between("pim", 3, 2)]
    with pytest.raises(Gap):
        sending.put("u", "b", 1).result(60)
    log.errors += [ZeroDivisionError("a surprise")]
    with pytest.raises(OutcomeUnknown, match="surprise"):
        sending.put("u", "c", 1).result(60)
    assert sending.put("u", "d", 1).result(60) == "u 2", "the thread lives on"


def test_flush_waits_for_what_was_put_before_alone(log: Log, sending: Sending) -> None:
    sending.flush(0)
    hold(log, sending)
    with pytest.raises(TimedOut):
        sending.flush(0.01)
    log.may.set()
    sending.flush(60)
    assert log.taken == [["first"]]


def test_closing_ends_what_waits_one_way_or_the_other(log: Log) -> None:
    sending = Sending(log.deliver, log.check)
    log.errors += [Unavailable("gone") for _ in range(1_000)]
    pending = sending.put("u", "a", 1)
    sending.close(0.01)
    with pytest.raises(Unavailable):
        pending.result(0)
    with pytest.raises(Invalid, match="closed"):
        sending.put("u", "b", 1)


def test_where_no_thread_begins_nothing_is_queued_and_the_next_is_sent(
    log: Log, sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError(f"can't start new thread: {thread.name}")

    with monkeypatch.context() as few:
        few.setattr(Thread, "start", refuse)
        with pytest.raises(Overloaded, match="can't start new thread"):
            sending.put("u", "lost", 1)
    sending.flush(0)
    assert sending.put("u", "a", 1).result(60) == "u 1"
    assert log.taken == [["a"]]


def test_what_never_began_to_send_closes(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError(f"can't start new thread: {thread.name}")

    sending = Sending(log.deliver, log.check)
    monkeypatch.setattr(Thread, "start", refuse)
    with pytest.raises(Overloaded):
        sending.put("u", "a", 1)
    sending.close(1)
    assert log.taken == []
