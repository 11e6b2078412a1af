"""append: changes into a dataset's change log.  log status: what waits there for its micro-batches."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import pyarrow as pa

from broker.changelog import Ack, ChangeLog
from broker.changelog_rows import pieces, session_over
from broker.cli.face import Advance, Command, Face, Group, columns, pass_face
from broker.cli.words import bytes_text, span_text
from broker.connect import Dataset
from broker.errors import BadData, BrokerError, Conflict, Gap, InvalidRequest, OutcomeUnknown, Overloaded, TimedOut, Transient
from broker.rules.blocks import LEVELS, Level
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
@click.argument("name", metavar="DATASET")
@click.argument("file", default="-", type=click.Path(path_type=Path))
@click.option("--delete", is_flag=True, help="FILE names keys to delete, with the order columns where the dataset has them.")
@click.option("--producer", help="Whose changes these are: its blocks are numbered without gaps.")
@click.option("--block", type=int, help="FILE is this block of the producer: the same again is dropped, a gap is refused.")
@click.option("--level", type=click.Choice(LEVELS), default="accepted", show_default=True, help="When to answer.")
@click.option(
    "--timeout",
    type=float,
    default=30.0,
    show_default=True,
    help="Seconds for each block to find room, and for the last one to reach the level.",
)
@pass_face
def append(face: Face, /, name: str, file: Path, **options: Any) -> None:
    """Append the changes in FILE (.parquet, .csv, .jsonl, each also .gz; - reads JSON lines from stdin), in its order."""
    if options["block"] is not None and options["producer"] is None:
        raise InvalidRequest("--block needs --producer", of=name)
    if options["block"] is not None and file == Path("-"):
        raise InvalidRequest("--block needs a FILE", of=name, why="a block is never cut, and stdin may never end")
    with face.connect() as broker:
        with face.progress(f"append {name}", unit="rows") as advance:
            appending = _Appending(broker.dataset(name), broker.parts.settings, advance, **options)
            for path in _paths(file):
                appending.file(path, "stdin" if file == Path("-") else str(path))
        rows, ack = appending.rows, appending.last
        last = asdict(ack or Ack(options["producer"] or "", 0, level=options["level"]))
        face.emit(
            {"dataset": name} | last | {"rows": rows, "blocks": appending.blocks},
            f"{rows} row{'' if rows == 1 else 's'} {options['level']}" + (f", {ack.producer} block {ack.block}" if ack else ""),
        )


@click.group("log", cls=Group, examples="broker log status shop/catalog/offers")
def log() -> None:
    """The change log of a dataset."""


@log.command(
    "status", cls=Command, examples="broker log status shop/catalog/offers --producer pim-1",
    answer="{dataset, slots, producer, next_block}; producer and next_block are null unless asked for",
)  # fmt: skip
@click.argument("name", metavar="DATASET")
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


class _Appending:
    """One command's appends: each block a call, which comes again while batches do not keep up. `last`: the newest ack."""

    def __init__(
        self, found: Dataset, settings: Settings, advance: Advance, *,
        delete: bool, producer: str | None, block: int | None, level: Level, timeout: float,
    ) -> None:  # fmt: skip
        self._found, self._settings, self._advance = found, settings, advance
        self._session = found.state.session
        self._append = found.changelog.delete if delete else found.changelog.append
        self._producer, self._block, self._level, self._timeout = producer, block, level, timeout
        self.rows, self.blocks = 0, 0
        self.last: Ack | None = None

    def file(self, path: Path, called: str) -> None:
        """All of it, read once; its last block waits for the level, which says the same of those before."""
        if self._block is not None:  # never cut: the same call again is the same block
            self._call(lambda: self._changes(path, called), self._level)
            return
        with self._changes(path, called) as batches:
            blocks = (piece for batch in batches for piece in pieces(batch))
            with self._telling():
                block = next(blocks, None)
            self._piece(() if block is None else block.slice(0, 0), self._level)  # what cannot be is told before anything is in
            while block is not None:
                with self._telling():
                    after = next(blocks, None)
                self._piece(block, self._level if after is None else "accepted")
                block = after

    def _changes(self, path: Path, called: str) -> closing[Generator[pa.RecordBatch, None, None]]:
        """The file, which is closed and its temporary files gone also where not all of it is read."""
        return closing(changes_of(self._found.spec, path, self._settings, called))

    def _piece(self, rows: Any, level: Level) -> None:
        with self._telling(len(rows)):
            self._call(lambda: nullcontext(rows), level)
        if self._found.state.session != self._session:  # a later block says nothing of those that were lost with the one before
            raise session_over(self._found.id)

    def _call(self, rows: Callable[[], AbstractContextManager[Any]], level: Level) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                with rows() as given:
                    ack = self._append(given, self._producer, self._block, level, self._timeout)
                break
            except Overloaded:
                if time.monotonic() > deadline:
                    raise
                time.sleep(FULL_SECONDS)
        self.rows, self.blocks, self.last = self.rows + ack.rows, self.blocks + ack.blocks, ack
        self._advance(ack.rows)

    @contextmanager
    def _telling(self, under_way: int = 0) -> Iterator[None]:
        """What is in, and how to go on: this process ends, and the next one cannot know the same rows again."""
        try:
            yield
        except (Conflict, Gap):  # what was in may be lost: they say how to go on
            raise
        except TimedOut as error:
            error.hint = (
                f"All {self.rows + under_way} rows read so far are in, and need not come again. What waits for a micro-batcher:"
                f" broker log status {self._found.id}"
            )
            raise
        except BrokerError as error:
            maybe = under_way if isinstance(error, Transient) else 0
            if self.rows and under_way and isinstance(error, BadData):
                error.why += f", behind the first {self.rows} rows"  # it counts from there
            if self.rows or isinstance(error, OutcomeUnknown):
                error.hint = " ".join(filter(None, (_remedy(error), self._standing(maybe))))
            raise

    def _standing(self, maybe: int) -> str:
        again = (
            "all of it again does no harm, either: the dataset has order columns" if self._found.spec.order
            else "all of it again could put older rows over newer ones. With --producer and --block a file can come again"
        )  # fmt: skip
        unsure = f", and some of the next {maybe} may be" if maybe else ""
        return f"The first {self.rows} rows are in{unsure}. Append those behind them; {again}"


def _remedy(error: BrokerError) -> str:
    """What to do about the error itself."""
    if isinstance(error, Overloaded):
        return "Let micro-batches catch up: broker worker --role microbatch."
    return f"{error.hint.rstrip('.')}." if error.hint and not isinstance(error, OutcomeUnknown) else ""


def _paths(file: Path) -> Iterator[Path]:
    if file != Path("-"):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="broker-append-") as folder:
        yield from runs_of_lines(sys.stdin.buffer, Path(folder))
