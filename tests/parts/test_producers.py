from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.columnar.intake import accept_deletes, reader_of
from broker.errors import (
    AttemptFailed,
    BadData,
    BrokerError,
    Busy,
    Conflict,
    Invalid,
    InvalidName,
    NotFound,
    Overloaded,
    SchemaConflict,
    Terminal,
)  # fmt: skip
from broker.model.dataset import DatasetSpec
from broker.model.duration import seconds_of
from broker.model.names import PART, DatasetId
from broker.outcomes import MAX_POSITION_BYTES, Spool
from broker.producers import (
    Delta,
    Outcome,
    Producers,
    ProductionRequest,
    Since,
    Snapshot,
    Unchanged,
    close,
    failure_of,
    load_app,
    outcome_of,
    patterns_overlap,
    resolve_position,
)  # fmt: skip
from broker.rules.patterns import pattern_matches
from tests.campaign import examples

SPEC = DatasetSpec(dataset=DatasetId("shop/catalog/offers"), key=("sku",))
REQUEST = ProductionRequest("shop/catalog/offers", SPEC)
TABLE = pa.table({"sku": ["a", "b"], "price": [1, 2]})


def only(function: Any, pattern: str = "*/catalog/offers", **options: Any) -> Any:
    """The one producer of a new registry."""
    app = Producers()
    app.producer(pattern, **options)(function)
    return app.match("shop/catalog/offers")


def unchanged(request: ProductionRequest, since: Since | None) -> Unchanged:
    return Unchanged()


def in_parts(request: ProductionRequest, since: Since | None, part: str) -> Unchanged:
    return Unchanged(part)


def by_name(*, request: ProductionRequest, since: Since | None) -> Unchanged:
    return Unchanged()


def of_one(request: ProductionRequest) -> Unchanged:
    return Unchanged()


def answered(value: object) -> Outcome:
    return outcome_of(value, "shop.offers_of", SPEC)


def rows(data: Any) -> list[dict[str, Any]]:
    return list(reader_of(data, SPEC).read_all().to_pylist())


# --- what a producer may return


def test_a_snapshot_passes_as_it_is() -> None:
    outcome = answered(Snapshot(TABLE, position={"lsn": 812}, attributes={"store": "eu-1"}))
    assert isinstance(outcome, Snapshot)
    assert outcome.data is TABLE
    assert outcome.attributes == {"store": "eu-1"}
    assert resolve_position(outcome) == {"lsn": 812}


def test_a_delta_without_rows_says_unchanged_and_keeps_its_position() -> None:
    assert answered(Delta(position=7)) == Unchanged(7)


@pytest.mark.parametrize("value", [None, TABLE, [Snapshot(TABLE)], {"sku": "a"}, 3, Snapshot], ids=lambda v: type(v).__name__)
def test_a_wrong_type_is_a_terminal_error_naming_producer_and_type(value: object) -> None:
    with pytest.raises(Invalid, match=rf"{type(value).__name__} \[shop.offers_of\]"):
        answered(value)


def test_a_forgotten_return_is_not_taken_for_unchanged() -> None:
    def forgetful(request: ProductionRequest, since: Since | None) -> None:
        Snapshot(TABLE)

    with pytest.raises(Terminal, match="NoneType"):
        only(forgetful).run(REQUEST, None)


def test_snapshot_batches_become_one_stream_with_the_last_position() -> None:
    def batches() -> Iterator[Snapshot]:
        yield Snapshot(TABLE, position=1)
        yield Snapshot([{"sku": "c", "price": 3}], position=2)
        yield Snapshot(pa.table({"price": [4], "sku": ["d"]}))

    outcome = answered(batches())
    assert isinstance(outcome, Snapshot)
    assert [row["sku"] for row in rows(outcome.data)] == ["a", "b", "c", "d"]
    assert resolve_position(outcome) == 2


def test_a_stream_holds_one_batch_at_a_time() -> None:
    made = itertools.count()

    def batches() -> Iterator[Snapshot]:
        for number in range(5):
            next(made)
            yield Snapshot(pa.table({"sku": [str(number)]}))

    outcome = answered(batches())
    assert isinstance(outcome, Snapshot)
    for position, batch in enumerate(batch for batch in outcome.data if batch.num_rows):
        assert batch.column("sku").to_pylist() == [str(position)]
        assert next(made) == 2 * position + 1, "a batch was made before it was asked for"


def test_empty_snapshot_batches_still_carry_the_columns() -> None:
    outcome = answered(iter([Snapshot(TABLE.slice(0, 0))]))
    assert isinstance(outcome, Snapshot)
    assert reader_of(outcome.data, SPEC).schema.names == ["sku", "price"]


