"""The planner against an oracle that tries every road."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import NotFound
from broker.model.commit import Body, Create, Edge, NewEdge, NewVersion, Record, Retire
from broker.model.dataset import DatasetSpec
from broker.model.request import Cursor, Selection
from broker.rules.fold import State, fold
from broker.rules.plan import Plan, cheapest, comparable, plan, plan_for
from tests.rules.logs import DATASET, SPEC, file_of

VERSIONS = 7


@st.composite
def edge_sets(draw: st.DrawFn) -> list[Edge]:
    """Snapshots, deltas and roll-ups among a few versions, some retired, in any order; few sizes, so that roads tie."""
    pairs = [(base, version) for version in range(1, VERSIONS + 1) for base in (None, *range(version))]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=16))
    return [
        Edge(base=b, version=v, files=(file_of(f"{b}-{v}", draw(st.integers(0, 3))),), settled=b is not None and draw(RARELY))
        for b, v in chosen
    ]


RARELY = st.integers(0, 3).map(lambda number: number == 3)
HELD = st.none() | st.integers(0, VERSIONS + 1)
WANTED = st.integers(1, VERSIONS)


def roads(edges: list[Edge], at: int | None, want: int) -> Iterator[tuple[Edge, ...]]:
    """Every road from `at` (None: nothing) to `want`."""
    if at == want:
        yield ()
        return
    for edge in edges:
        if edge.base == at and edge.version <= want:
            yield from ((edge, *rest) for rest in roads(edges, edge.version, want))


def cost(road: tuple[Edge, ...]) -> tuple[int, int, int]:
    """Fewest bytes, then fewest edges, then from what is held."""
    return sum(edge.bytes for edge in road), len(road), int(bool(road) and road[0].base is None)


def over(edges: list[Edge], held: int | None, want: int, spanning: bool) -> Iterator[tuple[Edge, ...]]:
    """Every road whose first edge begins before `held`: a settled one, or (`spanning`) any."""
    for edge in edges:
        leads = spanning or edge.settled
        if leads and held is not None and edge.base is not None and edge.base < held < edge.version <= want:
            yield from ((edge, *rest) for rest in roads(edges, edge.version, want))


def best(edges: list[Edge], held: int | None, want: int, spanning: bool) -> tuple[int, int, int] | None:
    found = [*roads(edges, None, want), *(roads(edges, held, want) if held is not None else ())]
    return min(map(cost, [*found, *over(edges, held, want, spanning)]), default=None)


@given(edge_sets(), HELD, WANTED, st.booleans())
def test_the_road_found_is_one_of_the_cheapest(edges: list[Edge], held: int | None, want: int, spanning: bool) -> None:
    road = cheapest(edges, held, want, over=spanning)
    expected = best(edges, held, want, spanning)
    assert (None if road is None else cost(road)) == expected
    if road:
        here = roads(edges, held, want) if held is not None else ()
        assert road in {*roads(edges, None, want), *here, *over(edges, held, want, spanning)}


@given(edge_sets(), HELD, WANTED, st.booleans(), st.randoms())
def test_ties_do_not_make_the_cost_depend_on_the_order_of_edges(
    edges: list[Edge], held: int | None, want: int, spanning: bool, random: Random
) -> None:
    mixed = list(edges)
    random.shuffle(mixed)
    one, other = (cheapest(given, held, want, over=spanning) for given in (edges, mixed))
    assert (one and cost(one)) == (other and cost(other))


@given(edge_sets(), HELD, WANTED, st.booleans())
def test_a_plan_starts_where_it_says_and_leads_where_it_was_asked(
    edges: list[Edge], held: int | None, want: int, spanning: bool
) -> None:
    try:
        found = plan(edges, held, want, over=spanning)
    except NotFound:
        usable = None if held is not None and held > want else held
        assert best(edges, usable, want, spanning) is None
        return
    at = found.base
    for number, edge in enumerate(found.edges):
        leads = (spanning or edge.settled) and number == 0
        assert edge.base == at or (leads and at is not None and edge.base is not None and edge.base < at < edge.version)
        at = edge.version
    assert at == want == found.version
    assert found.base in (held, None)
    assert found.mode == ("unchanged" if found.base == want else "snapshot" if found.base is None else "delta")
    assert (found.reset is not None) == (held is not None and found.base is None)


@given(edge_sets(), WANTED)
def test_a_version_held_already_needs_nothing_even_if_all_is_retired(edges: list[Edge], want: int) -> None:
    assert plan(edges, want, want) == Plan(want, want)
    assert plan([], want, want).mode == "unchanged"


def test_a_held_version_beyond_the_wanted_one_is_rolled_back_from_a_snapshot() -> None:
    found = plan([_edge(None, 1, 5), _edge(1, 2, 1), _edge(2, 3, 1)], held=3, want=2)
    assert (found.reset, found.mode, len(found.edges)) == ("rolled-back", "snapshot", 2)


def test_a_slow_consumer_gets_the_roll_up_and_a_quick_one_the_delta() -> None:
    edges = [_edge(None, 1, 900), *(_edge(v - 1, v, 10) for v in range(2, 9)), _edge(1, 8, 40)]
    assert [(e.base, e.version) for e in plan(edges, 1, 8).edges] == [(1, 8)]
    assert [(e.base, e.version) for e in plan(edges, 7, 8).edges] == [(7, 8)]


def test_a_cheaper_snapshot_replaces_what_is_held_and_says_so() -> None:
    found = plan([_edge(None, 3, 1), _edge(1, 2, 5), _edge(2, 3, 5)], held=1, want=3)
    assert (found.mode, found.reset) == ("snapshot", "replaced")


def test_a_road_whose_deltas_are_retired_starts_from_a_snapshot() -> None:
    found = plan([_edge(None, 5, 100), _edge(5, 6, 1)], held=2, want=6)
    assert (found.reset, [edge.version for edge in found.edges]) == ("too-old", [5, 6])


def test_where_the_edges_from_here_are_retired_one_that_leads_over_this_version_does_it() -> None:
    offered = [_edge(None, 9, 100), _edge(1, 9, 40), _edge(5, 6, 1)]
    found = plan(offered, held=5, want=9, over=True)
    assert (found.base, found.reset, found.edges) == (5, None, (offered[1],))
    assert plan(offered, held=5, want=9).reset == "replaced", "with order columns: what came late might come to life"


def test_no_road_at_all_is_a_typed_error() -> None:
    with pytest.raises(NotFound, match="no road"):
        plan([_edge(3, 4, 1)], held=1, want=4)


@pytest.mark.parametrize(
    ("cursor", "asked", "reset"),
    [
        (None, True, None),
        (Cursor(version=1), False, None),
        (Cursor(version=1, session="s", selection="all"), False, None),
        (Cursor(version=1, session="other"), False, "new-session"),
        (Cursor(version=1, selection="else"), False, "filter-changed"),
        (Cursor(version=1), True, "asked"),
        (Cursor(version=9), False, "rolled-back"),
        (Cursor(version=2, session="other"), False, "new-session"),
    ],
)
def test_a_cursor_is_continued_or_reset_for_a_reason(cursor: Cursor | None, asked: bool, reset: str | None) -> None:
    found = plan_for(_two_versions(), cursor, Selection(), asked=asked)
    assert (found.reset, found.version) == (reset, 2)
    assert found.mode == ("snapshot" if reset or cursor is None else "delta")


def test_changes_of_a_dataset_with_an_order_are_compared_with_what_is_held_before_anyone_may_have_them() -> None:
    ordered = SPEC.model_copy(update={"order": ("at",)})
    for spec, held in ((SPEC, None), (ordered, (_edge(None, 1, 9),))):
        state = _two_versions(spec)
        assert comparable(state, plan_for(state, Cursor(version=1), Selection())).held == held
        unchanged = plan_for(state, Cursor(version=2), Selection())
        assert comparable(state, unchanged) == unchanged
        assert comparable(state, plan_for(state, None, Selection())).held == (None if spec is SPEC else ())
        alone = plan_for(state, None, Selection(), want=1)
        assert comparable(state, alone) == alone, "a snapshot alone has nothing to be compared with"


def test_where_the_road_to_what_is_held_is_retired_the_changes_cannot_be_compared_and_it_is_too_old() -> None:
    compacted = (NewEdge(edge=_edge(None, 2, 9)), Retire(edges=((None, 1),)))
    state = _two_versions(SPEC.model_copy(update={"order": ("at",)}), *compacted)
    found = plan_for(state, Cursor(version=1), Selection())
    assert found.mode == "delta"
    assert comparable(state, found) == Plan(None, 2, (_edge(None, 2, 9),), "too-old")


def _edge(base: int | None, version: int, size: int) -> Edge:
    return Edge(base=base, version=version, files=(file_of(f"{base}-{version}", size),))


def _two_versions(spec: DatasetSpec = SPEC, *later: Body) -> State:
    state, first = State(DATASET), NewVersion(edge=_edge(None, 1, 9))
    for body in (Create(session="s", spec=spec), first, NewVersion(edge=_edge(1, 2, 1)), *later):
        record = Record(seq=state.seq + 1, previous=state.sha, write_id="w", time=1.0, body=body)
        state = fold(state, record.to_bytes())
    return state
