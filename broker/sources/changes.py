"""Files of changes, for the change log: every row in the file's own order, where a key may come again."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import duckdb
import pyarrow as pa

from broker.columnar.sql import listed
from broker.errors import BadData, NotFound, Unavailable
from broker.model.dataset import DatasetSpec
from broker.settings import Settings
from broker.sources.readers import format_of, scan_of

BATCH_ROWS: Final = 65_536
READ_BYTES: Final = 1 << 20
LINE_BYTES: Final = 64 << 20
"""A line longer than this is no record."""
_FOR_PROGRAMMERS: Final = re.compile("Possible [Ss]olution|LINE 1:|Try setting|This type was auto-detected")
"""Where in its message DuckDB goes on to speak of the query."""
_OF_THE_DATA: Final = re.compile("(Invalid Input|Conversion|Out of Range|Mismatch Type|Serialization) Error")
"""How the messages of those errors begin that Arrow hands on as an OSError, as it does with all of DuckDB's."""


def changes_of(
    spec: DatasetSpec, path: Path, settings: Settings, called: str = ""
) -> Generator[pa.RecordBatch, None, None]:  # fmt: skip
    """The rows of a CSV, JSONL or Parquet file (each also .gz), first to last, with the dataset's types where it knows them.

    `called`: the name that errors give it. A new column without any value says nothing of a type and is left out.
    Memory: half of `settings.memory_limit_bytes`. Raises NotFound, BadData, Invalid, Unavailable.
    """
    known = spec.columns.types if spec.columns else {}
    with (
        tempfile.TemporaryDirectory(prefix="broker-changes-", dir=settings.temp_folder) as folder,
        _errors(path, called or str(path)),
        duckdb.connect(config={"memory_limit": f"{settings.memory_limit_bytes // 2}B", "temp_directory": folder}) as engine,
    ):
        path.stat()  # of a file that is not there DuckDB speaks as of a pattern
        scan = scan_of(engine, path, format_of(path), known, Path(folder)).retyped(known)
        named = [name for name in scan.columns if name not in scan.valueless or name in (*spec.key, *spec.order)]
        reading = engine.cursor()  # what looked at the file may have left a result half read
        reading.execute("SET TimeZone = 'UTC'")
        query = f"SELECT {listed(named)} FROM {scan.sql}"
        yield from reading.sql(query, params=scan.parameters).to_arrow_reader(BATCH_ROWS)


def runs_of_lines(stream: IO[bytes], folder: Path) -> Iterator[Path]:
    """A stream of JSON lines as files of whole lines, each of what has come by then: a trickle is not kept waiting.

    The same path each time: read one before the next. Raises BadData for a line that never ends.
    """
    path, rest = folder / "lines.jsonl", b""
    read = getattr(stream, "read1", stream.read)
    while data := read(READ_BYTES):
        whole, newline, rest = (rest + data).rpartition(b"\n")
        if len(rest) > LINE_BYTES:
            raise BadData("a line is too long", of="stdin", why=f"more than {LINE_BYTES} bytes", hint="Give JSON lines")
        if whole.strip():
            path.write_bytes(whole + newline)
            yield path
    if rest.strip():
        path.write_bytes(rest + b"\n")
        yield path


@contextmanager
def _errors(path: Path, called: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound("no such file", of=called, hint="Give a path, or - for JSON lines on stdin") from None
    except (duckdb.Error, OSError, UnicodeDecodeError, EOFError) as error:
        told = str(error).replace(str(path), called)
        if isinstance(error, duckdb.OutOfMemoryException) or (isinstance(error, OSError) and not _OF_THE_DATA.match(told)):
            raise Unavailable("the file cannot be read now", of=called, why=told[:300]) from None
        why = " ".join(_FOR_PROGRAMMERS.split(told)[0].split())[:400]
        raise BadData("not a readable file of its format", of=called, why=why) from None
