from __future__ import annotations

import gzip
import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.columnar.intake import reader_of
from broker.columnar.types import schema_of
from broker.errors import BadData, BrokerError, DuplicateKey, Invalid, NotFound, NullKey, SchemaConflict, Transient, Unavailable
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.producers import ProductionRequest, Since, Snapshot, Unchanged, outcome_of, resolve_position
from broker.settings import Settings
from broker.sources import Files
from broker.sources.files import rows_of as named_rows

SPEC = DatasetSpec(dataset=DatasetId("debian/catalog/packages"), key=("id",))


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, packed when its name says so."""
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def answered(source: Files, spec: DatasetSpec = SPEC, since: Since | None = None) -> Snapshot | Unchanged:
    outcome = outcome_of(source(ProductionRequest(str(spec.dataset), spec), since), "files", spec)
    assert isinstance(outcome, Snapshot | Unchanged)
    return outcome


def table_of(source: Files, spec: DatasetSpec = SPEC) -> pa.Table:
    outcome = answered(source, spec)
    assert isinstance(outcome, Snapshot)
    return reader_of(outcome.data, spec).read_all()


def rows_of(folder: Path, pattern: str = "*", spec: DatasetSpec = SPEC) -> list[dict[str, Any]]:
    return sorted(table_of(Files(str(folder / pattern)), spec).to_pylist(), key=lambda row: str(row["id"]))


def failure(folder: Path, pattern: str = "*") -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        table_of(Files(str(folder / pattern)))
    return caught.value


def known(table: pa.Table) -> DatasetSpec:
    return SPEC.model_copy(update={"columns": schema_of(table.schema)})


# --- what is read


def test_every_format_reads_alike_also_packed(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "id,n,d\n1,1.5,2026-01-01\n")
    write(tmp_path / "b.csv.gz", "id,n,d\n2,,2026-01-02\n")
    write(tmp_path / "c.jsonl", '{"id": 3, "n": 2.5, "d": "2026-01-03"}\n')
    write(tmp_path / "d.jsonl.gz", '{"id": 4, "n": null, "d": "2026-01-04"}\n{"id": 5}\n')
    pq.write_table(pa.table({"id": [6], "n": [0.5], "d": [date(2026, 1, 6)]}), tmp_path / "e.parquet")
    write(tmp_path / "f.parquet.gz", (tmp_path / "e.parquet").read_bytes())
    assert rows_of(tmp_path) == [
        {"id": 1, "n": 1.5, "d": date(2026, 1, 1)}, {"id": 2, "n": None, "d": date(2026, 1, 2)},
        {"id": 3, "n": 2.5, "d": date(2026, 1, 3)}, {"id": 4, "n": None, "d": date(2026, 1, 4)},
        {"id": 5, "n": None, "d": None}, {"id": 6, "n": 0.5, "d": date(2026, 1, 6)},
    ]  # fmt: skip


def test_the_later_file_in_name_order_wins_per_key(tmp_path: Path) -> None:
    write(tmp_path / "3.csv", "id,v\n1,third\n")
    write(tmp_path / "1.csv", "id,v\n1,first\n2,first\n3,first\n")
    write(tmp_path / "2.csv", "id,v\n1,second\n2,second\n")
    assert [row["v"] for row in rows_of(tmp_path)] == ["third", "second", "first"]


def test_a_key_of_two_columns_is_compared_whole(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"key": ("id", "shop")})
    write(tmp_path / "1.csv", "id,shop,v\n1,a,x\n1,b,x\n")
    write(tmp_path / "2.csv", "id,shop,v\n1,b,y\n")
    assert sorted((row["shop"], row["v"]) for row in rows_of(tmp_path, spec=spec)) == [("a", "x"), ("b", "y")]


def test_fields_are_read_by_rfc_4180_and_empty_ones_are_null(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", '\ufeffid,v\r\n1,"a,""b""\r\nc"\r\n2,\r\n3,""\r\n')
    assert [row["v"] for row in rows_of(tmp_path)] == ['a,"b"\r\nc', None, None]


def test_numbers_with_leading_zeros_and_dates_that_are_not_iso_stay_text(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "id,zip,day,at,ok\n1,01067,01/02/2026,01/02/2026 10:00:00,2026-01-01T10:00:00Z\n")
    table = table_of(Files(str(tmp_path / "*.csv")))
    assert schema_of(table.schema).types == {
        "id": "BIGINT", "zip": "VARCHAR", "day": "VARCHAR", "at": "VARCHAR", "ok": "TIMESTAMP WITH TIME ZONE"
    }  # fmt: skip
    assert table.column("zip").to_pylist() == ["01067"]


def test_one_files_guess_never_decides_how_another_file_is_read(tmp_path: Path) -> None:
    write(tmp_path / "1.csv", "id,v\n1,1.50\n")
    write(tmp_path / "2.csv", "id,v\n2,unknown\n")
    assert [row["v"] for row in rows_of(tmp_path)] == ["1.50", "unknown"]


def test_types_are_the_datasets_and_not_sniffed_anew(tmp_path: Path) -> None:
    spec = known(pa.table({"id": ["1"], "v": [1.0]}))
    write(tmp_path / "a.csv", "id,v\n007,5\n")
    write(tmp_path / "b.jsonl", '{"id": "8", "v": 5}\n')
    assert rows_of(tmp_path, spec=spec) == [{"id": "007", "v": 5.0}, {"id": "8", "v": 5.0}]


def test_a_column_the_dataset_does_not_know_yet_is_added(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "id,v,new\n1,2,2026-01-01\n")
    assert rows_of(tmp_path, spec=known(pa.table({"id": ["1"], "v": [1.0]}))) == [
        {"id": "1", "v": 2.0, "new": date(2026, 1, 1)}
    ]


def test_a_file_with_a_header_only_empties_the_dataset(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "id,v\n")
    table = table_of(Files(str(tmp_path / "*")))
    assert (table.num_rows, table.schema.names) == (0, ["id", "v"])


def test_names_with_glob_characters_and_quotes_are_plain_names(tmp_path: Path) -> None:
    write(tmp_path / "o'ne[1]?.csv", "id\n1\n")
    assert [row["id"] for row in rows_of(tmp_path)] == [1]


def test_a_given_format_wins_over_the_suffix(tmp_path: Path) -> None:
    write(tmp_path / "feed.txt", "id\n1\n")
    assert table_of(Files(str(tmp_path / "*"), format="csv")).num_rows == 1


# --- positions


def test_an_untouched_folder_is_unchanged_and_any_touch_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,v\n1,x\n")
    source = Files(str(tmp_path / "*.csv"))
    since = Since(1, resolve_position(answered(source)))
    assert isinstance(answered(source, since=since), Unchanged)
    stamp = path.stat()
    write(path, "id,v\n1,y\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert isinstance(answered(source, since=since), Snapshot)
    write(path, "id,v\n1,x\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert isinstance(answered(source, since=since), Unchanged)
    write(tmp_path / "b.csv", "id,v\n2,x\n")
    assert isinstance(answered(source, since=since), Snapshot)


# --- what is refused


def test_no_matching_file_is_refused_since_it_would_delete_everything(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert isinstance(failure(tmp_path, "*.csv"), NotFound)


def test_a_key_twice_in_one_file_names_file_and_key(tmp_path: Path) -> None:
    write(tmp_path / "good.csv", "id\n1\n")
    write(tmp_path / "twice.csv", "id\n7\n8\n7\n")
    error = failure(tmp_path)
    assert isinstance(error, DuplicateKey)
    assert "twice.csv" in error.of
    assert "1 key(s), first id = 7" in error.why


def test_an_empty_key_names_the_file(tmp_path: Path) -> None:
    write(tmp_path / "null.csv", "id,v\n1,a\n,b\n,c\n")
    error = failure(tmp_path)
    assert isinstance(error, NullKey)
    assert ("null.csv" in error.of, "2 row(s)" in error.why) == (True, True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.csv", b"id,v\n1,caf\xe9\n"), ("header.csv", b"id,caf\xe9\n1,2\n"),
        ("latin.jsonl", b'{"id": 1, "v": "caf\xe9"}\n'),
        ("ragged.csv", b"id,v\n1,2\n3\n4,5,6\n"), ("empty.csv", b""), ("twins.csv", b"id,id\n1,2\n"),
        ("half.jsonl", b'{"id": 1}\n{"id":'),
        ("not.parquet", b"PAR1 and no more"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_of_its_format_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path / name, content)
    error = failure(tmp_path)
    assert isinstance(error, BadData), error
    assert name in error.of


@pytest.mark.parametrize("name", ["cut.csv.gz", "cut.jsonl.gz", "cut.parquet.gz"])
def test_a_packed_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    lines = "".join(f"{number}\n" if ".csv" in name else f'{{"id": {number}}}\n' for number in range(100_000))
    (tmp_path / name).write_bytes(gzip.compress(("id\n" + lines if ".csv" in name else lines).encode())[:-4_000])
    error = failure(tmp_path)
    assert isinstance(error, BadData), error
    assert name in error.of


def test_a_value_that_does_not_fit_the_datasets_type_names_the_file(tmp_path: Path) -> None:
    write(tmp_path / "odd.csv", "id,v\n1,5\n2,many\n")
    spec = known(pa.table({"id": [1], "v": [1]}))
    outcome = answered(Files(str(tmp_path / "*")), spec)
    assert isinstance(outcome, Snapshot)
    with pytest.raises(BadData, match=r"odd\.csv.*many"):
        list(outcome.data)


def test_a_file_without_the_key_column_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "id,v\n1,5\n")
    write(tmp_path / "keyless.csv", "v\n1\n")
    with pytest.raises(SchemaConflict, match=r"keyless\.csv"):
        table_of(Files(str(tmp_path / "*")))


def test_a_file_that_changes_while_it_is_read_is_transient_and_gives_no_whole_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id\n" + "".join(f"{number}\n" for number in range(50_000)))
    outcome = answered(Files(str(tmp_path / "*")))
    assert isinstance(outcome, Snapshot)
    next(outcome.data)
    write(path, "id\n1\n")
    with pytest.raises(Transient):
        list(outcome.data)


def test_a_file_that_goes_while_it_is_read_is_transient(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "id\n1\n")
    write(tmp_path / "b.csv", "id\n2\n").with_name("b.csv")
    outcome = answered(Files(str(tmp_path / "*")))
    assert isinstance(outcome, Snapshot)
    next(outcome.data)
    (tmp_path / "b.csv").unlink()
    with pytest.raises(Unavailable):
        list(outcome.data)


def test_malformed_options_are_refused_at_once(tmp_path: Path) -> None:
    for glob, kind in (("", None), ("*.csv", "xml")):
        with pytest.raises(Invalid):
            Files(glob, format=kind)  # type: ignore[arg-type]
    write(tmp_path / "a.txt", "id\n1\n")
    assert isinstance(failure(tmp_path), Invalid)


# --- real input


def test_debian_packages_equal_a_direct_computation(tmp_path: Path, debian: Path) -> None:
    spec = SPEC.model_copy(update={"key": ("package",)})
    source = Files(str(tmp_path / "*.csv.gz"))
    shutil.copy(debian / "main.csv.gz", tmp_path)
    first = table_of(source, spec)
    shutil.copy(debian / "security.csv.gz", tmp_path)
    second = table_of(source, spec.model_copy(update={"columns": schema_of(first.schema)}))
    with duckdb.connect() as direct:
        for name in ("main", "security"):
            direct.execute(f"CREATE TABLE {name} AS FROM read_csv('{debian / name}.csv.gz', sample_size = -1)")
        direct.execute("CREATE TABLE wanted AS FROM security UNION ALL FROM main ANTI JOIN security USING (package)")
        direct.register("first", first)
        direct.register("second", second)

        def count(sql: str) -> int:
            return int((direct.execute(f"SELECT count(*) FROM ({sql})").fetchone() or (0,))[0])

        assert (first.num_rows, second.num_rows) == (63_436, 63_666)
        assert count("(FROM main EXCEPT ALL FROM first) UNION ALL (FROM first EXCEPT ALL FROM main)") == 0
        assert count("(FROM wanted EXCEPT ALL FROM second) UNION ALL (FROM second EXCEPT ALL FROM wanted)") == 0
        assert count("FROM second ANTI JOIN first USING (package)") == 230
        assert count("FROM security SEMI JOIN first USING (package)") == 2_764
        assert count("FROM (FROM second EXCEPT FROM first) SEMI JOIN first USING (package)") == 1_774, (
            "990 rows are the same in both"
        )


def test_files_that_are_published_lie_in_the_folder_of_the_settings_meanwhile(tmp_path: Path) -> None:
    packed = write(tmp_path / "a.csv.gz", "id,v\n1,x\n")
    work = tmp_path / "work"
    rows = named_rows(SPEC, [packed], Settings(temp_folder=work))
    next(rows)
    assert [entry.name.startswith("broker-files-") for entry in work.iterdir()] == [True]
    assert sum(batch.num_rows for batch in rows) == 1
    assert list(work.iterdir()) == []
    with pytest.raises(Unavailable, match="BROKER_TEMP_FOLDER"):
        next(named_rows(SPEC, [packed], Settings(temp_folder=packed / "below")))
