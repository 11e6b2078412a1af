"""P6 on the whole way: change log on a real Redis, micro-batches of several log slots, commits, compaction, plan, sink.

Any order, duplication and split of the same changes gives one state, late ones included, where orders differ per key; where
they do not, ties follow commit order; without order columns the later change wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import broker
from broker.sinks import Memory
from tests.campaign import examples
from tests.contracts.sink_places import Place as SinkPlace
from tests.laws.changes import CHANGES, Change, Place, Standing, cut, held, rows_of

DISTINCT = st.lists(CHANGES, max_size=12, unique_by=lambda change: (change.key, change.rank))
FEW = {"memory": 8, "sqlite": 3, "duckdb": 2, "parquet": 2, "postgres": 2}
"""Examples by what one costs."""


def told(here: Place, dataset: broker.Dataset, changes: Sequence[Change], data: st.DataObject, sinks: SinkPlace) -> None:
    """The changes, in this order, in blocks and versions as drawn, to a replica that follows and one that comes late."""
    follower = here.b.replica(dataset.id, name="follower", sink=sinks.fresh().open())
    for version in cut(data, changes, 3):
        for block in cut(data, version, 2):
            here.append(dataset, block)
        here.drain()
        if data.draw(st.booleans(), "followed"):
            follower.sync()
        if dataset.state.offered and data.draw(st.booleans(), "compacted"):
            here.compact(dataset, snapshots=data.draw(st.booleans(), "with snapshots"))
    late = here.b.replica(dataset.id, name="late", sink=Memory())
    for replica in (follower, late):
        replica.sync()
    assert held(follower.sink) == held(late.sink) == content(dataset)


def content(dataset: broker.Dataset) -> dict[tuple[str, int], dict[str, object]]:
    return rows_of(dataset.read()) if dataset.state.offered else {}


def test_any_order_duplication_and_split_of_the_same_changes_gives_one_state(here: Place, sinks: SinkPlace) -> None:
    @settings(max_examples=examples(FEW[sinks.kind]), database=None)
    @given(data=st.data())
    def law(data: st.DataObject) -> None:
        changes, dataset = data.draw(DISTINCT), here.dataset(ordered=True)
        again = data.draw(st.lists(st.sampled_from(changes), max_size=4)) if changes else []
        told(here, dataset, data.draw(st.permutations([*changes, *again])), data, sinks)
        assert content(dataset) == Standing(ordered=True).take(changes).rows(), "as in the order first drawn, each once"

    law()


@pytest.mark.parametrize("ordered", [True, False], ids=["ties", "without order"])
def test_where_orders_do_not_tell_the_later_commit_stands_however_changes_are_split(
    here: Place, sinks: SinkPlace, ordered: bool
) -> None:
    @settings(max_examples=examples(FEW[sinks.kind]), database=None)
    @given(data=st.data())
    def law(data: st.DataObject) -> None:
        changes, dataset = data.draw(st.lists(CHANGES, max_size=12)), here.dataset(ordered)
        told(here, dataset, changes, data, sinks)
        assert content(dataset) == Standing(ordered).take(changes).rows()

    law()


@settings(max_examples=examples(8), database=None)
@given(data=st.data())
def test_blocks_sent_again_and_changes_of_two_producers_in_any_interleaving_give_one_state(
    here: Place, data: st.DataObject
) -> None:
    """Exactly once by number: a block that comes twice is one block, also where orders do not tell."""
    dataset, order = here.dataset(ordered=True), Standing(ordered=True)
    sent = dict.fromkeys(("pim", "erp"), 0)
    blocks = st.tuples(st.sampled_from([*sent]), st.lists(CHANGES, min_size=1, max_size=3))
    for name, block in data.draw(st.lists(blocks, max_size=5)):
        kind = [change for change in block if change.gone == block[0].gone]
        sent[name] += 1
        for _ in range(data.draw(st.integers(1, 3), "times sent")):
            here.append(dataset, kind, {"producer": name, "block": sent[name]})
            if data.draw(st.booleans(), "batched between"):
                here.drain()
        order.take(kind)
    here.drain()
    assert content(dataset) == order.rows()
