"""`broker worker` as a process: bursts, drains, signals, its place in the registry, its log."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.cli.exits import Exit
from broker.connect import Broker, connect
from broker.errors import Transient
from broker.handle import Handle
from broker.model.request import State
from tests.cli import Cli, Shell
from tests.servers import wait_until
from workers.loop import Loop

OFFERS = "shop/catalog/offers"
APP = """
import pathlib, time, broker
app = broker.Producers()

@app.producer("shop/catalog/*")
def offers(request, since):
    here = pathlib.Path("go")
    pathlib.Path("begun").touch()
    while pathlib.Path("hold").exists() and not here.exists():
        time.sleep(0.01)
    calls = pathlib.Path("calls")
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if pathlib.Path("fail-once").exists():
        pathlib.Path("fail-once").unlink()
        raise OSError("not now")
    return broker.Snapshot([{"sku": "a"}])
"""


@pytest.fixture
def shell(redis_url: str, tmp_path: Path) -> Shell:
    (tmp_path / "shop.py").write_text(APP)
    settings = {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store"), "BROKER_BACKOFF_SECONDS": "0.3"}
    return Shell(tmp_path, settings)


@pytest.fixture
def own(shell: Shell) -> Iterator[Broker]:
    with connect(redis=shell.environment["BROKER_REDIS"], store=shell.environment["BROKER_STORE"]) as broker:
        broker.dataset(OFFERS, key=["sku"])
        yield broker


@pytest.fixture
def worker(shell: Shell, own: Broker) -> Iterator[subprocess.Popen[bytes]]:
    """One that runs in the background, with a producer that holds on until `go` exists."""
    (shell.folder / "hold").touch()
    process = shell.start("worker", "shop:app", "--name", "w1", "--drain-seconds", 20, log=shell.folder / "log")
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def begun(shell: Shell, handle: Handle) -> None:
    wait_until((shell.folder / "begun").exists, "the producer to begin")
    assert handle.status().state is State.RUNNING


# --- the age of micro-batches


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The worker's logging would stay behind in this process."""
    monkeypatch.setattr("workers.__main__.log_to_stderr", lambda _: None)
    return Cli(capsys)


@pytest.mark.parametrize(("given", "seconds"), [(["--max-age", "100ms"], 0.1), (["--max-age", "2s"], 2.0), ([], 1.0)])
def test_the_age_of_micro_batches_is_an_option_or_the_setting(
    given: list[str], seconds: float, in_process: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = list[float]()
    monkeypatch.setattr("workers.__main__.serve_batches", lambda settings, *_: served.append(settings.max_age_seconds))
    in_process.ok("worker", "--role", "microbatch", *given)
    assert served == [seconds]


@pytest.mark.parametrize("words", [["--max-age", "1s"], ["--role", "microbatch", "--max-age", "soon"]])
def test_an_age_that_is_none_or_of_another_role_is_refused(words: list[str], in_process: Cli) -> None:
    done = in_process("worker", *words)
    assert (done.code, "--max-age" in done.err) == (Exit.USAGE, True)


# --- burst


def test_a_burst_with_nothing_to_do_ends_at_once(shell: Shell, own: Broker) -> None:
    done = shell.ok("worker", "shop:app", "--burst")
    assert done.out == ""
    assert "cannot be promised: nothing refuses writers before the machine is full" in done.err
    assert not (shell.folder / "calls").exists()


def test_a_burst_answers_what_is_queued_and_what_comes_back_after_a_failure(shell: Shell, own: Broker) -> None:
    (shell.folder / "fail-once").touch()
    handles = [own.request(OFFERS, target="search") for _ in range(3)]
    done = shell.ok("worker", "shop:app", "--burst")
    assert [handle.wait(0).attempts for handle in handles] == [2, 2, 2]
    # Each request comes back after a jitter of its own: together with another, or alone.
    assert (shell.folder / "calls").read_text() in ("xx", "xxx", "xxxx")
    assert "answered=3" in done.err


def test_a_burst_leaves_alone_what_it_does_not_serve(shell: Shell, own: Broker) -> None:
    own.dataset("shop/orders/open", key=["id"])
    own.dataset("other/catalog/offers", key=["sku"])
    theirs = [own.request(name, target="search") for name in ("shop/orders/open", "other/catalog/offers")]
    mine = own.request(OFFERS, target="search")
    shell.ok("worker", "shop:app", "--burst")
    assert mine.status().state is State.COMPLETED
    assert [handle.status().state for handle in theirs] == [State.QUEUED, State.QUEUED]


# --- the application


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("nothing:app", "no such module"),
        ("shop:none", "no such attribute"),
        ("shop", "module:attribute"),
        ("none.toml", "no such file"),
        ("empty.toml", "serves nothing"),
    ],
)
def test_an_application_that_cannot_be_used_is_exit_1_with_the_reason(shell: Shell, app: str, says: str) -> None:
    (shell.folder / "empty.toml").write_text("")
    done = shell("worker", app)
    assert done.code == 1
    assert says in done.err
    assert "Traceback" not in done.err


