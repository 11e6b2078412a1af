"""append and log status, called as a user would; what landed is read from the log itself."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import broker
from broker.backend.logs import Logs
from broker.cli.exits import Exit
from broker.columnar.blocks import decoded
from broker.errors import BadData
from broker.model.names import DatasetId
from broker.sources.changes import runs_of_lines
from tests.cli import Cli

OFFERS = "shop/catalog/offers"


@pytest.fixture
def cli(redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    cli = Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))
    cli.ok("dataset", "create", OFFERS, "--key", "sku", "--order", "at")
    return cli


def changes(redis_url: str) -> list[tuple[str, dict[str, Any]]]:
    """(kind, row) of all that lies in the log, by `at`."""
    with broker.connect(redis_url, "memory://none") as connection:
        logs = Logs(connection.parts.redis, connection.parts.settings)
        found = [
            (entry.kind, row)
            for slot in range(logs.count)
            for entry in logs.entries(DatasetId(OFFERS), slot)
            if entry.payload is not None
            for row in decoded(entry.payload).to_pylist()
        ]
    return sorted(found, key=lambda change: change[1]["at"])


def test_files_of_every_format_land_with_every_change_of_a_key(cli: Cli, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,at,price\na,1,1.5\na,2,2.5\nb,3,\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"sku":"a","at":4,"price":3}\n{"sku":"a","at":5,"price":null}\n'))
    pq.write_table(pa.table({"sku": ["c"], "at": [6], "price": [9.0]}), tmp_path / "c.parquet")

    assert [cli.json("append", OFFERS, name)["rows"] for name in ("a.csv", "b.jsonl.gz", "c.parquet")] == [3, 2, 1]
    found = [(kind, row["sku"], row["at"], row["price"]) for kind, row in changes(redis_url)]
    assert found == [
        ("u", "a", 1, 1.5), ("u", "a", 2, 2.5), ("u", "b", 3, None),
        ("u", "a", 4, 3.0), ("u", "a", 5, None), ("u", "c", 6, 9.0),
    ]  # fmt: skip


def test_deletes_name_key_and_order(cli: Cli, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,at\na,1\n")
    (tmp_path / "gone.csv").write_text("sku,at\na,2\n")
    cli.ok("append", OFFERS, "a.csv")
    cli.ok("append", OFFERS, "gone.csv", "--delete")
    assert changes(redis_url) == [("u", {"sku": "a", "at": 1}), ("d", {"sku": "a", "at": 2})]


def test_a_numbered_file_lands_once_and_a_gap_says_the_number(cli: Cli, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,at\na,1\n")
    for _ in range(2):
        assert cli.json("append", OFFERS, "a.csv", "--producer", "pim-1", "--block", 1)["block"] == 1
    refused = cli("append", OFFERS, "a.csv", "--producer", "pim-1", "--block", 3)
    assert refused.code == Exit.USAGE
    assert "expected 2" in refused.err
    assert len(changes(redis_url)) == 1
    assert cli.json("log", "status", OFFERS, "--producer", "pim-1")["next_block"] == 2


def test_lines_of_a_pipe_land_as_they_come(cli: Cli, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    stdin = io.TextIOWrapper(os.fdopen(read, "rb"))
    monkeypatch.setattr("sys.stdin", stdin)
    done: list[Any] = []
    reader = Thread(target=lambda: done.append(cli.ok("append", OFFERS)))
    reader.start()
    for at in (1, 2):
        os.write(write, json.dumps({"sku": "a", "at": at}).encode() + b"\n")
        while len(changes(redis_url)) < at:
            assert reader.is_alive(), done
    os.write(write, b'{"sku": "b", "at": 3}')
    os.close(write)
    reader.join(60)
    stdin.close()
    assert [row["at"] for _, row in changes(redis_url)] == [1, 2, 3]
    assert "3 rows accepted" in done[0].out


def test_a_line_that_is_no_json_is_refused_and_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"sku,at\n")))
    assert cli("append", OFFERS, "-").code == Exit.FAILED


def test_options_that_do_not_go_together_are_refused(cli: Cli) -> None:
    assert cli("append", OFFERS, "a.csv", "--block", 1).code == Exit.USAGE
    assert cli("append", OFFERS, "-", "--block", 1, "--producer", "pim-1").code == Exit.USAGE
    assert cli("append", OFFERS, "nowhere.csv").code == Exit.NOT_FOUND
    assert cli("append", OFFERS, "nowhere.csv", "--level", "sure").code == Exit.USAGE


def test_a_file_that_is_not_there_or_of_no_use_is_named_in_plain_words(cli: Cli, tmp_path: Path) -> None:
    missing = cli("append", OFFERS, "nowhere.jsonl")
    assert (missing.code, missing.err) == (Exit.NOT_FOUND, "error: no such file [nowhere.jsonl]\n")
    (tmp_path / "half.jsonl").write_text('{"sku": ')
    half = cli("append", OFFERS, "half.jsonl")
    assert (half.code, "Malformed JSON" in half.err) == (Exit.FAILED, True)
    assert not any(word in half.err for word in ("DESCRIBE", "SELECT", "LINE 1"))


def test_status_shows_what_waits(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,at\n" + "".join(f"a{number},1\n" for number in range(40)))
    cli.ok("append", OFFERS, "a.csv")
    slots = cli.json("log", "status", OFFERS)["slots"]
    assert [slot["slot"] for slot in slots] == [0, 1, 2, 3]
    assert sum(slot["unbatched_rows"] for slot in slots) == 40
    shown = cli.ok("log", "status", OFFERS).lines
    assert shown[0].split()[:3] == ["SLOT", "WAITING", "ROWS"]
    assert len(shown) == 5


def test_a_line_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sources.changes.LINE_BYTES", 3 << 20)
    with pytest.raises(BadData, match="too long"):
        _last(runs_of_lines(io.BytesIO(b"x" * (5 << 20)), tmp_path))


def _last(paths: Iterator[Path]) -> Path:
    return list(paths)[-1]
