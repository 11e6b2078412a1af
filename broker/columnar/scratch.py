"""Files on this machine's disk. Private ones go with their process, and those of a killed process with the next one."""

from __future__ import annotations

import errno
import fcntl
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from broker.errors import Overloaded, Unavailable

PREFIX: Final = "broker-work-"
LOCK: Final = "lock"
YOUNG_SECONDS: Final = 60  # a folder is made before its lock is held


class PrivateFolder:
    """A folder under `parent` (None: the system's), locked while its process lives. Making one removes abandoned ones."""

    def __init__(self, parent: Path | None) -> None:
        with disk_errors(parent or Path(tempfile.gettempdir())):
            if parent:
                parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            self._lock = (self.path / LOCK).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        _remove_abandoned(self.path.parent)

    def close(self) -> None:
        """Remove it with all it holds; idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_abandoned(parent: Path) -> None:
    for lock in parent.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), lock.open("rb") as file:  # somebody else's, or just gone
            if lock.stat().st_mtime < time.time() - YOUNG_SECONDS:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


class Scratch:
    """A private file on this machine's disk. Raises Overloaded when the disk is full, Unavailable for its other errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb")

    def write(self, data: bytes | memoryview, /) -> int:
        with disk_errors(self.path):
            return self._file.write(data)

    def close(self) -> None:
        with disk_errors(self.path):
            self._file.close()

    def abort(self) -> None:
        """Remove it, if it still has its name; never raises."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink()


@contextmanager
def appearing(path: Path) -> Iterator[Scratch]:
    """A file that stands at `path`, whole, once the block has ended well; its folder is made if needed. Raises as Scratch."""
    scratch = Scratch(path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex}"))
    try:
        yield scratch
        scratch.close()
        with disk_errors(path):
            scratch.path.replace(path)
    finally:
        scratch.abort()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Errors of the disk under `path` as Overloaded (full) and Unavailable."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = Overloaded if full else Unavailable
        raise kind(
            "a file cannot be read or written", of=str(path), why=str(error),
            hint="Make room, or name another folder; temporary files lie under BROKER_TEMP_FOLDER",
        ) from error  # fmt: skip
