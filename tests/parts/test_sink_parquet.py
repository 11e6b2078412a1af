"""What only the Parquet folder promises: its files, its generations, its one writer."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from broker.errors import Busy, Conflict, Corrupt
from broker.sinks import ParquetDirectory
from tests.contracts.sink_places import NEW, OLD, SIMPLE, at, delta, held, holding, snapshot


@pytest.fixture
def sink(tmp_path: Path) -> ParquetDirectory:
    sink = ParquetDirectory(tmp_path / "deep" / "offers")
    sink.apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    return sink


def generation(sink: ParquetDirectory) -> Path:
    name: str = json.loads((sink.folder / "CURRENT").read_text())["generation"]
    return sink.folder / name


def test_anyone_finds_the_rows_through_the_pointer(sink: ParquetDirectory) -> None:
    table = pq.read_table(generation(sink) / "rows.parquet")
    assert sorted(tuple(row.values()) for row in table.to_pylist()) == OLD


def test_the_generation_before_stays_for_its_readers_and_older_ones_go(sink: ParquetDirectory) -> None:
    first = generation(sink)
    sink.apply("search", delta(SIMPLE, NEW, [("b", 2)]), expect=at(1), to=at(2))
    second = generation(sink)
    assert pq.read_table(first / "rows.parquet").num_rows == len(OLD)
    sink.take("search", at(2), (1, 2))
    sink.apply("search", delta(SIMPLE), expect=at(2, (1, 2)), to=at(3, (1, 2)))
    assert {folder.name for folder in sink.folder.glob("g-*")} == {second.name, generation(sink).name}
    assert first not in (second, generation(sink))


def test_what_a_crash_left_is_swept_by_the_next_apply(sink: ParquetDirectory) -> None:
    (sink.folder / "g-crashed").mkdir()
    (sink.folder / "g-crashed" / "rows.parquet").write_bytes(b"half")
    (sink.folder / "CURRENT.new").write_text("half")
    sink.apply("search", delta(SIMPLE, NEW, [("b", 2)]), expect=at(1), to=at(2))
    assert held(sink) == NEW
    assert not (sink.folder / "g-crashed").exists()


def test_a_second_writer_is_busy_while_readers_go_on(sink: ParquetDirectory) -> None:
    with holding("parquet", str(sink.folder)):
        with pytest.raises(Busy):
            sink.apply("search", delta(SIMPLE, NEW), expect=at(1), to=at(2))
        with pytest.raises(Busy):
            sink.take("search", at(1), (1, 2))
        assert (held(sink), sink.cursor("search")) == (OLD, at(1))


def test_a_folder_with_other_files_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(Conflict):
        ParquetDirectory(tmp_path).apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    assert [path.name for path in tmp_path.iterdir() if path.name != "LOCK"] == ["thesis.txt"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "half a poin"])
def test_a_broken_pointer_is_corrupt(sink: ParquetDirectory, text: str) -> None:
    (sink.folder / "CURRENT").write_text(text)
    with pytest.raises(Corrupt):
        sink.cursor("search")
