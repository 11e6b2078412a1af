"""listen: events as they come."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Generator
from contextlib import closing, suppress
from typing import Final

import click

from broker.cli.face import Command, Face, joined, pass_face, print_line
from broker.errors import Invalid, Terminal, Transient
from broker.events_listening import Heard, Listener

PAUSE_SECONDS: Final = 1.0
ENVELOPE: Final = "specversion, id, source, type, subject, time, datacontenttype, dataschema, correlationid, data"


@click.command(
    "listen", cls=Command,
    examples="""
    broker listen "shop/catalog/*"
    broker listen "shop/catalog/*" --channel production --cursor search --json
    broker listen "shop/*/*" --type published --cursor mirror --exec "./reload.sh"
    """,
    answer=f"A line for each, a CloudEvents envelope: {{{ENVELOPE}}}",
)  # fmt: skip
@click.argument("pattern", default="*")
@click.option("--cursor", metavar="NAME", help="Keep the position under this name: who listens to the same goes on from there.")
@click.option("--channel", help="Only what moves this channel, and what is no channel's own news.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only such events: published, promoted, retired, …")
@click.option("--exec", "command", metavar="CMD", help="Run this for each, with the event as JSON on its stdin.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="End when none came for so long.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many.")
@pass_face
def listen(
    face: Face, pattern: str, cursor: str | None, channel: str | None, types: tuple[str, ...], command: str | None,
    timeout: float | None, limit: int | None,
) -> None:  # fmt: skip
    """Events of the datasets that match PATTERN, one line each: first what stands, then what comes, until Ctrl-C.

    With --exec an event is done with when the command ends with 0; else listening ends with 1 and, with --cursor, the event
    comes again.
    """
    words = _words(command)
    with face.connect() as broker:
        listener = broker.events(pattern, cursor, channel, types or None)
        try:
            with closing(_heard(face, listener, timeout)) as found:
                for number, heard in enumerate(found, 1):
                    _show(face, heard)
                    if words:
                        _run(words, heard)
                    with suppress(Transient):  # its position is kept with the next one's, or when listening ends
                        heard.ack()
                    if number == limit:
                        return
        except KeyboardInterrupt:
            face.say("stopped")


def _heard(face: Face, listener: Listener, timeout: float | None) -> Generator[Heard, None, None]:
    """As they come. While Redis is silent, or somebody else has the cursor, it waits for so long as for an event."""
    told, since = "", time.monotonic()
    while True:
        try:
            with closing(listener.listen(timeout)) as found:  # type: ignore[type-var]
                for heard in found:
                    yield heard
                    told, since = "", time.monotonic()
            return
        except Transient as error:
            if timeout is not None and time.monotonic() - since >= timeout:
                raise
            if told != (told := str(error)):
                face.say(f"waiting: {error}")
            time.sleep(PAUSE_SECONDS if timeout is None else min(PAUSE_SECONDS, timeout))


def _show(face: Face, heard: Heard) -> None:
    if face.json:
        print_line(heard.event.model_dump_json())
        return
    told = {name: json.dumps(value) if isinstance(value, dict | list) else str(value) for name, value in heard.data.items()}
    print_line(f"{heard.time}  {heard.type.removeprefix('broker.')}  {heard.subject}  {joined(told)}")


def _words(command: str | None) -> list[str]:
    try:
        return shlex.split(command or "")
    except ValueError as error:
        raise Invalid("not a command", of=str(command), why=str(error)) from None


def _run(words: list[str], heard: Heard) -> None:
    try:
        done = subprocess.run(words, input=f"{heard.event.model_dump_json()}\n".encode(), check=False)
    except OSError as error:
        raise Terminal("the command cannot be run", of=words[0], why=str(error)) from None
    if done.returncode:
        raise Terminal(
            "the command failed",
            of=words[0],
            why=f"it ended with {done.returncode}",
            hint="With --cursor the event comes again",
        )
