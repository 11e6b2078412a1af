"""The planner: the edges, fewest bytes, from the version a consumer holds to the one it wants. A plan is a value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, Literal

from broker.errors import NotFound
from broker.model.commit import Edge
from broker.model.request import Cursor, ResetReason, Selection
from broker.rules.fold import State

EVERYTHING: Final = Selection()
_BY_VERSION: Final = attrgetter("version")


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


def cheapest(edges: Iterable[Edge], held: int | None, want: int) -> tuple[Edge, ...] | None:
    """The cheapest road to `want` from `held` or from nothing; None when there is none. Ties: fewer edges, then from `held`.

    Edges lead forward only, so one pass by target version is a shortest path. O(edges).
    """
    best: dict[int | None, int] = {None: 1}
    last: dict[int, Edge] = {}
    if held is not None:
        best[held] = 0
    cost_of = best.get
    for edge in sorted(edges, key=_BY_VERSION):
        base, version, weight = edge.hop
        if version > want:
            break
        start = cost_of(base)
        if start is None or version == held:
            continue
        cost, known = start + weight, cost_of(version)
        if known is None or cost < known:
            best[version], last[version] = cost, edge
    if want not in best:
        return None
    road_back: list[Edge] = []
    at: int | None = want
    while at is not None and at in last:
        road_back.append(last[at])
        at = last[at].base
    return tuple(reversed(road_back))


def plan(edges: Sequence[Edge], held: int | None, want: int, reset: ResetReason | None = None) -> Plan:
    """How to get from `held` (None: nothing) to `want`. A given `reset` makes the held version count for nothing.

    A plan that starts anew though nothing speaks against `held` says `replaced` while edges to or from `held` are offered (a
    snapshot came later, or costs fewer bytes than the deltas), else `too-old`. Raises NotFound when no road leads to `want`.
    """
    if held is not None and reset is None and held > want:
        reset = "rolled-back"
    base = None if reset else held
    if base == want:
        return Plan(base, want)
    road = cheapest(edges, base, want)
    if road is None:
        raise NotFound(
            "no road leads to this version", of=f"version {want}", why="its edges are retired", hint="Ask for a newer one"
        )
    if road and road[0].base is None:
        return Plan(None, want, road, reset or (None if held is None else _passed_by(edges, held)))
    return Plan(base, want, road)


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


def _passed_by(edges: Sequence[Edge], held: int) -> ResetReason:
    return "replaced" if any(held in (edge.version, edge.base) for edge in edges) else "too-old"


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
    known = state.plans.get((held, target, reset))
    if known is None:
        known = state.plans[held, target, reset] = plan(state.edges, held, target, reset)
    return known
