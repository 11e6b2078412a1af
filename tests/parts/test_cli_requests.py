"""request, requests, responses and explain, with producers run in this process."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import broker
from broker.backend.keys import PRODUCERS
from broker.backend.registry import Registry, Worker
from broker.cli.exits import Exit
from broker.cli.face import Face
from broker.connect import connect
from broker.errors import BadData, Unavailable
from broker.flights import Status
from broker.inquiry import FlightView, Inquiry, reason_of
from broker.model.request import Request, State, born_at
from broker.testing import PrivateBroker
from tests.cli import Cli, Shell
from tests.servers import wait_until

OFFERS = "shop/catalog/offers"
ROWS = [{"sku": "a", "price": 1}, {"sku": "b", "price": 60}]


@pytest.fixture
def place(redis_url: str, tmp_path: Path) -> Iterator[PrivateBroker]:
    store = str(tmp_path / "store")
    with connect(redis=redis_url, store=store, backoff_seconds=0.0, max_attempts=3) as own:
        own.dataset(OFFERS, key=["sku"])
        yield PrivateBroker(own, redis_url, store)


@pytest.fixture
def cli(place: PrivateBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(capsys, "--redis", place.redis, "--store", place.store)


def app_of(*answers: Any) -> broker.Producers:
    """Each call gives the next answer, the last one for ever; an exception is raised."""
    app, left = broker.Producers(), list(answers)

    @app.producer(OFFERS)
    def offers(request: broker.ProductionRequest, since: broker.Since | None) -> Any:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return broker.Snapshot(answer)

    return app


def registered(place: PrivateBroker, pattern: str, seconds: float = 60.0) -> Worker:
    worker = Worker(f"w-{pattern.replace('*', 'any').replace('/', '-')}", (pattern,), "here", 1, 1)
    Registry(place.broker.parts.redis).register(place.broker.parts.index.slots(), worker, seconds)
    return worker


# --- request


def test_a_request_prints_its_id_and_is_found_by_it(cli: Cli) -> None:
    id = cli.ok("request", OFFERS, "--target", "search", "--attribute", "why=test", "--priority", "low").out.strip()
    shown = cli.json("requests", "show", id)
    assert (shown["request"], shown["state"], shown["completion"]) == (id, "queued", None)
    assert shown["body"] == {"dataset": OFFERS, "target": "search", "priority": "low", "attributes": {"why": "test"}}


def test_an_idempotency_key_gives_the_same_request_and_refuses_another_body(cli: Cli) -> None:
    ask = ("request", OFFERS, "--target", "search", "--idempotency-key", "job-17")
    assert cli.ok(*ask).out == cli.ok(*ask).out
    assert cli(*ask, "--priority", "high").code == Exit.CONFLICT


def test_a_fresh_answer_comes_at_once_and_its_files_are_downloaded(cli: Cli, place: PrivateBroker, tmp_path: Path) -> None:
    cli.ok("request", OFFERS, "--target", "search")
    place.work(app_of(ROWS))
    done = cli.json("request", OFFERS, "--target", "search", "--max-staleness", 60, "--timeout", 5, "--to", "in")
    assert (done["mode"], done["version"], done["rows"]) == ("snapshot", 1, 2)
    (path,) = done["paths"]
    assert sorted(pq.read_table(tmp_path / path).column("sku").to_pylist()) == ["a", "b"]
    lines = cli.ok("request", OFFERS, "--target", "search", "--max-staleness", 60, "--to", "in")
    assert lines.out == "in/01-rows.parquet\n"


def test_a_cursor_goes_in_where_a_version_number_does(cli: Cli, place: PrivateBroker) -> None:
    cli.ok("request", OFFERS, "--target", "search")
    place.work(app_of(ROWS))
    cursor = cli.json("responses", "search")["cursor"]
    ask = ("request", OFFERS, "--target", "search", "--max-staleness", 60, "--timeout", 5)
    assert cli.json(*ask, "--since", cursor)["mode"] == "unchanged"
    assert cli.json(*ask, "--since", 1)["mode"] == "unchanged"
    assert cli(*ask, "--since", "yesterday").code == Exit.USAGE


def test_a_failed_request_ends_a_wait_with_code_1_and_the_cause(cli: Cli, place: PrivateBroker) -> None:
    id = cli.ok("request", OFFERS, "--target", "search", "--idempotency-key", "x").out.strip()
    place.work(app_of(BadData("a broken feed", of="offers.csv")))
    done = cli("request", OFFERS, "--target", "search", "--idempotency-key", "x", "--timeout", 5)
    assert done.code == Exit.FAILED
    assert "a broken feed" in done.err
    assert id in done.err


def test_wait_stands_anywhere_and_takes_no_word_of_the_line(cli: Cli, place: PrivateBroker) -> None:
    cli.ok("request", OFFERS, "--target", "search")
    place.work(app_of(ROWS))
    for words in (
        ("--wait", OFFERS, "--target", "t"),
        (OFFERS, "--wait", "--target", "t"),
        (OFFERS, "--target", "t", "--wait"),
    ):
        assert cli.json("request", *words, "--max-staleness", 60)["version"] == 1


def test_a_wait_that_is_over_says_how_long_it_was_and_that_the_request_goes_on(cli: Cli) -> None:
    done = cli("request", OFFERS, "--target", "search", "--timeout", 0.7)
    assert done.code == Exit.TIMED_OUT
    assert "waits for a worker: no-producer" in done.err
    assert "within 0.7 s" in done.err
    assert "broker explain request catalog." in done.err


# --- requests


def test_the_list_is_newest_first_and_takes_filters(cli: Cli, place: PrivateBroker) -> None:
    place.broker.dataset("shop/orders/open", key=["id"])
    ids = []
    for target in ("one", "two", "three"):
        ids.append(place.broker.request(OFFERS, target=target).id)
        time.sleep(0.002)  # ids sort by the millisecond of birth
    other = place.broker.request("shop/orders/open", target="one").id
    cli.ok("requests", "cancel", ids[0])
    assert [item["request"] for item in cli.json("requests", "list")][-3:] == ids[::-1]
    assert [item["request"] for item in cli.json("requests", "list", "--dataset", OFFERS, "--limit", 2)] == [ids[2], ids[1]]
    assert [item["request"] for item in cli.json("requests", "list", "--state", "cancelled")] == [ids[0]]
    assert {item["request"] for item in cli.json("requests", "list", "--target", "one")} == {ids[0], other}


def test_a_request_nobody_alive_serves_shows_no_producer(cli: Cli, place: PrivateBroker) -> None:
    id = place.broker.request(OFFERS, target="search").id
    assert cli.json("requests", "show", id)["waits"] == "no-producer"
    assert "no-producer" in cli.ok("requests", "show", id).out
    registered(place, "*/orders/*")
    assert cli.json("requests", "show", id)["waits"] == "no-producer"
    registered(place, "*/catalog/*")
    assert cli.json("requests", "show", id)["waits"] is None


def test_a_worker_that_lapsed_counts_no_more(cli: Cli, place: PrivateBroker) -> None:
    registered(place, "*/catalog/*", seconds=-1)
    assert cli.json("status")["workers"] == []
    registered(place, "*/orders/*")
    slot = place.broker.parts.index.slots()[0]
    assert place.broker.parts.redis.run("HLEN", slot.workers) == 1


def test_cancel_ends_a_request_once(cli: Cli, place: PrivateBroker) -> None:
    id = place.broker.request(OFFERS, target="search").id
    assert cli.json("requests", "cancel", id) == {"request": id, "state": "cancelled"}
    assert cli("requests", "cancel", id).code == Exit.CONFLICT
    assert cli.json("responses", "search")["state"] == "cancelled"


def test_dead_letters_tell_every_attempts_cause_and_can_be_asked_again(cli: Cli, place: PrivateBroker) -> None:
    fields = {"where": "price < 50", "columns": ["price"], "idempotency_key": "k", "attributes": {"why": "test"}}
    dead = place.broker.request(OFFERS, target="search", since=None, **fields).id
    place.work(app_of(Unavailable("asleep"), Unavailable("still asleep"), BadData("a broken feed")))
    (letter,) = cli.json("requests", "dead")
    assert (letter["request"], letter["attempts"]) == (dead, 3)
    assert [cause["what"] for cause in letter["causes"]] == ["asleep", "still asleep", "a broken feed"]
    assert [line.split(". ")[0].strip() for line in cli.ok("requests", "dead").lines[1:]] == ["1", "2", "3"]

    again = cli.ok("requests", "retry", dead).out.strip()
    assert again != dead
    assert cli.json("requests", "dead") == []
    body = cli.json("requests", "show", again)["body"]
    assert body == {
        "dataset": OFFERS,
        "target": "search",
        "where": body["where"],
        "columns": ["price"],
        "attributes": {"why": "test"},
    }
    assert place.work(app_of(ROWS)) == 1
    assert cli.json("requests", "show", again)["state"] == "completed"


def test_an_attempt_lost_with_its_worker_is_among_the_causes(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    with connect(redis=redis_url, store=store, lease_seconds=0.2) as own:
        own.dataset(OFFERS, key=["sku"])
        own.request(OFFERS, target="search")
        parts, slot = own.parts, own.parts.index.slots()[0]
        stream = slot.requests("offers", "normal")
        parts.redis.create_group(stream, PRODUCERS)
        entries = parts.redis.wait_entries({stream: b">"}, PRODUCERS, "lost", 10, 0)
        assert len(parts.requests.claim(slot, "lost", entries).flights) == 1  # and then never heard of again
        PrivateBroker(own, redis_url, store).work(app_of(BadData("a broken feed")))
    (letter,) = Cli(capsys, "--redis", redis_url, "--store", store).json("requests", "dead")
    assert [cause["what"] for cause in letter["causes"]] == ["its worker fell silent", "a broken feed"]
    assert letter["causes"][0]["why"].startswith("lost held the flight")


def test_what_still_runs_is_not_asked_again(cli: Cli, place: PrivateBroker) -> None:
    id = place.broker.request(OFFERS, target="search").id
    assert cli("requests", "retry", id).code == Exit.CONFLICT
    cli.ok("requests", "cancel", id)
    assert cli.ok("requests", "retry", id).out.strip() != id
    assert cli("requests", "retry", f"catalog.0.{'0' * 32}").code == Exit.NOT_FOUND


def test_watch_ends_with_the_request_and_says_how(cli: Cli, place: PrivateBroker) -> None:
    good = place.broker.request(OFFERS, target="search").id
    place.work(app_of(ROWS))
    assert cli("requests", "watch", good).code == Exit.OK
    bad = place.broker.request(OFFERS, target="search").id
    cli.ok("requests", "cancel", bad)
    assert cli("requests", "watch", bad).code == Exit.FAILED
    open_ = place.broker.request(OFFERS, target="search").id
    done = cli("requests", "watch", open_, "--timeout", 0)
    assert (done.code, len(done.lines)) == (Exit.TIMED_OUT, 1)
    assert "queued (no-producer)" in done.out


# --- responses


def test_responses_are_looked_at_until_they_are_acknowledged(cli: Cli, place: PrivateBroker) -> None:
    ids = {place.broker.request(OFFERS, target="search").id for _ in range(3)}
    place.work(app_of(ROWS))
    for _ in range(2):
        assert {line.split()[0] for line in cli.ok("responses", "search").lines} == ids
    assert {line.split()[0] for line in cli.ok("responses", "search", "--ack").lines} == ids
    assert cli.ok("responses", "search").out == ""
    assert cli.ok("responses", "search", "--ack").out == ""


@pytest.mark.parametrize(("options", "left"), [((), 2), (("--ack",), 0)])
def test_follow_goes_on_as_responses_come(place: PrivateBroker, tmp_path: Path, options: tuple[str, ...], left: int) -> None:
    shell, log = Shell(tmp_path, {"BROKER_REDIS": place.redis, "BROKER_STORE": place.store}), tmp_path / "log"
    first = place.broker.request(OFFERS, target="search").id
    place.work(app_of(ROWS))
    process = shell.start("responses", "search", "--follow", "--json", *options, log=log)
    try:
        wait_until(lambda: first in log.read_text(), "the first response")
        second = place.broker.request(OFFERS, target="search").id
        place.work(app_of(ROWS))
        wait_until(lambda: second in log.read_text(), "the second response")
        wait_until(lambda: len(place.broker.responses("search").peek()) == left, "the acknowledgements")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert [json.loads(line)["request"] for line in log.read_text().splitlines()] == [first, second]


def test_a_look_goes_on_behind_what_it_saw_and_a_limit_counts_what_is_shown(
    cli: Cli, place: PrivateBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.cli.responses.PAGE", 2)
    place.broker.dataset("shop/orders/open", key=["id"])
    asked = [place.broker.request(name, target="search").id for name in (OFFERS, "shop/orders/open") for _ in range(3)]
    for id in asked:
        assert place.broker.submitted(id).cancel()
    assert sorted(line.split()[0] for line in cli.ok("responses", "search").lines) == sorted(asked)
    assert len(cli.ok("responses", "search", "--limit", 3).lines) == 3
    assert len(cli.ok("responses", "search", "--limit", 1, "--follow").lines) == 1
    assert len(cli.ok("responses", "search", "--limit", 1, "--ack").lines) == 1
    assert len(cli.ok("responses", "search", "--ack").lines) == 5


def test_a_reader_that_is_stopped_gives_back_what_it_had_not_acknowledged(
    cli: Cli, place: PrivateBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [place.broker.request(OFFERS, target="search").id for _ in range(3)]
    for id in asked:
        assert place.broker.submitted(id).cancel()
    emit, shown = Face.emit, list[str]()

    def stop_at_the_second(face: Face, value: Any, text: Any) -> None:
        emit(face, value, text)
        shown.append(value["request"])
        if len(shown) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Face, "emit", stop_at_the_second)
    cli.ok("responses", "search", "--ack")
    monkeypatch.setattr(Face, "emit", emit)
    assert {line.split()[0] for line in cli.ok("responses", "search", "--ack").lines} == {*asked} - {shown[0]}


# --- explain


def test_explain_says_what_a_request_waits_for(cli: Cli, place: PrivateBroker) -> None:
    id = place.broker.request(OFFERS, target="search").id
    found = cli.json("explain", "request", id)
    assert (found["waits_for"], found["workers"]) == ("a worker", [])
    assert "no-producer" in found["why"]
    worker = registered(place, "*/catalog/*")
    found = cli.json("explain", "request", id)
    assert (found["waits_for"], [item["id"] for item in found["workers"]]) == ("a free worker", [worker.id])
    place.work(app_of(ROWS))
    assert cli.json("explain", "request", id)["why"] == "it ended as completed"


def test_explain_tells_why_earlier_attempts_failed(cli: Cli, place: PrivateBroker) -> None:
    id = place.broker.request(OFFERS, target="search").id
    place.work(app_of(Unavailable("asleep"), Unavailable("still asleep"), ROWS))
    assert [cause["what"] for cause in cli.json("explain", "request", id)["causes"]] == ["asleep", "still asleep"]
    assert "  2. unavailable: still asleep" in cli.ok("requests", "show", id).lines


def test_explain_version_shows_the_record_and_the_road(cli: Cli, place: PrivateBroker) -> None:
    for rows in (ROWS, [*ROWS, {"sku": "c", "price": 3}]):
        place.broker.request(OFFERS, target="search")
        place.work(app_of(rows))
    one, two = cli.json("explain", "version", OFFERS, 1), cli.json("explain", "version", f"{OFFERS}@2")
    assert two["record"]["body"]["edge"]["base"] == 1
    assert two["previous"] == one["sha256"]
    assert [step["kind"] for step in two["road"]] == ["snapshot", "delta"]
    assert "road    nothing -> 1 -> 2" in cli.ok("explain", "version", OFFERS, 2).out
    assert cli("explain", "version", OFFERS).code == Exit.USAGE


def test_explain_knows_what_is_offered_no_more(cli: Cli, place: PrivateBroker) -> None:
    dataset = place.broker.dataset(OFFERS)
    dataset.publish(ROWS)
    cli.ok("dataset", "alter", OFFERS, "--column", "price VARCHAR", "--force")
    assert [item["version"] for item in cli.json("versions", "list", OFFERS)] == [1]
    assert cli.json("explain", "version", OFFERS, 1)["road"] == []
    assert "road    none is offered any more" in cli.ok("explain", "version", OFFERS, 1).out
    assert cli("explain", "version", OFFERS, 9).code == Exit.NOT_FOUND

    id = place.broker.request(OFFERS, target="search").id
    dataset.drop()
    assert cli.json("explain", "request", id)["sealed_version"] is None


STATUS = Status("catalog.0.x", State.QUEUED, Request.of({"dataset": OFFERS, "target": "t"}), 1, 0.0)
FLIGHT = FlightView("f", "derive", "open", "somebody", 0.0, 0.0)
WORKER = Worker("w", ("*/catalog/*",), "h", 1, 1)


@pytest.mark.parametrize(
    ("status", "flight", "workers", "parked", "due_in", "expected"),
    [
        (replace(STATUS, state=State.EXPIRED), None, [], False, None, ("", "it ended as expired")),
        (
            replace(STATUS, waits="backlog"), None, [WORKER], False, None,
            ("its tenant's turn", "shop has as many requests in work as it may"),
        ),
        (STATUS, None, [], False, 2.5, ("its next attempt, in 2.5 s", "attempt 1 failed with an error that may pass")),
        (replace(STATUS, state=State.RUNNING), FLIGHT, [], False, None, ("the derivation f", "somebody holds it")),
        (STATUS, None, [], True, None, ("a worker", f"no-producer: no live worker's patterns match {OFFERS}")),
        (STATUS, None, [WORKER], True, None, ("a worker that serves it", "the one that read it does not; another picks it up")),
        (STATUS, None, [WORKER], False, None, ("a free worker", "7 request(s) in its stream, 1 worker(s) serve it")),
    ],
)  # fmt: skip
def test_each_reason_to_wait_has_its_sentence(
    status: Status,
    flight: FlightView | None,
    workers: list[Worker],
    parked: bool,
    due_in: float | None,
    expected: tuple[str, str],
) -> None:
    assert reason_of(status, flight, workers, parked, due_in, 7) == expected


def test_the_newest_of_several_slots_come_in_order_and_no_further_than_asked(
    place: PrivateBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, inquiry = place.broker, Inquiry(place.broker.parts.redis, place.broker.parts.requests)
    other = "shop/pricing/offers"
    b.dataset(other, key=["sku"])
    asked = [b.request(dataset, target="search").id for dataset in (OFFERS, other) * 3]
    slots, reads = b.parts.index.slots(), list[int]()
    assert len(slots) == 2
    monkeypatch.setattr("broker.inquiry.PAGE", 1)
    replies = b.parts.redis.replies

    def counted(commands: Any, of: str, writes: bool = True) -> Any:
        reads.append(len(commands))
        return replies(commands, of, writes)

    monkeypatch.setattr(b.parts.redis, "replies", counted)
    found = inquiry.newest(slots)
    first = next(found)
    assert first.id.rpartition(".")[2] == max(id.rpartition(".")[2] for id in asked)
    assert reads.count(1) < len(asked)
    births = [born_at(status.id) for status in (first, *found)]
    assert len(births) == len(asked)
    assert births == sorted(births, reverse=True)


def test_what_is_outstanding_is_seen_wherever_it_lies(place: PrivateBroker) -> None:
    b, inquiry = place.broker, Inquiry(place.broker.parts.redis, place.broker.parts.requests)
    slot, redis = b.parts.index.slots()[0], b.parts.redis
    assert inquiry.outstanding(slot) == []
    id = b.request(OFFERS, target="search").id
    assert inquiry.outstanding(slot) == [OFFERS]
    redis.run("DEL", slot.requests("offers", "normal"))
    assert inquiry.outstanding(slot) == []
    redis.run("ZADD", slot.key("delayed"), 1, id)
    assert inquiry.outstanding(slot) == [OFFERS]
    redis.run("DEL", slot.key("delayed"))
    redis.run("HSET", slot.key("parked"), id, OFFERS)
    assert inquiry.outstanding(slot) == [OFFERS]
    redis.run("DEL", slot.key("parked"))
    redis.run("HSET", slot.flight("f"), "dataset", OFFERS)
    redis.run("ZADD", slot.key("lapse"), 1, "f")
    assert inquiry.outstanding(slot) == [OFFERS]
