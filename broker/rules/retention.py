"""Retention: which edges may go. A pure plan that names, for every edge that stays, who needs it.

What stays, in this order:

    the newest version      its cheapest road from nothing; and the newest snapshot, by which compaction judges what is due
    channels                a road from nothing to what each names now, and to the last versions it named: a rollback's target
    holds                   a road from nothing to each version held
    floors                  the edges between the newest versions and the young ones, for who follows without a cursor
    cursors                 a road from where each live one stands to the newest version and to every channel's

So nobody who lives loses its path: whom a road led on for fewer bytes than a snapshot, a road still leads on for fewer.

The byte rule, by the bytes of the snapshot on the newest version's road: so many, and no more edges than a state can carry, are
kept for floors alone, the oldest going first; and so many deltas and roll-ups for cursors, with those of the newest version's
road. Those that stand nearest are served first, and each next one by the road that adds fewest bytes to what is kept, so that
roads run together. Where not all fit, the road of the farthest one comes first: if it leads over (rules/plan.py), it leads all
who are ahead, and holds fewer bytes than the newest version's own road from nothing. With order columns there is none such at
first, and each of those left has its own. Where so the rule gives way, compaction makes room (rules/levels.py).
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
    up to this one, so these fold into a range. `crowded`: where the first reader stands, if the byte rule gives way."""

    kept: Mapping[Pair, str]
    retire: tuple[Edge, ...]
    until: int
    crowded: int | None = None

    @property
    def bytes(self) -> int:
        """What goes."""
        return sum(edge.bytes for edge in self.retire)

    @property
    def rolled_until(self) -> int:
        """The newest version of a delta or roll-up that goes; 0: of none."""
        return max((edge.version for edge in self.retire if edge.base is not None), default=0)

    @property
    def settled_until(self) -> int:
        """Of a settled one likewise."""
        return max((edge.version for edge in self.retire if edge.settled), default=0)

    def why(self, base: int | None, version: int) -> str | None:
        """The reason an edge stays; None when it goes, or is not there."""
        return self.kept.get((base, version))


def pair(edge: Edge) -> Pair:
    return edge.base, edge.version


def retention(edges: Sequence[Edge], wanted: Wanted, floors: Floors, now: float, *, over: bool = False) -> RetentionPlan:
    """What may go of `edges` (of one session, by version) at `now`. O(edges x (versions wanted + versions read from)).

    `over`: as of the planner.
    """
    if not edges:
        return RetentionPlan({}, (), 0)
    kept = dict[Pair, str]()
    newest = edges[-1].version

    def keep(road: Iterable[Edge] | None, why: str) -> None:
        for edge in road or ():
            kept.setdefault(pair(edge), why)

    whole = cheapest(edges, None, newest)
    keep(whole, NEWEST)
    keep(islice((edge for edge in reversed(edges) if edge.base is None), 1), NEWEST)
    for why, versions in wanted.versions.items():
        for version in versions:
            keep(cheapest(edges, None, version), why)
    snapshot = whole[0].bytes if whole else 0
    young = (version for version, time in wanted.times.items() if time >= now - floors.seconds)
    _keep_floor(edges, min((newest - floors.versions + 1, *young)), (snapshot, floors.edges), kept)
    behind = sum(edge.bytes for edge in whole[1:]) if whole else 0
    roads = _Roads(edges, wanted.readers, kept, over)
    roads.keep(newest, snapshot - behind)
    ruled = [edge.bytes for edge in edges if edge.base is not None and _by_rule(kept.get(pair(edge), FLOOR), wanted)]
    crowded = roads.farthest(newest) if sum(ruled) > snapshot else None
    for target in sorted({versions[0] for versions in wanted.versions.values() if versions}):
        roads.keep(target, 0)
    retire = tuple(edge for edge in edges if pair(edge) not in kept)
    least = min((version if base is None else base for base, version in kept), default=newest)
    return RetentionPlan(kept, retire, least - 1, crowded)


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


