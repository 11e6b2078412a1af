"""All roads lead to one content, through real compaction and real sinks: deltas one by one, roll-ups, snapshots, filters.

At every version what a replica holds is what the merge rule says of it, and a filtered one holds the filter of that, whatever
came late; tombstones are tried by what comes later still.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import broker
from broker.columnar.engine import EVERYTHING
from broker.model.commit import Edge
from broker.model.names import data_key
from broker.receipts import content_of
from broker.rules.plan import Plan
from broker.sinks import Memory
from tests.campaign import examples
from tests.contracts.sink_places import Place as SinkPlace
from tests.laws.changes import CHANGES, WHERE, Change, Place, Standing, held, rows_of, table

FEW = {"memory": 6, "sqlite": 2, "duckdb": 2, "parquet": 2, "postgres": 2}
"""Examples by what one costs."""
BATCHES = st.lists(CHANGES, min_size=1, max_size=6)
FEEDS = st.lists(CHANGES.map(lambda change: Change(**{**vars(change), "gone": False})), max_size=5, unique_by=lambda c: c.key)


@dataclass
class Readers:
    """Replicas of one dataset: those that take every delta, and those that come when they like and take what is cheapest."""

    here: Place
    dataset: broker.Dataset
    sinks: SinkPlace
    every: list[broker.Replica] = field(default_factory=list)
    seldom: list[broker.Replica] = field(default_factory=list)

    def __post_init__(self) -> None:
        for where in (None, WHERE):
            name = "full" if where is None else "filtered"
            self.every.append(self._replica(f"every-{name}", Memory(), where))
            self.seldom.append(self._replica(f"seldom-{name}", self.sinks.fresh().open(), where))

    def _replica(self, name: str, sink: broker.sinks.Sink, where: str | None) -> broker.Replica:
        return self.here.b.replica(self.dataset.id, name=name, sink=sink, where=where)

    def sync(self, replicas: list[broker.Replica], truth: Standing) -> None:
        """Each to the newest version, of which `truth` says what it holds."""
        for replica in replicas:
            replica.sync()
            assert held(replica.sink) == truth.rows(where=replica.selection.where is not None), replica.name

    def agree(self) -> None:
        """Those of one selection have one digest, however they came here."""
        engine, key = self.here.b.parts.engine, self.dataset.spec.key
        for one, other in zip(self.every, self.seldom, strict=True):
            assert content_of(engine, one.sink, key).text == content_of(engine, other.sink, key).text


def step(here: Place, dataset: broker.Dataset, truth: Standing, data: st.DataObject) -> None:
    """One more version, made in one of the ways there are; the truth goes along."""
    kinds = ["log", "delta", *(["snapshot"] if truth.ordered else [])]
    match data.draw(st.sampled_from(kinds if dataset.state.offered else ["log"]), "made by"):
        case "log":
            changes = data.draw(BATCHES)
            here.append(dataset, changes)
            here.drain()
            truth.take(changes)
        case "delta":
            changes = [*{change.key: change for change in data.draw(BATCHES)}.values()]
            rows, gone = ([change for change in changes if change.gone == dead] for dead in (False, True))
            keys = table(gone, deletes=True).select(dataset.spec.key + dataset.spec.order)
            dataset.publish_delta(table(rows) if rows else None, keys if gone else None)
            truth.take(changes)
        case _:
            feed = data.draw(FEEDS)
            dataset.publish(table(feed))
            truth.replace(feed)


def test_every_road_leads_every_replica_to_what_the_merge_rule_says_at_every_version(here: Place, sinks: SinkPlace) -> None:
    @settings(max_examples=examples(FEW[sinks.kind]), database=None)
    @given(data=st.data())
    def law(data: st.DataObject) -> None:
        truth, dataset = Standing(data.draw(st.booleans(), "ordered")), here.dataset(ordered=True)
        if not truth.ordered:
            dataset = here.dataset(ordered=False)
        readers, past = Readers(here, dataset, sinks), dict[int, Standing]()
        for _ in range(data.draw(st.integers(2, 6), "versions")):
            step(here, dataset, truth, data)
            past[dataset.state.version] = truth.copy()
            readers.sync(readers.every, truth)
            if data.draw(st.booleans(), "compacted"):
                here.compact(dataset, snapshots=data.draw(st.booleans(), "with snapshots"))
            if data.draw(st.booleans(), "the others come, too"):
                readers.sync(readers.seldom, truth)
        here.compact(dataset, snapshots=data.draw(st.booleans(), "with snapshots"))
        readers.sync(readers.seldom, truth)
        readers.agree()
        for version, then in past.items():
            assert rows_of(dataset.read(version)) == then.rows(), "compaction changed a version"
            assert rows_of(dataset.read(version, where=WHERE)) == then.rows(where=True)
        assert dataset.state.version == max(past), "compaction made a version"

    law()


@settings(max_examples=examples(8), database=None)
@given(data=st.data())
def test_a_roll_up_does_to_a_replica_what_its_deltas_do_one_by_one_also_for_what_comes_late(
    here: Place, data: st.DataObject
) -> None:
    """Both stand at one version and go to another, one over each delta, one over what compaction made of them."""
    truth, dataset = Standing(ordered=True), here.dataset(ordered=True)
    step(here, dataset, truth, data)
    one, other = (here.b.replica(dataset.id, name=name, sink=Memory()) for name in ("deltas", "roll-ups"))
    for replica in (one, other):
        replica.sync()
    for _ in range(4):
        changes = data.draw(BATCHES)
        here.append(dataset, changes)
        here.drain()
        truth.take(changes)
        assert one.sync().edges == 1
    here.compact(dataset, snapshots=False)
    report = other.sync()
    assert report.reset is not None or report.edges < 4
    later = data.draw(BATCHES, "late")
    here.append(dataset, later)
    here.drain()
    truth.take(later)
    for replica in (one, other):
        replica.sync()
    assert held(one.sink) == held(other.sink) == truth.rows()


@pytest.mark.parametrize("ordered", [False, True], ids=["in-turn", "by-order"])
def test_an_edge_leads_whoever_stands_between_its_ends_to_the_same_content(
    here: Place, sinks: SinkPlace, ordered: bool
) -> None:
    """Replicas, full and filtered, stop at each version of a history; one edge takes each to the end.

    With order columns a settled one: others may hold what came late, and no tombstone lives to the end (rules/plan.py).
    """

    @settings(max_examples=examples(FEW[sinks.kind]), database=None)
    @given(data=st.data())
    def law(data: st.DataObject) -> None:
        with ExitStack() as stack:
            content(data, stack)

    def content(data: st.DataObject, stack: ExitStack) -> None:
        truth, dataset = Standing(ordered), here.dataset(ordered)
        places, readers = list[SinkPlace](), list[broker.Replica]()
        for number in range(data.draw(st.integers(2, 5), "versions")):
            changes = data.draw(BATCHES)
            here.append(dataset, changes)
            here.drain()
            truth.take(changes)
            for where in (None, WHERE):
                name = f"{number}-{'filtered' if where else 'full'}"
                places.append(sinks.fresh())
                sink = places[-1].open()
                stack.callback(sink.close)
                readers.append(here.b.replica(dataset.id, name=name, sink=sink, where=where))
                readers[-1].sync()
        edge = (settled if ordered else merged)(here, dataset)
        for place in places:
            place.now += 2 * dataset.spec.tombstone_seconds
        for replica in readers:
            at = replica.sink.cursor(replica.name)
            assert at is not None
            if at.version < edge.version:
                replica._plan = lambda *_, at=at.version: Plan(at, edge.version, (edge,))  # type: ignore[method-assign]
                assert replica.sync().version == edge.version
            assert held(replica.sink) == truth.rows(where=replica.selection.where is not None), replica.name

    law()


def merged(here: Place, dataset: broker.Dataset) -> Edge:
    """All deltas behind the first version, as compaction merges them."""
    spec, edges = dataset.spec, deltas(dataset)
    return here.b.parts.engine.derive(spec, edges, EVERYTHING, "parquet", partial(data_key, dataset.id))


def settled(here: Place, dataset: broker.Dataset) -> Edge:
    """The same as compaction settles them, with a snapshot of the newest version."""
    spec, edges = dataset.spec, deltas(dataset)
    here.compact(dataset, snapshots=True)
    snapshot = dataset.state.edge(None, dataset.state.version)
    assert snapshot is not None
    files = here.b.parts.engine.write_settled(spec, snapshot, edges)
    return Edge(base=edges[0].base, version=snapshot.version, files=files, settled=True)


def deltas(dataset: broker.Dataset) -> list[Edge]:
    return [edge for edge in dataset.state.edges if edge.base == edge.version - 1]
