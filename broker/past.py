"""Looking back: what differs between two versions, and what became of one key. Reads only, from edges that are offered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from broker.catalog import Catalog
from broker.columnar.engine import Engine
from broker.columnar.rewrite import OneKey
from broker.columnar.trace import difference_result, entries_result, numbered
from broker.errors import Invalid, NotFound
from broker.model.commit import Edge
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.rules.fold import State
from broker.rules.plan import plan

Key = Any
"""A value (one key column), a sequence of values in the order of the key columns, or a mapping of them by name."""


Pair = tuple[int | None, int]
"""(base, version) of an edge."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One key as a version left it. `time`: of the version's commit, seconds since the epoch. `row` None: there is none.

    `change`: added, changed or removed; or `held`, when it stood already in the oldest version that is kept.
    """

    version: int
    time: float
    change: str
    row: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one edge says of the key."""

    rank: int
    gone: bool
    text: str
    row: dict[str, Any]


class Past:
    """The past of one dataset. Safe for threads."""

    def __init__(self, catalog: Catalog, engine: Engine, dataset: DatasetId) -> None:
        self._catalog, self._engine, self._dataset = catalog, engine, dataset

    def diff(self, before: int, after: int) -> pa.RecordBatchReader:
        """Columns `change` (added, changed, removed), `before`, `after` (the row, or null): one row for each key that differs.

        Reads the edges between the versions and looks up what they touch; where no edges lead from the lower version to the
        higher one, both are compared whole. In no order. Raises NotFound for a version that never was or is retired.
        """
        state = self._catalog.state(self._dataset)
        low, high = sorted(state.info(version).version for version in (before, after))
        one = plan(state.edges, None, low).edges
        road = plan(state.edges, low, high, over=state.leads_over)
        other = (*one, *road.edges) if road.base == low else plan(state.edges, None, high).edges
        result_of = partial(difference_result, state.spec, one, other)
        found = self._engine.query(state.spec, [*one, *other], result_of)
        return found if before <= after else _turned(found)

    def history(self, key: Key) -> list[Moment]:
        """One key through the versions that are kept, oldest first: a moment for each version that changed it.

        Empty: no version that is kept has it. Raises NotFound, Invalid (not a key of the dataset), BadData (not of its type).
        """
        state = self._catalog.state(self._dataset)
        found = self._entries(state, texts_of(state.spec, key)) if state.offered else {}
        return list(_moments(state, found)) if found else []

    def _entries(self, state: State, key: tuple[str, ...]) -> dict[Pair, list[_Entry]]:
        spec, edges = state.spec, state.edges
        bucket = OneKey(self._engine, spec, key).bucket
        files = [(number, file) for number, file in numbered(edges) if file.rows and file.may_hold(bucket)]
        wanted = {number for number, _ in files}
        asked = [
            Edge(base=edge.base, version=edge.version, files=tuple(file for at, file in files if at == number))
            for number, edge in enumerate(edges) if number in wanted
        ]  # fmt: skip
        found = self._engine.query(spec, asked, lambda paths: entries_result(spec, files, key, paths)).read_all()
        entries: dict[Pair, list[_Entry]] = {}
        for row in found.to_pylist():
            entry = _Entry(row["rank"], row["gone"], row["text"], row["row"])
            entries.setdefault(_pair(edges[row["number"]]), []).append(entry)
        return entries


def texts_of(spec: DatasetSpec, key: Key) -> tuple[str, ...]:
    """A key as one text for each key column. Raises Invalid."""
    if isinstance(key, Mapping):
        if set(key) != set(spec.key):
            raise Invalid("not a key of this dataset", of=spec.dataset, why=f"its key is {', '.join(spec.key)}")
        return tuple(_text(key[name]) for name in spec.key)
    values: Sequence[Any] = key if isinstance(key, Sequence) and not isinstance(key, str | bytes) else (key,)
    return tuple(map(_text, values))


def _text(value: object) -> str:
    """As DuckDB casts it back."""
    return "".join(f"\\x{byte:02X}" for byte in value) if isinstance(value, bytes) else str(value)


def _moments(state: State, found: Mapping[Pair, Sequence[_Entry]]) -> Iterator[Moment]:
    """Versions whose own delta does not name the key leave it as the one before did: only the others need a plan."""
    last: _Entry | None = None
    known = seen = False
    for info in state.versions:
        delta = state.edge(info.version - 1, info.version)
        if known and delta is not None and _pair(delta) not in found:
            continue
        try:
            road = plan(state.edges, None, info.version).edges
        except NotFound:
            known = False
            continue
        now = _standing(road, found)
        if (change := _change(last, now)) is not None:
            yield Moment(info.version, info.time, change if seen or info.version == 1 else "held", now.row if now else None)
        last, known, seen = now, True, True


def _pair(edge: Edge) -> Pair:
    return edge.base, edge.version


def _standing(road: Sequence[Edge], found: Mapping[Pair, Sequence[_Entry]]) -> _Entry | None:
    """As the merge decides: the newest order, then the later edge, then a row before a delete."""
    ranked = [((entry.rank, at, not entry.gone), entry) for at, edge in enumerate(road) for entry in found.get(_pair(edge), ())]
    last = max(ranked, key=lambda pair: pair[0])[1] if ranked else None
    return None if last is None or last.gone else last


def _change(before: _Entry | None, now: _Entry | None) -> str | None:
    if before is None or now is None:
        return None if before is now else "added" if now else "removed"
    return None if before.text == now.text else "changed"


def _turned(found: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The same difference, seen from the other side."""
    turned = {"added": "removed", "removed": "added"}

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in found:
            changes = pa.array([turned.get(word, word) for word in batch.column("change").to_pylist()], pa.string())
            columns = [changes, batch.column("after"), batch.column("before")]
            yield pa.RecordBatch.from_arrays(columns, schema=found.schema)

    return pa.RecordBatchReader.from_batches(found.schema, batches())
