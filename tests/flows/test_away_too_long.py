"""A consumer that was away for longer than its road is kept: `broker pull` says that it starts anew, and why.

Exit 0 means in sync, and nothing else does.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

import broker
from broker.cli.exits import Exit
from tests.cli import Cli, Shell
from tests.servers import wait_until

OFFERS = "shop/catalog/offers"
SHORT = {"CURSOR_SECONDS": "2", "RETAIN_VERSIONS": "1", "RETAIN_SECONDS": "0", "SNAPSHOT_LEAST_BYTES": "0"}


@pytest.fixture
def cli(shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """In the folder and with the variables of `shell`; roads are kept for a moment only."""
    for name, value in SHORT.items():
        monkeypatch.setenv(f"BROKER_{name}", value)
    return Cli(capsys)


@pytest.fixture
def away(cli: Cli, b: broker.Broker) -> broker.Dataset:
    """`search` holds version 1 and then is silent for longer than its cursor lives; meanwhile 20 versions come and most go."""
    offers = made(b, cli)
    assert resets(cli) == []
    for price in range(1, 20):
        offers.publish_delta([{"sku": "s0", "price": price}], [{"sku": f"s{price}"}])
    cli.ok("compact", OFFERS)
    wait_until(lambda: cli.json("subs", "lag", OFFERS) == [], "the cursor to lapse")
    wait_until(lambda: cli("retention", "apply", OFFERS).code == Exit.OK, "all cursors to be known")
    return offers


def made(b: broker.Broker, cli: Cli) -> broker.Dataset:
    """Version 1, and `search` holds it."""
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": f"s{number}", "price": 0} for number in range(100)])
    assert pulled(cli)["version"] == 1
    return offers


def pulled(cli: Cli) -> dict[str, Any]:
    report: dict[str, Any] = cli.json("pull", OFFERS, "--to", "search.duckdb")
    return report


def resets(cli: Cli) -> list[dict[str, Any]]:
    """What somebody is told who listens for resets and was not there all the time."""
    options = ("--cursor", "ops", "--type", "broker.replica.reset", "--timeout", 0, "--json")
    return [json.loads(line)["data"] for line in cli.ok("listen", OFFERS, *options).lines]


def content() -> list[dict[str, Any]]:
    sink = broker.sinks.DuckDB("search.duckdb", table="offers")
    rows: list[dict[str, Any]] = sink.read().sort_by("sku").to_pylist()
    sink.close()
    return rows


def test_who_was_away_too_long_is_told_so_and_ends_equal(away: broker.Dataset, cli: Cli) -> None:
    assert away.plan(since=1).reset == "too-old"  # its road is gone
    done = cli.ok("pull", OFFERS, "--to", "search.duckdb")
    assert "version 20: 81 rows (reset: too-old)" in done.out
    assert content() == away.read().sort_by("sku").to_pylist()
    assert [(told["reason"], told["held"], told["version"]) for told in resets(cli)] == [("too-old", 1, 20)]
    assert pulled(cli)["mode"] == "up-to-date"


def test_who_comes_back_in_time_takes_only_what_changed(cli: Cli, b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_CURSOR_SECONDS", "3600")
    made(b, cli).publish_delta([{"sku": "s0", "price": 1}])
    assert cli("retention", "apply", OFFERS).code == Exit.CONFLICT  # not before everybody alive had the time to say so
    report = pulled(cli)
    assert (report["reset"], report["upserts"], report["version"]) == (None, 1, 2)


def test_a_pull_that_does_not_end_in_sync_says_so_by_its_code_and_changes_nothing(
    away: broker.Dataset, b: broker.Broker, cli: Cli
) -> None:
    """The store loses the files that lead to the newest version."""
    before = content()
    for file in (file for edge in away.plan().edges for file in edge.files):
        b.parts.store.delete([file.key])
    failed = cli("pull", OFFERS, "--to", "search.duckdb", "--json")
    assert (failed.code, failed.out) == (Exit.NOT_FOUND, "")
    assert content() == before
