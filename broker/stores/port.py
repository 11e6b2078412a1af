"""The object store port: what every store must do, and what it may promise.

Keys are relative UTF-8 paths with `/` (`tenant/domain/dataset/log/…`), given by the broker alone, never by a user.
Driver errors leave an implementation only as `broker.errors` types: `Unavailable` (nothing happened, try again),
`OutcomeUnknown` (a write may have happened), `NotFound`, `Corrupt`, `Terminal` for the rest (access denied, no bucket).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from broker.errors import Invalid

MAX_KEY_BYTES = 1024
"""S3's limit, which every store keeps so that data can move between them."""


def check_key(key: str) -> None:
    """Refuse what some store cannot hold, or what would leave its folder. Raises Invalid."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise Invalid("bad object key", of=repr(key), why="not UTF-8") from None
    if not key or size > MAX_KEY_BYTES or "\0" in key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise Invalid(
            "bad object key", of=repr(key), why=f"not 1 to {MAX_KEY_BYTES} bytes of plain parts joined by single slashes"
        )


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object. `modified` is seconds since the epoch by the store's own clock."""

    key: str
    bytes: int
    modified: float


class Upload(Protocol):
    """A write in progress. Nothing is visible before `commit` returns; an exception inside the `with` aborts."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Append; blocks when the store is slower than the writer, so memory stays bounded."""
        ...

    def commit(self) -> ObjectInfo:
        """Make the whole object visible and durable at once. Raises OutcomeUnknown when the store did not answer."""
        ...

    def abort(self) -> None:
        """Drop what was written; idempotent, never raises, and does nothing after `commit`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Abort unless committed."""
        ...


class ObjectStore(Protocol):
    """Eight methods; all are safe to call from several threads."""

    def upload(self, key: str) -> Upload:
        """Open a streaming write of unknown length. Atomic at `commit`; a later commit to one key replaces the object."""
        ...

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Write a small object whole, replacing what is there. Atomic and durable when it returns; idempotent."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """True: this call created the object. False: something is there already (perhaps this caller's own earlier try).

        Atomic against all writers on a store whose probe says so; otherwise best effort (GET before, GET after).
        Raises OutcomeUnknown on a time-out: read back, never assume.
        """
        ...

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Stream the bytes [start, start+length), cut at the object's end: a start beyond it gives nothing.

        Raises NotFound before the first chunk, Corrupt on a body shorter than the store announced.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """None when nothing is there."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key begins with `prefix` and sorts behind `after`, in UTF-8 byte order. A hint: it may lag."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are no error. Idempotent."""
        ...

    def locate(self, key: str, seconds: int) -> str | Path:
        """Where a client reads the object without the broker: a Path, or a presigned GET URL valid `seconds`."""
        ...


@runtime_checkable
class ChecksumTrial(Protocol):
    """Outside the eight methods, for the probe alone: a store whose checksums can be put to the test."""

    def refuses_wrong_checksum(self, key: str) -> bool:
        """Write `key` with a checksum that does not fit its bytes; True: the store refused, so uploads need no read-back."""
        ...
