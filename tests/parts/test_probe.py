"""The probe tells stores apart by what they do. Each trait is shown missing on a store that lacks it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.errors import Terminal, Unavailable, Unsupported
from broker.settings import load
from broker.stores.local import LocalStore
from broker.stores.memory import MemoryStore
from broker.stores.open import open_store
from broker.stores.port import ObjectInfo
from broker.stores.probe import RACERS, Promise, probe
from tests.faulty_store import Fault, FaultyStore, matching
from tests.servers import S3Server

PERFECT = Promise(
    conditional_put=True,
    refuses_wrong_checksum=True,
    read_after_write=True,
    list_after_write=True,
    ranges=True,
    clock_skew_seconds=0.0,
)


def test_local_and_memory_stores_promise_everything(tmp_path: Path) -> None:
    assert probe(LocalStore(tmp_path), "t") == PERFECT
    assert probe(MemoryStore(), "t") == PERFECT


def test_moto_seals_atomically(s3_moto: S3Server) -> None:
    settings = s3_moto.settings()
    promise = probe(open_store(settings.store, settings))
    assert promise.seal_level == "atomic"
    assert promise.refuses_wrong_checksum is False, "so uploads to it are read back"
    assert (promise.read_after_write, promise.list_after_write, promise.ranges) == (True, True, True)


def test_rclone_is_found_to_ignore_the_condition(s3_rclone: S3Server) -> None:
    settings = s3_rclone.settings()
    promise = probe(open_store(settings.store, settings))
    assert promise.conditional_put is False
    assert promise.seal_level == "single-writer"
    assert promise.refuses_wrong_checksum is True
    assert (promise.read_after_write, promise.list_after_write, promise.ranges) == (True, True, True)
    assert promise.caveats() == promise.explain()[:1]
    assert "single writer" in promise.caveats()[0].text


def test_the_probe_leaves_nothing_behind(tmp_path: Path, s3_rclone: S3Server) -> None:
    settings = s3_rclone.settings()
    for store in (LocalStore(tmp_path), MemoryStore(), open_store(settings.store, settings)):
        probe(store, "t/probe")
        assert list(store.list("")) == []


class Overwriting(MemoryStore):
    """Ignores the condition."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


class KnowingItsOwn(MemoryStore):
    """Refuses a repetition by its content, and lets another's bytes through."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.stat(key) is not None and b"".join(self.get(key)) == data:
            return False
        self.put(key, data)
        return True


class OneAtATime(MemoryStore):
    """Looks, then writes: writers that race all find nothing. The barrier makes sure that they do."""

    def __init__(self) -> None:
        super().__init__()
        self.all_looked = threading.Barrier(RACERS)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.stat(key) is not None:
            return False
        if key.endswith("race"):
            self.all_looked.wait()
        self.put(key, data)
        return True


class AlwaysRefusing(MemoryStore):
    """Says that something is there, and nothing is."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        del key, data
        return False


class WithoutRanges(MemoryStore):
    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if start or length is not None:
            raise Unsupported("the store ignores byte ranges", of=key)
        return super().get(key)


class LateLists(MemoryStore):
    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        del prefix, after
        return iter(())


class Trusting(MemoryStore):
    """Takes bytes that do not fit their checksum."""

    def refuses_wrong_checksum(self, key: str) -> bool:
        self.put(key, b"wrong")
        return False


class Boasting(MemoryStore):
    """Answers an error and keeps the damaged object all the same."""

    def refuses_wrong_checksum(self, key: str) -> bool:
        self.put(key, b"wrong")
        return True


@pytest.mark.parametrize(
    ("make", "trait"),
    [
        (Overwriting, "conditional_put"),
        (KnowingItsOwn, "conditional_put"),
        (OneAtATime, "conditional_put"),
        (AlwaysRefusing, "conditional_put"),
        (WithoutRanges, "ranges"),
        (LateLists, "list_after_write"),
        (Trusting, "refuses_wrong_checksum"),
        (Boasting, "refuses_wrong_checksum"),
    ],
)
def test_a_trait_that_is_missing_is_found_missing(make: Callable[[], MemoryStore], trait: str) -> None:
    promise = probe(make())
    expected = {name: getattr(PERFECT, name) for name in PERFECT.__slots__} | {trait: False}
    assert {name: getattr(promise, name) for name in PERFECT.__slots__} == expected


def test_a_store_that_offers_no_checksum_trial_has_shown_nothing() -> None:
    assert probe(FaultyStore(MemoryStore())).refuses_wrong_checksum is False


def test_a_store_whose_reads_lag_seals_for_a_single_writer() -> None:
    promise = probe(FaultyStore(MemoryStore(), matching("stat", "plain", Fault.STALE)))
    assert promise.read_after_write is False
    assert promise.seal_level == "single-writer"


def test_a_racer_whose_outcome_is_unknown_may_be_the_winner() -> None:
    """The race's first writer wins without hearing of it, as with a time-out or a 409 from AWS."""
    racers = iter([Fault.UNKNOWN_DONE])

    def plan(method: str, key: str, nth: int) -> Fault | None:
        return next(racers, None) if method == "put_if_absent" and key.endswith("race") else None

    store = FaultyStore(MemoryStore(), plan)
    assert probe(store).conditional_put is True
    assert store.hits["put_if_absent", Fault.UNKNOWN_DONE] == 1


def test_a_clock_that_differs_is_measured() -> None:
    skew = probe(MemoryStore(clock=lambda: time.time() - 3600)).clock_skew_seconds
    assert skew == pytest.approx(-3600, abs=5)


def test_a_store_that_cannot_be_written_ends_the_probe(s3_moto: S3Server) -> None:
    with pytest.raises(Unavailable):
        probe(FaultyStore(MemoryStore(), lambda *_: Fault.REFUSED))
    settings = load(store="s3://no-such-bucket/x?endpoint=" + s3_moto.endpoint, s3_access_key="k", s3_secret_key="s")
    with pytest.raises(Terminal):
        probe(open_store(settings.store, settings))
