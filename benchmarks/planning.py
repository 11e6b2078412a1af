"""Planning over 10,000 edges, and finding a dataset by an attribute among 10,000."""

from __future__ import annotations

from functools import partial

from benchmarks.common import Row, percentile, private_broker, seconds
from broker.backend.index import Index
from broker.model.commit import GENESIS, Body, Create, Edge, File, NewVersion, Record
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.model.request import Selection
from broker.rules.fold import State, fold
from broker.rules.plan import plan_for
from broker.search import Search

DATASET = DatasetId("shop/catalog/offers")
EDGES, DATASETS, TRIES = 10_000, 10_000, 20
SHOPS = 100


def run() -> list[Row]:
    with private_broker() as b:
        return [*_planner(b.parts.index), _find(b.parts.index)]


def _history() -> State:
    """A snapshot and a delta for each version behind it."""
    state = _next(State(DATASET), Create(session="s", spec=DatasetSpec(dataset=DATASET, key=("sku",))))
    for version in range(1, EDGES + 1):
        state = _next(state, NewVersion(edge=_edge(version)))
    return state


def _next(state: State, body: Body) -> State:
    return fold(state, Record(seq=state.seq + 1, previous=state.sha, write_id="w", time=1.0, body=body).to_bytes())


def _edge(version: int) -> Edge:
    file = File(key=f"{DATASET}/data/{version}.parquet", role="upserts", sha256="0" * 64, bytes=1_000, rows=9, format="parquet")
    return Edge(base=version - 1 or None, version=version, files=(file,))


def _planner(index: Index) -> list[Row]:
    everything, state, spent = Selection(), _history(), list[float]()
    plan_for(state, None, everything)
    for version in range(EDGES + 1, EDGES + TRIES):
        state = _next(state, NewVersion(edge=_edge(version)))
        spent.append(seconds(partial(plan_for, state, None, everything)))
    memory = percentile(spent, 0.5) * 1000
    again = percentile([seconds(lambda: plan_for(state, None, everything)) for _ in range(TRIES)], 0.5) * 1000
    index.install(DATASET, state, "")
    cold = percentile([seconds(lambda: plan_for(index.load(DATASET), None, everything)) for _ in range(TRIES)], 0.5) * 1000
    return [
        Row(f"plan over {EDGES:,} edges, each time from a new head", f"p50 {memory:.1f} ms", "", None, "5 ms", memory <= 5),
        Row("the same, repeated for one head", f"p50 {again:.3f} ms", "", None, "0.2 ms", again <= 0.2),
        Row("the same, projection read from Redis", f"p50 {cold:.1f} ms", "", None, "40 ms", cold <= 40),
    ]


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
