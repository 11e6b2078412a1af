from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest

from broker.columnar.intake import reader_of
from broker.columnar.types import schema_of
from broker.errors import BadData, BrokerError, Busy, Invalid, Unavailable
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.model.names import DatasetId
from broker.producers import Delta, Outcome, ProductionRequest, Since, Snapshot, outcome_of, resolve_position
from broker.sources import SQL

SPEC = DatasetSpec(dataset=DatasetId("shop/catalog/offers"), key=("id",))
OFFERS = "SELECT * FROM offers"


@dataclass
class Source:
    """A database under test: its URL, and statements run in it."""

    url: str
    execute: Callable[[str], None]


def sqlite_source(folder: Path) -> Source:
    path = folder / "shop.db"

    def execute(statements: str) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(statements)

    return Source(f"sqlite:///{path}", execute)


def postgres_source(dsn: str) -> Source:
    """A database of its own: dropping tables would wait for a connection that a failed test left open."""
    dbapi = pytest.importorskip("adbc_driver_postgresql.dbapi")

    def run(url: str, statements: str) -> None:
        with dbapi.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
            for statement in filter(str.strip, statements.split(";")):
                cursor.execute(statement)

    name = f"shop_{uuid4().hex}"
    run(dsn, f"CREATE DATABASE {name}")
    url = dsn.replace("/postgres?", f"/{name}?")
    return Source(url, lambda statements: run(url, statements))


