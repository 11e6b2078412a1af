"""Files in a folder as a source: all of them together are the dataset, and the later file wins."""

from __future__ import annotations

import glob as globbing
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import duckdb
import pyarrow as pa

from broker.columnar.database import to_error
from broker.columnar.scratch import disk_errors
from broker.columnar.sql import listed, quoted
from broker.errors import BadData, DuplicateKey, Invalid, NotFound, NullKey, Overloaded, SchemaConflict, Unavailable
from broker.model.dataset import DatasetSpec, widens
from broker.outcomes import Outcome, ProductionRequest, Since, Snapshot, Unchanged
from broker.settings import Settings
from broker.sources.readers import FileFormat, Scan, format_of, scan_of

BATCH_ROWS: Final = 10_000
SHOWN_KEYS: Final = 5


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as the folder showed it. Whatever changes the content changes one of these."""

    path: Path
    bytes: int
    modified_ns: int
    inode: int


class Files:
    """Whole files of CSV, JSONL or Parquet, each also as .gz; `glob` may hold `*`, `?` and `**`.

    Always the full state: every key of every file, from the last file in name order that has it. A key twice in one file is
    DuplicateKey. So a folder of one full file and later files of changes works; a file taken away takes its keys with it.
    An untouched folder answers `Unchanged` without being read. Write a file under a hidden name (`.part`) and rename it.

    CSV is RFC 4180 in UTF-8 with a header; an empty field is NULL, also a quoted one. Columns the dataset knows have its types;
    others are sniffed over whole files (see `readers`); a file that lacks a column has NULL there. Memory is bounded by
    `memory_limit_bytes`, beyond which DuckDB spills into the folder of temporary files.

    Called by the broker. Raises NotFound when no file matches: an empty folder would delete everything. Raises Unavailable
    when a file changes or goes while it is read; BadData, DuplicateKey, NullKey, SchemaConflict naming the file.
    """

    def __init__(self, glob: str, format: FileFormat | None = None, memory_limit_bytes: int = 512 << 20) -> None:
        if format is not None and format not in get_args(FileFormat):
            raise Invalid("unknown file format", of=format, hint=f"One of {', '.join(get_args(FileFormat))}")
        if not glob:
            raise Invalid("glob is empty", of="glob", hint="Example: feeds/*.csv.gz")
        self.glob, self.format, self.memory_limit_bytes = glob, format, memory_limit_bytes

    def __repr__(self) -> str:
        return f"Files({self.glob!r})"

    def __call__(self, request: ProductionRequest, since: Since | None) -> Outcome:
        """A full Snapshot, or Unchanged when the folder is as `since.position` says."""
        seen = self._listed()
        position = _fingerprint(seen)
        if since is not None and since.position == position:
            return Unchanged(position)
        rows = _Reading(request.spec, self.format, self.memory_limit_bytes).rows(seen)
        next(rows)
        return Snapshot(rows, position)

    def _listed(self) -> tuple[_Seen, ...]:
        found = (_stat(Path(path)) for path in sorted(globbing.glob(self.glob, recursive=True)))
        seen = tuple(file for file in found if file is not None)
        if not seen:
            raise NotFound(
                "no file matches", of=self.glob, why="an empty folder would delete every row",
                hint="Check the path; to empty the dataset, leave one file with a header only",
            )  # fmt: skip
        return seen


@dataclass(frozen=True, slots=True)
class _Reading:
    """How files become rows of a dataset. What DuckDB's memory cannot hold lies in `folder` (None: the system's)."""

    spec: DatasetSpec
    format: FileFormat | None
    memory_limit_bytes: int
    folder: Path | None = None

    def rows(self, seen: tuple[_Seen, ...]) -> Iterator[pa.RecordBatch]:
        """An empty batch once everything was checked (twice: `Files` takes the first), then the rows of file after file."""
        key = self.spec.key
        with self._scratch() as folder, self._engine(folder) as engine:
            scans = self._scans(engine, seen, folder)
            columns = _unified(self.spec, scans)
            for number, scan in enumerate(scans):
                with _file_errors(scan.path, seen):
                    _note_keys(engine, key, columns, (number, scan))
            engine.execute(f"CREATE TEMP TABLE winners AS SELECT max(file) AS file, {listed(key)} FROM seen GROUP BY ALL")
            empty = pa.RecordBatch.from_pylist([], schema=_schema(engine, columns))
            yield from (empty, empty)
            for number, scan in enumerate(scans):
                with _file_errors(scan.path, seen):
                    yield from _reader(engine, key, columns, (number, scan))
            _check_untouched(seen)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        parent = self.folder or Path(tempfile.gettempdir())
        with disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(prefix="broker-files-", dir=parent)
        with made as folder:
            yield Path(folder)

    @contextmanager
    def _engine(self, folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
        config: dict[str, Any] = {"memory_limit": f"{self.memory_limit_bytes}B", "temp_directory": str(folder)}
        config["preserve_insertion_order"] = False  # else DuckDB buffers rows to keep it
        with duckdb.connect(config=config) as engine:
            engine.execute("SET TimeZone = 'UTC'")
            yield engine

    def _scans(self, engine: duckdb.DuckDBPyConnection, seen: tuple[_Seen, ...], folder: Path) -> list[Scan]:
        """Types are settled over all files, so that one file's guess never decides how the rows of another one read."""
        known = self.spec.columns.types if self.spec.columns else {}
        scans = []
        for file in seen:
            with _file_errors(file.path, seen):
                scans.append(scan_of(engine, file.path, self.format or format_of(file.path), known, folder))
        settled = _settled(scans) | known
        return [scan.retyped(settled) for scan in scans]


