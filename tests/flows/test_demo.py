"""`broker demo` shows the main job and ends with the truth: equal, or a non-zero exit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker import demo, demo_changes
from broker.cli.exits import Exit
from broker.demo_data import generated_feeds
from broker.sinks import DuckDB
from tests.cli import Cli, Shell

STEPS = 18


def test_the_demo_runs_through_and_finds_replica_and_source_equal(tmp_path: Path) -> None:
    done = Shell(tmp_path)("demo", "--generated", seconds=110)
    assert done.code == 0, done.out + done.err
    assert [int(n) for n in re.findall(r"^(\d+)\. ", done.out, re.MULTILINE)] == list(range(1, STEPS + 1))
    assert "Both were answered from 1 production" in done.out
    assert "Terminal events of the request: 1. Versions: 1, 2, 3." in done.out
    assert "20200 rows in the source; missing in the replica: 0; in the replica only: 0" in done.out
    assert "broker.channel.promoted: the shop serves version" in done.out
    assert "(reset: rolled-back)" in done.out
    assert re.search(r"^   \d+ rows, \d+ stars; production, live: equal$", done.out, re.MULTILINE)
    assert done.out.splitlines()[-1].startswith("PASSED")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("equal", "code"), [(True, Exit.OK), (False, Exit.FAILED)])
def test_a_difference_is_a_failure(
    equal: bool, code: Exit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.cli.demo.show", lambda _tell, **_options: equal)
    done = Cli(capsys)("demo", "--json")
    assert (done.code, done.data) == (code, {"equal": equal})


def test_the_comparison_sees_a_row_too_many_a_row_too_few_and_a_changed_one(tmp_path: Path, redis_url: str) -> None:
    from broker.connect import connect

    feeds = generated_feeds(tmp_path / "made")
    (tmp_path / "feeds").mkdir()
    (tmp_path / "feeds" / "10.csv.gz").write_bytes(feeds.third.read_bytes())
    names, source = demo._source_rows([feeds.third])
    rows = [dict(zip(names, (cell or None for cell in row), strict=True)) for row in source.values()]
    rows[0] |= {"version": "another"}
    rows[1] |= {"package": "package-99999"}
    with connect(redis=redis_url, store=str(tmp_path / "store")) as broker:
        broker.dataset(demo.DATASET, key=["package"]).publish(rows[:-1])
        sink = DuckDB(tmp_path / "search.duckdb", table="packages")
        broker.replica(demo.DATASET, name=demo.TARGET, sink=sink).sync()
        sink.close()
    assert demo.difference(tmp_path) == (3, 2, len(rows))


def test_the_plain_computation_takes_the_newest_change_of_each_package() -> None:
    changes = [
        {"package": "b", "at": 2, "stars": 2},
        {"package": "a", "at": 1, "stars": 5},
        {"package": "b", "at": 1, "stars": 9},
    ]
    assert demo_changes.standing(changes) == [changes[1], changes[0]]
    made = demo_changes.made_changes()
    assert len(made) == 5_500
    assert [row["at"] for row in made] != sorted(row["at"] for row in made)
    assert made == demo_changes.made_changes()


def test_the_made_up_catalogue_is_the_same_every_time(tmp_path: Path) -> None:
    one, two = generated_feeds(tmp_path / "one"), generated_feeds(tmp_path / "two")
    for first, second in ((one.first, two.first), (one.second, two.second), (one.third, two.third)):
        assert demo._source_rows([first]) == demo._source_rows([second])
    names, changes = demo._source_rows([one.first, one.second])
    assert (names[0], len(changes)) == ("package", 20_200)
