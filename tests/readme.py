"""The README as data: its blocks, and the parts of it that are generated. `python -m tests.readme` rewrites those."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Final

import click
from pydantic_core import PydanticUndefined

from broker import errors
from broker.cli.exits import CODES, Exit
from broker.cli.program import COMMANDS
from broker.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[1]
README: Final = ROOT / "README.md"
SECRET_HELP: Final = {
    "s3_access_key": "else AWS_ACCESS_KEY_ID",
    "s3_secret_key": "else AWS_SECRET_ACCESS_KEY; does not print",
    "s3_session_token": "else AWS_SESSION_TOKEN",
}


@dataclass(frozen=True)
class Block:
    """A fenced block. `title`: the file it is, from ```python title="shop.py"; `needs`: input it cannot do without."""

    line: int
    language: str
    title: str
    needs: str
    text: str


@dataclass(frozen=True)
class Step:
    """One command of a console block, and the lines its output must hold, in order; `…` stands for anything."""

    command: str
    expected: tuple[str, ...]


def blocks(text: str) -> Iterator[Block]:
    for found in re.finditer(r"^```(\w*)[ ]*([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        named = dict(re.findall(r'(\w+)="([^"]+)"', found[2]))
        yield Block(text.count("\n", 0, found.start()) + 1, found[1], named.get("title", ""), named.get("needs", ""), found[3])


def steps(text: str) -> Iterator[Step]:
    """Commands follow `$ `; a backslash continues one; other lines are output."""
    command, expected = "", list[str]()
    continues = False
    for line in text.splitlines():
        if line.startswith("$ ") or continues:
            if not continues:
                if command:
                    yield Step(command, tuple(expected))
                command, expected = "", []
            continues = line.endswith("\\")
            command += line.removeprefix("$ ").removesuffix("\\").strip() + (" " if continues else "")
        elif line.strip():
            expected.append(line.strip())
    if command:
        yield Step(command, tuple(expected))


def holds(output: str, expected: Iterable[str]) -> str | None:
    """The first expected line that the output lacks, in order; None when all are there."""
    lines = iter([" ".join(line.split()) for line in output.splitlines()])
    for want in expected:
        pattern = re.compile(".*".join(re.escape(" ".join(part.split())) for part in want.split("…")))
        if not any(pattern.fullmatch(line) for line in lines):
            return want
    return None


# --- generated parts


def table(headers: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [headers, tuple("---" for _ in headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings_table() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for name, field in Settings.model_fields.items():
            default = "" if field.default in (None, "", PydanticUndefined) else str(field.default)
            yield f"`{name}`", f"`{default}`" if default else "", field.description or SECRET_HELP[name]

    return table(("setting", "default", "what, and why"), rows())


def commands_table() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for name, (where, help_text) in COMMANDS.items():
            module, _, attribute = where.partition(":")
            command = getattr(import_module(module), attribute)
            inner = f" {'|'.join(command.commands)}" if isinstance(command, click.Group) else ""
            yield f"`broker {name}{inner}`", help_text

    return table(("command", "what it does"), rows())


def exits_table() -> str:
    return table(("code", "name"), ((str(int(code)), code.name.lower().replace("_", " ")) for code in Exit))


def errors_table() -> str:
    """The tree at the top of errors.py, with what the command line makes of each."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name, means in re.findall(r"^[ │├└─]*[├└]── (\w+) {2,}(\S.*)$", errors.__doc__ or "", re.MULTILINE):
            kind: type[errors.BrokerError] = getattr(errors, name)
            if kind in (errors.Transient, errors.Terminal):
                continue
            again = "yes" if issubclass(kind, errors.Transient) else "no"
            code = next(code for parent, code in CODES if issubclass(kind, parent))
            yield f"`{name}`", again, str(int(code)), means

    return table(("error", "worth repeating", "exit", "means"), rows())


GENERATED: Final = {"settings": settings_table, "commands": commands_table, "exits": exits_table, "errors": errors_table}


def titled(title: str) -> str:
    """The text of the README's file of this name. Raises StopIteration."""
    return next(block.text for block in blocks(README.read_text("utf-8")) if block.title == title)


SHOWN: Final = re.compile(r"<!-- (tests/flows/test_\w+\.py): (\w+) -->\n.*?<!-- /\2 -->", re.DOTALL)
"""Where the README shows a part of a flow."""


def part(flow: str, name: str) -> str:
    """What the README shows of a flow's file: from the line `# README: name` on, until the next comment that begins so or the
    end of the function. Raises ValueError."""
    lines = (ROOT / flow).read_text("utf-8").splitlines()
    begin = [line.strip() for line in lines].index(f"# README: {name}")
    inside = lines[begin][: -len(lines[begin].lstrip())]
    shown = takewhile(
        lambda line: not line or (line.startswith(inside) and not line.startswith(f"{inside}# README")), lines[begin + 1 :]
    )
    return textwrap.dedent("\n".join(shown)).strip()


def generated(text: str) -> str:
    """The README's text with every generated part as it must be; parts stand between `<!-- name -->` and `<!-- /name -->`."""
    text = SHOWN.sub(lambda at: f"<!-- {at[1]}: {at[2]} -->\n\n```python\n{part(at[1], at[2])}\n```\n\n<!-- /{at[2]} -->", text)
    for name, make in GENERATED.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise ValueError(f"README.md lacks {begin} … {end}")
        text = f"{head}{begin}\n\n{make()}\n\n{end}{tail}"
    return text


if __name__ == "__main__":
    README.write_text(generated(README.read_text("utf-8")), "utf-8")
