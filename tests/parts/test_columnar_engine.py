"""What goes into the engine comes out equal, in every format; what must not go in is refused by name, and leaves nothing."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from broker.columnar.database import Session
from broker.columnar.engine import Engine
from broker.columnar.intake import reader_of
from broker.columnar.keys import SMALL_ROWS, THREAD_NAME
from broker.columnar.scratch import LOCK, PREFIX
from broker.columnar.tombstones import Standing
from broker.columnar.types import arrow_schema, schema_of
from broker.errors import (
    BadData,
    BrokerError,
    Corrupt,
    DuplicateKey,
    Invalid,
    InvalidPredicate,
    NotFound,
    NullKey,
    Overloaded,
    SchemaConflict,
    Unavailable,
)
from broker.model.commit import Edge, File
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.model.names import DatasetId, derived_key
from broker.model.request import Format, Selection
from broker.settings import Settings
from broker.stores.local import LocalStore
from broker.stores.memory import MemoryStore

SPEC = DatasetSpec(dataset="t/d/x", key=("sku",))
ALL = Selection()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def engine(store: MemoryStore) -> Iterator[Engine]:
    with Engine(store, Settings(memory_limit_bytes=256 << 20)) as running:
        yield running


def fresh_key(extension: str) -> str:
    return derived_key("t/d/x", 0, "fingerprint", extension)


def published(engine: Engine, spec: DatasetSpec, data: object) -> tuple[DatasetSpec, Edge]:
    written = engine.write_snapshot(spec, data)
    return spec.model_copy(update={"columns": written.schema}), Edge(base=None, version=1, files=written.files)


def stored(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list("")]


def rows(count: int, start: int = 0) -> pa.RecordBatch:
    return pa.record_batch({"sku": [f"sku-{n}" for n in range(start, start + count)], "n": list(range(count))})


KINDS = pa.table(
    {
        "sku": ["a", "b", "c"],
        "text": pa.array(['é "quoted", \n新しい', "", None]),
        "big": pa.array([2**63 - 1, -(2**63), None]),
        "huge": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "money": pa.array(
            [Decimal("12345678901234567890123456789012.123456"), Decimal("-0.000001"), None], pa.decimal128(38, 6)
        ),
        "real": pa.array([0.1, 1e-300, None]),
        "single": pa.array([0.5, -1.25, None], pa.float32()),
        "odd": pa.array([float("inf"), float("-inf"), None]),
        "at": pa.array([datetime(2024, 2, 29, 1, 2, 3, 456789), datetime(1, 1, 1), None]),
        "zoned": pa.array(
            [datetime(2024, 2, 29, 1, tzinfo=UTC), datetime(1969, 1, 1, tzinfo=UTC), None], pa.timestamp("us", "UTC")
        ),
        "nano": pa.array([1_700_000_000_123_456_789, -1, None], pa.timestamp("ns")),
        "day": pa.array([date(2024, 2, 29), date(1600, 1, 1), None]),
        "clock": pa.array([time(23, 59, 59, 999999), time(0), None]),
        "yes": pa.array([True, False, None]),
        "raw": pa.array([b"\x00\xff,\"'\\", b"", None]),
        "list": pa.array([["x", None, ""], [], None], pa.list_(pa.string())),
        "pair": pa.array(
            [{"a b": 1, "c": "é"}, {"a b": None, "c": ""}, None], pa.struct([("a b", pa.int32()), ("c", pa.string())])
        ),
        "we\"ird, name's": pa.array(["1", "2", None]),
        "file_index": pa.array([1, 2, None]),
        "edge": pa.array(["1", "", None]),
        "empty": pa.array(["1", "2", "3"]),
    }
)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "arrow"])
def test_every_type_survives_every_format(engine: Engine, form: Format) -> None:
    spec, edge = published(engine, SPEC, KINDS)
    derived = engine.derive(spec, [edge], ALL, form, fresh_key)
    assert [file.format for file in derived.files] == [form]
    assert derived.rows == 3
    found = engine.read(spec, [derived], ALL).read_all().sort_by("sku")
    differing = [name for name in KINDS.column_names if not found[name].cast(KINDS[name].type).equals(KINDS[name])]
    assert differing == []


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "arrow"])
def test_a_file_for_people_is_written_as_those_for_the_store_are(engine: Engine, tmp_path: Path, form: Format) -> None:
    spec, edge = published(engine, SPEC, KINDS)
    told: list[float] = []
    path = tmp_path / "new" / "file"
    assert engine.write_file(spec, [edge], Selection(where="sku <= 'b'"), path, form, told.append) == sum(told) == 2
    [derived] = engine.derive(spec, [edge], Selection(where="sku <= 'b'"), form, fresh_key).files
    if form == "arrow":  # its unused bits may differ
        assert pa.ipc.open_file(path).read_all() == pa.ipc.open_file(engine.fetch(derived)).read_all()
    else:
        assert path.read_bytes() == engine.fetch(derived).read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_leaves_nothing_and_what_was_there(engine: Engine, tmp_path: Path) -> None:
    spec, edge = published(engine, SPEC, KINDS)
    (tmp_path / "file").write_text("before")

    def interrupted(rows: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.write_file(spec, [edge], ALL, tmp_path / "file", "csv", interrupted)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
    with pytest.raises(Unavailable, match="file"):
        engine.write_file(spec, [edge], ALL, tmp_path / "file" / "below", "csv", print)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "arrow"])
def test_a_delta_in_any_format_applies_like_the_canonical_one(engine: Engine, form: Format) -> None:
    spec, edge = published(engine, SPEC, KINDS)
    written = engine.write_delta(
        spec, KINDS.slice(0, 1).set_column(1, "text", pa.array(["new"])), KINDS.slice(1, 1).select(["sku"])
    )
    derived = engine.derive(spec, [Edge(base=1, version=2, files=written.files)], ALL, form, fresh_key)
    found = engine.read(spec, [edge, derived], Selection(columns=("text",))).read_all().sort_by("sku").to_pylist()
    assert found == [{"sku": "a", "text": "new"}, {"sku": "c", "text": None}]


def test_derived_text_formats_are_what_other_tools_expect(engine: Engine) -> None:
    spec, edge = published(engine, SPEC, [{"sku": "é", "n": 1.5, "t": None}, {"sku": "b", "n": float("nan"), "t": ""}])
    lines = engine.fetch(engine.derive(spec, [edge], ALL, "jsonl", fresh_key).files[0]).read_text("utf-8").splitlines()
    assert sorted(lines) == ['{"sku":"b","n":"nan","t":""}', '{"sku":"é","n":1.5,"t":null}']
    assert all(json.loads(line) for line in lines)
    text = engine.fetch(engine.derive(spec, [edge], ALL, "csv", fresh_key).files[0]).read_text("utf-8")
    assert next(csv.reader(text.splitlines())) == ["sku", "n", "t"]
    assert '"é",1.5,\n' in text
    assert '"b",nan,""\n' in text


class Offer(BaseModel):
    sku: str
    price: Decimal | None = None


GIVEN: dict[str, Callable[[pa.Table], Any]] = {
    "table": lambda table: table,
    "reader": lambda table: table.to_reader(1),
    "batch": lambda table: table.to_batches()[0],
    "batches": lambda table: iter(table.to_batches(1)),
    "dicts": lambda table: table.to_pylist(),
    "generator": lambda table: (row for row in table.to_pylist()),
    "stream": lambda table: Stream(table),
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN.keys())
def test_any_kind_of_data_goes_in(engine: Engine, give: Callable[[pa.Table], Any]) -> None:
    table = pa.table({"sku": ["a", "b", "é"], "n": [1, None, 3]})
    spec, edge = published(engine, SPEC, give(table))
    assert engine.read(spec, [edge], ALL).read_all().sort_by("sku").to_pylist() == table.to_pylist()
    again = engine.write_difference(spec, give(table), [edge])
    assert (again.files, again.unchanged) == ((), 3)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_parquet_file_goes_in_by_its_path_whatever_its_name(
    engine: Engine, tmp_path: Path, kind: type[str] | type[Path]
) -> None:
    table = pa.table({"sku": ["a", "b", "é"], "n": [1, None, 3]})
    path = kind(written_file(table, tmp_path))
    spec, edge = published(engine, SPEC, path)
    assert engine.write_difference(spec, path, [edge]).unchanged == 3


class Stream:
    """What polars, pandas and DuckDB offer."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def written_file(table: pa.Table, folder: Path) -> Path:
    path = folder / "feed [1]*'.parquet"
    pq.write_table(table, path)
    return path