@pytest.fixture(params=["sqlite", "postgres"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """An empty database of each kind."""
    return sqlite_source(tmp_path) if request.param == "sqlite" else postgres_source(request.getfixturevalue("postgres_dsn"))


@pytest.fixture
def lite(tmp_path: Path) -> Source:
    return sqlite_source(tmp_path)


@pytest.fixture
def pg(postgres_dsn: str) -> Source:
    return postgres_source(postgres_dsn)


@dataclass
class Runner:
    """Runs a source as the broker does: the position of one run is given to the next."""

    source: SQL
    spec: DatasetSpec = SPEC
    since: Since | None = None

    def run(self) -> tuple[str, list[dict[str, Any]]]:
        outcome = outcome_of(self.source(ProductionRequest("shop/catalog/offers", self.spec), self.since), "sql", self.spec)
        kind, table = type(outcome).__name__, self._table(outcome)
        if table is not None:
            self.spec = self.spec.model_copy(update={"columns": schema_of(table.schema)})
        self.since = Since(1, resolve_position(outcome))
        return kind, [] if table is None else sorted(table.to_pylist(), key=lambda row: str(row["id"]))

    def _table(self, outcome: Outcome) -> pa.Table | None:
        match outcome:
            case Snapshot(data=data):
                return reader_of(data, self.spec).read_all()
            case Delta(upserts=upserts, deletes=None):
                return reader_of(upserts, self.spec).read_all()
            case _:
                return None

    def ids(self) -> tuple[str, list[int]]:
        kind, rows = self.run()
        return kind, [row["id"] for row in rows]


def offers(*rows: tuple[int, object], kind: str = "TIMESTAMP") -> str:
    values = ", ".join(f"({number}, {at if isinstance(at, int) else repr(str(at))})" for number, at in rows)
    return f"CREATE TABLE offers (id INTEGER, updated_at {kind}); INSERT INTO offers VALUES {values}"


def full_only(source: SQL, spec: DatasetSpec = SPEC) -> pa.Table:
    outcome = source(ProductionRequest("shop/catalog/offers", spec), None)
    assert isinstance(outcome, Snapshot)
    return reader_of(outcome.data, spec).read_all()


# --- whole, then what changed


def test_without_a_watermark_every_run_reads_the_whole_query(shop: Source) -> None:
    shop.execute(offers((1, "2026-01-01 10:00:00"), (2, "2026-01-02 10:00:00")))
    runner = Runner(SQL(shop.url, OFFERS))
    assert runner.ids() == ("Snapshot", [1, 2])
    assert runner.ids() == ("Snapshot", [1, 2])


def test_the_second_run_reads_only_what_the_watermark_says_has_changed(shop: Source) -> None:
    shop.execute(offers((0, "2025-12-01 10:00:00"), (1, "2026-01-01 10:00:00"), (2, "2026-01-02 10:00:00")))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at"))
    assert runner.ids() == ("Snapshot", [0, 1, 2])
    shop.execute(
        "INSERT INTO offers VALUES (3, '2026-01-03 10:00:00');UPDATE offers SET updated_at = '2026-01-03 10:01:00' WHERE id = 1"
    )
    assert runner.ids() == ("Delta", [1, 2, 3]), "2 is in the overlap, 0 is not"
    assert runner.since is not None
    assert runner.since.position["watermark"] == "2026-01-03T10:01:00"


def test_nothing_new_in_the_overlap_is_unchanged_after_a_full_run_and_after_a_delta(shop: Source) -> None:
    shop.execute(offers((1, "2026-01-01 10:00:00"), (2, "2026-01-01 10:04:00")))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at"))
    assert [runner.ids()[0] for _ in range(3)] == ["Snapshot", "Unchanged", "Unchanged"]
    shop.execute("INSERT INTO offers VALUES (3, '2026-01-01 10:05:00')")
    assert [runner.ids()[0] for _ in range(3)] == ["Delta", "Unchanged", "Unchanged"]


def test_a_transaction_that_committed_late_is_found_within_the_overlap(shop: Source) -> None:
    shop.execute(offers((1, "2026-01-01 10:00:00"), (2, "2026-01-01 10:10:00")))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at", overlap_seconds=300))
    runner.run()
    shop.execute("INSERT INTO offers VALUES (3, '2026-01-01 10:05:00')")
    assert runner.ids() == ("Delta", [2, 3])


def test_a_row_older_than_the_overlap_waits_for_the_full_run(shop: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.execute(offers((1, "2026-01-01 10:00:00"), (2, "2026-01-01 10:10:00")))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at", full_every="24h"))
    runner.run()
    shop.execute("INSERT INTO offers VALUES (3, '2026-01-01 10:04:59')")
    assert runner.ids() == ("Unchanged", [])
    later = datetime.now(UTC).timestamp() + 86_401
    monkeypatch.setattr("broker.sources.sql.time.time", lambda: later)
    assert runner.ids() == ("Snapshot", [1, 2, 3])


def test_a_delete_is_seen_only_by_the_full_run(shop: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.execute(offers((1, "2026-01-01 10:00:00"), (2, "2026-01-01 10:10:00")))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at", full_every="1h"))
    runner.run()
    shop.execute("DELETE FROM offers WHERE id = 1")
    assert runner.ids() == ("Unchanged", [])
    later = datetime.now(UTC).timestamp() + 3_601
    monkeypatch.setattr("broker.sources.sql.time.time", lambda: later)
    assert runner.ids() == ("Snapshot", [2])


def test_a_change_inside_the_overlap_that_moves_no_maximum_is_found(shop: Source) -> None:
    shop.execute(offers((1, "2026-01-01 10:08:00"), (2, "2026-01-01 10:10:00")))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at"))
    runner.run()
    shop.execute("UPDATE offers SET updated_at = '2026-01-01 10:09:00' WHERE id = 1")
    assert runner.ids() == ("Delta", [1, 2])


@pytest.mark.parametrize(
    ("kind", "old", "first", "second", "noted"),
    [
        ("DATE", date(2025, 1, 1), date(2026, 1, 1), date(2026, 1, 5), "2026-01-05"),
        ("BIGINT", 1, 1_000, 2_000, 2_000),
        (
            "TIMESTAMP",
            "2025-01-01 10:00:00",
            "2026-01-01 10:00:00.123456",
            "2026-01-05 10:00:00.654321",
            "2026-01-05T10:00:00.654321",
        ),
    ],
)
def test_a_watermark_may_be_a_date_an_integer_or_a_timestamp(
    shop: Source, kind: str, old: object, first: object, second: object, noted: object
) -> None:
    shop.execute(offers((0, old), (1, first), kind=kind))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at"))
    assert runner.ids() == ("Snapshot", [0, 1])
    shop.execute(f"INSERT INTO offers VALUES (2, {second if isinstance(second, int) else repr(str(second))})")
    assert runner.ids() == ("Delta", [1, 2])
    assert runner.since is not None
    assert runner.since.position["watermark"] == noted
    assert runner.ids() == ("Unchanged", [])


def test_a_date_watermark_reads_its_last_day_again(shop: Source) -> None:
    shop.execute(offers((1, date(2026, 1, 5)), kind="DATE"))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at", overlap_seconds=0))
    runner.run()
    shop.execute("INSERT INTO offers VALUES (2, '2026-01-05')")
    assert runner.ids() == ("Delta", [1, 2])


def test_a_row_from_the_future_does_not_hide_later_changes(shop: Source) -> None:
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    shop.execute(offers((1, now - timedelta(hours=2)), (2, "2999-01-01 00:00:00")))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at"))
    runner.run()
    assert runner.ids() == ("Unchanged", [])
    shop.execute(f"INSERT INTO offers VALUES (3, '{now - timedelta(hours=1)}')")
    assert runner.ids() == ("Delta", [1, 2, 3])


def test_an_empty_table_has_no_watermark_and_is_read_whole_until_it_has_rows(shop: Source) -> None:
    shop.execute("CREATE TABLE offers (id INTEGER, updated_at TIMESTAMP)")
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at"))
    assert runner.ids() == ("Snapshot", [])
    shop.execute("INSERT INTO offers VALUES (1, NULL)")
    assert runner.ids() == ("Snapshot", [1])


def test_the_watermark_stays_when_the_rows_that_made_it_are_gone(shop: Source) -> None:
    shop.execute(offers((1, "2026-01-01 10:00:00"), (2, "2026-01-02 10:00:00")))
    runner = Runner(SQL(shop.url, OFFERS, watermark="updated_at"))
    runner.run()
    shop.execute("DELETE FROM offers WHERE id = 2")
    runner.run()
    assert runner.since is not None
    assert runner.since.position["watermark"] == "2026-01-02T10:00:00"


@pytest.mark.parametrize(
    "position",
    [None, 5, {}, {"watermark": "2026-01-01T00:00:00"}, {"source": "other", "watermark": 1, "full_at": 1.0, "digest": ""}],
)
def test_a_position_that_is_not_its_own_leads_to_a_full_run(lite: Source, position: object) -> None:
    lite.execute(offers((1, "2026-01-01 10:00:00")))
    assert Runner(SQL(lite.url, OFFERS, watermark="updated_at"), since=Since(1, position)).ids() == ("Snapshot", [1])


def test_an_edited_query_leads_to_a_full_run(lite: Source) -> None:
    lite.execute(offers((1, "2026-01-01 10:00:00"), (2, "2026-01-02 10:00:00")))
    runner = Runner(SQL(lite.url, OFFERS + " WHERE id > 1", watermark="updated_at"))
    runner.run()
    assert Runner(SQL(lite.url, OFFERS, watermark="updated_at"), since=runner.since).ids() == ("Snapshot", [1, 2])


def test_the_position_is_known_only_after_the_last_row(lite: Source) -> None:
    lite.execute(offers((1, "2026-01-01 10:00:00")))
    outcome = SQL(lite.url, OFFERS, watermark="updated_at")(ProductionRequest("shop/catalog/offers", SPEC), None)
    assert isinstance(outcome, Snapshot)
    assert resolve_position(outcome) is None
    reader_of(outcome.data, SPEC).read_all()
    assert resolve_position(outcome)["watermark"] == "2026-01-01T10:00:00"


def test_one_run_sees_one_moment_of_the_source(pg: Source) -> None:
    pg.execute(
        "CREATE TABLE offers AS SELECT i::int AS id, '2026-01-01 10:00'::timestamp updated_at FROM generate_series(1, 400000) i"
    )
    outcome = SQL(pg.url, OFFERS, watermark="updated_at")(ProductionRequest("shop/catalog/offers", SPEC), None)
    assert isinstance(outcome, Snapshot)
    batches: Iterator[pa.RecordBatch] = iter(outcome.data)
    rows = next(batches).num_rows + next(batches).num_rows
    assert 0 < rows < 400_000, "it must stream"
    pg.execute("INSERT INTO offers VALUES (400001, '2026-01-02 10:00')")
    assert rows + sum(batch.num_rows for batch in batches) == 400_000
    assert resolve_position(outcome)["watermark"] == "2026-01-01T10:00:00"


def test_a_query_may_end_in_a_comment_and_a_column_may_need_quotes(shop: Source) -> None:
    shop.execute(
        'CREATE TABLE offers (id INTEGER, "Updated ""At""" TIMESTAMP); INSERT INTO offers VALUES (1, \'2026-01-01 10:00:00\')'
    )
    runner = Runner(SQL(shop.url, "SELECT * FROM offers -- all of them", watermark='Updated "At"'))
    assert [runner.ids()[0] for _ in range(2)] == ["Snapshot", "Unchanged"]


# --- types


def test_postgres_types_arrive_as_the_datasets_types(pg: Source) -> None:
    pg.execute(
        "CREATE TABLE offers (id int8, price numeric(10,2), rate numeric, code uuid, extra jsonb, at timestamptz, day date,"
        " ok boolean, raw bytea, tags text[]);"
        "INSERT INTO offers VALUES (1, 1.50, 0.3333, 'cccd3d0a-d4a7-41be-acdc-6a1195a2bde9', '{\"a\": 1}',"
        " '2026-01-01 10:00+02', '2026-01-01', true, 'x', '{a,b}')"
    )
    table = full_only(SQL(pg.url, OFFERS))
    assert schema_of(table.schema).types == {
        "id": "BIGINT", "price": "DECIMAL(10,2)", "rate": "VARCHAR", "code": "VARCHAR", "extra": "VARCHAR",
        "at": "TIMESTAMP WITH TIME ZONE", "day": "DATE", "ok": "BOOLEAN", "raw": "BLOB", "tags": "VARCHAR[]",
    }  # fmt: skip
    row = table.to_pylist()[0]
    assert row["price"] == Decimal("1.50")
    assert row["code"] == "cccd3d0a-d4a7-41be-acdc-6a1195a2bde9"
    assert row["at"] == datetime(2026, 1, 1, 8, tzinfo=UTC)


def test_a_numeric_that_is_no_number_is_refused(pg: Source) -> None:
    pg.execute("CREATE TABLE offers (id int, price numeric(10,2)); INSERT INTO offers VALUES (1, 'NaN')")
    with pytest.raises(BadData, match="price"):
        full_only(SQL(pg.url, OFFERS))


def test_a_postgres_type_without_counterpart_is_named_with_the_way_out(pg: Source) -> None:
    pg.execute("CREATE TABLE offers (id int, address inet); INSERT INTO offers VALUES (1, '10.0.0.1')")
    with pytest.raises(Invalid, match=r"address.*address::text"):
        full_only(SQL(pg.url, OFFERS))
    assert full_only(SQL(pg.url, "SELECT id, address::text FROM offers")).num_rows == 1


def test_sqlite_columns_follow_their_declared_types(lite: Source) -> None:
    lite.execute(
        "CREATE TABLE offers (id INTEGER PRIMARY KEY, price DECIMAL(10,2), rate REAL, name VARCHAR(20), ok BOOLEAN,"
        " at DATETIME, day DATE, raw BLOB, n NUMERIC);"
        "INSERT INTO offers VALUES (1, 0.1, 3, 'ä', 1, '2026-01-01T10:00:00+02:00', '2026-01-01', x'00ff', 5),"
        " (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL), (3, 7, 0.5, '', 0, '2026-01-01 10:00', '2026-02-28', x'', 2.5)"
    )
    table = full_only(SQL(lite.url, OFFERS))
    assert schema_of(table.schema).types == {
        "id": "BIGINT", "price": "DECIMAL(10,2)", "rate": "DOUBLE", "name": "VARCHAR", "ok": "BOOLEAN", "at": "TIMESTAMP",
        "day": "DATE", "raw": "BLOB", "n": "DOUBLE",
    }  # fmt: skip
    assert table.to_pylist()[0] == {
        "id": 1, "price": Decimal("0.10"), "rate": 3.0, "name": "ä", "ok": True, "at": datetime(2026, 1, 1, 8),
        "day": date(2026, 1, 1), "raw": b"\x00\xff", "n": 5.0,
    }  # fmt: skip


def test_a_sqlite_expression_follows_the_dataset_and_at_first_its_first_value(lite: Source) -> None:
    lite.execute("CREATE TABLE offers (id INTEGER, price REAL); INSERT INTO offers VALUES (1, 1.0), (2, 2.5)")
    query = "SELECT id, CASE WHEN id = 1 THEN 7 ELSE 8.5 END AS mixed FROM offers ORDER BY id"
    with pytest.raises(BadData, match="mixed"):
        full_only(SQL(lite.url, query))
    columns = Schema(columns=(Column(name="id", type="BIGINT"), Column(name="mixed", type="DOUBLE")))
    assert full_only(SQL(lite.url, query), SPEC.model_copy(update={"columns": columns})).column("mixed").to_pylist() == [
        7.0,
        8.5,
    ]


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("INTEGER", "'many'"), ("INTEGER", "1.5"), ("TEXT", "x'00'"), ("REAL", "'cheap'"), ("BOOLEAN", "2"),
        ("DATE", "'01/02/2026'"),
        ("DATETIME", "1700000000"), ("DECIMAL(4,1)", "0.25"), ("DECIMAL(4,1)", "'abc'"), ("BLOB", "'text'"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named_with_its_column(lite: Source, declared: str, value: str) -> None:
    lite.execute(f"CREATE TABLE offers (id INTEGER, v {declared}); INSERT INTO offers VALUES (1, NULL), (2, {value})")
    with pytest.raises(BadData, match=r"does not fit its column's type \[v\]"):
        full_only(SQL(lite.url, OFFERS))


def test_sqlite_times_kept_as_text_serve_as_watermark_in_any_iso_form(lite: Source) -> None:
    lite.execute(offers((1, "2026-01-01 10:00:00"), (2, "2026-01-01T11:30:00+02:00"), kind="TEXT"))
    runner = Runner(SQL(lite.url, OFFERS, watermark="updated_at", overlap_seconds=60))
    runner.run()
    assert runner.since is not None
    assert runner.since.position["watermark"] == "2026-01-01T10:00:00"
    lite.execute("INSERT INTO offers VALUES (3, '2026-01-01T12:30:00+02:00')")
    assert runner.ids() == ("Delta", [1, 3]), "as text, 2 would sort behind 1"


# --- what is refused


@pytest.mark.parametrize("query", ["", "  ", "SELECT 1;", "SELECT 1; \n"])
def test_a_query_must_be_one_select_without_semicolon(query: str) -> None:
    with pytest.raises(Invalid, match="query"):
        SQL("sqlite:///x.db", query)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("mysql://x", {}), ("shop.db", {}), ("sqlite:///x.db", {"full_every": "daily"}),
        ("sqlite:///x.db", {"overlap_seconds": -1}),
        ("sqlite:///x.db", {"overlap_seconds": float("nan")}), ("sqlite:///x.db", {"watermark": ""}),
    ],
)  # fmt: skip
def test_malformed_options_are_refused_at_once(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        SQL(url, OFFERS, **options)


@pytest.mark.parametrize(
    "query", ["SELECT nothing FROM offers", "SELECT * FROM nowhere", "SELEC 1", "SELECT * FROM offers WHERE id = ?"]
)
def test_sql_that_can_never_run_is_terminal(shop: Source, query: str) -> None:
    shop.execute("CREATE TABLE offers (id INTEGER)")
    with pytest.raises(Invalid):
        full_only(SQL(shop.url, query))


def test_a_watermark_the_query_lacks_is_named(shop: Source) -> None:
    shop.execute("CREATE TABLE offers (id INTEGER)")
    with pytest.raises(Invalid, match="changed_at"):
        full_only(SQL(shop.url, OFFERS, watermark="changed_at"))


@pytest.mark.parametrize("kind", ["BOOLEAN", "REAL"])
def test_a_watermark_of_another_type_is_refused(shop: Source, kind: str) -> None:
    shop.execute(f"CREATE TABLE offers (id INTEGER, updated_at {kind})")
    with pytest.raises(Invalid, match="not a watermark column"):
        full_only(SQL(shop.url, OFFERS, watermark="updated_at"))


def test_a_postgres_text_column_is_no_watermark(pg: Source) -> None:
    pg.execute(offers((1, "2026-01-01 10:00:00"), kind="TEXT"))
    with pytest.raises(Invalid, match="not a watermark column"):
        full_only(SQL(pg.url, OFFERS, watermark="updated_at"))


def failure(url: str, query: str = OFFERS) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        full_only(SQL(url, query))
    return caught.value


def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    assert isinstance(failure(f"sqlite:///{tmp_path}/absent.db"), Unavailable)
    assert not (tmp_path / "absent.db").exists(), "reading must not make a database"


def test_a_postgres_nobody_listens_at_is_unavailable() -> None:
    pytest.importorskip("adbc_driver_postgresql")
    assert isinstance(failure("postgresql://nobody@127.0.0.1:9/none"), Unavailable)


def test_a_locked_sqlite_is_busy(lite: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    lite.execute("CREATE TABLE offers (id INTEGER)")
    monkeypatch.setattr("broker.sources.sqlite.BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(lite.url.removeprefix("sqlite:///"), isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert isinstance(failure(lite.url), Busy)


def test_a_connection_an_admin_ends_is_unavailable(pg: Source) -> None:
    assert isinstance(failure(pg.url, "SELECT 1 AS id, pg_terminate_backend(pg_backend_pid())"), Unavailable)


def test_a_failure_in_the_middle_of_a_postgres_stream_is_unavailable(pg: Source) -> None:
    error = failure(pg.url, "SELECT i AS id, repeat('x', 500) AS t, 1 / (i - 150000) AS f FROM generate_series(1, 200000) i")
    assert isinstance(error, Unavailable)
    assert "division by zero" in error.why


def test_a_file_that_is_no_database_is_terminal(tmp_path: Path) -> None:
    (tmp_path / "odd.db").write_text("not a database" * 100)
    assert isinstance(failure(f"sqlite:///{tmp_path}/odd.db"), Invalid)


def test_a_password_in_the_url_is_not_shown() -> None:
    assert "secret" not in repr(SQL("postgresql://reader:secret@db/shop", OFFERS))


def test_reading_cannot_write(shop: Source) -> None:
    shop.execute("CREATE TABLE offers (id INTEGER)")
    with pytest.raises(Invalid):
        full_only(SQL(shop.url, "WITH gone AS (DELETE FROM offers RETURNING *) SELECT * FROM gone"))
