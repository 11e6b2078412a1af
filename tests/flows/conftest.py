"""Where a flow of the README runs: an empty folder, a real Redis, and a store of each kind, named by BROKER_* variables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import broker
from tests.cli import Shell
from tests.servers import S3Server


@pytest.fixture(params=["a folder", "rclone"])
def shell(
    request: pytest.FixtureRequest, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Shell:  # fmt: skip
    """The command line in the folder that is the test's own too."""
    environment = {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store")}
    if request.param != "a folder":
        server: S3Server = request.getfixturevalue("s3_rclone")
        environment |= {"BROKER_STORE": server.url(), **server.env}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, environment)


@pytest.fixture
def b(shell: Shell) -> Iterator[broker.Broker]:
    """As the README connects: from the variables."""
    with broker.connect() as connected:
        yield connected


@pytest.fixture
def batches(shell: Shell) -> Iterator[None]:
    """Micro-batches are made of what is appended."""
    with shell.working("--role", "microbatch", "--max-age", "100ms"):
        yield
