"""Configuration: where values come from, what is refused, and what never prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import InvalidSettings
from broker.settings import CONFIG_FILE, Settings, load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_arguments_win_over_variables_and_variables_over_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / CONFIG_FILE).write_text("shards = 2\nmax_attempts = 2\nflight_members = 2\n[[sources]]\nkind = 'files'\n")
    monkeypatch.setenv("BROKER_SHARDS", "3")
    monkeypatch.setenv("BROKER_MAX_ATTEMPTS", "3")
    found = load(shards=4)
    assert (found.shards, found.max_attempts, found.flight_members) == (4, 3, 2)


@pytest.mark.parametrize("content", [b"shards = ", b"redis = '\xff'"], ids=["not TOML", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_named(folder: Path, content: bytes) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(InvalidSettings, match=CONFIG_FILE):
        load()


def test_a_field_out_of_bounds_is_named(folder: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"orphan_seconds.*BROKER_ORPHAN_SECONDS"):
        load(orphan_seconds=1)


@pytest.mark.parametrize("orphan_seconds", [120, 600, 86_400])
def test_a_file_is_too_old_to_be_reserved_long_before_it_may_be_swept(folder: Path, orphan_seconds: int) -> None:
    settings = load(orphan_seconds=orphan_seconds)
    assert 1 <= settings.upload_max_age_seconds <= settings.orphan_seconds - 60


def test_no_secret_prints(folder: Path) -> None:
    url, key = "redis://me:hunter2@db:6379", "hunter2"
    settings = Settings(redis=url, rq_url=url, s3_access_key=key, s3_secret_key=key, s3_session_token=key)
    assert "hunter2" not in f"{settings!r} {settings}"
