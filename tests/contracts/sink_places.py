"""Where the contract suite puts its sinks, and the child process that is killed inside an apply."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from broker.columnar.types import arrow_schema
from broker.errors import StaleBase
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.sinks import Batch, DuckDB, Memory, ParquetDirectory, Postgres, Sink, SinkCursor, SQLite
from broker.sinks.port import nothing

KINDS = ("memory", "duckdb", "sqlite", "parquet", "postgres")
DURABLE = KINDS[1:]
ROOT = Path(__file__).parents[2]
_numbers = itertools.count(1)

Row = tuple[Any, ...]


def open_place(kind: str, location: str, table: str, **hooks: Callable[..., Any]) -> Sink:
    match kind:
        case "duckdb":
            return DuckDB(location, table, **hooks)  # type: ignore[arg-type]
        case "sqlite":
            return SQLite(location, table, **hooks)  # type: ignore[arg-type]
        case "postgres":
            return Postgres(location, table, **hooks)  # type: ignore[arg-type]
        case "parquet":
            return ParquetDirectory(Path(location) / table.replace("/", "_"), **hooks)  # type: ignore[arg-type]
    return Memory(**hooks)


@dataclass
class Place:
    """One kind of sink and where it lives; each `fresh()` is another table there. `now` is the sinks' clock."""

    kind: str
    location: str
    now: float = 1_000_000.0
    table: str = field(default="offers")
    kept: Sink | None = None

    def fresh(self) -> Place:
        return Place(self.kind, self.location, self.now, f"t{os.getpid()}_{next(_numbers)}")

    def named(self, table: str) -> Place:
        return Place(self.kind, self.location, self.now, table)

    def open(self, on_step: Callable[[str], None] = nothing) -> Sink:
        """A sink as another process would open it; `memory` is one dict, and a Postgres connection is dear."""
        if self.kept is None:
            sink = open_place(self.kind, self.location, self.table, on_step=on_step, clock=lambda: self.now)
            self.kept = sink if self.kind in ("memory", "postgres") else None
            return sink
        return self.kept


def schema(**types: str) -> Schema:
    return Schema(columns=tuple(Column(name=name, type=kind) for name, kind in types.items()))


def spec(columns: Schema, key: Sequence[str] = ("k",), order: Sequence[str] = (), tombstone_seconds: int = 100) -> DatasetSpec:
    return DatasetSpec(
        dataset="shop/catalog/offers", key=tuple(key), order=tuple(order), columns=columns, tombstone_seconds=tombstone_seconds
    )


def at(version: int, fence: tuple[int, int] = (1, 1), session: str = "s1") -> SinkCursor:
    return SinkCursor("shop/catalog/offers", version, session, "all", fence)


def rows(columns: Schema, values: Sequence[Row], names: Sequence[str] | None = None) -> pa.RecordBatchReader:
    """A stream of `values`, whose items are in the order of `names` (default: all columns)."""
    wanted = arrow_schema(columns)
    fields = pa.schema([wanted.field(name) for name in (names or columns.names)])
    arrays = [pa.array([row[i] for row in values], column.type) for i, column in enumerate(fields)]
    return pa.Table.from_arrays(arrays, schema=fields).to_reader()


def snapshot(of: DatasetSpec, values: Sequence[Row], tombstones: Sequence[Row] | None = None) -> Batch:
    assert of.columns is not None
    guards = rows(of.columns, tombstones, (*of.key, *of.order)) if tombstones is not None else None
    return Batch(of, of.columns, True, rows=rows(of.columns, values), tombstones=guards)


def delta(of: DatasetSpec, upserts: Sequence[Row] = (), deletes: Sequence[Row] = ()) -> Batch:
    assert of.columns is not None
    guards = rows(of.columns, deletes, (*of.key, *of.order))
    return Batch(of, of.columns, False, upserts=rows(of.columns, upserts), deletes=guards)


def held(sink: Sink) -> list[Row]:
    """The sink's rows, sorted by text."""
    table = sink.read()
    return sorted((tuple(row.values()) for row in table.to_pylist()), key=repr)


SIMPLE = spec(schema(k="VARCHAR", o="BIGINT", v="VARCHAR"), order=("o",))
OLD = [("a", 1, "old"), ("b", 1, "old")]
NEW = [("a", 2, "new"), ("c", 2, "new")]


def child(kind: str, location: str, table: str, step: str, change: str) -> None:
    """Apply version 2 and die at `step` as by a power cut."""

    def die(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    batch = snapshot(SIMPLE, NEW) if change == "snapshot" else delta(SIMPLE, NEW, [("b", 2)])
    open_place(kind, location, table, on_step=die).apply("search", batch, expect=at(1), to=at(2))


def endless_rows(version: int) -> list[Row]:
    """What a replica holds at `version` of the endless child: the same 300 keys, all rows of one version."""
    return sorted(((f"k{number}", version, f"v{version}") for number in range(300)), key=repr)


def endless(kind: str, location: str, table: str) -> None:
    """Apply version after version, telling each, until killed; every fifth is a replacement."""
    sink = open_place(kind, location, table)
    cursor = sink.cursor("search")
    while True:
        version = cursor.version + 1 if cursor else 1
        values = endless_rows(version)
        try:
            sink.apply("search", (snapshot if version % 5 == 1 else delta)(SIMPLE, values), expect=cursor, to=at(version))
        except StaleBase:  # the Postgres backend of the child before has committed only now
            cursor = sink.cursor("search")
            continue
        cursor = at(version)
        print(version, flush=True)  # noqa: T201


def run_endless_child(place: Place, versions: int) -> int:
    """Kill the endless child amid the apply after its first `versions`, and return the last one it told."""
    command = [sys.executable, "-m", "tests.contracts.sink_places", "endless", place.kind, place.location, place.table]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(versions)]
        process.kill()
        told += [int(line) for line in process.stdout if line.endswith("\n")]
    return told[-1]


@contextmanager
def holding(kind: str, location: str) -> Iterator[None]:
    """Another process that has the database open for writing (and, but for DuckDB, a transaction on the cursors)."""
    command = [sys.executable, "-m", "tests.contracts.sink_places", "hold", kind, location]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.stdin.close()


def hold(kind: str, location: str) -> None:
    """Keep a file locked until stdin ends."""
    if kind == "duckdb":
        lock: Any = duckdb.connect(location)
    elif kind == "sqlite":
        lock = sqlite3.connect(location, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
    else:
        lock = (Path(location) / "LOCK").open("ab")
        fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)  # noqa: T201
    sys.stdin.read()
    lock.close()


def run_child(place: Place, step: str, change: str) -> int:
    command = [
        sys.executable,
        "-m",
        "tests.contracts.sink_places",
        "child",
        place.kind,
        place.location,
        place.table,
        step,
        change,
    ]
    return subprocess.run(command, timeout=60, check=False, cwd=ROOT).returncode


MODES: dict[str, Callable[..., None]] = {"child": child, "endless": endless, "hold": hold}

if __name__ == "__main__":
    MODES[sys.argv[1]](*sys.argv[2:])
