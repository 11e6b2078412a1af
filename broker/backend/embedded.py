"""A private redis-server under `.broker`, for one machine and its user: started by whoever comes first, found by the rest.

It listens on a unix socket only, lives in a session of its own, and stops itself when nobody has used it for a while.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.backend.embedded_builds import Build, choose
from broker.backend.embedded_home import (
    ANSWER_SECONDS,
    START_SECONDS,
    Endpoint,
    Record,
    Wire,
    await_answer,
    is_genuine,
    is_locked,
    living,
    locked,
    private_folder,
    read_record,
    socket_path,
    stop_server,
    try_lock,
    wait,
    write_record,
    write_whole,
)
from broker.errors import BrokerError, Busy, Corrupt, NotFound, Unavailable

if TYPE_CHECKING:
    from broker.settings import Settings

__all__ = ["Endpoint", "ensure", "keep", "status", "stop", "watch"]

LOG_MAX_BYTES: Final = 4 << 20


def ensure(home: Path, settings: Settings) -> Endpoint:
    """Find the server of `home` or start it; any number of processes may call at once and get the same one.

    Raises Unsupported (no program, or one older than the data), Corrupt (the AOF cannot be loaded), Unavailable (it died at
    start), Busy (another process holds the lock too long, or a server that does not answer).
    """
    home = home.absolute()
    private_folder(home / "redis")
    with locked(home):
        found = living(home)
        record = found or _start(home, settings)
        if found is None or not is_locked(home / "redis" / "watched"):
            _spawn_watcher(home, settings.embedded_idle_seconds)
    return record.endpoint()


def status(home: Path) -> Endpoint | None:
    """The running server, or None. Starts nothing; a silent server counts as none after ANSWER_SECONDS."""
    record = read_record(home.absolute())
    return record.endpoint() if record and is_genuine(record) else None


def keep(home: Path, on: bool = True) -> None:
    """Let the server run on without clients (`broker up`), or no longer. Raises NotFound when none is running."""
    home = home.absolute()
    if not (home / "redis").is_dir():
        raise NotFound("no embedded Redis is running", of=str(home), hint="Run broker up")
    with locked(home):
        record = living(home)
        if record is None:
            raise NotFound("no embedded Redis is running", of=str(home), hint="Run broker up")
        write_record(home, replace(record, keep=on))


def stop(home: Path) -> bool:
    """Stop the server after its AOF is on disk and wait until its process is gone. False: none was running.

    Raises Busy when it does not end within STOP_SECONDS.
    """
    home = home.absolute()
    if not (home / "redis").is_dir():
        return False
    with locked(home):
        return stop_server(home)


# --- starting


def _start(home: Path, settings: Settings) -> Record:
    folder, path = home / "redis", socket_path(home)
    build = choose(folder)
    write_whole(folder / "version", f"{build}\n")  # before the first byte it writes, lest an older one opens that
    log = folder / "redis.log"
    if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
        log.replace(log.with_suffix(".log.1"))
    begin = log.stat().st_size if log.exists() else 0
    _launch(build, folder, [*_options(folder, path), "--maxmemory", str(settings.embedded_maxmemory_bytes)])
    record = await_answer(home, str(path), START_SECONDS)
    if record is None:
        raise _death(folder, begin)
    write_record(home, record)
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
        if not try_lock(alive):
            raise Busy("an embedded Redis still holds its folder", of=str(folder), hint="Try again, or end that process")
        command = [build.path, *options]
        with suppress(subprocess.TimeoutExpired):  # then it is killed, and its silence is the error
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


# --- the idle watcher, a process of its own

_WATCHER: Final = "import sys; sys.path.insert(0, sys.argv[1]); from broker.backend.embedded import watch; watch(*sys.argv[2:])"
_DETACH: Final = '"$@" </dev/null >/dev/null 2>&1 &'  # the shell ends at once, so the watcher is nobody's zombie


def _spawn_watcher(home: Path, idle_seconds: float) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-I", "-c", _WATCHER, root, str(home), str(idle_seconds)]
    subprocess.run(["/bin/sh", "-c", _DETACH, "sh", *command], start_new_session=True, cwd="/", check=True)


@dataclass
class Idleness:
    """Since when nobody used the server. Use is an open connection beside ours, or one that came and went.

    `ensure` is use as well, since it asks the server: who called it has the idle time anew to connect.
    """

    since: float
    accepted: int = 0

    def observe(self, now: float, others: int, accepted: int) -> float:
        """Idle seconds at `now`. `others` counts open connections beside ours, `accepted` all there ever were."""
        if others or self.accepted != accepted:
            self.since, self.accepted = now, accepted
        return now - self.since


def watch(home: str, idle_seconds: str) -> None:
    """Body of the watcher: returns when the server is gone, or after stopping it idle. One per server."""
    folder, limit = Path(home), float(idle_seconds)
    with (folder / "redis" / "watched").open("a") as mine:
        # The watcher of a server that has just died may still be on its way out.
        if not wait(lambda: try_lock(mine), ANSWER_SECONDS) or (record := read_record(folder)) is None:
            return
        with suppress(OSError, BrokerError), Wire(record.socket, ANSWER_SECONDS) as wire:
            idleness = Idleness(time.monotonic())
            while not wire.closed_within(min(limit / 4, 30.0)):
                if _idle_seconds(wire, idleness) >= limit and _stop_idle(folder, wire, idleness, limit):
                    return


def _idle_seconds(wire: Wire, idleness: Idleness) -> float:
    info = wire.info()
    return idleness.observe(time.monotonic(), int(info["connected_clients"]) - 1, int(info["total_connections_received"]))


def _stop_idle(home: Path, wire: Wire, idleness: Idleness, limit: float) -> bool:
    """Look again with the lock held, when nobody can be in `ensure`, and only then stop. False: not now."""
    with suppress(Busy), locked(home):
        record = read_record(home)
        if record is None or record.keep or _idle_seconds(wire, idleness) < limit:
            return False
        return stop_server(home)
    return False
