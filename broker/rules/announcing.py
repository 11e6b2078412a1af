"""Announcements: from what a tenant's channels name now to the record that moves one of them. Pure.

promote 1, 2, 3     names 3, and before it 2, 1
rollback            names 2, and before it 1; 3 was left: it stays readable, but no rollback leads to it
promote 4           names 4, and before it 2, 1
rollback            names 2, and before it 1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.errors import Conflict, NotFound
from broker.model.commit import PAST, Announce, Move, Point, Why
from broker.rules.fold import State
from broker.rules.patch import Named


@dataclass(frozen=True, slots=True)
class Wish:
    """What a channel shall name: by dataset name. `expect`: versions that it must name now, 0 for none yet."""

    channel: str
    targets: Mapping[str, Point]
    expect: Mapping[str, int] = field(default_factory=dict)
    why: Why = "promoted"


def moved(state: State, wish: Wish) -> Announce | None:
    """The record of all of a wish; None where all of it stands. Raises Conflict when the channel is elsewhere than expected."""
    standing = {name: state.channels.get((name, wish.channel)) for name in {**wish.targets, **wish.expect}}
    moves = {name: _onwards(standing[name], to) for name, to in wish.targets.items() if _point(standing[name]) != to}
    if not moves:
        return None
    for name, version in wish.expect.items():
        point = _point(standing[name])
        found = point.version if point else 0
        if found != version:
            raise _elsewhere(f"{name} in {wish.channel}", found, version)
    return Announce(channel=wish.channel, moves=moves, why=wish.why)


def moved_back(state: State, name: str, channel: str, start: Point) -> Announce | None:
    """The record of a rollback from `start`; None where the channel came back from there already.

    Raises Conflict when it is elsewhere, or named nothing before.
    """
    standing = standing_of(state, name, channel)
    if standing.left == start:
        return None
    if standing.point != start:
        raise _elsewhere(f"{name} in {channel}", standing.version, start.version)
    if not standing.past:
        raise Conflict(
            "nothing to roll back to", of=f"{name} in {channel}", why=f"{standing.version} is the first version it names",
            hint="Promote another version instead",
        )  # fmt: skip
    to, *past = standing.past
    move = Move(version=to.version, session=to.session, past=tuple(past), left=start)
    return Announce(channel=channel, moves={name: move}, why="rolled-back")


def standing_of(state: State, name: str, channel: str) -> Named:
    """What a channel names. Raises NotFound."""
    found = state.channels.get((name, channel))
    if found is None:
        others = ", ".join(other for known, other in state.channels if known == name)
        raise NotFound(
            "the channel names no version of this dataset", of=f"{name} in {channel}", why=f"those that do: {others or 'none'}",
            hint="Promote one first",
        )  # fmt: skip
    return found


def _onwards(standing: Named | None, to: Point) -> Move:
    before = [standing.point, *standing.past] if standing else []
    past = tuple(point for point in before if point != to)[:PAST]
    return Move(version=to.version, session=to.session, past=past)


def _point(standing: Named | None) -> Point | None:
    return standing.point if standing else None


def _elsewhere(of: str, found: int, expected: int) -> Conflict:
    where = f"at version {found}" if found else "not named yet"
    return Conflict(
        "the channel moved", of=of, why=f"it is {where}, expected was {expected or 'none yet'}", hint="Look at it, then decide"
    )
