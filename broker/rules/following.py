"""How a replica follows: which version is next, and when. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from broker.errors import Invalid
from broker.rules.fold import State
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
        if not self.seconds > 0:
            raise Invalid("not a time to rest", of=f"seconds={self.seconds!r}", hint="Give a number above 0")


Policy: TypeAlias = Latest | Every | AtMostEvery


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a replica is behind: versions it lacks, bytes of the road to the newest, age of the oldest version it lacks."""

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


def lag_of(state: State, held: int, session: str, now: float) -> Lag:
    """How far a cursor at version `held` of a session is behind at `now` (seconds). One of another session needs everything."""
    at = held if session == state.session else 0
    if not state.offered or at >= state.version:
        return Lag(0, 0, 0.0)
    road = cheapest(state.edges, at or None, state.version) or ()
    since = lacking_since(state, at)
    missing = state.version - at if at else sum(info.version > at for info in state.versions)
    return Lag(max(1, missing), sum(edge.bytes for edge in road), max(0.0, now - since) if since else 0.0)
