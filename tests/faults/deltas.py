"""The checker of a change log's dataset: reads every edge from the store, applies the deltas one by one, and compares."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

import broker
from broker.model.commit import Edge, NewEdge, NewVersion, SourceRange, parse_record
from broker.model.names import DatasetId
from broker.rules.patch import NOTHING_CONSUMED
from tests.faults.feed import SHARED, Row, block_of, deleted_keys, own_keys

LIVING: Final = ("rows", "upserts")


class Held(NamedTuple):
    """What stands under a key: its order (0 where the dataset has none), and its row, or None for a delete."""

    at: int
    row: Row | None


State = Mapping[str, Held]


@dataclass(frozen=True)
class Delta:
    """A version as it was sealed: what it took from the log, and the changes its files hold."""

    version: NewVersion
    changes: State

    @property
    def dropped(self) -> int:
        """Changes read from the log that are neither in a file nor counted as replaced by a later one of their key."""
        read = sum(source.rows for source in self.version.sources)
        return read - int(self.version.system["coalesced"]) - len(self.changes)


@dataclass
class Deltas:
    """All edges of a dataset. `states[v]`: what the deltas up to version v make, one by one."""

    ordered: bool
    deltas: list[Delta] = field(default_factory=list)
    merged: list[tuple[Edge, State]] = field(default_factory=list)
    states: list[State] = field(default_factory=lambda: [{}])

    @classmethod
    def read(cls, b: broker.Broker, dataset: DatasetId) -> Deltas:
        found = cls(bool(b.dataset(dataset).spec.order))
        for data in b.parts.catalog.records(dataset):
            body = parse_record(data, "log").body
            if isinstance(body, NewVersion | NewEdge):
                changes = found._changes(b, body.edge)
                if isinstance(body, NewEdge):
                    found.merged.append((body.edge, changes))
                    continue
                found.deltas.append(Delta(body, changes))
                found.states.append(found.applied(found.states[-1], changes))
        return found

    def applied(self, state: State, changes: State) -> State:
        """Newest order wins, and of equal ones the later commit."""
        fresh = {sku: held for sku, held in changes.items() if sku not in state or held.at >= state[sku].at}
        return self._kept({**state, **fresh})

    @property
    def final(self) -> State:
        return self.states[-1]

    def _kept(self, state: State) -> State:
        """Deletes are remembered only where an order tells what comes too late."""
        return state if self.ordered else {sku: held for sku, held in state.items() if held.row is not None}

    def _changes(self, b: broker.Broker, edge: Edge) -> State:
        """At most one change a key, over all files of the edge."""
        found: dict[str, Held] = {}
        for file in edge.files:
            for row in pq.read_table(pa.BufferReader(b"".join(b.parts.store.get(file.key)))).to_pylist():
                assert row["sku"] not in found, f"{row['sku']} twice in version {edge.version}"
                found[row["sku"]] = Held(row["at"] if self.ordered else 0, row if file.role in LIVING else None)
        return found

    # --- what must hold

    def check(self, producers: Mapping[str, int]) -> None:
        """`producers`: name -> its last block. Each of their records is in exactly one delta, whatever was killed."""
        self._check_ranges(producers)
        self._check_each_record_once(producers)
        self._check_nothing_twice(producers)
        self._check_order(producers)
        self._check_end(producers)
        self._check_merged()

    def _check_ranges(self, producers: Mapping[str, int]) -> None:
        """Neither gap nor overlap: each range begins where the one before ended, and marks only grow."""
        slots = defaultdict[int, list[SourceRange]](list)
        for delta in self.deltas:
            for source in delta.version.sources:
                slots[source.slot].append(source)
        for ranges in slots.values():
            assert [source.after for source in ranges] == [NOTHING_CONSUMED, *(source.until for source in ranges[:-1])]
            for producer, last in producers.items():
                blocks = [source.marks[producer].block for source in ranges if producer in source.marks]
                assert blocks == sorted(blocks)
                assert max(blocks, default=0) <= last

    def _check_nothing_twice(self, producers: Mapping[str, int]) -> None:
        """As many changes were read from the log as were produced, whatever became of them behind that."""
        produced = sum(len(block_of(*block, self.ordered).rows) for block in blocks_of(producers))
        assert sum(source.rows for delta in self.deltas for source in delta.version.sources) == produced

    def _check_each_record_once(self, producers: Mapping[str, int]) -> None:
        seen = defaultdict[str, str](str)
        for delta in self.deltas:
            for sku, held in delta.changes.items():
                seen[sku] += "u" if held.row else "d"
        for delta in self.deltas[1:] if not self.ordered else self.deltas:
            assert delta.dropped == 0
        for producer, number in blocks_of(producers):
            gone = set(deleted_keys(producer, number + 1)) if number < producers[producer] else set()
            for sku in own_keys(producer, number):
                assert seen[sku] in (self._lives(producer, number) if sku in gone else ("u",)), (sku, seen[sku])

    def _lives(self, producer: str, number: int) -> tuple[str, ...]:
        """How a row deleted by the next block may be seen. A delete in a first version without order has nothing to remove."""
        first = [source.marks.get(producer) for source in self.deltas[0].version.sources]
        nothing = not self.ordered and any(mark is not None and mark.block > number for mark in first)
        return ("ud", "d", "") if nothing else ("ud", "d")

    def _check_order(self, producers: Mapping[str, int]) -> None:
        """Of each key, a later version never holds an older change of the same producer; and the last one stands at the end."""
        newest = Counter[tuple[str, str]]()
        for delta in self.deltas:
            for sku, held in delta.changes.items():
                if held.row:
                    assert held.row["n"] > newest[sku, held.row["by"]], f"{sku}: {held.row} behind {newest}"
                    newest[sku, held.row["by"]] = held.row["n"]
        assert {producer: newest[producer, producer] for producer in producers} == {
            producer: max(n for n in range(1, last + 1) if block_of(producer, n, self.ordered).kind == "u")
            for producer, last in producers.items()
        }

    def _check_end(self, producers: Mapping[str, int]) -> None:
        """The state is what the blocks say. Only without an order the log alone knows whose write of a shared key came last."""
        wanted: State = {}
        for producer, number in blocks_of(producers):
            block = block_of(producer, number, self.ordered)
            wanted = self.applied(wanted, {row["sku"]: self._held(block.kind, row) for row in block.rows})
        assert wanted.keys() == self.final.keys()
        decided = [sku for sku in wanted if self.ordered or not sku.startswith(SHARED)]
        assert [sku for sku in decided if self.final[sku] != wanted[sku]] == []

    def _held(self, kind: str, row: Row) -> Held:
        return Held(row["at"] if self.ordered else 0, row if kind == "u" else None)

    def _check_merged(self) -> None:
        """Roll-ups and snapshots lead where the deltas lead, one by one, what must be remembered of deletes included."""
        for edge, changes in self.merged:
            reached = changes if edge.base is None else self.applied(self.states[edge.base], changes)
            assert self._kept(reached) == self.states[edge.version], f"{edge.kind} {edge.base} -> {edge.version}"


def blocks_of(producers: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    return ((producer, number) for producer, last in producers.items() for number in range(1, last + 1))
