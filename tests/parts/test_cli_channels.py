"""promote, rollback, release, channels and pull --channel, called as a user would."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.cli.exits import Exit
from tests.cli import Cli
from tests.servers import RedisServer

OFFERS, IMAGES = "shop/catalog/offers", "shop/catalog/images"


@pytest.fixture
def cli(redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Two datasets with versions 1 to 3: the price of `a`."""
    monkeypatch.chdir(tmp_path)
    found = Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))
    for name in (OFFERS, IMAGES):
        found.ok("dataset", "create", name, "--key", "sku")
        for version in (1, 2, 3):
            (tmp_path / "rows.csv").write_text(f"sku,price\na,{version}\n")
            found.ok("publish", name, "rows.csv")
    return found


def test_a_version_is_promoted_and_listed(cli: Cli) -> None:
    done = cli.json("promote", OFFERS, 2, "--to", "production")
    assert (done["dataset"], done["channel"], done["version"], done["before"], done["announced"], done["why"]) == (
        OFFERS, "production", 2, [], 1, "promoted",
    )  # fmt: skip
    cli.ok("promote", IMAGES, 1, "--to", "staging")
    assert [(item["dataset"], item["channel"], item["version"]) for item in cli.json("channels")] == [
        (IMAGES, "staging", 1), (OFFERS, "production", 2),
    ]  # fmt: skip
    assert [item["dataset"] for item in cli.json("channels", "*/offers")] == [OFFERS]
    assert cli.ok("channels").lines[0].split() == ["DATASET", "CHANNEL", "VERSION", "SINCE", "WHY", "BEFORE"]
    assert cli.ok("promote", OFFERS, 3, "--to", "production").out == f"production of {OFFERS}: version 3, before 2\n"


def test_nothing_named_is_an_empty_list(cli: Cli) -> None:
    assert cli.json("channels") == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("promote", OFFERS, 3, "--to", "production", "--expect", 1), Exit.CONFLICT),
        (("promote", OFFERS, 9, "--to", "production"), Exit.NOT_FOUND),
        (("promote", "shop/catalog/none", 1, "--to", "production"), Exit.NOT_FOUND),
        (("promote", OFFERS, 3, "--to", "live"), Exit.USAGE),
        (("promote", OFFERS, 3), Exit.USAGE),
        (("rollback", OFFERS, "production"), Exit.CONFLICT),
        (("rollback", OFFERS, "staging"), Exit.NOT_FOUND),
        (("rollback", OFFERS, "production", "--expect", 1), Exit.CONFLICT),
        (("release", "shop/catalog", "offers=3", "images=9", "--to", "production"), Exit.NOT_FOUND),
        (("release", "shop/catalog", "offers=3", "--to", "production", "--expect", "offers=1"), Exit.CONFLICT),
        (("release", "shop/catalog", "offers", "--to", "production"), Exit.USAGE),
        (("release", "shop/catalog", "offers=1", "offers=2", "--to", "production"), Exit.USAGE),
        (("release", "shop", "offers=1", "--to", "production"), Exit.USAGE),
    ],
)
def test_what_is_refused_has_its_exit_code_and_moves_nothing(cli: Cli, words: tuple[object, ...], code: Exit) -> None:
    cli.ok("promote", OFFERS, 2, "--to", "production")
    done = cli(*words)
    assert done.code == code, done.err
    assert "hint:" in done.err
    assert [(item["version"], item["announced"]) for item in cli.json("channels")] == [(2, 1)]


def test_a_rollback_says_where_it_came_to(cli: Cli) -> None:
    for version in (1, 2, 3):
        cli.ok("promote", OFFERS, version, "--to", "production")
    done = cli.json("rollback", OFFERS, "production", "--expect", 3)
    assert (done["version"], done["before"], done["why"]) == (2, [1], "rolled-back")
    assert cli.json("rollback", OFFERS, "production", "--expect", 3)["announced"] == done["announced"]
    assert cli.json("rollback", OFFERS, "production")["version"] == 1


def test_a_release_names_all_it_moved(cli: Cli) -> None:
    done = cli.json("release", "shop/catalog", "offers=2", "images=3", "--to", "production", "--expect", "offers=0")
    assert done == {
        "domain": "shop/catalog", "channel": "production", "announced": 1, "versions": {"offers": 2, "images": 3},
    }  # fmt: skip
    assert {item["why"] for item in cli.json("channels")} == {"released"}


def test_a_place_is_brought_to_what_a_channel_names(cli: Cli, tmp_path: Path) -> None:
    pull = ("pull", OFFERS, "--to", "search.duckdb", "--channel", "production")
    done = cli(*pull)
    assert (done.code, "broker promote" in done.err) == (Exit.NOT_FOUND, True)
    assert cli("pull", OFFERS, "--to", "offers.csv", "--channel", "production").code == Exit.NOT_FOUND
    cli.ok("promote", OFFERS, 2, "--to", "production")
    assert cli.json(*pull)["version"] == 2
    assert cli.json(*pull)["mode"] == "up-to-date"
    cli.ok("promote", OFFERS, 1, "--to", "production")
    again = cli.json(*pull)
    assert (again["version"], again["reset"]) == (1, "rolled-back")
    assert cli.json("pull", OFFERS, "--to", "offers.csv", "--channel", "production")["version"] == 1
    assert (tmp_path / "offers.csv").read_text().splitlines()[1] == '"a",1'


def test_a_rebuild_brings_channels_back_and_lists_no_dataset_for_them(cli: Cli, redis_server: RedisServer) -> None:
    cli.ok("promote", OFFERS, 2, "--to", "production")
    before = cli.json("channels")
    redis_server.flush()
    assert [item["dataset"] for item in cli.json("rebuild")] == [IMAGES, OFFERS]
    assert cli.json("channels") == before
    assert [item["dataset"] for item in cli.json("dataset", "list")] == [IMAGES, OFFERS]
    assert cli.json("status")["queues"]
    assert ("shop/catalog/=channels", "ok") in [(item["subject"], item["verdict"]) for item in cli.json("doctor")]
