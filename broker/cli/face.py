"""What every command shares: the global options, how results and errors are shown, progress bars."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from broker.cli.exits import exit_of
from broker.cli.loading import loading
from broker.errors import BrokerError, Invalid
from broker.settings import Settings, load

if TYPE_CHECKING:
    from broker.connect import Broker

EXIT_HELP: Final = "Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 timed out, 6 unreachable."
Advance = Callable[[float], None]


@dataclass
class Face:
    """The global options of one call, and the two voices: `emit` is data on stdout, `say` is talk on stderr."""

    redis: str | None = None
    store: str | None = None
    home: str | None = None
    json: bool = False
    debug: bool = False

    def settings(self, **more: object) -> Settings:
        """Options, then BROKER_* variables, then broker.toml, then defaults. Raises InvalidSettings.

        `more`: what a command's own options say; None: not given.
        """
        return load(redis=self.redis, store=self.store, home=self.home, **more)

    def connect(self) -> Broker:
        """Raises InvalidSettings, Unavailable, Unsupported."""
        with loading():
            from broker.connect import connect

        return connect(redis=self.redis, store=self.store, home=self.home)

    def emit(self, value: Any, text: str | Iterable[str]) -> None:
        """`value` as one JSON document with --json, else `text`: a paragraph or lines."""
        if self.json:
            print_line(json.dumps(value, default=str))
        elif isinstance(text, str):
            print_line(text)
        else:
            for line in text:
                print_line(line)

    def say(self, text: str) -> None:
        """For people only: nothing with --json."""
        if not self.json:
            sys.stderr.write(f"{text}\n")

    def fail(self, error: BrokerError) -> int:
        """Show an error on stderr; -> its exit code."""
        if self.json:
            sys.stderr.write(json.dumps({"error": error.to_dict() | {"exit": int(exit_of(error))}}) + "\n")
        else:
            sys.stderr.write(f"error: {error.sentence}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return exit_of(error)

    @contextmanager
    def progress(self, label: str, total: float | None = None, unit: str = "bytes") -> Iterator[Advance]:
        """A bar on stderr while the block runs, when stderr is a terminal. `advance(n)` moves it by n units."""
        done = 0.0

        def advance(amount: float) -> None:
            nonlocal done
            done += amount

        with self.gauge(label, lambda: done, total, unit):
            yield advance

    @contextmanager
    def gauge(self, label: str, read: Callable[[], float], total: float | None = None, unit: str = "bytes") -> Iterator[None]:
        """As `progress`, at `read()`, counted from what it is now; it is called in another thread."""
        if self.json or not sys.stderr.isatty():
            yield
            return
        from broker.cli.bars import bar

        before = read()
        with bar(label, total, unit, lambda: read() - before):
            yield


def print_line(text: str) -> None:
    """Flushed, so that a pipe's reader sees each line as it comes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def columns(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Aligned lines under a header; numbers to the right."""
    cells = [[("-" if cell is None or cell == "" else str(cell)) for cell in row] for row in rows]
    widths = [max(len(header), *(len(row[i]) for row in cells)) if cells else len(header) for i, header in enumerate(headers)]
    right = [
        bool(cells) and all(row[i].replace(".", "").isdigit() or row[i] == "-" for row in cells) for i in range(len(headers))
    ]

    def line(row: Sequence[str]) -> str:
        fitted = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        return "  ".join(fitted).rstrip()

    return [line([header.upper() for header in headers]), *map(line, cells)]


def fields_of(values: Mapping[str, object]) -> list[str]:
    """`name  value` lines; empty values are left out."""
    shown = {name: value for name, value in values.items() if value not in (None, "", (), [], {})}
    width = max((len(name) for name in shown), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in shown.items()]


def joined(attributes: Mapping[str, str]) -> str:
    """`a=b c=d`."""
    return " ".join(f"{name}={value}" for name, value in attributes.items())


def pairs(texts: Iterable[str], option: str = "--attribute") -> dict[str, str]:
    """`k=v` texts as a dict. Raises Invalid."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Invalid("not a key=value pair", of=text[:100], hint=f"Write {option} why=nightly")
        found[name] = value
    return found


def names(text: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """`a,b` (or several options of such) as names; None when nothing was given."""
    texts = [text] if isinstance(text, str) else list(text or ())
    found = tuple(part.strip() for one in texts for part in one.split(",") if part.strip())
    return found or None


class Command(click.Command):
    """A command that takes the global options too, wherever they stand, and shows in its help examples and what --json prints.

    `answer`: its fields in braces, `{dataset, version}`; lists and lines of such objects in words before them.
    """

    def __init__(self, *args: Any, examples: str, answer: str = "", **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.examples, self.answer = examples, answer
        self.params += common_options()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Examples"):
            for line in self.examples.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")
        if self.answer:
            with formatter.section("With --json"):
                formatter.write_text(self.answer)
        formatter.write(f"\n{EXIT_HELP}\n")


class Group(Command, click.Group):
    """A group of commands, with all that they share."""

    command_class = Command


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value not in (None, False):
        setattr(ctx.ensure_object(Face), str(param.name), value)
    return value


def common_options() -> list[click.Parameter]:
    """--redis, --store, --home, --json, --debug: the same on every command."""
    texts = {
        "redis": "Redis to use: redis://, rediss:// or unix:// URL.",
        "store": "Store to use: folder, s3://bucket/prefix?endpoint=…, memory://name.",
        "home": "Folder of the embedded Redis and store.",
    }
    given: list[click.Parameter] = [
        click.Option([f"--{name}"], help=text, expose_value=False, callback=_keep) for name, text in texts.items()
    ]
    flags = {"json": "JSON on stdout, errors as JSON on stderr.", "debug": "Show tracebacks of errors."}
    given += [click.Option([f"--{n}"], is_flag=True, help=t, expose_value=False, callback=_keep) for n, t in flags.items()]
    return given


pass_face = click.make_pass_decorator(Face, ensure=True)
