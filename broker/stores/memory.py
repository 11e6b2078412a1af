"""A store in this process' memory, for users' tests and for ours: exact, thread-safe, with a clock one can set."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from broker.errors import Invalid, NotFound
from broker.stores.port import ObjectInfo, Upload, check_key

CHUNK_BYTES: Final = 1 << 20


class MemoryStore:
    """ObjectStore over a dict. `clock` gives the store's time in seconds since the epoch; assign it to move time."""

    _named: ClassVar[dict[str, MemoryStore]] = {}
    _registry_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._spill: Path | None = None

    @classmethod
    def named(cls, name: str) -> MemoryStore:
        """The store `memory://name` of this process, made on first use; an empty name is a new one each time."""
        if not name:
            return cls()
        with cls._registry_lock:
            return cls._named.setdefault(name, cls())

    @classmethod
    def forget(cls, name: str) -> None:
        """Let the next `named(name)` be empty."""
        with cls._registry_lock:
            cls._named.pop(name, None)

    def upload(self, key: str) -> Upload:
        check_key(key)
        return _MemoryUpload(self, key)

    def put(self, key: str, data: bytes) -> ObjectInfo:
        check_key(key)
        with self._lock:
            return self._store(key, bytes(data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        check_key(key)
        with self._lock:
            if key in self._objects:
                return False
            self._store(key, bytes(data))
            return True

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        data = self._read(key)
        end = len(data) if length is None else min(len(data), start + length)
        for begin in range(start, end, CHUNK_BYTES):
            yield data[begin : min(begin + CHUNK_BYTES, end)]

    def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        found = self._objects.get(key)
        return ObjectInfo(key, len(found[0]), found[1]) if found else None

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix) and key > after)
        yield from (info for info in map(self.stat, keys) if info)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            check_key(key)
            with self._lock:
                self._objects.pop(key, None)

    def locate(self, key: str, seconds: int) -> Path:
        """A copy in a private temporary folder that lives as long as this store: a client needs a path, memory has none."""
        del seconds
        data = self._read(key)
        path = self._spill_folder() / uuid.uuid4().hex / key.rpartition("/")[2]
        path.parent.mkdir()
        path.write_bytes(data)
        return path

    def refuses_wrong_checksum(self, key: str) -> bool:
        """True: bytes never leave this process."""
        check_key(key)
        return True

    def _read(self, key: str) -> bytes:
        check_key(key)
        found = self._objects.get(key)
        if found is None:
            raise NotFound("no such object", of=key)
        return found[0]

    def _store(self, key: str, data: bytes) -> ObjectInfo:
        now = self.clock()
        self._objects[key] = (data, now)
        return ObjectInfo(key, len(data), now)

    def _spill_folder(self) -> Path:
        with self._lock:
            if self._spill is None:
                self._spill = Path(tempfile.mkdtemp(prefix="broker-memory-"))
                weakref.finalize(self, shutil.rmtree, self._spill, ignore_errors=True)
            return self._spill


class _MemoryUpload:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store, self._key = store, key
        self._parts: bytearray | None = bytearray()

    def write(self, data: bytes | memoryview, /) -> int:
        view = memoryview(data).cast("B")
        self._open_parts().extend(view)
        return len(view)

    def commit(self) -> ObjectInfo:
        data = bytes(self._open_parts())
        self._parts = None
        return self._store.put(self._key, data)

    def abort(self) -> None:
        self._parts = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()

    def _open_parts(self) -> bytearray:
        if self._parts is None:
            raise Invalid("the upload has ended", of=self._key)
        return self._parts
