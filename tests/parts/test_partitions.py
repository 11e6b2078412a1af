"""Compaction's snapshots in partitions: each file has the rows of its key buckets, a key is looked for in one file alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from hashlib import md5
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import broker
from broker.cli.erase import erasure_of
from broker.columnar import partitions
from broker.columnar.buckets import digest_of_rows
from broker.columnar.digest import BUCKETS, STEADY, bucket_sql
from broker.columnar.engine import EVERYTHING, Engine
from broker.columnar.partitions import Partitions
from broker.columnar.rewrite import OneKey
from broker.columnar.trace import bucket_result
from broker.compactor import Compactor, Dues
from broker.errors import NotFound
from broker.model.commit import Edge, File, Role
from broker.model.dataset import Column, DatasetSpec, Schema, widens
from broker.model.names import DatasetId
from broker.rules.levels import Levels
from broker.rules.plan import plan
from broker.settings import Settings
from broker.sinks.duckdb import DuckDB
from broker.sinks.memory import Memory
from broker.sinks.port import Sink
from broker.sinks.sqlite import SQLite
from broker.stores.memory import MemoryStore

OFFERS = DatasetId("shop/catalog/offers")
KEYS = 400
GONE = "s11"
FULL = [(at, at + 31) for at in range(0, BUCKETS, 32)]


@pytest.fixture
def b(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[broker.Broker]:
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 20)
    with broker.connect(redis=redis_url, store=str(tmp_path / "store"), max_file_rows=30) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(MemoryStore(), Settings(memory_limit_bytes=256 << 20)) as running:
        yield running


def compacted(b: broker.Broker, offers: broker.Dataset) -> Edge:
    """The newest version's snapshot, made by compaction."""
    parts = b.parts
    levels = Levels(factor=100, snapshot_ratio=0.001, snapshot_least_bytes=0)
    report = Compactor(parts.index, parts.catalog, parts.engine, parts.publication, parts.leases, Dues(levels)).run_once()
    assert (report.snapshots, report.failed) == (1, {})
    found = offers.state.edge(None, offers.state.version)
    assert found is not None
    return found


def row(key: int, at: int, price: int) -> dict[str, Any]:
    """Too much for a file's own price to matter to the planner."""
    return {
        "sku": f"s{key}",
        "at": at,
        "price": price,
        "note": "".join(md5(b"%d %d" % (key, n)).hexdigest() for n in range(12)),
    }


def made(b: broker.Broker, order: list[str]) -> broker.Dataset:
    offers = b.dataset(OFFERS, key=["sku"], order=order)
    offers.publish([row(key, 5, key) for key in range(KEYS)])
    for version in range(2, 6):
        changed = [row(key, version * 2, -key) for key in range(version, KEYS, 9)]
        deletes = [{"sku": f"s{key}"} | ({"at": 7} if order else {}) for key in range(version + 3, KEYS, 31)]
        names = {one["sku"] for one in deletes}
        offers.publish_delta([one for one in changed if one["sku"] not in names], deletes)
    return offers


def keys_of(b: broker.Broker, offers: broker.Dataset, file: File) -> list[str]:
    alone = Edge(base=None, version=1, files=(file,))
    return sorted(b.parts.engine.read(offers.state.spec, [alone], EVERYTHING).read_all()["sku"].to_pylist())


def buckets_of(file: File) -> range:
    assert file.buckets
    return range(file.buckets[0], file.buckets[1] + 1)


def bucket(key: str) -> int:
    """As the format says, without DuckDB: the ninth byte of the MD5 of the key's length and text."""
    return md5(f"{len(key.encode())}:{key}".encode()).digest()[8]


@pytest.mark.parametrize("order", [[], ["at"]], ids=["without order", "with order"])
def test_a_snapshot_in_partitions_is_what_the_deltas_say_and_each_file_has_its_own_buckets(
    b: broker.Broker, order: list[str]
) -> None:
    offers, engine = made(b, order), b.parts.engine
    spec, road = offers.state.spec, offers.plan().edges
    snapshot = compacted(b, offers)
    by_deltas, at_once = (
        digest_of_rows(engine, spec.key, engine.read(spec, edges, EVERYTHING)) for edges in (road, [snapshot])
    )
    assert len(road) == 5
    assert at_once == by_deltas
    files = snapshot.of_role("rows")
    assert sum(file.rows for file in files) == by_deltas.rows
    assert sorted({file.buckets for file in files if file.buckets}) == FULL
    assert len(files) > len(FULL), "a partition of more than 30 rows is cut"
    for file in files:
        assert file.rows <= 30
        assert {bucket(key) for key in keys_of(b, offers, file)} <= set(buckets_of(file))
    dead = snapshot.of_role("tombstones")
    assert bool(dead) == bool(order)
    assert [file.buckets for file in dead] == [None] * len(dead)
    assert [checked.error for checked in offers.verify() if checked.error] == []


