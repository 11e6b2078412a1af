"""up, down, status, doctor and rebuild: what they find, and that a broken thing is exit 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.backend import embedded
from broker.backend.registry import Registry, Worker
from broker.cli.checks_care import of_dataset, of_slot
from broker.cli.exits import Exit
from broker.compactor import MERGES
from broker.connect import Broker
from broker.cursors import Cursors, LiveCursor
from broker.gauges import CursorGauge, DatasetGauge, LogSlotGauge, SlotGauge
from broker.model.commit import Retire
from broker.model.names import DatasetId
from broker.parts import open_parts
from broker.settings import load
from broker.sinks.memory import Memory
from tests.cli import Cli
from workers.batching import Batching

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


def test_status_knows_change_logs_consumers_channels_merges_and_who_serves_the_log_slots(
    cli: Cli, opened: Callable[..., Broker]
) -> None:
    broker = opened()
    offers = broker.dataset(OFFERS, key=["sku"], order=["price"])
    offers.publish([{"sku": f"s{n}", "price": 0} for n in range(9)])
    broker.replica(OFFERS, name="app", sink=Memory()).sync()
    for price in range(1, 16):  # versions 9 to 16 are due to be rolled up
        offers.publish_delta([{"sku": "s0", "price": price}])
    offers.promote(7, to="production")
    offers.hold(version=2, why="audit")
    offers.changelog.append([{"sku": "s1", "price": 1}, {"sku": "s2", "price": 1}])
    short = Cursors(broker.parts.redis, broker.parts.index, 60)
    short.report(offers.id, LiveCursor(name="ending", version=7, session=offers.state.session, channel="production"))
    value = cli.json("status")
    (one,), (slot,) = value["datasets"], value["slots"]
    assert one["waiting_rows"] == 2
    assert one["oldest_seconds"] > 0
    assert one["cursors"] == {"live": 2, "expiring": 1, "lapsed": 0}
    assert (one["behind_versions"], one["channels"], one["holds"], one["merges_due"]) == (15, {"production": 7}, 1, 1)
    assert (slot["batchers"], [log["owner"] for log in slot["log_slots"]]) == (0, [""] * 4)
    assert sum(log["waiting"] for log in slot["log_slots"]) >= 1
    assert slot["retention_waits_seconds"] > 600_000
    assert slot["events"] >= 10
    (line,) = [line for line in cli.ok("status").lines if line.startswith(OFFERS)]
    assert "2 live, 1 expiring" in line
    assert "production=7" in line
    batching = Batching(broker.parts, "b1")
    batching.keep()
    (slot,) = cli.json("status")["slots"]
    assert (slot["batchers"], [log["owner"] for log in slot["log_slots"]]) == (1, ["b1"] * 4)
    batching.close()


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


def test_the_doctor_says_which_changes_nobody_batches_until_somebody_does(cli: Cli, opened: Callable[..., Broker]) -> None:
    broker = opened()
    broker.dataset(OFFERS, key=["sku"]).changelog.append([{"sku": "s1"}])
    text = "and nobody makes micro-batches of them: broker worker --role microbatch"
    assert [note for note in findings(cli)[1]["note", "slot catalog.0"] if note.endswith(text)]
    batching = Batching(broker.parts, "b1")
    batching.keep()
    code, found = findings(cli)
    assert (code, ("note", "slot catalog.0") in found) == (Exit.OK, False)
    assert any(text.startswith("1 micro-batcher(s)") for text in found["ok", "slot catalog.0"])
    batching.close()


def test_the_doctor_names_batchers_that_do_not_keep_up_and_retention_that_waits() -> None:
    settings, log = load(max_age_seconds=1, lease_seconds=10, cursor_seconds=7200), LogSlotGauge(2, "b1", 1, 21.0)
    slot = SlotGauge("catalog.0", 0, 0, 0, 0, 0, 1, (), known_seconds=3600, batchers=1, log_slots=(log,))
    told = [finding.text for finding in of_slot(slot, settings)]
    assert told[1] == "log slot 2: changes wait for 21.0 s, b1 does not keep up"
    assert told[2].startswith("retention gives nothing up for 60 min")
    well = replace(slot, known_seconds=7200, log_slots=(replace(log, oldest_seconds=19.0),))
    assert len(list(of_slot(well, settings))) == 1


def test_the_doctor_names_consumers_that_lapsed_that_end_soon_and_that_are_behind_for_too_long() -> None:
    settings = load(cursor_seconds=100, lag_seconds=60)
    cursors = (
        CursorGauge("dead", 1, 9, 99.0, live=False, left_seconds=-1),
        CursorGauge("ending", 9, 0, 0.0, live=True, left_seconds=20),
        CursorGauge("slow", 7, 2, 61.0, live=True, channel="production", left_seconds=99),
        CursorGauge("well", 8, 1, 59.0, live=True, left_seconds=99),
    )
    told = [finding.text for finding in of_dataset(DatasetGauge(DatasetId(OFFERS), 9, 9, 0, 1, 1, (), cursors), settings)]
    assert [text.partition(":")[0] for text in told] == [
        "no road is kept for dead, whose lease has ended",
        "the lease of ending ends soon, and nobody came to renew it",
        "slow is 2 version(s) behind production for 61.0 s",
    ]


def test_the_doctor_names_channels_that_lead_nowhere_merges_that_wait_and_schedules_that_are_refused(
    cli: Cli, opened: Callable[..., Broker]
) -> None:
    broker = opened()
    offers = broker.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": "s", "price": 0}])
    for price in range(1, 8 * (MERGES + 2)):
        offers.publish_delta([{"sku": "s", "price": price}])
    offers.promote(1, to="production")
    _, found = findings(cli)
    assert [text.partition(" ")[2][:16] for text in found["note", OFFERS]] == ["merge(s) are due"]
    gone = Retire(edges=((None, 1),), versions_until=0)
    broker.parts.catalog.commit(offers.id, lambda now: gone if now.edge(None, 1) else None, "test")
    code, found = findings(cli)
    assert code == Exit.FAILED
    assert "channel production: no road leads to this version" in found["broken", OFFERS][0]
    offers.drop()
    offers = broker.dataset(OFFERS, key=["sku"])
    cli.ok("schedule", "add", "nightly", "* * * * *", OFFERS, "--target", "search")
    slot = broker.parts.index.slot(offers.id)
    broker.parts.redis.run("HSET", slot.key("courses"), "nightly", '{"next": 1, "error": "its target reads nothing"}')
    code, found = findings(cli)
    assert code == Exit.OK
    assert "session that is over" in found["note", OFFERS][0]
    assert found["note", "schedule nightly"] == ["its last request was refused: its target reads nothing"]


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
