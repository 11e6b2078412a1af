"""Leases against a real Redis, and against one that falls silent at the worst moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.backend.client import RedisClient
from broker.backend.keys import Slot
from broker.backend.leases import Leases
from broker.errors import Busy, Fenced, Unavailable

SLOT, NAME = Slot("catalog.0"), "lease:writer:t/d"


@pytest.fixture
def redis(redis_url: str) -> Iterator[RedisClient]:
    client = RedisClient.open(redis_url)
    yield client
    client.close()


@pytest.fixture
def leases(redis: RedisClient) -> Leases:
    return Leases(redis, lease_seconds=30)


def test_one_holds_it_and_the_fence_grows(leases: Leases) -> None:
    first = leases.acquire(SLOT, NAME, "one")
    with pytest.raises(Busy):
        leases.acquire(SLOT, NAME, "two")
    leases.release(SLOT, first)
    assert leases.acquire(SLOT, NAME, "two").fence > first.fence
    with pytest.raises(Fenced):
        leases.renew(SLOT, first)


def test_a_block_gives_the_lease_back_also_when_it_fails(leases: Leases) -> None:
    with pytest.raises(ValueError, match="inside"), leases.held(SLOT, NAME, "one"):
        raise ValueError("inside")
    assert leases.acquire(SLOT, NAME, "two").owner == "two"


def test_a_redis_that_is_silent_at_the_release_hides_neither_success_nor_failure(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> None:
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(leases, "release", silent)
    with leases.held(SLOT, NAME, "one"):
        done = True
    assert done
    with pytest.raises(ValueError, match="inside"), leases.held(SLOT, "lease:other", "one"):
        raise ValueError("inside")
