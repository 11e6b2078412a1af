"""What a store can promise, found by trying it: never inferred from a product's name, version or headers.

The trials follow section 2 of the design: racing writers, one's own retry, a foreign writer, a wrong payload checksum,
ranges, and whether reads and lists see writes at once. About 20 requests; everything is written under one fresh folder below
`prefix` and deleted again.
"""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from broker.errors import BrokerError, Corrupt, NotFound, OutcomeUnknown, Unsupported
from broker.model.finding import Finding, Verdict
from broker.stores.port import ChecksumTrial, ObjectStore

RACERS: Final = 8
CLOCK_GRAIN_SECONDS: Final = 1.0  # HTTP dates count whole seconds


@dataclass(frozen=True, slots=True)
class Promise:
    """What the trials showed.

    conditional_put: put_if_absent is atomic against other writers.
    refuses_wrong_checksum: a body damaged on its way is refused, so an upload needs no read-back.
    read_after_write, list_after_write: get, stat and list see a write (and a replacement, and a delete) at once.
    ranges: a part of an object can be read.
    clock_skew_seconds: the store's clock minus ours; 0 within the clock's grain.
    """

    conditional_put: bool
    refuses_wrong_checksum: bool
    read_after_write: bool
    list_after_write: bool
    ranges: bool
    clock_skew_seconds: float

    @property
    def seal_level(self) -> Literal["atomic", "single-writer"]:
        """`single-writer`: the log cannot be sealed against a second writer once Redis has lost its memory."""
        return "atomic" if self.conditional_put and self.read_after_write else "single-writer"

    def explain(self) -> list[Finding]:
        """Lines for a person: first the level, then each trait with what follows from it. What only costs time is no note."""
        single = "single writer; Redis' leases protect the log, and nothing does once Redis has lost its memory"
        return [
            _line("seal", self.seal_level == "atomic", "atomic; the store itself refuses a second writer", single, "note"),
            _line("put-if-absent", self.conditional_put, "atomic", "ignored: read before and after each seal"),
            _line("wrong checksum", self.refuses_wrong_checksum, "refused", "accepted: every upload is read back"),
            _line("read after write", self.read_after_write, "at once", "delayed: do not use this store", "broken"),
            _line("list after write", self.list_after_write, "at once", "delayed: the log is probed key by key"),
            _line("byte ranges", self.ranges, "served", "not served: whole files are fetched"),
            Finding("ok", f"clock: {self.clock_skew_seconds:+.0f} s from this machine's"),
        ]

    def caveats(self) -> list[Finding]:
        """Those that name a promise the broker cannot keep here."""
        return [finding for finding in self.explain() if finding.verdict != "ok"]


def probe(store: ObjectStore, prefix: str = "=probe") -> Promise:
    """Try `store` under `prefix` and clean up. Raises what the store raises when it cannot be written at all."""
    folder = f"{prefix.rstrip('/')}/{uuid.uuid4().hex}"
    used = [f"{folder}/{name}" for name in ("plain", "own", "race", "checksum")]
    plain, own, race, checksum = used
    try:
        skew = _clock_skew(store, plain)
        return Promise(
            conditional_put=_refuses_second(store, own) and _race_has_one_winner(store, race),
            refuses_wrong_checksum=_refuses_wrong_checksum(store, checksum),
            read_after_write=_reads_what_it_wrote(store, plain),
            list_after_write=_lists_what_it_wrote(store, folder, plain),
            ranges=_serves_ranges(store, plain),
            clock_skew_seconds=skew,
        )
    finally:
        with suppress(BrokerError):
            store.delete(used)


def _line(trait: str, good: bool, yes: str, no: str, bad: Verdict = "ok") -> Finding:
    """`bad`: the verdict where it is not `good`."""
    return Finding("ok", f"{trait}: {yes}") if good else Finding(bad, f"{trait}: {no}")


def _read(store: ObjectStore, key: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join(store.get(key, start, length))


def _clock_skew(store: ObjectStore, key: str) -> float:
    """The first write of the probe: what forbids it ends the probe."""
    before = time.time()
    modified = store.put(key, b"0123456789").modified
    after = time.time()
    within = before - CLOCK_GRAIN_SECONDS <= modified <= after + CLOCK_GRAIN_SECONDS
    return 0.0 if within else modified - (before + after) / 2


def _refuses_second(store: ObjectStore, key: str) -> bool:
    """One's own retry with the same bytes, then a foreign writer with others: both are told False and change nothing."""
    created = store.put_if_absent(key, b"mine")
    repeated = store.put_if_absent(key, b"mine")
    foreign = store.put_if_absent(key, b"theirs")
    return created and not repeated and not foreign and _read(store, key) == b"mine"


def _race_has_one_winner(store: ObjectStore, key: str) -> bool:
    """At most one True, and the object is the winner's. Without a True the object must be of one whose outcome is unknown."""
    start = threading.Barrier(RACERS)

    def race(number: int) -> bool | None:
        start.wait()
        try:
            return store.put_if_absent(key, str(number).encode())
        except OutcomeUnknown:  # AWS answers 409 while another's fate is open
            return None

    with ThreadPoolExecutor(RACERS, thread_name_prefix="probe") as threads:
        outcomes = list(threads.map(race, range(RACERS)))
    may_have_won = [number for number, won in enumerate(outcomes) if won] or [
        n for n, won in enumerate(outcomes) if won is None
    ]
    return outcomes.count(True) <= 1 and _read(store, key) in {str(number).encode() for number in may_have_won}


def _refuses_wrong_checksum(store: ObjectStore, key: str) -> bool:
    """A store that offers no trial has shown nothing."""
    return isinstance(store, ChecksumTrial) and store.refuses_wrong_checksum(key) and store.stat(key) is None


def _reads_what_it_wrote(store: ObjectStore, key: str) -> bool:
    for data in (b"abcdefghij", b"0123456789"):
        store.put(key, data)
        found = store.stat(key)
        if found is None or found.bytes != len(data) or _read(store, key) != data:
            return False
    return True


def _lists_what_it_wrote(store: ObjectStore, folder: str, key: str) -> bool:
    """A key appears in its folder's list at once, and disappears at once."""
    gone = f"{folder}/gone"
    store.put(gone, b"x")
    shown = {info.key for info in store.list(f"{folder}/")}
    store.delete([gone])
    left = {info.key for info in store.list(f"{folder}/")}
    return {key, gone} <= shown and gone not in left


def _serves_ranges(store: ObjectStore, key: str) -> bool:
    try:
        return _read(store, key, 3, 4) == b"3456" and _read(store, key, 8) == b"89"
    except (Unsupported, Corrupt, NotFound):
        return False
