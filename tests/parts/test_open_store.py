"""From a URL to a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import InvalidSettings
from broker.settings import load
from broker.stores.local import LocalStore
from broker.stores.memory import MemoryStore
from broker.stores.open import open_store
from broker.stores.s3 import S3Store

KEYS = {"s3_access_key": "k", "s3_secret_key": "s"}


def test_each_scheme_opens_its_store(tmp_path: Path) -> None:
    assert isinstance(open_store("memory://x", load()), MemoryStore)
    assert isinstance(open_store("s3://bucket/p?endpoint=http://127.0.0.1:1", load(**KEYS)), S3Store)
    for url in (str(tmp_path / "a b"), f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        store = open_store(url, load())
        assert isinstance(store, LocalStore)
        assert store.root == tmp_path / "a b"


def test_a_named_memory_store_is_shared_and_can_be_forgotten() -> None:
    open_store("memory://shared", load()).put("k", b"x")
    assert open_store("memory://shared", load()).stat("k") is not None
    assert open_store("memory://other", load()).stat("k") is None
    MemoryStore.forget("shared")
    assert open_store("memory://shared", load()).stat("k") is None


def test_an_unnamed_memory_store_is_private() -> None:
    open_store("memory://", load()).put("k", b"x")
    assert open_store("memory://", load()).stat("k") is None


@pytest.mark.parametrize("url", ["", "ftp://host/x", "file://host/x", "file://", "http://host"])
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(InvalidSettings):
        open_store(url, load())


def test_s3_without_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "BROKER_S3_ACCESS_KEY", "BROKER_S3_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidSettings, match="BROKER_S3_ACCESS_KEY"):
        open_store("s3://bucket", load())


def test_a_memory_stores_copies_on_disk_go_with_it() -> None:
    store = MemoryStore()
    store.put("a/k.parquet", b"x")
    place = store.locate("a/k.parquet", 60)
    assert place.name == "k.parquet"
    assert place.read_bytes() == b"x"
    del store
    assert not place.exists()


def test_the_clock_of_a_memory_store_can_be_set() -> None:
    store = MemoryStore(clock=lambda: 1_000.0)
    assert store.put("k", b"x").modified == 1_000.0
    store.clock = lambda: 2_000.0
    store.put_if_absent("k2", b"x")
    assert [info.modified for info in store.list("")] == [1_000.0, 2_000.0]
