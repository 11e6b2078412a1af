"""responses: what a target has been answered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import click

from broker.cli.face import Command, Face, pass_face
from broker.cli.shown import completion_text, completion_value
from broker.connect import Broker
from broker.responses import Response

POLL_SECONDS: Final = 0.2


@click.command(
    "responses", cls=Command,
    examples="""
    broker responses search
    broker responses search --follow --ack --json
    """,
)  # fmt: skip
@click.argument("target")
@click.option("--follow", is_flag=True, help="Go on as they come, until Ctrl-C.")
@click.option(
    "--ack", is_flag=True, help="Take them: each is acknowledged behind its line. Without it they are only looked at."
)
@click.option("--limit", type=click.IntRange(1), default=1_000, show_default=True, help="Look at no more at once.")
@pass_face
def responses(face: Face, target: str, follow: bool, ack: bool, limit: int) -> None:
    """Completions of a target, one line each (with --json one JSON object each), oldest first."""
    with face.connect() as broker:
        try:
            for response in _taken(broker, target, follow) if ack else _peeked(broker, target, follow, limit):
                face.emit(completion_value(response.completion), completion_text(response.completion))
                if ack:
                    response.ack()
        except KeyboardInterrupt:
            face.say("stopped")


def _taken(broker: Broker, target: str, follow: bool) -> Iterator[Response]:
    reader = broker.responses(target)
    if follow:
        yield from reader.listen()
    while found := reader.read():
        yield from found
    reader.close()


def _peeked(broker: Broker, target: str, follow: bool, limit: int) -> Iterator[Response]:
    reader, seen = broker.responses(target), set[tuple[bytes, bytes]]()
    while True:
        unread = reader.peek(limit)
        keys = {(response.entry.stream, response.entry.id) for response in unread}
        for response in unread:
            if (response.entry.stream, response.entry.id) not in seen:
                yield response
        seen = keys
        if not follow:
            return
        time.sleep(POLL_SECONDS)
