"""The planner: the edges, fewest bytes, from the version a consumer holds to the one it wants. A plan is a value.

Edges lead from where one ends to where the next begins. In a dataset without order columns the first may begin before what is
held (`over`): an edge names whole rows and the keys that are gone, so it takes whoever stands between its ends to its end, and
what is held already is only written again (P6). So a road for one consumer leads all who are ahead of it. With order columns it
may hold rows that came late, and were refused by tombstones which the one who reads them again no longer has: there only what
compaction settled leads over.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Final, Literal

from broker.errors import NotFound
from broker.model.commit import Edge, Hop
from broker.model.request import Cursor, ResetReason, Selection
from broker.rules.fold import State

EVERYTHING: Final = Selection()
_BY_VERSION: Final = itemgetter(1)


@dataclass(frozen=True, slots=True)
class Plan:
    """Apply `edges` in order. `base` None: start from nothing; `reset` says why a held version does not count.

    `held` None: the files may be handed out as they are. Else they hold what only a comparison by order shows to be late, a
    delta's with what these edges lead to, and are merged first.
    """

    base: int | None
    version: int
    edges: tuple[Edge, ...] = ()
    reset: ResetReason | None = None
    held: tuple[Edge, ...] | None = None

    @property
    def mode(self) -> Literal["snapshot", "delta", "unchanged"]:
        if self.base == self.version:
            return "unchanged"
        return "snapshot" if self.base is None else "delta"

    @property
    def bytes(self) -> int:
        return sum(edge.bytes for edge in self.edges)


def cheapest(edges: Iterable[Edge], held: int | None, want: int, *, over: bool = False) -> tuple[Edge, ...] | None:
    """The cheapest road to `want` from `held` or from nothing; None when there is none. Ties: fewer edges, then from `held`.

    O(edges).
    """
    found = {edge.hop: edge for edge in edges}
    road = road_of(sorted(found, key=_BY_VERSION), held, want, over=over)
    return None if road is None else tuple(found[hop] for hop in road)


def road_of(hops: Sequence[Hop], held: int | None, want: int, *, over: bool = False) -> list[Hop] | None:
    """`cheapest` over hops, by version. Edges lead forward only, so one pass over them is a shortest path."""
    best: dict[int | None, int] = {None: 1}
    last: dict[int | None, Hop] = {}
    at = -1
    if held is not None:
        best[held], at = 0, held
        if over and held < want:  # then a road from nothing over what is held costs more than its end, from here
            hops = hops[bisect_right(hops, held, key=_BY_VERSION) :]
    cost_of = best.get
    for hop in hops:
        base, version, weight, settled = hop
        if version > want:
            break
        start = 0 if (over or settled) and base is not None and base < at < version else cost_of(base)
        if start is None or version == held:
            continue
        cost, known = start + weight, cost_of(version)
        if known is None or cost < known:
            best[version], last[version] = cost, hop
    if want not in best:
        return None
    road: list[Hop] = []
    end: int | None = want
    while end in last:
        road.append(hop := last[end])
        end = at if _over(hop, at, over) else hop[0]
    return road[::-1]


def plan(
    edges: Iterable[Edge], held: int | None, want: int, reset: ResetReason | None = None, *, over: bool = False
) -> Plan:  # fmt: skip
    """How to get from `held` (None: nothing) to `want`. A given `reset` makes the held version count for nothing.

    A plan that starts anew though nothing speaks against `held` says `replaced` while edges to or from `held`, or over it, are
    offered (a snapshot came later, or costs fewer bytes than the deltas), else `too-old`. Raises NotFound when no road leads to
    `want`.
    """
    found = {edge.hop: edge for edge in edges}
    return _plan((sorted(found, key=_BY_VERSION), over), lambda road: tuple(found[hop] for hop in road), held, want, reset)


def _plan(
    offered: tuple[Sequence[Hop], bool], edges_of: Callable[[Sequence[Hop]], tuple[Edge, ...]], held: int | None, want: int,
    reset: ResetReason | None,
) -> Plan:  # fmt: skip
    if held is not None and reset is None and held > want:
        reset = "rolled-back"
    base = None if reset else held
    if base == want:
        return Plan(base, want)
    hops, over = offered
    road = road_of(hops, base, want, over=over)
    if road is None:
        raise NotFound(
            "no road leads to this version", of=f"version {want}", why="its edges are retired", hint="Ask for a newer one"
        )
    edges = edges_of(road)
    if edges and edges[0].base is None:
        return Plan(None, want, edges, reset or (None if held is None else _passed_by(hops, held, over)))
    return Plan(base, want, edges)


def comparable(state: State, found: Plan) -> Plan:
    """The plan with what its changes must be compared with before anyone without a notion of order may have them.

    Where that is retired, the plan starts anew.
    """
    if not state.spec.order or not found.edges or (found.base is None and len(found.edges) == 1):
        return found
    if found.base is None:
        return replace(found, held=())
    try:
        return replace(found, held=plan_for(state, None, EVERYTHING, found.base).edges)
    except NotFound:
        return comparable(state, plan(state.edges, found.base, found.version, "too-old"))


def _passed_by(hops: Iterable[Hop], held: int, over: bool) -> ResetReason:
    return "replaced" if any(held in hop[:2] or _over(hop, held, over) for hop in hops) else "too-old"


def _over(hop: Hop, held: int, over: bool) -> bool:
    """Whether it leads on who holds a version between its ends."""
    base, version, _, settled = hop
    return (over or settled) and base is not None and base < held < version


def reset_of(state: State, cursor: Cursor | None, selection: Selection, asked: bool = False) -> ResetReason | None:
    """Why a cursor cannot be continued with this selection; None when it can, or when there is none."""
    if cursor is None:
        return None
    if cursor.session is not None and cursor.session != state.session:
        return "new-session"
    if cursor.selection is not None and cursor.selection != selection.fingerprint:
        return "filter-changed"
    return "asked" if asked else None


def plan_for(state: State, cursor: Cursor | None, selection: Selection, want: int | None = None, asked: bool = False) -> Plan:
    """The plan for a consumer of `state`; `want` None: the newest version. Remembered for as long as the state is."""
    held, target = cursor.version if cursor else None, state.version if want is None else want
    reset = reset_of(state, cursor, selection, asked)
    if reset is None and held is not None and held < state.erased_until <= target:
        reset = "too-old"  # the delete of a key that it may hold is gone
    known = state.plans.get((held, target, reset))
    if known is None:
        known = state.plans[held, target, reset] = _plan((state.hops, state.leads_over), state.edges_of, held, target, reset)
    return known
