"""Content digests: equal for equal content and for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.columnar.database import Database
from broker.columnar.digest import BUCKETS, ContentDigest, bucket_sql, buckets_sql, digest_of
from broker.columnar.types import schema_of

COLUMNS = pa.schema([("k", pa.string()), ("a", pa.string()), ("n", pa.int64()), ("f", pa.float64())])
ROWS = st.lists(
    st.tuples(
        st.text("ab:1-", max_size=3), st.none() | st.text("ab:1-", max_size=3), st.none() | st.integers(-3, 3),
        st.none() | st.sampled_from([0.0, 1.5, float("nan"), float("inf")]),
    ),
    max_size=12, unique_by=lambda row: row[0],
)  # fmt: skip


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    folder: Path = tmp_path_factory.mktemp("digest")
    return Database(256 << 20, folder)


def digest(database: Database, rows: list[tuple[Any, ...]]) -> ContentDigest:
    table = pa.Table.from_pylist([dict(zip(COLUMNS.names, row, strict=True)) for row in rows], COLUMNS)
    with database.session("test") as session:
        session.bind("given", table)
        return digest_of(schema_of(COLUMNS), session.rows(buckets_sql(schema_of(COLUMNS), ("k",), "SELECT * FROM given")))


def same(left: list[tuple[Any, ...]], right: list[tuple[Any, ...]]) -> bool:
    return sorted(map(repr, left)) == sorted(map(repr, right))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=ROWS, other=ROWS, data=st.data())
def test_two_contents_have_one_digest_exactly_when_they_are_equal(
    database: Database, rows: list[tuple[Any, ...]], other: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(rows))
    assert digest(database, rows) == digest(database, shuffled)
    assert (digest(database, rows).text == digest(database, other).text) == same(rows, other)


def test_values_that_only_look_alike_differ(database: Database) -> None:
    looks = [
        ("x", None, None, None),
        ("x", "", None, None),
        ("x", "-", None, None),
        ("x", "1", None, None),
        ("x", None, 1, None),
    ]
    assert len({digest(database, [row]).text for row in looks}) == len(looks)


def test_two_that_differ_in_a_row_differ_in_its_bucket_alone(database: Database) -> None:
    rows = [(f"k{number}", "a", number, None) for number in range(1_000)]
    changed = [*rows[:-1], (rows[-1][0], "b", 999, None)]
    mine, theirs = digest(database, rows), digest(database, changed)
    with database.session("test") as session:
        (bucket,) = session.rows(f"SELECT {bucket_sql(['k'])} FROM (SELECT 'k999' AS k)")
    assert mine.differing(theirs) == bucket
    assert 0 <= bucket[0] < BUCKETS


def test_no_rows_have_a_digest_too(database: Database) -> None:
    assert digest(database, []).rows == 0
    assert len(digest(database, []).text) == 32
