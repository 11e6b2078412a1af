"""Retention: which edges may go. A pure plan that names, for every edge that stays, who needs it.

What stays, in this order:

    the newest version      its cheapest road from nothing
    channels                a road from nothing to what each names now, and to the last versions it named: a rollback's target
    holds                   a road from nothing to each version held
    floors                  the edges between the newest versions and the young ones, for who follows without a cursor
    cursors                 to the newest version and to what each channel names, a road from the farthest live one that a
                            snapshot would cost more. It leads all who are ahead of that one, too (rules/plan.py). Then,
                            the nearest first, roads that begin where the others stand

So nobody who lives loses its path: whom a road led on for fewer bytes than a snapshot, a road still leads on for fewer.

The byte rule: by the bytes of the snapshot on the newest version's road is bounded what is kept for floors alone, the oldest
going first, and of that no more edges than a state can carry; and deltas and roll-ups for cursors on the way to the newest
version, with those of its own road. The farthest one's road is less than the snapshot, so it fits where no deltas lie behind
that; else the plan is `overdrawn`, and a fresh snapshot sets it right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Final, TypeAlias

from broker.model.commit import Edge, Hop, hop_of
from broker.rules.fold import State
from broker.rules.patch import VersionInfo
from broker.rules.plan import cheapest, road_of

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
    up to this one, so these fold into a range. `overdrawn`: the byte rule does not hold until the newest version has a fresh
    snapshot."""

    kept: Mapping[Pair, str]
    retire: tuple[Edge, ...]
    until: int
    overdrawn: bool = False

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
    behind = sum(edge.bytes for edge in whole[1:]) if whole else 0
    channels = {versions[0] for versions in wanted.versions.values() if versions}
    overdrawn = _keep_roads(_Roads(edges, wanted.readers, kept), (newest, *sorted(channels)), snapshot - behind) and behind > 0
    retire = tuple(edge for edge in edges if pair(edge) not in kept)
    least = min((version if base is None else base for base, version in kept), default=newest)
    return RetentionPlan(kept, retire, least - 1, overdrawn)


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


def _keep_roads(roads: _Roads, targets: Sequence[int], budget: int) -> bool:
    """Roads for cursors to the newest version, the first of `targets`, and to the others. -> whether they exceed the budget.

    All together, where they fit; else the farthest one's comes first, which can lead the others, too.
    """
    newest, *channels = targets
    kept = dict(roads.kept)
    left = roads.keep_nearest(newest, budget)
    if roads.keep_farthest(newest):
        roads.kept.clear()
        roads.kept.update(kept)
        left = budget - roads.keep_farthest(newest)
        roads.keep_nearest(newest, left)
    for target in channels:
        roads.keep_farthest(target)
    return left < min(0, budget)


class _Roads:
    """Roads from where readers stand, added to what is `kept`."""

    def __init__(self, edges: Sequence[Edge], readers: Mapping[str, int], kept: dict[Pair, str]) -> None:
        self.kept = kept
        self._hops, self._bytes = [edge.hop for edge in edges], {pair(edge): edge.bytes for edge in edges}
        self._stands = dict[int, str]()
        for name, at in sorted(readers.items(), key=itemgetter(1)):
            self._stands.setdefault(at, name)  # one name for all that stand alike

    def keep_nearest(self, target: int, left: int) -> int:
        """Roads to `target` that begin where readers stand, the nearest first, each that adds no more bytes than are `left`.

        -> bytes left.
        """
        for at, name in reversed(self._stands.items()):
            if left <= 0:
                break
            ahead = self._hops[bisect_right(self._hops, at, key=itemgetter(1)) :]
            road = self._road([hop for hop in ahead if hop[0] is None or hop[0] >= at], at, target)
            if self._added(road) <= left:
                left -= self._keep(road, name)
        return left

    def keep_farthest(self, target: int) -> int:
        """A road to `target` for the farthest reader that is not better off with a snapshot. -> bytes added."""
        for at, name in self._stands.items():
            if road := self._road(self._hops, at, target):
                left = road_of([hop for hop in self._hops if hop[:2] in self.kept], at, target)
                return 0 if left and left[0][0] is not None else self._keep(road, name)
        return 0

    def _road(self, hops: Sequence[Hop], at: int, target: int) -> Sequence[Hop]:
        """What is to stay so that `at` is led on over `hops`: the road that adds fewest bytes to what is kept.

        It must hold fewer bytes than the way by the snapshot, or the planner would not take it: then the cheapest road. Nothing
        for whom the snapshot is the cheapest anyway.
        """
        cheap = road_of(hops, at, target) if at < target else None
        if not cheap or cheap[0][0] is None:
            return ()
        shared = road_of(self._priced(hops), at, target) or ()
        anew = road_of(self._hops, None, target)
        return shared if anew is None or self._cost(shared) < self._cost(anew) else cheap

    def _priced(self, hops: Iterable[Hop]) -> list[Hop]:
        """Deltas and roll-ups, each with the bytes it adds: none where another keeps it anyway."""
        offered = (hop for hop in hops if hop[0] is not None)
        return [hop_of(*hop[:2], 0) if hop[:2] in self.kept else hop for hop in offered]

    def _keep(self, road: Sequence[Hop], name: str) -> int:
        size = self._added(road)
        for hop in road:
            self.kept.setdefault(hop[:2], f"cursor {name}")
        return size

    def _added(self, road: Iterable[Hop]) -> int:
        return sum(self._bytes[hop[:2]] for hop in road if hop[:2] not in self.kept)

    def _cost(self, road: Iterable[Hop]) -> int:
        return sum(self._bytes[hop[:2]] for hop in road)


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
