"""Compaction and retention as duties: of a role of their own, of a plain worker, and of RQ's maintenance queue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.backend.jobs import MAINTENANCE, Jobs
from broker.connect import Broker, Dataset, connect
from broker.errors import Unavailable
from broker.model.names import DatasetId
from tests.cli import Shell
from tests.servers import wait_until
from workers.maintenance import Foreman, job_of

OFFERS = DatasetId("shop/catalog/offers")
APP = """
import broker
app = broker.Producers()

@app.producer("shop/catalog/*")
def offers(request, since):
    return broker.Unchanged() if since else broker.Snapshot([{"sku": "a"}])
"""


@pytest.fixture
def shell(redis_url: str, tmp_path: Path) -> Shell:
    (tmp_path / "shop.py").write_text(APP)
    floors = {
        "BROKER_SNAPSHOT_LEAST_BYTES": "0",
        "BROKER_CURSOR_SECONDS": "0",
        "BROKER_RETAIN_VERSIONS": "1",
        "BROKER_RETAIN_SECONDS": "0",
    }
    return Shell(tmp_path, {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store"), **floors})


@pytest.fixture
def offers(shell: Shell) -> Iterator[Dataset]:
    """A snapshot and seventeen deltas: one roll-up and one snapshot are due, and then most of it can go."""
    redis, store = shell.environment["BROKER_REDIS"], shell.environment["BROKER_STORE"]
    with connect(redis=redis, store=store, cursor_seconds=0) as b:
        made = b.dataset(OFFERS, key=["sku"])
        made.publish([{"sku": f"s{number}", "price": 0} for number in range(100)])
        for price in range(1, 18):
            made.publish_delta([{"sku": "s0", "price": price}])
        yield made


@pytest.fixture
def b(shell: Shell, offers: Dataset) -> Iterator[Broker]:
    with connect(redis=shell.environment["BROKER_REDIS"], store=shell.environment["BROKER_STORE"]) as opened:
        yield opened


def pairs(offers: Dataset) -> set[tuple[int | None, int]]:
    return {(edge.base, edge.version) for edge in offers.state.edges}


def compacted(offers: Dataset) -> bool:
    return {(None, 18)} <= pairs(offers)


def test_the_compact_role_merges_and_gives_up_in_one_burst(shell: Shell, offers: Dataset) -> None:
    before = sorted(map(str, offers.read().to_pylist()))
    done = shell.ok("worker", "--role", "compact", "--burst")
    assert "roll_ups=1 snapshots=1" in done.err
    assert "given up: retired=" in done.err
    assert {(None, 18)} <= pairs(offers) <= {(None, 18), (17, 18)}
    assert sorted(map(str, offers.read().to_pylist())) == before
    assert "compacted" not in shell.ok("worker", "--role", "compact", "--burst").err


@pytest.mark.parametrize("words", [("shop:app",), ("--role", "compact")], ids=["plain", "compact"])
def test_a_worker_keeps_roads_short_beside_its_work(shell: Shell, offers: Dataset, words: tuple[str, ...]) -> None:
    process = shell.start("worker", *words, log=shell.folder / "log")
    try:
        wait_until(lambda: compacted(offers), "a fresh snapshot", seconds=60)
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_leader_has_rq_workers_do_it_once(shell: Shell, offers: Dataset, b: Broker) -> None:
    jobs = Jobs.open(b.parts.settings.redis)
    for _ in range(2):
        foreman = Foreman(b.parts, jobs)
        foreman.compact()
        foreman.compact()
    ids = jobs._queue(MAINTENANCE).get_job_ids()
    assert len(ids) == 1
    done = shell("worker", "shop:app", "--role", "parts", "--burst")
    assert done.code == 0, done.err
    assert compacted(offers)
    edges = len(offers.state.edges)
    foreman = Foreman(b.parts, jobs)
    foreman.compact()
    assert jobs._queue(MAINTENANCE).get_job_ids() == []
    foreman.retain()
    assert len(jobs._queue(MAINTENANCE).get_job_ids()) == 1
    shell.ok("worker", "shop:app", "--role", "parts", "--burst")
    assert len(offers.state.edges) < edges
    jobs.close()


def test_what_could_not_be_handed_over_or_came_to_nothing_is_handed_over_again(
    b: Broker, offers: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, compactor, now = Jobs.open(b.parts.settings.redis), b.parts.compactor, [time.time()]
    foreman, enqueue = Foreman(b.parts, jobs), jobs.enqueue
    monkeypatch.setattr("broker.compactor.time.time", lambda: now[0])

    def away(*_: object) -> None:
        raise Unavailable("RQ's Redis does not answer")

    monkeypatch.setattr(jobs, "enqueue", away)
    with pytest.raises(Unavailable):
        foreman.compact()
    monkeypatch.setattr(jobs, "enqueue", enqueue)
    foreman.compact()
    assert len(jobs._queue(MAINTENANCE).get_job_ids()) == 1
    assert list(compactor.due()) == []
    now[0] += 3600
    assert [dataset for dataset, _ in compactor.due()] == [OFFERS], "nobody did it"
    for _ in compactor.compact(OFFERS):
        pass
    assert list(compactor.due()) == []
    now[0] += 3600
    assert list(compactor.due()) == []
    jobs.close()


def test_two_processes_that_compact_at_once_make_each_edge_once(shell: Shell, offers: Dataset) -> None:
    folder = shell.folder
    running = [shell.start("worker", "--role", "compact", "--burst", log=folder / f"log{number}") for number in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert compacted(offers)
    kinds = [json.loads(record)["body"]["kind"] for record in offers._parts.catalog.records(OFFERS)]
    assert kinds.count("edge") == 2


def test_the_id_of_a_job_is_the_same_for_all_who_ask_and_another_for_each_dataset_state_and_hour() -> None:
    id = job_of("compact", OFFERS, 7, 3600.0)
    assert id == job_of("compact", OFFERS, 7, 7199.0)
    alike = DatasetId("shop/catalog/offers.x"), DatasetId("shop/catalog/offers_x")
    others = [("retain", OFFERS, 7, 3600.0), ("compact", OFFERS, 8, 3600.0), ("compact", OFFERS, 7, 7200.0)]
    others += [("compact", dataset, 7, 3600.0) for dataset in alike]
    assert len({id, *(job_of(*other) for other in others)}) == 6