def test_without_an_application_and_without_broker_toml_the_help_is_named(shell: Shell) -> None:
    done = shell("worker")
    assert done.code == 3
    assert "broker worker my_module:app" in done.err


# --- signals


def test_at_term_the_running_attempt_is_finished_and_nothing_new_is_begun(
    shell: Shell, own: Broker, worker: subprocess.Popen[bytes]
) -> None:
    running = own.request(OFFERS, target="search")
    begun(shell, running)
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "takes no more" in (shell.folder / "log").read_text(), "the last read to end")
    late = own.request(OFFERS, target="late")
    (shell.folder / "go").touch()
    assert worker.wait(30) == 0
    assert running.status().state is State.COMPLETED
    assert late.status().state is State.QUEUED
    assert (shell.folder / "calls").read_text() == "x"


def test_a_second_signal_ends_at_once_and_the_request_is_taken_over(
    shell: Shell, own: Broker, worker: subprocess.Popen[bytes]
) -> None:
    running = own.request(OFFERS, target="search")
    begun(shell, running)
    worker.send_signal(signal.SIGINT)
    log = shell.folder / "log"
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) in (128 + signal.SIGTERM, 128 + signal.SIGINT), log.read_text()
    assert running.status().state is State.RUNNING
    (shell.folder / "go").touch()
    shell.ok("worker", "shop:app", "--burst")
    assert running.wait(0).attempts == 2


# --- presence and log


def test_a_worker_is_in_the_registry_while_it_lives(shell: Shell, own: Broker, worker: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: bool(shell.json("status")["workers"]), "the worker to register")
    (found,) = shell.json("status")["workers"]
    assert (found["id"], found["patterns"], found["pid"]) == ("w1", ["shop/catalog/*"], worker.pid)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert shell.json("status")["workers"] == []


def test_the_log_is_one_json_object_a_line_when_asked(shell: Shell, own: Broker) -> None:
    own.request(OFFERS, target="search")
    done = shell.ok("worker", "shop:app", "--burst", "--json")
    events = [json.loads(line) for line in done.err.splitlines()]
    assert [set(event) >= {"time", "level", "event"} for event in events] == [True] * len(events)
    assert events[-2]["counts"]["answered"] == 1
    assert done.out == ""


# --- the loop itself


def test_a_duty_that_drains_goes_on_until_what_is_held_has_ended() -> None:
    loop, seen = Loop(), list[str]()
    held = [3]

    def finish_one() -> None:
        if loop.stopping.is_set():
            held[0] -= 1
        seen.append("drain")

    loop.every("intake", 0.01, lambda: seen.append("intake"))
    loop.every("outcome", 0.01, finish_one, drains=True)
    loop.run(lambda: "intake" in seen, drained=lambda: held[0] <= 0, drain_seconds=30)
    assert held[0] <= 0
    assert "intake" not in seen[-2:]


def test_a_drain_that_takes_too_long_is_ended() -> None:
    loop = Loop()
    loop.every("outcome", 0.01, lambda: None, drains=True)
    begun_at = time.monotonic()
    loop.run(lambda: True, drained=lambda: False, drain_seconds=0.1)
    assert time.monotonic() - begun_at < 5


def test_a_pass_that_fails_for_a_while_is_repeated_and_one_that_fails_for_good_ends_the_loop() -> None:
    loop, calls = Loop(), list[int]()

    def work() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise Transient("not yet")
        raise ValueError("for good")

    loop.every("duty", 0, work)
    with pytest.raises(ValueError, match="for good"):
        loop.run()
    assert len(calls) == 2
