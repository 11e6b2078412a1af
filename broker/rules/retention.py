"""Retention: which edges may go. A pure plan that names, for every edge that stays, who needs it.

What stays, in this order:

    the newest version      its cheapest road from nothing
    channels                a road from nothing to what each names now, and to the last versions it named: a rollback's target
    holds                   a road from nothing to each version held
    cursors                 a road from where each live one stands to the newest version and to every channel's
    floors                  the edges between the newest versions and the young ones, for who follows without a cursor

The floors give way to the byte rule: edges kept for them alone never hold more than the snapshot on the newest version's road,
the oldest go first.
A cursor never gives way: its lease does, by lapsing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from broker.model.commit import Edge
from broker.rules.plan import cheapest

Pair: TypeAlias = tuple[int | None, int]
"""(base, version) of an edge."""
NEWEST: Final = "the newest version"
FLOOR: Final = "floor"


@dataclass(frozen=True, slots=True)
class Floors:
    """Roads kept though no cursor asks for them: between the newest `versions`, and all that are younger than `seconds`."""

    versions: int
    seconds: float


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
    up to this one, so these fold into a range."""

    kept: Mapping[Pair, str]
    retire: tuple[Edge, ...]
    until: int

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
    """What may go of `edges` (of one session, by version) at `now`. O(edges x (versions wanted + cursors))."""
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
    targets = {newest, *(versions[0] for versions in wanted.versions.values() if versions)}
    for name, at in wanted.readers.items():
        for target in targets:
            if at < target:
                keep(cheapest(edges, at, target), f"cursor {name}")
    young = (version for version, time in wanted.times.items() if time >= now - floors.seconds)
    _keep_floor(edges, min((newest - floors.versions + 1, *young)), whole[0].bytes if whole else 0, kept)
    retire = tuple(edge for edge in edges if pair(edge) not in kept)
    least = min((version if base is None else base for base, version in kept), default=newest)
    return RetentionPlan(kept, retire, least - 1)


def _keep_floor(edges: Sequence[Edge], first: int, budget: int, kept: dict[Pair, str]) -> None:
    """Edges between the versions from `first` on, the newest first, at most `budget` bytes of them."""
    for edge in reversed(edges):
        start = edge.version - 1 if edge.base is None else edge.base
        if start < first - 1 or pair(edge) in kept:
            continue
        budget -= edge.bytes
        if budget < 0:
            break
        kept[pair(edge)] = FLOOR
