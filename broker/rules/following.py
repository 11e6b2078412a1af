"""How a replica follows: which version is next, and when. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from broker.errors import Invalid
from broker.model.names import LIVE
from broker.rules.fold import State
from broker.rules.patch import Named
from broker.rules.plan import cheapest


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest version, as soon as it is there; versions that come while one is applied are taken together."""


@dataclass(frozen=True, slots=True)
class Every:
    """Version by version, none left out while a road to it is offered."""


@dataclass(frozen=True, slots=True)
class AtMostEvery:
    """The newest version, and `seconds` of rest behind each."""

    seconds: float

    def __post_init__(self) -> None:
        if not (isinstance(self.seconds, int | float) and self.seconds > 0):
            raise Invalid("not a time to rest", of=f"seconds={self.seconds!r}", hint="Give a number above 0")


Policy: TypeAlias = Latest | Every | AtMostEvery


@dataclass(frozen=True, slots=True)
class Goal:
    """The version a consumer shall be at (0: none yet), and since when its channel names it (seconds; 0.0: `live`)."""

    version: int
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a replica is behind what it follows: versions it lacks, bytes of the road there, and for how long: the age of the
    oldest version it lacks, or of the announcement where that is younger."""

    versions: int
    bytes: int
    seconds: float

    @property
    def none(self) -> bool:
        return self.versions == 0


def next_version(policy: Policy, state: State, held: int | None, want: int) -> int:
    """The version to go to from `held` (None: nothing, or nothing that counts) on the way to `want`."""
    if not isinstance(policy, Every) or held is None or held >= want:
        return want
    return min((edge.version for edge in state.edges if held < edge.version < want), default=want)


def rest_seconds(policy: Policy) -> float:
    """How long to rest behind a version that was applied."""
    return policy.seconds if isinstance(policy, AtMostEvery) else 0.0


def proof_due(held: int | None, version: int, every: int, *, snapshot: bool) -> bool:
    """Whether a replica that went from `held` to `version` proves its content: a snapshot always, deltas once in so many."""
    return snapshot or held is None or version // every > held // every


def lacking_since(state: State, held: int) -> float:
    """When the oldest version that `held` lacks was committed (seconds since the epoch); 0.0 where it lacks none."""
    return min((info.time for info in state.versions if info.version > held), default=0.0)


def goal_of(state: State, channel: str, named: Mapping[str, Named]) -> Goal:
    """What a consumer that follows a channel shall be at. `named`: what channels name, read before the state."""
    if channel == LIVE:
        return Goal(state.offered)
    at = named.get(channel)
    return Goal(at.version, at.time) if at and at.session == state.session else Goal(0)


def lag_of(state: State, held: int, goal: Goal, now: float) -> Lag:
    """How far a cursor at version `held` (0: at none that counts) is behind its goal at `now` (seconds).

    One that must go back lacks one version, since its channel went back.
    """
    if goal.version in (0, held):
        return Lag(0, 0, 0.0)
    onwards = held < goal.version
    road = cheapest(state.edges, (held or None) if onwards else None, goal.version, over=state.leads_over) or ()
    missing = goal.version - held if held else sum(info.version <= goal.version for info in state.versions)
    since = max(lacking_since(state, held) if onwards else 0.0, goal.since)
    return Lag(max(1, missing), sum(edge.bytes for edge in road), max(0.0, now - since) if since else 0.0)
