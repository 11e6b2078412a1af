"""What only the SQLite sink promises: waiting, readers beside the writer, its forms of values."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from broker.errors import Busy, Conflict, Corrupt, DuplicateKey
from broker.sinks import SQLite
from tests.contracts.sink_places import NEW, OLD, SIMPLE, at, delta, held, holding, schema, snapshot, spec


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.db"


def loaded(path: Path) -> SQLite:
    sink = SQLite(path, "offers", busy_seconds=0.01)
    sink.apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    return sink


def test_another_writer_makes_it_busy_and_nothing_changes(path: Path) -> None:
    sink = loaded(path)
    with holding("sqlite", str(path)):
        with pytest.raises(Busy):
            sink.apply("search", delta(SIMPLE, NEW), expect=at(1), to=at(2))
        assert sink.cursor("search") == at(1)
    assert held(sink) == OLD


def test_a_reader_keeps_its_state_while_rows_are_replaced(path: Path) -> None:
    sink = loaded(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM offers WHERE v = 'old'").fetchone() == (2,)
        sink.apply("search", snapshot(SIMPLE, NEW), expect=at(1), to=at(2))
        assert reader.execute("SELECT count(*) FROM offers WHERE v = 'old'").fetchone() == (2,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM offers WHERE v = 'old'").fetchone() == (0,)


def test_a_replacement_of_the_same_shape_keeps_the_users_index(path: Path) -> None:
    sink = loaded(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE INDEX mine ON offers (v)")
    sink.apply("search", snapshot(SIMPLE, NEW), expect=at(1), to=at(2))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'mine'").fetchone() == (1,)


def test_values_lie_in_their_documented_forms(path: Path) -> None:
    columns = schema(
        k="INTEGER", d="DATE", t="TIMESTAMP", z="TIMESTAMP WITH TIME ZONE", n="DECIMAL(10,2)", f="DOUBLE", l="INTEGER[]"
    )
    instant = datetime(2024, 1, 2, 3, 4, 5, 6)
    row = (1, date(2024, 1, 2), instant, instant.replace(tzinfo=UTC), Decimal("1.50"), math.nan, [1, None])
    SQLite(path, "t").apply("r", snapshot(spec(columns), [row]), expect=None, to=at(1))
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT * FROM t").fetchone()
    assert found == (
        1, "2024-01-02", "2024-01-02 03:04:05.000006", "2024-01-02 03:04:05.000006Z", "1.50", "NaN", "[1, null]"
    )  # fmt: skip


def test_a_key_that_comes_twice_is_refused_and_nothing_changes(path: Path) -> None:
    sink = loaded(path)
    with pytest.raises(DuplicateKey):
        sink.apply("search", snapshot(SIMPLE, [*NEW, NEW[0]]), expect=at(1), to=at(2))
    assert (held(sink), sink.cursor("search")) == (OLD, at(1))


def test_a_users_own_table_is_never_replaced(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE OFFERS AS SELECT 42 AS precious")
    with pytest.raises(Conflict):
        loaded(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM OFFERS").fetchall() == [(42,)]


def test_a_file_of_something_else_is_corrupt(path: Path) -> None:
    path.write_bytes(b"PAR1" * 5000)
    with pytest.raises(Corrupt):
        loaded(path)
