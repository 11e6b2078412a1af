"""The README does what it says: its blocks run in order, its tables are complete, its promises name tests that exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from broker.cli.program import COMMANDS
from broker.settings import Settings
from broker.sources import load_sources
from tests.conftest import DEBIAN
from tests.readme import README, ROOT, SHOWN, Block, blocks, generated, holds, steps

TEXT: Final = README.read_text("utf-8")
BLOCKS: Final = tuple(blocks(TEXT))
LANGUAGES: Final = ("console", "python", "sh", "toml", "csv")
STEP_SECONDS: Final = 180
PROMISES: Final = [f"P{number}" for number in range(1, 13)]
FLOWS: Final = ("eager_replication", "go_live", "on_demand", "micro_batching")


class Reader:
    """A person who follows the README in an empty folder, with a home of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "AWS_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**kept, "HOME": str(home), "PATH": path, "COLUMNS": "200", "DEBIAN": str(DEBIAN)}
        self.background: list[subprocess.Popen[bytes]] = []
        self.script: list[str] = []
        self.transcript: list[str] = []

    def follow(self, block: Block) -> None:
        where = f"README.md:{block.line}"
        if block.language == "console":
            self.run_script()
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        elif block.language == "python":
            self.script += [""] * (block.line - len(self.script)) + block.text.splitlines()
        elif block.language == "console":
            for step in steps(block.text):
                self._command(step.command, step.expected, where)

    def run_script(self) -> None:
        """Python blocks between two console blocks are one script; a traceback's line numbers are the README's."""
        if self.script:
            (self.folder / "README.py").write_text("\n".join(self.script), "utf-8")
            self.script = []
            self._run([sys.executable, "README.py"], "README.md")

    def stop(self) -> None:
        for process in self.background:
            process.send_signal(signal.SIGTERM)
        for process in self.background:
            process.wait(STEP_SECONDS)
        subprocess.run(["broker", "down"], cwd=self.folder, env=self.environment, capture_output=True, check=False)

    def _command(self, command: str, expected: tuple[str, ...], where: str) -> None:
        if command.endswith("&"):
            log = (self.folder / "background.log").open("ab")
            with log:
                words = shlex.split(command.removesuffix("&"))
                self.background.append(
                    subprocess.Popen(
                        words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                )
            return
        output = self._run(["bash", "-c", command], f"{where}: {command}")
        missing = holds(output, expected)
        assert missing is None, f"{where}: {command}\nprinted no line {missing!r} (in this order), but:\n{output}"

    def _run(self, words: list[str], where: str) -> str:
        run = subprocess.run(
            words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=STEP_SECONDS, check=False,
        )  # fmt: skip
        output = run.stdout + run.stderr
        before = "\n".join(self.transcript[-4:])
        assert run.returncode == 0, f"{where}\nended with {run.returncode}:\n{output}\nbefore it:\n{before}"
        self.transcript.append(f"{where}\n{output}")
        return output


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    person = Reader(tmp_path)
    yield person
    person.stop()


@pytest.mark.timeout(900)
@pytest.mark.slow(160)
def test_every_block_of_the_readme_runs_in_order(reader: Reader) -> None:
    for block in BLOCKS:
        if not block.needs or DEBIAN.exists():
            reader.follow(block)
    reader.run_script()
    log = reader.folder / "background.log"
    assert "Traceback" not in (log.read_text() if log.exists() else "")


def test_every_block_is_of_a_known_language_and_none_is_left_out() -> None:
    assert [block.line for block in BLOCKS if block.language not in LANGUAGES] == []
    assert 2 * len(BLOCKS) == len(re.findall(r"^```", TEXT, re.MULTILINE))
    assert {block.language for block in BLOCKS} == set(LANGUAGES)


def test_commands_that_cannot_run_here_are_at_least_known() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    services = set(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"])
    for block in BLOCKS:
        for line in block.text.splitlines() if block.language == "sh" else ():
            words = shlex.split(line, comments=True)
            match words:
                case [".", ".venv/bin/activate"]:
                    assert block.text.startswith("make demo "), "that makes it"
                case ["make", target]:
                    assert target in targets, line
                case ["docker", "compose", "exec", service, "broker", command]:
                    assert service in services, line
                    assert command in COMMANDS, line
                case _:
                    assert words[:3] == ["docker", "compose", "up"], f"README.md:{block.line}: {line} is not run by any test"


def test_the_first_thirty_lines_of_code_are_a_whole_application() -> None:
    application, commands = [block for block in BLOCKS if block.language in ("python", "console")][:2]
    assert (application.language, commands.language) == ("python", "console")
    assert len(application.text.splitlines()) + len(list(steps(commands.text))) <= 30


def test_the_generated_parts_are_as_the_code_says() -> None:
    assert generated(TEXT) == TEXT, "the README's tables differ from the code: make docs"


@pytest.mark.parametrize("flow", FLOWS)
def test_each_flow_has_a_file_and_the_readme_shows_every_part_it_marks(flow: str) -> None:
    marked = re.findall(r"^ +# README: (\w+)$", (ROOT / f"tests/flows/test_{flow}.py").read_text("utf-8"), re.MULTILINE)
    assert marked
    assert [name for path, name in SHOWN.findall(TEXT) if path == f"tests/flows/test_{flow}.py"] == marked


def test_every_setting_and_command_is_named() -> None:
    missing = [name for name in Settings.model_fields if f"`{name}`" not in TEXT]
    missing += [name for name in COMMANDS if f"`broker {name}" not in TEXT]
    assert not missing


def test_every_setting_a_toml_block_names_exists() -> None:
    for block in BLOCKS:
        if block.language == "toml":
            found = tomllib.loads(block.text)
            assert {name for name, value in found.items() if not isinstance(value, dict | list)} <= set(Settings.model_fields)


# --- promises


def promise_rows() -> dict[str, str]:
    return {row[1]: row[0] for row in re.finditer(r"^\| (P\d+) \|.*$", TEXT, re.MULTILINE)}


def names_in(path: Path) -> set[str]:
    """Functions of a test file, those of its classes too."""
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


def test_all_promises_are_listed() -> None:
    assert list(promise_rows()) == PROMISES


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_names_tests_that_exist(promise: str) -> None:
    row = promise_rows()[promise]
    nodes = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
    assert nodes, row
    for path, name in nodes:
        assert (ROOT / path).is_file(), f"{promise} names {path}, which is not there"
        assert name in names_in(ROOT / path), f"{promise} names {path}::{name}, which is not there"


# --- links


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "benchmarks/README.md"])
def test_every_internal_link_resolves(name: str) -> None:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not written yet")
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        if "://" in place:
            continue
        other = path.parent / place if place else path
        assert other.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(other.read_text("utf-8")), f"{name}: {target}"


