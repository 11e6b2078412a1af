"""Coalescing against the merge rule: however changes are cut into blocks and batches, what stands is what a dict says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.columnar.batch import BatchWriter
from broker.columnar.coalesce import PLACE, Changes, Coalesced, by_arrow, by_duckdb, coalesce
from broker.columnar.database import Database
from broker.columnar.engine import EVERYTHING, Engine
from broker.errors import BadData, NullKey, SchemaConflict
from broker.model.commit import Edge
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.model.names import DatasetId
from broker.settings import Settings
from broker.stores.memory import MemoryStore
from tests.campaign import examples

COLUMNS = Schema(
    columns=(
        Column(name="id", type="BIGINT", nullable=False),
        Column(name="part", type="VARCHAR", nullable=False),
        Column(name="at", type="BIGINT"),
        Column(name="then", type="VARCHAR"),
        Column(name="value", type="VARCHAR"),
    )
)
KEY, ORDER = ("id", "part"), ("at", "then")
ORDERED = DatasetSpec(dataset=DatasetId("t/d/ordered"), key=KEY, order=ORDER, columns=COLUMNS)
PLAIN = DatasetSpec(dataset=DatasetId("t/d/plain"), key=KEY, columns=COLUMNS)


@dataclass(frozen=True)
class Change:
    """A row, or (`gone`) the delete of one."""

    id: int
    part: str
    at: int | None
    then: str | None
    value: str
    gone: bool

    @property
    def key(self) -> tuple[int, str]:
        return self.id, self.part

    @property
    def rank(self) -> tuple[tuple[bool, Any], ...]:
        return (self.at is not None, self.at or 0), (self.then is not None, self.then or "")

    @property
    def row(self) -> dict[str, Any]:
        return {"id": self.id, "part": self.part, "at": self.at, "then": self.then, "value": self.value}


CHANGES = st.builds(
    Change, id=st.integers(0, 3), part=st.sampled_from(["", "a"]), at=st.none() | st.integers(0, 3),
    then=st.none() | st.sampled_from(["", "b"]), value=st.text("xyz", max_size=2), gone=st.booleans(),
)  # fmt: skip
DISTINCT = st.lists(CHANGES, max_size=14, unique_by=lambda change: (change.key, change.rank))


@pytest.fixture(scope="module")
def writer() -> Iterator[Harness]:
    store, limits = MemoryStore(), Settings(memory_limit_bytes=128 << 20)
    engine, batches = Engine(store, limits), BatchWriter(store, limits)
    yield Harness(engine, batches)
    engine.close()
    batches.close()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(128 << 20, tmp_path_factory.mktemp("spill"))
    yield database
    database.close()


@dataclass
class Harness:
    engine: Engine
    batches: BatchWriter

    def state(self, spec: DatasetSpec, versions: Sequence[Sequence[Sequence[Change]]]) -> dict[tuple[int, str], Any]:
        """What stands after these versions, each a list of blocks."""
        edges = [Edge(base=None, version=1)]
        for blocks in versions:
            if any(blocks):
                written = self.batches.write(spec, in_runs(spec, blocks), 0).commit()
                edges.append(Edge(base=edges[-1].version, version=edges[-1].version + 1, files=written.files))
        rows = self.engine.read(spec, edges, EVERYTHING).read_all().to_pylist()
        return {(row["id"], row["part"]): row for row in rows}


def in_runs(spec: DatasetSpec, blocks: Sequence[Sequence[Change]]) -> Iterator[Changes]:
    """A block holds one kind, so one of both becomes several."""
    for block in blocks:
        for change in block:
            names = (*spec.key, *spec.order) if change.gone else spec.columns.names if spec.columns else ()
            rows = pa.table({name: pa.array([change.row[name]], TYPES[name]) for name in names})
            yield Changes(change.gone, rows)


TYPES = {"id": pa.int64(), "part": pa.string(), "at": pa.int64(), "then": pa.string(), "value": pa.string()}


def expected(changes: Sequence[Change], *, ordered: bool) -> dict[tuple[int, str], Any]:
    """The rule of the design, change by change: newest order wins, equal orders: the later one."""
    stands: dict[tuple[int, str], Change] = {}
    for change in changes:
        held = stands.get(change.key)
        if not ordered or held is None or change.rank >= held.rank:
            stands[change.key] = change
    return {key: change.row for key, change in stands.items() if not change.gone}


def cut(draw: st.DrawFn, items: Sequence[Any], most: int) -> list[list[Any]]:
    places = sorted(draw(st.lists(st.integers(0, len(items)), max_size=most)))
    return [list(items[begin:end]) for begin, end in zip([0, *places], [*places, len(items)], strict=True)]


@st.composite
def splits(draw: st.DrawFn, changes: Sequence[Change]) -> list[list[list[Change]]]:
    """The changes, in this order, as blocks of versions."""
    return [cut(draw, version, 3) for version in cut(draw, changes, 4)]


@settings(max_examples=examples(80), deadline=None)
@given(st.data())
def test_any_order_duplication_and_split_of_the_same_changes_gives_one_state(writer: Harness, data: st.DataObject) -> None:
    """Late ones included; orders differ per key, so there is one truth."""
    changes = data.draw(DISTINCT)
    shuffled = data.draw(st.permutations([*changes, *(data.draw(st.lists(st.sampled_from(changes))) if changes else [])]))
    assert writer.state(ORDERED, data.draw(splits(shuffled))) == expected(changes, ordered=True)


@settings(max_examples=examples(80), deadline=None)
@given(st.data())
def test_ties_follow_commit_order_however_they_are_split(writer: Harness, data: st.DataObject) -> None:
    changes = data.draw(st.lists(CHANGES, max_size=14))
    assert writer.state(ORDERED, data.draw(splits(changes))) == expected(changes, ordered=True)


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_without_an_order_the_later_change_wins_however_they_are_split(writer: Harness, data: st.DataObject) -> None:
    changes = data.draw(st.lists(CHANGES, max_size=14))
    assert writer.state(PLAIN, data.draw(splits(changes))) == expected(changes, ordered=False)


NUMBERS = st.sampled_from([math.nan, -math.inf, math.inf, -0.0, 0.0, 1.5]) | st.none()


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-0.0, 0.0, 1.0, math.nan]), NUMBERS, st.integers(0, 99)), min_size=1, max_size=10))
def test_a_batch_of_floating_keys_and_orders_means_what_its_changes_mean_one_by_one(
    writer: Harness, rows: list[tuple[float, float | None, int]]
) -> None:
    schema = pa.schema([("k", pa.float64()), ("o", pa.float64()), ("v", pa.int64())])
    spec = DatasetSpec(dataset=DatasetId("t/d/floats"), key=("k",), order=("o",))
    tables = [pa.Table.from_pylist([dict(zip("kov", row, strict=True))], schema) for row in rows]

    def standing(batches: Sequence[Sequence[pa.Table]]) -> list[str]:
        edges = [Edge(base=None, version=1)]
        for batch in batches:
            written = writer.batches.write(spec, [Changes(False, table) for table in batch], 0).commit()
            edges.append(Edge(base=edges[-1].version, version=edges[-1].version + 1, files=written.files))
        found = writer.engine.read(spec.model_copy(update={"columns": written.schema}), edges, EVERYTHING).read_all()
        return sorted(f"{row['k'] + 0.0} {row['o']} {row['v']}".replace("-0.0", "0.0") for row in found.to_pylist())

    assert standing([tables]) == standing([[table] for table in tables])


TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))
MOMENTS = pa.schema([("k", pa.binary()), ("then", pa.timestamp("ns")), ("day", pa.date32()), ("flag", pa.bool_())])


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(max_size=1), st.none() | TIMES, st.none() | TIMES.map(datetime.date), st.none() | st.booleans()),
        min_size=2, max_size=12,
    ),
    st.sets(st.integers(0, 11)), st.sampled_from([(), ("then",), ("day", "flag")]),
)  # fmt: skip
def test_few_changes_are_chosen_as_many_are(
    database: Database, rows: list[tuple[Any, ...]], gone: set[int], order: tuple[str, ...]
) -> None:
    spec = DatasetSpec(dataset=DatasetId("t/d/moments"), key=("k",), order=order)
    table = pa.Table.from_pylist([dict(zip(MOMENTS.names, row, strict=True)) for row in rows], MOMENTS)
    spec = spec.model_copy(update={"columns": coalesce(spec, [Changes(False, table)], database).schema})
    changes = [
        Changes(at in gone, table.slice(at, 1).select(["k", *order] if at in gone else MOMENTS.names))
        for at in range(len(rows))
    ]
    few = coalesce(spec, changes, database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.columnar.coalesce.FEW_ROWS", 0)
        assert coalesce(spec, changes, database) == few


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(CHANGES, max_size=20), st.sampled_from([(), ("at",), ORDER]))
def test_arrow_and_duckdb_choose_the_same_changes(database: Database, changes: list[Change], order: tuple[str, ...]) -> None:
    columns = {name: pa.array([change.row[name] for change in changes], TYPES[name]) for name in (*KEY, *order)}
    table = pa.table(columns | {PLACE: pa.array(range(len(changes)), pa.int64())})
    mine, theirs = by_arrow(table, KEY, order), by_duckdb(table, KEY, order, database, "t")
    assert sorted(range(len(changes)) if mine is None else mine.to_pylist()) == sorted(theirs.to_pylist())


# --- one by one


def of(spec: DatasetSpec, database: Database, *changes: Changes) -> Coalesced:
    return coalesce(spec, changes, database)


def ups(**columns: list[Any]) -> Changes:
    return Changes(False, pa.table(columns))


def dels(**columns: list[Any]) -> Changes:
    return Changes(True, pa.table(columns))


SKUS = DatasetSpec(dataset=DatasetId("t/d/skus"), key=("sku",))


def test_what_a_later_change_replaced_is_counted(database: Database) -> None:
    found = of(SKUS, database, ups(sku=["a", "b", "a"], n=[1, 2, 3]), dels(sku=["b"]), ups(sku=["a"], n=[4]))
    assert found.dropped == 3
    assert found.upserts.to_pylist() == [{"sku": "a", "n": 4}]  # type: ignore[union-attr]
    assert found.deletes.to_pylist() == [{"sku": "b"}]  # type: ignore[union-attr]


def test_changes_of_distinct_keys_pass_as_they_came(database: Database) -> None:
    found = of(SKUS, database, ups(sku=["b", "a"], n=[1, 2]))
    assert found.upserts.to_pylist() == [{"sku": "b", "n": 1}, {"sku": "a", "n": 2}]  # type: ignore[union-attr]
    assert (found.deletes, found.dropped) == (None, 0)


def test_blocks_appended_before_and_behind_a_new_column_become_one_file(database: Database) -> None:
    found = of(SKUS, database, ups(sku=["a"], n=[1]), ups(sku=["b"], n=[2], title=["x"]), ups(sku=["c"], n=[3]))
    assert found.schema.names == ("sku", "n", "title")
    assert found.upserts.sort_by("sku").to_pylist() == [  # type: ignore[union-attr]
        {"sku": "a", "n": 1, "title": None}, {"sku": "b", "n": 2, "title": "x"}, {"sku": "c", "n": 3, "title": None},
    ]  # fmt: skip


def test_a_block_of_a_wider_type_widens_all_of_the_batch(database: Database) -> None:
    narrow = Changes(False, pa.table({"sku": ["a"], "n": pa.array([1], pa.int32())}))
    found = of(SKUS, database, narrow, ups(sku=["b"], n=[1 << 40]))
    assert found.schema.types["n"] == "BIGINT"
    assert sorted(found.upserts["n"].to_pylist()) == [1, 1 << 40]  # type: ignore[index]


def test_a_delete_first_does_not_fix_the_columns_of_a_new_dataset(database: Database) -> None:
    found = of(SKUS, database, dels(sku=["z"]), ups(sku=["a"], n=[1]))
    assert found.schema.names == ("sku", "n")
    assert found.deletes.to_pylist() == [{"sku": "z"}]  # type: ignore[union-attr]


def test_a_change_that_fits_the_dataset_no_more_is_refused_by_type(database: Database) -> None:
    columns = Schema(columns=(Column(name="sku", type="VARCHAR", nullable=False), Column(name="n", type="BIGINT")))
    with pytest.raises(SchemaConflict, match="n"):
        of(SKUS.model_copy(update={"columns": columns}), database, ups(sku=["a"], n=["text"]))
    with pytest.raises(NullKey, match="sku"):
        of(SKUS, database, ups(sku=[None, "a"], n=[1, 2]))
    with pytest.raises(BadData, match="no changes"):
        of(SKUS, database)


def test_nested_keys_are_told_apart_too(database: Database) -> None:
    found = of(SKUS, database, ups(sku=[[1, 2], [1, 2], [2]], n=[1, 2, 3]))
    assert sorted(found.upserts["n"].to_pylist()) == [2, 3]  # type: ignore[index]


def test_files_name_their_log_slot_as_partition() -> None:
    writer = BatchWriter(MemoryStore(), Settings())
    written = writer.write(SKUS, [ups(sku=["b", "a"], n=[1, 2]), dels(sku=["c"])], 3).commit()
    assert [(file.role, file.partition, file.rows) for file in written.files] == [
        ("upserts", 3, 2), ("deletes", 3, 1),
    ]  # fmt: skip
    writer.close()
