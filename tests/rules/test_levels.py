"""Compaction's decisions: roads stay short, work is owed once, and what is retired is left alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.model.commit import Edge, File
from broker.rules.levels import CROWDED_RATIO, Levels, due, making_room, tight
from broker.rules.plan import cheapest
from broker.rules.retention import Floors, Wanted, retention


def edge(base: int | None, version: int, size: int = 1) -> Edge:
    file = File(role="rows" if base is None else "upserts", key=f"{base}-{version}", sha256="0" * 64, bytes=size, rows=1)
    return Edge(base=base, version=version, files=(file,))


def ordered(edges: list[Edge]) -> list[Edge]:
    return sorted(edges, key=lambda edge: (edge.version, -1 if edge.base is None else edge.base))


def chain(newest: int, snapshot_bytes: int = 1_000_000) -> list[Edge]:
    return [edge(None, 1, snapshot_bytes), *(edge(version - 1, version) for version in range(2, newest + 1))]


def compacted(edges: list[Edge], levels: Levels) -> list[Edge]:
    """The history when all that is owed is made: a merge of n edges is as large as one of them."""
    while (work := next(due(edges, levels), None)) is not None:
        edges = ordered([*edges, edge(work.base, work.version, 1 if work.base is not None else 1_000_000)])
    return edges


@given(st.integers(1, 300), st.integers(2, 9))
def test_any_version_is_reached_from_any_other_over_logarithmically_few_edges(newest: int, factor: int) -> None:
    edges = compacted(chain(newest), Levels(factor))
    depth = 1
    while factor**depth <= newest:
        depth += 1
    for held in {1, 2, newest // 3 + 1, newest // 2 + 1, newest}:
        road = cheapest(edges, held, newest)
        assert road is not None
        assert len(road) <= 2 * depth * (factor - 1) + 1


@given(st.integers(1, 200), st.integers(2, 9))
def test_nothing_is_owed_twice(newest: int, factor: int) -> None:
    edges = compacted(chain(newest), Levels(factor))
    assert len({(edge.base, edge.version) for edge in edges}) == len(edges)


@given(st.integers(1, 120), st.sets(st.integers(2, 120)))
def test_a_merge_is_made_of_a_road_that_leads_from_its_base_to_its_version(newest: int, gone: set[int]) -> None:
    edges = [edge for edge in chain(newest) if edge.base is None or edge.version not in gone]
    for work in due(edges, Levels(4)):
        at = work.base
        for part in work.edges:
            assert part.base == at
            at = part.version
        assert at == work.version


def test_a_range_with_a_retired_delta_owes_nothing() -> None:
    edges = [edge for edge in chain(17) if edge.version != 12]
    assert {(work.base, work.version) for work in due(edges, Levels(8))} == set()
    assert {(work.base, work.version) for work in due(chain(17), Levels(8))} == {(8, 16)}


def test_a_snapshot_is_due_when_the_deltas_behind_the_newest_grow_heavy() -> None:
    light, heavy = [edge(None, 1, 100), edge(1, 2, 50)], [edge(None, 1, 100), edge(1, 2, 51)]
    assert list(due(light, Levels(snapshot_least_bytes=0))) == []
    assert list(due(heavy, Levels(snapshot_least_bytes=52))) == []  # too little to be worth it
    (work,) = due(heavy, Levels(snapshot_least_bytes=0))
    assert (work.base, work.version, work.edges) == (None, 2, tuple(heavy))


def test_a_snapshot_dearer_than_the_road_it_was_made_of_is_not_made_again() -> None:
    """By key bucket rows may compress worse than in the order they were published in."""
    edges = [edge(None, 1, 100), edge(1, 2, 60), edge(None, 2, 200)]
    assert list(due(edges, Levels())) == []
    assert list(due([*edges, edge(2, 3, 100)], Levels())) == []
    (work,) = due([*edges, edge(2, 3, 101)], Levels())
    assert (work.base, work.version) == (None, 3)
    assert [part.version for part in work.edges] == [1, 2, 3], "read over the road of fewest bytes"


def test_nothing_is_owed_to_a_dataset_without_edges() -> None:
    assert list(due([], Levels())) == []


def test_room_is_made_by_an_edge_that_leads_all_over_to_the_newest_snapshot_and_then_by_a_fresh_one() -> None:
    edges = ordered([*chain(9, 1000), edge(None, 6, 320)])
    work = making_room(edges, 3, Levels(), over=False)
    assert work is not None
    assert (work.base, work.version, work.settled) == (3, 6, edge(None, 6, 320))
    assert [part.version for part in work.edges] == [4, 5, 6]
    assert work.bytes == 320 + 3
    settled = Edge(base=3, version=6, settled=True)
    assert making_room(ordered([*edges, settled]), 3, Levels(), over=False) is None, "three bytes are too few for a snapshot"
    assert making_room(edges, 5, Levels(), over=False) is None, "nobody is to be led to that snapshot"
    assert making_room(edges, 3, Levels(), over=False, settled_until=6) is None, "it was of no use"
    assert making_room(edges, 3, Levels(), over=False, settled_until=5) == work
    heavier = [*edges, edge(9, 10, int(320 * CROWDED_RATIO))]
    for offered, over in ((ordered([*heavier, settled]), False), (heavier, True)):
        fresh = making_room(offered, 3, Levels(), over=over)
        assert fresh is not None
        assert (fresh.base, fresh.version, fresh.settled) == (None, 10, None)


def test_where_no_such_edge_can_be_made_a_fresh_snapshot_is_at_once() -> None:
    broken = ordered([edge(None, 6, 320), edge(5, 8), *(edge for edge in chain(9, 1000) if edge.version not in (6, 8))])
    taken = ordered([edge(None, 6, 320), edge(3, 6), *chain(9, 1000)])
    for edges in (broken, taken):
        work = making_room(edges, 3, Levels(snapshot_least_bytes=300), over=False)
        assert work is not None
        assert (work.base, work.version, work.settled) == (None, 9, None)
    assert making_room(ordered([*chain(9, 1000), edge(None, 9, 320), edge(3, 9)]), 3, Levels(), over=False) is None


def test_room_may_be_wanting_where_the_deltas_hold_more_than_a_snapshot_that_is_large_enough_to_care() -> None:
    edges = ordered([*chain(9, 1000), edge(None, 6, 7)])
    assert tight(edges, Levels(snapshot_least_bytes=7))
    assert not tight(edges, Levels(snapshot_least_bytes=8))
    assert not tight(ordered([*chain(9, 1000), edge(None, 6, 8)]), Levels())
    assert not tight([], Levels())


def test_a_snapshot_is_due_though_a_roll_up_passes_over_the_newest_one() -> None:
    """Where that holds more bytes than an older one with its deltas, which the newest version's road takes."""
    edges = ordered([edge(None, 1, 100), edge(1, 2, 50), edge(None, 2, 180), edge(2, 3, 1), edge(1, 4, 60)])
    assert list(due(edges, Levels())) == []
    (work,) = due(ordered([*edges, edge(4, 5, 31)]), Levels())
    assert (work.base, work.version) == (None, 5)


