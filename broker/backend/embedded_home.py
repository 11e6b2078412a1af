"""The folder of an embedded Redis: its lock, its record, and whether the server it names is alive and the right one.

    <home>/redis.lock      held while somebody starts, finds or stops the server
    <home>/redis.json      pid with start time, run id, version, socket; `keep` while `broker up` wants it to stay
    <home>/redis/          0700: AOF, log, version of the last writer
    <home>/redis/alive     locked by the server itself: it inherits the open file, so the kernel knows whether it lives
    <home>/redis/watched   locked by the watcher that stops an idle server

Nothing here imports the driver: the watcher lives as long as the server and should cost little memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from broker.errors import Busy, Terminal, Unavailable, Unsupported

MAX_SOCKET_BYTES: Final = 100  # sockaddr_un holds 104 on macOS and 108 on Linux
START_SECONDS: Final = 60.0  # a large AOF loads at roughly 100 MB/s
STOP_SECONDS: Final = 10.0
LOCK_SECONDS: Final = START_SECONDS + STOP_SECONDS + 5
ANSWER_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running embedded server. `url` is unix://…; `version` is the server's own, such as 7.0.15."""

    url: str
    version: str
    run_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class Record:
    """redis.json: what a finder checks before it trusts the server behind it."""

    pid: int
    started: str
    run_id: str
    version: str
    socket: str
    keep: bool = False

    def endpoint(self) -> Endpoint:
        return Endpoint("unix://" + quote(self.socket), self.version, self.run_id, self.pid)


# --- one at a time


@contextmanager
def usable(home: Path) -> Iterator[None]:
    """The system's errors about the folder as ours. Raises Terminal when it is not ours to use, else Unavailable."""
    try:
        yield
    except OSError as error:
        kind = Terminal if isinstance(error, PermissionError) else Unavailable
        hint = "Set BROKER_HOME to a folder on a local disk with room that is yours"
        raise kind("the folder of the embedded Redis cannot be used", of=str(home), why=str(error), hint=hint) from error


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Exclusive use of `home` among processes. Raises Busy after LOCK_SECONDS."""
    with usable(home), (home / "redis.lock").open("a") as file:
        if not wait(lambda: try_lock(file), LOCK_SECONDS):
            hint = "Find the holder with: fuser redis.lock"
            raise Busy("embedded Redis is being started or stopped", of=str(home), why="redis.lock is held", hint=hint)
        try:
            yield
        finally:
            # Explicitly, because a child forked meanwhile by another thread shares this open file and would keep the lock.
            fcntl.flock(file, fcntl.LOCK_UN)


def try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise Unsupported(
            "this file system has no locks", of=file.name, why=str(error), hint="Set BROKER_HOME to a local disk"
        ) from error
    return True


def is_locked(path: Path) -> bool:
    with path.open("a") as file:
        return not try_lock(file)


def wait(ready: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


# --- finding (under the lock)


def living(home: Path) -> Record | None:
    """The server that holds `alive`, its record repaired where it was stale; None when nobody does.

    A server that cannot be reached any more (its socket was swept away) is ended: two servers on one AOF would ruin it.
    """
    record = read_record(home)
    if not is_locked(home / "redis" / "alive"):
        (home / "redis.json").unlink(missing_ok=True)
        return None
    path = record.socket if record else str(socket_path(home))
    found = await_answer(home, path, ANSWER_SECONDS)
    if found is None:
        _end(home, record)
        return None
    if record is None or (record.pid, record.started, record.run_id) != (found.pid, found.started, found.run_id):
        write_record(home, found)
        return found
    return record


def await_answer(home: Path, path: str, seconds: float) -> Record | None:
    """The server behind `path` once it has loaded its AOF; None when it died or cannot be reached for `seconds`.

    Loading may take up to START_SECONDS: then it does answer, and says so. Raises Busy when it is there and silent (a long
    script, a stopped process): it may be in use.
    """
    deadline, loading_until, lost = time.monotonic() + seconds, time.monotonic() + START_SECONDS, OSError()
    while time.monotonic() < deadline and is_locked(home / "redis" / "alive"):
        try:
            info = _info(path)
            if info.get("loading") == "0":
                return _record_of(info, path)
            deadline = min(time.monotonic() + seconds, loading_until)
        except OSError as error:
            lost = error
        time.sleep(POLL_SECONDS)
    if isinstance(lost, TimeoutError | BlockingIOError) and is_locked(home / "redis" / "alive"):
        raise Busy("the embedded Redis does not answer", of=path, why="its process lives", hint="Try again, or end it by hand")
    return None


def is_genuine(record: Record) -> bool:
    """Same process (its pid was not given to another) and same server behind the socket."""
    if start_time(record.pid) != record.started:
        return False
    try:
        return _info(record.socket).get("run_id") == record.run_id
    except OSError:
        return False


def _record_of(info: dict[str, str], path: str) -> Record:
    pid = int(info["process_id"])
    version = info.get("valkey_version") or info["redis_version"]
    return Record(pid, start_time(pid) or "", info["run_id"], version, path)


def start_time(pid: int) -> str | None:
    """When a process began, in the system's own words: tells it from a later one with its pid. None: gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if sys.platform == "linux" else _start_time_by_ps(pid)
    except ProcessLookupError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _start_time_by_ps(pid: int) -> str | None:
    return (
        subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
        or None
    )


