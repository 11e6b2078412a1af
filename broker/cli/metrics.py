"""metrics: what Redis knows, as Prometheus text."""

from __future__ import annotations

import click

from broker.cli.face import Command, Face, pass_face, print_line
from broker.metrics import metrics as text_of
from broker.metrics import samples, watcher


@click.command(
    "metrics", cls=Command,
    examples="""
    broker metrics
    broker metrics --json
    """,
    answer="A list of {name, value, labels}; without --json: Prometheus text",
)  # fmt: skip
@pass_face
def metrics(face: Face) -> None:
    """Queues, flights, dead letters, versions, bytes, change logs, cursors and memory, computed from Redis alone."""
    with face.connect() as broker:
        if face.json:
            face.emit([sample._asdict() for sample in samples(watcher(broker.parts).read())], "")
        else:
            print_line(text_of(broker).rstrip("\n"))
