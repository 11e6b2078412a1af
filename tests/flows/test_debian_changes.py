"""Debian's index by changes: `main` is published, `security` and `updates` are appended; consumers, channels, history, erasure.

What a user types is typed here. Debian's lists do not say which of two rows of a package is newer, and its version strings do
not sort as text. A dataset that takes snapshots and changes needs an order column: `seen`, the day its suite was read, is
added to each file before. So the suite that was read later wins, and what is compared with says the same.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import broker
from broker.cli.exits import Exit
from broker.settings import load
from broker.stores.open import open_store
from tests.cli import Cli, Shell
from tests.debian import CSV, Index, write
from tests.servers import wait_until

DATASET = "debian/catalog/packages"
SEEN = {"main": "2023-06-10", "security": "2024-05-01", "updates": "2024-06-01"}
WHERE = "section = 'net' OR section = 'web'"
DERIVED = "section = 'net'"
PACKAGE = "ctdb"
"""In all three suites, of section net, and no other row's text has the word."""
OF_ALL = "(FROM main UNION ALL FROM security UNION ALL FROM updates)"
NEWEST = f"SELECT * FROM {OF_ALL} QUALIFY row_number() OVER (PARTITION BY package ORDER BY seen DESC) = 1"
SOURCE = f"""
[[sources]]
dataset = "{DATASET}"
kind = "files"
glob = "feeds/*.csv.gz"
"""


@pytest.fixture
def index(debian: Path, tmp_path: Path) -> Index:
    """The suites with their order column, as files in the folder and as tables."""
    for name, day in SEEN.items():
        with_order = f"SELECT *, DATE '{day}' AS seen FROM read_csv('{debian / name}.csv.gz', {CSV})"
        write(with_order, tmp_path / f"{name}.csv.gz")
    return Index(tmp_path, *SEEN)