def read_record(home: Path) -> Record | None:
    try:
        return Record(**json.loads((home / "redis.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_record(home: Path, record: Record) -> None:
    write_whole(home / "redis.json", json.dumps(asdict(record), indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


# --- stopping (under the lock)


def stop_server(home: Path) -> bool:
    record = read_record(home)
    alive = is_locked(home / "redis" / "alive")
    if alive:
        _end(home, record)
    (home / "redis.json").unlink(missing_ok=True)
    return alive


def _end(home: Path, record: Record | None) -> None:
    """SHUTDOWN (it fsyncs the AOF; NOSAVE spares the RDB), then SIGTERM, until the process has let go of `alive`."""
    path = record.socket if record else str(socket_path(home))
    with suppress(OSError), Wire(path, STOP_SECONDS) as wire:
        wire.ask("SHUTDOWN NOSAVE")
    if wait(lambda: _is_gone(home, record), STOP_SECONDS / 2):
        return
    if record and record.started and start_time(record.pid) == record.started:
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
    if not wait(lambda: _is_gone(home, record), STOP_SECONDS / 2):
        of = f"pid {record.pid}" if record else str(home)
        raise Busy(
            "the embedded Redis does not end",
            of=of,
            why="it answers neither SHUTDOWN nor SIGTERM",
            hint="End it by hand, then repeat",
        )


def _is_gone(home: Path, record: Record | None) -> bool:
    same = record is not None and record.started != "" and start_time(record.pid) == record.started
    return not same and not is_locked(home / "redis" / "alive")


# --- folders


def socket_path(home: Path) -> Path:
    """In the server's folder, or where the system keeps sockets when that name would be too long for one."""
    inside = home / "redis" / "redis.sock"
    if len(os.fsencode(inside)) <= MAX_SOCKET_BYTES:
        return inside
    # systemd's XDG_RUNTIME_DIR by its fixed name, since only settings.py reads the environment.
    runtime = Path(f"/run/user/{os.getuid()}")
    base = runtime if os.access(runtime, os.W_OK) else Path(tempfile.gettempdir())
    outside = base / f"broker-{os.getuid()}" / (hashlib.sha256(os.fsencode(home)).hexdigest()[:16] + ".sock")
    if len(os.fsencode(outside)) > MAX_SOCKET_BYTES:
        raise Unsupported("no folder short enough for a socket", of=str(outside), hint="Set TMPDIR to a short path")
    private_folder(outside.parent)
    return outside


def private_folder(path: Path) -> None:
    """Make `path`, ours alone. Raises Terminal when somebody else made it first (a shared temporary folder allows that)."""
    with usable(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise Terminal("this folder belongs to somebody else", of=str(path), hint="Remove it, or set BROKER_HOME")
        path.chmod(0o700)


# --- just enough of the Redis protocol


class Wire:
    """One connection to the server's socket. Raises OSError (also for a broken reply)."""

    def __init__(self, path: str, timeout_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_seconds)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._replies = self._socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.close()
        self._socket.close()

    def ask(self, command: str) -> str:
        """Send an inline command; the text of its simple, error or bulk reply (empty when the server hangs up)."""
        self._socket.sendall(command.encode() + b"\r\n")
        line = self._replies.readline().decode().rstrip()
        if not line.startswith("$"):
            return line
        return self._replies.read(int(line[1:]) + 2).decode(errors="replace")

    def info(self) -> dict[str, str]:
        fields = dict(line.split(":", 1) for line in self.ask("INFO").splitlines() if ":" in line)
        if "run_id" not in fields:
            raise ConnectionError("no INFO from the embedded Redis")
        return fields

    def closed_within(self, seconds: float) -> bool:
        """Wait `seconds`; True as soon as the server hangs up (it never speaks unasked)."""
        timeout = self._socket.gettimeout()
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(timeout)


def _info(path: str) -> dict[str, str]:
    with Wire(path, ANSWER_SECONDS) as wire:
        return wire.info()