class _Roads:
    """Roads from where readers stand, added to what is `kept`."""

    def __init__(self, edges: Sequence[Edge], readers: Mapping[str, int], kept: dict[Pair, str], over: bool) -> None:
        self._kept, self._over, self._hops = kept, over, [edge.hop for edge in edges]
        self._fresh = max((version for base, version, _, _ in self._hops if base is None), default=0)
        self._bytes = {pair(edge): edge.bytes for edge in edges}
        self._stands = dict[int, str]()
        for name, at in sorted(readers.items(), key=itemgetter(1)):
            self._stands.setdefault(at, name)  # one name for all that stand alike

    def keep(self, target: int, budget: int) -> None:
        """What leads every reader on to `target` that is not better off with a snapshot, if it can be for `budget` bytes."""
        before, anew = dict(self._kept), _weight(road_of(self._hops, None, target) or ()) + 1
        self._keep_nearest(target, anew, budget)
        if self._keep_farthest(target, anew):
            self._kept.clear()
            self._kept.update(before)
            self._keep_nearest(target, anew, budget - self._keep_farthest(target, anew))

    def _keep_nearest(self, target: int, anew: int, left: int) -> None:
        """Roads that begin where readers stand, the nearest first, each that adds no more bytes than are `left`."""
        for at, name in reversed(self._stands.items()):
            if left <= 0:
                break
            road = self._road([hop for hop in self._ahead(at) if hop[0] is not None and hop[0] >= at], (at, target), anew)
            if self._added(road) <= left:
                left -= self._keep(road, name)

    def _keep_farthest(self, target: int, anew: int) -> int:
        """A road for each reader, the farthest first, that is not led on by what is kept. -> bytes added."""
        added = 0
        for at, name in self._stands.items():
            ahead = [hop for hop in self._ahead(at) if hop[0] is not None]
            led = road_of([hop for hop in ahead if hop[:2] in self._kept], at, target, over=self._over)
            if not led or _weight(led) >= anew:
                leading = [hop for hop in ahead if self._over or hop[3] or (hop[0] or 0) >= self._fresh]
                road = self._road(leading, (at, target), anew) or self._road(ahead, (at, target), anew)
                added += self._keep(road, name)
        return added

    def farthest(self, target: int) -> int | None:
        """Where the first road to `target` begins, of those that hold fewer bytes than the one from nothing."""
        anew = _weight(road_of(self._hops, None, target) or ()) + 1
        roads = (self._road([hop for hop in self._ahead(at) if hop[0] is not None], (at, target), anew) for at in self._stands)
        return next((hop[0] for road in roads for hop in road), None)

    def _ahead(self, at: int) -> Sequence[Hop]:
        return self._hops[bisect_right(self._hops, at, key=itemgetter(1)) :]

    def _road(self, hops: Sequence[Hop], ends: tuple[int, int], anew: int) -> Sequence[Hop]:
        """What is to stay so that one end leads to the other: the road that adds fewest bytes to what is kept.

        It must weigh less than the road from nothing, or the planner would not take it: then the cheapest one. None for whom
        that from nothing is the cheapest anyway.
        """
        cheap = road_of(hops, *ends, over=self._over)
        if not cheap or _weight(cheap) >= anew:
            return ()
        priced = {hop_of(*hop[:2], 0, hop[3]) if hop[:2] in self._kept else hop: hop for hop in hops}
        shared = [priced[hop] for hop in road_of(list(priced), *ends, over=self._over) or ()]
        return shared if _weight(shared) < anew else cheap

    def _keep(self, road: Sequence[Hop], name: str) -> int:
        size = self._added(road)
        for hop in road:
            self._kept.setdefault(hop[:2], f"cursor {name}")
        return size

    def _added(self, road: Iterable[Hop]) -> int:
        return sum(self._bytes[hop[:2]] for hop in road if hop[:2] not in self._kept)


def _by_rule(why: str, wanted: Wanted) -> bool:
    """Whether it counts for the byte rule of cursors."""
    return why != FLOOR and why not in wanted.versions


def _weight(road: Iterable[Hop]) -> int:
    return sum(hop[2] for hop in road)


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
