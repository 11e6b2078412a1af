"""Fixtures for the real servers. A missing program skips its tests here and fails them where CI=true."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from tests.campaign import examples
from tests.servers import (
    MissingServer,
    RedisServer,
    S3Server,
    moto_s3_server,
    postgres_server,
    rclone_s3_server,
)
from tests.servers import (
    redis_server as running_redis,
)
from tests.told import check_events

T = TypeVar("T")
settings.register_profile(
    "here", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=examples(60)
)  # pytest-timeout bounds a test
settings.load_profile("here")
DEBIAN = Path(__file__).resolve().parents[2] / "shared" / "data" / "debian-packages"


def pytest_configure() -> None:
    """`timeout` and CI end a run by SIGTERM. End as with Ctrl-C then, so that fixtures stop their servers."""
    suite = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == suite:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a forked child dies of it as ever
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests lead the shares that pytest-xdist deals out: no worker is left with one when the others are done."""
    slow = sorted((item for item in items if item.get_closest_marker("slow")), key=_seconds, reverse=True)
    quick = [item for item in items if not item.get_closest_marker("slow")]
    items[:] = dealt(slow, quick, workers=getattr(config, "workerinput", {}).get("workercount", 1))


def _seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("slow")
    return float(marker.args[0]) if marker else 0.0


def dealt(slow: Sequence[T], quick: Sequence[T], workers: int) -> list[T]:
    """All items; where `worksteal` cuts them into even runs, one a worker, each run begins with its share of the slow ones."""
    order: list[T] = []
    rest, total = iter(quick), len(slow) + len(quick)
    for worker in range(workers):
        run = slow[worker::workers]
        order += [*run, *islice(rest, max(0, (total - len(order)) // (workers - worker) - len(run)))]
    return [*order, *rest]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    yield from _skip_unless_ci()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield from _skip_unless_ci()


def _skip_unless_ci() -> Generator[None, None, None]:
    """In CI the suite promises to have run: there a missing server is an error like any other."""
    try:
        yield
    except MissingServer as missing:
        if os.environ.get("CI") == "true" and not missing.excused:
            raise
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for all tests of a process. Those that restart, kill or pause one start their own: `servers.redis_server()`."""
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty Redis. Whatever a test left there as events must fit their schemas."""
    redis_server.flush()
    yield redis_server.url
    if request.node.get_closest_marker("foreign_events") is None:
        check_events(redis_server.url)


@pytest.fixture(scope="session")
def s3_rclone() -> Iterator[S3Server]:
    with rclone_s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def s3_moto() -> Iterator[S3Server]:
    with moto_s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_dsn() -> Iterator[str]:
    with postgres_server() as server:
        yield server.dsn


@pytest.fixture(scope="session")
def debian() -> Path:
    """The Debian package lists that lie beside a checkout; they belong to the machine, so their absence skips everywhere."""
    if not DEBIAN.exists():
        pytest.skip(f"no real input: {DEBIAN} is absent")
    return DEBIAN
