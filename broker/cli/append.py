"""append: changes into a dataset's change log.  log status: what waits there for its micro-batches."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import pyarrow as pa

from broker.changelog import Ack, ChangeLog
from broker.cli.face import Advance, Command, Face, Group, columns, pass_face
from broker.cli.words import bytes_text, span_text
from broker.connect import Dataset
from broker.errors import InvalidRequest, Overloaded
from broker.rules.blocks import LEVELS
from broker.settings import Settings
from broker.sources.changes import changes_of, runs_of_lines

FULL_SECONDS: Final = 0.2
"""Between looks at a full log."""


@click.command(
    "append", cls=Command,
    examples="""
    broker append shop/catalog/offers monday.jsonl
    broker append shop/catalog/offers -
    broker append shop/catalog/offers gone.csv --delete --level sealed
    broker append shop/catalog/offers 0042.parquet --producer pim-1 --block 42
    """,
    answer="{dataset, rows, blocks, producer, block, offsets, level}; block, offsets (log slot: entry id): the last one's",
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
        found, rows, blocks, ack = broker.dataset(name), 0, 0, None
        with face.progress(f"append {name}", unit="rows") as advance:
            for path in _paths(file):
                ack = _append(found, (path, broker.parts.settings), advance, **options)
                rows, blocks = rows + ack.rows, blocks + ack.blocks
        last = asdict(ack or Ack(options["producer"] or "", 0, level=options["level"]))
        face.emit(
            {"dataset": name} | last | {"rows": rows, "blocks": blocks},
            f"{rows} rows {options['level']}" + (f", {ack.producer} block {ack.block}" if ack else ""),
        )


@click.group("log", cls=Group, examples="broker log status shop/catalog/offers")
def log() -> None:
    """The change log of a dataset."""


@log.command(
    "status", cls=Command, examples="broker log status shop/catalog/offers --producer pim-1",
    answer="{dataset, slots, producer, next_block}; producer and next_block are null unless asked for",
)  # fmt: skip
@click.argument("name")
@click.option("--producer", help="Also the number of its next block.")
@pass_face
def status(face: Face, name: str, producer: str | None) -> None:
    """What waits for micro-batches in each log slot, how far versions hold it, and since when the oldest waits."""
    with face.connect() as broker:
        changes: ChangeLog = broker.dataset(name).changelog
        slots, following = changes.status(), changes.resume(producer) if producer else None
    value = {"dataset": name, "slots": [asdict(slot) for slot in slots], "producer": producer, "next_block": following}
    lines = columns(
        ("slot", "waiting rows", "waiting", "oldest", "rows so far", "consumed"),
        [
            (one.slot, one.unbatched_rows, bytes_text(one.unbatched_bytes),
             None if one.oldest_seconds is None else span_text(one.oldest_seconds), one.appended_rows, one.consumed)
            for one in slots
        ],
    )  # fmt: skip
    face.emit(value, [*lines, *([f"{producer}: next block {following}"] if producer else [])])


def _append(found: Dataset, source: tuple[Path, Settings], advance: Advance, *, delete: bool, **options: Any) -> Ack:
    """Waits while batches do not keep up: the same call again goes on where the last one stopped."""
    log, deadline = found.changelog, time.monotonic() + options["timeout"]
    while True:
        rows = _counted(changes_of(found.spec, *source), advance)
        try:
            return log.delete(rows, **options) if delete else log.append(rows, **options)
        except Overloaded:
            if time.monotonic() > deadline:
                raise
            time.sleep(FULL_SECONDS)


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
