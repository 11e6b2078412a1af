"""diff and history on a real broker, compared with what reading the versions says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import broker
from broker.cli.exits import Exit
from broker.compactor import Compactor, Dues
from broker.errors import BadData, Invalid, NotFound
from broker.model.commit import Retire
from broker.model.names import DatasetId
from broker.rules.levels import Levels
from tests.cli import Cli

OFFERS = DatasetId("shop/catalog/offers")
VERSIONS = 9


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def cli(b: broker.Broker, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    del b
    return Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))


def made(b: broker.Broker, order: list[str]) -> broker.Dataset:
    """Deltas with late changes and deletes; a snapshot in the middle."""
    random, offers = Random(3), b.dataset(OFFERS, key=["sku"], order=order)
    offers.publish([{"sku": f"s{key}", "at": 0, "price": 0} for key in range(10)])
    for version in range(2, VERSIONS + 1):
        if version == 5:
            offers.publish([{"sku": f"s{key}", "at": 5, "price": version * (key % 3)} for key in range(3, 12)])
            continue
        keys = random.sample(range(14), 6)
        deletes = [{"sku": f"s{key}"} | ({"at": random.randint(0, 9)} if order else {}) for key in keys[4:]]
        offers.publish_delta([{"sku": f"s{key}", "at": random.randint(0, 9), "price": version} for key in keys[:4]], deletes)
    return offers


def content(offers: broker.Dataset, version: int) -> dict[str, dict[str, Any]]:
    return {row["sku"]: row for row in offers.read(version).to_pylist()}


def expected(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> set[str]:
    words = {
        key: "added" if key not in one else "removed" if key not in other else "changed"
        for key in {*one, *other} if one.get(key) != other.get(key)
    }  # fmt: skip
    return {json.dumps([word, one.get(key), other.get(key)]) for key, word in words.items()}


@pytest.mark.parametrize("order", [[], ["at"]], ids=["without order", "with order"])
def test_a_difference_is_that_of_the_contents_in_both_directions(b: broker.Broker, order: list[str]) -> None:
    offers = made(b, order)
    contents = {version: content(offers, version) for version in range(1, VERSIONS + 1)}
    for one, rows in contents.items():
        for other in (1, 4, 5, 6, VERSIONS):
            found = [
                json.dumps([r["change"], r["before"], r["after"]]) for r in offers.past.diff(one, other).read_all().to_pylist()
            ]
            assert len(set(found)) == len(found)
            assert set(found) == expected(rows, contents[other]), (one, other)


def test_a_difference_along_edges_reads_rows_of_no_other_key(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": f"s{key}", "price": key} for key in range(1000)])
    offers.publish_delta([{"sku": "s1", "price": 1}, {"sku": "s2", "price": -2}], [{"sku": "s3"}])
    found = offers.past.diff(1, 2).read_all().to_pylist()
    assert sorted((row["change"], (row["before"] or row["after"])["sku"]) for row in found) == [
        ("changed", "s2"),
        ("removed", "s3"),
    ]


def walked(offers: broker.Dataset, key: str, first: int = 1) -> list[tuple[int, dict[str, Any] | None]]:
    """By reading every version."""
    found, last = list[tuple[int, dict[str, Any] | None]](), None
    for version in range(first, VERSIONS + 1):
        row = content(offers, version).get(key)
        if row != last:
            found.append((version, row))
        last = row
    return found


@pytest.mark.parametrize("order", [[], ["at"]], ids=["without order", "with order"])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_history_is_what_reading_every_version_says(b: broker.Broker, order: list[str], compacted: bool) -> None:
    offers = made(b, order)
    if compacted:
        parts = b.parts
        Compactor(parts.index, parts.catalog, parts.engine, parts.publication, parts.leases, Dues(Levels(2, 0.5, 0))).run_once()
    for key in (f"s{number}" for number in range(15)):
        assert [(one.version, one.row) for one in offers.past.history(key)] == walked(offers, key), key


def test_a_history_begins_with_what_is_kept(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": "a", "price": 1}])
    offers.publish([{"sku": "a", "price": 2}])
    offers.publish_delta([{"sku": "b", "price": 3}])
    retire = Retire(edges=((None, 1),), versions_until=1)
    b.parts.catalog.commit(OFFERS, lambda state: retire if state.edge(None, 1) else None, "test")
    assert [(one.version, one.change) for one in offers.past.history("a")] == [(2, "held")]
    assert [(one.version, one.change) for one in offers.past.history("b")] == [(3, "added")]
    with pytest.raises(NotFound):
        offers.past.diff(1, 3)


def test_a_key_of_several_columns_and_types_is_found(b: broker.Broker) -> None:
    prices = b.dataset("shop/catalog/prices", key=["shop", "day", "raw"])
    prices.publish([{"shop": 7, "day": "2026-01-02", "raw": b"\x00'x", "price": 1.5}])
    for key in ([7, "2026-01-02", b"\x00'x"], {"raw": b"\x00'x", "shop": 7, "day": "2026-01-02"}):
        assert [one.row["price"] for one in prices.past.history(key) if one.row] == [1.5]
    assert prices.past.history([8, "2026-01-02", b""]) == []
    with pytest.raises(BadData):
        prices.past.history(["seven", "2026-01-02", b""])
    with pytest.raises(Invalid):
        prices.past.history("7")


def test_a_column_that_came_later_is_null_before(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": "a", "price": 1}])
    offers.publish_delta([{"sku": "b", "price": 2, "note": "new"}])
    assert offers.past.diff(1, 2).read_all().to_pylist() == [
        {"change": "added", "before": None, "after": {"sku": "b", "price": 2, "note": "new"}}
    ]
    assert [one.row for one in offers.past.history("a")] == [{"sku": "a", "price": 1, "note": None}]


def test_the_command_line_shows_both(b: broker.Broker, cli: Cli) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": "a", "price": 1}, {"sku": "b", "price": 1}])
    offers.publish_delta([{"sku": "a", "price": 2}, {"sku": "c", "price": 3}], [{"sku": "b"}])
    assert sorted(cli.ok("diff", OFFERS, 1, 2).lines) == [
        '+ {"sku": "c", "price": 3}', '- {"sku": "b", "price": 1}', '~ {"sku": "a"}  price: 1 -> 2',
    ]  # fmt: skip
    lines = [json.loads(line) for line in cli.ok("diff", OFFERS, 1, 2, "--json").lines]
    assert {"change": "removed", "before": {"sku": "b", "price": 1}, "after": None} in lines
    assert cli.json("diff", OFFERS, 1, 2, "--count") == {"dataset": OFFERS, "added": 1, "changed": 1, "removed": 1}
    assert len(cli.ok("diff", OFFERS, 2, 1, "--limit", 2).lines) == 2
    moments = cli.json("history", OFFERS, "b")
    assert [(one["version"], one["change"], one["row"]) for one in moments] == [
        (1, "added", {"sku": "b", "price": 1}),
        (2, "removed", None),
    ]
    assert "removed" in cli.ok("history", OFFERS, "b").out
    assert cli.json("history", OFFERS, "nobody") == []


def test_the_command_line_says_by_its_exit_code_what_is_wrong(b: broker.Broker, cli: Cli) -> None:
    b.dataset(OFFERS, key=["sku"]).publish([{"sku": "a", "price": 1}])
    assert cli("diff", OFFERS, 1, 9).code == Exit.NOT_FOUND
    assert cli("history", "shop/catalog/none", "a").code == Exit.NOT_FOUND
    assert cli("history", OFFERS, "a", "b").code == Exit.USAGE
    assert cli("diff", OFFERS, "one", 2).code == Exit.USAGE
