"""One contract over every sink: P7, the merging rules, and what a user's names and values may be."""

from __future__ import annotations

import dataclasses
import datetime as dt
import signal
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.columnar.types import arrow_schema
from broker.errors import BrokerError, Busy, Conflict, Corrupt, Fenced, SchemaConflict, StaleBase
from broker.model.dataset import DatasetSpec, Schema
from broker.sinks import Applied, Batch, Sink, SinkCursor
from broker.sinks.port import STEPS
from tests.contracts.sink_places import (
    DURABLE,
    KINDS,
    NEW,
    OLD,
    SIMPLE,
    Place,
    Row,
    at,
    delta,
    endless_rows,
    held,
    rows,
    run_child,
    run_endless_child,
    schema,
    snapshot,
    spec,
)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kind: str = request.param
    if kind == "postgres":
        yield Place(kind, request.getfixturevalue("postgres_dsn")).fresh()
    else:
        yield Place(kind, str(tmp_path / {"duckdb": "r.duckdb", "sqlite": "r.sqlite"}.get(kind, "r"))).fresh()


def put(sink: Sink, batch: Batch, version: int) -> Applied:
    """Apply `batch` as `version`, from whatever is there."""
    return sink.apply("search", batch, expect=sink.cursor("search"), to=at(version))


# --- P7: rows and cursor in one transaction


def test_a_new_sink_holds_nothing(place: Place) -> None:
    sink = place.open()
    assert sink.cursor("search") is None
    assert sink.read().num_rows == 0
    sink.close()
    sink.close()


def test_a_replacement_brings_rows_and_cursor(place: Place) -> None:
    assert put(place.open(), snapshot(SIMPLE, OLD), 1) == Applied(rows=2)
    assert held(place.open()) == OLD
    assert place.open().cursor("search") == at(1)


