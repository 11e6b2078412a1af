"""publish: files in, a version out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow as pa

from broker.cli.face import Advance, Command, Face, pairs, pass_face
from broker.cli.words import bytes_text
from broker.sources.files import rows_of


@click.command(
    "publish", cls=Command,
    examples="""
    broker publish shop/catalog/offers offers.parquet
    broker publish shop/catalog/offers monday.csv.gz tuesday.csv.gz --delta --attribute store=eu-1
    """, answer="{dataset, version, changed, unchanged_rows, stale_rows, edge}")  # fmt: skip
@click.argument("name", metavar="DATASET")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--delta", is_flag=True, help="Commit only the difference to the newest version; an absent key is a delete.")
@click.option("--attribute", "attributes", multiple=True, metavar="K=V", help="Custom attribute of the version.")
@pass_face
def publish(face: Face, name: str, files: tuple[Path, ...], delta: bool, attributes: tuple[str, ...]) -> None:
    """Publish FILES (.parquet, .csv, .jsonl, each also .gz) as a new version: the whole dataset. The later file wins."""
    with face.connect() as broker:
        found = broker.dataset(name)
        with face.progress(f"publish {name}", unit="rows") as advance:
            rows = _counted(rows_of(found.spec, files, broker.parts.settings), advance)
            done = found.publish(rows, delta=delta, attributes=pairs(attributes))
        edge = done.edge
        value = {
            "dataset": name,
            "version": done.version,
            "changed": edge is not None,
            "unchanged_rows": done.unchanged,
            "stale_rows": done.stale,
            "edge": edge.model_dump(mode="json") | {"kind": edge.kind} if edge else None,
        }
        text = (
            f"version {done.version}: {edge.kind}, {edge.rows} rows, {bytes_text(edge.bytes)}"
            if edge
            else f"unchanged at version {done.version}"
        )
        face.emit(value, text)


def _counted(batches: Iterator[pa.RecordBatch], advance: Advance) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        advance(batch.num_rows)
