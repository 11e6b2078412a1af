"""The worker's own parts: the line of flights, messages to children, children under supervision, the loop."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from threading import Event
from typing import Any, cast

import pytest

from broker.errors import AttemptFailed, Terminal, Unavailable
from broker.flights import Flight
from broker.model.commit import Fence
from broker.model.names import DatasetId
from broker.model.request import Priority
from broker.replica_following import ending_by_signals
from broker.settings import Settings, load
from tests.servers import wait_until
from workers.channel import MAX_MESSAGE_BYTES, Channel
from workers.child import flight_from_json, flight_to_json
from workers.line import Line
from workers.loop import Loop
from workers.supervisor import Result, Supervisor


def flight(id: str, priority: Priority = "normal") -> Flight:
    return Flight(id, DatasetId("goodstuff_01/catalog/offers"), "produce", "me", Fence(1, 2), 1, priority)


# --- the line


def test_the_line_gives_the_oldest_of_the_highest_priority_first() -> None:
    line = Line()
    for id, priority in (("n1", "normal"), ("l1", "low"), ("h1", "high"), ("h2", "high"), ("n2", "normal")):
        line.put(flight(id, priority))  # type: ignore[arg-type]
    assert [taken.id for taken in iter(line.take, None)] == ["h1", "h2", "n1", "n2", "l1"]


def test_every_tenth_flight_is_the_oldest_of_the_lowest_priority() -> None:
    line = Line()
    for number in range(100):
        line.put(flight(f"h{number}", "high"))
    for number in range(3):
        line.put(flight(f"l{number}", "low"))
    taken = [found.id for found in (line.take() for _ in range(30)) if found]
    assert [(index, id) for index, id in enumerate(taken, 1) if id.startswith("l")] == [(10, "l0"), (20, "l1"), (30, "l2")]


# --- messages


def test_a_flight_survives_its_way_to_a_child() -> None:
    assert flight_from_json(flight_to_json(flight("f", "low"))) == flight("f", "low")


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    mine, theirs = socket.socketpair()
    yield Channel(mine), theirs
    mine.close()
    theirs.close()


def test_a_message_arrives_whole_however_it_is_cut(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    data = b'{"a": 1}'
    for piece in (struct.pack(">I", len(data))[:2], struct.pack(">I", len(data))[2:] + data[:3], data[3:]):
        peer.sendall(piece)
    assert channel.receive() == {"a": 1}


@pytest.mark.parametrize("sent", [b"", b"\x00", struct.pack(">I", 9) + b'{"a"', struct.pack(">I", MAX_MESSAGE_BYTES + 1)])
def test_a_peer_that_ends_in_the_middle_reads_as_none(ends: tuple[Channel, socket.socket], sent: bytes) -> None:
    channel, peer = ends
    peer.sendall(sent)
    peer.close()
    assert channel.receive() is None
    assert not channel.send({"too": "late"})


# --- children


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return load(redis=redis_url, store="memory://", attempt_seconds=60)


@pytest.fixture
def supervisor(settings: Settings) -> Iterator[Supervisor]:
    started = Supervisor(settings, "tests.faults.bad_app:app", 1)
    yield started
    started.stop()


def end_of(supervisor: Supervisor, seconds: float = 40) -> Result:
    found: list[Result] = []

    def ended() -> bool:
        found.extend(supervisor.wait(0.1))
        return bool(found)

    wait_until(ended, "the end of a task", seconds)
    return found[0]


def order(supervisor: Supervisor, subject: str = "task") -> bool:
    """A task that ends at once, with a typed error: no such dataset."""
    message = {"do": "produce", "flight": flight_to_json(flight("f")), "since": None}
    return supervisor.run(subject, message)


def test_a_child_answers_with_a_typed_error_and_is_idle_again(supervisor: Supervisor) -> None:
    for subject in ("first", "second"):
        assert order(supervisor, subject)
        assert not order(supervisor)
        result = end_of(supervisor)
        assert result.task.subject == subject
        assert result.error is not None
        assert result.error.code == "not-found"
    assert supervisor.idle == 1


def test_a_child_that_is_killed_ends_its_task_and_has_a_successor(supervisor: Supervisor) -> None:
    order(supervisor)
    end_of(supervisor)
    child = supervisor.children[0].process
    child.send_signal(signal.SIGSTOP)
    order(supervisor)
    os.kill(child.pid, signal.SIGKILL)
    error = end_of(supervisor).error
    assert isinstance(error, AttemptFailed)
    assert "killed by SIGKILL" in error.why
    assert order(supervisor)
    assert end_of(supervisor).error is not None
    assert supervisor.children[0].process.pid != child.pid


def test_a_child_that_is_doomed_is_given_no_task(supervisor: Supervisor) -> None:
    order(supervisor)
    end_of(supervisor)
    supervisor.children[0].kill("its time is over")
    assert supervisor.idle == 0
    assert not order(supervisor)


def test_only_the_child_of_the_subject_is_aborted(supervisor: Supervisor) -> None:
    assert not supervisor.abort("task", "cancelled")
    order(supervisor)
    end_of(supervisor)
    supervisor.children[0].process.send_signal(signal.SIGSTOP)
    order(supervisor)
    assert not supervisor.abort("another", "cancelled")
    assert supervisor.abort("task", "cancelled")
    error = end_of(supervisor).error
    assert error is not None
    assert error.why == "cancelled"


def test_children_that_cannot_start_stop_the_worker_with_the_reason(settings: Settings) -> None:
    supervisor = Supervisor(settings, "tests.faults.no_such_module:app", 1)
    try:
        with pytest.raises(Terminal, match="no such module"):
            end_of(supervisor)
    finally:
        supervisor.stop()


# --- the loop


def test_a_pass_that_fails_for_now_is_repeated_and_any_other_failure_stops_the_worker() -> None:
    loop, seen = Loop(), list[Exception]()
    failures: list[Exception] = [Unavailable("Redis is away"), ValueError("a defect")]

    def work() -> None:
        seen.append(failures[len(seen)])
        raise seen[-1]

    loop.every("work", 0, work)
    with pytest.raises(ValueError, match="a defect"):
        loop.run()
    assert seen == failures


def test_a_duty_that_drains_goes_on_until_nothing_is_held() -> None:
    loop, left, stopped = Loop(), [3], Event()

    def drain() -> None:
        if stopped.is_set():
            left[0] -= 1

    def stop() -> bool:
        stopped.set()
        return True

    loop.every("drain", 0.001, drain, drains=True)
    loop.run(done=stop, poll_seconds=0.001, drained=lambda: left[0] <= 0, drain_seconds=30)
    assert left[0] <= 0


def test_a_pass_that_takes_longer_than_the_drain_is_left_behind() -> None:
    loop, begun, for_ever = Loop(), Event(), Event()

    def sweep() -> None:
        begun.set()
        for_ever.wait()

    loop.every("sweep", 0, sweep)
    try:
        loop.run(done=begun.is_set, drain_seconds=0.01)
    finally:
        for_ever.set()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts the signal handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_signals_stop_a_loop_whatever_code_they_interrupt() -> None:
    """Whoever waits for an event, or sets it, holds its lock for a moment: a handler that took it would wait for ever."""
    loop = Loop()
    loop.handle_signals()
    with cast(Any, loop.stopping)._cond:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as second:
            signal.raise_signal(signal.SIGTERM)
    assert second.value.code == 128 + signal.SIGTERM
    loop.run()
    assert loop.stopping.is_set()


@pytest.mark.usefixtures("handlers")
def test_signals_end_a_follower_whatever_code_they_interrupt() -> None:
    stop = Event()
    with ending_by_signals(stop):
        with cast(Any, stop)._cond:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
        assert stop.wait(30)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_settings_reach_children_with_their_secrets_and_never_on_a_command_line(settings: Settings) -> None:
    from workers.supervisor import revealed

    secret = load(redis=settings.redis, store="memory://", s3_secret_key="hush")
    told: dict[str, Any] = revealed(secret)
    assert told["s3_secret_key"] == "hush"
    assert Settings.model_validate(told) == secret
    supervisor = Supervisor(secret, "tests.faults.bad_app:app", 1)
    try:
        command = supervisor.children[0].process.args
        assert "hush" not in str(command)
    finally:
        supervisor.stop()