def test_pydantic_objects_go_in(engine: Engine) -> None:
    spec, edge = published(engine, SPEC, [Offer(sku="a", price=Decimal("1.50")), Offer(sku="b")])
    assert spec.columns is not None
    assert spec.columns.types == {"sku": "VARCHAR", "price": "DECIMAL(3,2)"}
    assert engine.read(spec, [edge], Selection(where="price > 1")).read_all().num_rows == 1


def test_encodings_are_not_types() -> None:
    encoded = pa.table(
        {
            "sku": pa.array(["a", "b"]).dictionary_encode(),
            "l": pa.array(["a", None], pa.large_string()),
            "v": pa.array(["a", None], pa.string_view()),
            "f": pa.array([b"ab", None], pa.binary(2)),
            "n": pa.nulls(2),
        }
    )
    found = reader_of(encoded, SPEC).read_all()
    assert [str(kind) for kind in found.schema.types] == ["string", "string", "string", "binary", "string"]
    assert arrow_schema(schema_of(found.schema)).types == found.schema.types


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (pa.array([1], pa.int32()), pa.array([2**40])),
        (pa.array([1.5], pa.float32()), pa.array([0.1])),
        (pa.array([Decimal("1.5")]), pa.array([Decimal("12345.678")])),
        (pa.array([date(2024, 1, 1)]), pa.array([datetime(2024, 1, 1, 12)], pa.timestamp("us"))),
    ],
)
def test_a_wider_value_behind_a_file_of_the_narrower_type_is_read_as_it_is(
    engine: Engine, narrow: pa.Array, wide: pa.Array
) -> None:
    """DuckDB would read both files at once with the first one's types: an error at best, and else another value."""
    spec = DatasetSpec(dataset=DatasetId("t/d/widened"), key=("sku",))
    edges = [Edge(base=None, version=1)]
    for number, (sku, values) in enumerate([("a", narrow), ("b", narrow), ("c", wide)], 1):
        written = engine.write_delta(spec, pa.table({"sku": [sku], "v": values}), None)
        spec = spec.model_copy(update={"columns": written.schema})
        edges.append(Edge(base=number, version=number + 1, files=written.files))
    found = engine.read(spec, edges, ALL).read_all().sort_by("sku")["v"].to_pylist()
    assert found[2] == wide.to_pylist()[0]


