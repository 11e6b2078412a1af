"""Retention: which edges may go. A pure plan that names, for every edge that stays, who needs it.

What stays, in this order:

    the newest version      its cheapest road from nothing
    channels                a road from nothing to what each names now, and to the last versions it named: a rollback's target
    holds                   a road from nothing to each version held
    floors                  the edges between the newest versions and the young ones, for who follows without a cursor
    cursors                 a road from where each live one stands to the newest version and to every channel's

The byte rule bounds the last two, each by the bytes of the snapshot on the newest version's road: what is kept for floors
alone, the oldest going first, and of that no more edges than a state can carry; and deltas and roll-ups for cursors, together
with those of the newest version's road. Those that stand nearest are served first, and each next one by the road that adds
fewest bytes to what is kept, so that roads run together: all who are ahead of a reader cost no more than the deltas from where
it stands. Who stands so far behind that its road does not fit takes the snapshot: a plan with a typed reset, never a gap. It is
named (`resets`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeAlias

from broker.model.commit import Edge
from broker.rules.fold import State
from broker.rules.patch import VersionInfo
from broker.rules.plan import cheapest

Pair: TypeAlias = tuple[int | None, int]
"""(base, version) of an edge."""
PRODUCTION_SECONDS: Final = 86_400
"""Whoever repeats a production later than that does it anew."""
FORGET_AT_ONCE: Final = 10_000
"""Of one record: a first cleaning of a long history must not hold up Redis."""
NEWEST: Final = "the newest version"
FLOOR: Final = "floor"


@dataclass(frozen=True, slots=True)
class Floors:
    """Roads kept though no cursor asks for them: between the newest `versions`, and all that are younger than `seconds`; for
    these alone at most `edges` stay."""

    versions: int
    seconds: float
    edges: int = 1 << 62


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who needs what. `versions`: reason -> versions that must be readable; `readers`: cursor's name -> version it stands at.

    `times`: version -> when it was committed (seconds since the epoch).
    """

    versions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    readers: Mapping[str, int] = field(default_factory=dict)
    times: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """`kept`: edge -> the first reason why. `retire`: what nobody needs, by version. `until`: no edge left touches a version
    up to this one, so these fold into a range. `resets`: cursors whose road did not fit, so that a snapshot is theirs."""

    kept: Mapping[Pair, str]
    retire: tuple[Edge, ...]
    until: int
    resets: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """What goes."""
        return sum(edge.bytes for edge in self.retire)

    def why(self, base: int | None, version: int) -> str | None:
        """The reason an edge stays; None when it goes, or is not there."""
        return self.kept.get((base, version))


def pair(edge: Edge) -> Pair:
    return edge.base, edge.version


def retention(edges: Sequence[Edge], wanted: Wanted, floors: Floors, now: float) -> RetentionPlan:
    """What may go of `edges` (of one session, by version) at `now`. O(edges x (versions wanted + versions read from))."""
    if not edges:
        return RetentionPlan({}, (), 0)
    kept = dict[Pair, str]()
    newest = edges[-1].version

    def keep(road: Iterable[Edge] | None, why: str) -> None:
        for edge in road or ():
            kept.setdefault(pair(edge), why)

    whole = cheapest(edges, None, newest)
    keep(whole, NEWEST)
    for why, versions in wanted.versions.items():
        for version in versions:
            keep(cheapest(edges, None, version), why)
    snapshot = whole[0].bytes if whole else 0
    young = (version for version, time in wanted.times.items() if time >= now - floors.seconds)
    _keep_floor(edges, min((newest - floors.versions + 1, *young)), (snapshot, floors.edges), kept)
    targets = sorted({newest, *(versions[0] for versions in wanted.versions.values() if versions)})
    budget = max(0, snapshot - sum(edge.bytes for edge in whole[1:])) if whole else 0
    passed_by = _keep_roads(edges, wanted.readers, targets, budget, kept)
    resets = tuple(name for name, at in wanted.readers.items() if at in passed_by)
    retire = tuple(edge for edge in edges if pair(edge) not in kept)
    least = min((version if base is None else base for base, version in kept), default=newest)
    return RetentionPlan(kept, retire, least - 1, resets)


