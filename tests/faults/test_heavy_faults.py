"""Cut productions under faults: a part that fails, dies, hangs or swells is run again alone, and whoever leads may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from broker.backend.jobs import PARTS
from broker.errors import AttemptFailed, RequestFailed, Unavailable
from broker.handle import Handle
from broker.heavy import STEPS as HEAVY_STEPS
from broker.rules.publishing import STEPS as PUBLISHING_STEPS
from tests.heavy_app import PARTS as MERCHANTS
from tests.heavy_app import ROWS
from tests.heavy_place import ON_STEP, WAIT_SECONDS, LeaderProcess, Place, leader, place, rq_workers
from tests.servers import RedisServer, redis_server, wait_until

ALL_KEYS = sorted(f"{part}-{number}" for part in MERCHANTS for number in range(ROWS))
LIMITS = {"attempt_seconds": 4.0, "attempt_max_bytes": 600 << 20, "max_attempts": 3}
AFTER_PLANNING = tuple(step for step in HEAVY_STEPS if step != "planned")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as found:
        yield found


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[Place]:
    """One leader, three RQ workers and short limits for the faults of parts and finalisers."""
    with place(tmp_path_factory.mktemp("faults"), server.url, **LIMITS) as here, leader(here, rq_workers(here, 3, ON_STEP)):
        yield here


def runs_but(**more: int) -> dict[str, int]:
    return dict.fromkeys(MERCHANTS, 1) | more


def test_parts_that_raise_die_crash_exit_or_hang_are_run_again_alone(shops: Place) -> None:
    faults = {"m1": ["raise"], "m2": ["kill"], "m3": ["segfault"], "m4": ["hang"], "m5": ["exit"]}
    shop = shops.dataset(faults=faults)
    request = shop.ask()
    done = request.wait(WAIT_SECONDS)
    assert (done.version, done.rows, shop.keys()) == (1, len(ALL_KEYS), ALL_KEYS)
    assert shop.runs() == runs_but(m1=2, m2=2, m3=2, m4=2, m5=2)
    assert request.status().attempts == 1


def test_a_part_that_swallows_its_alarm_is_killed_and_run_again(shops: Place) -> None:
    shop = shops.dataset(faults={"m6": ["swallow"]})
    assert shop.done().rows == len(ALL_KEYS)
    assert shop.runs() == runs_but(m6=2)


def test_a_part_that_outgrows_its_memory_is_killed_and_run_again(shops: Place) -> None:
    shop = shops.dataset(faults={"m0": ["swell"]})
    assert shop.done().rows == len(ALL_KEYS)
    assert shop.runs() == runs_but(m0=2)


@pytest.mark.parametrize(("fault", "why"), [("raise", "the source is gone"), ("kill", "signal 9"), ("exit", "SystemExit: 3")])
def test_a_part_that_always_fails_fails_the_request_once_and_is_named(shops: Place, fault: str, why: str) -> None:
    shop = shops.dataset(faults={"m7": [fault] * 9})
    request = shop.ask()
    with pytest.raises(RequestFailed):
        request.wait(WAIT_SECONDS)
    error = request.status().completion.error  # type: ignore[union-attr]
    assert error is not None
    assert (error["code"], error["of"]) == (AttemptFailed.code, f"{shop.id} part 'm7'")
    assert why in error["why"]
    assert shop.runs() == runs_but(m7=3)
    assert shop.dataset.versions() == ()


def test_a_failed_flight_leaves_its_neighbour_alone(shops: Place) -> None:
    bad, good = shops.dataset(faults={"m0": ["raise"] * 9}), shops.dataset()
    failing, asked = bad.ask(), good.ask()
    assert asked.wait(WAIT_SECONDS).rows == len(ALL_KEYS)
    with pytest.raises(RequestFailed):
        failing.wait(WAIT_SECONDS)


@pytest.mark.parametrize("step", [*AFTER_PLANNING, *PUBLISHING_STEPS, "upload"])
def test_a_job_killed_at_any_step_is_done_again(shops: Place, step: str) -> None:
    shop = shops.dataset()
    order = shops.die_at(step)
    done = shop.done()
    assert not order.exists(), "nobody came to this step"
    assert (done.version, shop.keys(), len(shop.dataset.versions())) == (1, ALL_KEYS, 1)
    assert sum(shop.runs().values()) <= len(MERCHANTS) + 1


def test_a_silent_rq_worker_loses_its_part(tmp_path: Path, server: RedisServer) -> None:
    with place(tmp_path, server.url + "?db=2") as here:
        first = rq_workers(here, 1)
        with leader(here):
            shop = here.dataset(faults={"m0": ["hold"]}, parts=["m0", "m1"])
            request = shop.ask()
            shop.held()
            worker = next(place.process.pid for place in first._places if place.queue == PARTS)
            for pid in (worker, *children_of(worker)):
                os.kill(pid, signal.SIGKILL)
            rq_workers(here, 1)
            assert request.wait(WAIT_SECONDS).rows == 2 * ROWS
            assert shop.runs() == {"m0": 2, "m1": 1}


def test_another_worker_goes_on_when_the_leader_is_killed(tmp_path: Path, server: RedisServer) -> None:
    with place(tmp_path, server.url + "?db=3") as here:
        rq_workers(here, 2)
        shop = here.dataset(faults={"m3": ["hold"]})
        doomed = LeaderProcess(here)
        request = shop.ask()
        wait_until(lambda: request.status().progress.get("parts_done") == len(MERCHANTS) - 1, "all parts but one")
        doomed.kill()
        shop.go()
        with leader(here) as successor:
            done = request.wait(WAIT_SECONDS)
            assert successor.counts.taken_over == 1
        assert (done.version, shop.keys()) == (1, ALL_KEYS)
        assert shop.runs() == runs_but()


def test_the_version_of_a_finaliser_that_outlived_its_leader_is_answered_by_the_next(
    tmp_path: Path, server: RedisServer
) -> None:
    with place(tmp_path, server.url + "?db=4") as here:
        rq_workers(here, 2)
        shop = here.dataset(faults={"m3": ["hold"]})
        doomed = LeaderProcess(here)
        request = shop.ask()
        shop.held()
        wait_until(lambda: request.status().progress.get("parts_done") == len(MERCHANTS) - 1, "all parts but one")
        shop.go()
        wait_until(lambda: bool(shop.dataset.versions()), "the version")
        doomed.kill()
        with leader(here):
            assert request.wait(WAIT_SECONDS).version == 1
        assert shop.runs() == runs_but()


def test_jobs_that_rq_forgot_are_enqueued_again(tmp_path: Path, server: RedisServer) -> None:
    with redis_server() as hands, place(tmp_path, server.url + "?db=5", rq_url=hands.url) as here, leader(here):
        shop = here.dataset(parts=["m0", "m1"])
        request = shop.ask()
        wait_until(lambda: request.status().progress.get("parts_total") == 2, "the plan")
        hands.flush()
        rq_workers(here, 1)
        assert request.wait(WAIT_SECONDS).rows == 2 * ROWS


def test_a_redis_restarted_in_the_middle_loses_no_part(tmp_path: Path) -> None:
    with redis_server() as own, place(tmp_path, own.url) as here:
        pool = rq_workers(here, 1)
        with leader(here, pool):
            shop = here.dataset(parts=["m0", "m1", "m2"], faults={"m2": ["hold"]})
            request = shop.ask()
            wait_until(lambda: request.status().progress.get("parts_done") == 2, "two parts")
            own.restart()
            shop.go()
            wait_until(lambda: answered(request), "the answer", WAIT_SECONDS)
            assert request.wait(1.0).rows == 3 * ROWS
            assert {part: shop.runs()[part] for part in ("m0", "m1")} == {"m0": 1, "m1": 1}


def test_a_plain_worker_brings_its_own_rq_workers(tmp_path: Path, server: RedisServer) -> None:
    with place(tmp_path, server.url + "?db=6") as here:
        shop = here.dataset()
        request = shop.ask()
        assert burst(here) == 0
        assert request.wait(1.0).rows == len(ALL_KEYS)


def burst(here: Place) -> int:
    """Exit code of `broker worker tests.heavy_app:app --burst`."""
    return subprocess.run([*worker_command(), "--burst"], env=os.environ | named(here), timeout=90, check=False).returncode


def worker_command() -> list[str]:
    return [sys.executable, "-m", "broker.cli", "worker", "tests.heavy_app:app"]


def named(here: Place) -> dict[str, str]:
    return {"BROKER_REDIS": here.settings.redis, "BROKER_STORE": here.settings.store, "BROKER_BACKOFF_SECONDS": "0.01"}


def answered(request: Handle) -> bool:
    """Whether it has ended; not known while Redis is away."""
    with suppress(Unavailable):
        return request.status().state.terminal
    return False


def children_of(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_leader_killed_right_behind_its_plan_leaves_everything_to_the_next(tmp_path: Path, server: RedisServer) -> None:
    with place(tmp_path, server.url + "?db=7") as here:
        shop = here.dataset()
        order = here.die_at("planned")
        doomed = LeaderProcess(here)
        request = shop.ask()
        assert doomed.process.wait(WAIT_SECONDS) == -signal.SIGKILL
        doomed.kill()
        assert not order.exists()
        rq_workers(here, 2)
        with leader(here):
            assert request.wait(WAIT_SECONDS).rows == len(ALL_KEYS)
        assert shop.runs() == runs_but()


def test_rq_workers_end_with_the_worker_that_started_them(tmp_path: Path, server: RedisServer) -> None:
    with place(tmp_path, server.url + "?db=8") as here:
        shop = here.dataset()
        worker = subprocess.Popen(worker_command(), env=os.environ | named(here))
        try:
            shop.done()
            started = [
                pid for pid in children_of(worker.pid) if b"workers.rq_pool" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            assert len(started) == 2
        finally:
            worker.kill()
            worker.wait()
        wait_until(lambda: not any(alive(pid) for pid in started), "the end of the RQ workers")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
