"""Planning over 10,000 edges, and finding a dataset by an attribute among 10,000."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count

from benchmarks.common import Row, percentile, private_broker, seconds
from broker.backend.index import Index
from broker.model.commit import GENESIS, Body, Create, Edge, File, NewEdge, NewVersion, Record
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.model.request import Selection
from broker.rules.fold import State, fold
from broker.rules.levels import FACTOR
from broker.rules.plan import plan_for
from broker.search import Search

DATASET = DatasetId("shop/catalog/offers")
EDGES, DATASETS, TRIES = 10_000, 10_000, 20
SHOPS = 100


def run() -> list[Row]:
    with private_broker() as b:
        return [*_planner(b.parts.index), _find(b.parts.index)]


def _history(levels: bool) -> State:
    """A snapshot and a delta for each version behind it; with `levels` also the roll-ups that compaction makes of them."""
    state = _next(State(DATASET), Create(session="s", spec=DatasetSpec(dataset=DATASET, key=("sku",))))
    for version in count(1):
        for body in _bodies(version, levels):
            state = _next(state, body)
            if len(state.tables["edges"]) == EDGES:
                return state
    raise AssertionError


def _bodies(version: int, levels: bool) -> Iterator[Body]:
    yield NewVersion(edge=_edge(version - 1, version))
    width = FACTOR
    while levels and version % width == 0 and version > width:
        yield NewEdge(edge=_edge(version - width, version))
        width *= FACTOR


def _next(state: State, body: Body) -> State:
    return fold(state, Record(seq=state.seq + 1, previous=state.sha, write_id="w", time=1.0, body=body).to_bytes())


def _edge(base: int, version: int) -> Edge:
    size = int(1_000 * (version - base) ** 0.9)
    file = File(key=f"{DATASET}/data/{version}.parquet", role="upserts", sha256="0" * 64, bytes=size, rows=9, format="parquet")
    return Edge(base=base or None, version=version, files=(file,))


def _planner(index: Index) -> Iterator[Row]:
    for levels, what in ((True, ", rolled up by levels"), (False, " in one road without roll-ups")):
        everything, state, spent = Selection(), _history(levels), list[float]()
        plan_for(state, None, everything)
        for _ in range(TRIES):
            state = _next(state, NewVersion(edge=_edge(state.version, state.version + 1)))
            spent.append(seconds(partial(plan_for, state, None, everything)))
        memory = percentile(spent, 0.5) * 1000
        again = percentile([seconds(partial(plan_for, state, None, everything)) for _ in range(TRIES)], 0.5) * 1000
        index.install(DATASET, state, "")
        cold = percentile([seconds(partial(_cold, index)) for _ in range(TRIES)], 0.5) * 1000
        yield Row(f"plan over {EDGES:,} edges{what}, from a new head", f"p50 {memory:.1f} ms", "", None, "5 ms", memory <= 5)
        yield Row("the same, repeated for one head", f"p50 {again:.3f} ms", "", None, "0.2 ms", again <= 0.2)
        yield Row("the same, projection read from Redis", f"p50 {cold:.1f} ms", "", None, "40 ms", cold <= 40)


def _cold(index: Index) -> None:
    plan_for(index.load(DATASET), None, Selection())


def _find(index: Index) -> Row:
    """Of a hundred shops with a hundred datasets each, those of one: the first look brings the index of attributes up."""
    index.announce(DATASET)
    for number in range(DATASETS):
        dataset = DatasetId(f"shop/catalog/d{number:05}")
        spec = DatasetSpec(dataset=dataset, key=("sku",), attributes={"shop": str(number % SHOPS)})
        record = Record(seq=1, previous=GENESIS, write_id="w", time=1.0, body=Create(session="s", spec=spec))
        index.install(dataset, fold(State(dataset), record.to_bytes()), "")
    search = Search(index.redis, index)
    search.find({"shop": "7"})
    spent = percentile([seconds(lambda: search.find({"shop": "7"})) for _ in range(TRIES)], 0.5) * 1000
    found = len(search.find({"shop": "7"}))
    return Row(f"find {found} of {DATASETS:,} datasets by an attribute", f"p50 {spent:.1f} ms", "", None, "50 ms", spent <= 50)