def test_delta_batches_are_merged_side_by_side() -> None:
    def batches() -> Iterator[Delta]:
        yield Delta(deletes=[{"sku": "x"}], position=1)
        yield Delta(upserts=TABLE, deletes=pa.table({"sku": ["y"], "note": ["left behind"]}))
        yield Delta(upserts=[{"sku": "c", "price": 3}], position=3)

    outcome = answered(batches())
    assert isinstance(outcome, Delta)
    assert [row["sku"] for row in rows(outcome.upserts)] == ["a", "b", "c"]
    assert pa.Table.from_batches(accept_deletes(outcome.deletes, SPEC, None).batches).to_pydict() == {"sku": ["x", "y"]}
    assert resolve_position(outcome) == 3


def test_delta_batches_without_any_rows_say_unchanged() -> None:
    outcome = answered(iter([Delta(), Delta(position=5)]))
    assert isinstance(outcome, Unchanged)
    assert resolve_position(outcome) == 5


def test_deletes_in_batches_that_lack_the_order_column_are_refused() -> None:
    spec = SPEC.model_copy(update={"order": ("at",)})
    with pytest.raises(BadData, match="deletes lack columns"):
        outcome_of(iter([Delta(deletes=pa.table({"sku": ["x"]}))]), "f", spec)


def test_an_empty_iterator_is_refused_because_it_says_nothing() -> None:
    with pytest.raises(Invalid, match="empty"):
        answered(iter(()))


def test_an_iterator_of_anything_else_is_refused_with_the_way_out() -> None:
    with pytest.raises(Invalid, match=r"yielded a dict.*return Snapshot\(rows\)"):
        answered(iter([{"sku": "a"}]))


def test_mixing_snapshots_and_deltas_is_refused() -> None:
    with pytest.raises(Invalid, match="after a Delta, a Snapshot"):
        answered(iter([Delta(TABLE), Snapshot(TABLE)]))
    outcome = answered(iter([Snapshot(TABLE), Delta(TABLE)]))
    assert isinstance(outcome, Snapshot)
    with pytest.raises(Invalid, match="after a Snapshot, a Delta"):
        rows(outcome.data)


def test_a_later_batch_with_another_column_is_refused() -> None:
    outcome = answered(iter([Snapshot(TABLE), Snapshot(TABLE.append_column("color", [["red", "blue"]]))]))
    assert isinstance(outcome, Snapshot)
    with pytest.raises(SchemaConflict, match="color"):
        rows(outcome.data)


def test_attributes_must_be_text() -> None:
    with pytest.raises(Invalid, match="attributes"):
        Snapshot(TABLE, attributes={"rows": 3})  # type: ignore[dict-item]


# --- positions


def test_a_late_position_is_asked_for_after_the_data() -> None:
    seen: list[str] = []

    def stream() -> Iterator[pa.RecordBatch]:
        for batch in TABLE.to_batches():
            yield batch
            seen.extend(batch.column("sku").to_pylist())

    outcome = answered(Snapshot(stream(), position=lambda: {"last": seen[-1]}))
    assert isinstance(outcome, Snapshot)
    rows(outcome.data)
    assert resolve_position(outcome) == {"last": "b"}


@pytest.mark.parametrize(
    "position", [object(), {1: {2}}, float("nan"), "x" * (MAX_POSITION_BYTES + 1)], ids=["object", "set", "nan", "long"]
)
def test_a_position_that_is_not_short_json_is_refused(position: object) -> None:
    with pytest.raises(Invalid, match="position"):
        resolve_position(Unchanged(position))


# --- failures


def test_a_producers_exception_is_an_attempt_that_failed() -> None:
    def broken(request: ProductionRequest, since: Since | None) -> Snapshot:
        raise KeyError("sku")

    with pytest.raises(AttemptFailed, match=r"broken.*KeyError: 'sku'"):
        only(broken).run(REQUEST, None)


def test_a_typed_error_of_a_producer_stays_what_it_is() -> None:
    def busy(request: ProductionRequest, since: Since | None) -> Snapshot:
        raise Busy("the source is locked")

    with pytest.raises(Busy, match="locked"):
        only(busy).run(REQUEST, None)


def test_an_error_in_the_middle_of_a_stream_survives_duckdb() -> None:
    def stream() -> Iterator[pa.RecordBatch]:
        yield from TABLE.to_batches()
        raise Busy("the source is locked")

    outcome = answered(Snapshot(stream()))
    assert isinstance(outcome, Snapshot)
    with duckdb.connect() as engine:
        engine.register("feed", reader_of(outcome.data, SPEC))
        with pytest.raises(duckdb.Error) as caught:
            engine.execute("SELECT count(*) FROM feed").fetchall()
    failure = failure_of(outcome, caught.value)
    assert type(failure) is Busy
    assert failure.what == "the source is locked"


