"""A streaming write to S3 of unknown length: small objects are one PUT, larger ones parts sent while the writer goes on."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self

from broker.errors import BrokerError, Invalid
from broker.stores.port import ObjectInfo

PARTS_IN_FLIGHT: Final = 2  # beside the one being filled: memory is three parts, and one slow part does not stop the writer
MAX_PARTS: Final = 10_000  # S3's limit


class Parts(Protocol):
    """The five requests of a write; those of parts may be repeated, `put_whole` and `complete` are sent once."""

    def put_whole(self, key: str, data: bytearray) -> ObjectInfo: ...

    def begin(self, key: str) -> str: ...

    def put_part(self, key: str, upload_id: str, number: int, data: bytearray) -> str:
        """The part's ETag."""
        ...

    def complete(self, key: str, upload_id: str, etags: list[str]) -> float:
        """Seconds since the epoch by the store's clock."""
        ...

    def drop(self, key: str, upload_id: str) -> None: ...


class PartedUpload:
    """`write` fills a part; full ones go to background threads, and `write` blocks while two are under way."""

    def __init__(self, parts: Parts, key: str, part_bytes: int) -> None:
        self._parts, self._key, self._part_bytes = parts, key, part_bytes
        self._part = bytearray()
        self._bytes = 0
        self._upload_id = ""
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[str]] = deque()
        self._etags: list[str] = []
        self._ended = False

    def write(self, data: bytes | memoryview, /) -> int:
        self._check_open()
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            if len(self._part) == self._part_bytes:
                self._send()
            taken = view[done : done + self._part_bytes - len(self._part)]
            self._part += taken
            done += len(taken)
        self._bytes += done
        return done

    def commit(self) -> ObjectInfo:
        self._check_open()
        if not self._upload_id:
            self._ended = True
            return self._parts.put_whole(self._key, self._part)
        self._send()
        self._collect(leave=0)
        self._ended = True  # from here the object may exist, so nothing is taken back, whatever the answer
        self._stop_threads()
        return ObjectInfo(self._key, self._bytes, self._parts.complete(self._key, self._upload_id, self._etags))

    def abort(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._stop_threads()  # first, or a part still under way would stay behind and be paid for
        if self._upload_id:
            with suppress(BrokerError):
                self._parts.drop(self._key, self._upload_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()

    def _send(self) -> None:
        number = len(self._etags) + len(self._waiting) + 1
        if number > MAX_PARTS:
            raise Invalid("object too large", of=self._key, why=f"more than {MAX_PARTS} parts", hint="Raise s3_part_bytes")
        if self._threads is None:
            self._upload_id = self._parts.begin(self._key)
            self._threads = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="s3-part")
        self._collect(leave=PARTS_IN_FLIGHT - 1)
        self._waiting.append(self._threads.submit(self._parts.put_part, self._key, self._upload_id, number, self._part))
        self._part = bytearray()

    def _collect(self, leave: int) -> None:
        """Wait for the oldest parts; an error of theirs is raised here, in the writer."""
        while len(self._waiting) > leave:
            self._etags.append(self._waiting.popleft().result())

    def _stop_threads(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _check_open(self) -> None:
        if self._ended:
            raise Invalid("the upload has ended", of=self._key)