def rows_of(spec: DatasetSpec, paths: Iterable[Path], settings: Settings) -> Iterator[pa.RecordBatch]:
    """The rows of exactly these files, read and checked as `Files` does: the later file wins per key. Raises as it does.

    Memory and temporary files are those of `settings`: half the memory, since the engine that takes the rows has its own.
    """
    listed_files = list(paths)
    seen = tuple(file for path in listed_files if (file := _stat(path)) is not None)
    if len(seen) < len(listed_files) or not seen:
        raise NotFound("no such file", of=", ".join(str(path) for path in listed_files if _stat(path) is None)[:500])
    return _Reading(spec, None, settings.memory_limit_bytes // 2, settings.temp_folder).rows(seen)


def _stat(path: Path) -> _Seen | None:
    """None: a folder, or gone already."""
    try:
        found = path.stat()
    except OSError:
        return None
    return _Seen(path, found.st_size, found.st_mtime_ns, found.st_ino) if path.is_file() else None


def _fingerprint(seen: tuple[_Seen, ...]) -> dict[str, object]:
    """A hash, since a position travels in every record and a folder may hold thousands of files."""
    digest = hashlib.sha256(repr([(str(f.path), f.bytes, f.modified_ns, f.inode) for f in seen]).encode())
    return {"files": len(seen), "bytes": sum(file.bytes for file in seen), "sha256": digest.hexdigest()}


def _check_untouched(seen: tuple[_Seen, ...]) -> None:
    for file in seen:
        if _stat(file.path) != file:
            raise Unavailable(
                "a file changed while it was read", of=str(file.path), hint="Write under a hidden name, then rename"
            )


@contextmanager
def _file_errors(path: Path, seen: tuple[_Seen, ...]) -> Iterator[None]:
    """DuckDB's and the system's errors as ours. A folder that changed meanwhile explains any of them."""
    try:
        yield
    except OSError as error:
        _check_untouched(seen)
        with disk_errors(path):
            raise error
    except (duckdb.Error, pa.ArrowException) as error:
        if isinstance(error, duckdb.Error) and isinstance(known := to_error(error, str(path)), Overloaded):
            raise known from None
        _check_untouched(seen)
        raise BadData(
            "a file cannot be read", of=str(path), why=_short(error), hint="It must be UTF-8 and of its format"
        ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split("Possible Solution")[0].split())[:400]


def _settled(scans: list[Scan]) -> dict[str, str]:
    """One type per column over all files: the wider one; where neither is, text, as it was written."""
    settled: dict[str, str] = {}
    for scan in scans:
        for name, kind in scan.columns.items():
            if name not in scan.valueless:
                settled[name] = _wider(settled.get(name, kind), kind)
    return settled


def _wider(one: str, other: str) -> str:
    if widens(one, other):
        return other
    if widens(other, one):
        return one
    return "DOUBLE" if {one, other} == {"BIGINT", "DOUBLE"} else "VARCHAR"


def _unified(spec: DatasetSpec, scans: list[Scan]) -> dict[str, str]:
    """Columns of the whole, in order of appearance. Raises SchemaConflict where a file lacks the key or has another type."""
    columns: dict[str, tuple[str, Path]] = {}
    for scan in scans:
        missing = [name for name in spec.key if name not in scan.columns]
        if missing:
            raise SchemaConflict(
                "a file lacks key columns", of=str(scan.path), why=f"no {', '.join(missing)} in {list(scan.columns)}"
            )
        for name, kind in scan.columns.items():
            before, where = columns.setdefault(name, (kind, scan.path))
            if not widens(kind, before) and not widens(before, kind):
                raise SchemaConflict(
                    "files differ in a column's type", of=name, why=f"{before} in {where}, {kind} in {scan.path}"
                )
            columns[name] = (_wider(before, kind), where)
    return {name: kind for name, (kind, _) in columns.items()}


def _schema(engine: duckdb.DuckDBPyConnection, columns: dict[str, str]) -> pa.Schema:
    chosen = ", ".join(f"CAST(NULL AS {kind}) AS {quoted(name)}" for name, kind in columns.items())
    return engine.sql(f"SELECT {chosen} LIMIT 0").to_arrow_reader(BATCH_ROWS).schema


def _note_keys(
    engine: duckdb.DuckDBPyConnection, key: tuple[str, ...], columns: dict[str, str], numbered: tuple[int, Scan]
) -> None:
    """Remember which keys a file has. Raises NullKey and DuplicateKey, naming the file and the first few keys."""
    number, scan = numbered
    typed = ", ".join(f"{quoted(name)} {columns[name]}" for name in key)
    engine.execute(f"CREATE TEMP TABLE IF NOT EXISTS seen (file INTEGER, times BIGINT, {typed})")
    counted = f"SELECT {number}, count(*), {listed(key)} FROM {scan.sql} GROUP BY {listed(key)}"
    engine.execute(f"INSERT INTO seen {counted}", scan.parameters)
    absent = " OR ".join(f"{quoted(name)} IS NULL" for name in key)
    nulls = engine.execute(f"SELECT sum(times) FROM seen WHERE file = {number} AND ({absent})").fetchone()
    if nulls and nulls[0]:
        raise NullKey("a key is null", of=str(scan.path), why=f"{nulls[0]} row(s) without {', '.join(key)}")
    shown = ", ".join(f"{quoted(name)}::VARCHAR" for name in key)
    twice = engine.execute(
        f"SELECT {shown}, count(*) OVER () FROM seen WHERE file = {number} AND times > 1 ORDER BY ALL LIMIT {SHOWN_KEYS}"
    ).fetchall()
    if twice:
        examples = ", ".join("/".join(row[:-1]) for row in twice)
        why = f"{twice[0][-1]} key(s), first {', '.join(key)} = {examples}"
        raise DuplicateKey(
            "a key comes twice in one file", of=str(scan.path), why=why,
            hint="Across files the later one wins; inside one file nothing says which row is newer",
        )  # fmt: skip


def _reader(
    engine: duckdb.DuckDBPyConnection, key: tuple[str, ...], columns: dict[str, str], numbered: tuple[int, Scan]
) -> pa.RecordBatchReader:
    """The rows of one file whose key no later file has, under the columns of the whole."""
    number, scan = numbered
    chosen = ", ".join(
        f"CAST({quoted(name) if name in scan.columns else 'NULL'} AS {kind}) AS {quoted(name)}"
        for name, kind in columns.items()
    )
    winning = f"SEMI JOIN (SELECT * FROM winners WHERE file = {number}) AS w USING ({listed(key)})"
    query = f"SELECT {chosen} FROM {scan.sql} AS f {winning}"
    return engine.sql(query, params=scan.parameters).to_arrow_reader(BATCH_ROWS)
