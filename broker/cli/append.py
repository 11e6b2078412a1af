"""append: changes into a dataset's change log.  log status: what waits there for its micro-batches."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from broker.changelog import Ack, ChangeLog
from broker.cli.face import Advance, Command, Face, columns, pass_face
from broker.cli.words import bytes_text, span_text
from broker.connect import Dataset
from broker.errors import InvalidRequest
from broker.rules.blocks import LEVELS
from broker.sources.changes import changes_of, runs_of_lines


@click.command(
    "append", cls=Command,
    examples="""
    broker append shop/catalog/offers monday.jsonl
    tail -f changes.jsonl | broker append shop/catalog/offers -
    broker append shop/catalog/offers gone.csv --delete --level sealed
    broker append shop/catalog/offers 0042.parquet --producer pim-1 --block 42
    """,
)  # fmt: skip
@click.argument("name")
@click.argument("file", default="-", type=click.Path(path_type=Path))
@click.option("--delete", is_flag=True, help="FILE names keys to delete, with the order columns where the dataset has them.")
@click.option("--producer", help="Whose changes these are: its blocks are numbered without gaps.")
@click.option("--block", type=int, help="FILE is this block of the producer: the same again is dropped, a gap is refused.")
@click.option("--level", type=click.Choice(LEVELS), default="accepted", show_default=True, help="When to answer.")
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds for each block to reach its level.")
@pass_face
def append(face: Face, /, name: str, file: Path, **options: Any) -> None:
    """Append the changes in FILE (.parquet, .csv, .jsonl, each also .gz; - reads JSON lines from stdin), in its order."""
    if options["block"] is not None and options["producer"] is None:
        raise InvalidRequest("--block needs --producer", of=name)
    if options["block"] is not None and file == Path("-"):
        raise InvalidRequest("--block needs a FILE", of=name, why="a block is never cut, and stdin may never end")
    with face.connect() as broker:
        found, rows, ack = broker.dataset(name), 0, None
        with face.progress(f"append {name}", unit="rows") as advance:
            for path in _paths(file):
                ack = _append(found, _counted(changes_of(found.spec, path), advance), **options)
                rows += ack.rows
        value = {"dataset": name, "rows": rows} | ({} if ack is None else asdict(ack) | {"rows": rows})
        face.emit(value, f"{rows} rows {options['level']}" + (f", {ack.producer} block {ack.block}" if ack else ""))


@click.group("log")
def log() -> None:
    """The change log of a dataset."""


@log.command("status", cls=Command, examples="broker log status shop/catalog/offers")
@click.argument("name")
@click.option("--producer", help="Also the number of its next block.")
@pass_face
def status(face: Face, name: str, producer: str | None) -> None:
    """What waits for micro-batches in each log slot, how far versions hold it, and since when the oldest waits."""
    with face.connect() as broker:
        changes: ChangeLog = broker.dataset(name).changelog
        slots, following = changes.status(), changes.resume(producer) if producer else None
    value: dict[str, Any] = {"dataset": name, "slots": [asdict(slot) for slot in slots]}
    value |= {"producer": producer, "next_block": following} if producer else {}
    lines = columns(
        ("slot", "waiting rows", "waiting", "oldest", "rows so far", "consumed"),
        [
            (one.slot, one.unbatched_rows, bytes_text(one.unbatched_bytes),
             None if one.oldest_seconds is None else span_text(one.oldest_seconds), one.appended_rows, one.consumed)
            for one in slots
        ],
    )  # fmt: skip
    face.emit(value, [*lines, *([f"{producer}: next block {following}"] if producer else [])])


def _append(found: Dataset, rows: Iterator[pa.RecordBatch], *, delete: bool, **options: Any) -> Ack:
    return found.changelog.delete(rows, **options) if delete else found.changelog.append(rows, **options)


def _paths(file: Path) -> Iterator[Path]:
    if file != Path("-"):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="broker-append-") as folder:
        yield from runs_of_lines(sys.stdin.buffer, Path(folder))


def _counted(batches: Iterator[pa.RecordBatch], advance: Advance) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        advance(batch.num_rows)
