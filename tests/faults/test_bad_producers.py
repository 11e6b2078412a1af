"""Whatever a producer does to its process: a typed error, exactly one terminal event, and neighbours go on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

import broker
from broker.errors import (
    AttemptFailed,
    BadData,
    BrokerError,
    DuplicateKey,
    Invalid,
    InvalidPredicate,
    NullKey,
    RequestCancelled,
    RequestFailed,
)
from broker.model.names import DatasetId
from broker.model.request import State
from tests.faults.arena import Arena, check_events
from tests.faults.bad_app import DEEDS
from tests.servers import redis_server, temporary_folder, wait_until

LIMITS = {"attempt_seconds": 4.0, "attempt_max_bytes": 500 << 20, "max_attempts": 2, "lease_seconds": 6.0}
CANCEL_SECONDS = 5.0
WAIT_SECONDS = 80

# What each deed is reported as, after how many attempts.
TRANSIENT: dict[str, str] = {
    "raises": "LookupError: the source is in a bad mood", "hangs": "longer than attempt_seconds=4", "exits": "exited with 3",
    "leaves": "exited with 4", "streams": "exited with 5", "killed": "killed by SIGKILL", "segfaults": "killed by SIGSEGV",
    "swells": "more than attempt_max_bytes", "forks": "killed by SIGKILL",
}  # fmt: skip
TERMINAL: dict[str, tuple[type[BrokerError], str]] = {
    "wrong": (Invalid, "returned a list"), "nothing": (Invalid, "returned a NoneType"), "nullkey": (NullKey, "sku"),
    "twice": (DuplicateKey, "a"), "keyless": (BadData, "sku"),
}  # fmt: skip


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with redis_server() as server, temporary_folder("deeds") as home:
        arena = Arena(home, server.url, "tests.faults.bad_app:app", LIMITS | {"temp_folder": str(home / "parked")})
        arena.start_worker(children=2)
        try:
            yield arena
        finally:
            arena.stop()


@pytest.fixture(scope="module")
def b(arena: Arena) -> Iterator[broker.Broker]:
    with arena.connect() as connected:
        for deed in DEEDS:
            connected.dataset(id_of(deed), key=["sku"])
        connected.request(id_of("good"), target="warm").wait(60)
        yield connected


@pytest.fixture(scope="module")
def asked(b: broker.Broker) -> dict[str, broker.Handle]:
    """All deeds at once, each with a good neighbour behind it."""
    handles = {}
    for deed in (*TRANSIENT, *TERMINAL):
        handles[deed] = b.request(id_of(deed), target=deed)
        handles[f"beside {deed}"] = b.request(id_of("good"), target="good")
    return handles


def id_of(deed: str) -> str:
    return f"goodstuff_01/catalog/{deed}"


def test_every_deed_is_expected_here() -> None:
    assert set(DEEDS) == {"good", *TRANSIENT, *TERMINAL}


@pytest.mark.parametrize("deed", TRANSIENT)
def test_an_attempt_that_takes_its_process_down_is_tried_again_and_then_dead(
    b: broker.Broker, asked: dict[str, broker.Handle], deed: str
) -> None:
    with pytest.raises(RequestFailed) as failed:
        asked[deed].wait(WAIT_SECONDS)
    assert isinstance(failed.value.__cause__, AttemptFailed)
    assert TRANSIENT[deed] in str(failed.value)
    assert asked[deed].status().attempts == LIMITS["max_attempts"]
    check_events(b, [asked[deed]], deed)
    assert b.dataset(id_of(deed)).latest() is None


@pytest.mark.parametrize("deed", TERMINAL)
def test_an_answer_that_can_never_be_right_is_not_asked_for_again(
    b: broker.Broker, asked: dict[str, broker.Handle], deed: str
) -> None:
    kind, why = TERMINAL[deed]
    with pytest.raises(RequestFailed, match=why) as failed:
        asked[deed].wait(WAIT_SECONDS)
    assert isinstance(failed.value.__cause__, kind)
    assert asked[deed].status().attempts == 1
    check_events(b, [asked[deed]], deed)
    assert b.dataset(id_of(deed)).latest() is None


def test_the_good_neighbours_of_all_those_were_answered(b: broker.Broker, asked: dict[str, broker.Handle]) -> None:
    good = [handle for name, handle in asked.items() if name.startswith("beside")]
    for handle in good:
        assert handle.wait(WAIT_SECONDS).version == 1
        assert handle.status().attempts <= 1
    check_events(b, good, "good")


def test_a_selection_that_fails_leaves_the_others_of_its_flight_to_be_answered(b: broker.Broker) -> None:
    fresh = "goodstuff_02/catalog/good"  # without a schema yet nobody can know that there is no such column
    b.dataset(fresh, key=["sku"])
    asked: tuple[dict[str, str], ...] = ({"where": "nosuch < 5"}, {"format": "csv"}, {})
    handles = list(b.requests({"dataset": fresh, "target": "mixed", **fields} for fields in asked))
    bad, text, plain = (handle for handle in handles if isinstance(handle, broker.Handle))
    with pytest.raises(RequestFailed, match="nosuch") as failed:
        bad.wait(WAIT_SECONDS)
    assert isinstance(failed.value.__cause__, InvalidPredicate)
    assert (text.wait(WAIT_SECONDS).rows, plain.wait(WAIT_SECONDS).rows) == (1, 1)
    assert [handle.status().attempts for handle in (bad, text, plain)] == [1, 1, 1]
    check_events(b, [bad, text, plain], "mixed")


def test_what_a_producer_parks_on_disk_lies_in_the_folder_set_for_it(arena: Arena, b: broker.Broker) -> None:
    assert b.parts.catalog.noted(DatasetId(id_of("good"))) == (1, {"parks under": str(arena.home / "parked")})


def test_a_cancelled_attempt_is_killed_within_five_seconds(
    arena: Arena, b: broker.Broker, asked: dict[str, broker.Handle]
) -> None:
    for handle in asked.values():
        with suppress(RequestFailed):
            handle.wait(WAIT_SECONDS)
    note = arena.home / "hanging"
    note.unlink()
    handle = b.request(id_of("hangs"), target="cancelled")
    wait_until(lambda: note.exists() and bool(note.read_text()), "the producer to hang", 30)
    pid = int(note.read_text())
    begun = time.monotonic()
    assert handle.cancel()
    with pytest.raises(RequestCancelled):
        handle.wait(1)
    wait_until(lambda: not alive(pid), "the child to be killed", CANCEL_SECONDS)
    assert time.monotonic() - begun < CANCEL_SECONDS
    assert handle.status().state is State.CANCELLED
    check_events(b, [handle], "cancelled")


def test_what_a_producer_started_does_not_outlive_its_attempt(arena: Arena, asked: dict[str, broker.Handle]) -> None:
    with suppress(RequestFailed):
        asked["forks"].wait(WAIT_SECONDS)
    left = int((arena.home / "left").read_text())
    wait_until(lambda: not alive(left), "what the producer started to end", CANCEL_SECONDS)


def test_children_end_with_a_worker_that_is_killed(arena: Arena, b: broker.Broker) -> None:
    note = arena.home / "hanging"
    note.unlink(missing_ok=True)
    handle = b.request(id_of("hangs"), target="orphaned")
    wait_until(lambda: note.exists() and bool(note.read_text()), "the producer to hang", 30)
    arena.workers[0].kill()
    wait_until(lambda: not alive(int(note.read_text())), "the orphan to end", CANCEL_SECONDS)
    handle.cancel()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
