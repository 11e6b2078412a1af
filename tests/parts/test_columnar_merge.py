"""The merge rule against a dict: whatever the history, the engine's rows are the oracle's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.columnar.engine import Engine, Written
from broker.columnar.tombstones import Standing
from broker.model.commit import Edge
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.model.names import derived_key
from broker.model.request import Format, Selection
from broker.settings import Settings
from broker.sinks import Batch, DuckDB, Memory, Sink, SinkCursor
from broker.stores.memory import MemoryStore
from tests.campaign import examples

COLUMNS = Schema(
    columns=(
        Column(name="id", type="BIGINT", nullable=False),
        Column(name="Part 2", type="VARCHAR", nullable=False),
        Column(name="edge", type="VARCHAR"),
        Column(name="n", type="BIGINT"),
        Column(name="at", type="BIGINT"),
        Column(name="then", type="VARCHAR"),
    )
)
KEY = ("id", "Part 2")
Key = tuple[int, str]
Row = tuple[object, ...]  # in the order of COLUMNS
Order = tuple[int | None, str | None]
PLAIN = DatasetSpec(dataset="t/d/plain", key=KEY, columns=COLUMNS)
ORDERED = DatasetSpec(dataset="t/d/ordered", key=KEY, order=("at", "then"), columns=COLUMNS)
WHERE = Selection(where="n < 2")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(MemoryStore(), Settings(memory_limit_bytes=256 << 20)) as running:
        yield running


@dataclass
class Change:
    """One version: rows and deletes by key; a delete is (at, then)."""

    upserts: dict[Key, Row] = field(default_factory=dict)
    deletes: dict[Key, Order] = field(default_factory=dict)


@dataclass
class Oracle:
    """A replica as the design describes it: rows, and where there is an order, tombstones."""

    ordered: bool
    rows: dict[Key, Row] = field(default_factory=dict)
    tombstones: dict[Key, Order] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        for key, row in change.upserts.items():
            if self._newer(key, (row[4], row[5])):  # type: ignore[arg-type]
                self.rows[key] = row
                self.tombstones.pop(key, None)
        for key, order in change.deletes.items():
            if self._newer(key, order):
                self.rows.pop(key, None)
                self.tombstones[key] = order

    def _newer(self, key: Key, order: Order) -> bool:
        if not self.ordered:
            return True
        held = (self.rows[key][4], self.rows[key][5]) if key in self.rows else self.tombstones.get(key)
        return held is None or rank(order) >= rank(held)  # type: ignore[arg-type]


def rank(order: Order) -> tuple[tuple[bool, object], ...]:
    """NULL is the lowest."""
    return tuple((value is not None, value or (0 if index == 0 else "")) for index, value in enumerate(order))


KEYS = st.tuples(st.integers(0, 3), st.sampled_from(["", "a", "é'\""]))
ORDERS = st.tuples(st.none() | st.integers(0, 2), st.none() | st.sampled_from(["", "b"]))
VALUES = st.tuples(st.none() | st.sampled_from(["", "x", "gone"]), st.none() | st.integers(0, 3))


@st.composite
def changes(draw: st.DrawFn) -> Change:
    upserts: dict[Key, Row] = {
        key: (*key, *value, *order)
        for key, (value, order) in draw(st.dictionaries(KEYS, st.tuples(VALUES, ORDERS), max_size=6)).items()
    }
    deletes = {key: order for key, order in draw(st.dictionaries(KEYS, ORDERS, max_size=4)).items() if key not in upserts}
    return Change(upserts, deletes)


HISTORIES = st.lists(changes(), min_size=1, max_size=5)
SPECS = st.sampled_from([PLAIN, ORDERED])
relaxed = settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [dict(zip(COLUMNS.names, row, strict=True)) for row in rows]


def keys_of(deletes: dict[Key, Order], spec: DatasetSpec) -> list[dict[str, object]]:
    names = (*spec.key, *spec.order)
    return [dict(zip(names, (*key, *order), strict=False)) for key, order in deletes.items()]


def snapshot(engine: Engine, spec: DatasetSpec, rows: dict[Key, Row]) -> Edge:
    return Edge(base=None, version=1, files=engine.write_snapshot(spec, table(list(rows.values()))).files)


def delta(engine: Engine, spec: DatasetSpec, change: Change, base: int) -> Edge:
    written = engine.write_delta(spec, table(list(change.upserts.values())), keys_of(change.deletes, spec))
    return Edge(base=base, version=base + 1, files=written.files)


def rows_in(reader: pa.RecordBatchReader) -> dict[Key, Row]:
    rows = [tuple(row.values()) for row in reader.read_all().to_pylist()]
    by_key: dict[Key, Row] = {(row[0], row[1]): row for row in rows}
    assert len(by_key) == len(rows), "a key came twice"
    return by_key


def deletes_in(reader: pa.RecordBatchReader, spec: DatasetSpec) -> dict[Key, Order]:
    rows = [tuple(row.values()) for row in reader.read_all().to_pylist()]
    assert len({row[:2] for row in rows}) == len(rows), "a key came twice"
    return {(row[0], row[1]): (row[2], row[3]) if spec.order else (None, None) for row in rows}


def history(engine: Engine, spec: DatasetSpec, first: Change, rest: Sequence[Change]) -> tuple[list[Edge], list[Oracle]]:
    """The plan from the first version to the last, and the state after each."""
    oracles = [Oracle(bool(spec.order), dict(first.upserts))]
    edges = [snapshot(engine, spec, first.upserts)]
    for number, change in enumerate(rest, 1):
        edges.append(delta(engine, spec, change, number))
        after = Oracle(bool(spec.order), dict(oracles[-1].rows), dict(oracles[-1].tombstones))
        after.apply(change)
        oracles.append(after)
    return edges, oracles


@relaxed
@given(spec=SPECS, first=changes(), rest=HISTORIES)
def test_the_rows_that_stand_are_those_of_the_merge_rule_at_every_version(
    engine: Engine, spec: DatasetSpec, first: Change, rest: list[Change]
) -> None:
    edges, oracles = history(engine, spec, first, rest)
    for number, oracle in enumerate(oracles, 1):
        assert rows_in(engine.read(spec, edges[:number], Selection())) == oracle.rows


@relaxed
@given(spec=SPECS, first=changes(), rest=HISTORIES, later=changes())
def test_a_compacted_snapshot_stands_for_its_plan_even_for_what_comes_late(
    engine: Engine, spec: DatasetSpec, first: Change, rest: list[Change], later: Change
) -> None:
    edges, oracles = history(engine, spec, first, rest)
    compacted = Edge(base=None, version=len(edges), files=engine.write_merged(spec, Standing(tuple(edges), {}, 0.0)).files)
    assert rows_in(engine.read(spec, [compacted], Selection())) == oracles[-1].rows
    oracles[-1].apply(later)
    plan = [compacted, delta(engine, spec, later, len(edges))]
    assert rows_in(engine.read(spec, plan, Selection())) == oracles[-1].rows


@relaxed
@given(first=changes(), rest=HISTORIES, feed=changes(), later=HISTORIES, where=st.sampled_from([Selection(), WHERE]))
def test_what_comes_late_after_a_snapshot_brings_no_deleted_key_back_in_the_engine_or_in_a_replica(
    engine: Engine, first: Change, rest: list[Change], feed: Change, later: list[Change], where: Selection
) -> None:
    edges, oracles = history(engine, ORDERED, first, rest)
    state, plan = replaced(oracles[-1], feed.upserts), [replacement(engine, edges, feed.upserts)]
    sink = Memory()
    hold(sink, replacing(engine, plan, where))
    for change in later:
        plan.append(delta(engine, ORDERED, change, plan[-1].version))
        state.apply(change)
        assert rows_in(engine.read(ORDERED, plan, Selection())) == state.rows
        hold(sink, changing(engine, plan[-1:], where))
    assert in_sink(sink) == (state.rows if where == Selection() else selected(state.rows))
    late = Memory()
    hold(late, replacing(engine, plan, where))
    assert in_sink(late) == in_sink(sink)


@settings(relaxed, max_examples=examples(10))
@given(first=changes(), feed=changes(), later=HISTORIES, where=st.sampled_from([Selection(), WHERE]))
def test_a_replica_in_duckdb_is_as_guarded_by_a_snapshots_tombstones(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, first: Change, feed: Change, later: list[Change], where: Selection
) -> None:
    state, plan = replaced(Oracle(True, first.upserts), feed.upserts), [snapshot(engine, ORDERED, first.upserts)]
    plan = [replacement(engine, plan, feed.upserts)]
    sink = DuckDB(tmp_path_factory.mktemp("sink") / "r.duckdb", "r")
    hold(sink, replacing(engine, plan, where))
    for change in later:
        plan.append(delta(engine, ORDERED, change, plan[-1].version))
        state.apply(change)
        hold(sink, changing(engine, plan[-1:], where))
    assert in_sink(sink) == (state.rows if where == Selection() else selected(state.rows))


def test_a_tombstone_lives_its_seconds_from_the_commit_of_its_delete_however_many_snapshots_carry_it(engine: Engine) -> None:
    spec = ORDERED.model_copy(update={"tombstone_seconds": 800})
    row: Row = (1, "", None, 1, 1, None)
    plan = [snapshot(engine, spec, {(1, ""): row}), delta(engine, spec, Change(deletes={(1, ""): (1, None)}), 1)]
    committed = {1: 1_000.0, 2: 5_001.0}
    for now, lives in ((5_400.0, True), (5_700.0, True), (5_800.0, True), (5_901.0, False)):
        for written in (
            engine.write_snapshot(spec, [], Standing(tuple(plan), committed, now)),
            engine.write_merged(spec, Standing(tuple(plan), committed, now)),
        ):
            version = plan[-1].version + 1
            carried = [Edge(base=None, version=version, files=written.files)]
            assert [file.since for file in carried[0].of_role("tombstones")] == ([5_100] if lives else [])
        committed[version], plan = now, carried


def test_a_dataset_without_order_keeps_no_tombstones(engine: Engine) -> None:
    before = snapshot(engine, PLAIN, {(1, ""): (1, "", None, 1, 1, None)})
    written = engine.write_snapshot(PLAIN, [], Standing((before,), {}, 0.0))
    assert [file.role for file in written.files] == ["rows"]
    assert engine.tombstones(PLAIN, [before], WHERE) is None


def replaced(before: Oracle, feed: dict[Key, Row]) -> Oracle:
    """A snapshot is the state; what stood or lay dead before and is not in it, is dead as of the order it had."""
    dead: dict[Key, Order] = {**before.tombstones, **{key: (row[4], row[5]) for key, row in before.rows.items()}}  # type: ignore[misc]
    return Oracle(True, dict(feed), {key: order for key, order in dead.items() if key not in feed})


def replacement(engine: Engine, edges: Sequence[Edge], feed: dict[Key, Row]) -> Edge:
    written = engine.write_snapshot(ORDERED, table(list(feed.values())), Standing(tuple(edges), {}, 0.0))
    return Edge(base=None, version=edges[-1].version + 1, files=written.files)


def replacing(engine: Engine, plan: Sequence[Edge], where: Selection) -> Batch:
    dead = engine.tombstones(ORDERED, plan, where)
    return Batch(ORDERED, COLUMNS, True, rows=engine.read(ORDERED, plan, where), tombstones=dead)


def changing(engine: Engine, plan: Sequence[Edge], where: Selection) -> Batch:
    upserts, deletes = engine.changes(ORDERED, plan, where)
    return Batch(ORDERED, COLUMNS, False, upserts=upserts, deletes=deletes)


def hold(sink: Sink, batch: Batch) -> None:
    held = sink.cursor("r")
    to = SinkCursor(ORDERED.dataset, held.version + 1 if held else 1, "session", "", (1, 1))
    sink.apply("r", batch, expect=held, to=to)


def in_sink(sink: Sink) -> dict[Key, Row]:
    return rows_in(sink.read().to_reader())


def selected(rows: dict[Key, Row]) -> dict[Key, Row]:
    return {key: row for key, row in rows.items() if row[3] is not None and row[3] < 2}  # type: ignore[operator]


@relaxed
@given(spec=SPECS, first=changes(), rest=HISTORIES, form=st.sampled_from(["parquet", "jsonl", "csv", "arrow"]))
def test_a_roll_up_in_any_format_does_what_its_deltas_do(
    engine: Engine, spec: DatasetSpec, first: Change, rest: list[Change], form: Format
) -> None:
    edges, oracles = history(engine, spec, first, rest)
    rolled = engine.derive(spec, edges[1:], Selection(), form, fresh_key)
    assert (rolled.base, rolled.version) == (1, len(edges))
    assert rows_in(engine.read(spec, [edges[0], rolled], Selection())) == oracles[-1].rows


@relaxed
@given(spec=SPECS, first=changes(), rest=HISTORIES)
def test_a_filtered_replica_fed_with_filtered_changes_holds_the_filter_of_the_full_one_at_every_version(
    engine: Engine, spec: DatasetSpec, first: Change, rest: list[Change]
) -> None:
    edges, oracles = history(engine, spec, first, rest)
    seed = engine.derive(spec, edges[:1], WHERE, "parquet", fresh_key)
    replica = Oracle(bool(spec.order), rows_in(engine.read(spec, [seed], Selection())), tombstones_of(engine, spec, seed))
    for edge, oracle in zip(edges[1:], oracles[1:], strict=True):
        upserts, deletes = engine.changes(spec, [edge], WHERE)
        replica.apply(Change(rows_in(upserts), deletes_in(deletes, spec)))
        assert replica.rows == {key: row for key, row in oracle.rows.items() if row[3] is not None and row[3] < 2}  # type: ignore[operator]


@relaxed
@given(
    first=changes(), rest=HISTORIES, form=st.sampled_from(["parquet", "jsonl", "csv", "arrow"]), data=st.data(),
    where=st.sampled_from([Selection(), WHERE]),
)  # fmt: skip
def test_a_consumer_without_a_notion_of_order_holds_the_truth_by_removing_deletes_and_writing_upserts(
    engine: Engine, first: Change, rest: list[Change], form: Format, data: st.DataObject, where: Selection
) -> None:
    edges, oracles = history(engine, ORDERED, first, rest)
    if data.draw(st.booleans(), "a compacted snapshot's tombstones are known, too"):
        at = data.draw(st.integers(1, len(edges) - 1), "compacted")
        merged = engine.write_merged(ORDERED, Standing(tuple(edges[:at]), {}, 0.0)).files
        edges, oracles = [Edge(base=None, version=at, files=merged), *edges[at:]], oracles[at - 1 :]
    begin = data.draw(st.integers(1, len(edges) - 1), "edges held")
    plain = {key: row for key, row in oracles[begin - 1].rows.items() if where == Selection() or key in selected({key: row})}
    derived = engine.derive(ORDERED, edges[begin:], where, form, fresh_key, held=edges[:begin])
    upserts, deletes = engine.changes(ORDERED, [derived], Selection())
    for key in deletes_in(deletes, ORDERED):
        plain.pop(key, None)
    plain.update(rows_in(upserts))
    assert plain == (oracles[-1].rows if where == Selection() else selected(oracles[-1].rows))


@relaxed
@given(spec=SPECS, first=changes(), rest=HISTORIES)
def test_many_deltas_filtered_at_once_bring_a_filtered_replica_to_the_same_state(
    engine: Engine, spec: DatasetSpec, first: Change, rest: list[Change]
) -> None:
    edges, _ = history(engine, spec, first, rest)
    seed = engine.derive(spec, edges[:1], WHERE, "parquet", fresh_key)
    replica = Oracle(bool(spec.order), rows_in(engine.read(spec, [seed], Selection())), tombstones_of(engine, spec, seed))
    upserts, deletes = engine.changes(spec, edges[1:], WHERE)
    replica.apply(Change(rows_in(upserts), deletes_in(deletes, spec)))
    assert replica.rows == rows_in(engine.read(spec, edges, WHERE))


@relaxed
@given(spec=SPECS, first=changes(), rest=HISTORIES, feed=changes())
def test_the_difference_to_a_feed_applied_gives_the_feed_except_for_what_is_stale(
    engine: Engine, spec: DatasetSpec, first: Change, rest: list[Change], feed: Change
) -> None:
    edges, oracles = history(engine, spec, first, rest)
    before, rows = oracles[-1], feed.upserts
    written = engine.write_difference(spec, table(list(rows.values())), edges)
    plan = [*edges, Edge(base=len(edges), version=len(edges) + 1, files=written.files)]
    fresh = {key: row for key, row in rows.items() if before._newer(key, (row[4], row[5]))}  # type: ignore[arg-type]
    expected = {key: row for key, row in {**before.rows, **fresh}.items() if key in rows}
    assert rows_in(engine.read(spec, plan, Selection())) == expected
    assert_counts(written, before.rows, rows, fresh)


def assert_counts(written: Written, before: dict[Key, Row], feed: dict[Key, Row], fresh: dict[Key, Row]) -> None:
    unchanged = {key for key, row in feed.items() if before.get(key) == row}
    assert written.unchanged == len(unchanged)
    assert written.upserts == len(fresh.keys() - unchanged)
    assert written.stale == len(feed) - len(fresh)
    assert written.deletes == len(before.keys() - feed.keys())
    assert bool(written.files) == bool(written.upserts or written.deletes)


def fresh_key(extension: str) -> str:
    return derived_key("t/d/x", 0, "fingerprint", extension)


def tombstones_of(engine: Engine, spec: DatasetSpec, edge: Edge) -> dict[Key, Order]:
    """What a replica that starts from this edge holds as deleted."""
    as_deletes = Edge(
        base=0, version=1, files=tuple(f.model_copy(update={"role": "deletes"}) for f in edge.of_role("tombstones"))
    )
    return deletes_in(engine.changes(spec, [as_deletes], Selection())[1], spec) if as_deletes.files else {}
