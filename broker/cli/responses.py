"""responses: what a target has been answered."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Generator
from contextlib import closing
from itertools import islice
from typing import Final

import click

from broker.cli.face import Command, Face, pass_face
from broker.cli.shown import COMPLETION, completion_text, completion_value
from broker.responses import PAGE, Response, Responses

POLL_SECONDS: Final = 0.2
BLOCK_SECONDS: Final = 1.0


@click.command(
    "responses", cls=Command,
    examples="""
    broker responses search
    broker responses search --follow --ack --json
    """, answer=f"A line for each: {COMPLETION}")  # fmt: skip
@click.argument("target")
@click.option("--follow", is_flag=True, help="Go on as they come, until Ctrl-C.")
@click.option(
    "--ack", is_flag=True, help="Take them: each is acknowledged behind its line. Without it they are only looked at."
)
@click.option("--limit", type=click.IntRange(1), help="Stop after so many.")
@pass_face
def responses(face: Face, target: str, follow: bool, ack: bool, limit: int | None) -> None:
    """Completions of a target, one line each (with --json one JSON object each), oldest first."""
    with face.connect() as broker, closing(broker.responses(target)) as reader:
        taken = _taken(reader, follow, limit) if ack else _seen(reader, follow)
        try:
            with closing(taken):
                for response in islice(taken, limit):
                    face.emit(completion_value(response.completion), completion_text(response.completion))
                    if ack:
                        response.ack()
        except KeyboardInterrupt:
            face.say("stopped")


def _taken(reader: Responses, follow: bool, limit: int | None) -> Generator[Response, None, None]:
    """As they come. What was read and not asked for in the end is given back, for whoever reads next."""
    left, held = limit or sys.maxsize, deque[Response]()
    try:
        while left:
            held.extend(reader.read(min(PAGE, left), BLOCK_SECONDS if follow else 0.0))
            if not held and not follow:
                return
            left -= len(held)
            while held:
                yield held[0]
                held.popleft()
    finally:
        for response in held:
            response.retry()


def _seen(reader: Responses, follow: bool) -> Generator[Response, None, None]:
    """Everything unread, then what comes behind it."""
    last: dict[bytes, bytes] = {}
    while True:
        found = reader.peek(PAGE, last)
        for response in sorted(found, key=_age):
            last[response.entry.stream] = response.entry.id
            yield response
        if not found and not follow:
            return
        if not found:
            time.sleep(POLL_SECONDS)


def _age(response: Response) -> tuple[int, ...]:
    return tuple(map(int, response.entry.id.split(b"-")))
