"""Schedules on a real Redis: each due time asks once, whatever crashes or runs twice; what was missed is made up for once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import broker
from broker.backend.keys import duty_lease
from broker.cli.exits import Exit
from broker.connect import Broker
from broker.errors import Conflict, Invalid, InvalidRequest, NotFound, Unavailable
from broker.inquiry import Inquiry
from broker.model.names import DatasetId
from broker.schedules import Course, Schedules
from tests.cli import Cli
from workers.loop import Loop
from workers.roles import add_schedules

OFFERS = DatasetId("shop/catalog/offers")
ASKED = {"dataset": OFFERS, "target": "search"}
HOUR = 3600


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[Broker]:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as opened:
        opened.dataset(OFFERS, key=["sku"])
        yield opened


def ledger(b: Broker) -> Schedules:
    return Schedules(b.parts.redis, b.parts.index, b.parts.leases)


def asking(b: Broker) -> Callable[[Mapping[str, Any]], str]:
    return lambda fields: b.request(**fields).id


def overdue(b: Broker, id: str, seconds: float) -> float:
    """As if its next due time had been so long ago, on a full minute. -> that time"""
    now = Inquiry(b.parts.redis, b.parts.requests)._registry.now()
    due = (now - seconds) // 60 * 60
    b.parts.redis.run("HSET", b.parts.index.slot(OFFERS).key("courses"), id, Course(next=due).model_dump_json())
    return due


def requests(b: Broker) -> list[str | None]:
    """Idempotency keys of all there are."""
    inquiry = Inquiry(b.parts.redis, b.parts.requests)
    return [status.request.idempotency_key for status in inquiry.recent(b.parts.index.slot(OFFERS))]


def test_what_is_not_due_is_not_asked(b: Broker) -> None:
    ledger(b).add("yearly", "0 0 1 1 *", ASKED)
    assert ledger(b).run_once("w", asking(b)).submitted == []
    assert requests(b) == []


def test_a_due_time_asks_once_and_the_next_is_ahead(b: Broker) -> None:
    schedules = ledger(b)
    schedules.add("minutely", "* * * * *", ASKED | {"priority": "high"})
    overdue(b, "minutely", 61)
    assert schedules.run_once("w", asking(b)).submitted == ["minutely"]
    _, course = schedules.get("minutely")
    assert course.submitted
    assert b.submitted(course.submitted).target == "search"
    assert course.next is not None
    assert course.last is not None
    assert course.last < course.next <= course.last + 120
    assert len(requests(b)) == 1


def test_a_pass_that_died_before_it_took_note_asks_the_same_again(b: Broker) -> None:
    schedules = ledger(b)
    schedules.add("yearly", "0 0 1 1 *", ASKED)
    due, first = overdue(b, "yearly", 60), list[str]()

    def dies(fields: Mapping[str, Any]) -> str:
        first.append(asking(b)(fields))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        schedules.run_once("w", dies)
    assert schedules.get("yearly")[1].next == due
    assert schedules.run_once("w", asking(b)).submitted == ["yearly"]
    assert schedules.get("yearly")[1].submitted == first[0]
    assert len(requests(b)) == 1


def test_a_course_that_was_never_written_begins_with_the_next_pass(b: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    schedules = ledger(b)
    schedules.add("minutely", "* * * * *", ASKED)
    b.parts.redis.run("HDEL", b.parts.index.slot(OFFERS).key("courses"), "minutely")
    now, later = schedules._registry.now(), [0.0]
    monkeypatch.setattr(schedules._registry, "now", lambda: now + later[0])
    assert schedules.run_once("w", asking(b)).submitted == []
    later[0] = 61.0
    assert schedules.run_once("w", asking(b)).submitted == ["minutely"]


def test_several_workers_at_once_ask_once(b: Broker) -> None:
    ledger(b).add("yearly", "0 0 1 1 *", ASKED)
    overdue(b, "yearly", 60)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: ledger(b).run_once(f"w{number}", asking(b)), range(32)))
    assert len(requests(b)) == 1


def test_one_worker_at_a_time_looks(b: Broker) -> None:
    ledger(b).add("yearly", "0 0 1 1 *", ASKED)
    overdue(b, "yearly", 60)
    with b.parts.leases.held(b.parts.index.slot(OFFERS), duty_lease("schedule"), "another"):
        assert ledger(b).run_once("w", asking(b)).submitted == []
    assert ledger(b).run_once("w", asking(b)).submitted == ["yearly"]


def test_what_was_missed_is_made_up_for_once_and_by_its_last_due_time(b: Broker) -> None:
    schedules = ledger(b)
    schedules.add("hourly", "0 * * * *", ASKED)
    overdue(b, "hourly", 30 * HOUR)
    schedules.run_once("w", asking(b))
    schedules.run_once("w", asking(b))
    _, course = schedules.get("hourly")
    assert course.last is not None
    assert course.next == course.last + HOUR
    assert len(requests(b)) == 1


def test_a_refused_request_waits_for_the_next_time_and_an_unreachable_broker_does_not(b: Broker) -> None:
    schedules = ledger(b)
    schedules.add("yearly", "0 0 1 1 *", ASKED)
    due = overdue(b, "yearly", 60)

    def away(fields: Mapping[str, Any]) -> str:
        raise Unavailable("gone", of=str(fields["dataset"]))

    assert list(schedules.run_once("w", away).waiting) == ["yearly"]
    assert schedules.get("yearly")[1].next == due
    b.dataset(OFFERS).drop()
    report = schedules.run_once("w", asking(b))
    assert list(report.refused) == ["yearly"]
    course = schedules.get("yearly")[1]
    assert "no such dataset" in course.error
    assert course.next is not None
    assert course.next > due


def test_a_name_stands_for_one_schedule(b: Broker) -> None:
    schedules = ledger(b)
    b.dataset("shop/pricing/prices", key=["sku"])
    schedules.add("nightly", "0 2 * * *", ASKED)
    assert schedules.add("nightly", "0  2 * * *", ASKED).cron == "0 2 * * *"  # the same again
    with pytest.raises(Conflict):
        schedules.add("nightly", "0 3 * * *", ASKED)
    with pytest.raises(Conflict):
        schedules.add("nightly", "0 2 * * *", {"dataset": "shop/pricing/prices", "target": "search"})
    schedules.remove("nightly")
    with pytest.raises(NotFound):
        schedules.remove("nightly")
    assert list(schedules.all()) == []


def test_what_could_never_work_is_refused_at_once(b: Broker) -> None:
    for id, cron, fields, error in (
        ("a b", "* * * * *", ASKED, Invalid), ("x", "* * *", ASKED, Invalid), ("x", "0 0 30 2 *", ASKED, Invalid),
        ("x", "* * * * *", ASKED | {"deadline": 5}, InvalidRequest),
        ("x", "* * * * *", ASKED | {"format": "xml"}, InvalidRequest),
    ):  # fmt: skip
        with pytest.raises(error):
            ledger(b).add(id, cron, fields)


def test_the_loop_of_a_worker_submits_what_is_due(b: Broker) -> None:
    ledger(b).add("yearly", "0 0 1 1 *", ASKED)
    overdue(b, "yearly", 60)
    loop = Loop()
    add_schedules(loop, b.parts, "w")
    loop.run(done=lambda: bool(requests(b)))
    assert len(requests(b)) == 1


def test_the_command_line_adds_lists_and_removes(
    b: Broker, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))
    b.dataset(OFFERS).publish([{"sku": "a", "price": 1}])
    options = ("--target", "search", "--where", "price<10", "--columns", "price", "--attribute", "why=nightly")
    added = cli.json("schedule", "add", "nightly", "30 2 * * mon-fri", OFFERS, *options)
    assert added["body"] | {"where": ""} == {
        "dataset": OFFERS, "target": "search", "where": "", "columns": ["price"], "attributes": {"why": "nightly"},
    }  # fmt: skip
    assert added["next"] > 0
    assert cli.json("schedule", "list") == [added]
    overdue(b, "nightly", 60)
    ledger(b).run_once("w", asking(b))
    listed = cli.ok("schedule", "list").lines[1]
    assert listed.startswith("nightly  30 2 * * mon-fri")
    assert "catalog.0." in listed
    assert cli("schedule", "add", "nightly", "0 2 * * *", OFFERS, "--target", "search").code == Exit.CONFLICT
    assert cli("schedule", "add", "x", "whenever", OFFERS, "--target", "search").code == Exit.USAGE
    assert cli("schedule", "add", "x", "* * * * *", "shop/catalog/none", "--target", "search").code == Exit.NOT_FOUND
    assert cli.json("schedule", "remove", "nightly") == {"schedule": "nightly", "removed": True}
    assert cli("schedule", "remove", "nightly").code == Exit.NOT_FOUND
