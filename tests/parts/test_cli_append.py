"""append and log status, called as a user would; what landed is read from the log itself."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import broker
from broker.backend.logs import Logs
from broker.cli.exits import Exit
from broker.columnar.blocks import decoded
from broker.errors import BadData
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.settings import Settings
from broker.sources.changes import changes_of, runs_of_lines
from tests.cli import Cli
from tests.servers import redis_server, wait_until
from workers.batching import Batching

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
    refused = cli("append", OFFERS, "-")
    assert (refused.code, "[stdin]" in refused.err, "lines.jsonl" in refused.err) == (Exit.FAILED, True, False)


def test_a_value_of_another_type_far_down_in_a_file_is_bad_data_and_no_silent_store(cli: Cli, tmp_path: Path) -> None:
    """DuckDB's errors come through Arrow as those of the machine, which would be worth repeating."""
    rows = "".join(f'{{"sku": "a{number}", "at": {number}}}\n' for number in range(70_000))
    (tmp_path / "a.jsonl").write_text(rows + '{"sku": "b", "at": "x1"}\n')
    cli.ok("dataset", "create", "shop/catalog/typed", "--key", "sku", "--column", "sku VARCHAR", "--column", "at BIGINT")
    refused = cli("append", "shop/catalog/typed", "a.jsonl")
    assert (refused.code, "line 70001" in refused.err, "x1" in refused.err) == (Exit.FAILED, True, True)
    assert "auto_detect" not in refused.err


def test_options_that_do_not_go_together_are_refused(cli: Cli) -> None:
    assert cli("append", OFFERS, "a.csv", "--block", 1).code == Exit.USAGE
    assert cli("append", OFFERS, "-", "--block", 1, "--producer", "pim-1").code == Exit.USAGE
    assert cli("append", OFFERS, "nowhere.csv").code == Exit.NOT_FOUND
    assert cli("append", OFFERS, "nowhere.csv", "--level", "sure").code == Exit.USAGE


def test_a_file_that_is_not_there_or_of_no_use_is_named_in_plain_words(cli: Cli, tmp_path: Path) -> None:
    missing = cli("append", OFFERS, "nowhere.jsonl")
    assert (missing.code, missing.err) == (
        Exit.NOT_FOUND, "error: no such file [nowhere.jsonl]\nhint: Give a path, or - for JSON lines on stdin\n",
    )  # fmt: skip
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


# --- a log that is full

ROWS, BLOCK_ROWS = 1_000, 100


class Waits:
    """In the place of `time`: whoever waits for a full log is told `step` seconds later, and meanwhile `act` is done."""

    def __init__(self, step: float, act: Callable[[], object]) -> None:
        self.now, self.waited, self._step, self._act = 0.0, 0, step, act

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        del seconds
        self.now, self.waited = self.now + self._step, self.waited + 1
        self._act()


@pytest.fixture
def small(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Blocks of 100 rows, and a log that holds a few of them."""
    monkeypatch.setattr("broker.changelog_rows.BLOCK_ROWS", BLOCK_ROWS)
    monkeypatch.setenv("BROKER_UNBATCHED_BYTES", "2500")
    monkeypatch.setenv("BROKER_MAX_AGE_SECONDS", "0.05")
    return cli


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, each time that they were."""
    found = list[Path]()

    def counted(spec: DatasetSpec, path: Path, settings: Settings, called: str) -> Generator[pa.RecordBatch, None, None]:
        found.append(path)
        return changes_of(spec, path, settings, called)

    monkeypatch.setattr("broker.cli.append.changes_of", counted)
    return found


@pytest.fixture
def b(redis_url: str, small: Cli, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis_url, str(tmp_path / "store")) as opened:
        yield opened


def a_file(path: Path, *, count: int = ROWS) -> Path:
    path.write_text("sku,at\n" + "".join(f"a{number},{number}\n" for number in range(count)))
    return path


def test_a_file_goes_in_however_long_a_log_is_full_now_and_then_and_is_read_once(
    small: Cli, b: broker.Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Path]
) -> None:
    """All of it takes several timeouts, no block takes one."""
    batching = Batching(b.parts, "one")
    path, waits = a_file(tmp_path / "a.csv"), Waits(20, lambda: drained(batching))
    monkeypatch.setattr("broker.cli.append.time", waits)
    ack = small.json("append", OFFERS, path, "--timeout", 30)
    assert (ack["rows"], ack["blocks"], ack["block"]) == (ROWS, ROWS // BLOCK_ROWS, ROWS // BLOCK_ROWS)
    assert waits.now > 2 * 30, "the log was never full: nothing was tried"
    assert reads == [path]
    drained(batching)
    batching.close()
    found = b.dataset(OFFERS).read().to_pylist()
    assert sorted(row["at"] for row in found) == list(range(ROWS))
    assert sum(slot["appended_rows"] for slot in small.json("log", "status", OFFERS)["slots"]) == ROWS, "no row came twice"


def test_when_the_last_block_of_a_file_is_sealed_so_is_all_of_it(small: Cli, b: broker.Broker, tmp_path: Path) -> None:
    batching, done, path = Batching(b.parts, "one"), list[Any](), a_file(tmp_path / "a.csv")
    append = Thread(target=lambda: done.append(small.json("append", OFFERS, path, "--level", "sealed")))
    append.start()
    while append.is_alive():
        batching.run_once()
    batching.close()
    assert [(ack["rows"], ack["level"]) for ack in done] == [(ROWS, "sealed")]
    assert b.dataset(OFFERS).read().num_rows == ROWS


@pytest.mark.parametrize(("order", "words"), [("at", "does no harm"), (None, "older rows over newer ones")])
def test_what_is_refused_in_the_middle_says_what_is_in_and_promises_nothing_of_the_next_process(
    small: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Path], order: str | None, words: str
) -> None:
    name, path = "shop/catalog/others", a_file(tmp_path / "a.csv")
    small.ok("dataset", "create", name, "--key", "sku", *(("--order", order) if order else ()))
    monkeypatch.setattr("broker.cli.append.time", waits := Waits(20, lambda: None))
    monkeypatch.setattr("tempfile.tempdir", str(temporary := tmp_path / "temporary"))
    temporary.mkdir()
    refused = small("append", name, path, "--timeout", 30)
    assert (refused.code, waits.waited, reads) == (Exit.UNREACHABLE, 2, [path])
    assert list(temporary.iterdir()) == []
    told = re.search(r"The first (\d+) rows are in, and some of the next (\d+) may be", refused.err)
    assert told is not None, refused.err
    there = sum(slot["appended_rows"] for slot in small.json("log", "status", name)["slots"])
    assert 0 < int(told[1]) <= there <= int(told[1]) + int(told[2]) < ROWS
    assert words in refused.err
    assert "the same" not in refused.err


