"""Laws of retention: nobody who lives loses a road, nothing is kept without a reason, and what is kept stays bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.model.commit import Edge, File
from broker.rules.plan import cheapest
from broker.rules.retention import FLOOR, NEWEST, Floors, Wanted, pair, retention

NONE = Floors(versions=1, seconds=0)


def edge(base: int | None, version: int, size: int = 10, settled: bool = False) -> Edge:
    file = File(role="rows" if base is None else "upserts", key=f"{base}-{version}", sha256="0" * 64, bytes=size, rows=1)
    return Edge(base=base, version=version, files=(file,), settled=settled)


def chain(newest: int, *more: Edge) -> list[Edge]:
    """A snapshot of 100 bytes at 1 and a delta of 10 to each version, and more edges."""
    edges = [edge(None, 1, 100), *(edge(version - 1, version) for version in range(2, newest + 1)), *more]
    return sorted(edges, key=lambda edge: (edge.version, -1 if edge.base is None else edge.base))


@st.composite
def histories(draw: st.DrawFn) -> list[Edge]:
    newest = draw(st.integers(1, 24))
    edges = {pair(edge): edge for edge in chain(newest)}
    for version in draw(st.lists(st.integers(2, 24), max_size=3)):
        if version <= newest:
            edges[None, version] = edge(None, version, draw(st.integers(20, 200)))
    for base, length in draw(st.lists(st.tuples(st.integers(1, 22), st.integers(2, 8)), max_size=5)):
        if base + length <= newest:
            edges[base, base + length] = edge(base, base + length, draw(st.integers(5, 60)), draw(st.booleans()))
    return sorted(edges.values(), key=lambda edge: (edge.version, -1 if edge.base is None else edge.base))


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Edge], Wanted, Floors]:
    edges = draw(histories())
    newest = edges[-1].version
    some = st.lists(st.integers(1, newest), max_size=4)
    wanted = Wanted(
        versions={f"channel c{number}": versions for number, versions in enumerate(draw(st.lists(some, max_size=3)))},
        readers={f"r{number}": version for number, version in enumerate(draw(some))},
        times={version: float(version) for version in range(1, newest + 1)},
    )
    return edges, wanted, Floors(draw(st.integers(1, 6)), draw(st.integers(0, 30)))


@given(situations(), st.booleans())
def test_what_is_left_leads_every_reader_and_every_wanted_version_where_it_led_before(
    situation: tuple[list[Edge], Wanted, Floors], over: bool
) -> None:
    """Whoever had a road for fewer bytes than a snapshot has one, to the newest version and to what each channel names."""
    edges, wanted, floors = situation
    newest = edges[-1].version
    plan = retention(edges, wanted, floors, float(newest), over=over)
    left = [edge for edge in edges if plan.why(edge.base, edge.version)]
    assert cheapest(left, None, newest) == cheapest(edges, None, newest)
    for versions in wanted.versions.values():
        for version in versions:
            assert cheapest(left, None, version) == cheapest(edges, None, version)
    for at in wanted.readers.values():
        for target in {newest, *(versions[0] for versions in wanted.versions.values() if versions)}:
            assert at >= target or anew(left, at, target, over) == anew(edges, at, target, over)
        assert at == newest or cheapest(left, at, newest) is not None


def anew(edges: list[Edge], at: int, target: int, over: bool) -> bool:
    """Whether the planner sends `at` to a snapshot, or nothing leads to `target`."""
    road = cheapest(edges, at, target, over=over)
    return not road or road[0].base is None


@given(situations())
def test_each_begins_where_it_stands_while_the_deltas_from_the_farthest_reader_on_would_fit(
    situation: tuple[list[Edge], Wanted, Floors],
) -> None:
    edges, wanted, floors = situation
    newest = edges[-1].version
    plan = retention(edges, Wanted(readers=wanted.readers), floors, now=float(newest))
    left = [edge for edge in edges if plan.why(edge.base, edge.version)]
    whole = cheapest(edges, None, newest)
    assert whole is not None
    farthest = min(wanted.readers.values(), default=newest)
    chain = [edge for edge in edges if edge.base is not None and farthest <= edge.base == edge.version - 1]
    if sum({pair(edge): edge.bytes for edge in (*chain, *whole[1:])}.values()) <= whole[0].bytes:
        for at in set(wanted.readers.values()) - {newest}:
            exact, road = (cheapest([edge for edge in given if (edge.base or at) >= at], at, newest) for given in (edges, left))
            assert exact is not None
            assert road is not None
            assert exact[0].base is None or road[0].base == at


@given(situations())
def test_what_is_kept_for_cursors_holds_no_more_than_the_snapshot_or_is_the_road_of_the_farthest(
    situation: tuple[list[Edge], Wanted, Floors],
) -> None:
    edges, wanted, floors = situation
    newest = edges[-1].version
    plan = retention(edges, Wanted(readers=wanted.readers), floors, float(newest), over=True)
    whole = cheapest(edges, None, newest)
    assert whole is not None
    mine = [one for one in edges if (plan.why(one.base, one.version) or "").startswith("cursor")]
    read, behind, anew = sum(one.bytes for one in mine), sum(one.bytes for one in whole[1:]), sum(one.bytes for one in whole)
    if read and read + behind > whole[0].bytes:
        farthest = next(at for at in sorted(set(wanted.readers.values())) if not starts_anew(edges, at, newest))
        assert {plan.why(one.base, one.version) for one in mine} == {
            f"cursor {next(name for name, at in wanted.readers.items() if at == farthest)}"
        }
        assert read < anew
        assert behind, "beside a fresh snapshot every road fits"


def starts_anew(edges: list[Edge], at: int, target: int) -> bool:
    return at == target or anew(edges, at, target, over=True)


@given(situations())
def test_what_is_left_loses_nothing_more_while_nothing_changes(situation: tuple[list[Edge], Wanted, Floors]) -> None:
    edges, wanted, floors = situation
    now = float(edges[-1].version)
    plan = retention(edges, wanted, floors, now)
    left = [edge for edge in edges if plan.why(edge.base, edge.version)]
    assert retention(left, wanted, floors, now).retire == ()


@given(situations())
def test_every_edge_is_kept_for_a_reason_or_retired(situation: tuple[list[Edge], Wanted, Floors]) -> None:
    edges, wanted, floors = situation
    plan = retention(edges, wanted, floors, now=float(edges[-1].version))
    assert {pair(edge) for edge in plan.retire} | set(plan.kept) == {pair(edge) for edge in edges}
    assert not {pair(edge) for edge in plan.retire} & set(plan.kept)
    assert all(version > plan.until for _, version in plan.kept)


@given(situations())
def test_what_is_kept_for_the_floor_alone_holds_no_more_than_the_newest_snapshot(
    situation: tuple[list[Edge], Wanted, Floors],
) -> None:
    edges, wanted, floors = situation
    plan = retention(edges, wanted, floors, now=float(edges[-1].version))
    road = cheapest(edges, None, edges[-1].version)
    budget = road[0].bytes if road else 0
    assert sum(edge.bytes for edge in edges if plan.why(edge.base, edge.version) == FLOOR) <= budget


def test_deltas_behind_a_newer_snapshot_go_when_nobody_reads_them() -> None:
    edges = chain(10, edge(None, 8, 50))
    plan = retention(edges, Wanted(), NONE, now=100)
    assert plan.why(None, 8) == NEWEST
    assert [pair(edge) for edge in plan.retire] == [(None, 1), *((version - 1, version) for version in range(2, 9))]
    assert plan.until == 7


def test_a_reader_far_behind_keeps_its_road_and_its_name_is_told() -> None:
    edges = chain(10, edge(None, 8, 90))
    plan = retention(edges, Wanted(readers={"search": 3}), NONE, now=100)
    assert plan.why(3, 4) == plan.why(7, 8) == "cursor search"
    assert plan.why(2, 3) is None


def test_where_not_all_roads_fit_the_farthest_one_leads_everybody_and_the_nearest_begin_where_they_stand() -> None:
    edges = chain(30, edge(None, 30, 100), edge(10, 30, 60))
    readers = {"far": 10, "near": 24, "nearer": 28, "there": 30}
    plan = retention(edges, Wanted(readers=readers), NONE, 100, over=True)
    assert plan.why(10, 30) == "cursor far"
    assert [plan.why(version, version + 1) for version in (24, 25, 28, 29)] == [None, None, "cursor nearer", FLOOR]
    left = [edge for edge in edges if plan.why(edge.base, edge.version)]
    assert [[pair(edge) for edge in cheapest(left, at, 30, over=True) or ()] for at in (10, 24, 28)] == [
        [(10, 30)], [(10, 30)], [(28, 29), (29, 30)],
    ]  # fmt: skip


def test_with_order_columns_nobody_is_led_from_before_and_each_keeps_a_road_of_its_own() -> None:
    edges = chain(30, edge(None, 30, 100), edge(10, 30, 60))
    plan = retention(edges, Wanted(readers={"far": 10, "near": 24}), NONE, 100, over=False)
    assert [plan.why(10, 30), plan.why(24, 25)] == ["cursor far", "cursor near"]


def test_with_order_columns_a_settled_edge_leads_everybody_and_until_there_is_one_the_plan_says_so() -> None:
    readers = {"far": 10, "near": 24}
    without = chain(30, edge(None, 29, 100), edge(10, 30, 60))
    plan = retention(without, Wanted(readers=readers), NONE, 100)
    assert (plan.why(10, 30), plan.why(24, 25), plan.crowded) == ("cursor far", "cursor near", 10)
    plan = retention(chain(30, edge(None, 29, 100), edge(10, 29, 60, True)), Wanted(readers=readers), NONE, 100)
    assert (plan.why(10, 29), plan.why(24, 25), plan.crowded) == ("cursor far", None, None)


def test_only_a_plan_whose_cursors_keep_more_than_the_snapshot_is_crowded() -> None:
    edges = chain(10, edge(None, 10, 100))
    assert retention(edges, Wanted(readers={"far": 1}), NONE, 100).crowded is None
    assert retention(edges, Wanted(versions={"hold h": [9]}, readers={"far": 1}), NONE, 100).crowded is None


def test_a_reader_joins_the_road_of_a_nearer_one_where_its_own_would_cost_more() -> None:
    edges = chain(30, edge(None, 30, 100), edge(21, 30, 60))
    plan = retention(edges, Wanted(readers={"far": 21, "near": 24}), NONE, now=100)
    assert plan.why(21, 30) is None
    assert [plan.why(version, version + 1) for version in (20, 21, 23, 24)] == [None, *["cursor far"] * 2, "cursor near"]


def test_a_reader_keeps_its_own_road_where_the_common_one_would_be_longer_than_the_snapshots() -> None:
    edges = chain(30, edge(None, 30, 100), edge(12, 30, 30))
    plan = retention(edges, Wanted(readers={"far": 12, "near": 23}), NONE, now=100)
    assert (plan.why(12, 30), plan.why(23, 24)) == ("cursor far", "cursor near")


def test_who_walks_where_others_walk_anyway_costs_nothing() -> None:
    edges = chain(30)  # no younger snapshot: the newest version's own road is all of it
    plan = retention(edges, Wanted(readers={"far": 2, "near": 29}), NONE, now=100)
    assert plan.retire == ()


def test_a_channel_keeps_what_it_may_be_rolled_back_to() -> None:
    edges = chain(10, edge(None, 5, 40), edge(None, 9, 40))
    plan = retention(edges, Wanted(versions={"channel production": [9, 5]}), NONE, now=100)
    assert plan.why(None, 5) == "channel production"
    assert plan.why(4, 5) is None


def test_the_floor_keeps_the_roads_between_the_newest_versions() -> None:
    edges = chain(20, edge(None, 20, 100))
    plan = retention(edges, Wanted(), Floors(versions=4, seconds=0), now=100)
    assert [plan.why(version - 1, version) for version in (16, 17, 18, 19, 20)] == [None, *[FLOOR] * 4]
    bound = retention(edges, Wanted(), Floors(versions=4, seconds=0, edges=2), now=100)
    assert [bound.why(version - 1, version) for version in (17, 18, 19, 20)] == [None, None, FLOOR, FLOOR]


def test_a_floor_of_one_version_keeps_no_snapshot_before_it() -> None:
    edges = [edge(None, version) for version in range(1, 5)]
    plan = retention(edges, Wanted(), NONE, now=100)
    assert [pair(edge) for edge in plan.retire] == [(None, 1), (None, 2), (None, 3)]
    assert plan.until == 3


def test_young_versions_stay_whatever_their_number() -> None:
    edges = chain(6, edge(None, 6, 100))
    times = {version: float(version) for version in range(1, 7)}
    plan = retention(edges, Wanted(times=times), Floors(versions=1, seconds=3), now=6.0)
    assert plan.why(2, 3) == FLOOR
    plan = retention(edges, Wanted(times=times), Floors(versions=1, seconds=1), now=6.0)
    assert plan.why(2, 3) is None


def test_without_edges_there_is_nothing_to_do() -> None:
    assert retention([], Wanted(), NONE, now=0).retire == ()