def test_missing_columns_are_null_and_narrow_types_widen(engine: Engine) -> None:
    spec, first = published(engine, SPEC, pa.table({"sku": ["a"], "n": pa.array([1], pa.int32()), "t": ["x"]}))
    wider = engine.write_delta(spec, pa.table({"sku": ["b"], "n": pa.array([2**40]), "new": [1.5]}), None)
    assert wider.schema.types == {"sku": "VARCHAR", "n": "BIGINT", "t": "VARCHAR", "new": "DOUBLE"}
    spec = spec.model_copy(update={"columns": wider.schema})
    found = engine.read(spec, [first, Edge(base=1, version=2, files=wider.files)], ALL).read_all().sort_by("sku").to_pylist()
    assert found == [{"sku": "a", "n": 1, "t": "x", "new": None}, {"sku": "b", "n": 2**40, "t": None, "new": 1.5}]


def batches_of(*pieces: pa.RecordBatch) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(pieces[0].schema, iter(pieces))


def late_column() -> Iterator[dict[str, Any]]:
    yield from ({"sku": str(n)} for n in range(10_001))
    yield {"sku": "late", "z": 1}


def big_repeats() -> pa.RecordBatchReader:
    return batches_of(rows(SMALL_ROWS), rows(SMALL_ROWS), rows(9, start=SMALL_ROWS))


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "null key": (
        lambda: batches_of(rows(3), pa.record_batch({"sku": ["x", None], "n": [1, 2]})), NullKey, "row 4",
    ),
    "duplicate in one batch": (lambda: pa.table({"sku": ["a", "b", "a"], "n": [1, 2, 3]}), DuplicateKey, "sku=.*a.*2 times"),
    "duplicate across batches": (lambda: batches_of(rows(3), rows(1, start=1)), DuplicateKey, "sku-1"),
    "duplicate in big data": (big_repeats, DuplicateKey, "50000 key"),
    "key in capitals": (lambda: pa.table({"SKU": ["a"], "n": [1]}), SchemaConflict, "no sku"),
    "no key at all": (lambda: pa.table({"x": ["a"], "n": [1]}), SchemaConflict, "sku"),
    "wrong type": (lambda: pa.table({"sku": ["a"], "n": ["one"]}), SchemaConflict, "n.*VARCHAR does not fit BIGINT"),
    "wrong value": (lambda: [{"sku": "a", "n": 1}, {"sku": "b", "n": "one"}], BadData, "n.*row 1: 'one'"),
    "no row": (lambda: [{"sku": "a", "n": 1}, 7], BadData, "row 1: 7"),
    "no data": (lambda: 7, BadData, "int"),
    "no file": (lambda: "/nowhere/feed.parquet", NotFound, "nowhere"),
    "a folder": (lambda: "/", BadData, "not a whole Parquet file"),
    "names that are no text": (lambda: [{"sku": "a", 1: 2}], BadData, "name is no text.*1"),
    "late column": (late_column, SchemaConflict, "row 10001"),
    "names by case": (lambda: pa.table({"sku": ["a"], "N": [1], "n": [1]}), Invalid, "repeat"),
    "an interval": (lambda: pa.table({"sku": ["a"], "n": pa.array([1], pa.duration("s"))}), SchemaConflict, "not supported"),
}  # fmt: skip


