"""listen and subs: what a shell sees of events and of those who read."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

import broker
from broker.errors import Unavailable
from broker.events_listening import Heard
from broker.sinks import Memory
from tests.cli import Cli, Shell
from tests.told import check_event

OFFERS = "shop/catalog/offers"


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path) as opened:
        publish(opened, 1)
        yield opened


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], redis_url: str, tmp_path: Path) -> Cli:
    return Cli(capfd, "--redis", redis_url, "--home", str(tmp_path))


def publish(b: broker.Broker, price: int) -> None:
    b.dataset(OFFERS, key=["sku"]).publish_delta(pa.table({"sku": ["a"], "price": [price]}))


def test_listen_prints_envelopes_and_a_cursor_goes_on(b: broker.Broker, cli: Cli) -> None:
    words = ("listen", "shop/catalog/*", "--cursor", "search", "--timeout", "0.1")
    (line,) = cli.ok(*words, "--json").lines
    event = json.loads(line)
    check_event(event)
    assert (event["type"], event["data"]["version"], event["data"]["present"]) == ("broker.dataset.published", 1, True)
    publish(b, 2)
    publish(b, 3)
    assert "version=2" in cli.ok(*words, "--limit", 1).out
    assert "version=3" in cli.ok(*words).out
    assert cli.ok(*words).out == ""


def test_listen_goes_on_when_redis_is_silent_while_an_event_is_handled(
    b: broker.Broker, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(b, 2)
    ack = Heard.ack

    def unheard(heard: Heard) -> None:
        monkeypatch.undo()
        ack(heard)
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(Heard, "ack", unheard)
    b.dataset("shop/catalog/prices", key=["sku"]).publish([{"sku": "a"}])
    words = ("listen", "shop/catalog/*", "--cursor", "search", "--timeout", "0.1")
    assert len(cli.ok(*words).lines) == 2
    assert cli.ok(*words).out == ""


def test_listen_exec_gives_the_event_on_stdin_and_a_failure_leaves_it_for_the_next(
    b: broker.Broker, cli: Cli, tmp_path: Path
) -> None:
    file, words = tmp_path / "event.json", ("listen", "--cursor", "search", "--timeout", "0.1")
    failed = cli(*words, "--exec", "false")
    assert (failed.code, "ended with 1" in failed.err) == (1, True)
    cli.ok(*words, "--exec", f"tee {file}")
    assert file.read_text().endswith("}\n")  # a shell's `read` takes a line
    assert json.loads(file.read_text())["subject"] == OFFERS
    assert cli.ok(*words).out == ""
    publish(b, 2)
    assert cli(*words, "--exec", "no-such-program").code == 1
    assert cli(*words, "--exec", "'").code == 2


def test_what_a_killed_listener_had_not_done_comes_to_the_next_one_under_its_cursor(
    b: broker.Broker, redis_url: str, tmp_path: Path
) -> None:
    shell = Shell(tmp_path, {"BROKER_REDIS": redis_url, "BROKER_HOME": str(tmp_path), "BROKER_LEASE_SECONDS": "1"})
    words = ("listen", "shop/*/*", "--cursor", "search", "--json")
    killed = shell(*words, "--exec", "sh -c 'kill -9 $PPID'")
    assert killed.code == -signal.SIGKILL
    taken = shell.ok(*words, "--limit", 1)  # without a time limit it waits for the lease
    assert taken.out == killed.out
    publish(b, 2)
    assert json.loads(shell.ok(*words, "--limit", 1).out)["data"]["version"] == 2


def test_listen_refuses_what_does_not_exist(b: broker.Broker, cli: Cli) -> None:
    assert cli("listen", "--type", "explode").code == 2
    assert cli("listen", "not-a-pattern").code == 2
    listening = b.events(cursor="search").listen(5)
    next(listening)
    assert cli("listen", "--cursor", "search", "--timeout", "0").code == 4
    listening.close()  # type: ignore[attr-defined]


def test_of_two_listeners_under_one_cursor_the_second_waits(
    b: broker.Broker, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, naps = b.events(cursor="search").listen(5), list[float]()
    next(first)

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            first.close()  # type: ignore[attr-defined]

    monkeypatch.setattr("broker.cli.listen.time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    second = cli("listen", "--cursor", "search", "--timeout", "30", "--limit", 1)
    assert (second.code, len(second.out.splitlines()), len(naps)) == (0, 1, 3)
    assert second.err.count("waiting: ") == second.err.count("somebody else listens under this cursor [search]") == 1


def test_an_end_of_a_type_that_several_have_means_all_of_them(b: broker.Broker, cli: Cli) -> None:
    words = ("listen", "--cursor", "resets", "--type", "reset", "--timeout", "0.1", "--json")
    assert cli.ok(*words).out == ""
    sink = Memory()
    b.replica(OFFERS, name="search", sink=sink).sync()
    b.replica(OFFERS, name="search", sink=sink, where="price > 0").sync()
    b.dataset(OFFERS).drop()
    publish(b, 1)
    types = [json.loads(line)["type"] for line in cli.ok(*words).lines]
    assert types == ["broker.replica.reset", "broker.dataset.reset"]


def test_subs_list_lag_show_and_reset(b: broker.Broker, cli: Cli) -> None:
    assert cli.json("subs", "list") == []
    b.replica(OFFERS, name="search", sink=Memory(), where="price > 0").sync()
    publish(b, 2)
    publish(b, 3)
    b.replica(OFFERS, name="ads", sink=Memory()).sync()
    listed = cli.json("subs", "list", "shop/*")
    assert [(one["name"], one["version"], one["versions"], one["live"]) for one in listed] == [
        ("ads", 3, 0, True), ("search", 1, 2, True)
    ]  # fmt: skip
    behind = cli.json("subs", "lag", OFFERS)
    assert [one["name"] for one in behind] == ["search", "ads"]
    assert behind[0]["bytes"] > 0
    assert behind[0]["seconds"] > 0
    shown = cli.json("subs", "show", OFFERS, "search")
    assert (shown["where"], shown["receipt"]["version"], shown["receipt"]["rows"]) == ('"price" > 0', 1, 1)
    assert "search" in cli.ok("subs", "list").out
    assert cli.json("subs", "reset", OFFERS, "search")["forgotten"]
    assert [one["name"] for one in cli.json("subs", "list")] == ["ads"]
    assert cli("subs", "reset", OFFERS, "search").code == 3
    assert cli("subs", "show", "shop/catalog/none", "search").code == 3