@pytest.mark.parametrize("order", [[], ["at"]], ids=["without order", "with order"])
def test_replicas_of_every_kind_read_it_and_compaction_goes_on_from_it(
    b: broker.Broker, tmp_path: Path, order: list[str]
) -> None:
    offers = made(b, order)
    compacted(b, offers)
    offers.publish_delta([{"sku": "new", "at": 99, "price": 1}])
    again = compacted(b, offers)
    assert {file.buckets for file in again.of_role("rows")} == set(FULL)
    assert offers.plan().edges == (again,)
    expected = sorted(map(str, offers.read().to_pylist()))
    sinks: list[Sink] = [DuckDB(tmp_path / "a.duckdb", "offers"), SQLite(tmp_path / "b.sqlite", "offers"), Memory()]
    for number, sink in enumerate(sinks):
        replica = b.replica(OFFERS, name=f"r{number}", sink=sink)
        assert replica.sync().edges == 1
        assert sorted(map(str, sink.read().to_pylist())) == expected


def test_a_small_snapshot_is_one_file_and_its_record_says_nothing_of_buckets(
    b: broker.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "PARTITION_ROWS", KEYS * 2)
    b.parts.engine._settings = b.parts.settings.model_copy(update={"max_file_rows": 1_000_000})  # cut for no other reason
    offers = made(b, [])
    (file,) = compacted(b, offers).of_role("rows")
    assert file.buckets is None
    newest = list(b.parts.catalog.records(OFFERS))[-1]
    assert file.key.encode() in newest
    assert b"buckets" not in newest


