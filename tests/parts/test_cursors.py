"""Who reads a dataset: known by lease, forgotten with Redis' memory, and then not trusted for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import broker
from broker.cursors import GRACE, Cursors, LiveCursor, Receipt
from broker.model.names import DatasetId
from tests.servers import redis_server

OFFERS = DatasetId("shop/catalog/offers")


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path) as opened:
        opened.dataset(OFFERS, key=["sku"])
        yield opened


def ledger(b: broker.Broker, lease_seconds: float = 60) -> Cursors:
    return Cursors(b.parts.redis, b.parts.index, lease_seconds)


def cursor(name: str, version: int = 1) -> LiveCursor:
    return LiveCursor(name=name, version=version, session="s", receipt=Receipt(rows=3, digest="d" * 32))


def test_cursors_are_found_where_they_last_stood(b: broker.Broker) -> None:
    cursors = ledger(b)
    for known in (cursor("search", 1), cursor("ads", 2), cursor("search", 3)):
        cursors.report(OFFERS, known)
    held = cursors.standing(OFFERS).cursors
    assert [one.cursor for one in held] == [cursor("ads", 2), cursor("search", 3)]
    assert all(one.live and one.left_seconds <= 60 for one in held)


def test_a_silent_cursor_lapses_and_is_forgotten_in_the_end(b: broker.Broker) -> None:
    ledger(b, lease_seconds=0).report(OFFERS, cursor("gone"))
    (held,) = ledger(b).standing(OFFERS).cursors
    assert not held.live
    assert GRACE > 0
    while ledger(b, lease_seconds=0).standing(OFFERS).cursors:
        pass  # a lease of no time is over with the next millisecond
    assert ledger(b).standing(OFFERS).cursors == ()


def test_a_consumer_that_leaves_is_forgotten_at_once(b: broker.Broker) -> None:
    cursors = ledger(b)
    cursors.report(OFFERS, cursor("search"))
    assert cursors.forget(OFFERS, "search")
    assert not cursors.forget(OFFERS, "search")
    assert cursors.standing(OFFERS).cursors == ()


def test_a_redis_that_lost_its_memory_is_not_trusted_for_a_lease_and_one_that_restarted_is(tmp_path: Path) -> None:
    with redis_server() as server:
        with broker.connect(redis=server.url, home=tmp_path) as b:
            b.dataset(OFFERS, key=["sku"])
            ledger(b).report(OFFERS, cursor("search"))
            born = b.parts.redis.run("HGET", b.parts.index.slot(OFFERS).meta, "born")
        server.restart()
        with broker.connect(redis=server.url, home=tmp_path) as b:
            assert [held.cursor.name for held in ledger(b).standing(OFFERS).cursors] == ["search"]
            assert b.parts.redis.run("HGET", b.parts.index.slot(OFFERS).meta, "born") == born
            server.flush()
            standing = ledger(b).standing(OFFERS)
        assert standing.cursors == ()
        assert 0 < standing.lacking_seconds(60) <= 60
        assert standing.lacking_seconds(0) == 0
