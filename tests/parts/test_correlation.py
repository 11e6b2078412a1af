"""One id from a request or a block to the receipt, in the lines of the log, the events and the records."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.connect import Broker, connect
from broker.model.names import DatasetId
from broker.rules.correlation import correlation_of
from broker.rules.fold import State
from broker.sinks.memory import Memory
from tests.cli import Shell

OFFERS = "shop/catalog/offers"
APP = """
import broker
app = broker.Producers()

@app.producer("shop/catalog/offers")
def offers(request, since):
    return broker.Snapshot([{"sku": "a"}])

@app.producer("shop/catalog/broken")
def broken(request, since):
    raise broker.errors.BadData("rotten")
"""


@pytest.fixture
def shell(redis_url: str, tmp_path: Path) -> Shell:
    (tmp_path / "shop.py").write_text(APP)
    return Shell(tmp_path, {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store")})


@pytest.fixture
def b(shell: Shell) -> Iterator[Broker]:
    with connect(redis=shell.environment["BROKER_REDIS"], store=shell.environment["BROKER_STORE"]) as broker:
        broker.dataset(OFFERS, key=["sku"])
        yield broker


def lines(text: str, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def applied(b: Broker, caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """The line of a replica that came up."""
    caplog.set_level(logging.DEBUG, "broker")
    report = b.replica(OFFERS, name="app", sink=Memory()).sync()
    (record,) = [record for record in caplog.records if record.message == "applied"]
    assert report.correlation == record.correlation  # type: ignore[attr-defined]
    return {name: getattr(record, name) for name in ("correlation", "dataset", "version", "replica", "rows")}


def events(b: Broker) -> list[dict[str, Any]]:
    found = b.parts.redis.run("XRANGE", b.parts.index.slot(DatasetId(OFFERS)).events, "-", "+")
    return [json.loads(fields[1]) for _, fields in found]


def test_a_request_is_followed_to_the_receipt(b: Broker, shell: Shell, caplog: pytest.LogCaptureFixture) -> None:
    asked = b.request(OFFERS, target="search")
    log = shell.ok("worker", "shop:app", "--burst", "--json").err
    (claimed,), (answered,) = lines(log, "claimed"), lines(log, "answered")
    assert answered["requests"] == [asked.id]
    one = answered["correlation"]
    assert one == claimed["correlation"] == claimed["flight"] == answered["flight"]
    assert (answered["dataset"], answered["version"]) == (OFFERS, 1)
    assert [event["correlationid"] for event in events(b) if event["type"] == "broker.dataset.published"] == [one]
    assert applied(b, caplog) == {"correlation": one, "dataset": OFFERS, "version": 1, "replica": "app", "rows": 1}


def test_an_answer_without_a_production_names_what_made_the_version(b: Broker, shell: Shell) -> None:
    made = b.dataset(OFFERS).publish([{"sku": "a", "price": 1}])
    asked = b.request(OFFERS, target="search", columns=["sku"], max_staleness=3600)
    log = shell.ok("worker", "shop:app", "--burst", "--json").err
    (answered,) = lines(log, "answered")
    assert answered["requests"] == [asked.id]
    assert answered["correlation"] == b.dataset(OFFERS).state.info(made.version).production != answered["flight"]


def test_a_failure_names_its_flight_and_its_requests(b: Broker, shell: Shell) -> None:
    b.dataset("shop/catalog/broken", key=["sku"])
    asked = b.request("shop/catalog/broken", target="search")
    log = shell.ok("worker", "shop:app", "--burst", "--json").err
    (claimed,), (failed,) = lines(log, "claimed"), lines(log, "failed")
    assert (failed["correlation"], failed["requests"]) == (claimed["correlation"], [asked.id])
    assert "rotten" in failed["failure"]["what"] + failed["failure"]["why"]


def test_a_block_is_followed_to_the_receipt(b: Broker, shell: Shell, caplog: pytest.LogCaptureFixture) -> None:
    ack = b.dataset(OFFERS).changelog.append([{"sku": "a"}, {"sku": "b"}], producer="pim", block=1)
    log = shell.ok("worker", "--role", "microbatch", "--burst", "--json").err
    sealed = lines(log, "sealed")
    one = sealed[-1]["correlation"]
    assert sealed[-1]["blocks"] == {"pim": ack.block}
    assert sum(line["rows"] for line in sealed) == 2
    assert one in [event["id"] for event in events(b)]
    assert (applied(b, caplog)["correlation"], sealed[-1]["version"]) == (one, b.dataset(OFFERS).state.version)


def test_people_are_not_shown_a_line_for_each_flight(b: Broker, shell: Shell) -> None:
    b.request(OFFERS, target="search")
    assert "claimed=1" in (log := shell.ok("worker", "shop:app", "--burst").err)
    assert not [line for line in log.splitlines() if line.endswith(("claimed", "answered"))]


def test_a_version_nobody_knows_has_no_correlation() -> None:
    assert correlation_of(State(OFFERS), 7) == ""
