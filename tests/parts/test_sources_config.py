from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import InvalidSettings, NotFound
from broker.sources import SQL, Files, load_sources

GOOD = """
redis = "redis://host"

[[sources]]
dataset = "*/catalog/offers"
kind = "sql"
url = "sqlite:///shop.db"
query = "SELECT * FROM offers"
watermark = "updated_at"
overlap_seconds = 60
full_every = "7d"

[[sources]]
dataset = "debian/catalog/packages"
kind = "files"
glob = "feeds/*.csv.gz"
format = "csv"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "broker.toml"
    path.write_text(text)
    return path


def test_each_entry_becomes_a_producer(tmp_path: Path) -> None:
    app = load_sources(written(tmp_path, GOOD))
    sql, files = app.match("shop/catalog/offers").function, app.match("debian/catalog/packages").function
    assert isinstance(sql, SQL)
    assert (sql.watermark, sql.overlap_seconds, sql.full_seconds) == ("updated_at", 60, 7 * 86_400)
    assert isinstance(files, Files)
    assert (files.glob, files.format) == (str(tmp_path / "feeds/*.csv.gz"), "csv")


@pytest.mark.parametrize(
    ("url", "meant"),
    [("sqlite:///crm.db", "sqlite:///{folder}/crm.db"), ("sqlite:////srv/crm.db", "sqlite:////srv/crm.db")],
)
def test_a_relative_database_lies_beside_the_file_that_names_it(tmp_path: Path, url: str, meant: str) -> None:
    app = load_sources(written(tmp_path, entry(kind="sql", glob="", url=url, query="SELECT 1", full_every="never")))
    [sql] = [producer.function for producer in app]
    assert isinstance(sql, SQL)
    assert (sql.url, sql.full_seconds) == (meant.format(folder=tmp_path), float("inf"))


def test_only_what_is_written_is_a_pattern_and_not_the_folder_it_lies_in(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]*"
    folder.mkdir()
    (folder / "x.csv").write_text("id\n1\n")
    [files] = [producer.function for producer in load_sources(written(folder, entry()))]
    assert isinstance(files, Files)
    assert [file.path for file in files._listed()] == [folder / "x.csv"]


def test_a_file_without_sources_gives_none(tmp_path: Path) -> None:
    assert len(load_sources(written(tmp_path, 'redis = "redis://host"'))) == 0


def entry(**fields: str) -> str:
    given = {"dataset": "a/b/c", "kind": "files", "glob": "*.csv"} | fields
    return "[[sources]]\n" + "".join(f'{name} = "{value}"\n' for name, value in given.items() if value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (entry() + entry(dataset="a/b/d", globb="x"), r"sources\[2\]\.globb"),
        (entry(glob=""), r"sources\[1\]\.glob"),
        (entry(dataset=""), r"sources\[1\]\.dataset"),
        (entry(kind="ftp"), r"sources\[1\]\.kind"),
        (entry(kind=""), r"sources\[1\]\.kind"),
        (entry(format="xml"), r"sources\[1\]\.format"),
        (entry(dataset="offers"), r"not a dataset pattern.*sources\[1\]"),
        (entry() + entry(dataset="*/b/*"), r"two patterns match one dataset.*sources\[2\]"),
        (entry(kind="sql", glob="", url="sqlite:///x", query="SELECT 1", full_every="daily"), r"sources\[1\].*full_every"),
        (entry(kind="sql", glob="", url="mysql://x", query="SELECT 1"), r"database URL.*sources\[1\]"),
        ("sources = 3", "not a list of tables"),
        ("[[sources]\n", "not TOML"),
    ],
)
def test_a_bad_entry_is_named_with_its_field(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidSettings, match=named):
        load_sources(written(tmp_path, text))


def test_a_password_never_appears_in_an_error(tmp_path: Path) -> None:
    text = entry(kind="sql", glob="", url="postgresql://reader:secret@db/x", query="SELECT 1", full_every="daily")
    with pytest.raises(InvalidSettings) as caught:
        load_sources(written(tmp_path, text))
    assert "secret" not in str(caught.value)


def test_an_absent_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"broker\.toml"):
        load_sources(tmp_path / "broker.toml")
