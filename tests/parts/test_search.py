"""find: what the index proposes is what the projection says, whatever happened in between; and it is quick."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import broker
from broker.backend.lanes import Argument
from broker.cli.exits import Exit
from broker.connect import Broker
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.rules.patch import VersionInfo
from broker.search import Search
from tests.cli import Cli

OFFERS = "shop/catalog/offers"


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[Broker]:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as opened:
        yield opened


def found(b: Broker, pattern: str = "*", **wanted: str) -> list[tuple[str, int | None]]:
    return [(hit.dataset, hit.version) for hit in Search(b.parts.redis, b.parts.index).find(wanted, pattern)]


def made(b: Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"], attributes={"team": "pricing", "why": "shop"})
    offers.publish([{"sku": "a"}], attributes={"why": "nightly", "run": "1"})
    offers.publish_delta([{"sku": "b"}], attributes={"why": "nightly", "run": "2"})
    b.dataset("acme/pricing/prices", key=["sku"]).publish([{"sku": "a"}], attributes={"why": "nightly"})


def test_versions_are_found_by_system_and_custom_attributes_together(b: Broker) -> None:
    made(b)
    assert found(b, why="nightly") == [(OFFERS, 2), (OFFERS, 1), ("acme/pricing/prices", 1)]
    assert found(b, why="nightly", kind="delta") == [(OFFERS, 2)]
    assert found(b, run="1") == [(OFFERS, 1)]
    assert found(b, "acme/*", why="nightly") == [("acme/pricing/prices", 1)]
    assert found(b, base="1") == [(OFFERS, 2)]  # compared one by one
    assert found(b, why="nightly", rows="1", kind="snapshot", tenant="acme") == [("acme/pricing/prices", 1)]
    assert found(b, why="nightl") == []


def test_datasets_are_found_by_what_they_were_created_with(b: Broker) -> None:
    made(b)
    assert found(b, team="pricing") == [(OFFERS, None)]
    assert (OFFERS, None) in found(b, domain="catalog")


def test_the_index_follows_what_is_published_and_dropped(b: Broker) -> None:
    made(b)
    assert len(found(b, why="nightly")) == 3
    b.dataset(OFFERS).publish([{"sku": "c"}], attributes={"why": "nightly"})
    assert (OFFERS, 3) in found(b, why="nightly")
    b.dataset(OFFERS).drop()
    assert found(b, why="nightly") == [("acme/pricing/prices", 1)]
    b.dataset(OFFERS, key=["sku"], attributes={"team": "search"})
    assert found(b, team="pricing") == []  # what the index still proposes
    assert found(b, team="search") == [(OFFERS, None)]


def test_a_search_that_died_half_way_and_a_lost_index_leave_nothing_out(b: Broker) -> None:
    made(b)
    slot = b.parts.index.slot(DatasetId(OFFERS))
    search = Search(b.parts.redis, b.parts.index)
    assert search.refresh(slot) == 1
    assert search.refresh(slot) == 0
    for key in b.parts.redis.run("KEYS", slot.key("find*")):
        b.parts.redis.run("DEL", key)
    b.parts.redis.run("DEL", slot.key("indexed"))
    assert found(b, run="2") == [(OFFERS, 2)]


def test_several_that_search_at_once_find_the_same(b: Broker) -> None:
    made(b)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: found(b, why="nightly"), range(16)))
    assert answers == [[(OFFERS, 2), (OFFERS, 1), ("acme/pricing/prices", 1)]] * 16


def test_among_ten_thousand_datasets_an_attribute_is_found_in_time(b: Broker) -> None:
    b.dataset(OFFERS, key=["sku"]).publish([{"sku": "a"}])
    slot, redis = b.parts.index.slot(DatasetId(OFFERS)), b.parts.redis
    commands: list[Sequence[Argument]] = []
    commands.append(("DEL", slot.key("indexed")))  # as a broker that never searched
    for number in range(10_000):
        dataset = DatasetId(f"t{number % 100}/catalog/d{number}")
        spec = DatasetSpec(dataset=dataset, key=("sku",)).model_dump_json()
        info = VersionInfo(version=1, seq=2, time=1.0, base=None, rows=1, bytes=1, custom={"batch": str(number % 500)})
        commands += [
            ("SADD", slot.datasets, dataset),
            ("HSET", slot.head(dataset), "seq", 2, "version", 1, "session", "s", "spec", spec),
            ("HSET", slot.tables(dataset)[1], "1", info.model_dump_json()),
        ]  # fmt: skip
    redis.replies(commands, "setup")
    search = Search(redis, b.parts.index)
    assert len(search.find({"batch": "7"})) == 20  # the index fills
    times = []
    for batch in range(20):
        begun = time.perf_counter()
        assert len(search.find({"batch": str(batch)})) == 20
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.050  # a busy machine slows most of them; none may be slow by design


def test_the_command_line_finds_and_says_what_is_wrong(
    b: Broker, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))
    made(b)
    assert [hit["version"] for hit in cli.json("find", "why=nightly", "--dataset", "shop/*")] == [2, 1]
    assert "run=2 why=nightly" in cli.ok("find", "run=2").out or "why=nightly run=2" in cli.ok("find", "run=2").out
    limited = cli.ok("find", "why=nightly", "--limit", 1)
    assert (len(limited.lines), "--limit" in limited.err) == (2, True)
    assert json.loads(cli.ok("find", "why=never", "--json").out) == []
    assert [cli("find").code, cli("find", "why").code, cli("find", "a=1", "a=2").code] == [Exit.USAGE] * 3
