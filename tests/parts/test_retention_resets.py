"""Who lives, and loses its road to the byte rule, is named before the road goes: in the report, the log, and an event."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import broker
from broker.backend.jobs import Jobs
from broker.cursors import Cursors, LiveCursor
from broker.errors import Unavailable
from broker.model.commit import Body, Edge, NewEdge
from broker.model.names import DatasetId
from broker.retention import Retention
from broker.rules.fold import State
from broker.rules.retention import Floors
from tests.cli import Shell
from workers.maintenance import Foreman, Maintenance

OFFERS = DatasetId("shop/catalog/offers")
SETTINGS: dict[str, Any] = {"cursor_seconds": 0, "retain_versions": 1, "retain_seconds": 0, "snapshot_least_bytes": 1 << 40}
"""Everybody is known at once; no floor; compaction adds nothing."""
APP = """
import broker
app = broker.Producers()

@app.producer("shop/catalog/*")
def offers(request, since):
    return broker.Unchanged()
"""


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store"), **SETTINGS) as opened:
        outgrown(opened)
        yield opened


def outgrown(b: broker.Broker) -> None:
    """`near` stands at 3, `far` at 1 with a roll-up of its own: each road costs less than the snapshot, both together more."""
    offers = b.dataset(OFFERS, key=["sku"])
    offers.publish([{"sku": f"s{number}", "at": 0} for number in range(50)])
    for at in range(1, 5):
        offers.publish_delta([{"sku": "s0", "at": at}])
    file = offers.state.edges[0].files[0]
    total = sum(edge.bytes for edge in offers.state.edges if edge.base is not None)
    for base, size in ((None, total), (1, total - 1)):
        edge = Edge(base=base, version=5, files=(file.model_copy(update={"bytes": size}),))

        def added(state: State, edge: Edge = edge) -> Body | None:
            return None if state.edge(edge.base, edge.version) else NewEdge(edge=edge)

        b.parts.catalog.commit(OFFERS, added, "test")
    stand(b, near=3, far=1)


def stand(b: broker.Broker, channel: str = "live", **versions: int) -> None:
    """Consumers that live for a minute."""
    session = b.parts.catalog.state(OFFERS).session
    for name, version in versions.items():
        cursor = LiveCursor(name=name, version=version, session=session, channel=channel)
        Cursors(b.parts.redis, b.parts.index, 60).report(OFFERS, cursor)


def lagging(b: broker.Broker) -> list[dict[str, Any]]:
    wanted = b.parts.redis.run("XRANGE", b.parts.index.slot(OFFERS).events, "-", "+", writes=False)
    found = [broker.Event.model_validate_json(fields[1]) for _, fields in wanted]
    return [event.data for event in found if event.type == "broker.replica.lagging"]


def test_the_report_names_them(b: broker.Broker) -> None:
    report = b.parts.retention.run_once()
    assert (report.resets, report.failed) == ({OFFERS: ("far",)}, {})
    offers = b.dataset(OFFERS)
    assert (offers.plan(since=1).reset, offers.plan(since=3).reset) == ("too-old", None)
    assert b.parts.retention.run_once().resets == {}
    assert lagging(b) == [], "a report alone tells nobody else"


def test_the_duty_tells_and_logs_each_of_them_once_for_a_version_held(
    b: broker.Broker, caplog: pytest.LogCaptureFixture
) -> None:
    state = b.parts.catalog.state(OFFERS)
    Maintenance(b.parts).retain()
    assert b.dataset(OFFERS).plan(since=1).reset == "too-old"
    (event,) = lagging(b)
    assert (event["replica"], event["held"], event["version"], event["versions"]) == ("far", 1, 5, 4)
    assert [record.levelno for record in caplog.records if "a snapshot is theirs: far" in record.message] == [logging.WARNING]
    Maintenance(b.parts).retain()
    b.parts.audits.tell_resets(state, ["far"])
    assert len(lagging(b)) == 1
    stand(b, far=2)
    b.parts.audits.tell_resets(state, ["far"])
    assert [event["held"] for event in lagging(b)] == [1, 2]
    assert caplog.text.count("a snapshot is theirs: far") == 2


def test_who_is_where_its_channel_is_lags_behind_the_newest_version(b: broker.Broker) -> None:
    b.dataset(OFFERS).promote(1, to="production")
    stand(b, "production", far=1)
    b.parts.audits.tell_resets(b.parts.catalog.state(OFFERS), ["far"])
    (event,) = lagging(b)
    assert (event["channel"], event["held"], event["version"], event["versions"]) == ("production", 1, 5, 4)


def test_a_road_stays_while_nobody_can_be_told_that_it_goes(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    duty = Maintenance(b.parts)
    emit, silent = b.parts.events.emit, [Unavailable("redis does not answer")]

    def emitting(*given: Any, **named: Any) -> bool:
        if silent:
            raise silent.pop()
        return emit(*given, **named)

    monkeypatch.setattr(b.parts.events, "emit", emitting)
    duty.retain()
    assert b.dataset(OFFERS).plan(since=1).reset is None
    assert lagging(b) == []
    duty.retain()
    assert b.dataset(OFFERS).plan(since=1).reset == "too-old"
    assert [event["replica"] for event in lagging(b)] == ["far"]


def test_retention_without_anybody_to_tell_works_as_well(b: broker.Broker) -> None:
    parts = b.parts
    cursors = Cursors(parts.redis, parts.index, 0)
    plan = Retention(parts.catalog, parts.index, parts.leases, cursors, Floors(1, 0)).apply(OFFERS)
    assert plan is not None
    assert plan.resets == ("far",)


@pytest.mark.parametrize("way", ["compact role", "RQ"])
def test_a_worker_names_them(b: broker.Broker, redis_url: str, tmp_path: Path, way: str) -> None:
    (tmp_path / "shop.py").write_text(APP)
    given = {f"BROKER_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    shell = Shell(tmp_path, {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store"), **given})
    if way == "RQ":
        jobs = Jobs.open(redis_url)
        Foreman(b.parts, jobs).retain()
        jobs.close()
    words = ("shop:app", "--role", "parts") if way == "RQ" else ("--role", "compact")
    done = shell.ok("worker", *words, "--burst")
    assert "a snapshot is theirs: far" in done.err
    assert [event["replica"] for event in lagging(b)] == ["far"]