def test_a_delta_writes_and_removes_rows(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    assert put(place.open(), delta(SIMPLE, NEW, [("b", 2), ("never held", 2)]), 2) == Applied(upserts=2, deletes=1)
    assert held(place.open()) == NEW
    assert place.open().cursor("search") == at(2)


def test_the_same_apply_twice_is_refused_and_changes_nothing(place: Place) -> None:
    sink = place.open()
    put(sink, snapshot(SIMPLE, OLD), 1)
    sink.apply("search", delta(SIMPLE, NEW), expect=at(1), to=at(2))
    before = held(sink)
    with pytest.raises(StaleBase):
        sink.apply("search", delta(SIMPLE, [("z", 9, "z")]), expect=at(1), to=at(2))
    with pytest.raises(StaleBase):
        sink.apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    assert (held(sink), sink.cursor("search")) == (before, at(2))


@pytest.mark.parametrize("expect", [at(2), at(1, session="s2"), None])
def test_another_position_than_expected_is_stale(place: Place, expect: SinkCursor | None) -> None:
    sink = place.open()
    put(sink, snapshot(SIMPLE, OLD), 1)
    with pytest.raises(StaleBase):
        sink.apply("search", snapshot(SIMPLE, NEW), expect=expect, to=at(3))
    assert (held(sink), sink.cursor("search")) == (OLD, at(1))


def test_a_cursor_that_is_expected_and_absent_is_stale(place: Place) -> None:
    with pytest.raises(StaleBase):
        place.open().apply("search", snapshot(SIMPLE, OLD), expect=at(1), to=at(2))
    assert place.open().cursor("search") is None
    assert place.open().read().num_rows == 0


def test_whoever_takes_the_fence_shuts_out_the_one_before(place: Place) -> None:
    sink = place.open()
    put(sink, snapshot(SIMPLE, OLD), 1)
    sink.take("search", at(1), (1, 2))
    assert sink.cursor("search") == at(1, (1, 2))
    with pytest.raises(Fenced):
        sink.apply("search", snapshot(SIMPLE, NEW), expect=at(1), to=at(2))
    with pytest.raises(Fenced):
        sink.take("search", at(1), (1, 3))
    with pytest.raises(Fenced):
        sink.take("search", at(1, (1, 2)), (1, 1))
    assert held(sink) == OLD
    sink.apply("search", snapshot(SIMPLE, NEW), expect=at(1, (1, 2)), to=at(2, (1, 2)))
    assert held(sink) == NEW


def test_a_place_can_be_taken_before_anything_is_applied(place: Place) -> None:
    sink = place.open()
    sink.take("search", None, (1, 5))
    taken = sink.cursor("search")
    assert taken == SinkCursor("", 0, "", "", (1, 5))
    with pytest.raises(Fenced):
        sink.apply("search", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    sink.apply("search", snapshot(SIMPLE, OLD), expect=taken, to=at(1, (1, 5)))
    assert held(sink) == OLD


def test_one_place_belongs_to_one_replica(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    with pytest.raises(Conflict):
        place.open().cursor("other")
    with pytest.raises(Conflict):
        place.open().apply("other", snapshot(SIMPLE, NEW), expect=None, to=at(1))
    assert held(place.open()) == OLD


def test_of_two_appliers_at_once_one_wins(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    together = threading.Barrier(2)
    outcomes: dict[str, Applied | BrokerError] = {}

    def apply(who: str) -> None:
        batch = delta(SIMPLE, [("a", 5, who), (who, 5, who)])
        sink = place.open() if place.kind == "memory" else place.named(place.table).open()
        together.wait()
        try:
            outcomes[who] = sink.apply("search", batch, expect=at(1), to=at(2))
        except BrokerError as error:
            outcomes[who] = error

    threads = [threading.Thread(target=apply, args=(who,)) for who in ("x", "y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [who for who, outcome in outcomes.items() if isinstance(outcome, Applied)]
    assert len(winners) == 1, outcomes
    assert all(isinstance(outcome, Applied | StaleBase | Busy) for outcome in outcomes.values()), outcomes
    assert held(place.open()) == [("a", 5, winners[0]), ("b", 1, "old"), (winners[0], 5, winners[0])]


@pytest.mark.parametrize("place", DURABLE, indirect=True)
@pytest.mark.parametrize("change", ["snapshot", "delta"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_leaves_the_old_or_the_new_state_whole(place: Place, step: str, change: str) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    assert run_child(place, step, change) == -signal.SIGKILL
    sink = place.open()
    if step == "committed":
        assert (sink.cursor("search"), held(sink)) == (at(2), NEW)
        return
    assert (sink.cursor("search"), held(sink)) == (at(1), OLD)
    put(sink, delta(SIMPLE, NEW, [("b", 2)]), 2)
    assert (sink.cursor("search"), held(place.open())) == (at(2), NEW)


def test_an_error_of_the_source_comes_out_as_it_is_and_leaves_the_old_state(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)

    def broken() -> Iterator[pa.RecordBatch]:
        yield from rows(SIMPLE.columns or schema(), NEW)
        raise Corrupt("the source's own error")

    columns = SIMPLE.columns
    assert columns is not None
    for field in ("rows", "tombstones", "upserts", "deletes"):
        reader = pa.RecordBatchReader.from_batches(arrow_schema(columns), broken())
        batch = Batch(SIMPLE, columns, field in ("rows", "tombstones"), **{field: reader})
        with pytest.raises(Corrupt, match="the source's own error"):
            place.open().apply("search", batch, expect=at(1), to=at(2))
        assert (place.open().cursor("search"), held(place.open())) == (at(1), OLD)


@pytest.mark.parametrize("place", DURABLE, indirect=True)
def test_a_crash_at_any_moment_leaves_one_version_whole(place: Place) -> None:
    for after_versions in (1, 2, 3):
        version = run_endless_child(place, after_versions)
        sink = place.open()
        before, found, after = sink.cursor("search"), held(sink), sink.cursor("search")
        assert before is not None
        assert after is not None
        assert version <= before.version <= after.version <= version + 1  # a Postgres backend may outlive its client's commit
        assert found in (endless_rows(before.version), endless_rows(after.version))


# --- order and tombstones


def test_an_older_upsert_is_stale_and_an_equal_one_wins(place: Place) -> None:
    sink = place.open()
    put(sink, snapshot(SIMPLE, [("a", 5, "held"), ("b", 5, "held"), ("c", None, "held")]), 1)
    applied = put(sink, delta(SIMPLE, [("a", 4, "older"), ("b", 5, "equal"), ("c", None, "equal"), ("d", None, "new")]), 2)
    assert applied == Applied(upserts=3, stale=1)
    assert held(sink) == [("a", 5, "held"), ("b", 5, "equal"), ("c", None, "equal"), ("d", None, "new")]


def test_a_null_order_is_the_lowest(place: Place) -> None:
    sink = place.open()
    put(sink, snapshot(SIMPLE, [("a", -5, "held"), ("b", None, "held")]), 1)
    assert put(sink, delta(SIMPLE, [("a", None, "null"), ("b", -9, "newer")]), 2) == Applied(upserts=1, stale=1)
    assert held(sink) == [("a", -5, "held"), ("b", -9, "newer")]


def test_an_older_delete_is_stale(place: Place) -> None:
    sink = place.open()
    put(sink, snapshot(SIMPLE, [("a", 5, "held"), ("b", 5, "held")]), 1)
    assert put(sink, delta(SIMPLE, (), [("a", 4), ("b", 5)]), 2) == Applied(deletes=1, stale=1)
    assert held(sink) == [("a", 5, "held")]


def test_a_late_older_upsert_does_not_bring_a_deleted_row_back(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    put(place.open(), delta(SIMPLE, (), [("a", 7), ("unseen", 7)]), 2)
    assert put(place.open(), delta(SIMPLE, [("a", 6, "late"), ("unseen", 6, "late")], [("a", 3)]), 3) == Applied(stale=3)
    assert held(place.open()) == [("b", 1, "old")]
    assert put(place.open(), delta(SIMPLE, [("a", 7, "back")]), 4) == Applied(upserts=1)
    assert held(place.open()) == [("a", 7, "back"), ("b", 1, "old")]


def test_the_tombstones_of_a_snapshot_guard_too_and_the_ones_before_it_are_gone(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    put(place.open(), delta(SIMPLE, (), [("a", 7)]), 2)
    put(place.open(), snapshot(SIMPLE, OLD[1:], [("x", 9)]), 3)
    assert put(place.open(), delta(SIMPLE, [("x", 8, "late"), ("a", 6, "fine")]), 4) == Applied(upserts=1, stale=1)
    assert held(place.open()) == [("a", 6, "fine"), ("b", 1, "old")]


def test_a_tombstone_ends_after_its_time(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    put(place.open(), delta(SIMPLE, (), [("a", 7), ("b", 7)]), 2)
    place.now += SIMPLE.tombstone_seconds - 1
    assert put(place.open(), delta(SIMPLE, [("a", 6, "late")]), 3).stale == 1
    place.now += 1
    assert put(place.open(), delta(SIMPLE, [("b", 6, "much later")]), 4) == Applied(upserts=1)
    assert held(place.open()) == [("b", 6, "much later")]


def test_a_change_is_compared_with_the_tombstones_of_its_commit_however_late_it_is_read(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    put(place.open(), delta(SIMPLE, (), [("a", 7), ("b", 7)]), 2)
    committed = place.now + SIMPLE.tombstone_seconds - 1
    place.now += 10 * SIMPLE.tombstone_seconds
    late = dataclasses.replace(delta(SIMPLE, [("a", 6, "late")]), since=committed)
    assert put(place.open(), late, 3).stale == 1
    later = dataclasses.replace(delta(SIMPLE, [("b", 6, "much later")]), since=committed + 1)
    assert put(place.open(), later, 4) == Applied(upserts=1)


def test_without_order_the_last_change_wins(place: Place) -> None:
    plain = spec(schema(k="INTEGER", v="VARCHAR"))
    sink = place.open()
    put(sink, snapshot(plain, [(1, "a"), (2, "b")]), 1)
    assert put(sink, delta(plain, [(1, "c")], [(2,)]), 2) == Applied(upserts=1, deletes=1)
    assert put(sink, delta(plain, [(2, "again")]), 3) == Applied(upserts=1)
    assert held(sink) == [(1, "c"), (2, "again")]


ORDERS: dict[str, tuple[dict[str, str], st.SearchStrategy[Row]]] = {
    "whole numbers": ({"o": "BIGINT"}, st.tuples(st.sampled_from([None, -2, 9, 10, 2**40]))),
    "decimals": ({"o": "DECIMAL(10,2)"}, st.tuples(st.sampled_from([None, *map(Decimal, ("-1.50", "9.00", "10.00", "0.05"))]))),
    "instants": (
        {"o": "TIMESTAMP WITH TIME ZONE"},
        st.tuples(
            st.sampled_from(
                [None, *(dt.datetime(2024, 1, 1, 0, 0, s, us, dt.UTC) for s, us in ((0, 0), (0, 5), (9, 0), (10, 0)))]
            )
        ),
    ),
    "text by bytes": ({"o": "VARCHAR"}, st.tuples(st.sampled_from([None, "", "B", "a", "é", "z"]))),
    "two columns": (
        {"o": "INTEGER", "p": "VARCHAR"},
        st.tuples(st.sampled_from([None, 1, 2]), st.sampled_from([None, "B", "a"])),
    ),
    "none": ({}, st.just(())),
}
EXAMPLES = {"memory": 60, "sqlite": 25, "duckdb": 6, "parquet": 6, "postgres": 6}
"""By what one example costs."""
Changes = list[tuple[bool, dict[str, tuple[str, Row]]]]


def oracle(changes: Changes) -> dict[str, Row]:
    """Per key the greatest (order, time of commit) of all changes since the last replacement; deletes leave nothing."""
    best: dict[str, tuple[Any, str, Row]] = {}
    for number, (replace, batch) in enumerate(changes):
        if replace:
            best = {}
        for key, (what, order) in batch.items():
            rank = ([(value is not None, _comparable(value)) for value in order], number)
            if key not in best or rank >= best[key][0]:
                best[key] = (rank, what, (key, *order, f"{number}"))
    return {key: row for key, (_, what, row) in best.items() if what == "upsert"}


def _comparable(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else (0 if value is None else value)


@pytest.mark.parametrize("ordered", ORDERS)
def test_any_history_ends_in_the_state_the_rules_say(place: Place, ordered: str) -> None:
    @settings(max_examples=EXAMPLES[place.kind], deadline=None, database=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        check_history(place.fresh(), ordered, data)

    check()


def check_history(place: Place, ordered: str, data: st.DataObject) -> None:
    types, orders = ORDERS[ordered]
    columns = schema(k="VARCHAR", **types, v="VARCHAR")
    of = spec(columns, order=tuple(types))
    change = st.tuples(st.sampled_from(["upsert", "delete"]), orders)
    batch = st.dictionaries(st.sampled_from(["a", "b'", "É", "日本"]), change, max_size=4)
    history: Changes = data.draw(st.lists(st.tuples(st.integers(0, 4).map(lambda n: n == 0), batch), min_size=1, max_size=6))
    sink = place.open()
    for number, (replace, changes) in enumerate(history):
        upserts = [(key, *order, f"{number}") for key, (what, order) in changes.items() if what == "upsert"]
        deletes = [(key, *order) for key, (what, order) in changes.items() if what == "delete"]
        put(sink, snapshot(of, upserts, deletes if types else None) if replace else delta(of, upserts, deletes), number + 1)
    assert {row[0]: row for row in held(sink)} == oracle(history)


# --- shapes


def test_new_columns_and_wider_types_arrive_with_a_delta(place: Place) -> None:
    narrow = spec(schema(k="INTEGER", o="INTEGER", n="INTEGER", d="DECIMAL(5,1)", t="DATE"), order=("o",))
    put(place.open(), snapshot(narrow, [(1, 1, 7, Decimal("1.5"), dt.date(2024, 2, 29)), (2, 1, None, None, None)]), 1)
    put(place.open(), delta(narrow, (), [(9, 5)]), 2)
    wide = spec(schema(k="BIGINT", o="INTEGER", n="HUGEINT", d="DECIMAL(20,3)", t="TIMESTAMP", new="VARCHAR"), order=("o",))
    new = (2**40, 2, 10**30, Decimal("12345.678"), dt.datetime(2024, 1, 1, 1), "é")
    assert put(place.open(), delta(wide, [new], [(2, 1)]), 3) == Applied(upserts=1, deletes=1)
    assert put(place.open(), delta(wide, [(9, 4, None, None, None, None)]), 4) == Applied(stale=1)
    assert held(place.open()) == sorted(
        [(1, 1, Decimal(7), Decimal("1.500"), dt.datetime(2024, 2, 29), None), (*new[:2], Decimal(10**30), *new[3:])], key=repr
    )
    put(place.open(), delta(narrow, [(1, 3, 8, Decimal("2.5"), None)]), 5)
    assert (1, 3, Decimal(8), Decimal("2.500"), None, None) in held(place.open())


def test_a_delta_that_does_not_fit_is_refused_and_changes_nothing(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    other = spec(schema(k="VARCHAR", o="BIGINT", v="DATE"), order=("o",))
    with pytest.raises(SchemaConflict):
        put(place.open(), delta(other, [("a", 5, None)]), 2)
    rekeyed = spec(schema(k="VARCHAR", o="BIGINT", v="VARCHAR"), key=("k", "v"), order=("o",))
    with pytest.raises(Conflict):
        put(place.open(), delta(rekeyed, [("a", 5, "v")]), 2)
    assert (held(place.open()), place.open().cursor("search")) == (OLD, at(1))


def test_a_replacement_may_change_everything(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    other = spec(schema(v="DATE", id="INTEGER", k="DOUBLE"), key=("id",))
    assert put(place.open(), snapshot(other, [(None, 1, 1.5)]), 2) == Applied(rows=1)
    assert held(place.open()) == [(None, 1, 1.5)]
    assert put(place.open(), delta(other, [(None, 2, None)], [(1,)]), 3) == Applied(upserts=1, deletes=1)
    put(place.open(), snapshot(SIMPLE, NEW), 4)
    assert put(place.open(), delta(SIMPLE, (), [("a", 9)]), 5).deletes == 1


def test_replacing_by_nothing_and_empty_deltas_are_applied(place: Place) -> None:
    sink = place.open()
    put(sink, snapshot(SIMPLE, []), 1)
    assert (held(sink), sink.cursor("search")) == ([], at(1))
    assert put(sink, delta(SIMPLE), 2) == Applied()
    columns = SIMPLE.columns
    assert columns is not None
    assert put(sink, Batch(SIMPLE, columns, False), 3) == Applied()
    put(sink, delta(SIMPLE, NEW), 4)
    assert put(sink, Batch(SIMPLE, columns, True), 5) == Applied()
    assert (held(sink), sink.cursor("search")) == ([], at(5))


def test_a_delta_may_be_the_first_thing_that_arrives(place: Place) -> None:
    assert put(place.open(), delta(SIMPLE, NEW, [("x", 5)]), 1) == Applied(upserts=2)
    assert put(place.open(), delta(SIMPLE, [("x", 4, "late")]), 2) == Applied(stale=1)
    assert held(place.open()) == NEW


ODD = ["select", 'a"b', "ünï", "two words", "x'y", "per%cent?", "$1", "日本語"]


@pytest.mark.parametrize("table", [*ODD[:-1], "Offers-2"])
def test_odd_names_of_tables_and_columns_are_only_names(place: Place, table: str) -> None:
    at_table = place.named(f"{table} {place.table}")
    columns = schema(**{name: "VARCHAR" for name in ODD}, dropped_at="INTEGER", held="VARCHAR")
    of = spec(columns, key=(ODD[0], ODD[1]), order=("dropped_at",))
    row = ("k1", "k2", *ODD[2:], 5, None)
    put(at_table.open(), snapshot(of, [row, ("k1", "k3", *ODD[2:], 5, "ж")]), 1)
    assert put(at_table.open(), delta(of, [("k1", "k2", *ODD[2:], 6, "new")], [("k1", "k3", 6)]), 2) == Applied(1 - 1, 1, 1, 0)
    assert put(at_table.open(), delta(of, [("k1", "k3", *ODD[2:], 5, "late")]), 3) == Applied(stale=1)
    assert held(at_table.open()) == [("k1", "k2", *ODD[2:], 6, "new")]


def test_two_replicas_live_in_one_database_side_by_side(place: Place) -> None:
    one, two = place.fresh(), place.fresh()
    one.open().apply("one", snapshot(SIMPLE, OLD), expect=None, to=at(1))
    two.open().apply("two", snapshot(SIMPLE, NEW), expect=None, to=at(8))
    one.open().apply("one", delta(SIMPLE, (), [("a", 9), ("c", 9)]), expect=at(1), to=at(2))
    assert (held(one.open()), one.open().cursor("one")) == (OLD[1:], at(2))
    assert (held(two.open()), two.open().cursor("two")) == (NEW, at(8))


VALUES: dict[str, tuple[Any, ...]] = {
    "BOOLEAN": (True, False),
    "TINYINT": (-128, 127),
    "SMALLINT": (-32768, 32767),
    "INTEGER": (-(2**31), 2**31 - 1),
    "BIGINT": (-(2**63), 2**63 - 1),
    "UTINYINT": (0, 255),
    "USMALLINT": (0, 65535),
    "UINTEGER": (0, 2**32 - 1),
    "UBIGINT": (0, 2**64 - 1),
    "HUGEINT": (Decimal(-(10**37)), Decimal(10**38 - 1)),
    "FLOAT": (1.5, float("inf")),
    "DOUBLE": (0.1, -1e300),
    "DECIMAL(18,2)": (Decimal("-0.05"), Decimal("1234567890123456.78")),
    "DECIMAL(38,10)": (Decimal("0.0000000001"), Decimal("1.5000000000")),
    "VARCHAR": ("", "Größe\n日本 🦊 '\"\\"),
    "BLOB": (b"", b"\x00\xff'"),
    "DATE": (dt.date(1, 1, 1), dt.date(9999, 12, 31)),
    "TIME": (dt.time(0), dt.time(23, 59, 59, 999999)),
    "TIMESTAMP_S": (dt.datetime(1969, 12, 31, 23, 59, 59), dt.datetime(2024, 2, 29)),
    "TIMESTAMP_MS": (dt.datetime(1969, 12, 31, 23, 59, 59, 999000), dt.datetime(2024, 2, 29)),
    "TIMESTAMP": (dt.datetime(1, 1, 1), dt.datetime(2024, 2, 29, 12, 0, 0, 1)),
    "TIMESTAMP_NS": (dt.datetime(1969, 12, 31, 23, 59, 59, 999999), dt.datetime(2024, 2, 29)),
    "TIMESTAMP WITH TIME ZONE": (dt.datetime(1969, 12, 31, tzinfo=dt.UTC), dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.UTC)),
    "INTEGER[]": ([], [1, None, 3]),
    "DECIMAL(9,2)[]": ([Decimal("1.50")], [None]),
    'STRUCT("a" INTEGER, "b ""c" DATE)': ({"a": 1, 'b "c': dt.date(2024, 1, 1)}, {"a": None, 'b "c': None}),
    "MAP(VARCHAR, INTEGER)": ([("é", 1), ("b", None)], []),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_come_back_as_they_went_in(place: Place, kind: str) -> None:
    columns = schema(k="INTEGER", v=kind)
    of = spec(columns)
    first, second = VALUES[kind]
    wanted = rows(columns, [(1, second), (2, None), (3, first)]).read_all()
    put(place.open(), snapshot(of, [(1, first), (2, None)]), 1)
    put(place.open(), delta(of, [(1, second), (3, first)]), 2)
    table = place.open().read().sort_by("k")
    assert table.schema.types == wanted.schema.types
    assert table.to_pylist() == wanted.to_pylist()


KEY_TYPES = [kind for kind in VALUES if "[" not in kind and "(VARCHAR" not in kind and "STRUCT" not in kind]


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_any_plain_type_can_be_a_key_and_an_order(place: Place, kind: str) -> None:
    low, high = sorted(VALUES[kind])
    columns = schema(k=kind, o=kind, v="INTEGER")
    of = spec(columns, order=("o",))
    put(place.open(), snapshot(of, [(low, high, 1), (high, low, 1)]), 1)
    assert put(place.open(), delta(of, [(low, low, 2), (high, high, 2)]), 2) == Applied(upserts=1, stale=1)
    assert put(place.open(), delta(of, (), [(low, high), (high, low)]), 3) == Applied(deletes=1, stale=1)
    assert [row[2] for row in held(place.open())] == [2]


def test_reading_some_columns_gives_these(place: Place) -> None:
    put(place.open(), snapshot(SIMPLE, OLD), 1)
    table = place.open().read(["v", "k"])
    assert table.column_names == ["v", "k"]
    assert table.num_rows == len(OLD)


def test_columns_may_arrive_in_another_order_and_narrower(place: Place) -> None:
    columns = schema(k="BIGINT", a="VARCHAR", b="DOUBLE")
    of = DatasetSpec(dataset="shop/catalog/offers", key=("k",))
    reader = pa.table({"b": pa.array([1.5], pa.float32()), "k": pa.array([1], pa.int8())}).to_reader()
    put(place.open(), Batch(of, columns, True, rows=reader), 1)
    assert held(place.open()) == [(1, None, 1.5)]
    again = pa.table({"b": pa.array([2.5], pa.float32()), "k": pa.array([1], pa.int8())}).to_reader()
    put(place.open(), Batch(of, columns, False, upserts=again), 2)
    assert held(place.open()) == [(1, None, 2.5)]


def test_a_schema_without_its_key_is_refused(place: Place) -> None:
    columns: Schema = schema(a="INTEGER")
    with pytest.raises(SchemaConflict):
        place.open().apply("search", Batch(SIMPLE, columns, True), expect=None, to=at(1))
