"""What all commands share: exit codes, errors, help, what is imported when, data on stdout and talk on stderr."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import click
import pytest

from broker.cli.exits import CODES, Exit, exit_of
from broker.cli.face import EXIT_HELP, Command, Face
from broker.cli.program import COMMANDS, EXAMPLES, program
from broker.errors import BY_CODE, BrokerError, InvalidPredicate, NotFound, Unavailable
from tests.cli import Cli, Shell, command_of

OFFERS = "shop/catalog/offers"


@pytest.fixture
def cli(redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))


def commands_of(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands_of(command, (*path, name))


ALL = list(commands_of(program))


def examples() -> list[str]:
    found = [EXAMPLES, *(command.examples for _, command in ALL if isinstance(command, Command))]
    return [line.strip() for text in found for line in text.strip().splitlines()]


# --- exit codes and errors


@pytest.mark.parametrize("kind", BY_CODE.values(), ids=lambda kind: kind.__name__)
def test_every_error_has_an_exit_code_other_than_ok(kind: type[BrokerError]) -> None:
    assert exit_of(kind("x")) in set(Exit) - {Exit.OK}


def test_no_line_of_the_table_is_hidden_by_one_above_it() -> None:
    hidden = [kind for i, (kind, _) in enumerate(CODES) if any(issubclass(kind, other) for other, _ in CODES[:i])]
    assert hidden == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("dataset", "show", "shop/catalog/none"), Exit.NOT_FOUND),
        (("dataset", "show", "Not A Name"), Exit.USAGE),
        (("dataset", "create", OFFERS, "--key", "other"), Exit.CONFLICT),
        (("request", OFFERS, "--target", "t", "--where", "price +"), Exit.USAGE),
        (("request", OFFERS, "--target", "t", "--where", "lower(sku) = 'a'"), Exit.USAGE),
        (("request", OFFERS, "--target", "t", "--columns", "nope"), Exit.USAGE),
        (("request", OFFERS, "--target", "t", "--deadline", "-1"), Exit.TIMED_OUT),
        (("request", OFFERS, "--target", "t", "--timeout", "0.05"), Exit.TIMED_OUT),
        (("request", OFFERS), Exit.USAGE),
        (("requests", "show", "nonsense"), Exit.USAGE),
        (("requests", "show", f"catalog.0.{'0' * 32}"), Exit.NOT_FOUND),
        (("versions", "show", OFFERS, "9"), Exit.NOT_FOUND),
        (("pull", OFFERS, "--to", "x.pdf"), Exit.USAGE),
        (("publish", OFFERS, "none.csv"), Exit.USAGE),
        (("responses", "No Target"), Exit.USAGE),
        (("frobnicate",), Exit.USAGE),
    ],
)
def test_an_error_ends_with_its_named_code_and_a_sentence(cli: Cli, arguments: tuple[str, ...], code: Exit) -> None:
    cli.ok("dataset", "create", OFFERS, "--key", "sku", "--column", "sku VARCHAR", "--column", "price DOUBLE")
    done = cli(*arguments)
    assert done.code == code, done.err
    assert done.err.startswith("error: ") or "\nerror: " in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_an_unreachable_redis_is_code_6_with_the_server_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Cli(capsys, "--redis", f"unix://{tmp_path}/none.sock", "--store", str(tmp_path))("status")
    assert done.code == Exit.UNREACHABLE
    assert "none.sock" in done.err


def test_with_json_an_error_is_json_on_stderr(cli: Cli) -> None:
    done = cli("dataset", "show", "shop/catalog/none", "--json")
    error = json.loads(done.err)["error"]
    assert (error["code"], error["of"], error["exit"]) == ("not-found", "shop/catalog/none", 3)
    assert "broker dataset create" in error["hint"]
    assert done.out == ""


def test_a_usage_error_is_json_too_when_json_was_asked_before_it(cli: Cli) -> None:
    done = cli("dataset", "show", "--json")
    assert json.loads(done.err)["error"]["code"] == "invalid"
    assert done.code == Exit.USAGE


def test_debug_adds_the_traceback(cli: Cli) -> None:
    assert "Traceback" in cli("dataset", "show", "shop/catalog/none", "--debug").err


def test_an_unexpected_error_is_a_sentence_as_well(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(face: Face) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(Face, "connect", explode)
    done = cli("status")
    assert done.code == Exit.FAILED
    assert "ZeroDivisionError: by design" in done.err
    assert "--debug" in done.err
    assert "Traceback" not in done.err


def test_the_hint_stands_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert Face().fail(NotFound("no such dataset", of="a/b/c", hint="Create it")) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "error: no such dataset [a/b/c]\nhint: Create it\n"
    assert Face().fail(Unavailable("gone")) == Exit.UNREACHABLE
    assert Face().fail(InvalidPredicate("bad")) == Exit.USAGE


# --- help


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_explains_itself_with_examples_and_takes_the_global_options(
    path: tuple[str, ...], command: click.Command
) -> None:
    text = command.get_help(click.Context(command, info_name=" ".join(path)))
    assert isinstance(command, Command)
    assert command.help
    assert f"broker {' '.join(path)}" in command.examples
    assert command.examples.strip().splitlines()[0].strip() in text
    assert EXIT_HELP in text
    if not isinstance(command, click.Group):
        assert "With --json:" in text
    for option in ("--json", "--redis", "--store", "--home", "--debug"):
        assert option in text


@pytest.mark.parametrize("example", dict.fromkeys(examples()))
def test_every_example_parses(example: str) -> None:
    command, words = command_of(program, shlex.split(example)[1:])
    with suppress(click.BadParameter) if "offers.parquet" in words or "monday.csv.gz" in words else nullcontext():
        command.make_context("broker", words, obj=Face())


@pytest.mark.parametrize("example", [one for one in dict.fromkeys(examples()) if OFFERS in one])
def test_what_takes_a_dataset_is_called_dataset_or_pattern(example: str) -> None:
    command, words = command_of(program, shlex.split(example)[1:])
    context = command.make_context("broker", words, obj=Face(), resilient_parsing=True)
    taking = [
        param.make_metavar(context)
        for param in command.params
        if isinstance(param, click.Argument) and str(context.params.get(str(param.name))).split("@")[0] == OFFERS
    ]
    assert taking in (["DATASET"], ["[PATTERN]"]) or "--dataset" in example


def test_global_options_stand_anywhere(cli: Cli, redis_url: str) -> None:
    cli.ok("dataset", "create", OFFERS, "--key", "sku")
    for words in (("--json", "dataset", "list"), ("dataset", "--json", "list"), ("dataset", "list", "--json")):
        assert cli.ok(*words).data[0]["dataset"] == OFFERS


def test_the_help_names_every_command_without_loading_one() -> None:
    code = (
        "import sys; from broker.cli.__main__ import main; main(['--help']);"
        "print(*[m for m in ('duckdb', 'pyarrow', 'redis', 'minio', 'rich') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == ""
    assert [name for name in COMMANDS if f"  {name} " not in done.stdout] == []


def test_the_version_is_told_without_importing_anything_of_weight() -> None:
    code = (
        "import sys; from broker.cli.__main__ import main; main(['--version']);"
        "print(*[m for m in ('click', 'pydantic', 'redis', 'asyncio') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("broker ")
    assert done.stderr.strip() == ""


# --- two voices


def test_stdout_is_data_and_a_pipe_sees_no_bar(tmp_path: Path, redis_url: str) -> None:
    shell = Shell(tmp_path, {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store")})
    (tmp_path / "offers.csv").write_text("sku,price\na,1\n")
    made = shell.ok("dataset", "create", OFFERS, "--key", "sku")
    assert (made.err, made.lines[0]) == ("", f"dataset  {OFFERS}")
    done = shell.ok("publish", OFFERS, "offers.csv")
    assert done.err == ""
    assert "\x1b" not in done.out
    assert shell.json("versions", "list", OFFERS)[0]["version"] == 1


def on_a_terminal(shell: Shell, *arguments: str) -> tuple[str, str]:
    """stdout, and what a person saw on stderr."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "broker.cli", *arguments]
    done = subprocess.run(
        command, cwd=shell.folder, env=shell.environment, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=True
    )
    os.close(theirs)
    shown = os.read(mine, 65536).decode()
    os.close(mine)
    return done.stdout.decode(), shown