def test_an_error_that_is_not_the_producers_is_reported_as_such() -> None:
    assert failure_of(answered(Snapshot(TABLE)), Conflict("elsewhere")).what == "elsewhere"
    assert isinstance(failure_of(Unchanged(), ValueError("odd")), AttemptFailed)


def test_closing_an_outcome_ends_its_generators() -> None:
    ended: list[str] = []

    def stream() -> Iterator[pa.RecordBatch]:
        try:
            yield from TABLE.to_batches()
        finally:
            ended.append("yes")

    outcome = answered(Snapshot(stream()))
    assert isinstance(outcome, Snapshot)
    next(outcome.data)
    close(outcome)
    close(outcome)
    assert ended == ["yes"]


def test_closing_ends_a_generator_of_snapshots_too() -> None:
    ended: list[str] = []

    def batches() -> Iterator[Snapshot]:
        try:
            yield Snapshot(TABLE)
            yield Snapshot(TABLE)
        finally:
            ended.append("yes")

    outcome = answered(batches())
    close(outcome)
    assert ended == ["yes"]


# --- the registry


def test_a_producer_is_found_by_its_pattern_and_gets_request_and_since() -> None:
    def offers_of(request: ProductionRequest, since: Since | None) -> Unchanged:
        return Unchanged((request.dataset, since.version if since else None))

    producer = only(offers_of)
    assert producer.name.endswith("offers_of")
    assert producer.run(REQUEST, Since(4, "x")) == Unchanged(("shop/catalog/offers", 4))


def test_a_dataset_without_producer_is_not_found() -> None:
    app = Producers()
    app.add("*/catalog/*", unchanged)
    with pytest.raises(NotFound, match=r"shop/pricing/offers.*\*/catalog/\*"):
        app.match("shop/pricing/offers")


def test_two_patterns_that_match_one_dataset_fail_at_start_whatever_exists() -> None:
    app = Producers()
    app.add("*/catalog/of*", unchanged)
    with pytest.raises(Conflict, match=r"shop/\*/\*rs.*\*/catalog/of\*"):
        app.add("shop/*/*rs", unchanged)
    app.add("shop/pricing/*", unchanged)
    assert len(app) == 2


def test_a_malformed_pattern_is_refused() -> None:
    with pytest.raises(InvalidName):
        Producers().add("catalog/offers", unchanged)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (of_one, {}),
        (in_parts, {}),
        (by_name, {}),
        (unchanged, {"partitions": 4}),
        (unchanged, {"partition_by": "merchant", "values": lambda _: []}),
    ],
)
def test_a_wrong_signature_is_refused_at_registration(function: Any, options: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="wrong parameters"):
        only(function, **options)


@pytest.mark.parametrize(
    "options",
    [{"partition_by": "m"}, {"values": list}, {"partitions": 0}, {"partitions": 2, "partition_by": "m", "values": list}],
)
def test_half_a_partitioning_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        only(in_parts, **options)


def test_parts_come_from_the_values_or_from_the_count() -> None:
    def prices_of(request: ProductionRequest, since: Since | None, part: object) -> Unchanged:
        return Unchanged(part)

    by_value = only(prices_of, partition_by="merchant", values=lambda _: ["acme", "zeta"])
    assert by_value.parts(REQUEST) == ("acme", "zeta")
    assert by_value.run(REQUEST, None, "zeta") == Unchanged("zeta")
    by_count = only(prices_of, partitions=3)
    assert by_count.parts(REQUEST) == ("0", "1", "2")
    assert by_count.run(REQUEST, None, "2") == Unchanged(2)
    assert only(unchanged).parts(REQUEST) == ()


@pytest.mark.parametrize("values", [["a", "a"], [1]])
def test_part_values_must_be_different_strings(values: list[Any]) -> None:
    producer = only(in_parts, partition_by="m", values=lambda _: values)
    with pytest.raises(Invalid, match="different strings"):
        producer.parts(REQUEST)


# --- patterns

GLOBS = st.text("ab.*", min_size=1, max_size=5).filter(
    lambda glob: ".." not in glob and glob[0] != "." and len(glob.replace("*", "")) <= 3
)
NAMES = tuple(
    name
    for length in range(1, 8)
    for name in map("".join, itertools.product("ab.", repeat=length))
    if PART.match(name) and ".." not in name
)


