"""The planner against oracles: every road tried on small histories, another algorithm on 10,000 edges; its typed resets too.

Histories are grown as the product grows them: versions, what compaction owes, what retention gives up, in any interleaving.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import NotFound
from broker.model.commit import Edge
from broker.model.request import Cursor, Selection
from broker.rules.fold import State, replay
from broker.rules.levels import Levels, Merge, due, making_room, tight
from broker.rules.plan import Plan, cheapest, plan, plan_for
from broker.rules.retention import Floors, Pair, Wanted, retention
from tests.rules.logs import DATASET, file_of, logs

SEEN = Selection(where="n < 2")
Cost = tuple[int, int, bool]
"""Bytes, edges, and whether it starts from nothing: what a road is chosen by."""


def edge(base: int | None, version: int, size: int, settled: bool = False) -> Edge:
    return Edge(base=base, version=version, files=(file_of(f"{base}-{version}", size),), settled=settled)


def ordered(edges: Iterable[Edge]) -> list[Edge]:
    return sorted(edges, key=lambda edge: (edge.version, -1 if edge.base is None else edge.base))


def every_road(edges: Iterable[Edge], held: int | None, want: int, spanning: bool) -> list[tuple[Edge, ...]]:
    """From `held` and from nothing, and from before `held` over it (what is settled, if `spanning` all); tried one by one."""
    edges = list(edges)

    def roads(at: int | None) -> Iterable[tuple[Edge, ...]]:
        if at == want:
            yield ()
            return
        for edge in edges:
            if edge.base == at and edge.version <= want:
                yield from ((edge, *rest) for rest in roads(edge.version))

    if held is None or held == want:
        return [*roads(None), *(roads(held) if held is not None else ())]
    over = [
        (edge, *rest)
        for edge in edges
        if (spanning or edge.settled) and edge.base is not None and edge.base < held < edge.version <= want
        for rest in roads(edge.version)
    ]  # fmt: skip
    return [*roads(None), *roads(held), *over]


def cost(road: Iterable[Edge]) -> Cost:
    road = list(road)
    return sum(edge.bytes for edge in road), len(road), bool(road) and road[0].base is None


def the_reset(state: State, cursor: Cursor, want: int, asked: bool) -> str | None:
    """In the words of the design."""
    if cursor.session not in (None, state.session):
        return "new-session"
    if cursor.selection not in (None, SEEN.fingerprint):
        return "filter-changed"
    if asked:
        return "asked"
    if cursor.version > want:
        return "rolled-back"
    best = min(every_road(state.edges, cursor.version, want, state.leads_over), key=cost)
    if cursor.version == want or best[0].base is not None:
        return None
    near = any(
        cursor.version in (edge.base, edge.version)
        or (edge.base is not None and edge.base < cursor.version < edge.version and (state.leads_over or edge.settled))
        for edge in state.edges
    )
    return "replaced" if near else "too-old"


@given(logs(), st.data())
def test_whatever_the_history_a_cursor_gets_the_cheapest_road_and_a_reset_says_why(
    log: list[bytes], data: st.DataObject
) -> None:
    state = replay(DATASET, log)
    cursor = Cursor(
        version=data.draw(st.integers(1, state.version + 2), "held"),
        session=data.draw(st.sampled_from([None, state.session, state.session, "another"])),
        selection=data.draw(st.sampled_from([None, SEEN.fingerprint, SEEN.fingerprint, "another"])),
    )
    want, asked = data.draw(st.integers(1, state.version + 1), "wanted"), data.draw(st.integers(0, 5)) == 0
    try:
        found = plan_for(state, cursor, SEEN, want, asked)
    except NotFound:
        fits = cursor.session in (None, state.session) and cursor.selection in (None, SEEN.fingerprint) and not asked
        usable = cursor.version if fits and cursor.version <= want else None
        assert every_road(state.edges, usable, want, state.leads_over) == []
        return
    assert found.reset == the_reset(state, cursor, want, asked)
    held = None if found.reset in ("new-session", "filter-changed", "asked", "rolled-back") else cursor.version
    assert cost(found.edges) == min(map(cost, every_road(state.edges, held, want, state.leads_over)))
    leads(found, cursor.version, want)


def leads(found: Plan, held: int, want: int) -> None:
    """From what is held, or from nothing and then with a reason."""
    at = found.base
    for number, part in enumerate(found.edges):
        over = number == 0 and at is not None and part.base is not None and part.base < at < part.version
        assert part.base == at or over
        at = part.version
    assert (at, found.version) == (want, want)
    assert (found.base is None) == (found.reset is not None)
    assert found.base in (None, held)


@given(st.data())
def test_any_past_version_is_answered_by_a_plan_or_a_reset_whatever_was_compacted_and_given_up(data: st.DataObject) -> None:
    edges: dict[Pair, Edge] = {(None, 1): edge(None, 1, data.draw(st.integers(20, 200)))}
    newest, sizes, over = 1, st.integers(1, 60), data.draw(st.booleans(), "over")
    levels = Levels(data.draw(st.integers(2, 4)), data.draw(st.sampled_from([0.1, 0.5, 5.0])))
    for deed in data.draw(st.lists(st.sampled_from(["delta"] * 6 + ["snapshot", "compact", "compact", "retire"]), max_size=30)):
        match deed:
            case "delta" | "snapshot":
                base, newest = (newest if deed == "delta" else None), newest + 1
                edges[base, newest] = edge(base, newest, data.draw(sizes))
            case "compact":
                known = ordered(edges.values())
                room = making_room(known, data.draw(st.integers(1, newest), "from"), levels, over=over)
                if (work := next(due(known, levels), room)) is not None:
                    edges[work.base, work.version] = edge(work.base, work.version, data.draw(sizes), bool(work.settled))
            case _:
                readers = {f"r{at}": at for at in data.draw(st.sets(st.integers(1, newest), max_size=4), "readers")}
                kept = retention(ordered(edges.values()), Wanted(readers=readers), Floors(1, 0), 0.0, over=over).kept
                edges = {hop: known for hop, known in edges.items() if hop in kept}
    offered = ordered(edges.values())
    for held in range(1, newest + 1):
        found = plan(offered, held, newest, over=over)
        leads(found, held, newest)
        assert (found.edges == ()) == (held == newest)
        assert found.edges == () or cost(found.edges) == min(map(cost, every_road(offered, held, newest, over)))


@given(st.data())
def test_compaction_and_retention_come_to_rest_whoever_reads(data: st.DataObject) -> None:
    """In turn, on random deltas, however many merges are made between two passes, and whatever sizes they turn out to have."""
    over, sizes = data.draw(st.booleans(), "over"), st.integers(1, 60)
    levels = Levels(data.draw(st.integers(2, 4)), data.draw(st.sampled_from([0.1, 0.5, 5.0])))
    edges: dict[Pair, Edge] = {(None, 1): edge(None, 1, data.draw(st.integers(20, 200)))}
    for version in range(2, data.draw(st.integers(3, 40), "newest")):
        edges[version - 1, version] = edge(version - 1, version, data.draw(sizes))
    readers = {f"r{at}": at for at in data.draw(st.sets(st.integers(1, version), max_size=6), "readers")}
    floors, rolled_until, settled_until = Floors(data.draw(st.integers(1, 12)), 0), 0, 0
    merges, made = data.draw(st.integers(1, 16), "merges"), dict[tuple[Pair, bool], int]()

    def owed() -> Merge | None:
        known = ordered(edges.values())
        crowded = retention(known, Wanted(readers=readers), floors, 0.0, over=over).crowded if tight(known, levels) else None
        room = None if crowded is None else making_room(known, crowded, levels, over=over, settled_until=settled_until)
        return next(due(known, levels, rolled_until), room)

    for _ in range(60):
        before = dict(edges)
        for _ in range(merges):
            if (work := owed()) is None:
                break
            what = (work.base, work.version), bool(work.settled)
            if what not in made:
                made[what] = data.draw(st.integers(1, max(2, min(work.bytes, 200))))
            edges[what[0]] = edge(*what[0], made[what], what[1])
        plan = retention(ordered(edges.values()), Wanted(readers=readers), floors, 0.0, over=over)
        rolled_until, settled_until = max(rolled_until, plan.rolled_until), max(settled_until, plan.settled_until)
        edges = {hop: known for hop, known in edges.items() if hop in plan.kept}
        if edges == before:
            return
    raise AssertionError("it goes on and on")


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_of_ten_thousand_edges_the_road_is_as_cheap_as_another_algorithm_finds(seed: int, over: bool) -> None:
    random = Random(seed)
    hops = [(version - 1 or None, version) for version in range(1, 7001)]
    edges: dict[Pair, Edge] = {hop: edge(*hop, random.randint(1, 50)) for hop in hops}
    while len(edges) < 10_000:
        version = random.randint(2, 7000)
        base = random.choice([None, max(1, version - random.choice([8, 64, 512, random.randint(2, 6000)]))])
        if base is None or base < version:
            size = random.randint(1, 2000) if base else random.randint(1000, 60_000)
            edges[base, version] = edge(base, version, size, settled=base is not None and random.random() < 0.1)
    offered = ordered(edges.values())
    want = 7000
    left = backwards(offered, want)
    for held in (None, 1, 2, 3500, 6400, 6992, 6999, *random.sample(range(1, 7000), 10)):
        here = [left[held]] if held in left else []
        if held is not None:
            leading = [part for part in offered if over or part.settled]
            spanning = [part for part in leading if part.base is not None and part.base < held < part.version]
            ends = [(part, left[part.version]) for part in spanning if part.version in left]
            here += [(part.bytes + size, 1 + count) for part, (size, count) in ends]
        ways = [left[None], *here]
        road = cheapest(offered, held, want, over=over)
        assert road is not None
        assert cost(road)[:2] == min(ways)


def backwards(edges: list[Edge], want: int) -> dict[int | None, tuple[int, int]]:
    """(bytes, edges) from each version, and from nothing, to `want`: from the end; the planner goes from the front."""
    out = dict[int | None, list[Edge]]()
    for part in edges:
        out.setdefault(part.base, []).append(part)
    left: dict[int | None, tuple[int, int]] = {want: (0, 0)}
    for at in (*range(want - 1, 0, -1), None):
        onward = [(part, left[part.version]) for part in out.get(at, ()) if part.version in left]
        ways = [(part.bytes + size, 1 + count) for part, (size, count) in onward]
        if ways:
            left[at] = min(ways)
    return left
