"""up, down, status, doctor and rebuild: what they find, and that a broken thing is exit 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.backend import embedded
from broker.backend.registry import Registry, Worker
from broker.cli.exits import Exit
from broker.connect import Broker
from broker.parts import open_parts
from broker.settings import load
from tests.cli import Cli

OFFERS = "shop/catalog/offers"


@pytest.fixture
def cli(redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))


@pytest.fixture
def opened(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Brokers on the same Redis and store as `cli`."""
    made: list[Broker] = []

    def open_(on_step: Callable[[str], None] = lambda _step: None) -> Broker:
        made.append(Broker(open_parts(load(redis=redis_url, store=str(tmp_path / "store")), on_step)))
        return made[-1]

    yield open_
    for broker in made:
        broker.close()


def findings(cli: Cli) -> tuple[int, dict[tuple[str, str], list[str]]]:
    done = cli("doctor", "--json")
    found: dict[tuple[str, str], list[str]] = {}
    for item in done.data:
        found.setdefault((item["verdict"], item["subject"]), []).append(item["text"])
    return done.code, found


# --- up and down


def test_up_keeps_an_embedded_redis_and_down_stops_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli, home = Cli(capsys, "--home", str(tmp_path / "home")), tmp_path / "home"
    try:
        made = cli.json("up")
        running = embedded.status(home)
        assert running is not None
        assert made["url"] == running.url
        assert cli.json("up")["url"] == running.url
        assert cli.json("status")["redis"]["embedded"] is True
        assert cli.json("down") == {"home": str(home), "stopped": True}
        assert embedded.status(home) is None
        assert cli.json("down")["stopped"] is False
    finally:
        embedded.stop(home)


def test_up_refuses_where_another_redis_is_configured(cli: Cli) -> None:
    done = cli("up")
    assert done.code == Exit.FAILED
    assert "a Redis is configured" in done.err


# --- status


def test_status_counts_what_waits_and_names_who_serves_it(cli: Cli, opened: Callable[..., Broker]) -> None:
    broker = opened()
    broker.dataset(OFFERS, key=["sku"]).publish([{"sku": "a"}])
    broker.request(OFFERS, target="search")
    assert (cli.json("status")["queues"][0]["queued"], cli.json("status")["datasets"][0]["served_by"]) == ({"offers": 1}, [])
    assert "no-producer" in cli.ok("status").out
    worker = Worker("w1", ("*/catalog/*",), "here", 7, 2)
    Registry(broker.parts.redis).register(broker.parts.index.slots(), worker, 60)
    value = cli.json("status")
    assert (value["datasets"][0]["version"], value["datasets"][0]["served_by"]) == (1, ["w1"])
    assert [(item["id"], item["pid"], item["processes"]) for item in value["workers"]] == [("w1", 7, 2)]
    assert "no-producer" not in cli.ok("status").out


def test_status_of_an_empty_broker_is_no_error(cli: Cli) -> None:
    value = cli.json("status")
    assert (value["datasets"], value["queues"], value["workers"]) == ([], [], [])
    cli.ok("status")


# --- doctor


def test_the_doctor_finds_a_healthy_place_well(cli: Cli, opened: Callable[..., Broker]) -> None:
    opened().dataset(OFFERS, key=["sku"]).publish([{"sku": "a"}])
    code, found = findings(cli)
    assert code == Exit.OK
    assert [verdict for verdict, _ in found if verdict == "broken"] == []
    assert found["ok", OFFERS] == ["version 1, 3 record(s), index and log agree"]
    assert any("appendonly" in text or "maxmemory is 0" in text for text in found.get(("note", "redis"), []))
    assert cli.ok("doctor").lines[-1] == "nothing is broken"


class Crash(Exception):
    """A writer dies."""


def test_the_doctor_finds_a_record_that_was_sealed_and_not_published(cli: Cli, opened: Callable[..., Broker]) -> None:
    dataset = opened().dataset(OFFERS, key=["sku"])

    def die_after_seal(step: str) -> None:
        if step == "seal":
            raise Crash

    with pytest.raises(Crash):
        opened(die_after_seal).dataset(OFFERS).publish([{"sku": "a"}])
    code, found = findings(cli)
    assert code == Exit.FAILED
    assert found["broken", OFFERS][0].startswith(f"log record {dataset.state.seq + 1} is sealed and not published")