@pytest.mark.parametrize("method", ["snapshot", "delta", "difference"])
def test_a_damaged_parquet_file_is_a_typed_error_wherever_the_damage_is(engine: Engine, tmp_path: Path, method: str) -> None:
    spec, edge = published(engine, SPEC, rows(5))
    path = tmp_path / "feed.parquet"
    pq.write_table(pa.Table.from_batches([rows(5)]), path, compression="zstd")
    whole = path.read_bytes()
    work = {
        "snapshot": lambda: engine.write_snapshot(spec, path),
        "delta": lambda: engine.write_delta(spec, path, None),
        "difference": lambda: engine.write_difference(spec, str(path), [edge]),
    }
    for damaged in (b"", whole[:40], whole[:-9], whole[:4] + b"\xff" * 200 + whole[204:]):
        path.write_bytes(damaged)
        with pytest.raises(BrokerError):
            work[method]()


@pytest.mark.parametrize(("give", "kind", "says"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("method", ["snapshot", "delta", "difference"])
def test_bad_data_is_refused_by_name_and_leaves_nothing(
    engine: Engine, store: MemoryStore, method: str, give: Callable[[], object], kind: type[Exception], says: str
) -> None:
    spec, edge = published(engine, SPEC, rows(5))
    before = stored(store)
    work = {
        "snapshot": lambda: engine.write_snapshot(spec, give()),
        "delta": lambda: engine.write_delta(spec, give(), None),
        "difference": lambda: engine.write_difference(spec, give(), [edge]),
    }
    with pytest.raises(kind, match=f"(?s){says}"):
        work[method]()
    assert stored(store) == before


@pytest.mark.parametrize("path", [True, False])
def test_a_difference_refuses_repeated_and_null_keys_wherever_they_hide(engine: Engine, tmp_path: Path, path: bool) -> None:
    spec, edge = published(engine, SPEC, rows(5))
    same, changed = rows(5), rows(5, start=0).set_column(1, "n", pa.array([9] * 5))
    for pieces, kind in (
        ([same, same.slice(2, 1)], DuplicateKey),  # an unchanged row twice
        ([same, changed.slice(2, 1)], DuplicateKey),  # unchanged and changed
        ([changed, changed.slice(1, 2)], DuplicateKey),  # changed twice
        ([same, pa.record_batch({"sku": pa.array([None], pa.string()), "n": [1]})], NullKey),
    ):
        table = pa.Table.from_batches(pieces)
        pq.write_table(table, tmp_path / "feed.parquet")
        with pytest.raises(kind):
            engine.write_difference(spec, tmp_path / "feed.parquet" if path else table, [edge])


class Boom(Exception):
    pass


@pytest.mark.parametrize("after", [10, SMALL_ROWS * 3])
@pytest.mark.parametrize("as_rows", [True, False])
def test_a_producers_exception_passes_through_unchanged_and_nothing_is_committed(
    engine: Engine, store: MemoryStore, after: int, as_rows: bool
) -> None:
    boom = Boom("the source went away")

    def data() -> Iterator[Any]:
        if as_rows:
            yield from ({"sku": f"sku-{n}", "n": n} for n in range(after))
        else:
            yield from (rows(after // 10, start=n * after) for n in range(10))
        raise boom

    spec = SPEC.model_copy(update={"columns": schema_of(rows(1).schema)})
    for work in (
        lambda: engine.write_snapshot(spec, data()),
        lambda: engine.write_delta(spec, None, data()),
        lambda: engine.write_difference(spec, data(), []),
    ):
        with pytest.raises(Boom) as caught:
            work()  # type: ignore[no-untyped-call]
        assert caught.value is boom
    assert stored(store) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def test_a_key_check_that_fails_is_an_error_and_never_an_all_clear(
    engine: Engine, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session: Session, sql: str) -> list[tuple[Any, ...]]:
        raise Overloaded("no memory", of=sql[:6])

    monkeypatch.setattr(Session, "rows", fail)
    with pytest.raises(Overloaded):
        engine.write_snapshot(SPEC, (rows(SMALL_ROWS, start=n * SMALL_ROWS) for n in range(40)))
    assert stored(store) == []


def test_a_key_stands_once_in_both_sides_of_a_delta(engine: Engine) -> None:
    spec, _ = published(engine, SPEC, rows(1))
    with pytest.raises(DuplicateKey):
        engine.write_delta(spec, rows(2), [{"sku": "sku-1"}])
    with pytest.raises(DuplicateKey):
        engine.write_delta(spec, None, [{"sku": "sku-1"}, {"sku": "sku-1"}])


def test_a_delete_names_the_key_and_the_order(engine: Engine) -> None:
    spec, _ = published(engine, SPEC.model_copy(update={"order": ("n",)}), rows(1))
    with pytest.raises(BadData, match="no n in"):
        engine.write_delta(spec, None, pa.table({"sku": ["sku-0"]}))
    with pytest.raises(BadData, match=r"lacks a column \[n\].*'sku-1'"):
        engine.write_delta(spec, None, [{"sku": "sku-0", "n": None}, {"sku": "sku-1"}])
    written = engine.write_delta(spec, None, rows(1).append_column("more", pa.array([1])))
    assert (written.deletes, written.schema) == (1, spec.columns)
    assert engine.fetch(written.files[0]).read_bytes()[:4] == b"PAR1"


def test_empty_data_is_a_version_of_no_rows_and_an_empty_delta_is_none(engine: Engine) -> None:
    spec, edge = published(engine, SPEC, rows(0))
    assert [(file.role, file.rows) for file in edge.files] == [("rows", 0)]
    assert engine.read(spec, [edge], ALL).read_all().num_rows == 0
    assert engine.write_delta(spec, [], []).files == ()
    assert engine.write_delta(spec, None, None).files == ()
    with pytest.raises(BadData, match="no columns are known"):
        engine.write_snapshot(SPEC, [])


def test_a_snapshot_is_cut_at_the_row_limit_and_reads_as_one(store: MemoryStore) -> None:
    with Engine(store, Settings(max_file_rows=1000)) as engine:
        spec, edge = published(engine, SPEC, batches_of(rows(1500), rows(1500, start=1500)))
        assert [file.rows for file in edge.files] == [1000, 1000, 1000]
        assert engine.read(spec, [edge], ALL).read_all().num_rows == 3000


def test_huge_texts_pass(engine: Engine) -> None:
    data = [{"sku": str(n), "text": str(n) * (8 << 20)} for n in range(6)]
    spec, edge = published(engine, SPEC, data)
    written = engine.write_difference(spec, [*data[1:], {"sku": "0", "text": "short"}], [edge])
    assert (written.upserts, written.unchanged) == (1, 5)
    lines = engine.derive(spec, [edge], Selection(where="sku = '3'"), "jsonl", fresh_key)
    assert engine.read(spec, [lines], ALL).read_all().to_pylist() == data[3:4]


def test_altered_and_missing_bytes_are_found(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    with Engine(store, Settings()) as engine:
        spec, edge = published(engine, SPEC, rows(10))
        file = edge.files[0]
        engine.verify(file)
        path = engine.fetch(file)
        data = path.read_bytes()
        path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
        with pytest.raises(Corrupt):
            engine.verify(file)
    with Engine(store, Settings()) as fresh:
        with pytest.raises(Corrupt, match=r"sku|data/"):
            fresh.fetch(file)
        with pytest.raises(Corrupt):
            fresh.read(spec, [edge], ALL)
        path.write_bytes(data + b"more")
        with pytest.raises(Corrupt):
            fresh.write_merged(spec, Standing((edge,), {}, 0.0))
        path.unlink()
        with pytest.raises(NotFound):
            fresh.fetch(file)


def test_a_file_that_fails_in_the_middle_of_a_stream_is_a_transient_error(engine: Engine) -> None:
    spec, edge = published(engine, SPEC, batches_of(*(rows(100_000, start=n * 100_000) for n in range(30))))
    reader = engine.read(spec, [edge], ALL)
    path = engine.fetch(edge.files[0])
    os.truncate(path, 4096)
    with pytest.raises(Unavailable, match="IO Error"):
        reader.read_all()


class RemoteStore(MemoryStore):
    """A store whose objects have a URL, not a path."""

    def locate(self, key: str, seconds: int) -> str:  # type: ignore[override]
        del seconds
        return f"https://store/{key}"


def test_a_remote_object_is_downloaded_once_and_dropped_when_the_cache_is_full(tmp_path: Path) -> None:
    store = RemoteStore()
    with Engine(store, Settings(temp_folder=tmp_path)) as engine:
        spec, edge = published(engine, SPEC, rows(10))
        first = engine.fetch(edge.files[0])
        store.delete([edge.files[0].key])
        assert engine.fetch(edge.files[0]) == first
        engine._fetcher._limit = 0
        assert engine.read(spec, [edge], ALL).read_all().num_rows == 10
        assert not first.exists()
        with pytest.raises(NotFound):
            engine.fetch(edge.files[0])
    assert list(tmp_path.iterdir()) == []


def test_a_selection_that_does_not_fit_is_refused_before_a_row_is_read(engine: Engine) -> None:
    spec, edge = published(engine, SPEC, rows(3))
    with pytest.raises(SchemaConflict, match="no such column"):
        engine.read(spec, [edge], Selection(columns=("x",)))
    with pytest.raises(InvalidPredicate):
        engine.read(spec, [edge], Selection(where="x = 1"))
    found = engine.read(spec, [edge], Selection(where="n >= 1", columns=("n",))).read_all()
    assert found.column_names == ["sku", "n"]
    assert found.num_rows == 2


def test_a_hostile_type_name_never_reaches_sql(engine: Engine) -> None:
    schema = Schema(columns=(Column(name="sku", type="VARCHAR"), Column(name="n", type="BIGINT) FROM x; DROP TABLE y; --")))
    with pytest.raises(SchemaConflict, match="not a column type"):
        engine.write_snapshot(SPEC.model_copy(update={"columns": schema}), [])


def test_work_beyond_the_memory_limit_spills_and_is_right(store: MemoryStore, tmp_path: Path) -> None:
    count = 600_000
    with Engine(store, Settings(memory_limit_bytes=64 << 20, temp_folder=tmp_path)) as engine:
        parts = [rows(100_000, start=n * 100_000) for n in range(count // 100_000)]
        spec, edge = published(engine, SPEC, batches_of(*parts))
        parts[2] = parts[2].set_column(1, "n", pa.array([-1] * 100_000))
        written = engine.write_difference(spec, batches_of(*parts), [edge])
        assert (written.upserts, written.deletes, written.unchanged) == (100_000, 0, 500_000)


def test_what_a_killed_process_left_goes_with_the_next_one_and_what_lives_stays(store: MemoryStore, tmp_path: Path) -> None:
    settings = Settings(temp_folder=tmp_path)
    dead, old = tmp_path / f"{PREFIX}dead", start_of(2020)
    dead.mkdir()
    (dead / LOCK).touch()
    os.utime(dead / LOCK, (old, old))
    with Engine(store, settings) as living:
        (lock,) = [path for path in tmp_path.glob(f"*/{LOCK}") if path.parent != dead]
        os.utime(lock, (old, old))
        assert not dead.exists()
        with Engine(store, settings):
            published(living, SPEC, rows(SMALL_ROWS + 1))
            assert lock.exists()
    assert list(tmp_path.iterdir()) == []


def start_of(year: int) -> float:
    return datetime(year, 1, 1, tzinfo=UTC).timestamp()


def test_closing_twice_and_closing_unused_is_fine(store: MemoryStore) -> None:
    engine = Engine(store, Settings())
    engine.close()
    engine.close()


def test_a_file_that_is_not_parquet_is_corrupt_even_with_the_right_hash(engine: Engine, store: MemoryStore) -> None:
    store.put("t/d/x/data/0.parquet", b"not parquet")
    file = File(role="rows", key="t/d/x/data/0.parquet", sha256=hashlib.sha256(b"not parquet").hexdigest(), bytes=11, rows=1)
    spec = SPEC.model_copy(update={"columns": schema_of(rows(1).schema)})
    with pytest.raises(Corrupt, match="not a parquet file"):
        engine.read(spec, [Edge(base=None, version=1, files=(file,))], ALL)
