"""What the laws are tried with: random changes, the merge rule said with a dict, the real way from a change log to a sink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Any, Final, TypeVar

import pyarrow as pa
from hypothesis import strategies as st

import broker
from broker.compactor import Compactor, Dues
from broker.rules.levels import Levels
from broker.sinks import Sink
from broker.stores.memory import MemoryStore
from tests.ledger import broker_over
from tests.servers import wait_until
from workers.batching import Batching

T = TypeVar("T")
KEY, ORDER = ("sku", "shop"), ("at", "then")
Key = tuple[str, int]
Row = dict[str, Any]
WIDE: Final = 1 << 40
"""A number that makes its column wider."""
WHERE: Final = "n < 2"
NARROW: Final = broker.Schema(
    columns=(
        broker.Column(name="sku", type="VARCHAR", nullable=False),
        broker.Column(name="shop", type="BIGINT", nullable=False),
        broker.Column(name="at", type="BIGINT"),
        broker.Column(name="then", type="VARCHAR"),
        broker.Column(name="n", type="INTEGER"),
    )
)
_NAMES: Final = count(1)


@dataclass(frozen=True)
class Change:
    """A row, or (`gone`) the delete of one. A row whose `extra` is None may come from a time before that column."""

    sku: str
    shop: int
    at: int | None
    then: str | None
    n: int | None
    extra: str | None
    gone: bool

    @property
    def key(self) -> Key:
        return self.sku, self.shop

    @property
    def rank(self) -> tuple[tuple[bool, Any], ...]:
        """NULL is the lowest."""
        return (self.at is not None, self.at or 0), (self.then is not None, self.then or "")

    @property
    def row(self) -> Row:
        return {name: getattr(self, name) for name in (*KEY, *ORDER, "n", "extra")}


CHANGES: Final = st.builds(
    Change, sku=st.sampled_from(["", "a", "é'"]), shop=st.integers(0, 2), at=st.none() | st.integers(0, 3),
    then=st.none() | st.sampled_from(["", "b"]), n=st.none() | st.sampled_from([0, 1, 2, 3, WIDE]),
    extra=st.none() | st.sampled_from(["", "x"]), gone=st.booleans(),
)  # fmt: skip


@dataclass
class Standing:
    """The design's rule, change by change: newest order wins, equal orders: the later commit. Without an order, the later."""

    ordered: bool
    known: dict[Key, Change] = field(default_factory=dict)

    def take(self, changes: Iterable[Change]) -> Standing:
        for change in changes:
            held = self.known.get(change.key)
            if not self.ordered or held is None or change.rank >= held.rank:
                self.known[change.key] = change
        return self

    def replace(self, feed: Iterable[Change]) -> Standing:
        """A snapshot is the state; what it lacks of the state before lies dead, as of the order it had."""
        dead = {key: Change(**{**vars(change), "gone": True}) for key, change in self.known.items()}
        self.known = dead | {change.key: change for change in feed}
        return self

    def copy(self) -> Standing:
        return Standing(self.ordered, dict(self.known))

    def rows(self, where: bool = False) -> dict[Key, Row]:
        stand = {key: change.row for key, change in self.known.items() if not change.gone}
        return {key: row for key, row in stand.items() if not where or (row["n"] is not None and row["n"] < 2)}


def cut(data: st.DataObject, items: Sequence[T], most: int) -> list[list[T]]:
    """The items in this order, in up to `most` + 1 pieces, some of them empty."""
    places = sorted(data.draw(st.lists(st.integers(0, len(items)), max_size=most)))
    return [list(items[begin:end]) for begin, end in zip([0, *places], [*places, len(items)], strict=True)]


def runs(changes: Sequence[Change]) -> Iterator[tuple[bool, pa.Table]]:
    """As blocks, each of one kind: rows, or deletes."""
    for gone, run in groupby(changes, key=lambda change: change.gone):
        yield gone, table([*run], deletes=gone)


def table(changes: Sequence[Change], deletes: bool = False) -> pa.Table:
    """Columns as a producer has them: of the types these values need, and without those none of them has."""
    wide = any(change.n == WIDE for change in changes)
    types = {"sku": pa.string(), "shop": pa.int64(), "at": pa.int64(), "then": pa.string()}
    if not deletes:
        types |= {"n": pa.int64() if wide else pa.int32()}
        types |= {"extra": pa.string()} if any(change.extra is not None for change in changes) else {}
    return pa.table({name: pa.array([change.row[name] for change in changes], kind) for name, kind in types.items()})


def rows_of(found: pa.Table) -> dict[Key, Row]:
    rows = found.to_pylist()
    by_key = {(row["sku"], row["shop"]): {"n": None, "extra": None, **row} for row in rows}
    assert len(by_key) == len(rows), "a key stands twice"
    return by_key


def held(sink: Sink) -> dict[Key, Row]:
    return rows_of(sink.read())


@dataclass
class Place:
    """A broker on a real Redis, its micro-batcher, and a compactor that has work after two deltas."""

    b: broker.Broker
    batching: Batching
    eager: Compactor
    thorough: Compactor

    def dataset(self, ordered: bool) -> broker.Dataset:
        """A fresh one, of narrow columns: `n` grows and `extra` comes with the changes. Without an order it has the same."""
        made = self.b.dataset(f"laws/d{next(_NAMES)}/offers", key=KEY, order=ORDER if ordered else ())
        made.alter(NARROW)  # known before the first row: a delete may be the first thing that comes
        return made

    def append(self, dataset: broker.Dataset, changes: Sequence[Change], producer: Mapping[str, Any] | None = None) -> None:
        """To the change log, as blocks."""
        log, named = dataset.changelog, producer or {}
        for gone, rows in runs(changes):
            keys = rows if dataset.spec.order else rows.select(KEY) if gone else rows
            (log.delete if gone else log.append)(keys, **named)

    def drain(self) -> None:
        """Until versions hold all that was appended."""

        def empty() -> bool:
            report = self.batching.run_once()
            assert not report.failed, report.failed
            return self.batching.idle()

        wait_until(empty, "the change logs to be empty", 20)

    def compact(self, dataset: broker.Dataset, snapshots: bool) -> None:
        for _ in (self.thorough if snapshots else self.eager).compact(dataset.id):
            pass


@contextmanager
def place(url: str) -> Iterator[Place]:
    with broker_over(MemoryStore(), url, max_age_seconds=0.001) as b:
        parts = b.parts

        def compactor(ratio: float) -> Compactor:
            levels = Levels(factor=2, snapshot_ratio=ratio, snapshot_least_bytes=0)
            return Compactor(parts.index, parts.catalog, parts.engine, parts.publication, parts.leases, Dues(levels))

        batching = Batching(parts, "laws")
        yield Place(b, batching, compactor(1e9), compactor(0.0))
        batching.close()