@dataclass
class Story:
    """One dataset and those who follow it, in a folder of their own."""

    shell: Shell
    cli: Cli
    index: Index
    every: list[broker.Report] = field(default_factory=list)

    def pull(self, name: str, *options: object) -> dict[str, Any]:
        report: dict[str, Any] = self.cli.json("pull", DATASET, "--to", f"{name}.duckdb", *options)
        return report

    def versions(self) -> list[int]:
        return [info["version"] for info in self.cli.json("versions", "list", DATASET)]

    def differing(self, name: str, expected: str) -> int:
        return self.index.differing_from(expected, self.shell.folder / f"{name}.duckdb", "packages")

    # --- chapters

    def publish(self) -> None:
        self.cli.ok("dataset", "create", DATASET, "--key", "package", "--order", "seen")
        self.cli.ok("publish", DATASET, "main.csv.gz")
        self.cli.ok("promote", DATASET, 1, "--to", "production")
        assert self.pull("shop", "--channel", "production")["version"] == 1
        for name, options in (("latest", ()), ("net", ("--where", WHERE))):
            assert self.pull(name, *options)["version"] == 1

    def append(self) -> None:
        """Changes, while one consumer takes each version as it comes."""
        with broker.connect() as b, self.shell.working("--role", "microbatch", "--max-age", "1s"):
            sink = broker.sinks.DuckDB(self.shell.folder / "every.duckdb", table="packages")
            replica = b.replica(DATASET, name="every", sink=sink)
            with replica.following(broker.Every(), told=self.every.append):
                for name, rows in (("security", 2_994), ("updates", 38)):
                    done = self.cli.json("append", DATASET, f"{name}.csv.gz", "--level", "sealed")
                    assert (done["rows"], done["level"]) == (rows, "sealed")
                    self.pull("net", "--where", WHERE)
                newest = self.versions()[-1]
                wait_until(lambda: bool(self.every) and self.every[-1].version == newest, "the consumer of every version", 60)
            sink.close()
        self.pull("latest")

    def compare(self) -> None:
        versions = self.versions()
        assert len(versions) >= 3
        assert [report.version for report in self.every] == versions
        assert self.cli.json("log", "status", DATASET)["slots"][0]["unbatched_rows"] == 0
        assert self.differing("every", NEWEST) == 0
        assert self.differing("latest", NEWEST) == 0
        assert self.differing("net", f"SELECT * FROM ({NEWEST}) WHERE {WHERE}") == 0
        assert self.index.count(NEWEST) == 63_666

    def promote_and_roll_back(self) -> None:
        before = self.versions()
        assert self.pull("shop", "--channel", "production")["mode"] == "up-to-date"
        assert self.differing("shop", "FROM main") == 0
        self.cli.ok("promote", DATASET, before[-1], "--to", "production", "--expect", 1)
        assert self.pull("shop", "--channel", "production")["version"] == before[-1]
        assert self.differing("shop", NEWEST) == 0
        self.cli.ok("rollback", DATASET, "production")
        assert self.pull("shop", "--channel", "production")["reset"] == "rolled-back"
        assert self.differing("shop", "FROM main") == 0
        assert (self.pull("latest")["mode"], self.versions()) == ("up-to-date", before)

    def look_back(self) -> None:
        """What one package was, version by version."""
        told = self.cli.json("history", DATASET, PACKAGE)
        wanted = self.index.engine.execute(f"SELECT version FROM {OF_ALL} WHERE package = '{PACKAGE}' ORDER BY seen").fetchall()
        assert [moment["row"]["version"] for moment in told] == [row[0] for row in wanted]
        assert [moment["change"] for moment in told] == ["added", "changed", "changed"]
        assert [moment["row"]["seen"] for moment in told] == list(SEEN.values())

    def erase(self) -> None:
        """The delete goes out as a version; those who need it still are named, and once they have it, nothing is left."""
        self.derive()
        assert {"data", "derived"} <= self.traces()
        first = self.cli("erase", DATASET, PACKAGE)
        assert (first.code, "the delete stays for" in first.out) == (Exit.FAILED, True)
        newest = self.versions()[-1]
        self.cli.ok("promote", DATASET, newest, "--to", "production")
        assert self.pull("shop", "--channel", "production")["version"] == newest
        assert [self.pull(*who)["deletes"] for who in (("latest",), ("net", "--where", WHERE))] == [1, 1]
        with broker.connect() as b:
            sink = broker.sinks.DuckDB(self.shell.folder / "every.duckdb", table="packages")
            assert b.replica(DATASET, name="every", sink=sink).sync().deletes == 1
            sink.close()
        assert self.cli.json("erase", DATASET, PACKAGE)["done"]

    def derive(self) -> None:
        """A file made for one selection, which has the package too: a worker makes it, and asks no source."""
        (self.shell.folder / "broker.toml").write_text(SOURCE)
        chosen = ("--where", DERIVED, "--format", "csv", "--max-staleness", 3600)
        asked = self.cli.json("request", DATASET, "--target", "reports", *chosen)["request"]
        self.shell.ok("worker", "--burst")
        assert self.cli.json("requests", "show", asked)["state"] == "completed"

    def traces(self) -> set[str]:
        """Folders of the store in which some object has the package's name or a row of it, as bytes or as Parquet."""
        hashes = self.index.engine.execute(f"SELECT sha256 FROM {OF_ALL} WHERE package = '{PACKAGE}'").fetchall()
        needles = [PACKAGE, *(row[0] for row in hashes)]
        settings = load()
        store = open_store(settings.store, settings)
        objects = {info.key: b"".join(store.get(info.key)) for info in store.list("")}
        kinds = {key.split("/")[3] for key in objects if key.startswith(DATASET)}
        assert kinds >= {"data", "log", "notify", "checkpoint"}, kinds
        return {key.removeprefix(f"{DATASET}/").split("/")[0] for key, data in objects.items() if says(data, key, needles)}


def says(data: bytes, key: str, needles: list[str]) -> bool:
    if any(needle.encode() in data for needle in needles):
        return True
    table = pq.read_table(io.BytesIO(data)) if key.endswith(".parquet") else pa.table({})
    return any(
        pc.any(pc.match_substring(column.cast(pa.string()), needle)).as_py() for column in table.columns for needle in needles
    )


@pytest.fixture
def story(shell: Shell, index: Index, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Story:
    """Checkpoints come soon, so that there are some to look into."""
    monkeypatch.setenv("BROKER_CHECKPOINT_EVERY", "2")
    shell.environment["BROKER_CHECKPOINT_EVERY"] = "2"
    return Story(shell, Cli(capsys), index)


@pytest.mark.slow(90)
@pytest.mark.timeout(600)
def test_debian_from_its_first_publication_to_the_erasure_of_a_package(story: Story) -> None:
    others = f"SELECT * FROM {OF_ALL} WHERE package <> '{PACKAGE}' AND contains(concat_ws(' ', *COLUMNS(*)), '{PACKAGE}')"
    assert story.index.count(others) == 0
    story.publish()
    story.append()
    story.compare()
    story.promote_and_roll_back()
    story.look_back()
    story.erase()
    assert story.traces() == set()
    for name in ("every", "latest", "net", "shop"):
        wanted = f"SELECT * FROM ({NEWEST}) WHERE package <> '{PACKAGE}'" + (f" AND ({WHERE})" if name == "net" else "")
        assert story.differing(name, wanted) == 0
    assert story.cli.json("history", DATASET, PACKAGE) == []
