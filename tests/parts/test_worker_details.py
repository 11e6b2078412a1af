"""What a worker process does besides its work: which streams it reads, what it tells of its attempts, what it survives."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import redis

import broker
from broker.backend.client import Entry
from broker.backend.keys import Slot
from broker.errors import Corrupt, NotFound, Unavailable
from broker.flights import Claimed, Due, Flight
from broker.model.commit import Fence
from broker.model.names import DatasetId
from broker.model.request import State
from broker.parts import Parts, insisted_parts
from broker.settings import load
from tests.servers import Process, free_port, redis_server, require, temporary_folder, wait_until
from workers.__main__ import Options, run
from workers.child import flight_to_json
from workers.loop import Loop
from workers.producing import Producing
from workers.roles import add_producing
from workers.supervisor import Supervisor

OFFERS, PRICES = DatasetId("goodstuff_01/catalog/offers"), DatasetId("goodstuff_01/pricing/offers")


def serving() -> broker.Producers:
    """An application that serves every dataset."""
    app = broker.Producers()
    app.add("*/*/*", lambda _request, _since: broker.Unchanged())
    return app


@contextmanager
def role(b: broker.Broker, app: broker.Producers | None = None) -> Iterator[Producing]:
    """A producer role without children: what it claims, it holds."""
    supervisor = Supervisor(b.parts.settings, "unused", 0)
    found = Producing(b.parts, serving() if app is None else app, supervisor)
    try:
        yield found
    finally:
        found.close()
        supervisor.stop()


@pytest.fixture
def b(redis_url: str) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, store="memory://") as connected:
        yield connected


@contextmanager
def cluster(port: int) -> Iterator[str]:
    """URL of a Redis cluster of one node, which refuses commands over several slots like any other."""
    program = require("redis-server", "apt-get install redis-server")
    with temporary_folder("cluster") as folder:
        server = Process(
            [
                program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
                "--cluster-enabled", "yes", "--save", "", "--maxmemory-policy", "noeviction",
            ],
            folder / "log",
        )  # fmt: skip
        server.start()
        try:
            with redis.Redis(port=port) as client:
                wait_until(lambda: listens(port), "redis-server of a cluster")
                client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
                wait_until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), "the cluster")
            yield f"redis+cluster://127.0.0.1:{port}"
        finally:
            server.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- the streams it reads


def test_a_worker_reads_the_streams_of_several_slots_of_a_cluster() -> None:
    with cluster(free_port()) as url, broker.connect(redis=url, store="memory://") as b, role(b) as worker:
        for dataset in (OFFERS, PRICES):
            b.dataset(dataset, key="sku")
            b.request(dataset, target="search")
        while worker.busy < 2:
            worker.intake(0.2)
        assert flights(worker) == {OFFERS, PRICES}


def test_a_worker_whose_slots_redis_forgot_asks_no_more_for_their_streams(b: broker.Broker) -> None:
    with role(b) as worker:
        b.dataset(OFFERS, key="sku")
        worker.intake(0.01)
        b.parts.redis.run("FLUSHALL")
        worker.intake(0.01)
        asked = reads(b)
        worker.intake(0.01)
        worker.intake(0.01)
        assert reads(b) == asked


def reads(b: broker.Broker) -> int:
    """How often this Redis was asked for entries."""
    return int(b.parts.redis.commands.info("commandstats").get("cmdstat_xreadgroup", {"calls": 0})["calls"])


def flights(worker: Producing) -> set[DatasetId]:
    return {held.flight.dataset for held in worker._held.values()}


def test_children_that_start_while_their_redis_is_away_wait_for_it() -> None:
    port = free_port()
    settings = load(redis=f"redis+cluster://127.0.0.1:{port}", store="memory://")
    with socket.create_server(("127.0.0.1", port)) as silent:
        supervisor = Supervisor(settings, "tests.faults.bad_app:app", 1)
        silent.accept()[0].close()  # the child asked, and got no answer
    try:
        with cluster(port):
            flight = Flight("f", OFFERS, "produce", "me", Fence(1, 1), 1)
            assert supervisor.run(flight, {"do": "produce", "flight": flight_to_json(flight), "since": None})
            while not (ended := supervisor.wait(0.5)):
                pass
            assert isinstance(ended[0].error, NotFound)
    finally:
        supervisor.stop()


# --- one dataset's fault


def test_a_request_that_cannot_be_claimed_leaves_the_others_to_be_claimed(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    b.dataset(OFFERS, key="sku")
    bad, _ = b.request(OFFERS, target="bad"), b.request(OFFERS, target="good")
    claim = b.parts.requests.claim

    def failing(slot: Slot, worker: str, entries: Sequence[Entry]) -> Claimed:
        if any(entry.fields[b"r"].decode() == bad.id for entry in entries):
            raise Corrupt("damaged", of=bad.id)
        return claim(slot, worker, entries)

    monkeypatch.setattr(b.parts.requests, "claim", failing)
    with role(b) as worker:
        worker.intake(0.2)
        assert flights(worker) == {OFFERS}
    assert bad.id in caplog.text


def test_a_slot_that_cannot_be_watched_leaves_the_others_to_be_watched(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for dataset in (OFFERS, PRICES):
        b.dataset(dataset, key="sku")
    tick, watched = b.parts.requests.tick, list[str]()

    def failing(slot: Slot) -> Due:
        watched.append(slot.name)
        if slot.name == b.parts.index.slot(OFFERS).name:
            raise Corrupt("damaged", of=slot.name)
        return tick(slot)

    monkeypatch.setattr(b.parts.requests, "tick", failing)
    with role(b) as worker:
        worker.intake(0.01)
        worker.watch()
    assert len(watched) == 2
    assert "damaged" in caplog.text


def test_a_deadline_passes_also_where_nobody_serves_anything(b: broker.Broker) -> None:
    b.dataset(PRICES, key="sku")
    handle = b.request(PRICES, target="search", deadline=0.001)
    with role(b, broker.Producers()) as worker:
        worker.intake(0.01)
        while handle.status().state is not State.EXPIRED:
            worker.watch()


# --- progress


def test_a_request_shows_how_many_rows_its_production_has_written(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELLING_FILE", str(tmp_path / "go"))
    with broker.connect(redis=redis_url, store=str(tmp_path / "store"), lease_seconds=1.0) as b:
        b.dataset(OFFERS, key="sku")
        supervisor = Supervisor(b.parts.settings, "tests.telling_app:app", 1)
        worker, loop = Producing(b.parts, serving(), supervisor), Loop()
        add_producing(loop, worker, b.parts.settings.lease_seconds)
        running = Thread(target=loop.run, name="worker")
        running.start()
        try:
            handle = b.request(OFFERS, target="search")
            wait_until(lambda: handle.status().progress.get("rows") == 3, "the first rows")
            (tmp_path / "go").touch()
            assert handle.wait(30).rows == 4
        finally:
            loop.stopping.set()
            running.join()
            supervisor.stop()


# --- a Redis that is not there yet


def test_a_process_that_starts_by_itself_waits_for_its_redis(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server() as server:
        server.kill()
        settings = load(redis=server.url, store=str(tmp_path))

        def started(pause: float) -> None:
            del pause
            server.start()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("broker.hands.time", SimpleNamespace(sleep=started))
            insisted_parts(settings).close()
    assert "again in" in caplog.text


def test_a_worker_begins_although_redis_is_away_when_it_asks_what_cannot_be_promised(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, caveats = iter([Unavailable("Redis does not answer")]), Parts.caveats

    def first_away(parts: Parts) -> list[str]:
        for error in away:
            raise error
        return caveats(parts)

    monkeypatch.setattr(Parts, "caveats", first_away)
    monkeypatch.setattr(Loop, "handle_signals", lambda _loop: None)  # they are this process's, which runs other tests, too
    run(b.parts, serving(), Supervisor(b.parts.settings, "unused", 0), Options(None, 0, burst=True, drain_seconds=1))
    assert next(away, None) is None