@settings(max_examples=examples(80), deadline=None)
@given(GLOBS, GLOBS)
@example("a*", "*b")
@example("*.", "*.*")
@example("a*b", "ab*a")
@example("*.*.*", "*")
@example("a.*", "a*.")
def test_overlap_is_exactly_what_trying_every_name_finds(a: str, b: str) -> None:
    # A shortest common name holds the literals of both, and at most one letter more, to part dots or to begin.
    common = [
        name for name in NAMES if pattern_matches(f"t/d/{a}", f"t/d/{name}") and pattern_matches(f"t/d/{b}", f"t/d/{name}")
    ]
    assert patterns_overlap(f"t/d/{a}", f"t/d/{b}") is bool(common)


def test_overlap_counts_only_valid_names() -> None:
    assert not patterns_overlap("t/d/*.", "t/d/a*.a")
    assert not patterns_overlap("t/d/" + "a" * 40 + "*", "t/d/*" + "b" * 40), "64 and more characters are no name"
    assert patterns_overlap("t/d/" + "a" * 40 + "*", "t/d/*" + "b" * 23)
    assert not patterns_overlap("t/d/*.a", "t/d/*.b")


def test_every_part_must_meet() -> None:
    assert patterns_overlap("*/catalog/offers", "shop/*/*")
    assert not patterns_overlap("*/catalog/offers", "shop/pricing/*")


def test_many_stars_are_decided_at_once() -> None:
    glob = "*a" * 31
    assert patterns_overlap(f"t/d/{glob}", f"t/d/{'*b' * 31}*a")
    assert not patterns_overlap(f"t/d/{glob}", f"t/d/{'*b' * 31}")
    assert not pattern_matches(f"t/d/{glob}*b", f"t/d/{'a' * 63}")


# --- applications


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_an_application_is_loaded_from_the_current_folder(folder: Path) -> None:
    (folder / "shop_app.py").write_text("from broker.producers import Producers\napp = Producers()\n")
    assert isinstance(load_app("shop_app:app"), Producers)


@pytest.mark.parametrize(
    ("target", "source", "error"),
    [
        ("no_such_module_here:app", "", NotFound),
        ("app_one:missing", "app = 1", NotFound),
        ("app_one:app", "app = 1", Invalid),
        ("app_one", "app = 1", Invalid),
        ("app_one:app", "import module_it_needs", Terminal),
        ("app_one:app", "1 / 0", Terminal),
    ],
)
def test_an_application_that_cannot_be_loaded_says_why(
    folder: Path, target: str, source: str, error: type[BrokerError]
) -> None:
    (folder / "app_one.py").write_text(source)
    with pytest.raises(error) as caught:
        load_app(target)
    assert caught.value.of == target


def test_a_module_the_application_needs_is_not_reported_as_the_application_missing(folder: Path) -> None:
    (folder / "app_two.py").write_text("import module_it_needs")
    with pytest.raises(Terminal, match="module_it_needs") as caught:
        load_app("app_two:app")
    assert not isinstance(caught.value, NotFound)


# --- spools and durations


def test_a_spool_can_be_read_twice_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool()
    assert spool.reader() is None
    spool = Spool()
    spool.extend(TABLE.to_batches() * 3)
    for _ in range(2):
        reader = spool.reader()
        assert reader is not None
        assert reader.read_all().num_rows == spool.rows == 6
    assert list(tmp_path.iterdir()) == []


def test_a_spool_on_a_disk_that_is_full_says_so_and_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pa.OSFile
    monkeypatch.setattr(pa, "OSFile", lambda path, mode: opened("/dev/full" if mode == "wb" else path, mode))
    with pytest.raises(Overloaded, match="BROKER_TEMP_FOLDER"):
        Spool().extend(pa.table({"sku": [uuid4().hex for _ in range(10_000)]}).to_batches())


def test_a_reader_outlives_its_spool() -> None:
    def parked() -> pa.RecordBatchReader:
        spool = Spool()
        spool.extend(TABLE.to_batches())
        reader = spool.reader()
        assert reader is not None
        return reader

    assert parked().read_all().to_pydict() == TABLE.to_pydict()


def test_durations_are_a_number_and_a_unit() -> None:
    assert [seconds_of(text) for text in ("100ms", "30s", "15m", "24h", "7d")] == [0.1, 30, 900, 86_400, 604_800]


@pytest.mark.parametrize("text", ["", "24", "h", "1.5h", "-1h", "24 h", "24H", "1w", "٣h", None, 24])
def test_anything_else_is_no_duration(text: object) -> None:
    with pytest.raises(Invalid, match="full_every"):
        seconds_of(text, "full_every")
