"""Objects on their way in: a verified local file for each, downloaded once into a private folder of bounded size."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from broker.columnar.scratch import appearing
from broker.errors import Corrupt, NotFound
from broker.model.commit import File
from broker.stores.port import ObjectStore

CHUNK_BYTES: Final = 1 << 20
CACHE_BYTES: Final = 8 << 30  # a plan in use may exceed it; what no plan uses goes first
KNOWN_FILES: Final = 10_000  # paths of this machine's own files; one that is forgotten is hashed again
LOCATE_SECONDS: Final = 60
GLOB_CHARACTERS: Final = frozenset("*?[]{}")


class Fetcher:
    """Hands out paths whose bytes match length and SHA-256. Safe for several threads.

    A store on this machine's disk gives its own path, hashed once per process and file; others are downloaded to `folder`.
    """

    def __init__(self, store: ObjectStore, folder: Path, limit_bytes: int = CACHE_BYTES) -> None:
        self._store, self._folder, self._limit = store, folder, limit_bytes
        self._lock = threading.Lock()
        self._own: OrderedDict[tuple[str, str], Path] = OrderedDict()
        self._cached: OrderedDict[str, int] = OrderedDict()  # name -> bytes, least recently used first
        self._pins: Counter[str] = Counter()
        self.verified_bytes = 0

    def fetch(self, file: File) -> Path:
        """Raises Corrupt, NotFound, Unavailable. A download stays at least until the next call."""
        path = self._path(file)
        self._trim(keep=file.sha256)
        return path

    @contextmanager
    def held(self, files: Sequence[File]) -> Iterator[dict[str, Path]]:
        """Paths by store key; none of them goes before the block ends."""
        names = [file.sha256 for file in files]
        with self._lock:
            self._pins.update(names)
        try:
            yield {file.key: self.plain(self._path(file)) for file in files}
        finally:
            with self._lock:
                self._pins -= Counter(names)  # what nobody holds any more goes
            self._trim()

    def plain(self, path: Path) -> Path:
        """The path, or a link to it where its name would be a pattern to DuckDB."""
        if not GLOB_CHARACTERS & set(str(path)):
            return path
        link = self._folder / hashlib.sha256(str(path).encode()).hexdigest()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            link.symlink_to(path.absolute())
        return link

    def verify(self, file: File) -> None:
        """Re-read the object from the store. Raises Corrupt when length or SHA-256 differ, NotFound."""
        self._check(self._store.get(file.key), file)

    def _path(self, file: File) -> Path:
        if known := self._own.get((file.key, file.sha256)):
            return known
        found = self._store.locate(file.key, LOCATE_SECONDS)
        if not isinstance(found, Path):
            return self._download(file)
        self._check(_chunks(found, file.key), file)
        with self._lock:
            self._own[file.key, file.sha256] = found
            if len(self._own) > KNOWN_FILES:
                self._own.popitem(last=False)
        return found

    def _download(self, file: File) -> Path:
        path = self._folder / file.sha256
        with self._lock:
            if file.sha256 in self._cached:
                self._cached.move_to_end(file.sha256)
                return path
        with appearing(path) as scratch:
            self._check(self._store.get(file.key), file, scratch.write)
        with self._lock:
            self._cached[file.sha256] = file.bytes
        return path

    def _check(self, chunks: Iterable[bytes], file: File, take: Callable[[bytes], object] = len) -> None:
        """Pass the bytes on to `take` and compare them with what the file's record says."""
        digest, size = hashlib.sha256(), 0
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            self.verified_bytes += len(chunk)
            take(chunk)
        if size != file.bytes or digest.hexdigest() != file.sha256:
            raise Corrupt(
                "the object is not what was sealed", of=file.key,
                why=f"{size} bytes with SHA-256 {digest.hexdigest()[:16]}…, sealed were {file.bytes} with {file.sha256[:16]}…",
                hint="Run `broker versions verify`; a reset or an older version may still serve",
            )  # fmt: skip

    def _trim(self, keep: str = "") -> None:
        with self._lock:
            excess = sum(self._cached.values()) - self._limit
            for name in [name for name in self._cached if name != keep and self._pins[name] <= 0]:
                if excess <= 0:
                    return
                excess -= self._cached.pop(name)
                (self._folder / name).unlink(missing_ok=True)


def _chunks(path: Path, key: str) -> Iterator[bytes]:
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except FileNotFoundError:
        raise NotFound("no such object", of=key) from None
