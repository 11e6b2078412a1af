"""Compaction levels as data, and what is due: roll-ups over powers of k deltas, and a snapshot when deltas grow heavy.

A roll-up of level L covers versions (m * k**L, (m + 1) * k**L]: such ranges nest, so every state is reached over O(k log n)
edges, and two compactors that look at one history want the same work. (Levels: benbjohnson/litestream, compaction_level.go.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

from broker.model.commit import Edge
from broker.rules.plan import cheapest

FACTOR: Final = 8
"""Edges that one roll-up stands for: bytes are rewritten log8(n) times, and a consumer far behind reads at most 7 a level."""
_VERSION: Final = attrgetter("version")
SNAPSHOT_RATIO: Final = 0.5
"""A fresh snapshot is due when the deltas behind the newest one hold so much of its bytes."""
CROWDED_RATIO: Final = 1 / 32
"""The same where what readers need exceeds the snapshot's bytes: so much more than those may be stored until then."""


@dataclass(frozen=True, slots=True)
class Levels:
    """`factor`: k. A snapshot is due when the deltas behind the newest hold more than `snapshot_ratio` of its bytes, and at
    least `snapshot_least_bytes`: for less, who holds a version would only get a snapshot for a delta. For the sake of room
    (`making_room`) the snapshot itself is to hold so many."""

    factor: int = FACTOR
    snapshot_ratio: float = SNAPSHOT_RATIO
    snapshot_least_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Merge:
    """One piece of work: the edge from `base` (None: a snapshot) to `version`, made of `edges`, a road that leads there.

    `settled`: the edge's kind (model/commit.py), made with the snapshot of `version`.
    """

    base: int | None
    version: int
    edges: tuple[Edge, ...]
    settled: Edge | None = None

    @property
    def bytes(self) -> int:
        """What is read for it."""
        return sum(edge.bytes for edge in self.parts)

    @property
    def parts(self) -> tuple[Edge, ...]:
        """The edges that are read for it."""
        return (self.settled, *self.edges) if self.settled else self.edges


def tight(edges: Sequence[Edge], levels: Levels) -> bool:
    """Whether readers may need more bytes than a snapshot holds, and the newest snapshot is large enough to care."""
    snapshots = [edge for edge in edges if edge.base is None]
    deltas = sum(edge.bytes for edge in edges if edge.base is not None)
    return any(deltas > edge.bytes for edge in snapshots) and snapshots[-1].bytes >= levels.snapshot_least_bytes


def making_room(edges: Sequence[Edge], base: int, levels: Levels, *, over: bool, settled_until: int = 0) -> Merge | None:
    """What lets retention give up more of `edges` (one session's, by version; `tight`), where readers from `base` on keep much.

    An edge that leads them over to the newest snapshot: unless all lead `over` (rules/plan.py), one has to be settled. When it
    is there, or nobody needs one (retention gave up one to a version up to `settled_until`), a fresh snapshot behind
    CROWDED_RATIO. Where it cannot be made (its ends are taken; a roll-up passes over the snapshot), a fresh snapshot at once:
    to that one it can. Who knows an edge may trust it: none is replaced.
    """
    snapshot = max((edge for edge in edges if edge.base is None), key=_VERSION)
    led = over or any(edge.settled and (edge.base or 0) <= base and edge.version == snapshot.version for edge in edges)
    if led or base >= snapshot.version - 1 or snapshot.version <= settled_until:
        return _snapshot_due(edges, replace(levels, snapshot_ratio=min(levels.snapshot_ratio, CROWDED_RATIO)))
    ends, road = (base, snapshot.version), _road(edges, base, snapshot.version)
    if road and not any((edge.base, edge.version) == ends for edge in edges):
        return Merge(base, snapshot.version, road, snapshot)
    return _snapshot_due(edges, replace(levels, snapshot_ratio=0.0, snapshot_least_bytes=0))


def due(edges: Sequence[Edge], levels: Levels, rolled_until: int = 0) -> Iterator[Merge]:
    """What compaction owes to `edges` (of one session, by version): roll-ups by version, the narrow first; then the snapshot.

    A range whose deltas are retired in part is past mending, and owes nothing; nor does one up to `rolled_until`: what was made
    there, retention has seen, and gave up what nobody needs. So whoever stops half way has to have begun with the oldest.
    """
    if not edges:
        return
    newest, offered = edges[-1].version, {(edge.base, edge.version) for edge in edges}
    oldest = min(edge.version if edge.base is None else edge.base for edge in edges)
    begin = max(oldest, rolled_until)
    for version in range(begin - begin % levels.factor + levels.factor, newest + 1, levels.factor):
        width = levels.factor
        while version % width == 0 and version - width >= oldest:
            base = version - width
            if (base, version) not in offered and (road := _road(edges, base, version)) is not None:
                yield Merge(base, version, road)
            width *= levels.factor
    if (snapshot := _snapshot_due(edges, levels)) is not None:
        yield snapshot


def _road(edges: Sequence[Edge], base: int, version: int) -> tuple[Edge, ...] | None:
    """Deltas and roll-ups from `base` to `version`; None where one is missing."""
    first, last = (bisect_right(edges, at, key=_VERSION) for at in (base, version))
    return cheapest([edge for edge in edges[first:last] if edge.base is not None and edge.base >= base], base, version)


def _snapshot_due(edges: Sequence[Edge], levels: Levels) -> Merge | None:
    """Judged by the newest snapshot, though an older one and its deltas may be fewer bytes: else each version were due one."""
    newest = edges[-1].version
    road = cheapest(edges, None, newest)
    if not road:
        return None
    last = max((edge for edge in edges if edge.base is None), key=_VERSION)
    past = _road(edges, last.version, newest)
    if past is None:  # a roll-up passes over the snapshot, and deltas behind it are retired
        past = tuple(edge for edge in road if edge.version > last.version)
    behind = sum(edge.bytes for edge in past)
    heavy = behind > levels.snapshot_ratio * last.bytes and behind >= levels.snapshot_least_bytes
    return Merge(None, newest, road) if heavy else None
