"""The promises, compared with all that happens. The checker sees every process, Redis and the store at once; they do not.

Where a promise speaks of time ("before its reserve"), the checker uses the true order of events, not anybody's memory of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from broker.model.commit import GENESIS, Barrier, File, Hold, NewEdge, NewVersion, Record
from broker.rules.fold import State
from broker.rules.patch import edge_field
from broker.rules.publishing import HeadView, Lease, Reserve
from tests.simulator.redis_model import ModelRedis, Sealed
from tests.simulator.store_model import ModelStore


class Violation(AssertionError):
    """A promise was broken. `promise` names it, so that a shrunk schedule is compared with the first."""

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(f"{promise}: {what}")
        self.promise = promise


def files_of(record: Record) -> tuple[File, ...]:
    return record.body.edge.files if isinstance(record.body, NewVersion | NewEdge) else ()


def works_of(record: Record) -> set[str]:
    """Names of what may stand in the log once: productions, holds, edges."""
    match record.body:
        case NewVersion(production=production, edge=edge):
            return {f"edge {edge_field(edge.base, edge.version)}"} | ({production} if production else set())
        case Hold(name=name):
            return {name}
        case NewEdge(edge=edge):
            return {f"edge {edge_field(edge.base, edge.version)}"}
        case _:
            return set()


@dataclass(slots=True)
class Checker:
    redis: ModelRedis
    store: ModelStore
    counters: Counter[str]
    chain: list[Sealed] = field(default_factory=list)
    granted: dict[str, Lease] = field(default_factory=dict)
    fenced_bytes: set[bytes] = field(default_factory=set)
    reserved_in: dict[bytes, int] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    incarnation: int = 0
    open_since: int = 0
    seen: int = 0
    works: set[str] = field(default_factory=set)

    # --- Redis

    def restarted(self) -> None:
        self.incarnation += 1

    def granted_lease(self, lease: Lease) -> None:
        self.granted[lease.name] = lease

    def reserved(self, wish: Reserve) -> None:
        """Called for each reservation the script accepted."""
        self.reserved_in[wish.data] = self.incarnation
        if wish.lease is not None and self.granted.get(wish.lease.name) != wish.lease:
            self.fenced_bytes.add(wish.data)

    def redis_changed(self, before: int) -> None:
        """After each script: the head moved only over what is sealed, and the projection is what the log says."""
        seq = self.redis.seq
        for number in range(before + 1, seq + 1):
            if number > len(self.chain):
                raise Violation("P1", f"record {number} was published and is not sealed")
            self._files_complete(self.chain[number - 1].record)
        if seq and self.redis.server.get(self.redis.head, "sha") != self.chain[seq - 1].sha:
            raise Violation("P9", f"the head at {seq} is not what the log holds there")
        if self.open_since != self.incarnation and self.redis.current:
            self.open_since = self.incarnation
            self.counters["reconciled"] += 1

    def served(self, view: HeadView) -> None:
        """A reader gets this view."""
        if not view.current:
            return
        if view.state.seq < self.seen:
            raise Violation("P8", f"a current head shows {view.state.seq} after {self.seen} was shown")
        self.seen = view.state.seq

    # --- the store

    def landed(self, seq: int, data: bytes) -> None:
        """A record came to stand in the log, or was written again."""
        if seq <= len(self.chain):
            if self.chain[seq - 1].data != data:
                raise Violation("P2", f"sealed record {seq} changed")
            return
        sealed = Sealed.of(data)
        if seq != len(self.chain) + 1:
            raise Violation("P2", f"record {seq} was sealed behind {len(self.chain)}")
        if sealed.record.seq != seq or sealed.record.previous != (self.chain[-1].sha if self.chain else GENESIS):
            raise Violation("P2", f"record {seq} does not name the one before")
        self._rights(sealed)
        self._files_complete(sealed.record)
        works = works_of(sealed.record)
        if works & self.works:
            raise Violation("P9", f"{sorted(works & self.works)} is in the log twice")
        self.works |= works
        self.chain.append(sealed)

    def _rights(self, sealed: Sealed) -> None:
        if sealed.data in self.fenced_bytes:
            raise Violation("P3", f"record {sealed.record.seq} was reserved under a lease that somebody else had taken over")
        if isinstance(sealed.record.body, Barrier) or sealed.record.seq == 1:
            return  # the first record needs no right: put-if-absent alone decides who creates
        born = self.reserved_in.get(sealed.data)
        if born is None:
            raise Violation("P3", f"record {sealed.record.seq} was sealed without a reservation")
        if born < self.open_since:
            raise Violation("P3", f"record {sealed.record.seq} of incarnation {born} sealed after {self.open_since} opened")

    def _files_complete(self, record: Record) -> None:
        for file in files_of(record):
            stored = self.store.files.get(file.key)
            if stored is None or stored.bytes != file.bytes:
                raise Violation("P1", f"{file.key} of record {record.seq} is missing or not whole")

    # --- writers and the end

    def acknowledge(self, work: str, state: State) -> None:
        """A commit returned to its caller."""
        if work not in self.works or state.seq > len(self.chain):
            raise Violation("P9", f"{work} was acknowledged and is not in the log")
        self.acknowledged.add(work)
        self.counters["acknowledged"] += 1

    def rest(self) -> None:
        """Everything stands still: log, store and projection agree."""
        for number, sealed in enumerate(self.chain, 1):
            if self.store.log.get(number) != sealed.data:
                raise Violation("P2", f"record {number} changed")
            self._files_complete(sealed.record)
        if len(self.store.log) != len(self.chain):
            raise Violation("P2", "the log has a gap")
        lost = self.acknowledged - self.works
        if lost:
            raise Violation("P9", f"acknowledged and lost: {sorted(lost)}")
