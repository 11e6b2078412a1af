"""find: datasets and versions by their attributes."""

from __future__ import annotations

from dataclasses import asdict

import click

from broker.cli.face import Command, Face, columns, joined, pairs, pass_face
from broker.cli.words import bytes_text, time_text
from broker.errors import Invalid
from broker.search import Search


@click.command(
    "find", cls=Command,
    examples="""
    broker find why=nightly
    broker find kind=snapshot producer=direct --dataset "shop/*"
    broker find sha256=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    """,
    answer="A list of {dataset, version, time, rows, bytes, system, custom}; version null: the dataset itself",
)  # fmt: skip
@click.argument("wanted", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.option("--dataset", "pattern", default="*", help="Only datasets whose id matches this glob.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@pass_face
def find(face: Face, wanted: tuple[str, ...], pattern: str, limit: int) -> None:
    """Datasets and versions that have all these attributes, system or custom; of a dataset, newest versions first."""
    asked = pairs(wanted, "KEY=VALUE, such as")
    if len(asked) != len(wanted):
        raise Invalid("a key stands twice", of=" ".join(wanted)[:100])
    with face.connect() as broker:
        found = Search(broker.parts.redis, broker.parts.index).find(asked, pattern, limit)
    rows = [
        (hit.dataset, hit.version, None if hit.bytes is None else hit.rows,
         None if hit.bytes is None else bytes_text(hit.bytes), time_text(hit.time), joined(hit.custom))
        for hit in found
    ]  # fmt: skip
    face.emit([asdict(hit) for hit in found], columns(("dataset", "version", "rows", "bytes", "time", "attributes"), rows))
    if len(found) == limit:
        face.say(f"these are the first {limit}: --limit shows more")
