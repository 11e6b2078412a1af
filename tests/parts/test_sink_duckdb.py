"""What only the DuckDB sink promises: who may open its file and when, and Parquet files as a fast road."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.errors import Busy, Conflict, Corrupt, InvalidSettings
from broker.model.dataset import Column, Schema
from broker.sinks import Applied, Batch, DuckDB
from tests.contracts.sink_places import NEW, OLD, SIMPLE, at, delta, held, holding, rows, schema, snapshot, spec


@pytest.fixture
def sink(tmp_path: Path) -> DuckDB:
    return DuckDB(tmp_path / "deep" / "er" / "search.duckdb", "offers")


def loaded(sink: DuckDB) -> DuckDB:
    sink.apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    return sink


def test_a_file_that_another_process_holds_is_busy_and_stays_as_it_was(sink: DuckDB) -> None:
    loaded(sink)
    with holding("duckdb", str(sink.path)):
        with pytest.raises(Busy):
            sink.apply("search", delta(SIMPLE, NEW), expect=at(1), to=at(2))
        with pytest.raises(Busy):
            sink.cursor("search")
    assert (held(sink), sink.cursor("search")) == (OLD, at(1))


def test_another_process_reads_between_two_applies(sink: DuckDB) -> None:
    loaded(sink)
    count = f"import duckdb; print(duckdb.connect({str(sink.path)!r}).sql('SELECT count(*) FROM offers').fetchall()[0][0])"
    shown = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout == "2\n"
    sink.apply("search", delta(SIMPLE, NEW), expect=at(1), to=at(2))
    assert sink.cursor("search") == at(2)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_connection_of_this_process_does_not_keep_the_cursor_from_being_read(sink: DuckDB, read_only: bool) -> None:
    loaded(sink)
    with duckdb.connect(sink.path, read_only=read_only):
        assert sink.cursor("search") == at(1)


def test_a_forked_child_ends_as_it_wishes_and_uses_the_file_anew(sink: DuckDB) -> None:
    loaded(sink)
    program = f"""
import os, sys
from broker.sinks import DuckDB
sink = DuckDB({str(sink.path)!r}, "offers")
assert sink.cursor("search").version == 1
lock = sink._file._lock
with lock:  # as held by a thread that the child does not have
    child = os.fork()
if child == 0:
    sys.exit(0 if sink.cursor("search").version == 1 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_users_own_connection_makes_a_writer_busy(sink: DuckDB) -> None:
    loaded(sink)
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{sink.path}' AS mine")
        with pytest.raises(Busy):
            sink.apply("search", delta(SIMPLE, NEW), expect=at(1), to=at(2))
    assert sink.cursor("search") == at(1)


def test_a_users_own_table_is_never_replaced(sink: DuckDB) -> None:
    sink.path.parent.mkdir(parents=True)
    with duckdb.connect(sink.path) as connection:
        connection.execute("CREATE TABLE Offers AS SELECT 42 AS precious")
    with pytest.raises(Conflict):
        loaded(sink)
    with duckdb.connect(sink.path) as connection:
        assert connection.execute("FROM Offers").fetchall() == [(42,)]
    assert sink.cursor("search") is None


def test_a_file_of_something_else_is_corrupt(sink: DuckDB) -> None:
    sink.path.parent.mkdir(parents=True)
    sink.path.write_bytes(b"PAR1" * 5000)
    with pytest.raises(Corrupt):
        loaded(sink)


def test_parquet_files_are_loaded_as_rows_are(sink: DuckDB, tmp_path: Path) -> None:
    columns = schema(k="VARCHAR", o="BIGINT", v="VARCHAR", extra="DOUBLE")
    files = []
    for number, row in enumerate(OLD):
        files.append(tmp_path / f"it's {number}.parquet")
        pq.write_table(rows(SIMPLE.columns or columns, [row]).read_all(), files[-1])
    batch = Batch(spec(columns, order=("o",)), columns, True, rows=None, files=files)
    assert sink.apply("search", batch, expect=None, to=at(1)) == Applied(rows=2)
    assert held(sink) == [(*row, None) for row in OLD]


def test_a_replacement_larger_than_the_memory_limit_spills(tmp_path: Path) -> None:
    columns = Schema(columns=(Column(name="k", type="BIGINT"), Column(name="v", type="VARCHAR")))
    rows_each, batches = 50_000, 20

    def wide() -> pa.RecordBatchReader:
        make = (
            pa.record_batch({"k": pa.array(range(n * rows_each, (n + 1) * rows_each)), "v": [f"{n}-{'x' * 200}"] * rows_each})
            for n in range(batches)
        )
        return pa.RecordBatchReader.from_batches(pa.schema([("k", pa.int64()), ("v", pa.string())]), make)

    sink = DuckDB(tmp_path / "small.duckdb", "t", memory_limit_bytes=100 << 20)
    of = spec(columns)
    assert sink.apply("r", Batch(of, columns, True, rows=wide()), expect=None, to=at(1)).rows == rows_each * batches
    assert sink.apply("r", Batch(of, columns, False, upserts=wide()), expect=at(1), to=at(2)).upserts == rows_each * batches
    assert sink.read(["k"]).num_rows == rows_each * batches


@pytest.mark.parametrize("table", ["", "x" * 60, "nul\0", "broker_cursors", "Broker_x", "sqlite_x", "offers__tombstones"])
def test_a_table_name_that_would_collide_or_be_cut_is_refused(tmp_path: Path, table: str) -> None:
    with pytest.raises(InvalidSettings):
        DuckDB(tmp_path / "x.duckdb", table)
