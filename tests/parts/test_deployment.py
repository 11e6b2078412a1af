"""What the processes of a deployment agree on: shards, the store's promise, and what is said of it at start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.backend import deployment
from broker.backend.client import RedisClient
from broker.backend.deployment import agree_on_shards, known_promise
from broker.backend.keys import DEPLOYMENT
from broker.errors import InvalidSettings, Unsupported
from broker.parts import open_parts
from broker.settings import load
from broker.stores.memory import MemoryStore
from broker.stores.probe import Promise, probe
from tests.servers import RedisServer, S3Server, redis_server

STORE = "s3://bucket/prefix"


@pytest.fixture
def redis(redis_url: str) -> Iterator[RedisClient]:
    with RedisClient.open(redis_url) as client:
        yield client


class Probe:
    """Counts, and fails while it is told to."""

    def __init__(self) -> None:
        self.count, self.promise = 0, probe(MemoryStore())
        self.error: Exception | None = None

    def __call__(self) -> Promise:
        self.count += 1
        if self.error:
            raise self.error
        return self.promise


def test_the_first_process_decides_how_many_shards_there_are(redis: RedisClient) -> None:
    agree_on_shards(redis, 2)
    agree_on_shards(redis, 2)
    with pytest.raises(InvalidSettings, match="BROKER_SHARDS=2"):
        agree_on_shards(redis, 3)


def test_connecting_with_another_number_of_shards_is_refused(redis_url: str, tmp_path: Path) -> None:
    open_parts(load(redis=redis_url, store=str(tmp_path), shards=2)).close()
    with pytest.raises(InvalidSettings, match="BROKER_SHARDS=2"):
        open_parts(load(redis=redis_url, store=str(tmp_path)))


def test_a_store_is_probed_once_for_all_processes(redis: RedisClient) -> None:
    found = Probe()
    assert known_promise(redis, STORE, found) == known_promise(redis, STORE, found) == found.promise
    assert found.count == 1
    known_promise(redis, STORE + "2", found)
    assert found.count == 2


def test_an_old_promise_is_tried_anew(redis: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Probe()
    known_promise(redis, STORE, found)
    monkeypatch.setattr(deployment, "PROMISE_SECONDS", 0)
    found.promise = replace(found.promise, conditional_put=False)
    assert known_promise(redis, STORE, found).conditional_put is False


def test_a_key_that_may_only_read_goes_by_what_a_writer_found(redis: RedisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Probe()
    found.error = Unsupported("may not write")
    with pytest.raises(Unsupported):
        known_promise(redis, STORE, found)
    found.error = None
    known_promise(redis, STORE, found)
    monkeypatch.setattr(deployment, "PROMISE_SECONDS", 0)
    found.error = Unsupported("may not write")
    assert known_promise(redis, STORE, found) == found.promise


def test_a_promise_of_another_release_is_no_promise(redis: RedisClient) -> None:
    found = Probe()
    known_promise(redis, STORE, found)
    [field] = [name for name in redis.run("HKEYS", DEPLOYMENT) if name.startswith(b"promise:")]
    for text in ("no JSON", "[]", '{"at": 1}', '{"at": 99999999999, "promise": {"flies": true}}'):
        redis.run("HSET", DEPLOYMENT, field, text)
        known_promise(redis, STORE, found)
    assert found.count == 5


def test_processes_start_while_redis_is_full(tmp_path: Path) -> None:
    with redis_server("--maxmemory", "64mb") as server:
        settings = load(redis=server.url, store=str(tmp_path))
        open_parts(settings).close()
        with RedisClient.open(server.url) as client:
            client.run("CONFIG", "SET", "maxmemory", 1)
            open_parts(settings).close()


def test_what_cannot_be_promised_is_said(redis_server: RedisServer, s3_rclone: S3Server, tmp_path: Path) -> None:
    redis_server.flush()
    with_s3 = s3_rclone.settings(redis=redis_server.url)
    for settings, single in ((with_s3, True), (load(redis=redis_server.url, store=str(tmp_path)), False)):
        parts = open_parts(settings)
        said = "\n".join(parts.caveats())
        parts.close()
        assert "maxmemory is 0" in said
        assert ("single writer" in said) is single
