"""A store between the code under test and a real one that fails when a plan says so.

    store = FaultyStore(MemoryStore(), at("put_if_absent", 1, Fault.UNKNOWN_DONE))

A plan is called before each operation with (method, key, nth), nth counting from 1 the calls of that method, and answers a
Fault or None. An upload asks the plan at its commit, as method "upload". The probe's checksum trial is not offered, so code
over a FaultyStore has to read back.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from broker.errors import Corrupt, OutcomeUnknown, Unavailable
from broker.stores.port import ObjectInfo, ObjectStore, Upload

Result = TypeVar("Result")


class Fault(Enum):
    """What goes wrong with one call. Those about bodies apply to `get`, and to writes where they say so."""

    REFUSED = auto()  # 503 before anything happened: Unavailable, for reads and writes
    UNKNOWN_LOST = auto()  # a write answered 500 or timed out, and did not happen: OutcomeUnknown
    UNKNOWN_DONE = auto()  # a write timed out after success: OutcomeUnknown
    UNKNOWN_LATE = auto()  # a write timed out and happens when the test calls `land()`: OutcomeUnknown
    CUT = auto()  # get: half the body, then Corrupt, as a store that checks Content-Length
    TRUNCATED = auto()  # get: half the body and a clean end; a write: half the bytes are stored
    OTHER_BYTES = auto()  # get: one bit differs; a write: one bit differs in what is stored
    STALE = auto()  # list: nothing, stat: None, whatever is there


Plan = Callable[[str, str, int], Fault | None]


def at(method: str, nth: int, fault: Fault) -> Plan:
    """The plan in which exactly the nth call of `method` fails."""
    return lambda called, _key, count: fault if (called, count) == (method, nth) else None


def matching(method: str, part: str, fault: Fault) -> Plan:
    """The plan in which every call of `method` for a key that contains `part` fails."""
    return lambda called, key, _nth: fault if called == method and part in key else None


def never(method: str, key: str, nth: int) -> Fault | None:
    """The plan without faults; assign `store.plan` to begin or end them."""
    return None


class FaultyStore:
    """ObjectStore that delegates to `inner`. `calls` counts methods; `hits` counts (method, fault): a test may forbid zeros."""

    def __init__(self, inner: ObjectStore, plan: Plan = never) -> None:
        self.inner, self.plan = inner, plan
        self.calls: Counter[str] = Counter()
        self.hits: Counter[tuple[str, Fault]] = Counter()
        self._late: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def land(self) -> int:
        """Let the writes that were late happen now; how many."""
        with self._lock:
            late, self._late = self._late, []
        for write in late:
            write()
        return len(late)

    def upload(self, key: str) -> Upload:
        return _FaultyUpload(self, key)

    def put(self, key: str, data: bytes) -> ObjectInfo:
        return self.write("put", key, data, self.inner.put)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self.write("put_if_absent", key, data, self.inner.put_if_absent)

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        fault = self._fault("get", key)
        if fault not in {Fault.CUT, Fault.TRUNCATED, Fault.OTHER_BYTES}:
            _raise_before(fault, key)
            yield from self.inner.get(key, start, length)
            return
        yield _spoil(b"".join(self.inner.get(key, start, length)), fault)
        if fault is Fault.CUT:
            raise Corrupt("the store sent fewer bytes than it announced", of=key, why="injected")

    def stat(self, key: str) -> ObjectInfo | None:
        fault = self._fault("stat", key)
        _raise_before(fault, key)
        return None if fault is Fault.STALE else self.inner.stat(key)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        fault = self._fault("list", prefix)
        _raise_before(fault, prefix)
        if fault is not Fault.STALE:
            yield from self.inner.list(prefix, after)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.write("delete", key, b"", lambda each, _: self.inner.delete([each]))

    def locate(self, key: str, seconds: int) -> str | Path:
        _raise_before(self._fault("locate", key), key)
        return self.inner.locate(key, seconds)

    def write(self, method: str, key: str, data: bytes, act: Callable[[str, bytes], Result]) -> Result:
        """One write through the plan."""
        fault = self._fault(method, key)
        if fault is Fault.REFUSED:
            _raise_before(fault, key)
        if fault is Fault.UNKNOWN_LATE:
            with self._lock:
                self._late.append(lambda: act(key, data))
        if fault is Fault.UNKNOWN_DONE:
            act(key, data)
        if fault in {Fault.UNKNOWN_LOST, Fault.UNKNOWN_LATE, Fault.UNKNOWN_DONE}:
            raise OutcomeUnknown("object may have been written", of=key, why="injected", hint="Read it back")
        return act(key, _spoil(data, fault))

    def _fault(self, method: str, key: str) -> Fault | None:
        with self._lock:
            self.calls[method] += 1
            fault = self.plan(method, key, self.calls[method])
            if fault is not None:
                self.hits[method, fault] += 1
            return fault


class _FaultyUpload:
    """Holds the bytes until commit, where the plan decides."""

    def __init__(self, store: FaultyStore, key: str) -> None:
        self._store, self._key, self._data = store, key, bytearray()
        self._ended = False

    def write(self, data: bytes | memoryview, /) -> int:
        assert not self._ended, "the upload has ended"
        view = memoryview(data).cast("B")
        self._data += view
        return len(view)

    def commit(self) -> ObjectInfo:
        assert not self._ended, "the upload has ended"
        self._ended = True
        return self._store.write("upload", self._key, bytes(self._data), self._store.inner.put)

    def abort(self) -> None:
        self._ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()


def _raise_before(fault: Fault | None, key: str) -> None:
    if fault in {Fault.REFUSED, Fault.UNKNOWN_LOST, Fault.UNKNOWN_DONE, Fault.UNKNOWN_LATE}:
        raise Unavailable("the object store does not answer", of=key, why="injected")


def _spoil(data: bytes, fault: Fault | None) -> bytes:
    if fault in {Fault.CUT, Fault.TRUNCATED}:
        return data[: len(data) // 2]
    if fault is Fault.OTHER_BYTES:
        return bytes([data[0] ^ 1]) + data[1:] if data else b"\0"
    return data
