"""Sinks by URL, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from broker.errors import InvalidSettings, Unavailable
from broker.sinks import DuckDB, Memory, ParquetDirectory, Postgres, SQLite, open_sink
from tests.contracts.sink_places import OLD, SIMPLE, at, schema, snapshot, spec


def test_a_url_names_kind_file_and_table(tmp_path: Path) -> None:
    duck = open_sink(f"{tmp_path}/shop.duckdb?table=my%20offers")
    assert isinstance(duck, DuckDB)
    assert (duck.path, duck.table) == (tmp_path / "shop.duckdb", "my offers")
    for name in ("shop.sqlite", "shop.DB", "shop.sqlite3"):
        lite = open_sink(f"{tmp_path}/{name}", table="offers")
        assert isinstance(lite, SQLite)
        assert (lite.path.name, lite.table) == (name, "offers")
    (tmp_path / "v1.2").mkdir()
    for folder in (f"{tmp_path}/new", f"{tmp_path}/new/", f"{tmp_path}/v1.2", f"{tmp_path}/new.v2/", f"{tmp_path}/new.db/"):
        parquet = open_sink(folder)
        assert isinstance(parquet, ParquetDirectory)
        assert parquet.folder == Path(folder)


def test_a_postgres_url_keeps_its_options_but_for_the_table(postgres_dsn: str) -> None:
    sink = open_sink(f"{postgres_dsn}&connect_timeout=9&table=by_url")
    assert isinstance(sink, Postgres)
    sink.apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    assert Postgres(postgres_dsn, "by_url").cursor("search") == at(1)


@pytest.mark.parametrize("url", ["", "shop.xlsx", "mysql://x/y", "s3://bucket/x", "shop.duckdb?tabel=x", "?table=x"])
def test_what_is_no_sink_is_refused(url: str) -> None:
    with pytest.raises(InvalidSettings):
        open_sink(url)


@pytest.mark.parametrize("name", ["r.duckdb", "r.sqlite", "folder"])
def test_a_place_that_cannot_be_made_is_a_typed_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    sink = open_sink(f"{tmp_path}/file/below/{name}")
    with pytest.raises(Unavailable, match="file"):
        sink.apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))


def test_importing_the_sinks_does_not_import_the_postgres_driver() -> None:
    code = "import sys, broker.sinks; print([name for name in sys.modules if name.startswith('adbc')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout == "[]\n"


def test_memory_shows_its_rows_by_key() -> None:
    sink = Memory()
    sink.apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    assert sink.rows["a"] == {"k": "a", "o": 1, "v": "old"}
    columns = schema(k="VARCHAR", l="INTEGER", v="VARCHAR")
    sink.apply("search", snapshot(spec(columns, key=("k", "l")), [("a", 1, "x")]), expect=at(1), to=at(2))
    assert dict(sink.rows) == {("a", 1): {"k": "a", "l": 1, "v": "x"}}