@pytest.mark.parametrize(
    ("rows", "count"),
    [(0, 1), (1, 1), (262_143, 1), (262_144, 2), (524_287, 2), (524_288, 4), (1_048_576, 8), (10**9, 8)],
)
def test_partitions_are_a_power_of_two_of_no_fewer_rows_than_it_is_worth(rows: int, count: int) -> None:
    def of(role: Role, rows: int) -> File:
        return File(role=role, key=role, sha256="0" * 64, bytes=1, rows=rows)

    whole = Edge(version=1, files=(of("rows", rows // 2), of("tombstones", 10**9)))
    delta = Edge(base=1, version=2, files=(of("upserts", rows - rows // 2), of("deletes", 10**9)))
    assert Partitions.of([whole, delta]).count == count


def test_a_range_of_buckets_is_written_only_where_there_is_one_and_read_back() -> None:
    file = File(role="rows", key="k", sha256="0" * 64, bytes=1, rows=1)
    ranged = file.model_copy(update={"buckets": (16, 31)})
    assert "buckets" not in file.model_dump() | file.model_dump(mode="json")
    assert '"buckets":[16,31]' in ranged.model_dump_json()
    for one in (file, ranged):
        for defaults in (True, False):
            assert File.model_validate_json(one.model_dump_json(exclude_defaults=defaults)) == one
    assert [number for number in range(BUCKETS) if ranged.may_hold(number)] == list(range(16, 32))
    assert ranged.may_hold(None)
    assert file.may_hold(0)


TEXT = DatasetSpec(dataset="t/d/x", key=("k",), columns=Schema(columns=(Column(name="k", type="VARCHAR"),)))


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_the_bucket_of_a_key_is_the_one_its_row_has_and_never_changes(engine: Engine, key: str) -> None:
    with engine.session("test") as session:
        session.bind("given", pa.table({"k": [key]}))
        assert session.number(f"SELECT {bucket_sql(['k'])} FROM given") == bucket(key)
    assert engine.query(TEXT, [], lambda _: bucket_result(TEXT, (key,))).read_all()[0].to_pylist() == [bucket(key)]


def test_a_key_of_several_columns_has_one_bucket(engine: Engine) -> None:
    columns = Schema(columns=(Column(name="shop", type="INTEGER"), Column(name="day", type="DATE")))
    spec = DatasetSpec(dataset="t/d/x", key=("shop", "day"), columns=columns)
    assert OneKey(engine, spec, ("7", "2026-01-02")).bucket == md5(b"1:710:2026-01-02").digest()[8]


VALUES = {"DATE": "2026-01-02", "TIME": "01:02:03", "BOOLEAN": "true", "BLOB": "x", "VARCHAR": "x"}


@pytest.mark.parametrize("wide", sorted(STEADY))
def test_widening_to_a_steady_type_moves_no_key_to_another_bucket(engine: Engine, wide: str) -> None:
    value = VALUES.get(wide) or ("2026-01-02 03:04:05" if wide.startswith("TIMESTAMP") else "7")
    kinds = [*STEADY, "FLOAT", "DOUBLE", "TIMESTAMP_MS", "TIMESTAMP", "DECIMAL(4,2)"]
    with engine.session("test") as session:
        numbers = {
            session.number(f"SELECT {bucket_sql(['k'])} FROM (SELECT '{value}'::{kind}::{final} AS k)")
            for kind in kinds if widens(kind, wide) for final in (kind, wide)
        }  # fmt: skip
    assert len(numbers) == 1


@pytest.mark.parametrize("wide", ["FLOAT", "DOUBLE", "DECIMAL(4,2)", "TIMESTAMP", "TIMESTAMP_MS"])
def test_of_a_key_whose_bucket_may_have_been_another_one_it_is_unknown(engine: Engine, wide: str) -> None:
    spec = TEXT.model_copy(update={"columns": Schema(columns=(Column(name="k", type=wide),))})
    key = "2026-01-02" if wide.startswith("TIME") else "7"
    assert OneKey(engine, spec, (key,)).bucket is None


def test_a_history_needs_no_file_of_other_buckets(b: broker.Broker) -> None:
    offers = made(b, [])
    before = offers.past.history("s11")
    snapshot = compacted(b, offers)
    others = [file for file in snapshot.of_role("rows") if bucket("s11") not in buckets_of(file)]
    b.parts.store.delete([file.key for file in others])
    assert offers.past.history("s11") == before
    lost = next(f"s{key}" for key in range(KEYS) if bucket(f"s{key}") in buckets_of(others[0]))
    with pytest.raises(NotFound):
        offers.past.history(lost)


def test_an_erasure_rewrites_the_file_of_the_key_and_leaves_the_others(b: broker.Broker) -> None:
    offers = made(b, [])
    before = compacted(b, offers)
    content = {row["sku"]: row for row in offers.read(5).to_pylist()}
    report = erasure_of(b).erase(OFFERS, GONE)
    after = offers.state.edge(None, 5)
    assert after is not None
    assert report.done
    assert report.objects == len({file.key for edge in offers.state.edges for file in edge.files})
    changed = set(before.files) - set(after.files)
    assert len(changed) == 1
    assert [file.buckets for file in set(after.files) - set(before.files)] == [file.buckets for file in changed]
    assert {row["sku"]: row for row in offers.read(5).to_pylist()} == {k: v for k, v in content.items() if k != GONE}
    assert offers.past.history(GONE) == []


def test_the_proof_of_an_erasure_believes_no_range(b: broker.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    offers = made(b, [])
    snapshot = compacted(b, offers)
    monkeypatch.setattr(File, "may_hold", lambda file, _: file.buckets is None)
    report = erasure_of(b).erase(OFFERS, GONE)
    assert report.holding == [file.key for file in snapshot.of_role("rows") if GONE in keys_of(b, offers, file)]
    assert len(report.holding) == 1


def test_a_key_whose_type_was_widened_behind_the_snapshot_is_still_found_and_erased(b: broker.Broker) -> None:
    prices = b.dataset("shop/catalog/prices", key=["day"])
    days = [date.fromordinal(738_000 + number) for number in range(KEYS)]
    prices.publish(pa.table({"day": days, "price": list(range(KEYS))}))
    prices.publish_delta(pa.table({"day": days[:1], "price": [-1]}))
    snapshot = compacted(b, prices)
    assert {file.buckets for file in snapshot.of_role("rows")} == set(FULL)
    prices.publish_delta(pa.table({"day": pa.array(["2026-01-01T12:00:00"]).cast(pa.timestamp("us")), "price": [0]}))
    assert prices.state.spec.columns is not None
    assert prices.state.spec.columns.types["day"] == "TIMESTAMP"
    for number in range(1, 20):
        assert [one.row["price"] for one in prices.past.history(f"{days[number]}") if one.row] == [number]
    assert erasure_of(b).erase(prices.id, f"{days[3]}").done


def test_the_road_through_it_ends_where_the_deltas_end(b: broker.Broker) -> None:
    """Every version behind the snapshot reads as before."""
    offers = made(b, ["at"])
    compacted(b, offers)
    offers.publish_delta([{"sku": "s1", "at": 1, "price": 1}, {"sku": "s2", "at": 50, "price": 2}])
    state, engine = offers.state, b.parts.engine
    deltas = [edge for edge in state.edges if edge.base is not None or edge.version == 1]
    road = plan(state.edges, None, 6).edges
    assert len(road) == 2
    one, other = (digest_of_rows(engine, ("sku",), engine.read(state.spec, edges, EVERYTHING)) for edges in (deltas, road))
    assert one == other


def test_rows_of_one_partition_keep_their_order() -> None:
    batch = pa.record_batch({"n": range(100), "p": pa.array([n % 4 for n in range(100)], pa.uint8())})
    found: dict[int, list[Any]] = {}
    for number, piece in Partitions(4).dealt([batch, batch], pa.schema([("n", pa.int64())])):
        assert piece.schema.names == ["n"]
        found.setdefault(number, []).extend(piece["n"].to_pylist())
    assert found == {number: [*range(number, 100, 4)] * 2 for number in range(4)}