def test_a_light_delta_behind_a_dear_snapshot_is_no_reason_for_another_one() -> None:
    """What is only appended compresses best as it came: the road goes on over the first snapshot, and its deltas weigh much."""
    edges = ordered([edge(None, 1, 40), edge(1, 5, 100), edge(None, 5, 150), edge(4, 12, 7), edge(5, 6), edge(5, 12, 7)])
    assert list(due([edge for edge in edges if (edge.base, edge.version) != (5, 6)], Levels())) == []


def test_a_long_backlog_is_rolled_up_from_the_oldest_on_so_that_retention_between_loses_nothing() -> None:
    edges, rolled_until = chain(1000), 0
    for _ in range(20):
        for _ in range(16):
            if (work := next(due(edges, Levels(8), rolled_until), None)) is not None:
                edges = ordered([*edges, edge(work.base, work.version)])
        plan = retention(edges, Wanted(readers={"far": 1}), Floors(10, 0), 0.0)
        rolled_until = max(rolled_until, plan.rolled_until)
        edges = [edge for edge in edges if plan.why(edge.base, edge.version)]
    road = cheapest(edges, 1, 1000)
    assert road is not None
    assert len(road) < 60


def test_what_retention_gave_up_is_not_owed_again() -> None:
    assert [(work.base, work.version) for work in due(chain(25), Levels(8))] == [(8, 16), (16, 24)]
    assert [(work.base, work.version) for work in due(chain(25), Levels(8), rolled_until=16)] == [(16, 24)]
