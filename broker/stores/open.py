"""From a URL to a store: the one place that knows all kinds."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from broker.errors import InvalidSettings
from broker.settings import Settings
from broker.stores.local import LocalStore
from broker.stores.memory import MemoryStore
from broker.stores.port import ObjectStore


def open_store(url: str, settings: Settings, *, conditional: bool = True) -> ObjectStore:
    """The store at a plain path, file://, s3:// or memory:// URL. Raises InvalidSettings for anything else.

    `conditional` is the probe's verdict on put-if-absent (`Promise.conditional_put`); only S3 needs to be told.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "":
            return LocalStore(_folder(url))
        case "file" if parts.netloc in {"", "localhost"}:
            return LocalStore(_folder(unquote(parts.path)))
        case "memory":
            return MemoryStore.named(parts.netloc + parts.path)
        case "s3":
            from broker.stores.s3 import S3Store  # noqa: PLC0415  # minio: who has no S3 does without

            return S3Store(url, settings, conditional=conditional)
    hint = "Write /folder, file:///folder, s3://bucket/prefix or memory://name"
    raise InvalidSettings("unknown kind of store", of="store", why=f"scheme {parts.scheme!r}", hint=hint)


def _folder(path: str) -> Path:
    if not path:
        raise InvalidSettings("no folder for the store", of="store", hint="Write file:///absolute/folder")
    return Path(path).expanduser()