def forgotten(
    state: State, retired: Iterable[Edge], wanted: Wanted, now: float
) -> tuple[list[VersionInfo], list[tuple[int, int]]]:
    """The versions that no edge touches once these are `retired`, at most FORGET_AT_ONCE, and the same as closed ranges.

    The newest is always remembered; a young one by whose production somebody may still find out that its work is done; and the
    one behind where a reader or a channel stands: since it came, that one is behind.
    """
    stands = {*wanted.readers.values(), *(version for versions in wanted.versions.values() for version in versions)}
    gone = {pair(edge) for edge in retired}
    touched = {version for edge in state.edges if pair(edge) not in gone for version in pair(edge)}
    touched |= {state.version, *(version + 1 for version in stands)}
    old = now - PRODUCTION_SECONDS
    idle = (info for info in state.versions if info.version not in touched and (not info.production or info.time < old))
    found, ranges = list(islice(idle, FORGET_AT_ONCE)), list[tuple[int, int]]()
    for info in found:
        first, last = ranges[-1] if ranges else (info.version, -1)
        joined = last == info.version - 1
        ranges[-1:] = [(first, info.version)] if joined else [*ranges[-1:], (info.version, info.version)]
    return found, ranges


def _keep_roads(
    edges: Sequence[Edge], readers: Mapping[str, int], targets: Sequence[int], budget: int, kept: dict[Pair, str]
) -> set[int]:
    """Roads from where readers stand, the nearest first, at most `budget` bytes that nobody else keeps.

    -> the versions from where a road did not fit: whoever stands there starts anew.
    """
    stands, passed_by = dict[int, str](), set[int]()
    for name, at in readers.items():
        stands.setdefault(at, name)  # one name for all that stand alike
    offered = {pair(edge): edge for edge in edges if edge.base is not None}
    priced = offered | {hop: _for_nothing(edge) for hop, edge in offered.items() if hop in kept}
    for at in sorted(stands, reverse=True):
        for target in targets:
            road = _road(edges, priced, at, target)
            wanted = [hop for hop in road if hop not in kept]
            if (size := sum(offered[hop].bytes for hop in wanted)) > budget:
                passed_by.add(at)
                continue
            budget -= size
            kept.update((hop, f"cursor {stands[at]}") for hop in wanted)
            priced.update((hop, _for_nothing(offered[hop])) for hop in wanted)
    return passed_by


def _road(edges: Sequence[Edge], priced: Mapping[Pair, Edge], at: int, target: int) -> list[Pair]:
    """What is to stay so that `at` is led on to `target`: the road that adds fewest bytes, `priced` being what each adds.

    It must hold fewer bytes than the way by the snapshot, or the planner would not take it: then the cheapest road, whatever it
    adds. Nothing for whom the snapshot is the cheapest anyway.
    """
    cheap = cheapest(edges, at, target) if at < target else None
    if not cheap or cheap[0].base is None:
        return []
    added = [pair(edge) for edge in cheapest(priced.values(), at, target) or ()]
    real, whole = {pair(edge): edge.bytes for edge in edges}, cheapest(edges, None, target)
    fits = whole is None or sum(map(real.__getitem__, added)) < sum(edge.bytes for edge in whole)
    return added if fits else [pair(edge) for edge in cheap]


def _for_nothing(edge: Edge) -> Edge:
    """The same hop without its bytes: another keeps it anyway."""
    return Edge(base=edge.base, version=edge.version)


def _keep_floor(edges: Sequence[Edge], first: int, most: tuple[int, int], kept: dict[Pair, str]) -> None:
    """Edges between the versions from `first` on, the newest first, at most so many bytes and so many of them."""
    budget, left = most
    for edge in reversed(edges):
        start = edge.version - 1 if edge.base is None else edge.base
        if start < first - 1 or pair(edge) in kept:
            continue
        budget, left = budget - edge.bytes, left - 1
        if budget < 0 or left < 0:
            break
        kept[pair(edge)] = FLOOR
