"""What only the Postgres sink promises: readers beside the writer, what users built on the table, its driver and its errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest

from broker.errors import BadData, Busy, Conflict, DuplicateKey, Unavailable, Unsupported
from broker.sinks import Batch, Postgres
from tests.contracts.sink_places import NEW, OLD, SIMPLE, Place, at, delta, held, schema, snapshot, spec


@pytest.fixture
def table() -> str:
    return Place("postgres", "").fresh().table


@contextmanager
def session(dsn: str) -> Iterator[Any]:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(dsn) as connection, connection.cursor() as cursor:
        yield cursor
        connection.commit()


def loaded(dsn: str, table: str) -> Postgres:
    sink = Postgres(dsn, table, lock_seconds=0.05)
    sink.apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    return sink


def test_a_reader_keeps_its_state_while_rows_are_replaced(postgres_dsn: str, table: str) -> None:
    sink = loaded(postgres_dsn, table)
    with session(postgres_dsn) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        count = f"SELECT count(*) FROM {table} WHERE v = 'old'"
        reader.execute(count)
        assert reader.fetchone() == (2,)
        sink.apply("search", snapshot(SIMPLE, NEW), expect=at(1), to=at(2))
        reader.execute(count)
        assert reader.fetchone() == (2,)
    assert held(sink) == NEW


def test_a_replacement_of_the_same_shape_keeps_views_and_indexes(postgres_dsn: str, table: str) -> None:
    sink = loaded(postgres_dsn, table)
    with session(postgres_dsn) as cursor:
        cursor.execute(f"CREATE VIEW {table}_view AS SELECT k FROM {table}")
        cursor.execute(f"CREATE INDEX {table}_mine ON {table} (v)")
    sink.apply("search", snapshot(SIMPLE, NEW), expect=at(1), to=at(2))
    with session(postgres_dsn) as cursor:
        cursor.execute(f"SELECT k FROM {table}_view ORDER BY k")
        assert cursor.fetchall() == [("a",), ("c",)]
        cursor.execute(f"SELECT to_regclass('{table}_mine') IS NOT NULL")
        assert cursor.fetchone() == (True,)


def test_a_view_that_a_new_shape_would_break_is_a_conflict(postgres_dsn: str, table: str) -> None:
    sink = loaded(postgres_dsn, table)
    with session(postgres_dsn) as cursor:
        cursor.execute(f"CREATE VIEW {table}_view AS SELECT k FROM {table}")
    other = spec(schema(k="INTEGER"))
    with pytest.raises(Conflict):
        sink.apply("search", snapshot(other, [(1,)]), expect=at(1), to=at(2))
    assert (held(sink), sink.cursor("search")) == (OLD, at(1))


def test_waiting_too_long_for_another_transaction_is_busy(postgres_dsn: str, table: str) -> None:
    sink = loaded(postgres_dsn, table)
    with session(postgres_dsn) as other:
        other.execute(f"SELECT 1 FROM broker_cursors WHERE place = '{table}' FOR UPDATE")
        with pytest.raises(Busy):
            sink.apply("search", delta(SIMPLE, NEW), expect=at(1), to=at(2))
        assert sink.cursor("search") == at(1)
    assert held(sink) == OLD


def test_a_users_own_table_is_never_replaced(postgres_dsn: str, table: str) -> None:
    with session(postgres_dsn) as cursor:
        cursor.execute(f"CREATE TABLE {table} AS SELECT 42 AS precious")
    with pytest.raises(Conflict):
        loaded(postgres_dsn, table)
    with session(postgres_dsn) as cursor:
        cursor.execute(f"SELECT precious FROM {table}")
        assert cursor.fetchall() == [(42,)]


def test_the_table_has_a_primary_key_and_a_key_twice_is_refused(postgres_dsn: str, table: str) -> None:
    sink = loaded(postgres_dsn, table)
    with pytest.raises(DuplicateKey):
        sink.apply("search", snapshot(SIMPLE, [*NEW, NEW[0]]), expect=at(1), to=at(2))
    with session(postgres_dsn) as cursor, pytest.raises(Exception, match="duplicate key"):
        cursor.execute(f"INSERT INTO {table} (k) VALUES ('a')")
    assert (held(sink), sink.cursor("search")) == (OLD, at(1))


@pytest.mark.parametrize("value", ["text with a \0", None])
def test_values_that_postgres_cannot_hold_are_refused(postgres_dsn: str, table: str, value: str | None) -> None:
    columns = schema(k="INTEGER", v="VARCHAR" if value else "TIMESTAMP_NS")
    array = pa.array([value]) if value else pa.array([1], pa.int64()).cast(pa.timestamp("ns"))
    batch = Batch(spec(columns), columns, True, rows=pa.table({"k": pa.array([1], pa.int32()), "v": array}).to_reader())
    with pytest.raises(BadData):
        Postgres(postgres_dsn, table).apply("r", batch, expect=None, to=at(1))
    assert Postgres(postgres_dsn, table).cursor("r") is None


def test_nested_values_are_jsonb_and_types_are_postgres_own(postgres_dsn: str, table: str) -> None:
    columns = schema(k="INTEGER", tags="VARCHAR[]", price="DECIMAL(10,2)", seen="TIMESTAMP")
    row = (1, ["a", "é"], None, datetime(2024, 1, 1))
    Postgres(postgres_dsn, table).apply("r", snapshot(spec(columns), [row]), expect=None, to=at(1))
    with session(postgres_dsn) as cursor:
        cursor.execute(f"SELECT tags->>1, pg_typeof(tags)::text, pg_typeof(price)::text, pg_typeof(seen)::text FROM {table}")
        assert cursor.fetchone() == ("é", "jsonb", "numeric", "timestamp without time zone")


def test_a_missing_driver_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql", None)
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql.dbapi", None)
    with pytest.raises(Unsupported, match="pip install"):
        Postgres("postgresql://localhost/x", "t").cursor("r")


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://me:secret@127.0.0.1:1/x", "postgresql://127.0.0.1:1/x"),
        ("postgres://me:se/se@secret?@127.0.0.1:1/x?password=secret", "postgres://127.0.0.1:1/x"),
        ("host=127.0.0.1 port=1 user=me password=secret dbname=x", "host=127.0.0.1 port=1 dbname=x"),
        (r"password = 'se\'cret host=secret' host = 127.0.0.1 port=1", "host=127.0.0.1 port=1"),
    ],
)
def test_a_server_that_is_not_there_is_unavailable_and_no_password_is_shown(dsn: str, shown: str) -> None:
    sink = Postgres(dsn, "t")
    assert sink.place == f"{shown}, table t"
    if "?@" not in dsn:  # libpq refuses that one
        with pytest.raises(Unavailable) as caught:
            sink.cursor("r")
        assert "secret" not in str(caught.value)
