"""One file as a DuckDB scan: CSV, JSONL or Parquet, with a name and a type for every column, decided before the first row.

A column the dataset knows is read as the dataset's type. Any other is sniffed over the whole file, carefully: numbers with
leading zeros and dates that are not ISO stay text, since another guess could not be undone.
"""

from __future__ import annotations

import csv
import glob
import gzip
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import duckdb

from broker.columnar.sql import quoted, text_literal
from broker.errors import BadData, Invalid

FileFormat = Literal["csv", "jsonl", "parquet"]
_SUFFIXES: Final[dict[str, FileFormat]] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_CSV: Final = "header = true, delim = ',', quote = '\"', escape = '\"', nullstr = '', skip = 0"
_JSON: Final = "format = 'newline_delimited'"
_AS_TEXT: Final = ("UUID", "JSON", '"NULL"')
"""Guesses that are text with a form, where the text is what was written, or no guess at all."""


@dataclass(frozen=True, slots=True)
class Scan:
    """One file, where to read it (a packed Parquet file is read elsewhere), and its columns: name -> type.

    `valueless`: columns without any value, which say nothing of a type.
    """

    path: Path
    readable: Path
    format: FileFormat
    columns: dict[str, str]
    valueless: frozenset[str] = frozenset()

    @property
    def parameters(self) -> list[str]:
        return [glob.escape(str(self.readable))]

    @property
    def sql(self) -> str:
        """A table expression with one parameter."""
        columns = "{" + ", ".join(f"{text_literal(name)}: {text_literal(kind)}" for name, kind in self.columns.items()) + "}"
        match self.format:
            case "csv":
                return f"read_csv(?, {_CSV}, {_compression(self.path)}, auto_detect = false, columns = {columns})"
            case "jsonl":
                return f"read_json(?, {_JSON}, {_compression(self.path)}, columns = {columns})"
            case "parquet":
                return "read_parquet(?)"

    def retyped(self, types: dict[str, str]) -> Scan:
        """The same file read under other types; Parquet files have their own."""
        if self.format == "parquet":
            return self
        return replace(self, columns={name: types.get(name, kind) for name, kind in self.columns.items()})


def format_of(path: Path) -> FileFormat:
    """By suffix, with or without `.gz`. Raises Invalid."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _SUFFIXES:
        hint = "Name it .csv, .jsonl or .parquet, or say format="
        raise Invalid("unknown file format", of=str(path), why=f"suffix {suffix!r}", hint=hint)
    return _SUFFIXES[suffix]


def scan_of(engine: duckdb.DuckDBPyConnection, path: Path, kind: FileFormat, known: dict[str, str], folder: Path) -> Scan:
    """How to read one file. `known`: types that are settled; `folder`: for what must be unpacked first.

    Raises BadData (no header, not UTF-8, not of its format) and DuckDB's own errors.
    """
    match kind:
        case "csv":
            return _csv(engine, path, known)
        case "jsonl":
            sniffing = f"read_json(?, {_JSON}, {_compression(path)}, sample_size = -1, dateformat = '%Y-%m-%d')"
            return _checked(engine, Scan(path, path, kind, _described(engine, sniffing, path)).retyped(known), known)
        case "parquet":
            readable = _unpacked(path, folder) if path.suffix == ".gz" else path
            return Scan(path, readable, kind, _described(engine, "read_parquet(?)", readable))


def _csv(engine: duckdb.DuckDBPyConnection, path: Path, known: dict[str, str]) -> Scan:
    header = _header(path)
    as_text = Scan(path, path, "csv", dict.fromkeys(header, "VARCHAR"))
    if known.keys() >= set(header):
        return as_text.retyped(known)
    sniffing = f"read_csv(?, {_CSV}, {_compression(path)}, sample_size = -1, dateformat = '%Y-%m-%d')"
    found = _described(engine, sniffing, path)
    if list(found) != header:
        raise BadData("rows do not fit the header", of=str(path), why=f"header {header}, rows read as {list(found)}"[:500])
    guessed = [name for name, type_name in found.items() if name not in known and type_name.startswith("TIMESTAMP")]
    return _checked(engine, as_text.retyped(found | known | _not_iso(engine, as_text, guessed)), known)


def _checked(engine: duckdb.DuckDBPyConnection, scan: Scan, known: dict[str, str]) -> Scan:
    """The scan with its valueless columns told apart from those of text: a sniffer calls both VARCHAR."""
    names = [name for name, kind in scan.columns.items() if kind == "VARCHAR" and name not in known]
    if not names:
        return scan
    counts = ", ".join(f"count({quoted(name)})" for name in names)
    answer = engine.execute(f"SELECT {counts} FROM {scan.sql}", scan.parameters).fetchone() or ()
    return replace(scan, valueless=frozenset(name for name, values in zip(names, answer, strict=True) if not values))


def _not_iso(engine: duckdb.DuckDBPyConnection, as_text: Scan, names: list[str]) -> dict[str, str]:
    """Of columns sniffed as timestamps, those that are so only by a guess at the order of day and month: they are text."""
    if not names:
        return {}
    odd = ", ".join(f"bool_or({q} IS NOT NULL AND TRY_CAST({q} AS TIMESTAMPTZ) IS NULL)" for q in map(quoted, names))
    answer = engine.execute(f"SELECT {odd} FROM {as_text.sql}", as_text.parameters).fetchone() or ()
    return {name: "VARCHAR" for name, is_odd in zip(names, answer, strict=True) if is_odd}


def _header(path: Path) -> list[str]:
    """The first record. DuckDB's sniffer skips lines until rows look alike; a feed's header is where it is."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
            header = next(csv.reader(text), [])
    except UnicodeDecodeError as error:
        raise BadData(
            "not UTF-8", of=str(path), why=str(error)[:200], hint="Convert the file, for example with iconv"
        ) from None
    except (EOFError, gzip.BadGzipFile, csv.Error) as error:
        raise BadData("not a readable CSV file", of=str(path), why=str(error)) from None
    if not header or len(set(header)) != len(header) or not all(header):
        raise BadData("no usable header", of=str(path), why=f"{header!r:.300}", hint="The first line names each column once")
    return header


def _described(engine: duckdb.DuckDBPyConnection, sql: str, path: Path) -> dict[str, str]:
    rows = engine.execute(f"DESCRIBE SELECT * FROM {sql}", [glob.escape(str(path))]).fetchall()
    return {name: "VARCHAR" if kind in _AS_TEXT else kind for name, kind, *_ in rows}


def _compression(path: Path) -> str:
    return f"compression = '{'gzip' if path.suffix == '.gz' else 'none'}'"


def _unpacked(path: Path, folder: Path) -> Path:
    """Parquet is read from its end, so a packed one must be unpacked."""
    target = folder / f"{path.stem}.{abs(hash(path)):x}"
    try:
        with gzip.open(path) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (EOFError, gzip.BadGzipFile) as error:
        raise BadData("not a gzip file", of=str(path), why=str(error)) from None
    return target
