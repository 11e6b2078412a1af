"""dataset, publish, versions and pull, called as a user would; what they left behind is read by other means."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.cli.datasets import altered, parse_column
from broker.cli.exits import Exit
from broker.cli.pull import replica_name
from broker.cli.words import bytes_text, public_place, span_text
from broker.errors import Invalid
from broker.model.dataset import Column, DatasetSpec, Schema
from broker.model.names import DatasetId
from tests.cli import Cli, Shell

OFFERS = "shop/catalog/offers"


@pytest.fixture
def cli(redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))


@pytest.fixture
def offers(cli: Cli, tmp_path: Path) -> Cli:
    """Version 1: a at 1, b at 60, c without a price."""
    cli.ok("dataset", "create", OFFERS, "--key", "sku")
    (tmp_path / "one.csv").write_text('sku,price,name\na,1,Ä\nb,60,"b, the 2nd"\nc,,\n')
    cli.ok("publish", OFFERS, "one.csv")
    return cli


# --- dataset


def test_create_is_repeatable_and_refuses_another_spec(cli: Cli) -> None:
    made = cli.json("dataset", "create", OFFERS, "--key", "sku,store", "--order", "at", "--attribute", "team=blue")
    assert (made["key"], made["spec"]["order"], made["spec"]["attributes"]) == (["sku", "store"], ["at"], {"team": "blue"})
    assert (
        cli.json("dataset", "create", OFFERS, "--key", "sku", "--key", "store", "--order", "at")["session"] == made["session"]
    )
    assert cli("dataset", "create", OFFERS, "--key", "sku").code == Exit.CONFLICT


def test_columns_can_be_named_at_creation_with_type_and_null_rule(cli: Cli) -> None:
    made = cli.json(
        "dataset", "create", OFFERS, "--key", "sku", "--column", "sku varchar not null", "--column", "price decimal(10,2)"
    )
    assert made["spec"]["columns"]["columns"] == [
        {"name": "sku", "type": "VARCHAR", "nullable": False}, {"name": "price", "type": "DECIMAL(10,2)", "nullable": True},
    ]  # fmt: skip


def test_how_long_deletes_are_remembered_is_said_at_creation(cli: Cli) -> None:
    made = cli.json("dataset", "create", OFFERS, "--key", "sku", "--order", "at", "--tombstone-seconds", 3600)
    assert made["spec"]["tombstone_seconds"] == 3600
    assert "tombstones  60 min" in cli.ok("dataset", "show", OFFERS).out


def test_list_takes_a_glob(offers: Cli) -> None:
    offers.ok("dataset", "create", "other/catalog/offers", "--key", "sku")
    assert [item["dataset"] for item in offers.json("dataset", "list")] == ["other/catalog/offers", OFFERS]
    assert [(item["dataset"], item["version"]) for item in offers.json("dataset", "list", "shop/*")] == [(OFFERS, 1)]
    assert offers.ok("dataset", "list").lines[0].split() == ["DATASET", "VERSION", "KEY", "VERSIONS", "BYTES"]


def test_alter_adds_and_widens_and_needs_force_for_loss(offers: Cli) -> None:
    grown = offers.json("dataset", "alter", OFFERS, "--column", "colour VARCHAR")
    assert [column["name"] for column in grown["spec"]["columns"]["columns"]] == ["sku", "price", "name", "colour"]
    assert offers("dataset", "alter", OFFERS, "--column", "price VARCHAR").code == Exit.CONFLICT
    forced = offers.json("dataset", "alter", OFFERS, "--column", "price VARCHAR", "--force")
    assert forced["session"] != grown["session"]


def test_drop_asks_where_nobody_can_answer_only_for_yes(offers: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    refused = offers("dataset", "drop", OFFERS)
    assert refused.code == Exit.USAGE
    assert "--yes" in refused.err
    offers.ok("dataset", "drop", OFFERS, "--yes")
    assert offers("dataset", "show", OFFERS).code == Exit.NOT_FOUND


def test_a_column_text_without_a_type_is_refused() -> None:
    assert parse_column("price double not null") == Column(name="price", type="double", nullable=False)
    assert parse_column('s STRUCT("cD" text)') == Column(name="s", type='STRUCT("cD" text)')
    with pytest.raises(Invalid):
        parse_column("price")


def test_altering_before_the_first_version_is_refused() -> None:
    spec = DatasetSpec(dataset=DatasetId(OFFERS), key=("sku",))
    with pytest.raises(Invalid):
        altered(spec, [Column(name="x", type="VARCHAR")])
    known = spec.model_copy(update={"columns": Schema(columns=(Column(name="sku", type="VARCHAR"),))})
    assert altered(known, [Column(name="sku", type="BIGINT"), Column(name="x", type="DATE")]).types == {
        "sku": "BIGINT",
        "x": "DATE",
    }


# --- publish


@pytest.mark.parametrize("form", ["csv", "csv.gz", "jsonl", "jsonl.gz", "parquet"])
def test_every_format_of_file_can_be_published(cli: Cli, tmp_path: Path, form: str) -> None:
    cli.ok("dataset", "create", OFFERS, "--key", "sku")
    rows = [{"sku": "a", "price": 1.5}, {"sku": "b", "price": None}]
    path = tmp_path / f"offers.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = "sku,price\na,1.5\nb,\n" if form.startswith("csv") else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if form.endswith("gz") else text.encode())
    assert cli.json("publish", OFFERS, path)["edge"]["files"][0]["rows"] == 2
    cli.ok("pull", OFFERS, "--to", "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(found, key=lambda row: str(row["sku"])) == rows


def test_of_several_files_the_later_one_wins_per_key(offers: Cli, tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("sku,price,name\nb,70,new\nd,4,d\n")
    done = offers.json("publish", OFFERS, "one.csv", "two.csv", "--delta", "--attribute", "why=test")
    assert (done["version"], done["edge"]["kind"]) == (2, "delta")
    assert [(file["role"], file["rows"]) for file in done["edge"]["files"]] == [("upserts", 2)]
    assert offers.json("versions", "show", OFFERS)["custom"] == {"why": "test"}


def test_a_delta_that_holds_nothing_new_says_so(offers: Cli) -> None:
    done = offers.json("publish", OFFERS, "one.csv", "--delta")
    assert (done["version"], done["changed"], done["edge"]) == (1, False, None)
    assert "unchanged at version 1" in offers.ok("publish", OFFERS, "one.csv", "--delta").out


def test_a_key_that_comes_twice_publishes_nothing(offers: Cli, tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("sku,price,name\na,1,x\na,2,y\n")
    done = offers("publish", OFFERS, "twice.csv")
    assert done.code == Exit.FAILED
    assert "twice.csv" in done.err
    assert offers.json("dataset", "show", OFFERS)["version"] == 1


# --- versions


def test_versions_are_listed_and_shown_with_their_files(offers: Cli, tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("sku,price,name\na,2,Ä\n")
    offers.ok("publish", OFFERS, "two.csv", "--delta")
    assert [(item["version"], item["base"]) for item in offers.json("versions", "list", OFFERS)] == [(1, None), (2, 1)]
    assert [item["version"] for item in offers.json("versions", "list", OFFERS, "--limit", 1)] == [2]
    shown = offers.json("versions", "show", OFFERS, 2)
    assert [file["role"] for file in shown["edge"]["files"]] == ["upserts", "deletes"]
    assert any(line.startswith("deletes: shop/catalog/offers/data/") for line in offers.ok("versions", "show", OFFERS, 2).lines)


def test_verify_finds_the_file_that_was_damaged(offers: Cli, tmp_path: Path) -> None:
    whole = offers.json("versions", "verify", OFFERS)
    assert [(item["key"].split("/")[3], item["ok"]) for item in whole] == [("data", True), ("log", True), ("notify", True)]
    (path,) = (tmp_path / "store").glob("shop/catalog/offers/data/*.parquet")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(damaged)
    done = offers("versions", "verify", OFFERS, "--json")
    assert done.code == Exit.FAILED
    assert done.data[0]["error"]["code"] == "corrupt"


# --- pull


def test_pull_goes_on_from_what_the_place_holds(offers: Cli, tmp_path: Path) -> None:
    first = offers.json("pull", OFFERS, "--to", "search.duckdb")
    assert (first["mode"], first["version"], first["rows"]) == ("applied", 1, 3)
    (tmp_path / "two.csv").write_text('sku,price,name\na,2,Ä\nb,60,"b, the 2nd"\n')
    offers.ok("publish", OFFERS, "two.csv", "--delta")
    second = offers.json("pull", OFFERS, "--to", "search.duckdb")
    assert (second["version"], second["upserts"], second["deletes"], second["reset"]) == (2, 1, 1, None)
    assert offers.json("pull", OFFERS, "--to", "search.duckdb")["mode"] == "up-to-date"
    with duckdb.connect(str(tmp_path / "search.duckdb"), read_only=True) as engine:
        assert engine.execute("SELECT sku, price FROM offers ORDER BY sku").fetchall() == [("a", 2), ("b", 60)]


def test_pull_into_sqlite_and_a_folder_takes_rows_and_columns_that_were_chosen(offers: Cli, tmp_path: Path) -> None:
    chosen = ("--where", "price < 50", "--columns", "price")
    offers.ok("pull", OFFERS, "--to", "x.sqlite", *chosen, "--table", "cheap")
    offers.ok("pull", OFFERS, "--to", "folder/", *chosen)
    with sqlite3.connect(tmp_path / "x.sqlite") as engine:
        assert engine.execute("SELECT sku, price FROM cheap").fetchall() == [("a", 1)]
    engine.close()
    (rows,) = (tmp_path / "folder").glob("g-*/rows.parquet")
    assert pq.read_table(rows).to_pylist() == [{"sku": "a", "price": 1}]


def test_another_filter_resets_the_replica_and_says_why(offers: Cli) -> None:
    offers.ok("pull", OFFERS, "--to", "x.duckdb")
    assert offers.json("pull", OFFERS, "--to", "x.duckdb", "--where", "price < 50")["reset"] == "filter-changed"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "arrow"])
def test_pull_writes_one_file_whole_or_not_at_all(offers: Cli, tmp_path: Path, form: str) -> None:
    done = offers.json("pull", OFFERS, "--to", f"out.{form}", "--where", "price IS NOT NULL")
    path = tmp_path / f"out.{form}"
    assert (done["rows"], done["version"], done["bytes"]) == (2, 1, path.stat().st_size)
    match form:
        case "csv":
            found = [row["name"] for row in csv.DictReader(path.read_text("utf-8").splitlines())]
        case "jsonl":
            found = [json.loads(line)["name"] for line in path.read_text().splitlines()]
        case "parquet":
            found = pq.read_table(path).column("name").to_pylist()
        case _:
            found = pa.ipc.open_file(pa.OSFile(str(path))).read_all().column("name").to_pylist()
    assert sorted(found) == ["b, the 2nd", "Ä"]
    assert [p.name for p in tmp_path.glob(".out*")] == []


@pytest.mark.parametrize("place", ["out.csv", "x.duckdb", "folder/"])
def test_nothing_yet_is_code_3_wherever_it_was_to_go(cli: Cli, tmp_path: Path, place: str) -> None:
    cli.ok("dataset", "create", OFFERS, "--key", "sku")
    for options in ((), ("--timeout", 0.1)):
        done = cli("pull", OFFERS, "--to", place, *options)
        assert done.code == Exit.NOT_FOUND
        assert "no version yet" in done.err
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("place", ["out.csv", "x.duckdb"])
def test_pull_waits_for_the_first_version(cli: Cli, tmp_path: Path, redis_url: str, place: str) -> None:
    cli.ok("dataset", "create", OFFERS, "--key", "sku")
    shell = Shell(tmp_path, {"BROKER_REDIS": redis_url, "BROKER_STORE": str(tmp_path / "store")})
    (tmp_path / "one.csv").write_text("sku,price\na,1\n")
    waiting = shell.start("pull", OFFERS, "--to", place, "--wait", log=tmp_path / "log")
    try:
        cli.ok("publish", OFFERS, "one.csv")
        assert waiting.wait(60) == 0
    finally:
        waiting.kill()
        waiting.wait()
    assert "version 1" in (tmp_path / "log").read_text()


def test_what_a_single_file_cannot_have_is_refused(offers: Cli) -> None:
    for option in ("--table", "--name"):
        done = offers("pull", OFFERS, "--to", "out.csv", option, "x")
        assert done.code == Exit.USAGE
        assert "--table and --name" in done.err


def test_a_place_is_known_again_whoever_logs_in_and_wherever_it_was_called_from() -> None:
    assert (
        replica_name("x.duckdb") == replica_name("./x.duckdb") == replica_name("x.duckdb?table=t") != replica_name("y.duckdb")
    )
    url = "postgresql://{}db.example/search{}"
    assert len({replica_name(url.format(*way)) for way in (("me:old@", ""), ("me:new@", ""), ("", "?sslmode=require"))}) == 1
    assert replica_name(url.format("", "")) != replica_name("postgresql://db.example/other")


def test_a_place_that_was_moved_says_by_which_name_to_go_on(offers: Cli, tmp_path: Path) -> None:
    offers.ok("pull", OFFERS, "--to", "x.duckdb")
    (tmp_path / "x.duckdb").rename(tmp_path / "y.duckdb")
    refused = offers("pull", OFFERS, "--to", "y.duckdb")
    assert refused.code == Exit.CONFLICT
    hint = refused.err.rpartition("--name ")[2].split()[0]
    assert offers.json("pull", OFFERS, "--to", "y.duckdb", "--name", hint)["mode"] == "up-to-date"


def test_no_password_is_printed(offers: Cli) -> None:
    done = offers("pull", OFFERS, "--to", "postgresql://me:secret@127.0.0.1:9/none?password=secret")
    assert done.code == Exit.UNREACHABLE
    assert "secret" not in done.err + done.out
    assert public_place("postgresql://me:secret@db:5432/shop?password=secret") == "postgresql://db:5432/shop"
    assert public_place("/home/me@corp/x.duckdb") == "/home/me@corp/x.duckdb"


# --- words


def test_sizes_and_spans_are_read_at_a_glance() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1536, 3 << 30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert [span_text(n) for n in (0.25, 120, 7200, 400_000)] == ["0.2 s", "2 min", "2 h", "5 d"]