def test_the_doctor_finds_a_reservation_that_nobody_finishes(
    cli: Cli, opened: Callable[..., Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().dataset(OFFERS, key=["sku"])

    def die_after_reserve(step: str) -> None:
        if step == "reserve":
            raise Crash

    with pytest.raises(Crash):
        opened(die_after_reserve).dataset(OFFERS).publish([{"sku": "a"}])
    assert findings(cli)[0] == Exit.OK
    monkeypatch.setenv("BROKER_RESERVATION_SECONDS", "0")
    code, found = findings(cli)
    assert code == Exit.FAILED
    assert "is reserved since" in found["broken", OFFERS][0]


def test_the_doctor_says_who_is_gone_and_what_waits(cli: Cli, opened: Callable[..., Broker]) -> None:
    broker = opened()
    broker.dataset(OFFERS, key=["sku"])
    broker.request(OFFERS, target="search")
    _, found = findings(cli)
    assert found["note", OFFERS] == ["no-producer: requests wait and no live worker's patterns match"]


@pytest.mark.parametrize(("option", "subject"), [("--redis", "redis"), ("--store", "store")])
def test_what_cannot_be_reached_is_broken_and_ends_the_visit(
    cli: Cli, tmp_path: Path, option: str, subject: str, capsys: pytest.CaptureFixture[str], redis_url: str
) -> None:
    (tmp_path / "a-file").write_text("")
    bad = {"--redis": f"unix://{tmp_path}/none.sock", "--store": f"{tmp_path}/a-file/store"}[option]
    options: dict[str, Any] = {"--redis": redis_url, "--store": str(tmp_path / "store"), option: bad}
    code, found = findings(Cli(capsys, *(text for pair in options.items() for text in pair)))
    assert code == Exit.FAILED
    assert ("broken", subject) in found


# --- rebuild


def test_rebuild_restores_every_version_after_redis_lost_everything(cli: Cli, opened: Callable[..., Broker]) -> None:
    broker = opened()
    dataset = broker.dataset(OFFERS, key=["sku"])
    dataset.publish([{"sku": "a"}, {"sku": "b"}])
    dataset.publish([{"sku": "a"}], delta=True)
    before, session = dataset.versions(), dataset.state.session
    broker.dataset("other/catalog/offers", key=["sku"])
    broker.parts.redis.run("FLUSHALL")
    assert cli.json("dataset", "list") == []
    found = {item["dataset"]: item["version"] for item in cli.json("rebuild")}
    assert found == {OFFERS: 2, "other/catalog/offers": 0}
    again = opened().dataset(OFFERS)
    assert (again.versions(), again.state.session) == (before, session)
    assert again.read().to_pylist() == [{"sku": "a"}]


def test_rebuild_shows_what_was_restored_beside_what_was_not(cli: Cli, opened: Callable[..., Broker]) -> None:
    broker = opened()
    broker.dataset(OFFERS, key=["sku"]).publish([{"sku": "a"}])
    broker.parts.store.put("aaa/catalog/broken/log/00000000000000000001.json", b"no record")
    broker.parts.redis.run("FLUSHALL")
    done = cli("rebuild", "--json")
    assert done.code == Exit.FAILED
    errors = {item["dataset"]: item["error"] and item["error"]["code"] for item in done.data}
    assert errors == {OFFERS: None, "aaa/catalog/broken": "corrupt"}
    assert any("aaa/catalog/broken" in line and "not a commit record" in line for line in cli("rebuild").lines)


def test_rebuild_takes_a_prefix_and_leaves_out_what_was_dropped(cli: Cli, opened: Callable[..., Broker]) -> None:
    broker = opened()
    for name in (OFFERS, "other/catalog/offers", "shop/catalog/gone"):
        broker.dataset(name, key=["sku"])
    broker.dataset("shop/catalog/gone").drop()
    broker.parts.redis.run("FLUSHALL")
    assert [item["dataset"] for item in cli.json("rebuild", "--prefix", "shop/")] == [OFFERS]
