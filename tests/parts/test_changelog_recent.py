"""What appenders know of their datasets, on a real Redis: many looked at in one round trip, and none taken for what it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

import broker
from broker.backend.logs import Logs
from broker.changelog_recent import Recent
from broker.errors import NotFound, Terminal, Unavailable
from broker.model.dataset import Column, Schema
from broker.model.names import DatasetId

NAMES = [DatasetId(f"shop/catalog/d{number}") for number in range(5)]


@pytest.fixture
def shop(redis_url: str) -> Iterator[broker.Broker]:
    with broker.connect(redis_url, f"memory://{uuid4().hex}") as opened:
        for name in NAMES:
            opened.dataset(name, key="sku", order="at")
        yield opened


class Looks:
    """Which datasets are asked for, together."""

    def __init__(self, shop: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.together = list[list[DatasetId]]()
        self._steady = shop.parts.catalog.steady
        monkeypatch.setattr(shop.parts.catalog, "steady", self)

    def __call__(self, datasets: Sequence[DatasetId]) -> set[DatasetId]:
        self.together.append(list(datasets))
        return self._steady(datasets)

    def due(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        monkeypatch.setattr("broker.changelog_recent.LOOK_SECONDS", seconds)


def test_who_appends_to_many_looks_at_all_that_come_next_at_once(shop: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    recent, looks = Recent(shop.parts.catalog), Looks(shop, monkeypatch)
    looks.due(monkeypatch, 3600)
    assert [recent.state(name).dataset for name in NAMES] == NAMES
    looks.together.clear()
    assert [recent.state(name).dataset for name in NAMES] == NAMES
    assert looks.together == []
    looks.due(monkeypatch)
    recent.state(NAMES[0])
    looks.due(monkeypatch, 3600)
    for name in NAMES:
        recent.state(name)
    assert looks.together == [NAMES]


def test_what_nobody_asked_for_since_is_not_looked_at(shop: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    recent, looks = Recent(shop.parts.catalog), Looks(shop, monkeypatch)
    looks.due(monkeypatch, 3600)
    for name in NAMES:
        recent.state(name)
    for name in NAMES[:2]:
        recent.state(name)
    looks.due(monkeypatch)
    for _ in range(3):
        recent.state(NAMES[1])
    assert looks.together[-3:] == [[NAMES[1], NAMES[0]], [NAMES[1]], [NAMES[1]]]


def test_one_that_changed_is_seen_by_who_asks_for_it_next(
    shop: broker.Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent, looks = Recent(shop.parts.catalog), Looks(shop, monkeypatch)
    looks.due(monkeypatch, 3600)
    before = [recent.state(name) for name in NAMES]
    [recent.state(name) for name in NAMES]
    with broker.connect(redis_url, shop.parts.settings.store) as other:
        columns = Schema(columns=(Column(name="sku", type="VARCHAR", nullable=False), Column(name="at", type="BIGINT")))
        other.parts.catalog.alter(NAMES[1], columns)
        other.parts.catalog.drop(NAMES[2])
        other.parts.catalog.drop(NAMES[3])
        again = other.dataset(NAMES[3], key="sku", order="at").state
    looks.due(monkeypatch)
    assert recent.state(NAMES[0]).sha == before[0].sha
    looks.due(monkeypatch, 3600)
    assert recent.state(NAMES[1]).spec.columns == columns
    with pytest.raises(NotFound):
        recent.state(NAMES[2])
    assert recent.state(NAMES[3]).session == again.session != before[3].session
    assert recent.state(NAMES[4]).sha == before[4].sha


def test_while_redis_is_away_what_was_seen_counts(shop: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    recent, before = Recent(shop.parts.catalog), shop.parts.catalog.state(NAMES[0])

    def away(datasets: Sequence[DatasetId]) -> Any:
        raise Unavailable("Redis does not answer", of=datasets[0])

    monkeypatch.setattr(shop.parts.catalog, "steady", away)
    assert recent.state(NAMES[0]).sha == before.sha


def test_of_a_block_the_part_that_meets_an_error_stands_alone(shop: broker.Broker) -> None:
    """The parts before it are in: the same block again is dropped there, and lands where it was refused."""
    changes, logs = shop.dataset(NAMES[0]).changelog, Logs(shop.parts.redis, shop.parts.settings)
    records = [{"sku": f"a{number}", "at": 1} for number in range(40)]
    changes.append(records)
    key = logs.slot(NAMES[0], 2).marks(NAMES[0])
    run = shop.parts.redis.run
    held = run("DUMP", key)
    run("DEL", key)
    run("SET", key, "somebody else's")
    newer = [record | {"at": 2} for record in records]
    with pytest.raises(Terminal, match="a key holds another type"):
        changes.append(newer)
    counts = [len(list(logs.entries(NAMES[0], slot))) for slot in range(4)]
    assert counts == [2, 2, 1, 2]
    run("DEL", key)
    run("RESTORE", key, 0, held)
    assert changes.append(records).block == 3  # behind the one before, which is brought to its end first
    found = [entry.block for slot in range(4) for entry in logs.entries(NAMES[0], slot)]
    assert sorted(found) == sorted([1, 2, 3] * 4)
