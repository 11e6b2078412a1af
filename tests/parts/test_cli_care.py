"""compact, retention and hold as a user types them; what they did is read by other means."""

from __future__ import annotations

from pathlib import Path

import pytest

import broker
from broker.cli.care import moment
from broker.cli.exits import Exit
from broker.errors import Invalid
from tests.cli import Cli

OFFERS = "shop/catalog/offers"


@pytest.fixture
def cli(redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "SNAPSHOT_LEAST_BYTES": "0",
        "CURSOR_SECONDS": "0",
        "RETAIN_VERSIONS": "1",
        "RETAIN_SECONDS": "0",
    }.items():
        monkeypatch.setenv(f"BROKER_{name}", value)
    made = Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as b:
        offers = b.dataset(OFFERS, key=["sku"])
        offers.publish([{"sku": f"s{number}", "price": 0} for number in range(100)])
        for price in range(1, 18):
            offers.publish_delta([{"sku": "s0", "price": price}])
    return made


def test_compact_makes_roll_ups_and_then_has_nothing_to_do(cli: Cli) -> None:
    made = cli.json("compact", OFFERS)
    assert [(item["kind"], item["base"], item["version"]) for item in made] == [("roll-up", 8, 16), ("snapshot", None, 18)]
    assert made[0]["edges"] == 8
    assert cli.ok("compact", OFFERS).lines == ["nothing is due"]
    assert cli.json("compact", OFFERS) == []


def test_compact_does_no_more_than_asked(cli: Cli) -> None:
    assert len(cli.json("compact", OFFERS, "--limit", 1)) == 1
    assert cli.ok("compact", OFFERS).lines[0].split() == ["MADE", "BASE", "VERSION", "OF", "EDGES", "READ"]


def test_retention_is_planned_explained_and_applied(cli: Cli) -> None:
    cli.json("compact", OFFERS)
    plan = cli.json("retention", "plan", OFFERS)
    assert plan["retire"]
    assert (plan["applied"], plan["waits_seconds"]) == (False, 0)
    assert {"the newest version"} <= {kept["why"] for kept in plan["kept"]}
    assert cli.json("retention", "plan", OFFERS) == plan
    assert "it goes" in cli.ok("retention", "explain", OFFERS, plan["retire"][0]["version"]).out
    assert "the newest version" in cli.json("retention", "explain", OFFERS, 18)["why"]
    done = cli.json("retention", "apply", OFFERS)
    assert done == plan | {"applied": True}
    assert cli.ok("retention", "plan", OFFERS).lines[-1] == "0 B would go"
    assert cli("retention", "explain", OFFERS, plan["retire"][0]["version"]).code == Exit.NOT_FOUND
    gone = [one["version"] for one in cli.json("versions", "list", OFFERS) if one["retired"]]
    assert gone
    assert set(gone) <= {one["version"] for one in plan["retire"]}
    assert cli.ok("versions", "list", OFFERS).out.count(", retired") == len(gone)


def test_a_file_is_explained_by_its_key(cli: Cli, tmp_path: Path) -> None:
    key = cli.json("versions", "show", OFFERS, 1)["edge"]["files"][0]["key"]
    assert "snapshot 1: the newest version" in cli.ok("retention", "explain", OFFERS, key).out


def test_nothing_is_given_up_before_all_consumers_are_known(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_CURSOR_SECONDS", "3600")
    done = cli("retention", "apply", OFFERS)
    assert done.code == Exit.CONFLICT
    assert "more" in done.err
    assert 3500 < cli.json("retention", "plan", OFFERS)["waits_seconds"] <= 3600
    assert "nothing is given up for" in cli.ok("retention", "plan", OFFERS).out


def test_a_hold_keeps_a_version_until_it_is_released(cli: Cli) -> None:
    assert cli.json("hold", OFFERS) == []
    held = cli.json("hold", OFFERS, 3, "--until", "30d", "--why", "audit", "--name", "audit")
    assert [(one["name"], one["version"], one["why"]) for one in held] == [("audit", 3, "audit")]
    assert cli.json("hold", OFFERS, 4)[1]["name"] == "v4"
    cli.json("compact", OFFERS)
    cli.json("retention", "apply", OFFERS)
    assert "hold audit" in cli.ok("retention", "explain", OFFERS, 3).out
    assert [one["name"] for one in cli.json("hold", OFFERS, "--release", "audit")] == ["v4"]
    assert "it is released" in cli.ok("hold", OFFERS).out
    assert "hold audit" not in cli.ok("retention", "explain", OFFERS, 3).out
    cli.ok("hold", OFFERS, 18)
    assert "snapshot 18: the newest version, hold v18" in cli.ok("retention", "explain", OFFERS, 18).out
    cli.ok("hold", OFFERS, "--release", "v18")
    never = cli("hold", OFFERS, "--release", "never")
    assert (never.code, "there are v4" in never.err) == (Exit.NOT_FOUND, True)
    assert cli("hold", OFFERS, 99).code == Exit.NOT_FOUND
    assert cli("hold", OFFERS, 3, "--release", "audit").code == Exit.USAGE
    assert cli("hold", OFFERS, 3, "--until", "soon").code == Exit.USAGE


def test_a_time_is_a_span_a_date_or_a_moment() -> None:
    assert moment("12h", 100.0) == 100.0 + 12 * 3600
    assert moment("2027-01-31T12:00:00+00:00", 0) == 1801396800
    assert moment("2027-01-31", 0) == pytest.approx(1801353600, abs=86_400)
    with pytest.raises(Invalid, match="not a time"):
        moment("tomorrow", 0)


def test_a_hold_and_its_retention_are_at_hand_in_python(redis_url: str, cli: Cli, tmp_path: Path) -> None:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as b:
        offers = b.dataset(OFFERS)
        assert offers.hold(version=2, why="audit") == "v2"
        offers.publish([{"sku": "s0", "price": 0}])
        assert "hold v2" in offers.retention.explain(2)
        offers.release_hold("v2")
        assert (1, 2) in {(edge.base, edge.version) for edge in offers.retention.plan().retire}


def test_a_hold_of_the_past_is_refused_and_none_stands(cli: Cli) -> None:
    done = cli("hold", OFFERS, 2, "--until", "2020-01-01")
    assert (done.code, "over already" in done.err) == (Exit.USAGE, True)
    assert cli.json("hold", OFFERS) == []