# --- compose.yaml and Dockerfile


def compose() -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


SERVICE_KEYS: Final = {
    "image", "build", "restart", "command", "environment", "ports", "volumes", "healthcheck", "depends_on", "stop_grace_period",
}  # fmt: skip


def test_compose_uses_known_keys_and_its_references_resolve() -> None:
    found = compose()
    assert {key for key in found if not key.startswith("x-")} == {"services", "volumes"}
    for name, service in found["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert set(service.get("depends_on", {})) <= set(found["services"]), name
        named = {volume.partition(":")[0] for volume in service.get("volumes", []) if not volume.startswith((".", "/"))}
        assert named <= set(found["volumes"]), name


def test_compose_pins_every_image_and_watches_every_service() -> None:
    for name, service in compose()["services"].items():
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", service["image"]), f"{name}: {service['image']} has no version"
        assert "healthcheck" in service or service["restart"] == "no", name


def test_compose_mounts_what_is_there_and_its_workers_have_something_to_serve() -> None:
    mounts = [volume for service in compose()["services"].values() for volume in service.get("volumes", [])]
    folders = [ROOT / mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert folders == [ROOT / "producers"]
    assert [producer.pattern for producer in load_sources(ROOT / "producers" / "broker.toml")] == ["*/catalog/countries"]
    assert list((ROOT / "producers").glob("countries/*.csv"))


def test_compose_sets_only_settings_that_exist_and_no_secret_has_a_default() -> None:
    text = (ROOT / "compose.yaml").read_text("utf-8")
    known = {f"BROKER_{name.upper()}" for name in Settings.model_fields} | {"BROKER_REDIS_PASSWORD"}
    assert set(re.findall(r"\bBROKER_\w*[A-Z]\b", text)) <= known
    assert all(re.fullmatch(r"\$\{BROKER_\w+:\?[^}]+\}", use) for use in re.findall(r"\$\{[^}]*\}", text))
    assert not re.search(r"(?i)(password|secret_key|access_key)\w*: (?!\$\{)\S", text)


def test_compose_redis_keeps_what_it_accepted() -> None:
    command = " ".join(compose()["services"]["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_the_image_copies_what_exists_and_runs_as_an_ordinary_user() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert copied
    assert all((ROOT / name).exists() and f"!{name}" in ignored for name in copied)
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert users[-1] != "root"


# --- the readers themselves


def test_a_missing_output_line_is_found_and_order_counts() -> None:
    assert holds("a  b\nc\n", ["a b", "c"]) is None
    assert holds("c\na b\n", ["a b", "c"]) == "c"
    assert holds("version 1: 3 rows, 2 KiB", ["version 1: 3 rows…"]) is None
    assert holds("version 1: 3 rows", ["version 2…"]) == "version 2…"


def test_console_blocks_fall_into_commands_and_their_output() -> None:
    found = [(step.command, step.expected) for step in steps("$ a \\\n    --b\nout\n$ c\n")]
    assert found == [("a --b", ("out",)), ("c", ())]
