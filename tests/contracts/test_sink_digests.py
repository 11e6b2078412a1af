"""Content digests over all types: one content has one digest, whatever holds it, and two contents never share one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker.columnar.buckets import digest_of_rows
from broker.columnar.engine import Engine
from broker.receipts import content_of
from broker.settings import load
from broker.stores.memory import MemoryStore
from tests.campaign import examples
from tests.contracts.sink_places import KINDS, Place, Row, at, delta, rows, schema, snapshot, spec

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4) | st.sampled_from(
    ["", "null", "NULL", "-", "1", "1.0", "[]", "a, b", "'", "\\", "\\x00"]
)
HALVES = st.sampled_from([0.0, -0.0, 1.0, 1.5, float("nan"), float("inf"), float("-inf")])
FLOATS = HALVES | st.sampled_from([1e300, 5e-324]) | st.floats(allow_nan=False)
TIMES = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
NUMBERS = st.integers(-(2**31), 2**31 - 1)
TYPES: dict[str, st.SearchStrategy[Any]] = {
    "BOOLEAN": st.booleans(), "BIGINT": NUMBERS, "UBIGINT": st.integers(0, 2**64 - 1), "DOUBLE": FLOATS,
    "FLOAT": HALVES,
    "DECIMAL(18,3)": st.decimals(-1000, 1000, places=3), "VARCHAR": TEXTS,
    "BLOB": st.binary(max_size=4) | TEXTS.map(str.encode),
    "DATE": st.dates(dt.date(1, 1, 2)), "TIME": st.times(), "TIMESTAMP": TIMES,
    "TIMESTAMP WITH TIME ZONE": TIMES.map(lambda value: value.replace(tzinfo=dt.UTC)),
    "VARCHAR[]": st.lists(st.none() | TEXTS, max_size=3), "INTEGER[][]": st.lists(st.none() | st.lists(NUMBERS, max_size=2)),
    'STRUCT("a" VARCHAR, "b" BIGINT[])': st.fixed_dictionaries(
        {"a": st.none() | TEXTS, "b": st.none() | st.lists(st.none() | NUMBERS, max_size=2)}
    ),
    "MAP(VARCHAR, BIGINT)": st.lists(st.tuples(TEXTS, st.none() | NUMBERS), max_size=2, unique_by=lambda pair: pair[0]),
}  # fmt: skip
HEALTH = [HealthCheck.function_scoped_fixture]
Column = tuple[str, list[Any]]
"""A type, and values of it."""


def columns_of(most: int) -> st.SearchStrategy[Column]:
    return st.sampled_from(sorted(TYPES)).flatmap(
        lambda kind: st.tuples(st.just(kind), st.lists(st.none() | TYPES[kind], min_size=2, max_size=most))
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(MemoryStore(), load()) as made:
        yield made


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "postgres":
        return Place("postgres", request.getfixturevalue("postgres_dsn"))
    return Place(request.param, str(tmp_path / request.param))


def keyed(values: list[Any]) -> list[Row]:
    return list(enumerate(values))


def text_of(engine: Engine, kind: str, given: list[Row]) -> str:
    return digest_of_rows(engine, ("k",), rows(schema(k="BIGINT", v=kind), given)).text


@settings(suppress_health_check=HEALTH, deadline=None, max_examples=examples(20))
@given(column=columns_of(4))
@example(column=("DOUBLE", [-0.0, float("nan"), None]))
@example(column=("FLOAT", [-0.0, float("nan"), None]))
def test_every_sink_has_the_digest_of_the_rows_it_was_given(engine: Engine, place: Place, column: Column) -> None:
    kind, values = column
    sink, of, given = place.fresh().open(), spec(schema(k="BIGINT", v=kind)), keyed(values)
    sink.apply("search", snapshot(of, given[:1]), expect=None, to=at(1))
    sink.apply("search", delta(of, given[1:]), expect=at(1), to=at(2))
    assert content_of(engine, sink, of.key).text == text_of(engine, kind, given)
    sink.close()


def known(value: Any) -> str:
    """What makes a value itself: its text, with -0.0 as the 0.0 that SQL holds for equal, and every NaN as one."""
    if isinstance(value, dict):
        return repr(sorted(value.items()))
    return repr(abs(value) if isinstance(value, float | Decimal) and value == 0 else value)


@settings(suppress_health_check=HEALTH, deadline=None, max_examples=examples(80))
@given(column=columns_of(2))
@example(column=("VARCHAR", [None, ""]))
@example(column=("VARCHAR", [None, "NULL"]))
@example(column=("VARCHAR[]", [["a, b"], ["a", "b"]]))
@example(column=("VARCHAR[]", [[None], ["NULL"]]))
@example(column=("BLOB", [b"\\x00", b"\x00"]))
@example(column=("DOUBLE", [None, float("nan")]))
def test_two_values_have_one_digest_exactly_when_they_are_equal(engine: Engine, column: Column) -> None:
    kind, (one, other) = column
    assert (text_of(engine, kind, [(1, one)]) == text_of(engine, kind, [(1, other)])) == (known(one) == known(other))


@settings(suppress_health_check=HEALTH, deadline=None, max_examples=examples(25))
@given(column=columns_of(5), data=st.data())
def test_neither_order_nor_split_matters(engine: Engine, column: Column, data: st.DataObject) -> None:
    kind, values = column
    given = keyed(values)
    table = rows(schema(k="BIGINT", v=kind), data.draw(st.permutations(given))).read_all()
    at = data.draw(st.integers(0, len(given)))
    parts = pa.concat_tables([table.slice(at), table.slice(0, at)])
    assert digest_of_rows(engine, ("k",), parts).text == text_of(engine, kind, given)


@pytest.mark.parametrize(
    ("kind", "other"), [("BIGINT", "DOUBLE"), ("BIGINT", "VARCHAR"), ("DOUBLE", "VARCHAR"), ("DATE", "VARCHAR")]
)
def test_one_value_in_columns_of_two_types_differs(engine: Engine, kind: str, other: str) -> None:
    value = {"BIGINT": 1, "DOUBLE": 1.0, "VARCHAR": "1", "DATE": dt.date(2026, 1, 1)}
    text = str(value[kind]) if other == "VARCHAR" else value[other]
    digests = [
        digest_of_rows(engine, ("k",), rows(schema(k="BIGINT", v=of), [(1, held)]))
        for of, held in ((kind, value[kind]), (other, text))
    ]
    assert digests[0].text != digests[1].text
    assert digests[0].columns != digests[1].columns


def test_decimals_of_another_scale_are_another_type(engine: Engine) -> None:
    digests = {
        digest_of_rows(engine, ("k",), rows(schema(k="BIGINT", v=of), [(1, Decimal("1.5"))])).text
        for of in ("DECIMAL(9,1)", "DECIMAL(9,2)")
    }
    assert len(digests) == 2