def test_a_file_is_not_in_when_the_session_of_its_first_blocks_ended(
    small: Cli, b: broker.Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last block's being there says nothing of those before: no version holds what waited when the session ended."""
    batching, ended = Batching(b.parts, "one"), Event()

    def anew() -> None:
        if not ended.is_set():
            b.dataset(OFFERS).drop()
            b.dataset(OFFERS, key="sku", order="at")
            ended.set()
        drained(batching)

    monkeypatch.setattr("broker.cli.append.time", Waits(1, anew))
    refused = small("append", OFFERS, a_file(tmp_path / "a.csv"))
    batching.close()
    assert (refused.code, ended.is_set()) == (Exit.CONFLICT, True)
    assert "began a new session" in refused.err
    assert "rows are in" not in refused.err


def test_a_numbered_file_that_is_refused_can_come_again(
    small: Cli, b: broker.Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batching = Batching(b.parts, "one")
    numbered = ("append", OFFERS, a_file(tmp_path / "a.csv", count=200), "--producer", "pim-1", "--timeout", 30)
    monkeypatch.setattr("broker.cli.append.time", Waits(20, lambda: None))
    block = 1
    while (done := small(*numbered, "--block", block)).code == Exit.OK:
        block += 1
    assert (done.code, block > 1) == (Exit.UNREACHABLE, True)
    assert "append the same again" in done.err
    drained(batching)
    batching.close()
    assert small.json(*numbered, "--block", block)["block"] == block
    assert small.json("log", "status", OFFERS, "--producer", "pim-1")["next_block"] == block + 1


def test_all_is_in_when_only_its_level_was_not_reached(small: Cli, tmp_path: Path) -> None:
    late = small("append", OFFERS, a_file(tmp_path / "a.csv", count=200), "--level", "sealed", "--timeout", 0.1)
    assert late.code == Exit.TIMED_OUT
    assert "All 200 rows read so far are in" in late.err
    assert "again to wait on" not in late.err


def test_a_row_that_is_none_says_where_it_is_and_what_is_in(small: Cli, tmp_path: Path) -> None:
    path = a_file(tmp_path / "a.csv", count=200)
    path.write_text(path.read_text() + ",7\n")
    refused = small("append", OFFERS, path)
    assert refused.code == Exit.FAILED
    assert "row 0 (counted from 0), behind the first 200 rows" in refused.err
    assert "Every row needs its whole key. The first 200 rows are in. " in refused.err


def test_a_level_that_cannot_be_proven_is_refused_before_anything_is_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.changelog_rows.BLOCK_ROWS", BLOCK_ROWS)
    with redis_server("--appendonly", "no") as server:
        cli = Cli(capsys, "--redis", server.url, "--store", str(tmp_path / "store"))
        cli.ok("dataset", "create", OFFERS, "--key", "sku")
        refused = cli("append", OFFERS, a_file(tmp_path / "a.csv"), "--level", "fsynced")
        assert (refused.code, "appendonly is off" in refused.err) == (Exit.FAILED, True)
        assert sum(slot["appended_rows"] for slot in cli.json("log", "status", OFFERS)["slots"]) == 0


def test_an_empty_file_is_answered(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,at\na,1\n")
    (tmp_path / "empty.csv").write_text("sku,at\n")
    cli.ok("append", OFFERS, "a.csv")
    ack = cli.json("append", OFFERS, "empty.csv")
    assert (ack["rows"], ack["blocks"], ack["block"], ack["offsets"], ack["level"]) == (0, 0, 0, {}, "accepted")


def drained(batching: Batching) -> None:
    def empty() -> bool:
        batching.run_once()
        return batching.idle()

    wait_until(empty, "the log to be empty", 20)


def test_a_line_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sources.changes.LINE_BYTES", 3 << 20)
    with pytest.raises(BadData, match="too long"):
        _last(runs_of_lines(io.BytesIO(b"x" * (5 << 20)), tmp_path))


def _last(paths: Iterator[Path]) -> Path:
    return list(paths)[-1]
