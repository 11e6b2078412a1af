"""The command line as tests call it: in this process for speed, or as a process of its own where that is the point."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from broker.cli.__main__ import main
from broker.cli.face import Command
from broker.cli.program import program

SECONDS = 90


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """stdout as one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Cli:
    """Calls `main` in this process. `options` go behind every command."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *options: str) -> None:
        self._capsys, self._options = capsys, options

    def __call__(self, *arguments: object) -> Outcome:
        self._capsys.readouterr()
        code = main([*map(str, arguments), *self._options])
        out, err = self._capsys.readouterr()
        return Outcome(code, out, err)

    def ok(self, *arguments: object) -> Outcome:
        """As a call, and it must succeed."""
        done = self(*arguments)
        assert done.code == 0, f"{arguments} ended with {done.code}:\n{done.out}\n{done.err}"
        return done

    def json(self, *arguments: object) -> Any:
        """stdout of a successful command with --json: what its help says, and nothing else."""
        data = self.ok(*arguments, "--json").data
        shapes = answers_of(command_of(program, [str(word) for word in arguments])[0])
        for item in data if isinstance(data, list) else [data]:
            assert set(item) in shapes, f"{arguments} printed {sorted(item)}, its help says {shapes}"
        return data


def command_of(group: click.Group, words: list[str]) -> tuple[click.Command, list[str]]:
    """The command of a line, and its words."""
    found = group.get_command(click.Context(group), words[0])
    assert found is not None, words
    return command_of(found, words[1:]) if isinstance(found, click.Group) else (found, words[1:])


def answers_of(command: click.Command) -> list[set[str]]:
    """The fields of --json as its help documents them: one set for each kind of answer."""
    assert isinstance(command, Command)
    return [set(fields.split(", ")) for fields in re.findall(r"{([^}]*)}", command.answer)]


class Shell:
    """Runs `broker …` as processes in a folder, with only the settings given."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "AWS_"))}
        self.environment = {**kept, **(environment or {})}

    def __call__(self, *arguments: object, seconds: float = SECONDS) -> Outcome:
        done = subprocess.run(
            self._command(arguments), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: object) -> Outcome:
        """As a call, and it must succeed."""
        done = self(*arguments)
        assert done.code == 0, f"{arguments} ended with {done.code}:\n{done.out}\n{done.err}"
        return done

    def json(self, *arguments: object) -> Any:
        """stdout of a successful command with --json."""
        return self.ok(*arguments, "--json").data

    def start(self, *arguments: object, log: Path) -> subprocess.Popen[bytes]:
        """In the background, both streams into `log`; the caller ends it."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self._command(arguments), cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file,
            )  # fmt: skip

    @contextmanager
    def working(self, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """`broker worker …` in the background until the block ends, where it must end well when asked to."""
        log = self.folder / "worker.log"
        process = self.start("worker", *arguments, log=log)
        try:
            yield process
        finally:
            process.terminate()
            code = process.wait(SECONDS)
        assert code == 0, log.read_text()

    @staticmethod
    def _command(arguments: tuple[object, ...]) -> list[str]:
        return [sys.executable, "-m", "broker.cli", *map(str, arguments)]
