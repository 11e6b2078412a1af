"""The test suite's own tools: servers that restart and roll back, and the policy for those that are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from broker.errors import Corrupt, OutcomeUnknown, Unavailable
from broker.stores.memory import MemoryStore
from tests import servers
from tests.conftest import dealt
from tests.faulty_store import Fault, FaultyStore, at, matching

MISSING = """
from tests.servers import require

def test_needs_a_server():
    require("no-such-server", "apt-get install some-package")
"""


@pytest.mark.parametrize(
    ("ci", "without", "outcome", "code"),
    [("", "", "1 skipped", 0), ("true", "other", "1 failed", 1), ("true", "other some-package", "1 skipped", 0)],
)
def test_a_missing_server_skips_here_and_fails_in_ci(tmp_path: Path, ci: str, without: str, outcome: str, code: int) -> None:
    here = Path(__file__).parents[2]
    test = tmp_path / "test_missing.py"
    test.write_text(MISSING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rs", "-q", str(test)]
    environment = {**os.environ, "CI": ci, "BROKER_TESTS_WITHOUT": without, "PYTHONPATH": str(here)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stdout + run.stderr
    assert outcome in run.stdout
    assert "no-such-server is not installed: apt-get install some-package" in run.stdout


def test_a_redis_restarts_rolls_back_and_forgets() -> None:
    with servers.redis_server() as server:

        def ask(command: str) -> bytes | None:
            with redis.Redis.from_url(server.url) as client:
                answer: bytes | None = client.execute_command(*command.split())
                return answer

        ask("SET k 1")
        saved = server.save("before")
        ask("SET k 2")
        server.restart()
        assert ask("GET k") == b"2"
        server.roll_back(saved)
        assert ask("GET k") == b"1"
        server.kill()
        server.start()
        assert ask("GET k") == b"1"
        server.wipe()
        assert ask("GET k") is None
        with redis.Redis.from_url(server.tcp_url, decode_responses=True) as client:
            assert client.config_get("append*")["appendfsync"] == "everysec"
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_a_paused_redis_does_not_answer_until_it_goes_on() -> None:
    with servers.redis_server() as server:
        server.pause()
        with redis.Redis.from_url(server.url, socket_timeout=0.1, retry=None) as client, pytest.raises(redis.TimeoutError):
            client.ping()
        server.cont()
        with redis.Redis.from_url(server.url, socket_timeout=10) as client:
            assert client.ping()


def test_postgres_answers(postgres_dsn: str) -> None:
    psql = servers.require("psql")
    run = subprocess.run([psql, postgres_dsn, "-Atc", "select 6 * 7"], capture_output=True, text=True, check=True)
    assert run.stdout == "42\n"


def read(store: FaultyStore) -> bytes:
    return b"".join(store.get("k"))


def test_a_fault_is_what_its_name_says() -> None:
    cases: list[tuple[Fault, type[Exception], bytes | None]] = [
        (Fault.REFUSED, Unavailable, None),
        (Fault.UNKNOWN_LOST, OutcomeUnknown, None),
        (Fault.UNKNOWN_DONE, OutcomeUnknown, b"data"),
        (Fault.UNKNOWN_LATE, OutcomeUnknown, None),
    ]
    for fault, error, stored in cases:
        store = FaultyStore(MemoryStore(), at("put_if_absent", 1, fault))
        with pytest.raises(error):
            store.put_if_absent("k", b"data")
        assert (store.inner.stat("k") is not None) == (stored is not None), fault
        assert store.hits["put_if_absent", fault] == 1
        assert store.land() == (fault is Fault.UNKNOWN_LATE)
        assert (store.inner.stat("k") is not None) == (stored is not None or fault is Fault.UNKNOWN_LATE)


@pytest.mark.parametrize(("fault", "got"), [(Fault.TRUNCATED, b"da"), (Fault.OTHER_BYTES, b"eata")])
def test_bodies_are_spoilt_on_both_ways(fault: Fault, got: bytes) -> None:
    store = FaultyStore(MemoryStore(), matching("get", "k", fault))
    store.put("k", b"data")
    assert read(store) == got
    store = FaultyStore(MemoryStore(), matching("upload", "k", fault))
    with store.upload("k") as upload:
        upload.write(b"data")
        upload.commit()
    assert read(store) == got


def test_a_cut_body_is_corrupt() -> None:
    store = FaultyStore(MemoryStore(), at("get", 1, Fault.CUT))
    store.put("k", b"data")
    with pytest.raises(Corrupt):
        read(store)
    assert read(store) == b"data", "only the first"


def test_slow_tests_begin_the_share_of_each_worker() -> None:
    slow, quick = ["s90", "s50", "s40"], [f"q{number}" for number in range(6)]
    assert dealt(slow, quick, 2) == ["s90", "s40", "q0", "q1", "s50", "q2", "q3", "q4", "q5"]
    assert dealt(slow, quick, 1) == [*slow, *quick]
    assert dealt(slow, [], 4) == slow


@pytest.mark.parametrize("workers", range(1, 6))
def test_dealing_loses_no_test(workers: int) -> None:
    for count in range(12):
        slow, quick = [f"s{number}" for number in range(count // 2)], [f"q{number}" for number in range(count)]
        assert sorted(dealt(slow, quick, workers)) == sorted([*slow, *quick])
