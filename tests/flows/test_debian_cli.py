"""Debian's package index through the command line alone: snapshot, delta, replicas, filters, each against DuckDB by itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli import Shell
from tests.debian import Index
from tests.servers import RedisServer, S3Server

DATASET = "debian/catalog/packages"
WHERE = "section = 'utils'"
CONFIG = f"""
[[sources]]
dataset = "{DATASET}"
kind = "files"
glob = "feeds/*.csv.gz"
"""


@dataclass
class Place:
    """A working folder with an empty feeds folder, and where its broker lives."""

    shell: Shell
    source: Path

    @property
    def folder(self) -> Path:
        return self.shell.folder

    def feed(self, name: str, number: int) -> None:
        part = self.folder / "feeds" / ".part"
        shutil.copyfile(self.source / f"{name}.csv.gz", part)
        part.replace(self.folder / "feeds" / f"{number}-{name}.csv.gz")

    def answered(self, target: str, *options: object) -> dict[str, Any]:
        """Ask, let a worker do what there is to do, look at the answer."""
        id = self.shell.json("request", DATASET, "--target", target, *options)["request"]
        self.shell.ok("worker", "--burst")
        found: dict[str, Any] = self.shell.json("requests", "show", id)
        assert found["state"] == "completed", found
        return dict(found["completion"])


@pytest.fixture
def index(debian: Path) -> Index:
    return Index(debian)


@pytest.fixture(params=["embedded and a folder", "redis-server and rclone"])
def place(request: pytest.FixtureRequest, tmp_path: Path, debian: Path) -> Iterator[Place]:
    environment: dict[str, str] = {}
    if request.param != "embedded and a folder":
        server: RedisServer = request.getfixturevalue("redis_server")
        store: S3Server = request.getfixturevalue("s3_rclone")
        server.flush()
        environment = {"BROKER_REDIS": server.tcp_url, "BROKER_STORE": store.url(), **store.env}
    (tmp_path / "feeds").mkdir()
    (tmp_path / "broker.toml").write_text(CONFIG)
    shell = Shell(tmp_path, environment)
    shell.ok("dataset", "create", DATASET, "--key", "package")
    yield Place(shell, debian)
    if not environment:
        shell.ok("down")


@pytest.mark.slow(45)
@pytest.mark.timeout(300)
def test_snapshot_delta_and_both_replicas_equal_what_duckdb_computes(place: Place, index: Index) -> None:
    place.feed("main", 10)
    first = place.answered("search")
    assert (first["version"], first["mode"], first["rows"]) == (1, "snapshot", 63_436)
    shell, folder = place.shell, place.folder
    shell.ok("pull", DATASET, "--to", "search.duckdb")
    shell.ok("pull", DATASET, "--to", "packages/")

    place.feed("security", 20)
    second = place.answered("search", "--since", 1)
    updated = index.count("FROM security SEMI JOIN main USING (package)")
    same = index.count("FROM security INTERSECT FROM main")
    new = index.count("FROM security ANTI JOIN main USING (package)")
    assert (updated, same, new) == (2_764, 990, 230)
    counts = {file["role"]: file["rows"] for file in second["files"]}
    assert (second["version"], second["mode"], counts) == (2, "delta", {"upserts": updated - same + new})

    for to in ("search.duckdb", "packages/"):
        report = shell.json("pull", DATASET, "--to", to)
        assert (report["version"], report["reset"], report["edges"]) == (2, None, 1)
    index.engine.execute(f"ATTACH '{folder / 'search.duckdb'}' AS replica (READ_ONLY)")
    assert index.differing("FROM v2", "FROM replica.packages") == 0
    current = max((folder / "packages").glob("g-*/rows.parquet"), key=lambda path: path.stat().st_mtime_ns)
    assert index.differing("FROM v2", f"FROM '{current}'") == 0
    assert index.count("FROM replica.packages") == 63_666


@pytest.mark.slow(45)
@pytest.mark.timeout(300)
def test_a_filter_delivers_exactly_its_rows_and_what_leaves_it_is_a_delete(place: Place, index: Index) -> None:
    place.feed("main", 10)
    chosen = ("--where", WHERE, "--columns", "package,version")
    first = place.answered("search", *chosen)
    assert first["rows"] == index.count(f"SELECT * FROM v1 WHERE {WHERE}")
    shell, folder = place.shell, place.folder
    shell.ok("pull", DATASET, "--to", "utils.duckdb", *chosen)

    # A package whose section changes away: the first of utils, moved to games by a later file.
    moved = index.engine.execute(f"SELECT min(package) FROM main ANTI JOIN security USING (package) WHERE {WHERE}").fetchone()
    assert moved is not None
    place.feed("security", 20)
    index.engine.execute(f"CREATE TABLE late AS SELECT * REPLACE ('games' AS section) FROM main WHERE package = '{moved[0]}'")
    index.engine.execute(f"COPY late TO '{folder / 'feeds' / '30-late.csv.gz'}' (FORMAT csv, HEADER)")
    index.engine.execute("CREATE VIEW v3 AS FROM v2 ANTI JOIN late USING (package) UNION ALL FROM late")

    one = shell.json("request", DATASET, "--target", "search", "--since", 1, *chosen)["request"]
    two = shell.json("request", DATASET, "--target", "web", "--since", 1, "--where", "section = 'web'")["request"]
    shell.ok("worker", "--burst")
    done = [shell.json("requests", "show", id)["completion"] for id in (one, two)]
    assert [(item["version"], item["mode"]) for item in done] == [(2, "delta"), (2, "delta")]
    assert [info["version"] for info in shell.json("versions", "list", DATASET)] == [1, 2]

    paths = shell.json("request", DATASET, "--target", "search", "--since", 1, *chosen, "--max-staleness", 3600, "--to", "in")[
        "paths"
    ]
    upserts, deletes = (next(f"'{folder / path}'" for path in paths if role in path) for role in ("upserts", "deletes"))
    columns = ["package", "version"]
    changed = f"SELECT package, version FROM v3 SEMI JOIN (FROM v3 EXCEPT FROM v1) USING (package) WHERE {WHERE}"
    assert index.differing(changed, f"FROM {upserts}", columns) == 0
    assert index.count(f"FROM {deletes} WHERE package = '{moved[0]}'") == 1
    assert index.count(f"FROM {deletes} SEMI JOIN (SELECT package FROM v3 WHERE {WHERE}) USING (package)") == 0

    shell.ok("pull", DATASET, "--to", "utils.duckdb", *chosen)
    index.engine.execute(f"ATTACH '{folder / 'utils.duckdb'}' AS replica (READ_ONLY)")
    assert index.differing(f"SELECT * FROM v3 WHERE {WHERE}", "FROM replica.packages", columns) == 0
    assert [row[0] for row in index.engine.execute("DESCRIBE replica.packages").fetchall()] == columns
