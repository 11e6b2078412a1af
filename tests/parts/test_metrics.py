"""metrics and top: what they say is what was done, on a real Redis; the text is one that a Prometheus parser takes."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker
from broker.backend.logs import Logged
from broker.cli.top import seen
from broker.connect import Broker
from broker.cursors import Cursors, LiveCursor
from broker.gauges import CursorGauge, DatasetGauge, Gauges, LogGauge
from broker.metrics import METRICS, metrics, render
from broker.model.names import DatasetId
from tests.cli import Cli
from tests.servers import redis_server
from workers.batching import Batching

OFFERS = DatasetId("shop/catalog/offers")
LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (-?\d+(?:\.\d+)?)$')


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[Broker]:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def cli(redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))


def parsed(text: str) -> dict[str, float]:
    """Sample -> value. Every family has its help and type, directly before its samples."""
    found, family, lines = dict[str, float](), "", text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert following == f"# TYPE {family} {METRICS[family].kind}"
        elif not line.startswith("# TYPE "):
            sample = LINE.match(line)
            assert sample, line
            assert sample[1] == family
            found[line.rpartition(" ")[0]] = float(sample[3])
    return found


def test_what_was_done_is_what_is_counted(b: Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": "a", "price": 1}])
    offers.publish_delta([{"sku": "b", "price": 2}])
    b.dataset("shop/catalog/logged", key=["sku"]).changelog.append([{"sku": f"s{n}", "price": n} for n in range(40)])
    b.request(OFFERS, target="search")
    b.request(OFFERS, target="search", priority="low")
    Cursors(b.parts.redis, b.parts.index, 60).report(OFFERS, LiveCursor(name="app", version=1, session=offers.state.session))
    found = parsed(metrics(b))
    here = f'{{dataset="{OFFERS}"}}'
    assert found[f"broker_dataset_version{here}"] == 2
    assert found[f"broker_dataset_edges{here}"] == 2
    assert found[f"broker_dataset_bytes{here}"] == sum(edge.bytes for edge in offers.state.edges)
    assert found['broker_queue_requests{slot="catalog.0",dataset_name="offers",priority="normal"}'] == 1
    assert found['broker_queue_requests{slot="catalog.0",dataset_name="offers",priority="low"}'] == 1
    assert 0 <= found['broker_queue_oldest_seconds{slot="catalog.0",dataset_name="offers",priority="low"}'] < 60
    assert found['broker_requests_unanswered{slot="catalog.0",target="search"}'] == 2
    assert found[f'broker_cursor_lag_versions{{dataset="{OFFERS}",cursor="app"}}'] == 1
    assert found[f'broker_cursor_lag_seconds{{dataset="{OFFERS}",cursor="app"}}'] > 0
    logged = [value for name, value in found.items() if name.startswith("broker_log_unbatched_rows{")]
    assert (len(logged), sum(logged)) == (4, 40)
    assert max(value for name, value in found.items() if name.startswith("broker_log_oldest_seconds")) > 0
    assert found['broker_redis_used_bytes{server="0"}'] > 100_000
    assert all(name.endswith("_total") == (metric.kind == "counter") for name, metric in METRICS.items())


def test_channels_holds_schedules_and_who_makes_micro_batches_are_counted(b: Broker, cli: Cli) -> None:
    offers = b.dataset(OFFERS, key=["sku"])
    for price in (1, 2, 3):
        offers.publish([{"sku": "a", "price": price}])
    offers.promote(2, to="production")
    offers.hold(version=1, why="audit")
    offers.hold(version=2, why="audit", until=time.time() + 3600)
    offers.release_hold("v1")
    cli.ok("schedule", "add", "nightly", "30 2 * * *", OFFERS, "--target", "search")
    ledger = Cursors(b.parts.redis, b.parts.index, 60)
    ledger.report(OFFERS, LiveCursor(name="app", version=2, session=offers.state.session, channel="production"))
    ledger.report(OFFERS, LiveCursor(name="late", version=1, session=offers.state.session, channel="production"))
    batching = Batching(b.parts, "b1")
    batching.keep()
    found, here = parsed(metrics(b)), f'{{dataset="{OFFERS}"}}'
    assert found[f'broker_channel_version{{dataset="{OFFERS}",channel="production"}}'] == 2
    assert found[f"broker_dataset_holds{here}"] == 1
    assert [found[f'broker_{name}{{slot="catalog.0"}}'] for name in ("schedules", "batchers", "workers")] == [1, 1, 1]
    assert found['broker_log_slot_served{slot="catalog.0",log_slot="3"}'] == 1
    lags = [found[f'broker_cursor_lag_versions{{dataset="{OFFERS}",cursor="{name}"}}'] for name in ("app", "late")]
    assert lags == [0, 1]
    assert 0 < found[f'broker_cursor_left_seconds{{dataset="{OFFERS}",cursor="app"}}'] <= 60
    batching.close()
    assert parsed(metrics(b))['broker_log_slot_served{slot="catalog.0",log_slot="3"}'] == 0


def test_an_empty_redis_has_all_families_and_a_dropped_dataset_none(b: Broker) -> None:
    assert parsed(metrics(b)).keys() == {
        f'broker_redis_{name}{{server="0"}}' for name in ("used_bytes", "max_bytes", "clients", "commands_total")
    }
    b.dataset(OFFERS, key=["sku"]).publish([{"sku": "a"}])
    b.dataset(OFFERS).drop()
    assert not [name for name in parsed(metrics(b)) if name.startswith("broker_dataset")]


def test_a_label_may_hold_anything() -> None:
    cursor = CursorGauge('a"b\\c\nd', 1, 0, 0.5, live=True)
    found = parsed(render(Gauges(0, (), (DatasetGauge(OFFERS, 1, 2, 0, 1, 10, (), (cursor,)),), ())))
    assert found[f'broker_cursor_lag_seconds{{dataset="{OFFERS}",cursor="a\\"b\\\\c\\nd"}}'] == 0.5


def test_looking_makes_no_consumer_forgotten(b: Broker) -> None:
    session = b.dataset(OFFERS, key=["sku"]).state.session
    ledger = Cursors(b.parts.redis, b.parts.index, 0)
    ledger.report(OFFERS, LiveCursor(name="gone", version=0, session=session))
    assert parsed(metrics(b))[f'broker_cursor_live{{dataset="{OFFERS}",cursor="gone"}}'] == 0
    assert b.parts.redis.run("HLEN", b.parts.index.slot(OFFERS).cursors(OFFERS)) == 1


def gauges(at: float, version: int, rows: int, released: int, behind: int) -> Gauges:
    log = LogGauge(0, Logged(rows * 10, rows, released * 10, released), 1.5)
    cursors = (CursorGauge("a", 1, behind, 7.0, live=True), CursorGauge("dead", 1, 99, 99.0, live=False))
    return Gauges(at, (), (DatasetGauge(OFFERS, version, version, 0, 1, 10, (log,), cursors),), ())


def test_rates_are_differences_over_the_time_between() -> None:
    row = seen(gauges(100, 3, 1000, 500, 0), gauges(102, 7, 1600, 1500, 2))["datasets"][0]
    assert (row["versions_per_second"], row["appended_per_second"], row["batched_per_second"]) == (2, 300, 500)
    assert (row["waiting_rows"], row["oldest_seconds"]) == (100, 1.5)
    assert (row["behind_versions"], row["lag_seconds"], row["cursors"]) == (2, 7.0, 1)  # the dead one is nobody's lag


def test_the_command_line_prints_metrics_and_one_shot_of_top(b: Broker, cli: Cli) -> None:
    b.dataset(OFFERS, key=["sku"]).publish([{"sku": "a"}])
    b.request(OFFERS, target="search")
    assert f'broker_dataset_version{{dataset="{OFFERS}"}}' in parsed(cli.ok("metrics").out)
    assert {"name": "broker_dataset_version", "value": 1, "labels": {"dataset": OFFERS}} in cli.json("metrics")
    value = cli.json("top", "--interval", 0.1)
    assert value["datasets"][0] | {"version": 1, "queued": 1} == value["datasets"][0]
    assert value["datasets"][0]["oldest_request_seconds"] > 0
    shown = cli.ok("top", "--interval", 0.1).lines
    assert shown[0].startswith("queued 1  flights 0")
    assert shown[3].split()[:2] == [OFFERS, "1"]


def test_top_on_a_terminal_draws_until_it_is_told_to_stop(b: Broker, redis_url: str, tmp_path: Path) -> None:
    b.dataset(OFFERS, key=["sku"]).publish([{"sku": "a"}])
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "broker.cli",
        "top",
        "--interval",
        "0.1",
        "--redis",
        redis_url,
        "--store",
        str(tmp_path / "store"),
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    os.close(theirs)
    drawn = b""
    while drawn.count(OFFERS.encode()) < 2:  # drawn anew; the test's own time limit ends a wait in vain
        drawn += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    os.close(ours)
    assert (process.returncode, errors.strip()) == (0, b"")


def test_a_redis_that_is_gone_is_named_by_the_exit_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with redis_server() as server:
        url = server.url
    cli = Cli(capsys, "--redis", url, "--store", str(tmp_path / "store"))
    assert [cli("metrics").code, cli("top").code] == [6, 6]
