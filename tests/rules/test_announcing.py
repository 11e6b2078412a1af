"""What a channel names, by announcements alone: promotion, rollback and release as laws over any history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Conflict, NotFound
from broker.model.commit import PAST, Announce, Point, Record
from broker.model.names import ChannelsId
from broker.rules.announcing import Wish, moved, moved_back
from broker.rules.fold import State, fold

LOG = ChannelsId("t/d")
NAMES, CHANNEL = ("offers", "images"), "production"


def told(state: State, body: Announce | None) -> State:
    """The state behind the record."""
    if body is None:
        return state
    record = Record(seq=state.seq + 1, previous=state.sha, write_id="w", time=1.5, body=body)
    return fold(state, record.to_bytes())


def promote(state: State, version: int, name: str = "offers") -> State:
    return told(state, moved(state, Wish(CHANNEL, {name: Point(version, "s")})))


def rollback(state: State, name: str = "offers") -> State:
    return told(state, moved_back(state, name, CHANNEL, state.channels[name, CHANNEL].point))


def versions(state: State, name: str = "offers") -> list[int]:
    """What is named, then what was before."""
    named = state.channels[name, CHANNEL]
    return [named.version, *(point.version for point in named.past)]


def test_a_rollback_goes_back_step_by_step_and_never_to_what_was_left() -> None:
    state = State(LOG)
    for version in (1, 2, 3):
        state = promote(state, version)
    assert versions(state) == [3, 2, 1]
    state = rollback(state)
    assert versions(state) == [2, 1]
    assert state.channels["offers", CHANNEL].left == (3, "s")
    state = rollback(promote(state, 4))
    assert versions(state) == [2, 1]
    state = rollback(state)
    assert versions(state) == [1]
    with pytest.raises(Conflict, match="nothing to roll back to"):
        rollback(state)


def test_who_promotes_an_older_version_can_roll_that_back_too() -> None:
    state = State(LOG)
    for version in (1, 2, 3, 1):
        state = promote(state, version)
    assert versions(state) == [1, 3, 2]
    assert versions(rollback(state)) == [3, 2]


def test_the_same_rollback_again_changes_nothing() -> None:
    state = rollback(promote(promote(State(LOG), 1), 2))
    assert moved_back(state, "offers", CHANNEL, Point(2, "s")) is None
    with pytest.raises(Conflict, match="moved"):
        moved_back(promote(state, 3), "offers", CHANNEL, Point(2, "s"))


def test_what_was_never_named_cannot_be_rolled_back() -> None:
    with pytest.raises(NotFound, match="Promote one first"):
        moved_back(State(LOG), "offers", CHANNEL, Point(1, "s"))


def test_all_of_a_release_is_expected_before_any_of_it_moves() -> None:
    state = promote(promote(State(LOG), 1), 7, "images")
    targets = {"offers": Point(2, "s"), "images": Point(8, "s")}
    with pytest.raises(Conflict, match=r"images in production.*at version 7, expected was 6"):
        moved(state, Wish(CHANNEL, targets, {"offers": 1, "images": 6}))
    with pytest.raises(Conflict, match="expected was none yet"):
        moved(state, Wish(CHANNEL, targets, {"offers": 0}))
    with pytest.raises(Conflict, match="not named yet, expected was 3"):
        moved(state, Wish("staging", targets, {"offers": 3}))
    assert moved(state, Wish("staging", targets, {"offers": 0})) is not None


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 6)), max_size=30))
def test_any_history_names_what_a_plain_stack_says(history: list[tuple[str, int]]) -> None:
    """0: a rollback. The oracle is a list for each dataset, the newest last, from which a rollback takes."""
    state, oracle = State(LOG), {name: list[int]() for name in NAMES}
    for name, version in history:
        stack = oracle[name]
        if version:
            state = promote(state, version, name)
            if stack[-1:] != [version]:
                oracle[name] = [*(old for old in stack if old != version), version][-PAST - 1 :]
        elif len(stack) > 1:
            state = rollback(state, name)
            stack.pop()
        for each, expected in oracle.items():
            assert (versions(state, each) if expected else []) == expected[::-1]