def test_a_terminal_sees_bars_on_stderr_that_advance(tmp_path: Path, redis_url: str) -> None:
    shell = Shell(
        tmp_path, {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store"), "TERM": "xterm", "COLUMNS": "120"}
    )
    (tmp_path / "offers.csv").write_text("sku,price\na,1\n")
    shell.ok("dataset", "create", OFFERS, "--key", "sku")
    for arguments, says, bar, at in (
        (("publish", OFFERS, "offers.csv"), "version 1: snapshot, 1 rows", f"publish {OFFERS}", r"1/\? rows"),
        (("pull", OFFERS, "--to", "x.duckdb"), "version 1: 1 rows", f"pull {OFFERS}", r"[1-9][0-9]*/\? bytes"),
        (("pull", OFFERS, "--to", "x.csv"), "x.csv: version 1, 1 rows", "write x.csv", r"1/\? rows"),
        (
            ("request", OFFERS, "--target", "t", "--max-staleness", "60", "--to", "in"), "in/01-rows.parquet",
            "download catalog", r"([1-9][0-9]*)/\1 bytes",
        ),
    ):  # fmt: skip
        out, shown = on_a_terminal(shell, *arguments)
        assert out.startswith(says)
        assert bar in shown
        assert re.search(at, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)), shown


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, redis_url: str) -> None:
    environment = Shell(tmp_path, {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store")}).environment
    command = f"{sys.executable} -m broker.cli doctor | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
