"""Where laws of the whole way are tried: a place on a real Redis, and each kind of sink."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.sink_places import KINDS
from tests.contracts.sink_places import Place as SinkPlace
from tests.laws.changes import Place, place
from tests.servers import RedisServer


@pytest.fixture(scope="module")
def here(redis_server: RedisServer) -> Iterator[Place]:
    redis_server.flush()
    with place(redis_server.url) as made:
        yield made


@pytest.fixture(params=KINDS)
def sinks(request: pytest.FixtureRequest, tmp_path: Path) -> SinkPlace:
    kind: str = request.param
    files = {"duckdb": "r.duckdb", "sqlite": "r.sqlite"}
    return SinkPlace(
        kind, request.getfixturevalue("postgres_dsn") if kind == "postgres" else str(tmp_path / files.get(kind, "r"))
    )
