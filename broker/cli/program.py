"""The root group: a string table of commands, each imported when it is called, and the end of every error."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from typing import Any, Final

import click

from broker import __version__
from broker.cli.exits import Exit
from broker.cli.face import Face, Group
from broker.cli.loading import loading
from broker.errors import BrokerError, Invalid, Terminal

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("broker.cli.demo:demo", "Show the main job, step by step, in a temporary folder."),
    "up": ("broker.cli.service:up", "Start the embedded Redis and keep it running."),
    "down": ("broker.cli.service:down", "Stop the embedded Redis."),
    "status": ("broker.cli.status:status", "What runs and what waits: datasets, change logs, consumers, queues, workers."),
    "metrics": ("broker.cli.metrics:metrics", "What runs, as Prometheus text."),
    "top": ("broker.cli.top:top", "What runs, as a live table: rates, lag, oldest pending."),
    "doctor": ("broker.cli.service:doctor", "Check everything and say what cannot be promised."),
    "dataset": ("broker.cli.datasets:dataset", "Create, list, show, alter and drop datasets."),
    "publish": ("broker.cli.publish:publish", "Publish files as a new version of a dataset."),
    "append": ("broker.cli.append:append", "Append changes to a dataset's change log."),
    "log": ("broker.cli.append:log", "What waits in a change log for its micro-batches."),
    "request": ("broker.cli.requests:request", "Ask for data."),
    "requests": ("broker.cli.requests:requests", "List, show, watch, cancel and retry requests."),
    "responses": ("broker.cli.responses:responses", "Read a target's completions."),
    "schedule": ("broker.cli.schedule:schedule", "Requests by the clock."),
    "pull": ("broker.cli.pull:pull", "Bring a replica or a file up to the newest version."),
    "listen": ("broker.cli.listen:listen", "Events as they come, one line each."),
    "subs": ("broker.cli.subs:subs", "Who reads a dataset, and how far behind."),
    "versions": ("broker.cli.versions:versions", "List, show and verify versions."),
    "compact": ("broker.cli.care:compact", "Merge deltas into roll-ups and fresh snapshots."),
    "retention": ("broker.cli.care:retention", "Plan, explain and apply what is given up."),
    "hold": ("broker.cli.care:hold", "Keep a version readable; list and end holds."),
    "promote": ("broker.cli.channels:promote", "Let a channel name a version."),
    "rollback": ("broker.cli.channels:rollback", "Let a channel name again what it named before."),
    "release": ("broker.cli.channels:release", "Let a channel name versions of several datasets at one moment."),
    "channels": ("broker.cli.channels:channels", "What channels name."),
    "find": ("broker.cli.find:find", "Datasets and versions by their attributes."),
    "diff": ("broker.cli.past:diff", "What differs between two versions of a dataset."),
    "history": ("broker.cli.past:history", "What became of one key, version by version."),
    "erase": ("broker.cli.erase:erase", "Remove one key from every file of a dataset."),
    "explain": ("broker.cli.explain:explain", "Why a request waits, how a version came about."),
    "worker": ("workers.__main__:worker", "Run producers of an application, or of broker.toml."),
    "rebuild": ("broker.cli.service:rebuild", "Restore the index in Redis from the store alone."),
}
"""Name -> ("module:command", its line in the help)."""

EXAMPLES: Final = """
broker demo
broker dataset create shop/catalog/offers --key sku
broker publish shop/catalog/offers offers.parquet
broker request shop/catalog/offers --target search --since 1 --wait --to incoming/
broker pull shop/catalog/offers --to search.duckdb
"""


class Program(Group):
    """Resolves commands by name, so that no command pays for the imports of another."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        with loading():
            command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


program = Program(
    "broker",
    context_settings={"max_content_width": 120},
    help="Systems ask each other for data, and keep exact replicas of it.",
    examples=EXAMPLES,
)
program = click.version_option(__version__, message="broker %(version)s")(program)


def run(arguments: list[str]) -> int:
    """Run one command line; -> its exit code. Errors end here, as a message on stderr."""
    face = Face()
    try:
        code: Any = program.main(args=arguments, prog_name="broker", obj=face, standalone_mode=False)
    except click.exceptions.Abort:
        sys.stderr.write("aborted\n")
        return 130
    except click.UsageError as error:
        return _usage(face, error)
    except BrokenPipeError:
        sys.stderr.close()  # else the interpreter complains of the pipe at its end
        return Exit.OK
    except BrokerError as error:
        return _failed(face, error)
    except Exception as error:  # noqa: BLE001 - the last boundary: a person sees a sentence, not a traceback
        why = f"{type(error).__name__}: {error}"[:1000]
        return _failed(face, Terminal("something the broker did not expect", why=why, hint="--debug shows where it happened"))
    return code if isinstance(code, int) else Exit.OK


def _failed(face: Face, error: BrokerError) -> int:
    if face.debug:
        traceback.print_exc()
    return face.fail(error)


def _usage(face: Face, error: click.UsageError) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        sys.stderr.write(f"{error.format_message()}\n")
        return Exit.USAGE
    where = error.ctx.command_path if error.ctx else "broker"
    return face.fail(Invalid(error.format_message(), hint=f"See {where} --help"))
