"""A store in a local directory: atomic by rename and link, durable by fsync of the file and of its directory.

Temporary files live in `<root>/=tmp`, on the same file system, so a rename never copies. `=` cannot begin a tenant's name.
One machine's processes may share a root; NFS may lose the exclusivity of link() to its own retries, which the probe shows.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from broker.errors import (
    BrokerError,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Terminal,
    Unavailable,
    Unsupported,
)
from broker.stores.port import ObjectInfo, Upload, check_key

CHUNK_BYTES: Final = 1 << 20
TEMPORARY: Final = "=tmp"
ABANDONED_SECONDS: Final = 86_400  # a temporary file this old belongs to a process that died
KNOWN_FOLDERS: Final = 10_000  # about 1 MB of paths; beyond it the cache starts anew

_KINDS: Final[dict[int, tuple[type[BrokerError], str]]] = {
    errno.ENOSPC: (Overloaded, "Free some space on this file system"),
    errno.EDQUOT: (Overloaded, "Raise this user's disk quota"),
    errno.EACCES: (Terminal, "Give this user the right to read and write the store's folder"),
    errno.EPERM: (Terminal, "Give this user the right to read and write the store's folder"),
    errno.EROFS: (Terminal, "Mount the file system for writing"),
    errno.ENOENT: (NotFound, ""),
    errno.EEXIST: (Conflict, "A file lies where a folder is needed"),
    errno.ENOTDIR: (Conflict, "A file lies where a folder is needed"),
    errno.EISDIR: (Conflict, "A folder lies where a file is needed"),
    errno.ENAMETOOLONG: (Invalid, "Use shorter names"),
}
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """ObjectStore over the folder `root`, which is made when absent."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._folder = str(self.root)  # names are text here: a Path costs as much as the system call behind it
        self._temporary = f"{self._folder}/{TEMPORARY}"
        self._durable: set[str] = set()
        self._lock = threading.Lock()
        with _mapped(str(self.root)):
            os.makedirs(self._temporary, exist_ok=True)
            _remove_abandoned(self._temporary)

    def upload(self, key: str) -> Upload:
        return self._begin(key)

    def put(self, key: str, data: bytes) -> ObjectInfo:
        with self.upload(key) as upload:
            upload.write(data)
            return upload.commit()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._begin(key) as upload:
            upload.write(data)
            return upload.link()

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        with _mapped(key), open(self._path(key), "rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            end = end if length is None else min(end, start + length)
            while start < end:
                chunk = os.pread(file.fileno(), min(CHUNK_BYTES, end - start), start)
                if not chunk:  # objects are never changed in place, so somebody else cut it
                    raise _short(key, start, end)
                start += len(chunk)
                yield chunk

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            with _mapped(key):
                found = os.stat(self._path(key))
        except (NotFound, Conflict):
            return None
        return _info(key, found) if modes.S_ISREG(found.st_mode) else None

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder)
        with _mapped(prefix):
            yield from self._walk(folder, prefix, after)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(NotFound, Conflict), _mapped(key):
                os.unlink(self._path(key))

    def locate(self, key: str, seconds: int) -> Path:
        del seconds  # a path does not expire
        return Path(self._path(key))

    def refuses_wrong_checksum(self, key: str) -> bool:
        """True: no transport lies between write(2) and the file, and the kernel reports what it could not write."""
        check_key(key)
        return True

    def temporary(self) -> str:
        """A fresh name on the same file system."""
        return f"{self._temporary}/{os.urandom(16).hex()}"

    def target(self, key: str) -> str:
        """The key's path, its folders made and durable."""
        path = self._path(key)
        folder = os.path.dirname(path)
        if folder not in self._durable:
            with _mapped(key):
                self._make(folder)
        return path

    def forget_folders(self) -> None:
        """Somebody removed folders this process had made: look again."""
        with self._lock:
            self._durable.clear()

    def _begin(self, key: str) -> LocalUpload:
        self._path(key)
        return LocalUpload(self, key)

    def _path(self, key: str) -> str:
        check_key(key)
        if key.partition("/")[0] == TEMPORARY:
            raise Invalid("bad object key", of=key, why=f"{TEMPORARY} is the store's own")
        return f"{self._folder}/{key}"

    def _make(self, folder: str) -> None:
        """A file is durable only when every entry on the way to it is; a folder known to be so costs nothing."""
        parent = os.path.dirname(folder)
        if folder in self._durable or folder in (self._folder, parent):
            return
        self._make(parent)
        _make_folder(folder)
        sync_folder(parent)
        with self._lock:
            if len(self._durable) >= KNOWN_FOLDERS:
                self._durable.clear()
            self._durable.add(folder)

    def _walk(self, folder: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        """Depth first; a folder sorts as `name/`, which makes the order of whole keys that of their UTF-8 bytes."""
        for key, entry in _entries(self.root, folder):
            if entry.is_dir(follow_symlinks=False):
                if _may_hold(key, prefix, after):
                    yield from self._walk(key[:-1], prefix, after)
            elif key.startswith(prefix) and key > after:
                with suppress(FileNotFoundError):  # deleted while we walked
                    yield _info(key, entry.stat(follow_symlinks=False))


class LocalUpload:
    """Bytes go straight to a descriptor in `=tmp`: no buffer of ours, so big writes cost one system call."""

    def __init__(self, store: LocalStore, key: str) -> None:
        self._store, self._key = store, key
        self._path, self._moved = store.temporary(), False
        with _mapped(key):
            self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115 - `_sync` and `abort` close it

    def write(self, data: bytes | memoryview, /) -> int:
        if self._file.closed:
            raise Invalid("the upload has ended", of=self._key)
        view = memoryview(data).cast("B")
        done = 0
        with _mapped(self._key):
            while done < len(view):
                done += os.write(self._file.fileno(), view[done:])
        return done

    def commit(self) -> ObjectInfo:
        found = self._sync()
        self._settle(os.replace)
        self._moved = True
        return _info(self._key, found)

    def link(self) -> bool:
        """Commit only where nothing is yet, which link(2) decides atomically. False: something is, and it is durable."""
        self._sync()
        try:
            self._settle(os.link)
        except FileExistsError:
            with _mapped(self._key, wrote=True):
                sync_folder(os.path.dirname(self._store.target(self._key)))
            return False
        return True

    def abort(self) -> None:
        with suppress(OSError):
            self._file.close()
        if not self._moved:
            with suppress(OSError):
                os.unlink(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()

    def _sync(self) -> os.stat_result:
        if self._file.closed:
            raise Invalid("the upload has ended", of=self._key)
        with _mapped(self._key), self._file as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno())

    def _settle(self, move: Callable[[str, str], None]) -> None:
        """Give the file its name. Raises FileExistsError as it is: for link(2) that is an answer, not an error."""
        try:
            target = self._move(move)
        except FileNotFoundError:  # somebody removed the folders this process had made
            self._store.forget_folders()
            try:
                target = self._move(move)
            except FileNotFoundError as error:
                raise Unavailable(
                    "the store's folders go while they are written to", of=self._key, why=str(error), hint="Leave them alone"
                ) from error
        with _mapped(self._key, wrote=True):
            sync_folder(os.path.dirname(target))

    def _move(self, move: Callable[[str, str], None]) -> str:
        target = self._store.target(self._key)
        try:
            move(self._path, target)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            if move is os.link and error.errno in _NO_LINKS:
                raise Unsupported(
                    "the file system has no hard links",
                    of=self._key,
                    why=str(error),
                    hint="Put the store on ext4, XFS, APFS or NFS",
                ) from error
            raise to_error(error, self._key, wrote=False) from error
        return target


def _make_folder(folder: str) -> None:
    """Raises FileExistsError where something else lies there."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise


def sync_folder(folder: str) -> None:
    """Make the folder's entries durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def to_error(error: OSError, key: str, *, wrote: bool) -> BrokerError:
    """The typed form of an OS error; `wrote`: the object may be visible already, so nothing can be said of it."""
    kind, hint = _KINDS.get(error.errno or 0, (Unavailable, ""))
    if wrote:
        return OutcomeUnknown("object may have been written", of=key, why=str(error), hint="Read it back")
    return kind("local store failed" if kind is not NotFound else "no such object", of=key, why=str(error), hint=hint)


@contextmanager
def _mapped(key: str, *, wrote: bool = False) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise to_error(error, key, wrote=wrote) from error


def _entries(root: Path, folder: str) -> list[tuple[str, os.DirEntry[str]]]:
    """(key, entry) of one folder in key order, folders with a closing slash; empty when there is no such folder."""
    try:
        with os.scandir(root / folder) as found:
            base = f"{folder}/" if folder else ""
            named = [(base + entry.name + "/" * entry.is_dir(follow_symlinks=False), entry) for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((pair for pair in named if pair[0] != f"{TEMPORARY}/"), key=lambda pair: pair[0])


def _may_hold(folder: str, prefix: str, after: str) -> bool:
    """Whether keys under `folder/` can begin with `prefix` and sort behind `after`."""
    inside = folder.startswith(prefix) or prefix.startswith(folder)
    return inside and (after < folder or after.startswith(folder))


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, found.st_mtime)


def _short(key: str, got: int, expected: int) -> Corrupt:
    return Corrupt("object was cut while it was read", of=key, why=f"{got} of {expected} bytes")


def _remove_abandoned(folder: str) -> None:
    """What processes killed in the middle of a write left behind."""
    oldest = time.time() - ABANDONED_SECONDS
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    Path(entry.path).unlink()
